/* Tests of common/options.c.
 * In: tables, argument lists, environments, files. Out: filled structs, or texts that say what is wrong.
 * Every test is a process of its own, so that environment variables do not leak from one to the next. */
#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/options.h"

typedef struct settings {
  bool greedy;
  int64_t batch, size;
  double rate;
  const char *model, *queue, *color;
  tf_string_list routers;
} settings;

#define AT(member) offsetof(settings, member)
static const tf_option table[] = {
    {"greedy", 'g', TF_OPTION_FLAG, AT(greedy), 0, 0, NULL, NULL, "Takes the likeliest token"},
    {"batch", 'b', TF_OPTION_INT, AT(batch), 1, 64, "4", "images", "Images in one batch"},
    {"max-image-bytes", 0, TF_OPTION_INT, AT(size), 1, 1e12, "64MiB", "bytes",
     "Longest image file that is read; longer ones are refused before memory is taken for them"},
    {"rate", 0, TF_OPTION_REAL, AT(rate), 0, 1, "0.5", NULL, "Some rate"},
    {"model", 'm', TF_OPTION_STRING, AT(model), 0, 0, NULL, "DIR", "Model folder"},
    {"queue", 0, TF_OPTION_STRING, AT(queue), 0, 0, "default", NULL, "Queue"},
    {"routers", 0, TF_OPTION_LIST, AT(routers), 0, 0, "tcp://127.0.0.1:7701", "ENDPOINTS", "Routers to connect to"},
    {"color", 0, TF_OPTION_CHOICE, AT(color), 0, 0, "auto", "auto|on|off", "Colors"},
};
static const tf_program program = {"tokenflex-test", "[options] FILE...", "Tests options.", table,
                                   sizeof table / sizeof table[0]};

static settings got;
static const char *positionals[32];
static size_t positional_count;
static tf_options_outcome outcome;
static tf_error problem;

/* A NULL ends the arguments. */
static tf_code parse(const char *first, ...) {
  static char *arguments[32];
  int count = 0;
  arguments[count++] = "tokenflex-test";
  va_list rest;
  va_start(rest, first);
  for (const char *argument = first; argument; argument = va_arg(rest, const char *)) {
    arguments[count++] = (char *)argument;
  }
  va_end(rest);
  memset(&got, 0xa5, sizeof got);
  problem.text[0] = '\0';
  return tf_options_parse(&program, count, arguments, &got, positionals, &positional_count, &outcome, &problem);
}

static void expect_refusal(const char *option, const char *part) {
  cr_assert_eq(parse(option, NULL), TF_ERR_INVALID_ARGUMENT, "%s", option);
  cr_assert_not_null(strstr(problem.text, part), "\"%s\" is not in: %s", part, problem.text);
}

static const char *write_file(const char *text) {
  static char path[64];
  snprintf(path, sizeof path, "/tmp/tokenflex-options-%d", (int)getpid());
  FILE *file = fopen(path, "w");
  fputs(text, file);
  fclose(file);
  return path;
}

Test(options, defaults) {
  cr_assert_eq(parse(NULL), TF_OK, "%s", problem.text);
  cr_assert_eq(outcome, TF_OPTIONS_RUN);
  cr_assert_not(got.greedy);
  cr_assert_eq(got.batch, 4);
  cr_assert_eq(got.size, 64 * 1024 * 1024);
  cr_assert(got.rate == 0.5);
  cr_assert_null(got.model);
  cr_assert_str_eq(got.queue, "default");
  cr_assert_eq(got.routers.count, 1);
  cr_assert_eq(positional_count, 0);
}

Test(options, every_spelling_of_a_flag) {
  cr_assert_eq(parse("--batch", "7", "a.jpg", "--rate=0.25", "-m", "models", "-g", "--", "--batch", "-", NULL), TF_OK,
               "%s", problem.text);
  cr_assert_eq(got.batch, 7);
  cr_assert(got.rate == 0.25);
  cr_assert_str_eq(got.model, "models");
  cr_assert(got.greedy);
  cr_assert_eq(positional_count, 3);
  cr_assert_str_eq(positionals[0], "a.jpg");
  cr_assert_str_eq(positionals[1], "--batch");
  cr_assert_str_eq(positionals[2], "-");
  cr_assert_eq(parse("--greedy", "--greedy=false", "--queue=", "--model=--odd", NULL), TF_OK);
  cr_assert_not(got.greedy);
  cr_assert_str_eq(got.queue, "");
  cr_assert_str_eq(got.model, "--odd");
}

Test(options, sizes_with_suffixes) {
  static const struct {
    const char *text;
    int64_t value;
  } cases[] = {
      {"--max-image-bytes=12", 12},         {"--max-image-bytes=3K", 3000},        {"--max-image-bytes=3k", 3000},
      {"--max-image-bytes=3Ki", 3072},      {"--max-image-bytes=2MB", 2000000},    {"--max-image-bytes=2MiB", 2097152},
      {"--max-image-bytes=1G", 1000000000}, {"--max-image-bytes=1Gi", 1073741824}, {"--max-image-bytes=+5", 5}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    cr_assert_eq(parse(cases[i].text, NULL), TF_OK, "%s", problem.text);
    cr_assert_eq(got.size, cases[i].value, "%s", cases[i].text);
  }
}

Test(options, bad_values_are_refused) {
  expect_refusal("--batch=0", "--batch: \"0\" is not accepted; expected 1 to 64 images");
  expect_refusal("--batch=65", "1 to 64");
  expect_refusal("--batch=", "1 to 64");
  expect_refusal("--batch=4x", "1 to 64");
  expect_refusal("--batch=0x4", "1 to 64");
  expect_refusal("--batch= 4", "1 to 64");
  expect_refusal("--batch=99999999999999999999", "1 to 64");
  expect_refusal("--batch=9223372036854775807G", "1 to 64");
  expect_refusal("--max-image-bytes=3Kx", "1 to 1000000000000 bytes");
  expect_refusal("--rate=nan", "0 to 1");
  expect_refusal("--rate=1.01", "0 to 1");
  expect_refusal("--rate=0.5s", "0 to 1");
  expect_refusal("--greedy=maybe", "true or false");
  expect_refusal("--batch", "--batch needs a value");
  cr_assert_eq(parse("--model", "--greedy", NULL), TF_ERR_INVALID_ARGUMENT);
  cr_assert_not_null(strstr(problem.text, "--model=VALUE"), "%s", problem.text);
}

Test(options, a_choice_takes_its_words_alone) {
  cr_assert_eq(parse(NULL), TF_OK);
  cr_assert_str_eq(got.color, "auto");
  cr_assert_eq(parse("--color", "off", NULL), TF_OK);
  cr_assert_str_eq(got.color, "off");
  expect_refusal("--color=of", "--color: \"of\" is not accepted; expected auto|on|off");
  expect_refusal("--color=offf", "auto|on|off");
  expect_refusal("--color=", "auto|on|off");
  expect_refusal("--color=on|off", "auto|on|off");
  setenv("TOKENFLEX_COLOR", "loud", 1);
  cr_assert_eq(parse(NULL), TF_ERR_INVALID_ARGUMENT);
  cr_assert_not_null(strstr(problem.text, "TOKENFLEX_COLOR: \"loud\""), "%s", problem.text);
}

Test(options, unknown_names_get_a_suggestion) {
  expect_refusal("--bacth=3", "did you mean --batch?");
  expect_refusal("--max-image=3", "did you mean --max-image-bytes?");
  expect_refusal("--versoin", "did you mean --version?");
  expect_refusal("--zzzzzzzzz", "--help lists all");
  expect_refusal("-z", "unknown option -z");
  expect_refusal("-gb", "unknown option -gb");
}

Test(options, lists) {
  cr_assert_eq(parse("--routers", "a, b,,c ", "--routers=d", NULL), TF_OK);
  cr_assert_eq(got.routers.count, 4);
  const char *const expected[] = {"a", "b", "c", "d"};
  for (int i = 0; i < 4; i++) cr_assert_str_eq(got.routers.items[i], expected[i]);
  cr_assert_eq(parse("--routers=", NULL), TF_OK);
  cr_assert_eq(got.routers.count, 0);
  char many[2 * (TF_STRING_LIST_ITEMS_MAX + 1) + 16] = "--routers=";
  for (int i = 0; i < TF_STRING_LIST_ITEMS_MAX; i++) strcat(many, "x,");
  cr_assert_eq(parse(many, NULL), TF_OK);
  cr_assert_eq(got.routers.count, TF_STRING_LIST_ITEMS_MAX);
  strcat(many, "x");
  expect_refusal(many, "more than 64");
}

Test(options, flag_over_environment_over_file_over_default) {
  const char *path = write_file("# a comment\n\n batch = 10 \nqueue=from file\r\nrouters = f1,f2\n"
                                "max-image-bytes = 1K\ngreedy = yes");
  setenv("TOKENFLEX_BATCH", "11", 1);
  setenv("TOKENFLEX_MAX_IMAGE_BYTES", "2K", 1);
  setenv("TOKENFLEX_ROUTERS", "e1", 1);
  setenv("TOKENFLEX_QUEUE", "", 1); /* as good as unset */
  cr_assert_eq(parse("--config", path, "-b", "12", NULL), TF_OK, "%s", problem.text);
  cr_assert_eq(got.batch, 12);
  cr_assert_eq(got.size, 2000);
  cr_assert_str_eq(got.queue, "from file");
  cr_assert(got.greedy);
  cr_assert_eq(got.routers.count, 1);
  cr_assert_str_eq(got.routers.items[0], "e1");
  cr_assert(got.rate == 0.5);
  setenv("TOKENFLEX_CONFIG", path, 1);
  cr_assert_eq(parse("--routers=x", "--routers=y", NULL), TF_OK, "%s", problem.text);
  cr_assert_eq(got.batch, 11);
  cr_assert_eq(got.routers.count, 2);
  cr_assert_str_eq(got.queue, "from file");
  unlink(path);
}

Test(options, faults_of_file_and_environment_name_the_place) {
  char flag[80];
  const char *path = write_file("batch = 3\nbatch = 99\n");
  snprintf(flag, sizeof flag, "--config=%s", path);
  expect_refusal(flag, ":2: batch: \"99\" is not accepted; expected 1 to 64 images");
  write_file("\nbatsh = 3\n");
  expect_refusal(flag, ":2: unknown option batsh; did you mean batch?");
  write_file("batch 3\n");
  expect_refusal(flag, ":1: \"batch 3\" is not of the form name = value");
  unlink(path);
  expect_refusal(flag, "can not read the configuration file");
  setenv("TOKENFLEX_BATCH", "x", 1);
  cr_assert_eq(parse(NULL), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(strncmp(problem.text, "TOKENFLEX_BATCH: \"x\"", 20), 0, "%s", problem.text);
}

Test(options, programs_without_positionals_refuse_them) {
  char *arguments[] = {"tokenflex-test", "stray"};
  cr_assert_eq(tf_options_parse(&program, 2, arguments, &got, NULL, NULL, &outcome, &problem), TF_ERR_INVALID_ARGUMENT);
  cr_assert_not_null(strstr(problem.text, "stray"));
}

Test(options, environment_names) {
  char name[64];
  tf_option_environment_name("max-pixels", name, sizeof name);
  cr_assert_str_eq(name, "TOKENFLEX_MAX_PIXELS");
}

static const char *captured_output(void) {
  static char text[65536];
  fflush(stdout);
  FILE *file = cr_get_redirected_stdout();
  size_t size = 0;
  for (int byte; size < sizeof text - 1 && (byte = fgetc(file)) != EOF;) text[size++] = (char)byte;
  text[size] = '\0';
  return text;
}

Test(options, help_shows_every_row_within_its_width, .init = cr_redirect_stdout) {
  cr_assert_eq(parse("--batch=3", "--help", "--unknown", NULL), TF_OK);
  cr_assert_eq(outcome, TF_OPTIONS_HELP);
  fclose(stdout);
  const char *text = captured_output();
  cr_assert_not_null(strstr(text, "Usage: tokenflex-test [options] FILE..."), "%s", text);
  cr_assert_not_null(strstr(text, "-b, --batch images"), "%s", text);
  cr_assert_not_null(strstr(text, "(default 4 images; 1 to 64; TOKENFLEX_BATCH)"), "%s", text);
  for (size_t i = 0; i < program.option_count; i++) {
    char environment[64];
    tf_option_environment_name(table[i].name, environment, sizeof environment);
    cr_assert_not_null(strstr(text, environment), "%s", environment);
  }
  cr_assert_not_null(strstr(text, "--version"));
  cr_assert_not_null(strstr(text, "TOKENFLEX_CONFIG"));
  for (const char *line = text; *line;) {
    size_t size = strcspn(line, "\n");
    cr_assert_leq(size, 96, "%.*s", (int)size, line);
    line += size + (line[size] ? 1 : 0);
  }
}

Test(options, version_is_one_line, .init = cr_redirect_stdout) {
  cr_assert_eq(parse("--version", NULL), TF_OK);
  cr_assert_eq(outcome, TF_OPTIONS_VERSION);
  fclose(stdout);
  cr_assert_str_eq(captured_output(), "tokenflex-test " TF_VERSION "\n");
}

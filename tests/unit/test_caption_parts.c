/* Tests of cli/pace.c, cli/sidecar.c, cli/duplicates.c and cli/upgrade.c.
 * In: words, small files. Out: times, files beside photos, lines found again, outputs merged. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cli/plot.h"
#include "cli/duplicates.h"
#include "cli/jsonl.h"
#include "cli/pace.h"
#include "cli/sidecar.h"
#include "cli/upgrade.h"

static char top[64];
static tf_error problem;

static void make_top(void) {
  strcpy(top, "/tmp/tf-test-batch-XXXXXX");
  cr_assert_not_null(mkdtemp(top));
  cr_assert_eq(chdir(top), 0);
  setenv("TZ", "UTC", 1);
  tzset();
}
static void remove_top(void) {
  char command[128];
  cr_assert_eq(chdir("/"), 0);
  snprintf(command, sizeof command, "rm -rf '%s'", top);
  cr_assert_eq(system(command), 0);
}
TestSuite(caption_parts, .init = make_top, .fini = remove_top);

static void write_text(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  cr_assert_geq(fd, 0);
  cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
  close(fd);
}
static const char *content_of(const char *path) {
  static char content[65536];
  FILE *file = fopen(path, "r");
  if (!file) return "";
  content[fread(content, 1, sizeof content - 1, file)] = '\0';
  fclose(file);
  return content;
}

/* -- deadlines -- */

static const int64_t noon = 1736942400000; /* 2025-01-15 12:00:00 UTC */

static int64_t minutes_until(const char *within, const char *finish_by) {
  int64_t at;
  if (tf_pace_parse(within, finish_by, noon, &at, &problem)) return -1;
  return (at - noon) / 60000;
}

Test(caption_parts, times) {
  cr_assert_eq(minutes_until("3h", NULL), 180);
  cr_assert_eq(minutes_until("1h30m", NULL), 90);
  cr_assert_eq(minutes_until("2d", NULL), 2880);
  cr_assert_eq(minutes_until("90s", NULL), 1);
  cr_assert_eq(minutes_until(NULL, "13:00"), 60);
  cr_assert_eq(minutes_until(NULL, "06:00"), 18 * 60, "the next one");
  cr_assert_eq(minutes_until(NULL, "12:00"), 24 * 60);
  cr_assert_eq(minutes_until(NULL, "2025-01-16 12:00"), 1440);
  cr_assert_eq(minutes_until(NULL, "2025-01-31T06:00"), 16 * 1440 - 360);
  cr_assert_eq(minutes_until(NULL, NULL), -noon / 60000, "no deadline");
  static const char *const bad_within[] = {"",   "3",   "h",    "3 h",  "-3h",
                                           "0m", "3h-", "1e3h", "400d", "99999999999999999999h"};
  for (size_t i = 0; i < sizeof bad_within / sizeof bad_within[0]; i++)
    cr_assert_eq(minutes_until(bad_within[i], NULL), -1, "%s", bad_within[i]);
  static const char *const bad_times[] = {
      "", "6", "24:00", "12:60", "12:00x", "2025-13-01 06:00", "yesterday", "2025-01-14 06:00"};
  for (size_t i = 0; i < sizeof bad_times / sizeof bad_times[0]; i++)
    cr_assert_eq(minutes_until(NULL, bad_times[i]), -1, "%s", bad_times[i]);
  cr_assert_eq(minutes_until("1h", "13:00"), -1);
}

Test(caption_parts, forecast) {
  tf_pace pace = {.finish_unix_ms = noon, .counts = {64, 144, 256}, .count_count = 3};
  tf_buffer text;
  tf_buffer_init(&text, 1024);
  tf_pace_forecast(&pace, 100, 256, &text);
  cr_assert_eq(text.size, 0, "nothing is known");
  pace.per_second[0] = 10;
  pace.per_second[1] = 6;
  pace.per_second[2] = 4;
  pace.budget = 118;
  tf_pace_forecast(&pace, 103200, 256, &text);
  cr_assert_eq(strncmp(text.data, "at 256 tokens: 7h 10m, at 64: 2h 52m; planned mean 118 tokens; to be done by ", 77),
               0, "%s", text.data);
  tf_buffer_clear(&text);
  tf_pace_forecast(&pace, 21600, 144, &text);
  cr_assert_eq(strncmp(text.data, "at 144 tokens: 1h 00m,", 22), 0, "the most that is wanted: %s", text.data);
  tf_buffer_free(&text);
}

/* -- sidecars -- */

Test(caption_parts, sidecar_names) {
  static const char *const pairs[][2] = {{"/a/b.jpg", "/a/b.txt"},
                                         {"b.tar.gz", "b.tar.txt"},
                                         {"/a.b/c", "/a.b/c.txt"},
                                         {"/a/.hidden", "/a/.hidden.txt"},
                                         {"/x/y.", "/x/y.txt"}};
  for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
    tf_buffer path;
    tf_buffer_init(&path, 1024);
    tf_sidecar_path(pairs[i][0], &path);
    cr_assert_str_eq(path.data, pairs[i][1]);
    tf_buffer_free(&path);
  }
}

Test(caption_parts, sidecars_replace_nothing_unasked) {
  bool kept, full;
  cr_assert_eq(tf_sidecar_write("p.jpg", "one", false, &kept, &full, &problem), TF_OK);
  cr_assert_not(kept);
  cr_assert_str_eq(content_of("p.txt"), "one\n");
  cr_assert(tf_sidecar_exists("p.jpg"));
  cr_assert(tf_sidecar_holds("p.jpg", "one"));
  cr_assert_not(tf_sidecar_holds("p.jpg", "on"));
  cr_assert_eq(tf_sidecar_write("p.jpg", "two", false, &kept, &full, &problem), TF_OK);
  cr_assert(kept);
  cr_assert_str_eq(content_of("p.txt"), "one\n");
  cr_assert_eq(tf_sidecar_write("p.jpg", "two", true, &kept, &full, &problem), TF_OK);
  cr_assert_str_eq(content_of("p.txt"), "two\n");
  write_text("q.txt", "a picture named like a text");
  cr_assert_eq(tf_sidecar_write("q.txt", "x", true, &kept, &full, &problem), TF_OK);
  cr_assert(kept, "a photo is never replaced by its own caption");
  cr_assert_not(tf_sidecar_exists("q.txt"));
  write_text("s.txt", "GIF89a, a picture by its signature, is never replaced");
  cr_assert_eq(tf_sidecar_write("s.jpg", "x", true, &kept, &full, &problem), TF_ERR_IO);
  cr_assert_not_null(strstr(problem.text, "a picture"), "%s", problem.text);
  cr_assert_str_eq(content_of("s.txt"), "GIF89a, a picture by its signature, is never replaced");
  cr_assert_eq(mkfifo("f.txt", 0600), 0);
  cr_assert_eq(tf_sidecar_write("f.jpg", "x", true, &kept, &full, &problem), TF_ERR_IO);
  cr_assert_not_null(strstr(problem.text, "not a regular file"), "%s", problem.text);
  char longest[256]; /* a file's name has 255 bytes at most */
  memset(longest, 'n', 251);
  strcpy(longest + 251, ".jpg");
  cr_assert_eq(tf_sidecar_write(longest, "long", false, &kept, &full, &problem), TF_OK, "%s", problem.text);
  strcpy(longest + 251, ".txt");
  cr_assert_str_eq(content_of(longest), "long\n");
  cr_assert_eq(tf_sidecar_write("none/p.jpg", "x", false, &kept, &full, &problem), TF_ERR_IO);
  cr_assert_eq(system("test -z \"$(find . -name '.*.tokenflex')\""), 0, "nothing else is left");
}

/* -- contents -- */

Test(caption_parts, contents) {
  write_text("a", "same bytes");
  write_text("b", "same bytes");
  write_text("c", "other bytes");
  write_text("empty", "");
  cr_assert(tf_content_is_same(tf_content_of("a"), tf_content_of("b")));
  cr_assert_not(tf_content_is_same(tf_content_of("a"), tf_content_of("c")));
  cr_assert_eq(tf_content_of("empty").key, 0);
  cr_assert_eq(tf_content_of("none").key, 0);
  cr_assert_eq(tf_content_of(".").key, 0);
  cr_assert_not(tf_content_is_same(tf_content_of("empty"), tf_content_of("empty")),
                "what is not known is like nothing");
}

#define LINE(image, tokens)                                                                                            \
  "{\"id\":\"r\",\"image\":\"" image "\",\"caption\":\"c" #tokens "\",\"vision_tokens\":{\"assigned\":" #tokens "}}\n"

Test(caption_parts, lines_of_the_same_bytes) {
  tf_duplicates duplicates;
  tf_buffer line, found_line, second;
  bool found;
  tf_caption_facts facts;
  tf_buffer_init(&line, 4096);
  tf_buffer_init(&found_line, 4096);
  tf_buffer_init(&second, 4096);
  write_text("a", "same bytes");
  write_text("out", LINE("x", 9) LINE("a", 16));
  int fd = open("out", O_RDONLY);
  tf_content content = tf_content_of("a");
  tf_duplicates_init(&duplicates);
  cr_assert_eq(tf_duplicates_line(&duplicates, content, fd, &found_line, &found, &problem), TF_OK);
  cr_assert_not(found);
  cr_assert_eq(tf_duplicates_note(&duplicates, content, fd, (off_t)strlen(LINE("x", 9)), &line, &problem), TF_OK);
  cr_assert_eq(tf_duplicates_line(&duplicates, content, fd, &found_line, &found, &problem), TF_OK);
  cr_assert(found);
  cr_assert_str_eq(found_line.data, LINE("a", 16));
  cr_assert_eq(tf_jsonl_duplicate(found_line.data, found_line.size, "r-2", "caf\xe9", &second, &facts, &problem),
               TF_OK);
  cr_assert_str_eq(second.data,
                   "{\"id\":\"r-2\",\"image\":\"caf\\\\xE9\",\"caption\":\"c16\",\"vision_tokens\":{\"assigned\":16},"
                   "\"image_uri\":\"caf%E9\",\"duplicate_of\":\"a\"}\n");
  cr_assert_eq(facts.vision_tokens, 16);
  /* Without an output to read, the line itself is kept. */
  tf_duplicates_clear(&duplicates);
  tf_buffer_printf(&line, "%s", LINE("kept", 4));
  cr_assert_eq(tf_duplicates_note(&duplicates, content, -1, 0, &line, &problem), TF_OK);
  tf_buffer_clear(&found_line);
  cr_assert_eq(tf_duplicates_line(&duplicates, content, -1, &found_line, &found, &problem), TF_OK);
  cr_assert(found);
  cr_assert_str_eq(found_line.data, LINE("kept", 4));
  tf_duplicates_free(&duplicates);
  close(fd);
  tf_buffer_free(&line);
  tf_buffer_free(&found_line);
  tf_buffer_free(&second);
}

/* -- upgrades -- */

Test(caption_parts, merging) {
  tf_output output;
  tf_past past;
  uint64_t count;
  write_text("o", LINE("a", 4) LINE("b", 16) LINE("c", 4));
  write_text("o.upgrade", LINE("c", 9) LINE("a", 16) LINE("./c", 16) "{\"torn");
  cr_assert_eq(tf_past_init(&past, "/photos", &problem), TF_OK);
  cr_assert_eq(tf_output_open(&output, "o", TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert_eq(tf_upgrade_merge(&output, &past, &count, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(count, 2);
  cr_assert_str_eq(content_of("o"), LINE("a", 16) LINE("b", 16) LINE("./c", 16),
                   "the last line of each, in their places");
  cr_assert_eq(access("o.upgrade", F_OK), -1);
  /* A crash after the rename: the same lines again. */
  write_text("o.upgrade", LINE("a", 16));
  cr_assert_eq(tf_upgrade_merge(&output, &past, &count, &problem), TF_OK);
  cr_assert_str_eq(content_of("o"), LINE("a", 16) LINE("b", 16) LINE("./c", 16));
  cr_assert_eq(tf_upgrade_merge(&output, &past, &count, &problem), TF_OK);
  cr_assert_eq(count, 0);
  /* The output is still locked, and still written to. */
  tf_output second;
  cr_assert_eq(tf_output_open(&second, "o", TF_FORMAT_JSONL, &problem), TF_ERR_IO);
  tf_output_close(&second, &problem);
  tf_buffer line;
  tf_buffer_init(&line, 4096);
  tf_buffer_printf(&line, "%s", LINE("d", 16));
  cr_assert_eq(tf_output_caption(&output, &line, NULL, &problem), TF_OK);
  cr_assert_not_null(strstr(content_of("o"), LINE("./c", 16) LINE("d", 16)));
  tf_output_close(&output, &problem);
  tf_buffer_free(&line);
  tf_past_free(&past);
}

Test(caption_parts, what_an_upgrade_takes) {
  tf_output output;
  tf_past past;
  tf_upgrade upgrade;
  tf_input input;
  const char *before;
  write_text("o", LINE("a", 4) LINE("b", 16) LINE("/x/c", 9));
  cr_assert_eq(tf_past_init(&past, "/photos", &problem), TF_OK);
  cr_assert_eq(tf_output_open(&output, "o", TF_FORMAT_JSONL, &problem), TF_OK);
  tf_upgrade_open(&upgrade, &output, &past, 16);
  cr_assert_eq(tf_upgrade_next(&upgrade, &input, &before), TF_INPUT_IMAGE);
  cr_assert_str_eq(input.image, "a");
  cr_assert_str_eq(input.path, "/photos/a");
  cr_assert_str_eq(before, "c4");
  cr_assert_eq(tf_upgrade_next(&upgrade, &input, &before), TF_INPUT_IMAGE);
  cr_assert_str_eq(input.path, "/x/c");
  cr_assert_eq(tf_upgrade_next(&upgrade, &input, &before), TF_INPUT_END);
  tf_upgrade_close(&upgrade);
  tf_output_close(&output, &problem);
  tf_past_free(&past);
}

/* -- plots -- */

Test(caption_parts, a_lone_point_of_a_plot_is_a_dot) {
  static const double x[] = {0, 1, 2, 3, 4, 5}, y[] = {NAN, 1, NAN, 2, 3, NAN};
  tf_plot plot = {.title = "t", .x_label = "x", .x = x, .count = 6, .panel_count = 1};
  plot.panels[0] = (tf_plot_panel){.title = "p", .mark = NAN, .line_count = 1};
  plot.panels[0].lines[0] = (tf_plot_line){.label = "l", .y = y};
  tf_buffer svg;
  tf_buffer_init(&svg, 65536);
  tf_plot_svg(&plot, &svg);
  const char *line = svg.data ? strstr(svg.data, "class=\"l\"") : NULL;
  cr_assert_not_null(line);
  size_t size = strcspn(line, ">"), dots = 0, strokes = 0;
  for (size_t i = 0; i < size; i++) {
    dots += strncmp(line + i, "a1.2 1.2 0 1 0 2.4 0", 20) == 0;
    strokes += line[i] == 'L';
  }
  cr_assert_eq(dots, 1);
  cr_assert_eq(strokes, 1);
  tf_buffer_free(&svg);
}

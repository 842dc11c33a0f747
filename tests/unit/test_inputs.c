/* Tests of cli/inputs.c: the walk over files and folders.
 * In: small trees in a temporary folder. Out: which images come, in which order, under which names. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/inputs.h"
#include "cli/source.h"
#include "common/buffer.h"

static char top[64];
static tf_list *list;
static bool flat;
static tf_buffer seen; /* "kind name;" one after the other */

static void write_file(const char *name, const void *data, size_t size) {
  int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  cr_assert_geq(fd, 0, "%s", name);
  cr_assert_eq(write(fd, data, size), (ssize_t)size);
  close(fd);
}
static void text_file(const char *name) {
  write_file(name, "text", 4);
}

static void make_top(void) {
  strcpy(top, "/tmp/tf-test-inputs-XXXXXX");
  cr_assert_not_null(mkdtemp(top));
  cr_assert_eq(chdir(top), 0);
  tf_buffer_init(&seen, 1 << 20);
}

static void remove_top(void) {
  char command[128];
  tf_buffer_free(&seen);
  cr_assert_eq(chdir("/"), 0);
  snprintf(command, sizeof command, "rm -rf '%s'", top);
  cr_assert_eq(system(command), 0);
}

TestSuite(inputs, .init = make_top, .fini = remove_top);

/* Walks and notes everything; returns what was skipped. */
static uint64_t walk(size_t names_max, size_t count, const char *const *arguments) {
  tf_inputs_config config = {.arguments = arguments, .count = count, .list = list, .flat = flat};
  tf_inputs *inputs = tf_inputs_new(&config);
  cr_assert_not_null(inputs);
  tf_buffer_clear(&seen);
  tf_input input;
  tf_input_kind kind;
  int calls = 0;
  while ((kind = tf_inputs_next(inputs, names_max, &input)) != TF_INPUT_END) {
    cr_assert_lt(++calls, 200000, "the walk does not end");
    if (kind == TF_INPUT_IMAGE) {
      cr_assert_eq(input.path[0], '/');
      cr_assert_eq(access(input.path, F_OK), 0, "%s", input.path);
      tf_buffer_printf(&seen, "%s;", input.image);
    }
    if (kind == TF_INPUT_STOP) tf_buffer_printf(&seen, "#%s;", tf_code_name(input.error.code));
    if (kind == TF_INPUT_ERROR) tf_buffer_printf(&seen, "!%s %s;", tf_code_name(input.error.code), input.image);
  }
  uint64_t skipped = tf_inputs_skipped(inputs);
  tf_inputs_free(&inputs);
  cr_assert_null(inputs);
  return skipped;
}
#define WALK(...) walk(1000, sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *), (const char *const[]){__VA_ARGS__})
static const char *found(void) {
  return seen.data ? seen.data : "";
}

Test(inputs, folder_in_order_of_names) {
  mkdir("d", 0700);
  mkdir("d/b", 0700);
  mkdir("d/.git", 0700);
  text_file("d/c.JPG");
  text_file("d/a.jpeg");
  text_file("d/b/z.png");
  text_file("d/b/x.HEIC");
  text_file("d/.hidden.jpg");
  text_file("d/.git/p.jpg");
  text_file("d/notes.txt");
  text_file("d/jpg"); /* a name is not an extension */
  cr_assert_eq(WALK("d"), 2);
  cr_assert_str_eq(found(), "d/a.jpeg;d/b/x.HEIC;d/b/z.png;d/c.JPG;");
}

Test(inputs, name_is_the_argument_as_typed) {
  mkdir("d", 0700);
  text_file("d/a.jpg");
  WALK("d/");
  cr_assert_str_eq(found(), "d/a.jpg;");
  WALK("./d//");
  cr_assert_str_eq(found(), "./d//a.jpg;");
  WALK(".");
  cr_assert_str_eq(found(), "./d/a.jpg;");
  WALK("d/../d/a.jpg", "d");
  cr_assert_str_eq(found(), "d/../d/a.jpg;d/a.jpg;");
}

Test(inputs, named_file_is_always_a_job) {
  text_file("notes.txt");
  text_file(".hidden");
  cr_assert_eq(WALK("notes.txt", ".hidden"), 0);
  cr_assert_str_eq(found(), "notes.txt;.hidden;");
}

Test(inputs, bytes_tell_a_jpeg) {
  mkdir("d", 0700);
  write_file("d/IMG_1", "\xff\xd8\xff\xe0rest", 8);
  write_file("d/short", "\xff\xd8", 2);
  write_file("d/empty", "", 0);
  write_file("d/data.bin", "\xff\xd8\xff", 3);
  cr_assert_eq(WALK("d"), 2);
  cr_assert_str_eq(found(), "d/IMG_1;d/data.bin;");
}

Test(inputs, missing_argument_is_one_error) {
  mkdir("d", 0700);
  text_file("d/a.jpg");
  WALK("none.jpg", "d", "d/a.jpg/x", "");
  cr_assert_str_eq(found(), "!image_missing none.jpg;d/a.jpg;!image_missing d/a.jpg/x;!image_missing ;");
}

Test(inputs, only_regular_files) {
  mkdir("d", 0700);
  cr_assert_eq(mkfifo("d/pipe.jpg", 0600), 0);
  cr_assert_eq(mkfifo("d/pipe", 0600), 0);
  cr_assert_eq(WALK("d", "d/pipe.jpg"), 2);
  cr_assert_str_eq(found(), "!image_unsupported d/pipe.jpg;");
}

Test(inputs, links_are_followed_and_loops_end) {
  mkdir("d", 0700);
  mkdir("d/a", 0700);
  mkdir("d/b", 0700);
  mkdir("out", 0700);
  text_file("d/a/1.jpg");
  text_file("out/2.jpg");
  cr_assert_eq(symlink("..", "d/a/up"), 0);
  cr_assert_eq(symlink("../a", "d/b/a"), 0);
  cr_assert_eq(symlink("../../out", "d/b/out"), 0);
  cr_assert_eq(symlink("self.jpg", "d/self.jpg"), 0);
  cr_assert_eq(symlink("nowhere", "d/gone.jpg"), 0);
  cr_assert_eq(symlink("nowhere", "d/gone"), 0);
  cr_assert_eq(symlink("a/1.jpg", "d/x.jpg"), 0);
  cr_assert_eq(WALK("d"), 1);
  cr_assert_str_eq(found(), "d/a/1.jpg;d/b/out/2.jpg;!image_missing d/gone.jpg;!io d/self.jpg;d/x.jpg;");
}

Test(inputs, folder_named_twice_comes_twice) {
  mkdir("d", 0700);
  text_file("d/a.jpg");
  WALK("d", "d");
  cr_assert_str_eq(found(), "d/a.jpg;d/a.jpg;");
}

Test(inputs, closed_folder_is_an_error_and_not_the_end) {
  if (geteuid() == 0) {
    remove_top(); /* a skipped test has no end */
    cr_skip("root opens everything");
  }
  mkdir("d", 0700);
  mkdir("d/closed", 0000);
  text_file("d/z.jpg");
  WALK("d");
  chmod("d/closed", 0700);
  cr_assert_str_eq(found(), "!io d/closed;d/z.jpg;");
}

Test(inputs, too_deep_is_an_error_and_not_the_end) {
  mkdir("d", 0700);
  cr_assert_eq(chdir("d"), 0);
  for (int i = 0; i < TF_INPUTS_DEPTH_MAX + 5; i++) {
    cr_assert_eq(mkdir("n", 0700), 0);
    cr_assert_eq(chdir("n"), 0);
  }
  cr_assert_eq(chdir(top), 0);
  text_file("d/z.jpg");
  WALK("d");
  cr_assert_not_null(strstr(found(), "!unsupported d/n/n/"));
  cr_assert_not_null(strstr(found(), ";d/z.jpg;"));
}

Test(inputs, budget_gives_the_loop_back) {
  char name[64];
  mkdir("d", 0700);
  for (int i = 0; i < 50; i++) {
    snprintf(name, sizeof name, "d/%02d.txt", i);
    text_file(name);
  }
  const char *argument = "d";
  tf_inputs_config config = {.arguments = &argument, .count = 1};
  tf_inputs *inputs = tf_inputs_new(&config);
  tf_input input;
  int pauses = 0;
  tf_input_kind kind;
  while ((kind = tf_inputs_next(inputs, 5, &input)) == TF_INPUT_PAUSE) pauses++;
  cr_assert_eq(kind, TF_INPUT_END);
  cr_assert_geq(pauses, 10);
  cr_assert_eq(tf_inputs_skipped(inputs), 50);
  tf_inputs_free(&inputs);
}

Test(inputs, big_folder_comes_in_batches, .timeout = 120) {
  enum { COUNT = TF_INPUTS_NAMES_MAX + 100 };
  char name[64];
  mkdir("d", 0700);
  text_file("one.jpg");
  for (int i = 0; i < COUNT; i++) {
    snprintf(name, sizeof name, "d/%06d.jpg", i);
    cr_assert_eq(link("one.jpg", name) == 0 || (text_file(name), 1), 1);
  }
  const char *argument = "d";
  tf_inputs_config config = {.arguments = &argument, .count = 1};
  tf_inputs *inputs = tf_inputs_new(&config);
  tf_input input;
  tf_input_kind kind;
  int count = 0, descents = 0;
  char last[64] = "";
  while ((kind = tf_inputs_next(inputs, 1000, &input)) != TF_INPUT_END) {
    if (kind != TF_INPUT_IMAGE) continue;
    descents += strcmp(last, input.image) > 0;
    snprintf(last, sizeof last, "%s", input.image);
    count++;
  }
  cr_assert_eq(count, COUNT);
  cr_assert_leq(descents, 1, "each batch is sorted");
  tf_inputs_free(&inputs);
}

Test(inputs, image_names) {
  cr_assert(tf_inputs_is_image_name("a.jpg"));
  cr_assert(tf_inputs_is_image_name("a.b.WebP"));
  cr_assert_not(tf_inputs_is_image_name(".jpg"));
  cr_assert_not(tf_inputs_is_image_name("jpg"));
  cr_assert_not(tf_inputs_is_image_name("a.jpg.txt"));
  cr_assert_not(tf_inputs_is_image_name("a."));
}

/* -- patterns, lists, flat folders, order -- */

static void make_tree(void) {
  const char *folders[] = {"d", "d/2023", "d/2023/jan", "d/2024", "d/.git"};
  const char *files[] = {"d/a.jpg",      "d/b.png",      "d/2023/a.jpg", "d/2023/jan/a.jpg",
                         "d/2024/c.jpg", "d/.git/a.jpg", "d/x.txt"};
  for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) mkdir(folders[i], 0700);
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) text_file(files[i]);
}

Test(inputs, patterns) {
  static const struct {
    const char *pattern, *found;
  } cases[] = {
      {"d/*.jpg", "d/a.jpg;"},
      {"*/a.*", "d/a.jpg;"},
      {"d/*/*.jpg", "d/2023/a.jpg;d/2024/c.jpg;"},
      {"d/**/a.jpg", "d/2023/a.jpg;d/2023/jan/a.jpg;d/a.jpg;"},
      {"d/**", "d/2023/a.jpg;d/2023/jan/a.jpg;d/2024/c.jpg;d/a.jpg;d/b.png;"},
      {"d/20[0-9]3", "d/2023/a.jpg;d/2023/jan/a.jpg;"},
      {"**/jan/*", "d/2023/jan/a.jpg;"},
      {"./d/*.png", "./d/b.png;"},
      {"d/*", "d/2023/a.jpg;d/2023/jan/a.jpg;d/2024/c.jpg;d/a.jpg;d/b.png;"},
      {"d/.*/a.jpg", "!image_missing d/.*/a.jpg;"},
      {"d/*.gif", "!image_missing d/*.gif;"},
      {"none/*.jpg", "!image_missing none/*.jpg;"},
  };
  make_tree();
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    WALK(cases[i].pattern);
    cr_assert_str_eq(found(), cases[i].found, "%s: %s", cases[i].pattern, found());
  }
  WALK("d/*.png", "d/a.jpg", "d/*.jpg");
  cr_assert_str_eq(found(), "d/b.png;d/a.jpg;d/a.jpg;");
  text_file("d/[1].jpg"); /* a name that is there is no pattern */
  WALK("d/[1].jpg");
  cr_assert_str_eq(found(), "d/[1].jpg;");
}

Test(inputs, flat_folders) {
  make_tree();
  flat = true;
  WALK("d");
  cr_assert_str_eq(found(), "d/a.jpg;d/b.png;");
  WALK("d/20*");
  cr_assert_str_eq(found(), "d/2023/a.jpg;d/2024/c.jpg;", "what is matched is named");
}

static void open_list(const char *path, char separator) {
  tf_error error;
  cr_assert_eq(tf_list_open(path, separator, &list, &error), TF_OK, "%s", error.text);
}

Test(inputs, lists) {
  make_tree();
  static const char lines[] = "d/a.jpg\n\nd/2023\nnone.jpg\nd/*.jpg\nd/b.png";
  write_file("list", lines, sizeof lines - 1);
  open_list("list", '\n');
  WALK("d/2024");
  cr_assert_str_eq(found(),
                   "d/2024/c.jpg;d/a.jpg;d/2023/a.jpg;d/2023/jan/a.jpg;!image_missing none.jpg;!image_missing d/*.jpg;"
                   "d/b.png;");
  WALK("d/2024"); /* a second reader has all of it again */
  cr_assert_not_null(strstr(found(), "d/b.png;"));
  tf_list_free(&list);
  text_file("d/line\nend.jpg");
  static const char nulls[] = "d/line\nend.jpg\0d/a.jpg\0";
  write_file("list", nulls, sizeof nulls - 1);
  open_list("list", '\0');
  walk(1000, 0, NULL);
  cr_assert_str_eq(found(), "d/line\nend.jpg;d/a.jpg;");
  tf_list_free(&list);
}

Test(inputs, a_list_that_can_not_be_read_stops_every_reader) {
  make_tree();
  static const char nulls[] = "d/a.jpg\nd/b.png\0d/a.jpg\0";
  write_file("list", nulls, sizeof nulls - 1);
  open_list("list", '\n');
  for (int reader = 0; reader < 2; reader++) {
    walk(1000, 0, NULL);
    cr_assert_str_eq(found(), "d/a.jpg;#invalid_format;", "reader %d", reader);
  }
  tf_list_free(&list);
  int folder = open("d", O_RDONLY | O_DIRECTORY), saved = dup(STDIN_FILENO), ends[2];
  cr_assert_eq(pipe(ends), 0);
  cr_assert_eq(write(ends[1], "d/a.jpg\n", 8), 8);
  cr_assert_eq(dup2(ends[0], STDIN_FILENO), STDIN_FILENO);
  open_list("-", '\n');
  tf_list_cursor first = {0}, second = {0};
  const char *name;
  tf_error error;
  cr_assert_eq(tf_list_next(list, &first, &name, &error), TF_LIST_NAME);
  cr_assert_eq(dup2(folder, STDIN_FILENO), STDIN_FILENO); /* what read(2) refuses */
  tf_list_kind kind;
  while ((kind = tf_list_next(list, &first, &name, &error)) == TF_LIST_WAIT) continue;
  cr_assert_eq(kind, TF_LIST_ERROR);
  cr_assert_eq(tf_list_next(list, &second, &name, &error), TF_LIST_NAME, "what came before is there");
  memset(&error, 0, sizeof error);
  cr_assert_eq(tf_list_next(list, &second, &name, &error), TF_LIST_ERROR);
  cr_assert_not_null(strstr(error.text, "standard input: "), "%s", error.text);
  cr_assert_eq(tf_list_next(list, &second, &name, &error), TF_LIST_END);
  tf_list_cursor_free(&first);
  tf_list_cursor_free(&second);
  tf_list_free(&list);
  dup2(saved, STDIN_FILENO);
  int opened[] = {folder, saved, ends[0], ends[1]};
  for (size_t i = 0; i < sizeof opened / sizeof opened[0]; i++) close(opened[i]);
}

Test(inputs, a_list_that_can_not_be_read_is_shuffled_first) {
  make_tree();
  static const char lines[] = "d/a.jpg\nd/b.png\nd/\0";
  write_file("list", lines, sizeof lines - 1);
  open_list("list", '\n');
  tf_source_config config = {.inputs = {.list = list}, .shuffle = true, .seed = 1};
  tf_source *source = tf_source_new(&config);
  tf_input input;
  cr_assert_eq(tf_source_next(source, 1000, &input), TF_INPUT_IMAGE);
  cr_assert_eq(tf_source_next(source, 1000, &input), TF_INPUT_IMAGE);
  cr_assert_eq(tf_source_next(source, 1000, &input), TF_INPUT_STOP);
  cr_assert_eq(input.error.code, TF_ERR_INVALID_FORMAT);
  cr_assert_eq(tf_source_next(source, 1000, &input), TF_INPUT_END);
  tf_source_free(&source);
  tf_list_free(&list);
}

Test(inputs, a_list_with_the_line_ends_of_elsewhere) {
  make_tree();
  static const char lines[] = "\xEF\xBB\xBF"
                              "d/a.jpg\r\n\r\nd/b.png\r";
  write_file("list", lines, sizeof lines - 1);
  open_list("list", '\n');
  walk(1000, 0, NULL);
  cr_assert_str_eq(found(), "d/a.jpg;d/b.png;");
  tf_list_free(&list);
  text_file("d/c.jpg\r");
  static const char nulls[] = "d/c.jpg\r\0";
  write_file("list", nulls, sizeof nulls - 1);
  open_list("list", '\0');
  walk(1000, 0, NULL);
  cr_assert_str_eq(found(), "d/c.jpg\r;", "with NULs a name is every byte of it");
  tf_list_free(&list);
}

Test(inputs, list_from_a_pipe_is_not_waited_for) {
  int ends[2];
  const char *name;
  tf_error error;
  tf_list_cursor first = {0}, second = {0};
  cr_assert_eq(pipe(ends), 0);
  cr_assert_eq(dup2(ends[0], STDIN_FILENO), STDIN_FILENO);
  open_list("-", '\n');
  cr_assert_eq(tf_list_next(list, &first, &name, &error), TF_LIST_WAIT);
  cr_assert_eq(write(ends[1], "one\ntw", 6), 6);
  cr_assert_eq(tf_list_next(list, &first, &name, &error), TF_LIST_NAME);
  cr_assert_str_eq(name, "one");
  cr_assert_eq(tf_list_next(list, &first, &name, &error), TF_LIST_WAIT);
  cr_assert_eq(write(ends[1], "o", 1), 1);
  close(ends[1]);
  cr_assert_eq(tf_list_next(list, &second, &name, &error), TF_LIST_NAME);
  cr_assert_str_eq(name, "one");
  tf_list_kind kind;
  while ((kind = tf_list_next(list, &first, &name, &error)) == TF_LIST_WAIT) continue;
  cr_assert_eq(kind, TF_LIST_NAME);
  cr_assert_str_eq(name, "two");
  cr_assert_eq(tf_list_next(list, &first, &name, &error), TF_LIST_END);
  tf_list_cursor_free(&first);
  tf_list_cursor_free(&second);
  tf_list_free(&list);
}

static const char *order_of(uint64_t seed, uint64_t limit, bool shuffle) {
  static const char *const argument = "many";
  tf_source_config config = {
      .inputs = {.arguments = &argument, .count = 1}, .limit = limit, .shuffle = shuffle, .seed = seed};
  tf_source *source = tf_source_new(&config);
  tf_input input;
  tf_input_kind kind;
  tf_buffer_clear(&seen);
  while ((kind = tf_source_next(source, 7, &input)) != TF_INPUT_END)
    if (kind == TF_INPUT_IMAGE) tf_buffer_printf(&seen, "%s;", input.image + strlen("many/"));
  tf_source_free(&source);
  return found();
}

Test(inputs, order_and_number) {
  mkdir("many", 0700);
  for (int i = 0; i < 26; i++) {
    char name[16];
    snprintf(name, sizeof name, "many/%c.jpg", 'a' + i);
    text_file(name);
  }
  cr_assert_str_eq(order_of(0, 3, false), "a.jpg;b.jpg;c.jpg;");
  char *first = strdup(order_of(1, 0, true));
  cr_assert_eq(strlen(first), 26 * 6);
  for (int i = 0; i < 26; i++) {
    char name[16];
    snprintf(name, sizeof name, "%c.jpg;", 'a' + i);
    cr_assert_not_null(strstr(first, name), "each comes once");
  }
  cr_assert_str_neq(first, order_of(0, 0, false));
  cr_assert_str_neq(first, order_of(2, 0, true));
  cr_assert_str_eq(first, order_of(1, 0, true));
  cr_assert_eq(strncmp(first, order_of(1, 5, true), 30), 0, "a sample is the beginning of the order");
  cr_assert_eq(strlen(found()), 30);
  free(first);
}

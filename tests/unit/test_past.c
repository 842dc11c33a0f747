/* Tests of cli/past.c, cli/earlier.c, cli/records.c and cli/keymap.c: what a run finds of those before it.
 * In: outputs as runs, kills and people leave them. Out: which names are done, what is repaired, what is refused. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/csv.h"
#include "cli/past.h"

static char top[64];
static tf_output output;
static tf_past past;
static tf_error problem;

static void make_top(void) {
  strcpy(top, "/tmp/tf-test-past-XXXXXX");
  cr_assert_not_null(mkdtemp(top));
  cr_assert_eq(chdir(top), 0);
  cr_assert_eq(tf_past_init(&past, "/photos", &problem), TF_OK);
}
static void remove_top(void) {
  char command[128];
  tf_error ignored;
  tf_past_free(&past);
  tf_output_close(&output, &ignored);
  cr_assert_eq(chdir("/"), 0);
  snprintf(command, sizeof command, "rm -rf '%s'", top);
  cr_assert_eq(system(command), 0);
}
TestSuite(past, .init = make_top, .fini = remove_top);

static void write_bytes(const char *path, const char *bytes, size_t size) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  cr_assert_geq(fd, 0);
  cr_assert_eq(write(fd, bytes, size), (ssize_t)size);
  close(fd);
}
#define WRITE(path, text) write_bytes(path, text, sizeof(text) - 1)

static const char *content_of(const char *path) {
  static char content[65536];
  FILE *file = fopen(path, "r");
  if (!file) return NULL;
  content[fread(content, 1, sizeof content - 1, file)] = '\0';
  fclose(file);
  return content;
}

#define LINE(image) "{\"id\":\"r\",\"image\":\"" image "\",\"caption\":\"c\",\"vision_tokens\":{\"assigned\":64}}\n"
#define FAILURE(image, code)                                                                                           \
  "{\"id\":\"r\",\"image\":\"" image "\",\"code\":\"" code "\",\"message\":\"m\",\"attempts\":1}\n"

static tf_code read_past(tf_format format) {
  tf_code code = tf_output_open(&output, "o", format, &problem);
  return code ? code : tf_past_read(&past, &output, &problem);
}
static uint64_t state_of(const char *image) {
  uint64_t state = 0;
  tf_keymap_get(&past.names, tf_past_key(&past, image), &state);
  return state;
}

Test(past, names_are_absolute) {
  WRITE("o", LINE("a.jpg") LINE("./sub//b.jpg") LINE("/other/c.jpg"));
  cr_assert_eq(read_past(TF_FORMAT_JSONL), TF_OK);
  cr_assert_eq(past.captions, 3);
  cr_assert_eq(state_of("/photos/a.jpg"), TF_NAME_DONE);
  cr_assert_eq(state_of("sub/b.jpg"), TF_NAME_DONE);
  cr_assert_eq(state_of("/other/./c.jpg"), TF_NAME_DONE);
  cr_assert_eq(state_of("c.jpg"), 0);
}

Test(past, names_that_are_not_utf8) {
  WRITE("o", "{\"id\":\"r\",\"image\":\"caf\\\\xE9.jpg\",\"caption\":\"c\",\"vision_tokens\":{\"assigned\":64},"
             "\"image_uri\":\"caf%E9.jpg\"}\n");
  cr_assert_eq(read_past(TF_FORMAT_JSONL), TF_OK);
  cr_assert_eq(state_of("caf\xe9.jpg"), TF_NAME_DONE);
}

/* Wherever a kill stops the last write. */
Test(past, a_torn_end_is_cut_off_at_every_byte) {
  static const char whole[] = LINE("a.jpg") LINE("b.jpg");
  size_t first = sizeof(LINE("a.jpg")) - 1;
  for (size_t size = 0; size < sizeof whole; size++) {
    tf_error ignored;
    write_bytes("o", whole, size);
    cr_assert_eq(read_past(TF_FORMAT_JSONL), TF_OK, "%zu bytes: %s", size, problem.text);
    size_t kept = size < first ? 0 : size < 2 * first ? first : 2 * first;
    cr_assert_eq(strlen(content_of("o")), kept, "%zu bytes", size);
    cr_assert_eq(past.captions, kept / first);
    tf_output_close(&output, &ignored);
    tf_past_free(&past);
    cr_assert_eq(tf_past_init(&past, "/photos", &problem), TF_OK);
  }
}

Test(past, zeros_after_a_power_failure_are_cut_off) {
  WRITE("o", LINE("a.jpg") "\0\0\0\0\0\n\0\0\0");
  cr_assert_eq(read_past(TF_FORMAT_JSONL), TF_OK, "%s", problem.text);
  cr_assert_str_eq(content_of("o"), LINE("a.jpg"));
}

Test(past, what_others_wrote_is_refused_and_stays) {
  static const char *const contents[] = {LINE("a.jpg") "{\"mine\":1}\n" LINE("b.jpg"),
                                         "{\n  \"id\": 1\n}\n",
                                         "notes\n",
                                         LINE("a.jpg") "notes\n",
                                         "notes",
                                         LINE("a.jpg") "notes"};
  for (size_t i = 0; i < sizeof contents / sizeof contents[0]; i++) {
    tf_error ignored;
    write_bytes("o", contents[i], strlen(contents[i]));
    cr_assert_eq(read_past(TF_FORMAT_JSONL), TF_ERR_INVALID_ARGUMENT, "%zu", i);
    cr_assert_not_null(strstr(problem.text, i == 0 || i == 3 || i == 5 ? "line 2" : "line 1"), "%s", problem.text);
    cr_assert_str_eq(content_of("o"), contents[i]);
    tf_output_close(&output, &ignored);
  }
}

Test(past, one_truth_a_picture_among_the_failures) {
  WRITE("o", LINE("a.jpg") LINE("d.jpg"));
  WRITE("o.errors.jsonl",
        FAILURE("a.jpg", "io") FAILURE("b.jpg", "io") FAILURE("c.jpg", "io") FAILURE("b.jpg", "timeout") "{\"id");
  cr_assert_eq(read_past(TF_FORMAT_JSONL), TF_OK, "%s", problem.text);
  cr_assert_eq(past.failures, 2);
  cr_assert_eq(state_of("a.jpg"), TF_NAME_DONE);
  cr_assert_eq(state_of("b.jpg"), TF_NAME_FAILED);
  cr_assert_str_eq(content_of("o.errors.jsonl"), FAILURE("c.jpg", "io") FAILURE("b.jpg", "timeout"));
  cr_assert_eq(system("test -z \"$(find . -name '.*.tokenflex')\""), 0, "nothing else is left");
  /* Both succeed: the file goes with its last line. */
  cr_assert_eq(tf_keymap_put(&past.names, tf_past_key(&past, "b.jpg"), TF_NAME_DONE, &problem), TF_OK);
  cr_assert_eq(tf_keymap_put(&past.names, tf_past_key(&past, "c.jpg"), TF_NAME_DONE, &problem), TF_OK);
  cr_assert_eq(tf_past_tidy(&past, &output, &problem), TF_OK);
  cr_assert_eq(access("o.errors.jsonl", F_OK), -1);
  cr_assert_eq(past.failures, 0);
}

Test(past, csv_records_may_span_lines) {
  static const char text[] =
      "image,caption,vision_tokens,requested,reason,prompt_tokens,completion_tokens,finish_reason,"
      "total_ms,attempt,model,id,image_uri,duplicate_of,warning\n"
      "\"a,\"\"1\"\".jpg\",\"two\nlines\",64,,,,,,,,,r,,,\n"
      "b.jpg,x,64,,,,,,,,,r,,,\r\n"
      "c.jpg,\"torn\n";
  write_bytes("o", text, sizeof text - 1);
  cr_assert_eq(read_past(TF_FORMAT_CSV), TF_OK, "%s", problem.text);
  cr_assert_eq(past.captions, 2);
  cr_assert_eq(state_of("a,\"1\".jpg"), TF_NAME_DONE);
  cr_assert_eq(state_of("b.jpg"), TF_NAME_DONE);
  cr_assert_eq(strlen(content_of("o")), sizeof text - 1 - strlen("c.jpg,\"torn\n"));
}

Test(past, fields_come_back_as_they_went_in) {
  const char *in[TF_CSV_COUNT] = {"a", "",  "\"", "\"\"", ",", "\n", "\r\n", "x\"y,z\n",
                                  " ", "'", "\\", "\t",   "é", ",,", "last"};
  const char *back[TF_CSV_COUNT];
  tf_buffer record, space;
  tf_buffer_init(&record, 4096);
  tf_buffer_init(&space, 4096);
  tf_csv_join(in, &record);
  cr_assert_eq(tf_csv_record_bytes(record.data, record.size), record.size);
  cr_assert(tf_csv_split(record.data, record.size, &space, back));
  for (size_t i = 0; i < TF_CSV_COUNT; i++) cr_assert_str_eq(back[i], in[i]);
  for (size_t size = 0; size < record.size; size++) /* cut anywhere it is no record, and nothing is read past it */
    cr_assert_not(tf_csv_split(record.data, size, &space, back));
  tf_buffer_free(&record);
  tf_buffer_free(&space);
}

/* -- settings -- */

static tf_earlier earlier_of(const char *json) {
  tf_earlier earlier;
  write_bytes("r.json", json, strlen(json));
  cr_assert_eq(tf_earlier_read("r.json", &earlier, &problem), TF_OK, "%s", problem.text);
  cr_assert(earlier.found);
  return earlier;
}
static const tf_submit_settings same = {.vision_tokens = 256, .max_new_tokens = 40};
static const char record[] =
    "{\"run\":\"r1\",\"settings\":{\"vision_tokens\":256,\"prompt\":null,\"max_new_tokens\":40,"
    "\"compute\":\"f32\",\"folder\":\"/photos\"},\"model\":{\"pair_hash\":\"aaaa\"}}";

Test(past, same_settings_may_go_on) {
  tf_earlier earlier = earlier_of(record);
  cr_assert_eq(tf_earlier_compare(&earlier, "o", &same, "aaaa", "f32", TF_FORMAT_JSONL, false, &problem), TF_OK);
  cr_assert_eq(tf_earlier_compare(&earlier, "o", &same, NULL, "f32", TF_FORMAT_JSONL, false, &problem), TF_OK);
  cr_assert_eq(tf_earlier_compare(&earlier, "o", &same, "aaaa", NULL, TF_FORMAT_JSONL, false, &problem), TF_OK,
               "a deployment's arithmetic is its own");
  cr_assert_str_eq(earlier.folder, "/photos");
  tf_earlier_free(&earlier);
}

Test(past, changed_settings_are_refused_by_name) {
  tf_earlier earlier = earlier_of(record);
  tf_submit_settings other = {.vision_tokens = 64, .max_new_tokens = 20, .prompt = "What is it?"};
  cr_assert_eq(tf_earlier_compare(&earlier, "o", &other, "bbbb", "int8+int8x2", TF_FORMAT_CSV, false, &problem),
               TF_ERR_INVALID_ARGUMENT);
  static const char *const named[] = {"the model (then aaaa, now bbbb)",
                                      "--prompt (then the model's own prompt, now",
                                      "--max-new-tokens (then 40, now 20)",
                                      "--vision-tokens (then 256, now 64)",
                                      "--format (then jsonl, now csv)",
                                      "--compute (then f32, now int8+int8x2)",
                                      "--overwrite"};
  for (size_t i = 0; i < sizeof named / sizeof named[0]; i++)
    cr_assert_not_null(strstr(problem.text, named[i]), "%s not in: %s", named[i], problem.text);
  tf_earlier_free(&earlier);
}

Test(past, an_upgrade_may_ask_for_more_tokens_not_for_fewer) {
  tf_earlier earlier = earlier_of("{\"settings\":{\"vision_tokens\":144,\"max_new_tokens\":40}}");
  tf_submit_settings fewer = {.vision_tokens = 64, .max_new_tokens = 40};
  cr_assert_eq(tf_earlier_compare(&earlier, "o", &same, NULL, "f32", TF_FORMAT_JSONL, true, &problem), TF_OK);
  cr_assert_neq(tf_earlier_compare(&earlier, "o", &same, NULL, "f32", TF_FORMAT_JSONL, false, &problem), TF_OK);
  cr_assert_neq(tf_earlier_compare(&earlier, "o", &fewer, NULL, "f32", TF_FORMAT_JSONL, true, &problem), TF_OK);
  tf_earlier_free(&earlier);
}

Test(past, a_record_that_is_missing_or_broken_is_refused) {
  tf_earlier earlier;
  cr_assert_eq(tf_earlier_read("none.json", &earlier, &problem), TF_OK);
  cr_assert_not(earlier.found);
  cr_assert_eq(tf_earlier_compare(&earlier, "o", &same, NULL, "f32", TF_FORMAT_JSONL, false, &problem),
               TF_ERR_INVALID_ARGUMENT);
  cr_assert_not_null(strstr(problem.text, "o.run.json"));
  WRITE("bad.json", "{\"settings\":");
  cr_assert_eq(tf_earlier_read("bad.json", &earlier, &problem), TF_ERR_INVALID_ARGUMENT);
}

/* -- the map -- */

Test(past, a_million_names) {
  tf_keymap map;
  tf_keymap_init(&map, 1);
  for (uint64_t i = 0; i < 1000000; i++)
    cr_assert_eq(tf_keymap_put(&map, tf_key_of(&i, sizeof i), i % 3 + 1, &problem), TF_OK);
  cr_assert_eq(map.count, 1000000);
  cr_assert_leq(map.capacity * 9, 21 * map.count, "bytes a name: the bound that is stated");
  for (uint64_t i = 0; i < 1000000; i++) {
    uint64_t value = 0;
    cr_assert(tf_keymap_get(&map, tf_key_of(&i, sizeof i), &value));
    cr_assert_eq(value, i % 3 + 1);
  }
  uint64_t value, other = 1000001;
  cr_assert_not(tf_keymap_get(&map, tf_key_of(&other, sizeof other), &value));
  tf_keymap_free(&map);
}

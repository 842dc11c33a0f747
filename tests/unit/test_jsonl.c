/* Tests of cli/jsonl.c and of the run file of cli/report.c.
 * In: results as a queue might give them, good and bad; odd file names. Out: lines that parse, with their keys in
 * order. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <string.h>

#include "cli/jsonl.h"
#include "cli/report.h"

static tf_buffer line;
static tf_error problem;
static tf_caption_facts facts;

static void open_line(void) {
  tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
}
static void close_line(void) {
  tf_buffer_free(&line);
}
TestSuite(jsonl, .init = open_line, .fini = close_line);

static tf_code caption(const char *json, const char *image) {
  tf_buffer_clear(&line);
  return tf_jsonl_caption(json, strlen(json), "r-1", image, &line, &facts, &problem);
}

static const char good[] =
    "{\"model\":\"m/1\",\"extra\":[1],\"attempt\":2,\"timing_ms\":{\"queue\":1.5,\"total\":20.25,\"prefill\":3},"
    "\"usage\":{\"prompt_tokens\":280,\"completion_tokens\":9,\"finish_reason\":\"stop\"},\"vision_tokens\":"
    "{\"requested\":\"auto\",\"assigned\":144,\"reason\":\"idle\"},\"caption\":\"A d\\u00f6g "
    "\\\"x\\\"\\n\",\"image\":null,\"id\":\"r-1\"}";

Test(jsonl, keys_are_put_in_order) {
  cr_assert_eq(caption(good, "p/a.jpg"), TF_OK);
  cr_assert_str_eq(line.data,
                   "{\"id\":\"r-1\",\"image\":\"p/a.jpg\",\"caption\":\"A d\u00f6g \\\"x\\\"\\n\",\"vision_tokens\":{"
                   "\"requested\":\"auto\",\"assigned\":144,\"reason\":\"idle\"},\"usage\":{\"prompt_tokens\":280,"
                   "\"completion_tokens\":9,\"finish_reason\":\"stop\"},\"timing_ms\":{\"queue\":1.5,\"total\":20.25,"
                   "\"prefill\":3},\"attempt\":2,\"model\":\"m/1\",\"extra\":[1]}\n");
  cr_assert_eq(facts.vision_tokens, 144);
  cr_assert_float_eq(facts.timing_ms[0], 1.5, 1e-9);
  cr_assert_float_eq(facts.timing_ms[6], 3, 1e-9);
  cr_assert_float_eq(facts.timing_ms[8], 20.25, 1e-9);
  cr_assert_float_eq(facts.timing_ms[3], 0, 1e-9);
}

Test(jsonl, malformed_results_are_refused) {
  static const char *const bad[] = {
      "",
      "[]",
      "null",
      "{\"id\":\"r-1\"",
      "{\"id\":\"other\",\"caption\":\"x\",\"vision_tokens\":{\"assigned\":64}}",
      "{\"id\":7,\"caption\":\"x\",\"vision_tokens\":{\"assigned\":64}}",
      "{\"id\":\"r-1\",\"caption\":null,\"vision_tokens\":{\"assigned\":64}}",
      "{\"id\":\"r-1\",\"caption\":\"x\",\"vision_tokens\":64}",
      "{\"id\":\"r-1\",\"caption\":\"x\",\"vision_tokens\":{\"assigned\":0}}",
      "{\"id\":\"r-1\",\"caption\":\"x\",\"vision_tokens\":{\"assigned\":\"64\"}}",
      "{\"id\":\"r-1\",\"caption\":\"\xff\",\"vision_tokens\":{\"assigned\":64}}",
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    cr_assert_eq(caption(bad[i], "a.jpg"), TF_ERR_PROTOCOL, "%s", bad[i]);
    cr_assert_eq(line.size, 0);
  }
}

static json_t *parsed(void) {
  json_t *object = json_loads(line.data, 0, NULL);
  cr_assert_not_null(object, "%s", line.data);
  return object;
}
static const char *text_of(json_t *object, const char *key) {
  return json_string_value(json_object_get(object, key));
}

Test(jsonl, every_name_can_be_written) {
  cr_assert_eq(caption(good, "tab\tquote\"back\\slash\nnew"), TF_OK);
  json_t *object = parsed();
  cr_assert_str_eq(text_of(object, "image"), "tab\tquote\"back\\slash\nnew");
  cr_assert_null(text_of(object, "image_uri"));
  cr_assert_null(strchr(line.data, '\t'));
  json_decref(object);
  cr_assert_eq(strchr(line.data, '\n'), line.data + line.size - 1);
}

Test(jsonl, names_that_are_not_utf8_keep_their_bytes) {
  cr_assert_eq(caption(good, "/p/caf\xe9 \\ \xed\xa0\x80.jpg"), TF_OK);
  json_t *object = parsed();
  cr_assert_str_eq(text_of(object, "image"), "/p/caf\\xE9 \\\\ \\xED\\xA0\\x80.jpg");
  cr_assert_str_eq(text_of(object, "image_uri"), "file:///p/caf%E9%20%5C%20%ED%A0%80.jpg");
  json_decref(object);
}

Test(jsonl, error_lines) {
  cr_assert_eq(tf_jsonl_error("r-9", "a b.jpg", "image_truncated", "the data \"end\" \xff", 3, &line, &problem), TF_OK);
  cr_assert_str_eq(line.data,
                   "{\"id\":\"r-9\",\"image\":\"a b.jpg\",\"code\":\"image_truncated\",\"message\":\"the data "
                   "\\\"end\\\" \\\\xFF\",\"attempts\":3}\n");
}

Test(jsonl, a_line_past_its_maximum_appends_nothing) {
  tf_buffer small;
  tf_buffer_init(&small, 60);
  tf_buffer_append(&small, "kept", 4);
  cr_assert_eq(tf_jsonl_caption(good, strlen(good), "r-1", "a.jpg", &small, &facts, &problem), TF_ERR_OUT_OF_MEMORY);
  cr_assert_eq(small.size, 4);
  cr_assert_str_eq(small.data, "kept");
  tf_buffer_free(&small);
}

Test(jsonl, uris) {
  tf_uri_escape("/a b/\u00fc%?#.jpg", &line);
  cr_assert_str_eq(line.data, "/a%20b/%C3%BC%25%3F%23.jpg");
}

Test(jsonl, run_file) {
  const char *names[] = {"photos", "caf\xe9"};
  tf_submit_settings settings = {.vision_tokens = 0, .prompt = NULL, .max_new_tokens = 40};
  tf_run_record record = {.run = "20250131T101500-0a0b0c0d",
                          .state = "complete",
                          .named = names,
                          .named_count = 2,
                          .queue = "default",
                          .model_dir = "/m",
                          .settings = &settings,
                          .max_pixels = 250000000,
                          .started_unix_ms = 1738318500000,
                          .ended_unix_ms = 1738318510000,
                          .working_ms = 8000,
                          .captioned = 15,
                          .duplicates = 3,
                          .failed = 1,
                          .output_failures = 1,
                          .tokens_sum = 15 * 144};
  strcpy(record.model.name, "tiny/01234567");
  record.model.token_counts[0] = 144;
  record.model.token_count_count = 1;
  record.timing_ms_sum[3] = 120;
  cr_assert_eq(tf_report_json(&record, &line, &problem), TF_OK);
  json_t *object = parsed();
  json_t *result = json_object_get(object, "result"), *asked = json_object_get(object, "settings");
  cr_assert_str_eq(text_of(object, "state"), "complete");
  cr_assert_str_eq(text_of(object, "started"), "2025-01-31T10:15:00Z");
  cr_assert_str_eq(text_of(asked, "vision_tokens"), "auto");
  cr_assert(json_is_null(json_object_get(asked, "prompt")));
  cr_assert(json_is_null(json_object_get(asked, "redis")));
  cr_assert_str_eq(json_string_value(json_array_get(json_object_get(asked, "inputs"), 1)), "caf\\xE9");
  cr_assert_eq(json_integer_value(json_object_get(result, "captioned")), 15);
  cr_assert_eq(json_integer_value(json_object_get(result, "computed")), 12);
  cr_assert_float_eq(json_number_value(json_object_get(result, "images_per_second")), 1.5, 1e-9);
  cr_assert_float_eq(json_number_value(json_object_get(result, "mean_vision_tokens")), 144, 1e-9);
  cr_assert_float_eq(json_number_value(json_object_get(json_object_get(result, "mean_timing_ms"), "encode")), 10, 1e-9);
  json_decref(object);
  tf_buffer_clear(&line);
  record.state = "interrupted";
  tf_report_summary(&record, "o.jsonl", "o.jsonl.errors.jsonl", &line);
  cr_assert_not_null(
      strstr(line.data,
             "interrupted: 15 captioned, 1 failed\n8s, computed 12, 1.50 images/s, mean 144 vision tokens, run 2025"));
  cr_assert_not_null(strstr(line.data, "failures: o.jsonl.errors.jsonl (1; --retry-failed tries them again)\n"));
  cr_assert_not_null(strstr(line.data, "captions: o.jsonl\nthe same command goes on from there\n"));
}

Test(jsonl, token_counts) {
  uint32_t counts[4];
  char text[64];
  cr_assert_eq(tf_queue_parse_counts("64,144,256", counts, 4), 3);
  cr_assert_eq(counts[2], 256);
  tf_queue_counts_text(counts, 3, text, sizeof text);
  cr_assert_str_eq(text, "64, 144, 256");
  static const char *const bad[] = {"", "a", "64,", "144,64", "64,64", "0", "1,2,3,4,5", "64;144"};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    cr_assert_eq(tf_queue_parse_counts(bad[i], counts, 4), strcmp(bad[i], "64,") == 0 ? 1 : 0, "%s", bad[i]);
}

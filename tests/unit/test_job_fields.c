/* Fields of a queue entry. In: pairs as Redis hands them out, good and bad. Out: Criterion verdicts on codes and texts.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "router/job_fields.h"

#define PAIR(n, v)                                                                                                     \
  {                                                                                                                    \
    {(n), sizeof(n) - 1}, {                                                                                            \
      (v), sizeof(v) - 1                                                                                               \
    }                                                                                                                  \
  }

static tf_job_fields parsed;
static tf_error told;

static tf_code parse(const tf_job_field *fields, size_t count) {
  memset(&told, 0, sizeof told);
  return tf_job_fields_parse(fields, count, &parsed, &told);
}

static bool is(tf_bytes bytes, const char *text) {
  return bytes.size == strlen(text) && !memcmp(bytes.data, text, bytes.size);
}

Test(job_fields, reads_every_field) {
  const tf_job_field fields[] = {PAIR("id", "run:a b/ü"),
                                 PAIR("uri", "file:///a.jpg"),
                                 PAIR("prompt", "What\nis this?"),
                                 PAIR("min_vision_tokens", "64"),
                                 PAIR("max_vision_tokens", "256"),
                                 PAIR("max_new_tokens", "4096"),
                                 PAIR("ignore_end", "1"),
                                 PAIR("temperature", "0.7"),
                                 PAIR("top_k", "50"),
                                 PAIR("top_p", "1e-1"),
                                 PAIR("seed", "18446744073709551615"),
                                 PAIR("deadline_ms", "1500"),
                                 PAIR("reply", "me.1:x_y-Z"),
                                 PAIR("pace", "run.7"),
                                 PAIR("trace", "abc")};
  cr_assert_eq(parse(fields, sizeof fields / sizeof *fields), TF_OK, "%s", told.text);
  cr_assert(is(parsed.id, "run:a b/ü") && is(parsed.uri, "file:///a.jpg") && is(parsed.prompt, "What\nis this?"));
  cr_assert(is(parsed.reply, "me.1:x_y-Z") && is(parsed.trace, "abc") && is(parsed.pace, "run.7"));
  cr_assert_eq(parsed.vision_tokens_min, 64u);
  cr_assert_eq(parsed.vision_tokens_max, 256u);
  cr_assert_eq(parsed.sampling.max_new_tokens, 4096u);
  cr_assert(parsed.sampling.ignore_end);
  cr_assert_float_eq(parsed.sampling.temperature, 0.7f, 1e-6);
  cr_assert_float_eq(parsed.sampling.top_p, 0.1f, 1e-6);
  cr_assert_eq(parsed.sampling.top_k, 50u);
  cr_assert_eq(parsed.sampling.seed, UINT64_MAX);
  cr_assert_eq(parsed.deadline_ms, 1500);
  cr_assert_eq(parsed.image.size, 0u);
}

Test(job_fields, of_a_traceparent_the_trace_id_counts) {
#define TRACE_ID "4bf92f3577b34da6a3ce929d0e0e4736"
  const struct {
    tf_job_field field;
    const char *kept;
  } cases[] = {{PAIR("trace", "00-" TRACE_ID "-00f067aa0ba902b7-01"), TRACE_ID},
               {PAIR("trace", "cc-" TRACE_ID "-00f067aa0ba902b7-00"), TRACE_ID},
               {PAIR("trace", TRACE_ID), TRACE_ID},
               {PAIR("trace", "00-" TRACE_ID "-00f067aa0ba902b7-0"), "00-" TRACE_ID "-00f067aa0ba902b7-0"},
               {PAIR("trace", "00-" TRACE_ID "-00f067aa0ba902b7-01x"), "00-" TRACE_ID "-00f067aa0ba902b7-01x"},
               {PAIR("trace", "00-" TRACE_ID "-00F067aa0ba902b7-01"), "00-" TRACE_ID "-00F067aa0ba902b7-01"},
               {PAIR("trace", "00-" TRACE_ID "_00f067aa0ba902b7-01"), "00-" TRACE_ID "_00f067aa0ba902b7-01"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const tf_job_field fields[] = {PAIR("uri", "file:///a.jpg"), cases[i].field};
    cr_assert_eq(parse(fields, 2), TF_OK, "%s", told.text);
    cr_assert(is(parsed.trace, cases[i].kept), "%zu: %.*s", i, (int)parsed.trace.size, parsed.trace.data);
  }
}

Test(job_fields, absent_fields_have_defaults) {
  const tf_job_field fields[] = {PAIR("image", "\xff\xd8\x00")};
  cr_assert_eq(parse(fields, 1), TF_OK);
  cr_assert_eq(parsed.image.size, 3u);
  cr_assert_eq(parsed.id.size, 0u);
  cr_assert_eq(parsed.sampling.max_new_tokens, 40u);
  cr_assert_not(parsed.sampling.ignore_end);
  cr_assert_eq(parsed.sampling.temperature, 0.0f);
  cr_assert_eq(parsed.vision_tokens_min, 0u);
  cr_assert_eq(parsed.vision_tokens_max, 0u);
  cr_assert_eq(parsed.deadline_ms, 0);
}

Test(job_fields, refuses_what_is_malformed) {
  const struct {
    tf_job_field field;
    tf_code code;
  } cases[] = {
      {PAIR("colour", "red"), TF_ERR_FIELD_UNKNOWN},
      {PAIR("", "red"), TF_ERR_FIELD_UNKNOWN},
      {PAIR("ID", "x"), TF_ERR_FIELD_UNKNOWN},
      {PAIR("id", ""), TF_ERR_FIELD_INVALID},
      {PAIR("id", "a\nb"), TF_ERR_FIELD_INVALID},
      {PAIR("id", "a\0b"), TF_ERR_FIELD_INVALID},
      {PAIR("id", "\xff"), TF_ERR_FIELD_INVALID},
      {PAIR("image", "x"), TF_ERR_FIELD_INVALID}, /* beside the uri */
      {PAIR("image", ""), TF_ERR_IMAGE_EMPTY},
      {PAIR("prompt", ""), TF_ERR_FIELD_INVALID},
      {PAIR("prompt", "\xc3"), TF_ERR_FIELD_INVALID},
      {PAIR("min_vision_tokens", "0"), TF_ERR_FIELD_INVALID},
      {PAIR("min_vision_tokens", "-64"), TF_ERR_FIELD_INVALID},
      {PAIR("min_vision_tokens", " 64"), TF_ERR_FIELD_INVALID},
      {PAIR("min_vision_tokens", "64 "), TF_ERR_FIELD_INVALID},
      {PAIR("min_vision_tokens", "6\0004"), TF_ERR_FIELD_INVALID},
      {PAIR("min_vision_tokens", ""), TF_ERR_FIELD_INVALID},
      {PAIR("max_vision_tokens", "4097"), TF_ERR_FIELD_INVALID},
      {PAIR("max_vision_tokens", "0x40"), TF_ERR_FIELD_INVALID},
      {PAIR("max_new_tokens", "0"), TF_ERR_FIELD_INVALID},
      {PAIR("max_new_tokens", "4097"), TF_ERR_FIELD_INVALID},
      {PAIR("max_new_tokens", "99999999999999999999999"), TF_ERR_FIELD_INVALID},
      {PAIR("ignore_end", "2"), TF_ERR_FIELD_INVALID},
      {PAIR("ignore_end", "yes"), TF_ERR_FIELD_INVALID},
      {PAIR("temperature", "nan"), TF_ERR_FIELD_INVALID},
      {PAIR("temperature", "inf"), TF_ERR_FIELD_INVALID},
      {PAIR("temperature", "-1"), TF_ERR_FIELD_INVALID},
      {PAIR("top_p", "1.01"), TF_ERR_FIELD_INVALID},
      {PAIR("top_k", "1000001"), TF_ERR_FIELD_INVALID},
      {PAIR("seed", "18446744073709551616"), TF_ERR_FIELD_INVALID},
      {PAIR("deadline_ms", "0"), TF_ERR_FIELD_INVALID},
      {PAIR("deadline_ms", "31536000001"), TF_ERR_FIELD_INVALID},
      {PAIR("reply", "a b"), TF_ERR_FIELD_INVALID},
      {PAIR("reply", "a\0"), TF_ERR_FIELD_INVALID},
      {PAIR("reply", "a/b"), TF_ERR_FIELD_INVALID},
      {PAIR("pace", "a b"), TF_ERR_FIELD_INVALID},
      {PAIR("pace", ""), TF_ERR_FIELD_INVALID},
      {PAIR("trace", "a\x7f"), TF_ERR_FIELD_INVALID},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const tf_job_field fields[] = {PAIR("uri", "file:///a"), cases[i].field};
    tf_code code = parse(fields, 2);
    cr_assert_eq(code, cases[i].code, "case %zu (%s): %s", i, cases[i].field.name.data, tf_code_name(code));
    cr_assert(strlen(told.text) > 8);
    cr_assert_eq(told.code, code);
  }
}

Test(job_fields, exactly_one_of_image_and_uri) {
  const tf_job_field none[] = {PAIR("id", "x")};
  const tf_job_field both[] = {PAIR("uri", "file:///a"), PAIR("image", "x")};
  cr_assert_eq(parse(none, 1), TF_ERR_FIELD_INVALID);
  cr_assert(strstr(told.text, "neither"));
  cr_assert_eq(parse(both, 2), TF_ERR_FIELD_INVALID);
  cr_assert(strstr(told.text, "both"));
  cr_assert_eq(parse(NULL, 0), TF_ERR_FIELD_INVALID);
}

Test(job_fields, limits_must_not_cross) {
  const tf_job_field crossed[] = {PAIR("uri", "u"), PAIR("min_vision_tokens", "256"), PAIR("max_vision_tokens", "64")};
  cr_assert_eq(parse(crossed, 3), TF_ERR_FIELD_INVALID);
  const tf_job_field equal[] = {PAIR("uri", "u"), PAIR("min_vision_tokens", "64"), PAIR("max_vision_tokens", "64")};
  cr_assert_eq(parse(equal, 3), TF_OK);
}

Test(job_fields, lengths_end_where_documented) {
  static char text[TF_PROMPT_BYTES_MAX + 1];
  memset(text, 'a', sizeof text);
  const struct {
    const char *name;
    size_t most;
    tf_code code;
  } cases[] = {{"id", 256, TF_ERR_FIELD_INVALID},
               {"uri", TF_URI_BYTES_MAX, TF_ERR_URI_INVALID},
               {"prompt", TF_PROMPT_BYTES_MAX, TF_ERR_PROMPT_TOO_LONG},
               {"reply", 128, TF_ERR_FIELD_INVALID},
               {"pace", 128, TF_ERR_FIELD_INVALID},
               {"trace", 128, TF_ERR_FIELD_INVALID}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    bool is_uri = !strcmp(cases[i].name, "uri");
    tf_job_field fields[] = {{{cases[i].name, strlen(cases[i].name)}, {text, cases[i].most}}, PAIR("uri", "file:///a")};
    size_t count = is_uri ? 1 : 2;
    cr_assert_eq(parse(fields, count), TF_OK, "%s: %s", cases[i].name, told.text);
    fields[0].value.size++;
    cr_assert_eq(parse(fields, count), cases[i].code, "%s", cases[i].name);
  }
}

Test(job_fields, image_may_have_64_mib) {
  char *image = malloc((size_t)TF_IMAGE_BYTES_MAX + 1);
  cr_assert(image);
  tf_job_field fields[] = {{{"image", 5}, {image, TF_IMAGE_BYTES_MAX}}};
  cr_assert_eq(parse(fields, 1), TF_OK);
  fields[0].value.size++;
  cr_assert_eq(parse(fields, 1), TF_ERR_IMAGE_TOO_LARGE);
  free(image);
}

Test(job_fields, a_field_given_twice_is_refused) {
  const tf_job_field fields[] = {PAIR("uri", "file:///a"), PAIR("uri", "file:///a")};
  cr_assert_eq(parse(fields, 2), TF_ERR_FIELD_INVALID);
  cr_assert(strstr(told.text, "twice"));
}

Test(job_fields, too_many_fields_are_refused) {
  tf_job_field fields[TF_JOB_FIELDS_MAX + 1] = {PAIR("uri", "file:///a")};
  for (int i = 1; i <= TF_JOB_FIELDS_MAX; i++) fields[i] = (tf_job_field)PAIR("x", "y");
  cr_assert_eq(parse(fields, TF_JOB_FIELDS_MAX + 1), TF_ERR_FIELD_INVALID);
}

Test(job_fields, the_first_error_is_told_and_the_rest_still_read) {
  const tf_job_field fields[] = {PAIR("colour\n\xff", "red"), PAIR("top_k", "x"), PAIR("id", "me"),
                                 PAIR("reply", "here")};
  cr_assert_eq(parse(fields, 4), TF_ERR_FIELD_UNKNOWN);
  cr_assert(strstr(told.text, "colour??"), "%s", told.text);
  cr_assert(is(parsed.id, "me") && is(parsed.reply, "here"));
}

Test(job_fields, counts_are_those_of_the_model) {
  const uint32_t counts[] = {64, 144, 256};
  tf_job_fields limits = {.vision_tokens_min = 64, .vision_tokens_max = 144};
  cr_assert_eq(tf_job_fields_check_counts(&limits, counts, 3, &told), TF_OK);
  limits = (tf_job_fields){0};
  cr_assert_eq(tf_job_fields_check_counts(&limits, counts, 3, &told), TF_OK);
  limits.vision_tokens_max = 100;
  cr_assert_eq(tf_job_fields_check_counts(&limits, counts, 3, &told), TF_ERR_VISION_TOKENS_UNSUPPORTED);
  cr_assert(strstr(told.text, "100") && strstr(told.text, "64, 144, 256"), "%s", told.text);
  limits = (tf_job_fields){.vision_tokens_min = 256};
  cr_assert_eq(tf_job_fields_check_counts(&limits, counts, 2, &told), TF_ERR_VISION_TOKENS_UNSUPPORTED);
}

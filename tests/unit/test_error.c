/* Tests of common/error.c.
 * In: the table. Out: names and codes that lead to each other, bounded texts.
 * What a peer may send as a name is never more than an internal error. */
#include <criterion/criterion.h>
#include <string.h>

#include "common/error.h"

Test(error, names_lead_back_to_their_codes) {
  for (int code = 0; code < TF_ERR_COUNT; code++) {
    cr_assert_eq(tf_code_from_name(tf_code_name((tf_code)code)), (tf_code)code);
    cr_assert(tf_code_text((tf_code)code)[0] != '\0');
    for (int other = 0; other < code; other++) {
      cr_assert_str_neq(tf_code_name((tf_code)code), tf_code_name((tf_code)other));
    }
  }
}

Test(error, unknown_names_and_codes_are_internal) {
  cr_assert_eq(tf_code_from_name("no_such_error"), TF_ERR_INTERNAL);
  cr_assert_eq(tf_code_from_name(""), TF_ERR_INTERNAL);
  cr_assert_eq(tf_code_from_name(NULL), TF_ERR_INTERNAL);
  cr_assert_str_eq(tf_code_name((tf_code)TF_ERR_COUNT), "internal");
  cr_assert_str_eq(tf_code_name((tf_code)-1), "internal");
}

/* Every code is judged here: what another try may mend, and what it can't. */
Test(error, retry_rule) {
  static const tf_code may_pass[] = {TF_ERR_INTERNAL,
                                     TF_ERR_OUT_OF_MEMORY,
                                     TF_ERR_IO,
                                     TF_ERR_TIMEOUT,
                                     TF_ERR_FETCH_UNAVAILABLE,
                                     TF_ERR_WORKER_LOST,
                                     TF_ERR_WORKER_FULL,
                                     TF_ERR_WORKER_UNREACHABLE,
                                     TF_ERR_WORKER_DRAINING,
                                     TF_ERR_PAIR_MISMATCH,
                                     TF_ERR_TENSOR_INVALID,
                                     TF_ERR_QUEUE_FULL,
                                     TF_ERR_REDIS,
                                     TF_ERR_PROTOCOL};
  static const tf_code can_not[] = {TF_ERR_OK,
                                    TF_ERR_INVALID_ARGUMENT,
                                    TF_ERR_INVALID_FORMAT,
                                    TF_ERR_UNSUPPORTED,
                                    TF_ERR_MODEL_INVALID,
                                    TF_ERR_FIELD_UNKNOWN,
                                    TF_ERR_FIELD_INVALID,
                                    TF_ERR_VISION_TOKENS_UNSUPPORTED,
                                    TF_ERR_IMAGE_MISSING,
                                    TF_ERR_IMAGE_EMPTY,
                                    TF_ERR_IMAGE_UNSUPPORTED,
                                    TF_ERR_IMAGE_CORRUPT,
                                    TF_ERR_IMAGE_TRUNCATED,
                                    TF_ERR_IMAGE_TOO_LARGE,
                                    TF_ERR_URI_INVALID,
                                    TF_ERR_URI_FORBIDDEN,
                                    TF_ERR_FETCH_FAILED,
                                    TF_ERR_PROMPT_TOO_LONG,
                                    TF_ERR_DEADLINE,
                                    TF_ERR_CANCELLED,
                                    TF_ERR_ENTRY_LOST};
  enum { PASS = sizeof may_pass / sizeof *may_pass, NOT = sizeof can_not / sizeof *can_not };
  cr_assert_eq(PASS + NOT, TF_ERR_COUNT, "a new code is judged here too");
  for (size_t i = 0; i < PASS; i++) cr_expect(tf_code_is_transient(may_pass[i]), "%s", tf_code_name(may_pass[i]));
  for (size_t i = 0; i < NOT; i++) cr_expect_not(tf_code_is_transient(can_not[i]), "%s", tf_code_name(can_not[i]));
}

Test(error, fail_formats_and_returns) {
  tf_error error;
  cr_assert_eq(tf_fail(&error, TF_ERR_IO, "%s: %d", "disk", 7), TF_ERR_IO);
  cr_assert_eq(error.code, TF_ERR_IO);
  cr_assert_str_eq(error.text, "disk: 7");
  cr_assert_eq(tf_fail(NULL, TF_ERR_TIMEOUT, "x"), TF_ERR_TIMEOUT);
}

Test(error, fail_cuts_long_texts) {
  char longer[2 * TF_ERROR_TEXT_BYTES_MAX];
  memset(longer, 'a', sizeof longer);
  longer[sizeof longer - 1] = '\0';
  tf_error error;
  tf_fail(&error, TF_ERR_IO, "%s", longer);
  cr_assert_eq(strlen(error.text), TF_ERROR_TEXT_BYTES_MAX - 1);
}

Test(error, fail_may_add_to_its_own_text) {
  tf_error error;
  tf_fail(&error, TF_ERR_IO, "disk full");
  tf_fail(&error, TF_ERR_IO, "cat.jpg: %s", error.text);
  cr_assert_str_eq(error.text, "cat.jpg: disk full");
}

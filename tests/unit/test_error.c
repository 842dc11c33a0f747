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

Test(error, retry_rule) {
  cr_assert(tf_code_is_transient(TF_ERR_WORKER_LOST));
  cr_assert(tf_code_is_transient(TF_ERR_FETCH_UNAVAILABLE));
  cr_assert_not(tf_code_is_transient(TF_ERR_IMAGE_TRUNCATED));
  cr_assert_not(tf_code_is_transient(TF_ERR_FIELD_UNKNOWN));
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

/* Tests of common/buffer.c.
 * In: pieces of text. Out: their concatenation, or the overflow mark.
 * The maximum is exact: one byte less fits, one byte more does not. */
#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/buffer.h"

Test(buffer, appends_and_terminates) {
  tf_buffer buffer;
  tf_buffer_init(&buffer, 1000);
  cr_assert_null(buffer.data);
  tf_buffer_append(&buffer, "one", 3);
  tf_buffer_printf(&buffer, " %d %s", 2, "three");
  cr_assert_str_eq(buffer.data, "one 2 three");
  cr_assert_eq(buffer.size, 11);
  tf_buffer_append(&buffer, "", 0);
  cr_assert_eq(buffer.size, 11);
  tf_buffer_clear(&buffer);
  cr_assert_eq(buffer.size, 0);
  cr_assert_str_eq(buffer.data, "");
  tf_buffer_free(&buffer);
  cr_assert_null(buffer.data);
}

Test(buffer, grows_over_many_appends) {
  tf_buffer buffer;
  tf_buffer_init(&buffer, 1 << 20);
  for (int i = 0; i < 10000; i++) tf_buffer_printf(&buffer, "%05d", i);
  cr_assert_not(buffer.overflow);
  cr_assert_eq(buffer.size, 50000);
  for (int i = 0; i < 10000; i++) {
    char expected[16];
    snprintf(expected, sizeof expected, "%05d", i);
    cr_assert_eq(memcmp(buffer.data + 5 * i, expected, 5), 0);
  }
  tf_buffer_free(&buffer);
}

Test(buffer, maximum_is_exact_and_overflow_sticks) {
  tf_buffer buffer;
  tf_buffer_init(&buffer, 8);
  tf_buffer_append(&buffer, "12345678", 8);
  cr_assert_not(buffer.overflow);
  tf_buffer_append(&buffer, "9", 1);
  cr_assert(buffer.overflow);
  cr_assert_str_eq(buffer.data, "12345678");
  tf_buffer_clear(&buffer);
  cr_assert_not(buffer.overflow);
  tf_buffer_printf(&buffer, "%s", "123456789");
  cr_assert(buffer.overflow);
  tf_buffer_append(&buffer, "1", 1); /* would fit, but something before it is missing */
  cr_assert_eq(buffer.size, 0);
  tf_buffer_free(&buffer);
}

Test(buffer, huge_sizes_overflow_instead_of_wrapping) {
  tf_buffer buffer;
  tf_buffer_init(&buffer, SIZE_MAX);
  tf_buffer_append(&buffer, "abc", 3);
  tf_buffer_append(&buffer, "abc", SIZE_MAX - 2);
  cr_assert(buffer.overflow);
  cr_assert_str_eq(buffer.data, "abc");
  tf_buffer_free(&buffer);
}

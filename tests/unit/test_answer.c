/* The growing answer. In: bytes cut at every place. Out: valid UTF-8, trimmed, the same whatever the cuts; the parts of
 * a stream put together are the caption. */
#include <criterion/criterion.h>
#include <string.h>

#include "common/utf8.h"
#include "llm-svc/answer.h"
#include "proto/wire.h"

static void expect_text(const tf_answer *self, const char *expected) {
  size_t size;
  const char *text = tf_answer_text(self, &size);
  cr_assert(size == strlen(expected) && memcmp(text, expected, size) == 0, "'%.*s', not '%s'", (int)size, text,
            expected);
}

/* Adds bytes in portions of `step`; the parts taken after each must be valid text and make up `expected`. */
static void expect_streamed(const char *bytes, size_t size, size_t step, const char *expected) {
  tf_answer self;
  tf_buffer parts;
  tf_answer_init(&self);
  tf_buffer_init(&parts, 4096);
  for (size_t at = 0; at <= size; at += step) {
    if (at < size) cr_assert(tf_answer_add(&self, bytes + at, size - at < step ? size - at : step));
    if (at + step > size) tf_answer_finish(&self);
    size_t part_size;
    const char *part = tf_answer_take(&self, &part_size);
    cr_assert(tf_utf8_is_valid(part, part_size));
    tf_buffer_append(&parts, part, part_size);
  }
  expect_text(&self, expected);
  cr_assert(parts.size == strlen(expected) && (parts.size == 0 || memcmp(parts.data, expected, parts.size) == 0),
            "step %zu: '%s', not '%s'", step, parts.data, expected);
  tf_buffer_free(&parts);
  tf_answer_free(&self);
}

Test(answer, the_same_for_every_cut) {
  const struct {
    const char *bytes, *expected;
  } cases[] = {
      {" A dog.", "A dog."},
      {"\n\t A  dog \n on\xc2\xa0ice. \xe2\x80\x83\xe3\x80\x80\n", "A  dog \n on\xc2\xa0ice."},
      {"\xf0\x9f\x90\x95 caf\xc3\xa9", "\xf0\x9f\x90\x95 caf\xc3\xa9"},
      {"", ""},
      {" \n ", ""},
      {"cut \xf0\x9f\x90", "cut \xef\xbf\xbd"},
      {"bad \xff\xc3(", "bad \xef\xbf\xbd\xef\xbf\xbd("},
      {"\xe2\x82\xe2\x82\xac", "\xef\xbf\xbd\xe2\x82\xac"},                     /* cut off, then begun again */
      {"\xed\xa0\x80.", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd."},               /* a surrogate */
      {"\xf0\x80\x80\xaf", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* overlong */
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (size_t step = 1; step <= 8; step++)
      expect_streamed(cases[i].bytes, strlen(cases[i].bytes), step, cases[i].expected);
}

Test(answer, a_nul_does_not_end_the_text) {
  expect_streamed("a\0b", 3, 1,
                  "a\xef\xbf\xbd"
                  "b");
}

Test(answer, any_bytes_give_valid_text) {
  unsigned random = 1;
  for (int round = 0; round < 3000; round++) {
    tf_answer self;
    tf_answer_init(&self);
    for (int i = 0; i < 20; i++) {
      char bytes[3];
      for (int j = 0; j < 3; j++) {
        random = random * 1664525u + 1013904223u;
        /* Mostly bytes from 0x80 on: they are where it can go wrong. */
        bytes[j] = (char)(random >> 30 ? random >> 16 | 0x80 : random >> 16);
      }
      cr_assert(tf_answer_add(&self, bytes, 1 + (random >> 8) % 3));
    }
    tf_answer_finish(&self);
    size_t size;
    const char *text = tf_answer_text(&self, &size);
    cr_assert(tf_utf8_is_valid(text, size) && memchr(text, 0, size) == NULL);
    tf_answer_free(&self);
  }
}

Test(answer, has_a_maximum) {
  tf_answer self;
  tf_answer_init(&self);
  char block[1000];
  memset(block, 'x', sizeof block);
  size_t size, rounds = 0;
  while (tf_answer_add(&self, block, sizeof block)) cr_assert_lt(++rounds, 1000);
  tf_answer_finish(&self);
  tf_answer_text(&self, &size);
  cr_assert(size <= TF_CAPTION_BYTES_MAX && size > TF_CAPTION_BYTES_MAX - sizeof block);
  tf_answer_free(&self);
}

/* Text from tokens: a UTF-8 decoder that works piece by piece, and white space at the ends.
 * In: bytes as tokens give them. Out: whole characters; every invalid sequence has become U+FFFD.
 * Source: the Unicode standard, table 3-7, and its section 3.9 on replacing maximal invalid parts. */
#include "llm-svc/utf8_stream.h"

#include <stdbool.h>
#include <string.h>

#include "common/utf8.h"

static const char REPLACEMENT[3] = {'\xEF', '\xBF', '\xBD'};

/* Bytes of the character that this leading byte begins (0: none), and the range of the second byte. */
static int character_bytes(uint8_t lead, uint8_t *second_min, uint8_t *second_max) {
  *second_min = 0x80;
  *second_max = 0xBF;
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) {
    if (lead == 0xE0) *second_min = 0xA0;
    if (lead == 0xED) *second_max = 0x9F;
    return 3;
  }
  if (lead > 0xF4) return 0;
  if (lead == 0xF0) *second_min = 0x90;
  if (lead == 0xF4) *second_max = 0x8F;
  return 4;
}

/* Whether `next` may follow the `have` (> 0) bytes in text. */
static bool continues(const uint8_t *text, int have, uint8_t next) {
  uint8_t low, high;
  int wanted = character_bytes(text[0], &low, &high);
  if (have >= wanted) return false;
  return have == 1 ? next >= low && next <= high : (next & 0xC0) == 0x80;
}

static bool is_complete(const uint8_t *text, int have) {
  uint8_t low, high;
  return have > 0 && character_bytes(text[0], &low, &high) == have;
}

static bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* The character in the first `bytes` bytes; no white space is longer than three. */
static uint32_t short_character(const uint8_t *text, size_t bytes) {
  if (bytes == 1) return text[0];
  if (bytes == 2) return (uint32_t)(text[0] & 0x1F) << 6 | (text[1] & 0x3F);
  if (bytes == 3) return (uint32_t)(text[0] & 0x0F) << 12 | (uint32_t)(text[1] & 0x3F) << 6 | (text[2] & 0x3F);
  return 0;
}

size_t tf_utf8_space_prefix(const char *text, size_t size) {
  size_t bytes = tf_utf8_character_bytes(text, size);
  return bytes > 0 && is_space(short_character((const uint8_t *)text, bytes)) ? bytes : 0;
}

size_t tf_utf8_space_suffix(const char *text, size_t size) {
  size_t start = size;
  while (start > 0 && size - start < 4) {
    start--;
    if (((uint8_t)text[start] & 0xC0) != 0x80) return tf_utf8_space_prefix(text + start, size - start);
  }
  return 0;
}

/* Writes the finished character, or U+FFFD for an invalid part or a NUL. */
static size_t emit(tf_utf8_stream *self, bool valid, char *out) {
  size_t size = self->pending_bytes;
  if (!valid || self->pending[0] == 0) {
    memcpy(out, REPLACEMENT, sizeof REPLACEMENT);
    size = sizeof REPLACEMENT;
  } else {
    memcpy(out, self->pending, size);
  }
  self->pending_bytes = 0;
  return size;
}

size_t tf_utf8_stream_push(tf_utf8_stream *self, const void *data, size_t size, char *out) {
  const uint8_t *bytes = data;
  size_t written = 0;
  for (size_t i = 0; i < size; i++) {
    if (self->pending_bytes > 0 && !continues(self->pending, self->pending_bytes, bytes[i]))
      written += emit(self, false, out + written);
    self->pending[self->pending_bytes++] = bytes[i];
    uint8_t low, high;
    if (is_complete(self->pending, self->pending_bytes))
      written += emit(self, true, out + written);
    else if (character_bytes(self->pending[0], &low, &high) == 0)
      written += emit(self, false, out + written);
  }
  return written;
}

size_t tf_utf8_stream_finish(tf_utf8_stream *self, char *out) {
  return self->pending_bytes > 0 ? emit(self, false, out) : 0;
}

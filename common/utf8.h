/* UTF-8 as RFC 3629 defines it. In: bytes. Out: the length of the character at their start, or whether all are valid.
 * Surrogates, overlong forms and code points past U+10FFFF are invalid; U+0000 is a valid character here.
 * Shared by the log, the wire and whoever passes text on. */
#ifndef TF_COMMON_UTF8_H
#define TF_COMMON_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the character that text starts with, 1 to 4; 0 where it is malformed or cut off (or size is 0). */
static inline size_t tf_utf8_character_bytes(const char *text, size_t size) {
  const unsigned char *bytes = (const unsigned char *)text;
  if (size == 0) return 0;
  unsigned char lead = bytes[0];
  if (lead < 0x80) return 1;
  size_t length = lead >= 0xc2 && lead <= 0xdf ? 2 : (lead & 0xf0) == 0xe0 ? 3 : lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
  if (length == 0 || length > size) return 0;
  /* The second byte alone rules out overlong forms, surrogates and what is past U+10FFFF. */
  unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (bytes[1] < low || bytes[1] > high) return 0;
  for (size_t i = 2; i < length; i++) {
    if ((bytes[i] & 0xc0) != 0x80) return 0;
  }
  return length;
}

static inline bool tf_utf8_is_valid(const char *text, size_t size) {
  for (size_t at = 0; at < size;) {
    size_t length = tf_utf8_character_bytes(text + at, size - at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

#endif

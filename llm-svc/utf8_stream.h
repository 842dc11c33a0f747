/* Text from tokens: a UTF-8 decoder that works piece by piece, and white space at the ends.
 * In: bytes as tokens give them. Out: whole characters; every invalid sequence has become U+FFFD.
 * What an incomplete character lacks may come with the next token, so it is held back. */
#ifndef TF_LLM_UTF8_STREAM_H
#define TF_LLM_UTF8_STREAM_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the white-space character (Unicode's White_Space) that begins, or ends, the valid UTF-8 text; 0: none does.
 */
size_t tf_utf8_space_prefix(const char *text, size_t size);
size_t tf_utf8_space_suffix(const char *text, size_t size);

/* An incomplete character that waits for its next byte. Zero-initialise. */
typedef struct tf_utf8_stream {
  uint8_t pending[4];
  uint8_t pending_bytes;
} tf_utf8_stream;

/* At most this many bytes come out of `size` bytes that go in. */
#define TF_UTF8_OUT_BYTES(size) (((size_t)(size) + 3) * 3)

/* Takes size bytes, writes the characters that are complete now to out[TF_UTF8_OUT_BYTES(size)] and returns their
 * bytes. Every maximal invalid part (as the standard recommends) and every NUL becomes U+FFFD. Not NUL-terminated. */
size_t tf_utf8_stream_push(tf_utf8_stream *self, const void *data, size_t size, char *out);
/* The end: what still waited becomes one U+FFFD. out[TF_UTF8_OUT_BYTES(0)]. */
size_t tf_utf8_stream_finish(tf_utf8_stream *self, char *out);

#endif

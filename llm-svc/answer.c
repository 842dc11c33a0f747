/* The text of one answer as it grows. In: the bytes of token after token. Out: the caption, and the new part of it.
 * Bytes go through a UTF-8 decoder in small portions; the buffer holds whole characters only. */
#include "llm-svc/answer.h"

#include "proto/wire.h"

enum { PORTION_BYTES = 256 };

void tf_answer_init(tf_answer *self) {
  *self = (tf_answer){0};
  tf_buffer_init(&self->text, TF_CAPTION_BYTES_MAX);
}

void tf_answer_free(tf_answer *self) {
  tf_buffer_free(&self->text);
}

static void append(tf_answer *self, const char *text, size_t size) {
  size_t skipped = 0;
  while (self->text.size == 0 && skipped < size) {
    size_t space = tf_utf8_space_prefix(text + skipped, size - skipped);
    if (space == 0) break;
    skipped += space;
  }
  tf_buffer_append(&self->text, text + skipped, size - skipped);
  size_t end = self->text.size, space;
  while (end > self->trimmed && (space = tf_utf8_space_suffix(self->text.data, end)) > 0) end -= space;
  self->trimmed = end;
}

bool tf_answer_add(tf_answer *self, const char *bytes, size_t size) {
  char out[TF_UTF8_OUT_BYTES(PORTION_BYTES)];
  for (size_t at = 0; at < size && !self->text.overflow;) {
    size_t portion = size - at < PORTION_BYTES ? size - at : PORTION_BYTES;
    append(self, out, tf_utf8_stream_push(&self->utf8, bytes + at, portion, out));
    at += portion;
  }
  return !self->text.overflow;
}

void tf_answer_finish(tf_answer *self) {
  char out[TF_UTF8_OUT_BYTES(0)];
  append(self, out, tf_utf8_stream_finish(&self->utf8, out));
}

const char *tf_answer_text(const tf_answer *self, size_t *size) {
  *size = self->trimmed;
  return self->trimmed > 0 ? self->text.data : "";
}

const char *tf_answer_take(tf_answer *self, size_t *size) {
  *size = self->trimmed - self->sent;
  const char *part = *size > 0 ? self->text.data + self->sent : "";
  self->sent = self->trimmed;
  return part;
}

/* The text of one answer as it grows. In: the bytes of token after token. Out: the caption, and the new part of it.
 * It is valid UTF-8 and begins with no white space; white space at its end is held back until more text follows, so
 * that the parts of a stream put together are exactly the trimmed caption. */
#ifndef TF_LLM_ANSWER_H
#define TF_LLM_ANSWER_H

#include "common/buffer.h"
#include "llm-svc/utf8_stream.h"

typedef struct tf_answer {
  tf_utf8_stream utf8;
  tf_buffer text;
  size_t trimmed, sent; /* bytes without white space at the end; bytes given out as parts */
} tf_answer;

void tf_answer_init(tf_answer *self);
void tf_answer_free(tf_answer *self);
/* False: past TF_CAPTION_BYTES_MAX, or no memory; the answer ends where it is. */
bool tf_answer_add(tf_answer *self, const char *bytes, size_t size);
/* No more will come: an incomplete character becomes U+FFFD. */
void tf_answer_finish(tf_answer *self);
/* The caption so far, trimmed. Not NUL-terminated; until the next call. */
const char *tf_answer_text(const tf_answer *self, size_t *size);
/* What is new since the last call, likewise; *size 0: nothing. */
const char *tf_answer_take(tf_answer *self, size_t *size);

#endif

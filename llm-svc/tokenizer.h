/* Byte-level BPE as a GGUF file describes it (tokenizer.ggml.*).
 * In: UTF-8 text, or token ids. Out: token ids, or bytes. Source: the byte-level BPE of GPT-2.
 * Text is always plain text: nothing in it can become a control token. Those are looked up by name and placed by id. */
#ifndef TF_LLM_TOKENIZER_H
#define TF_LLM_TOKENIZER_H

#include "tensor/gguf.h"

typedef struct tf_tokenizer tf_tokenizer;

enum { TF_TOKENIZER_TEXT_BYTES_MAX = 1 << 20, TF_TOKENIZER_VOCABULARY_MAX = 1 << 20 };

/* A growable list of ids. Zero-initialise, free with tf_token_list_free. */
typedef struct tf_token_list {
  int32_t *ids;
  size_t count, capacity;
} tf_token_list;
void tf_token_list_free(tf_token_list *self);
/* False: out of memory. */
bool tf_token_list_append(tf_token_list *self, int32_t id);

/* Reads model (gpt2), pre, tokens, token_type, merges. Everything is copied: the file may be closed. The caller frees.
 * Errors: MODEL_INVALID, UNSUPPORTED (another tokenizer or pre-tokenizer), OUT_OF_MEMORY. */
tf_code tf_tokenizer_load(const tf_gguf *file, tf_tokenizer **out, tf_error *error);
void tf_tokenizer_free(tf_tokenizer **self);
uint32_t tf_tokenizer_vocabulary(const tf_tokenizer *self); /* number of ids */

/* Appends the ids of size bytes of text. Bytes that the vocabulary has no token for (some control characters and
 * private-use planes in SmolLM2's) are left out, as other implementations do.
 * Errors: FIELD_INVALID (not valid UTF-8, or past TF_TOKENIZER_TEXT_BYTES_MAX), OUT_OF_MEMORY. */
tf_code tf_tokenizer_encode(const tf_tokenizer *self, const char *text, size_t size, tf_token_list *out,
                            tf_error *error);
/* The bytes of one token; they need not be whole characters. Control tokens give their name. NULL: no such id. */
const char *tf_tokenizer_piece(const tf_tokenizer *self, int32_t id, size_t *size);
bool tf_tokenizer_is_control(const tf_tokenizer *self, int32_t id);
/* The id of a control (or user-defined) token, e.g. "<|im_end|>"; -1: there is none. */
int32_t tf_tokenizer_control(const tf_tokenizer *self, const char *name);

#endif

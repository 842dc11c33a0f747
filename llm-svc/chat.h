/* The prompt as the models were trained on it (docs/MODEL.md: one ChatML turn with the image's tokens in front of the
 * text). In: a user's text, the number of image tokens. Out: token ids with places for the image. Control tokens are
 * placed by id; whatever the text says, it stays text. */
#ifndef TF_LLM_CHAT_H
#define TF_LLM_CHAT_H

#include "llm-svc/tokenizer.h"

enum { TF_CHAT_ENDS_MAX = 4, TF_CHAT_IMAGE = -1, TF_CHAT_SYSTEM_BYTES_MAX = 4096 };

typedef struct tf_chat {
  const tf_tokenizer *tokenizer;  /* borrowed */
  int32_t turn_start, turn_end;   /* <|im_start|>, <|im_end|> */
  int32_t image_start, image_end; /* around the image's tokens; -1: none */
  int32_t ends[TF_CHAT_ENDS_MAX]; /* any of them ends the answer */
  int end_count;
  char system[TF_CHAT_SYSTEM_BYTES_MAX]; /* a turn of its own before the user's; "": none */
} tf_chat;

/* adapter: may name tokenflex.system, tokenflex.image_start and tokenflex.image_end; NULL: none of them.
 * tokenizer must outlive *out. MODEL_INVALID where the vocabulary lacks ChatML's tokens or those that the adapter
 * names. */
tf_code tf_chat_load(const tf_gguf *llm, const tf_gguf *adapter, const tf_tokenizer *tokenizer, tf_chat *out,
                     tf_error *error);
bool tf_chat_is_end(const tf_chat *self, int32_t id);

/* Ids in order; image_tokens of them, from image_first on, are TF_CHAT_IMAGE: embeddings go there. */
typedef struct tf_prompt {
  tf_token_list tokens;
  uint32_t image_first, image_tokens;
} tf_prompt;

/* The tokens that every prompt begins with, whatever it asks: [system turn] <|im_start|>user\n. *out as below. */
tf_code tf_chat_head(const tf_chat *self, tf_prompt *out, tf_error *error);
/* [<|im_start|>system\nSYSTEM<|im_end|>\n]<|im_start|>user\n IMAGE... \nTEXT<|im_end|>\n<|im_start|>assistant\n, IMAGE
 * between the adapter's image tokens where it names them; without an image the newline before TEXT goes
 * as well. *out must be zero; tf_prompt_free it, also after an error (FIELD_INVALID, OUT_OF_MEMORY). */
tf_code tf_chat_prompt(const tf_chat *self, const char *text, uint32_t image_tokens, tf_prompt *out, tf_error *error);
void tf_prompt_free(tf_prompt *self);

#endif

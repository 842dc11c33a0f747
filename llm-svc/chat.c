/* The prompt as the models were trained on it (docs/MODEL.md: one ChatML turn with the image's tokens in front of the
 * text). In: a user's text, the number of image tokens. Out: token ids with places for the image. The texts between
 * control tokens and image are tokenised one by one, as in training. */
#include "llm-svc/chat.h"

#include <stdlib.h>
#include <string.h>

static const char *const END_NAMES[] = {"<|im_end|>", "<|endoftext|>"};

static void add_end(tf_chat *self, int32_t id) {
  if (id < 0 || tf_chat_is_end(self, id) || self->end_count == TF_CHAT_ENDS_MAX) return;
  self->ends[self->end_count++] = id;
}

/* The control token that the adapter names under key; -1 where it names none. */
static tf_code adapter_token(const tf_gguf *adapter, const char *key, const tf_tokenizer *tokenizer, int32_t *out,
                             tf_error *error) {
  char name[128];
  const char *text;
  size_t size;
  *out = -1;
  if (!tf_gguf_string(adapter, key, &text, &size)) return TF_OK;
  if (tf_gguf_text(adapter, key, name, sizeof name)) *out = tf_tokenizer_control(tokenizer, name);
  if (*out >= 0) return TF_OK;
  return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: %s is no control token of the LLM's vocabulary",
                 tf_gguf_path(adapter), key);
}

static tf_code load_adapter(tf_chat *self, const tf_gguf *adapter, tf_error *error) {
  const char *text;
  size_t size;
  self->image_start = self->image_end = -1;
  if (adapter == NULL) return TF_OK;
  tf_code code = adapter_token(adapter, "tokenflex.image_start", self->tokenizer, &self->image_start, error);
  if (code == TF_OK) code = adapter_token(adapter, "tokenflex.image_end", self->tokenizer, &self->image_end, error);
  if (code != TF_OK || !tf_gguf_string(adapter, "tokenflex.system", &text, &size)) return code;
  if (tf_gguf_text(adapter, "tokenflex.system", self->system, sizeof self->system)) return TF_OK;
  return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: tokenflex.system is longer than %d bytes", tf_gguf_path(adapter),
                 TF_CHAT_SYSTEM_BYTES_MAX - 1);
}

tf_code tf_chat_load(const tf_gguf *llm, const tf_gguf *adapter, const tf_tokenizer *tokenizer, tf_chat *out,
                     tf_error *error) {
  tf_chat self = {.tokenizer = tokenizer};
  tf_code code = load_adapter(&self, adapter, error);
  if (code != TF_OK) return code;
  self.turn_start = tf_tokenizer_control(tokenizer, "<|im_start|>");
  self.turn_end = tf_tokenizer_control(tokenizer, "<|im_end|>");
  if (self.turn_start < 0 || self.turn_end < 0)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: the vocabulary has no control tokens <|im_start|> and <|im_end|>",
                   tf_gguf_path(llm));
  uint64_t eos;
  if (tf_gguf_u64(llm, "tokenizer.ggml.eos_token_id", &eos)) {
    if (eos >= tf_tokenizer_vocabulary(tokenizer))
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: tokenizer.ggml.eos_token_id is not in the vocabulary",
                     tf_gguf_path(llm));
    add_end(&self, (int32_t)eos);
  }
  for (size_t i = 0; i < sizeof END_NAMES / sizeof *END_NAMES; i++)
    add_end(&self, tf_tokenizer_control(tokenizer, END_NAMES[i]));
  *out = self;
  return TF_OK;
}

bool tf_chat_is_end(const tf_chat *self, int32_t id) {
  for (int i = 0; i < self->end_count; i++)
    if (self->ends[i] == id) return true;
  return false;
}

static tf_code append_id(tf_prompt *self, int32_t id, tf_error *error) {
  if (tf_token_list_append(&self->tokens, id)) return TF_OK;
  return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the prompt");
}

static tf_code append_text(const tf_chat *chat, tf_prompt *self, const char *text, tf_error *error) {
  return tf_tokenizer_encode(chat->tokenizer, text, strlen(text), &self->tokens, error);
}

static tf_code append_image(const tf_chat *chat, tf_prompt *self, uint32_t image_tokens, tf_error *error) {
  tf_code code = TF_OK;
  if (image_tokens > 0 && chat->image_start >= 0) code = append_id(self, chat->image_start, error);
  self->image_first = (uint32_t)self->tokens.count;
  self->image_tokens = image_tokens;
  for (uint32_t i = 0; i < image_tokens && code == TF_OK; i++) code = append_id(self, TF_CHAT_IMAGE, error);
  if (code == TF_OK && image_tokens > 0 && chat->image_end >= 0) code = append_id(self, chat->image_end, error);
  return code;
}

/* "\nTEXT" in one piece: a text that begins with white space joins the newline, as it would have in training. */
static tf_code append_user_text(const tf_chat *chat, tf_prompt *self, const char *text, bool after_image,
                                tf_error *error) {
  if (!after_image) return append_text(chat, self, text, error);
  size_t size = strlen(text);
  char *joined = malloc(size + 2);
  if (joined == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the prompt");
  joined[0] = '\n';
  memcpy(joined + 1, text, size + 1);
  tf_code code = append_text(chat, self, joined, error);
  free(joined);
  return code;
}

static tf_code append_system(const tf_chat *self, tf_prompt *out, tf_error *error) {
  if (self->system[0] == '\0') return TF_OK;
  tf_code code = append_id(out, self->turn_start, error);
  if (code == TF_OK) code = append_text(self, out, "system\n", error);
  if (code == TF_OK) code = append_text(self, out, self->system, error);
  if (code == TF_OK) code = append_id(out, self->turn_end, error);
  if (code == TF_OK) code = append_text(self, out, "\n", error);
  return code;
}

tf_code tf_chat_head(const tf_chat *self, tf_prompt *out, tf_error *error) {
  tf_code code = append_system(self, out, error);
  if (code == TF_OK) code = append_id(out, self->turn_start, error);
  if (code == TF_OK) code = append_text(self, out, "user\n", error);
  return code;
}

tf_code tf_chat_prompt(const tf_chat *self, const char *text, uint32_t image_tokens, tf_prompt *out, tf_error *error) {
  tf_code code = tf_chat_head(self, out, error);
  if (code == TF_OK) code = append_image(self, out, image_tokens, error);
  if (code == TF_OK) code = append_user_text(self, out, text, image_tokens > 0, error);
  if (code == TF_OK) code = append_id(out, self->turn_end, error);
  if (code == TF_OK) code = append_text(self, out, "\n", error);
  if (code == TF_OK) code = append_id(out, self->turn_start, error);
  if (code == TF_OK) code = append_text(self, out, "assistant\n", error);
  return code;
}

void tf_prompt_free(tf_prompt *self) {
  tf_token_list_free(&self->tokens);
  *self = (tf_prompt){0};
}

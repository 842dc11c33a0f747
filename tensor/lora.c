/* An adapter's low-rank updates by the names of the weights that they change. In: adapter.gguf. Out: tf_lora.
 * Counting what was found is enough to see that nothing is left: a name is asked for once. */
#include "tensor/lora.h"

#include <stdio.h>
#include <string.h>

enum { NAME_BYTES_MAX = 112 };

tf_lora_set tf_lora_set_of(const tf_gguf *file, bool vision) {
  tf_lora_set self = {.file = file, .vision = vision};
  if (file != NULL) tf_gguf_f64(file, "adapter.lora.alpha", &self.alpha);
  return self;
}

tf_code tf_lora_find(tf_lora_set *self, const char *weight, int64_t outputs, int64_t inputs, tf_lora *out,
                     tf_error *error) {
  char a_name[NAME_BYTES_MAX], b_name[NAME_BYTES_MAX];
  *out = (tf_lora){.a = NULL};
  if (self->file == NULL) return TF_OK;
  snprintf(a_name, sizeof a_name, "%s.lora_a", weight);
  snprintf(b_name, sizeof b_name, "%s.lora_b", weight);
  if (tf_gguf_tensor(self->file, a_name) == NULL && tf_gguf_tensor(self->file, b_name) == NULL) return TF_OK;
  tf_code code = tf_gguf_require(self->file, a_name, 2, (int64_t[]){-1, inputs}, &out->a, error);
  if (code != TF_OK) return code;
  int64_t rank = out->a->shape[0];
  code = tf_gguf_require(self->file, b_name, 2, (int64_t[]){outputs, rank}, &out->b, error);
  if (code != TF_OK) return code;
  if (rank == 0 || self->alpha == 0)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: %s needs a rank and adapter.lora.alpha", tf_gguf_path(self->file),
                   a_name);
  out->scale = (float)(self->alpha / (double)rank);
  self->used += 2;
  return TF_OK;
}

static bool ends_with(const char *text, const char *end) {
  size_t size = strlen(text), end_size = strlen(end);
  return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

tf_code tf_lora_check_used(const tf_lora_set *self, const char *model, tf_error *error) {
  static const char VISION[] = "vision.";
  size_t found = 0;
  for (size_t i = 0; self->file != NULL && i < tf_gguf_tensor_count(self->file); i++) {
    const char *name = tf_gguf_tensor_name(self->file, i);
    bool of_vision = strncmp(name, VISION, sizeof VISION - 1) == 0;
    found += of_vision == self->vision && (ends_with(name, ".lora_a") || ends_with(name, ".lora_b"));
  }
  if (found == self->used) return TF_OK;
  return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: %zu of %zu LoRA tensors fit no weight of %s",
                 tf_gguf_path(self->file), found - self->used, found, model);
}

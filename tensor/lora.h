/* The low-rank updates that an adapter file has for a model's weights.
 * In: adapter.gguf, names of weights. Out: the tf_lora to merge into each; whether every one found its weight.
 * Tensors NAME.lora_a [rank, in] and NAME.lora_b [out, rank] change the weight NAME: W + alpha / rank * B A. */
#ifndef TF_TENSOR_LORA_H
#define TF_TENSOR_LORA_H

#include "tensor/gguf.h"
#include "tensor/linear.h"

/* Those for one model of the pair: weights whose names begin with "vision.", or all others. */
typedef struct tf_lora_set {
  const tf_gguf *file; /* NULL: no adapter, nothing is ever found */
  bool vision;
  double alpha;
  size_t used; /* tensors that found their weight */
} tf_lora_set;

/* file: must live as long as the set and what it found. */
tf_lora_set tf_lora_set_of(const tf_gguf *file, bool vision);
/* What the adapter has for `weight` [outputs, inputs]; out->a NULL: nothing. Not to be called by two threads at once.
 * Errors: MODEL_INVALID (a half, another shape, no alpha). */
tf_code tf_lora_find(tf_lora_set *self, const char *weight, int64_t outputs, int64_t inputs, tf_lora *out,
                     tf_error *error);
/* Once all weights of `model` (a path) were asked for: an update that fits none of them would be dropped in silence,
 * and belongs to another model. Errors: MODEL_INVALID. */
tf_code tf_lora_check_used(const tf_lora_set *self, const char *model, tf_error *error);

#endif

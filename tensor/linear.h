/* y = residual + scale * activation(x W^T + bias), the one matrix product of every model here.
 * In: rows of activations, weights packed once behind an opaque type. Out: rows.
 * Behind it: OpenBLAS f32, the portable path and the reference of every faster one to come. */
#ifndef TF_TENSOR_LINEAR_H
#define TF_TENSOR_LINEAR_H

#include "tensor/parallel.h"
#include "tensor/tensor.h"

typedef struct tf_linear tf_linear;

typedef enum tf_activation {
  TF_ACTIVATION_NONE,
  TF_ACTIVATION_GELU,       /* exact, with erf */
  TF_ACTIVATION_GELU_TANH,  /* tanh approximation (SigLIP) */
  TF_ACTIVATION_QUICK_GELU, /* x * sigmoid(1.702 x) (CLIP) */
  TF_ACTIVATION_SILU
} tf_activation;

/* A low-rank update merged at packing: W + scale * B A. a: [rank, in], b: [out, rank]. */
typedef struct tf_lora {
  const tf_tensor *a, *b;
  float scale;
} tf_lora;

/* weight: [out, in] of any dtype (further dimensions count as one: a patch convolution's [out, 3, p, p] is a matrix);
 * bias: [out] or NULL (copied); lora: NULL for none. Shapes are checked. The weight's memory is not needed afterwards.
 * Safe from several threads at once. The caller frees. */
tf_code tf_linear_pack(const tf_tensor *weight, const tf_tensor *bias, const tf_lora *lora, tf_linear **out,
                       tf_error *error);
void tf_linear_free(tf_linear **self);
int64_t tf_linear_in(const tf_linear *self);
int64_t tf_linear_out(const tf_linear *self);
/* One packed row (an embedding, where the table is tied to the output): out[in]. row must be < out. */
void tf_linear_row(const tf_linear *self, int64_t row, float *out);

typedef struct tf_epilogue {
  tf_activation activation;
  const float *scale;    /* [out], after the activation (LayerScale); NULL: none */
  const float *residual; /* [rows, out], added last; may be y itself; NULL: none */
} tf_epilogue;

/* x: [rows, in], y: [rows, out], both dense row-major f32; epilogue NULL: bias only. y may not overlap x. */
void tf_linear_apply(const tf_linear *self, tf_pool *pool, const float *x, int64_t rows, float *y,
                     const tf_epilogue *epilogue);

#endif

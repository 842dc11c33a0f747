/* y = residual + scale * activation(x W^T + bias), the one matrix product of every model here.
 * In: rows of activations, weights packed once behind an opaque type. Out: rows.
 * Behind it: kernels in f32, bf16 and int8 by what the processor has (cpu.h), OpenBLAS f32 where there is none.
 * A row's result depends neither on the rows beside it nor on the number of threads (OpenBLAS: only nearly so). */
#ifndef TF_TENSOR_LINEAR_H
#define TF_TENSOR_LINEAR_H

#include "tensor/cpu.h"
#include "tensor/pack_store.h"
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

/* A matrix that is to be packed. weight: [out, in] of any dtype (further dimensions count as one: a patch convolution's
 * [out, 3, p, p] is a matrix); bias: [out] or NULL; lora: NULL for none. */
typedef struct tf_linear_source {
  const tf_tensor *weight, *bias;
  const tf_lora *lora;
} tf_linear_source;

/* How several matrices over the same input become one linear. */
typedef enum tf_linear_join {
  TF_JOIN_PARTS, /* an output each: q, k, v */
  TF_JOIN_SWIGLU /* two of one size: y = silu(first) * second */
} tf_linear_join;
enum { TF_LINEAR_PARTS_MAX = 4 };

/* Packs one matrix, or 1..TF_LINEAR_PARTS_MAX joined. Shapes are checked; the sources' memory is not needed afterwards.
 * compute: AUTO takes the process's (tf_cpu_compute). An input too wide for the kernels is packed in f32.
 * Safe from several threads at once. The caller frees. Errors: MODEL_INVALID, OUT_OF_MEMORY, UNSUPPORTED (compute that
 * the level in use lacks). */
tf_code tf_linear_pack(const tf_tensor *weight, const tf_tensor *bias, const tf_lora *lora, tf_compute compute,
                       tf_linear **out, tf_error *error);
tf_code tf_linear_pack_joined(const tf_linear_source *sources, int count, tf_linear_join join, tf_compute compute,
                              tf_linear **out, tf_error *error);
/* The same, by way of a store: what that has under this name is not packed again. The store (NULL: none) must outlive
 * the linear. */
tf_code tf_linear_pack_kept(const tf_linear_source *sources, int count, tf_linear_join join, tf_compute compute,
                            tf_pack_store *store, const char *name, tf_linear **out, tf_error *error);
void tf_linear_free(tf_linear **self);
int64_t tf_linear_in(const tf_linear *self);
int64_t tf_linear_out(const tf_linear *self);        /* columns of the first part's y */
const char *tf_linear_kernel(const tf_linear *self); /* "int8 amx", "f32 openblas" */
size_t tf_linear_bytes(const tf_linear *self);       /* of packed weights */
/* One row of the first source as it was packed (an embedding, where the table is tied to the output): out[in]. row must
 * be < its outputs; not for TF_JOIN_SWIGLU. */
void tf_linear_row(const tf_linear *self, int64_t row, float *out);

typedef struct tf_epilogue {
  tf_activation activation;
  const float *scale;    /* [out], after the activation (LayerScale); NULL: none */
  const float *residual; /* [rows, out], added last; may be y itself; NULL: none */
} tf_epilogue;

/* x: [rows, in], y: [rows, out], both dense row-major f32; epilogue NULL: bias only. y may not overlap x. One part. */
void tf_linear_apply(const tf_linear *self, tf_pool *pool, const float *x, int64_t rows, float *y,
                     const tf_epilogue *epilogue);

/* Rows of activations in the form that a linear's kernel takes: f32 as they are, bf16, or int8 with a scale a row. Made
 * once for several linears over the same input. */
typedef struct tf_rows tf_rows;
/* Memory for rows_max rows of at most width_max. NULL: out of memory. The caller frees. */
tf_rows *tf_rows_new(int64_t rows_max, int64_t width_max);
void tf_rows_free(tf_rows **self);
/* What is done to a row on its way in: nothing (weight NULL), RMSNorm (bias NULL) or LayerNorm. */
typedef struct tf_row_norm {
  const float *weight, *bias; /* [width] */
  float epsilon;
} tf_row_norm;
/* x: [rows, in of the linear]; the rows serve that linear and every other of the same input width and compute. x must
 * stay as it is until they have been used (f32 rows without a norm are not copied). norm NULL: none. */
void tf_rows_load(tf_rows *self, tf_pool *pool, const tf_linear *linear, const float *x, int64_t rows,
                  const tf_row_norm *norm);
/* y[i]: [rows, outputs of part i]; epilogue: of a linear of one part, else NULL. */
void tf_linear_apply_rows(const tf_linear *self, tf_pool *pool, const tf_rows *rows, float *const *y,
                          const tf_epilogue *epilogue);

/* One linear of a chain. */
typedef struct tf_linear_step {
  const tf_linear *linear;
  const tf_row_norm *norm; /* on the way in; NULL: none */
  const float *x;          /* [rows, in] */
  tf_epilogue epilogue;
  float *y[TF_LINEAR_PARTS_MAX]; /* [rows, outputs] of each part */
  /* Only the next step reads y (its x is y[0]): what is left there afterwards is not defined. Never two in a row. */
  bool passing;
} tf_linear_step;
/* The steps one after the other over all rows. Where the weights find room in a core's cache, a few rows at a time go
 * through all steps, so that what passes between them does too; the results are the same. `rows_memory`: of at least
 * `rows` rows and the widest input. then (NULL: nothing): called over ranges of rows whose steps are done. */
void tf_linear_chain(tf_pool *pool, const tf_linear_step *steps, int count, int64_t rows, tf_rows *rows_memory,
                     tf_parallel_fn then, void *context);

#endif

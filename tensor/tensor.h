/* Shaped, typed views of numbers. In: memory owned by someone else (a mapped file, an arena). Out: views, conversions
 * to f32. Shapes are row-major, outermost first, as PyTorch prints them; GGUF stores them the other way round. */
#ifndef TF_TENSOR_TENSOR_H
#define TF_TENSOR_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* X(NAME, gguf_type, elements_per_block, bytes_per_block) */
#define TF_DTYPES(X)                                                                                                   \
  X(F32, 0, 1, 4)                                                                                                      \
  X(F16, 1, 1, 2)                                                                                                      \
  X(Q4_0, 2, 32, 18)                                                                                                   \
  X(Q4_1, 3, 32, 20)                                                                                                   \
  X(Q8_0, 8, 32, 34)                                                                                                   \
  X(BF16, 30, 1, 2)

typedef enum tf_dtype {
#define TF_DTYPE_ENUM(name, gguf, elements, bytes) TF_##name,
  TF_DTYPES(TF_DTYPE_ENUM)
#undef TF_DTYPE_ENUM
      TF_DTYPE_COUNT
} tf_dtype;

enum { TF_RANK_MAX = 4 };

typedef struct tf_tensor {
  tf_dtype dtype;
  int rank;                   /* 1..TF_RANK_MAX */
  int64_t shape[TF_RANK_MAX]; /* unused trailing entries are 1 */
  const void *data;           /* borrowed */
  size_t bytes;
} tf_tensor;

const char *tf_dtype_name(tf_dtype dtype); /* "Q4_1" */
/* Bytes of `elements` values (a multiple of the block); 0 where they do not divide or overflow. */
size_t tf_dtype_bytes(tf_dtype dtype, int64_t elements);
int64_t tf_tensor_elements(const tf_tensor *self);
/* out[count] from elements [first, first + count) of the tensor; both multiples of the dtype's block. */
void tf_tensor_to_f32(const tf_tensor *self, int64_t first, int64_t count, float *out);
/* Checks rank and shape (-1: any); names the tensor in the error. */
tf_code tf_tensor_expect(const tf_tensor *self, const char *name, int rank, const int64_t *shape, tf_error *error);

float tf_f16_to_f32(uint16_t half);
uint16_t tf_f32_to_f16(float value); /* round to nearest even; overflow gives infinity */
float tf_bf16_to_f32(uint16_t value);
uint16_t tf_f32_to_bf16(float value); /* round to nearest even; NaN stays NaN */

#endif

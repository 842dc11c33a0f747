/* What linear.c (applying), linear_pack.c and rows.c share. In: linear_pack.c fills it. Out: the others read it.
 * Private to those three. */
#ifndef TF_TENSOR_LINEAR_PARTS_H
#define TF_TENSOR_LINEAR_PARTS_H

#include "tensor/blas.h"
#include "tensor/kernel.h"

/* One source, or the two of a SwiGLU. */
typedef struct tf_linear_part {
  int64_t out;           /* columns of its y */
  int64_t first, panels; /* its panels */
  tf_blas blas, second;  /* without a kernel; second: SwiGLU's other matrix */
} tf_linear_part;

struct tf_linear {
  int64_t in;
  tf_linear_join join;
  int part_count;
  tf_linear_part parts[TF_LINEAR_PARTS_MAX];
  const tf_kernel *kernel; /* NULL: OpenBLAS */
  int64_t panels, steps, panel_bytes;
  /* All below lies in one piece of memory, as a tf_pack_store keeps it: read only once it is packed. */
  char *memory;
  bool kept;    /* the memory is the store's */
  char *weight; /* [panels, steps, 64 bytes]; OpenBLAS: the f32 matrices one after the other */
  size_t weight_bytes;
  /* [panels * 16]; of int8 alone: column_scale, offset. OpenBLAS: bias, the sources' one after the other. */
  float *bias, *column_scale;
  int32_t *offset;
};

struct tf_rows {
  int64_t rows, width, row_bytes;
  const tf_kernel *kernel;
  const char *values; /* [rows, row_bytes]: owned, or borrowed f32 */
  const float *scales;
  int64_t rows_max, width_max;
  char *owned; /* the values' memory, then a scale for each row */
};

/* Bytes from row to row in the kernel's form, and memory for `rows` of them with their scales. */
int64_t tf_rows_row_bytes(const tf_kernel *kernel, int64_t width);
/* One row: norm (unless NULL) and conversion; normed: [width], scratch for a norm before a conversion. */
void tf_rows_fill_one(const tf_kernel *kernel, const float *x, int64_t width, const tf_row_norm *norm, float *normed,
                      char *out, float *scale);
/* Fills memory (aligned to 64 bytes, whole blocks of rows) and points self at it. */
void tf_rows_fill(tf_rows *self, tf_pool *pool, const tf_kernel *kernel, const float *x, int64_t rows, int64_t width,
                  const tf_row_norm *norm, char *values, float *scales);
/* tf_linear_apply_rows on the caller's thread alone; there must be a kernel. */
void tf_linear_apply_here(const tf_linear *self, const tf_rows *rows, float *const *y, const tf_epilogue *epilogue);

#endif

/* One matrix in f32 and its product by OpenBLAS: what serves a linear where there is no kernel of ours.
 * In: [out, in] weights and a bias, borrowed; rows. Out: rows.
 * Private to tensor/. */
#ifndef TF_TENSOR_BLAS_H
#define TF_TENSOR_BLAS_H

#include "tensor/linear.h"

typedef struct tf_blas {
  int64_t in, out;
  const float *weight; /* [out, in] */
  const float *bias;   /* [out] */
} tf_blas;

/* As tf_linear_apply; rows > 0. */
void tf_blas_apply(const tf_blas *self, tf_pool *pool, const float *x, int64_t rows, float *y,
                   const tf_epilogue *epilogue);

#endif

/* Token pooling: the patch grid of one image to n x n visual tokens.
 * In: [grid * grid, width]. Out: [n * n, width], row-major.
 * Source: TokenFLEX; the released code resizes then averages, the paper's text says adaptive average: both are here. */
#ifndef TF_ENCODER_POOL_H
#define TF_ENCODER_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

typedef enum tf_pooling {
  TF_POOLING_RESIZE_AVERAGE,  /* bilinear (align_corners) to R x R, R the next multiple of n; then means of R/n x R/n */
  TF_POOLING_ADAPTIVE_AVERAGE /* torch's adaptive_avg_pool2d: windows floor(i g/n) .. ceil((i+1) g/n) */
} tf_pooling;

/* "resize_average" or "adaptive_average", as adapter.gguf names them. False: neither. */
bool tf_pooling_from_name(const char *name, tf_pooling *out);

/* A pooling of one grid to one n. Read only once made; any number of threads may use it. */
typedef struct tf_pooler tf_pooler;
/* grid, n: 1..256. The caller frees. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY. */
tf_code tf_pooler_new(tf_pooling method, int64_t grid, int64_t n, tf_pooler **out, tf_error *error);
void tf_pooler_free(tf_pooler **self);
int64_t tf_pooler_tokens(const tf_pooler *self); /* n * n */
/* in: [grid * grid, width], out: [n * n, width]; may not overlap. */
void tf_pooler_apply(const tf_pooler *self, const float *in, int64_t width, float *out);

#endif

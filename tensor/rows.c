/* Rows of activations on their way into linears: normed, then rounded to bf16 or int8 where the kernel wants that.
 * In: f32 rows. Out: tf_rows. Norm and conversion of a row happen while it is in the first-level cache. */
#include <assert.h>
#include <stdlib.h>

#include "tensor/huge.h"
#include "tensor/linear_parts.h"
#include "tensor/ops.h"

enum { ROWS_ALIGN = TF_BLOCK_LINES_MAX, INPUTS_ALIGN = 64, GRAIN_FLOATS = 4096 };

int64_t tf_rows_row_bytes(const tf_kernel *kernel, int64_t width) {
  if (!kernel || !kernel->convert) return width * (int64_t)sizeof(float);
  int64_t inputs = (width + kernel->inputs_align - 1) / kernel->inputs_align * kernel->inputs_align;
  return inputs * 4 / kernel->step_inputs * kernel->halves;
}

/* Bytes that a row may take in any form: f32 is the widest, but int8's halves are padded to 64 inputs each. */
static size_t row_capacity(int64_t width) {
  return ((size_t)width + INPUTS_ALIGN - 1) / INPUTS_ALIGN * INPUTS_ALIGN * sizeof(float);
}

tf_rows *tf_rows_new(int64_t rows_max, int64_t width_max) {
  assert(rows_max > 0 && width_max > 0 && rows_max < INT32_MAX && width_max < INT32_MAX);
  tf_rows *self = calloc(1, sizeof *self);
  if (!self) return NULL;
  size_t rows = ((size_t)rows_max + ROWS_ALIGN - 1) / ROWS_ALIGN * ROWS_ALIGN;
  size_t row_bytes = row_capacity(width_max);
  self->rows_max = (int64_t)rows;
  self->width_max = width_max;
  self->owned = tf_huge_new(rows * (row_bytes + sizeof(float)));
  if (!self->owned) tf_rows_free(&self);
  return self;
}

void tf_rows_free(tf_rows **self) {
  if (!*self) return;
  tf_huge_free((*self)->owned);
  free(*self);
  *self = NULL;
}

void tf_rows_fill_one(const tf_kernel *kernel, const float *x, int64_t width, const tf_row_norm *norm, float *normed,
                      char *out, float *scale) {
  bool converts = kernel && kernel->convert;
  int64_t line_bytes = tf_rows_row_bytes(kernel, width) / (kernel ? kernel->halves : 1);
  if (norm && !norm->bias && kernel && kernel->convert_normed) {
    kernel->convert_normed(x, width, norm->weight, norm->epsilon, line_bytes, out, scale);
    return;
  }
  if (norm) {
    if (!converts) normed = (float *)(void *)out;
    if (norm->bias)
      tf_layer_norm_row(x, width, norm->weight, norm->bias, norm->epsilon, normed);
    else
      tf_rms_norm_row(x, width, norm->weight, norm->epsilon, normed);
    x = normed;
  }
  if (converts) kernel->convert(x, width, line_bytes, out, scale);
}

typedef struct fill_job {
  tf_pool *pool;
  const tf_kernel *kernel;
  const float *x;
  int64_t width, row_bytes;
  const tf_row_norm *norm;
  char *values;
  float *scales;
} fill_job;

static void fill_rows(void *context, int64_t begin, int64_t end, int thread) {
  const fill_job *job = context;
  for (int64_t row = begin; row < end; row++) {
    tf_rows_fill_one(job->kernel, job->x + row * job->width, job->width, job->norm, tf_pool_scratch(job->pool, thread),
                     job->values + row * job->row_bytes, job->scales + row);
  }
}

void tf_rows_fill(tf_rows *self, tf_pool *pool, const tf_kernel *kernel, const float *x, int64_t rows, int64_t width,
                  const tf_row_norm *norm, char *values, float *scales) {
  bool converts = kernel && kernel->convert;
  self->kernel = kernel;
  self->rows = rows;
  self->width = width;
  self->row_bytes = tf_rows_row_bytes(kernel, width);
  self->scales = converts && tf_kernel_is_int8(kernel) ? scales : NULL;
  self->values = (const char *)(const void *)x;
  if (!converts && !norm) return;
  assert(!norm || !converts || width <= TF_POOL_SCRATCH_BYTES / (int64_t)sizeof(float));
  self->values = values;
  fill_job job = {.pool = pool,
                  .kernel = kernel,
                  .x = x,
                  .width = width,
                  .row_bytes = self->row_bytes,
                  .norm = norm,
                  .values = values,
                  .scales = scales};
  tf_parallel(pool, rows, width >= GRAIN_FLOATS ? 1 : GRAIN_FLOATS / width, fill_rows, &job);
}

void tf_rows_load(tf_rows *self, tf_pool *pool, const tf_linear *linear, const float *x, int64_t rows,
                  const tf_row_norm *norm) {
  assert(rows >= 0 && rows <= self->rows_max && linear->in <= self->width_max);
  float *scales = (float *)(void *)(self->owned + (size_t)self->rows_max * row_capacity(self->width_max));
  tf_rows_fill(self, pool, linear->kernel, x, rows, linear->in, norm && norm->weight ? norm : NULL, self->owned,
               scales);
}

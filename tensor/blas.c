/* A linear over OpenBLAS f32: the portable path, and the reference of the kernels. In: weights in f32; rows. Out: rows.
 * The product is made in tiles; bias, activation, scale and residual are applied to each as soon as it is there. */
#include "tensor/blas.h"

#include <assert.h>
#include <cblas.h>
#include <stdlib.h>

#include "tensor/ops.h"
#include "tensor/vector.h"

enum {
  /* A tile of the product: large, as each packs its part of the weights and of x anew; yet most of it is still in cache
   * when bias and activation come to it. One that goes through the scratch has to fit there. */
  TILE_ROWS_MAX = 1024,
  SCRATCH_ROWS_MAX = 512,
  SCRATCH_FLOATS = TF_POOL_SCRATCH_BYTES / (int)sizeof(float),
  /* Up to this many rows the weights are streamed once in stretches of about L2's size, a matrix-vector product for
   * each row: the time is memory's, and packing for a matrix product would read and write the weights once more. */
  STREAMED_ROWS_MAX = 7,
  STREAMED_FLOATS = 32768,
  COLUMN_GRAIN = 16, /* one cache line of f32 */
  ROW_GRAIN = 16
};

typedef struct apply_job {
  const tf_blas *self;
  tf_pool *pool;
  const float *x;
  int64_t rows;
  float *y;
  tf_epilogue epilogue;
  /* Where the product is made: in y itself, unless y holds the residual that is to be added to something else than the
   * plain product. accumulate: y holds the residual, and the product is added to it. */
  bool through_scratch, accumulate;
} apply_job;

/* Rows [row, row + rows) and columns [column, column + columns) of y. */
typedef struct tile {
  int64_t row, rows, column, columns;
} tile;

static void add(float *x, const float *bias, int64_t count) {
  int64_t i = 0;
  for (; i + TF_LANES <= count; i += TF_LANES) tf_store8(x + i, tf_load8(x + i) + tf_load8(bias + i));
  for (; i < count; i++) x[i] += bias[i];
}

static void multiply(float *x, const float *scale, int64_t count) {
  int64_t i = 0;
  for (; i + TF_LANES <= count; i += TF_LANES) tf_store8(x + i, tf_load8(x + i) * tf_load8(scale + i));
  for (; i < count; i++) x[i] *= scale[i];
}

/* product: [tile rows, tile columns], stride floats from row to row. */
static void finish_tile(const apply_job *job, const tile *at, float *product, int64_t stride) {
  const tf_epilogue *epilogue = &job->epilogue;
  for (int64_t i = 0; i < at->rows; i++) {
    float *row = product + i * stride;
    int64_t place = (at->row + i) * job->self->out + at->column;
    if (job->self->bias) add(row, job->self->bias + at->column, at->columns);
    tf_activate_many(epilogue->activation, row, at->columns);
    if (epilogue->scale) multiply(row, epilogue->scale + at->column, at->columns);
    if (epilogue->residual && !job->accumulate) add(row, epilogue->residual + place, at->columns);
    if (job->through_scratch) memcpy(job->y + place, row, (size_t)at->columns * sizeof *row);
  }
}

static void run_tile(const apply_job *job, const tile *at, int thread) {
  const tf_blas *self = job->self;
  const float *x = job->x + at->row * self->in, *weight = self->weight + at->column * self->in;
  float *product = job->y + at->row * self->out + at->column, kept = job->accumulate ? 1.0f : 0.0f;
  int rows = (int)at->rows, columns = (int)at->columns, in = (int)self->in, stride = (int)self->out;
  if (job->through_scratch) {
    product = tf_pool_scratch(job->pool, thread);
    stride = columns;
  }
  if (job->rows > STREAMED_ROWS_MAX) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, columns, in, 1.0f, x, in, weight, in, kept, product,
                stride);
  } else {
    for (int64_t i = 0; i < rows; i++) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, columns, in, 1.0f, weight, in, x + i * in, 1, kept, product + i * stride,
                  1);
    }
  }
  finish_tile(job, at, product, stride);
}

/* The length of `pieces` equal pieces of count, rounded up to whole grains. */
static int64_t piece_length(int64_t count, int64_t pieces, int64_t grain) {
  int64_t each = (count - 1) / pieces + 1;
  return (each + grain - 1) / grain * grain;
}

/* Equal pieces none longer than `most`, a multiple of grain. */
static int64_t even_length(int64_t count, int64_t most, int64_t grain) {
  return piece_length(count, (count - 1) / most + 1, grain);
}

static void run_block(const apply_job *job, const tile *block, int thread) {
  int64_t rows_max = even_length(block->rows, job->through_scratch ? SCRATCH_ROWS_MAX : TILE_ROWS_MAX, ROW_GRAIN);
  int64_t columns_max = block->columns;
  if (job->rows <= STREAMED_ROWS_MAX) columns_max = STREAMED_FLOATS / job->self->in;
  if (job->through_scratch && columns_max > SCRATCH_FLOATS / rows_max) columns_max = SCRATCH_FLOATS / rows_max;
  if (columns_max < block->columns) {
    columns_max = columns_max / COLUMN_GRAIN * COLUMN_GRAIN;
    columns_max = even_length(block->columns, columns_max > 0 ? columns_max : COLUMN_GRAIN, COLUMN_GRAIN);
  }
  for (int64_t i = 0; i < block->rows; i += rows_max) {
    for (int64_t j = 0; j < block->columns; j += columns_max) {
      tile at = {
          .row = block->row + i, .rows = block->rows - i, .column = block->column + j, .columns = block->columns - j};
      if (at.rows > rows_max) at.rows = rows_max;
      if (at.columns > columns_max) at.columns = columns_max;
      run_tile(job, &at, thread);
    }
  }
}

static void apply_columns(void *context, int64_t begin, int64_t end, int thread) {
  const apply_job *job = context;
  run_block(job, &(tile){.rows = job->rows, .column = begin, .columns = end - begin}, thread);
}

static void apply_rows(void *context, int64_t begin, int64_t end, int thread) {
  const apply_job *job = context;
  run_block(job, &(tile){.row = begin, .rows = end - begin, .columns = job->self->out}, thread);
}

void tf_blas_apply(const tf_blas *self, tf_pool *pool, const float *x, int64_t rows, float *y,
                   const tf_epilogue *epilogue) {
  apply_job job = {.self = self, .pool = pool, .x = x, .rows = rows, .y = y};
  if (epilogue) job.epilogue = *epilogue;
  if (job.epilogue.residual == y) {
    job.accumulate = job.epilogue.activation == TF_ACTIVATION_NONE && !job.epilogue.scale;
    job.through_scratch = !job.accumulate;
  }
  /* The longer side is split, one piece a thread: each piece of a matrix product packs the whole of the other side. */
  int threads = tf_pool_threads(pool);
  if (rows > self->out)
    tf_parallel(pool, rows, piece_length(rows, threads, ROW_GRAIN), apply_rows, &job);
  else
    tf_parallel(pool, self->out, piece_length(self->out, threads, COLUMN_GRAIN), apply_columns, &job);
}

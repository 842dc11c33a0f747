/* tf_linear over OpenBLAS f32. In: weights of any dtype, unpacked to f32 once; rows of activations. Out: rows.
 * The product is made in tiles; bias, activation, scale and residual are applied to each as soon as it is there. */
#include "tensor/linear.h"

#include <assert.h>
#include <cblas.h>
#include <inttypes.h>
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

struct tf_linear {
  int64_t in, out;
  float *weight; /* [out, in] */
  float *bias;   /* [out] or NULL */
};

static float *floats_new(int64_t count) {
  if ((uint64_t)count > SIZE_MAX / sizeof(float) - 64) return NULL;
  return aligned_alloc(64, ((size_t)count * sizeof(float) + 63) & ~(size_t)63);
}

static float *unpacked(const tf_tensor *tensor) {
  float *out = floats_new(tf_tensor_elements(tensor));
  if (out) tf_tensor_to_f32(tensor, 0, tf_tensor_elements(tensor), out);
  return out;
}

static tf_code check_shapes(const tf_tensor *weight, const tf_tensor *bias, const tf_lora *lora, int64_t in,
                            int64_t out, tf_error *error) {
  if (weight->rank < 2 || in > INT32_MAX || out > INT32_MAX) {
    return tf_fail(error, TF_ERR_MODEL_INVALID, "a weight is no matrix of up to 2^31-1 rows and columns");
  }
  tf_code code = bias ? tf_tensor_expect(bias, "(bias)", 1, &out, error) : TF_OK;
  if (code != TF_OK || !lora) return code;
  code = tf_tensor_expect(lora->a, "(lora_a)", 2, (int64_t[]){-1, in}, error);
  if (code == TF_OK) code = tf_tensor_expect(lora->b, "(lora_b)", 2, (int64_t[]){out, lora->a->shape[0]}, error);
  return code;
}

/* W += scale * B A */
static tf_code merge_lora(tf_linear *self, const tf_lora *lora, tf_error *error) {
  int rank = (int)lora->a->shape[0], in = (int)self->in, out = (int)self->out;
  float *a = unpacked(lora->a), *b = unpacked(lora->b);
  if (a && b) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, out, in, rank, lora->scale, b, rank, a, in, 1.0f,
                self->weight, in);
  }
  tf_code code = a && b ? TF_OK : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory merging a LoRA");
  free(a);
  free(b);
  return code;
}

tf_code tf_linear_pack(const tf_tensor *weight, const tf_tensor *bias, const tf_lora *lora, tf_linear **out,
                       tf_error *error) {
  *out = NULL;
  tf_blas_single_threaded();
  int64_t in = tf_tensor_elements(weight) / weight->shape[0];
  tf_code code = check_shapes(weight, bias, lora, in, weight->shape[0], error);
  if (code != TF_OK) return code;
  tf_linear *self = calloc(1, sizeof *self);
  if (!self) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory for a weight");
  *self = (tf_linear){.in = in, .out = weight->shape[0]};
  self->weight = unpacked(weight);
  if (bias) self->bias = unpacked(bias);
  if (!self->weight || (bias && !self->bias)) {
    code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory for a weight of %" PRId64 " x %" PRId64,
                   weight->shape[0], in);
  }
  if (code == TF_OK && lora) code = merge_lora(self, lora, error);
  if (code == TF_OK)
    *out = self;
  else
    tf_linear_free(&self);
  return code;
}

void tf_linear_free(tf_linear **self_pointer) {
  tf_linear *self = *self_pointer;
  if (!self) return;
  free(self->weight);
  free(self->bias);
  free(self);
  *self_pointer = NULL;
}

int64_t tf_linear_in(const tf_linear *self) {
  return self->in;
}
int64_t tf_linear_out(const tf_linear *self) {
  return self->out;
}

void tf_linear_row(const tf_linear *self, int64_t row, float *out) {
  assert(row >= 0 && row < self->out);
  memcpy(out, self->weight + row * self->in, (size_t)self->in * sizeof *out);
}

typedef struct apply_job {
  const tf_linear *self;
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
  const tf_linear *self = job->self;
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

void tf_linear_apply(const tf_linear *self, tf_pool *pool, const float *x, int64_t rows, float *y,
                     const tf_epilogue *epilogue) {
  if (rows <= 0) return;
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

/* Linears in a row, a few rows at a time. In: steps, rows. Out: what the last steps write.
 * Step by step over all rows, everything between two linears would travel to the last-level cache and back, and the
 * threads would wait for each other after each. Here a thread takes a chunk of rows through all steps: activations stay
 * in its own cache, and so do the weights, as long as all of them find room there. */
#include <assert.h>

#include "tensor/linear_parts.h"

enum {
  WEIGHT_BYTES_MAX = 4 << 20, /* of all steps: about a core's second-level cache */
  CHUNK_ROWS_MAX = 256,       /* weights come from the last-level cache once a chunk: few and large ones */
  ROWS_A_THREAD_MIN = 64,     /* fewer: threads share the weights instead */
  BYTES_ALIGN = 64,
  THEN_GRAIN = 4 /* rows */
};

typedef struct chain_job {
  tf_pool *pool;
  const tf_linear_step *steps;
  int count;
  int64_t rows, chunk_rows, row_bytes_max, passing_max, width_max;
  tf_parallel_fn then;
  void *context;
} chain_job;

static int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

/* Scratch of a chunk: what passes between two steps, the rows in the kernel's form, their scales, one normed row. */
static int64_t passing_bytes(const chain_job *job) {
  return job->chunk_rows * job->passing_max * (int64_t)sizeof(float);
}
static int64_t values_bytes(const chain_job *job) { /* of whole blocks: a kernel may read past the last row */
  return ((job->chunk_rows + TF_BLOCK_LINES_MAX) * job->row_bytes_max + BYTES_ALIGN - 1) / BYTES_ALIGN * BYTES_ALIGN;
}
static int64_t scratch_bytes(const chain_job *job) {
  return passing_bytes(job) + values_bytes(job) + (job->chunk_rows + job->width_max) * (int64_t)sizeof(float);
}

static bool fits(chain_job *job) {
  size_t weights = 0;
  for (int i = 0; i < job->count; i++) {
    const tf_linear *linear = job->steps[i].linear;
    if (!linear->kernel) return false;
    weights += linear->weight_bytes;
    job->row_bytes_max = larger(job->row_bytes_max, tf_rows_row_bytes(linear->kernel, linear->in));
    job->width_max = larger(job->width_max, linear->in);
    if (job->steps[i].passing) job->passing_max = larger(job->passing_max, linear->parts[0].out);
  }
  int64_t threads = tf_pool_threads(job->pool);
  if (weights > WEIGHT_BYTES_MAX || job->rows < threads * ROWS_A_THREAD_MIN) return false;
  /* As many chunks for each thread, of one size. */
  int64_t each = (job->rows - 1) / (threads * CHUNK_ROWS_MAX) + 1;
  do {
    job->chunk_rows = (job->rows - 1) / (threads * each++) + 1;
  } while (scratch_bytes(job) > TF_POOL_SCRATCH_BYTES && job->chunk_rows > 1);
  return job->chunk_rows >= ROWS_A_THREAD_MIN / 2;
}

static void run_step(const chain_job *job, int index, int64_t first, int64_t count, char *scratch) {
  const tf_linear_step *step = &job->steps[index];
  const tf_linear *linear = step->linear;
  float *passing = (float *)(void *)scratch;
  char *values = scratch + passing_bytes(job);
  float *scales = (float *)(void *)(values + values_bytes(job)), *normed = scales + job->chunk_rows;
  const float *x = index > 0 && step[-1].passing ? passing : step->x + first * linear->in;
  bool converts = linear->kernel->convert != NULL;
  tf_rows rows = {.rows = count,
                  .width = linear->in,
                  .row_bytes = tf_rows_row_bytes(linear->kernel, linear->in),
                  .kernel = linear->kernel,
                  .values = (const char *)(const void *)x,
                  .scales = converts && tf_kernel_is_int8(linear->kernel) ? scales : NULL};
  if (converts || step->norm) {
    for (int64_t row = 0; row < count; row++)
      tf_rows_fill_one(linear->kernel, x + row * linear->in, linear->in, step->norm, normed,
                       values + row * rows.row_bytes, scales + row);
    rows.values = values;
  }
  float *y[TF_LINEAR_PARTS_MAX];
  for (int i = 0; i < linear->part_count; i++)
    y[i] = step->passing ? passing : step->y[i] + first * linear->parts[i].out;
  tf_epilogue epilogue = step->epilogue;
  if (epilogue.residual) epilogue.residual += first * linear->parts[0].out;
  tf_linear_apply_here(linear, &rows, y, linear->part_count == 1 && linear->join == TF_JOIN_PARTS ? &epilogue : NULL);
}

static void run_chunks(void *context, int64_t begin, int64_t end, int thread) {
  const chain_job *job = context;
  for (int64_t chunk = begin; chunk < end; chunk++) {
    int64_t first = chunk * job->chunk_rows, left = job->rows - first;
    int64_t count = left < job->chunk_rows ? left : job->chunk_rows;
    for (int i = 0; i < job->count; i++) run_step(job, i, first, count, tf_pool_scratch(job->pool, thread));
    if (job->then) job->then(job->context, first, first + count, thread);
  }
}

void tf_linear_chain(tf_pool *pool, const tf_linear_step *steps, int count, int64_t rows, tf_rows *rows_memory,
                     tf_parallel_fn then, void *context) {
  chain_job job = {.pool = pool, .steps = steps, .count = count, .rows = rows, .then = then, .context = context};
  for (int i = 0; i < count; i++)
    assert(!steps[i].passing || (i + 1 < count && !steps[i + 1].passing && steps[i + 1].x == steps[i].y[0] &&
                                 steps[i].linear->part_count == 1));
  if (fits(&job)) {
    tf_parallel(pool, (rows - 1) / job.chunk_rows + 1, 1, run_chunks, &job);
    return;
  }
  for (int i = 0; i < count; i++) {
    const tf_linear *linear = steps[i].linear;
    tf_rows_load(rows_memory, pool, linear, steps[i].x, rows, steps[i].norm);
    tf_linear_apply_rows(linear, pool, rows_memory, steps[i].y,
                         linear->part_count == 1 && linear->join == TF_JOIN_PARTS ? &steps[i].epilogue : NULL);
  }
  if (then) tf_parallel(pool, rows, THEN_GRAIN, then, context);
}

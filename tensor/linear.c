/* tf_linear applied. In: packed weights, rows in the kernel's form. Out: outputs, finished block by block.
 * The work is cut into units of some panels by some rows. Inside a unit the panels stay while the rows pass by, so that
 * weights come from memory once; a block of at most 32 lines goes from sums to outputs in the first-level cache. */
#include "tensor/linear.h"

#include <assert.h>
#include <stdlib.h>

#include "tensor/linear_parts.h"
#include "tensor/ops.h"

enum {
  UNITS_A_THREAD = 8,
  OWN_BLOCKS_MIN = 6 /* of rows: fewer are not worth reading all weights by one thread */
};

int64_t tf_linear_in(const tf_linear *self) {
  return self->in;
}
int64_t tf_linear_out(const tf_linear *self) {
  return self->parts[0].out;
}
const char *tf_linear_kernel(const tf_linear *self) {
  return self->kernel ? self->kernel->name : "f32 openblas";
}
size_t tf_linear_bytes(const tf_linear *self) {
  return self->weight_bytes;
}

typedef struct apply_job {
  const tf_linear *self;
  const tf_rows *rows;
  float *const *y;
  const tf_epilogue *epilogue;
  int64_t unit_panels, unit_rows, unit_groups; /* unit_groups: units of the same rows, one after the other */
  int64_t groups[TF_LINEAR_PARTS_MAX];         /* of panels, in each part */
} apply_job;

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* Rows [row, row + rows) by `panels` panels of a part, from `panel` on (counted in the part). */
static void run_block(const apply_job *job, int part_index, int64_t panel, int64_t panels, int64_t row, int64_t rows,
                      bool is_first) {
  _Alignas(64) float sums[TF_BLOCK_FLOATS];
  const tf_linear *self = job->self;
  const tf_linear_part *part = &self->parts[part_index];
  const tf_rows *x = job->rows;
  bool swiglu = self->join == TF_JOIN_SWIGLU;
  int64_t halves = self->kernel->halves;
  int64_t at = (part->first + panel) * TF_PANEL, column = panel * TF_PANEL / (swiglu ? 2 : 1);
  tf_block block = {.x = x->values + row * x->row_bytes,
                    .line_bytes = x->row_bytes / halves,
                    .lines = rows * halves,
                    .weight = self->weight + (part->first + panel) * self->panel_bytes,
                    .panel_bytes = self->panel_bytes,
                    .panels = panels,
                    .steps = self->steps,
                    .is_first = is_first,
                    .sums = sums};
  self->kernel->product(&block);
  tf_finish finish = {.sums = sums,
                      .sums_stride = panels * TF_PANEL,
                      .rows = rows,
                      .columns = smaller(panels * TF_PANEL / (swiglu ? 2 : 1), part->out - column),
                      .bias = self->bias + at,
                      .exact = self->kernel->compute == TF_COMPUTE_F32,
                      .swiglu = swiglu,
                      .y = job->y[part_index] + row * part->out + column,
                      .y_stride = part->out};
  if (x->scales) {
    finish.halves = halves == 2;
    finish.row_scale = x->scales + row;
    finish.column_scale = self->column_scale + at;
    finish.offset = self->offset + at;
  }
  if (job->epilogue) {
    finish.activation = job->epilogue->activation;
    if (job->epilogue->scale) finish.scale = job->epilogue->scale + column;
    if (job->epilogue->residual) finish.residual = job->epilogue->residual + row * part->out + column;
  }
  self->kernel->finish(&finish);
}

static void run_units(void *context, int64_t begin, int64_t end, int thread) {
  const apply_job *job = context;
  const tf_kernel *kernel = job->self->kernel;
  (void)thread;
  if (kernel->begin) kernel->begin();
  for (int64_t unit = begin; unit < end; unit++) {
    int64_t group = unit % job->unit_groups, first = unit / job->unit_groups * job->unit_rows;
    int part = 0;
    while (group >= job->groups[part]) group -= job->groups[part++];
    int64_t panel = group * job->unit_panels, panels = job->self->parts[part].panels - panel;
    panels = smaller(panels, job->unit_panels);
    int64_t last = smaller(first + job->unit_rows, job->rows->rows);
    for (int64_t row = first, most = TF_BLOCK_LINES_MAX / kernel->halves; row < last; row += most)
      run_block(job, part, panel, panels, row, smaller(last - row, most), row == first);
  }
  if (kernel->end) kernel->end();
}

/* Groups of panels in all parts. */
static int64_t count_groups(apply_job *job) {
  int64_t groups = 0;
  for (int i = 0; i < job->self->part_count; i++) {
    job->groups[i] = (job->self->parts[i].panels + job->unit_panels - 1) / job->unit_panels;
    groups += job->groups[i];
  }
  return groups;
}

/* Units small enough that the threads end together: first fewer panels (the kernels lose little by that), then fewer
 * rows. Many rows are cut in any case, a range of them for each thread: what passes between two linears, norms and
 * attention then stays in one core's cache (parallel.c), and the weights, read by all threads, cost less than that. */
static int64_t cut_units(apply_job *job, int threads) {
  int64_t wanted = threads == 1 ? 1 : (int64_t)threads * UNITS_A_THREAD;
  int64_t blocks = (job->rows->rows - 1) / TF_BLOCK_LINES_MAX + 1, pieces = smaller(threads, blocks / OWN_BLOCKS_MIN);
  job->unit_panels = job->self->kernel->panels;
  while ((job->unit_groups = count_groups(job)) < wanted && job->unit_panels > 2) job->unit_panels -= 2;
  if (job->unit_groups * pieces < wanted) pieces = smaller((wanted - 1) / job->unit_groups + 1, blocks);
  if (pieces < 1) pieces = 1;
  job->unit_rows = ((blocks - 1) / pieces + 1) * TF_BLOCK_LINES_MAX;
  return job->unit_groups * ((job->rows->rows - 1) / job->unit_rows + 1);
}

/* y = silu(first) * second, as many rows at once as second's product finds room. */
static void apply_blas_swiglu(const tf_linear_part *part, tf_pool *pool, const float *x, int64_t rows, float *y) {
  int64_t most = TF_POOL_SHARED_BYTES / (part->out * (int64_t)sizeof(float));
  if (most < 1) most = 1; /* packing refuses wider ones */
  for (int64_t row = 0; row < rows; row += most) {
    int64_t count = smaller(rows - row, most);
    float *gate = y + row * part->out, *up = tf_pool_shared(pool);
    tf_blas_apply(&part->blas, pool, x + row * part->blas.in, count, gate, NULL);
    tf_blas_apply(&part->second, pool, x + row * part->blas.in, count, up, NULL);
    tf_silu_multiply(pool, gate, up, count * part->out);
  }
}

void tf_linear_apply_here(const tf_linear *self, const tf_rows *rows, float *const *y, const tf_epilogue *epilogue) {
  assert(self->kernel && rows->kernel == self->kernel && rows->width == self->in);
  apply_job job = {.self = self, .rows = rows, .y = y, .epilogue = epilogue};
  run_units(&job, 0, cut_units(&job, 1), 0);
}

void tf_linear_apply_rows(const tf_linear *self, tf_pool *pool, const tf_rows *rows, float *const *y,
                          const tf_epilogue *epilogue) {
  assert(rows->kernel == self->kernel && rows->width == self->in);
  assert(!epilogue || (self->part_count == 1 && self->join == TF_JOIN_PARTS));
  if (rows->rows <= 0) return;
  if (self->kernel) {
    apply_job job = {.self = self, .rows = rows, .y = y, .epilogue = epilogue};
    int64_t units = cut_units(&job, tf_pool_threads(pool));
    tf_parallel(pool, units, 1, run_units, &job);
    return;
  }
  const float *x = (const float *)(const void *)rows->values;
  for (int i = 0; i < self->part_count; i++) {
    const tf_linear_part *part = &self->parts[i];
    if (self->join == TF_JOIN_SWIGLU)
      apply_blas_swiglu(part, pool, x, rows->rows, y[i]);
    else
      tf_blas_apply(&part->blas, pool, x, rows->rows, y[i], epilogue);
  }
}

void tf_linear_apply(const tf_linear *self, tf_pool *pool, const float *x, int64_t rows, float *y,
                     const tf_epilogue *epilogue) {
  assert(self->part_count == 1);
  int64_t row_bytes = tf_rows_row_bytes(self->kernel, self->in), most = rows, out = self->parts[0].out;
  if (self->kernel && self->kernel->convert) { /* as many as find room in the shared memory with their scales */
    most = TF_POOL_SHARED_BYTES / (row_bytes + (int64_t)sizeof(float));
    most = most / TF_BLOCK_LINES_MAX * TF_BLOCK_LINES_MAX;
    assert(most > 0);
  }
  char *values = tf_pool_shared(pool);
  float *scales = (float *)(void *)(values + most * row_bytes);
  for (int64_t row = 0; row < rows; row += most) {
    tf_rows some;
    tf_epilogue here = epilogue ? *epilogue : (tf_epilogue){.activation = TF_ACTIVATION_NONE};
    if (here.residual) here.residual += row * out;
    tf_rows_fill(&some, pool, self->kernel, x + row * self->in, smaller(rows - row, most), self->in, NULL, values,
                 scales);
    tf_linear_apply_rows(self, pool, &some, &(float *){y + row * out}, epilogue ? &here : NULL);
  }
}

/* The int8 and bf16 kernels against the same arithmetic in plain C, on every level that this machine has.
 * In: numbers made here. Out: a Criterion suite.
 * int8: quantisation as documented (rows and outputs symmetric, largest magnitude 127; rows of int8x2 32,512) and exact
 * integer sums; the
 * finish rounds a few times in f32, so 2e-6 * (1 + |y|) + 1e-6 * |scaled sum| is far inside what one step of a sum
 * (about 1e-4 here) would show. bf16: both sides rounded, sums in f32 in some order: 1e-5 * sum of magnitudes.
 * Approximate activations add 1e-4, as kernel.h says. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/linear.h"
#include "tensor/ops.h"

static float *random_floats(int64_t count, uint32_t seed) {
  float *x = malloc((size_t)(count > 0 ? count : 1) * sizeof *x);
  cr_assert_not_null(x);
  for (int64_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)(int32_t)seed / 2147483648.0f;
  }
  return x;
}

static tf_tensor matrix_of(const float *data, int64_t rows, int64_t columns) {
  return (tf_tensor){.dtype = TF_F32,
                     .rank = 2,
                     .shape = {rows, columns, 1, 1},
                     .data = data,
                     .bytes = (size_t)(rows * columns) * sizeof *data};
}
static tf_tensor vector_of(const float *data, int64_t count) {
  return (tf_tensor){
      .dtype = TF_F32, .rank = 1, .shape = {count, 1, 1, 1}, .data = data, .bytes = (size_t)count * sizeof *data};
}

/* q[count], returns the scale. */
static float quantise(const float *x, int64_t count, float most, int *q) {
  float largest = 0;
  for (int64_t i = 0; i < count; i++) largest = fmaxf(largest, fabsf(x[i]));
  for (int64_t i = 0; i < count; i++) q[i] = largest > 0 ? (int)lrintf(x[i] * (most / largest)) : 0;
  return largest / most;
}

typedef struct problem {
  int64_t in, out, rows;
  float *weight, *bias, *x;
  double *sums, *sizes; /* [rows, out]: of products, and of their magnitudes */
} problem;

static void reference_int8(problem *self, float most) {
  int *w = malloc((size_t)self->in * sizeof *w), *q = malloc((size_t)(self->in * self->rows) * sizeof *q);
  float *scales = malloc((size_t)self->rows * sizeof *scales);
  for (int64_t r = 0; r < self->rows; r++)
    scales[r] = quantise(self->x + r * self->in, self->in, most, q + r * self->in);
  for (int64_t o = 0; o < self->out; o++) {
    double scale = (double)quantise(self->weight + o * self->in, self->in, 127, w);
    for (int64_t r = 0; r < self->rows; r++) {
      int64_t sum = 0;
      for (int64_t i = 0; i < self->in; i++) sum += (int64_t)w[i] * q[r * self->in + i];
      self->sums[r * self->out + o] = (double)sum * scale * (double)scales[r];
      self->sizes[r * self->out + o] = fabs(self->sums[r * self->out + o]);
    }
  }
  free(w);
  free(q);
  free(scales);
}

static double rounded_bf16(float x) {
  return (double)tf_bf16_to_f32(tf_f32_to_bf16(x));
}

static void reference_bf16(problem *self) {
  for (int64_t r = 0; r < self->rows; r++) {
    for (int64_t o = 0; o < self->out; o++) {
      double sum = 0, size = 0;
      for (int64_t i = 0; i < self->in; i++) {
        double product = rounded_bf16(self->x[r * self->in + i]) * rounded_bf16(self->weight[o * self->in + i]);
        sum += product;
        size += fabs(product);
      }
      self->sums[r * self->out + o] = sum;
      self->sizes[r * self->out + o] = 10 * size;
    }
  }
}

static problem make_problem(int64_t out, int64_t in, int64_t rows, tf_compute compute) {
  problem self = {.in = in, .out = out, .rows = rows};
  self.weight = random_floats(out * in, 1);
  self.bias = random_floats(out, 2);
  self.x = random_floats(rows * in, 3);
  for (int64_t i = 0; i < in && rows > 1; i++) self.x[in + i] = 0; /* a row of nothing */
  for (int64_t r = 2; r < rows; r += 5) self.x[r * in + r % in] = 40.0f * (float)(r % 2 ? 1 : -1); /* outliers */
  self.sums = malloc((size_t)(rows * out) * sizeof *self.sums);
  self.sizes = malloc((size_t)(rows * out) * sizeof *self.sizes);
  if (compute == TF_COMPUTE_BF16)
    reference_bf16(&self);
  else
    reference_int8(&self, compute == TF_COMPUTE_INT8 ? 127 : 32512);
  return self;
}

static void free_problem(problem *self) {
  free(self->weight);
  free(self->bias);
  free(self->x);
  free(self->sums);
  free(self->sizes);
}

static tf_linear *pack(const problem *self, bool with_bias) {
  tf_tensor weight = matrix_of(self->weight, self->out, self->in), bias = vector_of(self->bias, self->out);
  tf_linear *linear = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_linear_pack(&weight, with_bias ? &bias : NULL, NULL, TF_COMPUTE_AUTO, &linear, &error), TF_OK, "%s",
               error.text);
  return linear;
}

static void check(const problem *self, const tf_linear *linear, const float *y, const tf_epilogue *epilogue,
                  bool with_bias) {
  for (int64_t r = 0; r < self->rows; r++) {
    for (int64_t o = 0; o < self->out; o++) {
      int64_t at = r * self->out + o;
      double expected = self->sums[at] + (with_bias ? (double)self->bias[o] : 0.0);
      double allowed = 2e-6 * (1 + fabs(expected)) + 1e-6 * self->sizes[at];
      if (epilogue->activation != TF_ACTIVATION_NONE) {
        expected = (double)tf_activate(epilogue->activation, (float)expected);
        allowed = 1.2 * allowed + 1e-4; /* no activation is steeper than 1.13 */
      }
      if (epilogue->scale) expected *= (double)epilogue->scale[o];
      if (epilogue->residual) expected += (double)epilogue->residual[at];
      cr_assert(fabs((double)y[at] - expected) <= allowed, "%s, %ldx%ld, row %ld of %ld, output %ld: %.9g, not %.9g",
                tf_linear_kernel(linear), (long)self->out, (long)self->in, (long)r, (long)self->rows, (long)o,
                (double)y[at], expected);
    }
  }
}

static tf_compute kind_of(const char *compute) {
  return compute[0] == 'b' ? TF_COMPUTE_BF16 : strcmp(compute, "int8x2") == 0 ? TF_COMPUTE_INT8X2 : TF_COMPUTE_INT8;
}

static const char *const LEVELS[] = {"avx2", "avx512", "vnni", "amx"};
enum { LEVEL_COUNT = sizeof LEVELS / sizeof *LEVELS };

/* The shape with every row count, on every level; what else is to be done with an output is the epilogue's test. */
static void check_shape(int64_t out, int64_t in, const char *compute, const int64_t *rows, int count) {
  static const tf_epilogue plain = {.activation = TF_ACTIVATION_NONE};
  tf_pool *pools[] = {tf_pool_new(1), tf_pool_new(3)};
  for (int i = 0; i < count; i++) {
    problem self = make_problem(out, in, rows[i], kind_of(compute));
    for (int level = 0; level < LEVEL_COUNT; level++) {
      tf_error error;
      if (tf_cpu_use(LEVELS[level], compute, &error) != TF_OK) continue;
      tf_linear *linear = pack(&self, i % 2);
      float *y = malloc((size_t)(rows[i] * out) * sizeof *y);
      for (int p = 0; p < 2; p++) {
        for (int64_t k = 0; k < rows[i] * out; k++) y[k] = NAN;
        tf_linear_apply(linear, pools[p], self.x, rows[i], y, NULL);
        check(&self, linear, y, &plain, i % 2);
      }
      free(y);
      tf_linear_free(&linear);
    }
    free_problem(&self);
  }
  tf_pool_free(&pools[0]);
  tf_pool_free(&pools[1]);
}

enum { ALL_ROWS = 40 };
static void every_row_count(int64_t out, int64_t in, const char *compute) {
  int64_t rows[ALL_ROWS];
  for (int i = 0; i < ALL_ROWS; i++) rows[i] = i + 1;
  check_shape(out, in, compute, rows, ALL_ROWS);
}
static const int64_t LARGE_ROWS[] = {64, 257, 300};

Test(kernels, int8_one_to_forty_rows, .timeout = 120) {
  every_row_count(40, 65, "int8");
}
Test(kernels, int8_odd_shapes, .timeout = 120) {
  static const int64_t shapes[][2] = {{1, 1}, {5, 3}, {16, 64}, {17, 66}, {33, 130}, {80, 63}, {129, 352}};
  static const int64_t rows[] = {1, 2, 9, 31, 33};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check_shape(shapes[i][0], shapes[i][1], "int8", rows, 5);
}
Test(kernels, int8_the_models_shapes, .timeout = 120) {
  check_shape(384, 1536, "int8", LARGE_ROWS, 3);
  check_shape(576, 576, "int8", LARGE_ROWS, 3);
}
Test(kernels, int8x2_one_to_forty_rows, .timeout = 120) {
  every_row_count(40, 65, "int8x2");
}
Test(kernels, int8x2_odd_shapes, .timeout = 120) {
  static const int64_t shapes[][2] = {{1, 1}, {5, 3}, {16, 64}, {17, 66}, {33, 130}, {80, 63}, {129, 352}};
  static const int64_t rows[] = {1, 2, 9, 31, 33};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
    check_shape(shapes[i][0], shapes[i][1], "int8x2", rows, 5);
}
Test(kernels, int8x2_the_models_shapes, .timeout = 120) {
  check_shape(384, 1536, "int8x2", LARGE_ROWS, 2);
}
Test(kernels, bf16_one_to_forty_rows, .timeout = 120) {
  every_row_count(40, 65, "bf16");
}
Test(kernels, bf16_odd_shapes, .timeout = 120) {
  static const int64_t shapes[][2] = {{1, 1}, {5, 3}, {16, 32}, {17, 66}, {33, 130}, {80, 31}, {129, 352}};
  static const int64_t rows[] = {1, 2, 9, 31, 33};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check_shape(shapes[i][0], shapes[i][1], "bf16", rows, 5);
}
Test(kernels, bf16_the_models_shapes, .timeout = 120) {
  check_shape(384, 1536, "bf16", LARGE_ROWS, 1);
  check_shape(576, 576, "bf16", LARGE_ROWS, 2);
}

/* Every combination of bias, activation, scale and residual. */
static void check_epilogues(const char *compute, int64_t rows, int64_t out, int64_t in) {
  problem self = make_problem(out, in, rows, kind_of(compute));
  float *scale = random_floats(out, 6), *residual = random_floats(rows * out, 8);
  float *y = malloc((size_t)(rows * out) * sizeof *y);
  tf_pool *pool = tf_pool_new(2);
  for (int choice = 0; choice < LEVEL_COUNT * 5 * 2 * 2 * 3; choice++) {
    tf_error error;
    if (tf_cpu_use(LEVELS[choice / 60], compute, &error) != TF_OK) continue;
    tf_epilogue epilogue = {.activation = (tf_activation)(choice % 5),
                            .scale = choice / 10 % 2 ? scale : NULL,
                            .residual = choice / 20 % 3 ? residual : NULL};
    tf_epilogue here = epilogue;
    if (choice / 20 % 3 == 2) { /* onto itself */
      memcpy(y, residual, (size_t)(rows * out) * sizeof *y);
      here.residual = y;
    }
    tf_linear *linear = pack(&self, choice / 5 % 2);
    tf_linear_apply(linear, pool, self.x, rows, y, &here);
    check(&self, linear, y, &epilogue, choice / 5 % 2);
    tf_linear_free(&linear);
  }
  tf_pool_free(&pool);
  free(scale);
  free(residual);
  free(y);
  free_problem(&self);
}
Test(kernels, int8_epilogues, .timeout = 120) {
  check_epilogues("int8", 3, 37, 40);
  check_epilogues("int8", 35, 70, 40);
}
Test(kernels, int8x2_epilogues, .timeout = 120) {
  check_epilogues("int8x2", 3, 37, 40);
  check_epilogues("int8x2", 35, 70, 40);
}
Test(kernels, bf16_epilogues, .timeout = 120) {
  check_epilogues("bf16", 3, 37, 40);
  check_epilogues("bf16", 35, 70, 40);
}

/* A row gives the same bits alone, in any batch, and on any number of threads; int8 also on any level. */
static void check_same_bits(const char *compute) {
  enum { ROWS = 77, OUT = 200, IN = 300 };
  problem self = make_problem(OUT, IN, ROWS, TF_COMPUTE_INT8);
  float *first = malloc(sizeof(float) * ROWS * OUT), *y = malloc(sizeof(float) * ROWS * OUT);
  bool is_first = true;
  for (int level = 0; level < LEVEL_COUNT; level++) {
    tf_error error;
    if (tf_cpu_use(LEVELS[level], compute, &error) != TF_OK) continue;
    tf_linear *linear = pack(&self, true);
    for (int threads = 1; threads <= 4; threads++) {
      tf_pool *pool = tf_pool_new(threads);
      for (int64_t batch = ROWS; batch > 0; batch = batch * 2 / 3) {
        for (int64_t row = 0; row < ROWS; row += batch)
          tf_linear_apply(linear, pool, self.x + row * IN, ROWS - row < batch ? ROWS - row : batch, y + row * OUT,
                          NULL);
        if (is_first) memcpy(first, y, sizeof(float) * ROWS * OUT);
        is_first = false;
        cr_assert_arr_eq(y, first, sizeof(float) * ROWS * OUT, "%s, batches of %d, %d threads",
                         tf_linear_kernel(linear), (int)batch, threads);
      }
      tf_pool_free(&pool);
    }
    tf_linear_free(&linear);
    is_first = compute[0] != 'i';
  }
  cr_assert(!is_first || compute[0] != 'i');
  free(first);
  free(y);
  free_problem(&self);
}
Test(kernels, int8_same_bits_in_any_batch_on_any_level, .timeout = 120) {
  tf_error error;
  if (tf_cpu_use(NULL, "int8", &error) != TF_OK) cr_skip_test("%s", error.text);
  check_same_bits("int8");
  check_same_bits("int8x2");
}
Test(kernels, bf16_same_bits_in_any_batch, .timeout = 120) {
  check_same_bits("bf16");
}
Test(kernels, f32_same_bits_in_any_batch, .timeout = 120) {
  check_same_bits("f32");
}

/* Joined linears equal the single ones, bit for bit but for SwiGLU's activation. */
static void check_joined(const char *level, const char *compute) {
  enum { ROWS = 37, IN = 70, WIDE = 100, NARROW = 33 };
  tf_error error;
  if (tf_cpu_use(level, compute, &error) != TF_OK) return;
  problem q = make_problem(WIDE, IN, ROWS, TF_COMPUTE_INT8), k = make_problem(NARROW, IN, ROWS, TF_COMPUTE_INT8);
  tf_tensor wide = matrix_of(q.weight, WIDE, IN), narrow = matrix_of(k.weight, NARROW, IN);
  tf_tensor bias = vector_of(q.bias, NARROW);
  tf_tensor other = matrix_of(q.weight + IN, WIDE - 1, IN), gate = matrix_of(q.weight, WIDE - 1, IN);
  tf_linear *joined, *swiglu, *singles[4];
  const tf_linear_source parts[] = {{.weight = &wide}, {.weight = &narrow, .bias = &bias}};
  const tf_linear_source pair[] = {{.weight = &gate}, {.weight = &other}};
  cr_assert_eq(tf_linear_pack_joined(parts, 2, TF_JOIN_PARTS, TF_COMPUTE_AUTO, &joined, &error), TF_OK);
  cr_assert_eq(tf_linear_pack_joined(pair, 2, TF_JOIN_SWIGLU, TF_COMPUTE_AUTO, &swiglu, &error), TF_OK);
  tf_pool *pool = tf_pool_new(2);
  tf_rows *rows = tf_rows_new(ROWS, IN);
  float *got[2], *expected[4];
  for (int i = 0; i < 2; i++) got[i] = random_floats(ROWS * WIDE, 5);
  const tf_linear_source all[] = {parts[0], parts[1], pair[0], pair[1]};
  for (int i = 0; i < 4; i++) {
    expected[i] = random_floats(ROWS * WIDE, 6);
    cr_assert_eq(tf_linear_pack(all[i].weight, all[i].bias, NULL, TF_COMPUTE_AUTO, &singles[i], &error), TF_OK);
    tf_linear_apply(singles[i], pool, q.x, ROWS, expected[i], NULL);
  }
  tf_rows_load(rows, pool, joined, q.x, ROWS, NULL);
  tf_linear_apply_rows(joined, pool, rows, got, NULL);
  cr_assert_arr_eq(got[0], expected[0], sizeof(float) * ROWS * WIDE);
  cr_assert_arr_eq(got[1], expected[1], sizeof(float) * ROWS * NARROW);
  tf_linear_apply_rows(swiglu, pool, rows, got, NULL);
  for (int64_t i = 0; i < (int64_t)ROWS * (WIDE - 1); i++) {
    double silu = (double)tf_activate(TF_ACTIVATION_SILU, expected[2][i]) * (double)expected[3][i];
    cr_assert_float_eq((double)got[0][i], silu, 2e-6 * (1 + fabs(silu)), "%s: %g, not %g", tf_linear_kernel(swiglu),
                       (double)got[0][i], silu);
  }
  for (int i = 0; i < 4; i++) {
    tf_linear_free(&singles[i]);
    free(expected[i]);
  }
  free(got[0]);
  free(got[1]);
  tf_linear_free(&joined);
  tf_linear_free(&swiglu);
  tf_rows_free(&rows);
  tf_pool_free(&pool);
  free_problem(&q);
  free_problem(&k);
}
Test(kernels, joined_equal_single, .timeout = 120) {
  static const char *const levels[] = {"portable", "avx2", "avx512", "vnni", "amx"};
  static const char *const computes[] = {"f32", "bf16", "int8", "int8x2"};
  for (int i = 0; i < 20; i++) check_joined(levels[i / 4], computes[i % 4]);
}

/* A norm on the way in equals the norm alone and then the linear; where RMSNorm and rounding are one, an input on the
 * edge between two integers may fall to the other: two steps of it at most. */
Test(kernels, normed_rows, .timeout = 120) {
  enum { ROWS = 21, IN = 75, OUT = 40 };
  static const char *const computes[] = {"f32", "bf16", "int8", "int8x2"};
  problem self = make_problem(OUT, IN, ROWS, TF_COMPUTE_INT8);
  float *weight = random_floats(IN, 21), *bias = random_floats(IN, 22), *normed = random_floats(ROWS * IN, 23);
  float *y = random_floats(ROWS * OUT, 24), *expected = random_floats(ROWS * OUT, 25);
  tf_pool *pool = tf_pool_new(2);
  tf_rows *rows = tf_rows_new(ROWS, IN);
  for (int i = 0; i < 8; i++) {
    tf_error error;
    if (tf_cpu_use(NULL, computes[i / 2], &error) != TF_OK) continue;
    tf_linear *linear = pack(&self, true);
    tf_row_norm norm = {.weight = weight, .bias = i % 2 ? bias : NULL, .epsilon = 1e-5f};
    if (i % 2)
      tf_layer_norm(pool, self.x, ROWS, IN, weight, bias, 1e-5f, normed);
    else
      for (int row = 0; row < ROWS; row++) tf_rms_norm_row(self.x + row * IN, IN, weight, 1e-5f, normed + row * IN);
    tf_linear_apply(linear, pool, normed, ROWS, expected, NULL);
    tf_rows_load(rows, pool, linear, self.x, ROWS, &norm);
    tf_linear_apply_rows(linear, pool, rows, &y, NULL);
    double edge = i % 2 || i < 4 ? 0 : i < 6 ? 0.05 : 0.0002;
    for (int at = 0; at < ROWS * OUT; at++)
      cr_assert_float_eq((double)y[at], (double)expected[at], edge, "%s: %g, not %g", tf_linear_kernel(linear),
                         (double)y[at], (double)expected[at]);
    tf_linear_free(&linear);
  }
  tf_rows_free(&rows);
  tf_pool_free(&pool);
  free(weight);
  free(bias);
  free(normed);
  free(y);
  free(expected);
  free_problem(&self);
}

/* What follows a chain's steps: x - 1, row by row. */
typedef struct lowered {
  float *x;
  int64_t width;
} lowered;
static void lower_rows(void *context, int64_t begin, int64_t end, int thread) {
  const lowered *self = context;
  (void)thread;
  for (int64_t i = begin * self->width; i < end * self->width; i++) self->x[i] -= 1.0f;
}

/* A chain gives what its steps give one by one, bit for bit, whether rows go through it in chunks or not; what follows
 * comes once to each row. */
static void check_chain(const char *level, const char *compute, int64_t rows, int threads) {
  enum { WIDTH = 70, HIDDEN = 150 };
  tf_error error;
  if (tf_cpu_use(level, compute, &error) != TF_OK) return;
  problem up = make_problem(HIDDEN, WIDTH, rows, TF_COMPUTE_INT8),
          down = make_problem(WIDTH, HIDDEN, 1, TF_COMPUTE_INT8);
  tf_linear *linears[] = {pack(&up, true), pack(&down, true)};
  tf_pool *pool = tf_pool_new(threads);
  tf_rows *memory = tf_rows_new(rows, HIDDEN);
  float *hidden = random_floats(rows * HIDDEN, 31), *x = random_floats(rows * WIDTH, 32),
        *y = random_floats(rows * WIDTH, 33);
  memcpy(x, up.x, (size_t)(rows * WIDTH) * sizeof *x);
  tf_row_norm norm = {.weight = up.weight, .epsilon = 1e-5f};
  tf_epilogue gelu = {.activation = TF_ACTIVATION_GELU}, add = {.residual = x, .scale = up.bias};
  tf_rows_load(memory, pool, linears[0], x, rows, &norm);
  tf_linear_apply_rows(linears[0], pool, memory, &hidden, &gelu);
  tf_linear_apply(linears[1], pool, hidden, rows, y, &add);
  const tf_linear_step steps[] = {
      {.linear = linears[0], .norm = &norm, .x = x, .epilogue = gelu, .y = {hidden}, .passing = true},
      {.linear = linears[1], .x = hidden, .epilogue = add, .y = {x}}};
  lowered then = {x, WIDTH};
  tf_linear_chain(pool, steps, 2, rows, memory, lower_rows, &then);
  lower_rows(&(lowered){y, WIDTH}, 0, rows, 0);
  cr_assert_arr_eq(x, y, (size_t)(rows * WIDTH) * sizeof *x, "%s, %d rows, %d threads", tf_linear_kernel(linears[0]),
                   (int)rows, threads);
  free(hidden);
  free(x);
  free(y);
  tf_rows_free(&memory);
  tf_pool_free(&pool);
  tf_linear_free(&linears[0]);
  tf_linear_free(&linears[1]);
  free_problem(&up);
  free_problem(&down);
}
Test(kernels, chains_equal_their_steps, .timeout = 120) {
  static const char *const computes[] = {"f32", "bf16", "int8", "int8x2"};
  static const int64_t rows[] = {5, 128, 257, 301};
  for (int level = 0; level < LEVEL_COUNT; level++)
    for (int i = 0; i < 16; i++) check_chain(LEVELS[level], computes[i / 4], rows[i % 4], 1 + (level + i) % 3);
  check_chain("portable", "f32", 40, 2);
}

/* A row as it was packed is within half a step of what it was. */
Test(kernels, packed_rows_can_be_read) {
  static const char *const computes[] = {"f32", "bf16", "int8"};
  static const double steps[] = {0, 1.0 / 256, 0.5 / 127};
  problem self = make_problem(37, 50, 1, TF_COMPUTE_INT8);
  float row[50];
  for (int i = 0; i < 3; i++) {
    tf_error error;
    if (tf_cpu_use(NULL, computes[i], &error) != TF_OK) continue;
    tf_linear *linear = pack(&self, false);
    for (int64_t o = 0; o < self.out; o++) {
      tf_linear_row(linear, o, row);
      for (int64_t k = 0; k < self.in; k++)
        cr_assert_float_eq((double)row[k], (double)self.weight[o * self.in + k], steps[i] * 1.001);
    }
    tf_linear_free(&linear);
  }
  free_problem(&self);
}

Test(kernels, the_switch_refuses_what_is_not_there) {
  tf_error error = {0};
  cr_assert_eq(tf_cpu_use("abacus", NULL, &error), TF_ERR_INVALID_ARGUMENT);
  cr_assert(strstr(error.text, "abacus"), "%s", error.text);
  cr_assert_eq(tf_cpu_use(NULL, "int9", &error), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(tf_cpu_use("portable", "int8", &error), TF_ERR_UNSUPPORTED);
  cr_assert(strstr(error.text, "int8"), "%s", error.text);
  cr_assert_eq(tf_cpu_use("portable", NULL, &error), TF_OK);
  cr_assert_eq(tf_cpu_level(), TF_CPU_PORTABLE);
  cr_assert_eq(tf_cpu_compute(), TF_COMPUTE_F32);
  cr_assert_eq(tf_cpu_use(NULL, NULL, &error), TF_OK);
  tf_cpu best = tf_cpu_level();
  for (tf_cpu level = TF_CPU_PORTABLE; level <= TF_CPU_AMX; level++) {
    tf_code code = tf_cpu_use(tf_cpu_name(level), NULL, &error);
    cr_assert_eq(code, level <= best ? TF_OK : TF_ERR_UNSUPPORTED, "%s", tf_cpu_name(level));
  }
}

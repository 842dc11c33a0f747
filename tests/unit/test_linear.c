/* tf_linear in f32 against the same product in double, for every f32 kernel that this machine runs, every dtype, shape
 * class, epilogue and number of threads. In: numbers made here. Out: a Criterion suite. Tolerance 1e-5 * (1 + |y|):
 * with weights and inputs up to 1 and 352 columns at most, f32 sums in any order stay within about 352 * 6e-8 * 4 of
 * the real one. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/linear.h"
#include "tensor/ops.h"

static uint32_t random_next(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  return *state ^= *state << 5;
}
static float random_float(uint32_t *state) {
  return (float)(int32_t)random_next(state) / 2147483648.0f;
}

static float *random_floats(int64_t count, uint32_t seed) {
  float *x = malloc((size_t)count * sizeof *x);
  cr_assert_not_null(x);
  for (int64_t i = 0; i < count; i++) x[i] = random_float(&seed);
  return x;
}

/* Random bytes that are a sound matrix of the dtype, values about -1..1; the caller frees .data. */
static tf_tensor random_matrix(tf_dtype dtype, int64_t rows, int64_t columns, uint32_t seed) {
  tf_tensor view = {
      .dtype = dtype, .rank = 2, .shape = {rows, columns, 1, 1}, .bytes = tf_dtype_bytes(dtype, rows * columns)};
  uint8_t *bytes = malloc(view.bytes);
  cr_assert_not_null(bytes);
  cr_assert(view.bytes > 0);
  size_t block = dtype == TF_Q4_0 ? 18 : dtype == TF_Q4_1 ? 20 : dtype == TF_Q8_0 ? 34 : 0;
  for (size_t i = 0; block && i < view.bytes; i++) bytes[i] = (uint8_t)random_next(&seed);
  for (size_t i = 0; block && i < view.bytes; i += block) {
    uint16_t scale = tf_f32_to_f16((dtype == TF_Q8_0 ? 0.008f : 0.12f) * random_float(&seed));
    uint16_t offset = tf_f32_to_f16(random_float(&seed));
    memcpy(bytes + i, &scale, 2);
    if (dtype == TF_Q4_1) memcpy(bytes + i + 2, &offset, 2);
  }
  for (int64_t i = 0; !block && i < rows * columns; i++) {
    float x = random_float(&seed);
    uint16_t narrow = dtype == TF_F16 ? tf_f32_to_f16(x) : tf_f32_to_bf16(x);
    if (dtype == TF_F32)
      memcpy(bytes + 4 * i, &x, 4);
    else
      memcpy(bytes + 2 * i, &narrow, 2);
  }
  view.data = bytes;
  return view;
}
static void free_tensor(tf_tensor *self) {
  free((void *)(uintptr_t)self->data);
}

/* Runs what follows once for each level that has f32 kernels of its own, as far as this machine goes. */
static bool next_cpu(int *index) {
  static const char *const levels[] = {"portable", "avx2", "avx512"};
  tf_error error;
  return *index < 3 && tf_cpu_use(levels[(*index)++], "f32", &error) == TF_OK;
}
#define ON_EVERY_CPU for (int cpu = 0; next_cpu(&cpu);)

typedef struct layer {
  int64_t in, out, rows;
  float *weight, *bias, *x, *scale, *residual; /* as f32; bias, scale, residual may be NULL */
  tf_activation activation;
} layer;

static double expected_at(const layer *self, int64_t row, int64_t column) {
  double sum = self->bias ? (double)self->bias[column] : 0.0;
  for (int64_t i = 0; i < self->in; i++) {
    sum += (double)self->x[row * self->in + i] * (double)self->weight[column * self->in + i];
  }
  if (self->activation != TF_ACTIVATION_NONE) sum = (double)tf_activate(self->activation, (float)sum);
  if (self->scale) sum *= (double)self->scale[column];
  if (self->residual) sum += (double)self->residual[row * self->out + column];
  return sum;
}

static void check_output(const layer *self, const float *y, const char *what) {
  for (int64_t row = 0; row < self->rows; row++) {
    for (int64_t column = 0; column < self->out; column++) {
      double expected = expected_at(self, row, column), got = (double)y[row * self->out + column];
      cr_assert(fabs(got - expected) <= 1e-5 * (1.0 + fabs(expected)), "%s, %ldx%ld, %ld rows: [%ld, %ld] %g, not %g",
                what, (long)self->out, (long)self->in, (long)self->rows, (long)row, (long)column, got, expected);
    }
  }
}

/* Each dtype at several shapes and row counts, with 1, 2 and 3 threads. */
static void check_dtype(tf_dtype dtype, const int64_t (*shapes)[2], int shape_count) {
  static const int64_t row_counts[] = {1, 2, 3, 4, 5, 7, 16, 33, 300};
  tf_pool *pools[] = {tf_pool_new(1), tf_pool_new(2), tf_pool_new(3)};
  for (int s = 0; s < shape_count; s++) {
    int64_t out = shapes[s][0], in = shapes[s][1];
    tf_tensor weight = random_matrix(dtype, out, in, 77 + (uint32_t)s), bias = random_matrix(TF_F32, 1, out, 5);
    bias.rank = 1;
    bias.shape[0] = out;
    layer self = {.in = in, .out = out, .bias = (float *)(uintptr_t)bias.data};
    self.weight = malloc((size_t)(in * out) * sizeof(float));
    cr_assert_not_null(self.weight);
    tf_tensor_to_f32(&weight, 0, in * out, self.weight);
    tf_linear *linear;
    tf_error error = {0};
    cr_assert_eq(tf_linear_pack(&weight, &bias, NULL, TF_COMPUTE_AUTO, &linear, &error), TF_OK, "%s", error.text);
    cr_assert(tf_linear_in(linear) == in && tf_linear_out(linear) == out);
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
      self.rows = row_counts[r];
      self.x = random_floats(self.rows * in, 9);
      float *y = random_floats(self.rows * out, 10);
      for (int p = 0; p < 3; p++) {
        for (int64_t i = 0; i < self.rows * out; i++) y[i] = NAN; /* what was there before is not to matter */
        tf_linear_apply(linear, pools[p], self.x, self.rows, y, NULL);
        check_output(&self, y, tf_dtype_name(dtype));
      }
      free(self.x);
      free(y);
    }
    tf_linear_free(&linear);
    cr_assert_null(linear);
    free(self.weight);
    free_tensor(&weight);
    free_tensor(&bias);
  }
  for (int p = 0; p < 3; p++) tf_pool_free(&pools[p]);
}

static const int64_t odd_shapes[][2] = {{1, 1}, {5, 3}, {17, 65}, {48, 48}, {131, 352}};
static const int64_t block_shapes[][2] = {{1, 32}, {7, 64}, {50, 96}, {131, 352}};
Test(linear, f32, .timeout = 120) {
  ON_EVERY_CPU check_dtype(TF_F32, odd_shapes, 5);
}
Test(linear, f16, .timeout = 120) {
  ON_EVERY_CPU check_dtype(TF_F16, odd_shapes, 5);
}
Test(linear, bf16, .timeout = 120) {
  ON_EVERY_CPU check_dtype(TF_BF16, odd_shapes, 5);
}
Test(linear, q4_0, .timeout = 120) {
  ON_EVERY_CPU check_dtype(TF_Q4_0, block_shapes, 4);
}
Test(linear, q4_1, .timeout = 120) {
  ON_EVERY_CPU check_dtype(TF_Q4_1, block_shapes, 4);
}
Test(linear, q8_0, .timeout = 120) {
  ON_EVERY_CPU check_dtype(TF_Q8_0, block_shapes, 4);
}

/* Every combination of bias, activation, scale and residual, the residual also being y. */
static void check_epilogues(int64_t rows, int64_t out, tf_pool *pool) {
  const int64_t in = 40;
  tf_tensor weight = random_matrix(TF_F32, out, in, 3), bias = random_matrix(TF_F32, 1, out, 4);
  bias.rank = 1;
  bias.shape[0] = out;
  float *scale = random_floats(out, 6), *residual = random_floats(rows * out, 8), *x = random_floats(rows * in, 7);
  float *y = malloc((size_t)(rows * out) * sizeof *y);
  cr_assert_not_null(y);
  for (int choice = 0; choice < 5 * 2 * 2 * 3; choice++) {
    int with_residual = choice / 20;
    layer self = {.in = in,
                  .out = out,
                  .rows = rows,
                  .weight = (float *)(uintptr_t)weight.data,
                  .x = x,
                  .bias = choice / 5 % 2 ? (float *)(uintptr_t)bias.data : NULL,
                  .scale = choice / 10 % 2 ? scale : NULL,
                  .residual = with_residual ? residual : NULL,
                  .activation = (tf_activation)(choice % 5)};
    tf_linear *linear;
    cr_assert_eq(tf_linear_pack(&weight, self.bias ? &bias : NULL, NULL, TF_COMPUTE_AUTO, &linear, NULL), TF_OK);
    tf_epilogue epilogue = {.activation = self.activation, .scale = self.scale, .residual = self.residual};
    if (with_residual == 2) {
      memcpy(y, residual, (size_t)(rows * out) * sizeof *y);
      epilogue.residual = y;
    }
    tf_linear_apply(linear, pool, x, rows, y, &epilogue);
    char what[64];
    snprintf(what, sizeof what, "epilogue %d", choice);
    check_output(&self, y, what);
    tf_linear_free(&linear);
  }
  free(scale);
  free(residual);
  free(x);
  free(y);
  free_tensor(&weight);
  free_tensor(&bias);
}

Test(linear, epilogues, .timeout = 120) {
  tf_pool *one = tf_pool_new(1), *two = tf_pool_new(2);
  ON_EVERY_CPU check_epilogues(1, 37, one);
  ON_EVERY_CPU check_epilogues(3, 100, two);
  ON_EVERY_CPU check_epilogues(29, 50, one);
  ON_EVERY_CPU check_epilogues(29, 50, two);
  ON_EVERY_CPU check_epilogues(90, 33, two); /* split by rows */
  tf_pool_free(&one);
  tf_pool_free(&two);
}

/* More than one tile either way. */
Test(linear, large, .timeout = 120) {
  static const int64_t sizes[][3] = {{530, 600, 32}, {40, 5000, 32}, {1, 3000, 64},
                                     {1100, 64, 64}, {2100, 48, 32}, {520, 1100, 32}};
  tf_pool *pool = tf_pool_new(2);
  ON_EVERY_CPU for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    layer self = {.rows = sizes[i][0], .out = sizes[i][1], .in = sizes[i][2]};
    tf_tensor weight = random_matrix(TF_F32, self.out, self.in, 11);
    self.weight = (float *)(uintptr_t)weight.data;
    self.x = random_floats(self.rows * self.in, 12);
    float *y = random_floats(self.rows * self.out, 13), *scale = random_floats(self.out, 14);
    tf_linear *linear;
    cr_assert_eq(tf_linear_pack(&weight, NULL, NULL, TF_COMPUTE_AUTO, &linear, NULL), TF_OK);
    tf_linear_apply(linear, pool, self.x, self.rows, y, NULL);
    check_output(&self, y, "large");
    /* y is the residual, and there is a scale: through the scratch. */
    self.scale = scale;
    self.residual = random_floats(self.rows * self.out, 15);
    memcpy(y, self.residual, (size_t)(self.rows * self.out) * sizeof *y);
    tf_linear_apply(linear, pool, self.x, self.rows, y, &(tf_epilogue){.scale = scale, .residual = y});
    check_output(&self, y, "large, scaled onto itself");
    free(scale);
    free(self.residual);
    tf_linear_apply(linear, pool, self.x, 0, NULL, NULL); /* nothing to do */
    tf_linear_free(&linear);
    free_tensor(&weight);
    free(self.x);
    free(y);
  }
  tf_pool_free(&pool);
}

/* W + scale B A, W in 4-bit blocks: the packed rows show the sum, to f32 rounding of values up to about 6. */
Test(linear, lora_is_merged) {
  enum { OUT = 21, IN = 64, RANK = 5 };
  tf_tensor weight = random_matrix(TF_Q4_1, OUT, IN, 21), a = random_matrix(TF_F16, RANK, IN, 22),
            b = random_matrix(TF_F16, OUT, RANK, 23);
  float w[OUT * IN], a32[RANK * IN], b32[OUT * RANK], row[IN];
  tf_tensor_to_f32(&weight, 0, OUT * IN, w);
  tf_tensor_to_f32(&a, 0, RANK * IN, a32);
  tf_tensor_to_f32(&b, 0, OUT * RANK, b32);
  ON_EVERY_CPU {
    tf_linear *linear;
    tf_lora lora = {.a = &a, .b = &b, .scale = 2.0f};
    cr_assert_eq(tf_linear_pack(&weight, NULL, &lora, TF_COMPUTE_AUTO, &linear, NULL), TF_OK);
    for (int64_t o = 0; o < OUT; o++) {
      tf_linear_row(linear, o, row);
      for (int i = 0; i < IN; i++) {
        double expected = (double)w[o * IN + i];
        for (int r = 0; r < RANK; r++) expected += 2.0 * (double)b32[o * RANK + r] * (double)a32[r * IN + i];
        cr_assert_float_eq((double)row[i], expected, 2e-6);
      }
    }
    tf_linear_free(&linear);
  }
  free_tensor(&weight);
  free_tensor(&a);
  free_tensor(&b);
}

Test(linear, a_patch_convolution_is_a_matrix) {
  tf_tensor weight = random_matrix(TF_F32, 6, 3 * 14 * 14, 31);
  weight.rank = 4;
  memcpy(weight.shape, (int64_t[]){6, 3, 14, 14}, sizeof weight.shape);
  tf_linear *linear;
  cr_assert_eq(tf_linear_pack(&weight, NULL, NULL, TF_COMPUTE_AUTO, &linear, NULL), TF_OK);
  cr_assert(tf_linear_in(linear) == 588 && tf_linear_out(linear) == 6);
  tf_linear_free(&linear);
  free_tensor(&weight);
}

Test(linear, shapes_that_do_not_fit_are_refused) {
  tf_tensor weight = random_matrix(TF_F32, 6, 8, 41), bias = random_matrix(TF_F32, 1, 5, 42);
  tf_tensor a = random_matrix(TF_F32, 2, 8, 43), b = random_matrix(TF_F32, 6, 3, 44), vector = weight;
  tf_linear *linear;
  tf_error error = {0};
  bias.rank = 1;
  bias.shape[0] = 5;
  cr_assert_eq(tf_linear_pack(&weight, &bias, NULL, TF_COMPUTE_AUTO, &linear, &error), TF_ERR_MODEL_INVALID);
  cr_assert_null(linear);
  cr_assert(strstr(error.text, "bias"), "%s", error.text);
  cr_assert_eq(
      tf_linear_pack(&weight, NULL, &(tf_lora){.a = &a, .b = &b, .scale = 1.0f}, TF_COMPUTE_AUTO, &linear, &error),
      TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, "lora_b"), "%s", error.text);
  cr_assert_eq(
      tf_linear_pack(&weight, NULL, &(tf_lora){.a = &b, .b = &b, .scale = 1.0f}, TF_COMPUTE_AUTO, &linear, &error),
      TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, "lora_a"), "%s", error.text);
  vector.rank = 1;
  cr_assert_eq(tf_linear_pack(&vector, NULL, NULL, TF_COMPUTE_AUTO, &linear, &error), TF_ERR_MODEL_INVALID);
  free_tensor(&weight);
  free_tensor(&bias);
  free_tensor(&a);
  free_tensor(&b);
}

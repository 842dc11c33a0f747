/* Norms, activations, soft maximum, RoPE against the same formulas in double. In: numbers made here. Out: a suite.
 * Tolerances: the polynomial exponential 2e-7 relative (1 ulp is 6e-8 to 1.2e-7; range reduction and five roundings);
 * activations 1e-6 * max(1, |x|) absolute, ten times under what goldens allow; norms and RoPE 2e-6 on values of
 * about 1 (sums of 1,152 f32 squares in eight lanes). */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/ops.h"
#include "tensor/vector.h"

static float random_float(uint32_t *state) { /* -1..1 */
  *state = *state * 1664525u + 1013904223u;
  return (float)(int32_t)*state / 2147483648.0f;
}

Test(ops, exponential_is_within_its_bound) {
  double worst = 0.0;
  for (float x = -87.33f; x < 88.72f; x += 0.00021f) {
    float got = tf_exp8(tf_splat8(x))[3];
    double error = fabs((double)got / exp((double)x) - 1.0);
    if (error > worst) worst = error;
  }
  cr_assert(worst < 2e-7, "relative error %g", worst);
  cr_assert_eq(tf_exp8(tf_splat8(0.0f))[0], 1.0f);
  cr_assert_eq(tf_exp8(tf_splat8(-INFINITY))[0], 0.0f);
  cr_assert_eq(tf_exp8(tf_splat8(-87.4f))[0], 0.0f);
  cr_assert_eq(tf_exp8(tf_splat8(88.8f))[0], INFINITY);
  cr_assert_eq(tf_exp8(tf_splat8(INFINITY))[0], INFINITY);
  cr_assert(isnan(tf_exp8(tf_splat8(NAN))[0]));
}

static double exact_activation(tf_activation activation, double x) {
  switch (activation) {
  case TF_ACTIVATION_NONE:
    return x;
  case TF_ACTIVATION_GELU:
    return 0.5 * x * erfc(-x / sqrt(2.0));
  case TF_ACTIVATION_GELU_TANH:
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
  case TF_ACTIVATION_QUICK_GELU:
    return x / (1.0 + exp(-1.702 * x));
  case TF_ACTIVATION_SILU:
    return x / (1.0 + exp(-x));
  }
  return NAN;
}

static void check_activation(tf_activation activation) {
  enum { COUNT = 400003 }; /* no multiple of 8 */
  float *x = malloc(COUNT * sizeof *x);
  cr_assert_not_null(x);
  for (int i = 0; i < COUNT; i++) x[i] = (float)(i - COUNT / 2) * 1e-4f;
  tf_activate_many(activation, x, COUNT);
  double worst = 0.0, worst_one = 0.0;
  for (int i = 0; i < COUNT; i++) {
    float input = (float)(i - COUNT / 2) * 1e-4f;
    double exact = exact_activation(activation, (double)input), size = fmax(1.0, fabs((double)input));
    worst = fmax(worst, fabs((double)x[i] - exact) / size);
    worst_one = fmax(worst_one, fabs((double)tf_activate(activation, input) - exact) / size);
  }
  cr_assert(worst < 1e-6, "eight at a time: %g", worst);
  cr_assert(worst_one < 1e-6, "one at a time: %g", worst_one);
  free(x);
}
Test(ops, none) {
  check_activation(TF_ACTIVATION_NONE);
}
Test(ops, gelu) {
  check_activation(TF_ACTIVATION_GELU);
}
Test(ops, gelu_tanh) {
  check_activation(TF_ACTIVATION_GELU_TANH);
}
Test(ops, quick_gelu) {
  check_activation(TF_ACTIVATION_QUICK_GELU);
}
Test(ops, silu) {
  check_activation(TF_ACTIVATION_SILU);
}

/* GELU keeps its relative accuracy down to where it is 1e-10: small negative outputs are no noise. */
Test(ops, gelu_tail_is_relatively_exact) {
  double worst = 0.0;
  for (float x = -6.0f; x < 6.0f; x += 0.0003f) {
    double exact = exact_activation(TF_ACTIVATION_GELU, (double)x);
    if (exact != 0.0) worst = fmax(worst, fabs((double)tf_gelu8(tf_splat8(x))[5] / exact - 1.0));
  }
  cr_assert(worst < 3e-6, "relative error %g", worst);
}

Test(ops, extremes_stay_numbers) {
  float x[6] = {-1e30f, -300.0f, 0.0f, 300.0f, 1e10f, NAN};
  for (int activation = TF_ACTIVATION_GELU; activation <= TF_ACTIVATION_SILU; activation++) {
    float y[6];
    memcpy(y, x, sizeof y);
    tf_activate_many((tf_activation)activation, y, 6);
    cr_assert(fabsf(y[0]) == 0.0f && fabsf(y[1]) == 0.0f && y[2] == 0.0f, "activation %d: %g %g", activation,
              (double)y[0], (double)y[1]);
    cr_assert(y[3] == 300.0f && y[4] == 1e10f && isnan(y[5]), "activation %d", activation);
  }
}

static const int64_t widths[] = {1, 7, 8, 48, 384, 1152, 5001};
enum { WIDTHS = sizeof widths / sizeof *widths, ROWS = 13, WIDTH_MAX = 5001 };
static float in[ROWS * WIDTH_MAX], out[ROWS * WIDTH_MAX], weight[WIDTH_MAX], bias[WIDTH_MAX];

static void fill(float *x, int64_t count, float scale, float shift, uint32_t seed) {
  for (int64_t i = 0; i < count; i++) x[i] = shift + scale * random_float(&seed);
}

static void check_norm(tf_pool *pool, int64_t width, bool layer) {
  const float epsilon = 1e-5f;
  fill(in, ROWS * width, 3.0f, layer ? 5.0f : 0.5f, 1);
  fill(weight, width, 1.0f, 0.0f, 2);
  fill(bias, width, 1.0f, 0.0f, 3);
  if (layer)
    tf_layer_norm(pool, in, ROWS, width, weight, bias, epsilon, out);
  else
    for (int64_t row = 0; row < ROWS; row++)
      tf_rms_norm_row(in + row * width, width, weight, epsilon, out + row * width);
  for (int64_t row = 0; row < ROWS; row++) {
    double mean = 0.0, square = 0.0;
    for (int64_t i = 0; layer && i < width; i++) mean += (double)in[row * width + i] / (double)width;
    for (int64_t i = 0; i < width; i++) square += pow((double)in[row * width + i] - mean, 2.0) / (double)width;
    for (int64_t i = 0; i < width; i++) {
      double expected = ((double)in[row * width + i] - mean) / sqrt(square + (double)epsilon) * (double)weight[i];
      if (layer) expected += (double)bias[i];
      double error = fabs((double)out[row * width + i] - expected);
      /* A width of 1 leaves a difference of equal numbers over sqrt(epsilon). */
      cr_assert(error < 2e-6 * fmax(1.0, fabs(expected)), "width %ld, row %ld, %ld: off by %g", (long)width, (long)row,
                (long)i, error);
    }
  }
}

Test(ops, norms) {
  tf_pool *pool = tf_pool_new(2);
  for (int i = 0; i < WIDTHS; i++) {
    check_norm(pool, widths[i], true);
    check_norm(pool, widths[i], false);
  }
  tf_pool_free(&pool);
}

Test(ops, norm_in_place) {
  tf_pool *pool = tf_pool_new(1);
  float x[24], y[24];
  fill(x, 24, 2.0f, 1.0f, 4);
  fill(weight, 12, 1.0f, 0.0f, 5);
  fill(bias, 12, 1.0f, 0.0f, 6);
  tf_layer_norm(pool, x, 2, 12, weight, bias, 1e-6f, y);
  tf_layer_norm(pool, x, 2, 12, weight, bias, 1e-6f, x);
  cr_assert_arr_eq(x, y, sizeof x);
  tf_pool_free(&pool);
}

Test(ops, silu_multiply) {
  tf_pool *pool = tf_pool_new(3);
  int64_t count = 10007;
  fill(in, count, 6.0f, 0.0f, 7);
  fill(out, count, 2.0f, 0.0f, 8);
  static float gate[10007];
  memcpy(gate, in, sizeof gate);
  tf_silu_multiply(pool, gate, out, count);
  for (int64_t i = 0; i < count; i++) {
    double expected = exact_activation(TF_ACTIVATION_SILU, (double)in[i]) * (double)out[i];
    cr_assert_float_eq((double)gate[i], expected, 6e-6);
  }
  tf_pool_free(&pool);
}

Test(ops, softmax) {
  for (int64_t count = 1; count < 40; count++) {
    float x[40];
    double sum = 0.0, exact[40];
    fill(x, count, 20.0f, 1000.0f, (uint32_t)count); /* far from 0: e^1000 alone is no float */
    for (int64_t i = 0; i < count; i++) sum += exact[i] = exp((double)x[i] - 1000.0);
    tf_softmax(x, count);
    for (int64_t i = 0; i < count; i++) cr_assert_float_eq((double)x[i], exact[i] / sum, 1e-6);
  }
  float masked[11] = {0.0f, 1.0f};
  for (int i = 2; i < 11; i++) masked[i] = -INFINITY;
  tf_softmax(masked, 11);
  cr_assert_float_eq((double)masked[1], 1.0 / (1.0 + exp(-1.0)), 1e-6);
  for (int i = 2; i < 11; i++) cr_assert_eq(masked[i], 0.0f);
}

/* Angles are rounded to f32 as in training, which at position 8,000 is up to 2.4e-4 off the real angle: the reference
 * rounds them as well, and the tolerance is for the rest. */
static void check_rope(tf_rope_layout layout) {
  enum { HEADS = 3, DIM = 22, STRIDE = HEADS * DIM + 5, LINES = 9 };
  static const int32_t positions[LINES] = {0, 1, 2, 100, 7, 8000, 63, 64, 4095};
  static float x[LINES * STRIDE], before[LINES * STRIDE];
  static float cosine[LINES * DIM], sine[LINES * DIM];
  fill(x, LINES * STRIDE, 1.0f, 0.0f, 9);
  memcpy(before, x, sizeof x);
  tf_rope_angles(positions, LINES, DIM, 100000.0, layout, cosine, sine);
  for (int64_t row = 0; row < LINES; row++)
    tf_rope_row(x + row * STRIDE, HEADS, DIM, layout, cosine + row * DIM, sine + row * DIM);
  for (int64_t row = 0; row < LINES; row++) {
    for (int64_t pair = 0; pair < HEADS * DIM / 2; pair++) {
      int64_t head = pair / (DIM / 2), i = pair % (DIM / 2), at = row * STRIDE + head * DIM;
      int64_t first = at + (layout == TF_ROPE_HALF_SPLIT ? i : 2 * i);
      int64_t second = layout == TF_ROPE_HALF_SPLIT ? first + DIM / 2 : first + 1;
      float frequency = (float)pow(100000.0, -2.0 * (double)i / DIM), angle = (float)positions[row] * frequency;
      double a = (double)before[first], b = (double)before[second], c = cos((double)angle), s = sin((double)angle);
      cr_assert_float_eq((double)x[first], a * c - b * s, 2e-6, "row %ld", (long)row);
      cr_assert_float_eq((double)x[second], a * s + b * c, 2e-6, "row %ld", (long)row);
    }
    for (int64_t i = HEADS * DIM; i < STRIDE; i++) cr_assert_eq(x[row * STRIDE + i], before[row * STRIDE + i]);
  }
}
Test(ops, rope_interleaved) {
  check_rope(TF_ROPE_INTERLEAVED);
}
Test(ops, rope_half_split) {
  check_rope(TF_ROPE_HALF_SPLIT);
}

Test(ops, largest) {
  float x[37] = {0};
  cr_assert_eq(tf_largest(x, 0), -1);
  for (int count = 1; count <= 37; count++) {
    for (int i = 0; i < 37; i++) x[i] = i % 2 ? NAN : -INFINITY;
    cr_assert_eq(tf_largest(x, count), -1);
    x[count - 1] = -3.0f;
    cr_assert_eq(tf_largest(x, count), count - 1);
    x[count / 2] = x[count / 3] = INFINITY;
    cr_assert_eq(tf_largest(x, count), count / 3, "%d", count);
  }
}

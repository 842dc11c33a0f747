/* Both poolings against PyTorch, for grids of 16 and 27 and 8, 12 and 16 tokens a side. In: pool.gguf.
 * Out: every value within 1e-5: weights and sums of values up to 4 round by about 1e-6. */
#include <stdio.h>

#include "encoder-svc/pool.h"
#include "tests/golden/vision_golden.h"

static const double TOLERANCE = 1e-5;

static void compare(const tf_gguf *golden, tf_pooling method, const char *method_name, int grid, int n) {
  char name[64];
  snprintf(name, sizeof name, "input.%d", grid);
  float *input = golden_floats(golden, name, NULL);
  int64_t width = golden_shape(golden, name, 1), count;
  cr_assert_eq(golden_shape(golden, name, 0), grid * grid);
  snprintf(name, sizeof name, "%s.%d.%d", method_name, grid, n);
  float *expected = golden_floats(golden, name, &count);
  cr_assert_eq(count, n * n * width);
  tf_pooler *pooler = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_pooler_new(method, grid, n, &pooler, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_pooler_tokens(pooler), n * n);
  float *out = malloc((size_t)count * sizeof *out);
  tf_pooler_apply(pooler, input, width, out);
  double difference = largest_difference(out, expected, count);
  cr_assert_leq(difference, TOLERANCE, "%s: %g", name, difference);
  free(out);
  free(expected);
  free(input);
  tf_pooler_free(&pooler);
}

static void compare_all(const char *method_name) {
  tf_pooling method;
  cr_assert(tf_pooling_from_name(method_name, &method));
  tf_gguf *golden = open_golden(GOLDEN_FOLDER "pool.gguf");
  for (int grid = 16; grid <= 27; grid += 11)
    for (int n = 8; n <= 16; n += 4) compare(golden, method, method_name, grid, n);
  tf_gguf_close(&golden);
}

Test(pool, resize_average_equals_torch) {
  compare_all("resize_average");
}
Test(pool, adaptive_average_equals_torch) {
  compare_all("adaptive_average");
}

Test(pool, unknown_method_is_refused) {
  tf_pooling method;
  cr_assert_not(tf_pooling_from_name("max", &method));
  cr_assert_not(tf_pooling_from_name("", &method));
}

Test(pool, every_size_keeps_a_constant) { /* the weights of a token sum to one */
  for (int method = TF_POOLING_RESIZE_AVERAGE; method <= TF_POOLING_ADAPTIVE_AVERAGE; method++)
    for (int grid = 1; grid <= 20; grid++)
      for (int n = 1; n <= 25; n++) {
        tf_pooler *pooler = NULL;
        float in[20 * 20], out[25 * 25];
        for (int i = 0; i < grid * grid; i++) in[i] = 3;
        cr_assert_eq(tf_pooler_new((tf_pooling)method, grid, n, &pooler, NULL), TF_OK);
        tf_pooler_apply(pooler, in, 1, out);
        for (int i = 0; i < n * n; i++)
          cr_assert_float_eq(out[i], 3, 1e-4, /* up to 400 f32 sums */ "method %d, %d to %d: %g", method, grid, n,
                             (double)out[i]);
        tf_pooler_free(&pooler);
      }
}

Test(pool, sides_out_of_range_are_refused) {
  tf_pooler *pooler = NULL;
  tf_error error = {0};
  const int64_t sides[][2] = {{0, 8}, {16, 0}, {257, 8}, {16, 257}, {-1, 8}};
  for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
    cr_assert_eq(tf_pooler_new(TF_POOLING_RESIZE_AVERAGE, sides[i][0], sides[i][1], &pooler, &error),
                 TF_ERR_INVALID_ARGUMENT);
    cr_assert_null(pooler);
  }
}

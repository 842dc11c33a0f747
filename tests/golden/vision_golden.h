/* What the golden tests of the encoder share. In: names of golden files and tensors. Out: f32 arrays, largest
 * differences. Any failure to read a golden fails the test that asked. Tests run from the top of the repository. */
#ifndef TF_TESTS_VISION_GOLDEN_H
#define TF_TESTS_VISION_GOLDEN_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "tensor/cpu.h"
#include "tensor/gguf.h"

#define GOLDEN_FOLDER "tests/golden/data/"

/* Goldens are f32's: their tolerances are those of sums in another order. The default path has tests/golden/test_fast.c
 * with tolerances of its own. */
__attribute__((constructor)) static void compare_in_f32(void) {
  tf_error error;
  if (tf_cpu_use(getenv("TEST_CPU"), "f32", &error) != TF_OK) abort();
}

static inline tf_gguf *open_golden(const char *path) {
  tf_gguf *file = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_gguf_open(path, &file, &error), TF_OK, "%s", error.text);
  return file;
}

/* The tensor as f32; *count (may be NULL): elements. The caller frees. */
static inline float *golden_floats(const tf_gguf *file, const char *name, int64_t *count) {
  const tf_tensor *tensor = tf_gguf_tensor(file, name);
  cr_assert_not_null(tensor, "%s has no tensor %s", tf_gguf_path(file), name);
  int64_t elements = tf_tensor_elements(tensor);
  float *values = malloc((size_t)elements * sizeof *values);
  cr_assert_not_null(values);
  tf_tensor_to_f32(tensor, 0, elements, values);
  if (count != NULL) *count = elements;
  return values;
}

static inline int64_t golden_shape(const tf_gguf *file, const char *name, int axis) {
  const tf_tensor *tensor = tf_gguf_tensor(file, name);
  cr_assert_not_null(tensor, "%s has no tensor %s", tf_gguf_path(file), name);
  return tensor->shape[axis];
}

/* Infinite where either holds a NaN. */
static inline double largest_difference(const float *a, const float *b, int64_t count) {
  double largest = 0;
  for (int64_t i = 0; i < count; i++) {
    double difference = fabs((double)a[i] - (double)b[i]);
    if (!(difference <= largest)) largest = isnan(difference) ? INFINITY : difference;
  }
  return largest;
}

#endif

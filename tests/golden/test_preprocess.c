/* Preprocessing against Pillow and PyTorch. In: preprocess.gguf (pictures, Pillow's BICUBIC, normalised planes).
 * Out: the resize is equal bit by bit, the normalised values to 1e-6.
 * 1e-6: one f32 subtraction and one division of values up to 3 round by no more than a few 1e-7. */
#include <stdio.h>

#include "encoder-svc/preprocess.h"
#include "image/resize.h"
#include "tests/golden/vision_golden.h"

static const double TOLERANCE = 1e-6;

typedef struct golden_case {
  tf_image image;
  int32_t size;
  float *resized, *normalised, mean[3], std[3];
} golden_case;

static uint8_t *to_bytes(const float *values, int64_t count) {
  uint8_t *bytes = malloc((size_t)count);
  cr_assert_not_null(bytes);
  for (int64_t i = 0; i < count; i++) bytes[i] = (uint8_t)lrintf(values[i]);
  return bytes;
}

static void read_three(const tf_gguf *file, const char *key, float out[3]) {
  for (uint64_t i = 0; i < 3; i++) {
    double value;
    cr_assert(tf_gguf_array_f64(file, key, i, &value), "%s", key);
    out[i] = (float)value;
  }
}

static golden_case read_case(const tf_gguf *file, uint64_t index) {
  golden_case self = {0};
  char name[64];
  uint64_t size;
  int64_t count;
  cr_assert(tf_gguf_u64(file, "size", &size));
  self.size = (int32_t)size;
  snprintf(name, sizeof name, "case.%d.rgb", (int)index);
  float *rgb = golden_floats(file, name, &count);
  self.image.height = (int32_t)golden_shape(file, name, 0);
  self.image.width = (int32_t)golden_shape(file, name, 1);
  self.image.rgb = to_bytes(rgb, count);
  free(rgb);
  snprintf(name, sizeof name, "case.%d.resized", (int)index);
  self.resized = golden_floats(file, name, &count);
  cr_assert_eq(count, (int64_t)(size * size * 3));
  snprintf(name, sizeof name, "case.%d.normalised", (int)index);
  self.normalised = golden_floats(file, name, &count);
  cr_assert_eq(count, (int64_t)(size * size * 3));
  read_three(file, "image_mean", self.mean);
  read_three(file, "image_std", self.std);
  return self;
}

static void free_case(golden_case *self) {
  tf_image_free(&self->image);
  free(self->resized);
  free(self->normalised);
}

static uint64_t case_count(const tf_gguf *file) {
  uint64_t count = 0;
  cr_assert(tf_gguf_u64(file, "case_count", &count));
  cr_assert_geq(count, 4);
  return count;
}

Test(preprocess, resize_equals_pillow_bit_by_bit) {
  tf_gguf *file = open_golden(GOLDEN_FOLDER "preprocess.gguf");
  for (uint64_t i = 0; i < case_count(file); i++) {
    golden_case test = read_case(file, i);
    int64_t count = (int64_t)test.size * test.size * 3, different = 0;
    uint8_t *out = malloc((size_t)count);
    tf_error error = {0};
    cr_assert_eq(
        tf_resize_bicubic(test.image.rgb, test.image.width, test.image.height, out, test.size, test.size, &error),
        TF_OK, "%s", error.text);
    for (int64_t k = 0; k < count; k++) different += out[k] != (uint8_t)lrintf(test.resized[k]);
    cr_assert_eq(different, 0, "case %d (%d x %d): %d of %d values differ", (int)i, test.image.width, test.image.height,
                 (int)different, (int)count);
    free(out);
    free_case(&test);
  }
  tf_gguf_close(&file);
}

Test(preprocess, normalised_planes_equal_torch) {
  tf_gguf *file = open_golden(GOLDEN_FOLDER "preprocess.gguf");
  for (uint64_t i = 0; i < case_count(file); i++) {
    golden_case test = read_case(file, i);
    int64_t count = (int64_t)test.size * test.size * 3;
    float *out = malloc((size_t)count * sizeof *out);
    tf_error error = {0};
    cr_assert_eq(tf_preprocess(&test.image, test.size, test.mean, test.std, out, &error), TF_OK, "%s", error.text);
    double difference = largest_difference(out, test.normalised, count);
    cr_assert_leq(difference, TOLERANCE, "case %d: %g", (int)i, difference);
    free(out);
    free_case(&test);
  }
  tf_gguf_close(&file);
}

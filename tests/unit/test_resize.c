/* The bicubic resize by itself. In: rows with known answers, properties. Out: equality with what Pillow 9.4 gives.
 * Whole pictures against Pillow: tests/golden/test_preprocess.c. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "image/resize.h"

enum { SIDE_MAX = 64 };

/* One line of grey pixels along x (or, turned, along y) through the resize. */
static void resize_line(const uint8_t *line, int count, uint8_t *out, int out_count, bool turned) {
  uint8_t in[SIDE_MAX * 3], pixels[SIDE_MAX * 3];
  for (int i = 0; i < 3 * count; i++) in[i] = line[i / 3];
  tf_error error = {0};
  tf_code code = turned ? tf_resize_bicubic(in, 1, count, pixels, 1, out_count, &error)
                        : tf_resize_bicubic(in, count, 1, pixels, out_count, 1, &error);
  cr_assert_eq(code, TF_OK, "%s", error.text);
  for (int i = 0; i < out_count; i++) {
    out[i] = pixels[3 * i];
    cr_assert(pixels[3 * i + 1] == out[i] && pixels[3 * i + 2] == out[i], "channels differ at %d", i);
  }
}

Test(resize, lines_equal_pillow) {
  static const struct {
    int count, out_count;
    uint8_t line[8], expected[12];
  } cases[] = {
      {8, 3, {0, 50, 100, 150, 200, 250, 30, 60}, {45, 179, 103}},
      {8, 12, {0, 50, 100, 150, 200, 250, 30, 60}, {0, 21, 58, 92, 125, 158, 192, 242, 226, 55, 33, 62}},
      {6, 4, {0, 0, 0, 255, 255, 255}, {0, 12, 243, 255}},
      {6, 11, {0, 0, 0, 255, 255, 255}, {0, 0, 0, 0, 0, 128, 255, 255, 255, 255, 255}},
      {1, 5, {7}, {7, 7, 7, 7, 7}},
      {2, 1, {1, 254}, {128}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int turned = 0; turned < 2; turned++) {
      uint8_t out[SIDE_MAX];
      resize_line(cases[i].line, cases[i].count, out, cases[i].out_count, turned == 1);
      for (int k = 0; k < cases[i].out_count; k++)
        cr_assert_eq(out[k], cases[i].expected[k], "case %d, turned %d, pixel %d: %d, Pillow has %d", (int)i, turned, k,
                     out[k], cases[i].expected[k]);
    }
}

static void fill_noise(uint8_t *rgb, size_t count, uint32_t seed) {
  for (size_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    rgb[i] = (uint8_t)(seed >> 24);
  }
}

Test(resize, equal_size_is_a_copy) {
  uint8_t in[13 * 7 * 3], out[13 * 7 * 3];
  fill_noise(in, sizeof in, 1);
  cr_assert_eq(tf_resize_bicubic(in, 13, 7, out, 13, 7, NULL), TF_OK);
  cr_assert_arr_eq(in, out, sizeof in);
}

/* Any pair of sizes keeps a flat colour flat: the weights of every output pixel sum to one. */
Test(resize, a_flat_colour_stays) {
  static uint8_t in[40 * 40 * 3], out[40 * 40 * 3];
  for (size_t i = 0; i < sizeof in; i++) in[i] = (uint8_t)(i % 3 == 0 ? 0 : i % 3 == 1 ? 255 : 137);
  for (int from = 1; from <= 40; from++)
    for (int to = 1; to <= 40; to += 3) {
      memset(out, 1, sizeof out);
      cr_assert_eq(tf_resize_bicubic(in, from, 41 - from, out, to, 41 - to, NULL), TF_OK);
      for (int i = 0; i < to * (41 - to) * 3; i++) cr_assert_eq(out[i], in[i % 3], "%d to %d", from, to);
    }
}

/* Long rows take both the full and the partial column blocks; the answer must not depend on where a block ends. */
Test(resize, columns_are_independent_of_their_neighbours) {
  enum { WIDTH = 50, HEIGHT = 30, OUT_HEIGHT = 11 };
  static uint8_t in[WIDTH * HEIGHT * 3], out[WIDTH * OUT_HEIGHT * 3];
  fill_noise(in, sizeof in, 2);
  cr_assert_eq(tf_resize_bicubic(in, WIDTH, HEIGHT, out, WIDTH, OUT_HEIGHT, NULL), TF_OK);
  for (int x = 0; x < WIDTH; x++) {
    uint8_t column[HEIGHT * 3], alone[OUT_HEIGHT * 3];
    for (int y = 0; y < HEIGHT; y++) memcpy(column + 3 * y, in + 3 * (y * WIDTH + x), 3);
    cr_assert_eq(tf_resize_bicubic(column, 1, HEIGHT, alone, 1, OUT_HEIGHT, NULL), TF_OK);
    for (int y = 0; y < OUT_HEIGHT; y++) cr_assert_arr_eq(alone + 3 * y, out + 3 * (y * WIDTH + x), 3);
  }
}

Test(resize, one_pixel_fills_any_size) {
  const uint8_t in[3] = {10, 20, 30};
  uint8_t out[9 * 4 * 3];
  cr_assert_eq(tf_resize_bicubic(in, 1, 1, out, 9, 4, NULL), TF_OK);
  for (size_t i = 0; i < sizeof out; i++) cr_assert_eq(out[i], in[i % 3]);
}

Test(resize, sides_out_of_range_are_refused) {
  uint8_t pixel[3] = {0};
  const int32_t sides[] = {0, -1, INT32_MIN, TF_RESIZE_SIDE_MAX + 1, INT32_MAX};
  for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
    tf_error error = {0};
    cr_assert_eq(tf_resize_bicubic(pixel, sides[i], 1, pixel, 1, 1, &error), TF_ERR_INVALID_ARGUMENT);
    cr_assert_eq(tf_resize_bicubic(pixel, 1, sides[i], pixel, 1, 1, &error), TF_ERR_INVALID_ARGUMENT);
    cr_assert_eq(tf_resize_bicubic(pixel, 1, 1, pixel, sides[i], 1, &error), TF_ERR_INVALID_ARGUMENT);
    cr_assert_eq(tf_resize_bicubic(pixel, 1, 1, pixel, 1, sides[i], &error), TF_ERR_INVALID_ARGUMENT);
    cr_assert(strlen(error.text) > 0);
  }
}

/* Antialiased bicubic resize. In: RGB rows, two sizes. Out: RGB rows, rounded as Pillow rounds.
 * Rows are convolved first, into 8-bit intermediate pixels, then columns; weights are doubles, normalised, then 22-bit
 * fixed point. The order of these steps decides the last bit, so it is kept even where another would be faster. */
#include "image/resize.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
  CHANNELS = 3,
  PRECISION_BITS = 32 - 8 - 2, /* 8 for the pixel, 2 of room for the overshoot of a cubic */
  HALF = 1 << (PRECISION_BITS - 1),
  COLUMNS_AT_ONCE = 64 /* bytes of a row summed together: a fixed count that compilers vectorise */
};
static const double CUBIC_A = -0.5, CUBIC_SUPPORT = 2.0;

/* Which input pixels make each output pixel, along one axis. */
typedef struct axis {
  int32_t out_size, taps_max;
  int32_t *first;   /* [out_size] first input pixel */
  int32_t *taps;    /* [out_size] how many, 1..taps_max */
  int32_t *weights; /* [out_size, taps_max] fixed point, summing to about 1 << PRECISION_BITS */
} axis;

/* Keys' cubic. */
static double cubic(double x) {
  x = x < 0 ? -x : x;
  if (x < 1) return ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * CUBIC_A;
  return 0;
}

static void axis_free(axis *self) {
  free(self->first);
  free(self->taps);
  free(self->weights);
  memset(self, 0, sizeof *self);
}

/* Weights of one output pixel; reals: [taps_max] scratch. The filter is stretched by the scale when shrinking. */
static void axis_fill(axis *self, int32_t at, int32_t in_size, double *reals) {
  double scale = (double)in_size / self->out_size;
  double stretch = scale < 1 ? 1 : scale;
  double support = CUBIC_SUPPORT * stretch, shrink = 1 / stretch;
  double center = (at + 0.5) * scale;
  int32_t first = (int32_t)(center - support + 0.5), end = (int32_t)(center + support + 0.5);
  if (first < 0) first = 0;
  if (end > in_size) end = in_size;
  double sum = 0;
  for (int32_t i = 0; i < end - first; i++) {
    reals[i] = cubic((i + first - center + 0.5) * shrink);
    sum += reals[i];
  }
  self->first[at] = first;
  self->taps[at] = end - first;
  for (int32_t i = 0; i < end - first; i++) {
    double weight = (sum != 0 ? reals[i] / sum : reals[i]) * (1 << PRECISION_BITS);
    self->weights[(size_t)at * (size_t)self->taps_max + (size_t)i] =
        (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
  }
}

static bool axis_init(axis *self, int32_t in_size, int32_t out_size) {
  memset(self, 0, sizeof *self);
  double scale = (double)in_size / out_size, support = CUBIC_SUPPORT * (scale < 1 ? 1 : scale);
  int32_t whole = (int32_t)support;
  self->out_size = out_size;
  self->taps_max = (whole < support ? whole + 1 : whole) * 2 + 1;
  size_t count = (size_t)out_size;
  self->first = malloc(count * sizeof *self->first);
  self->taps = malloc(count * sizeof *self->taps);
  self->weights = malloc(count * (size_t)self->taps_max * sizeof *self->weights);
  double *reals = malloc((size_t)self->taps_max * sizeof *reals);
  bool ok = self->first != NULL && self->taps != NULL && self->weights != NULL && reals != NULL;
  for (int32_t i = 0; ok && i < out_size; i++) axis_fill(self, i, in_size, reals);
  free(reals);
  if (!ok) axis_free(self);
  return ok;
}

static inline uint8_t clip8(int32_t sum) {
  int32_t value = sum >> PRECISION_BITS;
  return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* in: [rows, in_width, 3] -> out: [rows, axis.out_size, 3]. Sums fit: 255 * sum |weights| < 255 * 1.3 * 2^22 < 2^31. */
static void resize_rows(const axis *self, const uint8_t *in, int32_t in_width, int32_t rows, uint8_t *out) {
  for (int32_t y = 0; y < rows; y++, in += (size_t)in_width * CHANNELS)
    for (int32_t x = 0; x < self->out_size; x++, out += CHANNELS) {
      const int32_t *weights = self->weights + (size_t)x * (size_t)self->taps_max;
      const uint8_t *pixel = in + (size_t)self->first[x] * CHANNELS;
      int32_t red = HALF, green = HALF, blue = HALF;
      for (int32_t i = 0; i < self->taps[x]; i++, pixel += CHANNELS) {
        red += pixel[0] * weights[i];
        green += pixel[1] * weights[i];
        blue += pixel[2] * weights[i];
      }
      out[0] = clip8(red);
      out[1] = clip8(green);
      out[2] = clip8(blue);
    }
}

/* out[i] = the weighted sum of taps rows at column i, for i < count; in: first row, row_bytes from row to row. */
static void sum_columns(const uint8_t *in, size_t row_bytes, const int32_t *weights, int32_t taps, int count,
                        uint8_t *out) {
  int32_t sums[COLUMNS_AT_ONCE];
  for (int i = 0; i < COLUMNS_AT_ONCE; i++) sums[i] = HALF;
  for (int32_t t = 0; t < taps; t++, in += row_bytes) {
    int32_t weight = weights[t];
    if (count == COLUMNS_AT_ONCE)
      for (int i = 0; i < COLUMNS_AT_ONCE; i++) sums[i] += in[i] * weight;
    else
      for (int i = 0; i < count; i++) sums[i] += in[i] * weight;
  }
  for (int i = 0; i < count; i++) out[i] = clip8(sums[i]);
}

/* in: [in_height, row_bytes] -> out: [axis.out_size, row_bytes] */
static void resize_columns(const axis *self, const uint8_t *in, size_t row_bytes, uint8_t *out) {
  for (int32_t y = 0; y < self->out_size; y++, out += row_bytes) {
    const int32_t *weights = self->weights + (size_t)y * (size_t)self->taps_max;
    const uint8_t *rows = in + (size_t)self->first[y] * row_bytes;
    for (size_t column = 0; column < row_bytes; column += COLUMNS_AT_ONCE) {
      size_t rest = row_bytes - column;
      int count = rest < COLUMNS_AT_ONCE ? (int)rest : COLUMNS_AT_ONCE;
      sum_columns(rows + column, row_bytes, weights, self->taps[y], count, out + column);
    }
  }
}

static bool side_is_valid(int32_t side) {
  return side >= 1 && side <= TF_RESIZE_SIDE_MAX;
}

tf_code tf_resize_bicubic(const uint8_t *in, int32_t in_width, int32_t in_height, uint8_t *out, int32_t out_width,
                          int32_t out_height, tf_error *error) {
  if (!side_is_valid(in_width) || !side_is_valid(in_height) || !side_is_valid(out_width) || !side_is_valid(out_height))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "resize from %d x %d to %d x %d pixels: sides are 1 to %d", in_width,
                   in_height, out_width, out_height, TF_RESIZE_SIDE_MAX);
  size_t in_row_bytes = (size_t)in_width * CHANNELS, out_row_bytes = (size_t)out_width * CHANNELS;
  /* A pass that would change nothing is left out, as Pillow does; its weights would be 0, 1, 0 anyway. */
  bool rows = in_width != out_width, columns = in_height != out_height;
  axis horizontal = {0}, vertical = {0};
  uint8_t *between = NULL;
  bool ok = (!rows || axis_init(&horizontal, in_width, out_width)) &&
            (!columns || axis_init(&vertical, in_height, out_height)) &&
            (!rows || !columns || (between = malloc((size_t)in_height * out_row_bytes)) != NULL);
  if (ok) {
    if (rows) resize_rows(&horizontal, in, in_width, in_height, columns ? between : out);
    if (columns) resize_columns(&vertical, rows ? between : in, out_row_bytes, out);
    if (!rows && !columns) memcpy(out, in, in_row_bytes * (size_t)in_height);
  }
  free(between);
  axis_free(&horizontal);
  axis_free(&vertical);
  if (!ok) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to resize %d x %d pixels", in_width, in_height);
  return TF_OK;
}

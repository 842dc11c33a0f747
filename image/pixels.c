/* What the decoders share: limits, memory, transparency over white, warnings.
 * In: sizes from a header, pixels. Out: codes, blocks of pixels.
 * Pure but for the allocation. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "image/formats.h"

tf_code tf_pixels_check(const char *format, int64_t width, int64_t height, const tf_image_limits *limits,
                        tf_error *error) {
  if (width < 1 || height < 1)
    return tf_fail(error, TF_ERR_IMAGE_CORRUPT, "%s of %lld x %lld pixels", format, (long long)width,
                   (long long)height);
  if (width > INT32_MAX || height > INT32_MAX || width > limits->pixels_max / height)
    return tf_fail(error, TF_ERR_IMAGE_TOO_LARGE, "%s of %lld x %lld pixels; the limit is %lld pixels", format,
                   (long long)width, (long long)height, (long long)limits->pixels_max);
  return TF_OK;
}

tf_code tf_pixels_allocate(int64_t width, int64_t height, int bytes_per_pixel, uint8_t **out, tf_error *error) {
  size_t pixels = (size_t)width * (size_t)height;
  *out = pixels > SIZE_MAX / (size_t)bytes_per_pixel ? NULL : malloc(pixels * (size_t)bytes_per_pixel);
  if (*out != NULL) return TF_OK;
  return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for %lld x %lld pixels", (long long)width, (long long)height);
}

/* colour * alpha + white * (255 - alpha), divided by 255 and rounded. */
static uint8_t over_white(unsigned colour, unsigned alpha) {
  unsigned sum = colour * alpha + 255 * (255 - alpha) + 128;
  return (uint8_t)((sum + (sum >> 8)) >> 8);
}

void tf_pixels_over_white(uint8_t *pixels, size_t count) {
  uint8_t *to = pixels; /* never ahead of from */
  for (const uint8_t *from = pixels, *end = pixels + 4 * count; from < end; from += 4, to += 3) {
    unsigned red = from[0], green = from[1], blue = from[2], alpha = from[3];
    to[0] = over_white(red, alpha);
    to[1] = over_white(green, alpha);
    to[2] = over_white(blue, alpha);
  }
}

uint8_t *tf_pixels_shrink(uint8_t *pixels, size_t count) {
  uint8_t *smaller = realloc(pixels, count * 3);
  return smaller != NULL ? smaller : pixels;
}

void tf_image_warn(tf_image *self, const char *format, ...) {
  if (self->warned) return;
  self->warned = true;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(self->warning, sizeof self->warning, format, arguments);
  va_end(arguments);
}

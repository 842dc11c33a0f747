/* JPEG bytes to RGB pixels through libjpeg-turbo. In: the bytes of one file, limits. Out: RGB as stored, and the
 * orientation. Never aborts, prints or leaks: libjpeg's fatal errors come back as codes, its warnings as text in the
 * image. Formats: baseline and progressive (and arithmetic-coded, where libjpeg has it), grey, YCbCr, RGB, CMYK, YCCK;
 * 8 bits. */
#ifndef TF_IMAGE_JPEG_H
#define TF_IMAGE_JPEG_H

#include "image/image.h"

/* data: starts with a JPEG's FF D8. *orientation: EXIF's 1..8, not applied to the pixels. out is zeroed on failure.
 * Errors as tf_image_decode's. The caller frees out with tf_image_free. */
tf_code tf_jpeg_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                       tf_error *error);

/* The numerator of libjpeg's scale (eighths: 1, 2, 4 or 8) for a picture whose shorter side is side_pixels.
 * Exposed for the tests. side_wanted 0: no scaling. */
int tf_jpeg_scale_eighths(int64_t side_pixels, int32_t side_wanted);

#endif

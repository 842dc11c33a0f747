/* Image bytes to upright RGB pixels. In: the bytes of one file, limits. Out: 8-bit RGB, dense rows, orientation
 * applied, transparency over white. JPEG, PNG, WebP, HEIC, AVIF, GIF, TIFF, told by content, not by name; of several
 * pictures the first. Colour profiles and gamma are not applied, as in Pillow. Never aborts, exits or prints. No I/O.
 */
#ifndef TF_IMAGE_IMAGE_H
#define TF_IMAGE_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

typedef struct tf_image {
  int32_t width, height; /* after orientation, before any further resize */
  uint8_t *rgb;          /* [height, width, 3], malloc'ed; tf_image_free */
  bool warned;           /* the decoder forgave something; warning says what */
  char warning[200];
} tf_image;

typedef struct tf_image_limits {
  int64_t pixels_max;  /* from the header, before memory is taken: TF_ERR_IMAGE_TOO_LARGE. Formats other than JPEG
                        * take up to 16 bytes of memory a pixel while they are decoded */
  int32_t side_wanted; /* the shorter side may shrink to no less than this (JPEG DCT scaling); 0: full size */
} tf_image_limits;

/* Errors: IMAGE_EMPTY, IMAGE_UNSUPPORTED, IMAGE_TOO_LARGE, IMAGE_CORRUPT, IMAGE_TRUNCATED, OUT_OF_MEMORY. */
tf_code tf_image_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out,
                        tf_error *error);
void tf_image_free(tf_image *self);

#endif

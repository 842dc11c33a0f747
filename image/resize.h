/* Antialiased bicubic resize of 8-bit RGB, equal to Pillow's Image.resize((w, h), BICUBIC) bit by bit.
 * In: RGB rows, two sizes. Out: RGB rows.
 * Source: the published algorithm of Pillow's resampling (convolution in two passes, fixed-point weights). */
#ifndef TF_IMAGE_RESIZE_H
#define TF_IMAGE_RESIZE_H

#include <stdint.h>

#include "common/error.h"

/* Larger sides are refused: they bound every product below. */
enum { TF_RESIZE_SIDE_MAX = 1 << 20 };

/* in: [in_height, in_width, 3]; out: [out_height, out_width, 3], may not overlap in. Sides 1..TF_RESIZE_SIDE_MAX.
 * Errors: INVALID_ARGUMENT (a side out of range), OUT_OF_MEMORY. Scratch: out_width * in_height * 3 bytes, freed again.
 */
tf_code tf_resize_bicubic(const uint8_t *in, int32_t in_width, int32_t in_height, uint8_t *out, int32_t out_width,
                          int32_t out_height, tf_error *error);

#endif

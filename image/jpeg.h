/* How far a JPEG is scaled down while it is decoded. In: its shorter side, the side wanted. Out: eighths.
 * Exposed for the tests; the decoder itself is declared in formats.h.
 * Pure. */
#ifndef TF_IMAGE_JPEG_H
#define TF_IMAGE_JPEG_H

#include <stdint.h>

/* The numerator of libjpeg's scale (eighths: 1, 2, 4 or 8) for a picture whose shorter side is side_pixels.
 * side_wanted 0: no scaling. */
int tf_jpeg_scale_eighths(int64_t side_pixels, int32_t side_wanted);

#endif

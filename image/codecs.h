/* What keeps the codecs inside HEIC and AVIF within bounds: libheif's own limits are on the container's word only.
 * In: the bytes of a file. Out: the size that a bitstream in it claims; a decoder for AV1.
 * For heif.c only. */
#ifndef TF_IMAGE_CODECS_H
#define TF_IMAGE_CODECS_H

#include <stddef.h>
#include <stdint.h>

enum { TF_AV1_PIXELS_MAX = 1 << 28 }; /* a frame; larger ones are refused by libdav1d */

/* Makes libheif decode AV1 by av1.c. May be called often, from any thread. */
void tf_av1_register(void);

/* The most pixels that any HEVC sequence parameter set in the file claims; 0: there is none. Pure. */
int64_t tf_hevc_pixels_max(const uint8_t *data, size_t size);

#endif

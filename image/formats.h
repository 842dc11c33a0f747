/* The decoders, one file a format, and what they share. In: the bytes of one file whose kind is told, limits.
 * Out: RGB pixels as stored, and the orientation that is still to be applied.
 * For image.c and the decoders only; everybody else calls tf_image_decode. */
#ifndef TF_IMAGE_FORMATS_H
#define TF_IMAGE_FORMATS_H

#include "image/image.h"

/* data: starts with the format's signature. *orientation: EXIF's 1..8, not applied to the pixels; it is 1 on entry.
 * out is zeroed on failure. Errors as tf_image_decode's. The caller frees out with tf_image_free. */
typedef tf_code (*tf_image_decoder)(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out,
                                    int *orientation, tf_error *error);

/* Baseline, progressive and arithmetic-coded; grey, YCbCr, RGB, CMYK, YCCK; 8 bits. */
tf_code tf_jpeg_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                       tf_error *error);
/* Every colour type and depth; of 16 bits the upper 8, as in Pillow. Interlaced, too. Orientation from eXIf. */
tf_code tf_png_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                      tf_error *error);
/* Lossy and lossless; of an animation the first frame on its canvas. */
tf_code tf_webp_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                       tf_error *error);
/* The primary item of HEIC and AVIF. The container's rotation, mirror and crop are applied by libheif, so the
 * orientation stays 1: an EXIF block there repeats what the container says. */
tf_code tf_heif_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                       tf_error *error);
/* The first frame on its canvas; what it does not cover, and what is transparent, is white. */
tf_code tf_gif_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                      tf_error *error);
/* The first picture: what libtiff's RGBA interface reads (strips, tiles, planes, 1 to 16 bits, palette, CMYK, YCbCr,
 * every compression that Debian's libtiff has). */
tf_code tf_tiff_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                       tf_error *error);

/* IMAGE_CORRUPT for a side below 1, IMAGE_TOO_LARGE past limits->pixels_max or past INT32_MAX a side. */
tf_code tf_pixels_check(const char *format, int64_t width, int64_t height, const tf_image_limits *limits,
                        tf_error *error);
/* width x height (checked before) times bytes_per_pixel, malloc'ed; *out NULL on failure. */
tf_code tf_pixels_allocate(int64_t width, int64_t height, int bytes_per_pixel, uint8_t **out, tf_error *error);
/* [count, 4] RGBA, straight alpha -> [count, 3] RGB over white, in place; rounded as Pillow's alpha_composite. */
void tf_pixels_over_white(uint8_t *pixels, size_t count);
/* Gives back what is past [count, 3]. Returns the block, which may have moved. */
uint8_t *tf_pixels_shrink(uint8_t *pixels, size_t count);
/* Keeps the first warning; the others follow from it. */
void tf_image_warn(tf_image *self, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif

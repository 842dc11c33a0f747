/* Small JPEGs of pictures, for a page that shows many. In: the bytes of a picture of any format that is read.
 * Out: the bytes of a JPEG, its longer side bounded. No I/O. */
#ifndef TF_IMAGE_THUMBNAIL_H
#define TF_IMAGE_THUMBNAIL_H

#include "common/buffer.h"
#include "common/error.h"
#include "image/image.h"

/* Appends a JPEG (baseline, 4:2:0) whose longer side is at most side_max pixels, never more than the picture's own.
 * Errors as tf_image_decode's, TF_ERR_OUT_OF_MEMORY also where out is full. */
tf_code tf_thumbnail(const uint8_t *data, size_t size, int64_t pixels_max, int32_t side_max, tf_buffer *out,
                     tf_error *error);

#endif

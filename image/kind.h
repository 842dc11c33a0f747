/* Which picture format some bytes are, told by the bytes alone. In: the head of a file. Out: a kind and a name.
 * Shared by the decoder and by the walk over folders (a file without an extension may be a picture).
 * Pure: no I/O, no allocation. */
#ifndef TF_IMAGE_KIND_H
#define TF_IMAGE_KIND_H

#include <stddef.h>
#include <stdint.h>

enum { TF_IMAGE_HEAD_BYTES = 256 }; /* this many from the start of a file are enough to tell */

typedef enum tf_image_kind {
  TF_IMAGE_UNKNOWN, /* nothing that is known */
  TF_IMAGE_FOREIGN, /* known by name only, e.g. a PDF */
  TF_IMAGE_JPEG,    /* this and what follows are read */
  TF_IMAGE_PNG,
  TF_IMAGE_WEBP,
  TF_IMAGE_HEIF, /* HEIC and AVIF, too */
  TF_IMAGE_GIF,
  TF_IMAGE_TIFF,
  TF_IMAGE_KIND_COUNT
} tf_image_kind;

#define TF_IMAGE_KINDS_TEXT "JPEG, PNG, WebP, HEIC, AVIF, GIF and TIFF"

/* *name: for a sentence "this is ...", e.g. "PNG", "a ZIP archive"; NULL for TF_IMAGE_UNKNOWN. Static storage. */
tf_image_kind tf_image_kind_tell(const uint8_t *data, size_t size, const char **name);

/* True for a kind that tf_image_decode reads. */
static inline int tf_image_kind_is_read(tf_image_kind kind) {
  return kind >= TF_IMAGE_JPEG;
}

#endif

/* Image decoding by content. In: the bytes of one file, limits. Out: upright RGB pixels, or an error that names what
 * is wrong. Each format has a file of its own; here the bytes are told apart and the picture is turned upright.
 * No I/O. */
#include "image/image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/formats.h"
#include "image/kind.h"

static const tf_image_decoder decoders[TF_IMAGE_KIND_COUNT] = {
    [TF_IMAGE_JPEG] = tf_jpeg_decode, [TF_IMAGE_PNG] = tf_png_decode, [TF_IMAGE_WEBP] = tf_webp_decode,
    [TF_IMAGE_HEIF] = tf_heif_decode, [TF_IMAGE_GIF] = tf_gif_decode, [TF_IMAGE_TIFF] = tf_tiff_decode,
};

static tf_code fail_unsupported(const uint8_t *data, size_t size, const char *name, tf_error *error) {
  if (name != NULL)
    return tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED, "this is %s; " TF_IMAGE_KINDS_TEXT " are read", name);
  char head[16] = "";
  for (size_t i = 0; i < size && i < 4; i++) snprintf(head + 3 * i, sizeof head - 3 * i, " %02x", data[i]);
  return tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED,
                 "%zu byte%s of no known image format (the first:%s); " TF_IMAGE_KINDS_TEXT " are read", size,
                 size == 1 ? "" : "s", head);
}

/* Turns the pixels upright. The pixel that goes to (x, y) lies at start + x * step_x + y * step_y in the stored
 * picture: the eight orientations are the eight ways to choose these three. */
static tf_code turn_upright(tf_image *image, int orientation, tf_error *error) {
  if (orientation <= 1 || orientation > 8) return TF_OK;
  ptrdiff_t width = image->width, height = image->height;
  bool turned = orientation >= 5; /* rows become columns */
  bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  ptrdiff_t along_row = from_right ? -1 : 1, along_column = from_bottom ? -width : width;
  ptrdiff_t start = (from_right ? width - 1 : 0) + (from_bottom ? (height - 1) * width : 0);
  ptrdiff_t step_x = turned ? along_column : along_row, step_y = turned ? along_row : along_column;

  uint8_t *rgb = malloc((size_t)width * (size_t)height * 3);
  if (rgb == NULL)
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to turn %td x %td pixels upright", width, height);
  ptrdiff_t columns = turned ? height : width, rows = turned ? width : height;
  uint8_t *to = rgb;
  for (ptrdiff_t y = 0; y < rows; y++)
    for (ptrdiff_t x = 0; x < columns; x++, to += 3) {
      const uint8_t *from = image->rgb + 3 * (start + x * step_x + y * step_y);
      to[0] = from[0];
      to[1] = from[1];
      to[2] = from[2];
    }
  free(image->rgb);
  image->rgb = rgb;
  image->width = (int32_t)columns;
  image->height = (int32_t)rows;
  return TF_OK;
}

tf_code tf_image_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out,
                        tf_error *error) {
  memset(out, 0, sizeof *out);
  if (size == 0) return tf_fail(error, TF_ERR_IMAGE_EMPTY, "the image has no bytes");
  const char *name;
  tf_image_decoder decode = decoders[tf_image_kind_tell(data, size, &name)];
  if (decode == NULL) return fail_unsupported(data, size, name, error);
  int orientation = 1;
  tf_code code = decode(data, size, limits, out, &orientation, error);
  if (code == TF_OK) code = turn_upright(out, orientation, error);
  if (code != TF_OK) tf_image_free(out);
  return code;
}

void tf_image_free(tf_image *self) {
  free(self->rgb);
  memset(self, 0, sizeof *self);
}

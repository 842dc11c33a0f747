/* Image decoding by content. In: the bytes of one file, limits. Out: upright RGB pixels, or an error that names what
 * the bytes are. JPEG is what is read today; every other format is recognised only to be named. No I/O. */
#include "image/image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/jpeg.h"

typedef struct signature {
  size_t offset, size;
  const char *bytes, *name;
} signature;

#define SIGNATURE(offset, bytes, name)                                                                                 \
  { offset, sizeof(bytes) - 1, bytes, name }
/* The first that fits counts, so the longer ones of a family come first. */
static const signature signatures[] = {
    SIGNATURE(0, "\x89PNG\r\n\x1a\n", "PNG"),
    SIGNATURE(0, "GIF87a", "GIF"),
    SIGNATURE(0, "GIF89a", "GIF"),
    SIGNATURE(8, "WEBP", "WebP"),
    SIGNATURE(4, "ftypavif", "AVIF"),
    SIGNATURE(4, "ftypavis", "AVIF"),
    SIGNATURE(4, "ftypheic", "HEIC"),
    SIGNATURE(4, "ftypheix", "HEIC"),
    SIGNATURE(4, "ftyphevc", "HEIC"),
    SIGNATURE(4, "ftypmif1", "HEIC"),
    SIGNATURE(4, "ftypmsf1", "HEIC"),
    SIGNATURE(4, "ftypcrx ", "Canon raw"),
    SIGNATURE(4, "ftyp", "a video (MP4 family)"),
    SIGNATURE(0, "\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    SIGNATURE(0, "\xff\x0a", "JPEG XL"),
    SIGNATURE(0, "\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    SIGNATURE(0, "\xff\x4f\xff\x51", "JPEG 2000"),
    SIGNATURE(0, "II*\0", "TIFF or camera raw"),
    SIGNATURE(0, "MM\0*", "TIFF or camera raw"),
    SIGNATURE(0, "8BPS", "Photoshop"),
    SIGNATURE(0, "\0\0\1\0", "an icon (ICO)"),
    SIGNATURE(0, "BM", "BMP"),
    SIGNATURE(0, "%PDF-", "PDF"),
    SIGNATURE(0, "PK\3\4", "a ZIP archive"),
    SIGNATURE(0, "\x1f\x8b", "gzip data"),
    SIGNATURE(0, "\x1a\x45\xdf\xa3", "a video (Matroska)"),
    SIGNATURE(0, "RIFF", "RIFF data (audio or video)"),
};

static bool starts_with_ignoring_case(const uint8_t *data, size_t size, const char *word) {
  size_t length = strlen(word);
  if (size < length) return false;
  for (size_t i = 0; i < length; i++)
    if ((data[i] | 0x20) != (word[i] | 0x20)) return false;
  return true;
}

/* Text of some kind, or NULL. Only the first bytes are looked at. */
static const char *text_kind(const uint8_t *data, size_t size) {
  enum { LOOK_BYTES_MAX = 256 };
  size_t look = size < LOOK_BYTES_MAX ? size : LOOK_BYTES_MAX, at = 0;
  if (look >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0) at = 3; /* byte order mark */
  for (size_t i = at; i < look; i++) {
    bool control = data[i] == 0x7f || (data[i] < 0x20 && strchr("\t\n\f\r", data[i] ? data[i] : 1) == NULL);
    bool never_in_utf8 = data[i] == 0xc0 || data[i] == 0xc1 || data[i] >= 0xf5;
    if (control || never_in_utf8) return NULL;
  }
  while (at < look && strchr(" \t\n\f\r", data[at] ? data[at] : 1) != NULL) at++;
  const uint8_t *word = data + at;
  size_t rest = look - at;
  if (starts_with_ignoring_case(word, rest, "<!doctype html") || starts_with_ignoring_case(word, rest, "<html"))
    return "an HTML page";
  if (starts_with_ignoring_case(word, rest, "<svg")) return "SVG";
  if (starts_with_ignoring_case(word, rest, "<?xml")) return "XML (perhaps SVG)";
  return "text";
}

static tf_code fail_unsupported(const uint8_t *data, size_t size, tf_error *error) {
  const char *name = NULL;
  for (size_t i = 0; i < sizeof signatures / sizeof *signatures && name == NULL; i++) {
    const signature *s = &signatures[i];
    if (size >= s->offset && size - s->offset >= s->size && memcmp(data + s->offset, s->bytes, s->size) == 0)
      name = s->name;
  }
  if (name == NULL) name = text_kind(data, size);
  if (name != NULL) return tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED, "this is %s; JPEG is what is read", name);
  char head[16] = "";
  for (size_t i = 0; i < size && i < 4; i++) snprintf(head + 3 * i, sizeof head - 3 * i, " %02x", data[i]);
  return tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED,
                 "%zu byte%s of no known image format (the first:%s); JPEG is what is read", size, size == 1 ? "" : "s",
                 head);
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
  if (size < 2 || data[0] != 0xFF || data[1] != 0xD8) return fail_unsupported(data, size, error);
  int orientation;
  tf_code code = tf_jpeg_decode(data, size, limits, out, &orientation, error);
  if (code == TF_OK) code = turn_upright(out, orientation, error);
  if (code != TF_OK) tf_image_free(out);
  return code;
}

void tf_image_free(tf_image *self) {
  free(self->rgb);
  memset(self, 0, sizeof *self);
}

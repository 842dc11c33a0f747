/* TIFF decoding through libtiff's RGBA interface. In: the bytes of one file in memory, limits. Out: RGB rows,
 * transparency over white, orientation. Only the first picture is read; libtiff's allocations are bounded by the size
 * that the header names, its messages come back as codes and warnings. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tiffio.h>

#include "image/formats.h"

enum {
  BYTES_PER_PIXEL_MAX = 8,       /* four samples of 16 bits: a strip may be the whole picture */
  ALLOCATION_SPARE = 16 << 20,   /* for tables, and tiles larger than the picture */
  DIRECTORY_BYTES_MAX = 16 << 20 /* until the size is known */
};

typedef struct tiff_decoder {
  const uint8_t *data;
  uint64_t size, at;
  bool ended; /* libtiff asked for bytes past the end */
  bool failed;
  char text[256]; /* the first error's */
  tf_image image;
} tiff_decoder;

/* ---- the source ---- */

static tmsize_t on_read(thandle_t handle, void *out, tmsize_t count) {
  tiff_decoder *self = handle;
  uint64_t rest = self->at < self->size ? self->size - self->at : 0, taken = count < 0 ? 0 : (uint64_t)count;
  if (taken > rest) {
    taken = rest;
    self->ended = true;
  }
  if (taken > 0) memcpy(out, self->data + self->at, taken);
  self->at += taken;
  return (tmsize_t)taken;
}

static tmsize_t on_write(thandle_t handle, void *data, tmsize_t count) {
  (void)handle, (void)data, (void)count;
  return -1;
}

static toff_t on_seek(thandle_t handle, toff_t offset, int whence) {
  tiff_decoder *self = handle;
  uint64_t base = whence == SEEK_CUR ? self->at : whence == SEEK_END ? self->size : 0;
  if (offset > INT64_MAX || base > INT64_MAX - offset) return (toff_t)-1;
  self->at = base + offset;
  return self->at;
}

static int on_close(thandle_t handle) {
  (void)handle;
  return 0;
}

static toff_t on_size(thandle_t handle) {
  return ((tiff_decoder *)handle)->size;
}

/* ---- messages: 1 keeps libtiff from printing them ---- */

static int on_error(TIFF *tiff, void *context, const char *module, const char *format, va_list arguments) {
  (void)tiff, (void)module;
  tiff_decoder *self = context;
  if (self->failed) return 1; /* the first says most */
  self->failed = true;
  vsnprintf(self->text, sizeof self->text, format, arguments);
  return 1;
}

static int on_warning(TIFF *tiff, void *context, const char *module, const char *format, va_list arguments) {
  (void)tiff, (void)module;
  tiff_decoder *self = context;
  char text[160];
  vsnprintf(text, sizeof text, format, arguments);
  if (strncmp(text, "Unknown field", 13) != 0)
    tf_image_warn(&self->image, "TIFF: %s", text); /* every camera has some */
  return 1;
}

static TIFF *open_tiff(tiff_decoder *self, tmsize_t allocation_max) {
  TIFFOpenOptions *options = TIFFOpenOptionsAlloc();
  if (options == NULL) return NULL;
  TIFFOpenOptionsSetMaxSingleMemAlloc(options, allocation_max);
  TIFFOpenOptionsSetErrorHandlerExtR(options, on_error, self);
  TIFFOpenOptionsSetWarningHandlerExtR(options, on_warning, self);
  self->at = 0;
  /* m: no mapping, so that every read is checked above; O: the first directory only as it is asked for */
  TIFF *tiff =
      TIFFClientOpenExt("picture", "rm", self, on_read, on_write, on_seek, on_close, on_size, NULL, NULL, options);
  TIFFOpenOptionsFree(options);
  if (tiff != NULL && self->failed) { /* of a tag that it can do without */
    self->failed = false;
    tf_image_warn(&self->image, "TIFF: %s", self->text);
    self->text[0] = '\0';
  }
  return tiff;
}

/* ---- the picture ---- */

static tf_code fail_libtiff(const tiff_decoder *self, tf_error *error) {
  const char *text = self->text[0] ? self->text : "damaged data";
  if (strstr(text, "emory") != NULL && strstr(text, "llocat") != NULL)
    return tf_fail(error, TF_ERR_IMAGE_CORRUPT, "TIFF asks for more memory than its size needs: %s", text);
  if (self->ended) return tf_fail(error, TF_ERR_IMAGE_TRUNCATED, "TIFF data end early: %s", text);
  return tf_fail(error, TF_ERR_IMAGE_CORRUPT, "TIFF cannot be decoded: %s", text);
}

static tf_code read_header(TIFF *tiff, const tiff_decoder *self, const tf_image_limits *limits, uint32_t *width,
                           uint32_t *height, tf_error *error) {
  uint32_t subfile = 0;
  uint16_t compression = COMPRESSION_NONE;
  if (!TIFFGetField(tiff, TIFFTAG_IMAGEWIDTH, width) || !TIFFGetField(tiff, TIFFTAG_IMAGELENGTH, height))
    return self->ended ? fail_libtiff(self, error)
                       : tf_fail(error, TF_ERR_IMAGE_CORRUPT, "TIFF without a width and a height");
  if (TIFFGetField(tiff, TIFFTAG_SUBFILETYPE, &subfile) && (subfile & FILETYPE_REDUCEDIMAGE))
    return tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED, "the first picture of this TIFF is a thumbnail (camera raw?)");
  TIFFGetFieldDefaulted(tiff, TIFFTAG_COMPRESSION, &compression);
  if (!TIFFIsCODECConfigured(compression))
    return tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED, "TIFF with compression %u, which is not read", compression);
  return tf_pixels_check("TIFF", *width, *height, limits, error);
}

typedef enum alpha_kind { ALPHA_NONE, ALPHA_STRAIGHT, ALPHA_MULTIPLIED } alpha_kind;

/* What libtiff's words hold: it multiplies straight alpha into colours, but leaves grey as it is.
 * Samples of an unnamed fourth kind are no transparency, whatever libtiff assumes. */
static alpha_kind tell_alpha(TIFF *tiff) {
  uint16_t count = 0, *kinds = NULL, photometric = PHOTOMETRIC_RGB;
  if (!TIFFGetField(tiff, TIFFTAG_EXTRASAMPLES, &count, &kinds) || count == 0 || kinds == NULL) return ALPHA_NONE;
  TIFFGetField(tiff, TIFFTAG_PHOTOMETRIC, &photometric);
  if (kinds[0] == EXTRASAMPLE_ASSOCALPHA) return ALPHA_MULTIPLIED;
  if (kinds[0] != EXTRASAMPLE_UNASSALPHA) return ALPHA_NONE;
  return photometric == PHOTOMETRIC_RGB ? ALPHA_MULTIPLIED : ALPHA_STRAIGHT;
}

/* libtiff's words (red lowest) -> RGBA bytes, or, where alpha is not straight, RGB over white. In place. */
static void unpack(uint8_t *pixels, size_t count, alpha_kind alpha) {
  uint8_t *to = pixels;
  for (size_t i = 0; i < count; i++) {
    uint32_t word;
    memcpy(&word, pixels + 4 * i, sizeof word);
    uint32_t white = alpha == ALPHA_MULTIPLIED ? 255 - TIFFGetA(word) : 0;
    uint32_t colours[3] = {TIFFGetR(word) + white, TIFFGetG(word) + white, TIFFGetB(word) + white};
    for (int c = 0; c < 3; c++) *to++ = (uint8_t)(colours[c] > 255 ? 255 : colours[c]);
    if (alpha == ALPHA_STRAIGHT) *to++ = (uint8_t)TIFFGetA(word);
  }
}

static tf_code read_pixels(TIFF *tiff, tiff_decoder *self, uint32_t width, uint32_t height, tf_error *error) {
  TIFFRGBAImage reader;
  char text[1024] = "";
  if (!TIFFRGBAImageOK(tiff, text) || !TIFFRGBAImageBegin(&reader, tiff, 1, text))
    return self->failed || self->ended
               ? fail_libtiff(self, error)
               : tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED, "TIFF that is not read: %.200s", text);
  reader.req_orientation = reader.orientation; /* rows as stored; the caller turns them */
  tf_code code = tf_pixels_allocate(width, height, 4, &self->image.rgb, error);
  if (code == TF_OK && (!TIFFRGBAImageGet(&reader, (uint32_t *)(void *)self->image.rgb, width, height) || self->failed))
    code = fail_libtiff(self, error);
  TIFFRGBAImageEnd(&reader);
  if (code != TF_OK) return code;
  size_t count = (size_t)width * height;
  alpha_kind alpha = tell_alpha(tiff);
  unpack(self->image.rgb, count, alpha);
  if (alpha == ALPHA_STRAIGHT) tf_pixels_over_white(self->image.rgb, count);
  self->image.rgb = tf_pixels_shrink(self->image.rgb, count);
  self->image.width = (int32_t)width;
  self->image.height = (int32_t)height;
  return TF_OK;
}

/* Opened twice: the first time to learn the size, which then bounds every allocation of the second. */
static tf_code decode(tiff_decoder *self, const tf_image_limits *limits, int *orientation, tf_error *error) {
  TIFF *tiff = open_tiff(self, DIRECTORY_BYTES_MAX);
  if (tiff == NULL) return fail_libtiff(self, error);
  uint32_t width = 0, height = 0;
  tf_code code = read_header(tiff, self, limits, &width, &height, error);
  TIFFClose(tiff);
  if (code != TF_OK) return code;
  int64_t bytes_max = (int64_t)width * height * BYTES_PER_PIXEL_MAX + ALLOCATION_SPARE;
  tiff = open_tiff(self, (tmsize_t)bytes_max);
  if (tiff == NULL) return fail_libtiff(self, error);
  uint16_t turned = 1;
  if (TIFFGetField(tiff, TIFFTAG_ORIENTATION, &turned)) *orientation = turned;
  code = read_pixels(tiff, self, width, height, error);
  TIFFClose(tiff);
  return code;
}

tf_code tf_tiff_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                       tf_error *error) {
  tiff_decoder self = {.data = data, .size = size};
  memset(out, 0, sizeof *out);
  tf_code code = decode(&self, limits, orientation, error);
  if (code == TF_OK)
    *out = self.image;
  else
    tf_image_free(&self.image);
  return code;
}

/* PNG decoding through libpng. In: the bytes of one file in memory, limits. Out: RGB rows, transparency over white.
 * libpng reports failure by a call that must not return; it leaves by longjmp to the one setjmp in tf_png_decode.
 * All state lives in one struct whose address outlives the jump, so no local needs to be volatile. */
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <png.h>

#include "image/exif.h"
#include "image/formats.h"

enum {
  CHUNK_BYTES_MAX = 8 << 20, /* of a chunk that is not pixels */
  DEFLATE_RATIO_MAX = 1032   /* deflate makes at most so many bytes of one */
};

typedef struct png_decoder {
  png_structp png;
  png_infop info;
  const uint8_t *data;
  size_t size, at;
  jmp_buf escape;
  tf_error *error;
  tf_code code;
  tf_image image;
  uint8_t *pixels; /* [height, width, channels] */
  int channels;    /* 3, or 4 with transparency */
  int orientation;
  bool ended;    /* libpng asked for bytes past the end */
  bool complete; /* every row is there: what fails now can be forgiven */
} png_decoder;

static _Noreturn void escape_with(png_decoder *self, tf_code code) {
  self->code = code;
  longjmp(self->escape, 1);
}

static void on_error(png_structp png, png_const_charp text) {
  png_decoder *self = png_get_error_ptr(png);
  bool truncated = self->ended || strcmp(text, "Not enough image data") == 0;
  if (truncated) escape_with(self, tf_fail(self->error, TF_ERR_IMAGE_TRUNCATED, "PNG data end early: %s", text));
  escape_with(self, tf_fail(self->error, TF_ERR_IMAGE_CORRUPT, "PNG cannot be decoded: %s", text));
}

static void on_warning(png_structp png, png_const_charp text) {
  png_decoder *self = png_get_error_ptr(png);
  tf_image_warn(&self->image, "PNG: %s", text);
}

static void on_read(png_structp png, png_bytep out, size_t count) {
  png_decoder *self = png_get_io_ptr(png);
  if (count > self->size - self->at) {
    self->ended = true;
    png_error(png, "no more bytes");
  }
  memcpy(out, self->data + self->at, count);
  self->at += count;
}

/* Chunks that change no pixel here are not even inflated: a small profile may blow up to gigabytes. */
static void ignore_chunks(png_structp png) {
  static const png_byte names[] =
      "cHRM\0gAMA\0iCCP\0sRGB\0bKGD\0hIST\0sPLT\0tEXt\0zTXt\0iTXt\0tIME\0pHYs\0sBIT\0oFFs\0pCAL\0sCAL";
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, names, (int)(sizeof names / 5));
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, 0); /* and those that libpng does not know */
}

static void read_header(png_decoder *self, const tf_image_limits *limits) {
  png_read_info(self->png, self->info);
  int64_t width = png_get_image_width(self->png, self->info), height = png_get_image_height(self->png, self->info);
  tf_code code = tf_pixels_check("PNG", width, height, limits, self->error);
  if (code != TF_OK) escape_with(self, code);
  size_t stored = png_get_rowbytes(self->png, self->info) * (size_t)height;
  if (stored / DEFLATE_RATIO_MAX > self->size)
    escape_with(self, tf_fail(self->error, TF_ERR_IMAGE_TRUNCATED,
                              "PNG of %lld x %lld pixels cannot be complete in %zu bytes", (long long)width,
                              (long long)height, self->size));
  self->image.width = (int32_t)width;
  self->image.height = (int32_t)height;
}

static void read_pixels(png_decoder *self) {
  png_set_expand(self->png); /* palette to RGB, 1, 2 and 4 bits to 8, a transparent colour to alpha */
  png_set_strip_16(self->png);
  png_set_gray_to_rgb(self->png);
  int passes = png_set_interlace_handling(self->png);
  png_read_update_info(self->png, self->info);
  self->channels = png_get_channels(self->png, self->info);
  size_t row_bytes = (size_t)self->image.width * (size_t)self->channels;
  if ((self->channels != 3 && self->channels != 4) || png_get_rowbytes(self->png, self->info) != row_bytes)
    escape_with(self, tf_fail(self->error, TF_ERR_INTERNAL, "libpng gives other rows than asked for"));
  tf_code code = tf_pixels_allocate(self->image.width, self->image.height, self->channels, &self->pixels, self->error);
  if (code != TF_OK) escape_with(self, code);
  for (int pass = 0; pass < passes; pass++)
    for (int32_t y = 0; y < self->image.height; y++)
      png_read_row(self->png, self->pixels + (size_t)y * row_bytes, NULL);
  self->complete = true;
}

static void read_orientation(png_decoder *self) {
  png_uint_32 bytes;
  png_bytep exif;
  if (png_get_eXIf_1(self->png, self->info, &bytes, &exif) != 0)
    self->orientation = tf_exif_tiff_orientation(exif, bytes);
}

static void decode(png_decoder *self, const tf_image_limits *limits) {
  png_set_read_fn(self->png, self, on_read);
  png_set_user_limits(self->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX); /* ours is on pixels */
  png_set_chunk_malloc_max(self->png, CHUNK_BYTES_MAX);
  png_set_benign_errors(self->png, 1); /* warnings */
  ignore_chunks(self->png);
  read_header(self, limits);
  read_pixels(self);
  read_orientation(self);
  png_read_end(self->png, self->info); /* eXIf may follow the pixels */
  read_orientation(self);
}

static void finish(png_decoder *self) {
  size_t count = (size_t)self->image.width * (size_t)self->image.height;
  if (self->channels == 4) {
    tf_pixels_over_white(self->pixels, count);
    self->pixels = tf_pixels_shrink(self->pixels, count);
  }
  self->image.rgb = self->pixels;
}

tf_code tf_png_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                      tf_error *error) {
  png_decoder decoder = {.data = data, .size = size, .error = error, .orientation = 1}, *self = &decoder;
  memset(out, 0, sizeof *out);
  self->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, self, on_error, on_warning);
  self->info = self->png ? png_create_info_struct(self->png) : NULL;
  if (self->info == NULL) {
    png_destroy_read_struct(&self->png, NULL, NULL);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for libpng");
  }
  if (setjmp(self->escape) == 0)
    decode(self, limits);
  else if (self->complete) {
    tf_image_warn(&self->image, "PNG damaged after the last row");
    self->code = TF_OK;
  }
  png_destroy_read_struct(&self->png, &self->info, NULL);
  if (self->code != TF_OK) {
    free(self->pixels);
    return self->code;
  }
  finish(self);
  if (error != NULL) *error = (tf_error){.code = TF_OK};
  *orientation = self->orientation;
  *out = self->image;
  return TF_OK;
}

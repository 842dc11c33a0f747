/* Pictures of every format but JPEG, made for the tests with the libraries' own encoders.
 * In: size, channels, a seed. Out: the bytes of a file, malloc'ed, and the pixels that went in.
 * The pixels: smooth colours with a little texture; channel 3, where there is one, is alpha. */
#ifndef TF_TESTS_PICTURE_WRITERS_H
#define TF_TESTS_PICTURE_WRITERS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <gif_lib.h>
#include <libheif/heif.h>
#include <png.h>
#include <tiffio.h>
#include <webp/encode.h>
#include <webp/mux.h>

typedef struct picture_bytes {
  uint8_t *data;
  size_t size, capacity;
  size_t at; /* of the writers that seek */
} picture_bytes;

static inline void put_bytes(picture_bytes *self, const void *data, size_t size) {
  if (size == 0) return;
  if (self->capacity - self->at < size) {
    self->capacity = (self->at + size) * 2;
    self->data = realloc(self->data, self->capacity);
    cr_assert_not_null(self->data);
  }
  memcpy(self->data + self->at, data, size);
  self->at += size;
  if (self->at > self->size) self->size = self->at;
}

/* [height, width, channels] */
static inline uint8_t *make_pixels(int width, int height, int channels, int seed) {
  uint8_t *pixels = malloc((size_t)width * (size_t)height * (size_t)channels), *at = pixels;
  for (int y = 0; y < height; y++)
    for (int x = 0; x < width; x++)
      for (int c = 0; c < channels; c++) {
        int wave = (x * (3 + c) + y * (5 - c) + (x * y * seed) % 11) % 510;
        *at++ = (uint8_t)(wave < 256 ? wave : 510 - wave);
      }
  return pixels;
}

/* ---- PNG ---- */

static inline void put_png(png_structp png, png_bytep data, size_t size) {
  put_bytes(png_get_io_ptr(png), data, size);
}

/* channels 3 or 4; bits 8 or 16 (then every sample is doubled, so that its upper byte is the pixel's). */
static inline picture_bytes write_png(const uint8_t *pixels, int width, int height, int channels, int bits,
                                      bool interlaced) {
  picture_bytes out = {0};
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(png, &out, put_png, NULL);
  png_set_IHDR(png, info, (png_uint_32)width, (png_uint_32)height, bits,
               channels == 4 ? PNG_COLOR_TYPE_RGBA : PNG_COLOR_TYPE_RGB,
               interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  size_t samples = (size_t)width * (size_t)channels;
  uint8_t *row = malloc(samples * 2);
  int passes = interlaced ? png_set_interlace_handling(png) : 1;
  for (int pass = 0; pass < passes; pass++)
    for (int y = 0; y < height; y++) {
      const uint8_t *from = pixels + (size_t)y * samples;
      for (size_t i = 0; i < samples; i++)
        if (bits == 16)
          row[2 * i] = from[i], row[2 * i + 1] = (uint8_t)(i * 37);
        else
          row[i] = from[i];
      png_write_row(png, row);
    }
  free(row);
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return out;
}

/* ---- WebP ---- */

static inline picture_bytes write_webp(const uint8_t *pixels, int width, int height, int channels, bool lossless) {
  picture_bytes out = {0};
  uint8_t *data = NULL;
  int stride = width * channels;
  if (lossless)
    out.size = channels == 4 ? WebPEncodeLosslessRGBA(pixels, width, height, stride, &data)
                             : WebPEncodeLosslessRGB(pixels, width, height, stride, &data);
  else
    out.size = channels == 4 ? WebPEncodeRGBA(pixels, width, height, stride, 90, &data)
                             : WebPEncodeRGB(pixels, width, height, stride, 90, &data);
  cr_assert_gt(out.size, 0);
  out.data = malloc(out.size); /* so that every file here is free()d */
  memcpy(out.data, data, out.size);
  WebPFree(data);
  return out;
}

/* Two frames on a canvas of 2 * width x 2 * height: the first at (2, 4), the second at the origin. */
static inline picture_bytes write_webp_animation(const picture_bytes *first, const picture_bytes *second, int width,
                                                 int height) {
  WebPMux *mux = WebPMuxNew();
  WebPMuxFrameInfo frame = {.id = WEBP_CHUNK_ANMF, .duration = 100, .x_offset = 2, .y_offset = 4};
  WebPData data;
  frame.bitstream = (WebPData){first->data, first->size};
  cr_assert_eq(WebPMuxPushFrame(mux, &frame, 1), WEBP_MUX_OK);
  frame.bitstream = (WebPData){second->data, second->size};
  frame.x_offset = frame.y_offset = 0;
  cr_assert_eq(WebPMuxPushFrame(mux, &frame, 1), WEBP_MUX_OK);
  cr_assert_eq(WebPMuxSetAnimationParams(mux, &(WebPMuxAnimParams){.bgcolor = 0xFF0000FF}), WEBP_MUX_OK);
  cr_assert_eq(WebPMuxSetCanvasSize(mux, 2 * width, 2 * height), WEBP_MUX_OK);
  cr_assert_eq(WebPMuxAssemble(mux, &data), WEBP_MUX_OK);
  picture_bytes out = {.data = malloc(data.size), .size = data.size};
  memcpy(out.data, data.bytes, data.size);
  WebPDataClear(&data);
  WebPMuxDelete(mux);
  return out;
}

/* ---- GIF ---- */

static inline int put_gif(GifFileType *gif, const GifByteType *data, int size) {
  put_bytes(gif->UserData, data, (size_t)size);
  return size;
}

typedef struct gif_recipe {
  int width, height; /* of the frame */
  int left, top;     /* on a canvas of canvas_width x canvas_height; both 0: the frame's own */
  int canvas_width, canvas_height;
  int transparent; /* palette index, or -1 */
  bool interlaced;
} gif_recipe;

/* Palette of 16: index i is (16 * i, 255 - 16 * i, i). The pixel at (x, y) has index (x + 2 * y) % 16. */
static inline picture_bytes write_gif(const gif_recipe *recipe) {
  picture_bytes out = {0};
  int error = 0;
  GifColorType colours[16];
  for (int i = 0; i < 16; i++) colours[i] = (GifColorType){(uint8_t)(16 * i), (uint8_t)(255 - 16 * i), (uint8_t)i};
  ColorMapObject *map = GifMakeMapObject(16, colours);
  GifFileType *gif = EGifOpen(&out, put_gif, &error);
  EGifSetGifVersion(gif, true);
  cr_assert_eq(EGifPutScreenDesc(gif, recipe->canvas_width ? recipe->canvas_width : recipe->width,
                                 recipe->canvas_height ? recipe->canvas_height : recipe->height, 4, 0, map),
               GIF_OK);
  GraphicsControlBlock control = {.TransparentColor = recipe->transparent};
  GifByteType extension[4];
  EGifGCBToExtension(&control, extension);
  cr_assert_eq(EGifPutExtension(gif, GRAPHICS_EXT_FUNC_CODE, sizeof extension, extension), GIF_OK);
  cr_assert_eq(
      EGifPutImageDesc(gif, recipe->left, recipe->top, recipe->width, recipe->height, recipe->interlaced, NULL),
      GIF_OK);
  static const int firsts[] = {0, 4, 2, 1}, steps[] = {8, 8, 4, 2};
  uint8_t *row = malloc((size_t)recipe->width);
  for (int pass = 0; pass < (recipe->interlaced ? 4 : 1); pass++)
    for (int y = recipe->interlaced ? firsts[pass] : 0; y < recipe->height; y += recipe->interlaced ? steps[pass] : 1) {
      for (int x = 0; x < recipe->width; x++) row[x] = (uint8_t)((x + 2 * y) % 16);
      cr_assert_eq(EGifPutLine(gif, row, recipe->width), GIF_OK);
    }
  free(row);
  cr_assert_eq(EGifCloseFile(gif, &error), GIF_OK);
  GifFreeMapObject(map);
  return out;
}

/* ---- TIFF ---- */

static inline tmsize_t read_tiff(thandle_t handle, void *out, tmsize_t size) {
  picture_bytes *self = handle;
  size_t rest = self->at < self->size ? self->size - self->at : 0, taken = (size_t)size < rest ? (size_t)size : rest;
  memcpy(out, self->data + self->at, taken);
  self->at += taken;
  return (tmsize_t)taken;
}
static inline tmsize_t put_tiff(thandle_t handle, void *data, tmsize_t size) {
  put_bytes(handle, data, (size_t)size);
  return size;
}
static inline toff_t seek_tiff(thandle_t handle, toff_t offset, int whence) {
  picture_bytes *self = handle;
  self->at = (whence == SEEK_CUR ? self->at : whence == SEEK_END ? self->size : 0) + (size_t)offset;
  return self->at;
}
static inline int close_tiff(thandle_t handle) {
  (void)handle;
  return 0;
}
static inline toff_t size_tiff(thandle_t handle) {
  return ((picture_bytes *)handle)->size;
}

typedef struct tiff_recipe {
  int width, height, channels; /* 3, or 4: with extra, else CMYK */
  int bits;                    /* 0: 8 */
  int compression, orientation;
  int tile;  /* 0: strips of 7 rows, else tiles of so many pixels a side */
  int extra; /* -1: none, else EXTRASAMPLE_* */
  bool planar;
} tiff_recipe;

static inline void set_tiff_tags(TIFF *tiff, const tiff_recipe *recipe) {
  TIFFSetField(tiff, TIFFTAG_IMAGEWIDTH, (uint32_t)recipe->width);
  TIFFSetField(tiff, TIFFTAG_IMAGELENGTH, (uint32_t)recipe->height);
  TIFFSetField(tiff, TIFFTAG_SAMPLESPERPIXEL, recipe->channels);
  TIFFSetField(tiff, TIFFTAG_BITSPERSAMPLE, recipe->bits ? recipe->bits : 8);
  bool cmyk = recipe->channels == 4 && recipe->extra < 0;
  TIFFSetField(tiff, TIFFTAG_PHOTOMETRIC, cmyk ? PHOTOMETRIC_SEPARATED : PHOTOMETRIC_RGB);
  TIFFSetField(tiff, TIFFTAG_PLANARCONFIG, recipe->planar ? PLANARCONFIG_SEPARATE : PLANARCONFIG_CONTIG);
  TIFFSetField(tiff, TIFFTAG_COMPRESSION, recipe->compression ? recipe->compression : COMPRESSION_NONE);
  if (recipe->orientation) TIFFSetField(tiff, TIFFTAG_ORIENTATION, recipe->orientation);
  uint16_t extra = (uint16_t)recipe->extra;
  if (recipe->channels == 4 && recipe->extra >= 0) TIFFSetField(tiff, TIFFTAG_EXTRASAMPLES, 1, &extra);
  if (recipe->tile) {
    TIFFSetField(tiff, TIFFTAG_TILEWIDTH, (uint32_t)recipe->tile);
    TIFFSetField(tiff, TIFFTAG_TILELENGTH, (uint32_t)recipe->tile);
  } else {
    TIFFSetField(tiff, TIFFTAG_ROWSPERSTRIP, 7u);
  }
}

/* One strip or tile: rows [top, top + rows) and columns [left, left + columns) of plane `plane` (or all of them). */
static inline uint8_t *cut_block(const uint8_t *pixels, const tiff_recipe *recipe, int left, int top, int columns,
                                 int rows, int plane, size_t *size) {
  int bytes = recipe->bits == 16 ? 2 : 1, channels = recipe->planar ? 1 : recipe->channels;
  uint8_t *block = calloc((size_t)columns * (size_t)rows, (size_t)(channels * bytes)), *to = block;
  for (int y = top; y < top + rows; y++)
    for (int x = left; x < left + columns; x++)
      for (int c = 0; c < channels; c++, to += bytes) {
        if (x >= recipe->width || y >= recipe->height) continue;
        uint8_t value = pixels[(y * recipe->width + x) * recipe->channels + (recipe->planar ? plane : c)];
        to[0] = value;
        if (bytes == 2) to[1] = value; /* value * 257 */
      }
  *size = (size_t)(to - block);
  return block;
}

static inline picture_bytes write_tiff(const uint8_t *pixels, const tiff_recipe *recipe) {
  picture_bytes out = {0};
  TIFF *tiff = TIFFClientOpen("picture", "w", &out, read_tiff, put_tiff, seek_tiff, close_tiff, size_tiff, NULL, NULL);
  cr_assert_not_null(tiff);
  set_tiff_tags(tiff, recipe);
  int step_x = recipe->tile ? recipe->tile : recipe->width, step_y = recipe->tile ? recipe->tile : 7;
  for (int plane = 0; plane < (recipe->planar ? recipe->channels : 1); plane++)
    for (int top = 0; top < recipe->height; top += step_y)
      for (int left = 0; left < recipe->width; left += step_x) {
        int rows = recipe->tile || recipe->height - top >= step_y ? step_y : recipe->height - top;
        size_t size;
        uint8_t *block = cut_block(pixels, recipe, left, top, step_x, rows, plane, &size);
        uint32_t x = (uint32_t)left, y = (uint32_t)top;
        uint16_t sample = (uint16_t)plane;
        tmsize_t wrote = recipe->tile
                             ? TIFFWriteEncodedTile(tiff, TIFFComputeTile(tiff, x, y, 0, sample), block, (tmsize_t)size)
                             : TIFFWriteEncodedStrip(tiff, TIFFComputeStrip(tiff, y, sample), block, (tmsize_t)size);
        cr_assert_eq(wrote, (tmsize_t)size);
        free(block);
      }
  TIFFClose(tiff);
  return out;
}

/* ---- HEIC, AVIF ---- */

static inline struct heif_error put_heif(struct heif_context *context, const void *data, size_t size, void *out) {
  (void)context;
  put_bytes(out, data, size);
  return (struct heif_error){heif_error_Ok, heif_suberror_Unspecified, ""};
}

static inline void check_heif(struct heif_error error) {
  cr_assert_eq(error.code, heif_error_Ok, "%s", error.message);
}

/* format: heif_compression_HEVC or _AV1; orientation: EXIF's number, kept in the container; 1: none. */
static inline picture_bytes write_heif(const uint8_t *pixels, int width, int height, int channels,
                                       enum heif_compression_format format, int orientation) {
  picture_bytes out = {0};
  struct heif_context *context = heif_context_alloc();
  struct heif_encoder *encoder;
  struct heif_image *image;
  struct heif_image_handle *handle;
  int stride;
  check_heif(heif_context_get_encoder_for_format(context, format, &encoder));
  check_heif(heif_encoder_set_lossy_quality(encoder, 95));
  if (format == heif_compression_AV1) check_heif(heif_encoder_set_parameter_integer(encoder, "speed", 9));
  if (format == heif_compression_HEVC) check_heif(heif_encoder_set_parameter_string(encoder, "preset", "ultrafast"));
  check_heif(heif_image_create(width, height, heif_colorspace_RGB,
                               channels == 4 ? heif_chroma_interleaved_RGBA : heif_chroma_interleaved_RGB, &image));
  check_heif(heif_image_add_plane(image, heif_channel_interleaved, width, height, 8));
  uint8_t *plane = heif_image_get_plane(image, heif_channel_interleaved, &stride);
  for (int y = 0; y < height; y++)
    memcpy(plane + (size_t)y * (size_t)stride, pixels + (size_t)(y * width * channels), (size_t)(width * channels));
  struct heif_encoding_options *options = heif_encoding_options_alloc();
  options->image_orientation = (enum heif_orientation)orientation;
  check_heif(heif_context_encode_image(context, image, encoder, options, &handle));
  struct heif_writer writer = {.writer_api_version = 1, .write = put_heif};
  check_heif(heif_context_write(context, &writer, &out));
  heif_encoding_options_free(options);
  heif_image_handle_release(handle);
  heif_image_release(image);
  heif_encoder_release(encoder);
  heif_context_free(context);
  return out;
}

#endif

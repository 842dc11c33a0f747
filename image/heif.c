/* HEIC and AVIF decoding through libheif. In: the bytes of one file in memory, limits. Out: RGB rows, transparency over
 * white, rotation, mirror and crop of the container applied. The primary item is what is decoded.
 * libheif decodes on the calling thread here; it neither aborts nor exits. */
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <libheif/heif.h>

#include "image/codecs.h"
#include "image/formats.h"
#include "image/kind.h"

enum {
  TILE_SIDE_MAX = 4096,
  CODED_PIXELS_LEAST = 1 << 24 /* blocks and tiles make a bitstream's picture larger than what is shown */
};

typedef struct heif_decoder {
  struct heif_context *context;
  struct heif_image_handle *handle;
  struct heif_image *decoded;
  const char *name; /* "HEIC", "AVIF" or "HEIF" */
  bool cut;         /* a box goes past the end of the data */
  tf_error *error;
} heif_decoder;

/* Walks the outermost boxes (ISO/IEC 14496-12, 4.2): size, type, and a long size where the short one is 1.
 * True where one goes past the end, or nothing follows the first. */
static bool ends_early(const uint8_t *data, size_t size) {
  size_t at = 0, boxes = 0;
  for (; size - at >= 8; boxes++) {
    const uint8_t *box = data + at;
    uint64_t bytes = (uint64_t)box[0] << 24 | (uint64_t)box[1] << 16 | (uint64_t)box[2] << 8 | box[3];
    if (bytes == 0) return false; /* to the end */
    if (bytes == 1) {
      if (size - at < 16) return true;
      bytes = 0;
      for (int i = 8; i < 16; i++) bytes = bytes << 8 | box[i];
    }
    if (bytes < 8) return false; /* damaged, which is libheif's to say */
    if (bytes > size - at) return true;
    at += bytes;
  }
  return at < size || boxes < 2;
}

static tf_code fail_libheif(const heif_decoder *self, struct heif_error failed) {
  if (failed.code == heif_error_Memory_allocation_error && failed.subcode == heif_suberror_Security_limit_exceeded)
    return tf_fail(self->error, TF_ERR_IMAGE_TOO_LARGE, "%s past libheif's limits: %s", self->name, failed.message);
  if (failed.code == heif_error_Memory_allocation_error)
    return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory to decode %s", self->name);
  if (self->cut || failed.subcode == heif_suberror_End_of_data)
    return tf_fail(self->error, TF_ERR_IMAGE_TRUNCATED, "%s data end early: %s", self->name, failed.message);
  if (failed.code == heif_error_Unsupported_feature || failed.code == heif_error_Unsupported_filetype)
    return tf_fail(self->error, TF_ERR_IMAGE_UNSUPPORTED, "%s that is not read: %s", self->name, failed.message);
  return tf_fail(self->error, TF_ERR_IMAGE_CORRUPT, "%s cannot be decoded: %s", self->name, failed.message);
}

static tf_code open_primary(heif_decoder *self, const uint8_t *data, size_t size, const tf_image_limits *limits) {
  tf_av1_register();
  int64_t claimed = tf_hevc_pixels_max(data, size);
  if (claimed > limits->pixels_max && claimed > CODED_PIXELS_LEAST)
    return tf_fail(self->error, TF_ERR_IMAGE_TOO_LARGE, "HEIC with a bitstream of %lld pixels; the limit is %lld",
                   (long long)claimed, (long long)limits->pixels_max);
  self->context = heif_context_alloc();
  if (self->context == NULL) return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory for libheif");
  heif_context_set_max_decoding_threads(self->context, 0);
  struct heif_error failed = heif_context_read_from_memory_without_copy(self->context, data, size, NULL);
  if (failed.code == heif_error_Ok) failed = heif_context_get_primary_image_handle(self->context, &self->handle);
  if (failed.code != heif_error_Ok) return fail_libheif(self, failed);
  int width = heif_image_handle_get_width(self->handle), height = heif_image_handle_get_height(self->handle);
  tf_code code = tf_pixels_check(self->name, width, height, limits, self->error);
  /* What is inside may be larger than what is shown (blocks, tiles), but not by much. */
  if (code == TF_OK)
    heif_context_set_maximum_image_size_limit(self->context, (width > height ? width : height) + TILE_SIDE_MAX);
  return code;
}

static tf_code decode_primary(heif_decoder *self, bool alpha) {
  struct heif_decoding_options *options = heif_decoding_options_alloc();
  if (options == NULL) return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory for libheif");
  options->convert_hdr_to_8bit = 1;
  struct heif_error failed =
      heif_decode_image(self->handle, &self->decoded, heif_colorspace_RGB,
                        alpha ? heif_chroma_interleaved_RGBA : heif_chroma_interleaved_RGB, options);
  heif_decoding_options_free(options);
  return failed.code == heif_error_Ok ? TF_OK : fail_libheif(self, failed);
}

/* [count, 4] RGBA, colours multiplied by alpha -> straight alpha. */
static void divide_by_alpha(uint8_t *pixels, size_t count) {
  for (uint8_t *at = pixels, *end = pixels + 4 * count; at < end; at += 4)
    for (int c = 0; c < 3 && at[3] > 0; c++) {
      unsigned value = (at[c] * 255u + at[3] / 2u) / at[3];
      at[c] = (uint8_t)(value > 255 ? 255 : value);
    }
}

static tf_code copy_pixels(heif_decoder *self, bool alpha, const tf_image_limits *limits, tf_image *out) {
  int width = heif_image_get_width(self->decoded, heif_channel_interleaved);
  int height = heif_image_get_height(self->decoded, heif_channel_interleaved), stride = 0;
  const uint8_t *plane = heif_image_get_plane_readonly(self->decoded, heif_channel_interleaved, &stride);
  tf_code code = tf_pixels_check(self->name, width, height, limits, self->error);
  if (code != TF_OK) return code;
  size_t row_bytes = (size_t)width * (alpha ? 4 : 3), count = (size_t)width * (size_t)height;
  if (plane == NULL || stride < 0 || (size_t)stride < row_bytes)
    return tf_fail(self->error, TF_ERR_INTERNAL, "libheif gives other rows than asked for");
  code = tf_pixels_allocate(width, height, alpha ? 4 : 3, &out->rgb, self->error);
  if (code != TF_OK) return code;
  for (int y = 0; y < height; y++)
    memcpy(out->rgb + (size_t)y * row_bytes, plane + (size_t)y * (size_t)stride, row_bytes);
  out->width = width;
  out->height = height;
  if (!alpha) return TF_OK;
  if (heif_image_handle_is_premultiplied_alpha(self->handle)) divide_by_alpha(out->rgb, count);
  tf_pixels_over_white(out->rgb, count);
  out->rgb = tf_pixels_shrink(out->rgb, count);
  return TF_OK;
}

static void note_warnings(const heif_decoder *self, tf_image *out) {
  struct heif_error warning;
  if (heif_image_get_decoding_warnings(self->decoded, 0, &warning, 1) > 0)
    tf_image_warn(out, "%s: %s", self->name, warning.message);
  else if (self->cut)
    tf_image_warn(out, "%s ends early, after the picture", self->name);
}

tf_code tf_heif_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                       tf_error *error) {
  (void)orientation; /* applied by libheif */
  memset(out, 0, sizeof *out);
  heif_decoder self = {.cut = ends_early(data, size), .error = error};
  tf_image_kind_tell(data, size, &self.name);
  tf_code code = open_primary(&self, data, size, limits);
  bool alpha = code == TF_OK && heif_image_handle_has_alpha_channel(self.handle);
  if (code == TF_OK) code = decode_primary(&self, alpha);
  if (code == TF_OK) code = copy_pixels(&self, alpha, limits, out);
  if (code == TF_OK) note_warnings(&self, out);
  if (self.decoded != NULL) heif_image_release(self.decoded);
  if (self.handle != NULL) heif_image_handle_release(self.handle);
  if (self.context != NULL) heif_context_free(self.context);
  if (code != TF_OK) tf_image_free(out);
  return code;
}

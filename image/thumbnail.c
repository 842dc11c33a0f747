/* Thumbnails: decoded scaled down, resized as for the encoder, compressed by libjpeg.
 * In: the bytes of a picture. Out: the bytes of a small JPEG. libjpeg leaves by longjmp to the one setjmp here; what
 * must outlive the jump lies in one struct. */
#include "image/thumbnail.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "image/resize.h"

enum { QUALITY = 72 };

typedef struct thumbnail_writer {
  struct jpeg_compress_struct info;
  struct jpeg_error_mgr errors;
  jmp_buf escape;
  unsigned char *jpeg;
  unsigned long jpeg_bytes;
} thumbnail_writer;

static _Noreturn void on_fatal(j_common_ptr info) {
  thumbnail_writer *self = info->client_data;
  longjmp(self->escape, 1);
}

static void on_message(j_common_ptr info, int level) {
  (void)info, (void)level;
}

static void on_print(j_common_ptr info) {
  (void)info;
}

static void compress(thumbnail_writer *self, const uint8_t *rgb, int32_t width, int32_t height) {
  jpeg_create_compress(&self->info);
  jpeg_mem_dest(&self->info, &self->jpeg, &self->jpeg_bytes);
  self->info.image_width = (JDIMENSION)width;
  self->info.image_height = (JDIMENSION)height;
  self->info.input_components = 3;
  self->info.in_color_space = JCS_RGB;
  jpeg_set_defaults(&self->info);
  jpeg_set_quality(&self->info, QUALITY, TRUE);
  self->info.optimize_coding = TRUE;
  jpeg_start_compress(&self->info, TRUE);
  while (self->info.next_scanline < self->info.image_height) {
    JSAMPROW row = (JSAMPROW)(rgb + (size_t)self->info.next_scanline * (size_t)width * 3);
    jpeg_write_scanlines(&self->info, &row, 1);
  }
  jpeg_finish_compress(&self->info);
}

static tf_code write_jpeg(const uint8_t *rgb, int32_t width, int32_t height, tf_buffer *out, tf_error *error) {
  thumbnail_writer writer, *self = &writer;
  memset(self, 0, sizeof *self);
  self->info.err = jpeg_std_error(&self->errors);
  self->errors.error_exit = on_fatal;
  self->errors.emit_message = on_message;
  self->errors.output_message = on_print;
  self->info.client_data = self;
  bool written = false;
  if (setjmp(self->escape) == 0) {
    compress(self, rgb, width, height);
    tf_buffer_append(out, self->jpeg, self->jpeg_bytes);
    written = true;
  }
  jpeg_destroy_compress(&self->info);
  free(self->jpeg);
  return written && !out->overflow ? TF_OK : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a thumbnail");
}

static int32_t scaled(int32_t side, int32_t longer, int32_t side_max) {
  int32_t result = longer <= side_max ? side : (int32_t)((int64_t)side * side_max / longer);
  return result < 1 ? 1 : result;
}

tf_code tf_thumbnail(const uint8_t *data, size_t size, int64_t pixels_max, int32_t side_max, tf_buffer *out,
                     tf_error *error) {
  tf_image image;
  tf_image_limits limits = {.pixels_max = pixels_max, .side_wanted = side_max};
  tf_code code = tf_image_decode(data, size, &limits, &image, error);
  if (code) return code;
  int32_t longer = image.width > image.height ? image.width : image.height;
  int32_t width = scaled(image.width, longer, side_max), height = scaled(image.height, longer, side_max);
  uint8_t *small = malloc((size_t)width * (size_t)height * 3);
  code = small ? tf_resize_bicubic(image.rgb, image.width, image.height, small, width, height, error)
               : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a thumbnail");
  tf_image_free(&image);
  if (!code) code = write_jpeg(small, width, height, out, error);
  free(small);
  return code;
}

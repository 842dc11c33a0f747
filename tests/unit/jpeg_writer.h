/* JPEGs made for the tests with libjpeg's compressor. In: a description. Out: the bytes of a file, malloc'ed.
 * The picture: four flat quadrants (by default red, green, blue, white, from the top left) and a little texture on
 * demand. */
#ifndef TF_TESTS_JPEG_WRITER_H
#define TF_TESTS_JPEG_WRITER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

typedef struct jpeg_recipe {
  int width, height;
  J_COLOR_SPACE pixels, stored; /* of the input and in the file; both 0: RGB stored as YCbCr */
  int components;               /* where pixels is JCS_UNKNOWN */
  int quality;                  /* 0: 95 */
  bool progressive, arithmetic, texture, full_chroma;
  int restart_rows;
  const uint8_t *exif; /* APP1 payload or NULL */
  unsigned exif_bytes;
  const jpeg_scan_info *scans; /* NULL: libjpeg's own */
  int scan_count;
  uint8_t quadrants[4][4]; /* used where any is not zero */
} jpeg_recipe;

typedef struct jpeg_bytes {
  uint8_t *data;
  unsigned long size;
} jpeg_bytes;

static inline void fill_row(const jpeg_recipe *recipe, int components, int y, uint8_t *row) {
  static const uint8_t standard[4][4] = {{255, 0, 0}, {0, 255, 0}, {0, 0, 255}, {255, 255, 255}};
  static const uint8_t none[4][4];
  const uint8_t(*colours)[4] = memcmp(recipe->quadrants, none, sizeof none) != 0 ? recipe->quadrants : standard;
  for (int x = 0; x < recipe->width; x++)
    for (int c = 0; c < components; c++) {
      int value = colours[(y >= recipe->height / 2) * 2 + (x >= recipe->width / 2)][c];
      if (recipe->texture) value = value / 2 + (x * 7 + y * 13 + (x * y) % 29 * (c + 3)) % 128;
      row[x * components + c] = (uint8_t)value;
    }
}

static inline void configure(struct jpeg_compress_struct *info, const jpeg_recipe *recipe) {
  jpeg_set_defaults(info);
  if (recipe->stored != JCS_UNKNOWN) jpeg_set_colorspace(info, recipe->stored);
  jpeg_set_quality(info, recipe->quality ? recipe->quality : 95, TRUE);
  if (recipe->full_chroma) info->comp_info[0].h_samp_factor = info->comp_info[0].v_samp_factor = 1;
  info->arith_code = recipe->arithmetic;
  info->restart_in_rows = recipe->restart_rows;
  if (recipe->progressive) jpeg_simple_progression(info);
  if (recipe->scans != NULL) {
    info->scan_info = recipe->scans;
    info->num_scans = recipe->scan_count;
  }
}

static inline jpeg_bytes write_jpeg(const jpeg_recipe *recipe) {
  struct jpeg_compress_struct info;
  struct jpeg_error_mgr errors;
  jpeg_bytes out = {0};
  info.err = jpeg_std_error(&errors); /* exits the test's process on an error in the recipe */
  jpeg_create_compress(&info);
  jpeg_mem_dest(&info, &out.data, &out.size);
  info.image_width = (JDIMENSION)recipe->width;
  info.image_height = (JDIMENSION)recipe->height;
  info.in_color_space = recipe->pixels == JCS_UNKNOWN && recipe->components == 0 ? JCS_RGB : recipe->pixels;
  info.input_components = info.in_color_space == JCS_GRAYSCALE ? 1
                          : info.in_color_space == JCS_CMYK    ? 4
                          : info.in_color_space == JCS_UNKNOWN ? recipe->components
                                                               : 3;
  configure(&info, recipe);
  jpeg_start_compress(&info, TRUE);
  if (recipe->exif != NULL) jpeg_write_marker(&info, JPEG_APP0 + 1, recipe->exif, recipe->exif_bytes);
  uint8_t *row = malloc((size_t)recipe->width * 4);
  while (info.next_scanline < info.image_height) {
    fill_row(recipe, info.input_components, (int)info.next_scanline, row);
    jpeg_write_scanlines(&info, &row, 1);
  }
  free(row);
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  return out;
}

/* The offset of the first marker segment FF `marker`; 0 where there is none (every file has FF D8 there). */
static inline size_t find_marker(const jpeg_bytes *file, uint8_t marker) {
  size_t at = 2;
  while (file->size - at >= 4 && file->data[at] == 0xFF) {
    if (file->data[at + 1] == marker) return at;
    size_t length = 2 + ((size_t)file->data[at + 2] << 8 | file->data[at + 3]);
    if (file->data[at + 1] == 0xDA || length > file->size - at) break;
    at += length;
  }
  return 0;
}

#endif

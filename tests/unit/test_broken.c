/* Broken pictures of every kind, one row each. In: whole files made here, then cut, damaged, or made to lie.
 * Out: the code that fits, a text that says what is wrong, and no two texts alike. */
#include <criterion/criterion.h>
#include <stdio.h>

#include "image/image.h"
#include "tests/unit/jpeg_writer.h"
#include "tests/unit/picture_writers.h"

enum { WIDTH = 64, HEIGHT = 48 };

/* ---- whole files, and ways to break them ---- */

static picture_bytes whole_jpeg(void) {
  jpeg_bytes file = write_jpeg(&(jpeg_recipe){.width = WIDTH, .height = HEIGHT, .texture = true});
  return (picture_bytes){.data = file.data, .size = file.size};
}

static picture_bytes whole_of(char format) {
  uint8_t *pixels = make_pixels(WIDTH, HEIGHT, 3, 3);
  picture_bytes file = {0};
  if (format == 'p') file = write_png(pixels, WIDTH, HEIGHT, 3, 8, false);
  if (format == 'w') file = write_webp(pixels, WIDTH, HEIGHT, 3, false);
  if (format == 'h') file = write_heif(pixels, WIDTH, HEIGHT, 3, heif_compression_HEVC, 1);
  if (format == 'a') file = write_heif(pixels, WIDTH, HEIGHT, 3, heif_compression_AV1, 1);
  if (format == 'g') file = write_gif(&(gif_recipe){.width = WIDTH, .height = HEIGHT, .transparent = -1});
  if (format == 't')
    file = write_tiff(pixels,
                      &(tiff_recipe){.width = WIDTH, .height = HEIGHT, .channels = 3, .extra = -1, .orientation = 1});
  if (format == 'j') file = whole_jpeg();
  free(pixels);
  cr_assert_gt(file.size, 100);
  return file;
}

static size_t find(const picture_bytes *file, const void *bytes, size_t size) {
  const uint8_t *at = memmem(file->data, file->size, bytes, size);
  cr_assert_not_null(at);
  return (size_t)(at - file->data);
}

static void put_u32(uint8_t *at, uint32_t value) {
  for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (24 - 8 * i));
}

/* PNG's IHDR says another size, with a right checksum. */
static void set_png_size(picture_bytes *file, uint32_t width, uint32_t height) {
  put_u32(file->data + 16, width);
  put_u32(file->data + 20, height);
  uint32_t crc = 0xFFFFFFFF;
  for (int i = 12; i < 29; i++) {
    crc ^= file->data[i];
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
  }
  put_u32(file->data + 29, ~crc);
}

static void break_cut(picture_bytes *file) {
  file->size = file->size * 2 / 3;
}
static void break_jpeg_table(picture_bytes *file) {
  memset(file->data + find(file, "\xff\xc4", 2) + 5, 0xFE, 16);
}
static void break_jpeg_large(picture_bytes *file) {
  memcpy(file->data + find(file, "\xff\xc0", 2) + 5, "\xf0\0\xf0\0", 4);
}
static void break_jpeg_bits(picture_bytes *file) {
  file->data[find(file, "\xff\xc0", 2) + 4] = 12;
}
static void break_png_sum(picture_bytes *file) {
  file->data[find(file, "IDAT", 4) + 20] ^= 0x55;
}
static void break_png_head(picture_bytes *file) {
  file->data[29] ^= 0x55;
}
static void break_png_large(picture_bytes *file) {
  set_png_size(file, 100000, 100000);
}
static void break_png_bomb(picture_bytes *file) {
  set_png_size(file, 15000, 15000);
}
static void break_webp_bits(picture_bytes *file) {
  memset(file->data + find(file, "\x9d\x01\x2a", 3) - 3, 0xFF, 3); /* the frame's tag */
}
static void break_webp_large(picture_bytes *file) {
  memcpy(file->data + find(file, "\x9d\x01\x2a", 3) + 3, "\xff\x3f\xff\x3f", 4); /* 16383 x 16383 */
}
static void break_heif_codec(picture_bytes *file) {
  memcpy(file->data + find(file, "hvcC", 4), "oops", 4);
}
static void break_heif_primary(picture_bytes *file) {
  memcpy(file->data + find(file, "pitm", 4), "oops", 4);
}
static void break_heif_large(picture_bytes *file) { /* wherever a size is told */
  for (size_t at = 0; at + 16 <= file->size; at++)
    if (memcmp(file->data + at, "ispe", 4) == 0) {
      put_u32(file->data + at + 8, 30000);
      put_u32(file->data + at + 12, 30000);
    }
}
static void break_avif_bits(picture_bytes *file) {
  size_t at = find(file, "mdat", 4) + 4;
  memset(file->data + at, 0x80, file->size - at);
}
static void break_gif_no_picture(picture_bytes *file) {
  static const uint8_t none[] = "GIF89a\1\0\1\0\0\0\0;";
  memcpy(file->data, none, sizeof none - 1);
  file->size = sizeof none - 1;
}
static void break_gif_codes(picture_bytes *file) {
  memset(file->data + file->size / 2, 0xFF, file->size / 4);
}
static void break_gif_large(picture_bytes *file) {
  memcpy(file->data + 6, "\xff\xff\xff\xff", 4);
}

/* The entry of the directory that has this tag; the writer's byte order is little. */
static uint8_t *tiff_entry(picture_bytes *file, uint8_t tag_low, uint8_t tag_high) {
  size_t directory = file->data[4] | (size_t)file->data[5] << 8 | (size_t)file->data[6] << 16;
  size_t count = file->data[directory];
  for (size_t i = 0; i < count; i++) {
    uint8_t *entry = file->data + directory + 2 + 12 * i;
    if (entry[0] == tag_low && entry[1] == tag_high) return entry;
  }
  cr_assert_fail("no such tag");
  return NULL;
}
static void break_tiff_width(picture_bytes *file) {
  tiff_entry(file, 0x00, 0x01)[0] = 0xFB; /* ImageWidth becomes something else */
}
static void break_tiff_large(picture_bytes *file) {
  memcpy(tiff_entry(file, 0x00, 0x01) + 2, "\4\0\1\0\0\0\0\0\1\0", 10);
  memcpy(tiff_entry(file, 0x01, 0x01) + 2, "\4\0\1\0\0\0\0\0\1\0", 10);
}
static void break_tiff_compression(picture_bytes *file) {
  memcpy(tiff_entry(file, 0x03, 0x01) + 8, "\x39\x30", 2);
}
static void break_tiff_palette(picture_bytes *file) {
  tiff_entry(file, 0x06, 0x01)[8] = 3; /* a palette, with three samples a pixel */
}

/* libtiff calls an orientation of 9 an error, and opens the picture all the same: it can do without the tag. */
Test(broken, a_tiff_with_a_tag_that_means_nothing_is_read_with_a_warning) {
  picture_bytes good = whole_of('t'), bad = whole_of('t');
  memcpy(tiff_entry(&bad, 0x12, 0x01) + 8, "\x09\0", 2);
  tf_image_limits limits = {.pixels_max = 250000000};
  tf_image expected, image;
  tf_error error;
  cr_assert_eq(tf_image_decode(good.data, good.size, &limits, &expected, &error), TF_OK, "%s", error.text);
  cr_expect_not(expected.warned);
  cr_assert_eq(tf_image_decode(bad.data, bad.size, &limits, &image, &error), TF_OK, "%s", error.text);
  cr_expect(image.warned && strstr(image.warning, "Orientation") != NULL, "%s", image.warning);
  cr_expect_eq(image.width, expected.width);
  cr_expect_arr_eq(image.rgb, expected.rgb, (size_t)3 * WIDTH * HEIGHT);
  tf_image_free(&image);
  tf_image_free(&expected);
  free(good.data);
  free(bad.data);
}

/* ---- the table ---- */

static const struct broken {
  const char *what;
  char format;       /* whole_of's, or 0: bytes */
  const char *bytes; /* with no zero byte in them */
  void (*spoil)(picture_bytes *file);
  tf_code code;
  const char *says;
} table[] = {
    {"nothing", 0, "", NULL, TF_ERR_IMAGE_EMPTY, "no bytes"},
    {"a note", 0, "milk, bread, eggs\n", NULL, TF_ERR_IMAGE_UNSUPPORTED, "text"},
    {"a web page", 0, "<!DOCTYPE html><title>404</title>", NULL, TF_ERR_IMAGE_UNSUPPORTED, "HTML"},
    {"a drawing", 0, "<svg xmlns='http://www.w3.org/2000/svg'/>", NULL, TF_ERR_IMAGE_UNSUPPORTED, "SVG"},
    {"a document", 0, "%PDF-1.7", NULL, TF_ERR_IMAGE_UNSUPPORTED, "PDF"},
    {"JPEG XL", 0, "\xff\x0a\x11\x22", NULL, TF_ERR_IMAGE_UNSUPPORTED, "JPEG XL"},
    {"noise", 0, "\x91\x81\xc1\xf1", NULL, TF_ERR_IMAGE_UNSUPPORTED, "91 81 c1 f1"},
    {"JPEG, cut", 'j', NULL, break_cut, TF_ERR_IMAGE_TRUNCATED, "JPEG"},
    {"JPEG, a table", 'j', NULL, break_jpeg_table, TF_ERR_IMAGE_CORRUPT, "Huffman"},
    {"JPEG, large", 'j', NULL, break_jpeg_large, TF_ERR_IMAGE_TOO_LARGE, "61440 x 61440"},
    {"JPEG, 12 bits", 'j', NULL, break_jpeg_bits, TF_ERR_IMAGE_UNSUPPORTED, "12 bits"},
    {"PNG, cut", 'p', NULL, break_cut, TF_ERR_IMAGE_TRUNCATED, "PNG data end early"},
    {"PNG, pixels", 'p', NULL, break_png_sum, TF_ERR_IMAGE_CORRUPT, "PNG"},
    {"PNG, head", 'p', NULL, break_png_head, TF_ERR_IMAGE_CORRUPT, "IHDR"},
    {"PNG, large", 'p', NULL, break_png_large, TF_ERR_IMAGE_TOO_LARGE, "100000 x 100000"},
    {"PNG, more than its bytes hold", 'p', NULL, break_png_bomb, TF_ERR_IMAGE_TRUNCATED, "15000 x 15000"},
    {"WebP, cut", 'w', NULL, break_cut, TF_ERR_IMAGE_TRUNCATED, "WebP"},
    {"WebP, pixels", 'w', NULL, break_webp_bits, TF_ERR_IMAGE_CORRUPT, "WebP"},
    {"WebP, large", 'w', NULL, break_webp_large, TF_ERR_IMAGE_TOO_LARGE, "16383 x 16383"},
    {"HEIC, cut", 'h', NULL, break_cut, TF_ERR_IMAGE_TRUNCATED, "HEIC data end early"},
    {"HEIC, no codec", 'h', NULL, break_heif_codec, TF_ERR_IMAGE_CORRUPT, "hvcC"},
    {"HEIC, no primary", 'h', NULL, break_heif_primary, TF_ERR_IMAGE_CORRUPT, "pitm"},
    {"HEIC, large", 'h', NULL, break_heif_large, TF_ERR_IMAGE_TOO_LARGE, "30000"},
    {"AVIF, pixels", 'a', NULL, break_avif_bits, TF_ERR_IMAGE_CORRUPT, "AV1"},
    {"GIF, cut", 'g', NULL, break_cut, TF_ERR_IMAGE_TRUNCATED, "GIF data end"},
    {"GIF, no picture", 'g', NULL, break_gif_no_picture, TF_ERR_IMAGE_TRUNCATED, "first picture"},
    {"GIF, codes", 'g', NULL, break_gif_codes, TF_ERR_IMAGE_CORRUPT, "GIF cannot be decoded"},
    {"GIF, large", 'g', NULL, break_gif_large, TF_ERR_IMAGE_TOO_LARGE, "65535 x 65535"},
    {"TIFF, cut", 't', NULL, break_cut, TF_ERR_IMAGE_TRUNCATED, "TIFF data end early"},
    {"TIFF, no width", 't', NULL, break_tiff_width, TF_ERR_IMAGE_CORRUPT, "TIFF"},
    {"TIFF, large", 't', NULL, break_tiff_large, TF_ERR_IMAGE_TOO_LARGE, "65536 x 65536"},
    {"TIFF, compression", 't', NULL, break_tiff_compression, TF_ERR_IMAGE_UNSUPPORTED, "12345"},
    {"TIFF, palette", 't', NULL, break_tiff_palette, TF_ERR_IMAGE_UNSUPPORTED, "TIFF that is not read"},
};
enum { TABLE_COUNT = sizeof table / sizeof *table };

Test(broken, each_has_its_own_code_and_text) {
  static tf_error errors[TABLE_COUNT];
  for (int i = 0; i < TABLE_COUNT; i++) {
    const struct broken *row = &table[i];
    picture_bytes file = {0};
    if (row->format)
      file = whole_of(row->format);
    else
      put_bytes(&file, row->bytes, strlen(row->bytes));
    if (row->spoil) row->spoil(&file);
    uint8_t *copy = malloc(file.size ? file.size : 1); /* so that asan sees a read past the end */
    if (file.size > 0) memcpy(copy, file.data, file.size);
    tf_image image;
    tf_image_limits limits = {.pixels_max = 250000000, .side_wanted = 224};
    tf_code code = tf_image_decode(copy, file.size, &limits, &image, &errors[i]);
    cr_expect_eq(code, row->code, "%s: %s: %s", row->what, tf_code_name(code), errors[i].text);
    cr_expect(strstr(errors[i].text, row->says) != NULL, "%s: %s", row->what, errors[i].text);
    cr_expect_null(image.rgb);
    for (int k = 0; k < i; k++)
      cr_expect_str_neq(errors[i].text, errors[k].text, "%s and %s", row->what, table[k].what);
    free(copy);
    free(file.data);
  }
}

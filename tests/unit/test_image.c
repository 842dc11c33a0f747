/* Image decoding. In: JPEGs made here with libjpeg's compressor, whole, cut, damaged and disguised; other formats'
 * heads. Out: right pixels, or the right error code with a text that helps. The mutation loop is for the sanitizers
 * too. */
#include <criterion/criterion.h>
#include <math.h>

#include "image/exif.h"
#include "image/image.h"
#include "image/jpeg.h"
#include "image/resize.h"
#include "tests/unit/jpeg_writer.h"

static const tf_image_limits no_limits = {.pixels_max = 250000000};

static tf_image decode_or_fail(const jpeg_bytes *file, const tf_image_limits *limits) {
  tf_image image;
  tf_error error = {0};
  cr_assert_eq(tf_image_decode(file->data, file->size, limits, &image, &error), TF_OK, "%s", error.text);
  cr_assert_not_null(image.rgb);
  return image;
}

static tf_image decode_recipe(const jpeg_recipe *recipe) {
  jpeg_bytes file = write_jpeg(recipe);
  tf_image image = decode_or_fail(&file, &no_limits);
  free(file.data);
  return image;
}

/* The code; on success frees the image. text: 512 bytes or NULL. */
static tf_code code_of(const uint8_t *data, size_t size, tf_error *error) {
  tf_image image;
  tf_code code = tf_image_decode(data, size, &no_limits, &image, error);
  cr_assert_eq(code == TF_OK, image.rgb != NULL);
  tf_image_free(&image);
  return code;
}

static void expect_pixel(const tf_image *image, int x, int y, int red, int green, int blue, int tolerance) {
  const uint8_t *pixel = image->rgb + 3 * ((size_t)y * (size_t)image->width + (size_t)x);
  cr_assert(abs(pixel[0] - red) <= tolerance && abs(pixel[1] - green) <= tolerance && abs(pixel[2] - blue) <= tolerance,
            "(%d, %d) is %d %d %d, not %d %d %d", x, y, pixel[0], pixel[1], pixel[2], red, green, blue);
}

/* The colours of the four quadrants, from the top left: R, G, B or W. */
static void expect_quadrants(const tf_image *image, const char *colours) {
  for (int i = 0; i < 4; i++) {
    int x = image->width * (1 + 2 * (i % 2)) / 4, y = image->height * (1 + 2 * (i / 2)) / 4;
    bool white = colours[i] == 'W';
    expect_pixel(image, x, y, white || colours[i] == 'R' ? 255 : 0, white || colours[i] == 'G' ? 255 : 0,
                 white || colours[i] == 'B' ? 255 : 0, 6);
  }
}

/* ---- what is read ---- */

Test(image, baseline) {
  tf_image image = decode_recipe(&(jpeg_recipe){.width = 48, .height = 32});
  cr_assert_eq(image.width, 48);
  cr_assert_eq(image.height, 32);
  cr_assert_not(image.warned);
  expect_quadrants(&image, "RGBW");
  tf_image_free(&image);
}

Test(image, progressive_equals_baseline) {
  jpeg_recipe recipe = {.width = 61, .height = 45, .texture = true};
  tf_image baseline = decode_recipe(&recipe);
  recipe.progressive = true;
  tf_image progressive = decode_recipe(&recipe);
  cr_assert_arr_eq(baseline.rgb, progressive.rgb, 61 * 45 * 3);
  tf_image_free(&baseline);
  tf_image_free(&progressive);
}

#ifdef C_ARITH_CODING_SUPPORTED
Test(image, arithmetic_coding_equals_huffman) {
  jpeg_recipe recipe = {.width = 61, .height = 45, .texture = true};
  tf_image huffman = decode_recipe(&recipe);
  recipe.arithmetic = true;
  jpeg_bytes file = write_jpeg(&recipe);
  tf_image arithmetic = decode_or_fail(&file, &no_limits);
  cr_assert_arr_eq(huffman.rgb, arithmetic.rgb, 61 * 45 * 3);
  for (size_t size = file.size / 2; size < file.size; size++)
    cr_assert_eq(code_of(file.data, size, NULL), TF_ERR_IMAGE_TRUNCATED, "cut to %zu of %lu", size, file.size);
  free(file.data);
  tf_image_free(&huffman);
  tf_image_free(&arithmetic);
}
#endif

Test(image, greyscale) {
  jpeg_recipe recipe = {.width = 32,
                        .height = 32,
                        .pixels = JCS_GRAYSCALE,
                        .stored = JCS_GRAYSCALE,
                        .quadrants = {{10}, {100}, {180}, {250}}};
  tf_image image = decode_recipe(&recipe);
  expect_pixel(&image, 8, 8, 10, 10, 10, 2);
  expect_pixel(&image, 24, 8, 100, 100, 100, 2);
  expect_pixel(&image, 8, 24, 180, 180, 180, 2);
  expect_pixel(&image, 24, 24, 250, 250, 250, 2);
  tf_image_free(&image);
}

Test(image, rgb_stored_as_rgb) {
  tf_image image = decode_recipe(&(jpeg_recipe){.width = 32, .height = 32, .pixels = JCS_RGB, .stored = JCS_RGB});
  expect_quadrants(&image, "RGBW");
  tf_image_free(&image);
}

/* Adobe stores 255 - ink. Pillow: light = 255 - K, R = light - round((255 - stored C) * light / 255). */
static void check_cmyk(J_COLOR_SPACE stored) {
  jpeg_recipe recipe = {.width = 32,
                        .height = 32,
                        .pixels = JCS_CMYK,
                        .stored = stored,
                        .quality = 100,
                        .full_chroma = true,
                        .quadrants = {{255, 0, 0, 255},      /* no cyan, all magenta and yellow, no black: red */
                                      {255, 255, 255, 255},  /* no ink: white */
                                      {255, 255, 255, 0},    /* all black */
                                      {200, 100, 50, 128}}}; /* in between */
  tf_image image = decode_recipe(&recipe);
  expect_pixel(&image, 8, 8, 255, 0, 0, 3);
  expect_pixel(&image, 24, 8, 255, 255, 255, 3);
  expect_pixel(&image, 8, 24, 0, 0, 0, 3);
  expect_pixel(&image, 24, 24, 128 - 28, 128 - 78, 128 - 103, 3);
  tf_image_free(&image);
}
Test(image, cmyk) {
  check_cmyk(JCS_CMYK);
}
Test(image, ycck) {
  check_cmyk(JCS_YCCK);
}

Test(image, smallest_sizes) {
  for (int width = 1; width <= 17; width += 4)
    for (int height = 1; height <= 17; height += 4) {
      tf_image image = decode_recipe(&(jpeg_recipe){.width = width, .height = height, .quadrants = {{9, 9, 9}}});
      cr_assert_eq(image.width, width);
      cr_assert_eq(image.height, height);
      tf_image_free(&image);
    }
}

/* ---- EXIF ---- */

enum { EXIF_BYTES = 6 + 8 + 2 + 2 * 12 + 4 };

/* An EXIF payload with two entries, the second the orientation. */
static void make_exif(uint8_t out[EXIF_BYTES], bool big_endian, int type, uint32_t value) {
  static const uint8_t little[EXIF_BYTES] = {'E',  'x',  'i',  'f',  0, 0, 'I', 'I', 42, 0, 8,   0, 0, 0,
                                             2,    0,    0x0f, 0x01, 2, 0, 2,   0,   0,  0, 'a', 0, 0, 0,
                                             0x12, 0x01, 3,    0,    1, 0, 0,   0,   0,  0, 0,   0};
  static const uint8_t big[EXIF_BYTES] = {'E',  'x',  'i',  'f',  0, 0, 'M', 'M', 0, 42, 0,   0, 0, 8,
                                          0,    2,    0x01, 0x0f, 0, 2, 0,   0,   0, 2,  'a', 0, 0, 0,
                                          0x01, 0x12, 0,    3,    0, 0, 0,   1,   0, 0,  0,   0};
  memcpy(out, big_endian ? big : little, EXIF_BYTES);
  uint8_t *entry = out + 6 + 8 + 2 + 12;
  entry[big_endian ? 3 : 2] = (uint8_t)type;
  for (int i = 0; i < (type == 3 ? 2 : 4); i++)
    entry[8 + i] = (uint8_t)(value >> 8 * (big_endian ? (type == 3 ? 1 : 3) - i : i));
}

Test(exif, every_orientation_in_both_byte_orders) {
  for (int big = 0; big < 2; big++)
    for (int type = 3; type <= 4; type++)
      for (uint32_t value = 0; value <= 10; value++) {
        uint8_t exif[EXIF_BYTES];
        make_exif(exif, big == 1, type, value);
        cr_assert_eq(tf_exif_orientation(exif, sizeof exif), value >= 1 && value <= 8 ? (int)value : 1);
      }
}

Test(exif, other_payloads_are_not_exif) {
  cr_assert_eq(tf_exif_orientation((const uint8_t *)"http://ns.adobe.com/xap/1.0/", 28), 0);
  cr_assert_eq(tf_exif_orientation((const uint8_t *)"Exi", 3), 0);
  cr_assert_eq(tf_exif_orientation((const uint8_t *)"", 0), 0);
}

/* Cut anywhere and damaged anywhere: a number from 0 to 8, and no byte outside is read (each copy is exactly as long).
 */
Test(exif, damaged_blocks_are_read_safely) {
  uint8_t exif[EXIF_BYTES];
  make_exif(exif, false, 3, 6);
  for (size_t size = 0; size <= EXIF_BYTES; size++)
    for (size_t at = 0; at <= size; at++)
      for (int value = 0; value < 256; value += 51) {
        uint8_t *copy = malloc(size ? size : 1);
        memcpy(copy, exif, size);
        if (at < size) copy[at] = (uint8_t)value;
        int orientation = tf_exif_orientation(copy, size);
        cr_assert(orientation >= 0 && orientation <= 8);
        free(copy);
      }
}

Test(image, every_exif_orientation_comes_out_upright) {
  static const char *const upright[9] = {NULL, "RGBW", "GRWB", "WBGR", "BWRG", "RBGW", "BRWG", "WGBR", "GWRB"};
  for (uint32_t orientation = 1; orientation <= 8; orientation++) {
    uint8_t exif[EXIF_BYTES];
    make_exif(exif, orientation % 2 == 0, 3, orientation);
    jpeg_recipe recipe = {.width = 64, .height = 32, .exif = exif, .exif_bytes = sizeof exif};
    tf_image image = decode_recipe(&recipe);
    cr_assert_eq(image.width, orientation >= 5 ? 32 : 64);
    cr_assert_eq(image.height, orientation >= 5 ? 64 : 32);
    expect_quadrants(&image, upright[orientation]);
    tf_image_free(&image);
  }
}

/* ---- limits and scaling ---- */

Test(image, pixels_past_the_limit_are_refused_from_the_header) {
  jpeg_bytes file = write_jpeg(&(jpeg_recipe){.width = 40, .height = 30});
  tf_image image;
  tf_error error = {0};
  tf_image_limits limits = {.pixels_max = 1200};
  cr_assert_eq(tf_image_decode(file.data, file.size, &limits, &image, &error), TF_OK, "%s", error.text);
  tf_image_free(&image);
  limits.pixels_max = 1199;
  size_t header_bytes = find_marker(&file, 0xDA) + 16; /* no pixel data are there: the header alone decides */
  cr_assert_eq(tf_image_decode(file.data, header_bytes, &limits, &image, &error), TF_ERR_IMAGE_TOO_LARGE);
  cr_assert_null(image.rgb);
  cr_assert(strstr(error.text, "40 x 30") != NULL && strstr(error.text, "1199") != NULL, "%s", error.text);
  free(file.data);
}

static void set_size(jpeg_bytes *file, uint8_t start_of_frame, int width, int height) {
  size_t at = find_marker(file, start_of_frame);
  cr_assert_neq(at, 0);
  file->data[at + 5] = (uint8_t)(height >> 8);
  file->data[at + 6] = (uint8_t)height;
  file->data[at + 7] = (uint8_t)(width >> 8);
  file->data[at + 8] = (uint8_t)width;
}

/* A small file that claims to be huge gets no memory: 30000 x 30000 would need gigabytes as progressive. */
Test(image, a_claim_that_the_bytes_cannot_hold_is_refused) {
  for (int progressive = 0; progressive < 2; progressive++) {
    jpeg_bytes file = write_jpeg(&(jpeg_recipe){.width = 40, .height = 30, .progressive = progressive == 1});
    set_size(&file, progressive ? 0xC2 : 0xC0, 30000, 30000);
    tf_image image;
    tf_error error = {0};
    tf_image_limits limits = {.pixels_max = INT64_MAX};
    cr_assert_eq(tf_image_decode(file.data, file.size, &limits, &image, &error), TF_ERR_IMAGE_TRUNCATED);
    cr_assert(strstr(error.text, "30000") != NULL, "%s", error.text);
    cr_assert_eq(tf_image_decode(file.data, file.size, &no_limits, &image, &error), TF_ERR_IMAGE_TOO_LARGE);
    free(file.data);
  }
}

Test(image, scale_keeps_twice_the_side_wanted) {
  cr_assert_eq(tf_jpeg_scale_eighths(4000, 0), 8);
  cr_assert_eq(tf_jpeg_scale_eighths(300, 224), 8);
  cr_assert_eq(tf_jpeg_scale_eighths(895, 224), 8);
  cr_assert_eq(tf_jpeg_scale_eighths(896, 224), 4);
  cr_assert_eq(tf_jpeg_scale_eighths(3000, 224), 2);
  cr_assert_eq(tf_jpeg_scale_eighths(3584, 224), 1);
  cr_assert_eq(tf_jpeg_scale_eighths(65500, 1), 1);
  cr_assert_eq(tf_jpeg_scale_eighths(65500, INT32_MAX), 8);
}

/* The 224 x 224 picture from a scaled decode stays close to the one from a full decode. */
Test(image, a_scaled_decode_looks_like_a_full_one) {
  enum { SIZE = 224, VALUES = SIZE * SIZE * 3 };
  jpeg_bytes file = write_jpeg(&(jpeg_recipe){.width = 1801, .height = 1203, .texture = true});
  tf_image full = decode_or_fail(&file, &no_limits);
  tf_image_limits limits = {.pixels_max = no_limits.pixels_max, .side_wanted = SIZE};
  tf_image scaled = decode_or_fail(&file, &limits);
  cr_assert_eq(scaled.width, 901); /* libjpeg rounds up */
  cr_assert_eq(scaled.height, 602);
  static uint8_t a[VALUES], b[VALUES];
  cr_assert_eq(tf_resize_bicubic(full.rgb, full.width, full.height, a, SIZE, SIZE, NULL), TF_OK);
  cr_assert_eq(tf_resize_bicubic(scaled.rgb, scaled.width, scaled.height, b, SIZE, SIZE, NULL), TF_OK);
  double sum = 0;
  for (int i = 0; i < VALUES; i++) sum += abs(a[i] - b[i]);
  cr_assert_leq(sum / VALUES, 2.0, "mean difference %g of 255", sum / VALUES);
  tf_image_free(&full);
  tf_image_free(&scaled);
  free(file.data);
}

/* ---- what is refused ---- */

Test(image, empty) {
  tf_error error = {0};
  cr_assert_eq(code_of((const uint8_t *)"", 0, &error), TF_ERR_IMAGE_EMPTY);
}

Test(image, other_formats_are_named) {
  static const struct {
    const char *bytes;
    size_t size;
    const char *name;
  } heads[] = {{"\0\0\0\x1c"
                "ftypisom\0\0\0\0",
                16, "video"},
               {"BM\x36\0\0\0", 6, "BMP"},
               {"%PDF-1.7\n", 9, "PDF"},
               {"PK\3\4\x14\0", 6, "ZIP"},
               {"<!DOCTYPE html><p>not found", 27, "HTML"},
               {"\xef\xbb\xbf  <svg xmlns", 14, "SVG"},
               {"404 not found\n", 14, "text"},
               {"\1\2\3\4", 4, "01 02 03 04"},
               {"\xff", 1, "1 byte of no known image format (the first: ff)"},
               {"\xff\xd9\xff", 3, "ff d9 ff"}};
  for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
    uint8_t *copy = malloc(heads[i].size); /* so that asan sees a read past the end */
    memcpy(copy, heads[i].bytes, heads[i].size);
    tf_error error = {0};
    cr_assert_eq(code_of(copy, heads[i].size, &error), TF_ERR_IMAGE_UNSUPPORTED, "%s", heads[i].name);
    cr_assert(strstr(error.text, heads[i].name) != NULL, "%s: %s", heads[i].name, error.text);
    cr_assert(strstr(error.text, "JPEG") != NULL, "%s", error.text);
    free(copy);
  }
}

static void check_cuts(const jpeg_recipe *recipe, size_t forgiven_bytes) {
  jpeg_bytes file = write_jpeg(recipe);
  for (size_t size = 2; size < file.size; size += size < 700 ? 1 : 13) {
    if (file.size - size <= forgiven_bytes) continue;
    uint8_t *copy = malloc(size);
    memcpy(copy, file.data, size);
    tf_error error = {0};
    cr_assert_eq(code_of(copy, size, &error), TF_ERR_IMAGE_TRUNCATED, "cut to %zu of %lu: %s", size, file.size,
                 error.text);
    free(copy);
  }
  free(file.data);
}

/* Cut anywhere, a JPEG is truncated; only the end marker itself (2 bytes) may be missing from a baseline picture. */
Test(image, cut_baseline_is_truncated) {
  check_cuts(&(jpeg_recipe){.width = 90, .height = 70, .texture = true}, 2);
}
Test(image, cut_with_restarts_is_truncated) {
  check_cuts(&(jpeg_recipe){.width = 90, .height = 70, .texture = true, .restart_rows = 1}, 2);
}
Test(image, cut_progressive_is_truncated) {
  check_cuts(&(jpeg_recipe){.width = 90, .height = 70, .texture = true, .progressive = true}, 0);
}
Test(image, cut_cmyk_is_truncated) {
  check_cuts(&(jpeg_recipe){.width = 50, .height = 40, .texture = true, .pixels = JCS_CMYK, .stored = JCS_YCCK}, 2);
}

Test(image, a_missing_end_marker_is_a_warning) {
  jpeg_bytes file = write_jpeg(&(jpeg_recipe){.width = 90, .height = 70, .texture = true});
  tf_image whole = decode_or_fail(&file, &no_limits);
  file.size -= 2;
  tf_image image = decode_or_fail(&file, &no_limits);
  cr_assert_not(whole.warned);
  cr_assert(image.warned && strlen(image.warning) > 0);
  cr_assert_arr_eq(whole.rgb, image.rgb, 90 * 70 * 3);
  tf_image_free(&whole);
  tf_image_free(&image);
  free(file.data);
}

/* Half a picture closed by an end marker lacks rows all the same. */
Test(image, cut_and_closed_is_truncated) {
  for (int progressive = 0; progressive < 2; progressive++) {
    jpeg_bytes file =
        write_jpeg(&(jpeg_recipe){.width = 90, .height = 70, .texture = true, .progressive = progressive == 1});
    size_t size = file.size / 2;
    file.data[size - 2] = 0xFF;
    file.data[size - 1] = 0xD9;
    tf_error error = {0};
    cr_assert_eq(code_of(file.data, size, &error), TF_ERR_IMAGE_TRUNCATED, "%s", error.text);
    free(file.data);
  }
}

Test(image, extraneous_bytes_are_a_warning) {
  jpeg_bytes file = write_jpeg(&(jpeg_recipe){.width = 90, .height = 70, .texture = true});
  tf_image whole = decode_or_fail(&file, &no_limits);
  size_t at = find_marker(&file, 0xDB), extra = 5;
  uint8_t *longer = malloc(file.size + extra);
  memcpy(longer, file.data, at);
  memset(longer + at, 0x11, extra);
  memcpy(longer + at + extra, file.data + at, file.size - at);
  tf_image image = decode_or_fail(&(jpeg_bytes){longer, file.size + extra}, &no_limits);
  cr_assert(image.warned && strstr(image.warning, "extraneous") != NULL, "%s", image.warning);
  cr_assert_arr_eq(whole.rgb, image.rgb, 90 * 70 * 3);
  tf_image_free(&whole);
  tf_image_free(&image);
  free(longer);
  free(file.data);
}

/* Bytes behind the end marker (a phone's second picture, a thumbnail) are nobody's business. */
Test(image, trailing_bytes_are_ignored) {
  jpeg_bytes file = write_jpeg(&(jpeg_recipe){.width = 30, .height = 20});
  uint8_t *longer = calloc(1, file.size + 1000);
  memcpy(longer, file.data, file.size);
  tf_image image = decode_or_fail(&(jpeg_bytes){longer, file.size + 1000}, &no_limits);
  cr_assert_not(image.warned, "%s", image.warning);
  tf_image_free(&image);
  free(longer);
  free(file.data);
}

Test(image, damaged_structure_is_corrupt) {
  jpeg_bytes file = write_jpeg(&(jpeg_recipe){.width = 90, .height = 70, .texture = true});
  size_t at = find_marker(&file, 0xC4); /* Huffman table with impossible counts */
  memset(file.data + at + 5, 0xFE, 16);
  tf_error error = {0};
  cr_assert_eq(code_of(file.data, file.size, &error), TF_ERR_IMAGE_CORRUPT, "%s", error.text);
  cr_assert(strlen(error.text) > 0);
  free(file.data);
}

Test(image, unsupported_kinds_of_jpeg_are_named) {
  jpeg_bytes file = write_jpeg(&(jpeg_recipe){.width = 16, .height = 16});
  size_t at = find_marker(&file, 0xC0);
  tf_error error = {0};
  file.data[at + 4] = 12;
  cr_assert_eq(code_of(file.data, file.size, &error), TF_ERR_IMAGE_UNSUPPORTED);
  cr_assert(strstr(error.text, "12 bits") != NULL, "%s", error.text);
  file.data[at + 4] = 8;
  file.data[at + 1] = 0xC3; /* lossless */
  cr_assert_eq(code_of(file.data, file.size, &error), TF_ERR_IMAGE_UNSUPPORTED);
  free(file.data);
  file = write_jpeg(&(jpeg_recipe){.width = 16, .height = 16, .components = 2});
  cr_assert_eq(code_of(file.data, file.size, &error), TF_ERR_IMAGE_UNSUPPORTED);
  cr_assert(strstr(error.text, "2 colour components") != NULL, "%s", error.text);
  free(file.data);
}

/* A legal progressive picture of many scans: every AC coefficient by itself, refined bit by bit. */
static jpeg_bytes write_many_scans(int coefficients) {
  enum { BITS = 10, SCANS_MAX = 1 + 63 * (BITS + 1) };
  static jpeg_scan_info scans[SCANS_MAX];
  int count = 0;
  scans[count++] = (jpeg_scan_info){.comps_in_scan = 1};
  for (int k = 1; k <= coefficients; k++)
    for (int bit = BITS; bit >= 0; bit--)
      scans[count++] =
          (jpeg_scan_info){.comps_in_scan = 1, .Ss = k, .Se = k, .Ah = bit == BITS ? 0 : bit + 1, .Al = bit};
  return write_jpeg(&(jpeg_recipe){.width = 16,
                                   .height = 16,
                                   .pixels = JCS_GRAYSCALE,
                                   .stored = JCS_GRAYSCALE,
                                   .scans = scans,
                                   .scan_count = count});
}

Test(image, too_many_scans_are_corrupt) {
  jpeg_bytes few = write_many_scans(40), many = write_many_scans(63); /* 441 and 694 scans */
  tf_error error = {0};
  cr_assert_eq(code_of(few.data, few.size, &error), TF_OK, "%s", error.text);
  cr_assert_eq(code_of(many.data, many.size, &error), TF_ERR_IMAGE_CORRUPT);
  cr_assert(strstr(error.text, "scans") != NULL, "%s", error.text);
  free(few.data);
  free(many.data);
}

/* ---- mutations ---- */

static uint32_t next_random(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

/* Every outcome is a picture or one of the codes that the header promises; every pixel can be read. */
static void check_outcome(const uint8_t *data, size_t size, int32_t side_wanted) {
  tf_image image;
  tf_error error = {0};
  tf_image_limits limits = {.pixels_max = 1000000, .side_wanted = side_wanted};
  tf_code code = tf_image_decode(data, size, &limits, &image, &error);
  cr_assert(code == TF_OK || code == TF_ERR_IMAGE_UNSUPPORTED || code == TF_ERR_IMAGE_TOO_LARGE ||
                code == TF_ERR_IMAGE_CORRUPT || code == TF_ERR_IMAGE_TRUNCATED,
            "%s", tf_code_name(code));
  if (code != TF_OK) {
    cr_assert(image.rgb == NULL && strlen(error.text) > 0);
    return;
  }
  cr_assert(image.width >= 1 && image.height >= 1 && (int64_t)image.width * image.height <= limits.pixels_max);
  volatile uint32_t sum = 0;
  for (size_t i = 0; i < (size_t)image.width * (size_t)image.height * 3; i++) sum += image.rgb[i];
  tf_image_free(&image);
}

Test(image, mutated_files_never_crash, .timeout = 240) {
  uint8_t exif[EXIF_BYTES];
  make_exif(exif, true, 3, 7);
  const jpeg_recipe recipes[] = {
      {.width = 40, .height = 33, .texture = true, .exif = exif, .exif_bytes = sizeof exif},
      {.width = 40, .height = 33, .texture = true, .progressive = true},
      {.width = 33, .height = 40, .texture = true, .restart_rows = 1, .quality = 40},
      {.width = 24, .height = 24, .texture = true, .pixels = JCS_CMYK, .stored = JCS_YCCK, .progressive = true},
      {.width = 24, .height = 24, .pixels = JCS_GRAYSCALE, .stored = JCS_GRAYSCALE}};
  uint32_t random = 12345;
  for (size_t r = 0; r < sizeof recipes / sizeof *recipes; r++) {
    jpeg_bytes file = write_jpeg(&recipes[r]);
    for (int round = 0; round < 1200; round++) {
      size_t size = round % 4 == 3 ? 3 + next_random(&random) % (file.size - 3) : file.size;
      uint8_t *copy = malloc(size);
      memcpy(copy, file.data, size);
      for (uint32_t i = next_random(&random) % 6 + 1; i > 0; i--)
        copy[2 + next_random(&random) % (size - 2)] = (uint8_t)next_random(&random);
      check_outcome(copy, size, round % 2 ? 4 : 0);
      free(copy);
    }
    free(file.data);
  }
}

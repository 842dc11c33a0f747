/* Decoding of PNG, WebP, HEIC, AVIF, GIF and TIFF. In: pictures made here by the libraries' own encoders, whole, cut,
 * damaged, and heads that lie. Out: right pixels, or the code and the text that name what is wrong; nothing printed.
 * Exact pixels of many more kinds are compared with Pillow's in tests/integration/formats.sh. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/codecs.h"
#include "image/image.h"
#include "image/kind.h"
#include "tests/unit/jpeg_writer.h"
#include "tests/unit/picture_writers.h"

enum { WIDTH = 45, HEIGHT = 34 };
static const tf_image_limits no_limits = {.pixels_max = 250000000};

static tf_image decode_or_fail(const picture_bytes *file) {
  tf_image image;
  tf_error error = {0};
  cr_assert_eq(tf_image_decode(file->data, file->size, &no_limits, &image, &error), TF_OK, "%s", error.text);
  return image;
}

/* pixels: [height, width, channels], what went in. Compared over white; mean and largest difference are bounded. */
static void expect_pixels(const tf_image *image, const uint8_t *pixels, int width, int height, int channels,
                          int largest_max, double mean_max) {
  cr_assert_eq(image->width, width);
  cr_assert_eq(image->height, height);
  cr_assert_not(image->warned, "%s", image->warning);
  int largest = 0;
  double sum = 0;
  for (int i = 0; i < width * height; i++)
    for (int c = 0; c < 3; c++) {
      double alpha = channels == 4 ? pixels[i * 4 + 3] / 255.0 : 1;
      int expected = (int)lround(pixels[i * channels + c] * alpha + 255 * (1 - alpha));
      int difference = abs(image->rgb[3 * i + c] - expected);
      if (difference > largest) largest = difference;
      sum += difference;
    }
  cr_assert_leq(largest, largest_max, "differs by up to %d", largest);
  cr_assert_leq(sum / (3.0 * width * height), mean_max, "differs by %g on average", sum / (3.0 * width * height));
}

/* ---- what is read ---- */

Test(formats, png_of_8_and_16_bits_interlaced_or_not_with_and_without_alpha) {
  for (int kind = 0; kind < 8; kind++) {
    int channels = kind & 1 ? 4 : 3;
    uint8_t *pixels = make_pixels(WIDTH, HEIGHT, channels, 3);
    picture_bytes file = write_png(pixels, WIDTH, HEIGHT, channels, kind & 2 ? 16 : 8, kind & 4);
    tf_image image = decode_or_fail(&file);
    expect_pixels(&image, pixels, WIDTH, HEIGHT, channels, 1, 0.01);
    tf_image_free(&image);
    free(file.data);
    free(pixels);
  }
}

Test(formats, webp_lossless_equals_and_lossy_is_close) {
  for (int kind = 0; kind < 4; kind++) {
    int channels = kind & 1 ? 4 : 3;
    bool lossless = kind & 2;
    uint8_t *pixels = make_pixels(WIDTH, HEIGHT, channels, 0);
    picture_bytes file = write_webp(pixels, WIDTH, HEIGHT, channels, lossless);
    tf_image image = decode_or_fail(&file);
    expect_pixels(&image, pixels, WIDTH, HEIGHT, channels, lossless ? 1 : 160, lossless ? 0.01 : 12);
    tf_image_free(&image);
    free(file.data);
    free(pixels);
  }
}

Test(formats, of_an_animated_webp_the_first_frame_on_a_white_canvas) {
  uint8_t *pixels = make_pixels(WIDTH, HEIGHT, 3, 1), *others = make_pixels(WIDTH, HEIGHT, 3, 7);
  picture_bytes first = write_webp(pixels, WIDTH, HEIGHT, 3, true), second = write_webp(others, WIDTH, HEIGHT, 3, true);
  picture_bytes file = write_webp_animation(&first, &second, WIDTH, HEIGHT);
  tf_image image = decode_or_fail(&file);
  uint8_t *canvas = malloc((size_t)(4 * WIDTH * HEIGHT * 3));
  memset(canvas, 0xFF, (size_t)(4 * WIDTH * HEIGHT * 3));
  for (int y = 0; y < HEIGHT; y++) memcpy(canvas + 3 * ((y + 4) * 2 * WIDTH + 2), pixels + 3 * y * WIDTH, 3 * WIDTH);
  expect_pixels(&image, canvas, 2 * WIDTH, 2 * HEIGHT, 3, 0, 0);
  tf_image_free(&image);
  file.size -= second.size / 2; /* the first frame is there */
  image = decode_or_fail(&file);
  cr_assert(image.warned && strstr(image.warning, "early") != NULL);
  tf_image_free(&image);
  free(canvas);
  free(pixels);
  free(others);
  free(first.data);
  free(second.data);
  free(file.data);
}

Test(formats, heic_and_avif_are_close_with_and_without_alpha) {
  const enum heif_compression_format formats[] = {heif_compression_HEVC, heif_compression_AV1};
  for (int kind = 0; kind < 4; kind++) {
    int channels = kind & 1 ? 4 : 3;
    uint8_t *pixels = make_pixels(64, 48, channels, 0);
    if (channels == 4)
      for (int i = 0; i < 64 * 48; i++) pixels[4 * i + 3] = (uint8_t)(255 - i / 48);
    picture_bytes file = write_heif(pixels, 64, 48, channels, formats[kind / 2], 1);
    tf_image image = decode_or_fail(&file);
    expect_pixels(&image, pixels, 64, 48, channels, 160, 12);
    tf_image_free(&image);
    free(file.data);
    free(pixels);
  }
}

/* Quadrants red, green, blue, white; the container says how to turn them, and they are turned once. */
Test(formats, heic_is_turned_once_as_its_container_says) {
  enum { SIDE = 64 };
  static const uint8_t colours[4][3] = {{255, 0, 0}, {0, 255, 0}, {0, 0, 255}, {255, 255, 255}};
  static const char *const upright[9] = {NULL, "RGBW", "GRWB", "WBGR", "BWRG", "RBGW", "BRWG", "WGBR", "GWRB"};
  uint8_t *pixels = malloc((size_t)(2 * SIDE * SIDE * 3));
  for (int y = 0; y < SIDE; y++)
    for (int x = 0; x < 2 * SIDE; x++)
      memcpy(pixels + 3 * (y * 2 * SIDE + x), colours[(y >= SIDE / 2) * 2 + (x >= SIDE)], 3);
  for (int orientation = 1; orientation <= 8; orientation++) {
    picture_bytes file = write_heif(pixels, 2 * SIDE, SIDE, 3, heif_compression_HEVC, orientation);
    tf_image image = decode_or_fail(&file);
    bool turned = orientation >= 5;
    cr_assert_eq(image.width, turned ? SIDE : 2 * SIDE, "orientation %d: %d wide", orientation, image.width);
    for (int i = 0; i < 4; i++) {
      int x = image.width * (1 + 2 * (i % 2)) / 4, y = image.height * (1 + 2 * (i / 2)) / 4;
      const uint8_t *pixel = image.rgb + 3 * (y * image.width + x);
      char found = pixel[0] > 128 && pixel[1] > 128 ? 'W' : pixel[0] > 128 ? 'R' : pixel[1] > 128 ? 'G' : 'B';
      cr_assert_eq(found, upright[orientation][i], "orientation %d, quadrant %d: %c", orientation, i, found);
    }
    tf_image_free(&image);
    free(file.data);
  }
  free(pixels);
}

Test(formats, gif_first_frame_on_its_canvas_with_white_where_transparent) {
  for (int kind = 0; kind < 4; kind++) {
    gif_recipe recipe = {.width = 20,
                         .height = 15,
                         .left = 3,
                         .top = 4,
                         .canvas_width = 30,
                         .canvas_height = kind & 2 ? 25 : 10, /* the frame may go past the canvas, which then grows */
                         .transparent = 5,
                         .interlaced = kind & 1};
    picture_bytes file = write_gif(&recipe);
    tf_image image = decode_or_fail(&file);
    cr_assert_eq(image.width, 30);
    cr_assert_eq(image.height, kind & 2 ? 25 : 19);
    for (int y = 0; y < image.height; y++)
      for (int x = 0; x < image.width; x++) {
        const uint8_t *pixel = image.rgb + 3 * (y * image.width + x);
        bool inside = x >= 3 && x < 23 && y >= 4 && y < 19;
        int index = inside ? (x - 3 + 2 * (y - 4)) % 16 : 5;
        uint8_t expected[3] = {(uint8_t)(16 * index), (uint8_t)(255 - 16 * index), (uint8_t)index};
        if (index == 5) memset(expected, 0xFF, 3);
        cr_assert_arr_eq(pixel, expected, 3, "(%d, %d)", x, y);
      }
    tf_image_free(&image);
    free(file.data);
  }
}

Test(formats, tiff_strips_tiles_planes_and_compressions) {
  static const tiff_recipe recipes[] = {
      {.width = WIDTH, .height = HEIGHT, .channels = 3, .extra = -1},
      {.width = WIDTH, .height = HEIGHT, .channels = 3, .extra = -1, .bits = 16},
      {.width = WIDTH, .height = HEIGHT, .channels = 3, .extra = -1, .tile = 16, .compression = COMPRESSION_LZW},
      {.width = WIDTH, .height = HEIGHT, .channels = 3, .extra = -1, .planar = true},
      {.width = WIDTH, .height = HEIGHT, .channels = 3, .extra = -1, .planar = true, .tile = 32, .bits = 16},
      {.width = WIDTH, .height = HEIGHT, .channels = 4, .extra = EXTRASAMPLE_UNASSALPHA},
      {.width = WIDTH, .height = HEIGHT, .channels = 4, .extra = EXTRASAMPLE_UNASSALPHA, .bits = 16, .tile = 16},
      {.width = WIDTH, .height = HEIGHT, .channels = 3, .extra = -1, .compression = COMPRESSION_ADOBE_DEFLATE},
  };
  for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
    uint8_t *pixels = make_pixels(WIDTH, HEIGHT, recipes[i].channels, 3);
    picture_bytes file = write_tiff(pixels, &recipes[i]);
    tf_image image = decode_or_fail(&file);
    expect_pixels(&image, pixels, WIDTH, HEIGHT, recipes[i].channels, 1, 0.6);
    tf_image_free(&image);
    free(file.data);
    free(pixels);
  }
}

Test(formats, tiff_cmyk_and_a_fourth_sample_that_is_no_transparency) {
  uint8_t *pixels = make_pixels(WIDTH, HEIGHT, 4, 3);
  picture_bytes cmyk = write_tiff(pixels, &(tiff_recipe){.width = WIDTH, .height = HEIGHT, .channels = 4, .extra = -1});
  tf_image image = decode_or_fail(&cmyk);
  for (int i = 0; i < WIDTH * HEIGHT; i++)
    for (int c = 0; c < 3; c++) {
      double expected = (255 - pixels[4 * i + c]) * (255 - pixels[4 * i + 3]) / 255.0;
      cr_assert_leq(fabs(image.rgb[3 * i + c] - expected), 1.0);
    }
  tf_image_free(&image);
  picture_bytes named = write_tiff(
      pixels, &(tiff_recipe){.width = WIDTH, .height = HEIGHT, .channels = 4, .extra = EXTRASAMPLE_UNSPECIFIED});
  image = decode_or_fail(&named);
  for (int i = 0; i < WIDTH * HEIGHT; i++) cr_assert_arr_eq(image.rgb + 3 * i, pixels + 4 * i, 3, "pixel %d", i);
  tf_image_free(&image);
  free(cmyk.data);
  free(named.data);
  free(pixels);
}

Test(formats, kinds_are_told_and_pictures_are_what_is_read) {
  static const struct {
    const char *bytes;
    size_t size;
    tf_image_kind kind;
    const char *name;
  } heads[] = {{"\xff\xd8\xff\xe0", 4, TF_IMAGE_JPEG, "JPEG"},
               {"\xff\xd8", 2, TF_IMAGE_JPEG, "JPEG"},
               {"\0\0\0\x18"
                "ftypmif1\0\0\0\0mif1avif",
                24, TF_IMAGE_HEIF, "HEIF"},
               {"\0\0\0\x18"
                "ftypXXXX\0\0\0\0isomheic",
                24, TF_IMAGE_HEIF, "HEIC"},
               {"\0\0\0\x10"
                "ftypXXXX\0\0\0\0heic",
                20, TF_IMAGE_FOREIGN, "a video (MP4 family)"}, /* past the box */
               {"II*\0\x10\0\0\0CR", 10, TF_IMAGE_FOREIGN, "Canon raw"},
               {"MM\0+", 4, TF_IMAGE_TIFF, "TIFF"},
               {"RIFF\1\0\0\0WEBP", 12, TF_IMAGE_WEBP, "WebP"},
               {"plain words", 11, TF_IMAGE_FOREIGN, "text"}};
  for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
    const char *name;
    cr_assert_eq(tf_image_kind_tell((const uint8_t *)heads[i].bytes, heads[i].size, &name), heads[i].kind);
    cr_assert_str_eq(name, heads[i].name);
  }
  const char *name;
  cr_assert_eq(tf_image_kind_tell((const uint8_t *)"\1\2\3", 3, &name), TF_IMAGE_UNKNOWN);
  cr_assert_null(name);
  cr_assert(tf_image_kind_is_read(TF_IMAGE_JPEG) && tf_image_kind_is_read(TF_IMAGE_TIFF));
  cr_assert_not(tf_image_kind_is_read(TF_IMAGE_FOREIGN) || tf_image_kind_is_read(TF_IMAGE_UNKNOWN));
}

/* ---- one small file of each kind ---- */

enum { SAMPLE_COUNT = 13 };

static void make_samples(picture_bytes samples[SAMPLE_COUNT]) {
  uint8_t *rgb = make_pixels(WIDTH, HEIGHT, 3, 3), *rgba = make_pixels(WIDTH, HEIGHT, 4, 3);
  samples[0] = write_png(rgb, WIDTH, HEIGHT, 3, 8, false);
  samples[1] = write_png(rgba, WIDTH, HEIGHT, 4, 16, true);
  samples[2] = write_webp(rgb, WIDTH, HEIGHT, 3, false);
  samples[3] = write_webp(rgba, WIDTH, HEIGHT, 4, false);
  samples[4] = write_webp(rgba, WIDTH, HEIGHT, 4, true);
  samples[5] = write_webp_animation(&samples[2], &samples[3], WIDTH, HEIGHT);
  samples[6] = write_heif(rgb, WIDTH, HEIGHT, 3, heif_compression_HEVC, 6);
  samples[7] = write_heif(rgba, WIDTH, HEIGHT, 4, heif_compression_AV1, 1);
  samples[8] = write_gif(&(gif_recipe){.width = WIDTH, .height = HEIGHT, .transparent = 3, .interlaced = true});
  samples[9] = write_tiff(rgb, &(tiff_recipe){.width = WIDTH, .height = HEIGHT, .channels = 3, .extra = -1});
  samples[10] = write_tiff(rgba, &(tiff_recipe){.width = WIDTH,
                                                .height = HEIGHT,
                                                .channels = 4,
                                                .bits = 16,
                                                .extra = EXTRASAMPLE_UNASSALPHA,
                                                .planar = true,
                                                .tile = 16,
                                                .orientation = 6,
                                                .compression = COMPRESSION_LZW});
  samples[11] = write_tiff(
      rgb, &(tiff_recipe){
               .width = WIDTH, .height = HEIGHT, .channels = 3, .extra = -1, .compression = COMPRESSION_ADOBE_DEFLATE});
  samples[12] = write_tiff(
      rgba, &(tiff_recipe){
                .width = WIDTH, .height = HEIGHT, .channels = 4, .extra = -1, .compression = COMPRESSION_PACKBITS});
  free(rgb);
  free(rgba);
}

static void free_samples(picture_bytes samples[SAMPLE_COUNT]) {
  for (int i = 0; i < SAMPLE_COUNT; i++) free(samples[i].data);
}

/* Whole, cut and damaged, with nothing readable past the end. Every outcome is a picture or a code of the header's. */
static tf_code check_outcome(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_error *error) {
  uint8_t *copy = malloc(size);
  memcpy(copy, data, size);
  tf_image image;
  *error = (tf_error){0};
  tf_code code = tf_image_decode(copy, size, limits, &image, error);
  free(copy);
  cr_assert(code == TF_OK || code == TF_ERR_IMAGE_UNSUPPORTED || code == TF_ERR_IMAGE_TOO_LARGE ||
                code == TF_ERR_IMAGE_CORRUPT || code == TF_ERR_IMAGE_TRUNCATED,
            "%s: %s", tf_code_name(code), error->text);
  if (code != TF_OK) {
    cr_assert(image.rgb == NULL && strlen(error->text) > 0);
    return code;
  }
  cr_assert(image.width >= 1 && image.height >= 1 && (int64_t)image.width * image.height <= limits->pixels_max);
  volatile uint32_t sum = 0;
  for (size_t i = 0; i < (size_t)image.width * (size_t)image.height * 3; i++) sum += image.rgb[i];
  tf_image_free(&image);
  return code;
}

/* stderr and stdout go to a file; what libraries print into a service's log would be the sender's text. */
static int captured_fd, kept_fds[2];
static void capture_start(void) {
  FILE *file = tmpfile();
  fflush(NULL);
  captured_fd = fileno(file);
  for (int i = 0; i < 2; i++) {
    kept_fds[i] = dup(i + 1);
    dup2(captured_fd, i + 1);
  }
}
static void capture_end(void) {
  struct stat status;
  fflush(NULL);
  for (int i = 0; i < 2; i++) {
    dup2(kept_fds[i], i + 1);
    close(kept_fds[i]);
  }
  cr_assert_eq(fstat(captured_fd, &status), 0);
  char text[256] = "";
  cr_assert_geq(pread(captured_fd, text, sizeof text - 1, 0), 0);
  cr_assert_eq(status.st_size, 0, "a library printed: %s", text);
}

/* Where a file is cut in its pixels it is truncated; a few bytes at the end may be dispensable. */
Test(formats, cut_files_are_truncated, .timeout = 240) {
  picture_bytes samples[SAMPLE_COUNT];
  make_samples(samples);
  capture_start();
  int wrong = 0;
  char first[700] = "";
  for (int i = 0; i < SAMPLE_COUNT; i++)
    for (size_t size = 16; size < samples[i].size - 16; size += size < 64 ? 3 : samples[i].size / 40) {
      if (i == 5 && size > samples[2].size + 60) break; /* the animation's first frame is whole */
      tf_error error;
      tf_code code = check_outcome(samples[i].data, size, &no_limits, &error);
      if (code == TF_ERR_IMAGE_TRUNCATED) continue;
      if (wrong++ == 0)
        snprintf(first, sizeof first, "sample %d cut to %zu of %zu: %s %s", i, size, samples[i].size,
                 tf_code_name(code), error.text);
    }
  capture_end();
  cr_assert_eq(wrong, 0, "%d wrong; %s", wrong, first);
  free_samples(samples);
}

Test(formats, pixels_past_the_limit_are_refused) {
  picture_bytes samples[SAMPLE_COUNT];
  make_samples(samples);
  for (int i = 0; i < SAMPLE_COUNT; i++) {
    int pixels = WIDTH * HEIGHT * (i == 5 ? 4 : 1);
    tf_error error;
    cr_assert_eq(check_outcome(samples[i].data, samples[i].size, &(tf_image_limits){.pixels_max = pixels}, &error),
                 TF_OK, "sample %d: %s", i, error.text);
    cr_assert_eq(check_outcome(samples[i].data, samples[i].size, &(tf_image_limits){.pixels_max = pixels - 1}, &error),
                 TF_ERR_IMAGE_TOO_LARGE, "sample %d: %s", i, error.text);
    cr_assert(strstr(error.text, "limit") != NULL, "%s", error.text);
  }
  free_samples(samples);
}

static uint32_t next_random(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

Test(formats, mutated_files_never_crash_or_print, .timeout = 600) {
  picture_bytes samples[SAMPLE_COUNT];
  make_samples(samples);
  static const tf_image_limits limits = {.pixels_max = 1000000};
  uint32_t random = 4711;
  capture_start();
  for (int i = 0; i < SAMPLE_COUNT; i++) {
    const picture_bytes *file = &samples[i];
    uint8_t *copy = malloc(file->size);
    for (int round = 0; round < 1000; round++) {
      size_t size = round % 4 == 3 ? 16 + next_random(&random) % (file->size - 16) : file->size;
      size_t range = round % 2 ? size : (size < 400 ? size : 400); /* half of them in the head, where sizes are */
      memcpy(copy, file->data, size);
      for (uint32_t k = next_random(&random) % 6 + 1; k > 0; k--)
        copy[8 + next_random(&random) % (range - 8)] = (uint8_t)next_random(&random);
      tf_error error;
      check_outcome(copy, size, &limits, &error);
    }
    free(copy);
  }
  capture_end();
  free_samples(samples);
}

/* The container may say anything: what the bitstream claims is read from the bitstream. */
Test(formats, the_size_that_hevc_claims_is_found) {
  uint8_t *pixels = make_pixels(200, 100, 3, 3);
  picture_bytes heic = write_heif(pixels, 200, 100, 3, heif_compression_HEVC, 1);
  picture_bytes png = write_png(pixels, 200, 100, 3, 8, false);
  int64_t claimed = tf_hevc_pixels_max(heic.data, heic.size);
  cr_assert(claimed >= 200 * 100 && claimed <= 256 * 128, "%lld", (long long)claimed);
  cr_assert_eq(tf_hevc_pixels_max(png.data, png.size), 0);
  for (size_t size = 0; size < heic.size; size += 7) {
    uint8_t *copy = malloc(size ? size : 1); /* so that asan sees a read past the end */
    memcpy(copy, heic.data, size);
    cr_assert_leq(tf_hevc_pixels_max(copy, size), claimed);
    free(copy);
  }
  free(pixels);
  free(heic.data);
  free(png.data);
}

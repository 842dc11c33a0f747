/* JPEG decoding. In: the bytes of one file in memory, limits. Out: RGB rows as stored in the file, EXIF orientation.
 * libjpeg reports failure by a call that must not return; it leaves by longjmp to the one setjmp in tf_jpeg_decode.
 * All state lives in one struct whose address outlives the jump, so no local needs to be volatile. */
#include "image/jpeg.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

#include "image/exif.h"
#include "image/formats.h"

enum {
  MARKER_EXIF = JPEG_APP0 + 1,
  MARKER_BYTES_MAX = 0xFFFF,
  SCANS_MAX = 500,       /* a progressive picture has about 10; more is an attack on our time */
  SCANS_MAX_LEAST = 32,  /* what any size of picture may have */
  ROWS_AT_ONCE = 16,     /* libjpeg hands out 1 to 4 rows a call */
  SCALE_DENOMINATOR = 8, /* eighths */
  OVERSAMPLING = 2       /* see tf_jpeg_scale_eighths */
};
/* Scans times pixels, so that a large picture may not have many scans: 12 MP may have 333. */
static const int64_t SCANNED_PIXELS_MAX = 4000000000;

typedef struct jpeg_decoder {
  struct jpeg_decompress_struct info;
  struct jpeg_error_mgr errors;
  struct jpeg_source_mgr source;
  struct jpeg_progress_mgr progress;
  jmp_buf escape;
  tf_error *error; /* the caller's; may be NULL */
  tf_code code;    /* why we escaped */
  tf_image image;
  uint8_t *cmyk; /* one row of CMYK, where the file is that */
  int64_t scans_max;
  bool source_ended; /* libjpeg asked for bytes past the end */
  bool multiscan;    /* all scans are read before the first row comes out */
  bool complete;     /* every row is there: what fails now can be forgiven */
} jpeg_decoder;

/* ---- errors and warnings ---- */

static _Noreturn void escape_with(jpeg_decoder *self, tf_code code, const char *text) {
  self->code = tf_fail(self->error, code, "%s", text);
  longjmp(self->escape, 1);
}

static _Noreturn void escape_truncated(jpeg_decoder *self) {
  escape_with(self, TF_ERR_IMAGE_TRUNCATED, "JPEG data end before the picture is complete");
}

static tf_code code_of_fatal(const jpeg_decoder *self) {
  switch (self->errors.msg_code) {
  case JERR_OUT_OF_MEMORY:
    return TF_ERR_OUT_OF_MEMORY;
  case JERR_IMAGE_TOO_BIG:
    return TF_ERR_IMAGE_TOO_LARGE;
  case JERR_BAD_PRECISION:   /* 12 bits a sample */
  case JERR_SOF_UNSUPPORTED: /* lossless, hierarchical */
  case JERR_ARITH_NOTIMPL:
  case JERR_CONVERSION_NOTIMPL:
    return TF_ERR_IMAGE_UNSUPPORTED;
  default:
    return self->source_ended ? TF_ERR_IMAGE_TRUNCATED : TF_ERR_IMAGE_CORRUPT;
  }
}

static _Noreturn void on_fatal(j_common_ptr info) {
  jpeg_decoder *self = info->client_data;
  char text[JMSG_LENGTH_MAX], whole[JMSG_LENGTH_MAX + 64];
  self->errors.format_message(info, text);
  tf_code code = code_of_fatal(self);
  if (self->errors.msg_code == JERR_BAD_PRECISION)
    snprintf(whole, sizeof whole, "JPEG with %d bits a sample; 8 is what is read", self->info.data_precision);
  else
    snprintf(whole, sizeof whole, "JPEG %s: %s", code == TF_ERR_IMAGE_TRUNCATED ? "ends early" : "cannot be decoded",
             text);
  escape_with(self, code, whole);
}

/* libjpeg pads what is missing with grey and only warns. A picture that lacks rows is no picture: it is an error here.
 * What is forgiven: bits missing inside the last row of blocks although the end marker is there, and damage that
 * libjpeg steers around (bad codes, extraneous bytes, restart markers out of step). */
static void on_message(j_common_ptr info, int level) {
  if (level >= 0) return; /* a trace */
  jpeg_decoder *self = info->client_data;
  self->errors.num_warnings++;
  if (self->errors.msg_code == JWRN_HIT_MARKER && !self->complete) {
    bool at_end = self->info.unread_marker == JPEG_EOI;
    if (self->source_ended || (at_end && self->info.input_iMCU_row + 1 < self->info.total_iMCU_rows))
      escape_truncated(self);
  }
  char text[JMSG_LENGTH_MAX];
  self->errors.format_message(info, text);
  tf_image_warn(&self->image, "%s", text);
}

static void on_print(j_common_ptr info) {
  (void)info;
}

/* Called now and then while the scans of a progressive picture are read. */
static void on_progress(j_common_ptr info) {
  jpeg_decoder *self = info->client_data;
  if (self->info.input_scan_number <= self->scans_max) return;
  char text[96];
  snprintf(text, sizeof text, "progressive JPEG with more than %lld scans", (long long)self->scans_max);
  escape_with(self, TF_ERR_IMAGE_CORRUPT, text);
}

/* ---- the source: the caller's bytes, then an end marker for ever ---- */

static void on_source_start(j_decompress_ptr info) {
  (void)info;
}

static boolean on_source_empty(j_decompress_ptr info) {
  static const JOCTET end_marker[2] = {0xFF, JPEG_EOI};
  jpeg_decoder *self = info->client_data;
  self->source_ended = true;
  /* Single scan: the entropy decoder reads ahead, so the bytes may not be needed at all; where they are,
   * JWRN_HIT_MARKER follows. Several scans or arithmetic coding: what is missing would not be noticed. */
  if (self->multiscan || self->info.arith_code) escape_truncated(self);
  tf_image_warn(&self->image, "no end-of-image marker");
  self->source.next_input_byte = end_marker;
  self->source.bytes_in_buffer = sizeof end_marker;
  return TRUE;
}

static void on_source_skip(j_decompress_ptr info, long bytes) {
  jpeg_decoder *self = info->client_data;
  if (bytes <= 0) return;
  if ((size_t)bytes > self->source.bytes_in_buffer) {
    self->source.bytes_in_buffer = 0; /* the next read finds the end */
    return;
  }
  self->source.next_input_byte += bytes;
  self->source.bytes_in_buffer -= (size_t)bytes;
}

static void on_source_stop(j_decompress_ptr info) {
  (void)info;
}

static void decoder_init(jpeg_decoder *self, const uint8_t *data, size_t size, tf_error *error) {
  memset(self, 0, sizeof *self);
  self->error = error;
  self->info.err = jpeg_std_error(&self->errors);
  self->errors.error_exit = on_fatal;
  self->errors.emit_message = on_message;
  self->errors.output_message = on_print;
  self->info.client_data = self;
  self->source = (struct jpeg_source_mgr){.next_input_byte = data,
                                          .bytes_in_buffer = size,
                                          .init_source = on_source_start,
                                          .fill_input_buffer = on_source_empty,
                                          .skip_input_data = on_source_skip,
                                          .resync_to_restart = jpeg_resync_to_restart,
                                          .term_source = on_source_stop};
  self->progress.progress_monitor = on_progress;
}

/* ---- header ---- */

int tf_jpeg_scale_eighths(int64_t side_pixels, int32_t side_wanted) {
  if (side_wanted <= 0) return SCALE_DENOMINATOR;
  /* 1/2, 1/4 and 1/8 have their own fast inverse DCT; the other eighths are slower than decoding more pixels.
   * Twice the side wanted is kept, because the DCT's filter is a box: measured on 20 photos of 2 to 16 MP, the 224 x
   * 224 result then differs from a full decode's by 0.1 to 0.7 levels on average; without the factor by 0.7 to 1.6. */
  int eighths = SCALE_DENOMINATOR;
  while (eighths > 1 && side_pixels * (eighths / 2) / SCALE_DENOMINATOR >= (int64_t)OVERSAMPLING * side_wanted)
    eighths /= 2;
  return eighths;
}

static void check_header(jpeg_decoder *self, const tf_image_limits *limits, size_t size) {
  struct jpeg_decompress_struct *info = &self->info;
  int64_t width = info->image_width, height = info->image_height, pixels = width * height;
  char text[160];
  if (pixels > limits->pixels_max) {
    snprintf(text, sizeof text, "JPEG of %lld x %lld = %lld pixels; the limit is %lld", (long long)width,
             (long long)height, (long long)pixels, (long long)limits->pixels_max);
    escape_with(self, TF_ERR_IMAGE_TOO_LARGE, text);
  }
  if (info->num_components != 1 && info->num_components != 3 && info->num_components != 4) {
    snprintf(text, sizeof text, "JPEG with %d colour components; 1, 3 and 4 are read", info->num_components);
    escape_with(self, TF_ERR_IMAGE_UNSUPPORTED, text);
  }
  /* Huffman coding spends at least a bit on every block. So a few bytes that claim a huge picture get no memory. */
  int64_t blocks = (int64_t)info->comp_info[0].width_in_blocks * info->comp_info[0].height_in_blocks;
  if (!info->arith_code && (uint64_t)blocks / 8 > size) {
    snprintf(text, sizeof text, "JPEG of %lld x %lld pixels cannot be complete in %zu bytes", (long long)width,
             (long long)height, size);
    escape_with(self, TF_ERR_IMAGE_TRUNCATED, text);
  }
  self->multiscan = jpeg_has_multiple_scans(info);
  self->scans_max = SCANNED_PIXELS_MAX / pixels; /* libjpeg has refused empty pictures */
  if (self->scans_max > SCANS_MAX) self->scans_max = SCANS_MAX;
  if (self->scans_max < SCANS_MAX_LEAST) self->scans_max = SCANS_MAX_LEAST;
}

static int find_orientation(const struct jpeg_decompress_struct *info) {
  for (jpeg_saved_marker_ptr marker = info->marker_list; marker != NULL; marker = marker->next) {
    int orientation = tf_exif_orientation(marker->data, marker->data_length);
    if (orientation > 0) return orientation; /* XMP uses APP1 too, and gives 0 */
  }
  return 1;
}

/* ---- pixels ---- */

/* One row as libjpeg gives it to RGB, by Pillow's formula: R = K' - C * K' / 255 with K' = 255 - K.
 * Four-component JPEGs are stored inverted, by Adobe's custom, which Pillow assumes for all of them: so a stored value
 * is already 255 - ink. */
static void cmyk_to_rgb(const uint8_t *cmyk, int32_t width, uint8_t *rgb) {
  for (int32_t x = 0; x < width; x++, cmyk += 4, rgb += 3) {
    int light = cmyk[3];
    for (int c = 0; c < 3; c++) {
      int product = (255 - cmyk[c]) * light + 128;
      rgb[c] = (uint8_t)(light - ((product + (product >> 8)) >> 8)); /* rounded division by 255; never below 0 */
    }
  }
}

static void allocate_rows(jpeg_decoder *self) {
  struct jpeg_decompress_struct *info = &self->info;
  size_t width = info->output_width, height = info->output_height; /* each <= 65500 */
  self->image.width = (int32_t)width;
  self->image.height = (int32_t)height;
  self->image.rgb = malloc(width * height * 3);
  if (info->out_color_space == JCS_CMYK) self->cmyk = malloc(width * 4);
  if (self->image.rgb == NULL || (info->out_color_space == JCS_CMYK && self->cmyk == NULL)) {
    char text[96];
    snprintf(text, sizeof text, "no memory for %zu x %zu pixels", width, height);
    escape_with(self, TF_ERR_OUT_OF_MEMORY, text);
  }
}

static void read_rows(jpeg_decoder *self) {
  struct jpeg_decompress_struct *info = &self->info;
  size_t row_bytes = (size_t)info->output_width * 3;
  while (info->output_scanline < info->output_height) {
    uint8_t *at = self->image.rgb + (size_t)info->output_scanline * row_bytes;
    JSAMPROW rows[ROWS_AT_ONCE];
    JDIMENSION wanted = info->output_height - info->output_scanline;
    if (wanted > ROWS_AT_ONCE) wanted = ROWS_AT_ONCE;
    if (self->cmyk != NULL) wanted = 1;
    for (JDIMENSION i = 0; i < wanted; i++) rows[i] = self->cmyk != NULL ? self->cmyk : at + i * row_bytes;
    if (jpeg_read_scanlines(info, rows, wanted) == 0)
      escape_with(self, TF_ERR_INTERNAL, "libjpeg waits for input although all is there");
    if (self->cmyk != NULL) cmyk_to_rgb(self->cmyk, self->image.width, at);
  }
}

static void decode(jpeg_decoder *self, const tf_image_limits *limits, size_t size, int *orientation) {
  struct jpeg_decompress_struct *info = &self->info;
  jpeg_create_decompress(info);
  info->src = &self->source;
  info->progress = &self->progress;
  jpeg_save_markers(info, MARKER_EXIF, MARKER_BYTES_MAX);
  self->scans_max = SCANS_MAX;
  jpeg_read_header(info, TRUE);
  check_header(self, limits, size);
  *orientation = find_orientation(info);

  /* Grey becomes RGB inside libjpeg; YCCK becomes CMYK there, and RGB here. Everything else is left at libjpeg's
   * default (slow integer DCT, smooth chroma), as Pillow does: a decode at full size equals Pillow's. */
  info->out_color_space = info->num_components == 4 ? JCS_CMYK : JCS_RGB;
  int64_t side = info->image_width < info->image_height ? info->image_width : info->image_height;
  info->scale_num = (unsigned)tf_jpeg_scale_eighths(side, limits->side_wanted);
  info->scale_denom = SCALE_DENOMINATOR;
  jpeg_start_decompress(info);
  allocate_rows(self);
  read_rows(self);
  self->complete = true;
  jpeg_finish_decompress(info); /* looks for the end marker */
}

tf_code tf_jpeg_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                       tf_error *error) {
  jpeg_decoder decoder, *self = &decoder;
  memset(out, 0, sizeof *out);
  *orientation = 1;
  decoder_init(self, data, size, error);
  if (setjmp(self->escape) == 0)
    decode(self, limits, size, orientation);
  else if (self->complete) {
    tf_image_warn(&self->image, "damaged after the last row");
    self->code = TF_OK;
  }
  jpeg_destroy_decompress(&self->info);
  free(self->cmyk);
  if (self->code != TF_OK) {
    free(self->image.rgb);
    return self->code;
  }
  if (error != NULL) *error = (tf_error){.code = TF_OK};
  *out = self->image;
  return TF_OK;
}

/* WebP decoding through libwebp. In: the bytes of one file in memory, limits. Out: RGB rows, transparency over white.
 * The demuxer finds the first frame and the EXIF block; the frame goes to its place on the canvas.
 * libwebp neither aborts nor prints. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <webp/decode.h>
#include <webp/demux.h>

#include "image/exif.h"
#include "image/formats.h"

static tf_code fail_status(VP8StatusCode status, tf_error *error) {
  switch (status) {
  case VP8_STATUS_OUT_OF_MEMORY:
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to decode WebP");
  case VP8_STATUS_NOT_ENOUGH_DATA:
  case VP8_STATUS_SUSPENDED:
    return tf_fail(error, TF_ERR_IMAGE_TRUNCATED, "WebP data end before the picture is complete");
  case VP8_STATUS_UNSUPPORTED_FEATURE:
    return tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED, "WebP with a feature that libwebp does not read");
  default:
    return tf_fail(error, TF_ERR_IMAGE_CORRUPT, "WebP cannot be decoded: damaged bitstream");
  }
}

/* The frame's bitstream -> pixels [height, width, 3 or 4]. */
static tf_code decode_frame(const WebPIterator *frame, bool alpha, uint8_t *pixels, tf_error *error) {
  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config))
    return tf_fail(error, TF_ERR_INTERNAL, "libwebp is of another version than its headers");
  size_t row_bytes = (size_t)frame->width * (alpha ? 4 : 3);
  config.output.colorspace = alpha ? MODE_RGBA : MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = pixels;
  config.output.u.RGBA.stride = (int)row_bytes;
  config.output.u.RGBA.size = row_bytes * (size_t)frame->height;
  VP8StatusCode status = WebPGetFeatures(frame->fragment.bytes, frame->fragment.size, &config.input);
  if (status == VP8_STATUS_OK && (config.input.width != frame->width || config.input.height != frame->height))
    return tf_fail(error, TF_ERR_IMAGE_CORRUPT, "WebP frame of %d x %d pixels said to be %d x %d", config.input.width,
                   config.input.height, frame->width, frame->height);
  if (status == VP8_STATUS_OK) status = WebPDecode(frame->fragment.bytes, frame->fragment.size, &config);
  WebPFreeDecBuffer(&config.output); /* not the pixels, which are ours */
  return status == VP8_STATUS_OK ? TF_OK : fail_status(status, error);
}

/* out->rgb: the frame; it is smaller than the canvas only in an animation. */
static tf_code put_on_canvas(const WebPIterator *frame, int32_t width, int32_t height, tf_image *out, tf_error *error) {
  if (frame->width == width && frame->height == height) return TF_OK;
  if (frame->x_offset < 0 || frame->y_offset < 0 || frame->width > width - frame->x_offset ||
      frame->height > height - frame->y_offset)
    return tf_fail(error, TF_ERR_IMAGE_CORRUPT, "WebP frame outside of its canvas");
  uint8_t *canvas;
  tf_code code = tf_pixels_allocate(width, height, 3, &canvas, error);
  if (code != TF_OK) return code;
  memset(canvas, 0xFF, (size_t)width * (size_t)height * 3);
  size_t row_bytes = (size_t)frame->width * 3;
  for (int32_t y = 0; y < frame->height; y++)
    memcpy(canvas + 3 * ((size_t)(frame->y_offset + y) * (size_t)width + (size_t)frame->x_offset),
           out->rgb + (size_t)y * row_bytes, row_bytes);
  free(out->rgb);
  out->rgb = canvas;
  return TF_OK;
}

static tf_code decode(WebPDemuxer *demuxer, WebPIterator *frame, const tf_image_limits *limits, tf_image *out,
                      tf_error *error) {
  int64_t width = WebPDemuxGetI(demuxer, WEBP_FF_CANVAS_WIDTH), height = WebPDemuxGetI(demuxer, WEBP_FF_CANVAS_HEIGHT);
  tf_code code = tf_pixels_check("WebP", width, height, limits, error);
  if (code != TF_OK) return code;
  if (!frame->complete)
    return tf_fail(error, TF_ERR_IMAGE_TRUNCATED, "WebP of %lld x %lld pixels ends before its picture is complete",
                   (long long)width, (long long)height);
  bool alpha = frame->has_alpha;
  code = tf_pixels_check("WebP frame", frame->width, frame->height, limits, error);
  if (code == TF_OK) code = tf_pixels_allocate(frame->width, frame->height, alpha ? 4 : 3, &out->rgb, error);
  if (code == TF_OK) code = decode_frame(frame, alpha, out->rgb, error);
  if (code != TF_OK) return code;
  if (alpha) {
    size_t count = (size_t)frame->width * (size_t)frame->height;
    tf_pixels_over_white(out->rgb, count);
    out->rgb = tf_pixels_shrink(out->rgb, count);
  }
  out->width = (int32_t)width;
  out->height = (int32_t)height;
  return put_on_canvas(frame, out->width, out->height, out, error);
}

static int find_orientation(const WebPDemuxer *demuxer) {
  WebPChunkIterator chunk;
  if (!WebPDemuxGetChunk(demuxer, "EXIF", 1, &chunk)) return 1;
  /* Some writers keep JPEG's prefix. */
  int orientation = tf_exif_orientation(chunk.chunk.bytes, chunk.chunk.size);
  if (orientation == 0) orientation = tf_exif_tiff_orientation(chunk.chunk.bytes, chunk.chunk.size);
  WebPDemuxReleaseChunkIterator(&chunk);
  return orientation;
}

tf_code tf_webp_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                       tf_error *error) {
  memset(out, 0, sizeof *out);
  WebPDemuxState state = WEBP_DEMUX_PARSE_ERROR;
  WebPIterator frame;
  WebPDemuxer *demuxer = WebPDemuxPartial(&(WebPData){data, size}, &state);
  if (demuxer == NULL || !WebPDemuxGetFrame(demuxer, 1, &frame)) {
    WebPDemuxDelete(demuxer);
    if (state == WEBP_DEMUX_PARSING_HEADER || state == WEBP_DEMUX_PARSED_HEADER)
      return tf_fail(error, TF_ERR_IMAGE_TRUNCATED, "WebP data end before the first picture");
    return tf_fail(error, TF_ERR_IMAGE_CORRUPT, "WebP cannot be decoded: damaged chunks");
  }
  tf_code code = decode(demuxer, &frame, limits, out, error);
  if (code == TF_OK && state != WEBP_DEMUX_DONE) tf_image_warn(out, "WebP ends early, after the picture");
  if (code == TF_OK) *orientation = find_orientation(demuxer);
  WebPDemuxReleaseIterator(&frame);
  WebPDemuxDelete(demuxer);
  if (code != TF_OK) tf_image_free(out);
  return code;
}

/* AV1 for libheif, through libdav1d: quiet, on one thread, and with a limit on the frame's size.
 * In: the bitstream that libheif finds in an AVIF. Out: planes of pixels. libheif's own use of libdav1d lets it print
 * what it dislikes to stderr, and takes memory for whatever size the bitstream claims. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <dav1d/dav1d.h>
#include <libheif/heif.h>
#include <libheif/heif_plugin.h>

#include "image/codecs.h"

enum {
  PRIORITY = 1000, /* libheif's own are about 100 */
  PLUGIN_API_VERSION = 3,
  TURNS_MAX = 100000 /* of feeding and asking; a still picture needs a few */
};

typedef struct av1_decoder {
  Dav1dContext *context;
  Dav1dData data;
} av1_decoder;

static const struct heif_error ok = {heif_error_Ok, heif_suberror_Unspecified, "ok"};
static const struct heif_error no_memory = {heif_error_Memory_allocation_error, heif_suberror_Unspecified, "no memory"};

static struct heif_error fail(const char *text) {
  return (struct heif_error){heif_error_Decoder_plugin_error, heif_suberror_Unspecified, text};
}

static const char *on_name(void) {
  return "libdav1d, quiet";
}

static int on_support(enum heif_compression_format format) {
  return format == heif_compression_AV1 ? PRIORITY : 0;
}

static void on_free(void *decoder) {
  av1_decoder *self = decoder;
  if (self == NULL) return;
  dav1d_data_unref(&self->data);
  if (self->context != NULL) dav1d_close(&self->context);
  free(self);
}

static struct heif_error on_new(void **out) {
  Dav1dSettings settings;
  dav1d_default_settings(&settings);
  settings.n_threads = 1;
  settings.max_frame_delay = 1;
  settings.all_layers = 0;
  settings.frame_size_limit = TF_AV1_PIXELS_MAX;
  settings.logger = (Dav1dLogger){NULL, NULL};
  av1_decoder *self = calloc(1, sizeof *self);
  if (self == NULL || dav1d_open(&self->context, &settings) != 0) {
    free(self);
    return no_memory;
  }
  *out = self;
  return ok;
}

/* libheif hands over the whole bitstream, perhaps in parts. */
static struct heif_error on_push(void *decoder, const void *data, size_t size) {
  av1_decoder *self = decoder;
  if (size == 0) return ok;
  if (size > SIZE_MAX / 2 - self->data.sz) return no_memory;
  Dav1dData whole;
  memset(&whole, 0, sizeof whole);
  uint8_t *to = dav1d_data_create(&whole, self->data.sz + size);
  if (to == NULL) return no_memory;
  if (self->data.sz > 0) memcpy(to, self->data.data, self->data.sz);
  memcpy(to + self->data.sz, data, size);
  dav1d_data_unref(&self->data);
  self->data = whole;
  return ok;
}

static struct heif_error copy_plane(struct heif_image *image, enum heif_channel channel, const Dav1dPicture *picture,
                                    int plane) {
  int is_420 = picture->p.layout == DAV1D_PIXEL_LAYOUT_I420, is_422 = picture->p.layout == DAV1D_PIXEL_LAYOUT_I422;
  int width = picture->p.w, height = picture->p.h, stride = 0;
  if (plane > 0 && (is_420 || is_422)) width = (width + 1) / 2;
  if (plane > 0 && is_420) height = (height + 1) / 2;
  struct heif_error failed = heif_image_add_plane(image, channel, width, height, picture->p.bpc);
  if (failed.code != heif_error_Ok) return failed;
  uint8_t *to = heif_image_get_plane(image, channel, &stride);
  const uint8_t *from = picture->data[plane];
  size_t row_bytes = (size_t)width * (picture->p.bpc > 8 ? 2 : 1);
  if (to == NULL || stride < 0 || (size_t)stride < row_bytes) return fail("libheif gives another plane");
  for (int y = 0; y < height; y++) memcpy(to + (ptrdiff_t)y * stride, from + y * picture->stride[plane > 0], row_bytes);
  return ok;
}

/* How the numbers mean colours; the container's word, where it has one, goes first in libheif. */
static void set_colours(struct heif_image *image, const Dav1dSequenceHeader *header) {
  struct heif_color_profile_nclx *profile = heif_nclx_color_profile_alloc();
  if (profile == NULL) return;
  heif_nclx_color_profile_set_color_primaries(profile, (uint16_t)header->pri);
  heif_nclx_color_profile_set_transfer_characteristics(profile, (uint16_t)header->trc);
  heif_nclx_color_profile_set_matrix_coefficients(profile, (uint16_t)header->mtrx);
  profile->full_range_flag = header->color_range != 0;
  heif_image_set_nclx_color_profile(image, profile);
  heif_nclx_color_profile_free(profile);
}

static struct heif_error give_image(const Dav1dPicture *picture, struct heif_image **out) {
  static const enum heif_chroma chromas[] = {[DAV1D_PIXEL_LAYOUT_I400] = heif_chroma_monochrome,
                                             [DAV1D_PIXEL_LAYOUT_I420] = heif_chroma_420,
                                             [DAV1D_PIXEL_LAYOUT_I422] = heif_chroma_422,
                                             [DAV1D_PIXEL_LAYOUT_I444] = heif_chroma_444};
  static const enum heif_channel channels[] = {heif_channel_Y, heif_channel_Cb, heif_channel_Cr};
  int grey = picture->p.layout == DAV1D_PIXEL_LAYOUT_I400;
  struct heif_image *image;
  struct heif_error failed =
      heif_image_create(picture->p.w, picture->p.h, grey ? heif_colorspace_monochrome : heif_colorspace_YCbCr,
                        chromas[picture->p.layout], &image);
  if (failed.code != heif_error_Ok) return failed;
  for (int plane = 0; plane < (grey ? 1 : 3) && failed.code == heif_error_Ok; plane++)
    failed = copy_plane(image, channels[plane], picture, plane);
  if (failed.code != heif_error_Ok) {
    heif_image_release(image);
    return failed;
  }
  set_colours(image, picture->seq_hdr);
  *out = image;
  return ok;
}

static struct heif_error on_decode(void *decoder, struct heif_image **out) {
  av1_decoder *self = decoder;
  Dav1dPicture picture;
  memset(&picture, 0, sizeof picture);
  int status = DAV1D_ERR(EAGAIN);
  for (int turn = 0; turn < TURNS_MAX && status == DAV1D_ERR(EAGAIN); turn++) {
    int was_fed = self->data.sz > 0;
    int fed = was_fed ? dav1d_send_data(self->context, &self->data) : 0;
    if (fed != 0 && fed != DAV1D_ERR(EAGAIN)) return fed == DAV1D_ERR(ENOMEM) ? no_memory : fail("damaged AV1 data");
    status = dav1d_get_picture(self->context, &picture);
    if (status == DAV1D_ERR(EAGAIN) && !was_fed) return fail("AV1 data without a picture");
  }
  if (status != 0) return status == DAV1D_ERR(ENOMEM) ? no_memory : fail("damaged AV1 data");
  struct heif_error failed = give_image(&picture, out);
  dav1d_picture_unref(&picture);
  return failed;
}

static void on_strict(void *decoder, int flag) {
  (void)decoder, (void)flag;
}

static void register_plugin(void) {
  static const struct heif_decoder_plugin plugin = {.plugin_api_version = PLUGIN_API_VERSION,
                                                    .get_plugin_name = on_name,
                                                    .does_support_format = on_support,
                                                    .new_decoder = on_new,
                                                    .free_decoder = on_free,
                                                    .push_data = on_push,
                                                    .decode_image = on_decode,
                                                    .set_strict_decoding = on_strict,
                                                    .id_name = "tokenflex-dav1d"};
  heif_register_decoder_plugin(&plugin); /* fails only for a version that libheif does not know */
}

void tf_av1_register(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, register_plugin);
}

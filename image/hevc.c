/* The picture size that HEVC bitstreams in a HEIC claim. In: the bytes of the file. Out: width times height.
 * A sequence parameter set (ITU-T H.265, 7.3.2.2) is found by its length prefix and its NAL header: in a bitstream
 * three zero-ish bytes never stand elsewhere. Pure; nothing outside [data, data + size) is read. */
#include <stdbool.h>

#include "image/codecs.h"

enum {
  NAL_SPS_FIRST_BYTE = 0x42, /* type 33 */
  SPS_BYTES_MAX = 1023,
  SUB_LAYERS = 8,
  PROFILE_BITS = 88,
  LEVEL_BITS = 8,
  EXP_GOLOMB_ZEROS_MAX = 31
};

/* Reads bits of a NAL unit's payload; the third byte of 00 00 03 is no part of it. */
typedef struct bit_reader {
  const uint8_t *data;
  size_t size, at;
  int bits_left; /* of the current byte */
  int zeros;     /* bytes just read */
  uint8_t byte;
  bool ended;
} bit_reader;

static unsigned read_bit(bit_reader *self) {
  if (self->bits_left == 0) {
    if (self->zeros >= 2 && self->at < self->size && self->data[self->at] == 3) {
      self->at++;
      self->zeros = 0;
    }
    if (self->at >= self->size) {
      self->ended = true;
      return 0;
    }
    self->byte = self->data[self->at++];
    self->zeros = self->byte == 0 ? self->zeros + 1 : 0;
    self->bits_left = 8;
  }
  return self->byte >> --self->bits_left & 1;
}

static uint32_t read_bits(bit_reader *self, int count) {
  uint32_t value = 0;
  for (int i = 0; i < count; i++) value = value << 1 | read_bit(self);
  return value;
}

static void skip_bits(bit_reader *self, int count) {
  for (int i = 0; i < count; i++) read_bit(self);
}

/* ue(v) */
static uint32_t read_exp_golomb(bit_reader *self) {
  int zeros = 0;
  while (!self->ended && zeros < EXP_GOLOMB_ZEROS_MAX && read_bit(self) == 0) zeros++;
  return (UINT32_C(1) << zeros) - 1 + read_bits(self, zeros);
}

static void skip_profile_and_levels(bit_reader *self, int sub_layers) {
  bool has_profile[SUB_LAYERS] = {false}, has_level[SUB_LAYERS] = {false};
  skip_bits(self, PROFILE_BITS + LEVEL_BITS);
  for (int i = 0; i < sub_layers; i++) {
    has_profile[i] = read_bit(self);
    has_level[i] = read_bit(self);
  }
  if (sub_layers > 0) skip_bits(self, 2 * (SUB_LAYERS - sub_layers));
  for (int i = 0; i < sub_layers; i++)
    skip_bits(self, (has_profile[i] ? PROFILE_BITS : 0) + (has_level[i] ? LEVEL_BITS : 0));
}

/* data: after the NAL header. 0 where it makes no sense. */
static int64_t sps_pixels(const uint8_t *data, size_t size) {
  bit_reader reader = {.data = data, .size = size};
  read_bits(&reader, 4); /* the video parameter set's number */
  int sub_layers = (int)read_bits(&reader, 3);
  read_bit(&reader);
  skip_profile_and_levels(&reader, sub_layers);
  read_exp_golomb(&reader); /* its own number */
  if (read_exp_golomb(&reader) == 3) read_bit(&reader);
  int64_t width = read_exp_golomb(&reader), height = read_exp_golomb(&reader);
  if (reader.ended) return 0;
  return width > 0 && height > INT64_MAX / width ? INT64_MAX : width * height;
}

int64_t tf_hevc_pixels_max(const uint8_t *data, size_t size) {
  int64_t most = 0;
  for (size_t at = 4; at < size && size - at > 2; at++) {
    if (data[at] != NAL_SPS_FIRST_BYTE || data[at + 1] == 0 || data[at + 1] > SUB_LAYERS) continue;
    /* Four bytes of length before it; or two, after a count of one, in the hvcC box. */
    size_t length = (size_t)data[at - 2] << 8 | data[at - 1];
    bool prefixed = data[at - 4] == 0 && data[at - 3] <= 1 && length > 2 && length <= SPS_BYTES_MAX;
    if (!prefixed || length > size - at) continue;
    int64_t pixels = sps_pixels(data + at + 2, length - 2);
    if (pixels > most) most = pixels;
  }
  return most;
}

/* EXIF orientation. In: the payload of an APP1 marker, or the TIFF block alone. Out: 1..8, or 0 for another payload.
 * Walks the first directory of the TIFF block only; the tag always lives there.
 * Offsets come from the file, so each is checked by subtraction before it is used. */
#include "image/exif.h"

#include <stdbool.h>
#include <string.h>

enum {
  EXIF_PREFIX_BYTES = 6, /* "Exif", then two zero bytes */
  TIFF_HEADER_BYTES = 8,
  IFD_ENTRY_BYTES = 12,
  TAG_ORIENTATION = 0x0112,
  TYPE_SHORT = 3,
  TYPE_LONG = 4
};

static uint32_t read_u16(const uint8_t *at, bool big_endian) {
  return big_endian ? (uint32_t)at[0] << 8 | at[1] : (uint32_t)at[1] << 8 | at[0];
}

static uint32_t read_u32(const uint8_t *at, bool big_endian) {
  uint32_t first = read_u16(at, big_endian), second = read_u16(at + 2, big_endian);
  return big_endian ? first << 16 | second : second << 16 | first;
}

/* The value of one directory entry, where it is the orientation; else 0. entry: 12 readable bytes. */
static uint32_t entry_orientation(const uint8_t *entry, bool big_endian) {
  if (read_u16(entry, big_endian) != TAG_ORIENTATION || read_u32(entry + 4, big_endian) != 1) return 0;
  uint32_t type = read_u16(entry + 2, big_endian);
  if (type == TYPE_SHORT) return read_u16(entry + 8, big_endian);
  if (type == TYPE_LONG) return read_u32(entry + 8, big_endian); /* some writers do */
  return 0;
}

int tf_exif_orientation(const uint8_t *data, size_t size) {
  if (size < EXIF_PREFIX_BYTES || memcmp(data, "Exif\0", EXIF_PREFIX_BYTES - 1) != 0) return 0;
  return tf_exif_tiff_orientation(data + EXIF_PREFIX_BYTES, size - EXIF_PREFIX_BYTES);
}

int tf_exif_tiff_orientation(const uint8_t *tiff, size_t tiff_bytes) {
  if (tiff_bytes < TIFF_HEADER_BYTES) return 1;
  bool big_endian = memcmp(tiff, "MM", 2) == 0;
  if (!big_endian && memcmp(tiff, "II", 2) != 0) return 1;
  if (read_u16(tiff + 2, big_endian) != 42) return 1;

  size_t directory = read_u32(tiff + 4, big_endian);
  if (directory > tiff_bytes || tiff_bytes - directory < 2) return 1;
  size_t entries = read_u16(tiff + directory, big_endian);
  size_t room = (tiff_bytes - directory - 2) / IFD_ENTRY_BYTES;
  if (entries > room) entries = room;
  for (size_t i = 0; i < entries; i++) {
    uint32_t value = entry_orientation(tiff + directory + 2 + i * IFD_ENTRY_BYTES, big_endian);
    if (value >= 1 && value <= 8) return (int)value;
  }
  return 1;
}

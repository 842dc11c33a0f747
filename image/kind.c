/* Telling a picture by its first bytes. In: the first TF_IMAGE_HEAD_BYTES or fewer. Out: the kind, and its name.
 * What is not read is recognised only to be named to the person who sent it.
 * Pure; nothing outside [data, data + size) is read. */
#include "image/kind.h"

#include <stdbool.h>
#include <string.h>

typedef struct signature {
  size_t offset, size;
  const char *bytes;
  tf_image_kind kind;
  const char *name;
} signature;

#define SIGNATURE(offset, bytes, kind, name)                                                                           \
  { offset, sizeof(bytes) - 1, bytes, TF_IMAGE_##kind, name }
/* The first that fits counts, so the longer ones of a family come first. */
static const signature signatures[] = {
    SIGNATURE(0, "\xff\xd8\xff", JPEG, "JPEG"),
    SIGNATURE(0, "\x89PNG\r\n\x1a\n", PNG, "PNG"),
    SIGNATURE(0, "GIF87a", GIF, "GIF"),
    SIGNATURE(0, "GIF89a", GIF, "GIF"),
    SIGNATURE(8, "WEBP", WEBP, "WebP"),
    SIGNATURE(4, "ftypcrx ", FOREIGN, "Canon raw"),
    SIGNATURE(0, "II*\0\x10\0\0\0CR", FOREIGN, "Canon raw"),
    SIGNATURE(0, "IIRO", FOREIGN, "Olympus raw"),
    SIGNATURE(0, "IIU\0", FOREIGN, "Panasonic raw"),
    SIGNATURE(0, "FUJIFILM", FOREIGN, "Fujifilm raw"),
    SIGNATURE(0, "II*\0", TIFF, "TIFF"),
    SIGNATURE(0, "MM\0*", TIFF, "TIFF"),
    SIGNATURE(0, "II+\0", TIFF, "TIFF"), /* BigTIFF */
    SIGNATURE(0, "MM\0+", TIFF, "TIFF"),
    SIGNATURE(0, "\0\0\0\x0cJXL \r\n\x87\n", FOREIGN, "JPEG XL"),
    SIGNATURE(0, "\xff\x0a", FOREIGN, "JPEG XL"),
    SIGNATURE(0, "\0\0\0\x0cjP  \r\n\x87\n", FOREIGN, "JPEG 2000"),
    SIGNATURE(0, "\xff\x4f\xff\x51", FOREIGN, "JPEG 2000"),
    SIGNATURE(0, "8BPS", FOREIGN, "Photoshop"),
    SIGNATURE(0, "\0\0\1\0", FOREIGN, "an icon (ICO)"),
    SIGNATURE(0, "BM", FOREIGN, "BMP"),
    SIGNATURE(0, "%PDF-", FOREIGN, "PDF"),
    SIGNATURE(0, "PK\3\4", FOREIGN, "a ZIP archive"),
    SIGNATURE(0, "\x1f\x8b", FOREIGN, "gzip data"),
    SIGNATURE(0, "\x1a\x45\xdf\xa3", FOREIGN, "a video (Matroska)"),
    SIGNATURE(0, "RIFF", FOREIGN, "RIFF data (audio or video)"),
    SIGNATURE(4, "ftyp", FOREIGN, "a video (MP4 family)"),
};

/* Brands of still pictures in the MP4 family (HEIF, ISO/IEC 23008-12; AVIF). */
static const struct {
  char brand[5];
  const char *name;
} heif_brands[] = {{"heic", "HEIC"}, {"heix", "HEIC"}, {"heim", "HEIC"}, {"heis", "HEIC"}, {"hevc", "HEIC"},
                   {"avif", "AVIF"}, {"avis", "AVIF"}, {"mif1", "HEIF"}, {"msf1", "HEIF"}};

static bool has_at(const uint8_t *data, size_t size, size_t offset, const char *bytes, size_t count) {
  return size >= offset && size - offset >= count && memcmp(data + offset, bytes, count) == 0;
}

/* Looks through the brands of the first box, the major one first. NULL: no picture. */
static const char *heif_name(const uint8_t *data, size_t size) {
  enum { MAJOR_AT = 8, COMPATIBLE_AT = 16, BRAND_BYTES = 4 };
  if (!has_at(data, size, 4, "ftyp", 4)) return NULL;
  size_t box = (size_t)data[0] << 24 | (size_t)data[1] << 16 | (size_t)data[2] << 8 | data[3];
  if (box > size) box = size;
  if (box > TF_IMAGE_HEAD_BYTES) box = TF_IMAGE_HEAD_BYTES;
  for (size_t at = MAJOR_AT; at < box; at = at == MAJOR_AT ? COMPATIBLE_AT : at + BRAND_BYTES)
    for (size_t i = 0; i < sizeof heif_brands / sizeof *heif_brands; i++)
      if (has_at(data, box, at, heif_brands[i].brand, BRAND_BYTES)) return heif_brands[i].name;
  return NULL;
}

static bool starts_with_ignoring_case(const uint8_t *data, size_t size, const char *word) {
  size_t length = strlen(word);
  if (size < length) return false;
  for (size_t i = 0; i < length; i++)
    if ((data[i] | 0x20) != (word[i] | 0x20)) return false;
  return true;
}

/* Text of some kind, or NULL. Only the first bytes are looked at. */
static const char *text_kind(const uint8_t *data, size_t size) {
  enum { LOOK_BYTES_MAX = 256 };
  size_t look = size < LOOK_BYTES_MAX ? size : LOOK_BYTES_MAX, at = 0;
  if (look >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0) at = 3; /* byte order mark */
  for (size_t i = at; i < look; i++) {
    bool control = data[i] == 0x7f || (data[i] < 0x20 && strchr("\t\n\f\r", data[i] ? data[i] : 1) == NULL);
    bool never_in_utf8 = data[i] == 0xc0 || data[i] == 0xc1 || data[i] >= 0xf5;
    if (control || never_in_utf8) return NULL;
  }
  while (at < look && strchr(" \t\n\f\r", data[at] ? data[at] : 1) != NULL) at++;
  const uint8_t *word = data + at;
  size_t rest = look - at;
  if (starts_with_ignoring_case(word, rest, "<!doctype html") || starts_with_ignoring_case(word, rest, "<html"))
    return "an HTML page";
  if (starts_with_ignoring_case(word, rest, "<svg")) return "SVG";
  if (starts_with_ignoring_case(word, rest, "<?xml")) return "XML (perhaps SVG)";
  return "text";
}

tf_image_kind tf_image_kind_tell(const uint8_t *data, size_t size, const char **name) {
  *name = heif_name(data, size);
  if (*name != NULL) return TF_IMAGE_HEIF;
  for (size_t i = 0; i < sizeof signatures / sizeof *signatures; i++) {
    const signature *s = &signatures[i];
    if (!has_at(data, size, s->offset, s->bytes, s->size)) continue;
    *name = s->name;
    return s->kind;
  }
  if (size == 2 && data[0] == 0xFF && data[1] == 0xD8) {
    *name = "JPEG";
    return TF_IMAGE_JPEG;
  }
  *name = text_kind(data, size);
  return *name != NULL ? TF_IMAGE_FOREIGN : TF_IMAGE_UNKNOWN;
}

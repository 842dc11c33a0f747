/* The one EXIF field that changes what a picture shows: its orientation.
 * In: the payload of a JPEG APP1 marker. Out: 1..8.
 * Pure: bytes in, a number out; nothing outside [data, data + size) is read. */
#ifndef TF_IMAGE_EXIF_H
#define TF_IMAGE_EXIF_H

#include <stddef.h>
#include <stdint.h>

/* data: the marker's payload, "Exif\0\0" and a TIFF block (EXIF 2.3, section 4.5). Returns 1..8 as EXIF's tag 0x0112
 * counts; 0 where this is no EXIF payload, 1 (upright) where it is one without a readable orientation. */
int tf_exif_orientation(const uint8_t *data, size_t size);
/* The same of the TIFF block alone, as PNG (eXIf) and WebP (EXIF) keep it: 1..8; 1 where it has none. */
int tf_exif_tiff_orientation(const uint8_t *tiff, size_t tiff_bytes);

#endif

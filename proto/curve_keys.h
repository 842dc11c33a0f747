/* CURVE key files: text, one `public KEY` or `secret KEY` a line, KEY in Z85 (40 characters), # begins a comment line.
 * In: paths. Out: keys in Z85, or an error that names the file and says what to do. A secret key is never part of an
 * error text, and a file that holds one and that everyone may read is refused. */
#ifndef TF_PROTO_CURVE_KEYS_H
#define TF_PROTO_CURVE_KEYS_H

#include <stdint.h>

#include "common/error.h"

enum {
  TF_CURVE_KEY_BYTES = 32,
  TF_CURVE_KEY_TEXT_BYTES = 41,
  TF_CURVE_KEYS_MAX = 4096,
  TF_CURVE_FILE_BYTES_MAX = 524288
};

typedef struct tf_curve_pair {
  char public_key[TF_CURVE_KEY_TEXT_BYTES], secret_key[TF_CURVE_KEY_TEXT_BYTES]; /* Z85, NUL-terminated */
} tf_curve_pair;

/* Reads a pair. Errors: IO, INVALID_FORMAT (no pair, or two keys that are none), INVALID_ARGUMENT (others may read it).
 */
tf_code tf_curve_pair_read(const char *path, tf_curve_pair *out, tf_error *error);
/* Reads the one public key of a file; a file with a pair will do, its secret is passed over. Errors likewise. */
tf_code tf_curve_public_read(const char *path, char out[TF_CURVE_KEY_TEXT_BYTES], tf_error *error);
/* Reads every public key of a file, as bytes; at most TF_CURVE_KEYS_MAX. *out is malloc'ed (NULL for none), the caller
 * frees. Errors likewise, and OUT_OF_MEMORY. */
tf_code tf_curve_allowed_read(const char *path, uint8_t (**out)[TF_CURVE_KEY_BYTES], size_t *count, tf_error *error);

/* Makes a new pair and writes secret_path (mode 0600: the pair) and public_path (mode 0644: the public key). Neither
 * may exist; after an error neither does. */
tf_code tf_curve_pair_create(const char *secret_path, const char *public_path, tf_error *error);

#endif

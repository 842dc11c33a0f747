/* One file of packed weights: named blobs behind a header that says what they are good for. In: a path, a key. Out: the
 * blobs, mapped and shared with all processes that map them; or a file, whole or not there. A file is no input to
 * trust: sizes are checked against it, header and table by a checksum, each blob by its own before it is used.
 * Private to tensor/. */
#ifndef TF_TENSOR_PACK_FILE_H
#define TF_TENSOR_PACK_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum { TF_PACK_NAME_BYTES = 64, TF_PACK_FORM_BYTES = 128, TF_PACK_KEY_BYTES = 256, TF_PACK_BLOBS_MAX = 8192 };

/* A blob to write; name and form are cut to fit. */
typedef struct tf_pack_blob {
  char name[TF_PACK_NAME_BYTES];
  char form[TF_PACK_FORM_BYTES]; /* how the bytes lie: whoever reads them must say the same */
  const void *data;
  size_t bytes;
} tf_pack_blob;

typedef struct tf_pack_file tf_pack_file;

/* *out NULL with TF_OK: no such file. key: as it was written. The caller closes, after the last use of a blob. While it
 * is open it has a shared lock, which tf_pack_file_remove respects.
 * Errors: IO, INVALID_FORMAT (damaged, cut short, of another key or layout), OUT_OF_MEMORY. */
tf_code tf_pack_file_open(const char *path, const char *key, tf_pack_file **out, tf_error *error);
void tf_pack_file_close(tf_pack_file **self);
/* The blob's bytes, read only, aligned to 64; NULL: not there, of another form or size, or damaged (the error says
 * which). Reads all of it. Any thread. */
void *tf_pack_file_blob(const tf_pack_file *self, const char *name, const char *form, size_t bytes, tf_error *error);

/* Bytes that a file of these blobs takes at most. */
uint64_t tf_pack_file_bytes(const tf_pack_blob *blobs, size_t count);
/* Whether no process has the file open: as far as locks say, so not where there are none. folder: a descriptor. */
bool tf_pack_file_unused(int folder, const char *name);
/* Removes the file if it is unused; whether it is gone. */
bool tf_pack_file_remove(int folder, const char *name);
/* Writes a new file, which only this user may read, and puts it in the place of what is at path, at once. Names differ.
 * stop: looked at on the way; may be NULL. Errors: IO, OUT_OF_MEMORY, CANCELLED; nothing of it is left then. */
tf_code tf_pack_file_write(const char *path, const char *key, const tf_pack_blob *blobs, size_t count,
                           const atomic_bool *stop, tf_error *error);

#endif

/* GGUF files, mapped read-only. In: a path. Out: metadata and tensor views into the map, every offset and size checked
 * against the file before it is used. Source: the GGUF v2/v3 specification (ggml's docs/gguf.md). */
#ifndef TF_TENSOR_GGUF_H
#define TF_TENSOR_GGUF_H

#include <stdbool.h>

#include "tensor/tensor.h"

typedef struct tf_gguf tf_gguf;

/* The error names the path and what is wrong: IO, INVALID_FORMAT, UNSUPPORTED (version), OUT_OF_MEMORY.
 * The caller closes. */
tf_code tf_gguf_open(const char *path, tf_gguf **out, tf_error *error);
void tf_gguf_close(tf_gguf **self);
/* The same from memory (fuzzing, tests); data is borrowed. name stands in for the path in errors. */
tf_code tf_gguf_parse(const void *data, size_t size, const char *name, tf_gguf **out, tf_error *error);
const char *tf_gguf_path(const tf_gguf *self);

/* NULL where there is none, or where its type is not supported (a file with such tensors still opens).
 * The view lives as long as the file. Look-up is O(1) on average. */
const tf_tensor *tf_gguf_tensor(const tf_gguf *self, const char *name);
/* As above, but an absent tensor or another shape (-1: any) is TF_ERR_MODEL_INVALID with a text, an unsupported type
 * TF_ERR_UNSUPPORTED. */
tf_code tf_gguf_require(const tf_gguf *self, const char *name, int rank, const int64_t *shape, const tf_tensor **out,
                        tf_error *error);
size_t tf_gguf_tensor_count(const tf_gguf *self);
const char *tf_gguf_tensor_name(const tf_gguf *self, size_t index);

/* Metadata. False: absent, or of a type that does not convert without loss. *out is then untouched. */
bool tf_gguf_u64(const tf_gguf *self, const char *key, uint64_t *out); /* any unsigned, or signed and not negative */
bool tf_gguf_f64(const tf_gguf *self, const char *key, double *out);   /* any float or integer */
bool tf_gguf_bool(const tf_gguf *self, const char *key, bool *out);
/* Not NUL-terminated: *out points into the map. */
bool tf_gguf_string(const tf_gguf *self, const char *key, const char **out, size_t *size);
/* Copies into out, NUL-terminated; false as well where it does not fit or holds a NUL. */
bool tf_gguf_text(const tf_gguf *self, const char *key, char *out, size_t out_bytes);

/* Arrays: number of elements, 0 where absent or no array. */
uint64_t tf_gguf_array_count(const tf_gguf *self, const char *key);
bool tf_gguf_array_u64(const tf_gguf *self, const char *key, uint64_t index, uint64_t *out);
bool tf_gguf_array_i64(const tf_gguf *self, const char *key, uint64_t index, int64_t *out);
bool tf_gguf_array_f64(const tf_gguf *self, const char *key, uint64_t index, double *out);
/* O(1), as the others. */
bool tf_gguf_array_string(const tf_gguf *self, const char *key, uint64_t index, const char **out, size_t *size);

#endif

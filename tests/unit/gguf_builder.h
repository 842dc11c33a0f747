/* Writes small GGUF files for tests, byte by byte, by nobody's code but its own. In: keys, tensors. Out: a tf_buffer.
 * Order: gguf_begin, all keys, all gguf_tensor lines, gguf_align, then the tensors' bytes at the offsets stated. */
#ifndef TF_TESTS_GGUF_BUILDER_H
#define TF_TESTS_GGUF_BUILDER_H

#include <stdint.h>
#include <string.h>

#include "common/buffer.h"

enum {
  GGUF_U8 = 0,
  GGUF_I8 = 1,
  GGUF_U16 = 2,
  GGUF_I16 = 3,
  GGUF_U32 = 4,
  GGUF_I32 = 5,
  GGUF_F32 = 6,
  GGUF_BOOL = 7,
  GGUF_STRING = 8,
  GGUF_ARRAY = 9,
  GGUF_U64 = 10,
  GGUF_I64 = 11,
  GGUF_F64 = 12
};

static inline void gguf_u32(tf_buffer *self, uint32_t x) {
  tf_buffer_append(self, &x, sizeof x);
}
static inline void gguf_u64(tf_buffer *self, uint64_t x) {
  tf_buffer_append(self, &x, sizeof x);
}
static inline void gguf_string(tf_buffer *self, const char *text) {
  gguf_u64(self, strlen(text));
  tf_buffer_append(self, text, strlen(text));
}

static inline void gguf_begin(tf_buffer *self, uint32_t version, uint64_t tensors, uint64_t keys) {
  tf_buffer_init(self, 1 << 24);
  tf_buffer_append(self, "GGUF", 4);
  gguf_u32(self, version);
  gguf_u64(self, tensors);
  gguf_u64(self, keys);
}

static inline void gguf_key(tf_buffer *self, const char *key, uint32_t type) {
  gguf_string(self, key);
  gguf_u32(self, type);
}
static inline void gguf_key_value(tf_buffer *self, const char *key, uint32_t type, const void *value, size_t bytes) {
  gguf_key(self, key, type);
  tf_buffer_append(self, value, bytes);
}
static inline void gguf_key_u32(tf_buffer *self, const char *key, uint32_t value) {
  gguf_key_value(self, key, GGUF_U32, &value, sizeof value);
}
static inline void gguf_key_string(tf_buffer *self, const char *key, const char *text) {
  gguf_key(self, key, GGUF_STRING);
  gguf_string(self, text);
}
/* The elements follow. */
static inline void gguf_key_array(tf_buffer *self, const char *key, uint32_t type, uint64_t count) {
  gguf_key(self, key, GGUF_ARRAY);
  gguf_u32(self, type);
  gguf_u64(self, count);
}

/* shape: as PyTorch prints it; type: ggml's number. */
static inline void gguf_tensor(tf_buffer *self, const char *name, uint32_t rank, const int64_t *shape, uint32_t type,
                               uint64_t offset) {
  gguf_string(self, name);
  gguf_u32(self, rank);
  for (uint32_t i = rank; i-- > 0;) gguf_u64(self, (uint64_t)shape[i]);
  gguf_u32(self, type);
  gguf_u64(self, offset);
}
static inline void gguf_align(tf_buffer *self, size_t alignment) {
  while (self->size % alignment != 0) tf_buffer_append(self, "", 1);
}

#endif

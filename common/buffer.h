/* A growable byte string with a maximum. In: bytes and printf formats. Out: one NUL-terminated block.
 * Appending past the maximum sets `overflow` and appends nothing more; callers check it once at the end. */
#ifndef TF_COMMON_BUFFER_H
#define TF_COMMON_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

typedef struct tf_buffer {
  char *data; /* NUL-terminated once anything was appended; NULL before */
  size_t size, capacity, maximum;
  bool overflow;
} tf_buffer;

void tf_buffer_init(tf_buffer *self, size_t bytes_max);
void tf_buffer_free(tf_buffer *self);
void tf_buffer_clear(tf_buffer *self); /* keeps the memory */
void tf_buffer_append(tf_buffer *self, const void *data, size_t size);
void tf_buffer_printf(tf_buffer *self, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif

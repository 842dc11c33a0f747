/* A growable byte string with a maximum.
 * In: bytes and printf formats. Out: one NUL-terminated block that doubles as it grows.
 * Memory that runs out is treated like the maximum: `overflow`, nothing more appended. */
#include "common/buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tf_buffer_init(tf_buffer *self, size_t bytes_max) {
  *self = (tf_buffer){.maximum = bytes_max < SIZE_MAX ? bytes_max : SIZE_MAX - 1};
}

void tf_buffer_free(tf_buffer *self) {
  free(self->data);
  *self = (tf_buffer){.maximum = self->maximum};
}

void tf_buffer_clear(tf_buffer *self) {
  self->size = 0;
  self->overflow = false;
  if (self->data) self->data[0] = '\0';
}

/* Room for extra bytes and the NUL; sets overflow where there is none. capacity never passes maximum + 1. */
static bool reserve(tf_buffer *self, size_t extra) {
  if (self->overflow) return false;
  if (extra > self->maximum - self->size) {
    self->overflow = true;
    return false;
  }
  size_t needed = self->size + extra + 1;
  if (needed <= self->capacity) return true;
  size_t capacity = self->capacity < 32 ? 64 : self->capacity;
  while (capacity < needed) capacity = capacity > SIZE_MAX / 2 ? needed : capacity * 2;
  if (capacity > self->maximum + 1) capacity = self->maximum + 1;
  char *data = realloc(self->data, capacity);
  if (!data) {
    self->overflow = true;
    return false;
  }
  self->data = data;
  self->capacity = capacity;
  return true;
}

void tf_buffer_append(tf_buffer *self, const void *data, size_t size) {
  if (!reserve(self, size)) return;
  if (size > 0) memcpy(self->data + self->size, data, size);
  self->size += size;
  self->data[self->size] = '\0';
}

void tf_buffer_printf(tf_buffer *self, const char *format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  int length = vsnprintf(NULL, 0, format, arguments);
  va_end(arguments);
  if (length < 0) {
    self->overflow = true;
  } else if (reserve(self, (size_t)length)) {
    vsnprintf(self->data + self->size, (size_t)length + 1, format, again);
    self->size += (size_t)length;
  }
  va_end(again);
}

/* Linear probing over two arrays. In: keys that are hashes already. Out: values.
 * Keys and values lie apart, so that a value of one byte costs one byte.
 * Nothing is ever removed. */
#include "cli/keymap.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { CAPACITY_MIN = 1024 };

uint64_t tf_key_of(const void *bytes, size_t size) {
  uint64_t key = XXH3_64bits(bytes, size);
  return key ? key : 1;
}

void tf_keymap_init(tf_keymap *self, int value_bytes) {
  memset(self, 0, sizeof *self);
  self->value_bytes = value_bytes;
}

void tf_keymap_free(tf_keymap *self) {
  free(self->keys);
  free(self->values);
  tf_keymap_init(self, self->value_bytes);
}

static size_t slot_of(const uint64_t *keys, size_t capacity, uint64_t key) {
  size_t slot = (size_t)(key ^ key >> 32) & (capacity - 1);
  while (keys[slot] && keys[slot] != key) slot = (slot + 1) & (capacity - 1);
  return slot;
}

static void store(void *values, int value_bytes, size_t slot, uint64_t value) {
  if (value_bytes == 1)
    ((uint8_t *)values)[slot] = (uint8_t)value;
  else
    ((uint64_t *)values)[slot] = value;
}

static uint64_t load(const tf_keymap *self, size_t slot) {
  return self->value_bytes == 1 ? ((const uint8_t *)self->values)[slot] : ((const uint64_t *)self->values)[slot];
}

static bool grow(tf_keymap *self) {
  size_t capacity = self->capacity ? self->capacity * 2 : CAPACITY_MIN;
  uint64_t *keys = calloc(capacity, sizeof *keys);
  void *values = calloc(capacity, (size_t)self->value_bytes);
  if (!keys || !values) {
    free(keys);
    free(values);
    return false;
  }
  for (size_t i = 0; i < self->capacity; i++) {
    if (!self->keys[i]) continue;
    size_t slot = slot_of(keys, capacity, self->keys[i]);
    keys[slot] = self->keys[i];
    store(values, self->value_bytes, slot, load(self, i));
  }
  free(self->keys);
  free(self->values);
  self->keys = keys;
  self->values = values;
  self->capacity = capacity;
  return true;
}

tf_code tf_keymap_put(tf_keymap *self, uint64_t key, uint64_t value, tf_error *error) {
  if (self->count >= self->capacity / 8 * 7 && (self->count >= TF_KEYMAP_ENTRIES_MAX || !grow(self)))
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory for the names of %zu pictures", self->count);
  size_t slot = slot_of(self->keys, self->capacity, key);
  if (!self->keys[slot]) self->count++;
  self->keys[slot] = key;
  store(self->values, self->value_bytes, slot, value);
  return TF_OK;
}

bool tf_keymap_get(const tf_keymap *self, uint64_t key, uint64_t *value) {
  if (self->count == 0) return false;
  size_t slot = slot_of(self->keys, self->capacity, key);
  if (!self->keys[slot]) return false;
  *value = load(self, slot);
  return true;
}

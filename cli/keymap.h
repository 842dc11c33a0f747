/* A set of names by their hash, with a small value each: what a run has to remember of every picture.
 * In: 64-bit keys. Out: their values. Open addressing, at most 7/8 full: with values of 1 byte 10 to 21 bytes a name,
 * with values of 8 bytes 18 to 37; half as much again while it grows. */
#ifndef TF_CLI_KEYMAP_H
#define TF_CLI_KEYMAP_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum { TF_KEYMAP_ENTRIES_MAX = 1 << 28 };

typedef struct tf_keymap {
  uint64_t *keys; /* 0: a free slot */
  void *values;
  size_t count, capacity;
  int value_bytes; /* 1 or 8 */
} tf_keymap;

/* XXH3 of the bytes, never 0. Two of a million names share a key in one run of forty million. */
uint64_t tf_key_of(const void *bytes, size_t size);

/* value_bytes: 1 or 8. Allocates nothing yet. */
void tf_keymap_init(tf_keymap *self, int value_bytes);
void tf_keymap_free(tf_keymap *self);
/* Adds key, or gives it another value. TF_ERR_OUT_OF_MEMORY: no memory, or TF_KEYMAP_ENTRIES_MAX names. */
tf_code tf_keymap_put(tf_keymap *self, uint64_t key, uint64_t value, tf_error *error);
/* False: it is not there, *value stays. */
bool tf_keymap_get(const tf_keymap *self, uint64_t key, uint64_t *value);

#endif

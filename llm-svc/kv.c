/* Keys and values of running sequences, in blocks of 16 tokens times all layers.
 * In: how many tokens a sequence may ever have. Out: a block table that holds them all.
 * Free blocks are a stack: what was used last is used next, so that a small load stays in little memory. */
#include "llm-svc/kv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PART_ALIGN = 64 };

struct tf_kv {
  uint32_t layers, blocks, free_count;
  size_t part_bytes;  /* keys, or values, of one layer in one block */
  size_t block_bytes; /* layers * 2 parts */
  size_t mapped_bytes;
  char *memory;
  uint32_t *free; /* [blocks], a stack of free_count */
};

uint32_t tf_kv_blocks_for(uint32_t tokens) {
  return tokens / TF_KV_BLOCK_TOKENS + (tokens % TF_KV_BLOCK_TOKENS != 0);
}

tf_code tf_kv_new(uint32_t layers, size_t part_bytes, uint32_t blocks, tf_kv **out, tf_error *error) {
  if (layers == 0 || part_bytes == 0 || blocks == 0 || blocks > TF_KV_BLOCKS_MAX)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "KV cache of %u blocks, %u layers, parts of %zu bytes", blocks,
                   layers, part_bytes);
  size_t block_bytes, bytes;
  if (__builtin_add_overflow(part_bytes, (size_t)PART_ALIGN - 1, &part_bytes) ||
      __builtin_mul_overflow(part_bytes / PART_ALIGN * PART_ALIGN, (size_t)layers * 2, &block_bytes) ||
      __builtin_mul_overflow(block_bytes, (size_t)blocks, &bytes))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "a KV cache of %u blocks does not fit this machine", blocks);
  tf_kv *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the KV cache");
  self->layers = layers;
  self->blocks = self->free_count = blocks;
  self->part_bytes = part_bytes / PART_ALIGN * PART_ALIGN;
  self->block_bytes = block_bytes;
  self->mapped_bytes = bytes;
  self->free = malloc(blocks * sizeof *self->free);
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  self->memory = memory == MAP_FAILED ? NULL : memory;
  if (self->free == NULL || self->memory == NULL) {
    tf_kv_free(&self);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a KV cache of %zu bytes", bytes);
  }
  for (uint32_t i = 0; i < blocks; i++) self->free[i] = blocks - 1 - i;
  *out = self;
  return TF_OK;
}

void tf_kv_free(tf_kv **self) {
  if (*self == NULL) return;
  if ((*self)->memory != NULL) munmap((*self)->memory, (*self)->mapped_bytes);
  free((*self)->free);
  free(*self);
  *self = NULL;
}

uint32_t tf_kv_blocks(const tf_kv *self) {
  return self->blocks;
}
uint32_t tf_kv_blocks_free(const tf_kv *self) {
  return self->free_count;
}

bool tf_kv_reserve(tf_kv *self, uint32_t tokens, tf_kv_table *table) {
  assert(table->count == 0);
  uint32_t wanted = tf_kv_blocks_for(tokens);
  if (wanted == 0 || wanted > self->free_count) return false;
  table->blocks = malloc(wanted * sizeof *table->blocks);
  if (table->blocks == NULL) return false;
  for (uint32_t i = 0; i < wanted; i++) table->blocks[i] = self->free[--self->free_count];
  table->count = wanted;
  return true;
}

void tf_kv_copy(tf_kv *self, const tf_kv_table *from, const tf_kv_table *to) {
  assert(to->count >= from->count);
  for (uint32_t i = 0; i < from->count; i++)
    memcpy(self->memory + to->blocks[i] * self->block_bytes, self->memory + from->blocks[i] * self->block_bytes,
           self->block_bytes);
}

void tf_kv_clear(tf_kv *self, const tf_kv_table *table) {
  for (uint32_t i = 0; i < table->count; i++)
    memset(self->memory + table->blocks[i] * self->block_bytes, 0, self->block_bytes);
}

void tf_kv_release(tf_kv *self, tf_kv_table *table) {
  assert(table->count <= self->blocks - self->free_count);
  for (uint32_t i = table->count; i > 0; i--) self->free[self->free_count++] = table->blocks[i - 1];
  free(table->blocks);
  *table = (tf_kv_table){0};
}

void *tf_kv_keys(const tf_kv *self, uint32_t layer, uint32_t block) {
  assert(layer < self->layers && block < self->blocks);
  return self->memory + block * self->block_bytes + (size_t)layer * 2 * self->part_bytes;
}

void *tf_kv_values(const tf_kv *self, uint32_t layer, uint32_t block) {
  return (char *)tf_kv_keys(self, layer, block) + self->part_bytes;
}

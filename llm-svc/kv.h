/* Keys and values of running sequences, in blocks of 16 tokens times all layers.
 * In: how many tokens a sequence may ever have. Out: a block table that holds them all.
 * One mapping of fixed size; its memory is touched only where blocks are used, and freed blocks are used again first.
 */
#ifndef TF_LLM_KV_H
#define TF_LLM_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum { TF_KV_BLOCK_TOKENS = 16, TF_KV_BLOCKS_MAX = 1 << 22 };

typedef struct tf_kv tf_kv;
/* Blocks of one sequence, in the order of positions. Zero-initialise. */
typedef struct tf_kv_table {
  uint32_t *blocks;
  uint32_t count;
} tf_kv_table;

/* part_bytes: of the keys, or of the values, of one layer in one block; made a multiple of 64. What a part holds is the
 * model's affair (tf_llm_kv_part_bytes). The caller frees. */
tf_code tf_kv_new(uint32_t layers, size_t part_bytes, uint32_t blocks, tf_kv **out, tf_error *error);
void tf_kv_free(tf_kv **self);
uint32_t tf_kv_blocks(const tf_kv *self);
uint32_t tf_kv_blocks_free(const tf_kv *self);
/* Blocks that hold so many tokens. */
uint32_t tf_kv_blocks_for(uint32_t tokens);

/* Fills an empty table with blocks for `tokens` tokens. False, and nothing taken: not enough free ones, or no memory.
 */
bool tf_kv_reserve(tf_kv *self, uint32_t tokens, tf_kv_table *table);
/* Copies the blocks of one sequence into the first ones of another, which has at least as many. */
void tf_kv_copy(tf_kv *self, const tf_kv_table *from, const tf_kv_table *to);
/* Zeroes what the blocks hold. Before a release where that may be Inf or NaN: attention weighs positions that a
 * sequence does not see by 0, which only finite values survive. */
void tf_kv_clear(tf_kv *self, const tf_kv_table *table);
/* Gives the blocks back; the table is empty afterwards. */
void tf_kv_release(tf_kv *self, tf_kv_table *table);

/* Of one layer in one block, TF_KV_BLOCK_TOKENS positions; aligned to 64 bytes, zeroed at first. */
void *tf_kv_keys(const tf_kv *self, uint32_t layer, uint32_t block);
void *tf_kv_values(const tf_kv *self, uint32_t layer, uint32_t block);

#endif

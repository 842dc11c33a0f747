/* The merging half of byte-level BPE: pairs of ids, their ranks, and a merge that stays O(n log n).
 * In: the symbols of one piece. Out: the same piece in fewer symbols. No text in here, only ids. */
#ifndef TF_LLM_BPE_H
#define TF_LLM_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tf_bpe_merges tf_bpe_merges;

/* Room for `count` merges; NULL: out of memory. */
tf_bpe_merges *tf_bpe_merges_new(size_t count);
void tf_bpe_merges_free(tf_bpe_merges **self);
/* left and right become merged; a pair that is there already keeps its first rank. Not more calls than `count`. */
void tf_bpe_merges_add(tf_bpe_merges *self, int32_t left, int32_t right, uint32_t rank, int32_t merged);

/* Memory that one encoding call reuses from piece to piece. Zero-initialise, free with tf_bpe_scratch_free. */
typedef struct tf_bpe_scratch {
  struct tf_bpe_symbol *symbols;
  struct tf_bpe_candidate *heap;
  size_t symbols_capacity, heap_count, heap_capacity;
} tf_bpe_scratch;
void tf_bpe_scratch_free(tf_bpe_scratch *self);

/* Merges ids[*count] in place, always the pair of lowest rank, the leftmost of equals. False: out of memory. */
bool tf_bpe_merge(const tf_bpe_merges *self, tf_bpe_scratch *scratch, int32_t *ids, size_t *count);

#endif

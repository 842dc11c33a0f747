/* The merging half of byte-level BPE: a hash of pairs, and a heap of the pairs that may merge next.
 * In: the symbols of one piece. Out: the same piece in fewer symbols.
 * The heap keeps a prompt of one repeated letter (one piece of 16 KB) from taking quadratic time. */
#include "llm-svc/bpe.h"

#include <assert.h>
#include <stdlib.h>

/* Key 0 would be the pair (0, 0); keys are stored plus one, so that 0 means empty. */
typedef struct pair_entry {
  uint64_t key;
  uint32_t rank;
  int32_t merged;
} pair_entry;

struct tf_bpe_merges {
  size_t mask, count, count_max;
  pair_entry *entries;
};

struct tf_bpe_symbol {
  int32_t id; /* -1: merged away */
  int32_t previous, next;
};

struct tf_bpe_candidate {
  uint32_t rank;
  int32_t left;              /* index of the left symbol */
  int32_t left_id, right_id; /* the pair as it was: no longer true means the candidate is stale */
  int32_t merged;
};

typedef struct tf_bpe_candidate candidate;
typedef struct tf_bpe_symbol symbol;

tf_bpe_merges *tf_bpe_merges_new(size_t count) {
  tf_bpe_merges *self = calloc(1, sizeof *self);
  if (self == NULL) return NULL;
  size_t capacity = 16;
  while (capacity / 2 < count) capacity *= 2;
  self->entries = calloc(capacity, sizeof *self->entries);
  if (self->entries == NULL) {
    free(self);
    return NULL;
  }
  self->mask = capacity - 1;
  self->count_max = count;
  return self;
}

void tf_bpe_merges_free(tf_bpe_merges **self) {
  if (*self == NULL) return;
  free((*self)->entries);
  free(*self);
  *self = NULL;
}

/* The pair's entry, or the empty one where it belongs. The table is at most half full, so this ends. */
static pair_entry *find_pair(const tf_bpe_merges *self, int32_t left, int32_t right) {
  uint64_t key = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1;
  uint64_t hash = key * 0x9E3779B97F4A7C15u;
  size_t at = (size_t)(hash ^ hash >> 29) & self->mask;
  while (self->entries[at].key != 0 && self->entries[at].key != key) at = (at + 1) & self->mask;
  return &self->entries[at];
}

void tf_bpe_merges_add(tf_bpe_merges *self, int32_t left, int32_t right, uint32_t rank, int32_t merged) {
  assert(left >= 0 && right >= 0 && self->count < self->count_max);
  self->count++;
  pair_entry *entry = find_pair(self, left, right);
  if (entry->key != 0) return;
  *entry = (pair_entry){((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1, rank, merged};
}

void tf_bpe_scratch_free(tf_bpe_scratch *self) {
  free(self->symbols);
  free(self->heap);
  *self = (tf_bpe_scratch){0};
}

static bool reserve(tf_bpe_scratch *self, size_t symbols) {
  if (symbols <= self->symbols_capacity) return true;
  size_t capacity = self->symbols_capacity == 0 ? 64 : self->symbols_capacity;
  while (capacity < symbols) capacity *= 2;
  /* A piece of n symbols offers n - 1 pairs, and every one of at most n - 1 merges offers two more. */
  symbol *grown = realloc(self->symbols, capacity * sizeof *grown);
  if (grown == NULL) return false;
  self->symbols = grown;
  candidate *heap = realloc(self->heap, 3 * capacity * sizeof *heap);
  if (heap == NULL) return false;
  self->heap = heap;
  self->heap_capacity = 3 * capacity;
  self->symbols_capacity = capacity;
  return true;
}

static bool before(const candidate *a, const candidate *b) {
  return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static void heap_push(tf_bpe_scratch *self, candidate item) {
  assert(self->heap_count < self->heap_capacity);
  size_t at = self->heap_count++;
  while (at > 0 && before(&item, &self->heap[(at - 1) / 2])) {
    self->heap[at] = self->heap[(at - 1) / 2];
    at = (at - 1) / 2;
  }
  self->heap[at] = item;
}

static candidate heap_pop(tf_bpe_scratch *self) {
  candidate top = self->heap[0], item = self->heap[--self->heap_count];
  size_t at = 0, count = self->heap_count;
  for (;;) {
    size_t child = 2 * at + 1;
    if (child >= count) break;
    if (child + 1 < count && before(&self->heap[child + 1], &self->heap[child])) child++;
    if (!before(&self->heap[child], &item)) break;
    self->heap[at] = self->heap[child];
    at = child;
  }
  self->heap[at] = item;
  return top;
}

/* Offers the pair that begins at symbol `left`, where it is one. */
static void offer(const tf_bpe_merges *self, tf_bpe_scratch *scratch, int32_t left) {
  if (left < 0) return;
  const symbol *first = &scratch->symbols[left];
  if (first->next < 0) return;
  int32_t right_id = scratch->symbols[first->next].id;
  const pair_entry *pair = find_pair(self, first->id, right_id);
  if (pair->key == 0) return;
  heap_push(scratch, (candidate){pair->rank, left, first->id, right_id, pair->merged});
}

static void merge_all(const tf_bpe_merges *self, tf_bpe_scratch *scratch) {
  symbol *symbols = scratch->symbols;
  while (scratch->heap_count > 0) {
    candidate best = heap_pop(scratch);
    symbol *left = &symbols[best.left];
    if (left->id != best.left_id || left->next < 0 || symbols[left->next].id != best.right_id) continue;
    symbol *right = &symbols[left->next];
    left->id = best.merged;
    right->id = -1;
    left->next = right->next;
    if (left->next >= 0) symbols[left->next].previous = best.left;
    offer(self, scratch, left->previous);
    offer(self, scratch, best.left);
  }
}

bool tf_bpe_merge(const tf_bpe_merges *self, tf_bpe_scratch *scratch, int32_t *ids, size_t *count) {
  size_t n = *count;
  if (n < 2) return true;
  assert(n <= INT32_MAX);
  if (!reserve(scratch, n)) return false;
  for (size_t i = 0; i < n; i++)
    scratch->symbols[i] = (symbol){ids[i], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1};
  scratch->heap_count = 0;
  for (size_t i = 0; i + 1 < n; i++) offer(self, scratch, (int32_t)i);
  merge_all(self, scratch);
  size_t kept = 0;
  for (int32_t i = 0; i >= 0; i = scratch->symbols[i].next) ids[kept++] = scratch->symbols[i].id;
  *count = kept;
  return true;
}

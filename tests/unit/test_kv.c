/* The cache's blocks. In: reservations and releases, random ones too. Out: no block in two hands, none lost, the same
 * memory used again, sizes that do not fit refused. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llm-svc/kv.h"

static tf_kv *make(uint32_t layers, uint32_t width, uint32_t blocks) {
  tf_kv *self = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_kv_new(layers, (size_t)width * TF_KV_BLOCK_TOKENS * sizeof(float), blocks, &self, &error), TF_OK,
               "%s", error.text);
  return self;
}

Test(kv, blocks_for_tokens) {
  cr_assert_eq(tf_kv_blocks_for(1), 1);
  cr_assert_eq(tf_kv_blocks_for(TF_KV_BLOCK_TOKENS), 1);
  cr_assert_eq(tf_kv_blocks_for(TF_KV_BLOCK_TOKENS + 1), 2);
  cr_assert_eq(tf_kv_blocks_for(UINT32_MAX), UINT32_MAX / TF_KV_BLOCK_TOKENS + 1);
}

Test(kv, reserves_all_or_nothing) {
  tf_kv *self = make(2, 8, 4);
  tf_kv_table a = {0}, b = {0};
  cr_assert(tf_kv_reserve(self, 3 * TF_KV_BLOCK_TOKENS, &a));
  cr_assert_eq(a.count, 3);
  cr_assert_not(tf_kv_reserve(self, TF_KV_BLOCK_TOKENS + 1, &b));
  cr_assert_eq(b.count, 0);
  cr_assert_eq(tf_kv_blocks_free(self), 1);
  cr_assert(tf_kv_reserve(self, 1, &b));
  tf_kv_release(self, &a);
  tf_kv_release(self, &b);
  tf_kv_release(self, &b); /* an empty table is nothing to give back */
  cr_assert_eq(tf_kv_blocks_free(self), 4);
  cr_assert_eq(tf_kv_blocks(self), 4);
  tf_kv_free(&self);
}

Test(kv, copies_the_first_blocks) {
  enum { LAYERS = 2, WIDTH = 4, FLOATS = TF_KV_BLOCK_TOKENS * WIDTH };
  tf_kv *self = make(LAYERS, WIDTH, 6);
  tf_kv_table from = {0}, to = {0}, none = {0};
  cr_assert(tf_kv_reserve(self, 2 * TF_KV_BLOCK_TOKENS, &from) && tf_kv_reserve(self, 3 * TF_KV_BLOCK_TOKENS, &to));
  for (uint32_t block = 0; block < 2; block++)
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
      ((float *)tf_kv_keys(self, layer, from.blocks[block]))[FLOATS - 1] = (float)(block * 10 + layer + 1);
      ((float *)tf_kv_values(self, layer, from.blocks[block]))[0] = (float)(block * 10 + layer + 100);
    }
  tf_kv_copy(self, &none, &to);
  cr_assert_eq(((float *)tf_kv_values(self, 0, to.blocks[0]))[0], 0.0f);
  tf_kv_copy(self, &from, &to);
  for (uint32_t block = 0; block < 3; block++)
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
      float key = ((float *)tf_kv_keys(self, layer, to.blocks[block]))[FLOATS - 1];
      float value = ((float *)tf_kv_values(self, layer, to.blocks[block]))[0];
      cr_assert_eq(key, block < 2 ? (float)(block * 10 + layer + 1) : 0.0f);
      cr_assert_eq(value, block < 2 ? (float)(block * 10 + layer + 100) : 0.0f);
    }
  tf_kv_release(self, &from);
  tf_kv_release(self, &to);
  tf_kv_free(&self);
}

/* Every part of every block is memory of its own: what is written last shows overlaps. */
Test(kv, parts_do_not_overlap) {
  enum { LAYERS = 3, WIDTH = 5, BLOCKS = 6, FLOATS = TF_KV_BLOCK_TOKENS * WIDTH };
  tf_kv *self = make(LAYERS, WIDTH, BLOCKS);
  for (uint32_t block = 0; block < BLOCKS; block++)
    for (uint32_t layer = 0; layer < LAYERS; layer++)
      for (int i = 0; i < FLOATS; i++) {
        ((float *)tf_kv_keys(self, layer, block))[i] = (float)(block * 100 + layer * 10);
        ((float *)tf_kv_values(self, layer, block))[i] = (float)(block * 100 + layer * 10 + 1);
      }
  for (uint32_t block = 0; block < BLOCKS; block++)
    for (uint32_t layer = 0; layer < LAYERS; layer++)
      for (int i = 0; i < FLOATS; i++) {
        cr_assert_eq(((float *)tf_kv_keys(self, layer, block))[i], (float)(block * 100 + layer * 10));
        cr_assert_eq(((float *)tf_kv_values(self, layer, block))[i], (float)(block * 100 + layer * 10 + 1));
      }
  tf_kv_free(&self);
}

Test(kv, cleared_blocks_are_zero_and_no_others) {
  enum { LAYERS = 2, WIDTH = 4, FLOATS = TF_KV_BLOCK_TOKENS * WIDTH };
  tf_kv *self = make(LAYERS, WIDTH, 5);
  tf_kv_table a = {0}, b = {0};
  cr_assert(tf_kv_reserve(self, 2 * TF_KV_BLOCK_TOKENS, &a) && tf_kv_reserve(self, 3 * TF_KV_BLOCK_TOKENS, &b));
  for (uint32_t block = 0; block < 5; block++)
    for (uint32_t layer = 0; layer < LAYERS; layer++)
      for (int i = 0; i < FLOATS; i++)
        ((float *)tf_kv_keys(self, layer, block))[i] = ((float *)tf_kv_values(self, layer, block))[i] = NAN;
  tf_kv_clear(self, &a);
  for (uint32_t block = 0; block < 5; block++) {
    bool cleared = block == a.blocks[0] || block == a.blocks[1];
    for (uint32_t layer = 0; layer < LAYERS; layer++)
      for (int i = 0; i < FLOATS; i++) {
        cr_assert_eq(((float *)tf_kv_keys(self, layer, block))[i] == 0, cleared);
        cr_assert_eq(((float *)tf_kv_values(self, layer, block))[i] == 0, cleared);
      }
  }
  tf_kv_release(self, &a);
  tf_kv_release(self, &b);
  tf_kv_clear(self, &b); /* an empty table has nothing to clear */
  tf_kv_free(&self);
}

Test(kv, small_loads_stay_in_the_same_blocks) {
  tf_kv *self = make(1, 4, 1000);
  bool used[1000] = {false};
  uint32_t distinct = 0;
  for (int round = 0; round < 500; round++) {
    tf_kv_table a = {0}, b = {0};
    cr_assert(tf_kv_reserve(self, 40, &a) && tf_kv_reserve(self, 70, &b));
    for (uint32_t i = 0; i < a.count; i++) used[a.blocks[i]] = true;
    for (uint32_t i = 0; i < b.count; i++) used[b.blocks[i]] = true;
    tf_kv_release(self, &a);
    tf_kv_release(self, &b);
  }
  for (int i = 0; i < 1000; i++) distinct += used[i];
  cr_assert_eq(distinct, 8, "%u blocks", distinct); /* 3 + 5 */
  tf_kv_free(&self);
}

Test(kv, random_operations) {
  enum { BLOCKS = 40, TABLES = 12 };
  tf_kv *self = make(2, 4, BLOCKS);
  tf_kv_table tables[TABLES] = {0};
  srand(1);
  for (int step = 0; step < 20000; step++) {
    tf_kv_table *table = &tables[rand() % TABLES];
    if (table->count > 0) {
      tf_kv_release(self, table);
    } else {
      uint32_t tokens = 1 + (uint32_t)rand() % 200, wanted = tf_kv_blocks_for(tokens), left = tf_kv_blocks_free(self);
      cr_assert_eq(tf_kv_reserve(self, tokens, table), wanted <= left);
      cr_assert_eq(table->count, wanted <= left ? wanted : 0);
    }
    bool owned[BLOCKS] = {false};
    uint32_t count = 0;
    for (int i = 0; i < TABLES; i++)
      for (uint32_t b = 0; b < tables[i].count; b++, count++) {
        cr_assert(tables[i].blocks[b] < BLOCKS && !owned[tables[i].blocks[b]], "a block in two tables");
        owned[tables[i].blocks[b]] = true;
      }
    cr_assert_eq(count + tf_kv_blocks_free(self), BLOCKS);
  }
  for (int i = 0; i < TABLES; i++) tf_kv_release(self, &tables[i]);
  tf_kv_free(&self);
}

Test(kv, sizes_that_do_not_fit_are_refused) {
  const struct {
    uint32_t layers;
    size_t part_bytes;
    uint32_t blocks;
  } bad[] = {{0, 4, 4},       {2, 0, 4}, {2, 4, 0}, {2, 4, TF_KV_BLOCKS_MAX + 1}, {UINT32_MAX, SIZE_MAX / 4, 4},
             {2, SIZE_MAX, 4}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    tf_kv *self = NULL;
    tf_error error = {0};
    cr_assert_eq(tf_kv_new(bad[i].layers, bad[i].part_bytes, bad[i].blocks, &self, &error), TF_ERR_INVALID_ARGUMENT);
    cr_assert_null(self);
  }
}

/* The scheduler's promises, on chosen cases and on random operations.
 * In: requests as token counts, plans, removals. Out: batches inside their bounds, positions without gaps, first come
 * first served, everyone served in the end. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "llm-svc/scheduler.h"

static tf_scheduler *make(uint32_t rows, uint32_t sequences, uint32_t waiting, uint32_t blocks, uint32_t block_tokens) {
  tf_scheduler_config config = {.rows_max = rows,
                                .sequences_max = sequences,
                                .waiting_max = waiting,
                                .blocks_max = blocks,
                                .block_tokens = block_tokens};
  tf_scheduler *self = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_scheduler_new(&config, &self, &error), TF_OK, "%s", error.text);
  return self;
}

static uint32_t add(tf_scheduler *self, uint32_t prompt, uint32_t new_tokens) {
  uint32_t id = UINT32_MAX;
  tf_error error = {0};
  cr_assert_eq(tf_scheduler_add(self, prompt, new_tokens, &id, &error), TF_OK, "%s", error.text);
  return id;
}

static void expect_item(const tf_scheduled *item, uint32_t id, uint32_t first, uint32_t count, bool admitted,
                        bool samples) {
  cr_assert_eq(item->id, id);
  cr_assert_eq(item->first, first, "first %u", item->first);
  cr_assert_eq(item->count, count, "count %u", item->count);
  cr_assert_eq(item->admitted, admitted);
  cr_assert_eq(item->samples, samples);
}

Test(scheduler, prompt_then_tokens) {
  tf_scheduler *self = make(8, 2, 2, 4, 16);
  const tf_scheduled *items;
  size_t count;
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 0);
  cr_assert_eq(count, 0);
  uint32_t id = add(self, 10, 3);
  cr_assert_eq(tf_scheduler_waiting(self), 1);
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 8);
  expect_item(&items[0], id, 0, 8, true, false);
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 2);
  expect_item(&items[0], id, 8, 2, false, true);
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 1);
  expect_item(&items[0], id, 10, 1, false, true);
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 1);
  expect_item(&items[0], id, 11, 1, false, true);
  cr_assert_eq(tf_scheduler_blocks_used(self), 1);
  tf_scheduler_remove(self, id);
  cr_assert_eq(tf_scheduler_blocks_used(self), 0);
  cr_assert_eq(tf_scheduler_running(self), 0);
  tf_scheduler_free(&self);
}

Test(scheduler, the_head_of_every_prompt_is_there_already) {
  tf_scheduler_config config = {
      .rows_max = 8, .sequences_max = 2, .waiting_max = 2, .blocks_max = 8, .block_tokens = 16, .head_tokens = 3};
  tf_scheduler *self = NULL;
  tf_error error;
  cr_assert_eq(tf_scheduler_new(&config, &self, &error), TF_OK);
  const tf_scheduled *items;
  size_t count;
  uint32_t a = add(self, 4, 2), b = add(self, 16, 1);
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 8);
  expect_item(&items[0], a, 3, 1, true, true);
  expect_item(&items[1], b, 3, 7, true, false);
  cr_assert_eq(tf_scheduler_blocks_used(self), 1 + 2, "its memory is counted");
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 1 + 6);
  expect_item(&items[0], a, 4, 1, false, true);
  expect_item(&items[1], b, 10, 6, false, true);
  tf_scheduler_free(&self);
}

Test(scheduler, decoding_goes_first_and_prompts_fill_the_rest) {
  tf_scheduler *self = make(8, 4, 4, 100, 16);
  const tf_scheduled *items;
  size_t count;
  uint32_t a = add(self, 2, 20), b = add(self, 3, 20);
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 5);
  uint32_t c = add(self, 9, 5), d = add(self, 2, 5);
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 8);
  cr_assert_eq(count, 3);
  expect_item(&items[0], a, 2, 1, false, true);
  expect_item(&items[1], b, 3, 1, false, true);
  expect_item(&items[2], c, 0, 6, true, false);
  cr_assert_eq(tf_scheduler_plan(self, &items, &count), 7);
  cr_assert_eq(count, 4);
  expect_item(&items[2], c, 6, 3, false, true);
  expect_item(&items[3], d, 0, 2, true, true);
  tf_scheduler_free(&self);
}

Test(scheduler, nobody_overtakes_a_request_that_waits_for_room) {
  tf_scheduler *self = make(64, 8, 8, 4, 16);
  const tf_scheduled *items;
  size_t count;
  uint32_t small = add(self, 10, 6), big = add(self, 40, 24), tiny = add(self, 1, 1);
  tf_scheduler_plan(self, &items, &count);
  cr_assert_eq(count, 1); /* big needs all four blocks; tiny would fit, but came later */
  expect_item(&items[0], small, 0, 10, true, true);
  cr_assert_eq(tf_scheduler_waiting(self), 2);
  tf_scheduler_remove(self, small);
  tf_scheduler_plan(self, &items, &count);
  cr_assert_eq(count, 1);
  expect_item(&items[0], big, 0, 40, true, true);
  tf_scheduler_remove(self, big);
  tf_scheduler_plan(self, &items, &count);
  expect_item(&items[0], tiny, 0, 1, true, true);
  tf_scheduler_free(&self);
}

Test(scheduler, bounds) {
  tf_scheduler *self = make(4, 2, 1, 4, 16);
  tf_error error = {0};
  uint32_t id;
  cr_assert_eq(tf_scheduler_add(self, 60, 5, &id, &error), TF_ERR_PROMPT_TOO_LONG);
  cr_assert_eq(tf_scheduler_add(self, UINT32_MAX, UINT32_MAX, &id, &error), TF_ERR_PROMPT_TOO_LONG);
  cr_assert_eq(tf_scheduler_add(self, 60, 4, &id, &error), TF_OK);
  add(self, 1, 1);
  uint32_t last = add(self, 1, 1);
  cr_assert_eq(tf_scheduler_add(self, 1, 1, &id, &error), TF_ERR_WORKER_FULL);
  tf_scheduler_remove(self, last);
  cr_assert_eq(tf_scheduler_add(self, 1, 1, &id, &error), TF_OK);
  tf_scheduler_free(&self);
}

Test(scheduler, impossible_configurations_are_refused) {
  const tf_scheduler_config configs[] = {{4, 5, 1, 4, 16, 0},
                                         {4, 0, 1, 4, 16, 0},
                                         {4, 2, 1, 0, 16, 0},
                                         {4, 2, 1, 4, 0, 0},
                                         {TF_SCHEDULER_ROWS_MAX + 1, 2, 1, 4, 16, 0}};
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    tf_scheduler *self = NULL;
    tf_error error = {0};
    cr_assert_eq(tf_scheduler_new(&configs[i], &self, &error), TF_ERR_INVALID_ARGUMENT, "%zu", i);
    cr_assert_null(self);
  }
}

/* ---- Random operations against a model of what must hold ---- */

enum { IDS_MAX = 32 };
typedef struct shadow {
  bool live, running;
  uint32_t prompt, new_tokens, computed, sampled, blocks;
  uint64_t arrival;
} shadow;

typedef struct world {
  tf_scheduler_config config;
  tf_scheduler *scheduler;
  shadow requests[IDS_MAX];
  uint64_t arrivals, admissions_arrival; /* of the one admitted last */
  unsigned random;
} world;

static uint32_t below(world *self, uint32_t bound) {
  self->random = self->random * 1664525u + 1013904223u;
  return (self->random >> 8) % bound;
}

static void random_add(world *self) {
  shadow one = {.live = true, .prompt = 1 + below(self, 60), .new_tokens = 1 + below(self, 12)};
  one.blocks = (one.prompt + one.new_tokens + self->config.block_tokens - 1) / self->config.block_tokens;
  uint32_t live = 0, id = UINT32_MAX;
  for (int i = 0; i < IDS_MAX; i++) live += self->requests[i].live;
  tf_code code = tf_scheduler_add(self->scheduler, one.prompt, one.new_tokens, &id, NULL);
  if (one.blocks > self->config.blocks_max) {
    cr_assert_eq(code, TF_ERR_PROMPT_TOO_LONG);
  } else if (live == self->config.sequences_max + self->config.waiting_max) {
    cr_assert_eq(code, TF_ERR_WORKER_FULL);
  } else {
    cr_assert_eq(code, TF_OK);
    cr_assert(id < self->config.sequences_max + self->config.waiting_max && !self->requests[id].live);
    one.arrival = ++self->arrivals;
    self->requests[id] = one;
  }
}

static void check_item(world *self, const tf_scheduled *item) {
  shadow *one = &self->requests[item->id];
  cr_assert(one->live && item->count > 0);
  cr_assert_eq(item->first, one->computed, "a gap in the positions");
  cr_assert_eq(item->admitted, item->first == 0);
  if (!one->running) {
    cr_assert_gt(one->arrival, self->admissions_arrival, "overtaken");
    self->admissions_arrival = one->arrival;
    one->running = true;
  }
  if (one->computed >= one->prompt) cr_assert_eq(item->count, 1);
  one->computed += item->count;
  cr_assert_eq(item->samples, one->computed >= one->prompt);
  one->sampled += item->samples;
}

static void random_plan(world *self) {
  const tf_scheduled *items;
  size_t count;
  uint32_t decoding = 0, live = 0, planned = 0, rows = 0, blocks = 0;
  for (int i = 0; i < IDS_MAX; i++) {
    const shadow *one = &self->requests[i];
    live += one->live;
    decoding += one->live && one->computed >= one->prompt;
  }
  uint32_t told = tf_scheduler_plan(self->scheduler, &items, &count);
  cr_assert_eq(told == 0, live == 0, "%u live, %u rows", live, told);
  cr_assert_leq(count, self->config.sequences_max);
  for (size_t i = 0; i < count; i++) {
    for (size_t j = 0; j < i; j++) cr_assert_neq(items[i].id, items[j].id);
    planned += self->requests[items[i].id].computed >= self->requests[items[i].id].prompt;
    check_item(self, &items[i]);
    rows += items[i].count;
  }
  cr_assert_eq(planned, decoding, "every decoding sequence goes on");
  cr_assert(rows == told && rows <= self->config.rows_max);
  for (int i = 0; i < IDS_MAX; i++)
    if (self->requests[i].live && self->requests[i].running) blocks += self->requests[i].blocks;
  cr_assert_leq(blocks, tf_scheduler_blocks_used(self->scheduler));
  cr_assert_leq(tf_scheduler_blocks_used(self->scheduler), self->config.blocks_max);
  cr_assert_eq(tf_scheduler_running(self->scheduler) + tf_scheduler_waiting(self->scheduler), live);
  for (uint32_t i = 0; i < IDS_MAX; i++) {
    shadow *one = &self->requests[i];
    bool ends = one->live && one->sampled > 0 && (one->sampled == one->new_tokens || below(self, 8) == 0);
    if (!ends) continue;
    tf_scheduler_remove(self->scheduler, i);
    *one = (shadow){0};
  }
}

static void random_cancel(world *self) {
  uint32_t id = below(self, IDS_MAX);
  if (!self->requests[id].live) return;
  tf_scheduler_remove(self->scheduler, id);
  self->requests[id] = (shadow){0};
}

Test(scheduler, random_operations, .timeout = 60) {
  for (unsigned seed = 1; seed <= 200; seed++) {
    world self = {.random = seed};
    uint32_t sequences = 1 + below(&self, 6);
    self.config = (tf_scheduler_config){sequences + below(&self, 20), sequences, below(&self, 10), 2 + below(&self, 20),
                                        4 + below(&self, 13),         0};
    self.scheduler = make(self.config.rows_max, sequences, self.config.waiting_max, self.config.blocks_max,
                          self.config.block_tokens);
    for (int step = 0; step < 400; step++) {
      uint32_t operation = below(&self, 10);
      if (operation < 4)
        random_add(&self);
      else if (operation < 9)
        random_plan(&self);
      else
        random_cancel(&self);
    }
    /* Everyone who is left is served in bounded time: nobody starves. */
    for (int step = 0; step < 2000 && tf_scheduler_running(self.scheduler) + tf_scheduler_waiting(self.scheduler) > 0;
         step++)
      random_plan(&self);
    cr_assert_eq(tf_scheduler_running(self.scheduler) + tf_scheduler_waiting(self.scheduler), 0, "seed %u", seed);
    cr_assert_eq(tf_scheduler_blocks_used(self.scheduler), 0);
    tf_scheduler_free(&self.scheduler);
  }
}

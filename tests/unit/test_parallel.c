/* The pool: every element once, pieces on grain boundaries, any number of threads, many ranges after each other.
 * In: ranges. Out: a Criterion suite (also run under the thread sanitizer). */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "tensor/parallel.h"

typedef struct record {
  tf_pool *pool;
  int64_t grain, count;
  int threads;
  unsigned char *seen; /* plain memory: pieces of one range never share an element */
  atomic_int pieces, faults;
} record;

static void mark(void *context, int64_t begin, int64_t end, int thread) {
  record *self = context;
  bool whole = end % self->grain == 0 || end == self->count;
  if (begin % self->grain != 0 || !whole || begin >= end || end > self->count) atomic_fetch_add(&self->faults, 1);
  if (thread < 0 || thread >= self->threads) atomic_fetch_add(&self->faults, 1);
  atomic_fetch_add(&self->pieces, 1);
  for (int64_t i = begin; i < end; i++) self->seen[i]++;
}

Test(parallel, every_element_once, .timeout = 60) {
  static const int64_t counts[] = {0, 1, 2, 15, 16, 17, 100, 1000, 4099}, grains[] = {1, 7, 16, 5000};
  for (int threads = 1; threads <= 5; threads++) {
    tf_pool *pool = tf_pool_new(threads);
    cr_assert_eq(tf_pool_threads(pool), threads);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
      for (size_t j = 0; j < sizeof grains / sizeof *grains; j++) {
        int64_t count = counts[i];
        record self = {.grain = grains[j], .count = count, .threads = threads};
        self.seen = calloc((size_t)count + 1, 1);
        cr_assert_not_null(self.seen);
        tf_parallel(pool, count, grains[j], mark, &self);
        cr_assert_eq(atomic_load(&self.faults), 0, "count %ld, grain %ld", (long)count, (long)grains[j]);
        cr_assert(atomic_load(&self.pieces) <= 4 * threads);
        for (int64_t k = 0; k < count; k++) cr_assert_eq(self.seen[k], 1, "element %ld of %ld", (long)k, (long)count);
        free(self.seen);
      }
    }
    tf_pool_free(&pool);
    cr_assert_null(pool);
  }
}

/* A range that needs the result of the one before: a late or double piece shows as a wrong sum. */
typedef struct chain {
  int64_t cells[64];
} chain;
static void step(void *context, int64_t begin, int64_t end, int thread) {
  chain *self = context;
  (void)thread;
  for (int64_t i = begin; i < end; i++) self->cells[i] = self->cells[i] * 3 % 1000003 + 1;
}

Test(parallel, thousands_of_short_ranges, .timeout = 120) {
  tf_pool *pool = tf_pool_new(3);
  chain got = {.cells = {0}}, expected = {.cells = {0}};
  for (int round = 0; round < 20000; round++) {
    tf_parallel(pool, 64, 1, step, &got);
    step(&expected, 0, 64, 0);
    /* Now and then long enough for the workers to fall asleep. */
    if (round % 2000 == 0) nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
  }
  cr_assert_arr_eq(got.cells, expected.cells, sizeof got.cells);
  tf_pool_free(&pool);
}

typedef struct meeting {
  atomic_int here;
  bool met[2];
} meeting;
static void meet(void *context, int64_t begin, int64_t end, int thread) {
  meeting *self = context;
  (void)end;
  (void)thread;
  atomic_fetch_add(&self->here, 1);
  for (int i = 0; i < 5000 && atomic_load(&self->here) < 2; i++)
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  self->met[begin] = atomic_load(&self->here) == 2;
}

Test(parallel, two_threads_work_at_the_same_time, .timeout = 60) {
  tf_pool *pool = tf_pool_new(2);
  meeting self = {.here = 0};
  tf_parallel(pool, 2, 1, meet, &self);
  cr_assert(self.met[0] && self.met[1], "each piece waited for the other one to start");
  tf_pool_free(&pool);
}

static void fill_scratch(void *context, int64_t begin, int64_t end, int thread) {
  record *self = context;
  unsigned char *scratch = tf_pool_scratch(self->pool, thread);
  if ((uintptr_t)scratch % 64 != 0) atomic_fetch_add(&self->faults, 1);
  for (size_t i = 0; i < TF_POOL_SCRATCH_BYTES; i += 997) scratch[i] = (unsigned char)thread;
  for (size_t i = 0; i < TF_POOL_SCRATCH_BYTES; i += 997) {
    if (scratch[i] != (unsigned char)thread) atomic_fetch_add(&self->faults, 1);
  }
  (void)begin;
  (void)end;
}

Test(parallel, scratch_is_a_threads_own) {
  record self = {.pool = tf_pool_new(4)};
  for (int round = 0; round < 50; round++) tf_parallel(self.pool, 16, 1, fill_scratch, &self);
  cr_assert_eq(atomic_load(&self.faults), 0);
  tf_pool_free(&self.pool);
}

Test(parallel, as_many_threads_as_cores) {
  tf_pool *pool = tf_pool_new(0);
  cr_assert(tf_pool_threads(pool) >= 1 && tf_pool_threads(pool) <= sysconf(_SC_NPROCESSORS_ONLN));
  tf_pool_free(&pool);
  tf_pool_free(&pool); /* NULL: nothing to do */
}

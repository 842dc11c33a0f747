/* Persistent compute threads that claim pieces of a range. In: a range and a function. Out: the function run over all
 * of it. One atomic word, the ticket, holds how many pieces the current range has and which one is next: claiming is
 * one compare-and-swap, and a worker that wakes late finds nothing to claim, whatever it slept through. */
#include "tensor/parallel.h"

#include <assert.h>
#include <cblas.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "tensor/huge.h"

/* OpenBLAS keeps a buffer for each calling thread and is built for 64. */
enum { THREADS_MAX = 64, PIECES_A_THREAD = 4, SPINS_MAX = 600 };

typedef struct worker {
  tf_pool *pool;
  int thread;
  pthread_t id;
} worker;

struct tf_pool {
  int threads, started;
  void *scratch; /* of each thread, then the shared part */
  worker workers[THREADS_MAX];
  pthread_mutex_t mutex;
  pthread_cond_t work, done;
  bool stop; /* under the mutex */
  /* The current range: written before the ticket is published, stable until `pending` is 0. */
  tf_parallel_fn fn;
  void *context;
  int64_t count, grain, units, pieces;
  _Atomic uint64_t ticket; /* end << 32 | next: pieces next..end-1 are not claimed yet */
  atomic_int pending;      /* pieces not finished yet */
};

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static uint64_t ticket_end(uint64_t ticket) {
  return ticket >> 32;
}
static uint64_t ticket_next(uint64_t ticket) {
  return ticket & UINT32_MAX;
}

static bool has_work(tf_pool *self) {
  uint64_t ticket = atomic_load_explicit(&self->ticket, memory_order_acquire);
  return ticket_next(ticket) < ticket_end(ticket);
}

static void run_piece(tf_pool *self, int64_t piece, int thread) {
  int64_t pieces = self->pieces, each = self->units / pieces, extra = self->units % pieces;
  int64_t first = piece * each + (piece < extra ? piece : extra);
  int64_t last = first + each + (piece < extra);
  int64_t end = last == self->units ? self->count : last * self->grain;
  self->fn(self->context, first * self->grain, end, thread);
}

/* Claims and runs pieces until none is left to claim: the caller from the front, workers from the back. So the rows at
 * either end stay with one core from range to range, as long as nobody is held up. */
static void run_pieces(tf_pool *self, int thread) {
  uint64_t ticket = atomic_load_explicit(&self->ticket, memory_order_acquire);
  while (ticket_next(ticket) < ticket_end(ticket)) {
    uint64_t claimed = thread == 0 ? ticket + 1 : ticket - ((uint64_t)1 << 32);
    if (!atomic_compare_exchange_weak_explicit(&self->ticket, &ticket, claimed, memory_order_acq_rel,
                                               memory_order_acquire)) {
      continue;
    }
    run_piece(self, (int64_t)(thread == 0 ? ticket_next(ticket) : ticket_end(claimed)), thread);
    if (atomic_fetch_sub_explicit(&self->pending, 1, memory_order_acq_rel) == 1 && thread != 0) {
      pthread_mutex_lock(&self->mutex);
      pthread_cond_signal(&self->done);
      pthread_mutex_unlock(&self->mutex);
    }
    ticket = atomic_load_explicit(&self->ticket, memory_order_acquire);
  }
}

static void *worker_main(void *argument) {
  worker *me = argument;
  tf_pool *self = me->pool;
  for (;;) {
    /* Ranges follow each other within microseconds in a model's layers: a short spin saves the sleep. */
    for (int i = 0; i < SPINS_MAX && !has_work(self); i++) relax();
    if (!has_work(self)) {
      pthread_mutex_lock(&self->mutex);
      while (!has_work(self) && !self->stop) pthread_cond_wait(&self->work, &self->mutex);
      bool stop = self->stop;
      pthread_mutex_unlock(&self->mutex);
      if (stop) return NULL;
    }
    run_pieces(self, me->thread);
  }
}

/* Cores by affinity, and by the control group's CPU limit where there is one (containers). */
static int cores_usable(void) {
  cpu_set_t set;
  int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
  if (file) {
    long long quota_us, period_us;
    if (fscanf(file, "%lld %lld", &quota_us, &period_us) == 2 && quota_us > 0 && period_us > 0) {
      long long limit = quota_us / period_us + (quota_us % period_us != 0);
      if (limit < cores) cores = (int)limit;
    }
    fclose(file);
  }
  return cores < 1 ? 1 : cores;
}

/* Signals stay with the threads that expect them: workers are made with all of them blocked. */
static bool start_workers(tf_pool *self) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (int i = 1; i < self->threads; i++) {
    worker *one = &self->workers[i];
    *one = (worker){.pool = self, .thread = i};
    if (pthread_create(&one->id, NULL, worker_main, one) != 0) break;
    pthread_setname_np(one->id, "tf-compute");
    self->started++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return self->started == self->threads - 1;
}

static pthread_once_t blas_once = PTHREAD_ONCE_INIT;
static void blas_setup(void) {
  openblas_set_num_threads(1);
}
void tf_blas_single_threaded(void) {
  pthread_once(&blas_once, blas_setup);
}

tf_pool *tf_pool_new(int threads) {
  tf_blas_single_threaded();
  if (threads <= 0) threads = cores_usable();
  if (threads > THREADS_MAX) threads = THREADS_MAX;
  tf_pool *self = calloc(1, sizeof *self);
  if (!self) return NULL;
  self->threads = threads;
  pthread_mutex_init(&self->mutex, NULL);
  pthread_cond_init(&self->work, NULL);
  pthread_cond_init(&self->done, NULL);
  self->scratch = tf_huge_new((size_t)threads * TF_POOL_SCRATCH_BYTES + TF_POOL_SHARED_BYTES);
  if (!self->scratch || !start_workers(self)) tf_pool_free(&self);
  return self;
}

void tf_pool_free(tf_pool **self_pointer) {
  tf_pool *self = *self_pointer;
  if (!self) return;
  pthread_mutex_lock(&self->mutex);
  self->stop = true;
  pthread_cond_broadcast(&self->work);
  pthread_mutex_unlock(&self->mutex);
  for (int i = 1; i <= self->started; i++) pthread_join(self->workers[i].id, NULL);
  pthread_mutex_destroy(&self->mutex);
  pthread_cond_destroy(&self->work);
  pthread_cond_destroy(&self->done);
  tf_huge_free(self->scratch);
  free(self);
  *self_pointer = NULL;
}

int tf_pool_threads(const tf_pool *self) {
  return self->threads;
}

void *tf_pool_scratch(tf_pool *self, int thread) {
  assert(thread >= 0 && thread < self->threads);
  return (char *)self->scratch + (size_t)thread * TF_POOL_SCRATCH_BYTES;
}

void *tf_pool_shared(tf_pool *self) {
  return (char *)self->scratch + (size_t)self->threads * TF_POOL_SCRATCH_BYTES;
}

static void wait_done(tf_pool *self) {
  for (int i = 0; i < SPINS_MAX && atomic_load_explicit(&self->pending, memory_order_acquire) > 0; i++) relax();
  if (atomic_load_explicit(&self->pending, memory_order_acquire) == 0) return;
  pthread_mutex_lock(&self->mutex);
  while (atomic_load_explicit(&self->pending, memory_order_acquire) > 0) pthread_cond_wait(&self->done, &self->mutex);
  pthread_mutex_unlock(&self->mutex);
}

void tf_parallel(tf_pool *self, int64_t count, int64_t grain, tf_parallel_fn fn, void *context) {
  assert(grain > 0);
  if (count <= 0) return;
  int64_t units = (count - 1) / grain + 1;
  int64_t pieces = (int64_t)self->threads * PIECES_A_THREAD;
  if (pieces > units) pieces = units;
  if (self->threads == 1 || pieces == 1) {
    fn(context, 0, count, 0);
    return;
  }
  self->fn = fn;
  self->context = context;
  self->count = count;
  self->grain = grain;
  self->units = units;
  self->pieces = pieces;
  atomic_store_explicit(&self->pending, (int)pieces, memory_order_relaxed);
  pthread_mutex_lock(&self->mutex);
  atomic_store_explicit(&self->ticket, (uint64_t)pieces << 32, memory_order_release);
  pthread_cond_broadcast(&self->work);
  pthread_mutex_unlock(&self->mutex);
  run_pieces(self, 0);
  wait_done(self);
}

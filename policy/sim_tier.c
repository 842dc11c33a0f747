/* One tier of simulated workers: windows, slots, a batch that slows down as it fills; deaths and draining.
 * In: jobs that enter, the time. Out: who takes the next job, who ends next and when.
 * Three structures: lists of workers by outstanding jobs (placement), a heap of workers by their next end (events), and
 * in each worker a heap of its jobs by end in virtual time, which runs slower the more jobs share the batch. */
#include "policy/sim_tier.h"

#include <math.h>
#include <stdlib.h>

bool tf_sim_tier_open(tf_sim_tier *self, uint32_t capacity, uint32_t slots, uint32_t window, double alone_share) {
  *self = (tf_sim_tier){.slots = slots, .window = window, .capacity = capacity};
  if (capacity < 1 || capacity > TF_SIM_WORKERS_MAX || slots < 1 || slots > TF_SIM_SLOTS_MAX || window < slots ||
      window > TF_SIM_WINDOW_MAX)
    return false;
  for (uint32_t i = 0; i <= slots; i++) {
    double filled = slots > 1 && i > 0 ? (double)(i - 1) / (slots - 1) : slots > 1 ? 0 : 1;
    self->slowness[i] = alone_share + (1 - alone_share) * filled;
  }
  for (uint32_t i = 0; i <= TF_SIM_WINDOW_MAX; i++) self->by_outstanding[i] = TF_SIM_NONE;
  self->workers = calloc(capacity, sizeof *self->workers);
  self->slot = calloc((size_t)capacity * slots, sizeof *self->slot);
  self->wait = calloc((size_t)capacity * window, sizeof *self->wait);
  self->heap = calloc(capacity, sizeof *self->heap);
  self->absent = calloc(capacity, sizeof *self->absent);
  if (!self->workers || !self->slot || !self->wait || !self->heap || !self->absent) {
    tf_sim_tier_close(self);
    return false;
  }
  for (uint32_t i = 0; i < capacity; i++) {
    self->workers[i] = (tf_sim_worker){.next_end_s = INFINITY, .heap_at = i};
    self->heap[i] = i;
    self->absent[i] = capacity - 1 - i; /* the first to join is number 0 */
  }
  self->absent_count = capacity;
  return true;
}

void tf_sim_tier_close(tf_sim_tier *self) {
  free(self->workers);
  free(self->slot);
  free(self->wait);
  free(self->heap);
  free(self->absent);
  *self = (tf_sim_tier){0};
}

/* --- Lists by outstanding --- */

static void unlink_worker(tf_sim_tier *self, uint32_t at) {
  tf_sim_worker *worker = &self->workers[at];
  if (worker->left == TF_SIM_NONE)
    self->by_outstanding[worker->outstanding] = worker->right;
  else
    self->workers[worker->left].right = worker->right;
  if (worker->right != TF_SIM_NONE) self->workers[worker->right].left = worker->left;
}

static void link_worker(tf_sim_tier *self, uint32_t at) {
  tf_sim_worker *worker = &self->workers[at];
  uint32_t first = self->by_outstanding[worker->outstanding];
  worker->left = TF_SIM_NONE;
  worker->right = first;
  if (first != TF_SIM_NONE) self->workers[first].left = at;
  self->by_outstanding[worker->outstanding] = at;
  if (worker->outstanding < self->lowest) self->lowest = worker->outstanding;
}

uint32_t tf_sim_tier_pick(tf_sim_tier *self) {
  while (self->lowest < self->window && self->by_outstanding[self->lowest] == TF_SIM_NONE) self->lowest++;
  return self->lowest < self->window ? self->by_outstanding[self->lowest] : TF_SIM_NONE;
}

void tf_sim_tier_reserve(tf_sim_tier *self, uint32_t at) {
  unlink_worker(self, at);
  self->workers[at].outstanding++;
  link_worker(self, at);
}

static void leave(tf_sim_tier *self, uint32_t at) {
  self->workers[at].state = TF_SIM_ABSENT;
  self->workers[at].epoch++;
  self->absent[self->absent_count++] = at;
}

void tf_sim_tier_release(tf_sim_tier *self, uint32_t at) {
  tf_sim_worker *worker = &self->workers[at];
  bool listed = worker->state == TF_SIM_LIVE;
  if (listed) unlink_worker(self, at);
  if (worker->outstanding > 0) worker->outstanding--;
  if (listed) link_worker(self, at);
  if (worker->state == TF_SIM_DRAINING && worker->outstanding == 0) leave(self, at);
}

/* --- Heap of workers --- */

static void put(tf_sim_tier *self, uint32_t at, uint32_t worker) {
  self->heap[at] = worker;
  self->workers[worker].heap_at = at;
}

static double end_at(const tf_sim_tier *self, uint32_t at) {
  return self->workers[self->heap[at]].next_end_s;
}

/* The worker's next end has changed: its place in the heap follows. */
static void reorder(tf_sim_tier *self, uint32_t worker) {
  uint32_t at = self->workers[worker].heap_at;
  double end_s = self->workers[worker].next_end_s;
  while (at > 0 && end_at(self, (at - 1) / 2) > end_s) {
    put(self, at, self->heap[(at - 1) / 2]);
    at = (at - 1) / 2;
  }
  for (;;) {
    uint32_t child = 2 * at + 1;
    if (child >= self->capacity) break;
    if (child + 1 < self->capacity && end_at(self, child + 1) < end_at(self, child)) child++;
    if (end_at(self, child) >= end_s) break;
    put(self, at, self->heap[child]);
    at = child;
  }
  put(self, at, worker);
}

double tf_sim_tier_next_s(const tf_sim_tier *self) {
  return end_at(self, 0);
}

/* --- A worker's batch --- */

static void advance(tf_sim_tier *self, tf_sim_worker *worker, double now_s) {
  if (worker->active > 0) {
    double passed_s = now_s - worker->updated_s;
    worker->virtual_s += passed_s / self->slowness[worker->active];
    self->busy_s += passed_s;
  }
  worker->updated_s = now_s;
}

static void schedule(tf_sim_tier *self, uint32_t at) {
  tf_sim_worker *worker = &self->workers[at];
  const tf_sim_slot *first = &self->slot[(size_t)at * self->slots];
  double left = worker->active > 0 ? first->end - worker->virtual_s : 0;
  worker->next_end_s =
      worker->active > 0 ? worker->updated_s + fmax(left, 0) * self->slowness[worker->active] : INFINITY;
  reorder(self, at);
}

static void push_slot(tf_sim_tier *self, uint32_t at, tf_sim_slot added) {
  tf_sim_slot *slots = &self->slot[(size_t)at * self->slots];
  uint32_t i = self->workers[at].active++;
  while (i > 0 && slots[(i - 1) / 2].end > added.end) {
    slots[i] = slots[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  slots[i] = added;
  self->active++;
}

static uint32_t pop_slot(tf_sim_tier *self, uint32_t at) {
  tf_sim_slot *slots = &self->slot[(size_t)at * self->slots];
  uint32_t job = slots[0].job, count = --self->workers[at].active;
  tf_sim_slot moved = slots[count];
  uint32_t i = 0;
  for (;;) {
    uint32_t child = 2 * i + 1;
    if (child >= count) break;
    if (child + 1 < count && slots[child + 1].end < slots[child].end) child++;
    if (slots[child].end >= moved.end) break;
    slots[i] = slots[child];
    i = child;
  }
  slots[i] = moved;
  self->active--;
  return job;
}

static void start(tf_sim_tier *self, tf_sim_job *jobs, uint32_t at, uint32_t job, double work_s) {
  tf_sim_worker *worker = &self->workers[at];
  jobs[job].wait_s += (float)(worker->updated_s - jobs[job].ready_s);
  push_slot(self, at, (tf_sim_slot){worker->virtual_s + work_s, job});
}

void tf_sim_tier_enter(tf_sim_tier *self, tf_sim_job *jobs, uint32_t at, uint32_t job, double work_s, double now_s) {
  tf_sim_worker *worker = &self->workers[at];
  jobs[job].ready_s = now_s;
  self->jobs++;
  if (worker->active == self->slots || worker->state == TF_SIM_DEAD) {
    uint32_t last = (worker->waiting_first + worker->waiting++) % self->window;
    self->wait[(size_t)at * self->window + last] = job;
    return;
  }
  advance(self, worker, now_s);
  start(self, jobs, at, job, work_s);
  schedule(self, at);
}

static uint32_t pop_waiting(tf_sim_tier *self, uint32_t at) {
  tf_sim_worker *worker = &self->workers[at];
  uint32_t job = self->wait[(size_t)at * self->window + worker->waiting_first];
  worker->waiting_first = (worker->waiting_first + 1) % self->window;
  worker->waiting--;
  return job;
}

uint32_t tf_sim_tier_end(tf_sim_tier *self, tf_sim_job *jobs, tf_sim_work work, const void *context) {
  uint32_t at = self->heap[0];
  tf_sim_worker *worker = &self->workers[at];
  advance(self, worker, worker->next_end_s);
  uint32_t job = pop_slot(self, at);
  self->jobs--;
  if (worker->waiting > 0) {
    uint32_t next = pop_waiting(self, at);
    start(self, jobs, at, next, work(context, &jobs[next]));
  }
  if (worker->active == 0) worker->virtual_s = 0; /* keeps its precision over long runs */
  schedule(self, at);
  return job;
}

/* --- Who comes and goes --- */

uint32_t tf_sim_tier_join(tf_sim_tier *self, double now_s) {
  if (self->absent_count == 0) return TF_SIM_NONE;
  uint32_t at = self->absent[--self->absent_count];
  const tf_sim_worker *before = &self->workers[at];
  self->workers[at] = (tf_sim_worker){.next_end_s = INFINITY,
                                      .updated_s = now_s,
                                      .epoch = before->epoch,
                                      .heap_at = before->heap_at,
                                      .state = TF_SIM_LIVE};
  link_worker(self, at);
  self->live++;
  return at;
}

void tf_sim_tier_drain(tf_sim_tier *self) {
  uint32_t at = tf_sim_tier_pick(self);
  if (at == TF_SIM_NONE) at = self->by_outstanding[self->window];
  if (at == TF_SIM_NONE) return;
  unlink_worker(self, at);
  self->workers[at].state = TF_SIM_DRAINING;
  self->live--;
  if (self->workers[at].outstanding == 0) leave(self, at);
}

uint32_t tf_sim_tier_kill(tf_sim_tier *self, double now_s) {
  uint32_t at = TF_SIM_NONE;
  for (uint32_t i = self->window + 1; i-- > 0 && at == TF_SIM_NONE;) at = self->by_outstanding[i];
  if (at == TF_SIM_NONE) return at;
  unlink_worker(self, at);
  tf_sim_worker *worker = &self->workers[at];
  advance(self, worker, now_s);
  worker->state = TF_SIM_DEAD;
  worker->next_end_s = INFINITY;
  reorder(self, at);
  self->live--;
  return at;
}

uint32_t tf_sim_tier_forget(tf_sim_tier *self, uint32_t at) {
  tf_sim_worker *worker = &self->workers[at];
  uint32_t job = TF_SIM_NONE;
  if (worker->active > 0)
    job = pop_slot(self, at);
  else if (worker->waiting > 0)
    job = pop_waiting(self, at);
  if (job != TF_SIM_NONE)
    self->jobs--;
  else
    leave(self, at);
  return job;
}

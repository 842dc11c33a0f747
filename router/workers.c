/* The table of workers. In: HELLO, WINDOW, reservations. Out: records, slots, pairs.
 * Records stay at their address while used. Pair hashes get small numbers; a number is free again with its last worker.
 */
#include "router/workers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct pair {
  uint32_t workers; /* 0: the number is free */
  char hash[TF_PAIR_HASH_BYTES_MAX + 1];
  uint32_t counts[TF_HELLO_COUNTS_MAX], count_count;
} pair;

struct tf_workers {
  tf_worker workers[TF_WORKERS_MAX];
  size_t end; /* slots from here on were never used */
  size_t by_role[TF_ROLE_LLM + 1];
  pair pairs[TF_PAIRS_MAX];
  uint64_t serial;
  struct {
    tf_slot slots[TF_WORKERS_MAX];
    uint64_t serials[TF_WORKERS_MAX];
  } tiers[2]; /* encoders, LLMs: rebuilt by tf_workers_slots */
};

tf_workers *tf_workers_new(void) {
  return calloc(1, sizeof(tf_workers));
}

void tf_workers_free(tf_workers **self) {
  if (!self || !*self) return;
  free(*self);
  *self = NULL;
}

tf_worker *tf_workers_next(tf_workers *self, const tf_worker *worker) {
  for (size_t i = worker ? (size_t)(worker - self->workers) + 1 : 0; i < self->end; i++)
    if (self->workers[i].used) return &self->workers[i];
  return NULL;
}
tf_worker *tf_workers_first(tf_workers *self) {
  return tf_workers_next(self, NULL);
}

tf_worker *tf_workers_find_peer(tf_workers *self, const char *peer, size_t peer_size) {
  for (tf_worker *w = tf_workers_first(self); w; w = tf_workers_next(self, w))
    if (w->peer_size == peer_size && !memcmp(w->peer, peer, peer_size)) return w;
  return NULL;
}

tf_worker *tf_workers_find(tf_workers *self, uint64_t serial) {
  if (serial == 0) return NULL;
  for (tf_worker *w = tf_workers_first(self); w; w = tf_workers_next(self, w))
    if (w->serial == serial) return w;
  return NULL;
}

static tf_worker *find_instance(tf_workers *self, const char *instance) {
  for (tf_worker *w = tf_workers_first(self); w; w = tf_workers_next(self, w))
    if (!strcmp(w->instance, instance)) return w;
  return NULL;
}

static int compare_counts(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

/* The number of a pair hash, made where it is new; -1: too many different ones. */
static int intern_pair(tf_workers *self, const tf_hello *hello) {
  int unused = -1;
  for (int i = 0; i < TF_PAIRS_MAX; i++) {
    if (self->pairs[i].workers == 0 && unused < 0) unused = i;
    if (self->pairs[i].workers > 0 && !strcmp(self->pairs[i].hash, hello->pair_hash)) return i;
  }
  if (unused < 0) return -1;
  pair *made = &self->pairs[unused];
  *made = (pair){.count_count = hello->token_count_count};
  snprintf(made->hash, sizeof made->hash, "%s", hello->pair_hash);
  memcpy(made->counts, hello->token_counts, hello->token_count_count * sizeof *made->counts);
  qsort(made->counts, made->count_count, sizeof *made->counts, compare_counts);
  return unused;
}

static bool is_acceptable(const tf_hello *hello) {
  if (hello->role != TF_ROLE_ENCODER && hello->role != TF_ROLE_LLM) return false;
  if (!hello->instance[0] || !hello->pair_hash[0] || strlen(hello->pair_hash) > TF_PAIR_HASH_BYTES_MAX) return false;
  if (hello->token_count_count == 0 || hello->token_count_count > TF_HELLO_COUNTS_MAX) return false;
  for (uint32_t i = 0; i < hello->token_count_count; i++)
    if (hello->token_counts[i] == 0 || hello->token_counts[i] > TF_VISION_TOKENS_MAX) return false;
  return hello->role == TF_ROLE_ENCODER || hello->tensor_endpoint[0];
}

static tf_worker *add_worker(tf_workers *self, const tf_hello *hello, int pair_number) {
  size_t at = 0;
  while (at < self->end && self->workers[at].used) at++;
  if (at == TF_WORKERS_MAX) return NULL;
  if (at == self->end) self->end++;
  tf_worker *added = &self->workers[at];
  *added = (tf_worker){.used = true, .serial = ++self->serial, .role = hello->role, .pair = (uint32_t)pair_number};
  snprintf(added->instance, sizeof added->instance, "%s", hello->instance);
  snprintf(added->pair_hash, sizeof added->pair_hash, "%s", hello->pair_hash);
  added->token_count_count = self->pairs[pair_number].count_count;
  memcpy(added->token_counts, self->pairs[pair_number].counts, sizeof added->token_counts);
  self->pairs[pair_number].workers++;
  self->by_role[hello->role]++;
  return added;
}

static void set_peer(tf_worker *worker, const char *peer, size_t peer_size) {
  memcpy(worker->peer, peer, peer_size);
  worker->peer_size = peer_size;
}

tf_hello_outcome tf_workers_hello(tf_workers *self, const tf_hello *hello, const char *peer, size_t peer_size,
                                  int64_t now_ms, tf_worker **out) {
  *out = NULL;
  if (!is_acceptable(hello) || peer_size == 0 || peer_size > sizeof self->workers[0].peer) return TF_HELLO_REFUSED;
  tf_worker *at_peer = tf_workers_find_peer(self, peer, peer_size);
  tf_worker *same = find_instance(self, hello->instance);
  if (at_peer && at_peer != same) {
    *out = at_peer;
    return TF_HELLO_REPLACED;
  }
  /* An instance that changed its role or its model is not the one that we know. */
  if (same && (same->role != hello->role || strcmp(same->pair_hash, hello->pair_hash) != 0)) {
    *out = same;
    return TF_HELLO_REPLACED;
  }
  tf_hello_outcome outcome = !same ? TF_HELLO_NEW : at_peer ? TF_HELLO_KNOWN : TF_HELLO_MOVED;
  if (!same) {
    int pair_number = intern_pair(self, hello);
    same = pair_number < 0 ? NULL : add_worker(self, hello, pair_number);
    if (!same) return TF_HELLO_REFUSED;
  }
  snprintf(same->model, sizeof same->model, "%s", hello->model);
  snprintf(same->version, sizeof same->version, "%s", hello->version);
  same->started_unix_ms = hello->started_unix_ms;
  same->hello_count_count = hello->token_count_count;
  memcpy(same->hello_counts, hello->token_counts, sizeof same->hello_counts);
  snprintf(same->tensor_endpoint, sizeof same->tensor_endpoint, "%s", hello->tensor_endpoint);
  set_peer(same, peer, peer_size);
  same->heard_ms = now_ms;
  same->reachable = true;
  *out = same;
  return outcome;
}

void tf_workers_window(tf_worker *worker, const tf_window *window) {
  if (worker->has_window && window->epoch <= worker->window_epoch) return;
  worker->has_window = true;
  worker->window_epoch = window->epoch;
  worker->jobs_max = window->jobs_max;
  worker->kv_tokens_max = window->kv_tokens_max;
  worker->draining = window->draining;
}

void tf_workers_pong(tf_worker *worker, const tf_pong *pong) {
  for (uint32_t i = 0; i < worker->token_count_count; i++) {
    for (uint32_t j = 0; j < worker->hello_count_count; j++) {
      if (worker->hello_counts[j] != worker->token_counts[i]) continue;
      worker->service_ms[i] = j < pong->service.count ? pong->service.ms[j] : 0;
      worker->latency_ms[i] = j < pong->latency.count ? pong->latency.ms[j] : 0;
    }
  }
  worker->jobs_all = pong->jobs;
  worker->jobs_all_max = pong->jobs_max;
  worker->kv_all = pong->kv_tokens;
  worker->kv_all_max = pong->kv_tokens_max;
  worker->batch_max = pong->batch_max;
}

void tf_workers_remove(tf_workers *self, tf_worker *worker) {
  self->pairs[worker->pair].workers--;
  self->by_role[worker->role]--;
  *worker = (tf_worker){.used = false};
}

size_t tf_workers_count(const tf_workers *self, tf_role role) {
  return self->by_role[role];
}

size_t tf_workers_slots(tf_workers *self, tf_role role, const tf_slot **slots, const uint64_t **serials) {
  int tier = role == TF_ROLE_LLM;
  size_t count = 0;
  for (tf_worker *w = tf_workers_first(self); w; w = tf_workers_next(self, w)) {
    if (w->role != role) continue;
    self->tiers[tier].serials[count] = w->serial;
    self->tiers[tier].slots[count++] = (tf_slot){.pair = w->pair,
                                                 .jobs_max = w->jobs_max,
                                                 .jobs_out = w->jobs_out,
                                                 .kv_max = role == TF_ROLE_LLM ? w->kv_tokens_max : 0,
                                                 .kv_out = w->kv_out,
                                                 .usable = w->has_window && w->reachable && !w->draining,
                                                 .held = w->held_for != 0};
  }
  *slots = self->tiers[tier].slots;
  *serials = self->tiers[tier].serials;
  return count;
}

void tf_workers_reserve(tf_workers *self, uint64_t serial, uint32_t kv_tokens) {
  tf_worker *worker = tf_workers_find(self, serial);
  if (!worker) return;
  worker->jobs_out++;
  worker->kv_out += kv_tokens;
}

void tf_workers_release(tf_workers *self, uint64_t serial, uint32_t kv_tokens) {
  tf_worker *worker = tf_workers_find(self, serial);
  if (!worker) return;
  if (worker->jobs_out > 0) worker->jobs_out--;
  worker->kv_out -= kv_tokens < worker->kv_out ? kv_tokens : worker->kv_out;
}

void tf_workers_hold(tf_workers *self, uint64_t encoder, uint64_t llm, uint64_t job) {
  tf_worker *pair_of[2] = {tf_workers_find(self, encoder), tf_workers_find(self, llm)};
  for (int i = 0; i < 2; i++)
    if (pair_of[i]) pair_of[i]->held_for = job;
}

void tf_workers_unhold(tf_workers *self, uint64_t job) {
  for (tf_worker *w = tf_workers_first(self); w; w = tf_workers_next(self, w))
    if (w->held_for == job) w->held_for = 0;
}

/* True where the worker may get jobs at all (full or not). */
static bool is_live(const tf_worker *worker) {
  return worker->has_window && worker->reachable && !worker->draining;
}

/* Bit p set: pair p has both tiers alive. */
static uint64_t live_pairs(tf_workers *self) {
  uint64_t tiers[2] = {0, 0};
  for (tf_worker *w = tf_workers_first(self); w; w = tf_workers_next(self, w))
    if (is_live(w)) tiers[w->role == TF_ROLE_LLM] |= UINT64_C(1) << w->pair;
  return tiers[0] & tiers[1];
}

const tf_worker *tf_workers_main_pair(tf_workers *self) {
  uint64_t live = live_pairs(self), width[TF_PAIRS_MAX] = {0};
  const tf_worker *best = NULL;
  for (tf_worker *w = tf_workers_first(self); w; w = tf_workers_next(self, w)) {
    if (w->role != TF_ROLE_LLM || !is_live(w) || !(live >> w->pair & 1)) continue;
    width[w->pair] += w->jobs_max;
    if (!best || width[w->pair] > width[best->pair]) best = w;
  }
  return best;
}

/* Adds what one worker measured at a count; how many it adds to is counted beside. */
typedef struct tier_sum {
  double per_ms, latency_ms, measured, timed;
} tier_sum;

static void add_measures(const tf_worker *worker, const uint32_t *counts, size_t count, tier_sum *sums) {
  for (size_t i = 0; i < count; i++) {
    for (uint32_t j = 0; j < worker->token_count_count; j++) {
      if (worker->token_counts[j] != counts[i]) continue;
      if (worker->service_ms[j] > 0) sums[i].per_ms += 1 / worker->service_ms[j], sums[i].measured++;
      if (worker->latency_ms[j] > 0) sums[i].latency_ms += worker->latency_ms[j], sums[i].timed++;
    }
  }
}

void tf_workers_tier(tf_workers *self, tf_role role, const uint32_t *counts, size_t count, tf_policy_tier *out) {
  tier_sum sums[TF_POLICY_COUNTS_MAX] = {{0}};
  double batches = 0, known = 0;
  *out = (tf_policy_tier){.workers = 0};
  if (count > TF_POLICY_COUNTS_MAX) count = TF_POLICY_COUNTS_MAX;
  for (tf_worker *w = tf_workers_first(self); w; w = tf_workers_next(self, w)) {
    if (w->role != role || !is_live(w)) continue;
    out->workers++;
    add_measures(w, counts, count, sums);
    if (w->batch_max > 0) batches += w->batch_max, known++;
  }
  out->slots = known > 0 ? batches / known : 0;
  for (size_t i = 0; i < count; i++) {
    if (sums[i].measured > 0) out->service_ms[i] = sums[i].measured / sums[i].per_ms;
    if (sums[i].timed > 0) out->latency_ms[i] = sums[i].latency_ms / sums[i].timed;
  }
}

size_t tf_workers_pair_counts(tf_workers *self, uint32_t pair_number, const uint32_t **out) {
  *out = self->pairs[pair_number].counts;
  return self->pairs[pair_number].count_count;
}

size_t tf_workers_all_counts(tf_workers *self, uint32_t *out, size_t capacity) {
  uint64_t live = live_pairs(self);
  size_t count = 0;
  for (int i = 0; i < TF_PAIRS_MAX; i++) {
    if (!(live >> i & 1)) continue;
    for (uint32_t j = 0; j < self->pairs[i].count_count; j++) {
      bool seen = false;
      for (size_t k = 0; k < count; k++) seen = seen || out[k] == self->pairs[i].counts[j];
      if (!seen && count < capacity) out[count++] = self->pairs[i].counts[j];
    }
  }
  qsort(out, count, sizeof *out, compare_counts);
  return count;
}

/* Those of `pairs` that serve the limits. */
static uint64_t serving(const tf_workers *self, uint64_t pairs, uint32_t minimum, uint32_t maximum) {
  uint64_t out = 0;
  for (int i = 0; i < TF_PAIRS_MAX; i++) {
    if (!(pairs >> i & 1)) continue;
    bool offers_minimum = minimum == 0, offers_maximum = maximum == 0, between = false;
    for (uint32_t j = 0; j < self->pairs[i].count_count; j++) {
      uint32_t n = self->pairs[i].counts[j];
      offers_minimum = offers_minimum || n == minimum;
      offers_maximum = offers_maximum || n == maximum;
      between = between || (n >= minimum && (maximum == 0 || n <= maximum));
    }
    if (offers_minimum && offers_maximum && between) out |= UINT64_C(1) << i;
  }
  return out;
}

uint64_t tf_workers_pairs_for(tf_workers *self, uint32_t minimum, uint32_t maximum) {
  return serving(self, live_pairs(self), minimum, maximum);
}

bool tf_workers_pair_may_return(const tf_workers *self, uint32_t minimum, uint32_t maximum) {
  uint64_t known = 0;
  for (int i = 0; i < TF_PAIRS_MAX; i++)
    if (self->pairs[i].workers > 0) known |= UINT64_C(1) << i;
  return serving(self, known, minimum, maximum) != 0;
}

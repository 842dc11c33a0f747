/* The table of workers: who they are, what their windows allow, what is outstanding there.
 * In: HELLO, WINDOW and any sign of life. Out: records by peer or serial, slots for placement, who has gone.
 * Pure memory: no sockets; times are handed in. */
#ifndef TF_ROUTER_WORKERS_H
#define TF_ROUTER_WORKERS_H

#include "policy/policy.h"
#include "proto/wire.h"
#include "router/placement.h"

enum { TF_WORKERS_MAX = 1024, TF_PAIR_HASH_BYTES_MAX = 128, TF_WORKER_VERSION_BYTES_MAX = 64 };

typedef struct tf_worker {
  bool used;
  uint64_t serial; /* unique in this process; 0: none */
  tf_role role;
  char instance[TF_INSTANCE_BYTES_MAX + 1], pair_hash[TF_PAIR_HASH_BYTES_MAX + 1], model[TF_MODEL_BYTES_MAX + 1];
  char tensor_endpoint[TF_ENDPOINT_BYTES_MAX + 1], version[TF_WORKER_VERSION_BYTES_MAX + 1];
  uint32_t token_counts[TF_HELLO_COUNTS_MAX], token_count_count; /* ascending */
  char peer[256];                                                /* routing id */
  size_t peer_size;
  uint32_t pair; /* equal for equal pair hashes */
  uint64_t window_epoch;
  uint32_t jobs_max, kv_tokens_max;
  bool has_window, draining;
  bool reachable; /* false from a send that found no peer until it speaks again */
  uint32_t jobs_out, kv_out;
  uint64_t held_for; /* serial of the job that this worker is kept free for; 0: none */
  int64_t heard_ms;
  uint64_t ping_sequence;
  /* What it says of itself, the same to every router. */
  uint32_t hello_counts[TF_HELLO_COUNTS_MAX], hello_count_count;           /* in the order of its HELLO */
  double service_ms[TF_HELLO_COUNTS_MAX], latency_ms[TF_HELLO_COUNTS_MAX]; /* of token_counts; 0: not measured */
  uint32_t jobs_all, jobs_all_max, kv_all, kv_all_max;                     /* of all routers */
  uint32_t batch_max;
  int64_t started_unix_ms; /* 0: not said */
} tf_worker;

typedef struct tf_workers tf_workers;

typedef enum tf_hello_outcome {
  TF_HELLO_KNOWN,    /* the same worker on the same connection */
  TF_HELLO_NEW,      /* a worker we did not have */
  TF_HELLO_MOVED,    /* a worker we have, on a new connection: what was under way on the old one may be lost */
  TF_HELLO_REPLACED, /* *gone: the peer's old instance; remove it, then say HELLO again */
  TF_HELLO_REFUSED   /* the table is full, or the message makes no worker */
} tf_hello_outcome;

tf_workers *tf_workers_new(void);
void tf_workers_free(tf_workers **self);
/* *out: the worker (KNOWN, NEW, MOVED), or the one that has gone (REPLACED). */
tf_hello_outcome tf_workers_hello(tf_workers *self, const tf_hello *hello, const char *peer, size_t peer_size,
                                  int64_t now_ms, tf_worker **out);
/* Takes the window where it is newer than the one we have. */
void tf_workers_window(tf_worker *worker, const tf_window *window);
void tf_workers_pong(tf_worker *worker, const tf_pong *pong);
tf_worker *tf_workers_find_peer(tf_workers *self, const char *peer, size_t peer_size);
tf_worker *tf_workers_find(tf_workers *self, uint64_t serial); /* NULL: gone */
/* Every worker: for (w = first; w; w = next(w)). Removing the current one is allowed. */
tf_worker *tf_workers_first(tf_workers *self);
tf_worker *tf_workers_next(tf_workers *self, const tf_worker *worker);
void tf_workers_remove(tf_workers *self, tf_worker *worker);
size_t tf_workers_count(const tf_workers *self, tf_role role);

/* The tiers as placement wants them: *slots and *serials stay valid until the next call for the same role. */
size_t tf_workers_slots(tf_workers *self, tf_role role, const tf_slot **slots, const uint64_t **serials);
/* Outstanding work; release is harmless where the worker has gone. Both sides of a job are counted apart. */
void tf_workers_reserve(tf_workers *self, uint64_t serial, uint32_t kv_tokens);
void tf_workers_release(tf_workers *self, uint64_t serial, uint32_t kv_tokens);
/* Keeps workers (0: none of that role) free for the job with this serial; lets go of all that were kept for it. */
void tf_workers_hold(tf_workers *self, uint64_t encoder, uint64_t llm, uint64_t job);
void tf_workers_unhold(tf_workers *self, uint64_t job);

/* The pair with the widest LLM window among those that have both tiers; NULL: none. An LLM of it is returned. */
const tf_worker *tf_workers_main_pair(tf_workers *self);
/* A tier as the policy sees it, at counts[count]: workers that take jobs, the service time of one of them on average
 * (so that workers x 1000 / service is what they carry together), their latency, the jobs that one computes at once.
 * What no worker has measured is 0. */
void tf_workers_tier(tf_workers *self, tf_role role, const uint32_t *counts, size_t count, tf_policy_tier *out);
/* Token counts of any live pair, ascending, each once; returns how many (at most `capacity`). */
size_t tf_workers_all_counts(tf_workers *self, uint32_t *out, size_t capacity);
/* Counts of one pair. */
size_t tf_workers_pair_counts(tf_workers *self, uint32_t pair, const uint32_t **out);
/* Bit p set: pair p has a count between the limits (0: no limit) and offers each limit that is given. */
uint64_t tf_workers_pairs_for(tf_workers *self, uint32_t minimum, uint32_t maximum);
/* True where a pair that serves the limits is known, though only one of its tiers may be alive. */
bool tf_workers_pair_may_return(const tf_workers *self, uint32_t minimum, uint32_t maximum);

#endif

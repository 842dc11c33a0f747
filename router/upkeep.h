/* What a router does for its place on the queue: renews leases, says that it lives, reads cancellations, sweeps,
 * leaves. In: the jobs that it holds, timers. Out: renew, beat, cancel, sweep and release scripts; records that it lost
 * removed. */
#ifndef TF_ROUTER_UPKEEP_H
#define TF_ROUTER_UPKEEP_H

#include "router/dispatch.h"

typedef struct tf_upkeep tf_upkeep;

typedef struct tf_upkeep_parts { /* all borrowed */
  tf_reactor *reactor;
  tf_scripts *scripts;
  tf_jobs *jobs;
  tf_workers *workers;
  tf_dispatch *dispatch;
  const tf_router_config *config;
  tf_redis_clock *clock;
  tf_router_stats *stats;
  const char *instance;
} tf_upkeep_parts;

enum {
  TF_BEAT_MS = 1000,
  TF_ALIVE_MS = 10000,        /* a router that did not beat for so long is off the list */
  TF_CANCEL_KEPT_MS = 600000, /* cancellations stay readable */
  TF_CANCEL_POLL_MS = 100,
  TF_PAIR_FRESH_MS = 3000, /* a pair that no router has told of for so long is gone */
  TF_SUSPECT_PATIENCE = 4  /* a suspect may wait this many leases for a pair of its own, a large job for the LLM kept */
};

tf_code tf_upkeep_new(const tf_upkeep_parts *parts, tf_upkeep **out);
void tf_upkeep_free(tf_upkeep **self);
/* Redis is (back) there: leases first of all. */
void tf_upkeep_kick(tf_upkeep *self);
/* Says now what the timer would within the second: that this router lives, and its pair of workers. */
void tf_upkeep_beat(tf_upkeep *self);
/* True where no router of the queue has a pair of workers, as far as the last beat tells; false before the first. */
bool tf_upkeep_nobody_has_a_pair(const tf_upkeep *self);
/* Hands back every job that no worker has yet. */
void tf_upkeep_release_pending(tf_upkeep *self);
/* Hands back everything, takes this router off the list, and calls `left` when Redis has answered (or can't). */
void tf_upkeep_leave(tf_upkeep *self, void (*left)(void *context), void *context);

#endif

/* The load of the queue as this router reads it, the budget that all routers share, and the choice of N for a job.
 * In: numbers of each claim, the shared policy state, the workers' measured times, what paced runs say of themselves.
 * Out: choices, the state moved on through Redis (one router at a time), gauges. Policy itself is in policy/. */
#ifndef TF_ROUTER_LOAD_H
#define TF_ROUTER_LOAD_H

#include "router/jobs.h"
#include "router/scripts.h"
#include "router/stats.h"
#include "router/workers.h"

typedef struct tf_load tf_load;

enum {
  TF_LOAD_OBSERVE_MS = 100,       /* between two readings that may move the budget, over all routers */
  TF_LOAD_OBSERVE_IDLE_MS = 1000, /* the same while nothing is unfinished and nothing comes */
  TF_LOAD_FRESH_MS = 5000,        /* an older reading is no longer told as what is */
  TF_PACES_MAX = 64,              /* paced runs at once; jobs of more follow the policy */
  TF_PACE_KEPT_MS = 60000,        /* a run whose jobs don't come any more is forgotten */
  TF_LOAD_TEXT_BYTES_MAX = TF_JOB_LOAD_BYTES_MAX
};

typedef struct tf_load_parts { /* all borrowed */
  tf_scripts *scripts;
  tf_workers *workers;
  const tf_router_config *config;
  const tf_redis_clock *clock;
  tf_router_stats *stats;
} tf_load_parts;

/* One reading of Redis. */
typedef struct tf_load_reading {
  int64_t now_ms; /* Redis time */
  int64_t unfinished, in_encode, in_decode, arrived;
  bool called;       /* a client waits for workers */
  const char *state; /* the shared state; NULL: not read this time */
  size_t state_size;
} tf_load_reading;

tf_code tf_load_new(const tf_load_parts *parts, tf_load **out);
void tf_load_free(tf_load **self);

/* True where the next claim should bring the shared state. */
bool tf_load_wants_state(const tf_load *self);
void tf_load_take(tf_load *self, const tf_load_reading *reading);
/* Redis is out of reach: what was read is not known to hold any more. */
void tf_load_lost(tf_load *self);
/* True where the last reading is younger than TF_LOAD_FRESH_MS. */
bool tf_load_is_fresh(const tf_load *self);
/* True while no worker of one of the tiers has told what a job costs it. */
bool tf_load_is_unmeasured(const tf_load *self);
/* What routers last knew of a queue: the fields counts, encode_service_ms, decode_service_ms of `tf:{Q}:load`. They
 * hold for a tier as long as nobody of it has measured. Texts of any content; what is malformed or of other counts than
 * those of the workers that are here is not taken. */
void tf_load_recall(tf_load *self, const char *counts, const char *encode_service_ms, const char *decode_service_ms);
/* What the run `name` says: jobs left, the unix time by which it wants to end. known false: nobody keeps that hash. */
void tf_load_pace(tf_load *self, const char *name, size_t size, bool known, int64_t remaining, int64_t finish_ms);

/* N of a job that is about to be placed. pace: the run's name, NULL: none. job->budget is set here. */
tf_policy_choice tf_load_choose(tf_load *self, const char *pace, tf_policy_job *job);
/* The load that decides now, as JSON: {"unfinished":7,"waiting":3,"arrivals_per_s":1.25,"budget":144.5}. */
void tf_load_text(const tf_load *self, char out[TF_LOAD_TEXT_BYTES_MAX]);

/* For publishing and gauges. */
const tf_policy_load *tf_load_now(const tf_load *self);
const tf_policy_state *tf_load_state(const tf_load *self);
tf_policy_config tf_load_config(const tf_load *self);
/* The index-th paced run that is under way: its name and budget; NULL: no more. */
const char *tf_load_pace_at(const tf_load *self, size_t index, double *budget);

#endif

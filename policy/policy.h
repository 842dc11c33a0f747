/* Which N (vision tokens) a job gets. Pure: no I/O, no clock, no allocation; router and simulator run this same code.
 * In: load as every replica reads it in Redis, the model's counts, a job's own limits. Out: N and the reason for it.
 * Two parts: a budget (mean tokens a job, continuous, shared by all replicas), and its allocation as an even mix of the
 * two counts beside it. docs/POLICY.md says why. */
#ifndef TF_POLICY_POLICY_H
#define TF_POLICY_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "policy/rate.h"

enum {
  TF_POLICY_COUNTS_MAX = 16,
  TF_POLICY_OBSERVE_MS_MIN = 50, /* readings that follow closer change nothing */
  TF_POLICY_STATE_TEXT_BYTES_MAX = 1024
};

typedef enum tf_reason {
  TF_REASON_NONE,       /* not assigned yet */
  TF_REASON_FIXED,      /* the job asks for exactly this N */
  TF_REASON_IDLE,       /* the most that the model has: nothing to save for */
  TF_REASON_QUEUE,      /* from the mix of a lowered budget */
  TF_REASON_JOB_MIN,    /* load asks for less, the job's minimum holds */
  TF_REASON_JOB_MAX,    /* load allows more, the job's maximum holds */
  TF_REASON_DEADLINE,   /* the largest N that makes the deadline */
  TF_REASON_REASSIGNED, /* another attempt could not keep its N */
  TF_REASON_PACE        /* from a run's own budget */
} tf_reason;
/* "fixed", "idle", ...; "" for NONE. */
const char *tf_reason_name(tf_reason reason);
tf_reason tf_reason_from_name(const char *name, size_t size); /* NONE for a name that is not one */

typedef struct tf_policy_config {
  int64_t target_wait_ms; /* jobs should wait no longer than this; below 1 counts as 1 */
  double utilisation_max; /* share of capacity that arrivals may take up; outside 0.01 to 1: 0.9 */
} tf_policy_config;

/* One tier. Service times that are not finite and above 0 are unknown: they are derived from those that are known, or
 * from the prior (capacity.h). */
typedef struct tf_policy_tier {
  uint32_t workers;                        /* live, not draining */
  double slots;                            /* jobs that one worker serves at once (its batch); 0: not known */
  double service_ms[TF_POLICY_COUNTS_MAX]; /* worker time that a job costs at counts[i] when the worker is full:
                                            * 1000 / service_ms = its jobs/s at saturation, batching included */
  double
      latency_ms[TF_POLICY_COUNTS_MAX]; /* from a free slot to leaving the tier, at counts[i], at the present batch */
} tf_policy_tier;

/* Load at one moment, the same for every router of the queue. Any value is defined, all zero included. */
typedef struct tf_policy_load {
  int64_t now_ms;                                    /* Redis time */
  uint32_t counts[TF_POLICY_COUNTS_MAX];             /* ascending */
  uint32_t count_count;                              /* 0: not known yet */
  int64_t unfinished, waiting, in_encode, in_decode; /* jobs */
  int64_t arrived;                                   /* jobs ever added; its growth is what counts */
  bool called;                                       /* a client waits for workers before it adds jobs */
  tf_policy_tier encode, decode;
} tf_policy_load;

/* What the replicas share: plain numbers, all zero is the start. */
typedef struct tf_policy_state {
  int64_t observed_ms;  /* Redis time of the last reading; 0: none yet */
  int64_t arrived;      /* as it was then */
  double budget;        /* mean tokens a job; 0: none yet */
  double idle_ms;       /* for how long nothing has been unfinished */
  tf_arrival_rate rate; /* arrivals */
} tf_policy_state;

/* How one router's jobs make up the budget; all zero is the start. One for the policy, one for each paced run. */
typedef struct tf_policy_mix {
  double carry;       /* tokens that earlier jobs got too few (rounding) */
  double bound;       /* smoothed: tokens of jobs whose own limits decide, 0 for others */
  double bound_share; /* smoothed: how many of all jobs those are */
} tf_policy_mix;

/* Takes in a new reading; any router may call it, as often as it likes. The budget moves towards the largest mean whose
 * predicted wait stays below the target and which keeps arrivals x service under utilisation_max, by at most the whole
 * range in TF_POLICY_DOWN_MS (down) or TF_POLICY_UP_MS (up). */
enum { TF_POLICY_DOWN_MS = 500, TF_POLICY_UP_MS = 1000 };
void tf_policy_observe(tf_policy_state *state, const tf_policy_config *config, const tf_policy_load *load);
/* Where the budget is heading for this rate of arrivals (jobs/s), without smoothing. 0: the counts are not known. */
double tf_policy_goal(const tf_policy_config *config, const tf_policy_load *load, double arrivals_per_s);

/* A job's terms. */
typedef struct tf_policy_job {
  const uint32_t *counts; /* ascending, what the pair offers */
  size_t count_count;
  uint32_t minimum, maximum; /* 0: no limit */
  uint32_t previous;         /* N of the attempt before; 0: the first attempt */
  tf_reason previous_reason;
  int64_t deadline_left_ms; /* INT64_MAX: none */
  double budget;            /* mean tokens of a paced run; 0: the policy's */
} tf_policy_job;

typedef struct tf_policy_choice {
  uint32_t vision_tokens; /* 0: no count lies within the job's limits, or too_late */
  tf_reason reason;
  bool too_late; /* the deadline can't be made even at the smallest count that the job permits */
} tf_policy_choice;

/* N of one job that is about to be placed. With no budget yet (all-zero state) the largest count. */
tf_policy_choice tf_policy_choose(const tf_policy_state *state, const tf_policy_config *config,
                                  const tf_policy_load *load, tf_policy_mix *mix, const tf_policy_job *job);

/* Jobs/s that both tiers carry at a mean of `mean_tokens`. 0: nobody works, or counts or service are not known. */
double tf_policy_capacity_per_s(const tf_policy_load *load, double mean_tokens);
/* Milliseconds that a job added now is going to wait, all stages together, at that mean; a finite number >= 0. */
double tf_policy_wait_ms(const tf_policy_load *load, double mean_tokens);
/* Mean tokens with which `remaining_jobs` end within left_ms (all workers being theirs); the smallest count where
 * nothing makes it, the largest where service times are not known yet; 0: the counts are not known. */
double tf_policy_pace_budget(const tf_policy_load *load, int64_t remaining_jobs, int64_t left_ms);
/* Workers wanted in each tier, as a fraction (round up): arrivals x service at full N / utilisation_max + what the
 * backlog adds so as to be gone within the target. Lowered N does not hide load here. At least 1 while anything is
 * unfinished or a client waits; else 0 once the rate of arrivals has fallen to 0 (minutes after the last job). */
void tf_policy_demand(const tf_policy_config *config, const tf_policy_state *state, const tf_policy_load *load,
                      double *encoders, double *llms);

/* The state as one line of text; `size` >= TF_POLICY_STATE_TEXT_BYTES_MAX always suffices. False: it did not fit. */
bool tf_policy_state_write(const tf_policy_state *state, char *out, size_t size);
/* False: not a state of this version; *out is then all zero. `text` need not end in NUL. */
bool tf_policy_state_read(const char *text, size_t size, tf_policy_state *out);

#endif

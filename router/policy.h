/* Which N (vision tokens) a job gets. Pure: no I/O, no clock, no allocation; the same code serves the simulator.
 * In: load as Redis shows it, the model's counts, the job's own limits. Out: N and the reason for it.
 * First version: thresholds on jobs waiting per job in decode that the workers can hold, with hysteresis. Callers know
 * only tf_policy_observe and tf_policy_choose: what is behind them may change. */
#ifndef TF_ROUTER_POLICY_H
#define TF_ROUTER_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum tf_reason {
  TF_REASON_NONE,      /* not assigned yet */
  TF_REASON_FIXED,     /* the job asks for exactly this N */
  TF_REASON_IDLE,      /* the most that the model has: nothing to save for */
  TF_REASON_QUEUE,     /* lowered, as jobs wait */
  TF_REASON_JOB_MIN,   /* load asks for less, the job's minimum holds */
  TF_REASON_JOB_MAX,   /* load allows more, the job's maximum holds */
  TF_REASON_DEADLINE,  /* the largest N that makes the deadline */
  TF_REASON_REASSIGNED /* another attempt could not keep its N */
} tf_reason;
/* "fixed", "idle", ...; "" for NONE. */
const char *tf_reason_name(tf_reason reason);
tf_reason tf_reason_from_name(const char *name, size_t size); /* NONE for a name that is not one */

typedef struct tf_policy_config {
  int64_t target_wait_ms; /* jobs should wait no longer than this */
} tf_policy_config;

/* Load at one moment, the same for every router of the queue. Any value is defined, all zero included. */
typedef struct tf_policy_load {
  int64_t unfinished, waiting, in_encode, in_decode; /* jobs */
  int64_t encode_capacity, decode_capacity;          /* jobs that the live workers' windows hold */
  int64_t now_ms;                                    /* Redis time */
  uint32_t counts_offered;                           /* how many counts the model has; 0: not known yet */
} tf_policy_load;

/* What the policy remembers between two looks at the load; all zero is the start. */
typedef struct tf_policy_state {
  uint32_t level;     /* 0: full detail; each level is one count less */
  int64_t changed_ms; /* when it last changed */
} tf_policy_state;

/* A job's terms. */
typedef struct tf_policy_job {
  const uint32_t *counts; /* ascending, what the model offers; count_count >= 1 */
  size_t count_count;
  uint32_t minimum, maximum; /* 0: no limit */
  uint32_t previous;         /* N of the attempt before; 0: the first attempt */
  tf_reason previous_reason;
} tf_policy_job;

typedef struct tf_policy_choice {
  uint32_t vision_tokens; /* 0: no count lies within the job's limits */
  tf_reason reason;
} tf_policy_choice;

/* Takes in a new reading; at most one level at a time, so that one burst does not go from end to end. */
void tf_policy_observe(tf_policy_state *state, const tf_policy_config *config, const tf_policy_load *load);
tf_policy_choice tf_policy_choose(const tf_policy_state *state, const tf_policy_job *job);

#endif

/* A discrete-event simulation of the whole service around the very same policy code. No I/O, no clock; it allocates.
 * In: arrivals, workers, service times, what happens to workers, the rule that chooses N. Out: waits, throughput, mean
 * tokens, the share of each N, and a series over time. The policy sees what it sees in Redis: sums, every 100 ms.
 * Ten million jobs on ten thousand workers take seconds: every event costs O(log workers). */
#ifndef TF_POLICY_SIMULATOR_H
#define TF_POLICY_SIMULATOR_H

#include "common/error.h"
#include "policy/arrivals.h"
#include "policy/rules.h"

enum {
  TF_SIM_EVENTS_MAX = 64,
  TF_SIM_SERIES_MAX = 960,
  TF_SIM_WAIT_BINS = 128, /* of one moment of the series */
  TF_SIM_OBSERVE_MS = 100
};

typedef struct tf_sim_tier_config {
  uint32_t workers;
  uint32_t slots;                          /* that one worker serves at once */
  uint32_t window;                         /* jobs that may be on their way to it and in it; >= slots */
  double service_ms[TF_POLICY_COUNTS_MAX]; /* per job, when full; as in tf_policy_tier */
  double alone_ms[TF_POLICY_COUNTS_MAX];   /* latency of a job that is alone in a worker */
  uint32_t workers_max;                    /* for autoscaling */
} tf_sim_tier_config;

typedef struct tf_sim_event { /* workers that die (change < 0) or join */
  double at_s;
  bool encode; /* else decode */
  int change;
} tf_sim_event;

typedef struct tf_sim_scaling {
  bool on;
  double period_s;     /* between two looks at the demand */
  double start_s;      /* from the decision until a worker serves */
  double scale_down_s; /* the highest demand within this time counts */
  bool to_zero;        /* a tier that nothing was wanted of for so long has no worker */
} tf_sim_scaling;

typedef struct tf_simulation {
  uint32_t counts[TF_POLICY_COUNTS_MAX], count_count;
  tf_sim_tier_config encode, decode;
  tf_arrivals_config arrivals;
  tf_policy_config policy;
  tf_rule rule;
  double service_spread;  /* standard deviation of a caption's length over its mean; the encoder's time has none */
  double overhead_s;      /* from a free place to the encoder: claim and assignment */
  double lost_s;          /* until a dead worker is noticed and its jobs are tried again */
  double believed_factor; /* service times that the policy is told / the true ones */
  size_t waiting_max;     /* jobs that the queue takes; more are refused */
  tf_sim_event events[TF_SIM_EVENTS_MAX]; /* ascending */
  size_t event_count;
  tf_sim_scaling scaling;
  uint64_t seed;
} tf_simulation;

typedef struct tf_sim_moment { /* means and sums over one step of the series */
  uint64_t arrived, finished, assigned;
  double tokens;                                                                    /* sum of the assigned */
  double budget, unfinished, waiting, encoders, llms, wanted_encoders, wanted_llms; /* as last seen */
  bool seen;
  uint32_t waits[TF_SIM_WAIT_BINS]; /* of the jobs that finished */
} tf_sim_moment;

typedef struct tf_sim_result {
  uint64_t arrived, finished, refused, retried, unfinished;
  uint64_t shares[TF_POLICY_COUNTS_MAX]; /* jobs finished at each count */
  double first_s, last_s;                /* of the first arrival and the last end */
  double wait_mean_s, wait_p50_s, wait_p95_s, wait_p99_s;
  double total_p50_s, total_p95_s;         /* from arrival to result */
  double mean_tokens;                      /* of finished jobs */
  double encode_busy_s, decode_busy_s;     /* worker time with at least one job */
  double worker_s_encode, worker_s_decode; /* worker time paid for */
  double step_s;
  size_t moment_count;
  tf_sim_moment moments[TF_SIM_SERIES_MAX];
} tf_sim_result;

/* Runs to the last job's end, or to four times the duration (the rest stays `unfinished`). *out is the caller's
 * (tf_sim_result_free). INVALID_ARGUMENT: the text says what; OUT_OF_MEMORY. */
tf_code tf_simulate(const tf_simulation *config, tf_sim_result **out, tf_error *error);
void tf_sim_result_free(tf_sim_result **self);

/* The middle of what fell into bin i of a moment's waits, through the usual quantile. */
double tf_sim_moment_wait_s(const tf_sim_moment *moment, double share);

#endif

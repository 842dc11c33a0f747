/* What the router's stages share read-only or count into: settings, the estimate of Redis's clock, the metrics.
 * In: settings from main, time stamps from replies, increments. Out: the same. */
#ifndef TF_ROUTER_STATS_H
#define TF_ROUTER_STATS_H

#include "common/clock.h"
#include "common/metrics.h"
#include "policy/policy.h"

typedef struct tf_router_config {
  const char *redis, *queue, *bind;
  const char *wire_queue; /* what workers know the queue as: tf_router_wire_queue */
  int64_t lease_ms, max_attempts, target_wait_ms, dedupe_window_s, peer_timeout_ms, results_max, drain_timeout_s,
      job_timeout_ms, max_waiting, max_waiting_bytes, results_keep_s, dead_image_bytes_max, dead_max;
  const char *page, *page_token_file; /* status page: on|off; NULL: nobody may act through it */
  const struct tf_page_token *page_token;
  bool ready_without_workers; /* /readyz asks for workers only where another router has some: tiers may scale to zero */
  bool insecure;
} tf_router_config;

/* Redis's time, as far as the last answer tells: the router's own clock is used for intervals only. */
typedef struct tf_redis_clock {
  int64_t offset_us; /* Redis TIME less our monotonic clock */
} tf_redis_clock;

static inline void tf_redis_clock_set(tf_redis_clock *self, int64_t redis_now_us) {
  self->offset_us = redis_now_us - tf_now_us();
}
static inline int64_t tf_redis_clock_us(const tf_redis_clock *self) {
  return tf_now_us() + self->offset_us;
}

typedef enum tf_job_outcome {
  TF_OUTCOME_RESULT,
  TF_OUTCOME_DEAD,
  TF_OUTCOME_RETRY,
  TF_OUTCOME_DUPLICATE, /* a result of an id that had one */
  TF_OUTCOME_STALE,     /* a failure of an attempt that is not the current one */
  TF_OUTCOME_UNKNOWN,   /* a result for a job that Redis does not know */
  TF_OUTCOME_COUNT
} tf_job_outcome;

typedef struct tf_router_stats {
  tf_metrics *metrics; /* borrowed */
  tf_metric *outcomes[TF_OUTCOME_COUNT];
  tf_metric *claimed, *claims, *commit_errors, *leases_lost, *workers_lost, *sweeps_recovered, *dead_dropped;
  tf_metric *unfinished, *waiting, *in_encode, *in_decode, *results_length, *held;
  tf_metric *encoders, *llms;
  tf_metric *arrivals, *budget, *encoders_wanted, *llms_wanted;
} tf_router_stats;

void tf_router_stats_init(tf_router_stats *self, tf_metrics *metrics);
void tf_router_stats_assigned(tf_router_stats *self, uint32_t vision_tokens, const char *reason);
/* The load that routers share, and the workers wanted in each tier. */
void tf_router_stats_load(tf_router_stats *self, const tf_policy_load *load, const tf_policy_state *state,
                          double encoders_wanted, double llms_wanted);
/* kind: "malformed", "unexpected", "unknown_peer", "foreign", "hello"; one of a few. */
void tf_router_stats_protocol_error(tf_router_stats *self, const char *kind);
/* A job that ended dead: its code. */
void tf_router_stats_dead(tf_router_stats *self, const char *code);

#endif

/* Claims jobs from Redis: no more than the workers have room for, often while jobs come, seldom while none do.
 * In: room at the workers, answers of the claim script. Out: pending records, refusals of malformed jobs, the load. */
#ifndef TF_ROUTER_INTAKE_H
#define TF_ROUTER_INTAKE_H

#include "router/dispatch.h"

typedef struct tf_intake tf_intake;

enum {
  TF_CLAIM_JOBS_MAX = 128,
  TF_CLAIM_BYTES_MAX = 64 * 1024 * 1024, /* of entries in one answer (one entry may go past it) */
  TF_CLAIM_ENDED_MAX = 256,              /* duplicates and cancelled jobs that one claim ends */
  TF_LANE_WEIGHT = 4,                    /* interactive jobs for each batch job while both wait */
  TF_TAKEOVERS_MAX = 10                  /* routers that may die holding one job */
};
#define TF_HELD_IMAGE_BYTES_MAX (INT64_C(256) * 1024 * 1024)

typedef struct tf_intake_parts { /* all borrowed */
  tf_reactor *reactor;
  tf_scripts *scripts;
  tf_jobs *jobs;
  tf_dispatch *dispatch;
  tf_results *results;
  tf_load *load;
  const tf_router_config *config;
  tf_redis_clock *clock; /* set by every answer */
  tf_router_stats *stats;
  const char *instance;
} tf_intake_parts;

tf_code tf_intake_new(const tf_intake_parts *parts, tf_intake **out);
void tf_intake_free(tf_intake **self);
void tf_intake_stop(tf_intake *self); /* claims nothing more (drain) */
bool tf_intake_results_full(const tf_intake *self);
/* Jobs that waited in Redis at the last claim. */
int64_t tf_intake_waiting(const tf_intake *self);

#endif

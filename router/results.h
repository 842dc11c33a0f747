/* How jobs end: results and failures on their way to Redis, until Redis has answered.
 * In: a job record that has left its workers, with a result or a failure; results of jobs that this router doesn't
 * hold. Out: one commit or fail script each, asked again until it is answered; then the record is removed. */
#ifndef TF_ROUTER_RESULTS_H
#define TF_ROUTER_RESULTS_H

#include "common/reactor.h"
#include "router/board.h"
#include "router/jobs.h"
#include "router/scripts.h"
#include "router/stats.h"

typedef struct tf_results tf_results;

enum {
  TF_FOREIGN_RESULTS_MAX = 1024, /* results of other routers' jobs on their way at once */
  TF_BACKOFF_MS = 200,           /* of a first failure; doubles */
  TF_BACKOFF_MS_MAX = 10000
};

typedef struct tf_results_parts { /* all borrowed */
  tf_reactor *reactor;
  tf_scripts *scripts;
  tf_jobs *jobs;
  const tf_router_config *config;
  const tf_redis_clock *clock;
  tf_router_stats *stats;
  tf_board *board; /* is told of each result */
  const char *instance;
} tf_results_parts;

tf_code tf_results_new(const tf_results_parts *parts, tf_results **out);
void tf_results_free(tf_results **self);

/* The job holds no worker any more. Its state becomes SETTLING; from here on it is this file's. */
void tf_results_commit(tf_results *self, tf_router_job *job, const tf_result *result);
void tf_results_fail(tf_results *self, tf_router_job *job, tf_fail_mode mode, tf_code code, const char *message);
/* The entry is none that this router holds: its terms are read from Redis first. Dropped past the bound (the lease of
 * its job then runs out, and it is done again). */
void tf_results_commit_foreign(tf_results *self, const tf_result *result);
/* Counts where that attempt is the current one. Tried once. */
void tf_results_fail_foreign(tf_results *self, const tf_failure *failure);
/* Redis is back: everything that waits is asked again now. */
void tf_results_kick(tf_results *self);

/* How a FAILURE counts: by its code's retry rule and its no_attempt. */
tf_fail_mode tf_failure_mode(tf_code code, bool no_attempt);

/* The `json` of a result (docs/REDIS.md), total_ms from the entry's time to now. The caller frees; NULL: out of memory.
 */
char *tf_result_json(const tf_router_job *job, const tf_settlement *settlement, double total_ms);

#endif

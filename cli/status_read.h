/* What a queue tells about itself, read from one Redis. In: the keys of docs/REDIS.md. Out: plain numbers and texts.
 * Depth is counted here and now; load, mix and workers are what a router wrote in the last second. */
#ifndef TF_CLI_STATUS_READ_H
#define TF_CLI_STATUS_READ_H

#include "cli/deployment.h"
#include "cli/queue.h"

enum {
  TF_STATUS_WORKERS_MAX = 1024,
  TF_STATUS_ERRORS_MAX = 64,
  TF_STATUS_LOAD_OLD_MS = 5000,
  TF_STATUS_GONE_MS = 10000
};

typedef struct tf_status_worker {
  char instance[132], role[12], model[160], pair_hash[40], version[24];
  int64_t jobs_out, jobs_max, kv_out, kv_max; /* kv: tokens, 0 for an encoder */
  int64_t silent_ms;                          /* since a router heard of it */
  double service_ms;                          /* worker time of a job at the most tokens; 0: not measured yet */
  bool draining;
} tf_status_worker;

typedef struct tf_status_error {
  char code[40];
  int64_t count;
} tf_status_error;

typedef struct tf_status {
  bool reachable;
  char problem[TF_ERROR_TEXT_BYTES_MAX]; /* where it is not reachable */
  tf_queue_model model;
  tf_queue_depth depth;
  int64_t routers, interactive, batch, retrying, results, dead;
  int64_t ended; /* entries that ever left the job streams; grows */
  /* From `tf:{Q}:load`. */
  int64_t load_age_ms; /* since a router wrote it; -1: none ever did */
  bool load_known;     /* within TF_STATUS_LOAD_OLD_MS, and there is a router */
  double arrivals_per_s, budget, target_wait_ms;
  uint32_t count_count, counts[TF_QUEUE_COUNTS_MAX];
  double mix[TF_QUEUE_COUNTS_MAX], capacity_per_s[TF_QUEUE_COUNTS_MAX]; /* 0: not known */
  int64_t encode_workers, decode_workers, encode_wanted, decode_wanted;
  tf_status_error errors[TF_STATUS_ERRORS_MAX]; /* most often first */
  size_t error_count;
  char maxmemory_policy[32]; /* of Redis; "": the routers may not ask */
  tf_status_worker *workers; /* by role, then instance; tf_status_free */
  size_t worker_count;
} tf_status;

/* TF_ERR_REDIS: not reachable (also told in out). */
tf_code tf_status_read(const tf_deployment *deployment, tf_link *link, tf_status *out, tf_error *error);
void tf_status_free(tf_status *self);

/* Pure: "0.10,0.20,0.70" to numbers; those that are missing are 0. */
void tf_status_parse_reals(const char *text, double *out, size_t count);
/* Pure: one field of `tf:{Q}:workers`. False: it is not understood. */
bool tf_status_parse_worker(const char *instance, const char *json, size_t json_bytes, int64_t now_ms,
                            tf_status_worker *out);
/* Pure: no router has heard of it for TF_STATUS_GONE_MS. */
bool tf_status_worker_is_gone(const tf_status_worker *worker);
/* Pure: {"code": count, ...}, most often first; how many. */
size_t tf_status_parse_errors(const char *json, tf_status_error *out, size_t count_max);

#endif

/* What this router tells of load and workers once a second: hashes in Redis for people and programs, gauges, /wanted.
 * In: the load, the table of workers, paced runs. Out: publish.lua calls; `tf:{Q}:load`, `tf:{Q}:workers`; a text at
 * the health address for autoscalers. */
#ifndef TF_ROUTER_PUBLISH_H
#define TF_ROUTER_PUBLISH_H

#include "common/health.h"
#include "common/reactor.h"
#include "router/eviction.h"
#include "router/load.h"

typedef struct tf_publish tf_publish;

enum {
  TF_PUBLISH_MS = 1000,
  TF_PUBLISH_INTERVAL_MS = 900, /* of the load, over all routers: a little less than a turn, so that none is missed */
  TF_PUBLISH_WORKERS_MAX = 64,  /* told in one turn; more take turns */
  TF_PUBLISH_WORKER_KEPT_MS = 30000 /* a worker that no router tells of any more is taken off */
};

typedef struct tf_publish_parts { /* all borrowed */
  tf_reactor *reactor;
  tf_scripts *scripts;
  tf_workers *workers;
  tf_load *load;
  const tf_router_config *config;
  const tf_redis_clock *clock;
  tf_router_stats *stats;
  const char *instance;
  tf_health *health;
  const tf_eviction *eviction;
} tf_publish_parts;

tf_code tf_publish_new(const tf_publish_parts *parts, tf_publish **out);
void tf_publish_free(tf_publish **self);
/* The worker has gone: its field goes too (another router that still hears it writes it again). */
void tf_publish_worker_gone(tf_publish *self, const char *instance);

#endif

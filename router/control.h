/* What operators ask of this router and its workers: the stream `tf:{Q}:control`, which every router reads.
 * In: entries with a field `drain` (a worker's instance). Out: DRAIN to that worker, where it is connected here. */
#ifndef TF_ROUTER_CONTROL_H
#define TF_ROUTER_CONTROL_H

#include "common/reactor.h"
#include "router/scripts.h"
#include "router/workers.h"

typedef struct tf_control tf_control;

enum {
  TF_CONTROL_POLL_MS = 250,
  TF_CONTROL_READ_MAX = 100,
  TF_CONTROL_DRAINS_MAX = 256 /* remembered, for workers that connect (again) only later */
};

typedef struct tf_control_parts { /* all borrowed */
  tf_reactor *reactor;
  tf_scripts *scripts;
  tf_workers *workers;
  void *socket; /* the ROUTER socket */
} tf_control_parts;

tf_code tf_control_new(const tf_control_parts *parts, tf_control **out);
void tf_control_free(tf_control **self);
/* A worker said HELLO: where it was told to go before, it is told again. */
void tf_control_hello(tf_control *self, const tf_worker *worker);

#endif

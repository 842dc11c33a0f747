/* The health endpoint of every service: /healthz, /readyz, /metrics over HTTP (libmicrohttpd, a thread of its own).
 * In: an address, two atomics' worth of state, a metrics registry. Out: 200 or 503 with one line of text; the metrics
 * page. */
#ifndef TF_COMMON_HEALTH_H
#define TF_COMMON_HEALTH_H

#include <stdint.h>

#include "common/error.h"
#include "common/metrics.h"

typedef struct tf_health tf_health;

/* address: "127.0.0.1:9101", "0.0.0.0:9101", port 0 picks one; NULL or "off": no endpoint (calls below still work).
 * metrics is borrowed and must outlive the endpoint. */
tf_code tf_health_start(const char *address, tf_metrics *metrics, tf_health **out, tf_error *error);
void tf_health_stop(tf_health **self);
int tf_health_port(const tf_health *self); /* 0 where off */
/* Ready or not, with a short reason ("no LLM worker"); copied. Any thread. */
void tf_health_set_ready(tf_health *self, bool ready, const char *reason);
/* A thread that must not wedge calls beat(slot) at least every stall_ms_max; /healthz turns 503 when one is late.
 * slot: 0..7; a slot never beaten is not watched; stall_ms_max 0 stops the watch (idle on purpose). */
void tf_health_beat(tf_health *self, int slot, int64_t stall_ms_max);

#endif

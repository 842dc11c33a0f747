/* The router: one queue, one Redis, one ROUTER socket; ties its stages together on one thread.
 * In: settings, what a service has to start with. Out: jobs from Redis on their way through the workers and back.
 * Stages: intake (claim) -> dispatch (place, assign, send) -> results (commit); upkeep beside them. */
#ifndef TF_ROUTER_ROUTER_H
#define TF_ROUTER_ROUTER_H

#include "proto/service.h"
#include "router/stats.h"

typedef struct tf_router tf_router;

/* The name of a queue among workers, NAME@PLACE: queues of one name on two Redis servers are two queues, and their
 * entries may have equal names. PLACE is a hash of the server's address. INVALID_ARGUMENT: of the URL or the queue's
 * name. */
tf_code tf_router_wire_queue(const char *redis_url, const char *queue, char out[TF_QUEUE_BYTES_MAX + 1],
                             tf_error *error);

/* Binds and starts to connect; all borrowed, and must outlive the router. Errors name the option at fault. */
tf_code tf_router_new(const tf_router_config *config, const tf_service *service, tf_router **out, tf_error *error);
void tf_router_free(tf_router **self); /* after the reactor has stopped */
/* Claims nothing more, finishes what it holds (drain_timeout_s at most), hands the rest back, stops the reactor.
 * A second call hands everything back at once. */
void tf_router_drain(tf_router *self);

#endif

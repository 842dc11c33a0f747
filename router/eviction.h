/* Asks Redis what it does at its maxmemory: one that evicts keys breaks every promise of the queue.
 * In: the connection, once it is ready. Out: a warning that names the policy, again after each change; its name.
 * A user that may ask neither INFO nor CONFIG GET is left alone: then nothing is known, and nothing said. */
#ifndef TF_ROUTER_EVICTION_H
#define TF_ROUTER_EVICTION_H

#include "common/reactor.h"
#include "router/scripts.h"

enum { TF_EVICTION_POLICY_BYTES = 32, TF_EVICTION_ASK_MS = 60000 };

typedef struct tf_eviction tf_eviction;

/* reactor, scripts: borrowed. Errors: OUT_OF_MEMORY. */
tf_code tf_eviction_new(tf_reactor *reactor, tf_scripts *scripts, tf_eviction **out);
void tf_eviction_free(tf_eviction **self);
/* At the start and after each reconnection; where Redis answers, it is asked again every TF_EVICTION_ASK_MS. */
void tf_eviction_ask(tf_eviction *self);
/* "noeviction", "allkeys-lru"...; "" where it is not known. */
const char *tf_eviction_policy(const tf_eviction *self);

#endif

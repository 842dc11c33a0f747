/* Routers behind a name, such as a headless Service of Kubernetes: dns+tcp://NAME:PORT, resolved again and again.
 * In: such endpoints. Out: for each, now and then, the tcp:// endpoints of all its IPv4 addresses, or why there are
 * none. A thread of its own asks, so that a name server that does not answer holds up nobody. */
#ifndef TF_PROTO_DISCOVERY_H
#define TF_PROTO_DISCOVERY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/options.h"

typedef struct tf_discovery tf_discovery;

enum {
  TF_DISCOVERY_NAMES_MAX = 8,
  TF_DISCOVERY_ENDPOINTS_MAX = TF_STRING_LIST_ITEMS_MAX,
  TF_DISCOVERY_HOST_BYTES_MAX = 253,
  TF_DISCOVERY_ENDPOINT_BYTES = sizeof "tcp://255.255.255.255:65535",
  TF_DISCOVERY_INTERVAL_MS = 5000, /* what a headless Service's records live in most clusters */
  TF_DISCOVERY_RETRY_MS = 1000     /* while a name does not resolve */
};

typedef struct tf_discovery_name {
  char host[TF_DISCOVERY_HOST_BYTES_MAX + 1];
  uint16_t port;
} tf_discovery_name;

/* Endpoints in ascending order, each once. */
typedef struct tf_discovery_set {
  size_t count, left_out; /* left_out: addresses past the bound */
  char endpoints[TF_DISCOVERY_ENDPOINTS_MAX][TF_DISCOVERY_ENDPOINT_BYTES];
} tf_discovery_set;

/* All IPv4 addresses of a name, given to tf_discovery_add. May take as long as it likes. */
typedef tf_code (*tf_resolve_fn)(void *context, const tf_discovery_name *name, tf_discovery_set *out, tf_error *error);
/* getaddrinfo; the default. Error: WORKER_UNREACHABLE with the resolver's own text. */
tf_code tf_discovery_resolve(void *context, const tf_discovery_name *name, tf_discovery_set *out, tf_error *error);

/* Pure: whether an endpoint is dns+tcp://..., right or wrong. */
bool tf_discovery_is_name(const char *endpoint);
/* Pure. Error: INVALID_ARGUMENT names the endpoint and what is expected. */
tf_code tf_discovery_parse(const char *endpoint, tf_discovery_name *out, tf_error *error);
/* Pure: adds tcp://A.B.C.D:port at its place; address in network byte order. */
void tf_discovery_add(tf_discovery_set *self, uint32_t address, uint16_t port);
bool tf_discovery_has(const tf_discovery_set *self, const char *endpoint);

/* Starts to resolve. interval_ms 0: TF_DISCOVERY_INTERVAL_MS; resolve NULL: tf_discovery_resolve. Signals that must not
 * reach the new thread are to be blocked before. Errors: INVALID_ARGUMENT (too many names), OUT_OF_MEMORY. */
tf_code tf_discovery_new(const tf_discovery_name *names, size_t count, tf_resolve_fn resolve, void *context,
                         int64_t interval_ms, tf_discovery **out, tf_error *error);
/* Returns at once; a question that is under way ends by itself, so resolve's context must outlive it. */
void tf_discovery_free(tf_discovery **self);
/* False: nothing new of this name since the last call. Else the set (error->code OK) or why there is none. Never waits
 * for the name server. */
bool tf_discovery_take(tf_discovery *self, size_t name, tf_discovery_set *out, tf_error *error);

#endif

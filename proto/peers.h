/* The worker's side of the router connections, the same for encoder and LLM: one DEALER for each router.
 * In: endpoints, fixed ones and names to resolve (proto/discovery.h), a HELLO, the number of job slots. Out: HELLO,
 * PONG and WINDOW messages; JOB, CANCEL, DRAIN to callbacks. Everything runs on the reactor's thread. Nothing here
 * waits; every queue has a bound. */
#ifndef TF_PROTO_PEERS_H
#define TF_PROTO_PEERS_H

#include <stddef.h>

#include "common/metrics.h"
#include "common/options.h"
#include "common/reactor.h"
#include "proto/curve.h"
#include "proto/discovery.h"
#include "proto/wire.h"

typedef struct tf_peers tf_peers;

enum {
  TF_PEERS_MAX = TF_STRING_LIST_ITEMS_MAX, /* routers at once, whatever names resolve to */
  TF_PEERS_TICK_MS = 100,
  TF_PEERS_HELLO_INTERVAL_MS = 2000,  /* until the router answers, and while it is silent */
  TF_PEERS_WINDOW_INTERVAL_MS = 2000, /* repeated, so that a lost one heals */
  TF_PEERS_HELD_MS = 60000,           /* how long a message waits for a live router of its queue */
  TF_PEERS_HELD_MAX = 4096,
  TF_PEERS_HELD_BYTES_MAX = 32 * 1024 * 1024
};

typedef struct tf_peers_config {
  tf_hello hello;          /* strings are borrowed and must outlive the peers */
  uint32_t jobs_max;       /* job slots of this worker, shared out over the live routers */
  uint32_t kv_tokens_max;  /* LLM: of the windows, shared likewise; 0: an encoder */
  int64_t peer_timeout_ms; /* silence after which a router counts as gone */
  /* Gets every JOB and CANCEL. To keep the message take it and set *message = NULL; free with tf_peers_message_free. */
  void (*on_message)(void *context, tf_message **message);
  /* Asks for a PONG: times (parallel to hello.token_counts), batch_max and, of an LLM, the KV cache's
   * kv_tokens and kv_tokens_max; all zero before. */
  void (*measure)(void *context, tf_pong *pong);
  void (*on_drain)(void *context); /* a router says: finish and exit. At most once, and never while draining */
  void *context;
  tf_metrics *metrics;   /* borrowed */
  const tf_curve *curve; /* borrowed; NULL: no keys */
  /* How and how often names are resolved; NULL and 0: getaddrinfo, TF_DISCOVERY_INTERVAL_MS. */
  tf_resolve_fn resolve;
  void *resolve_context;
  int64_t resolve_interval_ms;
} tf_peers_config;

/* Connects to every endpoint (a router may come later). A dns+tcp:// name stands for all its addresses: new ones are
 * connected to; one that is no longer there goes once its router has been silent for peer_timeout_ms, so that a router
 * that drains, or an answer that lacks some, costs nothing. A name that does not resolve changes nothing. Errors:
 * INVALID_ARGUMENT names the endpoint; OUT_OF_MEMORY. */
tf_code tf_peers_new(void *zmq_context, tf_reactor *reactor, const tf_string_list *endpoints,
                     const tf_peers_config *config, tf_peers **out, tf_error *error);
/* Closes the sockets; what was sent already gets up to a second to leave. Held messages are lost. */
void tf_peers_free(tf_peers **self);
size_t tf_peers_live(const tf_peers *self); /* routers that answered HELLO and are heard of */

/* A job of this router is here now, or no longer: its share of the window follows. Unknown routers are ignored. */
void tf_peers_job_begin(tf_peers *self, const char *router);
void tf_peers_job_end(tf_peers *self, const char *router);

/* One try at STAGE, DELTA, RESULT or FAILURE: to the router in the key, else to a live router of the key's queue.
 * Errors: WORKER_UNREACHABLE (none is live), WORKER_FULL (its pipe is full), PROTOCOL (over a bound). */
tf_code tf_peers_send(tf_peers *self, const tf_message *message, tf_error *error);
/* The same, and where it can not be sent now it is held up to TF_PEERS_HELD_MS; the oldest goes when the bound is hit.
 */
void tf_peers_deliver(tf_peers *self, const tf_message *message);
/* tf_peers_deliver of a FAILURE; text may hold any bytes (paths do), it is made valid UTF-8 here. */
void tf_peers_fail_job(tf_peers *self, const tf_job_key *key, tf_code code, const char *text, bool no_attempt);
size_t tf_peers_held(const tf_peers *self);

/* While paused no router may send anything: this worker keeps itself free for one job. */
void tf_peers_pause(tf_peers *self, bool paused);
/* Tells every router to send nothing more, from now on. */
void tf_peers_drain(tf_peers *self);

void tf_peers_message_free(tf_message **message);
/* Same queue, entry and attempt. */
bool tf_job_key_equal(const tf_job_key *a, const tf_job_key *b);

/* Pure: job slots to routers. Active ones (demand or jobs outstanding) share equally, the others get 1;
 * with none active all share equally. Nobody gets less than 1, even where jobs_max is smaller than count. */
void tf_peers_share(uint32_t jobs_max, const bool *active, size_t count, uint32_t *out);
/* Pure: bytes that are no valid UTF-8, and control characters, become '?'. */
void tf_text_clean(char *text);
/* "encoder-HOST-PID-RANDOM", unique for each start. */
void tf_instance_make(const char *role, char *out, size_t out_bytes);

#endif

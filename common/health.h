/* The health endpoint of every service: /healthz, /readyz, /metrics over HTTP (libmicrohttpd, a thread of its own).
 * In: an address, two atomics' worth of state, a metrics registry, maybe a handler for more. Out: 200 or 503 with one
 * line of text; the metrics page; what the handler answers. */
#ifndef TF_COMMON_HEALTH_H
#define TF_COMMON_HEALTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

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

/* A text under one more path ("/wanted"; at most TF_HEALTH_TEXT_BYTES_MAX), copied, as open as the metrics; body NULL:
 * not known, 503. One path an endpoint. path and type are constants. Any thread. */
enum { TF_HEALTH_TEXT_BYTES_MAX = 256 };
void tf_health_publish(tf_health *self, const char *path, const char *type, const char *body);

/* A request for anything else. Strings live as long as the call. A body is never read. */
typedef struct tf_health_request {
  const char *method, *path; /* HEAD comes as GET; the path is decoded and has no query */
  bool loopback;             /* the peer is this machine */
  void *connection;          /* of the two functions below */
} tf_health_request;
const char *tf_health_header(const tf_health_request *request, const char *name);   /* NULL: not there */
const char *tf_health_argument(const tf_health_request *request, const char *name); /* of the query; NULL: not there */

typedef struct tf_health_answer {
  unsigned status;    /* 0: nothing of the handler's, 404 */
  const char *type;   /* of the content; a constant */
  const char *policy; /* Content-Security-Policy, a constant; NULL: the one that forbids everything */
  const char *allow;  /* with 405: the methods; NULL: none */
  const void *body;
  size_t size;
  bool owned; /* body was allocated: it is freed once sent */
} tf_health_answer;

/* Runs on the endpoint's thread, which must not wait: health itself would. */
typedef void (*tf_health_fn)(void *context, const tf_health_request *request, tf_health_answer *answer);
/* Hands requests beside the three to fn, or no more (NULL); none is under way once this returns. Any thread. */
void tf_health_serve(tf_health *self, tf_health_fn fn, void *context);

/* 127.0.0.0/8, ::1, and IPv4 written as IPv6. */
bool tf_address_is_loopback(const struct sockaddr *address);

#endif

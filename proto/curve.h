/* CURVE on our sockets: who may connect, and to whom we connect. Keys are files (proto/curve_keys.h).
 * In: a process's own pair; the public key of those it connects to; the public keys of those that may connect to it.
 * Out: sockets that speak CURVE and nothing else. With one pair for a whole deployment the first is all that is needed.
 * Without keys every call below does nothing, so that callers need not ask. */
#ifndef TF_PROTO_CURVE_H
#define TF_PROTO_CURVE_H

#include "common/metrics.h"
#include "proto/curve_keys.h"

typedef struct tf_curve tf_curve;

typedef struct tf_curve_options {
  const char *key;    /* file with our pair; NULL: no CURVE */
  const char *server; /* file with the public key of what we connect to; NULL: our own */
  const char *allow;  /* file with the public keys that may connect beside our own; read again when it changes */
} tf_curve_options;

/* *out is NULL where no key is given. Errors name the option and the file. */
tf_code tf_curve_new(const tf_curve_options *options, tf_curve **out, tf_error *error);
/* Starts the thread that judges keys (ZAP) in this context; needed before the first tf_curve_bind. It ends with the
 * context: shut that down (zmq_ctx_shutdown) before tf_curve_free. Counts refusals in metrics. */
tf_code tf_curve_guard(tf_curve *self, void *zmq_context, tf_metrics *metrics, tf_error *error);
void tf_curve_free(tf_curve **self);

/* Before zmq_bind; before zmq_connect. self NULL: nothing is done. */
tf_code tf_curve_bind(const tf_curve *self, void *socket, tf_error *error);
tf_code tf_curve_connect(const tf_curve *self, void *socket, tf_error *error);

/* Fails for a bind that other machines reach where there are no keys, unless insecure. option: its name, for the text.
 */
tf_code tf_curve_check_bind(const tf_curve_options *options, const char *option, const char *endpoint, bool insecure,
                            tf_error *error);

#endif

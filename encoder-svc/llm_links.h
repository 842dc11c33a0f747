/* An encoder's connections to LLM workers: one DEALER for each tensor endpoint that jobs named. In: endpoints. Out:
 * links. A bounded number; one that is not used for a while is closed. On the reactor's thread. */
#ifndef TF_ENCODER_LLM_LINKS_H
#define TF_ENCODER_LLM_LINKS_H

#include "common/reactor.h"
#include "proto/curve.h"
#include "proto/wire.h"

typedef struct tf_llm_links tf_llm_links;

enum { TF_LLM_LINKS_MAX = 64, TF_LLM_LINK_IDLE_MS = 300000 };

typedef struct tf_llm_links_config { /* all borrowed */
  void *zmq_context;
  tf_reactor *reactor;
  tf_metrics *metrics;
  const tf_curve *curve;          /* NULL: no keys */
  tf_reactor_socket_fn on_socket; /* called while a link has input (TENSOR_ACK, TENSOR_REFUSED) */
  void *context;
} tf_llm_links_config;

/* NULL: out of memory. */
tf_llm_links *tf_llm_links_new(const tf_llm_links_config *config);
void tf_llm_links_free(tf_llm_links **self);

/* Counts one more user of the link to endpoint, which is made where there is none; connecting goes on in the
 * background. Errors: WORKER_UNREACHABLE (not an endpoint, or all links are in use). */
tf_code tf_llm_links_acquire(tf_llm_links *self, const char *endpoint, tf_error *error);
void tf_llm_links_release(tf_llm_links *self, const char *endpoint);

/* Sends without waiting; the payload is moved on success. Errors as tf_wire_send. */
tf_code tf_llm_links_send(tf_llm_links *self, const char *endpoint, const tf_message *message, zmq_msg_t *payload,
                          tf_error *error);
/* Nothing was heard since since_ms although something was sent: drops what is queued and connects anew. */
void tf_llm_links_suspect(tf_llm_links *self, const char *endpoint, int64_t since_ms);
void tf_llm_links_heard(tf_llm_links *self, const void *socket);
/* Closes what nobody used for TF_LLM_LINK_IDLE_MS. */
void tf_llm_links_expire(tf_llm_links *self);

#endif

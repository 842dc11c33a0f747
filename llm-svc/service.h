/* The LLM service: tensors from encoders to captions at routers. In: TENSOR from encoders, CANCEL from routers.
 * Out: TENSOR_ACK or TENSOR_REFUSED to the encoder, DELTA, RESULT or FAILURE to the router.
 * Owns every socket of the process, on the thread that runs the reactor; the engine runs on a thread of its own. */
#ifndef TF_LLM_SERVICE_H
#define TF_LLM_SERVICE_H

#include "llm-svc/compute.h"
#include "proto/peers.h"

typedef struct tf_llm_service tf_llm_service;

typedef struct tf_llm_service_config {
  void *zmq_context;
  const tf_curve *curve; /* NULL: no keys; else its guard runs in the context */
  tf_reactor *reactor;
  const char *instance;         /* unique for this start */
  const tf_model_dir *model;    /* name, pair hash, token counts */
  tf_engine *engine;            /* its waiting_max must be at least tf_llm_service_jobs_limit(jobs_max) */
  tf_string_list routers;       /* endpoints */
  const char *tensor_bind;      /* "tcp://127.0.0.1:*", "ipc:///path" */
  const char *tensor_advertise; /* what HELLO says; NULL or "": where tensor_bind ended up */
  uint32_t jobs_max;            /* slots, shared over the routers */
  uint32_t kv_tokens_max;       /* shared likewise: the cache and a margin for tensors that are still in the encoder */
  int64_t peer_timeout_ms, drain_timeout_ms;
  tf_metrics *metrics;
  tf_health *health;
} tf_llm_service_config;

/* Jobs held at most where jobs_max slots are shared out: windows shrink while jobs are on their way. */
uint32_t tf_llm_service_jobs_limit(uint32_t jobs_max);

/* Everything in config is borrowed and must outlive the service. Errors: INVALID_ARGUMENT (bind, advertise),
 * OUT_OF_MEMORY. */
tf_code tf_llm_service_new(const tf_llm_service_config *config, tf_llm_service **out, tf_error *error);
/* Drops what is left, joins the compute thread, closes the sockets. */
void tf_llm_service_free(tf_llm_service **self);
const char *tf_llm_service_endpoint(const tf_llm_service *self); /* what HELLO says */
/* Finishes what is here and what is still on its way (bounded by drain_timeout_ms), then stops the reactor.
 * Called again: stops at once. */
void tf_llm_service_drain(tf_llm_service *self);

#endif

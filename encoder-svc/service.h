/* The encoder service: jobs from routers to tensors at LLM workers. In: JOB and CANCEL. Out: TENSOR to the LLM that the
 * job names, STAGE or FAILURE to the router. Owns every socket of the process, on the thread that runs the reactor; the
 * work is done by the pipeline's threads. */
#ifndef TF_ENCODER_SERVICE_H
#define TF_ENCODER_SERVICE_H

#include "encoder-svc/pipeline.h"
#include "proto/peers.h"

typedef struct tf_encoder_service tf_encoder_service;

typedef struct tf_encoder_service_config {
  void *zmq_context;
  const tf_curve *curve; /* NULL: no keys; else its guard runs in the context */
  tf_reactor *reactor;
  const char *instance;      /* unique for this start */
  const tf_model_dir *model; /* name, pair hash, token counts */
  tf_string_list routers;    /* endpoints */
  uint32_t jobs_max;         /* slots, shared over the routers; 0: decode threads + 2 * batch, at least 4 */
  int64_t peer_timeout_ms, ack_timeout_ms, drain_timeout_ms;
  tf_pipeline_config pipeline; /* all but jobs_max, metrics and health */
  tf_metrics *metrics;
  tf_health *health;
} tf_encoder_service_config;

/* Everything in config is borrowed and must outlive the service. */
tf_code tf_encoder_service_new(const tf_encoder_service_config *config, tf_encoder_service **out, tf_error *error);
/* Drops what is left, joins the threads, closes the sockets. */
void tf_encoder_service_free(tf_encoder_service **self);
/* Takes no more jobs, finishes what is here (bounded by drain_timeout_ms), then stops the reactor. Called again: stops
 * at once. */
void tf_encoder_service_drain(tf_encoder_service *self);

#endif

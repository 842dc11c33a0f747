/* The encoder service's reactor side: the table of jobs, and what is said about each to router and LLM.
 * In: JOB, CANCEL, TENSOR_ACK, TENSOR_REFUSED, finished pipeline jobs. Out: TENSOR, STAGE, FAILURE.
 * A job is in the table from JOB until its tensor is acknowledged or it failed; the table has a bound.
 * A job that is to be tried alone is parked until the table holds nothing else; what comes meanwhile goes back. */
#include "encoder-svc/service.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/log.h"
#include "encoder-svc/llm_links.h"

enum {
  TICK_MS = 50,
  MESSAGES_A_TURN_MAX = 64,
  JOBS_MIN = 4,
  /* Windows shrink while jobs are on their way, and every router has at least one slot. */
  JOBS_MARGIN = TF_STRING_LIST_ITEMS_MAX,
  ALONE_WAIT_MS_MAX = 60000, /* for the jobs before it; then it goes back */
  ANNOUNCE_MS = 10,          /* until what was sent has left the process */
  DRAIN_GRACE_MS = 300       /* jobs that crossed our WINDOW on the way are handed back, not lost */
};

typedef enum pending_state {
  PENDING_PARKED,    /* to be tried alone: others are still here */
  PENDING_ANNOUNCED, /* they have gone, and the router was told; begins once that has left */
  PENDING_PIPELINE,
  PENDING_SENDING,
  PENDING_ACK
} pending_state;

typedef struct pending {
  tf_encode_job job; /* first: the pipeline hands back a pointer to it */
  pending_state state;
  zmq_msg_t payload; /* the tensor, while it waits to be sent */
  bool has_payload, linked;
  int64_t sent_ms, ack_due_ms;
  int64_t parked_ms, announced_ms;
} pending;

struct tf_encoder_service {
  tf_encoder_service_config config;
  tf_peers *peers;
  tf_llm_links *links;
  tf_pipeline *pipeline;
  pending **jobs;
  size_t job_count, job_limit;
  pending *alone; /* the job that is tried alone; NULL: none */
  int timer;
  bool draining;
  int64_t drain_begin_ms;
  tf_metric *jobs_now, *bytes_sent, *protocol_errors;
};

/* ---- the table ---- */

static const tf_job *job_of(const pending *self) {
  return &self->job.message->u.job;
}

static pending *find_job(const tf_encoder_service *self, const tf_job_key *key) {
  for (size_t i = 0; i < self->job_count; i++) {
    if (tf_job_key_equal(&job_of(self->jobs[i])->key, key)) return self->jobs[i];
  }
  return NULL;
}

static void pending_free(tf_encoder_service *self, pending *item) {
  if (item->linked) tf_llm_links_release(self->links, job_of(item)->llm_endpoint);
  if (item->has_payload) zmq_msg_close(&item->payload);
  free(item->job.tensor);
  free(item->job.bytes);
  free(item->job.pixels);
  tf_features_release(&item->job.features);
  tf_peers_message_free(&item->job.message);
  free(item);
}

/* Says that the job is the only one here once it is: a death from then on counts against it alone. */
static void announce_alone(tf_encoder_service *self) {
  pending *item = self->alone;
  if (item == NULL || item->state != PENDING_PARKED || self->job_count > 1) return;
  tf_message message = {
      .type = TF_MESSAGE_STAGE,
      .u.stage = {.key = job_of(item)->key, .stage = TF_STAGE_ENCODE, .timing = item->job.timing, .alone = true}};
  tf_peers_deliver(self->peers, &message);
  item->state = PENDING_ANNOUNCED;
  item->announced_ms = tf_now_ms();
}

static void remove_job(tf_encoder_service *self, pending *item) {
  for (size_t i = 0; i < self->job_count; i++) {
    if (self->jobs[i] != item) continue;
    self->jobs[i] = self->jobs[--self->job_count];
    break;
  }
  tf_peers_job_end(self->peers, job_of(item)->key.router);
  if (item == self->alone) {
    self->alone = NULL;
    tf_peers_pause(self->peers, false);
  }
  pending_free(self, item);
  announce_alone(self);
}

static void count_outcome(tf_encoder_service *self, const char *outcome) {
  char labels[96];
  snprintf(labels, sizeof labels, "tier=\"encoder\",outcome=\"%s\"", outcome);
  tf_metric_add(tf_metrics_counter(self->config.metrics, "tokenflex_jobs_total", labels, "Jobs by outcome"), 1);
}

/* ---- endings ---- */

/* Handed back, not tried: costs the job no attempt. WORKER_LOST is what an LLM says of a tensor for its predecessor;
 * a wire that is cut (WORKER_UNREACHABLE) is no fault of the job's, and would end a whole queue if it counted. */
static bool is_no_attempt(tf_code code) {
  return code == TF_ERR_WORKER_FULL || code == TF_ERR_PAIR_MISMATCH || code == TF_ERR_WORKER_DRAINING ||
         code == TF_ERR_WORKER_LOST || code == TF_ERR_WORKER_UNREACHABLE;
}

static void report_failure(tf_encoder_service *self, const tf_job_key *key, tf_code code, const char *text) {
  count_outcome(self, tf_code_name(code));
  tf_log_info("job_failed", TF_STR("job", key->id), TF_STR("entry", key->entry), TF_INT("attempt", key->attempt),
              TF_STR("trace", key->trace), TF_STR("code", tf_code_name(code)), TF_STR("reason", text));
  tf_peers_fail_job(self->peers, key, code, text, is_no_attempt(code));
}

static void fail_pending(tf_encoder_service *self, pending *item, tf_code code, const char *text) {
  report_failure(self, &job_of(item)->key, code, text);
  remove_job(self, item);
}

static void on_acknowledged(tf_encoder_service *self, pending *item) {
  const tf_job_key *key = &job_of(item)->key;
  tf_log_debug("job_encoded", TF_STR("job", key->id), TF_STR("entry", key->entry), TF_STR("trace", key->trace),
               TF_INT("attempt", key->attempt), TF_INT("vision_tokens", job_of(item)->vision_tokens),
               TF_REAL("encode_ms", item->job.timing.encode_ms));
  TF_FAIL_POINT("encoder-acknowledged", key->id);
  tf_message message = {.type = TF_MESSAGE_STAGE,
                        .u.stage = {.key = *key, .stage = TF_STAGE_DECODE, .timing = item->job.timing}};
  tf_peers_deliver(self->peers, &message);
  count_outcome(self, "ok");
  remove_job(self, item);
}

/* ---- towards the LLM ---- */

static void free_tensor(void *data, void *hint) {
  (void)hint;
  free(data); /* on a thread of ZeroMQ, once the bytes have left */
}

/* Sends the tensor, or leaves it for the next tick where the link is full. */
static void send_tensor(tf_encoder_service *self, pending *item) {
  const tf_job *job = job_of(item);
  const tf_encode_job *work = &item->job;
  uint32_t grid = (uint32_t)lround(sqrt((double)job->vision_tokens));
  tf_message message = {.type = TF_MESSAGE_TENSOR,
                        .u.tensor = {.key = job->key,
                                     .llm_instance = job->llm_instance,
                                     .encoder_instance = self->config.instance,
                                     .vision_tokens = job->vision_tokens,
                                     .width = (uint32_t)tf_encoder_llm_width(self->config.pipeline.encoder),
                                     .grid = grid,
                                     .dtype = self->config.pipeline.dtype,
                                     .pair_hash = self->config.model->pair_hash,
                                     .prompt = job->prompt,
                                     .warning = work->warning,
                                     .sampling = job->sampling,
                                     .deadline_unix_ms = job->deadline_unix_ms,
                                     .byte_length = work->tensor_bytes,
                                     .timing = work->timing,
                                     .sent_unix_us = tf_unix_us(),
                                     .stream = job->stream,
                                     .alone = job->alone}};
  tf_error error;
  tf_code code = tf_llm_links_send(self->links, job->llm_endpoint, &message, &item->payload, &error);
  if (code == TF_ERR_PROTOCOL) {
    fail_pending(self, item, TF_ERR_INTERNAL, error.text);
    return;
  }
  if (code != TF_OK) return; /* tried again until ack_due_ms */
  item->has_payload = false;
  item->state = PENDING_ACK;
  item->sent_ms = tf_now_ms();
  item->ack_due_ms = item->sent_ms + self->config.ack_timeout_ms;
  tf_metric_add(self->bytes_sent, (double)work->tensor_bytes);
  TF_FAIL_POINT("encoder-sent", job->key.id);
}

/* A job came out of the pipeline. */
static void on_finished(tf_encoder_service *self, pending *item) {
  tf_encode_job *work = &item->job;
  if (atomic_load(&work->cancelled)) {
    count_outcome(self, "cancelled");
    remove_job(self, item);
    return;
  }
  if (work->error.code != TF_OK) {
    fail_pending(self, item, work->error.code, work->error.text);
    return;
  }
  TF_FAIL_POINT("encoder-encoded", job_of(item)->key.id);
  work->timing.wait_ms += (float)(tf_now_us() - work->idle_since_us) / 1000;
  tf_text_clean(work->warning);
  if (zmq_msg_init_data(&item->payload, work->tensor, work->tensor_bytes, free_tensor, NULL) != 0) {
    fail_pending(self, item, TF_ERR_OUT_OF_MEMORY, "no memory for a message");
    return;
  }
  work->tensor = NULL; /* the message owns it now */
  item->has_payload = true;
  item->state = PENDING_SENDING;
  item->sent_ms = tf_now_ms();
  item->ack_due_ms = item->sent_ms + self->config.ack_timeout_ms;
  send_tensor(self, item);
}

static void on_pipeline(void *context, int fd, int events) {
  (void)fd, (void)events;
  tf_encoder_service *self = context;
  tf_encode_job *work;
  for (int i = 0; i < MESSAGES_A_TURN_MAX && (work = tf_pipeline_take(self->pipeline)) != NULL; i++) {
    on_finished(self, (pending *)work);
  }
}

static void on_llm_message(tf_encoder_service *self, const tf_message *message) {
  const tf_job_key *key =
      message->type == TF_MESSAGE_TENSOR_ACK ? &message->u.tensor_ack.key : &message->u.tensor_refused.key;
  pending *item = find_job(self, key);
  if (item == NULL || item->state != PENDING_ACK) return; /* late: already given up or cancelled */
  if (message->type == TF_MESSAGE_TENSOR_ACK) {
    on_acknowledged(self, item);
  } else {
    const tf_tensor_refused *refused = &message->u.tensor_refused;
    fail_pending(self, item, tf_code_from_name(refused->error_code), refused->error_message);
  }
}

static void on_llm_socket(void *context, void *socket) {
  tf_encoder_service *self = context;
  tf_llm_links_heard(self->links, socket);
  for (int i = 0; i < MESSAGES_A_TURN_MAX; i++) {
    tf_message message = {.type = 0};
    tf_error error;
    tf_code code = tf_wire_receive(socket, false, &message, &error);
    if (code != TF_OK && code != TF_ERR_PROTOCOL) return;
    if (code == TF_OK && (message.type == TF_MESSAGE_TENSOR_ACK || message.type == TF_MESSAGE_TENSOR_REFUSED)) {
      on_llm_message(self, &message);
    } else {
      tf_metric_add(self->protocol_errors, 1);
      tf_log_warn("message_refused", TF_STR("from", "llm"),
                  TF_STR("reason", code == TF_OK ? "out of place" : error.text));
    }
    if (code == TF_OK) tf_message_clear(&message);
  }
}

/* ---- from the router ---- */

static tf_code check_job(tf_encoder_service *self, const tf_job *job, tf_error *error) {
  if (self->draining) return tf_fail(error, TF_ERR_WORKER_DRAINING, "the encoder is shutting down");
  if (strcmp(job->pair_hash, self->config.model->pair_hash) != 0) {
    return tf_fail(error, TF_ERR_PAIR_MISMATCH, "the job is for the pair %s, this encoder is of %s", job->pair_hash,
                   self->config.model->pair_hash);
  }
  if (!tf_encoder_supports(self->config.pipeline.encoder, job->vision_tokens)) {
    return tf_fail(error, TF_ERR_PAIR_MISMATCH, "this encoder can not make %u vision tokens", job->vision_tokens);
  }
  if (self->alone != NULL) return tf_fail(error, TF_ERR_WORKER_FULL, "the encoder is kept free for one job");
  if (self->job_count >= self->job_limit) {
    return tf_fail(error, TF_ERR_WORKER_FULL, "the encoder holds %zu jobs", self->job_count);
  }
  return TF_OK;
}

static tf_code start_job(tf_encoder_service *self, tf_message **message, tf_error *error) {
  const tf_job *job = &(*message)->u.job;
  pending *item = calloc(1, sizeof *item);
  if (item == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a job");
  tf_code code = tf_llm_links_acquire(self->links, job->llm_endpoint, error);
  if (code != TF_OK) {
    free(item);
    return code;
  }
  item->linked = true;
  item->job.message = *message;
  item->job.timing = job->timing;
  atomic_init(&item->job.cancelled, false);
  item->state = job->alone ? PENDING_PARKED : PENDING_PIPELINE;
  if (!job->alone && !tf_pipeline_submit(self->pipeline, &item->job)) {
    item->job.message = NULL;
    tf_llm_links_release(self->links, job->llm_endpoint);
    free(item);
    return tf_fail(error, TF_ERR_WORKER_FULL, "the encoder's queue is full");
  }
  *message = NULL;
  self->jobs[self->job_count++] = item;
  TF_FAIL_POINT("encoder-job", job->key.id);
  tf_log_debug("job_received", TF_STR("job", job->key.id), TF_STR("entry", job->key.entry),
               TF_STR("trace", job->key.trace), TF_INT("attempt", job->key.attempt), TF_STR("router", job->key.router));
  tf_peers_job_begin(self->peers, job->key.router);
  if (job->alone) {
    item->parked_ms = tf_now_ms();
    self->alone = item;
    tf_peers_pause(self->peers, true);
    announce_alone(self);
  }
  return TF_OK;
}

static void on_router_message(void *context, tf_message **message) {
  tf_encoder_service *self = context;
  if ((*message)->type == TF_MESSAGE_CANCEL) {
    pending *item = find_job(self, &(*message)->u.cancel.key);
    if (item == NULL) return;
    atomic_store(&item->job.cancelled, true);
    if (item->state == PENDING_PIPELINE) return; /* dropped when its thread looks */
    count_outcome(self, "cancelled");
    remove_job(self, item);
    return;
  }
  const tf_job *job = &(*message)->u.job;
  if (find_job(self, &job->key) != NULL) return; /* the same attempt again */
  tf_error error;
  tf_code code = check_job(self, job, &error);
  if (code == TF_OK) code = start_job(self, message, &error);
  if (code != TF_OK) report_failure(self, &job->key, code, error.text);
}

/* ---- time ---- */

/* Begins once the announcement has left, whatever the job does to this process. */
static void check_alone(tf_encoder_service *self, int64_t now_ms) {
  pending *item = self->alone;
  if (item == NULL) return;
  if (item->state == PENDING_PARKED && now_ms - item->parked_ms >= ALONE_WAIT_MS_MAX) {
    fail_pending(self, item, TF_ERR_WORKER_FULL, "the encoder did not become free for this job alone");
  } else if (item->state == PENDING_ANNOUNCED && now_ms - item->announced_ms >= ANNOUNCE_MS) {
    item->state = PENDING_PIPELINE;
    item->job.timing.wait_ms += (float)(now_ms - item->parked_ms);
    if (!tf_pipeline_submit(self->pipeline, &item->job))
      fail_pending(self, item, TF_ERR_WORKER_FULL, "the encoder's queue is full");
  }
}

static void check_tensors(tf_encoder_service *self, int64_t now_ms) {
  for (size_t i = self->job_count; i-- > 0;) { /* backwards: what is removed is replaced by the last */
    pending *item = self->jobs[i];
    if (item->state < PENDING_SENDING) continue;
    if (now_ms >= item->ack_due_ms) {
      char text[TF_ERROR_TEXT_BYTES_MAX];
      snprintf(text, sizeof text, "the LLM worker at %.300s did not take the tensor within %lld ms",
               job_of(item)->llm_endpoint, (long long)self->config.ack_timeout_ms);
      tf_llm_links_suspect(self->links, job_of(item)->llm_endpoint, item->sent_ms);
      fail_pending(self, item, TF_ERR_WORKER_UNREACHABLE, text);
      continue;
    }
    if (item->state == PENDING_SENDING) send_tensor(self, item);
  }
}

static void check_drain(tf_encoder_service *self, int64_t now_ms) {
  if (!self->draining) return;
  int64_t since_ms = now_ms - self->drain_begin_ms;
  bool empty = self->job_count == 0 && tf_peers_held(self->peers) == 0;
  bool quiet = since_ms >= DRAIN_GRACE_MS || tf_peers_live(self->peers) == 0;
  if (!(empty && quiet) && since_ms < self->config.drain_timeout_ms) return;
  tf_log_info("drained", TF_INT("jobs_left", self->job_count), TF_INT("took_ms", since_ms));
  tf_reactor_stop(self->config.reactor);
}

static void on_tick(void *context) {
  tf_encoder_service *self = context;
  int64_t now_ms = tf_now_ms();
  check_alone(self, now_ms);
  check_tensors(self, now_ms);
  tf_llm_links_expire(self->links);
  tf_pipeline_measure(self->pipeline);
  tf_metric_set(self->jobs_now, (double)self->job_count);
  bool connected = tf_peers_live(self->peers) > 0;
  const char *reason = self->draining ? "draining" : connected ? "ready" : "no router has answered";
  tf_health_set_ready(self->config.health, connected && !self->draining, reason);
  check_drain(self, now_ms);
}

void tf_encoder_service_drain(tf_encoder_service *self) {
  if (self->draining) {
    tf_reactor_stop(self->config.reactor);
    return;
  }
  tf_log_info("draining", TF_INT("jobs", self->job_count));
  self->draining = true;
  self->drain_begin_ms = tf_now_ms();
  tf_peers_drain(self->peers);
}

/* ---- life ---- */

/* For a PONG. */
static void measure(void *context, tf_pong *pong) {
  tf_encoder_service *self = context;
  const tf_model_dir *model = self->config.model;
  uint32_t count = model->token_count_count;
  if (tf_pipeline_times(self->pipeline, model->token_counts, count, pong->service.ms, pong->latency.ms))
    pong->service.count = pong->latency.count = count;
  pong->batch_max = (uint32_t)self->config.pipeline.batch_max;
}

static void on_drain(void *context) {
  tf_encoder_service_drain(context);
}

static tf_code start_peers(tf_encoder_service *self, tf_error *error) {
  const tf_model_dir *model = self->config.model;
  tf_peers_config config = {.hello = {.role = TF_ROLE_ENCODER,
                                      .instance = self->config.instance,
                                      .pair_hash = model->pair_hash,
                                      .model = model->name,
                                      .version = TF_VERSION,
                                      .token_count_count = model->token_count_count},
                            .jobs_max = self->config.jobs_max,
                            .peer_timeout_ms = self->config.peer_timeout_ms,
                            .on_message = on_router_message,
                            .measure = measure,
                            .on_drain = on_drain,
                            .context = self,
                            .metrics = self->config.metrics,
                            .curve = self->config.curve};
  memcpy(config.hello.token_counts, model->token_counts, sizeof config.hello.token_counts);
  return tf_peers_new(self->config.zmq_context, self->config.reactor, &self->config.routers, &config, &self->peers,
                      error);
}

static tf_code start_pipeline(tf_encoder_service *self, tf_error *error) {
  tf_pipeline_config config = self->config.pipeline;
  config.jobs_max = self->job_limit;
  config.metrics = self->config.metrics;
  config.health = self->config.health;
  tf_code code = tf_pipeline_new(&config, &self->pipeline, error);
  if (code != TF_OK) return code;
  code = tf_reactor_set_fd(self->config.reactor, tf_pipeline_fd(self->pipeline), TF_READABLE, on_pipeline, self);
  return code == TF_OK ? TF_OK : tf_fail(error, code, "the reactor is full");
}

_Static_assert((int)TF_HELLO_COUNTS_MAX == (int)TF_TOKEN_COUNTS_MAX, "HELLO carries every count that a model may have");

tf_code tf_encoder_service_new(const tf_encoder_service_config *config, tf_encoder_service **out, tf_error *error) {
  *out = NULL;
  tf_encoder_service *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the service");
  self->config = *config;
  self->timer = -1;
  if (self->config.jobs_max == 0) {
    int slots = config->pipeline.decode_threads + 2 * config->pipeline.batch_max;
    self->config.jobs_max = (uint32_t)(slots > JOBS_MIN ? slots : JOBS_MIN);
  }
  self->job_limit = (size_t)2 * self->config.jobs_max + JOBS_MARGIN;
  self->jobs = calloc(self->job_limit, sizeof(pending *));
  tf_llm_links_config links = {.zmq_context = config->zmq_context,
                               .reactor = config->reactor,
                               .metrics = config->metrics,
                               .curve = config->curve,
                               .on_socket = on_llm_socket,
                               .context = self};
  self->links = tf_llm_links_new(&links);
  self->jobs_now = tf_metrics_gauge(config->metrics, "tokenflex_jobs", "tier=\"encoder\"", "Jobs in this process");
  self->bytes_sent = tf_metrics_counter(config->metrics, "tokenflex_tensor_bytes_total", "direction=\"sent\"",
                                        "Bytes of tensor payload");
  self->protocol_errors = tf_metrics_counter(config->metrics, "tokenflex_protocol_errors_total", "",
                                             "Messages that were malformed, unknown or out of place");
  tf_code code = TF_OK;
  if (self->jobs == NULL || self->links == NULL) {
    code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the service");
  }
  if (code == TF_OK) code = start_pipeline(self, error);
  if (code == TF_OK) code = start_peers(self, error);
  if (code == TF_OK) self->timer = tf_reactor_add_timer(config->reactor, TICK_MS, true, on_tick, self);
  if (code == TF_OK && self->timer < 0) code = tf_fail(error, TF_ERR_INTERNAL, "the reactor has no timer left");
  if (code != TF_OK) {
    tf_encoder_service_free(&self);
    return code;
  }
  *out = self;
  return TF_OK;
}

void tf_encoder_service_free(tf_encoder_service **self) {
  tf_encoder_service *service = *self;
  if (service == NULL) return;
  *self = NULL;
  if (service->timer >= 0) tf_reactor_remove_timer(service->config.reactor, service->timer);
  for (size_t i = 0; i < service->job_count; i++) atomic_store(&service->jobs[i]->job.cancelled, true);
  if (service->pipeline != NULL) tf_reactor_remove_fd(service->config.reactor, tf_pipeline_fd(service->pipeline));
  tf_pipeline_free(&service->pipeline); /* its threads are gone: every job is ours again */
  for (size_t i = 0; i < service->job_count; i++) pending_free(service, service->jobs[i]);
  tf_llm_links_free(&service->links);
  tf_peers_free(&service->peers);
  free(service->jobs);
  free(service);
}

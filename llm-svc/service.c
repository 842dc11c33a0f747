/* The LLM service's reactor side: the table of live jobs, and what is said about each to encoder and router.
 * In: TENSOR, CANCEL, events of the engine. Out: TENSOR_ACK, TENSOR_REFUSED, DELTA, RESULT, FAILURE.
 * A job is in the table from its tensor until its result is handed to a router; the table has a bound.
 * A job that is to be tried alone is parked until the table holds nothing else; what comes after that goes back. */
#include "llm-svc/service.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/log.h"
#include "proto/wire_watch.h"
#include "common/utf8.h"
#include "llm-svc/tensor_check.h"

enum {
  TICK_MS = 50,
  MESSAGES_A_TURN_MAX = 64,
  JOBS_MARGIN = TF_STRING_LIST_ITEMS_MAX,
  RECENT_MAX = 4096,         /* attempts that ended or were cancelled: they are not computed again */
  ALONE_WAIT_MS_MAX = 60000, /* for the jobs before it; then it goes back */
  ANNOUNCE_MS = 10,          /* until what was sent has left the process */
  DRAIN_GRACE_MS = 500,
  COUNTS_MAX = TF_TOKEN_COUNTS_MAX
};

typedef struct live_job {
  tf_message *message; /* TENSOR, without its payload */
  uint64_t handle;
  tf_timing timing;
  uint32_t pieces; /* DELTAs sent */
} live_job;

typedef struct count_series {
  tf_metric *prefill, *generate, *wait;
} count_series;

struct tf_llm_service {
  tf_llm_service_config config;
  tf_peers *peers;
  tf_llm_compute *compute;
  void *tensors; /* ROUTER */
  tf_wire_watch *watch;
  char endpoint[TF_ENDPOINT_BYTES_MAX + 1];
  live_job *jobs;
  size_t job_count, job_limit;
  uint64_t next_handle;
  struct {                   /* the job that is tried alone */
    uint64_t handle;         /* 0: none */
    tf_llm_command *command; /* until it begins */
    int64_t announced_ms;    /* nothing else is here, and its router was told; 0: not yet */
    int64_t parked_ms;
  } alone;
  uint32_t context_tokens_max; /* of one sequence, within the cache */
  uint32_t batch_max;          /* sequences that run at once */
  uint32_t cache_tokens;       /* of all sequences together */
  XXH128_hash_t recent[RECENT_MAX];
  size_t recent_at;
  int timer;
  bool draining;
  int64_t drain_begin_ms, tensor_ms; /* monotonic; tensor_ms: the last arrival */
  count_series series[COUNTS_MAX];
  tf_metric *protocol_errors, *jobs_now, *bytes_received, *tokens;
};

uint32_t tf_llm_service_jobs_limit(uint32_t jobs_max) {
  return 2 * jobs_max + JOBS_MARGIN;
}

/* ---- the table, and who was here before ---- */

static const tf_tensor_header *header_of(const live_job *job) {
  return &job->message->u.tensor;
}

static live_job *find_key(const tf_llm_service *self, const tf_job_key *key) {
  for (size_t i = 0; i < self->job_count; i++) {
    if (tf_job_key_equal(&header_of(&self->jobs[i])->key, key)) return &self->jobs[i];
  }
  return NULL;
}

static live_job *find_handle(const tf_llm_service *self, uint64_t handle) {
  for (size_t i = 0; i < self->job_count; i++) {
    if (self->jobs[i].handle == handle) return &self->jobs[i];
  }
  return NULL;
}

static XXH128_hash_t hash_key(const tf_job_key *key) {
  char text[TF_QUEUE_BYTES_MAX + TF_ENTRY_BYTES_MAX + 32];
  int size = snprintf(text, sizeof text, "%s\n%s\n%u", key->queue, key->entry, key->attempt);
  return XXH3_128bits(text, (size_t)size);
}

static bool is_recent(const tf_llm_service *self, const tf_job_key *key) {
  XXH128_hash_t hash = hash_key(key);
  for (size_t i = 0; i < RECENT_MAX; i++) {
    if (XXH128_isEqual(self->recent[i], hash)) return true;
  }
  return false;
}

static void remember(tf_llm_service *self, const tf_job_key *key) {
  self->recent[self->recent_at] = hash_key(key);
  self->recent_at = (self->recent_at + 1) % RECENT_MAX;
}

/* Says that the job is the only one here once it is: a death from then on counts against it alone. */
static void announce_alone(tf_llm_service *self) {
  if (self->alone.command == NULL || self->alone.announced_ms != 0 || self->job_count > 1) return;
  const live_job *job = find_handle(self, self->alone.handle);
  tf_message message = {.type = TF_MESSAGE_STAGE,
                        .u.stage = {.key = header_of(job)->key, .stage = TF_STAGE_DECODE, .alone = true}};
  tf_peers_deliver(self->peers, &message);
  self->alone.announced_ms = tf_now_ms();
}

static void remove_job(tf_llm_service *self, live_job *job) {
  remember(self, &header_of(job)->key);
  tf_peers_job_end(self->peers, header_of(job)->key.router);
  if (job->handle == self->alone.handle) {
    tf_llm_command_free(&self->alone.command);
    self->alone.handle = 0;
    tf_peers_pause(self->peers, false);
  }
  tf_peers_message_free(&job->message);
  *job = self->jobs[--self->job_count];
  announce_alone(self);
}

static void count_outcome(tf_llm_service *self, const char *outcome) {
  char labels[96];
  snprintf(labels, sizeof labels, "tier=\"llm\",outcome=\"%s\"", outcome);
  tf_metric_add(tf_metrics_counter(self->config.metrics, "tokenflex_jobs_total", labels, "Jobs by outcome"), 1);
}

/* ---- towards the router ---- */

static void fail_job(tf_llm_service *self, live_job *job, tf_code code, const char *text) {
  const tf_job_key *key = &header_of(job)->key;
  count_outcome(self, tf_code_name(code));
  tf_log_info("job_failed", TF_STR("job", key->id), TF_STR("entry", key->entry), TF_INT("attempt", key->attempt),
              TF_STR("trace", key->trace), TF_STR("code", tf_code_name(code)), TF_STR("reason", text));
  tf_peers_fail_job(self->peers, key, code, text, code == TF_ERR_WORKER_FULL);
  remove_job(self, job);
}

static const count_series *series_of(const tf_llm_service *self, uint32_t vision_tokens) {
  const tf_model_dir *model = self->config.model;
  for (uint32_t i = 0; i < model->token_count_count; i++) {
    if (model->token_counts[i] == vision_tokens) return &self->series[i];
  }
  return NULL;
}

static void observe(tf_llm_service *self, uint32_t vision_tokens, const tf_engine_event *event) {
  const count_series *series = series_of(self, vision_tokens);
  if (series == NULL) return;
  tf_metric_observe(series->wait, event->wait_ms / 1000.0);
  tf_metric_observe(series->prefill, event->prefill_ms / 1000.0);
  tf_metric_observe(series->generate, event->generate_ms / 1000.0);
}

/* Cuts text to what RESULT may carry, between characters. True where something was cut. */
static bool cut_caption(char *text) {
  size_t size = strlen(text), at = 0;
  if (size <= TF_CAPTION_BYTES_MAX) return false;
  while (at < size) {
    size_t step = tf_utf8_character_bytes(text + at, size - at);
    if (step == 0 || at + step > TF_CAPTION_BYTES_MAX) break;
    at += step;
  }
  text[at] = '\0';
  return true;
}

static void finish_job(tf_llm_service *self, live_job *job, tf_llm_event *done) {
  const tf_tensor_header *header = header_of(job);
  const tf_engine_event *event = &done->event;
  bool cut = cut_caption(done->text);
  job->timing.wait_ms += event->wait_ms;
  job->timing.prefill_ms += event->prefill_ms;
  job->timing.generate_ms += event->generate_ms;
  tf_message message = {.type = TF_MESSAGE_RESULT,
                        .u.result = {.key = header->key,
                                     .caption = done->text,
                                     .vision_tokens = header->vision_tokens,
                                     .prompt_tokens = event->prompt_tokens,
                                     .completion_tokens = event->completion_tokens,
                                     .finish_reason = cut ? TF_FINISH_LENGTH : event->finish_reason,
                                     .model = self->config.model->name,
                                     .timing = job->timing,
                                     .encoder_instance = header->encoder_instance,
                                     .llm_instance = self->config.instance,
                                     .warning = header->warning}};
  tf_log_debug("job_done", TF_STR("job", header->key.id), TF_STR("entry", header->key.entry),
               TF_STR("trace", header->key.trace), TF_INT("attempt", header->key.attempt),
               TF_INT("completion_tokens", event->completion_tokens));
  TF_FAIL_POINT("llm-done", header->key.id);
  tf_peers_deliver(self->peers, &message);
  TF_FAIL_POINT("llm-told", header->key.id);
  count_outcome(self, "ok");
  tf_metric_add(self->tokens, event->completion_tokens);
  observe(self, header->vision_tokens, event);
  remove_job(self, job);
}

/* A piece that can not be sent now is dropped: the caption that follows is whole. */
static void send_piece(tf_llm_service *self, live_job *job, const tf_llm_event *piece) {
  tf_message message = {.type = TF_MESSAGE_DELTA,
                        .u.delta = {.key = header_of(job)->key, .sequence = job->pieces, .text = piece->text}};
  tf_error error;
  if (tf_peers_send(self->peers, &message, &error) == TF_OK) job->pieces++;
}

static void on_events(void *context, int fd, int events) {
  (void)fd, (void)events;
  tf_llm_service *self = context;
  for (int i = 0; i < MESSAGES_A_TURN_MAX; i++) {
    tf_llm_event *item = tf_llm_compute_take(self->compute);
    if (item == NULL) return;
    live_job *job = find_handle(self, item->event.handle);
    if (job != NULL) { /* NULL: cancelled meanwhile */
      switch (item->event.kind) {
      case TF_ENGINE_DELTA:
        send_piece(self, job, item);
        break;
      case TF_ENGINE_DONE:
        finish_job(self, job, item);
        break;
      case TF_ENGINE_FAILED:
        fail_job(self, job, item->event.code, item->text);
        break;
      }
    }
    tf_llm_event_free(&item);
  }
}

/* ---- from the encoder ---- */

static void refuse(tf_llm_service *self, const tf_message *message, tf_code code, tf_error *reason) {
  const tf_job_key *key = &message->u.tensor.key;
  tf_text_clean(reason->text);
  count_outcome(self, tf_code_name(code));
  tf_log_info("tensor_refused", TF_STR("job", key->id), TF_STR("entry", key->entry), TF_STR("trace", key->trace),
              TF_INT("attempt", key->attempt), TF_STR("code", tf_code_name(code)), TF_STR("reason", reason->text));
  tf_message answer = {
      .type = TF_MESSAGE_TENSOR_REFUSED,
      .u.tensor_refused = {.key = *key, .error_code = tf_code_name(code), .error_message = reason->text}};
  tf_error error; /* an encoder that does not hear it times out */
  (void)tf_wire_send(self->tensors, message->peer, message->peer_size, &answer, NULL, &error);
}

static void acknowledge(tf_llm_service *self, const tf_message *message) {
  tf_message answer = {.type = TF_MESSAGE_TENSOR_ACK, .u.tensor_ack.key = message->u.tensor.key};
  tf_error error; /* an encoder that does not hear it times out; any attempt's result may be committed */
  (void)tf_wire_send(self->tensors, message->peer, message->peer_size, &answer, NULL, &error);
}

/* The values as a command for the engine. The payload is read here, once, and not kept. */
static tf_code make_command(const tf_message *message, uint32_t width, tf_llm_command **out, tf_error *error) {
  const tf_tensor_header *header = &message->u.tensor;
  size_t elements = (size_t)header->vision_tokens * width;
  tf_llm_command *command = calloc(1, sizeof *command);
  if (command != NULL) {
    *command = (tf_llm_command){.vision = malloc(elements * sizeof(float)),
                                .vision_tokens = header->vision_tokens,
                                .prompt = strdup(header->prompt),
                                .sampling = header->sampling,
                                .stream = header->stream,
                                .received_us = tf_now_us()};
  }
  if (command == NULL || command->vision == NULL || command->prompt == NULL) {
    if (command != NULL) tf_llm_command_free(&command);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a tensor");
  }
  const void *payload = zmq_msg_data((zmq_msg_t *)&message->payload);
  tf_code code = tf_tensor_payload_read(payload, header->dtype, elements, command->vision, error);
  if (code != TF_OK) {
    tf_llm_command_free(&command);
    return code;
  }
  *out = command;
  return TF_OK;
}

static tf_code check_tensor(tf_llm_service *self, const tf_message *message, tf_llm_command **command,
                            tf_error *error) {
  uint32_t width = tf_engine_width(self->config.engine);
  size_t bytes = message->has_payload ? zmq_msg_size(&message->payload) : 0;
  tf_code code = tf_tensor_header_check(&message->u.tensor, bytes, self->config.instance, self->config.model, width,
                                        tf_unix_ms(), error);
  bool kept = self->alone.handle != 0 && (message->u.tensor.alone || self->alone.announced_ms != 0);
  if (code == TF_OK && kept) code = tf_fail(error, TF_ERR_WORKER_FULL, "the LLM worker is kept free for one job");
  if (code == TF_OK && self->job_count >= self->job_limit) {
    code = tf_fail(error, TF_ERR_WORKER_FULL, "the LLM worker holds %zu jobs", self->job_count);
  }
  return code == TF_OK ? make_command(message, width, command, error) : code;
}

/* The job is in the table already; it begins once nothing else is. Takes the command. */
static void park_alone(tf_llm_service *self, tf_llm_command *command) {
  self->alone.handle = command->handle;
  self->alone.command = command;
  self->alone.announced_ms = 0;
  self->alone.parked_ms = tf_now_ms();
  tf_peers_pause(self->peers, true);
  announce_alone(self);
}

/* Takes the message over where the tensor is accepted. */
static void on_tensor(tf_llm_service *self, tf_message **message) {
  const tf_tensor_header *header = &(*message)->u.tensor;
  int64_t arrived_unix_us = tf_unix_us();
  self->tensor_ms = tf_now_ms();
  if (find_key(self, &header->key) != NULL || is_recent(self, &header->key)) {
    acknowledge(self, *message); /* the same attempt again, or cancelled before it came */
    return;
  }
  tf_llm_command *command = NULL;
  tf_error error;
  tf_code code = check_tensor(self, *message, &command, &error);
  if (code == TF_OK && command != NULL) {
    command->handle = ++self->next_handle;
    if (!header->alone && !tf_llm_compute_send(self->compute, &command)) {
      tf_llm_command_free(&command);
      code = tf_fail(&error, TF_ERR_WORKER_FULL, "the LLM worker's queue is full");
    }
  }
  if (code != TF_OK) {
    refuse(self, *message, code, &error);
    return;
  }
  TF_FAIL_POINT("llm-tensor", header->key.id);
  acknowledge(self, *message);
  TF_FAIL_POINT("llm-acknowledged", header->key.id);
  tf_log_debug("tensor_received", TF_STR("job", header->key.id), TF_STR("entry", header->key.entry),
               TF_STR("trace", header->key.trace), TF_INT("attempt", header->key.attempt),
               TF_STR("encoder", header->encoder_instance));
  live_job *job = &self->jobs[self->job_count++];
  *job = (live_job){.message = *message, .handle = self->next_handle, .timing = header->timing};
  int64_t transfer_us = arrived_unix_us - header->sent_unix_us;
  job->timing.transfer_ms += transfer_us > 0 && header->sent_unix_us > 0 ? (float)transfer_us / 1000 : 0;
  tf_metric_add(self->bytes_received, (double)header->byte_length);
  tf_peers_job_begin(self->peers, header->key.router);
  zmq_msg_close(&(*message)->payload); /* the values are with the engine */
  zmq_msg_init(&(*message)->payload);
  *message = NULL;
  if (command != NULL) park_alone(self, command); /* kept back above */
}

static void on_tensor_socket(void *context, void *socket) {
  tf_llm_service *self = context;
  for (int i = 0; i < MESSAGES_A_TURN_MAX; i++) {
    tf_message *message = calloc(1, sizeof *message);
    if (message == NULL) return;
    tf_error error;
    tf_code code = tf_wire_receive(socket, true, message, &error);
    if (code != TF_OK) {
      free(message);
      if (code != TF_ERR_PROTOCOL) return;
      tf_metric_add(self->protocol_errors, 1);
      tf_log_warn("message_refused", TF_STR("from", "encoder"), TF_STR("reason", error.text));
      continue;
    }
    if (message->type == TF_MESSAGE_TENSOR) {
      on_tensor(self, &message);
    } else {
      tf_metric_add(self->protocol_errors, 1);
    }
    tf_peers_message_free(&message);
  }
}

/* ---- from the router ---- */

static void cancel_in_engine(tf_llm_service *self, uint64_t handle) {
  tf_llm_command *command = calloc(1, sizeof *command);
  if (command == NULL) return; /* it is computed in vain */
  command->handle = handle;
  if (!tf_llm_compute_send(self->compute, &command)) tf_llm_command_free(&command);
}

static void on_router_message(void *context, tf_message **message) {
  tf_llm_service *self = context;
  if ((*message)->type != TF_MESSAGE_CANCEL) {
    tf_metric_add(self->protocol_errors, 1);
    return;
  }
  const tf_job_key *key = &(*message)->u.cancel.key;
  live_job *job = find_key(self, key);
  if (job == NULL) {
    if (!is_recent(self, key)) remember(self, key); /* its tensor may still be on the way */
    return;
  }
  cancel_in_engine(self, job->handle);
  count_outcome(self, "cancelled");
  remove_job(self, job);
}

/* ---- time ---- */

static void check_deadlines(tf_llm_service *self) {
  int64_t now_ms = tf_unix_ms();
  for (size_t i = self->job_count; i-- > 0;) { /* backwards: what is removed is replaced by the last */
    live_job *job = &self->jobs[i];
    int64_t deadline_ms = header_of(job)->deadline_unix_ms;
    if (deadline_ms == 0 || now_ms <= deadline_ms) continue;
    cancel_in_engine(self, job->handle);
    fail_job(self, job, TF_ERR_DEADLINE, "the deadline passed in the LLM worker");
  }
}

/* Begins once the announcement has left, whatever the job does to this process. */
static void check_alone(tf_llm_service *self, int64_t now_ms) {
  if (self->alone.command == NULL) return;
  live_job *job = find_handle(self, self->alone.handle);
  if (self->alone.announced_ms != 0) {
    if (now_ms - self->alone.announced_ms < ANNOUNCE_MS) return;
    if (!tf_llm_compute_send(self->compute, &self->alone.command))
      fail_job(self, job, TF_ERR_WORKER_FULL, "the LLM worker's queue is full");
  } else if (now_ms - self->alone.parked_ms >= ALONE_WAIT_MS_MAX) {
    fail_job(self, job, TF_ERR_WORKER_FULL, "the LLM worker did not become free for this job alone");
  }
}

static void check_drain(tf_llm_service *self, int64_t now_ms) {
  if (!self->draining) return;
  int64_t since_ms = now_ms - self->drain_begin_ms;
  bool empty = self->job_count == 0 && tf_peers_held(self->peers) == 0;
  bool quiet = since_ms >= DRAIN_GRACE_MS && now_ms - self->tensor_ms >= DRAIN_GRACE_MS;
  if (tf_peers_live(self->peers) == 0) quiet = true;
  if (!(empty && quiet) && since_ms < self->config.drain_timeout_ms) return;
  tf_log_info("drained", TF_INT("jobs_left", self->job_count), TF_INT("took_ms", since_ms));
  tf_reactor_stop(self->config.reactor);
}

static void on_tick(void *context) {
  tf_llm_service *self = context;
  check_alone(self, tf_now_ms());
  check_deadlines(self);
  tf_metric_set(self->jobs_now, (double)self->job_count);
  bool connected = tf_peers_live(self->peers) > 0;
  const char *reason = self->draining ? "draining" : connected ? "ready" : "no router has answered";
  tf_health_set_ready(self->config.health, connected && !self->draining, reason);
  check_drain(self, tf_now_ms());
}

void tf_llm_service_drain(tf_llm_service *self) {
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

static tf_code bind_tensors(tf_llm_service *self, tf_error *error) {
  const tf_llm_service_config *config = &self->config;
  self->tensors = tf_wire_socket(config->zmq_context, ZMQ_ROUTER);
  if (self->tensors == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the tensor socket");
  self->watch = tf_wire_watch_new(config->zmq_context, config->reactor, config->metrics, self->tensors,
                                  config->tensor_bind, true, config->curve != NULL);
  tf_code keyed = tf_curve_bind(config->curve, self->tensors, error);
  if (keyed != TF_OK) return keyed;
  if (zmq_bind(self->tensors, config->tensor_bind) != 0) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "can not bind --tensor-bind %.300s: %s", config->tensor_bind,
                   zmq_strerror(zmq_errno()));
  }
  size_t size = sizeof self->endpoint;
  bool advertised = config->tensor_advertise != NULL && config->tensor_advertise[0] != '\0';
  if (advertised) {
    if (strlen(config->tensor_advertise) > TF_ENDPOINT_BYTES_MAX) {
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--tensor-advertise is longer than %d bytes",
                     TF_ENDPOINT_BYTES_MAX);
    }
    snprintf(self->endpoint, sizeof self->endpoint, "%s", config->tensor_advertise);
  } else if (zmq_getsockopt(self->tensors, ZMQ_LAST_ENDPOINT, self->endpoint, &size) != 0) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "the address of --tensor-bind is too long");
  } else if (strstr(self->endpoint, "://0.0.0.0:") != NULL || strstr(self->endpoint, "://[::]:") != NULL) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "--tensor-bind to all addresses needs --tensor-advertise: where encoders can reach it");
  }
  tf_code code = tf_reactor_add_socket(config->reactor, self->tensors, on_tensor_socket, self);
  return code == TF_OK ? TF_OK : tf_fail(error, code, "the reactor is full");
}

/* For a PONG. */
static void measure(void *context, tf_pong *pong) {
  tf_llm_service *self = context;
  const tf_model_dir *model = self->config.model;
  uint32_t count = model->token_count_count;
  if (tf_llm_compute_times(self->compute, model->token_counts, count, pong->service.ms, pong->latency.ms))
    pong->service.count = pong->latency.count = count;
  pong->kv_tokens = tf_llm_compute_kv_tokens(self->compute);
  pong->kv_tokens_max = self->cache_tokens;
  pong->batch_max = self->batch_max;
}

static void on_drain(void *context) {
  tf_llm_service_drain(context);
}

static tf_code start_peers(tf_llm_service *self, tf_error *error) {
  const tf_model_dir *model = self->config.model;
  tf_peers_config config = {.hello = {.role = TF_ROLE_LLM,
                                      .instance = self->config.instance,
                                      .pair_hash = model->pair_hash,
                                      .model = model->name,
                                      .tensor_endpoint = self->endpoint,
                                      .context_tokens_max = self->context_tokens_max,
                                      .version = TF_VERSION,
                                      .token_count_count = model->token_count_count},
                            .jobs_max = self->config.jobs_max,
                            .kv_tokens_max = self->config.kv_tokens_max,
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

static void make_metrics(tf_llm_service *self) {
  static const double seconds[] = {0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30};
  static const char name[] = "tokenflex_stage_seconds", help[] = "Time of one image in a stage";
  enum { SECONDS = sizeof seconds / sizeof *seconds };
  tf_metrics *metrics = self->config.metrics;
  for (uint32_t i = 0; i < self->config.model->token_count_count; i++) {
    static const char *const stages[] = {"prefill", "generate", "wait"};
    tf_metric **slots[] = {&self->series[i].prefill, &self->series[i].generate, &self->series[i].wait};
    for (size_t s = 0; s < sizeof stages / sizeof *stages; s++) {
      char labels[80];
      snprintf(labels, sizeof labels, "stage=\"%s\",vision_tokens=\"%u\"", stages[s],
               self->config.model->token_counts[i]);
      *slots[s] = tf_metrics_histogram(metrics, name, labels, help, seconds, SECONDS);
    }
  }
  self->protocol_errors = tf_metrics_counter(metrics, "tokenflex_protocol_errors_total", "",
                                             "Messages that were malformed, unknown or out of place");
  self->jobs_now = tf_metrics_gauge(metrics, "tokenflex_jobs", "tier=\"llm\"", "Jobs in this process");
  self->bytes_received =
      tf_metrics_counter(metrics, "tokenflex_tensor_bytes_total", "direction=\"received\"", "Bytes of tensor payload");
  self->tokens = tf_metrics_counter(metrics, "tokenflex_completion_tokens_total", "", "Tokens written");
}

tf_code tf_llm_service_new(const tf_llm_service_config *config, tf_llm_service **out, tf_error *error) {
  *out = NULL;
  tf_llm_service *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the service");
  self->config = *config;
  self->timer = -1;
  self->job_limit = tf_llm_service_jobs_limit(config->jobs_max);
  self->jobs = calloc(self->job_limit, sizeof *self->jobs);
  self->context_tokens_max = tf_engine_context_tokens_max(config->engine);
  tf_engine_load_now capacity = tf_engine_load_state(config->engine); /* before the compute thread owns the engine */
  self->batch_max = capacity.sequences_max;
  self->cache_tokens = capacity.kv_tokens_max;
  if (self->context_tokens_max > capacity.kv_tokens_max) self->context_tokens_max = capacity.kv_tokens_max;
  make_metrics(self);
  tf_code code = self->jobs != NULL ? TF_OK : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the service");
  if (code == TF_OK) code = bind_tensors(self, error);
  if (code == TF_OK) {
    code = tf_llm_compute_new(config->engine, self->job_limit, config->metrics, config->health, &self->compute, error);
  }
  if (code == TF_OK) {
    code = tf_reactor_set_fd(config->reactor, tf_llm_compute_fd(self->compute), TF_READABLE, on_events, self);
    if (code != TF_OK) tf_fail(error, code, "the reactor is full");
  }
  if (code == TF_OK) code = start_peers(self, error);
  if (code == TF_OK) self->timer = tf_reactor_add_timer(config->reactor, TICK_MS, true, on_tick, self);
  if (code == TF_OK && self->timer < 0) code = tf_fail(error, TF_ERR_INTERNAL, "the reactor has no timer left");
  if (code != TF_OK) {
    tf_llm_service_free(&self);
    return code;
  }
  *out = self;
  return TF_OK;
}

void tf_llm_service_free(tf_llm_service **self) {
  tf_llm_service *service = *self;
  if (service == NULL) return;
  *self = NULL;
  if (service->timer >= 0) tf_reactor_remove_timer(service->config.reactor, service->timer);
  if (service->compute != NULL) tf_reactor_remove_fd(service->config.reactor, tf_llm_compute_fd(service->compute));
  tf_llm_compute_free(&service->compute);
  tf_wire_watch_free(&service->watch);
  if (service->tensors != NULL) {
    tf_reactor_remove_socket(service->config.reactor, service->tensors);
    zmq_close(service->tensors);
  }
  for (size_t i = 0; i < service->job_count; i++) tf_peers_message_free(&service->jobs[i].message);
  tf_llm_command_free(&service->alone.command);
  tf_peers_free(&service->peers);
  free(service->jobs);
  free(service);
}

const char *tf_llm_service_endpoint(const tf_llm_service *self) {
  return self->endpoint;
}

/* The LLM's compute thread. In: requests and cancellations. Out: pieces of text, captions, failures.
 * Endings have half of the event mailbox to themselves, so that streamed pieces can never crowd one out:
 * a piece that finds no room is dropped, the caption that follows is whole. */
#include "llm-svc/compute.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mailbox.h"

enum {
  WAIT_MS = 200,
  COMMANDS_A_STEP_MAX = 64,
  STALL_MS = 120000,
  EVENTS_PER_JOB = 4 /* one ending, the rest for pieces */
};

typedef struct arrival {
  uint64_t handle; /* 0: free */
  uint32_t vision_tokens;
  int64_t received_us, submitted_us;
} arrival;

struct tf_llm_compute {
  tf_engine *engine;
  tf_health *health;
  tf_mailbox *commands, *events;
  size_t events_max, jobs_max;
  arrival *arrivals; /* [jobs_max]; of the compute thread */
  pthread_t thread;
  bool started;
  atomic_bool stopping;
  pthread_mutex_t meter_lock; /* held for a few microseconds: the reactor reads, the compute thread writes */
  tf_llm_meter meter;
  atomic_uint kv_tokens;
  tf_metric *running, *waiting, *kv_used, *kv_capacity, *step_seconds, *pieces_dropped;
};

void tf_llm_command_free(tf_llm_command **command) {
  if (*command == NULL) return;
  free((*command)->vision);
  free((*command)->prompt);
  free(*command);
  *command = NULL;
}

void tf_llm_event_free(tf_llm_event **event) {
  free(*event);
  *event = NULL;
}

static void free_command(void *item) {
  tf_llm_command *command = item;
  tf_llm_command_free(&command);
}

/* ---- on the compute thread ---- */

static arrival *find_arrival(tf_llm_compute *self, uint64_t handle) {
  for (size_t i = 0; i < self->jobs_max; i++) {
    if (self->arrivals[i].handle == handle) return &self->arrivals[i];
  }
  return NULL;
}

static void post(tf_llm_compute *self, const tf_engine_event *event) {
  bool ending = event->kind != TF_ENGINE_DELTA;
  if (!ending && tf_mailbox_count(self->events) >= self->events_max / 2) {
    tf_metric_add(self->pieces_dropped, 1);
    return;
  }
  size_t size = event->text != NULL ? strlen(event->text) + 1 : 1;
  tf_llm_event *copy = malloc(sizeof *copy + size);
  if (copy == NULL) { /* the job's lease or deadline ends it */
    tf_log_error("event_lost", TF_INT("handle", event->handle));
    return;
  }
  copy->event = *event;
  memcpy(copy->text, event->text != NULL ? event->text : "", size);
  copy->event.text = copy->text;
  arrival *known = ending ? find_arrival(self, event->handle) : NULL;
  if (known != NULL) {
    if (event->kind == TF_ENGINE_DONE) {
      pthread_mutex_lock(&self->meter_lock);
      tf_llm_meter_done(&self->meter, known->vision_tokens, event->prompt_tokens, event->completion_tokens);
      pthread_mutex_unlock(&self->meter_lock);
    }
    copy->event.wait_ms += (float)(known->submitted_us - known->received_us) / 1000;
    known->handle = 0;
  }
  if (!tf_mailbox_push(self->events, copy)) {
    tf_log_error("event_lost", TF_INT("handle", event->handle));
    free(copy);
  }
}

static void submit(tf_llm_compute *self, const tf_llm_command *command) {
  tf_error error = {.code = TF_OK};
  tf_engine_request request = {.handle = command->handle,
                               .vision = command->vision,
                               .vision_tokens = command->vision_tokens,
                               .prompt = command->prompt,
                               .sampling = command->sampling,
                               .stream = command->stream};
  arrival *slot = find_arrival(self, 0);
  tf_code code = slot == NULL ? tf_fail(&error, TF_ERR_WORKER_FULL, "the LLM worker is full")
                              : tf_engine_submit(self->engine, &request, &error);
  if (code == TF_OK && slot != NULL) {
    *slot = (arrival){command->handle, command->vision_tokens, command->received_us, tf_now_us()};
    uint32_t new_tokens = command->sampling.max_new_tokens;
    pthread_mutex_lock(&self->meter_lock);
    tf_llm_meter_asked(&self->meter, new_tokens > 0 ? new_tokens : TF_ENGINE_NEW_TOKENS_DEFAULT);
    pthread_mutex_unlock(&self->meter_lock);
    return;
  }
  tf_engine_event failed = {.kind = TF_ENGINE_FAILED, .handle = command->handle, .text = error.text, .code = code};
  post(self, &failed);
}

static void obey(tf_llm_compute *self, tf_llm_command *command) {
  if (command->vision != NULL) {
    submit(self, command);
  } else {
    arrival *known = find_arrival(self, command->handle);
    tf_engine_cancel(self->engine, command->handle);
    if (known != NULL) known->handle = 0;
  }
  tf_llm_command_free(&command);
}

/* One turn of the engine, and what it took. */
static void meter_step(tf_llm_compute *self, bool busy, int64_t taken_us) {
  tf_llm_step_cost cost = tf_engine_last_step(self->engine);
  if (busy) tf_metric_observe(self->step_seconds, (double)taken_us / 1e6);
  pthread_mutex_lock(&self->meter_lock);
  if (busy)
    tf_llm_meter_step(&self->meter, &cost, (double)taken_us / 1000);
  else
    tf_llm_meter_idle(&self->meter);
  pthread_mutex_unlock(&self->meter_lock);
}

static void measure(tf_llm_compute *self) {
  tf_engine_load_now load = tf_engine_load_state(self->engine);
  tf_metric_set(self->running, load.running);
  tf_metric_set(self->waiting, load.waiting);
  tf_metric_set(self->kv_used, load.kv_tokens_used);
  atomic_store(&self->kv_tokens, load.kv_tokens_used);
  tf_metric_set(self->kv_capacity, load.kv_tokens_max);
}

static void *compute_main(void *context) {
  tf_llm_compute *self = context;
  bool busy = false;
  while (!atomic_load(&self->stopping)) {
    tf_health_beat(self->health, 0, STALL_MS);
    tf_llm_command *command = busy ? tf_mailbox_try_pop(self->commands) : tf_mailbox_pop(self->commands, WAIT_MS);
    for (int i = 0; command != NULL; i++) {
      obey(self, command);
      command = i + 1 < COMMANDS_A_STEP_MAX ? tf_mailbox_try_pop(self->commands) : NULL;
    }
    const tf_engine_event *events = NULL;
    size_t count = 0;
    int64_t begin_us = tf_now_us();
    busy = tf_engine_step(self->engine, &events, &count);
    meter_step(self, busy, tf_now_us() - begin_us);
    for (size_t i = 0; i < count; i++) post(self, &events[i]);
    measure(self);
  }
  tf_health_beat(self->health, 0, 0);
  return NULL;
}

/* ---- on the caller's thread ---- */

bool tf_llm_compute_send(tf_llm_compute *self, tf_llm_command **command) {
  if (!tf_mailbox_push(self->commands, *command)) return false;
  *command = NULL;
  return true;
}

tf_llm_event *tf_llm_compute_take(tf_llm_compute *self) {
  return tf_mailbox_try_pop(self->events);
}

int tf_llm_compute_fd(const tf_llm_compute *self) {
  return tf_mailbox_fd(self->events);
}

bool tf_llm_compute_times(tf_llm_compute *self, const uint32_t *counts, size_t count, float *service_ms,
                          float *latency_ms) {
  pthread_mutex_lock(&self->meter_lock);
  bool known = tf_llm_meter_read(&self->meter, counts, count, service_ms, latency_ms);
  pthread_mutex_unlock(&self->meter_lock);
  return known;
}

uint32_t tf_llm_compute_kv_tokens(const tf_llm_compute *self) {
  return atomic_load(&self->kv_tokens);
}

static void make_metrics(tf_llm_compute *self, tf_metrics *metrics) {
  static const double seconds[] = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5};
  self->running = tf_metrics_gauge(metrics, "tokenflex_llm_sequences", "state=\"running\"", "Requests in the engine");
  self->waiting = tf_metrics_gauge(metrics, "tokenflex_llm_sequences", "state=\"waiting\"", "Requests in the engine");
  self->kv_used = tf_metrics_gauge(metrics, "tokenflex_kv_tokens_used", "", "Tokens in the KV cache");
  self->kv_capacity = tf_metrics_gauge(metrics, "tokenflex_kv_tokens_max", "", "Capacity of the KV cache in tokens");
  self->step_seconds = tf_metrics_histogram(metrics, "tokenflex_llm_step_seconds", "", "Time of one step of the batch",
                                            seconds, sizeof seconds / sizeof *seconds);
  self->pieces_dropped =
      tf_metrics_counter(metrics, "tokenflex_pieces_dropped_total", "", "Streamed pieces of text that found no room");
}

tf_code tf_llm_compute_new(tf_engine *engine, size_t jobs_max, tf_metrics *metrics, tf_health *health,
                           tf_llm_compute **out, tf_error *error) {
  assert(jobs_max > 0);
  *out = NULL;
  tf_llm_compute *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the compute thread");
  self->engine = engine;
  self->health = health;
  self->jobs_max = jobs_max;
  self->events_max = jobs_max * EVENTS_PER_JOB;
  atomic_init(&self->stopping, false);
  atomic_init(&self->kv_tokens, 0);
  pthread_mutex_init(&self->meter_lock, NULL);
  tf_engine_load_now capacity = tf_engine_load_state(engine); /* before the compute thread owns it */
  tf_llm_meter_init(&self->meter, capacity.sequences_max, capacity.kv_tokens_max);
  self->commands = tf_mailbox_new(2 * jobs_max); /* a request and its cancellation */
  self->events = tf_mailbox_new(self->events_max);
  self->arrivals = calloc(jobs_max, sizeof *self->arrivals);
  make_metrics(self, metrics);
  tf_code code = TF_OK;
  if (self->commands == NULL || self->events == NULL || self->arrivals == NULL) {
    code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the compute thread");
  } else {
    int failed = pthread_create(&self->thread, NULL, compute_main, self);
    self->started = failed == 0;
    if (failed) code = tf_fail(error, TF_ERR_INTERNAL, "can not start the compute thread: %s", strerror(failed));
  }
  if (code != TF_OK) {
    tf_llm_compute_free(&self);
    return code;
  }
  *out = self;
  return TF_OK;
}

void tf_llm_compute_free(tf_llm_compute **self) {
  tf_llm_compute *compute = *self;
  if (compute == NULL) return;
  *self = NULL;
  atomic_store(&compute->stopping, true);
  if (compute->commands != NULL) tf_mailbox_close(compute->commands);
  if (compute->started) pthread_join(compute->thread, NULL);
  tf_mailbox_free(&compute->commands, free_command);
  tf_mailbox_free(&compute->events, free);
  pthread_mutex_destroy(&compute->meter_lock);
  free(compute->arrivals);
  free(compute);
}

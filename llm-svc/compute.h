/* The LLM's compute thread: owns the engine, steps it while there is work. In: commands by mailbox. Out: events by
 * mailbox. The caller's thread (the reactor) never waits for it. */
#ifndef TF_LLM_COMPUTE_H
#define TF_LLM_COMPUTE_H

#include "common/health.h"
#include "llm-svc/engine.h"

typedef struct tf_llm_compute tf_llm_compute;

/* A request (vision is set) or the cancellation of one (vision is NULL). malloc'ed; tf_llm_command_free. */
typedef struct tf_llm_command {
  uint64_t handle;
  float *vision; /* [vision_tokens, width], owned */
  uint32_t vision_tokens;
  char *prompt; /* owned; may be NULL */
  tf_sampling sampling;
  bool stream;
  int64_t received_us; /* monotonic: the wait for the engine counts from here */
} tf_llm_command;

/* An engine's event with its own text; tf_llm_event_free. */
typedef struct tf_llm_event {
  tf_engine_event event; /* event.text points at text; wait_ms counts from received_us for DONE and FAILED */
  char text[];
} tf_llm_event;

/* jobs_max: requests inside at most (sizes the mailboxes). engine, metrics and health (beat slot 0) are borrowed. */
tf_code tf_llm_compute_new(tf_engine *engine, size_t jobs_max, tf_metrics *metrics, tf_health *health,
                           tf_llm_compute **out, tf_error *error);
/* Ends after the step that is running; what is inside is dropped. */
void tf_llm_compute_free(tf_llm_compute **self);
/* Takes the command and nulls it; false: full, it stays the caller's. */
bool tf_llm_compute_send(tf_llm_compute *self, tf_llm_command **command);
/* The next event, NULL where there is none; the caller frees. Each request ends in one DONE or FAILED unless cancelled.
 */
tf_llm_event *tf_llm_compute_take(tf_llm_compute *self);
/* service_ms[count] and latency_ms[count] at these token counts (llm-svc/meter.h). False: nothing is known yet. Any
 * thread. */
bool tf_llm_compute_times(tf_llm_compute *self, const uint32_t *counts, size_t count, float *service_ms,
                          float *latency_ms);
uint32_t tf_llm_compute_kv_tokens(const tf_llm_compute *self); /* in the cache now; any thread */
int tf_llm_compute_fd(const tf_llm_compute *self);             /* readable while events wait */
void tf_llm_command_free(tf_llm_command **command);
void tf_llm_event_free(tf_llm_event **event);

#endif

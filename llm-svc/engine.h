/* The LLM tier's work without sockets: requests join and leave a running batch at any step.
 * In: projected vision tokens, prompt, sampling. Out: events (a piece of text, a finished caption, a failure) from each
 * step. tokenizer + model + kv + scheduler + sampler behind one door. One caller at a time (the compute thread). */
#ifndef TF_LLM_ENGINE_H
#define TF_LLM_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "llm-svc/meter.h"
#include "proto/wire.h"
#include "tensor/model_dir.h"
#include "tensor/pack_store.h"
#include "tensor/parallel.h"

typedef struct tf_engine tf_engine;

enum { TF_ENGINE_NEW_TOKENS_DEFAULT = 40 };

/* 0 takes the default. */
typedef struct tf_engine_config {
  uint32_t batch_rows_max; /* token rows a step, prefill chunks and decoding together (default 512) */
  uint32_t sequences_max;  /* in the running batch, at most batch_rows_max (default 32) */
  uint32_t waiting_max;    /* held beyond sequences_max; past it submit gives WORKER_FULL (default 256) */
  uint32_t kv_tokens_max;  /* capacity of the KV cache (default 16384) */
  tf_pack_place cache;     /* of packed weights; folder NULL: none */
} tf_engine_config;

/* Maps llm.gguf and adapter.gguf (LoRA merged, default prompt), and packed weights where the cache has them. The caller
 * frees. */
tf_code tf_engine_load(const tf_model_dir *model, const tf_engine_config *config, tf_pool *pool, tf_engine **out,
                       tf_error *error);
void tf_engine_free(tf_engine **self);
uint32_t tf_engine_width(const tf_engine *self);              /* embedding width, 576 */
uint32_t tf_engine_context_tokens_max(const tf_engine *self); /* of one sequence */

typedef struct tf_engine_request {
  uint64_t handle;        /* the caller's own, unique among live requests */
  const float *vision;    /* [vision_tokens, width], copied */
  uint32_t vision_tokens; /* 0: text only */
  const char *prompt;     /* NULL or "": the adapter's */
  tf_sampling sampling;   /* max_new_tokens 0: 40 */
  bool stream;            /* TF_ENGINE_DELTA events wanted */
} tf_engine_request;

/* Errors: WORKER_FULL, PROMPT_TOO_LONG (prompt + vision + new tokens past the context or the whole cache),
 * FIELD_INVALID (prompt, sampling), TENSOR_INVALID (vision is not finite), OUT_OF_MEMORY. */
tf_code tf_engine_submit(tf_engine *self, const tf_engine_request *request, tf_error *error);
/* Drops a waiting or running request; false: unknown. No event follows. */
bool tf_engine_cancel(tf_engine *self, uint64_t handle);

typedef enum tf_engine_event_kind { TF_ENGINE_DELTA, TF_ENGINE_DONE, TF_ENGINE_FAILED } tf_engine_event_kind;
typedef struct tf_engine_event {
  tf_engine_event_kind kind;
  uint64_t handle;
  const char *text; /* DELTA: the new piece (whole UTF-8 characters); DONE: the caption, trimmed; FAILED: message. Until
                       the next step. */
  tf_code code;     /* FAILED */
  uint32_t prompt_tokens, completion_tokens; /* completion counts the end token as peers do: not */
  tf_finish_reason finish_reason;
  float wait_ms, prefill_ms, generate_ms; /* submit to admission; admission to first token; first token to last */
} tf_engine_event;

/* Runs one step of the batch; false where there was nothing to do. *events points at *count events, until the next
 * call. */
bool tf_engine_step(tf_engine *self, const tf_engine_event **events, size_t *count);
/* What the last step was made of (llm-svc/meter.h); all zero before the first. */
tf_llm_step_cost tf_engine_last_step(const tf_engine *self);
typedef struct tf_engine_load_now {
  uint32_t running, waiting, kv_tokens_used, kv_tokens_max, sequences_max;
} tf_engine_load_now;
tf_engine_load_now tf_engine_load_state(const tf_engine *self);

#endif

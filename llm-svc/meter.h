/* What a caption costs this LLM worker, measured from its own steps. Pure: no I/O, no clock; one caller at a time.
 * In: for each step the rows of its prompts, the sequences that it decoded, the positions they looked back on, and the
 * time it took. Out: for each token count the worker's time a job costs in a full batch, and how long one takes now.
 * A step is fitted as: fixed part + rows + decoded sequences + positions attended; the fixed part is what a full batch
 * shares. Wall time is right where tiers share cores: it includes how they slow each other down. */
#ifndef TF_LLM_METER_H
#define TF_LLM_METER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/fit.h"

typedef struct tf_llm_step_cost {
  uint32_t prompt_rows; /* of sequences in prefill */
  uint32_t decoded;     /* sequences that got one more row */
  uint64_t attended;    /* positions that all these rows attend to, added up */
} tf_llm_step_cost;

typedef struct tf_llm_meter {
  uint32_t sequences_max, kv_tokens_max; /* what a full batch is */
  tf_fit fit;
  double other_tokens, new_tokens, new_tokens_max; /* smoothed: of a prompt beside the image; written; asked for */
  double batch, prompt_rows;                       /* smoothed: a step's, as it is now */
  uint64_t captions, decoded;                      /* ended; sequences in the steps so far */
} tf_llm_meter;

void tf_llm_meter_init(tf_llm_meter *self, uint32_t sequences_max, uint32_t kv_tokens_max);
void tf_llm_meter_step(tf_llm_meter *self, const tf_llm_step_cost *cost, double ms);
/* Nothing is running: the next job finds the worker idle. */
void tf_llm_meter_idle(tf_llm_meter *self);
/* A request came in, and may write so many tokens. */
void tf_llm_meter_asked(tf_llm_meter *self, uint32_t new_tokens_max);
/* A caption ended. prompt_tokens include the vision_tokens. */
void tf_llm_meter_done(tf_llm_meter *self, uint32_t vision_tokens, uint32_t prompt_tokens, uint32_t completion_tokens);
/* service_ms[count], latency_ms[count] for these token counts, finite and above 0. False before the first decoded
 * token. Until a caption has ended it counts as one of usual length. */
bool tf_llm_meter_read(const tf_llm_meter *self, const uint32_t *counts, size_t count, float *service_ms,
                       float *latency_ms);

#endif

/* Who is in the running batch, and which token rows make up the next step. Pure: no clock, no I/O, no tensors.
 * In: requests as numbers of tokens, their end. Out: a plan: for each sequence the positions to compute now.
 * Iteration-level scheduling: sequences join and leave at every step (Orca, OSDI 2022), prompts go in chunks beside
 * decoding rows (Sarathi). Admission is first come, first served, and reserves the worst case, so that a running
 * sequence never lacks a block; nobody overtakes. */
#ifndef TF_LLM_SCHEDULER_H
#define TF_LLM_SCHEDULER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

typedef struct tf_scheduler tf_scheduler;

enum { TF_SCHEDULER_ROWS_MAX = 1 << 16, TF_SCHEDULER_REQUESTS_MAX = 1 << 16 };

typedef struct tf_scheduler_config {
  uint32_t rows_max;      /* a step; at least sequences_max, so that decoding never crowds prompts out */
  uint32_t sequences_max; /* running */
  uint32_t waiting_max;   /* requests held beyond sequences_max */
  uint32_t blocks_max;    /* of the KV cache */
  uint32_t block_tokens;
  uint32_t head_tokens; /* positions at the start of every prompt that need no computing */
} tf_scheduler_config;

tf_code tf_scheduler_new(const tf_scheduler_config *config, tf_scheduler **out, tf_error *error);
void tf_scheduler_free(tf_scheduler **self);

/* *id: below sequences_max + waiting_max, free again after tf_scheduler_remove. Both counts at least 1, and the prompt
 * longer than the head.
 * Errors: WORKER_FULL; PROMPT_TOO_LONG (would not fit the empty cache). */
tf_code tf_scheduler_add(tf_scheduler *self, uint32_t prompt_tokens, uint32_t new_tokens_max, uint32_t *id,
                         tf_error *error);
/* Ended or cancelled, waiting or running: its blocks are free. */
void tf_scheduler_remove(tf_scheduler *self, uint32_t id);

typedef struct tf_scheduled {
  uint32_t id;
  uint32_t first, count; /* positions first .. first + count - 1 */
  bool admitted;         /* joined with this plan */
  bool samples;          /* the last of these rows gives the next token */
} tf_scheduled;

/* Admits who fits and plans the next step: one row for every decoding sequence, then prompts in order of admission.
 * The plan counts as carried out: a sequence that samples goes on at the next call, unless it was removed.
 * It may sample new_tokens_max times and must be removed by then. *items: until the next call. Returns the row count.
 */
uint32_t tf_scheduler_plan(tf_scheduler *self, const tf_scheduled **items, size_t *count);

uint32_t tf_scheduler_running(const tf_scheduler *self);
uint32_t tf_scheduler_waiting(const tf_scheduler *self);
uint32_t tf_scheduler_blocks_used(const tf_scheduler *self); /* reserved by running sequences */

#endif

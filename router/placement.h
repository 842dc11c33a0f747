/* Which encoder and which LLM a job goes to. Pure: no I/O, no clock, no allocation.
 * In: the workers' windows and what is outstanding there. Out: one encoder and one LLM of the same pair, or none.
 * The least loaded of each tier is taken; a suspect goes only where nothing else is. */
#ifndef TF_ROUTER_PLACEMENT_H
#define TF_ROUTER_PLACEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TF_PAIRS_MAX = 64 }; /* different pair hashes alive at once */

/* One worker as placement sees it. */
typedef struct tf_slot {
  uint32_t pair;               /* 0..TF_PAIRS_MAX-1: workers of equal pair hash have equal numbers */
  uint32_t jobs_max, jobs_out; /* window, outstanding (from this router) */
  uint32_t kv_max, kv_out;     /* LLM: KV tokens; encoders: 0 */
  bool usable;                 /* heard of, not draining, has a window */
  bool held;                   /* kept for a suspect or a large job: takes no other */
} tf_slot;

typedef struct tf_place_request {
  uint32_t kv_tokens; /* that the job may take in the LLM's cache */
  uint64_t pairs;     /* bit p: pair p offers what the job asks for */
  bool alone;         /* a suspect: both workers must have nothing outstanding */
  size_t turn;        /* where to start looking, so that equals take turns */
} tf_place_request;

typedef struct tf_placement {
  bool found;
  size_t encoder, llm; /* indices */
} tf_placement;

tf_placement tf_place(const tf_slot *encoders, size_t encoder_count, const tf_slot *llms, size_t llm_count,
                      const tf_place_request *request);

/* For a suspect that found no idle pair: of the workers not held for another, the pair that is nearest to idle.
 * Keeping others away makes it idle. None where half of a tier is held already. */
tf_placement tf_place_hold(const tf_slot *encoders, size_t encoder_count, const tf_slot *llms, size_t llm_count,
                           const tf_place_request *request);

/* Whether the worker gets jobs of the request's pairs at all, full, held or not. */
bool tf_place_may_take(const tf_slot *slot, const tf_place_request *request);

/* For a job that finds too few KV tokens free in any LLM: of those that nobody holds and that are large enough (where
 * none is: of the largest), the one that has the most free. Keeping others away makes enough of it, or leaves it empty.
 * False where one has enough (job slots or encoders are short: the next job that ends makes room), where all that are
 * large enough are held, and where half of the LLMs are. */
bool tf_place_reserve(const tf_slot *llms, size_t llm_count, const tf_place_request *request, size_t *llm);

/* How many jobs of kv_tokens_each could be placed now, over all pairs. */
uint32_t tf_place_room(const tf_slot *encoders, size_t encoder_count, const tf_slot *llms, size_t llm_count,
                       uint32_t kv_tokens_each);

#endif

/* The choice of the next token. In: logits and a request's sampling settings. Out: an id.
 * A request draws from a generator of its own: the same seed gives the same caption whatever else is in the batch. */
#ifndef TF_LLM_SAMPLER_H
#define TF_LLM_SAMPLER_H

#include "proto/wire.h"

typedef struct tf_sampler {
  float temperature; /* 0: greedy */
  uint32_t top_k;    /* 0: all */
  float top_p;       /* 1: all */
  uint64_t state;    /* of SplitMix64 */
} tf_sampler;

/* FIELD_INVALID names the setting that is out of range. temperature 0: greedy; top_k 0, top_p 0: not limited. */
tf_code tf_sampling_check(const tf_sampling *sampling, tf_error *error);
/* Settings must have passed tf_sampling_check. */
tf_sampler tf_sampler_make(const tf_sampling *sampling);

typedef struct tf_candidate {
  float logit;
  int32_t id;
} tf_candidate;

/* logits: [vocabulary]; scratch: [vocabulary]. Greedy takes the lowest id of equals. Else: top_k of the logits, then
 * the smallest set of the most likely whose share reaches top_p, then a draw. NaN counts as impossible; -1: no id is
 * left. */
int32_t tf_sampler_next(tf_sampler *self, const float *logits, uint32_t vocabulary, tf_candidate *scratch);

#endif

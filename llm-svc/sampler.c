/* The choice of the next token. In: logits and a request's sampling settings. Out: an id.
 * The candidates are a heap by logit: only as many are sorted out as top_k and top_p ask for.
 * Source: temperature, top-k and nucleus sampling (Holtzman et al. 2019); SplitMix64 (Steele et al. 2014). */
#include "llm-svc/sampler.h"

#include <math.h>

#include "tensor/ops.h"

static const float TEMPERATURE_MAX = 100.0f;

tf_code tf_sampling_check(const tf_sampling *sampling, tf_error *error) {
  if (sampling->max_new_tokens > TF_NEW_TOKENS_MAX)
    return tf_fail(error, TF_ERR_FIELD_INVALID, "max_new_tokens is %u, the most is %d", sampling->max_new_tokens,
                   TF_NEW_TOKENS_MAX);
  if (!(sampling->temperature >= 0.0f && sampling->temperature <= TEMPERATURE_MAX))
    return tf_fail(error, TF_ERR_FIELD_INVALID, "temperature is %g, must be 0 to %g", (double)sampling->temperature,
                   (double)TEMPERATURE_MAX);
  if (!(sampling->top_p >= 0.0f && sampling->top_p <= 1.0f))
    return tf_fail(error, TF_ERR_FIELD_INVALID, "top_p is %g, must be 0 to 1", (double)sampling->top_p);
  return TF_OK;
}

tf_sampler tf_sampler_make(const tf_sampling *sampling) {
  return (tf_sampler){.temperature = sampling->temperature,
                      .top_k = sampling->top_k,
                      .top_p = sampling->top_p > 0.0f ? sampling->top_p : 1.0f,
                      .state = sampling->seed};
}

/* Uniform in [0, 1). */
static double draw(tf_sampler *self) {
  uint64_t z = self->state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static bool before(const tf_candidate *a, const tf_candidate *b) {
  return a->logit != b->logit ? a->logit > b->logit : a->id < b->id;
}

static void sift_down(tf_candidate *heap, uint32_t count, uint32_t at) {
  tf_candidate item = heap[at];
  for (uint64_t child = 2 * (uint64_t)at + 1; child < count; child = 2 * (uint64_t)at + 1) {
    if (child + 1 < count && before(&heap[child + 1], &heap[child])) child++;
    if (!before(&heap[child], &item)) break;
    heap[at] = heap[child];
    at = (uint32_t)child;
  }
  heap[at] = item;
}

/* Moves the best `wanted` candidates to the end of the array, the best last; returns how many there are. */
static uint32_t pop_best(tf_candidate *heap, uint32_t count, uint32_t wanted) {
  uint32_t popped = 0;
  while (popped < wanted && popped < count) {
    tf_candidate best = heap[0];
    heap[0] = heap[count - 1 - popped];
    heap[count - 1 - popped] = best;
    popped++;
    if (count - popped > 0) sift_down(heap, count - popped, 0);
  }
  return popped;
}

static double weight(const tf_sampler *self, float logit, float best) {
  return exp(((double)logit - (double)best) / (double)self->temperature);
}

/* Draws from candidates[count], the best last, in that order; total is the sum of their weights. */
static int32_t pick(tf_sampler *self, const tf_candidate *candidates, uint32_t count, double total, float best) {
  double at = draw(self) * total;
  for (uint32_t i = count; i > 1; i--) {
    at -= weight(self, candidates[i - 1].logit, best);
    if (at < 0) return candidates[i - 1].id;
  }
  return candidates[0].id;
}

int32_t tf_sampler_next(tf_sampler *self, const float *logits, uint32_t vocabulary, tf_candidate *scratch) {
  int32_t top = (int32_t)tf_largest(logits, vocabulary);
  if (top < 0 || self->temperature <= 0.0f || isinf(logits[top])) return top;
  float best = logits[top];
  uint32_t count = 0;
  for (uint32_t i = 0; i < vocabulary; i++)
    if (logits[i] > -INFINITY) scratch[count++] = (tf_candidate){logits[i], (int32_t)i};
  uint32_t first = 0; /* of the candidates that are left */
  if ((self->top_k > 0 && self->top_k < count) || self->top_p < 1.0f) {
    for (uint32_t i = count / 2; i > 0; i--) sift_down(scratch, count, i - 1);
    if (self->top_k > 0 && self->top_k < count) first = count - pop_best(scratch, count, self->top_k);
  }
  double total = 0;
  for (uint32_t i = first; i < count; i++) total += weight(self, scratch[i].logit, best);
  if (self->top_p < 1.0f) {
    /* The popped ones are in order already; without top_k they are popped one by one, as far as needed. */
    double wanted = (double)self->top_p * total, mass = 0;
    uint32_t kept = 0;
    while (kept < count - first && (kept == 0 || mass < wanted)) {
      if (first == 0) pop_best(scratch, count - kept, 1);
      mass += weight(self, scratch[count - 1 - kept].logit, best);
      kept++;
    }
    first = count - kept;
    total = mass;
  }
  return pick(self, scratch + first, count - first, total, best);
}

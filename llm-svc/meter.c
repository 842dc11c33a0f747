/* What a caption costs this LLM worker. In: steps, captions. Out: service time in a full batch, latency as it is now.
 * The fit tells the terms of a step apart because prompts and decoding mix in ever new proportions; until they did, the
 * penalties hold the fixed part responsible for what a lone sequence's step takes, which is what it is. */
#include "llm-svc/meter.h"

#include <math.h>

enum { FIXED, ROWS, DECODED, ATTENDED, TERMS };

static const double MEMORY_MS = 20000; /* of work: what is longer ago counts for little */
static const double KEEP_MIN = 0.98;   /* of all before, however long one takes */
static const double CAPTIONS = 0.05;   /* share of a new caption in the smoothed lengths */
static const double STEPS = 0.1;       /* share of a new step in the smoothed batch */
static const double OUTLIER = 8;       /* a step longer than so many usual ones of its kind is a stall, not a cost */
static const uint64_t OUTLIERS_FROM = 32;
static const double MS_MIN = 0.001;
/* Of a caption before one has ended: a prompt of a few words, a sentence. */
static const double OTHER_PRIOR = 20, NEW_PRIOR = 12;

void tf_llm_meter_init(tf_llm_meter *self, uint32_t sequences_max, uint32_t kv_tokens_max) {
  static const double penalty[TERMS] = {1e-6, 1e-6, 1e-3, 1e-3};
  *self = (tf_llm_meter){.sequences_max = sequences_max > 0 ? sequences_max : 1, .kv_tokens_max = kv_tokens_max};
  tf_fit_init(&self->fit, TERMS, penalty);
}

static double blend(double old, double value, double share, bool first) {
  return first ? value : old + (value - old) * share;
}

void tf_llm_meter_step(tf_llm_meter *self, const tf_llm_step_cost *cost, double ms) {
  const double amounts[TERMS] = {1, (double)cost->prompt_rows + cost->decoded, cost->decoded, (double)cost->attended};
  if (self->fit.count >= OUTLIERS_FROM) {
    double costs[TERMS], usual = 0;
    tf_fit_solve(&self->fit, costs);
    for (int i = 0; i < TERMS; i++) usual += costs[i] * amounts[i];
    if (usual > 0 && ms > OUTLIER * usual) ms = OUTLIER * usual;
  }
  bool first = self->fit.count == 0;
  self->decoded += cost->decoded;
  double keep = exp(-ms / MEMORY_MS);
  tf_fit_add(&self->fit, amounts, ms, keep > KEEP_MIN ? keep : KEEP_MIN);
  self->batch = blend(self->batch, cost->decoded, STEPS, first);
  self->prompt_rows = blend(self->prompt_rows, cost->prompt_rows, STEPS, first);
}

void tf_llm_meter_idle(tf_llm_meter *self) {
  self->batch = self->prompt_rows = 0;
}

void tf_llm_meter_asked(tf_llm_meter *self, uint32_t new_tokens_max) {
  self->new_tokens_max = blend(self->new_tokens_max, new_tokens_max, CAPTIONS, self->new_tokens_max == 0);
}

void tf_llm_meter_done(tf_llm_meter *self, uint32_t vision_tokens, uint32_t prompt_tokens, uint32_t completion_tokens) {
  bool first = self->captions++ == 0;
  double other = prompt_tokens > vision_tokens ? prompt_tokens - vision_tokens : 0;
  self->other_tokens = blend(self->other_tokens, other, CAPTIONS, first);
  self->new_tokens = blend(self->new_tokens, completion_tokens, CAPTIONS, first);
}

/* Sequences of so many positions that run at once when there are always more. */
static double full_batch(const tf_llm_meter *self, double prompt) {
  double reserved = prompt + (self->new_tokens_max > 0 ? self->new_tokens_max : self->new_tokens);
  double fit = reserved > 0 && self->kv_tokens_max > 0 ? self->kv_tokens_max / reserved : self->sequences_max;
  if (fit > self->sequences_max) fit = self->sequences_max;
  return fit > 1 ? fit : 1;
}

bool tf_llm_meter_read(const tf_llm_meter *self, const uint32_t *counts, size_t count, float *service_ms,
                       float *latency_ms) {
  if ((self->captions == 0 && self->decoded == 0) || self->fit.count == 0) return false;
  double cost[TERMS];
  tf_fit_solve(&self->fit, cost);
  /* The first token comes with the prompt's last row, and the end token takes a step of its own. */
  bool ended = self->captions > 0;
  double steps =
      ended ? self->new_tokens : fmin(NEW_PRIOR, self->new_tokens_max > 0 ? self->new_tokens_max : NEW_PRIOR);
  double other = ended ? self->other_tokens : OTHER_PRIOR;
  if (steps < 1) steps = 1;
  for (size_t i = 0; i < count; i++) {
    double prompt = counts[i] + other, context = prompt + steps / 2;
    double prefill = cost[ROWS] * prompt + cost[ATTENDED] * prompt * (prompt + 1) / 2;
    double row = cost[ROWS] + cost[DECODED] + cost[ATTENDED] * context;
    double service = prefill + steps * (cost[FIXED] / full_batch(self, prompt) + row);
    double batch = self->batch > 1 ? self->batch : 1;
    double latency = cost[FIXED] + prefill + steps * (cost[FIXED] + row * batch + cost[ROWS] * self->prompt_rows);
    service_ms[i] = (float)(service > MS_MIN ? service : MS_MIN);
    latency_ms[i] = (float)(latency > MS_MIN ? latency : MS_MIN);
  }
  return true;
}

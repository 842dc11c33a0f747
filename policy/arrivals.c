/* When jobs arrive: a rate over time, evenly or at random, or a recorded trace.
 * In: a description and a seed. Out: arrival times in seconds, ascending, one at a time.
 * The rate is integrated in short steps until it adds up to the next job: exact for rates that hold for a step. */
#include "policy/arrivals.h"

#define STEP_S 0.1

void tf_arrivals_start(tf_arrivals *self, const tf_arrivals_config *config, uint64_t seed) {
  *self = (tf_arrivals){.config = *config, .random = {seed}};
  self->next_burst_s = config->shape == TF_ARRIVALS_BURST ? config->period_s : INFINITY;
}

double tf_arrivals_rate(const tf_arrivals_config *config, double at_s) {
  double more = config->peak - config->rate;
  switch (config->shape) {
  case TF_ARRIVALS_STEP:
    return at_s >= config->from_s && at_s < config->until_s ? config->peak : config->rate;
  case TF_ARRIVALS_WAVE:
    return config->rate + more * (0.5 - 0.5 * cos(6.283185307179586 * at_s / config->period_s));
  case TF_ARRIVALS_RAMP:
    return config->rate + more * (1 - fabs(2 * at_s / config->duration_s - 1));
  case TF_ARRIVALS_TRACE:
    return 0;
  default:
    return config->rate;
  }
}

/* When the rate from now on adds up to `jobs`. */
static double integrate(const tf_arrivals_config *config, double from_s, double jobs) {
  double at_s = from_s;
  while (at_s < config->duration_s) {
    double rate = tf_arrivals_rate(config, at_s);
    double here = rate * STEP_S;
    if (here >= jobs) return at_s + jobs / rate;
    if (here > 0) jobs -= here;
    at_s += STEP_S;
  }
  return INFINITY;
}

double tf_arrivals_next(tf_arrivals *self) {
  const tf_arrivals_config *config = &self->config;
  if (config->shape == TF_ARRIVALS_TRACE) {
    return self->next < config->time_count ? config->times[self->next++] : INFINITY;
  }
  if (self->burst_left > 0) {
    self->burst_left--;
    return self->now_s;
  }
  bool even = config->even || config->shape == TF_ARRIVALS_CONSTANT;
  double at_s = integrate(config, self->now_s, even ? 1 : tf_random_exponential(&self->random));
  if (self->next_burst_s <= at_s && self->next_burst_s < config->duration_s) {
    at_s = self->next_burst_s; /* the interval under way starts anew: for random arrivals that changes nothing */
    self->next_burst_s += config->period_s;
    self->burst_left = config->burst_jobs >= 1 ? (size_t)config->burst_jobs - 1 : 0;
  }
  self->now_s = at_s;
  return at_s < config->duration_s ? at_s : INFINITY;
}

/* When jobs arrive: a rate over time, evenly or at random, or a recorded trace. Pure but for its own state.
 * In: a description and a seed. Out: arrival times in seconds, ascending, one at a time.
 * Random means Poisson with the momentary rate; even means one job each time the rate adds up to one. */
#ifndef TF_POLICY_ARRIVALS_H
#define TF_POLICY_ARRIVALS_H

#include <stdbool.h>
#include <stddef.h>

#include "policy/random.h"

typedef enum tf_arrivals_shape {
  TF_ARRIVALS_CONSTANT, /* rate, evenly */
  TF_ARRIVALS_POISSON,  /* rate, at random */
  TF_ARRIVALS_STEP,     /* rate, and peak from `from_s` to `until_s` */
  TF_ARRIVALS_BURST,    /* rate, and burst_jobs at once every period_s */
  TF_ARRIVALS_WAVE,     /* a sine from rate up to peak and back in period_s */
  TF_ARRIVALS_RAMP,     /* from rate up to peak at half of duration_s, and back */
  TF_ARRIVALS_TRACE     /* times[] */
} tf_arrivals_shape;

typedef struct tf_arrivals_config {
  tf_arrivals_shape shape;
  bool even;              /* instead of at random; CONSTANT always is */
  double rate, peak;      /* jobs/s */
  double from_s, until_s; /* STEP */
  double period_s;        /* BURST, WAVE: > 0 */
  double burst_jobs;      /* BURST */
  double duration_s;      /* nothing arrives later */
  const double *times;    /* TRACE: ascending seconds; borrowed */
  size_t time_count;
} tf_arrivals_config;

typedef struct tf_arrivals {
  tf_arrivals_config config;
  tf_random random;
  double now_s, next_burst_s;
  size_t next, burst_left;
} tf_arrivals;

void tf_arrivals_start(tf_arrivals *self, const tf_arrivals_config *config, uint64_t seed);
/* The next arrival; INFINITY: no more. */
double tf_arrivals_next(tf_arrivals *self);
/* Jobs/s at a moment, bursts left out; for TRACE 0. */
double tf_arrivals_rate(const tf_arrivals_config *config, double at_s);

#endif

/* Arrivals a second, from counts: calm while the load is steady, quick when it changes.
 * In: jobs that came in an interval. Out: the rate.
 * A test for the ratio r adds n ln r - expected (r - 1), the log-likelihood of r x the rate against the rate, and
 * starts again at zero. Where it passes the threshold, the load has changed, and its own count since zero is the new
 * rate. */
#include "policy/rate.h"

#include <math.h>
#include <stdbool.h>

#define EVIDENCE_NATS     10.0    /* odds of e^10: a false alarm in hours at 100 jobs/s */
#define EVIDENCE_MS       300.0   /* it takes at least so long to gather: one burst is not a new rate */
#define WINDOW_MS_START   10000.0 /* the start: nothing came for so long */
#define WINDOW_MS_SHORT   30000.0
#define WINDOW_MS_LONG    60000.0
#define WINDOW_JOBS       3000.0 /* the window is as long as these take, between those two */
#define SETTLE_JOBS       20.0 /* a new rate weighs like so many jobs, or like WINDOW_MS_START where they take longer */
#define RATE_PER_S_TESTED 0.5  /* changes are looked for from this rate on */
#define DISPERSION_MAX    50.0

static const double ratios[TF_RATE_TESTS] = {1.25, 2, 0.8, 0.5};

/* True where the evidence suffices. */
static bool test(tf_arrival_rate_test *self, double ratio, double jobs, double ms, double expected, double dispersion) {
  double gain = (jobs * log(ratio) - expected * (ratio - 1)) / dispersion;
  double gain_max = EVIDENCE_NATS * ms / EVIDENCE_MS;
  self->score += gain < gain_max ? gain : gain_max;
  self->jobs += jobs;
  self->ms += ms;
  if (!(self->score > 0)) *self = (tf_arrival_rate_test){0, 0, 0};
  return self->score >= EVIDENCE_NATS;
}

static double window_ms_max(double per_s) {
  double ms = per_s > 0 ? WINDOW_JOBS * 1000 / per_s : WINDOW_MS_LONG;
  return fmin(fmax(ms, WINDOW_MS_SHORT), WINDOW_MS_LONG);
}

/* Counts that scatter more than Poisson's (jobs that come in batches) make weaker evidence. */
static void take_dispersion(tf_arrival_rate *self, double jobs, double ms, double expected) {
  double off = jobs - expected;
  double now = fmin(off * off / expected, DISPERSION_MAX);
  if (!(self->dispersion >= 1)) self->dispersion = 1;
  self->dispersion = fmax(1, self->dispersion + (now - self->dispersion) * fmin(1, ms / WINDOW_MS_SHORT));
}

void tf_arrival_rate_take(tf_arrival_rate *self, double jobs, double ms) {
  if (self->window_ms <= 0) self->window_ms = WINDOW_MS_START;
  double expected = fmax(self->per_s, RATE_PER_S_TESTED) * ms / 1000;
  take_dispersion(self, jobs, ms, expected);
  double before = self->per_s;
  self->window_ms = fmin(self->window_ms + ms, window_ms_max(before));
  self->per_s += (jobs * 1000 / ms - before) * fmin(1, ms / self->window_ms);
  double changed_per_s = -1, changed_ms = 0;
  for (int i = 0; i < TF_RATE_TESTS; i++) {
    tf_arrival_rate_test *one = &self->tests[i];
    if (!test(one, ratios[i], jobs, ms, expected, self->dispersion)) continue;
    double per_s = one->jobs * 1000 / one->ms;
    bool further = changed_per_s < 0 || (ratios[i] > 1 ? per_s > changed_per_s : per_s < changed_per_s);
    if (!further) continue;
    changed_per_s = per_s;
    changed_ms = one->ms;
  }
  if (changed_per_s < 0) return;
  bool up = changed_per_s > before;
  self->per_s = up ? fmax(self->per_s, changed_per_s) : fmin(self->per_s, changed_per_s);
  double settle_ms = fmin(SETTLE_JOBS * 1000 / fmax(self->per_s, 1e-9), WINDOW_MS_START);
  self->window_ms = fmax(changed_ms, settle_ms);
  for (int i = 0; i < TF_RATE_TESTS; i++) self->tests[i] = (tf_arrival_rate_test){0, 0, 0};
}

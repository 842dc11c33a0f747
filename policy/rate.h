/* Arrivals a second, from counts: calm while the load is steady, quick when it changes.
 * In: jobs that came in an interval. Out: the rate. A mean over a long window; sequential tests (CUSUM, Page 1954) on
 * the Poisson likelihood for a change up or down, each of which also knows since when: the window then starts there. */
#ifndef TF_POLICY_RATE_H
#define TF_POLICY_RATE_H

enum { TF_RATE_TESTS = 4 };

typedef struct tf_arrival_rate_test {
  double score;    /* evidence for a change, in nats; 0: none */
  double jobs, ms; /* seen since the evidence began */
} tf_arrival_rate_test;

typedef struct tf_arrival_rate { /* all zero is the start: no arrivals for a while */
  double per_s;
  double window_ms;  /* what per_s is a mean of */
  double dispersion; /* variance of counts over their mean, 1 for Poisson; 0: not known yet */
  tf_arrival_rate_test tests[TF_RATE_TESTS];
} tf_arrival_rate;

/* jobs >= 0 in the last `ms` > 0 milliseconds. */
void tf_arrival_rate_take(tf_arrival_rate *self, double jobs, double ms);

#endif

/* The queue's last minutes as samples in a ring, for the plots of the status page.
 * In: one sample every TF_HISTORY_STEP_MS. Out: the newest TF_HISTORY_STEPS of them, each with a number that no other
 * had. Pure memory: no clock, no allocation, no lock. */
#ifndef TF_ROUTER_HISTORY_H
#define TF_ROUTER_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TF_HISTORY_STEP_MS = 2000, TF_HISTORY_STEPS = 450 /* a quarter of an hour */, TF_HISTORY_WAITS = 512 };

/* What is not known is NAN. */
typedef struct tf_sample {
  int64_t at_ms; /* Redis time */
  float finished_per_s, arrivals_per_s;
  float captions_per_s;           /* of this router alone */
  float waiting, encode, decode;  /* jobs */
  float budget, assigned;         /* mean tokens: allowed, and given in the minute before */
  float wait_p50_ms, wait_p95_ms; /* of this router's jobs in the minute before */
  float encoders, encoders_wanted, llms, llms_wanted;
} tf_sample;

typedef struct tf_history {
  tf_sample samples[TF_HISTORY_STEPS];
  uint64_t count; /* ever added: the newest has this number, the first had 1 */
} tf_history;

void tf_history_add(tf_history *self, const tf_sample *sample);
/* The first number that is still there and larger than `since`; count + 1 where there is none. A `since` that was never
 * given out (of a router before this one) counts as 0. */
uint64_t tf_history_first(const tf_history *self, uint64_t since);
/* NULL: no longer, or not yet there. */
const tf_sample *tf_history_at(const tf_history *self, uint64_t number);

/* Waits of the jobs that ended last: their percentiles over a time. All zero is the start. */
typedef struct tf_waits {
  struct {
    int64_t at_ms; /* our clock */
    float wait_ms;
  } items[TF_HISTORY_WAITS];
  uint64_t count; /* ever */
} tf_waits;

void tf_waits_add(tf_waits *self, int64_t now_ms, double wait_ms);
/* Nearest ranks among those of the last span_ms, of at most TF_HISTORY_WAITS jobs; returns how many, NAN where none. */
size_t tf_waits_percentiles(const tf_waits *self, int64_t now_ms, int64_t span_ms, float *p50_ms, float *p95_ms);

#endif

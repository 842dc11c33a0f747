/* Samples and waits in rings. In: samples, waits. Out: what is still there, percentiles.
 * Old ones are overwritten: nothing grows. */
#include "router/history.h"

#include <math.h>
#include <stdlib.h>

void tf_history_add(tf_history *self, const tf_sample *sample) {
  self->samples[self->count++ % TF_HISTORY_STEPS] = *sample;
}

static uint64_t oldest(const tf_history *self) {
  return self->count > TF_HISTORY_STEPS ? self->count - TF_HISTORY_STEPS + 1 : 1;
}

uint64_t tf_history_first(const tf_history *self, uint64_t since) {
  if (since > self->count) since = 0;
  return since + 1 > oldest(self) ? since + 1 : oldest(self);
}

const tf_sample *tf_history_at(const tf_history *self, uint64_t number) {
  bool there = number >= oldest(self) && number <= self->count;
  return there ? &self->samples[(number - 1) % TF_HISTORY_STEPS] : NULL;
}

void tf_waits_add(tf_waits *self, int64_t now_ms, double wait_ms) {
  size_t at = self->count++ % TF_HISTORY_WAITS;
  self->items[at].at_ms = now_ms;
  self->items[at].wait_ms = isfinite(wait_ms) && wait_ms > 0 ? (float)wait_ms : 0;
}

static int by_size(const void *a, const void *b) {
  float left = *(const float *)a, right = *(const float *)b;
  return (left > right) - (left < right);
}

size_t tf_waits_percentiles(const tf_waits *self, int64_t now_ms, int64_t span_ms, float *p50_ms, float *p95_ms) {
  float sorted[TF_HISTORY_WAITS];
  size_t there = self->count < TF_HISTORY_WAITS ? (size_t)self->count : TF_HISTORY_WAITS, count = 0;
  for (size_t i = 0; i < there; i++)
    if (now_ms - self->items[i].at_ms <= span_ms) sorted[count++] = self->items[i].wait_ms;
  *p50_ms = *p95_ms = NAN;
  if (count == 0) return 0;
  qsort(sorted, count, sizeof *sorted, by_size);
  *p50_ms = sorted[(count * 50 + 99) / 100 - 1];
  *p95_ms = sorted[(count * 95 + 99) / 100 - 1];
  return count;
}

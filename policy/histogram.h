/* How waits are distributed, in bins of a constant ratio. In: seconds. Out: percentiles, to half a bin.
 * Memory is fixed: the bins are the owner's, so that one histogram may have 1% and six hundred others 10%.
 * Below the first bin everything counts as 0. */
#ifndef TF_POLICY_HISTOGRAM_H
#define TF_POLICY_HISTOGRAM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define TF_HISTOGRAM_LEAST_S 1e-3 /* shorter is no wait */
#define TF_HISTOGRAM_MOST_S  1e7

/* Bin of a value: 0 for < least, then by ratio. bins >= 2. */
static inline size_t tf_histogram_bin(size_t bins, double seconds) {
  if (!(seconds >= TF_HISTOGRAM_LEAST_S)) return 0;
  double span = log(TF_HISTOGRAM_MOST_S / TF_HISTOGRAM_LEAST_S);
  double at = 1 + log(seconds / TF_HISTOGRAM_LEAST_S) / span * (double)(bins - 1);
  return at < (double)bins ? (size_t)at : bins - 1;
}

/* The value that `share` (0 to 1) of all are below; 0 where there are none. */
static inline double tf_histogram_quantile(const uint32_t *counts, size_t bins, double share) {
  uint64_t total = 0, sum = 0;
  for (size_t i = 0; i < bins; i++) total += counts[i];
  if (total == 0) return 0;
  double wanted = share * (double)total;
  for (size_t i = 0; i < bins; i++) {
    sum += counts[i];
    if ((double)sum < wanted || sum == 0) continue;
    if (i == 0) return 0;
    double ratio = log(TF_HISTOGRAM_MOST_S / TF_HISTOGRAM_LEAST_S) / (double)(bins - 1);
    return TF_HISTOGRAM_LEAST_S * exp(((double)i - 0.5) * ratio);
  }
  return TF_HISTOGRAM_MOST_S;
}

#endif

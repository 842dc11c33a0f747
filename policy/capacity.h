/* What the tiers carry at a mean token count: service times cleaned, interpolated, inverted.
 * In: a tf_policy_load of any content. Out: curves that are finite, above 0 and never fall with the count.
 * A mix of two neighbouring counts costs exactly the linear interpolation between them. */
#ifndef TF_POLICY_CAPACITY_H
#define TF_POLICY_CAPACITY_H

#include "policy/policy.h"

typedef struct tf_curve { /* one tier */
  double workers, slots;  /* >= 1 each */
  bool staffed;           /* the tier has workers */
  bool measured;          /* at least one service time was known */
  double service_ms[TF_POLICY_COUNTS_MAX];
} tf_curve;

typedef struct tf_tiers {
  size_t count; /* 0: the counts are not known */
  double counts[TF_POLICY_COUNTS_MAX];
  tf_curve encode, decode;
  double encode_latency_ms; /* of an encoder that is full */
} tf_tiers;

/* The prior: what the default model costs on two cores of a Xeon at f32 (SPEED.md). It only stands in until workers
 * have measured, and its shape serves for counts that they have not measured. */
double tf_prior_encode_ms(double tokens);
double tf_prior_decode_ms(double tokens);

void tf_tiers_of(const tf_policy_load *load, tf_tiers *out);
/* Service time at a mean, clamped to the counts. */
double tf_curve_service_ms(const tf_tiers *tiers, const tf_curve *curve, double mean_tokens);
double tf_curve_per_s(const tf_tiers *tiers, const tf_curve *curve, double mean_tokens);
/* The largest mean at which the tier carries so many jobs/s; the smallest count where none does. */
double tf_curve_mean_for(const tf_tiers *tiers, const tf_curve *curve, double per_s);

#endif

/* What the tiers carry at a mean token count: service times cleaned, interpolated, inverted.
 * In: a tf_policy_load of any content. Out: curves that are finite, above 0 and never fall with the count. */
#include "policy/capacity.h"

#include <math.h>

#define SERVICE_MS_MIN     1e-6 /* what is outside these two is no service time */
#define SERVICE_MS_MAX     1e9
#define ENCODE_SLOTS_PRIOR 4.0 /* the programs' defaults: --batch, --sequences */
#define DECODE_SLOTS_PRIOR 16.0
#define SLOTS_MAX          1e6

double tf_prior_encode_ms(double tokens) {
  (void)tokens; /* the vision encoder sees every patch at any N */
  return 26;
}

double tf_prior_decode_ms(double tokens) {
  return 15 + 0.184 * tokens;
}

static bool is_time(double ms) {
  return isfinite(ms) && ms >= SERVICE_MS_MIN && ms <= SERVICE_MS_MAX;
}

/* The index of the measured count that is nearest to i; n: none. */
static size_t nearest_measured(const double *service_ms, size_t n, size_t i) {
  for (size_t away = 0; away < n; away++) {
    if (i + away < n && is_time(service_ms[i + away])) return i + away;
    if (away <= i && is_time(service_ms[i - away])) return i - away;
  }
  return n;
}

static double slots_of(const tf_policy_tier *tier, size_t n, double prior) {
  if (isfinite(tier->slots) && tier->slots > 0) return fmin(fmax(tier->slots, 1), SLOTS_MAX);
  for (size_t i = n; i-- > 0;) /* Little's law */
    if (is_time(tier->latency_ms[i]) && is_time(tier->service_ms[i]))
      return fmin(fmax(tier->latency_ms[i] / tier->service_ms[i], 1), SLOTS_MAX);
  return prior;
}

static void curve_of(const tf_policy_tier *tier, const tf_tiers *tiers, double (*prior)(double), double slots_prior,
                     tf_curve *out) {
  out->staffed = tier->workers > 0;
  out->workers = out->staffed ? (double)tier->workers : 1;
  out->slots = slots_of(tier, tiers->count, slots_prior);
  out->measured = false;
  double most = 0;
  for (size_t i = 0; i < tiers->count; i++) {
    size_t known = nearest_measured(tier->service_ms, tiers->count, i);
    double ms = prior(tiers->counts[i]);
    if (known < tiers->count) {
      out->measured = true;
      ms *= tier->service_ms[known] / prior(tiers->counts[known]);
    }
    most = fmax(most, fmin(fmax(ms, SERVICE_MS_MIN), SERVICE_MS_MAX));
    out->service_ms[i] = most;
  }
}

void tf_tiers_of(const tf_policy_load *load, tf_tiers *out) {
  size_t n = 0;
  while (n < load->count_count && n < TF_POLICY_COUNTS_MAX && load->counts[n] > 0 &&
         (n == 0 || load->counts[n] > load->counts[n - 1])) {
    out->counts[n] = load->counts[n];
    n++;
  }
  out->count = n;
  curve_of(&load->encode, out, tf_prior_encode_ms, ENCODE_SLOTS_PRIOR, &out->encode);
  curve_of(&load->decode, out, tf_prior_decode_ms, DECODE_SLOTS_PRIOR, &out->decode);
  double latency_ms = n ? load->encode.latency_ms[n - 1] : 0;
  out->encode_latency_ms = is_time(latency_ms) ? latency_ms : n ? out->encode.slots * out->encode.service_ms[0] : 0;
}

double tf_curve_service_ms(const tf_tiers *tiers, const tf_curve *curve, double mean_tokens) {
  size_t last = tiers->count - 1;
  if (!(mean_tokens > tiers->counts[0])) return curve->service_ms[0];
  if (mean_tokens >= tiers->counts[last]) return curve->service_ms[last];
  size_t i = 0;
  while (mean_tokens >= tiers->counts[i + 1]) i++;
  double part = (mean_tokens - tiers->counts[i]) / (tiers->counts[i + 1] - tiers->counts[i]);
  return curve->service_ms[i] + part * (curve->service_ms[i + 1] - curve->service_ms[i]);
}

double tf_curve_per_s(const tf_tiers *tiers, const tf_curve *curve, double mean_tokens) {
  return curve->workers * 1000 / tf_curve_service_ms(tiers, curve, mean_tokens);
}

double tf_curve_mean_for(const tf_tiers *tiers, const tf_curve *curve, double per_s) {
  size_t last = tiers->count - 1;
  double service_ms = per_s > 0 ? curve->workers * 1000 / per_s : INFINITY;
  if (service_ms >= curve->service_ms[last]) return tiers->counts[last];
  if (!(service_ms > curve->service_ms[0])) return tiers->counts[0];
  size_t i = last - 1;
  while (service_ms < curve->service_ms[i]) i--;
  double rise = curve->service_ms[i + 1] - curve->service_ms[i];
  double part = rise > 0 ? (service_ms - curve->service_ms[i]) / rise : 1;
  return tiers->counts[i] + fmin(part, 1) * (tiers->counts[i + 1] - tiers->counts[i]);
}

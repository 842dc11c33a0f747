/* The allocation: N of one job, from the budget, within its own limits and deadline.
 * In: the budget, a job's terms, the rounding of the jobs before. Out: N, the reason, what the next job inherits.
 * Error diffusion (Floyd and Steinberg's idea in one dimension): what a job got too much or too little is the next
 * one's, so that the two counts beside the budget alternate as evenly as whole jobs can. */
#include <math.h>
#include <string.h>

#include "policy/capacity.h"
#include "policy/policy.h"

#define BOUND_JOBS     64.0 /* over how many jobs the share of those with limits is smoothed */
#define FREE_SHARE_MIN 0.05 /* where fewer than this are free, these few are not made to pay for all */

static const char *const names[] = {"",        "fixed",    "idle",       "queue", "job_min",
                                    "job_max", "deadline", "reassigned", "pace"};
enum { NAME_COUNT = sizeof names / sizeof *names };

const char *tf_reason_name(tf_reason reason) {
  return (unsigned)reason < NAME_COUNT ? names[reason] : "";
}

tf_reason tf_reason_from_name(const char *name, size_t size) {
  for (int i = 1; i < NAME_COUNT; i++)
    if (strlen(names[i]) == size && !memcmp(names[i], name, size)) return (tf_reason)i;
  return TF_REASON_NONE;
}

static bool within(const tf_policy_job *job, uint32_t n) {
  return n >= job->minimum && (job->maximum == 0 || n <= job->maximum);
}

static bool offered(const tf_policy_job *job, uint32_t n) {
  for (size_t i = 0; i < job->count_count; i++)
    if (job->counts[i] == n) return true;
  return false;
}

/* Latency at n tokens, between the counts by proportion; 0: not known. */
static double latency_ms(const tf_policy_load *load, const tf_policy_tier *tier, uint32_t n) {
  double below = 0, below_at = 0;
  for (size_t i = 0; i < load->count_count && i < TF_POLICY_COUNTS_MAX; i++) {
    double ms = tier->latency_ms[i], at = load->counts[i];
    if (!isfinite(ms) || ms <= 0) continue;
    if (at >= n) return below > 0 && at > below_at ? below + (ms - below) * (n - below_at) / (at - below_at) : ms;
    below = ms;
    below_at = at;
  }
  return below;
}

/* Milliseconds from now to the result of a job that is placed now with n tokens; 0: not known yet. What it may wait
 * inside the tiers is the work of those that are before it there. */
static double time_ms(const tf_policy_load *load, uint32_t n) {
  double decode_ms = latency_ms(load, &load->decode, n);
  if (decode_ms <= 0) return 0;
  tf_policy_load placed = *load;
  int64_t encoding = load->in_encode > 0 ? load->in_encode : 0, decoding = load->in_decode > 0 ? load->in_decode : 0;
  placed.unfinished = encoding > INT64_MAX - decoding ? INT64_MAX : encoding + decoding;
  return tf_policy_wait_ms(&placed, n) + latency_ms(load, &load->encode, n) + decode_ms;
}

static bool makes_it(const tf_policy_load *load, const tf_policy_job *job, uint32_t n) {
  return job->deadline_left_ms == INT64_MAX || (job->deadline_left_ms > 0 && time_ms(load, n) <= job->deadline_left_ms);
}

/* The count nearest to `wanted` within the limits that makes the deadline: up to the minimum, down to the maximum.
 * 0: none. Counts are tried upwards, so the smallest that fits stands until a better one is found. */
static uint32_t nearest(const tf_policy_load *load, const tf_policy_job *job, uint32_t wanted) {
  uint32_t best = 0;
  for (size_t i = 0; i < job->count_count; i++) {
    uint32_t n = job->counts[i];
    if (!within(job, n)) continue;
    if (!makes_it(load, job, n)) break;
    best = n;
    if (n >= wanted) break;
  }
  return best;
}

/* --- The mix --- */

static double finite_or_zero(double value) {
  return isfinite(value) ? value : 0;
}

/* What jobs without limits of their own get on average, so that all together make the budget. */
static double free_budget(const tf_policy_mix *mix, double budget, double least, double most) {
  double share = fmax(1 - finite_or_zero(mix->bound_share), FREE_SHARE_MIN);
  double left = budget - finite_or_zero(mix->bound);
  return budget >= most ? most : fmin(fmax(left / share, least), most);
}

/* One of the two counts beside `mean`; `carry` is what the jobs before got too little, *left the same for the next. */
static uint32_t diffuse(const tf_policy_job *job, double mean, double carry, double *left) {
  if (mean <= job->counts[0]) { /* nothing is left to give: what is owed is not given now */
    *left = finite_or_zero(carry);
    return job->counts[0];
  }
  size_t i = 0;
  while (i + 2 < job->count_count && mean >= job->counts[i + 1]) i++;
  double low = job->counts[i], high = i + 1 < job->count_count ? job->counts[i + 1] : low;
  double half = (high - low) / 2;
  double wish = mean + fmin(fmax(finite_or_zero(carry), -half), half);
  uint32_t n = wish >= low + half ? (uint32_t)high : (uint32_t)low;
  *left = wish - n;
  return n;
}

/* Whether a job's own limits decided its n: the others make up for such jobs. */
static void remember(tf_policy_mix *mix, bool bound, uint32_t n) {
  mix->bound = finite_or_zero(mix->bound);
  mix->bound_share = finite_or_zero(mix->bound_share);
  mix->bound += ((bound ? n : 0) - mix->bound) / BOUND_JOBS;
  mix->bound_share += ((bound ? 1 : 0) - mix->bound_share) / BOUND_JOBS;
}

static double budget_of(const tf_policy_state *state, const tf_policy_job *job, double least, double most) {
  double budget = isfinite(job->budget) && job->budget > 0 ? job->budget : state->budget;
  if (!isfinite(budget) || budget <= 0) return most; /* nothing is known yet */
  return fmin(fmax(budget, least), most);
}

static tf_reason reason_for(const tf_policy_load *load, const tf_policy_job *job, uint32_t n, uint32_t wanted,
                            bool full_detail) {
  if (job->minimum && job->minimum == job->maximum) return TF_REASON_FIXED;
  if (job->previous) return TF_REASON_REASSIGNED;
  if (n > wanted) return TF_REASON_JOB_MIN;
  if (n < wanted) return within(job, wanted) && !makes_it(load, job, wanted) ? TF_REASON_DEADLINE : TF_REASON_JOB_MAX;
  if (isfinite(job->budget) && job->budget > 0) return TF_REASON_PACE;
  return full_detail ? TF_REASON_IDLE : TF_REASON_QUEUE;
}

/* An attempt that keeps the N of the one before. */
static bool keeps(const tf_policy_load *load, const tf_policy_job *job) {
  return job->previous && offered(job, job->previous) && within(job, job->previous) &&
         makes_it(load, job, job->previous);
}

tf_policy_choice tf_policy_choose(const tf_policy_state *state, const tf_policy_config *config,
                                  const tf_policy_load *load, tf_policy_mix *mix, const tf_policy_job *job) {
  (void)config;
  tf_policy_choice choice = {0, TF_REASON_NONE, false};
  if (job->count_count == 0) return choice;
  if (keeps(load, job)) {
    choice.vision_tokens = job->previous;
    choice.reason = job->previous_reason == TF_REASON_NONE ? TF_REASON_REASSIGNED : job->previous_reason;
    return choice;
  }
  double least = job->counts[0], most = job->counts[job->count_count - 1];
  double budget = budget_of(state, job, least, most), mean = free_budget(mix, budget, least, most), carry;
  uint32_t wanted = diffuse(job, mean, mix->carry, &carry);
  choice.vision_tokens = nearest(load, job, wanted);
  if (choice.vision_tokens == 0) {
    for (size_t i = 0; i < job->count_count; i++) choice.too_late |= within(job, job->counts[i]);
    return choice;
  }
  choice.reason = reason_for(load, job, choice.vision_tokens, wanted, mean >= most);
  bool bound = choice.vision_tokens != wanted || (job->minimum && job->minimum == job->maximum);
  if (!bound) mix->carry = carry;
  remember(mix, bound, choice.vision_tokens);
  return choice;
}

/* The budget: the largest mean token count that the load allows, moved there smoothly; and what follows from capacity.
 * In: readings of the load. Out: the shared state; capacity, waits, demand.
 * Fewer tokens relieve the LLM, hardly the encoder: each tier sets its own bound, and the LLM is never asked to be
 * faster than what the encoders hand it, so that their bottleneck is not paid with quality. */
#include "policy/policy.h"

#include <math.h>
#include <string.h>

#include "policy/capacity.h"

#define UTILISATION_DEFAULT 0.9
#define WAIT_SHARE          0.5 /* the predicted wait is held under this share of the target: load is random, N is kept */
#define IDLE_MS             1000.0 /* nothing unfinished for so long: full detail, whatever came before */
#define GAP_MS_MAX          1000.0 /* the budget moves no further after a pause than it does in this time */
#define PACE_RESERVE        0.95   /* of the time left that a paced run plans with */
#define JOBS_MAX            1e15   /* loads beyond this mean the same */

static double target_ms_of(const tf_policy_config *config) {
  return config->target_wait_ms > 1 ? (double)config->target_wait_ms : 1;
}

static double utilisation_of(const tf_policy_config *config) {
  double value = config->utilisation_max;
  return value >= 0.01 && value <= 1 ? value : UTILISATION_DEFAULT;
}

static double jobs_of(int64_t jobs) {
  return jobs > 0 ? fmin((double)jobs, JOBS_MAX) : 0;
}

/* Jobs of each tier that have no slot yet. Jobs before the encoder wait for the LLM as well. */
typedef struct tf_backlog {
  double encode, decode, in_decode; /* in_decode: those of `decode` that have left the encoder */
} tf_backlog;

static tf_backlog backlog_of(const tf_policy_load *load, const tf_tiers *tiers) {
  double unfinished = jobs_of(load->unfinished), in_decode = fmin(jobs_of(load->in_decode), unfinished);
  double encode_slots = tiers->encode.staffed ? tiers->encode.workers * tiers->encode.slots : 0;
  double decode_slots = tiers->decode.staffed ? tiers->decode.workers * tiers->decode.slots : 0;
  return (tf_backlog){.encode = fmax(0, unfinished - in_decode - encode_slots),
                      .decode = fmax(0, unfinished - decode_slots),
                      .in_decode = fmax(0, in_decode - decode_slots)};
}

static double goal(const tf_policy_config *config, const tf_policy_load *load, const tf_tiers *tiers,
                   double arrivals_per_s) {
  double wait_s = target_ms_of(config) * WAIT_SHARE / 1000;
  tf_backlog backlog = backlog_of(load, tiers);
  double arrivals = arrivals_per_s > 0 ? fmin(arrivals_per_s, JOBS_MAX) / utilisation_of(config) : 0;
  /* The time in the encoder is no wait, but the LLM works off its queue meanwhile. */
  double wanted = fmax(arrivals, backlog.decode / (wait_s + tiers->encode_latency_ms / 1000));
  double encoders_most = tf_curve_per_s(tiers, &tiers->encode, tiers->counts[0]);
  wanted = fmin(wanted, encoders_most / utilisation_of(config) + backlog.in_decode / wait_s);
  return tf_curve_mean_for(tiers, &tiers->decode, wanted);
}

double tf_policy_goal(const tf_policy_config *config, const tf_policy_load *load, double arrivals_per_s) {
  tf_tiers tiers;
  tf_tiers_of(load, &tiers);
  return tiers.count ? goal(config, load, &tiers, arrivals_per_s) : 0;
}

/* Moves towards the goal, by a bounded step. */
static double step(double budget, double wanted, double range, double ms) {
  double time = fmin(ms, GAP_MS_MAX);
  double up = range * time / TF_POLICY_UP_MS, down = range * time / TF_POLICY_DOWN_MS;
  return wanted > budget ? fmin(wanted, budget + up) : fmax(wanted, budget - down);
}

static bool is_state(const tf_policy_state *state) {
  bool sane = isfinite(state->budget) && state->budget >= 0 && isfinite(state->idle_ms) &&
              isfinite(state->rate.per_s) && state->rate.per_s >= 0 && isfinite(state->rate.window_ms) &&
              isfinite(state->rate.dispersion);
  for (int i = 0; i < TF_RATE_TESTS; i++) {
    const tf_arrival_rate_test *test = &state->rate.tests[i];
    sane = sane && isfinite(test->score) && isfinite(test->jobs) && isfinite(test->ms) && test->jobs >= 0;
  }
  return sane;
}

void tf_policy_observe(tf_policy_state *state, const tf_policy_config *config, const tf_policy_load *load) {
  tf_tiers tiers;
  tf_tiers_of(load, &tiers);
  if (tiers.count == 0) return;
  if (!is_state(state)) *state = (tf_policy_state){0};
  bool first = state->budget <= 0;
  /* A clock that was set back, and the first reading: nothing is known of the time between. */
  double ms = first || load->now_ms < state->observed_ms ? 0 : (double)load->now_ms - (double)state->observed_ms;
  if (!first && ms > 0 && ms < TF_POLICY_OBSERVE_MS_MIN) return;
  double came = (double)load->arrived - (double)state->arrived; /* negative: the streams were deleted */
  state->observed_ms = load->now_ms;
  state->arrived = load->arrived;
  if (ms > 0) tf_arrival_rate_take(&state->rate, came > 0 ? fmin(came, JOBS_MAX) : 0, ms);
  state->idle_ms = load->unfinished > 0 ? 0 : fmin(state->idle_ms + ms, IDLE_MS);
  double least = tiers.counts[0], most = tiers.counts[tiers.count - 1];
  bool idle = state->idle_ms >= IDLE_MS;
  double wanted = idle ? most : goal(config, load, &tiers, state->rate.per_s);
  double from = fmin(fmax(state->budget, least), most);
  state->budget = first ? wanted : step(from, wanted, most - least, ms);
}

double tf_policy_capacity_per_s(const tf_policy_load *load, double mean_tokens) {
  tf_tiers tiers;
  tf_tiers_of(load, &tiers);
  bool known =
      tiers.count && tiers.encode.staffed && tiers.decode.staffed && tiers.encode.measured && tiers.decode.measured;
  if (!known) return 0;
  return fmin(tf_curve_per_s(&tiers, &tiers.encode, mean_tokens), tf_curve_per_s(&tiers, &tiers.decode, mean_tokens));
}

double tf_policy_wait_ms(const tf_policy_load *load, double mean_tokens) {
  tf_tiers tiers;
  tf_tiers_of(load, &tiers);
  if (tiers.count == 0) return 0;
  tf_backlog backlog = backlog_of(load, &tiers);
  double encode = backlog.encode * 1000 / tf_curve_per_s(&tiers, &tiers.encode, mean_tokens);
  double decode = backlog.decode * 1000 / tf_curve_per_s(&tiers, &tiers.decode, mean_tokens);
  return fmax(encode, fmax(0, decode - tiers.encode_latency_ms));
}

double tf_policy_pace_budget(const tf_policy_load *load, int64_t remaining_jobs, int64_t left_ms) {
  tf_tiers tiers;
  tf_tiers_of(load, &tiers);
  if (tiers.count == 0) return 0;
  bool known = tiers.encode.measured && tiers.decode.measured;
  if (!known || remaining_jobs <= 0) return tiers.counts[tiers.count - 1];
  if (left_ms <= 0) return tiers.counts[0];
  double per_s = jobs_of(remaining_jobs) * 1000 / ((double)left_ms * PACE_RESERVE);
  double encoders_most = tf_curve_per_s(&tiers, &tiers.encode, tiers.counts[0]);
  return tf_curve_mean_for(&tiers, &tiers.decode, fmin(per_s, encoders_most));
}

/* What one tier is asked to carry. */
typedef struct tf_asked {
  bool jobs;                      /* something is unfinished, or about to come */
  double arrivals_per_s, backlog; /* jobs without a slot */
  double target_ms;
} tf_asked;

/* 0 only where nothing is there and nothing comes. A job that is there wants a worker of each tier, even one that is
 * being decoded: it may have to be tried again. Until service is measured a tier wants what it has. */
static double demand(const tf_curve *curve, size_t last, const tf_asked *asked) {
  if (!asked->jobs && !(asked->arrivals_per_s > 0)) return 0;
  if (!curve->measured) return curve->staffed ? curve->workers : 1;
  double wanted = curve->service_ms[last] * (asked->arrivals_per_s / 1000 + asked->backlog / asked->target_ms);
  return asked->jobs ? fmax(wanted, 1) : wanted;
}

void tf_policy_demand(const tf_policy_config *config, const tf_policy_state *state, const tf_policy_load *load,
                      double *encoders, double *llms) {
  tf_tiers tiers;
  tf_tiers_of(load, &tiers);
  tf_asked asked = {.jobs = load->unfinished > 0 || load->called, .target_ms = target_ms_of(config)};
  /* Counts come with the first workers: until then nothing is known but that there are jobs. */
  *encoders = *llms = asked.jobs ? 1 : 0;
  if (tiers.count == 0) return;
  tf_backlog backlog = backlog_of(load, &tiers);
  asked.arrivals_per_s = is_state(state) ? fmin(state->rate.per_s, JOBS_MAX) / utilisation_of(config) : 0;
  asked.backlog = backlog.encode;
  *encoders = demand(&tiers.encode, tiers.count - 1, &asked);
  asked.backlog = backlog.decode;
  *llms = demand(&tiers.decode, tiers.count - 1, &asked);
}

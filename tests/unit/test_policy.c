/* The policy. In: loads, limits, service times, random ones too (fixed seed). Out: Criterion verdicts: the budget keeps
 * the load, is monotone, calm and bounded; limits and deadlines hold; the mix is even; any input is defined. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "policy/policy.h"

static const uint32_t counts[] = {64, 144, 256};
static const tf_policy_config config = {.target_wait_ms = 2000, .utilisation_max = 0.9};

static uint64_t seed = 0x9e3779b97f4a7c15u;
static uint64_t random_bits(void) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return seed;
}
static uint32_t random_below(uint32_t limit) {
  return (uint32_t)(random_bits() >> 32) % limit;
}

/* Encoders that carry 10 jobs/s each, LLMs that carry 5, 4 and 2.5 at the three counts. */
static tf_policy_load load_of(uint32_t encoders, uint32_t llms) {
  tf_policy_load load = {.counts = {64, 144, 256}, .count_count = 3};
  load.encode = (tf_policy_tier){.workers = encoders, .slots = 4};
  load.decode = (tf_policy_tier){.workers = llms, .slots = 16};
  for (int i = 0; i < 3; i++) {
    load.encode.service_ms[i] = 100;
    load.encode.latency_ms[i] = 400;
    load.decode.service_ms[i] = (double[]){200, 250, 400}[i];
    load.decode.latency_ms[i] = (double[]){1000, 1500, 2500}[i];
  }
  return load;
}

/* Both tiers as a fluid: arrivals at a fixed rate, work off at the budget; seen every 100 ms. */
typedef struct fluid {
  tf_policy_state state;
  tf_policy_load load;
  double arrived, unfinished;
} fluid;

static void run(fluid *self, double per_s, double seconds) {
  for (int i = 0; i < (int)(seconds * 10); i++) {
    self->load.now_ms += 100;
    self->arrived += per_s / 10;
    self->unfinished += per_s / 10;
    double capacity = tf_policy_capacity_per_s(&self->load, self->state.budget) / 10;
    double slots = self->load.decode.workers * self->load.decode.slots;
    double busy = fmin(1, self->unfinished / slots);
    self->unfinished = fmax(0, self->unfinished - capacity * busy);
    self->load.arrived = (int64_t)self->arrived;
    self->load.unfinished = (int64_t)self->unfinished;
    tf_policy_observe(&self->state, &config, &self->load);
  }
}

Test(policy, idle_gives_the_most) {
  fluid one = {.load = load_of(1, 1)};
  run(&one, 0, 5);
  cr_assert_eq(one.state.budget, 256);
  tf_policy_mix mix = {0};
  tf_policy_job job = {.counts = counts, .count_count = 3, .deadline_left_ms = INT64_MAX};
  tf_policy_choice choice = tf_policy_choose(&one.state, &config, &one.load, &mix, &job);
  cr_assert_eq(choice.vision_tokens, 256u);
  cr_assert_eq(choice.reason, TF_REASON_IDLE);
}

Test(policy, idle_again_after_a_flood) {
  fluid one = {.load = load_of(1, 1)};
  run(&one, 100, 5);
  cr_assert_eq(one.state.budget, 64);
  one.unfinished = 0;
  run(&one, 0, 3);
  cr_assert_eq(one.state.budget, 256);
}

Test(policy, a_step_settles_within_two_seconds) {
  double steps[][2] = {{100, 400}, {400, 100}, {100, 300}, {300, 480}, {480, 250}, {0, 350}};
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
    fluid one = {.load = load_of(200, 100)};
    run(&one, steps[i][0], 60);
    run(&one, steps[i][1], 2);
    double soon = one.state.budget;
    run(&one, steps[i][1], 120);
    cr_assert(fabs(soon / one.state.budget - 1) < 0.1, "step %zu: %g after 2 s, %g settled", i, soon, one.state.budget);
  }
}

Test(policy, arrivals_keep_below_the_utilisation) {
  fluid one = {.load = load_of(200, 100)};
  run(&one, 350, 120);
  double carries = tf_policy_capacity_per_s(&one.load, one.state.budget);
  cr_assert(fabs(350 / carries - 0.9) < 0.01, "utilisation %g", 350 / carries);
}

/* The arrival process is random here; only the estimate's calm is looked at. */
Test(policy, a_steady_load_gives_a_steady_budget) {
  fluid one = {.load = load_of(200, 100)};
  double least = 1e9, most = 0;
  for (int i = 0; i < 3000; i++) {
    double per_100_ms = 0; /* a sum of 90 coins: mean 30, variance 20 */
    for (int k = 0; k < 90; k++) per_100_ms += random_below(3) == 0;
    run(&one, per_100_ms * 10, 0.1001);
    if (i < 600) continue;
    least = fmin(least, one.state.budget);
    most = fmax(most, one.state.budget);
  }
  cr_assert(most / least < 1.2, "%g to %g", least, most);
}

Test(policy, the_minimum_when_only_that_carries_the_load) {
  for (int i = 0; i < 200; i++) {
    tf_policy_load load = load_of(1000, 1 + random_below(100));
    double needed = load.decode.workers * (4.5 + 5 * random_below(100) / 100.0);
    cr_assert_eq(tf_policy_goal(&config, &load, needed), 64, "%g jobs/s", needed);
    load.unfinished = 1000000;
    cr_assert_eq(tf_policy_goal(&config, &load, 0), 64);
  }
}

Test(policy, encoders_that_are_too_few_cost_no_quality) {
  tf_policy_load load = load_of(10, 100); /* 100 jobs/s against 250 to 500 */
  load.unfinished = load.waiting = 1000000;
  cr_assert_eq(tf_policy_goal(&config, &load, 1e6), 256);
  load.encode.workers = 30; /* 300 jobs/s: 256 tokens carry 250 */
  double goal = tf_policy_goal(&config, &load, 1e6);
  load.unfinished = 0;
  double keeps_up = tf_policy_capacity_per_s(&load, goal);
  cr_assert(goal > 100 && goal < 200 && keeps_up >= 299, "%g tokens carry %g", goal, keeps_up);
}

static tf_policy_load random_load(void) {
  tf_policy_load load = load_of(1 + random_below(50), 1 + random_below(50));
  load.now_ms = 1000000;
  load.count_count = 1 + random_below(TF_POLICY_COUNTS_MAX);
  for (uint32_t i = 0; i < load.count_count; i++) {
    load.counts[i] = (i ? load.counts[i - 1] : 0) + 1 + random_below(200);
    load.encode.service_ms[i] = random_below(4) ? random_below(1000) / 10.0 : 0;
    load.decode.service_ms[i] = random_below(4) ? random_below(1000) / 10.0 : 0;
  }
  load.in_encode = random_below(100);
  load.in_decode = random_below(1000);
  load.waiting = random_below(2) ? random_below(10000) : 0;
  load.unfinished = load.waiting + load.in_encode + load.in_decode;
  return load;
}

static tf_policy_state random_state(const tf_policy_load *load) {
  tf_policy_state state = {
      .observed_ms = load->now_ms - 100, .arrived = 5000, .budget = random_below(8) ? 1 + random_below(4000) : 0};
  state.rate.per_s = random_below(1000);
  state.rate.window_ms = 1000 + random_below(30000);
  state.rate.dispersion = 1 + random_below(5);
  return state;
}

Test(policy, the_budget_stays_within_the_counts) {
  for (int i = 0; i < 20000; i++) {
    tf_policy_load load = random_load();
    tf_policy_state state = random_state(&load);
    double least = load.counts[0], most = load.counts[load.count_count - 1];
    load.arrived = state.arrived + random_below(200);
    tf_policy_observe(&state, &config, &load);
    cr_assert(state.budget >= least && state.budget <= most, "%g of %g to %g", state.budget, least, most);
    double goal = tf_policy_goal(&config, &load, random_below(100000));
    cr_assert(goal >= least && goal <= most, "%g of %g to %g", goal, least, most);
  }
}

/* Whatever came before: a second until it counts as idle, and a second for the whole range. */
Test(policy, the_maximum_at_idle_whatever_came_before) {
  for (int i = 0; i < 2000; i++) {
    tf_policy_load load = random_load();
    tf_policy_state state = random_state(&load);
    load.arrived = state.arrived + random_below(200);
    tf_policy_observe(&state, &config, &load);
    load.unfinished = load.waiting = load.in_encode = load.in_decode = 0;
    for (int k = 0; k < 21; k++) {
      load.now_ms += 100;
      tf_policy_observe(&state, &config, &load);
    }
    cr_assert_eq(state.budget, load.counts[load.count_count - 1], "%g", state.budget);
  }
}

Test(policy, more_load_never_gives_more_tokens) {
  for (int i = 0; i < 20000; i++) {
    tf_policy_load load = random_load(), more = load;
    tf_policy_state state = random_state(&load);
    state.budget = 1 + random_below(500);
    load.arrived = state.arrived + random_below(200);
    int64_t decoding = random_below(2) ? random_below(1000) : 0;
    more.in_decode += decoding;
    more.unfinished += decoding + random_below(1000);
    more.arrived = load.arrived + random_below(200);
    tf_policy_state loaded = state;
    tf_policy_observe(&state, &config, &load);
    tf_policy_observe(&loaded, &config, &more);
    cr_assert(loaded.budget <= state.budget + 1e-9, "%g jobs more: %g, else %g",
              (double)(more.unfinished - load.unfinished), loaded.budget, state.budget);
  }
}

Test(policy, the_budget_moves_at_a_bounded_rate) {
  tf_policy_state state = {0};
  tf_policy_load load = load_of(1, 1);
  for (int i = 0; i < 20000; i++) {
    int64_t ms = TF_POLICY_OBSERVE_MS_MIN + random_below(200);
    load.now_ms += ms;
    load.unfinished = random_below(3) ? 0 : random_below(1000000);
    load.arrived += random_below(3) ? 0 : random_below(1000);
    double before = state.budget, range = 256 - 64;
    tf_policy_observe(&state, &config, &load);
    if (i == 0) continue;
    cr_assert(state.budget - before <= range * ms / TF_POLICY_UP_MS + 1e-9);
    cr_assert(before - state.budget <= range * ms / TF_POLICY_DOWN_MS + 1e-9);
  }
}

Test(policy, readings_too_close_change_nothing) {
  fluid one = {.load = load_of(1, 1)};
  run(&one, 3, 30);
  tf_policy_state before = one.state;
  one.load.now_ms += TF_POLICY_OBSERVE_MS_MIN - 1;
  one.load.unfinished = 1000000;
  tf_policy_observe(&one.state, &config, &one.load);
  cr_assert_eq(memcmp(&before, &one.state, sizeof before), 0);
}

Test(policy, a_burst_of_a_few_jobs_costs_no_more_than_it_must) {
  fluid one = {.load = load_of(1, 1)};
  run(&one, 0.5, 60);
  cr_assert_eq(one.state.budget, 256);
  one.unfinished += 12; /* fit in the batch */
  one.arrived += 12;
  run(&one, 0, 1);
  cr_assert_eq(one.state.budget, 256);
  one.unfinished += 4;
  one.arrived += 4;
  run(&one, 0, 1);
  cr_assert(one.state.budget > 200, "%g", one.state.budget);
}

/* --- Choices --- */

static tf_policy_choice choose_at(double budget, tf_policy_mix *mix, uint32_t minimum, uint32_t maximum) {
  tf_policy_load load = load_of(1, 1);
  tf_policy_state state = {.budget = budget};
  tf_policy_job job = {
      .counts = counts, .count_count = 3, .minimum = minimum, .maximum = maximum, .deadline_left_ms = INT64_MAX};
  return tf_policy_choose(&state, &config, &load, mix, &job);
}

Test(policy, the_mix_is_even) {
  for (double budget = 64; budget <= 256; budget += 0.7) {
    tf_policy_mix mix = {0};
    double low = budget < 144 ? 64 : 144, high = budget < 144 ? 144 : 256, sum = 0;
    for (int i = 1; i <= 500; i++) {
      uint32_t n = choose_at(budget, &mix, 0, 0).vision_tokens;
      cr_assert(n == low || n == high, "%u at a budget of %g", n, budget);
      sum += n;
      cr_assert(fabs(sum - i * budget) <= (high - low) / 2 + 1e-6, "%g after %d at %g", sum / i, i, budget);
    }
  }
}

/* Whatever was owed before: with the least, all jobs get the least, with the most the most. */
Test(policy, the_ends_of_the_range_are_no_mix) {
  tf_policy_mix mix = {0};
  for (int i = 0; i < 20000; i++) {
    double ends[] = {64, 256}, budget = random_below(2) ? ends[random_below(2)] : 64 + random_below(193);
    uint32_t n = choose_at(budget, &mix, 0, 0).vision_tokens;
    if (budget == 64 || budget == 256) cr_assert_eq(n, (uint32_t)budget, "%u at %g", n, budget);
  }
}

/* Pairs of workers with other counts share the mix: what is owed stays so while one of them gets the least. */
Test(policy, a_job_with_the_least_forgets_nothing) {
  tf_policy_mix mix = {0};
  double sum = 0;
  for (int i = 1; i <= 1000; i++) {
    sum += choose_at(100, &mix, 0, 0).vision_tokens;
    cr_assert_eq(choose_at(64, &mix, 0, 0).vision_tokens, 64u);
    cr_assert(fabs(sum - i * 100.0) <= 40 + 1e-6, "%g after %d", sum / i, i);
  }
}

Test(policy, free_jobs_make_up_for_those_with_limits) {
  tf_policy_mix mix = {0};
  double sum = 0;
  for (int i = 0; i < 2000; i++) {
    uint32_t limit = i % 2 ? 256 : 0;
    uint32_t n = choose_at(180, &mix, limit, limit).vision_tokens;
    if (i >= 1000) sum += n;
  }
  cr_assert(fabs(sum / 1000 - 180) < 5, "%g", sum / 1000);
}

Test(policy, what_others_forced_once_costs_no_detail_at_idle) {
  tf_policy_mix mix = {0};
  for (int i = 0; i < 1000; i++) choose_at(64, &mix, 256, 256);
  cr_assert_eq(choose_at(256, &mix, 0, 0).vision_tokens, 256u);
  cr_assert_eq(choose_at(256, &mix, 0, 0).reason, TF_REASON_IDLE);
  cr_assert_eq(choose_at(100, &mix, 0, 0).vision_tokens, 64u);
}

Test(policy, reasons_say_why) {
  struct {
    double budget;
    uint32_t minimum, maximum, n;
    tf_reason reason;
  } cases[] = {
      {256, 0, 0, 256, TF_REASON_IDLE},      {64, 0, 0, 64, TF_REASON_QUEUE},
      {256, 144, 144, 144, TF_REASON_FIXED}, {64, 144, 0, 144, TF_REASON_JOB_MIN},
      {256, 0, 144, 144, TF_REASON_JOB_MAX}, {64, 0, 144, 64, TF_REASON_QUEUE},
      {256, 145, 255, 0, TF_REASON_NONE},    {256, 300, 10, 0, TF_REASON_NONE},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tf_policy_mix mix = {0};
    tf_policy_choice choice = choose_at(cases[i].budget, &mix, cases[i].minimum, cases[i].maximum);
    cr_assert_eq(choice.vision_tokens, cases[i].n, "case %zu: %u", i, choice.vision_tokens);
    cr_assert_eq(choice.reason, cases[i].reason, "case %zu", i);
    cr_assert_not(choice.too_late);
  }
}

Test(policy, a_paced_run_has_a_budget_of_its_own) {
  tf_policy_load load = load_of(1, 1);
  tf_policy_state state = {.budget = 64};
  tf_policy_mix mix = {0};
  tf_policy_job job = {.counts = counts, .count_count = 3, .deadline_left_ms = INT64_MAX, .budget = 200};
  double sum = 0;
  for (int i = 0; i < 100; i++) {
    tf_policy_choice choice = tf_policy_choose(&state, &config, &load, &mix, &job);
    cr_assert_eq(choice.reason, TF_REASON_PACE);
    sum += choice.vision_tokens;
  }
  cr_assert(fabs(sum / 100 - 200) < 1);
}

Test(policy, n_stays_across_attempts_unless_forbidden) {
  tf_policy_load load = load_of(1, 1);
  tf_policy_state state = {.budget = 64};
  tf_policy_mix mix = {0};
  tf_policy_job job = {.counts = counts,
                       .count_count = 3,
                       .previous = 256,
                       .previous_reason = TF_REASON_IDLE,
                       .deadline_left_ms = INT64_MAX};
  tf_policy_choice choice = tf_policy_choose(&state, &config, &load, &mix, &job);
  cr_assert_eq(choice.vision_tokens, 256u);
  cr_assert_eq(choice.reason, TF_REASON_IDLE);
  job.deadline_left_ms = 2000; /* 144 take 1,900, 256 take 2,900 */
  state.budget = 256;
  choice = tf_policy_choose(&state, &config, &load, &mix, &job);
  cr_assert_eq(choice.vision_tokens, 144u);
  cr_assert_eq(choice.reason, TF_REASON_REASSIGNED);
  job.deadline_left_ms = INT64_MAX;
  job.previous = 100; /* not offered */
  choice = tf_policy_choose(&state, &config, &load, &mix, &job);
  cr_assert_eq(choice.vision_tokens, 256u);
  cr_assert_eq(choice.reason, TF_REASON_REASSIGNED);
}

Test(policy, the_largest_count_that_makes_the_deadline) {
  tf_policy_load load = load_of(1, 1);
  tf_policy_state state = {.budget = 256};
  struct {
    int64_t left_ms;
    uint32_t minimum, n;
    bool too_late;
  } cases[] = {{3000, 0, 256, false}, {2899, 0, 144, false}, {1900, 0, 144, false}, {1400, 0, 64, false},
               {1399, 0, 0, true},    {0, 0, 0, true},       {-5, 0, 0, true},      {1500, 144, 0, true}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tf_policy_mix mix = {0};
    tf_policy_job job = {
        .counts = counts, .count_count = 3, .minimum = cases[i].minimum, .deadline_left_ms = cases[i].left_ms};
    tf_policy_choice choice = tf_policy_choose(&state, &config, &load, &mix, &job);
    cr_assert_eq(choice.vision_tokens, cases[i].n, "case %zu: %u", i, choice.vision_tokens);
    cr_assert_eq(choice.too_late, cases[i].too_late, "case %zu", i);
    if (choice.vision_tokens && choice.vision_tokens < 256) cr_assert_eq(choice.reason, TF_REASON_DEADLINE);
  }
  load.in_decode =
      32; /* 16 before it in the LLM: at 64 tokens 3.2 s less the 0.4 s of the encoder, and 1.4 s its own */
  tf_policy_mix mix = {0};
  tf_policy_job job = {.counts = counts, .count_count = 3, .deadline_left_ms = 4100};
  cr_assert(tf_policy_choose(&state, &config, &load, &mix, &job).too_late);
  job.deadline_left_ms = 4200;
  cr_assert_eq(tf_policy_choose(&state, &config, &load, &mix, &job).vision_tokens, 64u);
  memset(load.decode.latency_ms, 0, sizeof load.decode.latency_ms); /* not measured: nothing is refused */
  job.deadline_left_ms = 1;
  cr_assert_eq(tf_policy_choose(&state, &config, &load, &mix, &job).vision_tokens, 256u);
}

/* --- Capacity, pace, demand --- */

Test(policy, capacity_is_the_slower_tier) {
  tf_policy_load load = load_of(1, 1);
  cr_assert_float_eq(tf_policy_capacity_per_s(&load, 256), 2.5, 1e-9);
  cr_assert_float_eq(tf_policy_capacity_per_s(&load, 200), 1000 / 325.0, 1e-9);
  load.decode.workers = 10;
  cr_assert_float_eq(tf_policy_capacity_per_s(&load, 256), 10, 1e-9);
  load.encode.workers = 0;
  cr_assert_eq(tf_policy_capacity_per_s(&load, 256), 0);
}

Test(policy, pace_plans_with_the_time_left) {
  tf_policy_load load = load_of(10, 10);
  cr_assert_eq(tf_policy_pace_budget(&load, 100, 3600000), 256);
  cr_assert_eq(tf_policy_pace_budget(&load, 1000000, 3600000), 64);
  cr_assert_eq(tf_policy_pace_budget(&load, 10, 0), 64);
  double budget = tf_policy_pace_budget(&load, 36000, 1200000);
  double s = 36000 / tf_policy_capacity_per_s(&load, budget);
  cr_assert(s < 1200 && s > 1080, "%g s at %g", s, budget);
  memset(load.decode.service_ms, 0, sizeof load.decode.service_ms);
  cr_assert_eq(tf_policy_pace_budget(&load, 1000000, 1000), 256);
}

Test(policy, demand_does_not_see_the_lowered_n) {
  tf_policy_load load = load_of(10, 10);
  tf_policy_state state = {.budget = 64, .rate = {.per_s = 45, .window_ms = 30000, .dispersion = 1}}, high = state;
  high.budget = 256;
  double encoders[2], llms[2];
  tf_policy_demand(&config, &state, &load, &encoders[0], &llms[0]);
  tf_policy_demand(&config, &high, &load, &encoders[1], &llms[1]);
  cr_assert_eq(llms[0], llms[1]);
  cr_assert_float_eq(llms[0], 20, 1e-9); /* 45 x 0.4 s / 0.9 */
  cr_assert_float_eq(encoders[0], 5, 1e-9);
  load.unfinished = 160 + 100; /* 100 more than the LLMs' slots */
  tf_policy_demand(&config, &state, &load, &encoders[0], &llms[0]);
  cr_assert_float_eq(llms[0], 40, 1e-9);
}

static void demand_is(const tf_policy_state *state, const tf_policy_load *load, double encoders, double llms) {
  double got[2];
  tf_policy_demand(&config, state, load, &got[0], &got[1]);
  cr_assert_float_eq(got[0], encoders, 1e-9, "encoders: %g, not %g", got[0], encoders);
  cr_assert_float_eq(got[1], llms, 1e-9, "LLMs: %g, not %g", got[1], llms);
}

Test(policy, nobody_is_wanted_only_when_nothing_is_there) {
  tf_policy_state quiet = {0}, rare = {.rate = {.per_s = 0.09, .window_ms = 30000, .dispersion = 1}};
  tf_policy_load load = {.unfinished = 0};
  demand_is(&quiet, &load, 0, 0);
  load.unfinished = 5; /* before the first worker: the counts are not known */
  demand_is(&quiet, &load, 1, 1);
  load = (tf_policy_load){.called = true};
  demand_is(&quiet, &load, 1, 1);
  load = load_of(2, 3);
  demand_is(&quiet, &load, 0, 0);
  load.called = true; /* a client waits: as if one job were there */
  demand_is(&quiet, &load, 1, 1);
  load.called = false;
  demand_is(&rare, &load, 0.01, 0.04);  /* a fraction of one, which is rounded up */
  load.unfinished = load.in_decode = 3; /* all have a slot */
  demand_is(&quiet, &load, 1, 1);
  memset(load.encode.service_ms, 0, sizeof load.encode.service_ms);
  memset(load.decode.service_ms, 0, sizeof load.decode.service_ms);
  demand_is(&quiet, &load, 2, 3); /* not measured: what is there */
  load.unfinished = load.in_decode = 0;
  demand_is(&quiet, &load, 0, 0);
  demand_is(&rare, &load, 2, 3);
}

Test(policy, a_backlog_that_nobody_serves_asks_for_all_that_it_needs) {
  tf_policy_state quiet = {0};
  tf_policy_load load = load_of(0, 0); /* service times are those from before the pause */
  load.unfinished = load.waiting = 2000;
  demand_is(&quiet, &load, 100, 400);
  memset(load.decode.service_ms, 0, sizeof load.decode.service_ms);
  demand_is(&quiet, &load, 100, 1);
}

Test(policy, demand_ends_some_minutes_after_the_last_job) {
  double rates[] = {0.05, 0.5, 3, 45}, encoders, llms;
  for (int bursts = 0; bursts < 2; bursts++) {
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
      fluid one = {.load = load_of(30, 90)};
      for (int k = 0; k < 6; k++) { /* evenly, or all of half a minute at once */
        run(&one, bursts ? rates[i] * 300 : rates[i], bursts ? 0.1 : 30);
        if (bursts) run(&one, 0, 29.9);
      }
      run(&one, rates[i], 40);
      tf_policy_demand(&config, &one.state, &one.load, &encoders, &llms);
      cr_assert(encoders > 0 && llms > 0);
      run(&one, 0, 300);
      cr_assert_eq(one.load.unfinished, 0);
      tf_policy_demand(&config, &one.state, &one.load, &encoders, &llms);
      cr_assert(encoders == 0 && llms == 0, "%g jobs/s: %g, %g", rates[i], encoders, llms);
    }
  }
}

/* --- Odd inputs --- */

static double odd_number(void) {
  double values[] = {0, -1, NAN, INFINITY, -INFINITY, 1e-300, 1e300, 1, 100, 400.5, DBL_MAX};
  return values[random_below(sizeof values / sizeof *values)];
}
static int64_t odd_jobs(void) {
  int64_t values[] = {0, -1, 1, 1000, INT64_MAX, INT64_MIN, 1000000};
  return values[random_below(sizeof values / sizeof *values)];
}

static tf_policy_load odd_load(void) {
  tf_policy_load load = {.now_ms = odd_jobs(),
                         .unfinished = odd_jobs(),
                         .waiting = odd_jobs(),
                         .in_encode = odd_jobs(),
                         .in_decode = odd_jobs(),
                         .arrived = odd_jobs(),
                         .count_count = random_below(20)};
  load.encode = (tf_policy_tier){.workers = random_below(2) ? random_below(100) : UINT32_MAX, .slots = odd_number()};
  load.decode = (tf_policy_tier){.workers = random_below(2) ? 0 : random_below(100), .slots = odd_number()};
  for (int i = 0; i < TF_POLICY_COUNTS_MAX; i++) {
    load.counts[i] = random_below(8) ? (uint32_t)(i + 1) * 16 : random_below(1000);
    load.encode.service_ms[i] = odd_number();
    load.decode.service_ms[i] = odd_number();
    load.encode.latency_ms[i] = odd_number();
    load.decode.latency_ms[i] = odd_number();
  }
  return load;
}

Test(policy, any_input_is_defined) {
  tf_policy_state state = {0};
  tf_policy_mix mix = {0};
  for (int i = 0; i < 100000; i++) {
    tf_policy_load load = odd_load();
    tf_policy_config any = {.target_wait_ms = odd_jobs(), .utilisation_max = odd_number()};
    if (random_below(100) == 0) state.budget = odd_number();
    if (random_below(100) == 0) state.rate.per_s = odd_number();
    if (random_below(100) == 0) mix.carry = odd_number();
    tf_policy_observe(&state, &any, &load);
    double goal = tf_policy_goal(&any, &load, odd_number());
    cr_assert(goal >= 0 && goal <= UINT32_MAX);
    tf_policy_job job = {.counts = counts,
                         .count_count = random_below(4),
                         .minimum = random_below(2) ? random_below(300) : 0,
                         .maximum = random_below(2) ? random_below(300) : 0,
                         .previous = random_below(3) ? 0 : random_below(300),
                         .deadline_left_ms = random_below(2) ? INT64_MAX : odd_jobs(),
                         .budget = odd_number()};
    tf_policy_choice choice = tf_policy_choose(&state, &any, &load, &mix, &job);
    uint32_t n = choice.vision_tokens;
    if (n) cr_assert(n >= job.minimum && (!job.maximum || n <= job.maximum) && (n == 64 || n == 144 || n == 256));
    if (n) cr_assert_neq(choice.reason, TF_REASON_NONE);
    double encoders, llms, wait = tf_policy_wait_ms(&load, odd_number());
    tf_policy_demand(&any, &state, &load, &encoders, &llms);
    cr_assert(encoders >= 0 && llms >= 0 && isfinite(encoders) && isfinite(llms));
    cr_assert(wait >= 0 && isfinite(wait));
    cr_assert(isfinite(tf_policy_capacity_per_s(&load, odd_number())));
    cr_assert(isfinite(tf_policy_pace_budget(&load, odd_jobs(), odd_jobs())));
  }
}

Test(policy, a_clock_set_back_and_counts_that_change) {
  fluid one = {.load = load_of(1, 1)};
  run(&one, 100, 10);
  cr_assert_eq(one.state.budget, 64);
  one.load.now_ms = 5;
  one.unfinished = 0;
  run(&one, 0, 5);
  cr_assert_eq(one.state.budget, 256);
  one.load.count_count = 2;
  run(&one, 0, 0.2);
  cr_assert_eq(one.state.budget, 144);
}

/* --- Text --- */

Test(policy, state_text_goes_both_ways) {
  fluid one = {.load = load_of(1, 1)};
  run(&one, 4.2, 33);
  char text[TF_POLICY_STATE_TEXT_BYTES_MAX], again[TF_POLICY_STATE_TEXT_BYTES_MAX];
  cr_assert(tf_policy_state_write(&one.state, text, sizeof text));
  tf_policy_state read;
  cr_assert(tf_policy_state_read(text, strlen(text), &read));
  cr_assert(tf_policy_state_write(&read, again, sizeof again));
  cr_assert_str_eq(text, again);
  cr_assert_eq(read.arrived, one.state.arrived);
  cr_assert_float_eq(read.budget, one.state.budget, 1e-6);
  cr_assert_not(tf_policy_state_write(&one.state, text, 10));
}

Test(policy, state_text_of_anyone_else_is_refused) {
  const char *bad[] = {"",
                       "1",
                       "x",
                       "1 2 3",
                       "2 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19",
                       "1 1 2 nan 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19",
                       "1 1 2 -3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19",
                       "1 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    tf_policy_state state = {.budget = 5};
    cr_assert_not(tf_policy_state_read(bad[i], strlen(bad[i]), &state), "%s", bad[i]);
    cr_assert_eq(state.budget, 0);
  }
  const char *good = "1 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19";
  tf_policy_state state;
  cr_assert(tf_policy_state_read(good, strlen(good), &state));
  for (size_t cut = 0; cut < strlen(good) - 2; cut++) cr_assert_not(tf_policy_state_read(good, cut, &state));
}

Test(policy, reason_names_go_both_ways) {
  for (int reason = TF_REASON_FIXED; reason <= TF_REASON_PACE; reason++) {
    const char *name = tf_reason_name((tf_reason)reason);
    cr_assert_neq(name[0], 0);
    cr_assert_eq((int)tf_reason_from_name(name, strlen(name)), reason);
  }
  cr_assert_eq(tf_reason_from_name("idl", 3), TF_REASON_NONE);
  cr_assert_str_eq(tf_reason_name((tf_reason)99), "");
}

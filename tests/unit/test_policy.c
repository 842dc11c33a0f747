/* The policy. In: loads, limits, random ones too (fixed seed). Out: Criterion verdicts: limits held, monotone, calm. */
#include <criterion/criterion.h>
#include <string.h>

#include "router/policy.h"

static const uint32_t counts[] = {64, 144, 256};
static const tf_policy_config config = {.target_wait_ms = 2000};

static uint64_t seed = 0x9e3779b97f4a7c15u;
static uint32_t random_below(uint32_t limit) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return (uint32_t)(seed >> 32) % limit;
}

/* The state after a load has been there for a while, seen every 20 ms. */
static tf_policy_state settled(tf_policy_state state, int64_t waiting, int64_t capacity, int64_t *now_ms) {
  for (int i = 0; i < 1000; i++) {
    *now_ms += 20;
    tf_policy_load load = {.waiting = waiting, .decode_capacity = capacity, .counts_offered = 3, .now_ms = *now_ms};
    tf_policy_observe(&state, &config, &load);
  }
  return state;
}

static tf_policy_choice choose(const tf_policy_state *state, uint32_t minimum, uint32_t maximum) {
  tf_policy_job job = {.counts = counts, .count_count = 3, .minimum = minimum, .maximum = maximum};
  return tf_policy_choose(state, &job);
}

Test(policy, idle_gives_the_most) {
  tf_policy_state state = {0};
  tf_policy_choice choice = choose(&state, 0, 0);
  cr_assert_eq(choice.vision_tokens, 256u);
  cr_assert_eq(choice.reason, TF_REASON_IDLE);
}

Test(policy, a_deep_queue_gives_the_least_and_recovers) {
  int64_t now_ms = 1000;
  tf_policy_state state = settled((tf_policy_state){0}, 1000000, 32, &now_ms);
  tf_policy_choice choice = choose(&state, 0, 0);
  cr_assert_eq(choice.vision_tokens, 64u);
  cr_assert_eq(choice.reason, TF_REASON_QUEUE);
  state = settled(state, 0, 32, &now_ms);
  choice = choose(&state, 0, 0);
  cr_assert_eq(choice.vision_tokens, 256u);
  cr_assert_eq(choice.reason, TF_REASON_IDLE);
}

Test(policy, reasons_say_why) {
  int64_t now_ms = 1000;
  tf_policy_state idle = {0};
  tf_policy_state deep = settled(idle, 1000000, 32, &now_ms);
  const struct {
    const tf_policy_state *state;
    uint32_t minimum, maximum, wanted;
    tf_reason reason;
  } cases[] = {
      {&idle, 144, 144, 144, TF_REASON_FIXED},   {&deep, 256, 256, 256, TF_REASON_FIXED},
      {&idle, 0, 144, 144, TF_REASON_JOB_MAX},   {&idle, 64, 256, 256, TF_REASON_IDLE},
      {&deep, 144, 0, 144, TF_REASON_JOB_MIN},   {&deep, 0, 144, 64, TF_REASON_QUEUE},
      {&deep, 144, 256, 144, TF_REASON_JOB_MIN}, {&idle, 65, 143, 0, TF_REASON_NONE},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tf_policy_choice choice = choose(cases[i].state, cases[i].minimum, cases[i].maximum);
    cr_assert_eq(choice.vision_tokens, cases[i].wanted, "case %zu: %u", i, choice.vision_tokens);
    cr_assert_eq(choice.reason, cases[i].reason, "case %zu: %s", i, tf_reason_name(choice.reason));
  }
}

Test(policy, n_stays_across_attempts_unless_forbidden) {
  int64_t now_ms = 1000;
  tf_policy_state deep = settled((tf_policy_state){0}, 1000000, 32, &now_ms);
  tf_policy_job job = {.counts = counts, .count_count = 3, .previous = 256, .previous_reason = TF_REASON_IDLE};
  tf_policy_choice choice = tf_policy_choose(&deep, &job);
  cr_assert_eq(choice.vision_tokens, 256u);
  cr_assert_eq(choice.reason, TF_REASON_IDLE);
  job.previous = 100; /* the model that offered it is gone */
  choice = tf_policy_choose(&deep, &job);
  cr_assert_eq(choice.vision_tokens, 64u);
  cr_assert_eq(choice.reason, TF_REASON_REASSIGNED);
}

Test(policy, steps_are_bounded_in_time) {
  tf_policy_state state = {0};
  tf_policy_load load = {.waiting = INT64_MAX, .decode_capacity = 1, .counts_offered = 3, .now_ms = 1000000};
  tf_policy_observe(&state, &config, &load);
  cr_assert_eq(state.level, 1u);
  tf_policy_observe(&state, &config, &load);
  cr_assert_eq(state.level, 1u, "one step at one moment");
}

Test(policy, a_steady_load_does_not_flap) {
  for (int64_t waiting = 0; waiting < 400; waiting += 7) {
    int64_t now_ms = 1000;
    tf_policy_state state = settled((tf_policy_state){0}, waiting, 32, &now_ms);
    uint32_t level = state.level;
    for (int i = 0; i < 500; i++) {
      now_ms += 20;
      int64_t wobble = waiting + (int64_t)random_below(9) - 4;
      tf_policy_load load = {
          .waiting = wobble < 0 ? 0 : wobble, .decode_capacity = 32, .counts_offered = 3, .now_ms = now_ms};
      tf_policy_observe(&state, &config, &load);
      cr_assert(state.level == level || state.level == level + 1, "waiting %ld: %u to %u", (long)waiting, level,
                state.level);
      if (state.level > level) level = state.level; /* once up at the edge, it stays */
    }
  }
}

Test(policy, more_load_never_gives_more_tokens) {
  for (int64_t capacity = 1; capacity < 200; capacity += 13) {
    uint32_t last = UINT32_MAX;
    for (int64_t waiting = 0; waiting < 2000; waiting += 31) {
      int64_t now_ms = 1000;
      tf_policy_state state = settled((tf_policy_state){0}, waiting, capacity, &now_ms);
      uint32_t n = choose(&state, 0, 0).vision_tokens;
      cr_assert_leq(n, last);
      last = n;
    }
  }
}

Test(policy, any_input_is_defined_and_within_limits) {
  const uint32_t odd[] = {4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225, 256, 289};
  tf_policy_state state = {0};
  for (int i = 0; i < 200000; i++) {
    tf_policy_load load = {.unfinished = (int64_t)seed,
                           .waiting = (int64_t)(seed * 31),
                           .decode_capacity = (int64_t)random_below(5) - 1,
                           .counts_offered = random_below(20),
                           .now_ms = (int64_t)(seed >> random_below(40))};
    tf_policy_config any = {.target_wait_ms = (int64_t)random_below(10000) - 100};
    if (random_below(50) == 0) state.level = random_below(100);
    tf_policy_observe(&state, &any, &load);
    size_t offered = random_below(17);
    tf_policy_job job = {.counts = odd,
                         .count_count = offered,
                         .minimum = random_below(2) ? odd[random_below(16)] : 0,
                         .maximum = random_below(2) ? odd[random_below(16)] : 0,
                         .previous = random_below(3) ? 0 : odd[random_below(16)]};
    tf_policy_choice choice = tf_policy_choose(&state, &job);
    bool possible = false, is_offered = false;
    for (size_t j = 0; j < offered; j++) {
      possible = possible || (odd[j] >= job.minimum && (!job.maximum || odd[j] <= job.maximum));
      is_offered = is_offered || odd[j] == choice.vision_tokens;
    }
    cr_assert_eq(choice.vision_tokens != 0, possible);
    if (!possible) continue;
    cr_assert(is_offered && choice.vision_tokens >= job.minimum);
    cr_assert(!job.maximum || choice.vision_tokens <= job.maximum);
    cr_assert_neq(choice.reason, TF_REASON_NONE);
  }
}

Test(policy, reason_names_go_both_ways) {
  for (int i = TF_REASON_FIXED; i <= TF_REASON_REASSIGNED; i++) {
    const char *name = tf_reason_name((tf_reason)i);
    cr_assert(strlen(name) > 0);
    cr_assert_eq(tf_reason_from_name(name, strlen(name)), (tf_reason)i);
  }
  cr_assert_eq(tf_reason_from_name("nonsense", 8), TF_REASON_NONE);
  cr_assert_str_eq(tf_reason_name((tf_reason)99), "");
}

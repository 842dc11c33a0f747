/* The sampler. In: chosen logits and settings. Out: the ids that the definitions give: greedy with ties, limits by rank
 * and by share, frequencies, seeds, logits that are no numbers. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "llm-svc/sampler.h"

enum { SIZE = 1000, DRAWS = 20000 };

static tf_candidate scratch[SIZE];

static tf_sampler make(float temperature, uint32_t top_k, float top_p, uint64_t seed) {
  tf_sampling sampling = {.temperature = temperature, .top_k = top_k, .top_p = top_p, .seed = seed};
  tf_error error = {0};
  cr_assert_eq(tf_sampling_check(&sampling, &error), TF_OK, "%s", error.text);
  return tf_sampler_make(&sampling);
}

Test(sampler, greedy_takes_the_lowest_of_equals) {
  const float logits[] = {-3, 2, 5, 5, 1};
  tf_sampler self = make(0, 0, 0, 1);
  for (int i = 0; i < 10; i++) cr_assert_eq(tf_sampler_next(&self, logits, 5, scratch), 2);
}

Test(sampler, what_is_no_number_is_never_taken) {
  const float logits[] = {NAN, -INFINITY, 1, NAN, 2};
  for (int greedy = 0; greedy < 2; greedy++) {
    tf_sampler self = make(greedy ? 0 : 1, 0, 0, 7);
    for (int i = 0; i < 200; i++) {
      int32_t id = tf_sampler_next(&self, logits, 5, scratch);
      cr_assert(id == 4 || (id == 2 && !greedy), "%d", id);
    }
    const float none[] = {NAN, -INFINITY};
    cr_assert_eq(tf_sampler_next(&self, none, 2, scratch), -1);
    const float infinite[] = {1, INFINITY, 2};
    cr_assert_eq(tf_sampler_next(&self, infinite, 3, scratch), 1);
  }
}

/* Counts of ids over many draws from log(weights). */
static void count_draws(tf_sampler *self, const double *weights, uint32_t size, int *counts) {
  float logits[16];
  for (uint32_t i = 0; i < size; i++) logits[i] = (float)log(weights[i]);
  memset(counts, 0, size * sizeof *counts);
  for (int i = 0; i < DRAWS; i++) {
    int32_t id = tf_sampler_next(self, logits, size, scratch);
    cr_assert(id >= 0 && (uint32_t)id < size);
    counts[id]++;
  }
}

/* shares: what each id must get, within five standard deviations. */
static void expect_shares(const int *counts, const double *shares, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) {
    double expected = shares[i] * DRAWS, deviation = sqrt(DRAWS * shares[i] * (1 - shares[i]));
    cr_assert_leq(fabs(counts[i] - expected), 5 * deviation, "id %u: %d instead of %g", i, counts[i], expected);
  }
}

static const double WEIGHTS[] = {0.1, 0.4, 0.05, 0.25, 0.2};

Test(sampler, draws_by_probability) {
  int counts[5];
  tf_sampler self = make(1, 0, 0, 3);
  count_draws(&self, WEIGHTS, 5, counts);
  expect_shares(counts, WEIGHTS, 5);
}

Test(sampler, temperature_sharpens) {
  int counts[5];
  double shares[5], total = 0;
  for (int i = 0; i < 5; i++) total += shares[i] = WEIGHTS[i] * WEIGHTS[i]; /* temperature 1/2 squares */
  for (int i = 0; i < 5; i++) shares[i] /= total;
  tf_sampler self = make(0.5f, 0, 0, 4);
  count_draws(&self, WEIGHTS, 5, counts);
  expect_shares(counts, shares, 5);
}

Test(sampler, top_k_keeps_the_best) {
  int counts[5];
  const double shares[] = {0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85};
  tf_sampler self = make(1, 3, 0, 5);
  count_draws(&self, WEIGHTS, 5, counts);
  expect_shares(counts, shares, 5);
  self = make(1, 1, 0, 5);
  count_draws(&self, WEIGHTS, 5, counts);
  cr_assert_eq(counts[1], DRAWS);
  self = make(1, 1000, 0, 5); /* more than there are: no limit */
  count_draws(&self, WEIGHTS, 5, counts);
  expect_shares(counts, WEIGHTS, 5);
}

Test(sampler, top_p_keeps_the_smallest_set) {
  int counts[5];
  const double shares[] = {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0};
  tf_sampler self = make(1, 0, 0.6f, 6);
  count_draws(&self, WEIGHTS, 5, counts);
  expect_shares(counts, shares, 5);
  self = make(1, 0, 0.001f, 6); /* always at least one */
  count_draws(&self, WEIGHTS, 5, counts);
  cr_assert_eq(counts[1], DRAWS);
}

Test(sampler, top_p_counts_shares_of_what_top_k_left) {
  int counts[5];
  /* Of 0.4, 0.25, 0.2 the first two are 0.76. */
  const double two[] = {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0}, three[] = {0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85};
  tf_sampler self = make(1, 3, 0.75f, 8);
  count_draws(&self, WEIGHTS, 5, counts);
  expect_shares(counts, two, 5);
  self = make(1, 3, 0.8f, 8);
  count_draws(&self, WEIGHTS, 5, counts);
  expect_shares(counts, three, 5);
}

Test(sampler, limits_of_rank_match_a_full_sort) {
  float logits[SIZE];
  for (int i = 0; i < SIZE; i++) logits[i] = (float)((i * 7919) % 500) / 50.0f; /* every value twice */
  for (uint32_t k = 1; k <= 40; k += 3) {
    tf_sampler self = make(50, k, 0, k);
    for (int i = 0; i < 300; i++) {
      int32_t id = tf_sampler_next(&self, logits, SIZE, scratch);
      uint32_t better = 0;
      for (int j = 0; j < SIZE; j++) better += logits[j] > logits[id] || (logits[j] == logits[id] && j < id);
      cr_assert_lt(better, k, "rank %u with top_k %u", better, k);
    }
  }
}

Test(sampler, the_seed_decides) {
  float logits[SIZE];
  for (int i = 0; i < SIZE; i++) logits[i] = (float)(i % 13);
  tf_sampler a = make(1, 0, 0.9f, 42), b = make(1, 0, 0.9f, 42), c = make(1, 0, 0.9f, 43);
  int differences = 0;
  for (int i = 0; i < 100; i++) {
    int32_t id = tf_sampler_next(&a, logits, SIZE, scratch);
    cr_assert_eq(id, tf_sampler_next(&b, logits, SIZE, scratch));
    differences += id != tf_sampler_next(&c, logits, SIZE, scratch);
  }
  cr_assert_gt(differences, 50);
}

Test(sampler, settings_out_of_range_are_refused) {
  const tf_sampling bad[] = {{.temperature = -0.1f},
                             {.temperature = NAN},
                             {.temperature = INFINITY},
                             {.top_p = -0.1f},
                             {.top_p = 1.1f},
                             {.top_p = NAN},
                             {.max_new_tokens = TF_NEW_TOKENS_MAX + 1}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    tf_error error = {0};
    cr_assert_eq(tf_sampling_check(&bad[i], &error), TF_ERR_FIELD_INVALID, "%zu", i);
    cr_assert_gt(strlen(error.text), 0);
  }
}

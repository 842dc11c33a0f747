/* Tests of common/fit.c and of the two meters. In: steps and batches of made-up machines. Out: the costs that were put
 * in, for token counts that were seen and for some that were not. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/fit.h"
#include "encoder-svc/meter.h"
#include "llm-svc/meter.h"

static uint64_t seed = 88172645463325252u;
static double random_unit(void) {
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return (double)(seed >> 11) / 9007199254740992.0;
}
static bool near(double got, double want, double share) {
  return fabs(got - want) <= share * fabs(want);
}

Test(fit, finds_the_costs_of_every_term) {
  static const double penalty[4] = {1e-6, 1e-6, 1e-6, 1e-6}, truth[4] = {20, 0.7, 3, 0.002};
  tf_fit fit;
  tf_fit_init(&fit, 4, penalty);
  for (int i = 0; i < 400; i++) {
    double x[4] = {1, 300 * random_unit(), 1 + 15 * random_unit(), 20000 * random_unit()}, total = 0;
    for (int j = 0; j < 4; j++) total += truth[j] * x[j];
    tf_fit_add(&fit, x, total * (0.98 + 0.04 * random_unit()), 0.99);
  }
  double cost[4];
  tf_fit_solve(&fit, cost);
  for (int j = 0; j < 4; j++) cr_assert(near(cost[j], truth[j], 0.1), "term %d: %g, not %g", j, cost[j], truth[j]);
}

Test(fit, forgets_what_is_long_ago) {
  static const double penalty[1] = {1e-6};
  tf_fit fit;
  tf_fit_init(&fit, 1, penalty);
  double x = 2, cost;
  for (int i = 0; i < 100; i++) tf_fit_add(&fit, &x, 10, 0.9);
  for (int i = 0; i < 100; i++) tf_fit_add(&fit, &x, 40, 0.9);
  tf_fit_solve(&fit, &cost);
  cr_assert(near(cost, 20, 0.01), "%g", cost);
}

Test(fit, no_cost_is_negative_and_none_is_made_up) {
  static const double penalty[2] = {1e-6, 1e-6};
  tf_fit fit;
  tf_fit_init(&fit, 2, penalty);
  double cost[2] = {7, 7};
  tf_fit_solve(&fit, cost);
  cr_assert(cost[0] == 0 && cost[1] == 0, "nothing seen");
  double few[2] = {1, 1}, many[2] = {1, 10}; /* more of the second takes less: that is noise, not a cost below zero */
  for (int i = 0; i < 50; i++) tf_fit_add(&fit, few, 30, 1), tf_fit_add(&fit, many, 20, 1);
  tf_fit_solve(&fit, cost);
  cr_assert(cost[1] == 0 && near(cost[0], 25, 0.01), "%g %g", cost[0], cost[1]);
  uint64_t count = fit.count;
  double bad[2] = {1, NAN}, below[2] = {-1, 1};
  tf_fit_add(&fit, bad, 1, 1);
  tf_fit_add(&fit, below, 1, 1);
  tf_fit_add(&fit, few, INFINITY, 1);
  tf_fit_add(&fit, few, -1, 1);
  cr_assert_eq(fit.count, count, "unsound values are left out");
}

Test(fit, survives_any_sums) {
  static const double penalty[4] = {1e-6, 1e-3, 1e-3, 1e-6};
  for (int round = 0; round < 300; round++) {
    tf_fit fit;
    double keep = 0.5 + 0.5 * random_unit();
    tf_fit_init(&fit, 4, penalty);
    for (int i = 0; i < 30; i++) {
      double x[4];
      for (int j = 0; j < 4; j++) x[j] = random_unit() < 0.3 ? 0 : pow(10, 16 * random_unit() - 8);
      tf_fit_add(&fit, x, pow(10, 16 * random_unit() - 8), keep);
    }
    double cost[4];
    tf_fit_solve(&fit, cost);
    for (int j = 0; j < 4; j++) cr_assert(isfinite(cost[j]) && cost[j] >= 0);
  }
}

/* ---- the LLM's meter ---- */

enum { OTHER = 20, WRITTEN = 12, BATCH_MAX = 16 };
static const double FIXED_MS = 20, ROW_MS = 0.8, DECODED_MS = 1.2, ATTENDED_MS = 0.0005;
static const uint32_t counts[3] = {64, 144, 256};

static double step_ms(const tf_llm_step_cost *cost) {
  return FIXED_MS + ROW_MS * (cost->prompt_rows + cost->decoded) + DECODED_MS * cost->decoded +
         ATTENDED_MS * (double)cost->attended;
}

/* What a job costs on the made-up machine when `batch` run at once. */
static double true_service(uint32_t n, double batch) {
  double prompt = n + OTHER;
  double context = prompt + WRITTEN / 2.0;
  return ROW_MS * prompt + ATTENDED_MS * prompt * (prompt + 1) / 2 +
         WRITTEN * (FIXED_MS / batch + ROW_MS + DECODED_MS + ATTENDED_MS * context);
}

/* Runs captions through the meter, `batch` at a time, of the counts given. */
static void run_captions(tf_llm_meter *meter, int captions, uint32_t batch, const uint32_t *of, size_t of_count) {
  for (int done = 0; done < captions;) {
    uint32_t n[BATCH_MAX];
    for (uint32_t i = 0; i < batch; i++) {
      n[i] = of[(size_t)(random_unit() * (double)of_count) % of_count];
      uint32_t prompt = n[i] + OTHER;
      tf_llm_meter_asked(meter, 40);
      tf_llm_step_cost cost = {prompt, i, (uint64_t)prompt * (prompt + 1) / 2};
      for (uint32_t j = 0; j < i; j++) cost.attended += n[j] + OTHER + 1;
      tf_llm_meter_step(meter, &cost, step_ms(&cost) * (0.95 + 0.1 * random_unit()));
    }
    for (int step = 0; step < WRITTEN; step++) {
      tf_llm_step_cost cost = {.decoded = batch};
      for (uint32_t j = 0; j < batch; j++) cost.attended += n[j] + OTHER + (uint32_t)step;
      tf_llm_meter_step(meter, &cost, step_ms(&cost) * (0.95 + 0.1 * random_unit()));
    }
    for (uint32_t i = 0; i < batch; i++, done++) tf_llm_meter_done(meter, n[i], n[i] + OTHER, WRITTEN);
  }
}

Test(llm_meter, says_nothing_before_the_first_token) {
  tf_llm_meter meter;
  float service[3], latency[3];
  tf_llm_meter_init(&meter, BATCH_MAX, 16384);
  cr_assert(!tf_llm_meter_read(&meter, counts, 3, service, latency));
  tf_llm_step_cost cost = {.prompt_rows = 100, .attended = 5050};
  tf_llm_meter_step(&meter, &cost, 100);
  cr_assert(!tf_llm_meter_read(&meter, counts, 3, service, latency));
  tf_llm_step_cost both = {.prompt_rows = 100, .decoded = 1, .attended = 5150};
  tf_llm_meter_step(&meter, &both, 110);
  cr_assert(tf_llm_meter_read(&meter, counts, 3, service, latency), "a first idea, before a caption has ended");
  for (int i = 0; i < 3; i++) cr_assert(isfinite(service[i]) && service[i] > 0 && latency[i] > 0);
  cr_assert(service[0] < service[2]);
  tf_llm_meter_done(&meter, 64, 84, 0); /* a caption without a token */
  cr_assert(tf_llm_meter_read(&meter, counts, 3, service, latency));
  for (int i = 0; i < 3; i++) cr_assert(isfinite(service[i]) && service[i] > 0 && latency[i] > 0);
}

Test(llm_meter, a_full_batch_tells_every_count) {
  tf_llm_meter meter;
  float service[3], latency[3];
  tf_llm_meter_init(&meter, BATCH_MAX, 16384);
  run_captions(&meter, 320, BATCH_MAX, counts, 3);
  cr_assert(tf_llm_meter_read(&meter, counts, 3, service, latency));
  for (int i = 0; i < 3; i++) {
    double want = true_service(counts[i], BATCH_MAX);
    cr_assert(near(service[i], want, 0.1), "%u: %g, not %g", counts[i], service[i], want);
    cr_assert(latency[i] > service[i], "a batch takes longer than its share");
  }
}

Test(llm_meter, lone_captions_of_one_count_tell_the_others_roughly) {
  static const uint32_t largest[1] = {256};
  tf_llm_meter meter;
  float service[3], latency[3];
  tf_llm_meter_init(&meter, BATCH_MAX, 16384);
  run_captions(&meter, 60, 1, largest, 1);
  cr_assert(tf_llm_meter_read(&meter, counts, 3, service, latency));
  cr_assert(service[0] < service[1] && service[1] < service[2], "more tokens cost more");
  for (int i = 0; i < 3; i++) {
    double want = true_service(counts[i], BATCH_MAX);
    cr_assert(near(service[i], want, 0.35), "%u: %g, not %g", counts[i], service[i], want);
  }
  double alone = 0; /* prompt in one step, then its tokens */
  tf_llm_step_cost prompt = {276, 0, 276 * 277 / 2};
  alone += step_ms(&prompt);
  for (int step = 0; step < WRITTEN; step++)
    alone += step_ms(&(tf_llm_step_cost){.decoded = 1, .attended = 276 + (uint64_t)step});
  tf_llm_meter_idle(&meter);
  tf_llm_meter_read(&meter, counts, 3, service, latency);
  cr_assert(near(latency[2], alone, 0.15), "%g, not %g", latency[2], alone);
}

Test(llm_meter, a_small_cache_makes_batches_small) {
  tf_llm_meter wide, narrow;
  float service[2][3], latency[3];
  tf_llm_meter_init(&wide, BATCH_MAX, 16384);
  tf_llm_meter_init(&narrow, BATCH_MAX, 640); /* two of 256 tokens */
  run_captions(&wide, 160, 2, counts, 3);
  narrow.fit = wide.fit, narrow.captions = 1;
  narrow.other_tokens = wide.other_tokens, narrow.new_tokens = wide.new_tokens;
  narrow.new_tokens_max = wide.new_tokens_max;
  tf_llm_meter_read(&wide, counts, 3, service[0], latency);
  tf_llm_meter_read(&narrow, counts, 3, service[1], latency);
  cr_assert(near(service[1][2], true_service(256, 640.0 / 316), 0.15), "%g", service[1][2]);
  cr_assert(service[1][2] > 1.2 * service[0][2], "%g %g", service[1][2], service[0][2]);
}

Test(llm_meter, one_stall_changes_little) {
  tf_llm_meter meter;
  float before[3], after[3], latency[3];
  tf_llm_meter_init(&meter, BATCH_MAX, 16384);
  run_captions(&meter, 160, BATCH_MAX, counts, 3);
  tf_llm_meter_read(&meter, counts, 3, before, latency);
  tf_llm_step_cost cost = {.decoded = BATCH_MAX, .attended = BATCH_MAX * 150};
  tf_llm_meter_step(&meter, &cost, 60000);
  tf_llm_meter_read(&meter, counts, 3, after, latency);
  for (int i = 0; i < 3; i++) cr_assert(after[i] < 1.5f * before[i], "%g to %g", before[i], after[i]);
}

/* ---- the encoder's meter ---- */

Test(encoder_meter, tells_full_batches_from_small_ones) {
  tf_encoder_meter meter;
  float service[3], latency[3];
  tf_encoder_meter_init(&meter, 4, 2);
  cr_assert(!tf_encoder_meter_read(&meter, counts, 3, service, latency));
  for (int i = 0; i < 200; i++) {
    int images = 1 + i % 3; /* never a full one */
    tf_encoder_meter_decoded(&meter, 12);
    tf_encoder_meter_fetched(&meter, 5);
    tf_encoder_meter_batch(&meter, images, (uint64_t)images * counts[i / 3 % 3],
                           (30 + 80.0 * images) * (0.97 + 0.06 * random_unit()));
  }
  cr_assert(tf_encoder_meter_read(&meter, counts, 3, service, latency));
  for (int i = 0; i < 3; i++) {
    cr_assert(near(service[i], 80 + 30 / 4.0, 0.08), "%u: %g", counts[i], service[i]);
    cr_assert(latency[i] > 80 + 30 + 12 + 5 - 10, "%g", latency[i]);
  }
}

Test(encoder_meter, slow_decoding_is_what_a_full_worker_waits_for) {
  tf_encoder_meter meter;
  float service[3], latency[3];
  tf_encoder_meter_init(&meter, 4, 2);
  for (int i = 0; i < 100; i++) {
    tf_encoder_meter_decoded(&meter, 500);
    tf_encoder_meter_batch(&meter, 1, 64, 40);
  }
  cr_assert(tf_encoder_meter_read(&meter, counts, 3, service, latency));
  for (int i = 0; i < 3; i++) cr_assert(near(service[i], 250, 0.01), "%g", service[i]);
}

Test(encoder_meter, follows_a_machine_that_became_slower) {
  tf_encoder_meter meter;
  float service[1], latency[1];
  tf_encoder_meter_init(&meter, 4, 2);
  for (int i = 0; i < 1500; i++) tf_encoder_meter_batch(&meter, 1 + i % 4, 256, 10 + 20.0 * (1 + i % 4));
  for (int i = 0; i < 1500; i++) tf_encoder_meter_batch(&meter, 1 + i % 4, 256, 30 + 60.0 * (1 + i % 4));
  cr_assert(tf_encoder_meter_read(&meter, counts, 1, service, latency));
  cr_assert(near(service[0], 60 + 30 / 4.0, 0.1), "%g", service[0]);
}

/* Projection 0.01 ms a token, the ViT 20 ms an image and 8 a pass, decoding 30 ms on two threads. */
Test(encoder_meter, pictures_seen_before_cost_their_projection) {
  tf_encoder_meter meter;
  float service[3], latency[3], none[3];
  tf_encoder_meter_init(&meter, 4, 2);
  for (int i = 0; i < 400; i++) {
    int images = 1 + i % 4;
    uint32_t tokens = counts[i % 3];
    for (int k = 0; k < images; k++) tf_encoder_meter_decoded(&meter, 30);
    tf_encoder_meter_batch(&meter, images, (uint64_t)images * tokens, 8 + images * (20 + 0.01 * tokens));
  }
  cr_assert(tf_encoder_meter_read(&meter, counts, 3, none, latency));
  for (int i = 0; i < 3; i++) cr_assert(near(none[i], 22 + 0.01 * counts[i], 0.05), "%g", none[i]);
  for (int i = 0; i < 4000; i++) { /* three of four were seen before */
    uint32_t tokens = counts[i % 3];
    if (i % 4)
      tf_encoder_meter_cached(&meter, tokens, 0.01 * tokens);
    else
      tf_encoder_meter_batch(&meter, 1, tokens, 8 + 20 + 0.01 * tokens);
  }
  cr_assert(tf_encoder_meter_read(&meter, counts, 3, service, latency));
  for (int i = 0; i < 3; i++)
    cr_assert(near(service[i], 22 * 0.25 + 0.01 * counts[i], 0.25), "%u: %g", counts[i], service[i]);
  for (int i = 0; i < 3; i++) cr_assert(latency[i] > 28, "a picture that is new takes as long as ever: %g", latency[i]);
}

/* Tests of router/history.c. In: samples, waits. Out: rings that forget the oldest, percentiles by nearest rank. */
#include <criterion/criterion.h>
#include <math.h>

#include "router/history.h"

static tf_history history;

static void add(int count) {
  for (int i = 0; i < count; i++) {
    tf_sample sample = {.at_ms = (int64_t)history.count + 1};
    tf_history_add(&history, &sample);
  }
}

Test(history, an_empty_one_has_nothing) {
  cr_assert_eq(tf_history_first(&history, 0), 1);
  cr_assert_null(tf_history_at(&history, 0));
  cr_assert_null(tf_history_at(&history, 1));
}

Test(history, samples_are_numbered_from_one) {
  add(3);
  cr_assert_eq(tf_history_first(&history, 0), 1);
  cr_assert_eq(tf_history_first(&history, 2), 3);
  cr_assert_eq(tf_history_first(&history, 3), 4); /* nothing new */
  cr_assert_null(tf_history_at(&history, 4));
  for (uint64_t at = 1; at <= 3; at++) cr_assert_eq(tf_history_at(&history, at)->at_ms, (int64_t)at);
}

Test(history, the_oldest_go) {
  add(TF_HISTORY_STEPS + 7);
  cr_assert_eq(tf_history_first(&history, 0), 8);
  cr_assert_eq(tf_history_first(&history, 3), 8); /* what lies between is lost */
  cr_assert_null(tf_history_at(&history, 7));
  cr_assert_eq(tf_history_at(&history, 8)->at_ms, 8);
  cr_assert_eq(tf_history_at(&history, TF_HISTORY_STEPS + 7)->at_ms, TF_HISTORY_STEPS + 7);
}

Test(history, a_number_of_an_earlier_router_counts_as_none) {
  add(5);
  cr_assert_eq(tf_history_first(&history, 6), 1);
  cr_assert_eq(tf_history_first(&history, UINT64_MAX), 1);
}

static tf_waits waits;

Test(waits, none_is_not_a_number) {
  float p50, p95;
  cr_assert_eq(tf_waits_percentiles(&waits, 1000, 60000, &p50, &p95), 0);
  cr_assert(isnan(p50) && isnan(p95));
  tf_waits_add(&waits, 1000, 5);
  cr_assert_eq(tf_waits_percentiles(&waits, 61001, 60000, &p50, &p95), 0); /* too old */
  cr_assert(isnan(p50) && isnan(p95));
}

Test(waits, nearest_ranks) {
  float p50, p95;
  for (int i = 100; i >= 1; i--) tf_waits_add(&waits, 1000, i);
  cr_assert_eq(tf_waits_percentiles(&waits, 1000, 60000, &p50, &p95), 100);
  cr_assert_eq(p50, 50);
  cr_assert_eq(p95, 95);
  tf_waits_add(&waits, 99000, 7);
  cr_assert_eq(tf_waits_percentiles(&waits, 99000, 60000, &p50, &p95), 1);
  cr_assert(p50 == 7 && p95 == 7);
}

Test(waits, only_the_last_are_kept_and_nonsense_is_zero) {
  float p50, p95;
  for (int i = 0; i < TF_HISTORY_WAITS; i++) tf_waits_add(&waits, 1000, 1e9);
  for (int i = 0; i < TF_HISTORY_WAITS; i++) tf_waits_add(&waits, 1000, i % 2 ? NAN : -3);
  cr_assert_eq(tf_waits_percentiles(&waits, 1000, 60000, &p50, &p95), TF_HISTORY_WAITS);
  cr_assert(p50 == 0 && p95 == 0);
}

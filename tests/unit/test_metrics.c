/* Tests of common/metrics.c.
 * In: increments. Out: the Prometheus page, compared as text.
 * Families stay together however their series were made; too many series cost nothing but a counter. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/metrics.h"

static tf_buffer page;

static const char *write_page(tf_metrics *metrics) {
  tf_buffer_init(&page, 1 << 20);
  tf_metrics_write(metrics, &page);
  cr_assert_not(page.overflow);
  return page.data ? page.data : "";
}

Test(metrics, counters_and_gauges_by_family) {
  tf_metrics *metrics = tf_metrics_new();
  tf_metric *llm = tf_metrics_counter(metrics, "jobs_total", "tier=\"llm\"", "Jobs done");
  tf_metric *depth = tf_metrics_gauge(metrics, "depth", "", "A \\ and\na line");
  tf_metric *encoder = tf_metrics_counter(metrics, "jobs_total", "tier=\"encoder\"", "Jobs done");
  cr_assert_eq(tf_metrics_counter(metrics, "jobs_total", "tier=\"llm\"", "Jobs done"), llm);
  tf_metric_add(llm, 2);
  tf_metric_add(llm, 1);
  tf_metric_add(encoder, 1e6);
  tf_metric_set(depth, 5);
  tf_metric_add(depth, -1.5);
  cr_assert_str_eq(write_page(metrics), "# HELP jobs_total Jobs done\n# TYPE jobs_total counter\n"
                                        "jobs_total{tier=\"llm\"} 3\njobs_total{tier=\"encoder\"} 1000000\n"
                                        "# HELP depth A \\\\ and\\na line\n# TYPE depth gauge\ndepth 3.5\n");
  tf_buffer_free(&page);
  tf_metrics_free(&metrics);
  cr_assert_null(metrics);
}

Test(metrics, histogram_is_cumulative) {
  tf_metrics *metrics = tf_metrics_new();
  const double bounds[] = {0.5, 1, 10};
  tf_metric *times = tf_metrics_histogram(metrics, "ms", "stage=\"decode\"", "Time", bounds, 3);
  const double values[] = {0.25, 0.5, 0.75, 2, 100};
  for (int i = 0; i < 5; i++) tf_metric_observe(times, values[i]);
  cr_assert_str_eq(write_page(metrics),
                   "# HELP ms Time\n# TYPE ms histogram\n"
                   "ms_bucket{stage=\"decode\",le=\"0.5\"} 2\nms_bucket{stage=\"decode\",le=\"1\"} 3\n"
                   "ms_bucket{stage=\"decode\",le=\"10\"} 4\nms_bucket{stage=\"decode\",le=\"+Inf\"} 5\n"
                   "ms_sum{stage=\"decode\"} 103.5\nms_count{stage=\"decode\"} 5\n");
  tf_buffer_free(&page);
  tf_metrics_free(&metrics);
}

Test(metrics, too_many_series_share_one) {
  tf_metrics *metrics = tf_metrics_new();
  tf_metric *last = NULL;
  for (int i = 0; i < TF_METRICS_SERIES_MAX; i++) {
    char labels[32];
    snprintf(labels, sizeof labels, "n=\"%d\"", i);
    tf_metric *made = tf_metrics_gauge(metrics, "g", labels, "");
    cr_assert_neq(made, last);
    last = made;
  }
  const double bound = 1;
  tf_metric *refused = tf_metrics_histogram(metrics, "h", "", "", &bound, 1);
  cr_assert_not_null(refused);
  cr_assert_eq(tf_metrics_counter(metrics, "c", "", ""), refused);
  tf_metric_observe(refused, 3);
  tf_metric_add(refused, 3);
  cr_assert_eq(tf_metrics_gauge(metrics, "g", "n=\"7\"", ""), tf_metrics_gauge(metrics, "g", "n=\"7\"", ""));
  cr_assert_not_null(strstr(write_page(metrics), "\ntokenflex_metrics_refused_total 2\n"));
  cr_assert_null(strstr(page.data, "\nc "));
  tf_buffer_free(&page);
  tf_metrics_free(&metrics);
}

Test(metrics, one_name_has_one_kind) {
  tf_metrics *metrics = tf_metrics_new();
  tf_metric *counter = tf_metrics_counter(metrics, "x", "", "");
  cr_assert_neq(tf_metrics_gauge(metrics, "x", "", ""), counter);
  write_page(metrics);
  cr_assert_null(strstr(page.data, "x gauge"));
  tf_buffer_free(&page);
  tf_metrics_free(&metrics);
}

static void *count(void *context) {
  for (int i = 0; i < 20000; i++) tf_metric_add(context, 1);
  return NULL;
}

Test(metrics, threads_lose_no_increment) {
  tf_metrics *metrics = tf_metrics_new();
  tf_metric *counter = tf_metrics_counter(metrics, "n", "", "");
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, count, counter);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  cr_assert_not_null(strstr(write_page(metrics), "\nn 80000\n"));
  tf_buffer_free(&page);
  tf_metrics_free(&metrics);
}

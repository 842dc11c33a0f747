/* Counters, gauges and histograms, written out in the Prometheus text format.
 * In: increments from any thread (atomic). Out: one text page. A registry is owned by the program that made it. */
#ifndef TF_COMMON_METRICS_H
#define TF_COMMON_METRICS_H

#include "common/buffer.h"

typedef struct tf_metrics tf_metrics;
typedef struct tf_metric tf_metric; /* one time series; lives as long as the registry */

enum { TF_METRICS_SERIES_MAX = 1024 };

tf_metrics *tf_metrics_new(void);
void tf_metrics_free(tf_metrics **self);
/* name: "tokenflex_jobs_total"; labels: "tier=\"llm\"" or "" . The same name and labels give the same series.
 * Past TF_METRICS_SERIES_MAX every call gives one shared overflow series, never NULL. */
tf_metric *tf_metrics_counter(tf_metrics *self, const char *name, const char *labels, const char *help);
tf_metric *tf_metrics_gauge(tf_metrics *self, const char *name, const char *labels, const char *help);
/* bounds: ascending upper bounds, copied; +Inf is added. */
tf_metric *tf_metrics_histogram(tf_metrics *self, const char *name, const char *labels, const char *help,
                                const double *bounds, size_t bound_count);
void tf_metric_add(tf_metric *self, double value);     /* counter, gauge */
void tf_metric_set(tf_metric *self, double value);     /* gauge */
void tf_metric_observe(tf_metric *self, double value); /* histogram */
void tf_metrics_write(tf_metrics *self, tf_buffer *out);

#endif

/* Counters, gauges and histograms, written out in the Prometheus text format.
 * In: increments from any thread (lock-free). Out: one text page, one family (name) after the other.
 * Families and series are only ever added, at the end of linked lists, under one mutex. */
#include "common/metrics.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BOUNDS_MAX = 64, NAME_BYTES_MAX = 128, LABELS_BYTES_MAX = 512, HELP_BYTES_MAX = 512 };

typedef enum metric_kind { COUNTER, GAUGE, HISTOGRAM } metric_kind;

struct tf_metric {
  tf_metric *next;
  char *labels;
  _Atomic double value; /* counter and gauge; the sum of a histogram */
  size_t bound_count;
  double *bounds;
  atomic_uint_fast64_t *counts; /* bound_count + 1, not cumulative */
};

typedef struct family {
  struct family *next;
  metric_kind kind;
  char *name, *help;
  tf_metric *first, *last;
} family;

struct tf_metrics {
  pthread_mutex_t mutex;
  family *first, *last;
  size_t series_count;
  tf_metric overflow; /* what a call past the maximum gets; its values are shown nowhere */
  atomic_uint_fast64_t overflow_count;
  atomic_uint_fast64_t overflow_observations;
};

tf_metrics *tf_metrics_new(void) {
  tf_metrics *self = calloc(1, sizeof *self);
  if (!self) return NULL;
  if (pthread_mutex_init(&self->mutex, NULL) != 0) {
    free(self);
    return NULL;
  }
  self->overflow.counts = &self->overflow_observations;
  return self;
}

static void free_series(tf_metric *series) {
  free(series->labels);
  free(series->bounds);
  free(series->counts);
  free(series);
}

void tf_metrics_free(tf_metrics **self) {
  if (!self || !*self) return;
  for (family *group = (*self)->first, *next; group; group = next) {
    next = group->next;
    for (tf_metric *series = group->first, *following; series; series = following) {
      following = series->next;
      free_series(series);
    }
    free(group->name);
    free(group->help);
    free(group);
  }
  pthread_mutex_destroy(&(*self)->mutex);
  free(*self);
  *self = NULL;
}

static family *find_or_add_family(tf_metrics *self, metric_kind kind, const char *name, const char *help) {
  for (family *group = self->first; group; group = group->next) {
    if (strcmp(group->name, name) == 0) return group->kind == kind ? group : NULL;
  }
  family *group = calloc(1, sizeof *group);
  if (!group) return NULL;
  group->kind = kind;
  group->name = strndup(name, NAME_BYTES_MAX);
  group->help = strndup(help ? help : "", HELP_BYTES_MAX);
  if (!group->name || !group->help) {
    free(group->name);
    free(group->help);
    free(group);
    return NULL;
  }
  if (self->last)
    self->last->next = group;
  else
    self->first = group;
  self->last = group;
  return group;
}

static tf_metric *make_series(const char *labels, const double *bounds, size_t bound_count) {
  tf_metric *series = calloc(1, sizeof *series);
  if (!series) return NULL;
  series->labels = strdup(labels);
  series->bound_count = bound_count;
  series->bounds = calloc(bound_count + 1, sizeof *series->bounds);
  series->counts = calloc(bound_count + 1, sizeof *series->counts);
  if (!series->labels || !series->bounds || !series->counts) {
    free_series(series);
    return NULL;
  }
  if (bound_count > 0) memcpy(series->bounds, bounds, bound_count * sizeof *bounds);
  return series;
}

/* Call with the mutex held. NULL: full, out of memory, or the name is of another kind. */
static tf_metric *find_or_add(tf_metrics *self, metric_kind kind, const char *name, const char *labels,
                              const char *help, const double *bounds, size_t bound_count) {
  if (strlen(name) > NAME_BYTES_MAX || strlen(labels) > LABELS_BYTES_MAX || bound_count > BOUNDS_MAX) return NULL;
  for (const family *group = self->first; group; group = group->next) {
    if (strcmp(group->name, name) != 0 || group->kind != kind) continue;
    for (tf_metric *series = group->first; series; series = series->next) {
      if (strcmp(series->labels, labels) == 0) return series;
    }
  }
  if (self->series_count == TF_METRICS_SERIES_MAX) return NULL;
  family *group = find_or_add_family(self, kind, name, help);
  tf_metric *series = group ? make_series(labels, bounds, bound_count) : NULL;
  if (!series) return NULL;
  if (group->last)
    group->last->next = series;
  else
    group->first = series;
  group->last = series;
  self->series_count++;
  return series;
}

static tf_metric *get(tf_metrics *self, metric_kind kind, const char *name, const char *labels, const char *help,
                      const double *bounds, size_t bound_count) {
  pthread_mutex_lock(&self->mutex);
  tf_metric *series = find_or_add(self, kind, name, labels ? labels : "", help, bounds, bound_count);
  pthread_mutex_unlock(&self->mutex);
  if (series) return series;
  atomic_fetch_add(&self->overflow_count, 1);
  return &self->overflow;
}

tf_metric *tf_metrics_counter(tf_metrics *self, const char *name, const char *labels, const char *help) {
  return get(self, COUNTER, name, labels, help, NULL, 0);
}

tf_metric *tf_metrics_gauge(tf_metrics *self, const char *name, const char *labels, const char *help) {
  return get(self, GAUGE, name, labels, help, NULL, 0);
}

tf_metric *tf_metrics_histogram(tf_metrics *self, const char *name, const char *labels, const char *help,
                                const double *bounds, size_t bound_count) {
  return get(self, HISTOGRAM, name, labels, help, bounds, bound_count);
}

void tf_metric_add(tf_metric *self, double value) {
  double before = atomic_load_explicit(&self->value, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&self->value, &before, before + value, memory_order_relaxed,
                                                memory_order_relaxed))
    continue;
}

void tf_metric_set(tf_metric *self, double value) {
  atomic_store_explicit(&self->value, value, memory_order_relaxed);
}

void tf_metric_observe(tf_metric *self, double value) {
  size_t bucket = 0;
  while (bucket < self->bound_count && value > self->bounds[bucket]) bucket++;
  atomic_fetch_add_explicit(&self->counts[bucket], 1, memory_order_relaxed);
  tf_metric_add(self, value);
}

static void write_number(tf_buffer *out, double value) {
  if (isnan(value))
    tf_buffer_printf(out, "NaN");
  else if (isinf(value))
    tf_buffer_printf(out, value > 0 ? "+Inf" : "-Inf");
  else if (value == floor(value) && fabs(value) < 1e15)
    tf_buffer_printf(out, "%.0f", value);
  else
    tf_buffer_printf(out, "%.10g", value);
}

static void write_help(tf_buffer *out, const char *help) {
  for (; *help; help++) {
    if (*help == '\\')
      tf_buffer_append(out, "\\\\", 2);
    else if (*help == '\n')
      tf_buffer_append(out, "\\n", 2);
    else
      tf_buffer_append(out, help, 1);
  }
}

/* name suffix { labels, le="bound" } and a space; braces only where there is something inside. */
static void write_series_name(tf_buffer *out, const char *name, const char *suffix, const char *labels,
                              const double *bound) {
  tf_buffer_printf(out, "%s%s", name, suffix);
  if (labels[0] || bound) {
    tf_buffer_printf(out, "{%s%s", labels, labels[0] && bound ? "," : "");
    if (bound) {
      tf_buffer_printf(out, "le=\"");
      write_number(out, *bound);
      tf_buffer_printf(out, "\"");
    }
    tf_buffer_printf(out, "}");
  }
  tf_buffer_printf(out, " ");
}

static void write_histogram(tf_buffer *out, const char *name, tf_metric *series) {
  uint64_t total = 0;
  for (size_t i = 0; i <= series->bound_count; i++) {
    double bound = i < series->bound_count ? series->bounds[i] : INFINITY;
    total += atomic_load_explicit(&series->counts[i], memory_order_relaxed);
    write_series_name(out, name, "_bucket", series->labels, &bound);
    tf_buffer_printf(out, "%llu\n", (unsigned long long)total);
  }
  write_series_name(out, name, "_sum", series->labels, NULL);
  write_number(out, atomic_load_explicit(&series->value, memory_order_relaxed));
  tf_buffer_printf(out, "\n");
  write_series_name(out, name, "_count", series->labels, NULL);
  tf_buffer_printf(out, "%llu\n", (unsigned long long)total);
}

void tf_metrics_write(tf_metrics *self, tf_buffer *out) {
  static const char *const kind_names[] = {"counter", "gauge", "histogram"};
  pthread_mutex_lock(&self->mutex);
  for (const family *group = self->first; group; group = group->next) {
    tf_buffer_printf(out, "# HELP %s ", group->name);
    write_help(out, group->help);
    tf_buffer_printf(out, "\n# TYPE %s %s\n", group->name, kind_names[group->kind]);
    for (tf_metric *series = group->first; series; series = series->next) {
      if (group->kind == HISTOGRAM) {
        write_histogram(out, group->name, series);
        continue;
      }
      write_series_name(out, group->name, "", series->labels, NULL);
      write_number(out, atomic_load_explicit(&series->value, memory_order_relaxed));
      tf_buffer_printf(out, "\n");
    }
  }
  pthread_mutex_unlock(&self->mutex);
  uint64_t refused = atomic_load(&self->overflow_count);
  if (refused > 0) {
    tf_buffer_printf(out,
                     "# HELP tokenflex_metrics_refused_total Series that were not made (too many, or of two kinds)\n"
                     "# TYPE tokenflex_metrics_refused_total counter\ntokenflex_metrics_refused_total %llu\n",
                     (unsigned long long)refused);
  }
}

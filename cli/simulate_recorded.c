/* A recorded run: its arrivals for the simulator, its results to stand beside the simulated ones.
 * In: a file of lines, numbers (seconds) or JSON objects. Out: arrays in the order of arrival; a result row.
 * Times count from the first arrival. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/simulate.h"
#include "policy/histogram.h"

enum { LINE_BYTES_MAX = 1 << 20 };

typedef struct recorded_job {
  double arrived_s, finished_s, wait_s;
  uint32_t vision_tokens;
} recorded_job;

static double number_of(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  return json_is_number(value) ? json_number_value(value) : NAN;
}

static bool parse_object(const char *line, size_t size, recorded_job *out) {
  json_t *object = json_loadb(line, size, 0, NULL);
  out->arrived_s = number_of(object, "arrived_s");
  out->finished_s = number_of(object, "finished_s");
  out->wait_s = number_of(object, "wait_ms") / 1000;
  double tokens = number_of(object, "vision_tokens");
  out->vision_tokens = tokens >= 1 && tokens <= UINT32_MAX ? (uint32_t)tokens : 0;
  json_decref(object);
  return isfinite(out->arrived_s);
}

static bool parse_line(const char *line, size_t size, recorded_job *out) {
  if (line[0] == '{') return parse_object(line, size, out);
  char *end;
  *out = (recorded_job){.arrived_s = strtod(line, &end), .finished_s = NAN, .wait_s = NAN};
  return end != line && (*end == 0 || *end == '\n' || *end == '\r') && isfinite(out->arrived_s);
}

static int by_arrival(const void *a, const void *b) {
  double left = ((const recorded_job *)a)->arrived_s, right = ((const recorded_job *)b)->arrived_s;
  return left < right ? -1 : left > right;
}

static tf_code read_jobs(FILE *file, const char *path, recorded_job **jobs, size_t *count, tf_error *error) {
  char *line = malloc(LINE_BYTES_MAX);
  if (!line) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to read %s", path);
  size_t capacity = 0, number = 0;
  tf_code code = TF_OK;
  while (code == TF_OK && fgets(line, LINE_BYTES_MAX, file)) {
    number++;
    size_t size = strlen(line);
    if (strspn(line, " \t\r\n") == size) continue;
    if (*count == capacity) {
      capacity = capacity ? 2 * capacity : 4096;
      recorded_job *grown = *count < TF_TRACE_JOBS_MAX ? realloc(*jobs, capacity * sizeof *grown) : NULL;
      if (!grown) {
        code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "%s: no memory for more than %zu jobs", path, *count);
        break;
      }
      *jobs = grown;
    }
    if (*jobs && parse_line(line, size, &(*jobs)[*count]))
      ++*count;
    else
      code = tf_fail(error, TF_ERR_INVALID_FORMAT,
                     "%s:%zu: neither a number of seconds nor a JSON object with `arrived_s`", path, number);
  }
  if (code == TF_OK && ferror(file)) code = tf_fail(error, TF_ERR_IO, "%s: %s", path, strerror(errno));
  if (code == TF_OK && *count == 0) code = tf_fail(error, TF_ERR_INVALID_FORMAT, "%s: no arrivals in it", path);
  free(line);
  return code;
}

static bool split(const recorded_job *jobs, size_t count, tf_recorded *out) {
  if (count == 0) return false;
  out->arrived_s = calloc(count, sizeof(double));
  out->finished_s = calloc(count, sizeof(double));
  out->wait_s = calloc(count, sizeof(double));
  out->vision_tokens = calloc(count, sizeof(uint32_t));
  if (!out->arrived_s || !out->finished_s || !out->wait_s || !out->vision_tokens) return false;
  out->count = count;
  for (size_t i = 0; i < count; i++) {
    out->arrived_s[i] = jobs[i].arrived_s - jobs[0].arrived_s;
    out->finished_s[i] = jobs[i].finished_s - jobs[0].arrived_s;
    out->wait_s[i] = jobs[i].wait_s;
    out->vision_tokens[i] = jobs[i].vision_tokens;
    out->finished += isfinite(out->finished_s[i]) && isfinite(out->wait_s[i]) && out->vision_tokens[i] > 0;
  }
  return true;
}

tf_code tf_recorded_load(const char *path, tf_recorded *out, tf_error *error) {
  *out = (tf_recorded){0};
  FILE *file = fopen(path, "r");
  if (!file) return tf_fail(error, TF_ERR_IO, "%s: %s", path, strerror(errno));
  recorded_job *jobs = NULL;
  size_t count = 0;
  tf_code code = read_jobs(file, path, &jobs, &count, error);
  fclose(file);
  if (code == TF_OK && jobs) {
    qsort(jobs, count, sizeof *jobs, by_arrival);
    if (!split(jobs, count, out)) code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for %zu jobs", count);
  }
  free(jobs);
  if (code != TF_OK) tf_recorded_free(out);
  return code;
}

void tf_recorded_free(tf_recorded *self) {
  free(self->arrived_s);
  free(self->finished_s);
  free(self->wait_s);
  free(self->vision_tokens);
  *self = (tf_recorded){0};
}

/* --- As a result --- */

static int by_value(const void *a, const void *b) {
  double left = *(const double *)a, right = *(const double *)b;
  return left < right ? -1 : left > right;
}

static double quantile(const double *sorted, size_t count, double share) {
  if (count == 0) return 0;
  size_t at = (size_t)(share * (double)count);
  return sorted[at < count ? at : count - 1];
}

static size_t moment_index(tf_sim_result *out, double at_s) {
  double at = at_s / out->step_s;
  size_t index = at < 0 ? 0 : at < TF_SIM_SERIES_MAX ? (size_t)at : TF_SIM_SERIES_MAX - 1;
  if (index >= out->moment_count) out->moment_count = index + 1;
  return index;
}

static void take_job(const tf_recorded *self, size_t i, const uint32_t *counts, size_t count_count,
                     tf_sim_result *out) {
  tf_sim_moment *ended = &out->moments[moment_index(out, self->finished_s[i])];
  /* The assignment came after the queue's wait, which is most of it. */
  double assigned_s = fmin(self->arrived_s[i] + self->wait_s[i], self->finished_s[i]);
  tf_sim_moment *assigned = &out->moments[moment_index(out, assigned_s)];
  assigned->assigned++;
  assigned->tokens += self->vision_tokens[i];
  ended->finished++;
  ended->waits[tf_histogram_bin(TF_SIM_WAIT_BINS, self->wait_s[i])]++;
  out->last_s = fmax(out->last_s, self->finished_s[i]);
  out->mean_tokens += self->vision_tokens[i];
  out->wait_mean_s += self->wait_s[i];
  for (size_t k = 0; k < count_count; k++) out->shares[k] += counts[k] == self->vision_tokens[i];
}

tf_sim_result *tf_recorded_result(const tf_recorded *self, double step_s, const uint32_t *counts, size_t count_count) {
  tf_sim_result *out = calloc(1, sizeof *out);
  double *waits = calloc(self->count + 1, sizeof *waits), *totals = calloc(self->count + 1, sizeof *totals);
  for (size_t i = 0; out && waits && totals && i < self->count; i++) {
    out->step_s = step_s;
    out->arrived++;
    out->moments[moment_index(out, self->arrived_s[i])].arrived++;
    if (!isfinite(self->finished_s[i]) || !isfinite(self->wait_s[i]) || self->vision_tokens[i] == 0) continue;
    waits[out->finished] = self->wait_s[i];
    totals[out->finished++] = self->finished_s[i] - self->arrived_s[i];
    take_job(self, i, counts, count_count, out);
  }
  if (out && waits && totals && out->finished > 0) {
    qsort(waits, out->finished, sizeof *waits, by_value);
    qsort(totals, out->finished, sizeof *totals, by_value);
    out->wait_p50_s = quantile(waits, out->finished, 0.5);
    out->wait_p95_s = quantile(waits, out->finished, 0.95);
    out->wait_p99_s = quantile(waits, out->finished, 0.99);
    out->total_p50_s = quantile(totals, out->finished, 0.5);
    out->total_p95_s = quantile(totals, out->finished, 0.95);
    out->mean_tokens /= (double)out->finished;
    out->wait_mean_s /= (double)out->finished;
    out->unfinished = out->arrived - out->finished;
    double there = 0;
    for (size_t i = 0; i < out->moment_count; i++) {
      there += (double)out->moments[i].arrived - (double)out->moments[i].finished;
      out->moments[i].unfinished = there;
      out->moments[i].seen = true;
    }
  }
  if (!waits || !totals) tf_sim_result_free(&out);
  free(waits);
  free(totals);
  return out;
}

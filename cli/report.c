/* Tells what a run did. In: its record. Out: the summary's lines, the run file's JSON.
 * Means are over captioned images; images a second count from the first submission, not from the loading of the model.
 */
#include "cli/report.h"

#include "cli/progress.h"
#include "common/options.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void tf_time_text(int64_t unix_ms, char *out, size_t out_bytes) {
  time_t seconds = (time_t)(unix_ms / 1000);
  struct tm parts;
  if (!gmtime_r(&seconds, &parts) || strftime(out, out_bytes, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0)
    snprintf(out, out_bytes, "-");
}

/* Duplicates and failures cost next to nothing: a rate that counts them is nobody's. */
static uint64_t computed(const tf_run_record *record) {
  return record->captioned - record->duplicates;
}

static double images_per_second(const tf_run_record *record) {
  return record->working_ms > 0 ? (double)computed(record) * 1000.0 / (double)record->working_ms : 0;
}

static double mean(const tf_run_record *record, double sum) {
  return record->captioned > 0 ? sum / (double)record->captioned : 0;
}

/* Times are those of pictures that were computed. */
static double mean_time(const tf_run_record *record, size_t stage) {
  return computed(record) > 0 ? record->timing_ms_sum[stage] / (double)computed(record) : 0;
}

static double rounded(double value) {
  return (double)(int64_t)(value * 100 + 0.5) / 100;
}

/* jansson refuses NULL and text that is no UTF-8: both are shown as what can be said of them. */
static json_t *text_or_null(const char *text) {
  if (!text) return json_null();
  tf_buffer clean;
  tf_buffer_init(&clean, TF_JSONL_LINE_BYTES_MAX);
  tf_jsonl_name(text, &clean);
  json_t *string = json_string(clean.data ? clean.data : "");
  tf_buffer_free(&clean);
  return string;
}

static json_t *time_or_null(int64_t unix_ms) {
  char text[40];
  if (unix_ms == 0) return json_null();
  tf_time_text(unix_ms, text, sizeof text);
  return json_string(text);
}

static json_t *settings_json(const tf_run_record *record) {
  const tf_submit_settings *settings = record->settings;
  json_t *named = json_array();
  for (size_t i = 0; i < record->named_count; i++) json_array_append_new(named, text_or_null(record->named[i]));
  bool is_auto = settings->vision_tokens == 0 || record->stays_auto;
  json_t *tokens = !is_auto ? json_integer(settings->vision_tokens) : json_string("auto");
  json_t *out = json_object();
  json_object_set_new(out, "inputs", named);
  json_object_set_new(out, "vision_tokens", tokens);
  json_object_set_new(out, "prompt", text_or_null(settings->prompt));
  json_object_set_new(out, "format", json_string(record->format == TF_FORMAT_CSV ? "csv" : "jsonl"));
  if (record->shuffled) json_object_set_new(out, "shuffle_seed", json_integer((json_int_t)record->seed));
  json_object_set_new(out, "folder", text_or_null(record->folder));
  json_object_set_new(out, "max_new_tokens", json_integer(settings->max_new_tokens));
  json_object_set_new(out, "max_pixels", record->redis ? json_null() : json_integer(record->max_pixels));
  json_object_set_new(out, "compute", text_or_null(record->compute));
  json_object_set_new(out, "cpu", text_or_null(record->cpu));
  json_object_set_new(out, "model_dir", text_or_null(record->model_dir));
  json_object_set_new(out, "redis", text_or_null(record->redis));
  json_object_set_new(out, "queue", text_or_null(record->queue));
  return out;
}

static json_t *model_json(const tf_run_record *record) {
  json_t *counts = json_array(), *out = json_object();
  for (uint32_t i = 0; i < record->model.token_count_count; i++)
    json_array_append_new(counts, json_integer(record->model.token_counts[i]));
  json_object_set_new(out, "name", text_or_null(record->model.name));
  json_object_set_new(out, "pair_hash", text_or_null(record->model.pair_hash));
  json_object_set_new(out, "token_counts", counts);
  return out;
}

static json_t *result_json(const tf_run_record *record) {
  json_t *timing = json_object(), *out = json_object();
  for (size_t i = 0; i < TF_JSONL_STAGE_COUNT; i++)
    json_object_set_new(timing, tf_jsonl_stages[i], json_real(rounded(mean_time(record, i))));
  json_object_set_new(out, "captioned", json_integer((json_int_t)record->captioned));
  json_object_set_new(out, "computed", json_integer((json_int_t)computed(record)));
  json_object_set_new(out, "failed", json_integer((json_int_t)record->failed));
  json_object_set_new(out, "skipped", json_integer((json_int_t)record->skipped));
  json_object_set_new(out, "already_done", json_integer((json_int_t)record->already));
  json_object_set_new(out, "duplicates", json_integer((json_int_t)record->duplicates));
  json_object_set_new(out, "upgraded", json_integer((json_int_t)record->upgraded));
  json_object_set_new(out, "seconds", json_real(rounded((double)record->working_ms / 1000.0)));
  json_object_set_new(out, "images_per_second", json_real(rounded(images_per_second(record))));
  json_object_set_new(out, "mean_vision_tokens", json_real(rounded(mean(record, record->tokens_sum))));
  json_object_set_new(out, "mean_timing_ms", timing);
  return out;
}

tf_code tf_report_json(const tf_run_record *record, tf_buffer *out, tf_error *error) {
  json_t *top = json_object();
  json_object_set_new(top, "run", json_string(record->run));
  json_object_set_new(top, "state", json_string(record->state));
  json_object_set_new(top, "tokenflex", json_string(TF_VERSION));
  json_object_set_new(top, "settings", settings_json(record));
  json_object_set_new(top, "model", model_json(record));
  json_object_set_new(top, "started", time_or_null(record->started_unix_ms));
  json_object_set_new(top, "ended", time_or_null(record->ended_unix_ms));
  json_object_set_new(top, "result", result_json(record));
  json_t *output = json_object();
  json_object_set_new(output, "captions", json_integer((json_int_t)record->output_captions));
  json_object_set_new(output, "failures", json_integer((json_int_t)record->output_failures));
  json_object_set_new(top, "output", output);
  char *text = json_dumps(top, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  json_decref(top);
  if (!text) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  tf_buffer_printf(out, "%s\n", text);
  free(text);
  return out->overflow ? tf_fail(error, TF_ERR_OUT_OF_MEMORY, "the run's record is too long") : TF_OK;
}

static void put_counts(const tf_run_record *record, tf_buffer *out) {
  char captioned[32], failed[32], skipped[32], already[32];
  tf_count_text(record->captioned, captioned, sizeof captioned);
  tf_count_text(record->failed, failed, sizeof failed);
  tf_count_text(record->skipped, skipped, sizeof skipped);
  tf_count_text(record->already, already, sizeof already);
  if (record->captioned + record->failed + record->already == 0 && strcmp(record->state, "complete") == 0)
    tf_buffer_printf(out, record->full_detail ? "all have full detail, nothing to upgrade" : "no images found");
  else
    tf_buffer_printf(out, "%s captioned, %s failed", captioned, failed);
  if (record->already > 0) tf_buffer_printf(out, ", %s done before", already);
  if (record->skipped > 0) tf_buffer_printf(out, ", %s other file%s skipped", skipped, record->skipped == 1 ? "" : "s");
}

void tf_report_summary(const tf_run_record *record, const char *output, const char *errors, tf_buffer *out) {
  char duration[32], count[32];
  if (strcmp(record->state, "complete") != 0)
    tf_buffer_printf(out, "%s: ", strcmp(record->state, "failed") == 0 ? "stopped early" : record->state);
  put_counts(record, out);
  tf_buffer_printf(out, "\n");
  if (record->captioned > 0) {
    tf_duration_text((double)record->working_ms / 1000.0, duration, sizeof duration);
    tf_count_text(computed(record), count, sizeof count);
    tf_buffer_printf(out, "%s, computed %s, %.2f images/s, mean %.0f vision tokens, run %s\n", duration, count,
                     images_per_second(record), mean(record, record->tokens_sum), record->run);
    for (size_t i = 0; i < TF_JSONL_STAGE_COUNT; i++) /* five to a line of a narrow terminal */
      tf_buffer_printf(out, "%s  %s %.0f",
                       i == 0   ? "mean ms"
                       : i == 5 ? "\n       "
                                : "",
                       tf_jsonl_stages[i], mean_time(record, i));
    tf_buffer_printf(out, "\n");
  }
  if (record->duplicates > 0)
    tf_buffer_printf(out, "%llu of them have the same bytes as another and were computed once\n",
                     (unsigned long long)record->duplicates);
  if (record->upgraded > 0)
    tf_buffer_printf(out, "%llu lines of fewer vision tokens were replaced\n", (unsigned long long)record->upgraded);
  if (record->sidecars_kept > 0)
    tf_buffer_printf(out, "%llu sidecars were there already and stay as they were (--overwrite replaces them)\n",
                     (unsigned long long)record->sidecars_kept);
  if (output) tf_buffer_printf(out, "captions: %s\n", output);
  if (output && strcmp(record->state, "interrupted") == 0)
    tf_buffer_printf(out, "the same command goes on from there\n");
  if (errors && record->output_failures > 0)
    tf_buffer_printf(out, "failures: %s (%llu; --retry-failed tries them again)\n", errors,
                     (unsigned long long)record->output_failures);
}

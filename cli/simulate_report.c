/* What a simulation is shown as. In: rows of results. Out: a table for people, JSON for programs, a plot.
 * Waits are those of finished jobs (the table says how many are not in them), in all stages together (timing_ms.queue +
 * timing_ms.wait of a real result). Throughput: finished jobs over the time from the first arrival to the last end. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/plot.h"
#include "cli/simulate.h"

static double throughput(const tf_sim_result *result) {
  double seconds = result->last_s - result->first_s;
  return seconds > 0 ? (double)result->finished / seconds : 0;
}

static double share(const tf_sim_result *result, size_t i) {
  return result->finished ? (double)result->shares[i] / (double)result->finished : 0;
}

void tf_simulate_table(const tf_simulation *config, const tf_simulate_row *rows, size_t count, tf_buffer *out) {
  tf_buffer_printf(out, "%-12s %10s %9s %10s %9s %9s %9s %7s  %s", "rule", "jobs", "unfinished", "captions/s", "p50 s",
                   "p95 s", "p99 s", "tokens", "share of");
  for (size_t i = 0; i < config->count_count; i++) tf_buffer_printf(out, " %5u", config->counts[i]);
  tf_buffer_printf(out, "\n");
  for (size_t r = 0; r < count; r++) {
    const tf_sim_result *one = rows[r].result;
    tf_buffer_printf(out, "%-12s %10llu %10llu %10.6g %9.3f %9.3f %9.3f %7.1f          ", rows[r].name,
                     (unsigned long long)one->arrived,
                     (unsigned long long)one->unfinished + (unsigned long long)one->refused, throughput(one),
                     one->wait_p50_s, one->wait_p95_s, one->wait_p99_s, one->mean_tokens);
    for (size_t i = 0; i < config->count_count; i++) tf_buffer_printf(out, " %5.3f", share(one, i));
    tf_buffer_printf(out, "\n");
  }
  for (size_t r = 0; r < count; r++) {
    const tf_sim_result *one = rows[r].result;
    unsigned long long lost = (unsigned long long)one->unfinished + (unsigned long long)one->refused;
    if (lost > 0) tf_buffer_printf(out, "p50, p95, p99 of %s: %llu unfinished are not in these\n", rows[r].name, lost);
  }
}

static json_t *row_json(const tf_simulation *config, const tf_simulate_row *row) {
  const tf_sim_result *one = row->result;
  json_t *shares = json_object();
  for (size_t i = 0; i < config->count_count; i++) {
    char key[16];
    snprintf(key, sizeof key, "%u", config->counts[i]);
    json_object_set_new(shares, key, json_real(share(one, i)));
  }
  return json_pack(
      "{s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:{s:f, s:f, s:f, s:f}, s:{s:f, s:f}, s:f, s:o, s:{s:f, s:f}, s:{s:f, s:f}}",
      "rule", row->name, "arrived", (json_int_t)one->arrived, "finished", (json_int_t)one->finished, "refused",
      (json_int_t)one->refused, "retried", (json_int_t)one->retried, "unfinished", (json_int_t)one->unfinished,
      "throughput_per_s", throughput(one), "wait_s", "mean", one->wait_mean_s, "p50", one->wait_p50_s, "p95",
      one->wait_p95_s, "p99", one->wait_p99_s, "total_s", "p50", one->total_p50_s, "p95", one->total_p95_s,
      "mean_tokens", one->mean_tokens, "shares", shares, "worker_hours", "encode", one->worker_s_encode / 3600,
      "decode", one->worker_s_decode / 3600, "busy_hours", "encode", one->encode_busy_s / 3600, "decode",
      one->decode_busy_s / 3600);
}

tf_code tf_simulate_json(const tf_simulation *config, const tf_simulate_row *rows, size_t count, tf_buffer *out) {
  json_t *root = json_object(), *list = json_array();
  for (size_t i = 0; i < count; i++) json_array_append_new(list, row_json(config, &rows[i]));
  json_object_set_new(root, "target_wait_ms", json_integer(config->policy.target_wait_ms));
  json_object_set_new(root, "duration_s", json_real(config->arrivals.duration_s));
  json_object_set_new(root, "encoders", json_integer(config->encode.workers));
  json_object_set_new(root, "llms", json_integer(config->decode.workers));
  json_object_set_new(root, "seed", json_integer((json_int_t)config->seed));
  json_object_set_new(root, "rows", list);
  char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
  json_decref(root);
  if (!text) return TF_ERR_OUT_OF_MEMORY;
  tf_buffer_printf(out, "%s\n", text);
  free(text);
  return TF_OK;
}

/* --- Plot --- */

/* Arrays of one plot, freed together. */
typedef struct curves {
  size_t count, used;
  double *numbers; /* rows of `count` */
  double ticks[TF_POLICY_COUNTS_MAX + 1];
} curves;

enum { SERIES_MAX = 8 * TF_SIMULATE_RULES_MAX + 8 };

typedef double (*reading)(const tf_sim_result *result, size_t at);

static double *series(curves *self, const tf_sim_result *result, reading read) {
  double *out = self->numbers + self->used++ * self->count;
  for (size_t i = 0; i < self->count; i++) out[i] = i < result->moment_count ? read(result, i) : NAN;
  return out;
}

static const char *plural(uint32_t count) {
  return count == 1 ? "" : "s";
}

static double offered(const tf_sim_result *result, size_t at) {
  return (double)result->moments[at].arrived / result->step_s;
}
/* Where a step holds few jobs, its neighbours count too: the rate and the mean are meant, not the scatter. */
enum { NEIGHBOURS = 4, JOBS_FOR_RATE = 60, JOBS_FOR_MEAN = 4 };

static double captioned(const tf_sim_result *result, size_t at) {
  double jobs = 0, steps = 0;
  for (size_t away = 0; away <= NEIGHBOURS && jobs < JOBS_FOR_RATE; away++) {
    if (at + away < result->moment_count) jobs += (double)result->moments[at + away].finished, steps++;
    if (away > 0 && away <= at) jobs += (double)result->moments[at - away].finished, steps++;
  }
  return jobs / (steps * result->step_s);
}
/* In a short run a step is shorter than what is between two observations: what was seen last holds. */
static const tf_sim_moment *last_seen(const tf_sim_result *result, size_t at) {
  while (at > 0 && !result->moments[at].seen) at--;
  return result->moments[at].seen ? &result->moments[at] : NULL;
}

static double depth(const tf_sim_result *result, size_t at) {
  const tf_sim_moment *moment = last_seen(result, at);
  return moment ? moment->unfinished : NAN;
}
static double tokens(const tf_sim_result *result, size_t at) {
  double sum = 0, jobs = 0;
  for (size_t away = 0; away <= NEIGHBOURS && jobs < JOBS_FOR_MEAN; away++) {
    if (at + away < result->moment_count)
      sum += result->moments[at + away].tokens, jobs += (double)result->moments[at + away].assigned;
    if (away > 0 && away <= at)
      sum += result->moments[at - away].tokens, jobs += (double)result->moments[at - away].assigned;
  }
  return jobs > 0 ? sum / jobs : NAN;
}
static double wait_p95(const tf_sim_result *result, size_t at) {
  tf_sim_moment sum = {0};
  for (size_t away = 0; away <= NEIGHBOURS && sum.finished < JOBS_FOR_MEAN; away++) {
    for (size_t side = 0; side < (away ? 2 : 1); side++) {
      if (side == 0 ? at + away >= result->moment_count : away > at) continue;
      const tf_sim_moment *one = &result->moments[side == 0 ? at + away : at - away];
      sum.finished += one->finished;
      for (size_t i = 0; i < TF_SIM_WAIT_BINS; i++) sum.waits[i] += one->waits[i];
    }
  }
  return sum.finished ? tf_sim_moment_wait_s(&sum, 0.95) : NAN;
}
static double llms(const tf_sim_result *result, size_t at) {
  const tf_sim_moment *moment = last_seen(result, at);
  return moment ? moment->llms : NAN;
}
static double wanted_llms(const tf_sim_result *result, size_t at) {
  const tf_sim_moment *moment = last_seen(result, at);
  return moment ? moment->wanted_llms : NAN;
}

static tf_plot_panel *add_panel(tf_plot *plot, const char *title, bool logarithmic) {
  tf_plot_panel *panel = &plot->panels[plot->panel_count++];
  *panel = (tf_plot_panel){.title = title, .logarithmic = logarithmic, .mark = NAN};
  return panel;
}

static void add_line(tf_plot_panel *panel, const char *label, size_t colour, const double *y) {
  if (panel->line_count == TF_PLOT_LINES_MAX) return;
  panel->lines[panel->line_count++] = (tf_plot_line){.label = label, .colour = colour % TF_PLOT_COLOURS, .y = y};
}

/* The rows' lines of one reading, in each row's colour. */
static void add_rows(tf_plot_panel *panel, curves *canvas, const tf_simulate_row *rows, size_t count, reading read) {
  for (size_t i = 0; i < count; i++) add_line(panel, rows[i].name, i, series(canvas, rows[i].result, read));
}

static bool workers_change(const tf_simulation *config) {
  return config->scaling.on || config->event_count > 0;
}

static void add_workers(const tf_simulation *config, tf_plot *plot, curves *canvas, const tf_simulate_row *rows,
                        size_t count) {
  if (!workers_change(config)) return;
  tf_plot_panel *panel = add_panel(plot, config->scaling.on ? "LLM workers; wanted: dashed" : "LLM workers", false);
  add_rows(panel, canvas, rows, count, llms);
  if (!config->scaling.on) return;
  panel->most = 1.25 * config->decode.workers_max; /* demand has no bound: a backlog is to be gone within the target */
  for (size_t i = 0; i < count; i++) {
    add_line(panel, NULL, i, series(canvas, rows[i].result, wanted_llms));
    panel->lines[panel->line_count - 1].dashed = true;
  }
}

/* Where one rule's queue runs away, only a logarithm shows the others. */
static double largest(const tf_simulate_row *rows, size_t count) {
  double most = 0;
  for (size_t i = 0; i < count; i++) most = fmax(most, rows[i].result->wait_p99_s);
  return most;
}

/* Load, depth, tokens, wait, workers. */
static void add_panels(const tf_simulation *config, tf_plot *plot, curves *canvas, const tf_simulate_row *rows,
                       size_t count) {
  double target_s = (double)config->policy.target_wait_ms / 1000;
  bool wide = largest(rows, count) > 10 * target_s;
  tf_plot_panel *panel = add_panel(plot, "load: jobs/s offered (area) and captioned", false);
  add_line(panel, "offered", 4, series(canvas, rows[0].result, offered));
  panel->lines[0].filled = true;
  add_rows(panel, canvas, rows, count, captioned);
  add_rows(add_panel(plot, "depth: unfinished jobs", wide), canvas, rows, count, depth);
  panel = add_panel(plot, "tokens: mean of the jobs assigned", false);
  for (size_t i = 0; i < config->count_count; i++) canvas->ticks[i + 1] = config->counts[i];
  panel->ticks = canvas->ticks;
  panel->tick_count = config->count_count + 1;
  panel->most = canvas->ticks[config->count_count];
  add_rows(panel, canvas, rows, count, tokens);
  panel = add_panel(plot, "wait: 95th percentile of the jobs that end, s", wide);
  panel->least = wide ? target_s / 200 : 0;
  panel->mark = target_s;
  panel->mark_label = "target";
  add_rows(panel, canvas, rows, count, wait_p95);
  add_workers(config, plot, canvas, rows, count);
}

bool tf_simulate_plot(const tf_simulation *config, const char *title, const tf_simulate_row *rows, size_t count,
                      tf_buffer *out) {
  size_t moments = 0;
  for (size_t i = 0; i < count; i++)
    if (rows[i].result->moment_count > moments) moments = rows[i].result->moment_count;
  /* A queue that is worked off long after the last arrival is cut at twice the time. */
  double step_s = rows[0].result->step_s;
  size_t cut = (size_t)(2 * config->arrivals.duration_s / step_s);
  if (moments > cut) moments = cut;
  if (moments < 2) return false;
  curves canvas = {.count = moments, .numbers = calloc(moments * SERIES_MAX, sizeof(double))};
  tf_plot *plot = calloc(1, sizeof *plot);
  bool well = canvas.numbers && plot;
  if (well) {
    double *x = canvas.numbers + canvas.used++ * moments;
    bool hours = config->arrivals.duration_s > 7200;
    for (size_t i = 0; i < moments; i++) x[i] = ((double)i + 0.5) * step_s / (hours ? 3600 : 1);
    char subtitle[200];
    snprintf(subtitle, sizeof subtitle, "%u encoder%s, %u LLM%s, target wait %.3g s, seed %llu", config->encode.workers,
             plural(config->encode.workers), config->decode.workers, plural(config->decode.workers),
             (double)config->policy.target_wait_ms / 1000, (unsigned long long)config->seed);
    *plot = (tf_plot){
        .title = title, .subtitle = subtitle, .x_label = hours ? "hours" : "seconds", .x = x, .count = moments};
    add_panels(config, plot, &canvas, rows, count);
    tf_plot_svg(plot, out);
  }
  free(plot);
  free(canvas.numbers);
  return well;
}

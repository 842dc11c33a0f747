/* `tokenflex simulate`: what a load would do to a deployment, computed in advance with the router's own policy.
 * In: options. Out: a table or JSON on stdout, a plot; the exit status.
 * Every rule of --policy sees the same arrivals; the same seed gives the same numbers on every machine. */
#include "cli/simulate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/replace.h"
#include "cli/target.h"

enum { TEXT_BYTES_MAX = 16 << 20 };

#define AT(name) offsetof(tf_simulate_options, name)
/* clang-format off */
static const tf_option table[] = {
  {"arrivals", 'a', TF_OPTION_CHOICE, AT(arrivals), 0, 0, "poisson", "constant|poisson|step|burst|wave|ramp|trace", "How jobs arrive; step, burst, wave and ramp are Poisson around their rate"},
  {"rate", 'r', TF_OPTION_REAL, AT(rate), 0, 1e7, "2", "jobs/s", "Of arrivals; the lower one of step, wave and ramp"},
  {"peak", 0, TF_OPTION_REAL, AT(peak), 0, 1e7, "0", "jobs/s", "The higher one of step, wave and ramp, which need it (ramp: up to it at half time, and back)"},
  {"from-s", 0, TF_OPTION_REAL, AT(from_s), 0, 1e9, "60", "s", "step: the peak begins"},
  {"until-s", 0, TF_OPTION_REAL, AT(until_s), 0, 1e9, "0", "s", "step: the peak ends (0: with the run)"},
  {"period-s", 0, TF_OPTION_REAL, AT(period_s), 0, 1e9, "0", "s", "burst: between two (must be given); wave: of one (0: the whole run)"},
  {"burst-jobs", 0, TF_OPTION_INT, AT(burst_jobs), 0, 1e8, "100", "jobs", "burst: added at once"},
  {"even", 0, TF_OPTION_FLAG, AT(even), 0, 0, NULL, NULL, "Evenly spaced instead of Poisson"},
  {"trace", 't', TF_OPTION_STRING, AT(trace), 0, 0, NULL, "FILE", "Recorded arrivals: seconds, or JSON lines with arrived_s (and finished_s, wait_ms, vision_tokens)"},
  {"duration-s", 'd', TF_OPTION_REAL, AT(duration_s), 0.1, 1e9, "300", "s", "Jobs arrive for so long; what is there then is still worked off"},
  {"policy", 'p', TF_OPTION_LIST, AT(rules), 0, 0, "adaptive", "RULES", "adaptive, fixed:N, thresholds, aimd; several are compared"},
  {"target-wait-ms", 0, TF_OPTION_INT, AT(target_wait_ms), 1, 3600000, "2000", "ms", "That jobs may wait"},
  {"utilisation", 0, TF_OPTION_REAL, AT(utilisation), 0.01, 1, "0.9", NULL, "Share of capacity that arrivals may take up"},
  {"service", 's', TF_OPTION_STRING, AT(service), 0, 0, NULL, "FILE", "Service times as JSON; else of the default model on two cores"},
  {"counts", 0, TF_OPTION_LIST, AT(counts), 0, 0, NULL, "TOKENS", "Vision token counts of the model, ascending"},
  {"encoders", 'e', TF_OPTION_INT, AT(encoders), 0, 100000, "0", "workers", "0: as in the file, or 1"},
  {"llms", 'l', TF_OPTION_INT, AT(llms), 0, 100000, "0", "workers", "0: as in the file, or 1"},
  {"encode-slots", 0, TF_OPTION_INT, AT(encode_slots), 0, 256, "0", "jobs", "That an encoder serves at once (0: as in the file, or 4)"},
  {"decode-slots", 0, TF_OPTION_INT, AT(decode_slots), 0, 256, "0", "jobs", "That an LLM serves at once (0: as in the file, or 16)"},
  {"encode-service-ms", 0, TF_OPTION_LIST, AT(encode_service_ms), 0, 0, NULL, "MS", "Time a job costs a full encoder, one value or one for each count"},
  {"decode-service-ms", 0, TF_OPTION_LIST, AT(decode_service_ms), 0, 0, NULL, "MS", "Time a job costs a full LLM, likewise"},
  {"decode-alone-ms", 0, TF_OPTION_LIST, AT(decode_alone_ms), 0, 0, NULL, "MS", "Latency of a job that has the LLM for itself"},
  {"spread", 0, TF_OPTION_REAL, AT(spread), 0, 3, "0.25", NULL, "Standard deviation of a caption's cost over its mean"},
  {"believed-factor", 0, TF_OPTION_REAL, AT(believed_factor), 0.01, 100, "1", NULL, "Service times that the policy is told, over the true ones"},
  {"event", 0, TF_OPTION_LIST, AT(events), 0, 0, NULL, "EVENTS", "SECONDS:encoder|llm:CHANGE: 30:llm:-2 (two die), 60:llm:2 (two join)"},
  {"lost-s", 0, TF_OPTION_REAL, AT(lost_s), 0, 3600, "5", "s", "Until a dead worker is noticed"},
  {"autoscale", 0, TF_OPTION_FLAG, AT(autoscale), 0, 0, NULL, NULL, "Workers follow tokenflex_workers_wanted"},
  {"encoders-max", 0, TF_OPTION_INT, AT(encoders_max), 0, 100000, "0", "workers", "With --autoscale; --encoders is the least"},
  {"llms-max", 0, TF_OPTION_INT, AT(llms_max), 0, 100000, "0", "workers", "With --autoscale; --llms is the least"},
  {"start-delay-s", 0, TF_OPTION_REAL, AT(start_delay_s), 0, 86400, "30", "s", "With --autoscale: until a new worker serves"},
  {"scale-down-s", 0, TF_OPTION_REAL, AT(scale_down_s), 0, 86400, "300", "s", "With --autoscale: the highest demand within this time counts"},
  {"scale-to-zero", 0, TF_OPTION_FLAG, AT(scale_to_zero), 0, 0, NULL, NULL, "With --autoscale: a tier that nothing was wanted of for so long has no worker"},
  {"waiting-max", 0, TF_OPTION_INT, AT(waiting_max), 1, 60000000, "10000000", "jobs", "More are refused"},
  {"seed", 0, TF_OPTION_INT, AT(seed), 0, 1e15, "1", NULL, "Of the random numbers"},
  {"plot", 0, TF_OPTION_STRING, AT(plot), 0, 0, NULL, "FILE", "Draw load, depth, tokens and wait over time as SVG"},
  {"title", 0, TF_OPTION_STRING, AT(title), 0, 0, NULL, "TEXT", "Of the plot"},
  {"json", 0, TF_OPTION_FLAG, AT(json), 0, 0, NULL, NULL, "JSON instead of a table"},
};
/* clang-format on */
static const tf_program program = {
    .name = "tokenflex simulate",
    .synopsis = "[options]",
    .summary = "Simulates a deployment under a load, with the router's own policy: waits, throughput, mean tokens.",
    .options = table,
    .option_count = sizeof table / sizeof *table,
};

static tf_code check_plot(const char *path, char **target, tf_error *error) {
  static const tf_file_kind kind = {"a plot of tokenflex", "<svg xmlns=", "<style>.g{stroke:#e3e3e3}"}; /* cli/plot.c */
  return tf_target_check(path, &kind, NULL, target, error);
}

static tf_code write_file(const char *path, const tf_buffer *text, tf_error *error) {
  tf_replace file;
  tf_code code = tf_replace_begin(&file, path, error);
  if (!code) code = tf_replace_write(&file, text->data, text->size, error);
  if (!code) code = tf_replace_commit(&file, NULL, error);
  tf_replace_end(&file);
  return code;
}

static tf_code draw(const tf_simulate_options *options, const tf_simulation *config, const tf_simulate_row *rows,
                    size_t count, const char *target, tf_error *error) {
  tf_buffer text;
  tf_buffer_init(&text, TEXT_BYTES_MAX);
  const char *title = options->title ? options->title : "tokenflex simulate";
  bool well = tf_simulate_plot(config, title, rows, count, &text) && !text.overflow;
  tf_code code = well ? write_file(target, &text, error)
                      : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "--plot: there is too little or too much to draw");
  tf_buffer_free(&text);
  return code;
}

static tf_code print(const tf_simulate_options *options, const tf_simulation *config, const tf_simulate_row *rows,
                     size_t count, tf_error *error) {
  tf_buffer text;
  tf_buffer_init(&text, TEXT_BYTES_MAX);
  tf_code code = TF_OK;
  if (options->json)
    code = tf_simulate_json(config, rows, count, &text);
  else
    tf_simulate_table(config, rows, count, &text);
  if (code != TF_OK || text.overflow) code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to print");
  if (code == TF_OK && fwrite(text.data, 1, text.size, stdout) != text.size)
    code = tf_fail(error, TF_ERR_IO, "standard output: %s", strerror(errno));
  tf_buffer_free(&text);
  return code;
}

/* The rules one after the other, each against the same arrivals; then what was recorded. */
static tf_code run_all(const tf_simulate_options *options, tf_simulation *config, const tf_recorded *recorded,
                       tf_simulate_row *rows, size_t *count, tf_error *error) {
  if (options->rules.count < 1 || options->rules.count + (recorded->finished > 0) > TF_SIMULATE_RULES_MAX)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--policy: 1 to %d rules can be compared",
                   TF_SIMULATE_RULES_MAX - 1);
  for (size_t i = 0; i < options->rules.count; i++) {
    if (!tf_rule_parse(options->rules.items[i], &config->rule))
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--policy %.40s: wanted adaptive, fixed:N, thresholds or aimd",
                     options->rules.items[i]);
    rows[*count].name = options->rules.items[i];
    tf_code code = tf_simulate(config, &rows[*count].result, error);
    if (code != TF_OK) return code;
    ++*count;
  }
  if (recorded->finished == 0 || !rows[0].result) return TF_OK;
  rows[*count].name = "measured";
  rows[*count].result = tf_recorded_result(recorded, rows[0].result->step_s, config->counts, config->count_count);
  if (!rows[*count].result) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the recorded run");
  ++*count;
  return TF_OK;
}

int tf_simulate_main(int argc, char **argv) {
  tf_simulate_options options = {0};
  tf_options_outcome outcome = TF_OPTIONS_RUN;
  tf_error error;
  size_t extra = 0;
  const char **positionals = calloc((size_t)argc + 1, sizeof *positionals);
  tf_code code = positionals ? tf_options_parse(&program, argc, argv, &options, positionals, &extra, &outcome, &error)
                             : tf_fail(&error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  if (code == TF_OK && extra > 0)
    code = tf_fail(&error, TF_ERR_INVALID_ARGUMENT, "\"%s\" is not understood", positionals[0]);
  free(positionals);
  if (code != TF_OK) {
    tf_say("%s", error.text);
    return TF_EXIT_USAGE;
  }
  if (outcome != TF_OPTIONS_RUN) return TF_EXIT_OK;
  tf_simulation *config = calloc(1, sizeof *config);
  tf_recorded recorded = {0};
  tf_simulate_row rows[TF_SIMULATE_RULES_MAX] = {{0}};
  size_t count = 0;
  code = config ? tf_simulate_setup(&options, &recorded, config, &error)
                : tf_fail(&error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  char *plot = NULL;
  if (code == TF_OK && options.plot) code = check_plot(options.plot, &plot, &error);
  if (code == TF_OK) code = run_all(&options, config, &recorded, rows, &count, &error);
  if (code == TF_OK) code = print(&options, config, rows, count, &error);
  if (code == TF_OK && plot) code = draw(&options, config, rows, count, plot, &error);
  if (code != TF_OK) tf_say("%s", error.text);
  for (size_t i = 0; i < TF_SIMULATE_RULES_MAX; i++) tf_sim_result_free(&rows[i].result);
  tf_recorded_free(&recorded);
  free(plot);
  free(config);
  return code == TF_OK ? TF_EXIT_OK : code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
}

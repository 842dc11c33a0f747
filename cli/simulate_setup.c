/* The set-up of a simulation. In: options, a JSON file of service times, a recorded trace. Out: a tf_simulation.
 * Flags win over the file, the file over the defaults: the default model on two cores (SPEED.md).
 * What can't be is refused with a text that names the option. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/simulate.h"

/* Measured with the default model, greedy, default arithmetic, 2 cores of a Xeon with AMX: the LLM at 16 sequences
 * beside the encoder, 9 tokens a caption (`make loadtest`); the encoder at batches of 4. */
static const uint32_t default_counts[] = {64, 144, 256};
static const double default_encode_ms[] = {26, 26, 26};
static const double default_encode_alone_ms[] = {26, 26, 26};
static const double default_decode_ms[] = {27, 39, 62};
static const double default_decode_alone_ms[] = {76, 89, 114};

static void set_defaults(tf_simulation *out) {
  out->count_count = 3;
  memcpy(out->counts, default_counts, sizeof default_counts);
  out->encode = (tf_sim_tier_config){.workers = 1, .slots = 4, .workers_max = 1};
  out->decode = (tf_sim_tier_config){.workers = 1, .slots = 16, .workers_max = 1};
  memcpy(out->encode.service_ms, default_encode_ms, sizeof default_encode_ms);
  memcpy(out->encode.alone_ms, default_encode_alone_ms, sizeof default_encode_alone_ms);
  memcpy(out->decode.service_ms, default_decode_ms, sizeof default_decode_ms);
  memcpy(out->decode.alone_ms, default_decode_alone_ms, sizeof default_decode_alone_ms);
}

/* --- Lists of numbers --- */

static tf_code parse_number(const char *option, const char *text, double *out, tf_error *error) {
  char *end;
  *out = strtod(text, &end);
  if (end == text || *end || !isfinite(*out) || *out <= 0)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--%s: \"%.40s\" is no number above 0", option, text);
  return TF_OK;
}

/* One value for every count, or one for all. An empty list leaves `out` as it is. */
static tf_code parse_times(const char *option, const tf_string_list *list, size_t counts, double *out,
                           tf_error *error) {
  if (list->count == 0) return TF_OK;
  if (list->count != counts && list->count != 1)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--%s: %zu values for %zu token counts", option, list->count,
                   counts);
  for (size_t i = 0; i < counts; i++) {
    tf_code code = parse_number(option, list->items[list->count == 1 ? 0 : i], &out[i], error);
    if (code != TF_OK) return code;
  }
  return TF_OK;
}

static tf_code parse_counts(const tf_simulate_options *options, tf_simulation *out, tf_error *error) {
  if (options->counts.count == 0) return TF_OK;
  if (options->counts.count > TF_POLICY_COUNTS_MAX)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--counts: more than %d", TF_POLICY_COUNTS_MAX);
  if (options->decode_service_ms.count == 0 && options->service == NULL)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--counts: other counts need --decode-service-ms too");
  for (size_t i = 0; i < options->counts.count; i++) {
    double value;
    tf_code code = parse_number("counts", options->counts.items[i], &value, error);
    if (code != TF_OK) return code;
    out->counts[i] = value <= 1e6 ? (uint32_t)value : 1000000;
    out->encode.service_ms[i] = default_encode_ms[0];
    out->encode.alone_ms[i] = default_encode_alone_ms[0];
  }
  out->count_count = (uint32_t)options->counts.count;
  return TF_OK;
}

/* --- The file of service times --- */

static tf_code file_times(const char *path, const char *key, const json_t *array, size_t counts, double *out,
                          tf_error *error) {
  bool fits = json_is_array(array) && json_array_size(array) == counts;
  for (size_t i = 0; fits && i < counts; i++) {
    const json_t *one = json_array_get(array, i);
    fits = json_is_number(one) && json_number_value(one) > 0;
    if (fits) out[i] = json_number_value(one);
  }
  if (fits) return TF_OK;
  return tf_fail(error, TF_ERR_INVALID_FORMAT, "%s: `%s` must be %zu numbers above 0", path, key, counts);
}

static uint32_t file_size(const json_t *object, const char *key, uint32_t fallback) {
  const json_t *value = json_object_get(object, key);
  json_int_t number = json_is_integer(value) ? json_integer_value(value) : 0;
  return number >= 1 && number <= 1000000 ? (uint32_t)number : fallback;
}

static tf_code file_tier(const char *path, const char *name, const json_t *tier, size_t counts, tf_sim_tier_config *out,
                         tf_error *error) {
  tf_code code = file_times(path, name, json_object_get(tier, "service_ms"), counts, out->service_ms, error);
  if (code != TF_OK) return code;
  out->workers = file_size(tier, "workers", out->workers);
  out->slots = file_size(tier, "slots", out->slots);
  out->window = file_size(tier, "window", out->window);
  const json_t *alone = json_object_get(tier, "alone_ms");
  if (alone) return file_times(path, "alone_ms", alone, counts, out->alone_ms, error);
  memcpy(out->alone_ms, out->service_ms, sizeof out->alone_ms);
  return TF_OK;
}

static tf_code read_service(const char *path, tf_simulation *out, tf_error *error) {
  json_error_t why;
  json_t *root = json_load_file(path, 0, &why);
  if (!root) return tf_fail(error, TF_ERR_INVALID_FORMAT, "%s:%d: %s", path, why.line, why.text);
  const json_t *counts = json_object_get(root, "counts");
  size_t count = json_array_size(counts);
  tf_code code = TF_OK;
  if (count < 1 || count > TF_POLICY_COUNTS_MAX)
    code = tf_fail(error, TF_ERR_INVALID_FORMAT, "%s: `counts` must be 1 to %d numbers", path, TF_POLICY_COUNTS_MAX);
  double numbers[TF_POLICY_COUNTS_MAX] = {0};
  if (code == TF_OK) code = file_times(path, "counts", counts, count, numbers, error);
  for (size_t i = 0; code == TF_OK && i < count; i++) out->counts[i] = (uint32_t)fmin(numbers[i], 1e6);
  out->count_count = (uint32_t)count;
  if (code == TF_OK) code = file_tier(path, "encode", json_object_get(root, "encode"), count, &out->encode, error);
  if (code == TF_OK) code = file_tier(path, "decode", json_object_get(root, "decode"), count, &out->decode, error);
  json_decref(root);
  return code;
}

/* --- Events: "30:llm:-2" --- */

static int by_time(const void *a, const void *b) {
  double left = ((const tf_sim_event *)a)->at_s, right = ((const tf_sim_event *)b)->at_s;
  return left < right ? -1 : left > right;
}

static tf_code parse_events(const tf_string_list *list, tf_simulation *out, tf_error *error) {
  for (size_t i = 0; i < list->count; i++) {
    tf_sim_event event = {0};
    char tier[16];
    int used = 0;
    int fields = sscanf(list->items[i], "%lf:%15[a-z]:%d%n", &event.at_s, tier, &event.change, &used);
    event.encode = fields == 3 && strcmp(tier, "encoder") == 0;
    bool known = event.encode || (fields == 3 && strcmp(tier, "llm") == 0);
    bool sane = known && list->items[i][used] == 0 && event.at_s >= 0 && isfinite(event.at_s) && event.change != 0 &&
                abs(event.change) <= 100000;
    if (!sane)
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                     "--event %.60s: wanted SECONDS:encoder|llm:CHANGE, e.g. 30:llm:-2 (two die) or 60:llm:2",
                     list->items[i]);
    out->events[out->event_count++] = event;
  }
  qsort(out->events, out->event_count, sizeof *out->events, by_time);
  return TF_OK;
}

/* --- Arrivals --- */

/* What the arrivals that were chosen make no use of, and so would pass over in silence. A value that is the option's
 * own default counts as not given. */
static tf_code refuse_unused(const tf_simulate_options *options, tf_arrivals_shape shape, tf_error *error) {
  enum { STEP = 1 << TF_ARRIVALS_STEP, BURST = 1 << TF_ARRIVALS_BURST, WAVE = 1 << TF_ARRIVALS_WAVE };
  enum { RAMP = 1 << TF_ARRIVALS_RAMP, TRACE = 1 << TF_ARRIVALS_TRACE };
  const struct {
    const char *name;
    bool given;
    unsigned users;
    const char *arrivals;
  } rows[] = {
      {"peak", options->peak > 0, STEP | WAVE | RAMP, "step, wave or ramp"},
      {"from-s", options->from_s != TF_SIMULATE_FROM_S, STEP, "step"},
      {"until-s", options->until_s > 0, STEP, "step"},
      {"period-s", options->period_s > 0, BURST | WAVE, "burst or wave"},
      {"burst-jobs", options->burst_jobs != TF_SIMULATE_BURST_JOBS, BURST, "burst"},
      {"even", options->even, ~(unsigned)TRACE, "poisson, or another one of a rate"},
      {"trace", options->trace != NULL, TRACE, "trace"},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (rows[i].given && !(rows[i].users >> shape & 1))
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--%s: arrivals %s make no use of it; give --arrivals %s",
                     rows[i].name, options->arrivals, rows[i].arrivals);
  return TF_OK;
}

tf_code tf_simulate_arrivals(const tf_simulate_options *options, tf_recorded *recorded, tf_arrivals_config *arrivals,
                             tf_error *error) {
  *arrivals = (tf_arrivals_config){.shape = TF_ARRIVALS_POISSON};
  static const char *const names[] = {"constant", "poisson", "step", "burst", "wave", "ramp", "trace"};
  for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
    if (strcmp(names[i], options->arrivals) == 0) arrivals->shape = (tf_arrivals_shape)i;
  tf_code code = refuse_unused(options, arrivals->shape, error);
  if (code != TF_OK) return code;
  bool has_peak =
      arrivals->shape == TF_ARRIVALS_STEP || arrivals->shape == TF_ARRIVALS_WAVE || arrivals->shape == TF_ARRIVALS_RAMP;
  if (has_peak && options->peak <= 0)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--arrivals %s goes between two rates: give --peak as well",
                   options->arrivals);
  if (arrivals->shape == TF_ARRIVALS_BURST && options->period_s <= 0)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--arrivals burst: give --period-s, the time between two bursts");
  arrivals->even = options->even;
  arrivals->rate = options->rate;
  arrivals->peak = options->peak;
  arrivals->duration_s = options->duration_s;
  arrivals->from_s = options->from_s;
  arrivals->until_s = options->until_s > 0 ? options->until_s : options->duration_s;
  arrivals->period_s = options->period_s > 0 ? options->period_s : options->duration_s;
  arrivals->burst_jobs = (double)options->burst_jobs;
  if (arrivals->shape != TF_ARRIVALS_TRACE) return TF_OK;
  if (!options->trace) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--arrivals trace needs --trace FILE");
  code = tf_recorded_load(options->trace, recorded, error);
  if (code != TF_OK) return code;
  arrivals->times = recorded->arrived_s;
  arrivals->time_count = recorded->count;
  arrivals->duration_s = fmax(recorded->arrived_s[recorded->count - 1], 1);
  return TF_OK;
}

static uint32_t or_else(int64_t given, uint32_t otherwise) {
  return given > 0 ? (uint32_t)given : otherwise;
}

tf_code tf_simulate_setup(const tf_simulate_options *options, tf_recorded *recorded, tf_simulation *out,
                          tf_error *error) {
  *out = (tf_simulation){0};
  *recorded = (tf_recorded){0};
  set_defaults(out);
  tf_code code = parse_counts(options, out, error);
  if (code == TF_OK && options->service) code = read_service(options->service, out, error);
  size_t n = out->count_count;
  if (code == TF_OK)
    code = parse_times("encode-service-ms", &options->encode_service_ms, n, out->encode.service_ms, error);
  if (code == TF_OK)
    code = parse_times("decode-service-ms", &options->decode_service_ms, n, out->decode.service_ms, error);
  if (code == TF_OK && options->decode_service_ms.count > 0) /* a batch of one, unless said: three times as long */
    for (size_t i = 0; i < n; i++) out->decode.alone_ms[i] = 3 * out->decode.service_ms[i];
  if (code == TF_OK && options->encode_service_ms.count > 0)
    memcpy(out->encode.alone_ms, out->encode.service_ms, sizeof out->encode.alone_ms);
  if (code == TF_OK) code = parse_times("decode-alone-ms", &options->decode_alone_ms, n, out->decode.alone_ms, error);
  if (code == TF_OK) code = parse_events(&options->events, out, error);
  if (code == TF_OK) code = tf_simulate_arrivals(options, recorded, &out->arrivals, error);
  if (code != TF_OK) return code;
  out->encode.workers = or_else(options->encoders, out->encode.workers);
  out->decode.workers = or_else(options->llms, out->decode.workers);
  out->encode.slots = or_else(options->encode_slots, out->encode.slots);
  out->decode.slots = or_else(options->decode_slots, out->decode.slots);
  if (out->encode.window < out->encode.slots)
    out->encode.window = 2 * out->encode.slots < 16 ? 16 : 2 * out->encode.slots;
  if (out->decode.window < out->decode.slots) out->decode.window = out->decode.slots + (out->decode.slots + 1) / 2;
  out->encode.workers_max = or_else(options->encoders_max, out->encode.workers);
  out->decode.workers_max = or_else(options->llms_max, out->decode.workers);
  out->policy = (tf_policy_config){.target_wait_ms = options->target_wait_ms, .utilisation_max = options->utilisation};
  out->service_spread = options->spread;
  out->overhead_s = 0.01; /* half of the longest poll */
  out->lost_s = options->lost_s;
  out->believed_factor = options->believed_factor;
  out->waiting_max = (size_t)options->waiting_max;
  out->scaling = (tf_sim_scaling){.on = options->autoscale,
                                  .period_s = 15,
                                  .start_s = options->start_delay_s,
                                  .scale_down_s = options->scale_down_s,
                                  .to_zero = options->scale_to_zero};
  out->seed = (uint64_t)options->seed;
  return TF_OK;
}

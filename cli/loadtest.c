/* `tokenflex loadtest FILE|DIR...`: photos put on a queue as a load would, and what became of them.
 * In: photos, a way of arriving, a deployment (or none: then its own on this machine). Out: a line of waits, throughput
 * and tokens; with --record a line a job, which `tokenflex simulate --trace` reads. Photos are taken in turn, again and
 * again. One thread; times are this process's own clock, waits those that the service reports. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "cli/collect.h"
#include "cli/command.h"
#include "cli/inputs.h"
#include "cli/ready.h"
#include "cli/simulate.h"
#include "cli/submit.h"
#include "cli/target.h"
#include "common/clock.h"
#include "common/log.h"
#include "proto/wire.h"
#include "tensor/model_dir.h"

enum { JOBS_MAX = 1000000, PHOTOS_MAX = 10000, BLOCK_MS_MAX = 20, SUBMIT_AT_ONCE = 64, TEXT_BYTES_MAX = 65536 };

typedef struct loadtest_options {
  const char *arrivals, *trace, *record, *redis, *queue, *model, *log_level;
  double rate, peak, from_s, until_s, period_s, duration_s;
  int64_t burst_jobs, vision_tokens, max_new_tokens, threads, seed, drain_s;
  bool even;
} loadtest_options;

#define AT(name) offsetof(loadtest_options, name)
/* clang-format off */
static const tf_option table[] = {
  {"arrivals", 'a', TF_OPTION_CHOICE, AT(arrivals), 0, 0, "poisson", "constant|poisson|step|burst|wave|ramp|trace", "How jobs arrive, as in tokenflex simulate"},
  {"rate", 'r', TF_OPTION_REAL, AT(rate), 0, 1e5, "1", "jobs/s", "Of arrivals; the lower one of step, wave and ramp"},
  {"peak", 0, TF_OPTION_REAL, AT(peak), 0, 1e5, "0", "jobs/s", "The higher one of step, wave and ramp, which need it (ramp: up to it at half time, and back)"},
  {"from-s", 0, TF_OPTION_REAL, AT(from_s), 0, 1e9, "60", "s", "step: the peak begins"},
  {"until-s", 0, TF_OPTION_REAL, AT(until_s), 0, 1e9, "0", "s", "step: the peak ends (0: with the run)"},
  {"period-s", 0, TF_OPTION_REAL, AT(period_s), 0, 1e9, "0", "s", "burst: between two (must be given); wave: of one (0: the whole run)"},
  {"burst-jobs", 0, TF_OPTION_INT, AT(burst_jobs), 0, JOBS_MAX, "100", "jobs", "burst: added at once"},
  {"even", 0, TF_OPTION_FLAG, AT(even), 0, 0, NULL, NULL, "Evenly spaced instead of Poisson"},
  {"trace", 't', TF_OPTION_STRING, AT(trace), 0, 0, NULL, "FILE", "Recorded arrivals, as in tokenflex simulate"},
  {"duration-s", 'd', TF_OPTION_REAL, AT(duration_s), 0.1, 1e6, "60", "s", "Jobs are submitted for so long"},
  {"drain-s", 0, TF_OPTION_INT, AT(drain_s), 0, 86400, "300", "s", "Wait for the last results at most"},
  {"vision-tokens", 0, TF_OPTION_INT, AT(vision_tokens), 0, TF_VISION_TOKENS_MAX, "0", "tokens", "Of every job (0: as the load allows)"},
  {"max-new-tokens", 0, TF_OPTION_INT, AT(max_new_tokens), 1, 4096, "40", "tokens", "Longest caption"},
  {"record", 0, TF_OPTION_STRING, AT(record), 0, 0, NULL, "FILE", "Write a JSON line a job: arrived_s, finished_s, wait_ms, vision_tokens"},
  {"redis", 0, TF_OPTION_STRING, AT(redis), 0, 0, NULL, "URL", "Use the running deployment on this Redis; start nothing"},
  {"queue", 0, TF_OPTION_STRING, AT(queue), 0, 0, "default", "NAME", "Queue"},
  {"model", 0, TF_OPTION_STRING, AT(model), 0, 0, NULL, "DIR", "Model folder; else the installed one"},
  {"threads", 0, TF_OPTION_INT, AT(threads), 0, 1024, "0", "threads", "Compute threads (0: every core)"},
  {"seed", 0, TF_OPTION_INT, AT(seed), 0, 1e15, "1", NULL, "Of the arrivals"},
  {"log-level", 0, TF_OPTION_CHOICE, AT(log_level), 0, 0, "warn", "debug|info|warn|error", "Lines of the services below this are not logged"},
};
/* clang-format on */
static const tf_program program = {
    .name = "tokenflex loadtest",
    .synopsis = "[options] FILE|DIR...",
    .summary =
        "Submits photos at a given load and says how long they waited, how many were captioned, with how many tokens. "
        "Photos that come again are not encoded again where the encoders have --feature-cache-mib: give more than it "
        "holds.",
    .options = table,
    .option_count = sizeof table / sizeof *table,
};

typedef struct job {
  double arrived_s, finished_s, wait_ms, total_ms;
  uint32_t vision_tokens; /* 0: not captioned */
  bool answered;
} job;

typedef struct loadtest {
  loadtest_options options;
  tf_arrivals arrivals;
  tf_recorded trace;
  char name[48];
  char *record;             /* where the record goes; NULL: none is wanted */
  char *photos[PHOTOS_MAX]; /* absolute paths; owned */
  size_t photo_count;
  job *jobs; /* [JOBS_MAX] */
  size_t submitted, answered, failed;
  int64_t start_us;
  tf_model_dir model;
  tf_link link;
  tf_stack *stack;
  tf_collector collector;
  tf_queue_model served;
  tf_buffer report;
  tf_error error;
} loadtest;

/* --- Set-up --- */

static tf_code find_photos(loadtest *self, const char *const *names, size_t count) {
  tf_inputs_config config = {.arguments = names, .count = count};
  tf_inputs *inputs = tf_inputs_new(&config);
  if (!inputs) return tf_fail(&self->error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  tf_code code = TF_OK;
  tf_input input;
  for (tf_input_kind kind = TF_INPUT_PAUSE; code == TF_OK && kind != TF_INPUT_END && self->photo_count < PHOTOS_MAX;) {
    kind = tf_inputs_next(inputs, 4096, &input);
    if (kind == TF_INPUT_ERROR)
      code = tf_fail(&self->error, input.error.code, "%.300s: %.200s", input.image, input.error.text);
    if (kind != TF_INPUT_IMAGE) continue;
    self->photos[self->photo_count] = strdup(input.path);
    if (!self->photos[self->photo_count++]) code = tf_fail(&self->error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  }
  tf_inputs_free(&inputs);
  if (code == TF_OK && self->photo_count == 0)
    code = tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT, "name photos or folders that hold some");
  return code;
}

static tf_code plan_arrivals(loadtest *self) {
  const loadtest_options *from = &self->options;
  tf_simulate_options options = {.arrivals = from->arrivals,
                                 .trace = from->trace,
                                 .rate = from->rate,
                                 .peak = from->peak,
                                 .from_s = from->from_s,
                                 .until_s = from->until_s,
                                 .period_s = from->period_s,
                                 .duration_s = from->duration_s,
                                 .burst_jobs = from->burst_jobs,
                                 .even = from->even};
  tf_arrivals_config config;
  tf_code code = tf_simulate_arrivals(&options, &self->trace, &config, &self->error);
  if (code == TF_OK) tf_arrivals_start(&self->arrivals, &config, (uint64_t)from->seed);
  return code;
}

static tf_code check_record(loadtest *self) {
  static const tf_file_kind kind = {"a record of tokenflex loadtest", "{\"arrived_s\":", NULL};
  return self->options.record ? tf_target_check(self->options.record, &kind, NULL, &self->record, &self->error) : TF_OK;
}

static void make_name(loadtest *self) {
  uint32_t noise = (uint32_t)tf_now_us() * 2654435761u;
  if (getrandom(&noise, sizeof noise, GRND_NONBLOCK) != sizeof noise) noise ^= (uint32_t)getpid() << 16;
  snprintf(self->name, sizeof self->name, "loadtest-%lld-%08x", (long long)(tf_unix_ms() / 1000), noise);
}

static void say_nothing(void *context, const char *note) {
  (void)context;
  (void)note;
}

static tf_code get_ready(loadtest *self) {
  const loadtest_options *options = &self->options;
  tf_code code = TF_OK;
  if (!options->redis) {
    code = tf_model_dir_open(options->model, &self->model, &self->error);
    if (code != TF_OK) return code;
    tf_stack_config config = {.queue = options->queue,
                              .model = self->model.path,
                              .threads = options->threads,
                              .max_pixels = 250000000,
                              .drain_timeout_s = 1,
                              .log_level = options->log_level};
    code = tf_stack_start(&config, &self->stack, &self->error);
    if (code != TF_OK) return code;
  }
  const char *url = options->redis ? options->redis : tf_stack_redis_url(self->stack);
  code = tf_link_init(&self->link, url, options->queue, self->name, &self->error);
  if (code != TF_OK) return code;
  return tf_ready_wait(&self->link, self->stack, say_nothing, NULL, &self->served, &self->report, &self->error);
}

/* --- The run --- */

static double now_s(const loadtest *self) {
  return (double)(tf_now_us() - self->start_us) / 1e6;
}

static tf_code submit(loadtest *self) {
  const loadtest_options *options = &self->options;
  tf_submit_settings settings = {.vision_tokens = options->vision_tokens,
                                 .max_new_tokens = options->max_new_tokens,
                                 .by_bytes = options->redis != NULL};
  char id[80];
  snprintf(id, sizeof id, "%s-%zu", self->name, self->submitted);
  size_t bytes;
  job *one = &self->jobs[self->submitted];
  *one = (job){.arrived_s = now_s(self), .finished_s = NAN};
  const char *photo = self->photos[self->submitted % self->photo_count];
  tf_code code = tf_submit(&self->link, &settings, id, photo, &bytes, &self->error);
  if (code == TF_ERR_QUEUE_FULL) {
    one->answered = true;
    self->answered++;
    self->failed++;
    code = TF_OK;
  }
  if (code == TF_OK) self->submitted++;
  return code;
}

static double number_at(const json_t *object, const char *key) {
  return json_number_value(json_object_get(object, key));
}

static tf_code take_answer(void *context, const tf_answer *answer) {
  loadtest *self = context;
  size_t prefix = strlen(self->name);
  if (strncmp(answer->id, self->name, prefix) != 0 || answer->id[prefix] != '-') return TF_OK;
  char *end;
  unsigned long long number = strtoull(answer->id + prefix + 1, &end, 10);
  if (*end || number >= self->submitted || self->jobs[number].answered) return TF_OK;
  job *one = &self->jobs[number];
  one->answered = true;
  self->answered++;
  json_t *root = answer->json ? json_loadb(answer->json, answer->json_bytes, 0, NULL) : NULL;
  const json_t *timing = json_object_get(root, "timing_ms");
  double tokens = number_at(json_object_get(root, "vision_tokens"), "assigned");
  if (timing && tokens >= 1 && tokens <= UINT32_MAX) {
    one->vision_tokens = (uint32_t)tokens;
    one->wait_ms = number_at(timing, "queue") + number_at(timing, "wait");
    one->total_ms = number_at(timing, "total");
    one->finished_s = one->arrived_s + one->total_ms / 1000;
  } else {
    self->failed++;
  }
  json_decref(root);
  return TF_OK;
}

static tf_code check_alive(loadtest *self) {
  if (tf_interrupt_count() > 0) return tf_fail(&self->error, TF_ERR_CANCELLED, "interrupted");
  if (self->stack && !tf_stack_alive(self->stack, &self->report))
    return tf_fail(&self->error, TF_ERR_WORKER_LOST, "%.400s",
                   self->report.data ? self->report.data : "a process ended");
  return TF_OK;
}

/* Submits what is due, waits for answers until the next is. */
static tf_code work(loadtest *self) {
  self->start_us = tf_now_us();
  double next_s = tf_arrivals_next(&self->arrivals), last_s = 0;
  tf_code code = TF_OK;
  while (code == TF_OK && (isfinite(next_s) || self->answered < self->submitted)) {
    double now = now_s(self);
    for (int i = 0; code == TF_OK && i < SUBMIT_AT_ONCE && next_s <= now && self->submitted < JOBS_MAX; i++) {
      code = submit(self);
      last_s = now;
      next_s = tf_arrivals_next(&self->arrivals);
    }
    if (self->submitted == JOBS_MAX) next_s = INFINITY;
    if (!isfinite(next_s) && now - last_s > (double)self->options.drain_s) break;
    double left_ms = (next_s - now_s(self)) * 1000;
    int block_ms = left_ms < 1 ? 0 : left_ms < BLOCK_MS_MAX ? (int)left_ms : BLOCK_MS_MAX;
    if (code == TF_OK) code = tf_collect(&self->link, &self->collector, block_ms, take_answer, self, &self->error);
    if (code == TF_OK) code = check_alive(self);
  }
  for (size_t i = 0; self->link.context && i < self->submitted; i++) {
    if (self->jobs[i].answered) continue;
    char id[80];
    snprintf(id, sizeof id, "%s-%zu", self->name, i);
    tf_collect_cancel(&self->link, id);
  }
  if (self->link.context) tf_collect_end(&self->link);
  return code;
}

/* --- What is told --- */

static tf_code write_record(loadtest *self) {
  FILE *file = fopen(self->record, "w");
  if (!file) return tf_fail(&self->error, TF_ERR_IO, "%s: %s", self->record, strerror(errno));
  for (size_t i = 0; i < self->submitted; i++) {
    const job *one = &self->jobs[i];
    fprintf(file, "{\"arrived_s\":%.4f", one->arrived_s);
    if (one->vision_tokens)
      fprintf(file, ",\"finished_s\":%.4f,\"wait_ms\":%.1f,\"total_ms\":%.1f,\"vision_tokens\":%u", one->finished_s,
              one->wait_ms, one->total_ms, one->vision_tokens);
    fprintf(file, "}\n");
  }
  bool well = !ferror(file);
  well = fclose(file) == 0 && well;
  return well ? TF_OK : tf_fail(&self->error, TF_ERR_IO, "%s: %s", self->record, strerror(errno));
}

static tf_code tell(loadtest *self) {
  size_t n = self->submitted + 1;
  tf_recorded recorded = {.count = self->submitted,
                          .arrived_s = calloc(n, sizeof(double)),
                          .finished_s = calloc(n, sizeof(double)),
                          .wait_s = calloc(n, sizeof(double)),
                          .vision_tokens = calloc(n, sizeof(uint32_t))};
  bool well = recorded.arrived_s && recorded.finished_s && recorded.wait_s && recorded.vision_tokens;
  for (size_t i = 0; well && i < self->submitted; i++) {
    recorded.arrived_s[i] = self->jobs[i].arrived_s;
    recorded.finished_s[i] = self->jobs[i].finished_s;
    recorded.wait_s[i] = self->jobs[i].wait_ms / 1000;
    recorded.vision_tokens[i] = self->jobs[i].vision_tokens;
  }
  tf_simulation names = {.count_count = self->served.token_count_count};
  memcpy(names.counts, self->served.token_counts, sizeof names.counts);
  tf_simulate_row row = {.name = "measured"};
  if (well) row.result = tf_recorded_result(&recorded, 1, names.counts, names.count_count);
  tf_buffer text;
  tf_buffer_init(&text, TEXT_BYTES_MAX);
  if (row.result) tf_simulate_table(&names, &row, 1, &text);
  if (row.result) printf("%s", text.data ? text.data : "");
  well = row.result != NULL;
  tf_buffer_free(&text);
  tf_sim_result_free(&row.result);
  tf_recorded_free(&recorded);
  return well ? TF_OK : tf_fail(&self->error, TF_ERR_OUT_OF_MEMORY, "out of memory");
}

static int run(loadtest *self, const char *const *names, size_t count) {
  make_name(self);
  tf_code code = check_record(self);
  if (code == TF_OK) code = find_photos(self, names, count);
  if (code == TF_OK) code = plan_arrivals(self);
  if (code == TF_OK) {
    tf_interrupt_setup();
    code = get_ready(self);
  }
  if (code == TF_OK) code = work(self);
  /* What was measured until then is told in any case. */
  if (self->submitted > 0 && self->record) {
    tf_code written = write_record(self);
    if (code == TF_OK) code = written;
  }
  tf_link_close(&self->link);
  tf_stack_stop(&self->stack);
  if (code == TF_OK) code = tell(self);
  if (code != TF_OK) {
    tf_say("%s", self->error.text);
    return code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
  }
  if (self->failed > 0 || self->answered < self->submitted)
    tf_say("%zu jobs failed, %zu are not finished", self->failed, self->submitted - self->answered);
  return self->failed > 0 || self->answered < self->submitted ? TF_EXIT_PARTIAL : TF_EXIT_OK;
}

int tf_loadtest_main(int argc, char **argv) {
  loadtest *self = calloc(1, sizeof *self);
  const char **names = calloc((size_t)argc + 1, sizeof *names);
  if (self) self->jobs = calloc(JOBS_MAX, sizeof *self->jobs);
  int status = TF_EXIT_FAILED;
  tf_options_outcome outcome = TF_OPTIONS_RUN;
  size_t count = 0;
  if (!self || !names || !self->jobs) {
    tf_say("out of memory");
  } else if (tf_options_parse(&program, argc, argv, &self->options, names, &count, &outcome, &self->error) != TF_OK) {
    tf_say("%s", self->error.text);
    status = TF_EXIT_USAGE;
  } else if (outcome != TF_OPTIONS_RUN) {
    status = TF_EXIT_OK;
  } else {
    tf_log_setup("tokenflex", self->options.log_level);
    tf_buffer_init(&self->report, TEXT_BYTES_MAX);
    status = run(self, names, count);
    tf_buffer_free(&self->report);
  }
  if (self) {
    for (size_t i = 0; i < self->photo_count; i++) free(self->photos[i]);
    tf_recorded_free(&self->trace);
    free(self->record);
    free(self->jobs);
  }
  free(self);
  free(names);
  return status;
}

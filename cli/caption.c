/* `tokenflex caption FILE|DIR|PATTERN...`: from photos to lines of JSON.
 * In: options and names. Out: lines, failures, a run file, sidecars, progress and a summary; the exit status.
 * Order: everything that can be wrong with the words is found before anything is started; the stack before the output
 * is touched. */
#include "cli/caption_options.h"
#include "cli/command.h"
#include "cli/page.h"
#include "cli/ready.h"
#include "cli/run.h"
#include "common/clock.h"
#include "common/log.h"
#include "tensor/cpu.h"
#include "tensor/model_dir.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum {
  REPORT_BYTES_MAX = 65536,
  DRAIN_SECONDS = 1,
  COUNT_NAMES = 4096,
  WAIT_US = 20000,
  COUNT_FIRST_MS = 500,
  PLAN_FIRST_MS = 3000
};

typedef struct caption {
  tf_caption_config config;
  tf_submit_settings settings;
  tf_model_dir model; /* private stack only */
  tf_server servers[TF_SERVERS_MAX];
  size_t server_count;
  tf_stack *stack;
  tf_list *list;
  tf_output output;
  tf_progress progress;
  tf_pace pace;
  tf_run_record record;
  tf_earlier earlier;
  tf_past past;
  bool resumed; /* lines are added to those of earlier runs */
  tf_run run;
  tf_buffer report;
  tf_error error;
} caption;

static bool has_deployment(const caption *self) {
  return self->config.redis.count > 0;
}

/* -- checks ----------------------------------------------------------------------------------------------------- */

/* Which count to ask for, given those that there are. */
static tf_code choose_tokens(caption *self, const uint32_t *counts, uint32_t count) {
  const char *wish = self->config.vision_tokens;
  char offered[128];
  if (!wish) self->settings.vision_tokens = counts[count - 1];
  if (!wish || strcmp(wish, "auto") == 0) return TF_OK; /* auto: 0 */
  char *end;
  unsigned long number = strtoul(wish, &end, 10);
  for (uint32_t i = 0; i < count; i++)
    if (end != wish && *end == '\0' && counts[i] == number) self->settings.vision_tokens = counts[i];
  if (self->settings.vision_tokens) return TF_OK;
  tf_queue_counts_text(counts, count, offered, sizeof offered);
  return tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT, "--vision-tokens %.60s: this model offers %s, or auto", wish,
                 offered);
}

static uint64_t random_number(void) {
  uint64_t noise = (uint64_t)tf_now_us() * 0x9e3779b97f4a7c15u;
  if (getrandom(&noise, sizeof noise, GRND_NONBLOCK) != sizeof noise) noise ^= (uint64_t)getpid() << 32;
  return noise;
}

static void make_run_name(char *out, size_t out_bytes) {
  time_t now = time(NULL);
  struct tm parts = {0};
  char stamp[32] = "";
  if (gmtime_r(&now, &parts)) strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%S", &parts);
  snprintf(out, out_bytes, "%s-%08x", stamp, (unsigned)random_number());
}

static tf_code check_words(caption *self, const char **names, size_t name_count) {
  tf_code code = tf_caption_check(&self->config, names, name_count, &self->error);
  make_run_name(self->record.run, sizeof self->record.run);
  self->server_count = has_deployment(self) ? self->config.redis.count : 1;
  for (size_t i = 0; !code && i < self->server_count; i++) {
    const char *url = has_deployment(self) ? self->config.redis.items[i] : "unix:///none"; /* the names are checked */
    code = tf_link_init(&self->servers[i].link, url, self->config.queue, self->record.run, &self->error);
  }
  return code;
}

/* The page comes last, but what stands in its place is looked at first. */
static tf_code check_page(caption *self) {
  char *target = NULL;
  if (!self->config.report) return TF_OK;
  tf_code code = tf_page_target(self->config.report, self->config.output, &target, &self->error);
  free(target);
  return code;
}

/* What the private stack's workers choose by the same options: auto may take one kind for most matrices and a finer one
 * for some. */
static const char *compute_in_use(void) {
  static char text[40];
  tf_compute most = tf_cpu_compute(), fine = tf_cpu_compute_fine();
  snprintf(text, sizeof text, "%s%s%s", tf_compute_name(most), fine != most ? "+" : "",
           fine != most ? tf_compute_name(fine) : "");
  return text;
}

static void fill_settings(caption *self) {
  const tf_caption_config *config = &self->config;
  static char place[400];
  self->settings.prompt = config->prompt;
  self->settings.max_new_tokens = config->max_new_tokens;
  self->settings.by_bytes = has_deployment(self) && !config->by_reference;
  self->pace.finish_unix_ms = config->finish_unix_ms;
  self->settings.pace = config->finish_unix_ms ? self->record.run : NULL;
  tf_run_record *record = &self->record;
  record->state = "running";
  record->named = config->names;
  record->named_count = config->name_count;
  record->queue = config->queue;
  record->settings = &self->settings;
  record->format = config->lines;
  record->max_pixels = config->max_pixels;
  record->started_unix_ms = tf_unix_ms();
  tf_link_place(&self->servers[0].link, place, sizeof place);
  record->redis = has_deployment(self) ? place : NULL;
  record->model_dir = has_deployment(self) ? NULL : self->model.path;
  record->compute = has_deployment(self) ? NULL : compute_in_use();
  record->cpu = has_deployment(self) ? NULL : tf_cpu_name(tf_cpu_level());
  if (has_deployment(self)) return; /* its model is known once it answers */
  snprintf(record->model.name, sizeof record->model.name, "%s", self->model.name);
  snprintf(record->model.pair_hash, sizeof record->model.pair_hash, "%s", self->model.pair_hash);
  record->model.token_count_count = self->model.token_count_count;
  for (uint32_t i = 0; i < self->model.token_count_count && i < TF_QUEUE_COUNTS_MAX; i++)
    record->model.token_counts[i] = self->model.token_counts[i];
}

/* -- what earlier runs left ------------------------------------------------------------------------------------- */

/* May this run's lines join what is in the output? pair_hash NULL: the deployment has not told it yet. */
static tf_code check_past(caption *self, const char *pair_hash) {
  if (!self->resumed) return TF_OK;
  tf_submit_settings settings = self->settings;
  bool chosen = pair_hash || !has_deployment(self);
  if (!chosen) settings.vision_tokens = -1;
  return tf_earlier_compare(&self->earlier, self->config.output, &settings, pair_hash, self->record.compute,
                            self->output.format, self->config.upgrade, &self->error);
}

/* Relative names of an output begin in one folder: names of another one would be taken for those. */
static tf_code check_folder(caption *self, const char *start, const char *folder) {
  bool relative = self->config.list != NULL;
  for (size_t i = 0; i < self->config.name_count; i++) relative |= self->config.names[i][0] != '/';
  if (!relative || strcmp(start, folder) == 0) return TF_OK;
  return tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT,
                 "names in %.100s begin in %.200s: go there first, or name absolute paths", self->config.output, start);
}

static tf_code open_past(caption *self) {
  char folder[PATH_MAX];
  if (!getcwd(folder, sizeof folder)) snprintf(folder, sizeof folder, "/"); /* relative names fail by themselves then */
  self->resumed = tf_output_has_past(&self->output) && !self->config.overwrite;
  tf_code code = self->resumed ? TF_OK : tf_output_is_ours(&self->output, &self->error);
  if (!code && !self->resumed && self->config.upgrade)
    return tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT, "--upgrade: %.300s holds no captions", self->config.output);
  if (!code && self->resumed) code = tf_earlier_read(self->output.run_path, &self->earlier, &self->error);
  if (!code) code = check_past(self, has_deployment(self) ? NULL : self->model.pair_hash);
  self->record.stays_auto = self->config.upgrade && self->earlier.found && self->earlier.vision_tokens == 0;
  const char *start = self->earlier.folder ? self->earlier.folder : folder;
  if (!code) code = check_folder(self, start, folder);
  if (!code) code = tf_past_init(&self->past, start, &self->error);
  self->record.folder = self->past.folder;
  if (code || !self->resumed) return code;
  uint64_t merged = 0;
  code = tf_output_upgrade_is_ours(&self->output, &self->error);
  if (!code) code = tf_upgrade_merge(&self->output, &self->past, &merged, &self->error); /* of a run that was killed */
  self->record.upgraded += merged;
  self->past.target = self->config.upgrade && !has_deployment(self) ? (uint32_t)self->settings.vision_tokens : 0;
  return code ? code : tf_past_read(&self->past, &self->output, &self->error);
}

/* -- getting ready ---------------------------------------------------------------------------------------------- */

static tf_code start_stack(caption *self) {
  const tf_caption_config *config = &self->config;
  tf_stack_config stack = {.queue = config->queue,
                           .model = self->model.path,
                           .threads = config->threads,
                           .compute = config->compute,
                           .cpu = config->cpu,
                           .cache_dir = config->cache_dir,
                           .cache_dir_mib = config->cache_dir_mib,
                           .max_pixels = config->max_pixels,
                           .drain_timeout_s = DRAIN_SECONDS,
                           .log_level = config->log_level};
  tf_code code = tf_stack_start(&stack, &self->stack, &self->error);
  if (self->stack && !tf_stack_alive(self->stack, &self->report)) return TF_ERR_WORKER_LOST;
  if (tf_interrupt_count() > 0) return tf_fail(&self->error, TF_ERR_CANCELLED, "interrupted");
  if (code) return code;
  return tf_link_init(&self->servers[0].link, tf_stack_redis_url(self->stack), config->queue, self->record.run,
                      &self->error);
}

/* Every server's workers must be of the same model: lines of one output are to be comparable. */
static tf_code wait_for_servers(caption *self) {
  for (size_t i = 0; i < self->server_count; i++) {
    tf_queue_model model;
    tf_code code = tf_ready_wait(&self->servers[i].link, self->stack, tf_run_show_note, &self->run, &model,
                                 &self->report, &self->error);
    if (code) return code;
    if (i == 0) self->record.model = model;
    if (strcmp(model.pair_hash, self->record.model.pair_hash) != 0)
      return tf_fail(&self->error, TF_ERR_PAIR_MISMATCH, "the servers are of different models: %.100s and %.100s",
                     self->record.model.name, model.name);
  }
  return TF_OK;
}

static tf_code get_ready(caption *self) {
  tf_code code = has_deployment(self) ? TF_OK : start_stack(self);
  if (!code) code = wait_for_servers(self);
  if (code || !has_deployment(self)) return code;
  code = choose_tokens(self, self->record.model.token_counts, self->record.model.token_count_count);
  if (!code) code = check_past(self, self->record.model.pair_hash);
  return code;
}

static tf_code write_record(caption *self, tf_error *error) {
  tf_buffer json;
  self->record.output_captions = self->past.captions;
  self->record.output_failures = self->past.failures;
  tf_buffer_init(&json, TF_JSONL_LINE_BYTES_MAX);
  tf_code code = tf_report_json(&self->record, &json, error);
  if (!code) code = tf_output_settings(&self->output, &json, error);
  tf_buffer_free(&json);
  return code;
}

static tf_code open_sources(caption *self) {
  const tf_caption_config *config = &self->config;
  tf_run *run = &self->run;
  tf_run_record *record = &self->record;
  tf_code code =
      config->list ? tf_list_open(config->list, config->null ? '\0' : '\n', &self->list, &self->error) : TF_OK;
  if (code) return code;
  record->shuffled = config->shuffle;
  record->seed = config->seed > 0         ? (uint64_t)config->seed
                 : self->earlier.has_seed ? self->earlier.seed
                                          : random_number() >> 12; /* a number that JSON keeps */
  tf_source_config source = {
      .inputs = {.arguments = config->names,
                 .count = config->name_count,
                 .list = self->list,
                 .flat = config->no_recursive || !config->recursive},
      .limit = (uint64_t)config->limit,
      .shuffle = config->shuffle,
      .seed = record->seed,
  };
  run->source = tf_source_new(&source);
  source.shuffle = false; /* the number is the same in any order */
  run->counter = tf_source_new(&source);
  return run->source && run->counter ? TF_OK : tf_fail(&self->error, TF_ERR_OUT_OF_MEMORY, "out of memory");
}

static void prepare_run(caption *self) {
  const tf_caption_config *config = &self->config;
  tf_run *run = &self->run;
  run->output = &self->output;
  run->progress = &self->progress;
  run->record = &self->record;
  run->past = &self->past;
  run->pace = &self->pace;
  run->options = (tf_run_options){.retry_failed = config->retry_failed,
                                  .sidecar = config->sidecar,
                                  .overwrite = config->overwrite,
                                  .verbose = config->verbose,
                                  .quiet = config->quiet,
                                  .by_sidecars = self->output.silent};
}

/* Is there a picture to do at all? Else nothing has to be started. A shuffled sample may be of others than the first
 * ones: it is found out on the way. */
static bool look_for_work(caption *self) {
  tf_run *run = &self->run;
  bool sampled = self->config.shuffle && self->config.limit > 0;
  bool any = self->config.upgrade && (self->past.below > 0 || has_deployment(self));
  while (!any && !run->total_known && tf_interrupt_count() == 0) {
    uint64_t found = run->found;
    tf_input_kind kind = tf_run_count(run, 1);
    any = kind == TF_INPUT_IMAGE && (run->found > found || sampled);
    if (kind == TF_INPUT_WAIT) usleep(WAIT_US);
  }
  return any;
}

/* With a deadline, names are counted for a moment before the first is submitted, and a deployment that knows its
 * workers' pace is given the time to make its plan: the run begins with a forecast. */
static void plan_ahead(caption *self) {
  tf_run *run = &self->run;
  int64_t began_ms = tf_now_ms(), until_ms = began_ms + COUNT_FIRST_MS;
  while (self->pace.finish_unix_ms && !run->forecast_told && tf_interrupt_count() == 0 && tf_now_ms() < until_ms) {
    tf_input_kind kind = tf_run_count(run, COUNT_NAMES);
    tf_run_keep_pace(run);
    if (self->pace.count_count > 0 && self->pace.per_second[0] > 0) until_ms = began_ms + PLAN_FIRST_MS;
    if (kind == TF_INPUT_WAIT || run->total_known) usleep(WAIT_US);
  }
}

/* The lines below the count that is wanted, where the model told it only now. */
static tf_code prepare_upgrade(caption *self) {
  if (!self->config.upgrade) return TF_OK;
  self->run.options.upgrade = (uint32_t)self->settings.vision_tokens;
  if (!has_deployment(self)) return TF_OK;
  tf_upgrade count;
  tf_input input;
  const char *before;
  tf_input_kind kind;
  tf_upgrade_open(&count, &self->output, &self->past, self->run.options.upgrade);
  while ((kind = tf_upgrade_next(&count, &input, &before)) == TF_INPUT_IMAGE) self->past.below++;
  tf_upgrade_close(&count);
  if (kind == TF_INPUT_ERROR) self->error = input.error;
  return kind == TF_INPUT_ERROR ? input.error.code : TF_OK;
}

/* Nobody was asked: what the record says of the model stays as it was. */
static void keep_model(caption *self) {
  if (!has_deployment(self) || !self->earlier.found) return;
  snprintf(self->record.model.pair_hash, sizeof self->record.model.pair_hash, "%s",
           self->earlier.pair_hash ? self->earlier.pair_hash : "");
  if (!self->config.vision_tokens) self->settings.vision_tokens = self->earlier.vision_tokens;
}

/* What came back to a run that was killed after the jobs it had out: nobody reads it any more. */
static void forget_earlier(caption *self) {
  tf_link old;
  if (!has_deployment(self) || !self->earlier.run) return;
  for (size_t i = 0; i < self->run.server_count; i++) {
    tf_link *link = &self->servers[i].link;
    if (tf_link_init(&old, self->config.redis.items[i], self->config.queue, self->earlier.run, NULL)) continue;
    const char *keys[] = {old.reply, old.pace}; /* one each: to a user of least rights no rule grants both at once */
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
      redisReply *reply;
      if (tf_link_ask(link, &reply, NULL, "DEL", keys[k], NULL) == TF_OK) freeReplyObject(reply);
    }
  }
}

/* The work between opening and closing of the output. */
static tf_code work(caption *self) {
  tf_run *run = &self->run;
  prepare_run(self);
  tf_code code = open_sources(self);
  if (code) return code;
  bool any = look_for_work(self);
  if (any)
    code = get_ready(self);
  else
    keep_model(self);
  if (!code && any) code = prepare_upgrade(self);
  self->record.full_detail = self->config.upgrade && self->past.below == 0;
  tf_progress_clear(&self->progress);
  if (!code && any && !self->config.quiet) tf_say("model %s", self->record.model.name);
  run->servers = self->servers;
  run->server_count = any ? self->server_count : 0;
  run->stack = self->stack;
  if (!code) code = tf_output_begin(&self->output, !self->resumed, &self->error);
  if (!code) code = write_record(self, &self->error);
  if (code) return code;
  plan_ahead(self);
  code = tf_run_work(run, &self->report, &self->error);
  tf_run_end(run);
  forget_earlier(self);
  return code;
}

/* -- the end ---------------------------------------------------------------------------------------------------- */

/* Keeps the first fault: what comes after it is its consequence. */
static void note(caption *self, tf_code *code, const tf_error *why) {
  if (*code) return;
  *code = why->code;
  self->error = *why;
}

/* After the last line: everything durable, better captions in their places, the failures tidied where this run has
 * tried some again, the record. */
static void settle(caption *self, tf_code *code) {
  tf_error why = {0};
  uint64_t merged = 0;
  if (tf_output_sync(&self->output, true, &why)) note(self, code, &why);
  if (tf_upgrade_merge(&self->output, &self->past, &merged, &why)) note(self, code, &why);
  self->record.upgraded += merged;
  if (self->past.untidy && tf_past_tidy(&self->past, &self->output, &why)) note(self, code, &why);
  self->record.ended_unix_ms = tf_unix_ms();
  self->record.state = !*code ? "complete" : *code == TF_ERR_CANCELLED ? "interrupted" : "failed";
  if (write_record(self, &why)) note(self, code, &why);
}

static void tell_summary(caption *self, const char *output, const char *errors) {
  tf_buffer summary;
  tf_buffer_init(&summary, REPORT_BYTES_MAX);
  tf_report_summary(&self->record, output, errors, &summary);
  fprintf(stderr, "%s", summary.data ? summary.data : "");
  tf_buffer_free(&summary);
}

/* The page shows all that the output holds, what earlier runs wrote, too. */
static void write_page(const caption *self, const char *output, tf_code *code, tf_error *why) {
  tf_page_counts counts;
  tf_page_config page = {.output = output,
                         .page = self->config.report,
                         .threads = (int)self->config.threads,
                         .max_pixels = self->config.max_pixels};
  *code = tf_page_write(&page, &counts, why);
  if (!*code && !self->config.quiet)
    fprintf(stderr, "report: %s\n", strcmp(page.page, "-") == 0 ? "standard output" : page.page);
}

static int close_run(caption *self, tf_code code) {
  bool begun = self->output.begun;
  char *output = begun && self->output.captions.path ? strdup(self->output.captions.path) : NULL;
  char *errors = begun && self->output.errors.path ? strdup(self->output.errors.path) : NULL;
  tf_progress_clear(&self->progress);
  for (size_t i = 0; i < self->server_count; i++) tf_link_close(&self->servers[i].link);
  tf_stack_stop(&self->stack);
  if (begun) settle(self, &code);
  tf_error closing = {0};
  if (tf_output_close(&self->output, &closing)) note(self, &code, &closing);
  if (code && code != TF_ERR_CANCELLED && code != TF_ERR_WORKER_LOST) tf_say("%s", self->error.text);
  if (code && self->report.data)
    fprintf(stderr, "tokenflex: %s%s", self->report.data, self->report.overflow ? "...\n" : "");
  if (begun && (!self->config.quiet || code))
    tell_summary(self, output, errors);
  else if (code == TF_ERR_CANCELLED)
    tf_say("interrupted");
  if (!code && output && self->config.report) {
    write_page(self, output, &code, &self->error);
    if (code) tf_say("%s", self->error.text);
  }
  free(output);
  free(errors);
  if (code) return code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
  return self->record.failed > 0 || self->past.failures > 0 ? TF_EXIT_PARTIAL : TF_EXIT_OK;
}

static int complain(const caption *self) {
  tf_say("%s", self->error.text);
  return self->error.code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
}

static int run_caption(caption *self, const char **names, size_t name_count) {
  if (check_words(self, names, name_count) || check_page(self)) return complain(self);
  if (!has_deployment(self)) {
    if (tf_model_dir_open(self->config.model, &self->model, &self->error)) {
      tf_say("%s", self->error.text);
      return TF_EXIT_FAILED;
    }
    if (choose_tokens(self, self->model.token_counts, self->model.token_count_count)) return complain(self);
  }
  fill_settings(self);
  tf_interrupt_setup();
  tf_code code = tf_output_open(&self->output, self->config.output, self->config.lines, &self->error);
  self->output.silent = !code && self->config.sidecar && !self->config.output;
  if (!code) code = open_past(self);
  if (code) {
    tf_error ignored;
    tf_output_close(&self->output, &ignored);
    return complain(self);
  }
  tf_progress_init(&self->progress);
  return close_run(self, work(self));
}

static void free_all(caption *self) {
  tf_source_free(&self->run.source);
  tf_source_free(&self->run.counter);
  tf_list_free(&self->list);
  tf_past_free(&self->past);
  tf_earlier_free(&self->earlier);
  tf_buffer_free(&self->report);
  free(self);
}

int tf_caption_main(int argc, char **argv) {
  caption *self = calloc(1, sizeof *self);
  const char **names = calloc((size_t)argc + 1, sizeof *names);
  if (!self || !names) {
    free(self);
    free(names);
    tf_say("out of memory");
    return TF_EXIT_FAILED;
  }
  tf_options_outcome outcome;
  size_t name_count = 0;
  int status = TF_EXIT_OK;
  tf_buffer_init(&self->report, REPORT_BYTES_MAX);
  if (tf_options_parse(&tf_caption_program, argc, argv, &self->config, names, &name_count, &outcome, &self->error)) {
    tf_say("%s", self->error.text);
    status = TF_EXIT_USAGE;
  } else if (outcome == TF_OPTIONS_RUN) {
    tf_log_setup("tokenflex", self->config.log_level);
    status = run_caption(self, names, name_count);
  }
  free_all(self);
  free(names);
  return status;
}

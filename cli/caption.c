/* `tokenflex caption FILE|DIR...`: from photos to lines of JSON.
 * In: options and names. Out: JSON Lines, errors, a run file, progress and a summary; the exit status.
 * Order: everything that can be wrong with the words is found before anything is started; the stack before the output
 * is touched. */
#include "cli/command.h"
#include "cli/ready.h"
#include "cli/run.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/options.h"
#include "common/utf8.h"
#include "tensor/cpu.h"
#include "tensor/model_dir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { PROMPT_BYTES_MAX = 16384, REPORT_BYTES_MAX = 65536, DRAIN_SECONDS = 1, COUNT_NAMES = 4096 };

typedef struct caption_config {
  const char *output, *vision_tokens, *prompt, *model, *redis, *queue, *log_level, *compute, *cpu;
  bool overwrite;
  int64_t max_new_tokens, max_pixels, threads;
} caption_config;

#define FIELD(name) offsetof(caption_config, name)
static const tf_option options[] = {
    {"output", 'o', TF_OPTION_STRING, FIELD(output), 0, 0, NULL, "FILE",
     "Write the lines to FILE; else to standard output"},
    {"overwrite", 0, TF_OPTION_FLAG, FIELD(overwrite), 0, 0, NULL, NULL, "Replace FILE where it exists"},
    {"vision-tokens", 0, TF_OPTION_STRING, FIELD(vision_tokens), 0, 0, NULL, "N|auto",
     "Tokens that show the LLM the picture; else the model's most; auto: as the load allows"},
    {"prompt", 0, TF_OPTION_STRING, FIELD(prompt), 0, 0, NULL, "TEXT",
     "What to ask about the picture; else the model's own"},
    {"max-new-tokens", 0, TF_OPTION_INT, FIELD(max_new_tokens), 1, 4096, "40", "tokens", "Longest caption"},
    {"max-pixels", 0, TF_OPTION_INT, FIELD(max_pixels), 1, 1e12, "250000000", "pixels",
     "Larger pictures are errors (a deployment has a limit of its own)"},
    {"model", 0, TF_OPTION_STRING, FIELD(model), 0, 0, NULL, "DIR", "Model folder; else the installed one"},
    {"redis", 0, TF_OPTION_STRING, FIELD(redis), 0, 0, NULL, "URL",
     "Use the running deployment on this Redis; start nothing"},
    {"queue", 0, TF_OPTION_STRING, FIELD(queue), 0, 0, "default", "NAME", "Queue"},
    {"threads", 0, TF_OPTION_INT, FIELD(threads), 0, 1024, "0", "threads", "Compute threads (0: every core)"},
    {"compute", 0, TF_OPTION_CHOICE, FIELD(compute), 0, 0, "auto", TF_COMPUTE_CHOICES,
     "Arithmetic (auto: the fastest that keeps the captions' quality)"},
    {"cpu", 0, TF_OPTION_CHOICE, FIELD(cpu), 0, 0, "auto", TF_CPU_CHOICES,
     "Instructions to use (auto: the best that there are)"},
    {"log-level", 0, TF_OPTION_CHOICE, FIELD(log_level), 0, 0, "warn", "debug|info|warn|error",
     "Lines of the services below this are not logged"},
};
static const tf_program program = {
    .name = "tokenflex caption",
    .synopsis = "[options] FILE|DIR...",
    .summary = "Writes a caption for every photo in the files and folders named, one JSON object a line.\n"
               "Exit status: 0 all captioned, 3 some failed, 1 could not run, 2 wrong usage.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

typedef struct caption {
  caption_config config;
  const char **names;
  size_t name_count;
  tf_submit_settings settings;
  tf_model_dir model; /* private stack only */
  tf_link link;
  tf_stack *stack;
  tf_output output;
  tf_progress progress;
  tf_run_record record;
  tf_run run;
  tf_buffer report;
  tf_error error;
} caption;

/* -- checks ----------------------------------------------------------------------------------------------------- */

/* Which count to ask for, given those that there are. */
static tf_code choose_tokens(caption *self, const uint32_t *counts, uint32_t count) {
  const char *wish = self->config.vision_tokens;
  char offered[128];
  if (!wish) {
    self->settings.vision_tokens = counts[count - 1];
    return TF_OK;
  }
  if (strcmp(wish, "auto") == 0) return TF_OK; /* 0 */
  char *end;
  unsigned long number = strtoul(wish, &end, 10);
  for (uint32_t i = 0; i < count; i++)
    if (end != wish && *end == '\0' && counts[i] == number) self->settings.vision_tokens = counts[i];
  if (self->settings.vision_tokens) return TF_OK;
  tf_queue_counts_text(counts, count, offered, sizeof offered);
  return tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT, "--vision-tokens %.60s: this model offers %s, or auto", wish,
                 offered);
}

static void make_run_name(char *out, size_t out_bytes) {
  uint32_t noise = (uint32_t)tf_now_us() * 2654435761u;
  if (getrandom(&noise, sizeof noise, GRND_NONBLOCK) != sizeof noise) noise ^= (uint32_t)getpid() << 16;
  time_t now = time(NULL);
  struct tm parts = {0};
  char stamp[32] = "";
  if (gmtime_r(&now, &parts)) strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%S", &parts);
  snprintf(out, out_bytes, "%s-%08x", stamp, noise);
}

static tf_code check_words(caption *self) {
  const caption_config *config = &self->config;
  const char *wish = config->vision_tokens, *prompt = config->prompt;
  if (self->name_count == 0)
    return tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT,
                   "name files or folders: tokenflex caption [options] FILE|DIR...");
  if (wish && strcmp(wish, "auto") != 0 && (strspn(wish, "0123456789") != strlen(wish) || !wish[0] || strlen(wish) > 6))
    return tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT, "--vision-tokens %.60s: give a number or auto", wish);
  if (prompt && !prompt[0])
    return tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT, "--prompt is empty: leave it out for the model's own");
  if (config->output && !config->output[0])
    return tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT, "--output is empty: name a file, or leave it out");
  if (prompt && (strlen(prompt) > PROMPT_BYTES_MAX || !tf_utf8_is_valid(prompt, strlen(prompt))))
    return tf_fail(&self->error, TF_ERR_INVALID_ARGUMENT, "--prompt: at most %d bytes of UTF-8", PROMPT_BYTES_MAX);
  tf_code code = config->redis ? TF_OK : tf_cpu_use(config->cpu, config->compute, &self->error);
  if (code) return code;
  make_run_name(self->record.run, sizeof self->record.run);
  const char *url = config->redis ? config->redis : "unix:///none"; /* the names alone are checked */
  return tf_link_init(&self->link, url, config->queue, self->record.run, &self->error);
}

static void fill_settings(caption *self) {
  const caption_config *config = &self->config;
  static char place[400];
  self->settings.prompt = config->prompt;
  self->settings.max_new_tokens = config->max_new_tokens;
  self->settings.by_bytes = config->redis != NULL;
  tf_run_record *record = &self->record;
  record->state = "running";
  record->named = self->names;
  record->named_count = self->name_count;
  record->queue = config->queue;
  record->settings = &self->settings;
  record->max_pixels = config->max_pixels;
  record->started_unix_ms = tf_unix_ms();
  tf_link_place(&self->link, place, sizeof place);
  record->redis = config->redis ? place : NULL;
  record->model_dir = config->redis ? NULL : self->model.path;
}

/* -- the run ---------------------------------------------------------------------------------------------------- */

static tf_code start_stack(caption *self) {
  const caption_config *config = &self->config;
  tf_stack_config stack = {.queue = config->queue,
                           .model = self->model.path,
                           .threads = config->threads,
                           .compute = config->compute,
                           .cpu = config->cpu,
                           .max_pixels = config->max_pixels,
                           .drain_timeout_s = DRAIN_SECONDS,
                           .log_level = config->log_level};
  tf_code code = tf_stack_start(&stack, &self->stack, &self->error);
  if (self->stack && !tf_stack_alive(self->stack, &self->report)) return TF_ERR_WORKER_LOST;
  if (tf_interrupt_count() > 0) return tf_fail(&self->error, TF_ERR_CANCELLED, "interrupted");
  if (code) return code;
  return tf_link_init(&self->link, tf_stack_redis_url(self->stack), config->queue, self->record.run, &self->error);
}

static tf_code get_ready(caption *self) {
  tf_code code = TF_OK;
  if (!self->config.redis) code = start_stack(self);
  if (!code)
    code = tf_ready_wait(&self->link, self->stack, tf_run_show_note, &self->run, &self->record.model, &self->report,
                         &self->error);
  if (!code && self->config.redis)
    code = choose_tokens(self, self->record.model.token_counts, self->record.model.token_count_count);
  return code;
}

static tf_code write_record(caption *self) {
  tf_buffer json;
  tf_buffer_init(&json, TF_JSONL_LINE_BYTES_MAX);
  tf_code code = tf_report_json(&self->record, &json, &self->error);
  if (!code) code = tf_output_settings(&self->output, &json, &self->error);
  tf_buffer_free(&json);
  return code;
}

static void tell_report(caption *self) {
  if (!self->report.data) return;
  fprintf(stderr, "tokenflex: %s%s", self->report.data, self->report.overflow ? "...\n" : "");
}

/* The work between opening and closing of the output. */
static tf_code work(caption *self) {
  tf_run *run = &self->run;
  run->output = &self->output;
  run->progress = &self->progress;
  run->record = &self->record;
  run->inputs = tf_inputs_new(self->names, self->name_count);
  run->counter = tf_inputs_new(self->names, self->name_count);
  if (!run->inputs || !run->counter) return tf_fail(&self->error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  bool any = false; /* is there a picture at all? Else nothing has to be started */
  for (tf_input_kind kind = TF_INPUT_PAUSE; !any && kind != TF_INPUT_END && tf_interrupt_count() == 0;) {
    tf_input input;
    kind = tf_inputs_next(run->counter, COUNT_NAMES, &input);
    if (kind == TF_INPUT_IMAGE || kind == TF_INPUT_ERROR) run->total++;
    if (kind == TF_INPUT_END) run->total_known = true;
    any = kind == TF_INPUT_IMAGE;
  }
  tf_code code = any ? get_ready(self) : TF_OK;
  tf_progress_clear(&self->progress);
  if (!code && any) tf_say("model %s", self->record.model.name);
  run->link = any ? &self->link : NULL;
  run->stack = self->stack;
  if (!code) code = tf_output_begin(&self->output, &self->error);
  if (!code) code = write_record(self);
  if (code) return code;
  code = tf_run_work(run, &self->report, &self->error);
  tf_run_end(run);
  return code;
}

static int close_run(caption *self, tf_code code) {
  bool begun = self->output.begun;
  char *output = begun && self->output.captions.path ? strdup(self->output.captions.path) : NULL;
  char *errors = begun && self->output.errors.path ? strdup(self->output.errors.path) : NULL;
  tf_progress_clear(&self->progress);
  tf_link_close(&self->link);
  tf_stack_stop(&self->stack);
  self->record.ended_unix_ms = tf_unix_ms();
  self->record.state = !code ? "complete" : code == TF_ERR_CANCELLED ? "interrupted" : "failed";
  if (code && code != TF_ERR_CANCELLED && code != TF_ERR_WORKER_LOST) tf_say("%s", self->error.text);
  if (code) tell_report(self);
  if (begun && write_record(self) && !code) {
    tf_say("%s", self->error.text);
    code = self->error.code;
  }
  tf_error closing;
  if (tf_output_close(&self->output, &closing)) {
    tf_say("%s", closing.text);
    if (!code) code = closing.code;
  }
  if (begun) {
    tf_buffer summary;
    tf_buffer_init(&summary, REPORT_BYTES_MAX);
    tf_report_summary(&self->record, output, errors, &summary);
    fprintf(stderr, "%s", summary.data ? summary.data : "");
    tf_buffer_free(&summary);
  } else if (code == TF_ERR_CANCELLED) {
    tf_say("interrupted");
  }
  free(output);
  free(errors);
  if (code) return code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
  return self->record.failed > 0 ? TF_EXIT_PARTIAL : TF_EXIT_OK;
}

static int complain(const caption *self) {
  tf_say("%s", self->error.text);
  return self->error.code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
}

static int run_caption(caption *self) {
  if (check_words(self)) {
    tf_say("%s", self->error.text);
    return TF_EXIT_USAGE;
  }
  if (!self->config.redis) {
    tf_code code = tf_model_dir_open(self->config.model, &self->model, &self->error);
    if (code) {
      tf_say("%s", self->error.text);
      return TF_EXIT_FAILED;
    }
    if (choose_tokens(self, self->model.token_counts, self->model.token_count_count)) return complain(self);
  }
  fill_settings(self);
  tf_code code = tf_output_open(&self->output, self->config.output, self->config.overwrite, &self->error);
  if (code) {
    tf_error ignored;
    tf_output_close(&self->output, &ignored);
    return complain(self);
  }
  tf_interrupt_setup();
  tf_progress_init(&self->progress);
  int status = close_run(self, work(self));
  tf_inputs_free(&self->run.inputs);
  tf_inputs_free(&self->run.counter);
  return status;
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
  int status = TF_EXIT_OK;
  self->names = names;
  tf_buffer_init(&self->report, REPORT_BYTES_MAX);
  if (tf_options_parse(&program, argc, argv, &self->config, names, &self->name_count, &outcome, &self->error)) {
    tf_say("%s", self->error.text);
    status = TF_EXIT_USAGE;
  } else if (outcome == TF_OPTIONS_RUN) {
    tf_log_setup("tokenflex", self->config.log_level);
    status = run_caption(self);
  }
  tf_buffer_free(&self->report);
  free(names);
  free(self);
  return status;
}

/* Keeps a window of jobs filled and writes what comes back. In: images. Out: lines, in the order of the answers.
 * A turn of the loop: look after the stack and the connection, submit, collect, draw.
 * Answers are matched by id; what is not of this run, or came before, is nobody's and passed over. */
#include "cli/run.h"

#include "cli/command.h"
#include "common/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
  SUBMITS_A_TURN = 32,
  NAMES_A_TURN = 4096,
  BLOCK_MS = 100,
  BLOCK_COUNTING_MS = 5,
  DEPTH_MS = 1000,
  RECONNECT_MS = 500,
  QUEUE_FULL_MS = 500
};

/* -- results and failures --------------------------------------------------------------------------------------- */

/* What a terminal may show of a name: control characters would steer it, or break the line. */
static void make_visible(tf_buffer *text) {
  for (size_t i = 0; i < text->size; i++) {
    const unsigned char *at = (const unsigned char *)text->data + i;
    if (*at < ' ' || *at == 0x7f) text->data[i] = '?';
    if (*at == 0xc2 && i + 1 < text->size && at[1] < 0xa0) text->data[i] = text->data[i + 1] = '?'; /* C1, in UTF-8 */
  }
}

/* A message about a file begins with its path, which the line names already. */
static const char *without_path(const char *message, const char *path) {
  size_t size = path ? strlen(path) : 0;
  return size > 0 && strncmp(message, path, size) == 0 && strncmp(message + size, ": ", 2) == 0 ? message + size + 2
                                                                                                : message;
}

static tf_code set_state(tf_run *self, uint64_t key, tf_name_state state, tf_error *error) {
  if (state == TF_NAME_DONE) self->past->captions++;
  return tf_keymap_put(&self->past->names, key, state, error);
}

/* Whether a picture is this run's to do; if so it is taken. */
static bool take(tf_run *self, uint64_t key, tf_code *code, tf_error *error) {
  uint64_t state = 0;
  bool known = tf_keymap_get(&self->past->names, key, &state);
  if (known && !(state == TF_NAME_FAILED && self->retry_failed)) {
    self->record->already++;
    return false;
  }
  if (known) self->past->untidy = true; /* its old failure is outdated, however this ends */
  *code = set_state(self, key, TF_NAME_TAKEN, error);
  return true;
}

static tf_code put_failure(tf_run *self, const char *id, const char *image, uint64_t key, const char *code_name,
                           const char *message, int64_t attempts, tf_error *error) {
  tf_buffer line, name;
  tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
  tf_buffer_init(&name, TF_JSONL_LINE_BYTES_MAX);
  tf_jsonl_name(image, &name);
  make_visible(&name);
  tf_progress_clear(self->progress);
  fprintf(stderr, "failed: %s: %.60s: %.400s\n", name.data ? name.data : "", code_name, message);
  self->record->failed++;
  tf_code code = tf_jsonl_error(id, image, code_name, message, attempts, &line, error);
  if (!code) code = tf_output_failure(self->output, &line, error);
  if (!code) code = set_state(self, key, TF_NAME_FAILED, error);
  if (!code) self->past->failures++;
  tf_buffer_free(&line);
  tf_buffer_free(&name);
  return code;
}

static tf_code put_caption(tf_run *self, const tf_run_job *job, const tf_answer *answer, tf_error *error) {
  tf_caption_facts facts;
  tf_buffer line;
  tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
  tf_code code = tf_jsonl_caption(answer->json, answer->json_bytes, job->id, job->image, &line, &facts, error);
  if (code == TF_ERR_PROTOCOL) {
    tf_buffer_free(&line);
    return put_failure(self, job->id, job->image, job->key, tf_code_name(code), error->text, 0, error);
  }
  if (!code) {
    if (!self->output->captions.path && isatty(STDOUT_FILENO)) tf_progress_clear(self->progress);
    code = tf_output_caption(self->output, &line, NULL, error);
  }
  if (!code) code = set_state(self, job->key, TF_NAME_DONE, error);
  if (!code) {
    self->record->captioned++;
    self->record->tokens_sum += facts.vision_tokens;
    for (size_t i = 0; i < TF_JSONL_STAGE_COUNT; i++) self->record->timing_ms_sum[i] += facts.timing_ms[i];
  }
  tf_buffer_free(&line);
  return code;
}

static void free_job(tf_run_job *job) {
  free(job->image);
  free(job->path);
  memset(job, 0, sizeof *job);
}

typedef struct answer_context {
  tf_run *run;
  tf_error *error;
} answer_context;

static tf_code on_answer(void *context_in, const tf_answer *answer) {
  answer_context *context = context_in;
  tf_run *self = context->run;
  tf_run_job *job = NULL;
  for (size_t i = 0; i < TF_RUN_JOBS_MAX && !job; i++)
    if (self->jobs[i].number && strcmp(self->jobs[i].id, answer->id) == 0) job = &self->jobs[i];
  if (!job || (!answer->json && !answer->error_code)) return TF_OK;
  tf_code code = answer->json ? put_caption(self, job, answer, context->error)
                              : put_failure(self, job->id, job->image, job->key, answer->error_code,
                                            answer->error_message ? without_path(answer->error_message, job->path) : "",
                                            answer->attempts, context->error);
  self->last_answer_ms = self->quiet_ms = tf_now_ms();
  self->job_count--;
  self->job_bytes -= job->bytes;
  free_job(job);
  return code;
}

/* -- submitting ------------------------------------------------------------------------------------------------- */

static void name_next(tf_run *self, char *id, size_t id_bytes) {
  snprintf(id, id_bytes, "%s-%06llu", self->record->run, (unsigned long long)++self->next_number);
}

/* Finds the next image into self->pending, telling the errors on the way. False: none within this turn, or the end. */
static bool find_pending(tf_run *self, tf_code *code, tf_error *error) {
  char id[80];
  tf_input input;
  for (int looked = 0; !self->pending.number && !self->inputs_ended && looked < NAMES_A_TURN; looked++) {
    tf_input_kind kind = tf_inputs_next(self->inputs, NAMES_A_TURN, &input);
    if (kind == TF_INPUT_PAUSE) return false;
    if (kind == TF_INPUT_END) {
      self->inputs_ended = true;
      break;
    }
    if (kind == TF_INPUT_IMAGE && !self->link) continue; /* it was not there when the run began: the next one's */
    uint64_t key = tf_past_key(self->past, input.image);
    if (!take(self, key, code, error)) continue;
    if (*code) return false;
    if (kind == TF_INPUT_ERROR) {
      name_next(self, id, sizeof id);
      *code = put_failure(self, id, input.image, key, tf_code_name(input.error.code), input.error.text, 0, error);
      if (*code || tf_interrupt_count() > 0) return false;
    } else {
      name_next(self, self->pending.id, sizeof self->pending.id);
      self->pending.number = self->next_number;
      self->pending.key = key;
      self->pending.image = strdup(input.image);
      self->pending.path = strdup(input.path);
      if (!self->pending.image || !self->pending.path) *code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
    }
  }
  return self->pending.number && !*code;
}

static void keep_pending(tf_run *self) {
  for (size_t i = 0; i < TF_RUN_JOBS_MAX; i++) {
    if (self->jobs[i].number) continue;
    self->jobs[i] = self->pending;
    break;
  }
  self->job_count++;
  self->job_bytes += self->pending.bytes;
  memset(&self->pending, 0, sizeof self->pending);
  if (self->first_submit_ms == 0) {
    self->first_submit_ms = self->last_answer_ms = self->quiet_ms = tf_now_ms();
    tf_rate_add(&self->rate, self->first_submit_ms, 0);
  }
}

static bool has_room(const tf_run *self) {
  return self->job_count < TF_RUN_JOBS_MAX && self->job_bytes < TF_RUN_BYTES_MAX;
}

/* *busy: there was more to do than this turn took. */
static tf_code submit_some(tf_run *self, bool *busy, tf_error *error) {
  tf_code code = TF_OK;
  *busy = false;
  for (int i = 0; i < SUBMITS_A_TURN; i++) {
    if (!has_room(self) || tf_now_ms() < self->submit_ms) return TF_OK;
    if (!find_pending(self, &code, error)) {
      *busy = !self->inputs_ended;
      return code;
    }
    tf_run_job *job = &self->pending;
    code = tf_submit(self->link, self->record->settings, job->id, job->path, &job->bytes, error);
    if (!code) {
      keep_pending(self);
    } else if (code == TF_ERR_QUEUE_FULL) {
      self->submit_ms = tf_now_ms() + QUEUE_FULL_MS;
      return TF_OK;
    } else if (code == TF_ERR_REDIS || code == TF_ERR_OUT_OF_MEMORY) {
      return code == TF_ERR_REDIS && !self->link->context ? TF_OK : code; /* a lost connection is not the end */
    } else {
      char text[TF_ERROR_TEXT_BYTES_MAX];
      snprintf(text, sizeof text, "%s", error->text);
      code = put_failure(self, job->id, job->image, job->key, tf_code_name(code), text, 0, error);
      free_job(job);
      if (code) return code;
    }
  }
  *busy = true;
  return TF_OK;
}

/* -- looking after things --------------------------------------------------------------------------------------- */

/* TF_OK with link->context NULL: still lost, go on waiting. */
static tf_code look_after_link(tf_run *self, tf_error *error) {
  int64_t now_ms = tf_now_ms();
  if (self->link->context) return TF_OK;
  if (!self->lost) {
    self->lost = true;
    self->lost_ms = now_ms;
    self->connect_ms = now_ms;
    self->depth_known = false;
    if (!self->stack) { /* a Redis of our own that is gone ends the run at the next turn */
      tf_progress_clear(self->progress);
      tf_say("the connection to Redis was lost; trying again for up to %d s", TF_RUN_RECONNECT_MS_MAX / 1000);
    }
  }
  if (now_ms < self->connect_ms) return TF_OK;
  self->connect_ms = now_ms + RECONNECT_MS;
  tf_error why;
  if (tf_link_connect(self->link, &why) == TF_OK) {
    self->lost = false;
    self->quiet_ms = now_ms; /* the time without Redis is not the queue's silence */
    tf_progress_clear(self->progress);
    tf_say("connected to Redis again");
    return TF_OK;
  }
  if (tf_now_ms() - self->lost_ms < TF_RUN_RECONNECT_MS_MAX) return TF_OK;
  return tf_fail(error, TF_ERR_REDIS, "Redis stayed out of reach for %d s: %.300s", TF_RUN_RECONNECT_MS_MAX / 1000,
                 why.text);
}

static void read_depth(tf_run *self, int64_t now_ms) {
  if (now_ms - self->depth_ms < DEPTH_MS || !self->link || !self->link->context) return;
  self->depth_ms = now_ms;
  self->depth_known = tf_queue_read_depth(self->link, &self->depth, NULL) == TF_OK;
}

/* A queue that has gone silent while nobody works on anything will not speak again; one without a job in it never had
 * ours, or lost them: a job leaves it together with its answer. */
static tf_code look_for_silence(tf_run *self, tf_error *error) {
  int64_t now_ms = tf_now_ms();
  tf_queue_depth depth;
  if (self->job_count == 0 || now_ms - self->quiet_ms < TF_RUN_EMPTY_MS_MAX) return TF_OK;
  if (now_ms - self->silence_ms < DEPTH_MS || !self->link->context) return TF_OK;
  self->silence_ms = now_ms;
  if (tf_queue_read_depth(self->link, &depth, error) || depth.encoding + depth.decoding > 0) return TF_OK;
  if (depth.waiting == 0)
    return tf_fail(error, TF_ERR_REDIS,
                   "Redis holds neither %zu jobs of this run nor their answers: was it restarted without its data?",
                   self->job_count);
  if (now_ms - self->quiet_ms < TF_RUN_SILENCE_MS_MAX) return TF_OK;
  return tf_fail(error, TF_ERR_TIMEOUT,
                 "nothing has come back for %d minutes, and no worker holds a job (%lld wait); is the service running?",
                 TF_RUN_SILENCE_MS_MAX / 60000, (long long)depth.waiting);
}

void tf_run_count_one(tf_run *self, const char *image) {
  uint64_t state;
  self->total++;
  if (!tf_keymap_get(&self->past->names, tf_past_key(self->past, image), &state) ||
      (state == TF_NAME_FAILED && self->retry_failed))
    self->found++;
}

void tf_run_count(tf_run *self, size_t names_max) {
  tf_input input;
  for (size_t i = 0; i < names_max && !self->total_known; i++) {
    tf_input_kind kind = tf_inputs_next(self->counter, names_max, &input);
    if (kind == TF_INPUT_PAUSE) return;
    if (kind == TF_INPUT_END)
      self->total_known = true;
    else
      tf_run_count_one(self, input.image); /* what can not be read is a line of the errors, and counts */
  }
}

static void show(tf_run *self, const char *note) {
  int64_t now_ms = tf_now_ms();
  uint64_t finished = self->record->captioned + self->record->failed;
  if (self->first_submit_ms) tf_rate_add(&self->rate, now_ms, finished);
  if (!tf_progress_due(self->progress, now_ms)) return;
  if (!note) read_depth(self, now_ms);
  tf_progress_view view = {
      .done = self->record->captioned,
      .failed = self->record->failed,
      .already = self->record->already,
      .total = self->total > finished + self->record->already ? self->total : finished + self->record->already,
      .total_known = self->total_known,
      .per_second = tf_rate_per_second(&self->rate, now_ms, finished),
      .mean_tokens = self->record->captioned ? self->record->tokens_sum / (double)self->record->captioned : 0,
      .depth_known = self->depth_known,
      .waiting = self->depth.waiting,
      .encoding = self->depth.encoding,
      .decoding = self->depth.decoding,
      .note = note,
  };
  tf_progress_draw(self->progress, &view, now_ms);
}

void tf_run_show_note(void *context, const char *note) {
  show(context, note);
}

/* -- the loop --------------------------------------------------------------------------------------------------- */

static tf_code collect_some(tf_run *self, int block_ms, tf_error *error) {
  answer_context context = {self, error};
  tf_code code = tf_collect(self->link, &self->collector, block_ms, on_answer, &context, error);
  return code == TF_ERR_REDIS && !self->link->context ? TF_OK : code;
}

static tf_code turn(tf_run *self, tf_error *error) {
  bool busy = false;
  tf_code code = TF_OK;
  tf_run_count(self, NAMES_A_TURN);
  if (!self->link) {
    find_pending(self, &code, error);
    show(self, NULL);
    return code;
  }
  code = look_after_link(self, error);
  if (!code && self->link->context) code = submit_some(self, &busy, error);
  if (!code && self->link->context)
    code = collect_some(self, busy ? 0 : self->total_known ? BLOCK_MS : BLOCK_COUNTING_MS, error);
  if (!code) code = tf_output_sync(self->output, false, error);
  if (!code) code = look_for_silence(self, error);
  if (!code && self->lost) usleep(BLOCK_MS * 1000);
  if (!code) show(self, self->lost ? "Redis is out of reach" : NULL);
  return code;
}

tf_code tf_run_work(tf_run *self, tf_buffer *report, tf_error *error) {
  tf_code code = TF_OK;
  while (!code && (!self->inputs_ended || self->pending.number || self->job_count > 0)) {
    if (tf_interrupt_count() > 0)
      code = tf_fail(error, TF_ERR_CANCELLED, "interrupted");
    else if (self->stack && !tf_stack_alive(self->stack, report))
      code = tf_fail(error, TF_ERR_WORKER_LOST, "a process of the stack ended");
    else
      code = turn(self, error);
  }
  return code;
}

void tf_run_end(tf_run *self) {
  tf_error ignored;
  if (self->link && self->link->context && self->job_count > 0) {
    collect_some(self, 0, &ignored);
    for (size_t i = 0; !self->stack && i < TF_RUN_JOBS_MAX; i++)
      if (self->jobs[i].number && self->link->context) tf_collect_cancel(self->link, self->jobs[i].id);
  }
  if (self->link && self->link->context) tf_collect_end(self->link);
  for (size_t i = 0; i < TF_RUN_JOBS_MAX; i++) free_job(&self->jobs[i]);
  free_job(&self->pending);
  self->record->skipped = tf_inputs_skipped(self->inputs);
  if (self->first_submit_ms) self->record->working_ms = self->last_answer_ms - self->first_submit_ms;
}

/* The loop of a run. In: pictures, answers. Out: calls of the stages, progress.
 * A turn: look after the stack and the servers, submit, collect, make lines durable, draw.
 * Answers are matched by id; what is not of this run, or came before, is nobody's and passed over. */
#include "cli/run.h"

#include "cli/command.h"
#include "common/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK_MS = 100, BLOCK_COUNTING_MS = 5, DEPTH_MS = 1000 };

void tf_run_say(tf_run *self, const char *format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  tf_progress_clear(self->progress);
  tf_say("%s", text);
}

/* -- counting --------------------------------------------------------------------------------------------------- */

tf_input_kind tf_run_count(tf_run *self, size_t names_max) {
  tf_input input;
  tf_input_kind kind = TF_INPUT_END;
  for (size_t i = 0; i < names_max && !self->total_known; i++) {
    kind = tf_source_next(self->counter, names_max, &input);
    if (kind == TF_INPUT_END) self->total_known = true;
    if (kind != TF_INPUT_IMAGE && kind != TF_INPUT_ERROR) return kind;
    self->total++; /* what can not be read is a line of the failures, and counts */
    self->found += !tf_window_is_done(self, tf_past_key(self->past, input.image), input.path);
  }
  return kind;
}

static uint64_t finished_of(const tf_run *self) {
  return self->record->captioned + self->record->failed;
}

static uint64_t total_of(const tf_run *self) {
  uint64_t seen = finished_of(self) + self->record->already;
  uint64_t total = self->total + (self->options.upgrade ? self->past->below : 0);
  return total > seen ? total : seen;
}

uint64_t tf_run_remaining(const tf_run *self) {
  uint64_t done =
      finished_of(self) + self->record->already +
      (self->total - self->found > self->record->already ? self->total - self->found - self->record->already : 0);
  uint64_t total = total_of(self);
  return total > done ? total - done : 0;
}

/* -- progress --------------------------------------------------------------------------------------------------- */

static void read_depth(tf_run *self, int64_t now_ms) {
  if (now_ms - self->depth_ms < DEPTH_MS) return;
  self->depth_ms = now_ms;
  memset(&self->depth, 0, sizeof self->depth);
  self->depth_known = self->server_count > 0;
  for (size_t i = 0; i < self->server_count && self->depth_known; i++) {
    tf_queue_depth depth;
    tf_link *link = &self->servers[i].link;
    self->depth_known = link->context && tf_queue_read_depth(link, &depth, NULL) == TF_OK;
    if (!self->depth_known) return;
    self->depth.waiting += depth.waiting;
    self->depth.encoding += depth.encoding;
    self->depth.decoding += depth.decoding;
  }
}

static void show(tf_run *self, const char *note) {
  int64_t now_ms = tf_now_ms();
  uint64_t finished = finished_of(self);
  if (self->first_submit_ms) tf_rate_add(&self->rate, now_ms, finished);
  if (self->options.quiet || !tf_progress_due(self->progress, now_ms)) return;
  if (!note) read_depth(self, now_ms);
  tf_buffer forecast;
  tf_buffer_init(&forecast, 256);
  if (self->pace->finish_unix_ms)
    tf_pace_forecast(self->pace, tf_run_remaining(self), self->record->settings->vision_tokens, &forecast);
  tf_progress_view view = {
      .done = self->record->captioned,
      .failed = self->record->failed,
      .already = self->record->already,
      .total = total_of(self),
      .total_known = self->total_known,
      .per_second = tf_rate_per_second(&self->rate, now_ms, finished),
      .mean_tokens = self->record->captioned ? self->record->tokens_sum / (double)self->record->captioned : 0,
      .depth_known = self->depth_known,
      .waiting = self->depth.waiting,
      .encoding = self->depth.encoding,
      .decoding = self->depth.decoding,
      .forecast = forecast.size > 0 ? forecast.data : NULL,
      .note = note,
  };
  tf_progress_draw(self->progress, &view, now_ms);
  tf_buffer_free(&forecast);
}

void tf_run_show_note(void *context, const char *note) {
  show(context, note);
}

void tf_run_keep_pace(tf_run *self) {
  tf_pace *pace = self->pace;
  if (!pace->finish_unix_ms || self->server_count == 0) return;
  uint64_t remaining = tf_run_remaining(self);
  int64_t refreshed_ms = pace->refreshed_ms, now_ms = tf_now_ms();
  if (refreshed_ms == 0 || now_ms - refreshed_ms >= TF_PACE_REFRESH_MS) {
    for (size_t i = 0; i < self->server_count; i++)
      tf_pace_refresh(pace, &self->servers[i].link, remaining, 1.0 / (double)self->server_count);
    pace->refreshed_ms = now_ms;
  }
  tf_buffer forecast;
  tf_buffer_init(&forecast, 256);
  if (!self->forecast_told && !self->late_told && self->total_known && pace->budget > 0)
    tf_pace_forecast(pace, remaining, self->record->settings->vision_tokens, &forecast);
  if (forecast.size > 0) {
    self->forecast_told = true;
    if (!self->options.quiet) tf_run_say(self, "%llu pictures: %s", (unsigned long long)remaining, forecast.data);
  }
  tf_buffer_free(&forecast);
  if (self->late_told || tf_unix_ms() <= pace->finish_unix_ms || remaining == 0) return;
  self->late_told = true;
  tf_run_say(self, "the time is over; %llu pictures are left, which go on with the fewest vision tokens",
             (unsigned long long)remaining);
}

/* -- answers ---------------------------------------------------------------------------------------------------- */

typedef struct answer_context {
  tf_run *run;
  tf_error *error;
} answer_context;

static tf_code on_answer(void *context_in, const tf_answer *answer) {
  answer_context *context = context_in;
  tf_run *self = context->run;
  if (!answer->json && !answer->error_code) return TF_OK;
  for (size_t i = 0; i < TF_RUN_JOBS_MAX; i++)
    if (self->jobs[i].number && !self->jobs[i].leader && strcmp(self->jobs[i].id, answer->id) == 0)
      return tf_tell_answer(self, &self->jobs[i], answer, context->error);
  /* A connection that broke while it was submitted: it was added, although nobody said so. */
  if (self->pending.number && strcmp(self->pending.id, answer->id) == 0)
    return tf_tell_answer(self, tf_window_keep_pending(self), answer, context->error);
  return TF_OK;
}

static tf_code collect_from(tf_run *self, size_t which, int block_ms, tf_error *error) {
  answer_context context = {self, error};
  tf_server *server = &self->servers[which];
  if (!server->link.context) return TF_OK;
  tf_code code = tf_collect(&server->link, &server->collector, block_ms, on_answer, &context, error);
  return code == TF_ERR_REDIS && !server->link.context ? TF_OK : code;
}

/* Waits at one server at a time: with several, shortly, and at another the next turn. */
static tf_code collect_some(tf_run *self, int block_ms, tf_error *error) {
  tf_code code = TF_OK;
  if (self->server_count == 1) return collect_from(self, 0, block_ms, error);
  self->next_server = (self->next_server + 1) % self->server_count;
  if (block_ms > BLOCK_COUNTING_MS) block_ms = BLOCK_COUNTING_MS;
  for (size_t i = 0; !code && i < self->server_count; i++)
    code = collect_from(self, i, i == self->next_server ? block_ms : 0, error);
  return code;
}

/* -- the loop --------------------------------------------------------------------------------------------------- */

/* *lost: some server is out of reach, *any: some server is not. */
static tf_code look_after_servers(tf_run *self, bool *lost, bool *any, tf_error *error) {
  *lost = *any = false;
  for (size_t i = 0; i < self->server_count; i++) {
    tf_server *server = &self->servers[i];
    const char *news;
    tf_code code = tf_server_look_after(server, &news, error);
    if (!code) code = tf_server_look_for_silence(server, error);
    if (news && (!self->stack || server->link.context)) /* one of our own that is gone ends the run at the next turn */
      tf_run_say(self, "%s", news);
    if (code) return code;
    *lost |= !server->link.context;
    *any |= server->link.context != NULL;
  }
  return TF_OK;
}

static tf_code turn(tf_run *self, tf_error *error) {
  bool busy = false, lost, any;
  tf_run_count(self, TF_RUN_NAMES_A_TURN);
  if (self->server_count == 0) {
    tf_code drained = tf_window_drain(self, error);
    if (!drained) drained = tf_output_sync(self->output, false, error);
    show(self, NULL);
    return drained;
  }
  tf_code code = look_after_servers(self, &lost, &any, error);
  if (!code) tf_run_keep_pace(self);
  if (!code && any) code = tf_window_fill(self, &busy, error);
  if (!code && any) code = collect_some(self, busy ? 0 : self->total_known ? BLOCK_MS : BLOCK_COUNTING_MS, error);
  if (!code) code = tf_output_sync(self->output, false, error);
  if (!code && !any) usleep(BLOCK_MS * 1000);
  if (!code) show(self, lost ? "Redis is out of reach" : NULL);
  return code;
}

tf_code tf_run_work(tf_run *self, tf_buffer *report, tf_error *error) {
  tf_code code = TF_OK;
  tf_duplicates_init(&self->duplicates);
  tf_keymap_init(&self->swept, 1);
  for (size_t i = 0; i < self->server_count; i++)
    tf_link_place(&self->servers[i].link, self->places[i], sizeof self->places[i]);
  while (!code && (!self->source_ended || self->pending.number || self->job_count > 0)) {
    if (tf_interrupt_count() > 0)
      code = tf_fail(error, TF_ERR_CANCELLED, "interrupted");
    else if (self->stack && !tf_stack_alive(self->stack, report))
      code = tf_fail(error, TF_ERR_WORKER_LOST, "a process of the stack ended");
    else
      code = turn(self, error);
  }
  if (!code && self->names_fault.code) { /* the run is not complete, whatever became of the names that there were */
    *error = self->names_fault;
    code = error->code;
  }
  return code;
}

void tf_run_end(tf_run *self) {
  tf_error ignored;
  for (size_t i = 0; i < self->server_count && self->job_count > 0; i++) collect_from(self, i, 0, &ignored);
  for (size_t i = 0; !self->stack && i < TF_RUN_JOBS_MAX; i++) {
    const tf_run_job *job = &self->jobs[i];
    if (job->number && !job->leader && self->servers[job->server].link.context)
      tf_collect_cancel(&self->servers[job->server].link, job->id);
  }
  for (size_t i = 0; i < self->server_count; i++) {
    if (!self->servers[i].link.context) continue;
    tf_collect_end(&self->servers[i].link);
    if (self->pace->finish_unix_ms) tf_pace_end(&self->servers[i].link);
  }
  for (size_t i = 0; i < TF_RUN_JOBS_MAX; i++) tf_window_free_job(&self->jobs[i]);
  tf_window_free_job(&self->pending);
  tf_upgrade_close(&self->upgrade);
  tf_duplicates_free(&self->duplicates);
  tf_keymap_free(&self->swept);
  self->record->skipped = tf_source_skipped(self->source);
  if (self->first_submit_ms) self->record->working_ms = self->last_answer_ms - self->first_submit_ms;
}

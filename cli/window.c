/* Finds pictures and puts them on the queue, as long as the window has room. In: the source, an earlier output's lines.
 * Out: jobs. A picture that is done is passed over; one whose bytes are on their way already follows that job.
 * Memory is bounded by the window: no more is found than can be submitted. */
#include "cli/run.h"

#include "cli/command.h"
#include "cli/sidecar.h"
#include "common/clock.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUBMITS_A_TURN = 32, QUEUE_FULL_MS = 500 };

void tf_window_free_job(tf_run_job *job) {
  free(job->image);
  free(job->path);
  free(job->before);
  memset(job, 0, sizeof *job);
}

void tf_window_remove(tf_run *self, tf_run_job *job) {
  self->job_count--;
  self->job_bytes -= job->bytes;
  tf_window_free_job(job);
}

bool tf_window_is_done(const tf_run *self, uint64_t key, const char *path) {
  uint64_t state = 0;
  if (tf_keymap_get(&self->past->names, key, &state)) return !(state == TF_NAME_FAILED && self->options.retry_failed);
  return path && self->options.by_sidecars && !self->options.overwrite && tf_sidecar_exists(path);
}

/* -- finding ---------------------------------------------------------------------------------------------------- */

static tf_code set_pending(tf_run *self, const tf_input *input, uint64_t key, const char *before, tf_error *error) {
  tf_run_job *job = &self->pending;
  job->number = ++self->next_number;
  snprintf(job->id, sizeof job->id, "%s-%06llu", self->record->run, (unsigned long long)job->number);
  job->key = key;
  job->image = strdup(input->image);
  job->path = strdup(input->path ? input->path : "");
  job->before = before ? strdup(before) : NULL;
  if (job->image && job->path && (job->before || !before)) return TF_OK;
  tf_window_free_job(job);
  tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  return TF_ERR_OUT_OF_MEMORY;
}

/* A name of the source becomes the pending job, or is passed over. */
static tf_code take_input(tf_run *self, tf_input_kind kind, const tf_input *input, tf_error *error) {
  uint64_t key = tf_past_key(self->past, input->image), state;
  if (tf_window_is_done(self, key, input->path)) {
    self->record->already++;
    return TF_OK;
  }
  if (kind == TF_INPUT_IMAGE && self->server_count == 0) return TF_OK; /* it was not there when the run began */
  if (tf_keymap_get(&self->past->names, key, &state)) self->past->untidy = true; /* its old failure is outdated */
  tf_code code = tf_keymap_put(&self->past->names, key, TF_NAME_TAKEN, error);
  if (!code) code = set_pending(self, input, key, NULL, error);
  if (code || kind == TF_INPUT_IMAGE) return code;
  code = tf_tell_failure(self, &self->pending, tf_code_name(input->error.code), input->error.text, 0, error);
  tf_window_free_job(&self->pending);
  return code;
}

/* After the source: what earlier runs did with fewer tokens. */
static tf_code take_upgrade(tf_run *self, tf_error *error) {
  tf_input input;
  const char *before;
  if (!self->upgrade.open) {
    if (!self->options.upgrade || self->server_count == 0) {
      self->source_ended = true;
      return TF_OK;
    }
    if (self->job_count > 0) return TF_OK; /* the lines of what is out go to the output itself */
    tf_upgrade_open(&self->upgrade, self->output, self->past, self->options.upgrade);
    tf_duplicates_clear(&self->duplicates);
    return tf_output_divert(self->output, error);
  }
  tf_input_kind kind = tf_upgrade_next(&self->upgrade, &input, &before);
  if (kind == TF_INPUT_ERROR) *error = input.error;
  if (kind == TF_INPUT_ERROR) return input.error.code;
  self->source_ended = kind == TF_INPUT_END;
  if (self->source_ended) return TF_OK;
  return set_pending(self, &input, tf_past_key(self->past, input.image), before, error);
}

/* Finds the next picture into self->pending, telling the errors on the way. False: none within this turn, or the end.
 */
static bool find_pending(tf_run *self, tf_code *code, tf_error *error) {
  tf_input input;
  self->waiting = false;
  *code = TF_OK;
  for (int looked = 0; !*code && !self->pending.number && !self->source_ended; looked++) {
    if (looked == TF_RUN_NAMES_A_TURN || tf_interrupt_count() > 0) return false;
    tf_input_kind kind = self->names_ended ? TF_INPUT_END : tf_source_next(self->source, TF_RUN_NAMES_A_TURN, &input);
    self->waiting = kind == TF_INPUT_WAIT;
    if (kind == TF_INPUT_PAUSE || kind == TF_INPUT_WAIT) return false;
    if (kind == TF_INPUT_STOP) self->names_fault = input.error;
    if (kind == TF_INPUT_STOP) kind = TF_INPUT_END; /* what was named before is done first */
    self->names_ended = kind == TF_INPUT_END;
    *code = kind == TF_INPUT_END ? take_upgrade(self, error) : take_input(self, kind, &input, error);
    if (kind == TF_INPUT_END && !self->upgrade.open && !self->source_ended) {
      self->waiting = true; /* for the jobs that are out */
      return false;
    }
  }
  return self->pending.number && !*code;
}

/* -- submitting ------------------------------------------------------------------------------------------------- */

tf_run_job *tf_window_keep_pending(tf_run *self) {
  tf_server *server = &self->servers[self->pending.server];
  size_t slot = 0;
  while (slot < TF_RUN_JOBS_MAX && self->jobs[slot].number) slot++;
  assert(slot < TF_RUN_JOBS_MAX); /* nothing is pending unless there is room */
  self->jobs[slot] = self->pending;
  self->job_count++;
  self->job_bytes += self->pending.bytes;
  int64_t now_ms = tf_now_ms();
  if (!self->pending.leader && server->jobs++ == 0) server->quiet_ms = now_ms;
  memset(&self->pending, 0, sizeof self->pending);
  if (self->first_submit_ms == 0) {
    self->first_submit_ms = self->last_answer_ms = now_ms;
    tf_rate_add(&self->rate, now_ms, 0);
  }
  return &self->jobs[slot];
}

/* Whether the pending picture's bytes have an answer, or are on their way to one. */
static tf_code look_for_duplicate(tf_run *self, bool *settled, tf_error *error) {
  tf_run_job *job = &self->pending;
  *settled = false;
  if (job->content.key) return TF_OK; /* it was looked at, and could not be submitted then */
  job->content = tf_content_of(job->path);
  for (size_t i = 0; job->content.key && i < TF_RUN_JOBS_MAX; i++) {
    const tf_run_job *other = &self->jobs[i];
    if (!other->number || other->leader || !tf_content_is_same(other->content, job->content)) continue;
    job->leader = other->number;
    tf_window_keep_pending(self);
    *settled = true;
    return TF_OK;
  }
  tf_buffer first;
  tf_buffer_init(&first, TF_JSONL_LINE_BYTES_MAX);
  int fd = self->output->format == TF_FORMAT_JSONL && !self->output->silent ? tf_output_fd(self->output) : -1;
  tf_code code = tf_duplicates_line(&self->duplicates, job->content, fd, &first, settled, error);
  if (!code && *settled) {
    code = tf_tell_duplicate(self, job, &first, error);
    tf_window_free_job(job);
  }
  tf_buffer_free(&first);
  return code;
}

static bool has_room(const tf_run *self) {
  return self->job_count < TF_RUN_JOBS_MAX && self->job_bytes < TF_RUN_BYTES_MAX;
}

/* *later: it has to wait. */
static tf_code submit_pending(tf_run *self, bool *later, tf_error *error) {
  tf_run_job *job = &self->pending;
  job->server = tf_spread(job->id, (const char(*)[TF_DEPLOYMENT_PLACE_BYTES])self->places, self->server_count);
  tf_server *server = &self->servers[job->server];
  *later = !server->link.context || tf_now_ms() < server->submit_ms;
  if (*later) return TF_OK;
  tf_code code = tf_submit(&server->link, self->record->settings, job->id, job->path, &job->bytes, error);
  if (!code) {
    tf_window_keep_pending(self);
    return TF_OK;
  }
  *later = code == TF_ERR_QUEUE_FULL || (code == TF_ERR_REDIS && !server->link.context);
  if (code == TF_ERR_QUEUE_FULL) server->submit_ms = tf_now_ms() + QUEUE_FULL_MS;
  if (*later) return TF_OK; /* a lost connection is not the end */
  if (code == TF_ERR_REDIS || code == TF_ERR_OUT_OF_MEMORY) return code;
  tf_error why = *error;
  code = tf_tell_failure(self, job, tf_code_name(code), why.text, 0, error);
  tf_window_free_job(job);
  return code;
}

tf_code tf_window_fill(tf_run *self, bool *busy, tf_error *error) {
  tf_code code = TF_OK;
  bool settled = false, later = false;
  *busy = false;
  for (int i = 0; i < SUBMITS_A_TURN && !code; i++) {
    if (!has_room(self)) return TF_OK;
    if (!find_pending(self, &code, error)) {
      *busy = !self->source_ended && !self->waiting;
      return code;
    }
    code = look_for_duplicate(self, &settled, error);
    if (!code && !settled) code = submit_pending(self, &later, error);
    if (later) return code;
  }
  *busy = true;
  return code;
}

tf_code tf_window_drain(tf_run *self, tf_error *error) {
  tf_code code;
  find_pending(self, &code, error);
  return code;
}

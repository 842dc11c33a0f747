/* Writes what has ended. In: answers. Out: lines, sidecars, failures; the states of names; sums.
 * A sidecar is written before the line: a line in the output says that all of it is done.
 * A picture that had a caption keeps it where the better one fails: then nothing is written at all. */
#include "cli/run.h"

#include "cli/command.h"
#include "cli/sidecar.h"
#include "cli/temporary.h"
#include "common/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAILURES_SHOWN_MAX = 20 };

/* What a terminal may show of a name: control characters would steer it, or break the line. */
static void make_visible(tf_buffer *text) {
  for (size_t i = 0; i < text->size; i++) {
    const unsigned char *at = (const unsigned char *)text->data + i;
    if (*at < ' ' || *at == 0x7f) text->data[i] = '?';
    if (*at == 0xc2 && i + 1 < text->size && at[1] < 0xa0) text->data[i] = text->data[i + 1] = '?'; /* C1, in UTF-8 */
  }
}

/* "start: name: text" on stderr; start may be empty. */
static void show(tf_run *self, const char *start, const char *image, const char *text) {
  tf_buffer line;
  tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
  tf_buffer_printf(&line, "%s", start);
  tf_jsonl_name(image, &line);
  tf_buffer_printf(&line, ": %s", text);
  make_visible(&line);
  tf_progress_clear(self->progress);
  fprintf(stderr, "%s\n", line.data ? line.data : "");
  tf_buffer_free(&line);
}

/* A message about a file begins with its path, which the line names already. */
static const char *without_path(const char *message, const char *path) {
  size_t size = path ? strlen(path) : 0;
  return size > 0 && strncmp(message, path, size) == 0 && strncmp(message + size, ": ", 2) == 0 ? message + size + 2
                                                                                                : message;
}

static void show_failure(tf_run *self, const char *image, const char *code_name, const char *message, bool kept) {
  char text[600];
  bool listed = self->output->errors.path != NULL && !kept;
  self->failures_shown++;
  if (listed && self->failures_shown > FAILURES_SHOWN_MAX) {
    if (self->failures_shown == FAILURES_SHOWN_MAX + 1)
      tf_run_say(self, "more pictures fail; they are listed in %s", self->output->errors.path);
    return;
  }
  snprintf(text, sizeof text, "%.60s: %.400s%s", code_name, message, kept ? "; it keeps the caption that it has" : "");
  show(self, "failed: ", image, text);
}

tf_code tf_tell_failure(tf_run *self, const tf_run_job *job, const char *code_name, const char *message,
                        int64_t attempts, tf_error *error) {
  char text[TF_ERROR_TEXT_BYTES_MAX];
  snprintf(text, sizeof text, "%s", message ? without_path(message, job->path) : "");
  show_failure(self, job->image, code_name, text, job->before != NULL);
  self->record->failed++;
  if (job->before) return TF_OK;
  tf_buffer line;
  tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
  tf_code code = tf_jsonl_error(job->id, job->image, code_name, text, attempts, &line, error);
  if (!code) code = tf_output_failure(self->output, &line, error);
  if (!code) code = tf_keymap_put(&self->past->names, job->key, TF_NAME_FAILED, error);
  if (!code) self->past->failures++;
  tf_buffer_free(&line);
  return code;
}

/* Once a folder: reading one for every photo in it would take as long as all of them squared. */
static void sweep_folder(tf_run *self, const char *path) {
  const char *slash = strrchr(path, '/');
  uint64_t key = tf_key_of(path, slash ? (size_t)(slash - path) + 1 : 0), known;
  tf_error ignored; /* not noted: swept again */
  if (tf_keymap_get(&self->swept, key, &known)) return;
  tf_temporary_sweep(path);
  tf_keymap_put(&self->swept, key, 1, &ignored);
}

/* *told: it failed, and that is said. */
static tf_code put_sidecar(tf_run *self, const tf_run_job *job, const char *caption, bool *told, tf_error *error) {
  bool kept, disk_full;
  bool ours = job->before && tf_sidecar_holds(job->path, job->before);
  tf_error why;
  *told = false;
  sweep_folder(self, job->path);
  if (tf_sidecar_write(job->path, caption, self->options.overwrite || ours, &kept, &disk_full, &why)) {
    if (disk_full)
      return tf_fail(error, TF_ERR_IO, "%.200s: %.200s; the same command goes on from there", job->image, why.text);
    *told = true;
    return tf_tell_failure(self, job, tf_code_name(why.code), why.text, 0, error);
  }
  self->record->sidecars_kept += kept;
  if (!kept || !self->options.by_sidecars) return TF_OK;
  *told = true; /* it came up since the picture was taken: another picture of this stem, or somebody else */
  return tf_tell_failure(self, job, tf_code_name(TF_ERR_IO),
                         "its sidecar is there already, written for another picture", 0, error);
}

/* line: one JSON object. duplicate: its times are another picture's. */
static tf_code put_line(tf_run *self, const tf_run_job *job, const tf_buffer *line, const tf_caption_facts *facts,
                        bool duplicate, tf_error *error) {
  tf_code code = TF_OK;
  tf_buffer text;
  tf_buffer_init(&text, TF_JSONL_LINE_BYTES_MAX);
  bool told = false;
  off_t at;
  if (self->options.sidecar || self->options.verbose) code = tf_jsonl_text(line->data, line->size, &text, error);
  if (!code && self->options.sidecar) code = put_sidecar(self, job, text.data, &told, error);
  if (!code && !told) {
    if (!self->output->captions.path && isatty(STDOUT_FILENO)) tf_progress_clear(self->progress);
    code = tf_output_caption(self->output, line, &at, error);
    if (!code) code = tf_keymap_put(&self->past->names, job->key, TF_NAME_DONE, error);
    int fd = self->output->format == TF_FORMAT_JSONL && !self->output->silent ? tf_output_fd(self->output) : -1;
    if (!code && !duplicate) code = tf_duplicates_note(&self->duplicates, job->content, fd, at, line, error);
  }
  if (!code && !told) {
    if (self->options.verbose) show(self, "", job->image, text.data);
    if (!job->before) self->past->captions++;
    self->record->captioned++;
    self->record->duplicates += duplicate;
    self->record->tokens_sum += facts->vision_tokens;
    for (size_t i = 0; !duplicate && i < TF_JSONL_STAGE_COUNT; i++)
      self->record->timing_ms_sum[i] += facts->timing_ms[i];
  }
  tf_buffer_free(&text);
  return code;
}

tf_code tf_tell_duplicate(tf_run *self, const tf_run_job *job, const tf_buffer *first, tf_error *error) {
  tf_caption_facts facts;
  tf_buffer line;
  tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
  tf_code code = tf_jsonl_duplicate(first->data, first->size, job->id, job->image, &line, &facts, error);
  if (!code) code = put_line(self, job, &line, &facts, true, error);
  tf_buffer_free(&line);
  return code;
}

static tf_code tell_failure_to_all(tf_run *self, tf_run_job *job, const char *code_name, const char *message,
                                   int64_t attempts, tf_error *error) {
  message = message ? without_path(message, job->path) : "";
  tf_code code = tf_tell_failure(self, job, code_name, message, attempts, error);
  for (size_t i = 0; !code && i < TF_RUN_JOBS_MAX; i++) {
    tf_run_job *other = &self->jobs[i];
    if (!other->number || other->leader != job->number) continue;
    code = tf_tell_failure(self, other, code_name, message, attempts, error);
    tf_window_remove(self, other);
  }
  return code;
}

static tf_code tell_caption(tf_run *self, tf_run_job *job, const tf_answer *answer, tf_error *error) {
  tf_caption_facts facts;
  tf_buffer line;
  tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
  tf_code code = tf_jsonl_caption(answer->json, answer->json_bytes, job->id, job->image, &line, &facts, error);
  if (code == TF_ERR_PROTOCOL) {
    tf_error why = *error;
    code = tell_failure_to_all(self, job, tf_code_name(why.code), why.text, 0, error);
  } else if (!code) {
    code = put_line(self, job, &line, &facts, false, error);
    for (size_t i = 0; !code && i < TF_RUN_JOBS_MAX; i++) {
      tf_run_job *other = &self->jobs[i];
      if (!other->number || other->leader != job->number) continue;
      code = tf_tell_duplicate(self, other, &line, error);
      tf_window_remove(self, other);
    }
  }
  tf_buffer_free(&line);
  return code;
}

tf_code tf_tell_answer(tf_run *self, tf_run_job *job, const tf_answer *answer, tf_error *error) {
  tf_server *server = &self->servers[job->server];
  tf_code code =
      answer->json ? tell_caption(self, job, answer, error)
                   : tell_failure_to_all(self, job, answer->error_code, answer->error_message, answer->attempts, error);
  self->last_answer_ms = server->quiet_ms = tf_now_ms();
  server->jobs--;
  tf_window_remove(self, job);
  return code;
}

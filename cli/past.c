/* Resuming. In: an output's files. Out: what is done, what failed; the files repaired.
 * A kill can only tear the end of a file: lines are appended. What is broken elsewhere was not us, and is not touched.
 * Names are compared as absolute paths, so that a run may name the same folder in another way. */
#include "cli/past.h"

#include "cli/command.h"
#include "cli/replace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TORN_BYTES_MAX = 1024 * 1024, NAME_BYTES_MAX = 1024 * 1024, SIZE_TOLD = 128 * 1024 * 1024 };

tf_code tf_past_init(tf_past *self, const char *folder, tf_error *error) {
  memset(self, 0, sizeof *self);
  tf_keymap_init(&self->names, 1);
  self->folder = strdup(folder);
  return self->folder ? TF_OK : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
}

void tf_past_free(tf_past *self) {
  tf_keymap_free(&self->names);
  free(self->folder);
  self->folder = NULL;
}

/* -- names ------------------------------------------------------------------------------------------------------ */

static void append_parts(const char *path, tf_buffer *out) {
  while (*path) {
    size_t slashes = strspn(path, "/"), length = strcspn(path + slashes, "/");
    path += slashes;
    if (length > 0 && !(length == 1 && path[0] == '.')) {
      tf_buffer_append(out, "/", 1);
      tf_buffer_append(out, path, length);
    }
    path += length;
  }
}

void tf_past_path(const tf_past *self, const char *image, tf_buffer *out) {
  if (image[0] != '/') append_parts(self->folder, out);
  append_parts(image, out);
  tf_buffer_append(out, "", 1);
}

uint64_t tf_past_key(const tf_past *self, const char *image) {
  tf_buffer path;
  tf_buffer_init(&path, NAME_BYTES_MAX);
  tf_past_path(self, image, &path);
  uint64_t key = tf_key_of(path.data ? path.data : "", path.size);
  tf_buffer_free(&path);
  return key;
}

/* -- reading ---------------------------------------------------------------------------------------------------- */

/* One of the two files from end to end. each is called for every good record. */
typedef struct scan {
  tf_past *past;
  tf_lines *file;
  tf_format format;
  tf_code (*each)(struct scan *scan, const tf_record *record, uint64_t key, tf_error *error);
  tf_keymap last;         /* failures: where a picture's last line begins */
  tf_replace replacement; /* failures: while they are rewritten */
  uint64_t count;
} scan;

static tf_code walk(scan *self, off_t *good_end, tf_error *error) {
  tf_records records;
  tf_record record;
  bool found = true;
  uint64_t bad_line = 0, line = 0;
  tf_records_open(&records, self->file->fd, self->format);
  tf_code code = TF_OK;
  *good_end = 0;
  while (!code && tf_interrupt_count() == 0) {
    code = tf_records_next(&records, &record, &found, error);
    if (code || !found) break;
    line++;
    bool torn = record.torn || memchr(record.text, '\0', record.bytes); /* zeros: the power failed */
    if (!record.good && !record.header && bad_line == 0) bad_line = line;
    if (!record.good && !record.header && torn) continue;
    if (bad_line > 0) {
      code = tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                     "%s: line %llu was not written by this command; repair it, or name another output",
                     self->file->path, (unsigned long long)bad_line);
      break;
    }
    *good_end = record.offset + (off_t)record.bytes;
    if (!record.header) code = self->each(self, &record, tf_past_key(self->past, record.image), error);
    self->count++;
  }
  tf_records_close(&records);
  if (!code && tf_interrupt_count() > 0) return tf_fail(error, TF_ERR_CANCELLED, "interrupted");
  return code;
}

/* Cuts off what is past the last whole line. */
static tf_code repair(scan *self, off_t good_end, tf_error *error) {
  tf_lines *file = self->file;
  off_t torn = file->size - good_end;
  if (torn <= 0) return TF_OK;
  if (torn > TORN_BYTES_MAX)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "%s: its last %lld bytes were not written by this command; name another output, or give --overwrite",
                   file->path, (long long)torn);
  if (ftruncate(file->fd, good_end) || fsync(file->fd))
    return tf_fail(error, TF_ERR_IO, "%s: %s", file->path, strerror(errno));
  file->size = good_end;
  self->past->torn_bytes += (uint64_t)torn;
  tf_say("%s: an earlier run was stopped in the middle of a line; its %lld bytes were cut off", file->path,
         (long long)torn);
  return TF_OK;
}

static tf_code note_caption(scan *self, const tf_record *record, uint64_t key, tf_error *error) {
  self->past->captions++;
  self->past->below += record->vision_tokens < self->past->target;
  return tf_keymap_put(&self->past->names, key, TF_NAME_DONE, error);
}

static tf_code note_failure(scan *self, const tf_record *record, uint64_t key, tf_error *error) {
  uint64_t state = 0;
  if (tf_keymap_get(&self->past->names, key, &state) && state == TF_NAME_DONE) return TF_OK;
  tf_code code = tf_keymap_put(&self->last, key, (uint64_t)record->offset, error);
  return code ? code : tf_keymap_put(&self->past->names, key, TF_NAME_FAILED, error);
}

static tf_code keep_failure(scan *self, const tf_record *record, uint64_t key, tf_error *error) {
  uint64_t at = 0;
  if (!tf_keymap_get(&self->last, key, &at) || at != (uint64_t)record->offset) return TF_OK;
  return tf_replace_write(&self->replacement, record->text, record->bytes, error);
}

static tf_code rewrite_failures(scan *self, tf_output *output, tf_error *error) {
  off_t end;
  int fd = -1;
  if (self->last.count == 0) {
    if (unlink(output->errors.path) && errno != ENOENT)
      return tf_fail(error, TF_ERR_IO, "%s: %s", output->errors.path, strerror(errno));
    close(output->errors.fd);
    output->errors.fd = -1;
    tf_sync_folder(output->errors.path);
    return TF_OK;
  }
  self->each = keep_failure;
  tf_code code = tf_replace_begin(&self->replacement, output->errors.path, error);
  if (!code) code = walk(self, &end, error);
  if (!code) code = tf_replace_commit(&self->replacement, &fd, error);
  tf_replace_end(&self->replacement);
  if (code) return code;
  close(output->errors.fd);
  output->errors.fd = fd;
  output->errors.size = lseek(fd, 0, SEEK_END);
  return TF_OK;
}

tf_code tf_past_tidy(tf_past *self, tf_output *output, tf_error *error) {
  self->failures = 0;
  self->untidy = false;
  if (!output->errors.path) return TF_OK;
  if (output->errors.fd < 0) {
    output->errors.fd = open(output->errors.path, O_RDWR | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (output->errors.fd < 0 && errno == ENOENT) return TF_OK;
    if (output->errors.fd < 0) return tf_fail(error, TF_ERR_IO, "%s: %s", output->errors.path, strerror(errno));
    output->errors.is_regular = true;
    output->errors.size = lseek(output->errors.fd, 0, SEEK_END);
  }
  scan failures = {.past = self, .file = &output->errors, .format = TF_FORMAT_JSONL, .each = note_failure};
  off_t end;
  tf_keymap_init(&failures.last, 8);
  tf_code code = walk(&failures, &end, error);
  if (!code) code = repair(&failures, end, error);
  if (!code && (failures.last.count < failures.count || failures.last.count == 0))
    code = rewrite_failures(&failures, output, error);
  self->failures = failures.last.count;
  tf_keymap_free(&failures.last);
  return code;
}

tf_code tf_past_read(tf_past *self, tf_output *output, tf_error *error) {
  scan captions = {.past = self, .file = &output->captions, .format = output->format, .each = note_caption};
  off_t end;
  if (output->captions.size > SIZE_TOLD)
    tf_say("%s: reading what is done (%lld MiB)", output->captions.path, (long long)(output->captions.size >> 20));
  tf_code code = walk(&captions, &end, error);
  if (!code) code = repair(&captions, end, error);
  return code ? code : tf_past_tidy(self, output, error);
}

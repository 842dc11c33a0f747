/* Writes the output of a run. In: lines. Out: appended bytes, synced at the end.
 * A line goes out in one write where the system takes it; what it took of a line that failed is cut off again.
 * FILE.run.json is written beside itself and renamed, so that a reader never sees half of it. */
#include "cli/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *joined(const char *path, const char *suffix) {
  char *out = NULL;
  return asprintf(&out, "%s%s", path, suffix) < 0 ? NULL : out;
}

static const char *name_of(const tf_lines *lines) {
  return lines->path ? lines->path : "standard output";
}

static tf_code append(tf_lines *self, const tf_buffer *lines, tf_error *error) {
  size_t done = 0;
  while (done < lines->size) {
    ssize_t written = write(self->fd, lines->data + done, lines->size - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      int failed = errno;
      if (self->is_regular && ftruncate(self->fd, self->size)) failed = errno;
      return tf_fail(error, TF_ERR_IO, "%s: %s", name_of(self), strerror(failed));
    }
    done += (size_t)written;
  }
  self->size += (off_t)lines->size;
  return TF_OK;
}

tf_code tf_output_open(tf_output *self, const char *path, bool overwrite, tf_error *error) {
  memset(self, 0, sizeof *self);
  self->captions.fd = STDOUT_FILENO;
  self->errors.fd = -1;
  if (!path) return TF_OK;
  self->captions.fd = -1;
  self->captions.path = joined(path, "");
  self->errors.path = joined(path, ".errors.jsonl");
  self->run_path = joined(path, ".run.json");
  if (!self->captions.path || !self->errors.path || !self->run_path)
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  /* O_APPEND: two runs on one file would interleave whole lines, not overwrite each other. */
  int flags = O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK; /* a FIFO without a reader is an error */
  self->captions.fd = open(path, flags | O_CREAT | O_EXCL, 0666);
  self->created = self->captions.fd >= 0;
  struct stat status;
  if (!self->created && errno == EEXIST) {
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%s is not a regular file; name another output", path);
    if (!overwrite)
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%s exists; name another output or give --overwrite", path);
    self->captions.fd = open(path, flags);
  }
  if (self->captions.fd < 0 || fstat(self->captions.fd, &status))
    return tf_fail(error, TF_ERR_IO, "%s: %s", path, strerror(errno));
  if (!S_ISREG(status.st_mode))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%s is not a regular file; name another output", path);
  self->captions.is_regular = true;
  return TF_OK;
}

tf_code tf_output_begin(tf_output *self, tf_error *error) {
  self->begun = true;
  if (!self->captions.path) return TF_OK;
  if (ftruncate(self->captions.fd, 0)) return tf_fail(error, TF_ERR_IO, "%s: %s", self->captions.path, strerror(errno));
  if (unlink(self->errors.path) && errno != ENOENT)
    return tf_fail(error, TF_ERR_IO, "%s: %s", self->errors.path, strerror(errno));
  return TF_OK;
}

tf_code tf_output_caption(tf_output *self, const tf_buffer *lines, tf_error *error) {
  return append(&self->captions, lines, error);
}

tf_code tf_output_failure(tf_output *self, const tf_buffer *lines, tf_error *error) {
  if (!self->errors.path) return TF_OK;
  if (self->errors.fd < 0) {
    self->errors.fd = open(self->errors.path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    if (self->errors.fd < 0) return tf_fail(error, TF_ERR_IO, "%s: %s", self->errors.path, strerror(errno));
    self->errors.is_regular = true;
  }
  return append(&self->errors, lines, error);
}

tf_code tf_output_settings(tf_output *self, const tf_buffer *json, tf_error *error) {
  if (!self->run_path) return TF_OK;
  tf_lines file = {.path = joined(self->run_path, ".new"), .fd = -1, .is_regular = true};
  if (!file.path) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  tf_code code = TF_OK;
  file.fd = open(file.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file.fd < 0) code = tf_fail(error, TF_ERR_IO, "%s: %s", file.path, strerror(errno));
  if (!code) code = append(&file, json, error);
  if (!code && (fsync(file.fd) || rename(file.path, self->run_path)))
    code = tf_fail(error, TF_ERR_IO, "%s: %s", self->run_path, strerror(errno));
  if (code && file.fd >= 0) unlink(file.path);
  if (file.fd >= 0) close(file.fd);
  free(file.path);
  return code;
}

static tf_code close_lines(tf_lines *self, tf_error *error) {
  tf_code code = TF_OK;
  if (self->path && self->fd >= 0) {
    if (fsync(self->fd)) code = tf_fail(error, TF_ERR_IO, "%s: %s", self->path, strerror(errno));
    if (close(self->fd) && !code) code = tf_fail(error, TF_ERR_IO, "%s: %s", self->path, strerror(errno));
  }
  free(self->path);
  self->path = NULL;
  self->fd = -1;
  return code;
}

tf_code tf_output_close(tf_output *self, tf_error *error) {
  if (self->created && !self->begun) unlink(self->captions.path);
  tf_code captions = close_lines(&self->captions, error);
  tf_code errors = close_lines(&self->errors, error);
  free(self->run_path);
  self->run_path = NULL;
  return captions ? captions : errors;
}

/* Writes the output of a run. In: lines. Out: appended bytes, synced in small groups.
 * A line goes out in one write where the system takes it; what it took of a line that failed is cut off again.
 * FILE.run.json is written beside itself and renamed, so that a reader never sees half of it. */
#include "cli/output.h"

#include "cli/csv.h"
#include "cli/records.h"
#include "cli/replace.h"
#include "cli/target.h"
#include "common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RECORD_BYTES_MAX = 1024 * 1024, OPEN_TRIES_MAX = 10 };

static char *joined(const char *path, const char *suffix) {
  char *out = NULL;
  return asprintf(&out, "%s%s", path, suffix) < 0 ? NULL : out;
}

static const char *name_of(const tf_lines *lines) {
  return lines->path ? lines->path : "standard output";
}

/* What went to standard output can not be read back, so nothing goes on from there. */
static tf_code fail_errno(const tf_lines *lines, int number, tf_error *error) {
  bool full = number == ENOSPC || number == EDQUOT || number == EFBIG;
  const char *hint = !full         ? ""
                     : lines->path ? "; what is written is whole, and the same command goes on from there"
                                   : "; with -o FILE a run can be gone on with";
  return tf_fail(error, TF_ERR_IO, "%s: %s%s", name_of(lines), strerror(number), hint);
}

static tf_code append(tf_lines *self, const tf_buffer *lines, tf_error *error) {
  size_t done = 0;
  while (done < lines->size) {
    ssize_t written = write(self->fd, lines->data + done, lines->size - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      int failed = errno;
      if (self->is_regular && ftruncate(self->fd, self->size)) failed = errno;
      return fail_errno(self, failed, error);
    }
    done += (size_t)written;
  }
  self->size += (off_t)lines->size;
  return TF_OK;
}

/* -- opening ---------------------------------------------------------------------------------------------------- */

/* The lock is on the file, and a merge puts another file in its place: what was opened must still be what is named. */
static bool is_at(const char *path, int fd) {
  struct stat opened, named;
  return fstat(fd, &opened) == 0 && stat(path, &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

static tf_code open_locked(tf_output *self, const char *path, tf_error *error) {
  /* O_APPEND: lines are added whole, whoever else writes there. O_NONBLOCK: a FIFO without a reader is an error. */
  int flags = O_RDWR | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  struct stat status;
  for (int tries = 0; tries < OPEN_TRIES_MAX; tries++) {
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%s is not a regular file; name another output", path);
    int fd = open(path, flags | O_CREAT | O_EXCL, 0666);
    self->created = fd >= 0;
    if (fd < 0 && errno == EEXIST) fd = open(path, flags);
    if (fd < 0 && errno == ENOENT) fd = open(path, flags | O_CREAT, 0666); /* a link that leads to nothing yet */
    if (fd < 0) return tf_fail(error, TF_ERR_IO, "%s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB)) {
      int failed = errno;
      close(fd);
      if (failed != EWOULDBLOCK)
        return tf_fail(error, TF_ERR_IO, "%s: it can not be locked: %s", path, strerror(failed));
      return tf_fail(error, TF_ERR_IO, "%s: another run is writing to it; wait for it, or name another output", path);
    }
    if (is_at(path, fd)) {
      self->captions.fd = fd;
      return TF_OK;
    }
    close(fd);
  }
  return tf_fail(error, TF_ERR_IO, "%s: it keeps being replaced", path);
}

tf_code tf_output_open(tf_output *self, const char *path, tf_format format, tf_error *error) {
  memset(self, 0, sizeof *self);
  self->format = format;
  self->captions.fd = STDOUT_FILENO;
  self->errors.fd = self->upgrade.fd = -1;
  if (!path) return TF_OK;
  self->captions.fd = -1;
  tf_code code = open_locked(self, path, error);
  if (code) return code;
  char *real = realpath(path, NULL); /* a rename must not replace the link that leads here */
  struct stat status;
  bool is_link = lstat(path, &status) == 0 && S_ISLNK(status.st_mode);
  const char *base = is_link && real ? real : path;
  self->captions.path = joined(base, "");
  self->errors.path = joined(base, ".errors.jsonl");
  self->upgrade.path = joined(base, ".upgrade");
  self->run_path = joined(base, ".run.json");
  free(real);
  if (!self->captions.path || !self->errors.path || !self->run_path || !self->upgrade.path)
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  if (fstat(self->captions.fd, &status)) return tf_fail(error, TF_ERR_IO, "%s: %s", path, strerror(errno));
  self->captions.is_regular = true;
  self->captions.size = status.st_size;
  return TF_OK;
}

static bool has_bytes(const char *path) {
  struct stat status;
  return path && stat(path, &status) == 0 && status.st_size > 0;
}

bool tf_output_has_past(const tf_output *self) {
  return self->captions.path && (self->captions.size > 0 || has_bytes(self->errors.path));
}

/* Better lines of a run that was killed: empty, or the first one is whole, or torn and ours. */
static bool is_upgrade(const char *path, tf_format format) {
  tf_records records;
  tf_record first;
  tf_error ignored;
  bool found = true;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) return errno == ENOENT;
  tf_records_open(&records, fd, format);
  bool ours = tf_records_next(&records, &first, &found, &ignored) == TF_OK && (!found || first.good || first.torn);
  tf_records_close(&records);
  close(fd);
  return ours;
}

static tf_code refuse(const char *path, const char *what, tf_error *error) {
  return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                 "%.300s does not begin as %s of this command, so it is not replaced; name another output, or move it "
                 "away",
                 path, what);
}

tf_code tf_output_is_ours(const tf_output *self, tf_error *error) {
  static const tf_file_kind jsonl = {"", "{\"id\":\"", "\"image\":"}, csv = {"", "image,caption,vision_tokens,", NULL},
                            run = {"", "{\n  \"run\": \"", NULL};
  if (!self->captions.path) return TF_OK;
  if (!tf_file_is(self->captions.path, &jsonl) && !tf_file_is(self->captions.path, &csv))
    return refuse(self->captions.path, "captions", error);
  if (has_bytes(self->errors.path) && !tf_file_is(self->errors.path, &jsonl))
    return refuse(self->errors.path, "failures", error);
  if (has_bytes(self->run_path) && !tf_file_is(self->run_path, &run))
    return refuse(self->run_path, "the settings", error);
  bool upgrade = is_upgrade(self->upgrade.path, TF_FORMAT_JSONL) || is_upgrade(self->upgrade.path, TF_FORMAT_CSV);
  return upgrade ? TF_OK : refuse(self->upgrade.path, "better captions", error);
}

tf_code tf_output_upgrade_is_ours(const tf_output *self, tf_error *error) {
  bool ours = !self->upgrade.path || is_upgrade(self->upgrade.path, self->format);
  return ours ? TF_OK : refuse(self->upgrade.path, "better captions", error);
}

/* -- writing ---------------------------------------------------------------------------------------------------- */

static tf_code empty(tf_output *self, tf_error *error) {
  if (ftruncate(self->captions.fd, 0)) return tf_fail(error, TF_ERR_IO, "%s: %s", self->captions.path, strerror(errno));
  self->captions.size = 0;
  const char *old[] = {self->errors.path, self->upgrade.path};
  for (size_t i = 0; i < sizeof old / sizeof old[0]; i++)
    if (unlink(old[i]) && errno != ENOENT) return tf_fail(error, TF_ERR_IO, "%s: %s", old[i], strerror(errno));
  return TF_OK;
}

tf_code tf_output_begin(tf_output *self, bool anew, tf_error *error) {
  self->begun = true;
  if (self->captions.path && anew) {
    tf_code code = empty(self, error);
    if (code) return code;
    tf_sync_folder(self->captions.path);
  }
  return TF_OK;
}

static void count_line(tf_output *self) {
  if (self->group_lines++ == 0) self->group_ms = tf_now_ms();
}

tf_code tf_output_caption(tf_output *self, const tf_buffer *lines, off_t *at, tf_error *error) {
  tf_lines *into = self->upgrade.fd >= 0 ? &self->upgrade : &self->captions;
  if (at) *at = into->size;
  if (self->silent) return TF_OK;
  count_line(self);
  if (self->format == TF_FORMAT_JSONL) return append(into, lines, error);
  tf_buffer record;
  tf_buffer_init(&record, RECORD_BYTES_MAX);
  if (into == &self->captions && into->size == 0) tf_csv_header(&record); /* with the first record: none without any */
  if (at) *at += (off_t)record.size;
  tf_code code = tf_csv_caption(lines->data, lines->size, &record, error);
  if (!code) code = append(into, &record, error);
  tf_buffer_free(&record);
  return code;
}

static tf_code open_more(tf_lines *self, tf_error *error) {
  struct stat status;
  self->fd = open(self->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
  if (self->fd < 0 || fstat(self->fd, &status)) return tf_fail(error, TF_ERR_IO, "%s: %s", self->path, strerror(errno));
  self->is_regular = S_ISREG(status.st_mode);
  self->size = status.st_size;
  if (!self->is_regular) return tf_fail(error, TF_ERR_IO, "%s: is not a regular file", self->path);
  tf_sync_folder(self->path);
  return TF_OK;
}

tf_code tf_output_failure(tf_output *self, const tf_buffer *lines, tf_error *error) {
  if (!self->errors.path) return TF_OK;
  tf_code code = self->errors.fd < 0 ? open_more(&self->errors, error) : TF_OK;
  count_line(self);
  return code ? code : append(&self->errors, lines, error);
}

tf_code tf_output_divert(tf_output *self, tf_error *error) {
  return self->upgrade.fd < 0 ? open_more(&self->upgrade, error) : TF_OK;
}

tf_code tf_output_sync(tf_output *self, bool now, tf_error *error) {
  if (self->group_lines == 0) return TF_OK;
  if (!now && self->group_lines < TF_OUTPUT_GROUP_LINES_MAX && tf_now_ms() - self->group_ms < TF_OUTPUT_GROUP_MS_MAX)
    return TF_OK;
  self->group_lines = 0;
  const tf_lines *files[] = {&self->captions, &self->upgrade, &self->errors};
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
    if (files[i]->path && files[i]->fd >= 0 && fdatasync(files[i]->fd)) return fail_errno(files[i], errno, error);
  return TF_OK;
}

int tf_output_fd(const tf_output *self) {
  if (self->upgrade.fd >= 0) return self->upgrade.fd;
  return self->captions.path ? self->captions.fd : -1;
}

tf_code tf_output_settings(tf_output *self, const tf_buffer *json, tf_error *error) {
  if (!self->run_path) return TF_OK;
  tf_replace file;
  tf_code code = tf_replace_begin(&file, self->run_path, error);
  if (!code) code = tf_replace_write(&file, json->data, json->size, error);
  if (!code) code = tf_replace_commit(&file, NULL, error);
  tf_replace_end(&file);
  return code;
}

/* -- closing ---------------------------------------------------------------------------------------------------- */

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
  if (self->created && !self->begun && self->captions.path) unlink(self->captions.path);
  tf_code errors = close_lines(&self->errors, error);
  tf_code upgrade = close_lines(&self->upgrade, error);
  tf_code captions = close_lines(&self->captions, error); /* last: it holds the lock */
  free(self->run_path);
  self->run_path = NULL;
  return captions ? captions : upgrade ? upgrade : errors;
}

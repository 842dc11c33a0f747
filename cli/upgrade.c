/* Upgrading an output. In: FILE, FILE.upgrade. Out: FILE.
 * The merge reads FILE once and FILE.upgrade twice: once for where each picture's last line begins, then line by line.
 * It may run any number of times: the same lines go to the same places. */
#include "cli/upgrade.h"

#include "cli/command.h"
#include "cli/replace.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { PATH_BYTES_MAX = 65536 };

void tf_upgrade_open(tf_upgrade *self, const tf_output *output, const tf_past *past, uint32_t target) {
  memset(self, 0, sizeof *self);
  self->past = past;
  self->target = target;
  self->open = true;
  tf_buffer_init(&self->path, PATH_BYTES_MAX);
  tf_records_open(&self->records, output->captions.fd, output->format);
}

void tf_upgrade_close(tf_upgrade *self) {
  if (!self->open) return;
  tf_records_close(&self->records);
  tf_buffer_free(&self->path);
  self->open = false;
}

tf_input_kind tf_upgrade_next(tf_upgrade *self, tf_input *out, const char **before) {
  tf_record record;
  bool found = true;
  for (;;) {
    if (tf_records_next(&self->records, &record, &found, &out->error)) {
      out->image = "the output";
      out->path = NULL;
      return TF_INPUT_ERROR;
    }
    if (!found) return TF_INPUT_END;
    if (!record.good || record.vision_tokens >= self->target) continue;
    tf_buffer_clear(&self->path);
    tf_past_path(self->past, record.image, &self->path);
    if (self->path.overflow) continue; /* no system opens such a path */
    out->image = record.image;
    out->path = self->path.data;
    *before = record.caption;
    return TF_INPUT_IMAGE;
  }
}

/* -- merging ---------------------------------------------------------------------------------------------------- */

typedef struct merge {
  tf_output *output;
  const tf_past *past;
  int fd;           /* of FILE.upgrade */
  tf_keymap places; /* where a picture's last new line begins */
  tf_replace file;
  uint64_t count;
} merge;

static tf_code find_places(merge *self, tf_error *error) {
  tf_records records;
  tf_record record;
  bool found = true;
  tf_code code = TF_OK;
  tf_records_open(&records, self->fd, self->output->format);
  while (!code) {
    code = tf_records_next(&records, &record, &found, error);
    if (code || !found) break;
    if (record.good) /* the last one may be torn */
      code = tf_keymap_put(&self->places, tf_past_key(self->past, record.image), (uint64_t)record.offset, error);
  }
  tf_records_close(&records);
  return code;
}

static tf_code copy_new(merge *self, uint64_t place, tf_error *error) {
  tf_records records;
  tf_record record;
  bool found;
  tf_records_open(&records, self->fd, self->output->format);
  records.offset = (off_t)place;
  tf_code code = tf_records_next(&records, &record, &found, error);
  if (!code) code = tf_replace_write(&self->file, record.text, record.bytes, error);
  tf_records_close(&records);
  self->count++;
  return code;
}

static tf_code copy_lines(merge *self, tf_error *error) {
  tf_records records;
  tf_record record;
  bool found = true;
  tf_code code = TF_OK;
  tf_records_open(&records, self->output->captions.fd, self->output->format);
  while (!code) {
    uint64_t place;
    code = tf_records_next(&records, &record, &found, error);
    if (code || !found) break;
    if (record.good && tf_keymap_get(&self->places, tf_past_key(self->past, record.image), &place))
      code = copy_new(self, place, error);
    else if (record.whole)
      code = tf_replace_write(&self->file, record.text, record.bytes, error);
  }
  tf_records_close(&records);
  return code;
}

/* The new file takes the old one's place, its lock included. */
static tf_code put_in_place(merge *self, tf_error *error) {
  int fd = -1;
  if (flock(self->file.fd, LOCK_EX | LOCK_NB))
    return tf_fail(error, TF_ERR_IO, "%s: it can not be locked: %s", self->file.temporary, strerror(errno));
  tf_code code = tf_replace_commit(&self->file, &fd, error);
  if (code) return code;
  close(self->output->captions.fd);
  self->output->captions.fd = fd;
  self->output->captions.size = lseek(fd, 0, SEEK_END);
  return TF_OK;
}

tf_code tf_upgrade_merge(tf_output *output, const tf_past *past, uint64_t *count, tf_error *error) {
  *count = 0;
  if (!output->upgrade.path) return TF_OK;
  merge self = {.output = output, .past = past, .file = {.fd = -1}};
  if (output->upgrade.fd >= 0) close(output->upgrade.fd);
  output->upgrade.fd = -1;
  self.fd = open(output->upgrade.path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (self.fd < 0 && errno == ENOENT) return TF_OK;
  if (self.fd < 0) return tf_fail(error, TF_ERR_IO, "%s: %s", output->upgrade.path, strerror(errno));
  tf_keymap_init(&self.places, 8);
  tf_code code = find_places(&self, error);
  if (!code && self.places.count > 0) {
    code = tf_replace_begin(&self.file, output->captions.path, error);
    if (!code) code = copy_lines(&self, error);
    if (!code) code = put_in_place(&self, error);
    tf_replace_end(&self.file);
  }
  tf_keymap_free(&self.places);
  close(self.fd);
  if (!code && unlink(output->upgrade.path) && errno != ENOENT)
    code = tf_fail(error, TF_ERR_IO, "%s: %s", output->upgrade.path, strerror(errno));
  if (!code) tf_sync_folder(output->upgrade.path);
  *count = self.count;
  return code;
}

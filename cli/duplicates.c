/* Remembers contents. In: files, lines. Out: the first one's line again.
 * A file is read here once before the encoder reads it; it comes from the page cache then.
 * The line is read back from the output itself, so that memory holds a place and no text. */
#include "cli/duplicates.h"

#include "cli/jsonl.h"
#include "cli/submit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { READ_BYTES = 256 * 1024, CHECK_BITS = 24 };

void tf_duplicates_init(tf_duplicates *self) {
  tf_keymap_init(&self->places, 8);
  self->spool = -1;
  self->spool_size = 0;
}

void tf_duplicates_clear(tf_duplicates *self) {
  tf_keymap_free(&self->places);
}

void tf_duplicates_free(tf_duplicates *self) {
  tf_duplicates_clear(self);
  if (self->spool >= 0) close(self->spool);
  self->spool = -1;
}

static tf_content content_of_fd(int fd, XXH3_state_t *state, char *bytes) {
  tf_content none = {0};
  struct stat status;
  if (fstat(fd, &status) || !S_ISREG(status.st_mode) || status.st_size > TF_SUBMIT_IMAGE_BYTES_MAX) return none;
  XXH3_128bits_reset(state);
  off_t size = 0;
  for (;;) {
    ssize_t got = read(fd, bytes, READ_BYTES);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 || size > TF_SUBMIT_IMAGE_BYTES_MAX) return none;
    if (got == 0) break;
    size += got;
    XXH3_128bits_update(state, bytes, (size_t)got);
  }
  if (size == 0) return none;
  XXH128_hash_t hash = XXH3_128bits_digest(state);
  return (tf_content){hash.low64 ? hash.low64 : 1, (uint32_t)(hash.high64 & ((1u << CHECK_BITS) - 1))};
}

tf_content tf_content_of(const char *path) {
  tf_content content = {0};
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return content;
  XXH3_state_t *state = XXH3_createState();
  char *bytes = malloc(READ_BYTES);
  if (state && bytes) content = content_of_fd(fd, state, bytes);
  XXH3_freeState(state);
  free(bytes);
  close(fd);
  return content;
}

bool tf_content_is_same(tf_content left, tf_content right) {
  return left.key && left.key == right.key && left.check == right.check;
}

/* Where the line went in the spool; -1: it was not kept. */
static off_t keep_line(tf_duplicates *self, const tf_buffer *line) {
  if (self->spool < 0 && self->spool_size == 0) {
    const char *folder = getenv("TMPDIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/tokenflex-lines-XXXXXX", folder && folder[0] ? folder : "/tmp");
    self->spool = mkostemp(path, O_CLOEXEC);
    if (self->spool >= 0) unlink(path);
  }
  off_t at = self->spool_size;
  if (self->spool < 0 || at > TF_DUPLICATES_SPOOL_BYTES_MAX - (off_t)line->size) return -1;
  if (pwrite(self->spool, line->data, line->size, at) != (ssize_t)line->size) return -1;
  self->spool_size += (off_t)line->size;
  return at;
}

tf_code tf_duplicates_note(tf_duplicates *self, tf_content content, int output_fd, off_t at, const tf_buffer *line,
                           tf_error *error) {
  if (!content.key) return TF_OK;
  if (output_fd < 0) at = keep_line(self, line);
  if (at < 0 || at >= (off_t)1 << (64 - CHECK_BITS)) return TF_OK;
  return tf_keymap_put(&self->places, content.key, (uint64_t)at << CHECK_BITS | content.check, error);
}

tf_code tf_duplicates_line(const tf_duplicates *self, tf_content content, int output_fd, tf_buffer *text, bool *found,
                           tf_error *error) {
  uint64_t place;
  *found = false;
  if (!content.key || !tf_keymap_get(&self->places, content.key, &place)) return TF_OK;
  if ((place & ((1u << CHECK_BITS) - 1)) != content.check) return TF_OK;
  tf_records records;
  tf_record record;
  bool any = false;
  tf_records_open(&records, output_fd >= 0 ? output_fd : self->spool, TF_FORMAT_JSONL);
  records.offset = (off_t)(place >> CHECK_BITS);
  tf_code code = tf_records_next(&records, &record, &any, error);
  if (!code && any && record.good) {
    tf_buffer_append(text, record.text, record.bytes);
    *found = true;
  }
  tf_records_close(&records);
  return code;
}

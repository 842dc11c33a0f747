/* Reads lists of names. In: a descriptor. Out: names, for any number of readers.
 * A pipe can be read once only, and its end is far: what has come is appended to a file that has no name, from which
 * every reader takes it by offset. A reader that is at its end reads the pipe on, where something has come. */
#include "cli/list.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK_BYTES = TF_LIST_NAME_BYTES_MAX + 1 };

struct tf_list {
  int source, spool; /* the same where the source is a regular file */
  off_t size;        /* of the spool */
  bool ended;
  tf_error why; /* code other than TF_OK: the source can not be read on, for no reader */
  char separator;
  const char *path;
};

static const char *temporary_folder(void) {
  const char *folder = getenv("TMPDIR");
  return folder && folder[0] ? folder : "/tmp";
}

static int open_unnamed(void) {
  char path[4096];
  int length = snprintf(path, sizeof path, "%s/tokenflex-list-XXXXXX", temporary_folder());
  if (length < 0 || (size_t)length >= sizeof path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  int fd = mkostemp(path, O_CLOEXEC);
  if (fd >= 0) unlink(path);
  return fd;
}

tf_code tf_list_open(const char *path, char separator, tf_list **out, tf_error *error) {
  tf_list *self = calloc(1, sizeof *self);
  *out = NULL;
  if (!self) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  bool standard = strcmp(path, "-") == 0;
  self->separator = separator;
  self->path = standard ? "standard input" : path;
  self->source = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  struct stat status;
  bool fine = self->source >= 0 && fstat(self->source, &status) == 0;
  if (fine && S_ISREG(status.st_mode)) {
    self->spool = self->source;
    self->ended = true;
    *out = self;
    return TF_OK;
  }
  if (fine && S_ISDIR(status.st_mode)) {
    errno = EISDIR;
    fine = false;
  }
  self->spool = fine ? open_unnamed() : -1;
  if (self->spool >= 0) {
    *out = self;
    return TF_OK;
  }
  if (fine)
    tf_fail(error, TF_ERR_IO, "a temporary file for the list of names can not be made in %.300s (TMPDIR): %s",
            temporary_folder(), strerror(errno));
  else
    tf_fail(error, TF_ERR_IO, "%.300s: %s", self->path, strerror(errno));
  if (!standard && self->source >= 0) close(self->source);
  free(self);
  return TF_ERR_IO;
}

void tf_list_free(tf_list **self_in) {
  tf_list *self = *self_in;
  if (!self) return;
  if (self->spool != self->source) close(self->spool);
  if (self->source != STDIN_FILENO) close(self->source);
  free(self);
  *self_in = NULL;
}

void tf_list_cursor_free(tf_list_cursor *cursor) {
  free(cursor->block);
  memset(cursor, 0, sizeof *cursor);
}

/* Moves what has come into the spool. False: it can not be read or kept, which self->why says from now on. */
static bool pump(tf_list *self) {
  char bytes[16384];
  struct pollfd wait = {.fd = self->source, .events = POLLIN};
  if (poll(&wait, 1, 0) <= 0) return true;
  ssize_t got = read(self->source, bytes, sizeof bytes);
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (got == 0) self->ended = true;
  if (got > 0 && self->size > TF_LIST_BYTES_MAX - got) {
    tf_fail(&self->why, TF_ERR_UNSUPPORTED, "%.300s: more than %lld bytes of names", self->path,
            (long long)TF_LIST_BYTES_MAX);
    return false;
  }
  ssize_t kept = got > 0 ? pwrite(self->spool, bytes, (size_t)got, self->size) : got;
  if (got < 0) tf_fail(&self->why, TF_ERR_IO, "%.300s: %s", self->path, strerror(errno));
  if (got >= 0 && kept != got)
    tf_fail(&self->why, TF_ERR_IO, "the temporary file of the list of names, in %.300s (TMPDIR): %s",
            temporary_folder(), kept < 0 ? strerror(errno) : "the disk is full");
  if (got < 0 || kept != got) return false;
  self->size += got;
  return true;
}

/* Makes room and reads on. Returns the bytes read, -1 after an error. */
static ssize_t fill(tf_list *self, tf_list_cursor *cursor) {
  if (cursor->taken > 0) {
    memmove(cursor->block, cursor->block + cursor->taken, cursor->have - cursor->taken);
    cursor->offset += (off_t)cursor->taken;
    cursor->have -= cursor->taken;
    cursor->taken = 0;
  }
  ssize_t got;
  do
    got = pread(self->spool, cursor->block + cursor->have, BLOCK_BYTES - cursor->have,
                cursor->offset + (off_t)cursor->have);
  while (got < 0 && errno == EINTR);
  if (got > 0) cursor->have += (size_t)got;
  return got;
}

/* Lines that were written elsewhere: a byte order mark at the start and a carriage return at the end are no part of a
 * name. A name that does end so is given with NULs. */
static char *trim_line(const tf_list *self, const tf_list_cursor *cursor, char *start, size_t *bytes) {
  if (self->separator != '\n') return start;
  bool is_first = cursor->offset == 0 && start == cursor->block;
  if (*bytes > 0 && start[*bytes - 1] == '\r') --*bytes;
  if (!is_first || *bytes < 3 || memcmp(start, "\xEF\xBB\xBF", 3) != 0) return start;
  *bytes -= 3;
  return start + 3;
}

tf_list_kind tf_list_next(tf_list *self, tf_list_cursor *cursor, const char **name, tf_error *error) {
  if (!cursor->block) cursor->block = malloc(BLOCK_BYTES + 1);
  if (!cursor->block) tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  while (!cursor->failed && cursor->block) {
    char *start = cursor->block + cursor->taken;
    size_t left = cursor->have - cursor->taken;
    char *end = memchr(start, self->separator, left);
    if (!end && left < BLOCK_BYTES) {
      ssize_t got = fill(self, cursor);
      if (got > 0) continue;
      bool was_ended = self->ended;
      if (got < 0) tf_fail(&self->why, TF_ERR_IO, "%.300s: %s", self->path, strerror(errno));
      if (self->why.code || (!was_ended && !pump(self))) {
        *error = self->why;
        break;
      }
      start = cursor->block; /* fill has moved it */
      if (!was_ended) {
        if (!self->ended && self->size == cursor->offset + (off_t)cursor->have) return TF_LIST_WAIT;
        continue;
      }
      if (left == 0) return TF_LIST_END;
      end = start + left; /* the last name may lack its separator */
    }
    if (!end) {
      tf_fail(error, TF_ERR_INVALID_FORMAT, "%.300s: a name of more than %d bytes%s", self->path,
              TF_LIST_NAME_BYTES_MAX, self->separator ? "; are they separated by NULs (-0)?" : "");
      break;
    }
    size_t bytes = (size_t)(end - start);
    cursor->taken = (size_t)(end - cursor->block) + (end < cursor->block + cursor->have);
    start = trim_line(self, cursor, start, &bytes);
    if (bytes == 0) continue;
    if (memchr(start, '\0', bytes)) {
      tf_fail(error, TF_ERR_INVALID_FORMAT,
              "%.300s: a name holds a NUL; are they separated by NULs (-0), or is the list in UTF-16?", self->path);
      break;
    }
    start[bytes] = '\0';
    *name = start;
    return TF_LIST_NAME;
  }
  bool told = cursor->failed;
  cursor->failed = true;
  return told ? TF_LIST_END : TF_LIST_ERROR;
}

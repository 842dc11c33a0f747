/* Atomic replacement by rename(2). In: bytes. Out: a file.
 * Writes are gathered into blocks: an output of a million lines is copied through here.
 * The order is: data, fsync, rename, fsync of the folder. */
#include "cli/replace.h"

#include "cli/temporary.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK_BYTES = 256 * 1024, LINE_BYTES_MAX = 4 * 1024 * 1024, PATH_BYTES_MAX = 8192 };

void tf_sync_folder(const char *path) {
  char *copy = strdup(path);
  if (!copy) return;
  int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    fsync(fd);
    close(fd);
  }
  free(copy);
}

tf_code tf_replace_begin(tf_replace *self, const char *path, tf_error *error) {
  memset(self, 0, sizeof *self);
  self->fd = -1;
  tf_buffer_init(&self->block, BLOCK_BYTES + LINE_BYTES_MAX);
  self->path = strdup(path);
  if (!self->path) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  tf_buffer name;
  tf_buffer_init(&name, PATH_BYTES_MAX);
  tf_temporary_sweep(path);
  self->fd = tf_temporary_open(path, &name);
  int failed = errno;
  if (self->fd >= 0) self->temporary = strdup(name.data);
  if (self->fd >= 0 && !self->temporary) unlink(name.data);
  tf_buffer_free(&name);
  if (self->fd < 0) return tf_fail(error, TF_ERR_IO, "%s: no file can be made beside it: %s", path, strerror(failed));
  if (!self->temporary) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  struct stat status;
  if (stat(path, &status) == 0 && fchmod(self->fd, status.st_mode & 0777))
    return tf_fail(error, TF_ERR_IO, "%s: %s", self->temporary, strerror(errno));
  return TF_OK;
}

static tf_code flush(tf_replace *self, tf_error *error) {
  for (size_t done = 0; done < self->block.size;) {
    ssize_t written = write(self->fd, self->block.data + done, self->block.size - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return tf_fail(error, TF_ERR_IO, "%s: %s", self->temporary, strerror(errno));
    done += (size_t)written;
  }
  tf_buffer_clear(&self->block);
  return TF_OK;
}

tf_code tf_replace_write(tf_replace *self, const void *data, size_t size, tf_error *error) {
  tf_buffer_append(&self->block, data, size);
  if (self->block.overflow) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  return self->block.size >= BLOCK_BYTES ? flush(self, error) : TF_OK;
}

tf_code tf_replace_commit(tf_replace *self, int *fd_out, tf_error *error) {
  tf_code code = flush(self, error);
  if (code) return code;
  if (fsync(self->fd)) return tf_fail(error, TF_ERR_IO, "%s: %s", self->temporary, strerror(errno));
  if (rename(self->temporary, self->path)) return tf_fail(error, TF_ERR_IO, "%s: %s", self->path, strerror(errno));
  tf_sync_folder(self->path);
  free(self->temporary);
  self->temporary = NULL; /* it is the file now */
  if (fd_out) {
    *fd_out = self->fd;
    self->fd = -1;
  }
  return TF_OK;
}

void tf_replace_end(tf_replace *self) {
  if (self->temporary && self->fd >= 0) unlink(self->temporary);
  if (self->fd >= 0) close(self->fd);
  self->fd = -1;
  tf_buffer_free(&self->block);
  free(self->path);
  free(self->temporary);
  self->path = self->temporary = NULL;
}

/* Writes sidecars. In: captions. Out: files.
 * Moving into place must not replace: renameat2 does that, and link(2) where the file system knows no such rename.
 * What a killed run leaves beside them is hidden, and removed by whoever comes to the folder next (tf_temporary_sweep).
 */
#include "cli/sidecar.h"

#include "cli/inputs.h"
#include "cli/temporary.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES_MAX = 8192, CAPTION_BYTES_MAX = 1024 * 1024 };

static size_t stem_bytes(const char *photo) {
  const char *slash = strrchr(photo, '/'), *name = slash ? slash + 1 : photo;
  const char *dot = strrchr(name, '.');
  return dot && dot != name ? (size_t)(dot - photo) : strlen(photo);
}

void tf_sidecar_path(const char *photo, tf_buffer *out) {
  tf_buffer_append(out, photo, stem_bytes(photo));
  tf_buffer_append(out, ".txt", 5);
}

/* photo.txt named as a photo would be its own sidecar. */
static bool is_itself(const char *photo, const tf_buffer *path) {
  return path->data && strcmp(photo, path->data) == 0;
}

bool tf_sidecar_exists(const char *photo) {
  struct stat status;
  tf_buffer path;
  tf_buffer_init(&path, PATH_BYTES_MAX);
  tf_sidecar_path(photo, &path);
  bool exists = !path.overflow && !is_itself(photo, &path) && lstat(path.data, &status) == 0;
  tf_buffer_free(&path);
  return exists;
}

bool tf_sidecar_holds(const char *photo, const char *caption) {
  tf_buffer path, text;
  tf_buffer_init(&path, PATH_BYTES_MAX);
  tf_buffer_init(&text, CAPTION_BYTES_MAX);
  tf_sidecar_path(photo, &path);
  int fd = path.overflow ? -1 : open(path.data, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  char bytes[4096];
  ssize_t got = -1;
  while (fd >= 0 && !text.overflow && (got = read(fd, bytes, sizeof bytes)) > 0)
    tf_buffer_append(&text, bytes, (size_t)got);
  if (fd >= 0) close(fd);
  size_t size = strlen(caption);
  bool holds = got == 0 && text.size == size + 1 && memcmp(text.data, caption, size) == 0 && text.data[size] == '\n';
  tf_buffer_free(&path);
  tf_buffer_free(&text);
  return holds;
}

static int write_new(int fd, const char *caption) {
  tf_buffer text;
  int failed = 0;
  tf_buffer_init(&text, CAPTION_BYTES_MAX);
  tf_buffer_printf(&text, "%s\n", caption);
  for (size_t done = 0; !failed && done < text.size;) {
    ssize_t written = write(fd, text.data + done, text.size - done);
    if (written < 0 && errno != EINTR) failed = errno;
    if (written > 0) done += (size_t)written;
  }
  if (!failed && text.overflow) failed = EFBIG;
  if (!failed && fdatasync(fd)) failed = errno;
  tf_buffer_free(&text);
  return failed;
}

static int move_into_place(const char *from, const char *to, bool overwrite) {
  if (overwrite) return rename(from, to) ? errno : 0;
  if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return errno;
  return link(from, to) ? errno : 0; /* the caller removes the other name */
}

/* What --overwrite must leave alone: another picture, and what is no file. NULL: it may be replaced. */
static const char *keeper(const char *path) {
  struct stat status;
  if (lstat(path, &status)) return NULL;
  if (!S_ISREG(status.st_mode) && !S_ISLNK(status.st_mode)) return "what has its name is not a regular file";
  return tf_inputs_has_signature(path) ? "what has its name is a picture" : NULL;
}

tf_code tf_sidecar_write(const char *photo, const char *caption, bool overwrite, bool *kept, bool *disk_full,
                         tf_error *error) {
  tf_buffer path, temporary;
  *kept = *disk_full = false;
  tf_buffer_init(&path, PATH_BYTES_MAX);
  tf_buffer_init(&temporary, PATH_BYTES_MAX);
  tf_sidecar_path(photo, &path);
  bool named = path.data && !path.overflow;
  int failed = !named ? ENAMETOOLONG : is_itself(photo, &path) ? EEXIST : 0;
  const char *why = !failed && overwrite ? keeper(path.data) : NULL;
  if (why) failed = EPERM;
  int fd = failed ? -1 : tf_temporary_open(path.data, &temporary);
  if (!failed && fd < 0) failed = errno;
  if (fd >= 0) failed = write_new(fd, caption);
  if (!failed) failed = move_into_place(temporary.data, path.data, overwrite);
  if (fd >= 0) {
    unlink(temporary.data); /* not there any more where all went well */
    close(fd);              /* its lock has kept it until here */
  }
  *kept = failed == EEXIST;
  *disk_full = failed == ENOSPC || failed == EDQUOT;
  if (failed && !*kept) tf_fail(error, TF_ERR_IO, "its sidecar can not be written: %s", why ? why : strerror(failed));
  tf_buffer_free(&path);
  tf_buffer_free(&temporary);
  return failed && !*kept ? TF_ERR_IO : TF_OK;
}

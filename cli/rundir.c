/* Makes, locks and removes private folders. In: the environment. Out: folders that only this user can enter.
 * Both locks are flock(2) on the folders themselves: the base's is held for moments, while folders in it come and go;
 * a run's is held all its life, and the kernel lets go of it when the owner dies. Nothing else has to be cleaned up. */
#include "cli/rundir.h"

#include "common/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LOCK_TRIES_MAX = 10, LOCK_WAIT_MS_MAX = 5000, ENTRIES_MAX = 100000 };

static int open_folder(int parent, const char *name) {
  return openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static bool lock_within(int fd, int64_t wait_ms_max) {
  int64_t deadline_ms = tf_now_ms() + wait_ms_max;
  while (flock(fd, LOCK_EX | LOCK_NB)) {
    if ((errno != EWOULDBLOCK && errno != EINTR) || tf_now_ms() >= deadline_ms) return false;
    usleep(10000);
  }
  return true;
}

/* Opens and locks the base folder, made where it is not there. Another run may remove it between open and lock: then
 * again. */
static int lock_base(const char *base, tf_error *error) {
  for (int i = 0; i < LOCK_TRIES_MAX; i++) {
    if (mkdir(base, 0700) && errno != EEXIST) {
      tf_fail(error, TF_ERR_IO, "%s: %s", base, strerror(errno));
      return -1;
    }
    int fd = open_folder(AT_FDCWD, base);
    if (fd < 0 && errno == ENOENT) continue;
    struct stat own, named;
    if (fd < 0 || fstat(fd, &own) || own.st_uid != geteuid() || (own.st_mode & 077) != 0) {
      tf_fail(error, TF_ERR_IO,
              "%s is not a private folder of this user (mode 0700); remove it, or set XDG_RUNTIME_DIR", base);
      if (fd >= 0) close(fd);
      return -1;
    }
    if (!lock_within(fd, LOCK_WAIT_MS_MAX)) {
      tf_fail(error, TF_ERR_TIMEOUT, "%s is locked by another process", base);
      close(fd);
      return -1;
    }
    if (lstat(base, &named) == 0 && named.st_dev == own.st_dev && named.st_ino == own.st_ino) return fd;
    close(fd);
  }
  tf_fail(error, TF_ERR_IO, "%s comes and goes", base);
  return -1;
}

/* Removes a run's folder: it holds files and sockets only. */
static void remove_flat(int base_fd, const char *name) {
  int fd = open_folder(base_fd, name);
  DIR *dir = fd < 0 ? NULL : fdopendir(fd);
  if (!dir) {
    if (fd >= 0) close(fd);
    return;
  }
  struct dirent *entry;
  for (int i = 0; i < ENTRIES_MAX && (entry = readdir(dir)); i++)
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) unlinkat(dirfd(dir), entry->d_name, 0);
  closedir(dir);
  unlinkat(base_fd, name, AT_REMOVEDIR);
}

/* With the base locked no folder is half-made, so that one without a lock has no owner any more. */
static void remove_dead(int base_fd) {
  int fd = open_folder(base_fd, ".");
  DIR *dir = fd < 0 ? NULL : fdopendir(fd);
  if (!dir) {
    if (fd >= 0) close(fd);
    return;
  }
  struct dirent *entry;
  for (int i = 0; i < ENTRIES_MAX && (entry = readdir(dir)); i++) {
    if (strncmp(entry->d_name, "run-", 4) != 0) continue;
    int run_fd = open_folder(base_fd, entry->d_name);
    if (run_fd < 0) continue;
    if (flock(run_fd, LOCK_EX | LOCK_NB) == 0) remove_flat(base_fd, entry->d_name);
    close(run_fd);
  }
  closedir(dir);
}

static tf_code make_in(const char *parent, tf_rundir *out, tf_error *error) {
  int length = snprintf(out->base, sizeof out->base, "%s/tokenflex-%u", parent, (unsigned)geteuid());
  if (length < 0 || (size_t)length + sizeof "/run-XXXXXX" > sizeof out->path)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%s is too long a path for sockets", parent);
  int base_fd = lock_base(out->base, error);
  if (base_fd < 0) return TF_ERR_IO;
  remove_dead(base_fd);
  memcpy(out->path, out->base, (size_t)length);
  memcpy(out->path + length, "/run-XXXXXX", sizeof "/run-XXXXXX");
  tf_code code = TF_OK;
  if (!mkdtemp(out->path)) code = tf_fail(error, TF_ERR_IO, "%s: %s", out->path, strerror(errno));
  if (!code) out->lock_fd = open_folder(AT_FDCWD, out->path);
  if (!code && (out->lock_fd < 0 || flock(out->lock_fd, LOCK_EX | LOCK_NB)))
    code = tf_fail(error, TF_ERR_IO, "%s can not be locked: %s", out->path, strerror(errno));
  close(base_fd);
  return code;
}

tf_code tf_rundir_make(tf_rundir *out, tf_error *error) {
  memset(out, 0, sizeof *out);
  out->lock_fd = -1;
  const char *runtime = getenv("XDG_RUNTIME_DIR");
  if (runtime && runtime[0] == '/' && !strchr(runtime, ',') /* endpoints are given as lists */ &&
      access(runtime, W_OK | X_OK) == 0 && make_in(runtime, out, error) == TF_OK)
    return TF_OK;
  return make_in("/tmp", out, error);
}

void tf_rundir_remove(tf_rundir *self) {
  if (self->lock_fd < 0) return;
  int base_fd = lock_base(self->base, NULL);
  if (base_fd >= 0) {
    remove_flat(base_fd, strrchr(self->path, '/') + 1);
    rmdir(self->base); /* stays while another run is in it */
    close(base_fd);
  }
  close(self->lock_fd);
  self->lock_fd = -1;
}

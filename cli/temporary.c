/* Makes temporary files, and removes those of runs that are gone. In: paths. Out: files.
 * A new file and its lock are two steps: whoever sweeps between them takes it for a leftover. So its maker looks after
 * the lock whether it is still there, and makes another one if not. */
#include "cli/temporary.h"

#include "cli/keymap.h"
#include "common/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_BYTES_MAX = 200, RANDOM_DIGITS = 16, TRIES_MAX = 10 };

static const char ending[] = ".tokenflex";

static const char *name_in(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* A name that is nearly as long as names may be has no room for more: a hash stands for it. */
static void put_name(const char *path, tf_buffer *out) {
  const char *name = name_in(path);
  size_t size = strlen(name);
  uint64_t number = 0;
  if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number)
    number = (uint64_t)tf_now_us() ^ (uint64_t)getpid() << 40;
  tf_buffer_append(out, path, (size_t)(name - path));
  if (size <= NAME_BYTES_MAX)
    tf_buffer_printf(out, ".%s", name);
  else
    tf_buffer_printf(out, ".%016llx", (unsigned long long)tf_key_of(name, size));
  tf_buffer_printf(out, ".%016llx%s", (unsigned long long)number, ending);
  tf_buffer_append(out, "", 1);
}

/* False: a sweep has taken it, or is about to. On a file system without locks nothing is swept. */
static bool keep(int fd, const char *name) {
  struct stat opened, named;
  if (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) return false;
  return fstat(fd, &opened) == 0 && lstat(name, &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

int tf_temporary_open(const char *path, tf_buffer *name) {
  size_t before = name->size;
  for (int tries = 0; tries < TRIES_MAX; tries++) {
    name->size = before;
    put_name(path, name);
    if (name->overflow) {
      errno = ENAMETOOLONG;
      return -1;
    }
    int fd = open(name->data + before, O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0 && errno == EEXIST) continue;
    if (fd < 0 || keep(fd, name->data + before)) return fd;
    close(fd);
  }
  errno = EBUSY;
  return -1;
}

/* ".NAME.0123456789abcdef.tokenflex" */
static bool is_ours(const char *name) {
  size_t size = strlen(name), tail = RANDOM_DIGITS + sizeof ending - 1;
  if (name[0] != '.' || size < tail + 3) return false;
  const char *digits = name + size - tail;
  return digits[-1] == '.' && strspn(digits, "0123456789abcdef") == RANDOM_DIGITS &&
         strcmp(digits + RANDOM_DIGITS, ending) == 0;
}

static void remove_leftover(int folder, const char *name) {
  struct stat status;
  int fd = openat(folder, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) return;
  bool left = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_uid == geteuid() &&
              status.st_nlink <= 1 && flock(fd, LOCK_EX | LOCK_NB) == 0;
  if (left) unlinkat(folder, name, 0);
  close(fd);
}

void tf_temporary_sweep(const char *path) {
  const char *name = name_in(path);
  size_t size = (size_t)(name - path);
  char *folder = size == 0 ? strdup(".") : strndup(path, size);
  DIR *entries = folder ? opendir(folder) : NULL;
  free(folder);
  if (!entries) return;
  for (const struct dirent *entry = readdir(entries); entry; entry = readdir(entries))
    if (is_ours(entry->d_name)) remove_leftover(dirfd(entries), entry->d_name);
  closedir(entries);
}

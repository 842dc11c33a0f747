/* The bound on the folder of packed weights. In: a folder, bytes wanted, bytes that all may take. Out: files removed,
 * or the reason why there is no room. What goes is decided before anything does. Locks tell what is in use: where the
 * file system has none, nothing is removed, and so nothing is written either. */
#include "tensor/pack_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "tensor/pack_file.h"

enum { LOCK_PATH_BYTES_MAX = 4096, LOCK_TRY_MS = 20 };

/* ---- the lock ---- */

/* -1 with errno; EWOULDBLOCK: another process has it. */
static int try_lock(const char *path) {
  struct stat locked, there;
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
  if (fd < 0) return -1;
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
    if (fstat(fd, &locked) == 0 && stat(path, &there) == 0 && locked.st_dev == there.st_dev &&
        locked.st_ino == there.st_ino)
      return fd;
    errno = EWOULDBLOCK; /* somebody emptied the folder meanwhile: the next try makes a new one */
  }
  int reason = errno;
  close(fd);
  errno = reason;
  return -1;
}

tf_code tf_pack_folder_lock(const char *folder, int64_t wait_ms, const atomic_bool *stop, int *lock, tf_error *error) {
  const struct timespec pause = {.tv_nsec = LOCK_TRY_MS * 1000000L};
  int64_t until_ms = tf_now_ms() + wait_ms;
  char path[LOCK_PATH_BYTES_MAX];
  int size = snprintf(path, sizeof path, "%s/.lock", folder);
  if (size < 0 || (size_t)size >= sizeof path) return tf_fail(error, TF_ERR_IO, "the folder's name is too long");
  while ((*lock = try_lock(path)) < 0) {
    if (errno != EWOULDBLOCK && errno != EINTR)
      return tf_fail(error, TF_ERR_IO, "%s can not be locked: %s", path, strerror(errno));
    if (stop != NULL && atomic_load(stop)) return tf_fail(error, TF_ERR_CANCELLED, "given up");
    if (tf_now_ms() >= until_ms)
      return tf_fail(error, TF_ERR_TIMEOUT, "another process has had %s for %" PRId64 " ms", path, wait_ms);
    nanosleep(&pause, NULL);
  }
  return TF_OK;
}

/* ---- what is there ---- */

/* The order in which files go: what was left half-written, what is to be replaced anyway, all else by its last use. */
typedef enum rank { TORN, REPLACED, WHOLE } rank;

typedef struct found_file {
  char name[TF_PACK_FILE_NAME_BYTES];
  rank rank;
  bool stays, goes;
  struct timespec used;
  uint64_t bytes;
} found_file;

typedef struct found {
  DIR *folder;
  found_file *files; /* [TF_PACK_ENTRIES_MAX] */
  size_t count;
  uint64_t bytes; /* of all */
  bool torn;      /* there are such files */
} found;

static bool ends_with(const char *text, const char *end) {
  size_t size = strlen(text), end_size = strlen(end);
  return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

static bool is_ours(const char *name, const char *ending) {
  const char *hash = name + strspn(name, TF_PACK_LETTERS);
  return hash > name && *hash == '-' && strspn(hash + 1, "0123456789abcdef") == TF_PACK_HASH_DIGITS &&
         strncmp(hash + 1 + TF_PACK_HASH_DIGITS, TF_PACK_ENDING, sizeof TF_PACK_ENDING - 1) == 0 &&
         ends_with(name, ending) && strlen(name) < TF_PACK_FILE_NAME_BYTES;
}

static int by_turn(const void *a, const void *b) {
  const found_file *x = a, *y = b;
  if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
  if (x->used.tv_sec != y->used.tv_sec) return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
  return (x->used.tv_nsec > y->used.tv_nsec) - (x->used.tv_nsec < y->used.tv_nsec);
}

/* Strangers' files are left alone and do not count. own: NULL or a name that has its own rank. */
static tf_code list(found *self, const char *own, bool replaced, tf_error *error) {
  for (int seen = 0;; seen++) {
    struct stat status;
    errno = 0;
    const struct dirent *item = readdir(self->folder);
    if (item == NULL && errno != 0) return tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
    if (item == NULL) break;
    if (seen == TF_PACK_ENTRIES_MAX)
      return tf_fail(error, TF_ERR_IO, "the folder has more than %d entries", TF_PACK_ENTRIES_MAX);
    bool torn = is_ours(item->d_name, TF_PACK_TORN);
    if (!torn && !is_ours(item->d_name, TF_PACK_ENDING)) continue;
    if (fstatat(dirfd(self->folder), item->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
      if (errno == ENOENT) continue; /* gone since */
      return tf_fail(error, TF_ERR_IO, "%s: %s", item->d_name, strerror(errno));
    }
    if (!S_ISREG(status.st_mode)) continue;
    bool is_own = own != NULL && strcmp(item->d_name, own) == 0;
    found_file *one = &self->files[self->count++];
    memset(one, 0, sizeof *one);
    memcpy(one->name, item->d_name, strlen(item->d_name) + 1);
    one->rank = torn ? TORN : is_own && replaced ? REPLACED : WHOLE;
    one->stays = is_own && !replaced;
    one->used = status.st_mtim;
    one->bytes = (uint64_t)status.st_size;
    if (one->bytes > UINT64_MAX / TF_PACK_ENTRIES_MAX) one->bytes = UINT64_MAX / TF_PACK_ENTRIES_MAX; /* sums fit */
    self->bytes += one->bytes;
    self->torn = self->torn || torn;
  }
  if (self->count > 0) qsort(self->files, self->count, sizeof *self->files, by_turn);
  return TF_OK;
}

static void close_found(found *self) {
  if (self->folder != NULL) closedir(self->folder);
  free(self->files);
}

static tf_code open_found(found *self, const char *folder, const char *own, bool replaced, tf_error *error) {
  *self = (found){.folder = opendir(folder), .files = NULL};
  if (self->folder == NULL) return tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
  self->files = malloc(TF_PACK_ENTRIES_MAX * sizeof *self->files);
  tf_code code = TF_ERR_OUT_OF_MEMORY;
  if (self->files == NULL)
    tf_fail(error, code, "no memory to look at the folder");
  else
    code = list(self, own, replaced, error);
  if (code != TF_OK) close_found(self);
  return code;
}

bool tf_pack_folder_is_tidy(const char *folder, uint64_t bytes_max) {
  found all;
  tf_error error;
  if (open_found(&all, folder, NULL, false, &error) != TF_OK) return false;
  bool tidy = !all.torn && all.bytes <= bytes_max;
  close_found(&all);
  return tidy;
}

/* ---- what goes ---- */

/* Marks the files that go so that `most` bytes stay. Returns how many do stay: more, where the others are in use. */
static uint64_t choose(found *self, uint64_t most) {
  uint64_t left = self->bytes;
  for (size_t i = 0; i < self->count; i++) {
    found_file *one = &self->files[i];
    one->goes = !one->stays && (one->rank == TORN || left > most) &&
                (one->rank == REPLACED || tf_pack_file_unused(dirfd(self->folder), one->name));
    if (one->goes) left -= one->bytes;
  }
  return left;
}

static void remove_chosen(found *self, const char *folder) {
  for (size_t i = 0; i < self->count; i++) {
    const found_file *one = &self->files[i];
    if (!one->goes) continue;
    /* The one to be replaced is no good, but this very process may still have it open. */
    bool gone = one->rank == REPLACED ? unlinkat(dirfd(self->folder), one->name, 0) == 0
                                      : tf_pack_file_remove(dirfd(self->folder), one->name);
    if (!gone) continue;
    self->bytes -= one->bytes;
    tf_log_info("weights_removed", TF_STR("folder", folder), TF_STR("file", one->name));
  }
}

tf_code tf_pack_folder_make_room(const char *folder, const char *own, uint64_t bytes, uint64_t bytes_max,
                                 tf_error *error) {
  found all;
  tf_code code = open_found(&all, folder, own, bytes > 0, error);
  if (code != TF_OK) return code;
  uint64_t most = bytes <= bytes_max ? bytes_max - bytes : 0;
  bool fits = bytes <= bytes_max && choose(&all, most) <= most;
  if (!fits) choose(&all, bytes_max);
  remove_chosen(&all, folder);
  uint64_t left = all.bytes;
  close_found(&all);
  if (fits && left <= most) return TF_OK; /* else one came into use in between */
  return tf_fail(error, TF_ERR_IO,
                 "no room for %" PRIu64 " MiB more beside %" PRIu64 " MiB, of %" PRIu64 " MiB that all may take",
                 bytes >> 20, left >> 20, bytes_max >> 20);
}

/* One file of packed weights. In: a path. Out: mapped blobs; or a file of them.
 * Layout: header, table (sorted by name), blobs from multiples of 64 bytes on. Little-endian, as the machines are. */
#include "tensor/pack_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

enum { ALIGN = 64, FILE_VERSION = 1, PIECE_BYTES = 8 << 20, PATH_BYTES_MAX = 4096, PAGE_BYTES = 2 << 20 };
enum { LOCK_TRIES = 20, LOCK_TRY_MS = 1 };
static const char MAGIC[8] = {'T', 'F', 'P', 'A', 'C', 'K', 'E', 'D'};

typedef struct entry {
  char name[TF_PACK_NAME_BYTES], form[TF_PACK_FORM_BYTES];
  uint64_t offset, bytes, checksum;
} entry;

typedef struct header {
  char magic[sizeof MAGIC];
  uint32_t version, count;
  uint64_t file_bytes;
  char key[TF_PACK_KEY_BYTES];
  uint64_t table_checksum;
  uint64_t checksum; /* of all before */
} header;
_Static_assert(sizeof(entry) % 8 == 0 && sizeof(header) % 8 == 0, "no padding that a checksum would see");

struct tf_pack_file {
  int fd;    /* holds the lock that says that somebody uses the file */
  char *map; /* the file; at a boundary of large pages */
  void *reserved;
  size_t bytes, reserved_bytes;
  uint32_t count;
  entry *table; /* a copy: what was checked stays what it was */
};

static uint64_t align_up(uint64_t bytes) {
  return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}
static uint64_t header_checksum(const header *self) {
  return XXH3_64bits(self, offsetof(header, checksum));
}
static int by_name(const void *a, const void *b) {
  return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

/* ---- reading ---- */

/* size: of the file. */
static tf_code check_header(const header *head, uint64_t size, const char *key, tf_error *error) {
  if (size < sizeof *head) return tf_fail(error, TF_ERR_INVALID_FORMAT, "it is cut short");
  if (memcmp(head->magic, MAGIC, sizeof MAGIC) != 0)
    return tf_fail(error, TF_ERR_INVALID_FORMAT, "it holds no packed weights");
  if (head->version != FILE_VERSION)
    return tf_fail(error, TF_ERR_INVALID_FORMAT, "it is of another version, %" PRIu32, head->version);
  if (head->checksum != header_checksum(head)) return tf_fail(error, TF_ERR_INVALID_FORMAT, "its header is damaged");
  if (strncmp(head->key, key, sizeof head->key) != 0)
    return tf_fail(error, TF_ERR_INVALID_FORMAT, "it is of another model, machine or version");
  if (head->file_bytes != size)
    return tf_fail(error, TF_ERR_INVALID_FORMAT, "it has %" PRIu64 " of %" PRIu64 " bytes", size, head->file_bytes);
  if (head->count > TF_PACK_BLOBS_MAX || head->count > (size - sizeof *head) / sizeof(entry))
    return tf_fail(error, TF_ERR_INVALID_FORMAT, "its table is longer than the file");
  return TF_OK;
}

static tf_code check_table(const tf_pack_file *self, uint64_t checksum, tf_error *error) {
  uint64_t first = sizeof(header) + self->count * sizeof(entry);
  bool sound = XXH3_64bits(self->table, self->count * sizeof(entry)) == checksum;
  for (uint32_t i = 0; i < self->count && sound; i++) {
    const entry *item = &self->table[i];
    sound = memchr(item->name, '\0', sizeof item->name) != NULL &&
            memchr(item->form, '\0', sizeof item->form) != NULL && item->offset % ALIGN == 0 && item->offset >= first &&
            item->offset <= self->bytes && item->bytes <= self->bytes - item->offset &&
            (i == 0 || by_name(&self->table[i - 1], item) < 0);
  }
  return sound ? TF_OK : tf_fail(error, TF_ERR_INVALID_FORMAT, "its table is damaged");
}

/* At a boundary of 2 MiB and with the wish for large pages: newer kernels map a file's pages so, and what was written
 * in large pieces lies in large pages. Shared: every process that maps the file has the same memory. */
static tf_code map_file(tf_pack_file *self, int fd, tf_error *error) {
  self->reserved_bytes = self->bytes + PAGE_BYTES;
  void *reserved = mmap(NULL, self->reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no room for %zu bytes", self->bytes);
  self->reserved = reserved;
  char *at = (char *)reserved + (-(uintptr_t)reserved & (PAGE_BYTES - 1));
  if (mmap(at, self->bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
    return tf_fail(error, TF_ERR_IO, "it can not be mapped: %s", strerror(errno));
  madvise(at, self->bytes, MADV_HUGEPAGE); /* advice */
  self->map = at;
  return TF_OK;
}

static tf_code load(tf_pack_file *self, int fd, const char *key, tf_error *error) {
  struct stat status;
  header head = {.version = 0};
  if (fstat(fd, &status) != 0) return tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
  if (!S_ISREG(status.st_mode)) return tf_fail(error, TF_ERR_INVALID_FORMAT, "it is no regular file");
  if ((status.st_uid != 0 && status.st_uid != geteuid()) || (status.st_mode & (S_IWGRP | S_IWOTH)))
    return tf_fail(error, TF_ERR_INVALID_FORMAT, "others own it or may write it, and so could change the weights");
  self->bytes = (size_t)status.st_size;
  ssize_t got = pread(fd, &head, sizeof head, 0);
  if (got < 0) return tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
  tf_code code = check_header(&head, (size_t)got < sizeof head ? 0 : self->bytes, key, error);
  if (code != TF_OK) return code;
  size_t table_bytes = head.count * sizeof(entry);
  self->count = head.count;
  self->table = malloc(table_bytes + 1);
  if (self->table == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for its table");
  if (pread(fd, self->table, table_bytes, sizeof head) != (ssize_t)table_bytes)
    return tf_fail(error, TF_ERR_IO, "its table can not be read");
  code = check_table(self, head.table_checksum, error);
  return code == TF_OK ? map_file(self, fd, error) : code;
}

/* Says that the file is used. Whoever wants to know whether it is holds it for a moment: some tries, then it is done
 * without. A file that is removed all the same stays mapped; where there are no locks, none is removed. */
static void lock_shared(int fd) {
  const struct timespec pause = {.tv_nsec = LOCK_TRY_MS * 1000000L};
  for (int i = 0; i < LOCK_TRIES && flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK; i++)
    nanosleep(&pause, NULL);
}

tf_code tf_pack_file_open(const char *path, const char *key, tf_pack_file **out, tf_error *error) {
  assert(strlen(key) < TF_PACK_KEY_BYTES);
  *out = NULL;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* of a pipe too: that is then refused */
  if (fd < 0) return errno == ENOENT || errno == ENOTDIR ? TF_OK : tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
  tf_pack_file *self = calloc(1, sizeof *self);
  if (self == NULL) {
    close(fd);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory");
  }
  self->fd = fd;
  lock_shared(fd);
  tf_code code = load(self, fd, key, error);
  if (code != TF_OK)
    tf_pack_file_close(&self);
  else
    *out = self;
  return code;
}

void tf_pack_file_close(tf_pack_file **self) {
  if (*self == NULL) return;
  if ((*self)->reserved != NULL) munmap((*self)->reserved, (*self)->reserved_bytes);
  close((*self)->fd);
  free((*self)->table);
  free(*self);
  *self = NULL;
}

/* A descriptor that has the file for itself; -1: some process uses it, it is none, or there are no locks. NFS gives
 * such a lock only to who may write; elsewhere reading is enough for a file of root's. */
static int open_unused(int folder, const char *name) {
  const int flags = O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW;
  struct stat status;
  int fd = openat(folder, name, O_RDWR | flags);
  if (fd < 0) fd = openat(folder, name, O_RDONLY | flags);
  if (fd < 0) return -1;
  if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  close(fd);
  return -1;
}

bool tf_pack_file_unused(int folder, const char *name) {
  int fd = open_unused(folder, name);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

bool tf_pack_file_remove(int folder, const char *name) {
  int fd = open_unused(folder, name);
  if (fd < 0) return false;
  bool gone = unlinkat(folder, name, 0) == 0;
  close(fd);
  return gone;
}

void *tf_pack_file_blob(const tf_pack_file *self, const char *name, const char *form, size_t bytes, tf_error *error) {
  entry wanted;
  snprintf(wanted.name, sizeof wanted.name, "%s", name);
  const entry *found = bsearch(&wanted, self->table, self->count, sizeof *found, by_name);
  if (found == NULL) {
    tf_fail(error, TF_ERR_INVALID_FORMAT, "it has no %s", name);
    return NULL;
  }
  if (found->bytes != bytes || strncmp(found->form, form, sizeof found->form - 1) != 0) {
    tf_fail(error, TF_ERR_INVALID_FORMAT, "%s is of another form", name);
    return NULL;
  }
  char *data = self->map + found->offset;
  if (XXH3_64bits(data, bytes) != found->checksum) {
    tf_fail(error, TF_ERR_INVALID_FORMAT, "%s is damaged", name);
    return NULL;
  }
  return data;
}

/* ---- writing ---- */

/* Bytes on their way into the file, by pieces of PIECE_BYTES: what is written so lies in large pages of the page cache,
 * where the file system has them, and is mapped so. */
typedef struct writer {
  int fd, error; /* error: errno; 0: none yet */
  const atomic_bool *stop;
  char *piece; /* [PIECE_BYTES] */
  size_t used;
  uint64_t at; /* bytes taken so far */
} writer;

static void flush(writer *self) {
  if (self->stop != NULL && atomic_load(self->stop)) self->error = ECANCELED;
  for (size_t done = 0; done < self->used && self->error == 0;) {
    ssize_t count = write(self->fd, self->piece + done, self->used - done);
    if (count > 0)
      done += (size_t)count;
    else if (count == 0 || errno != EINTR)
      self->error = count < 0 ? errno : EIO;
  }
  self->used = 0;
}

/* data NULL: zeroes. */
static void put(writer *self, const void *data, size_t bytes) {
  for (size_t done = 0; done < bytes && self->error == 0;) {
    size_t count = bytes - done < PIECE_BYTES - self->used ? bytes - done : PIECE_BYTES - self->used;
    if (data != NULL)
      memcpy(self->piece + self->used, (const char *)data + done, count);
    else
      memset(self->piece + self->used, 0, count);
    self->used += count;
    self->at += count;
    done += count;
    if (self->used == PIECE_BYTES) flush(self);
  }
}

/* errno, or 0. */
static int write_blobs(int fd, const header *head, const entry *table, const tf_pack_blob *blobs,
                       const atomic_bool *stop) {
  writer out = {.fd = fd, .stop = stop, .piece = malloc(PIECE_BYTES)};
  if (out.piece == NULL) return ENOMEM;
  put(&out, head, sizeof *head);
  put(&out, table, head->count * sizeof *table);
  for (uint32_t i = 0; i < head->count && out.error == 0; i++) {
    put(&out, NULL, (size_t)(table[i].offset - out.at));
    put(&out, blobs[i].data, blobs[i].bytes);
  }
  flush(&out);
  free(out.piece);
  return out.error;
}

/* Beside path, under a name of its own, locked as one in use: what is not is left of a process that ended. For this
 * user alone: others could lock it, too, and so keep it from being removed. There is no fsync: a file that a power cut
 * tore is told by its checksums and packed again, and a start need not wait for the disk. */
static tf_code write_file(const char *path, const header *head, const entry *table, const tf_pack_blob *blobs,
                          const atomic_bool *stop, tf_error *error) {
  char temporary[PATH_BYTES_MAX];
  uint64_t number = 0;
  if (getrandom(&number, sizeof number, 0) != sizeof number) number = (uint64_t)getpid();
  int length = snprintf(temporary, sizeof temporary, "%s.%016" PRIx64 ".tmp", path, number);
  if (length < 0 || (size_t)length >= sizeof temporary) return tf_fail(error, TF_ERR_IO, "its name is too long");
  int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
  flock(fd, LOCK_EX | LOCK_NB);
  int failed = write_blobs(fd, head, table, blobs, stop);
  if (close(fd) != 0 && failed == 0) failed = errno;
  if (failed == 0 && rename(temporary, path) != 0) failed = errno;
  if (failed == 0) return TF_OK;
  unlink(temporary);
  return tf_fail(error, failed == ECANCELED ? TF_ERR_CANCELLED : TF_ERR_IO, "%s", strerror(failed));
}

uint64_t tf_pack_file_bytes(const tf_pack_blob *blobs, size_t count) {
  uint64_t bytes = align_up(sizeof(header) + count * sizeof(entry));
  for (size_t i = 0; i < count; i++) bytes += align_up(blobs[i].bytes);
  return bytes;
}

static int blobs_by_name(const void *a, const void *b) {
  return strcmp(((const tf_pack_blob *)a)->name, ((const tf_pack_blob *)b)->name);
}

tf_code tf_pack_file_write(const char *path, const char *key, const tf_pack_blob *blobs, size_t count,
                           const atomic_bool *stop, tf_error *error) {
  assert(strlen(key) < TF_PACK_KEY_BYTES && count <= TF_PACK_BLOBS_MAX);
  tf_pack_blob *sorted = malloc(count * sizeof *sorted + 1);
  entry *table = calloc(count + 1, sizeof *table);
  header head = {.version = FILE_VERSION, .count = (uint32_t)count};
  tf_code code = TF_OK;
  if (sorted == NULL || table == NULL) {
    code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for its table");
  } else {
    if (count > 0) memcpy(sorted, blobs, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, blobs_by_name);
    uint64_t at = sizeof head + count * sizeof *table;
    for (size_t i = 0; i < count; i++) {
      assert(i == 0 || strcmp(sorted[i - 1].name, sorted[i].name) < 0);
      memcpy(table[i].name, sorted[i].name, sizeof table[i].name);
      memcpy(table[i].form, sorted[i].form, sizeof table[i].form);
      table[i].offset = align_up(at);
      table[i].bytes = sorted[i].bytes;
      table[i].checksum = XXH3_64bits(sorted[i].data, sorted[i].bytes);
      at = table[i].offset + table[i].bytes;
    }
    memcpy(head.magic, MAGIC, sizeof MAGIC);
    memcpy(head.key, key, strlen(key));
    head.file_bytes = at;
    head.table_checksum = XXH3_64bits(table, count * sizeof *table);
    head.checksum = header_checksum(&head);
    code = write_file(path, &head, table, sorted, stop, error);
  }
  free(sorted);
  free(table);
  return code;
}

/* Where packed weights lie. In: a folder, blobs asked for by name. Out: mapped memory, or heap that is written at the
 * end. The file's name is a hash of all that the bytes depend on beside the matrices' own shapes, which each blob's
 * form says. The model counts by its content (the pair hash, which every start computes anyway): no time stamp or inode
 * could stand for it where files are copied, mounted or laid over each other. */
#include "tensor/pack_store.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/log.h"
#include "tensor/cpu.h"
#include "tensor/huge.h"
#include "tensor/pack_file.h"

enum {
  PATH_BYTES_MAX = 3072,
  NAME_BYTES_MAX = 128,
  ROLE_BYTES_MAX = 32,
  HASH_DIGITS = 32,
  ENTRIES_MAX = 10000, /* of the folder, looked at when old files go */
  TORN_S = 3600        /* what is still being written is younger */
};
static const char LETTERS[] = "abcdefghijklmnopqrstuvwxyz", DIGITS[] = "0123456789abcdef";
static const char ENDING[] = ".weights", TORN_ENDING[] = ".tmp";

struct tf_pack_store {
  char folder[PATH_BYTES_MAX], role[ROLE_BYTES_MAX], path[PATH_BYTES_MAX + NAME_BYTES_MAX], key[TF_PACK_KEY_BYTES];
  uint64_t bytes_max;
  tf_pack_file *file;    /* NULL: none that is good */
  pthread_mutex_t mutex; /* guards all below */
  tf_pack_blob *blobs;   /* taken so far */
  size_t count, capacity;
  bool fresh;   /* some were not in the file */
  bool refused; /* and that was told */
  bool forgot;  /* no memory to note one: there is nothing to write */
  pthread_t writer;
  bool writing;     /* the thread is to be joined */
  atomic_bool stop; /* it should end */
};

static void warn(const tf_pack_store *self, const char *event, const char *reason) {
  tf_log_warn(event, TF_STR("file", self->path), TF_STR("reason", reason));
}

/* ---- opening ---- */

static bool name_file(tf_pack_store *self, const char *content) {
  int size = snprintf(self->key, sizeof self->key, "layout %d; %s of %s; cpu %s%s%s; compute %s, fine %s",
                      TF_PACK_LAYOUT_VERSION, self->role, content, tf_cpu_name(tf_cpu_level()),
                      tf_cpu_has_bf16() ? " bf16" : "", tf_cpu_has_avx_vnni() ? " avx-vnni" : "",
                      tf_compute_name(tf_cpu_compute()), tf_compute_name(tf_cpu_compute_fine()));
  if (size < 0 || (size_t)size >= sizeof self->key) return false;
  XXH128_hash_t hash = XXH3_128bits(self->key, (size_t)size);
  size = snprintf(self->path, sizeof self->path, "%s/%s-%016" PRIx64 "%016" PRIx64 "%s", self->folder, self->role,
                  (uint64_t)hash.high64, (uint64_t)hash.low64, ENDING);
  return size > 0 && (size_t)size < sizeof self->path;
}

/* Makes the folder and those above it. */
static bool make_folder(const char *folder) {
  char path[PATH_BYTES_MAX];
  snprintf(path, sizeof path, "%s", folder);
  for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    if (mkdir(path, 0700) != 0 && errno != EEXIST && access(path, X_OK) != 0) return false;
    *slash = '/';
  }
  return mkdir(path, 0700) == 0 || errno == EEXIST;
}

tf_pack_store *tf_pack_store_open(const tf_pack_place *place, const char *role, const char *content) {
  const char *folder = place != NULL ? place->folder : NULL;
  if (folder == NULL || folder[0] == '\0' || strcmp(folder, "off") == 0) return NULL;
  assert(strspn(role, LETTERS) == strlen(role) && strlen(role) < ROLE_BYTES_MAX);
  tf_pack_store *self = calloc(1, sizeof *self);
  if (self == NULL) return NULL;
  pthread_mutex_init(&self->mutex, NULL);
  self->bytes_max = place->bytes_max;
  snprintf(self->role, sizeof self->role, "%s", role);
  int size = snprintf(self->folder, sizeof self->folder, "%s", folder);
  if (size < 0 || (size_t)size >= sizeof self->folder || !name_file(self, content)) {
    tf_log_warn("weights_not_kept", TF_STR("file", folder), TF_STR("reason", "the name is too long"));
    tf_pack_store_close(&self);
    return NULL;
  }
  tf_error error;
  if (tf_pack_file_open(self->path, self->key, &self->file, &error) != TF_OK) warn(self, "weights_refused", error.text);
  return self;
}

void tf_pack_store_close(tf_pack_store **self) {
  if (*self == NULL) return;
  tf_pack_store_end(*self);
  tf_pack_file_close(&(*self)->file);
  pthread_mutex_destroy(&(*self)->mutex);
  free((*self)->blobs);
  free(*self);
  *self = NULL;
}

/* ---- blobs ---- */

static void note(tf_pack_store *self, const char *name, const char *form, const void *data, size_t bytes, bool filled) {
  pthread_mutex_lock(&self->mutex);
  if (self->count == self->capacity && self->capacity < TF_PACK_BLOBS_MAX) {
    size_t capacity = self->capacity > 0 ? self->capacity * 2 : 64;
    tf_pack_blob *grown = realloc(self->blobs, capacity * sizeof *grown);
    if (grown != NULL) {
      self->blobs = grown;
      self->capacity = capacity;
    }
  }
  if (self->count < self->capacity) {
    tf_pack_blob *blob = &self->blobs[self->count++];
    memset(blob, 0, sizeof *blob); /* all of it is written, and checked */
    snprintf(blob->name, sizeof blob->name, "%s", name);
    snprintf(blob->form, sizeof blob->form, "%s", form);
    blob->data = data;
    blob->bytes = bytes;
  } else {
    self->forgot = true;
  }
  self->fresh = self->fresh || !filled;
  pthread_mutex_unlock(&self->mutex);
}

/* Once a start: where one blob is damaged, the reason is told, and the file is written anew. */
static void refuse(tf_pack_store *self, const char *reason) {
  pthread_mutex_lock(&self->mutex);
  bool told = self->refused;
  self->refused = true;
  pthread_mutex_unlock(&self->mutex);
  if (!told) warn(self, "weights_refused", reason);
}

void *tf_pack_store_take(tf_pack_store *self, const char *name, const char *form, size_t bytes, bool *filled) {
  *filled = false;
  if (self == NULL) return tf_huge_new(bytes);
  tf_error error;
  void *kept = self->file != NULL ? tf_pack_file_blob(self->file, name, form, bytes, &error) : NULL;
  *filled = kept != NULL;
  if (self->file != NULL && kept == NULL) refuse(self, error.text);
  void *memory = kept != NULL ? kept : tf_huge_new(bytes);
  if (memory != NULL) note(self, name, form, memory, bytes, *filled);
  return memory;
}

/* ---- the end of loading ---- */

static bool ends_with(const char *text, const char *end) {
  size_t size = strlen(text), end_size = strlen(end);
  return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

/* A file of some role: ROLE-HASH.weights, or with more behind it where it is being written. */
static bool is_ours(const char *name, const char *ending) {
  const char *hash = name + strspn(name, LETTERS);
  return hash > name && *hash == '-' && strspn(hash + 1, DIGITS) == HASH_DIGITS &&
         strncmp(hash + 1 + HASH_DIGITS, ENDING, sizeof ENDING - 1) == 0 && ends_with(name, ending) &&
         strlen(name) < NAME_BYTES_MAX;
}

typedef struct used_file {
  char name[NAME_BYTES_MAX];
  struct timespec used;
  uint64_t bytes;
} used_file;

static int by_use(const void *a, const void *b) { /* the oldest first */
  const struct timespec *x = &((const used_file *)a)->used, *y = &((const used_file *)b)->used;
  if (x->tv_sec != y->tv_sec) return x->tv_sec < y->tv_sec ? -1 : 1;
  return (x->tv_nsec > y->tv_nsec) - (x->tv_nsec < y->tv_nsec);
}

/* What a killed process began goes at once; all else that is there, but for this store's own file, is listed. */
static size_t list_files(const tf_pack_store *self, DIR *folder, used_file *files, size_t most) {
  const char *own = strrchr(self->path, '/') + 1;
  const struct dirent *item;
  size_t count = 0;
  for (int seen = 0; seen < ENTRIES_MAX && count < most && (item = readdir(folder)) != NULL; seen++) {
    struct stat status;
    bool torn = is_ours(item->d_name, TORN_ENDING), whole = is_ours(item->d_name, ENDING);
    if ((!torn && !whole) || strcmp(item->d_name, own) == 0) continue;
    if (fstatat(dirfd(folder), item->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(status.st_mode)) continue;
    if (torn && time(NULL) - status.st_mtime > TORN_S && unlinkat(dirfd(folder), item->d_name, 0) == 0) continue;
    used_file *one = &files[count++];
    memcpy(one->name, item->d_name, strlen(item->d_name) + 1);
    one->used = status.st_mtim;
    one->bytes = (uint64_t)status.st_size;
  }
  return count;
}

/* Whether this store's own file finds room with `bytes`; the files that were used least lately go for it. */
static bool make_room(const tf_pack_store *self, uint64_t bytes) {
  if (bytes > self->bytes_max) return false;
  uint64_t left = self->bytes_max - bytes, taken = 0;
  DIR *folder = opendir(self->folder);
  if (folder == NULL) return true;
  used_file *files = malloc(ENTRIES_MAX * sizeof *files);
  size_t count = files != NULL ? list_files(self, folder, files, ENTRIES_MAX) : 0;
  if (count > 0) qsort(files, count, sizeof *files, by_use);
  for (size_t i = 0; i < count; i++) taken += files[i].bytes;
  for (size_t i = 0; i < count && taken > left; i++) {
    if (!ends_with(files[i].name, ENDING) || !tf_pack_file_remove(dirfd(folder), files[i].name)) continue;
    taken -= files[i].bytes;
    tf_log_info("weights_removed", TF_STR("folder", self->folder), TF_STR("file", files[i].name));
  }
  free(files);
  closedir(folder);
  return taken <= left;
}

static void write_now(tf_pack_store *self) {
  tf_error error = {.text = "no memory to note what was packed"};
  tf_code code = self->forgot ? TF_ERR_OUT_OF_MEMORY : TF_OK;
  if (code == TF_OK && !make_folder(self->folder)) code = tf_fail(&error, TF_ERR_IO, "%s", strerror(errno));
  uint64_t bytes = tf_pack_file_bytes(self->blobs, self->count);
  if (code == TF_OK && !make_room(self, bytes))
    code = tf_fail(&error, TF_ERR_IO, "no room for %" PRIu64 " MiB among the %" PRIu64 " that the folder may take",
                   bytes >> 20, self->bytes_max >> 20);
  if (code == TF_OK) code = tf_pack_file_write(self->path, self->key, self->blobs, self->count, &self->stop, &error);
  if (code == TF_OK) {
    tf_log_info("weights_kept", TF_STR("file", self->path));
  } else if (code != TF_ERR_CANCELLED) {
    warn(self, "weights_not_kept", error.text);
  }
}

static void *writer_main(void *context) {
  write_now(context);
  return NULL;
}

void tf_pack_store_save(tf_pack_store *self) {
  if (self == NULL) return;
  if (!self->fresh) {
    utimensat(AT_FDCWD, self->path, NULL, 0); /* used now; where that can't be noted, nothing is lost */
    tf_log_info("weights_mapped", TF_STR("file", self->path));
    make_room(self, tf_pack_file_bytes(self->blobs, self->count)); /* the bound may be another one now */
    return;
  }
  self->writing = pthread_create(&self->writer, NULL, writer_main, self) == 0;
  if (!self->writing) write_now(self);
}

void tf_pack_store_end(tf_pack_store *self) {
  if (self == NULL || !self->writing) return;
  atomic_store(&self->stop, true);
  pthread_join(self->writer, NULL);
  self->writing = false;
}

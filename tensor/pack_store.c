/* Where packed weights lie. In: a folder, blobs asked for by name. Out: mapped memory, or heap that is written at the
 * end. The file's name is a hash of all that the bytes depend on beside the matrices' own shapes, which each blob's
 * form says. The model counts by its content (the pair hash, which every start computes anyway): no time stamp or inode
 * could stand for it where files are copied, mounted or laid over each other. */
#include "tensor/pack_store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/log.h"
#include "tensor/cpu.h"
#include "tensor/huge.h"
#include "tensor/pack_file.h"
#include "tensor/pack_folder.h"

enum {
  PATH_BYTES_MAX = 3072,
  ROLE_BYTES_MAX = 32,
  LOCK_WAIT_MS = 60000 /* for others that write: a thread's wait, not a start's */
};

struct tf_pack_store {
  char folder[PATH_BYTES_MAX], role[ROLE_BYTES_MAX], path[PATH_BYTES_MAX + TF_PACK_FILE_NAME_BYTES],
      key[TF_PACK_KEY_BYTES];
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
                  (uint64_t)hash.high64, (uint64_t)hash.low64, TF_PACK_ENDING);
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
  assert(strspn(role, TF_PACK_LETTERS) == strlen(role) && strlen(role) < ROLE_BYTES_MAX);
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

/* Another process packed the same and was first. */
static bool is_written(const tf_pack_store *self) {
  tf_pack_file *file = NULL;
  tf_error error;
  if (self->file != NULL || tf_pack_file_open(self->path, self->key, &file, &error) != TF_OK || file == NULL)
    return false;
  tf_pack_file_close(&file);
  return true;
}

static const char *own_name(const tf_pack_store *self) {
  return strrchr(self->path, '/') + 1;
}

static tf_code write_file(const tf_pack_store *self, tf_error *error) {
  int lock = -1;
  if (self->forgot) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to note what was packed");
  if (!make_folder(self->folder)) return tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
  tf_code code = tf_pack_folder_lock(self->folder, LOCK_WAIT_MS, &self->stop, &lock, error);
  if (code != TF_OK) return code;
  if (!is_written(self)) {
    uint64_t bytes = tf_pack_file_bytes(self->blobs, self->count);
    code = tf_pack_folder_make_room(self->folder, own_name(self), bytes, self->bytes_max, error);
    if (code == TF_OK) code = tf_pack_file_write(self->path, self->key, self->blobs, self->count, &self->stop, error);
  }
  close(lock);
  return code;
}

static void write_now(tf_pack_store *self) {
  tf_error error;
  tf_code code = write_file(self, &error);
  if (code == TF_OK) {
    tf_log_info("weights_kept", TF_STR("file", self->path));
  } else if (code != TF_ERR_CANCELLED) {
    warn(self, "weights_not_kept", error.text);
  }
}

/* The bound may be another one than when the files were written. */
static void tidy_now(tf_pack_store *self) {
  tf_error error;
  int lock = -1;
  if (tf_pack_folder_is_tidy(self->folder, self->bytes_max)) return;
  tf_code code = tf_pack_folder_lock(self->folder, LOCK_WAIT_MS, &self->stop, &lock, &error);
  if (code == TF_OK) {
    code = tf_pack_folder_make_room(self->folder, own_name(self), 0, self->bytes_max, &error);
    close(lock);
  }
  if (code != TF_OK && code != TF_ERR_CANCELLED) warn(self, "weights_not_bounded", error.text);
}

static void *writer_main(void *context) {
  tf_pack_store *self = context;
  if (self->fresh)
    write_now(self);
  else
    tidy_now(self);
  return NULL;
}

void tf_pack_store_save(tf_pack_store *self) {
  if (self == NULL) return;
  if (!self->fresh) {
    utimensat(AT_FDCWD, self->path, NULL, 0); /* used now; where that can't be noted, nothing is lost */
    tf_log_info("weights_mapped", TF_STR("file", self->path));
  }
  self->writing = pthread_create(&self->writer, NULL, writer_main, self) == 0;
  if (!self->writing && self->fresh) warn(self, "weights_not_kept", "no thread to write it"); /* a start never waits */
}

void tf_pack_store_end(tf_pack_store *self) {
  if (self == NULL || !self->writing) return;
  atomic_store(&self->stop, true);
  pthread_join(self->writer, NULL);
  self->writing = false;
}

/* Walks the arguments of a run. In: names of files and folders. Out: images one by one, errors of names that can not be
 * read. A folder is a level on a stack; its names are read in batches, sorted, and taken in order. Folders already seen
 * are remembered by device and inode, so that links that turn back end nothing but themselves. */
#include "cli/inputs.h"

#include "cli/glob.h"
#include "image/kind.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct name_entry {
  uint32_t offset;    /* into level.text */
  unsigned char type; /* DT_* */
} name_entry;

typedef struct level {
  DIR *dir; /* NULL once everything was read */
  char *text;
  size_t text_bytes, text_capacity;
  name_entry *names;
  size_t name_count, name_capacity, next;
  size_t image_bytes, path_bytes; /* length of this folder's name in self->image and self->path */
  uint32_t positions;             /* of the pattern; 0: everything in here is wanted */
} level;

typedef struct folder_key {
  dev_t device;
  ino_t inode;
} folder_key;

struct tf_inputs {
  tf_inputs_config config;
  size_t argument_next;
  tf_list_cursor cursor;
  bool list_ended, matched; /* matched: something fits the pattern */
  tf_glob glob;             /* of the argument that is being walked; no text: it is no pattern */
  level levels[TF_INPUTS_DEPTH_MAX];
  size_t depth;
  folder_key *seen; /* open addressing; inode 0 is an empty slot */
  size_t seen_count, seen_capacity;
  char *image; /* grows: the argument may be long, the path below it too */
  size_t image_capacity;
  char path[PATH_MAX];
  uint64_t skipped;
};

static const char *const image_extensions[] = {"jpg",  "jpeg", "jpe",  "jfif", "png", "webp", "heic",
                                               "heif", "hif",  "avif", "gif",  "tif", "tiff", "bmp"};

bool tf_inputs_is_image_name(const char *name) {
  const char *dot = strrchr(name, '.');
  if (!dot || dot == name) return false;
  for (size_t i = 0; i < sizeof image_extensions / sizeof image_extensions[0]; i++)
    if (strcasecmp(dot + 1, image_extensions[i]) == 0) return true;
  return false;
}

tf_inputs *tf_inputs_new(const tf_inputs_config *config) {
  tf_inputs *self = calloc(1, sizeof *self);
  if (!self) return NULL;
  self->config = *config;
  self->list_ended = !config->list;
  return self;
}

static void close_level(level *top) {
  if (top->dir) closedir(top->dir);
  free(top->text);
  free(top->names);
  memset(top, 0, sizeof *top);
}

void tf_inputs_free(tf_inputs **self) {
  if (!*self) return;
  while ((*self)->depth > 0) close_level(&(*self)->levels[--(*self)->depth]);
  tf_list_cursor_free(&(*self)->cursor);
  tf_glob_free(&(*self)->glob);
  free((*self)->seen);
  free((*self)->image);
  free(*self);
  *self = NULL;
}

uint64_t tf_inputs_skipped(const tf_inputs *self) {
  return self->skipped;
}

/* -- names and errors ------------------------------------------------------------------------------------------- */

/* Puts base[0..base_bytes) + separator + name into self->image. */
static bool set_image(tf_inputs *self, size_t base_bytes, const char *name) {
  size_t name_bytes = strlen(name), needed = base_bytes + name_bytes + 2;
  if (needed > self->image_capacity) {
    char *grown = realloc(self->image, needed * 2);
    if (!grown) return false;
    self->image = grown;
    self->image_capacity = needed * 2;
  }
  if (base_bytes > 0 && self->image[base_bytes - 1] != '/') self->image[base_bytes++] = '/';
  memcpy(self->image + base_bytes, name, name_bytes + 1);
  return true;
}

static bool set_path(tf_inputs *self, size_t base_bytes, const char *name) {
  size_t name_bytes = strlen(name);
  if (base_bytes > 0 && self->path[base_bytes - 1] != '/') {
    if (sizeof self->path - base_bytes < 2) return false;
    self->path[base_bytes++] = '/';
  }
  if (name_bytes >= sizeof self->path - base_bytes) return false;
  memcpy(self->path + base_bytes, name, name_bytes + 1);
  return true;
}

static tf_input_kind give_error(tf_inputs *self, tf_input *out, tf_code code, const char *text) {
  out->image = self->image;
  out->path = NULL;
  tf_fail(&out->error, code, "%s", text);
  return TF_INPUT_ERROR;
}

static tf_input_kind give_errno(tf_inputs *self, tf_input *out, int number) {
  bool missing = number == ENOENT || number == ENOTDIR;
  return give_error(self, out, missing ? TF_ERR_IMAGE_MISSING : TF_ERR_IO, strerror(number));
}

static tf_input_kind give_image(tf_inputs *self, tf_input *out) {
  out->image = self->image;
  out->path = self->path;
  return TF_INPUT_IMAGE;
}

/* -- folders ---------------------------------------------------------------------------------------------------- */

static size_t seen_slot(const folder_key *table, size_t capacity, folder_key key) {
  uint64_t hash = ((uint64_t)key.inode * 0x9e3779b97f4a7c15u) ^ ((uint64_t)key.device * 0xc2b2ae3d27d4eb4fu);
  size_t slot = (size_t)(hash >> 17) & (capacity - 1);
  while (table[slot].inode && (table[slot].inode != key.inode || table[slot].device != key.device))
    slot = (slot + 1) & (capacity - 1);
  return slot;
}

static bool grow_seen(tf_inputs *self) {
  size_t capacity = self->seen_capacity ? self->seen_capacity * 2 : 64;
  folder_key *grown = calloc(capacity, sizeof *grown);
  if (!grown) return false;
  for (size_t i = 0; i < self->seen_capacity; i++)
    if (self->seen[i].inode) grown[seen_slot(grown, capacity, self->seen[i])] = self->seen[i];
  free(self->seen);
  self->seen = grown;
  self->seen_capacity = capacity;
  return true;
}

/* TF_OK: not seen before, remembered now. TF_ERR_INVALID_ARGUMENT: seen. Others: can not go on here. */
static tf_code remember_folder(tf_inputs *self, const struct stat *status) {
  folder_key key = {status->st_dev, status->st_ino ? status->st_ino : 1};
  if (self->seen_count >= TF_INPUTS_FOLDERS_MAX) return TF_ERR_UNSUPPORTED;
  if (self->seen_count * 2 >= self->seen_capacity && !grow_seen(self)) return TF_ERR_OUT_OF_MEMORY;
  size_t slot = seen_slot(self->seen, self->seen_capacity, key);
  if (self->seen[slot].inode) return TF_ERR_INVALID_ARGUMENT;
  self->seen[slot] = key;
  self->seen_count++;
  return TF_OK;
}

/* Opens the folder at self->path, named self->image, as a new level. TF_INPUT_PAUSE: nothing to tell. */
static tf_input_kind open_folder(tf_inputs *self, uint32_t positions, tf_input *out) {
  if (self->depth == TF_INPUTS_DEPTH_MAX)
    return give_error(self, out, TF_ERR_UNSUPPORTED, "folders are nested too deeply here");
  int fd = open(self->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return give_errno(self, out, errno);
  struct stat status;
  int failed = fstat(fd, &status) ? errno : 0;
  tf_code code = failed ? TF_ERR_IO : remember_folder(self, &status);
  DIR *dir = code ? NULL : fdopendir(fd);
  if (!dir) {
    if (!code) failed = errno;
    close(fd);
    if (failed) return give_errno(self, out, failed);
    if (code == TF_ERR_INVALID_ARGUMENT) return TF_INPUT_PAUSE; /* been here */
    return give_error(self, out, code, code == TF_ERR_UNSUPPORTED ? "too many folders" : tf_code_text(code));
  }
  level *top = &self->levels[self->depth++];
  memset(top, 0, sizeof *top);
  top->dir = dir;
  top->positions = positions;
  top->image_bytes = strlen(self->image);
  top->path_bytes = strlen(self->path);
  return TF_INPUT_PAUSE;
}

static bool add_name(level *top, const struct dirent *entry) {
  size_t bytes = strlen(entry->d_name) + 1;
  if (bytes > top->text_capacity - top->text_bytes) {
    size_t capacity = (top->text_capacity + bytes) * 2;
    char *grown = realloc(top->text, capacity);
    if (!grown) return false;
    top->text = grown;
    top->text_capacity = capacity;
  }
  if (top->name_count == top->name_capacity) {
    size_t capacity = top->name_capacity ? top->name_capacity * 2 : 64;
    name_entry *grown = realloc(top->names, capacity * sizeof *grown);
    if (!grown) return false;
    top->names = grown;
    top->name_capacity = capacity;
  }
  memcpy(top->text + top->text_bytes, entry->d_name, bytes);
  top->names[top->name_count++] = (name_entry){(uint32_t)top->text_bytes, entry->d_type};
  top->text_bytes += bytes;
  return true;
}

static int compare_names(const void *left, const void *right, void *text) {
  return strcmp((const char *)text + ((const name_entry *)left)->offset,
                (const char *)text + ((const name_entry *)right)->offset);
}

/* Reads and sorts the next batch of names. Returns 0, or errno where the folder could not be read to its end. */
static int read_names(level *top) {
  int failed = 0;
  top->name_count = top->next = top->text_bytes = 0;
  while (top->name_count < TF_INPUTS_NAMES_MAX) {
    errno = 0;
    struct dirent *entry = readdir(top->dir);
    if (entry && entry->d_name[0] == '.') continue; /* hidden, and . and .. */
    if (entry && add_name(top, entry)) continue;
    failed = entry ? ENOMEM : errno;
    closedir(top->dir);
    top->dir = NULL;
    break;
  }
  if (top->name_count > 1) qsort_r(top->names, top->name_count, sizeof *top->names, compare_names, top->text);
  return failed;
}

/* -- one name --------------------------------------------------------------------------------------------------- */

bool tf_inputs_has_signature(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return false;
  unsigned char head[TF_IMAGE_HEAD_BYTES];
  const char *name;
  struct stat status;
  ssize_t size = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) ? pread(fd, head, sizeof head, 0) : -1;
  close(fd);
  return size > 2 && tf_image_kind_is_read(tf_image_kind_tell(head, (size_t)size, &name));
}

/* TF_INPUT_PAUSE: a name that is not wanted, or a folder that was opened. */
static tf_input_kind take_name(tf_inputs *self, level *top, tf_input *out) {
  name_entry entry = top->names[top->next++];
  const char *name = top->text + entry.offset;
  bool image_name = tf_inputs_is_image_name(name);
  uint32_t positions = top->positions ? tf_glob_step(&self->glob, top->positions, name) : 0;
  if (top->positions && !positions) return TF_INPUT_PAUSE;
  if (!set_image(self, top->image_bytes, name)) {
    self->image[top->image_bytes] = '\0';
    return give_error(self, out, TF_ERR_OUT_OF_MEMORY, "out of memory");
  }
  if (!set_path(self, top->path_bytes, name)) return give_errno(self, out, ENAMETOOLONG);
  unsigned char type = entry.type;
  if (type != DT_REG && type != DT_DIR) { /* a link, or a file system that does not tell */
    struct stat status;
    if (stat(self->path, &status)) {
      if (image_name) return give_errno(self, out, errno);
      self->skipped++;
      return TF_INPUT_PAUSE;
    }
    type = S_ISDIR(status.st_mode) ? DT_DIR : S_ISREG(status.st_mode) ? DT_REG : DT_UNKNOWN;
  }
  bool match = !top->positions || tf_glob_is_match(&self->glob, positions);
  if (top->positions && match) self->matched = true;
  if (type == DT_DIR && !top->positions && self->config.flat) return TF_INPUT_PAUSE;
  if (type == DT_DIR) return open_folder(self, match ? 0 : positions, out);
  if (!match) return TF_INPUT_PAUSE;
  if (type == DT_REG && (image_name || tf_inputs_has_signature(self->path))) return give_image(self, out);
  self->skipped++;
  return TF_INPUT_PAUSE;
}

/* An argument that is not there, and looks like a pattern. */
static tf_input_kind take_pattern(tf_inputs *self, const char *argument, tf_input *out) {
  self->matched = false;
  if (!tf_glob_parse(argument, &self->glob))
    return give_error(self, out, TF_ERR_UNSUPPORTED, "a pattern of too many parts");
  if (!realpath(self->glob.base[0] ? self->glob.base : ".", self->path) || !set_image(self, 0, self->glob.base)) {
    int failed = errno;
    tf_glob_free(&self->glob);
    set_image(self, 0, argument);
    return give_errno(self, out, failed);
  }
  uint32_t positions = tf_glob_start(&self->glob);
  self->matched = tf_glob_is_match(&self->glob, positions);
  return open_folder(self, self->matched ? 0 : positions, out);
}

static tf_input_kind end_pattern(tf_inputs *self, tf_input *out) {
  bool matched = self->matched;
  tf_glob_free(&self->glob);
  if (matched || !set_image(self, 0, self->config.arguments[self->argument_next - 1])) return TF_INPUT_PAUSE;
  return give_error(self, out, TF_ERR_IMAGE_MISSING, "no name fits this pattern");
}

static tf_input_kind take_named(tf_inputs *self, const char *argument, bool may_be_pattern, tf_input *out) {
  if (self->seen_count > 0) memset(self->seen, 0, self->seen_capacity * sizeof *self->seen);
  self->seen_count = 0; /* each argument is walked for itself */
  if (!set_image(self, 0, argument)) {
    static char empty[] = "";
    out->image = empty;
    tf_fail(&out->error, TF_ERR_OUT_OF_MEMORY, "out of memory");
    return TF_INPUT_ERROR;
  }
  struct stat status;
  if (!realpath(argument, self->path) || stat(self->path, &status)) {
    if (errno == ENOENT && may_be_pattern && tf_glob_is_pattern(argument)) return take_pattern(self, argument, out);
    return give_errno(self, out, errno);
  }
  if (S_ISDIR(status.st_mode)) return open_folder(self, 0, out);
  if (S_ISREG(status.st_mode)) return give_image(self, out);
  return give_error(self, out, TF_ERR_IMAGE_UNSUPPORTED, "neither a file nor a folder");
}

static tf_input_kind take_listed(tf_inputs *self, tf_input *out) {
  const char *name;
  tf_list_kind kind = tf_list_next(self->config.list, &self->cursor, &name, &out->error);
  if (kind == TF_LIST_NAME) return take_named(self, name, false, out);
  if (kind == TF_LIST_WAIT) return TF_INPUT_WAIT;
  self->list_ended = true;
  return kind == TF_LIST_END ? TF_INPUT_PAUSE : TF_INPUT_STOP;
}

/* The next argument, or name of the list. */
static tf_input_kind take_argument(tf_inputs *self, tf_input *out) {
  if (self->glob.text) return end_pattern(self, out);
  if (self->argument_next < self->config.count)
    return take_named(self, self->config.arguments[self->argument_next++], true, out);
  return self->list_ended ? TF_INPUT_END : take_listed(self, out);
}

tf_input_kind tf_inputs_next(tf_inputs *self, size_t names_max, tf_input *out) {
  for (size_t looked = 0; looked < names_max; looked++) {
    tf_input_kind kind = TF_INPUT_PAUSE;
    if (self->depth == 0) {
      kind = take_argument(self, out);
    } else {
      level *top = &self->levels[self->depth - 1];
      if (top->next < top->name_count) {
        kind = take_name(self, top, out);
      } else if (!top->dir) {
        close_level(top);
        self->depth--;
      } else {
        int failed = read_names(top);
        if (failed) {
          self->image[top->image_bytes] = '\0';
          kind = give_errno(self, out, failed);
        }
      }
    }
    if (kind != TF_INPUT_PAUSE) return kind;
  }
  return TF_INPUT_PAUSE;
}

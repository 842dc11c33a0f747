/* Reads and makes CURVE key files.
 * In: paths; at most TF_CURVE_FILE_BYTES_MAX of a file. Out: keys, files.
 * Z85 itself contains `#`, so that a key never stands first on a line. */
#include "proto/curve_keys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

enum { KEY_CHARACTERS = TF_CURVE_KEY_TEXT_BYTES - 1, WORD_BYTES = 7 /* "public ", "secret " */ };

/* A line of a key file. */
typedef enum line_kind { LINE_NOTHING, LINE_PUBLIC, LINE_SECRET, LINE_WRONG } line_kind;

static line_kind read_line(const char *line, size_t size, char key[TF_CURVE_KEY_TEXT_BYTES]) {
  while (size > 0 && (line[size - 1] == '\r' || line[size - 1] == ' ' || line[size - 1] == '\t')) size--;
  if (size == 0 || line[0] == '#') return LINE_NOTHING;
  if (size != WORD_BYTES + KEY_CHARACTERS) return LINE_WRONG;
  bool is_public = memcmp(line, "public ", WORD_BYTES) == 0;
  if (!is_public && memcmp(line, "secret ", WORD_BYTES) != 0) return LINE_WRONG;
  memcpy(key, line + WORD_BYTES, KEY_CHARACTERS);
  key[KEY_CHARACTERS] = '\0';
  uint8_t bytes[TF_CURVE_KEY_BYTES];
  bool decodes = zmq_z85_decode(bytes, key) != NULL;
  explicit_bzero(bytes, sizeof bytes);
  return !decodes ? LINE_WRONG : is_public ? LINE_PUBLIC : LINE_SECRET;
}

static tf_code read_text(const char *path, char **out, size_t *size, mode_t *mode, tf_error *error) {
  *out = NULL;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) {
    int reason = errno;
    if (fd >= 0) close(fd);
    return tf_fail(error, TF_ERR_IO, "key file %.300s: %s", path, strerror(reason));
  }
  *mode = status.st_mode;
  *out = malloc(TF_CURVE_FILE_BYTES_MAX + 1);
  ssize_t got = 0;
  *size = 0;
  while (*out != NULL && *size <= TF_CURVE_FILE_BYTES_MAX) {
    got = read(fd, *out + *size, TF_CURVE_FILE_BYTES_MAX + 1 - *size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    *size += (size_t)got;
  }
  int reason = errno;
  close(fd);
  if (*out == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for key file %.300s", path);
  if (got < 0) return tf_fail(error, TF_ERR_IO, "key file %.300s: %s", path, strerror(reason));
  if (*size > TF_CURVE_FILE_BYTES_MAX)
    return tf_fail(error, TF_ERR_INVALID_FORMAT, "key file %.300s: longer than %d bytes", path,
                   TF_CURVE_FILE_BYTES_MAX);
  return TF_OK;
}

/* Calls fn for every key of the file until it says no. */
static tf_code each_key(const char *path, bool (*fn)(void *context, line_kind kind, const char *key), void *context,
                        tf_error *error) {
  char *text;
  size_t size = 0;
  mode_t mode = 0;
  tf_code code = read_text(path, &text, &size, &mode, error);
  bool secret = false;
  size_t number = 0;
  for (size_t at = 0; code == TF_OK && at < size;) {
    const char *end = memchr(text + at, '\n', size - at);
    size_t length = end ? (size_t)(end - (text + at)) : size - at;
    char key[TF_CURVE_KEY_TEXT_BYTES];
    line_kind kind = read_line(text + at, length, key);
    number++;
    secret = secret || kind == LINE_SECRET;
    if (kind == LINE_WRONG)
      code = tf_fail(error, TF_ERR_INVALID_FORMAT,
                     "key file %.300s, line %zu: neither `public KEY` nor `secret KEY`, where KEY is of 40 characters "
                     "as `tokenflex keygen` writes them",
                     path, number);
    else if (kind != LINE_NOTHING && !fn(context, kind, key))
      code = tf_fail(error, TF_ERR_INVALID_FORMAT, "key file %.300s, line %zu: one key too many", path, number);
    explicit_bzero(key, sizeof key);
    at += length + 1;
  }
  if (code == TF_OK && secret && (mode & S_IRWXO) != 0)
    code = tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "key file %.300s: it holds a secret key and everyone may read it; chmod 600 (or 640)", path);
  if (text) explicit_bzero(text, size);
  free(text);
  return code;
}

static bool take_pair(void *context, line_kind kind, const char *key) {
  tf_curve_pair *pair = context;
  char *place = kind == LINE_PUBLIC ? pair->public_key : pair->secret_key;
  if (place[0]) return false;
  memcpy(place, key, TF_CURVE_KEY_TEXT_BYTES);
  return true;
}

tf_code tf_curve_pair_read(const char *path, tf_curve_pair *out, tf_error *error) {
  memset(out, 0, sizeof *out);
  tf_code code = each_key(path, take_pair, out, error);
  char derived[TF_CURVE_KEY_TEXT_BYTES] = "";
  if (code == TF_OK && (!out->public_key[0] || !out->secret_key[0]))
    code = tf_fail(error, TF_ERR_INVALID_FORMAT, "key file %.300s: it has no %s key; `tokenflex keygen` makes a pair",
                   path, out->secret_key[0] ? "public" : "secret");
  if (code == TF_OK && (zmq_curve_public(derived, out->secret_key) != 0 || strcmp(derived, out->public_key) != 0))
    code = tf_fail(error, TF_ERR_INVALID_FORMAT, "key file %.300s: its two keys do not belong together", path);
  if (code != TF_OK) explicit_bzero(out, sizeof *out);
  return code;
}

static bool take_public(void *context, line_kind kind, const char *key) {
  char *place = context;
  if (kind != LINE_PUBLIC) return true;
  if (place[0]) return false;
  memcpy(place, key, TF_CURVE_KEY_TEXT_BYTES);
  return true;
}

tf_code tf_curve_public_read(const char *path, char out[TF_CURVE_KEY_TEXT_BYTES], tf_error *error) {
  out[0] = '\0';
  tf_code code = each_key(path, take_public, out, error);
  if (code == TF_OK && !out[0])
    code = tf_fail(error, TF_ERR_INVALID_FORMAT, "key file %.300s: it has no public key", path);
  return code;
}

typedef struct key_list {
  uint8_t (*keys)[TF_CURVE_KEY_BYTES];
  size_t count;
} key_list;

static bool take_allowed(void *context, line_kind kind, const char *key) {
  key_list *list = context;
  if (kind != LINE_PUBLIC) return true;
  if (list->count == TF_CURVE_KEYS_MAX) return false;
  return zmq_z85_decode(list->keys[list->count++], key) != NULL;
}

tf_code tf_curve_allowed_read(const char *path, uint8_t (**out)[TF_CURVE_KEY_BYTES], size_t *count, tf_error *error) {
  *out = NULL;
  *count = 0;
  key_list list = {.keys = calloc(TF_CURVE_KEYS_MAX, TF_CURVE_KEY_BYTES)};
  if (!list.keys) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for key file %.300s", path);
  tf_code code = each_key(path, take_allowed, &list, error);
  if (code == TF_OK && list.count == 0)
    code = tf_fail(error, TF_ERR_INVALID_FORMAT, "key file %.300s: it has no public key", path);
  if (code != TF_OK) {
    free(list.keys);
    return code;
  }
  *out = list.keys;
  *count = list.count;
  return TF_OK;
}

/* A new file, whole and on disk, or none. */
static tf_code write_file(const char *path, mode_t mode, const char *text, tf_error *error) {
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
  if (fd < 0 && errno == EEXIST)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%.300s exists already; keys are never overwritten", path);
  if (fd < 0) return tf_fail(error, TF_ERR_IO, "%.300s: %s", path, strerror(errno));
  size_t size = strlen(text);
  bool done = fchmod(fd, mode) == 0; /* whatever the umask is */
  for (size_t at = 0; done && at < size;) {
    ssize_t written = write(fd, text + at, size - at);
    if (written < 0 && errno == EINTR) continue;
    done = written > 0;
    at += written > 0 ? (size_t)written : 0;
  }
  done = done && fsync(fd) == 0;
  int reason = errno;
  if (close(fd) != 0) done = false;
  if (done) return TF_OK;
  unlink(path);
  return tf_fail(error, TF_ERR_IO, "%.300s: %s", path, strerror(reason));
}

tf_code tf_curve_pair_create(const char *secret_path, const char *public_path, tf_error *error) {
  tf_curve_pair pair;
  char text[512];
  if (zmq_curve_keypair(pair.public_key, pair.secret_key) != 0)
    return tf_fail(error, TF_ERR_UNSUPPORTED, "this ZeroMQ library has no CURVE");
  snprintf(text, sizeof text,
           "# tokenflex CURVE keys: secret, for the processes of one deployment only\npublic %s\nsecret %s\n",
           pair.public_key, pair.secret_key);
  tf_code code = write_file(secret_path, S_IRUSR | S_IWUSR, text, error);
  explicit_bzero(text, sizeof text);
  explicit_bzero(pair.secret_key, sizeof pair.secret_key);
  if (code != TF_OK) return code;
  snprintf(text, sizeof text, "# tokenflex CURVE key: public\npublic %s\n", pair.public_key);
  code = write_file(public_path, S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH, text, error);
  if (code != TF_OK) unlink(secret_path);
  return code;
}

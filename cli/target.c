/* Looks at what a file of ours would replace. In: paths. Out: a resolved path, or a refusal.
 * Files are compared by what they are (device and inode) where both are there, and by their resolved names, where one
 * is yet to be made. */
#include "cli/target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool tf_file_is(const char *path, const tf_file_kind *kind) {
  char head[TF_TARGET_HEAD_BYTES + 1];
  size_t size = 0;
  ssize_t got = -1;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) return false;
  while (size < TF_TARGET_HEAD_BYTES && (got = read(fd, head + size, TF_TARGET_HEAD_BYTES - size)) > 0)
    size += (size_t)got;
  close(fd);
  if (got < 0) return false;
  head[size] = '\0';
  if (size == 0) return true;
  return strncmp(head, kind->begins, strlen(kind->begins)) == 0 && (!kind->holds || strstr(head, kind->holds));
}

/* The folder that path is in; malloc'ed. */
static char *folder_of(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
}

/* Absolute, without links; also of a file that is not there yet. malloc'ed; NULL: its folder is not there. */
static char *resolved(const char *path) {
  char *real = realpath(path, NULL), *out = NULL;
  if (real) return real;
  char *folder = folder_of(path), *place = folder ? realpath(folder, NULL) : NULL;
  const char *slash = strrchr(path, '/');
  if (place && asprintf(&out, "%s/%s", strcmp(place, "/") == 0 ? "" : place, slash ? slash + 1 : path) < 0) out = NULL;
  free(folder);
  free(place);
  return out;
}

static bool is_same(const char *left, const char *right) {
  struct stat a, b;
  if (strcmp(left, right) == 0) return true;
  return stat(left, &a) == 0 && stat(right, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static tf_code check_folder(const char *path, tf_error *error) {
  struct stat status;
  char *folder = folder_of(path);
  tf_code code = TF_OK;
  if (!path[0])
    code = tf_fail(error, TF_ERR_INVALID_ARGUMENT, "the name of a file to write is empty");
  else if (!folder)
    code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  else if (stat(folder, &status) || !S_ISDIR(status.st_mode))
    code = tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%.200s: the folder %.200s is missing", path, folder);
  else if (access(folder, W_OK))
    code = tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%.200s: nothing can be written in the folder %.200s: %s", path,
                   folder, strerror(errno));
  free(folder);
  return code;
}

static tf_code check_content(const char *path, const tf_file_kind *kind, tf_error *error) {
  struct stat status;
  if (stat(path, &status)) {
    bool is_link = lstat(path, &status) == 0; /* one that leads nowhere, else nothing is there */
    if (!is_link && errno == ENOENT) return TF_OK;
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%.300s: %s; name another file", path,
                   is_link ? "a link that leads to nothing" : strerror(errno));
  }
  if (!S_ISREG(status.st_mode))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%.300s is not a regular file; name another file", path);
  if (tf_file_is(path, kind)) return TF_OK;
  return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                 "%.300s exists and is not %s, so it is not replaced; name another file, or remove it", path,
                 kind->name);
}

/* None of the output's own files. */
static tf_code check_others(const char *path, const char *target, const char *captions, tf_error *error) {
  static const char *const suffixes[] = {"", ".run.json", ".errors.jsonl", ".upgrade"};
  static const char *const names[] = {"lines", "settings", "failures", "better lines"};
  char *base = resolved(captions);
  tf_code code = TF_OK;
  for (size_t i = 0; !code && base && i < sizeof suffixes / sizeof suffixes[0]; i++) {
    char *other = NULL;
    if (asprintf(&other, "%s%s", base, suffixes[i]) < 0)
      code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
    else if (is_same(target, other))
      code =
          tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%.200s holds the captions' %s; name another file", path, names[i]);
    free(other);
  }
  free(base);
  return code;
}

tf_code tf_target_check(const char *path, const tf_file_kind *kind, const char *captions, char **target,
                        tf_error *error) {
  *target = NULL;
  tf_code code = check_folder(path, error);
  char *found = code ? NULL : resolved(path);
  if (!code && !found) code = tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%.300s: %s", path, strerror(errno));
  if (!code && found && captions) code = check_others(path, found, captions, error);
  if (!code) code = check_content(path, kind, error);
  if (!code && found) code = check_folder(found, error); /* of a link's target */
  if (code)
    free(found);
  else
    *target = found;
  return code;
}

/* Finds the model folder, names the pair and hashes it. In: a folder, or nothing. Out: paths, name, hash, token counts.
 * The hash is XXH3 (128 bits) over the preprocessing version, then the size and the bytes of vision, LLM and adapter.
 */
#include "tensor/model_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "tensor/gguf.h"

enum { CANDIDATES_MAX = 5, MODEL_NAME_BYTES_MAX = 128, READ_BYTES = 1 << 20, TOKEN_COUNT_MAX = 4096 };
static const char *const file_names[] = {"vision.gguf", "llm.gguf", "adapter.gguf"};
enum { FILES = sizeof file_names / sizeof *file_names };

/* False: does not fit. */
static bool join(const char *folder, const char *name, char out[TF_PATH_BYTES_MAX]) {
  int n = snprintf(out, TF_PATH_BYTES_MAX, "%s/%s", folder, name);
  return n > 0 && n < TF_PATH_BYTES_MAX;
}

static bool is_file(const char *folder, const char *name) {
  char path[TF_PATH_BYTES_MAX];
  struct stat status;
  return join(folder, name, path) && stat(path, &status) == 0 && S_ISREG(status.st_mode);
}

/* The program's own folder; false where /proc is not there. */
static bool program_folder(char out[TF_PATH_BYTES_MAX]) {
  ssize_t n = readlink("/proc/self/exe", out, TF_PATH_BYTES_MAX - 1);
  if (n <= 0 || n >= TF_PATH_BYTES_MAX - 1) return false;
  out[n] = '\0';
  char *slash = strrchr(out, '/');
  if (!slash) return false;
  *slash = '\0';
  return true;
}

/* Where an installed model may be, in the order of the header; returns how many. */
static int candidates(char out[CANDIDATES_MAX][TF_PATH_BYTES_MAX]) {
  int count = 0;
  char base[TF_PATH_BYTES_MAX];
  if (program_folder(base)) {
    if (join(base, "../model", out[count])) count++;
    if (join(base, "../share/tokenflex/model", out[count])) count++;
  }
  const char *data_home = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
  if (data_home && data_home[0]) {
    if (join(data_home, "tokenflex/model", out[count])) count++;
  } else if (home && home[0]) {
    if (join(home, ".local/share/tokenflex/model", out[count])) count++;
  }
  strcpy(out[count++], "/usr/local/share/tokenflex/model");
  if (count < CANDIDATES_MAX) strcpy(out[count++], "/usr/share/tokenflex/model");
  return count;
}

static tf_code take_folder(const char *folder, tf_model_dir *out, tf_error *error) {
  char *paths[FILES] = {out->vision_path, out->llm_path, out->adapter_path};
  if (snprintf(out->path, sizeof out->path, "%s", folder) >= (int)sizeof out->path) {
    return tf_fail(error, TF_ERR_MODEL_INVALID, "the model folder's path is too long");
  }
  for (int i = 0; i < FILES; i++) {
    if (!join(folder, file_names[i], paths[i])) {
      return tf_fail(error, TF_ERR_MODEL_INVALID, "the model folder's path is too long");
    }
    if (!is_file(folder, file_names[i])) {
      return tf_fail(error, TF_ERR_MODEL_INVALID, "model folder %.300s has no %s; `make model` makes a model folder",
                     folder, file_names[i]);
    }
  }
  return TF_OK;
}

/* The first folder that holds any of the files decides: an incomplete one is an error, not passed over in silence. */
static tf_code find_installed(tf_model_dir *out, tf_error *error) {
  char places[CANDIDATES_MAX][TF_PATH_BYTES_MAX];
  int count = candidates(places);
  for (int i = 0; i < count; i++) {
    for (int j = 0; j < FILES; j++) {
      if (is_file(places[i], file_names[j])) return take_folder(places[i], out, error);
    }
  }
  return tf_fail(error, TF_ERR_MODEL_INVALID,
                 "no model is installed (looked in %.150s and %d other places); `make model` makes one, --model or "
                 "TOKENFLEX_MODEL names its folder",
                 places[0], count - 1);
}

static tf_code hash_file(XXH3_state_t *state, const char *path, uint8_t *buffer, tf_error *error) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) {
    int number = errno;
    if (fd >= 0) close(fd);
    return tf_fail(error, TF_ERR_IO, "%.300s: %s", path, strerror(number));
  }
  uint64_t size = (uint64_t)status.st_size, left = size;
  XXH3_128bits_update(state, &size, sizeof size);
  ssize_t got = 0;
  while (left > 0) {
    got = read(fd, buffer, left < READ_BYTES ? (size_t)left : READ_BYTES);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    XXH3_128bits_update(state, buffer, (size_t)got);
    left -= (uint64_t)got;
  }
  int number = errno;
  close(fd);
  if (left == 0) return TF_OK;
  return tf_fail(error, TF_ERR_IO, "%.300s: %s", path, got < 0 ? strerror(number) : "it shrank while it was read");
}

static tf_code hash_pair(tf_model_dir *self, tf_error *error) {
  const char *paths[FILES] = {self->vision_path, self->llm_path, self->adapter_path};
  XXH3_state_t *state = XXH3_createState();
  uint8_t *buffer = malloc(READ_BYTES);
  tf_code code = TF_OK;
  if (!state || !buffer) code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory hashing the model");
  if (code == TF_OK) {
    XXH3_128bits_reset(state);
    XXH3_128bits_update(state, TF_PREPROCESSING_VERSION, sizeof TF_PREPROCESSING_VERSION);
  }
  for (int i = 0; i < FILES && code == TF_OK; i++) code = hash_file(state, paths[i], buffer, error);
  if (code == TF_OK) {
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    snprintf(self->pair_hash, sizeof self->pair_hash, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64,
             (uint64_t)hash.low64);
  }
  XXH3_freeState(state);
  free(buffer);
  return code;
}

static bool is_square(uint64_t number) {
  uint64_t root = 0;
  while (root * root < number) root++; /* at most 64 steps */
  return root * root == number;
}

static tf_code read_token_counts(const tf_gguf *adapter, tf_model_dir *out, tf_error *error) {
  const char *key = "tokenflex.token_counts";
  uint64_t count = tf_gguf_array_count(adapter, key), before = 0;
  if (count < 1 || count > TF_TOKEN_COUNTS_MAX) {
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%.300s: %s must list 1 to %d counts", tf_gguf_path(adapter), key,
                   TF_TOKEN_COUNTS_MAX);
  }
  for (uint64_t i = 0; i < count; i++) {
    uint64_t tokens;
    if (!tf_gguf_array_u64(adapter, key, i, &tokens) || tokens <= before || tokens > TOKEN_COUNT_MAX ||
        !is_square(tokens)) {
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%.300s: %s must be ascending squares up to %d",
                     tf_gguf_path(adapter), key, TOKEN_COUNT_MAX);
    }
    out->token_counts[i] = (uint32_t)tokens;
    before = tokens;
  }
  out->token_count_count = (uint32_t)count;
  return TF_OK;
}

static tf_code read_name(const tf_gguf *adapter, tf_model_dir *out, tf_error *error) {
  char name[MODEL_NAME_BYTES_MAX + 1] = "tokenflex";
  const char *text;
  size_t size;
  bool stated = tf_gguf_string(adapter, "general.name", &text, &size) && size > 0;
  bool sound = !stated || tf_gguf_text(adapter, "general.name", name, sizeof name);
  for (const char *c = name; sound && *c; c++) sound = (unsigned char)*c >= 0x20 && *c != 0x7f;
  if (!sound) {
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%.300s: general.name is longer than %d bytes or no plain text",
                   tf_gguf_path(adapter), MODEL_NAME_BYTES_MAX);
  }
  snprintf(out->name, sizeof out->name, "%s/%.8s", name, out->pair_hash);
  return TF_OK;
}

tf_code tf_model_dir_open(const char *requested, tf_model_dir *out, tf_error *error) {
  memset(out, 0, sizeof *out);
  if (!requested || !requested[0]) requested = getenv("TOKENFLEX_MODEL");
  bool named = requested && requested[0];
  tf_code code = named ? take_folder(requested, out, error) : find_installed(out, error);
  if (code == TF_OK) code = hash_pair(out, error);
  if (code != TF_OK) return code;
  tf_gguf *adapter;
  code = tf_gguf_open(out->adapter_path, &adapter, error);
  if (code != TF_OK) return code;
  code = read_token_counts(adapter, out, error);
  if (code == TF_OK) code = read_name(adapter, out, error);
  tf_gguf_close(&adapter);
  return code;
}

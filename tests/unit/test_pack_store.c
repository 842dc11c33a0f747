/* Packed weights kept in a file. In: matrices made here, folders of its own, files that were tampered with. Out: the
 * same products however the weights came; damaged, foreign and unwritable files cost a new packing and nothing else.
 * The layouts themselves are pinned by hashes: whoever changes one raises TF_PACK_LAYOUT_VERSION, so that no file of
 * before is taken for one of now. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/clock.h"
#include "common/log.h"
#include "tensor/huge.h"
#include "tensor/linear_parts.h"
#include "tensor/pack_file.h"

enum { OUT = 40, OUT2 = 23, IN = 72, ROWS = 5, LINEARS = 3, WAIT_MS = 20000 };
#define PLACE(where) (&(tf_pack_place){.folder = (where), .bytes_max = 1 << 30})
static const char CONTENT[] = "0123456789abcdef0123456789abcdef";

/* ---- matrices, and a folder ---- */

typedef struct matrices {
  float weights[LINEARS + 1][OUT * IN], bias[OUT], x[ROWS * IN];
} matrices;

static float noise(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return (float)(int32_t)*state / 2147483648.0f;
}

static matrices *make_matrices(void) {
  matrices *self = malloc(sizeof *self);
  uint32_t state = 5;
  for (int i = 0; i <= LINEARS; i++)
    for (int j = 0; j < OUT * IN; j++) self->weights[i][j] = noise(&state);
  for (int j = 0; j < OUT; j++) self->bias[j] = noise(&state);
  for (int j = 0; j < ROWS * IN; j++) self->x[j] = noise(&state);
  return self;
}

static tf_tensor matrix_of(const float *data, int64_t rows) {
  return (tf_tensor){.rank = 2, .shape = {rows, IN, 1, 1}, .data = data, .bytes = (size_t)rows * IN * sizeof *data};
}

/* One of each kind: a matrix with a bias, two parts of two sizes, a SwiGLU. */
static void pack_all(const matrices *from, tf_pack_store *store, tf_linear **out) {
  tf_tensor a = matrix_of(from->weights[0], OUT), b = matrix_of(from->weights[1], OUT2),
            gate = matrix_of(from->weights[2], OUT), up = matrix_of(from->weights[3], OUT);
  tf_tensor bias = {.rank = 1, .shape = {OUT, 1, 1, 1}, .data = from->bias, .bytes = sizeof from->bias};
  tf_linear_source single = {.weight = &a, .bias = &bias}, parts[2] = {{.weight = &a}, {.weight = &b}},
                   pair[2] = {{.weight = &gate, .bias = &bias}, {.weight = &up}};
  tf_error error = {.text = ""};
  cr_assert_eq(tf_linear_pack_kept(&single, 1, TF_JOIN_PARTS, TF_COMPUTE_AUTO, store, "single", &out[0], &error), TF_OK,
               "%s", error.text);
  cr_assert_eq(tf_linear_pack_kept(parts, 2, TF_JOIN_PARTS, TF_COMPUTE_AUTO, store, "parts", &out[1], &error), TF_OK);
  cr_assert_eq(tf_linear_pack_kept(pair, 2, TF_JOIN_SWIGLU, TF_COMPUTE_AUTO, store, "a pair", &out[2], &error), TF_OK);
}

static void free_all(tf_linear **linears) {
  for (int i = 0; i < LINEARS; i++) tf_linear_free(&linears[i]);
}

enum { RESULTS = ROWS * (OUT + OUT + OUT2 + OUT) };
static void apply_all(const matrices *from, tf_linear *const *linears, float *out) {
  tf_pool *pool = tf_pool_new(1);
  tf_rows *rows = tf_rows_new(ROWS, IN);
  float *at = out;
  for (int i = 0; i < LINEARS; i++) {
    float *y[2] = {at, at + (size_t)ROWS * OUT};
    tf_rows_load(rows, pool, linears[i], from->x, ROWS, NULL);
    tf_linear_apply_rows(linears[i], pool, rows, y, NULL);
    at += ROWS * (i == 1 ? OUT + OUT2 : OUT);
  }
  tf_rows_free(&rows);
  tf_pool_free(&pool);
}

static char folder[64];
static void make_folder(void) {
  tf_log_setup("tests", "error"); /* of a few thousand files that are refused */
  snprintf(folder, sizeof folder, "/tmp/tokenflex-packs-XXXXXX");
  cr_assert_not_null(mkdtemp(folder));
}
static void remove_folder(void) {
  char command[128];
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  cr_expect_eq(system(command), 0);
}

static bool is_kept_file(const char *name) {
  size_t size = strlen(name);
  return size > 8 && strcmp(name + size - 8, ".weights") == 0;
}

/* How many files there are in the folder `at`; one's path in path (unless NULL). */
static int count_files(const char *at, char path[512]) {
  int count = 0;
  DIR *dir = opendir(at);
  const struct dirent *item;
  while (dir != NULL && (item = readdir(dir)) != NULL) {
    if (!is_kept_file(item->d_name)) continue;
    count++;
    if (path != NULL) snprintf(path, 512, "%s/%.200s", at, item->d_name);
  }
  if (dir != NULL) closedir(dir);
  return count;
}

static uint64_t inode_of(const char *path) {
  struct stat status;
  return stat(path, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

typedef enum outcome { PACKED, MAPPED } outcome;

/* Loads through a store in `at`, and compares the products. wait_for: a file that is written then (by a thread), NULL:
 * none. */
static outcome load(const char *at, const char *content, const matrices *from, const float *expected,
                    const char *wait_for) {
  tf_linear *linears[LINEARS];
  float *got = malloc(RESULTS * sizeof *got);
  uint64_t before = wait_for != NULL ? inode_of(wait_for) : 0;
  tf_pack_store *store = tf_pack_store_open(PLACE(at), "tests", content);
  cr_assert_not_null(store);
  pack_all(from, store, linears);
  bool mapped = linears[0]->kept && linears[1]->kept && linears[2]->kept;
  tf_pack_store_save(store);
  apply_all(from, linears, got);
  cr_assert_eq(memcmp(got, expected, RESULTS * sizeof *got), 0, "other products");
  int64_t until_ms = tf_now_ms() + WAIT_MS;
  while (wait_for != NULL && (inode_of(wait_for) == before || inode_of(wait_for) == 0)) {
    cr_assert(tf_now_ms() < until_ms, "%s was not written", wait_for);
    usleep(1000);
  }
  tf_pack_store_end(store);
  free_all(linears);
  tf_pack_store_close(&store);
  free(got);
  return mapped ? MAPPED : PACKED;
}

static float *expect(const matrices *from) {
  tf_linear *linears[LINEARS];
  float *out = malloc(RESULTS * sizeof *out);
  pack_all(from, NULL, linears);
  apply_all(from, linears, out);
  free_all(linears);
  return out;
}

/* The path of the file for CONTENT, by writing it once. */
static void write_first(const matrices *from, const float *expected, char path[512]) {
  tf_linear *linears[LINEARS];
  tf_pack_store *store = tf_pack_store_open(PLACE(folder), "tests", CONTENT);
  int64_t until_ms = tf_now_ms() + WAIT_MS;
  pack_all(from, store, linears);
  tf_pack_store_save(store);
  while (count_files(folder, path) == 0) {
    cr_assert(tf_now_ms() < until_ms, "nothing was written");
    usleep(1000);
  }
  tf_pack_store_end(store);
  free_all(linears);
  tf_pack_store_close(&store);
  cr_assert_eq(load(folder, CONTENT, from, expected, NULL), MAPPED);
}

/* ---- tests ---- */

static void round_trip(const char *cpu, const char *compute) {
  tf_error error;
  if (tf_cpu_use(cpu, compute, &error) != TF_OK) return; /* this machine lacks it */
  matrices *from = make_matrices();
  float *expected = expect(from);
  char path[512];
  make_folder();
  write_first(from, expected, path);
  cr_assert_eq(count_files(folder, NULL), 1);
  cr_assert_eq(load(folder, CONTENT, from, expected, NULL), MAPPED, "%s %s", cpu, compute);
  remove_folder();
  free(expected);
  free(from);
}

Test(pack_store, what_is_mapped_is_what_was_packed, .timeout = 120) {
  static const char *const cpus[] = {"portable", "avx2", "avx512", "vnni", "amx"};
  static const char *const computes[] = {"f32", "bf16", "int8", "int8x2"};
  for (size_t i = 0; i < sizeof cpus / sizeof *cpus; i++)
    for (size_t j = 0; j < sizeof computes / sizeof *computes; j++) round_trip(cpus[i], computes[j]);
}

Test(pack_store, every_arithmetic_and_content_has_a_file_of_its_own, .timeout = 120) {
  matrices *from = make_matrices();
  tf_error error;
  char path[512];
  make_folder();
  cr_assert_eq(tf_cpu_use("portable", "f32", &error), TF_OK);
  float *expected = expect(from);
  write_first(from, expected, path);
  tf_pack_store *other = tf_pack_store_open(PLACE(folder), "tests", "another model");
  bool filled = true;
  void *memory = tf_pack_store_take(other, "single", "f32", 64, &filled);
  cr_assert(memory != NULL && !filled);
  for (int i = 0; i < 64; i++) cr_assert_eq(((const char *)memory)[i], 0);
  tf_pack_store_close(&other);
  tf_huge_free(memory);
  if (tf_cpu_use("avx2", "f32", &error) == TF_OK) {
    tf_linear *linears[LINEARS];
    tf_pack_store *store = tf_pack_store_open(PLACE(folder), "tests", CONTENT);
    pack_all(from, store, linears);
    for (int i = 0; i < LINEARS; i++) cr_assert_not(linears[i]->kept);
    free_all(linears); /* not saved */
    tf_pack_store_close(&store);
  }
  cr_assert_eq(count_files(folder, NULL), 1);
  remove_folder();
  free(expected);
  free(from);
}

static void spoil(const char *path, long at, int whence, char with) {
  FILE *file = fopen(path, "r+e");
  char was;
  cr_assert(file != NULL && fseek(file, at, whence) == 0 && fread(&was, 1, 1, file) == 1);
  cr_assert_eq(fseek(file, -1, SEEK_CUR), 0);
  was = (char)(was ^ with);
  cr_assert(fwrite(&was, 1, 1, file) == 1 && fclose(file) == 0);
}

Test(pack_store, damaged_files_are_packed_anew, .timeout = 120) {
  matrices *from = make_matrices();
  float *expected = expect(from);
  char path[512];
  make_folder();
  write_first(from, expected, path);
  struct stat status;
  cr_assert_eq(stat(path, &status), 0);
  long size = (long)status.st_size;
  cr_assert(size > 4096);
  for (long at = 0; at < size; at += at < 1200 ? 7 : 131) { /* header, table, weights: every kind of place */
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *bytes = malloc((size_t)size);
    cr_assert_eq(read(fd, bytes, (size_t)size), size);
    close(fd);
    spoil(path, at, SEEK_SET, 0x10);
    tf_pack_file *file = NULL;
    tf_error error;
    tf_linear *linears[LINEARS];
    float *got = malloc(RESULTS * sizeof *got);
    tf_pack_store *store = tf_pack_store_open(PLACE(folder), "tests", CONTENT);
    pack_all(from, store, linears);
    apply_all(from, linears, got);
    cr_assert_eq(memcmp(got, expected, RESULTS * sizeof *got), 0, "byte %ld", at);
    free_all(linears);
    tf_pack_store_close(&store);
    cr_assert(tf_pack_file_open(path, "another key", &file, &error) != TF_OK && file == NULL);
    FILE *whole = fopen(path, "we");
    cr_assert(fwrite(bytes, 1, (size_t)size, whole) == (size_t)size && fclose(whole) == 0);
    free(bytes);
    free(got);
  }
  cr_assert_eq(load(folder, CONTENT, from, expected, NULL), MAPPED, "whole again");
  for (int i = 0; i < 5; i++) {
    cr_assert_eq(truncate(path, i == 0 ? 0 : i == 1 ? 7 : i == 2 ? 500 : i == 3 ? size - 1 : size + 1), 0);
    cr_assert_eq(load(folder, CONTENT, from, expected, path), PACKED, "case %d", i);
    cr_assert_eq(load(folder, CONTENT, from, expected, NULL), MAPPED, "case %d", i);
  }
  spoil(path, -1, SEEK_END, 1); /* one of the weights: found when it is asked for, and put right */
  cr_assert_eq(load(folder, CONTENT, from, expected, path), PACKED);
  cr_assert_eq(load(folder, CONTENT, from, expected, NULL), MAPPED);
  remove_folder();
  free(expected);
  free(from);
}

Test(pack_store, foreign_files_are_refused, .timeout = 120) {
  matrices *from = make_matrices();
  float *expected = expect(from);
  char path[512], command[1200];
  make_folder();
  write_first(from, expected, path);
  snprintf(command, sizeof command, "mkdir '%s/more' && cp '%s' '%s/more/kept'", folder, path, folder);
  cr_assert_eq(system(command), 0);
  tf_pack_store *other =
      tf_pack_store_open(PLACE(folder), "tests", "another model"); /* its file: this one's, renamed */
  tf_linear *linears[LINEARS];
  pack_all(from, other, linears);
  tf_pack_store_save(other);
  int64_t until_ms = tf_now_ms() + WAIT_MS;
  while (count_files(folder, NULL) < 2 && tf_now_ms() < until_ms) usleep(1000);
  tf_pack_store_end(other);
  free_all(linears);
  tf_pack_store_close(&other);
  cr_assert_eq(count_files(folder, NULL), 2);
  snprintf(command, sizeof command, "for f in '%s'/*.weights; do cp '%s/more/kept' \"$f\"; done", folder, folder);
  cr_assert_eq(system(command), 0);
  other = tf_pack_store_open(PLACE(folder), "tests", "another model");
  pack_all(from, other, linears);
  for (int i = 0; i < LINEARS; i++) cr_assert_not(linears[i]->kept);
  free_all(linears);
  tf_pack_store_close(&other);
  /* A folder and a pipe of that name. */
  snprintf(command, sizeof command, "rm '%s' && mkdir '%s'", path, path);
  cr_assert_eq(system(command), 0);
  cr_assert_eq(load(folder, CONTENT, from, expected, NULL), PACKED);
  snprintf(command, sizeof command, "rmdir '%s' && mkfifo '%s'", path, path);
  cr_assert_eq(system(command), 0);
  cr_assert_eq(load(folder, CONTENT, from, expected, path), PACKED);
  remove_folder();
  free(expected);
  free(from);
}

Test(pack_store, what_can_not_be_written_is_done_without, .timeout = 120) {
  matrices *from = make_matrices();
  float *expected = expect(from);
  char path[512];
  make_folder();
  snprintf(path, sizeof path, "%s/file", folder);
  fclose(fopen(path, "we"));
  snprintf(path, sizeof path, "%s/file/below/it", folder);
  cr_assert_eq(load(path, CONTENT, from, expected, NULL), PACKED, "a folder that can not be made");
  char *longest = malloc(9000);
  memset(longest, 'x', 8999);
  longest[8999] = '\0';
  cr_assert_null(tf_pack_store_open(PLACE(longest), "tests", CONTENT));
  free(longest);
  cr_assert(tf_pack_store_open(NULL, "tests", CONTENT) == NULL &&
            tf_pack_store_open(PLACE(NULL), "tests", CONTENT) == NULL &&
            tf_pack_store_open(PLACE(""), "tests", CONTENT) == NULL &&
            tf_pack_store_open(PLACE("off"), "tests", CONTENT) == NULL);
  /* A disk that gets full: no file may grow past 4,096 bytes. */
  signal(SIGXFSZ, SIG_IGN);
  struct rlimit limit = {.rlim_cur = 4096, .rlim_max = RLIM_INFINITY};
  cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
  cr_assert_eq(load(folder, CONTENT, from, expected, NULL), PACKED);
  tf_pack_blob blob = {.name = "a", .form = "b", .data = from, .bytes = sizeof *from};
  tf_error error = {.text = ""};
  snprintf(path, sizeof path, "%s/x.weights", folder);
  cr_assert_eq(tf_pack_file_write(path, "key", &blob, 1, NULL, &error), TF_ERR_IO);
  cr_assert_neq(error.text[0], '\0');
  atomic_bool stop;
  atomic_init(&stop, true);
  cr_assert_eq(tf_pack_file_write(path, "key", &blob, 1, &stop, &error), TF_ERR_CANCELLED);
  DIR *dir = opendir(folder);
  const struct dirent *item;
  while ((item = readdir(dir)) != NULL)
    cr_assert(item->d_name[0] == '.' || strcmp(item->d_name, "file") == 0, "%s was left", item->d_name);
  closedir(dir);
  remove_folder();
  free(expected);
  free(from);
}

Test(pack_store, processes_that_start_at_once_all_work, .timeout = 240) {
  enum { PROCESSES = 6 };
  matrices *from = make_matrices();
  float *expected = expect(from);
  char path[512];
  make_folder();
  write_first(from, expected, path);
  for (int round = 0; round < 5; round++) {
    if (round % 2)
      cr_assert_eq(truncate(path, 5000), 0);
    else
      unlink(path);
    pid_t pids[PROCESSES];
    for (int i = 0; i < PROCESSES; i++) {
      pids[i] = fork();
      if (pids[i] != 0) continue;
      tf_linear *linears[LINEARS];
      float *got = malloc(RESULTS * sizeof *got);
      tf_pack_store *store = tf_pack_store_open(PLACE(folder), "tests", CONTENT);
      pack_all(from, store, linears);
      tf_pack_store_save(store);
      if (i % 2) usleep(20000); /* the others give up writing at once */
      apply_all(from, linears, got);
      tf_pack_store_end(store);
      bool right = memcmp(got, expected, RESULTS * sizeof *got) == 0;
      free_all(linears);
      tf_pack_store_close(&store);
      free(got);
      _exit(right ? 0 : 1);
    }
    for (int i = 0; i < PROCESSES; i++) {
      int status = 1;
      waitpid(pids[i], &status, 0);
      cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    if (load(folder, CONTENT, from, expected, NULL) == PACKED) load(folder, CONTENT, from, expected, path);
    cr_assert_eq(load(folder, CONTENT, from, expected, NULL), MAPPED);
  }
  DIR *dir = opendir(folder);
  const struct dirent *item;
  while ((item = readdir(dir)) != NULL)
    cr_assert(item->d_name[0] == '.' || is_kept_file(item->d_name), "%s", item->d_name);
  closedir(dir);
  remove_folder();
  free(expected);
  free(from);
}

/* ---- the layouts ---- */

/* XXH3 of the memory of pack_all's three linears, for layout 1. */
static const struct {
  const char *kernel;
  uint64_t hash;
} LAYOUTS[] = {
    {"f32 openblas", 0xff48421925f2a26d}, {"f32 avx2", 0x5b4bcc30b7f98e40},   {"f32 avx512", 0x5b4bcc30b7f98e40},
    {"bf16 avx512", 0x1d8a49bb973a2b56},  {"bf16 amx", 0x1d8a49bb973a2b56},   {"int8 avx-vnni", 0x594bb47e29965f6b},
    {"int8 vnni", 0x594bb47e29965f6b},    {"int8 amx", 0x594bb47e29965f6b},   {"int8x2 avx-vnni", 0x594bb47e29965f6b},
    {"int8x2 vnni", 0x594bb47e29965f6b},  {"int8x2 amx", 0x594bb47e29965f6b},
};

Test(pack_store, layouts_are_those_of_their_version) {
  static const char *const cpus[] = {"portable", "avx2", "avx512", "vnni", "amx"};
  static const char *const computes[] = {"f32", "bf16", "int8", "int8x2"};
  matrices *from = make_matrices();
  tf_error error;
  int known = 0;
  cr_assert_eq(TF_PACK_LAYOUT_VERSION, 1, "new hashes for a new version, please");
  for (size_t i = 0; i < sizeof cpus / sizeof *cpus; i++)
    for (size_t j = 0; j < sizeof computes / sizeof *computes; j++) {
      if (tf_cpu_use(cpus[i], computes[j], &error) != TF_OK) continue;
      tf_linear *linears[LINEARS];
      pack_all(from, NULL, linears);
      XXH3_state_t *state = XXH3_createState();
      XXH3_64bits_reset(state);
      for (int k = 0; k < LINEARS; k++) {
        const tf_linear *linear = linears[k];
        size_t vectors = linear->kernel ? 3 * (size_t)linear->panels * TF_PANEL * 4
                                        : (size_t)(k == 0   ? OUT
                                                   : k == 1 ? OUT + OUT2
                                                            : 2 * OUT) *
                                              4;
        XXH3_64bits_update(state, linear->weight, linear->weight_bytes);
        XXH3_64bits_update(state, linear->bias, vectors);
      }
      uint64_t hash = XXH3_64bits_digest(state);
      XXH3_freeState(state);
      for (size_t k = 0; k < sizeof LAYOUTS / sizeof *LAYOUTS; k++) {
        if (strcmp(LAYOUTS[k].kernel, tf_linear_kernel(linears[0])) != 0) continue;
        known++;
        cr_expect_eq(hash, LAYOUTS[k].hash,
                     "%s packs to %016llx: other bytes than files of layout %d hold; raise TF_PACK_LAYOUT_VERSION",
                     tf_linear_kernel(linears[0]), (unsigned long long)hash, TF_PACK_LAYOUT_VERSION);
      }
      free_all(linears);
    }
  cr_assert_geq(known, 1);
  free(from);
}

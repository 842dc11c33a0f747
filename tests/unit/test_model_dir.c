/* The model folder: where it is looked for, what is refused and how, the pair hash, name and token counts.
 * In: folders made under the temporary directory. Out: a Criterion suite. */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "gguf_builder.h"
#include "tensor/model_dir.h"

static char root[64];

static void make_root(void) {
  strcpy(root, "/tmp/tokenflex-model-XXXXXX");
  cr_assert_not_null(mkdtemp(root));
  unsetenv("TOKENFLEX_MODEL");
  setenv("XDG_DATA_HOME", root, 1);
}

static const char *under_root(const char *name) {
  static char path[4][256];
  static int turn;
  char *out = path[turn++ % 4];
  snprintf(out, sizeof path[0], "%s/%s", root, name);
  return out;
}

static void write_file(const char *name, const void *data, size_t size) {
  FILE *file = fopen(under_root(name), "wb");
  cr_assert_not_null(file);
  cr_assert_eq(fwrite(data, 1, size, file), size);
  cr_assert_eq(fclose(file), 0);
}

static void remove_root(void) {
  static const char *const names[] = {"vision.gguf",
                                      "llm.gguf",
                                      "adapter.gguf",
                                      "tokenflex/model/llm.gguf",
                                      "tokenflex/model/adapter.gguf",
                                      "tokenflex/model/vision.gguf"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(under_root(names[i]));
  rmdir(under_root("tokenflex/model"));
  rmdir(under_root("tokenflex"));
  cr_assert_eq(rmdir(root), 0, "something else is left in %s", root);
}

/* name NULL: without general.name. */
static void write_adapter(const char *path, const char *name, const uint32_t *counts, uint64_t count) {
  tf_buffer file;
  gguf_begin(&file, 3, 0, name ? 2 : 1);
  if (name) gguf_key_string(&file, "general.name", name);
  gguf_key_array(&file, "tokenflex.token_counts", GGUF_U32, count);
  for (uint64_t i = 0; i < count; i++) gguf_u32(&file, counts[i]);
  write_file(path, file.data, file.size);
  tf_buffer_free(&file);
}

static const uint32_t usual[] = {64, 144, 256};

static void write_model(void) {
  write_file("vision.gguf", "sees", 4);
  write_file("llm.gguf", "writes", 6);
  write_adapter("adapter.gguf", "small pair", usual, 3);
}

static tf_code open_root(tf_model_dir *out, tf_error *error) {
  return tf_model_dir_open(root, out, error);
}

Test(model_dir, a_sound_folder, .init = make_root, .fini = remove_root) {
  tf_model_dir model;
  tf_error error = {0};
  write_model();
  cr_assert_eq(open_root(&model, &error), TF_OK, "%s", error.text);
  cr_assert_str_eq(model.path, root);
  cr_assert_str_eq(model.vision_path, under_root("vision.gguf"));
  cr_assert_str_eq(model.llm_path, under_root("llm.gguf"));
  cr_assert_str_eq(model.adapter_path, under_root("adapter.gguf"));
  cr_assert_eq(model.token_count_count, 3);
  for (int i = 0; i < 3; i++) cr_assert_eq(model.token_counts[i], usual[i]);
  cr_assert_eq(strlen(model.pair_hash), 32);
  char name[64];
  snprintf(name, sizeof name, "small pair/%.8s", model.pair_hash);
  cr_assert_str_eq(model.name, name);
}

static void append_sized(tf_buffer *all, const char *name) {
  char bytes[4096];
  FILE *file = fopen(under_root(name), "rb");
  cr_assert_not_null(file);
  uint64_t size = fread(bytes, 1, sizeof bytes, file);
  fclose(file);
  tf_buffer_append(all, &size, sizeof size);
  tf_buffer_append(all, bytes, (size_t)size);
}

/* The definition, in one go over one block of memory. */
Test(model_dir, the_hash_is_what_it_says, .init = make_root, .fini = remove_root) {
  tf_model_dir model;
  tf_buffer all;
  char expected[40];
  write_model();
  cr_assert_eq(open_root(&model, NULL), TF_OK);
  tf_buffer_init(&all, 1 << 20);
  tf_buffer_append(&all, TF_PREPROCESSING_VERSION, sizeof TF_PREPROCESSING_VERSION);
  append_sized(&all, "vision.gguf");
  append_sized(&all, "llm.gguf");
  append_sized(&all, "adapter.gguf");
  XXH128_hash_t hash = XXH3_128bits(all.data, all.size);
  snprintf(expected, sizeof expected, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64, (uint64_t)hash.low64);
  cr_assert_str_eq(model.pair_hash, expected);
  tf_buffer_free(&all);
}

Test(model_dir, any_change_changes_the_hash, .init = make_root, .fini = remove_root) {
  tf_model_dir before, after;
  write_model();
  cr_assert_eq(open_root(&before, NULL), TF_OK);
  cr_assert_eq(open_root(&after, NULL), TF_OK);
  cr_assert_str_eq(before.pair_hash, after.pair_hash, "the same files");
  write_file("vision.gguf", "seez", 4);
  cr_assert_eq(open_root(&after, NULL), TF_OK);
  cr_assert_str_neq(before.pair_hash, after.pair_hash);
  write_file("vision.gguf", "see", 3);
  write_file("llm.gguf", "swrites", 7);
  cr_assert_eq(open_root(&after, NULL), TF_OK);
  cr_assert_str_neq(before.pair_hash, after.pair_hash, "the same bytes, another border");
  write_model();
  write_adapter("adapter.gguf", "small pair", usual, 2);
  cr_assert_eq(open_root(&after, NULL), TF_OK);
  cr_assert_str_neq(before.pair_hash, after.pair_hash);
}

Test(model_dir, what_is_missing_is_named, .init = make_root, .fini = remove_root) {
  static const char *const names[] = {"vision.gguf", "llm.gguf", "adapter.gguf"};
  for (int i = 0; i < 3; i++) {
    tf_model_dir model;
    tf_error error = {0};
    write_model();
    unlink(under_root(names[i]));
    cr_assert_eq(open_root(&model, &error), TF_ERR_MODEL_INVALID);
    cr_assert(strstr(error.text, root) && strstr(error.text, names[i]) && strstr(error.text, "make model"), "%s",
              error.text);
  }
}

Test(model_dir, without_a_name, .init = make_root, .fini = remove_root) {
  tf_model_dir model;
  write_model();
  write_adapter("adapter.gguf", NULL, usual, 3);
  cr_assert_eq(open_root(&model, NULL), TF_OK);
  cr_assert_eq(strncmp(model.name, "tokenflex/", 10), 0, "%s", model.name);
}

Test(model_dir, unsound_names_are_refused, .init = make_root, .fini = remove_root) {
  tf_model_dir model;
  tf_error error = {0};
  char name[140];
  write_model();
  memset(name, 'n', sizeof name);
  name[128] = '\0';
  write_adapter("adapter.gguf", name, usual, 3);
  cr_assert_eq(open_root(&model, &error), TF_OK, "%s", error.text);
  name[128] = 'n';
  name[129] = '\0';
  write_adapter("adapter.gguf", name, usual, 3);
  cr_assert_eq(open_root(&model, &error), TF_ERR_MODEL_INVALID);
  write_adapter("adapter.gguf", "two\nlines", usual, 3);
  cr_assert_eq(open_root(&model, &error), TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, "general.name"), "%s", error.text);
}

Test(model_dir, unsound_token_counts_are_refused, .init = make_root, .fini = remove_root) {
  static const struct {
    uint32_t counts[17];
    uint64_t count;
  } bad[] = {{{0}, 0}, {{0, 4}, 2}, {{144, 64}, 2}, {{64, 64}, 2}, {{60}, 1}, {{4225}, 1}, {{1}, 17}};
  tf_model_dir model;
  write_model();
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    uint32_t counts[17];
    tf_error error = {0};
    memcpy(counts, bad[i].counts, sizeof counts);
    for (uint32_t j = 0; bad[i].count == 17 && j < 17; j++)
      counts[j] = (j + 1) * (j + 1); /* sound but for their number */
    write_adapter("adapter.gguf", "x", counts, bad[i].count);
    cr_assert_eq(open_root(&model, &error), TF_ERR_MODEL_INVALID, "case %zu", i);
    cr_assert(strstr(error.text, "tokenflex.token_counts"), "%s", error.text);
  }
  write_adapter("adapter.gguf", "x", (uint32_t[]){1, 4096}, 2);
  cr_assert_eq(open_root(&model, NULL), TF_OK, "the limits themselves");
}

Test(model_dir, a_damaged_adapter_is_refused, .init = make_root, .fini = remove_root) {
  tf_model_dir model;
  tf_error error = {0};
  write_model();
  write_file("adapter.gguf", "GGUF", 4);
  cr_assert_eq(open_root(&model, &error), TF_ERR_INVALID_FORMAT);
  cr_assert(strstr(error.text, "adapter.gguf"), "%s", error.text);
}

Test(model_dir, the_environment_names_a_folder, .init = make_root, .fini = remove_root) {
  tf_model_dir model;
  tf_error error = {0};
  write_model();
  setenv("TOKENFLEX_MODEL", root, 1);
  cr_assert_eq(tf_model_dir_open(NULL, &model, &error), TF_OK, "%s", error.text);
  cr_assert_str_eq(model.path, root);
  cr_assert_eq(tf_model_dir_open("", &model, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_model_dir_open("/tmp/no-such-folder", &model, &error), TF_ERR_MODEL_INVALID,
               "the request goes first");
  cr_assert(strstr(error.text, "/tmp/no-such-folder"), "%s", error.text);
  unlink(under_root("llm.gguf"));
  cr_assert_eq(tf_model_dir_open(NULL, &model, &error), TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, "llm.gguf"), "%s", error.text);
}

/* Installed folders: only where no other one of this machine comes first. */
Test(model_dir, an_installed_folder_is_found, .init = make_root, .fini = remove_root) {
  tf_model_dir model;
  tf_error error = {0};
  tf_code none = tf_model_dir_open(NULL, &model, &error);
  if (none == TF_OK) cr_skip_test("a model is installed here: %s", model.path);
  cr_assert_eq(none, TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, "make model") && strstr(error.text, "TOKENFLEX_MODEL"), "%s", error.text);
  cr_assert_eq(mkdir(under_root("tokenflex"), 0700), 0);
  cr_assert_eq(mkdir(under_root("tokenflex/model"), 0700), 0);
  write_adapter("tokenflex/model/adapter.gguf", "x", usual, 3);
  cr_assert_eq(tf_model_dir_open(NULL, &model, &error), TF_ERR_MODEL_INVALID, "an incomplete one is not passed over");
  cr_assert(strstr(error.text, "tokenflex/model") && strstr(error.text, "vision.gguf"), "%s", error.text);
  write_file("tokenflex/model/vision.gguf", "v", 1);
  write_file("tokenflex/model/llm.gguf", "l", 1);
  cr_assert_eq(tf_model_dir_open(NULL, &model, &error), TF_OK, "%s", error.text);
  cr_assert_str_eq(model.path, under_root("tokenflex/model"));
}

Test(model_dir, a_path_that_is_too_long, .init = make_root, .fini = remove_root) {
  static char path[TF_PATH_BYTES_MAX + 10];
  tf_model_dir model;
  tf_error error = {0};
  memset(path, 'a', sizeof path - 1);
  cr_assert_eq(tf_model_dir_open(path, &model, &error), TF_ERR_MODEL_INVALID);
  path[TF_PATH_BYTES_MAX - 5] = '\0';
  cr_assert_eq(tf_model_dir_open(path, &model, &error), TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, "too long"), "%s", error.text);
}

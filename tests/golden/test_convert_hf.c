/* tools/convert-hf against `transformers`: DINOv2, CLIP, Llama, and a release (SigLIP, Qwen2, projector).
 * In: tests/golden/data/hf, small random models and what transformers computes with them. Out: the converted files,
 * loaded by our code, give the same within 1e-4 (as the other goldens: activations reach about 10, f32). */
#include <stdio.h>
#include <unistd.h>

#include "encoder-svc/projector.h"
#include "encoder-svc/vit.h"
#include "tests/golden/llm_golden.h"

static const double TOLERANCE = 1e-4;
enum { PATH_BYTES = 512 };

typedef struct converted {
  char folder[PATH_BYTES];
  tf_gguf *golden;
} converted;

static void path_in(const converted *self, const char *file, char *out) {
  snprintf(out, PATH_BYTES, "%.400s/%s", self->folder, file);
}

static converted convert(const char *name, const char *options) {
  converted out = {0};
  snprintf(out.folder, sizeof out.folder, "%s/tf-convert-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  cr_assert_not_null(mkdtemp(out.folder));
  char command[2 * PATH_BYTES];
  snprintf(command, sizeof command, "tools/convert-hf %shf/%s %s %s >/dev/null", GOLDEN_FOLDER, name, out.folder,
           options);
  cr_assert_eq(system(command), 0, "%s", command);
  snprintf(command, sizeof command, "%shf/%s/golden.gguf", GOLDEN_FOLDER, name);
  out.golden = open_golden(command);
  return out;
}

static void discard(converted *self) {
  tf_gguf_close(&self->golden);
  static const char *const files[] = {"vision.gguf", "llm.gguf", "adapter.gguf"};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    char path[PATH_BYTES];
    path_in(self, files[i], path);
    unlink(path);
  }
  cr_assert_eq(rmdir(self->folder), 0, "%s is not empty", self->folder);
}

static void expect_close(const converted *self, const char *name, const float *values, int64_t count) {
  int64_t expected_count;
  float *expected = golden_floats(self->golden, name, &expected_count);
  cr_assert_eq(count, expected_count, "%s: %d values", name, (int)count);
  double difference = largest_difference(values, expected, count);
  cr_assert_leq(difference, TOLERANCE, "%s: off by %g", name, difference);
  free(expected);
}

/* The patch features of the golden's one picture. */
static float *features_of(const converted *self, tf_pool *pool, int64_t *count) {
  char path[PATH_BYTES];
  path_in(self, "vision.gguf", path);
  tf_gguf *file = open_golden(path);
  tf_vit *vit = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_vit_load(file, NULL, 1, NULL, &vit, &error), TF_OK, "%s", error.text);
  const tf_vit_config *config = tf_vit_configuration(vit);
  int64_t pixels;
  float *input = golden_floats(self->golden, "input", &pixels);
  cr_assert_eq(pixels, 3 * config->image_size * config->image_size);
  *count = config->patches * config->width;
  float *out = malloc((size_t)*count * sizeof *out);
  cr_assert_not_null(out);
  cr_assert_eq(tf_vit_run(vit, pool, input, 1, out, NULL, NULL, &error), TF_OK, "%s", error.text);
  free(input);
  tf_vit_free(&vit);
  tf_gguf_close(&file);
  return out;
}

static void expect_features(const char *name) {
  converted model = convert(name, "");
  tf_pool *pool = tf_pool_new(2);
  int64_t count;
  float *features = features_of(&model, pool, &count);
  expect_close(&model, "output", features, count);
  free(features);
  tf_pool_free(&pool);
  discard(&model);
}

Test(convert_hf, dinov2) {
  expect_features("dinov2");
}
Test(convert_hf, clip) {
  expect_features("clip");
}

/* Logits of every position of the golden's sequence. */
static void expect_logits(const converted *model) {
  char path[PATH_BYTES];
  path_in(model, "llm.gguf", path);
  llm_rig rig = rig_load(path, NULL, RIG_ROWS_MAX);
  uint32_t width = tf_llm_configuration(rig.model)->width;
  uint64_t first;
  int64_t floats;
  cr_assert(tf_gguf_u64(model->golden, "vision_position", &first));
  float *vision = golden_floats(model->golden, "vision", &floats);
  uint32_t image = (uint32_t)(floats / width), text = (uint32_t)tf_gguf_array_count(model->golden, "tokens");
  tf_llm_row rows[RIG_ROWS_MAX] = {0};
  tf_kv_table table = {0};
  cr_assert(image > 0 && text > first && text + image <= RIG_ROWS_MAX);
  cr_assert(tf_kv_reserve(rig.kv, text + image, &table));
  for (uint32_t i = 0; i < text + image; i++) {
    int64_t token = 0;
    bool is_image = i >= first && i < first + image;
    if (!is_image) cr_assert(tf_gguf_array_i64(model->golden, "tokens", i < first ? i : i - image, &token));
    rows[i] = (tf_llm_row){.token = (int32_t)token,
                           .position = (int32_t)i,
                           .table = &table,
                           .wants_logits = true,
                           .embedding = is_image ? vision + (i - first) * width : NULL};
  }
  expect_close(model, "logits", rig_forward(&rig, rows, text + image),
               (int64_t)(text + image) * tf_llm_configuration(rig.model)->vocabulary);
  tf_kv_release(rig.kv, &table);
  free(vision);
  rig_free(&rig);
}

Test(convert_hf, llama) {
  converted model = convert("llama", "");
  expect_logits(&model);
  discard(&model);
}

Test(convert_hf, release) {
  converted model = convert("release", "--one-tile --counts 4 9");
  tf_pool *pool = tf_pool_new(2);
  int64_t count;
  float *features = features_of(&model, pool, &count);
  expect_close(&model, "output", features, count);
  char path[PATH_BYTES];
  path_in(&model, "adapter.gguf", path);
  tf_gguf *file = open_golden(path);
  tf_projector *projector = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_projector_load(file, NULL, &projector, &error), TF_OK, "%s", error.text);
  for (uint32_t tokens = 4; tokens <= 9; tokens += 5) {
    char name[32];
    float out[9 * 64];
    snprintf(name, sizeof name, "projected.%u", tokens);
    cr_assert_eq(tf_projector_run(projector, pool, features, tokens, out, &error), TF_OK, "%s", error.text);
    expect_close(&model, name, out, tokens * tf_projector_llm_width(projector));
  }
  tf_projector_free(&projector);
  tf_gguf_close(&file);
  free(features);
  tf_pool_free(&pool);
  expect_logits(&model);
  discard(&model);
}

/* Half-width floats and 8-bit blocks lose something, but not much. */
Test(convert_hf, other_dtypes_load) {
  converted model = convert("llama", "--dtype q8_0");
  char path[PATH_BYTES];
  path_in(&model, "llm.gguf", path);
  llm_rig rig = rig_load(path, NULL, RIG_ROWS_MAX);
  rig_free(&rig);
  discard(&model);
}

/* The prompt of a release: image tokens between its markers, a system turn where one is given. */
Test(convert_hf, release_prompt) {
  converted model = convert("release", "--one-tile --counts 4 9 --system 'Be brief.'");
  char path[PATH_BYTES];
  path_in(&model, "llm.gguf", path);
  tf_gguf *llm = open_golden(path);
  path_in(&model, "adapter.gguf", path);
  tf_gguf *adapter = open_golden(path);
  tf_tokenizer *tokenizer = NULL;
  tf_error error = {0};
  tf_chat chat;
  tf_prompt prompt = {0};
  cr_assert_eq(tf_tokenizer_load(llm, &tokenizer, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_chat_load(llm, adapter, tokenizer, &chat, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_chat_prompt(&chat, "What?", 4, &prompt, &error), TF_OK, "%s", error.text);
  char text[512] = "";
  for (size_t i = 0; i < prompt.tokens.count; i++) {
    size_t size = 1;
    int32_t id = prompt.tokens.ids[i];
    const char *piece = id == TF_CHAT_IMAGE ? "#" : tf_tokenizer_piece(tokenizer, id, &size);
    strncat(text, piece, size);
  }
  cr_assert_str_eq(text, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<img>####</img>\nWhat?"
                         "<|im_end|>\n<|im_start|>assistant\n");
  cr_assert_eq(prompt.tokens.ids[prompt.image_first], TF_CHAT_IMAGE);
  tf_prompt_free(&prompt);
  tf_tokenizer_free(&tokenizer);
  tf_gguf_close(&adapter);
  tf_gguf_close(&llm);
  discard(&model);
}

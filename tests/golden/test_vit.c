/* The ViT against PyTorch, stage by stage: DINOv2, SigLIP and CLIP shapes. In: tiny models with random weights, dumps
 * of every stage on a batch of two. Out: every value within 1e-4. 1e-4: activations reach about 10, and f32 sums over
 * up to 588 terms, in another order, round by some 1e-6 of that in each of up to 3 layers; a wrong epsilon, activation
 * or position would show by 1e-3 and more. */
#include <stdio.h>

#include "encoder-svc/vit.h"
#include "tests/golden/vision_golden.h"

static const double TOLERANCE = 1e-4;
enum { BATCH = 2 };

typedef struct stages {
  const tf_gguf *golden;
  const tf_vit_config *config;
  int64_t batch_first; /* the image of the golden batch that this pass begins with */
  int seen;
} stages;

static void compare_stage(void *context, const char *stage, int64_t layer, const float *x, int64_t batch) {
  stages *self = context;
  char name[64];
  if (layer >= 0)
    snprintf(name, sizeof name, "%s.%d", stage, (int)layer);
  else
    snprintf(name, sizeof name, "%s", stage);
  int64_t count, image = self->config->tokens * self->config->width;
  float *expected = golden_floats(self->golden, name, &count);
  cr_assert_eq(count, BATCH * image, "%s has %d values", name, (int)count);
  double difference = largest_difference(x, expected + self->batch_first * image, batch * image);
  cr_assert_leq(difference, TOLERANCE, "%s: %g", name, difference);
  free(expected);
  self->seen++;
}

static tf_vit *load_vit(const char *path, int64_t batch_max) {
  tf_gguf *file = open_golden(path);
  tf_vit *vit = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_vit_load(file, NULL, batch_max, NULL, &vit, &error), TF_OK, "%s", error.text);
  tf_gguf_close(&file); /* the weights are packed: nothing points into it */
  return vit;
}

/* Runs the golden batch in passes of batch_max images. */
static void compare(const char *model, const char *golden_path, int64_t batch_max, int threads) {
  tf_gguf *golden = open_golden(golden_path);
  tf_vit *vit = load_vit(model, batch_max);
  const tf_vit_config *config = tf_vit_configuration(vit);
  tf_pool *pool = tf_pool_new(threads);
  int64_t image = 3 * config->image_size * config->image_size, features = config->patches * config->width, count;
  float *input = golden_floats(golden, "input", &count);
  cr_assert_eq(count, BATCH * image);
  float *expected = golden_floats(golden, "output", &count);
  cr_assert_eq(count, BATCH * features);
  float *out = calloc((size_t)count, sizeof *out);
  for (int64_t first = 0; first < BATCH; first += batch_max) {
    stages context = {.golden = golden, .config = config, .batch_first = first};
    tf_error error = {0};
    cr_assert_eq(tf_vit_run(vit, pool, input + first * image, batch_max, out + first * features, compare_stage,
                            &context, &error),
                 TF_OK, "%s", error.text);
    cr_assert_eq(context.seen, 1 + config->layer_count);
  }
  double difference = largest_difference(out, expected, count);
  cr_assert_leq(difference, TOLERANCE, "output: %g", difference);
  free(out);
  free(expected);
  free(input);
  tf_pool_free(&pool);
  tf_vit_free(&vit);
  tf_gguf_close(&golden);
}

Test(vit, dinov2_every_stage) {
  compare(GOLDEN_FOLDER "tiny/vision.gguf", GOLDEN_FOLDER "vit_tiny.gguf", 2, 2);
}
Test(vit, dinov2_one_image_at_a_time) {
  compare(GOLDEN_FOLDER "tiny/vision.gguf", GOLDEN_FOLDER "vit_tiny.gguf", 1, 1);
}
Test(vit, siglip_every_stage) {
  compare(GOLDEN_FOLDER "vision_siglip.gguf", GOLDEN_FOLDER "vit_siglip.gguf", 2, 2);
}
Test(vit, clip_every_stage) {
  compare(GOLDEN_FOLDER "vision_clip.gguf", GOLDEN_FOLDER "vit_clip.gguf", 2, 2);
}

/* The same input through the weights that an adapter changes. */
Test(vit, lora_of_an_adapter) {
  tf_gguf *golden = open_golden(GOLDEN_FOLDER "vit_tiny.gguf"), *file = open_golden(GOLDEN_FOLDER "tiny/vision.gguf");
  tf_gguf *adapter = open_golden(GOLDEN_FOLDER "tiny/adapter.gguf");
  tf_vit *vit = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_vit_load(file, adapter, BATCH, NULL, &vit, &error), TF_OK, "%s", error.text);
  tf_gguf_close(&adapter); /* merged: nothing points into it */
  tf_gguf_close(&file);
  tf_pool *pool = tf_pool_new(2);
  int64_t count, plain_count;
  float *input = golden_floats(golden, "input", NULL), *expected = golden_floats(golden, "output_lora", &count);
  float *plain = golden_floats(golden, "output", &plain_count), *out = calloc((size_t)count, sizeof *out);
  cr_assert_eq(tf_vit_run(vit, pool, input, BATCH, out, NULL, NULL, &error), TF_OK, "%s", error.text);
  double difference = largest_difference(out, expected, count);
  cr_assert_leq(difference, TOLERANCE, "output: %g", difference);
  cr_assert_eq(plain_count, count);
  cr_assert_gt(largest_difference(expected, plain, count), 100 * TOLERANCE, "the LoRA changes hardly anything");
  free(out);
  free(plain);
  free(expected);
  free(input);
  tf_pool_free(&pool);
  tf_vit_free(&vit);
  tf_gguf_close(&golden);
}

Test(vit, refuses_the_lora_of_another_vit) {
  tf_gguf *adapter = open_golden(GOLDEN_FOLDER "tiny/adapter.gguf");
  tf_gguf *file = open_golden(GOLDEN_FOLDER "vision_clip.gguf"); /* of another width */
  tf_vit *vit = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_vit_load(file, adapter, 1, NULL, &vit, &error), TF_ERR_MODEL_INVALID);
  cr_assert_null(vit);
  cr_assert(strstr(error.text, "tiny/adapter.gguf: tensor vision.blk.0.attn_q.weight.lora_a") != NULL, "%s",
            error.text);
  tf_gguf_close(&file);
  tf_gguf_close(&adapter);
}

Test(vit, refuses_a_batch_beyond_its_workspace) {
  tf_vit *vit = load_vit(GOLDEN_FOLDER "tiny/vision.gguf", 1);
  tf_pool *pool = tf_pool_new(1);
  float dummy = 0;
  tf_error error = {0};
  cr_assert_eq(tf_vit_run(vit, pool, &dummy, 2, &dummy, NULL, NULL, &error), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(tf_vit_run(vit, pool, &dummy, 0, &dummy, NULL, NULL, &error), TF_ERR_INVALID_ARGUMENT);
  tf_pool_free(&pool);
  tf_vit_free(&vit);
}

Test(vit, refuses_another_kind_of_file) {
  const char *paths[] = {GOLDEN_FOLDER "tiny/adapter.gguf", GOLDEN_FOLDER "tiny/llm.gguf", GOLDEN_FOLDER "pool.gguf"};
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    tf_gguf *file = open_golden(paths[i]);
    tf_vit *vit = NULL;
    tf_error error = {0};
    cr_assert_eq(tf_vit_load(file, NULL, 1, NULL, &vit, &error), TF_ERR_MODEL_INVALID);
    cr_assert_null(vit);
    cr_assert(strstr(error.text, paths[i]) != NULL, "%s", error.text);
    tf_gguf_close(&file);
  }
}

/* A model whose bytes are damaged one at a time is loaded or refused, never read out of bounds (asan watches). */
Test(vit, survives_damaged_headers) {
  FILE *stream = fopen(GOLDEN_FOLDER "vision_siglip.gguf", "rb");
  cr_assert_not_null(stream);
  static uint8_t bytes[1 << 20];
  size_t size = fread(bytes, 1, sizeof bytes, stream);
  fclose(stream);
  cr_assert(size > 4096 && size < sizeof bytes);
  int loaded = 0, refused = 0;
  for (size_t at = 0; at < 4096; at += 7) {
    uint8_t before = bytes[at];
    bytes[at] ^= (uint8_t)(1u << (at % 8));
    tf_gguf *file = NULL;
    tf_vit *vit = NULL;
    tf_error error = {0};
    tf_code code = tf_gguf_parse(bytes, size, "damaged", &file, &error);
    if (code == TF_OK) code = tf_vit_load(file, NULL, 1, NULL, &vit, &error);
    code == TF_OK ? loaded++ : refused++;
    tf_vit_free(&vit);
    tf_gguf_close(&file);
    bytes[at] = before;
  }
  cr_assert(loaded > 0 && refused > 0, "%d loaded, %d refused", loaded, refused);
}

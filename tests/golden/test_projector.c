/* Pooling and projection against PyTorch, and the whole encoder of the tiny model. In: projector.gguf, the tiny folder.
 * Out: every value within 1e-4: f32 sums over 48 and 96 terms of values up to about 10 round by some 1e-6 each. */
#include <stdio.h>
#include <string.h>

#include "encoder-svc/encoder.h"
#include "encoder-svc/projector.h"
#include "encoder-svc/vit.h"
#include "tests/golden/vision_golden.h"

static const double TOLERANCE = 1e-4;
static const uint32_t token_counts[] = {4, 9, 16};
enum { TOKEN_COUNTS = sizeof token_counts / sizeof *token_counts };

static tf_projector *load_projector(void) {
  tf_gguf *file = open_golden(GOLDEN_FOLDER "tiny/adapter.gguf");
  tf_projector *projector = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_projector_load(file, NULL, &projector, &error), TF_OK, "%s", error.text);
  tf_gguf_close(&file);
  return projector;
}

Test(projector, every_token_count_equals_torch) {
  tf_gguf *golden = open_golden(GOLDEN_FOLDER "projector.gguf");
  tf_projector *projector = load_projector();
  tf_pool *pool = tf_pool_new(2);
  float *input = golden_floats(golden, "input", NULL);
  for (int i = 0; i < TOKEN_COUNTS; i++) {
    char name[64];
    int64_t count;
    snprintf(name, sizeof name, "output.%u", (unsigned)token_counts[i]);
    float *expected = golden_floats(golden, name, &count);
    cr_assert_eq(count, token_counts[i] * tf_projector_llm_width(projector));
    float *out = malloc((size_t)count * sizeof *out);
    tf_error error = {0};
    cr_assert_eq(tf_projector_run(projector, pool, input, token_counts[i], out, &error), TF_OK, "%s", error.text);
    double difference = largest_difference(out, expected, count);
    cr_assert_leq(difference, TOLERANCE, "%s: %g", name, difference);
    free(out);
    free(expected);
  }
  free(input);
  tf_pool_free(&pool);
  tf_projector_free(&projector);
  tf_gguf_close(&golden);
}

Test(projector, other_token_counts_are_refused) {
  tf_projector *projector = load_projector();
  float dummy = 0;
  tf_error error = {0};
  const uint32_t others[] = {0, 1, 8, 25, 0xFFFFFFFF};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    cr_assert_not(tf_projector_supports(projector, others[i]));
    cr_assert_eq(tf_projector_run(projector, NULL, &dummy, others[i], &dummy, &error),
                 TF_ERR_VISION_TOKENS_UNSUPPORTED);
  }
  tf_projector_free(&projector);
}

Test(projector, refuses_another_kind_of_file) {
  tf_gguf *file = open_golden(GOLDEN_FOLDER "tiny/vision.gguf");
  tf_projector *projector = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_projector_load(file, NULL, &projector, &error), TF_ERR_MODEL_INVALID);
  cr_assert_null(projector);
  tf_gguf_close(&file);
}

/* ---- the whole encoder ---- */

static tf_model_dir tiny_model(void) {
  tf_model_dir model;
  tf_error error = {0};
  cr_assert_eq(tf_model_dir_open(GOLDEN_FOLDER "tiny", &model, &error), TF_OK, "%s", error.text);
  return model;
}

static tf_encoder *load_tiny_encoder(void) {
  tf_model_dir model = tiny_model();
  tf_encoder *encoder = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_encoder_load(&model, NULL, &encoder, &error), TF_OK, "%s", error.text);
  return encoder;
}

enum { BATCH = 11, LLM_WIDTH = 64, TOKENS_MAX = 16 }; /* more than one pass of the ViT holds */

/* Eleven images, N mixed, in one call equal the same images one by one. */
Test(encoder, a_batch_equals_its_images_alone) {
  tf_encoder *encoder = load_tiny_encoder();
  tf_pool *pool = tf_pool_new(2);
  int64_t image = 3 * (int64_t)tf_encoder_image_size(encoder) * tf_encoder_image_size(encoder);
  cr_assert_eq(tf_encoder_llm_width(encoder), LLM_WIDTH);
  float *pixels = malloc((size_t)(BATCH * image) * sizeof *pixels);
  for (int64_t i = 0; i < BATCH * image; i++) pixels[i] = (float)((i * 2654435761u) % 1000) / 250.0f - 2;
  static float together[BATCH][TOKENS_MAX * LLM_WIDTH], alone[TOKENS_MAX * LLM_WIDTH];
  uint32_t counts[BATCH];
  float *outs[BATCH], *one = alone;
  for (int i = 0; i < BATCH; i++) {
    counts[i] = token_counts[i % TOKEN_COUNTS];
    outs[i] = together[i];
  }
  tf_error error = {0};
  cr_assert_eq(tf_encoder_run(encoder, pool, pixels, BATCH, counts, outs, &error), TF_OK, "%s", error.text);
  for (int i = 0; i < BATCH; i++) {
    cr_assert_eq(tf_encoder_run(encoder, pool, pixels + i * image, 1, &counts[i], &one, &error), TF_OK);
    double difference = largest_difference(together[i], alone, counts[i] * LLM_WIDTH);
    cr_assert_leq(difference, TOLERANCE, "image %d: %g", i, difference);
    cr_assert(i == 0 || largest_difference(together[i], together[0], 4 * LLM_WIDTH) > 1e-2, "images give equal tokens");
  }
  free(pixels);
  tf_pool_free(&pool);
  tf_encoder_free(&encoder);
}

Test(encoder, unsupported_token_count_is_refused_before_the_work) {
  tf_encoder *encoder = load_tiny_encoder();
  float dummy = 0, *out = &dummy;
  uint32_t tokens = 5;
  tf_error error = {0};
  cr_assert_not(tf_encoder_supports(encoder, 5));
  cr_assert(tf_encoder_supports(encoder, 9));
  cr_assert_eq(tf_encoder_run(encoder, NULL, &dummy, 1, &tokens, &out, &error), TF_ERR_VISION_TOKENS_UNSUPPORTED);
  cr_assert_eq(tf_encoder_run(encoder, NULL, &dummy, 0, &tokens, &out, &error), TF_ERR_INVALID_ARGUMENT);
  tf_encoder_free(&encoder);
}

/* The adapter of one model with the ViT of another is refused at load, not at the first image. */
Test(encoder, parts_that_do_not_fit_are_refused) {
  tf_model_dir model = tiny_model();
  snprintf(model.vision_path, sizeof model.vision_path, "%s", GOLDEN_FOLDER "vision_siglip.gguf");
  tf_encoder *encoder = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_encoder_load(&model, NULL, &encoder, &error), TF_ERR_MODEL_INVALID);
  cr_assert_null(encoder);
  cr_assert(strstr(error.text, "image size is 32 in vision.gguf, 56 in adapter.gguf") != NULL, "%s", error.text);
}

Test(encoder, a_missing_file_is_an_error) {
  tf_model_dir model = tiny_model();
  snprintf(model.vision_path, sizeof model.vision_path, "%s", "/nowhere/vision.gguf");
  tf_encoder *encoder = NULL;
  tf_error error = {0};
  cr_assert_neq(tf_encoder_load(&model, NULL, &encoder, &error), TF_OK);
  cr_assert_null(encoder);
}

/* The real ViT against onnxruntime on the published ONNX file. In: the installed model folder, real_vit.gguf.
 * Out: features within 1e-3 (they reach about 10; twelve layers of f32 sums in another order differ by some 1e-5).
 * The model is needed: without it the test fails and names the command that gets it. */
#include <string.h>

#include "encoder-svc/encoder.h"
#include "encoder-svc/vit.h"
#include "tests/golden/vision_golden.h"

static const double TOLERANCE = 1e-3;

static tf_model_dir installed_model(void) {
  tf_model_dir model;
  tf_error error = {0}, second = {0};
  /* Test programs lie deeper than the services, so build/model is named here as well. */
  if (tf_model_dir_open(NULL, &model, &error) != TF_OK && tf_model_dir_open("build/model", &model, &second) != TF_OK)
    cr_assert_fail("the model is not installed; run `make model` (%s)", error.text);
  return model;
}

/* rgb: [side, side, 3] repeated `upscale` times both ways, normalised -> [3, size, size]; the caller frees. */
static float *golden_pixels(const tf_gguf *golden, const tf_vit_config *config) {
  uint64_t upscale = 0;
  cr_assert(tf_gguf_u64(golden, "upscale", &upscale));
  int64_t side = golden_shape(golden, "rgb", 0), size = config->image_size;
  cr_assert_eq(side * (int64_t)upscale, size);
  float *rgb = golden_floats(golden, "rgb", NULL);
  float *pixels = malloc((size_t)(3 * size * size) * sizeof *pixels);
  for (int64_t c = 0; c < 3; c++)
    for (int64_t y = 0; y < size; y++)
      for (int64_t x = 0; x < size; x++) {
        float value = rgb[((y / (int64_t)upscale) * side + x / (int64_t)upscale) * 3 + c];
        pixels[(c * size + y) * size + x] = (value / 255.0f - config->image_mean[c]) / config->image_std[c];
      }
  free(rgb);
  return pixels;
}

Test(vision_real, features_equal_onnxruntime) {
  tf_model_dir model = installed_model();
  tf_gguf *golden = open_golden(GOLDEN_FOLDER "real_vit.gguf"), *file = open_golden(model.vision_path);
  tf_vit *vit = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_vit_load(file, NULL, 1, NULL, &vit, &error), TF_OK, "%s", error.text);
  tf_gguf_close(&file);
  const tf_vit_config *config = tf_vit_configuration(vit);
  uint64_t stride = 0;
  int64_t count;
  cr_assert(tf_gguf_u64(golden, "stride", &stride) && stride > 0);
  float *expected = golden_floats(golden, "features", &count), *pixels = golden_pixels(golden, config);
  float *out = malloc((size_t)(config->patches * config->width) * sizeof *out);
  tf_pool *pool = tf_pool_new(0);
  cr_assert_eq(tf_vit_run(vit, pool, pixels, 1, out, NULL, NULL, &error), TF_OK, "%s", error.text);
  cr_assert_eq(count, config->patches / (int64_t)stride * config->width);
  double largest = 0;
  for (int64_t i = 0; i < config->patches / (int64_t)stride; i++) {
    double difference =
        largest_difference(out + i * (int64_t)stride * config->width, expected + i * config->width, config->width);
    if (difference > largest) largest = difference;
  }
  cr_log_info("largest difference %g", largest);
  cr_assert_leq(largest, TOLERANCE, "%g", largest);
  tf_pool_free(&pool);
  free(out);
  free(pixels);
  free(expected);
  tf_vit_free(&vit);
  tf_gguf_close(&golden);
}

Test(vision_real, every_token_count_of_the_adapter_gives_finite_tokens) {
  tf_model_dir model = installed_model();
  tf_encoder *encoder = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_encoder_load(&model, NULL, &encoder, &error), TF_OK, "%s", error.text);
  int64_t size = tf_encoder_image_size(encoder), width = tf_encoder_llm_width(encoder);
  uint8_t *rgb = malloc((size_t)(size * size * 3));
  for (int64_t i = 0; i < size * size * 3; i++) rgb[i] = (uint8_t)(i / 3 % size + i % 3 * 40);
  tf_image image = {.width = (int32_t)size, .height = (int32_t)size, .rgb = rgb};
  float *pixels = malloc((size_t)(3 * size * size) * sizeof *pixels);
  cr_assert_eq(tf_encoder_preprocess(encoder, &image, pixels, &error), TF_OK, "%s", error.text);
  tf_pool *pool = tf_pool_new(0);
  for (uint32_t i = 0; i < model.token_count_count; i++) {
    uint32_t tokens = model.token_counts[i];
    cr_assert(tf_encoder_supports(encoder, tokens));
    float *out = malloc((size_t)(tokens * width) * sizeof *out);
    cr_assert_eq(tf_encoder_run(encoder, pool, pixels, 1, &tokens, &out, &error), TF_OK, "%s", error.text);
    double square = 0;
    for (int64_t k = 0; k < tokens * width; k++) square += (double)out[k] * out[k];
    /* Trained to the size of a word's embedding (about 3.25): far off means that something is wired wrongly. */
    double norm = sqrt(square / tokens);
    cr_assert(norm > 0.3 && norm < 30, "%u tokens have a norm of %g", (unsigned)tokens, norm);
    free(out);
  }
  tf_pool_free(&pool);
  free(pixels);
  tf_image_free(&image);
  tf_encoder_free(&encoder);
}

/* The default path (int8 where there are kernels for it) against f32 on the real model and the examples.
 * In: the installed model, examples/. Out: features and captions compared.
 * Tolerances: cosine of an image's features to f32's at least 0.999 on average and 0.998 at worst (measured: 0.9996 and
 * 0.9992); at least half of the captions equal f32's word for word. That share says little about quality: a greedy
 * caption turns on the smallest gap between two words, and CIDEr is the same within 1% (SPEED.md). It shows that the
 * path is not broken: noise in its place gives none. */
#include <string.h>
#include <sys/stat.h>

#include "encoder-svc/encoder.h"
#include "encoder-svc/vit.h"
#include "llm-svc/engine.h"
#include "tests/golden/llm_golden.h"

static const char *const IMAGES[] = {"astronaut",    "cat",    "coffee", "dogs",   "moose",  "mountains", "panda",
                                     "photographer", "rocket", "stream", "street", "temple", "volleyball"};
enum { IMAGE_COUNT = sizeof IMAGES / sizeof *IMAGES, VISION_TOKENS = 64, TEXT_BYTES = 512 };

typedef struct captioner {
  tf_model_dir model;
  tf_pool *pool;
  tf_vit *vit;
  tf_encoder *encoder;
  tf_engine *engine;
} captioner;

static captioner load(const char *compute) {
  captioner self = {.model = installed_model(), .pool = tf_pool_new(0)};
  tf_error error = {0};
  cr_assert_eq(tf_cpu_use(NULL, compute, &error), TF_OK, "%s", error.text);
  tf_gguf *file = open_golden(self.model.vision_path), *adapter = open_golden(self.model.adapter_path);
  cr_assert_eq(tf_vit_load(file, adapter, 1, NULL, &self.vit, &error), TF_OK, "%s", error.text);
  tf_gguf_close(&adapter);
  tf_gguf_close(&file);
  cr_assert_eq(tf_encoder_load(&self.model, NULL, &self.encoder, &error), TF_OK, "%s", error.text);
  tf_engine_config config = {.sequences_max = 16, .kv_tokens_max = 4096};
  cr_assert_eq(tf_engine_load(&self.model, &config, self.pool, &self.engine, &error), TF_OK, "%s", error.text);
  return self;
}

static void unload(captioner *self) {
  tf_engine_free(&self->engine);
  tf_encoder_free(&self->encoder);
  tf_vit_free(&self->vit);
  tf_pool_free(&self->pool);
}

/* [3, side, side]; the caller frees. */
static float *pixels_of(const captioner *self, const char *name) {
  char path[256];
  snprintf(path, sizeof path, "examples/%s.jpg", name);
  FILE *file = fopen(path, "rb");
  cr_assert_not_null(file, "%s", path);
  struct stat status;
  cr_assert_eq(fstat(fileno(file), &status), 0);
  size_t size = (size_t)status.st_size;
  uint8_t *bytes = malloc(size);
  cr_assert_eq(fread(bytes, 1, size, file), size);
  fclose(file);
  int32_t side = tf_encoder_image_size(self->encoder);
  tf_image_limits limits = {.pixels_max = 250000000, .side_wanted = side};
  tf_image image = {0};
  tf_error error = {0};
  cr_assert_eq(tf_image_decode(bytes, size, &limits, &image, &error), TF_OK, "%s: %s", path, error.text);
  float *pixels = malloc((size_t)side * (size_t)side * 3 * sizeof *pixels);
  cr_assert_eq(tf_encoder_preprocess(self->encoder, &image, pixels, &error), TF_OK, "%s", error.text);
  tf_image_free(&image);
  free(bytes);
  return pixels;
}

static void caption_all(const captioner *self, float *const *pixels, char (*captions)[TEXT_BYTES]) {
  tf_error error = {0};
  uint32_t tokens = VISION_TOKENS;
  float *vision = malloc((size_t)VISION_TOKENS * (size_t)tf_encoder_llm_width(self->encoder) * sizeof *vision);
  for (int i = 0; i < IMAGE_COUNT; i++) {
    cr_assert_eq(tf_encoder_run(self->encoder, self->pool, pixels[i], 1, &tokens, &vision, &error), TF_OK, "%s",
                 error.text);
    tf_engine_request request = {.handle = (uint64_t)i, .vision = vision, .vision_tokens = tokens};
    cr_assert_eq(tf_engine_submit(self->engine, &request, &error), TF_OK, "%s", error.text);
  }
  free(vision);
  const tf_engine_event *events;
  size_t count;
  while (tf_engine_step(self->engine, &events, &count)) {
    for (size_t i = 0; i < count; i++) {
      cr_assert_eq(events[i].kind, TF_ENGINE_DONE, "%s", events[i].text);
      snprintf(captions[events[i].handle], TEXT_BYTES, "%s", events[i].text);
    }
  }
}

static double cosine(const float *a, const float *b, int64_t count) {
  double product = 0, of_a = 0, of_b = 0;
  for (int64_t i = 0; i < count; i++) {
    product += (double)a[i] * (double)b[i];
    of_a += (double)a[i] * (double)a[i];
    of_b += (double)b[i] * (double)b[i];
  }
  return product / sqrt(of_a * of_b);
}

static void compare_features(const captioner *exact, const captioner *fast, float *const *pixels) {
  const tf_vit_config *config = tf_vit_configuration(fast->vit);
  int64_t count = config->patches * config->width;
  float *expected = malloc((size_t)count * sizeof *expected), *got = malloc((size_t)count * sizeof *got);
  double worst = 1, mean = 0;
  tf_error error = {0};
  for (int i = 0; i < IMAGE_COUNT; i++) {
    cr_assert_eq(tf_vit_run(exact->vit, exact->pool, pixels[i], 1, expected, NULL, NULL, &error), TF_OK);
    cr_assert_eq(tf_vit_run(fast->vit, fast->pool, pixels[i], 1, got, NULL, NULL, &error), TF_OK);
    double now = cosine(expected, got, count);
    worst = now < worst ? now : worst;
    mean += now / IMAGE_COUNT;
  }
  cr_log_info("cosine of features: mean %.5f, worst %.5f", mean, worst);
  cr_assert(mean >= 0.999 && worst >= 0.998, "mean %.5f, worst %.5f", mean, worst);
  free(expected);
  free(got);
}

Test(fast, the_default_path_keeps_features_and_captions, .timeout = 300) {
  static char expected[IMAGE_COUNT][TEXT_BYTES], got[IMAGE_COUNT][TEXT_BYTES];
  captioner exact = load("f32"), fast = load("auto");
  float *pixels[IMAGE_COUNT];
  for (int i = 0; i < IMAGE_COUNT; i++) pixels[i] = pixels_of(&exact, IMAGES[i]);
  compare_features(&exact, &fast, pixels);
  caption_all(&exact, pixels, expected);
  caption_all(&fast, pixels, got);
  int equal = 0;
  for (int i = 0; i < IMAGE_COUNT; i++) equal += strcmp(expected[i], got[i]) == 0;
  cr_log_info("%d of %d captions are f32's", equal, (int)IMAGE_COUNT);
  cr_assert_geq(2 * equal, IMAGE_COUNT, "%d of %d", equal, (int)IMAGE_COUNT);
  for (int i = 0; i < IMAGE_COUNT; i++) free(pixels[i]);
  unload(&exact);
  unload(&fast);
}

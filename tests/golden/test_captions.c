/* The whole way, real weights: the examples' greedy captions equal PyTorch's at 64, 144 and 256 tokens, alone and in a
 * batch of 16. In: the installed model, examples/, captions.gguf. Out: equal text; where PyTorch's own smallest gap
 * between the two best logits is under 1e-3 a difference is excused and counted: there the order of f32 sums decides.
 */
#include <string.h>
#include <sys/stat.h>

#include "encoder-svc/encoder.h"
#include "llm-svc/engine.h"
#include "tests/golden/vision_golden.h"

static const double MARGIN_EXCUSED = 1e-3;
enum { BATCH = 16, CASES_MAX = 256 };

typedef struct captioner {
  tf_model_dir model;
  tf_pool *pool;
  tf_encoder *encoder;
  tf_engine *engine;
  tf_gguf *golden;
  uint64_t cases, new_tokens_max;
} captioner;

/* One line of the golden file. */
typedef struct expectation {
  char image[128], caption[1024];
  uint32_t vision_tokens;
  double margin_min;
} expectation;

static captioner setup(void) {
  captioner self = {.pool = tf_pool_new(0)};
  tf_error error = {0};
  cr_assert_eq(tf_model_dir_open("build/model", &self.model, &error), TF_OK, "run `make model` (%s)", error.text);
  cr_assert_eq(tf_encoder_load(&self.model, NULL, &self.encoder, &error), TF_OK, "%s", error.text);
  tf_engine_config config = {.batch_rows_max = 512, .sequences_max = BATCH, .waiting_max = 64, .kv_tokens_max = 8192};
  cr_assert_eq(tf_engine_load(&self.model, &config, self.pool, &self.engine, &error), TF_OK, "%s", error.text);
  self.golden = open_golden(GOLDEN_FOLDER "captions.gguf");
  self.cases = tf_gguf_array_count(self.golden, "image");
  cr_assert(self.cases >= 24 && self.cases <= CASES_MAX, "%d cases", (int)self.cases);
  cr_assert(tf_gguf_u64(self.golden, "new_tokens_max", &self.new_tokens_max));
  return self;
}

static void teardown(captioner *self) {
  tf_gguf_close(&self->golden);
  tf_engine_free(&self->engine);
  tf_encoder_free(&self->encoder);
  tf_pool_free(&self->pool);
}

static void copy_string(const tf_gguf *file, const char *key, uint64_t index, char *out, size_t out_bytes) {
  const char *text;
  size_t size;
  cr_assert(tf_gguf_array_string(file, key, index, &text, &size) && size < out_bytes);
  memcpy(out, text, size);
  out[size] = 0;
}

static expectation expected(const captioner *self, uint64_t index) {
  expectation out;
  uint64_t count;
  copy_string(self->golden, "image", index, out.image, sizeof out.image);
  copy_string(self->golden, "caption", index, out.caption, sizeof out.caption);
  cr_assert(tf_gguf_array_u64(self->golden, "vision_tokens", index, &count));
  cr_assert(tf_gguf_array_f64(self->golden, "margin_min", index, &out.margin_min));
  out.vision_tokens = (uint32_t)count;
  return out;
}

/* [vision_tokens, llm_width]; the caller frees. */
static float *encode(const captioner *self, const expectation *want) {
  char path[256];
  snprintf(path, sizeof path, "examples/%s", want->image);
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
  float *out = malloc((size_t)want->vision_tokens * (size_t)tf_encoder_llm_width(self->encoder) * sizeof *out);
  cr_assert_eq(tf_encoder_run(self->encoder, self->pool, pixels, 1, &want->vision_tokens, &out, &error), TF_OK, "%s",
               error.text);
  tf_image_free(&image);
  free(bytes);
  free(pixels);
  return out;
}

static void submit(const captioner *self, uint64_t handle, const float *vision, uint32_t vision_tokens) {
  tf_error error = {0};
  tf_engine_request request = {.handle = handle,
                               .vision = vision,
                               .vision_tokens = vision_tokens,
                               .sampling = {.max_new_tokens = (uint32_t)self->new_tokens_max}};
  cr_assert_eq(tf_engine_submit(self->engine, &request, &error), TF_OK, "%s", error.text);
}

/* Steps until nothing is left; captions[handle] (capacity 1024 each). */
static void finish(const captioner *self, char (*captions)[1024]) {
  const tf_engine_event *events;
  size_t count;
  while (tf_engine_step(self->engine, &events, &count)) {
    for (size_t i = 0; i < count; i++) {
      cr_assert_eq(events[i].kind, TF_ENGINE_DONE, "%s", events[i].text);
      snprintf(captions[events[i].handle], sizeof *captions, "%s", events[i].text);
    }
  }
}

Test(captions, equal_pytorch_at_every_count) {
  captioner self = setup();
  uint32_t excused = 0;
  for (uint64_t i = 0; i < self.cases; i++) {
    expectation want = expected(&self, i);
    static char got[1][1024];
    float *vision = encode(&self, &want);
    submit(&self, 0, vision, want.vision_tokens);
    finish(&self, got);
    free(vision);
    if (strcmp(got[0], want.caption) == 0) continue;
    cr_assert(want.margin_min < MARGIN_EXCUSED, "%s at %u tokens: '%s', PyTorch says '%s' (margin %g)", want.image,
              want.vision_tokens, got[0], want.caption, want.margin_min);
    excused++;
  }
  cr_log_info("%d captions, %u excused", (int)self.cases, excused);
  teardown(&self);
}

Test(captions, the_same_in_a_batch_of_16) {
  captioner self = setup();
  static char got[BATCH][1024];
  expectation want[BATCH];
  float *vision[BATCH];
  uint64_t stride = self.cases / BATCH; /* so that all counts and many photos are in one batch */
  for (uint64_t i = 0; i < BATCH; i++) {
    want[i] = expected(&self, i * stride);
    vision[i] = encode(&self, &want[i]);
  }
  for (uint64_t i = 0; i < BATCH; i++) submit(&self, i, vision[i], want[i].vision_tokens);
  cr_assert_eq(tf_engine_load_state(self.engine).waiting, BATCH);
  finish(&self, got);
  for (uint64_t i = 0; i < BATCH; i++) {
    cr_expect(strcmp(got[i], want[i].caption) == 0 || want[i].margin_min < MARGIN_EXCUSED,
              "%s at %u tokens in a batch: '%s', alone '%s'", want[i].image, want[i].vision_tokens, got[i],
              want[i].caption);
    free(vision[i]);
  }
  teardown(&self);
}

/* The encoder's stages tied together. In: a model folder, decoded images, batches of pixels with an N each.
 * Out: [N, llm_width] an image, written straight into the caller's memory.
 * Checks that the ViT and the adapter fit each other; what each file says by itself is checked where it is loaded. */
#include "encoder-svc/encoder.h"

#include <stdlib.h>

#include "encoder-svc/preprocess.h"
#include "encoder-svc/projector.h"
#include "encoder-svc/vit.h"

/* Images in one pass of the ViT; larger batches take several. More only costs memory: 8 images of 257 tokens already
 * make matrices of 2056 rows. */
enum { PASS_IMAGES_MAX = 8 };

struct tf_encoder {
  tf_vit *vit;
  tf_projector *projector;
  tf_pack_store *store; /* NULL: none */
  float *features;      /* [PASS_IMAGES_MAX, patches, width], the ViT's output */
};

/* Before the ViT's weights are packed: another model's adapter is refused at once, and for what it is. */
static tf_code check_fit(const tf_vit_config *config, const tf_projector *projector, const tf_model_dir *model,
                         tf_error *error) {
  const struct {
    const char *what;
    int64_t vision, adapter;
  } facts[] = {{"image size", config->image_size, tf_projector_image_size(projector)},
               {"patch grid", config->grid, tf_projector_grid(projector)},
               {"vision width", config->width, tf_projector_vision_width(projector)}};
  for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
    if (facts[i].vision != facts[i].adapter)
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%.200s: %s is %lld in vision.gguf, %lld in adapter.gguf",
                     model->path, facts[i].what, (long long)facts[i].vision, (long long)facts[i].adapter);
  return TF_OK;
}

static tf_code load_files(tf_encoder *self, const tf_model_dir *model, const tf_gguf *vision, const tf_gguf *adapter,
                          tf_error *error) {
  tf_vit_config config;
  tf_code code = tf_projector_load(adapter, self->store, &self->projector, error);
  if (code == TF_OK) code = tf_vit_read_config(vision, &config, error);
  if (code == TF_OK) code = check_fit(&config, self->projector, model, error);
  if (code == TF_OK) code = tf_vit_load(vision, adapter, PASS_IMAGES_MAX, self->store, &self->vit, error);
  return code;
}

static tf_code load_models(tf_encoder *self, const tf_model_dir *model, tf_error *error) {
  tf_gguf *vision = NULL, *adapter = NULL;
  tf_code code = tf_gguf_open(model->adapter_path, &adapter, error);
  if (code == TF_OK) code = tf_gguf_open(model->vision_path, &vision, error);
  if (code == TF_OK) code = load_files(self, model, vision, adapter, error);
  tf_gguf_close(&vision);
  tf_gguf_close(&adapter);
  return code;
}

tf_code tf_encoder_load(const tf_model_dir *model, const tf_pack_place *cache, tf_encoder **out, tf_error *error) {
  *out = NULL;
  tf_encoder *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the encoder");
  self->store = tf_pack_store_open(cache, "encoder", model->pair_hash);
  tf_code code = load_models(self, model, error);
  if (code == TF_OK) {
    const tf_vit_config *config = tf_vit_configuration(self->vit);
    self->features = calloc((size_t)(PASS_IMAGES_MAX * config->patches * config->width), sizeof *self->features);
    if (self->features == NULL) code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the ViT's features");
  }
  if (code != TF_OK) {
    tf_encoder_free(&self);
    return code;
  }
  tf_pack_store_save(self->store);
  *out = self;
  return TF_OK;
}

void tf_encoder_free(tf_encoder **self) {
  tf_encoder *encoder = *self;
  if (encoder == NULL) return;
  tf_pack_store_end(encoder->store);
  tf_vit_free(&encoder->vit);
  tf_projector_free(&encoder->projector);
  tf_pack_store_close(&encoder->store);
  free(encoder->features);
  free(encoder);
  *self = NULL;
}

int32_t tf_encoder_image_size(const tf_encoder *self) {
  return (int32_t)tf_vit_configuration(self->vit)->image_size;
}

int32_t tf_encoder_llm_width(const tf_encoder *self) {
  return (int32_t)tf_projector_llm_width(self->projector);
}

bool tf_encoder_supports(const tf_encoder *self, uint32_t vision_tokens) {
  return tf_projector_supports(self->projector, vision_tokens);
}

tf_code tf_encoder_preprocess(const tf_encoder *self, const tf_image *image, float *out, tf_error *error) {
  const tf_vit_config *config = tf_vit_configuration(self->vit);
  return tf_preprocess(image, (int32_t)config->image_size, config->image_mean, config->image_std, out, error);
}

size_t tf_encoder_feature_count(const tf_encoder *self) {
  const tf_vit_config *config = tf_vit_configuration(self->vit);
  return (size_t)config->patches * (size_t)config->width;
}

tf_code tf_encoder_see(tf_encoder *self, tf_pool *pool, const float *pixels, int32_t batch, float *features,
                       tf_error *error) {
  const tf_vit_config *config = tf_vit_configuration(self->vit);
  int64_t image_floats = 3 * config->image_size * config->image_size, feature_floats = config->patches * config->width;
  if (batch < 1) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "a batch of %d images", (int)batch);
  for (int32_t first = 0; first < batch; first += PASS_IMAGES_MAX) {
    int32_t count = batch - first < PASS_IMAGES_MAX ? batch - first : PASS_IMAGES_MAX;
    tf_code code = tf_vit_run(self->vit, pool, pixels + first * image_floats, count, features + first * feature_floats,
                              NULL, NULL, error);
    if (code != TF_OK) return code;
  }
  return TF_OK;
}

tf_code tf_encoder_project(tf_encoder *self, tf_pool *pool, const float *features, uint32_t vision_tokens, float *out,
                           tf_error *error) {
  return tf_projector_run(self->projector, pool, features, vision_tokens, out, error);
}

tf_code tf_encoder_run(tf_encoder *self, tf_pool *pool, const float *pixels, int32_t batch,
                       const uint32_t *vision_tokens, float *const *out, tf_error *error) {
  size_t image_floats = 3 * (size_t)tf_encoder_image_size(self) * (size_t)tf_encoder_image_size(self);
  if (batch < 1) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "a batch of %d images", (int)batch);
  for (int32_t i = 0; i < batch; i++)
    if (!tf_encoder_supports(self, vision_tokens[i])) /* before the ViT's work is spent */
      return tf_fail(error, TF_ERR_VISION_TOKENS_UNSUPPORTED,
                     "%u vision tokens are not among the adapter's token_counts", (unsigned)vision_tokens[i]);
  for (int32_t first = 0; first < batch; first += PASS_IMAGES_MAX) {
    int32_t count = batch - first < PASS_IMAGES_MAX ? batch - first : PASS_IMAGES_MAX;
    tf_code code = tf_encoder_see(self, pool, pixels + (size_t)first * image_floats, count, self->features, error);
    for (int32_t i = 0; code == TF_OK && i < count; i++)
      code = tf_encoder_project(self, pool, self->features + (size_t)i * tf_encoder_feature_count(self),
                                vision_tokens[first + i], out[first + i], error);
    if (code != TF_OK) return code;
  }
  return TF_OK;
}

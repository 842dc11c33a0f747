/* The encoder's compute, without sockets: pixels to projected vision tokens.
 * In: a model folder; batches of preprocessed images, each with its own N. Out: [N, llm_width] f32 an image.
 * Stages, a file each: image -> preprocess -> vit -> pool -> projector. */
#ifndef TF_ENCODER_ENCODER_H
#define TF_ENCODER_ENCODER_H

#include "image/image.h"
#include "tensor/model_dir.h"
#include "tensor/pack_store.h"
#include "tensor/parallel.h"

typedef struct tf_encoder tf_encoder;

/* Maps vision.gguf and adapter.gguf (its projector, and the ViT's LoRA), packs weights, or maps them from cache
 * (tensor/pack_store.h; NULL: none). The caller frees. */
tf_code tf_encoder_load(const tf_model_dir *model, const tf_pack_place *cache, tf_encoder **out, tf_error *error);
void tf_encoder_free(tf_encoder **self);
int32_t tf_encoder_image_size(const tf_encoder *self); /* side of the square input, 224 */
int32_t tf_encoder_llm_width(const tf_encoder *self);  /* columns of the output, 576 */
bool tf_encoder_supports(const tf_encoder *self, uint32_t vision_tokens);

/* One decoded image to the ViT's input: squashed to a square with Pillow's antialiased bicubic (8-bit, as Pillow
 * rounds), scaled to 0..1, normalised. out: [3, size, size]. Thread-safe on one encoder (read only). */
tf_code tf_encoder_preprocess(const tf_encoder *self, const tf_image *image, float *out, tf_error *error);

/* The two halves of tf_encoder_run, for features that are kept between them. pixels: [batch, 3, size, size];
 * features: [batch, tf_encoder_feature_count]. One caller at a time. */
size_t tf_encoder_feature_count(const tf_encoder *self); /* floats of one image: patches * ViT width */
tf_code tf_encoder_see(tf_encoder *self, tf_pool *pool, const float *pixels, int32_t batch, float *features,
                       tf_error *error);
/* features of one image -> out: [vision_tokens, llm_width]. Errors: VISION_TOKENS_UNSUPPORTED. */
tf_code tf_encoder_project(tf_encoder *self, tf_pool *pool, const float *features, uint32_t vision_tokens, float *out,
                           tf_error *error);

/* pixels: [batch, 3, size, size]; vision_tokens: [batch]; out[i]: room for vision_tokens[i] * llm_width floats.
 * One ViT pass over the batch; then pool and project for each image. One caller at a time. */
tf_code tf_encoder_run(tf_encoder *self, tf_pool *pool, const float *pixels, int32_t batch,
                       const uint32_t *vision_tokens, float *const *out, tf_error *error);

#endif

/* A vision transformer described by its file: DINOv2, SigLIP and CLIP are configurations of the same code.
 * In: vision.gguf; batches of normalised pixels. Out: patch features, the class token dropped.
 * Source: Dosovitskiy et al. 2020 (ViT); LayerScale: Touvron et al. 2021. */
#ifndef TF_ENCODER_VIT_H
#define TF_ENCODER_VIT_H

#include "tensor/gguf.h"
#include "tensor/linear.h"
#include "tensor/parallel.h"

/* vision.gguf's metadata, prefix tokenflex.vision. */
typedef struct tf_vit_config {
  int64_t image_size, patch_size; /* pixels a side */
  int64_t grid;                   /* patches a side = image_size / patch_size, rest dropped as the convolution does */
  int64_t patches, tokens;        /* grid * grid; patches + class token */
  int64_t width, layer_count, head_count, mlp_width;
  int64_t position_grid; /* side of the stored position grid */
  float layer_norm_epsilon;
  tf_activation activation;
  bool class_token, pre_layer_norm, layer_scale, final_layer_norm;
  float image_mean[3], image_std[3]; /* of pixels scaled to 0..1 */
} tf_vit_config;

typedef struct tf_vit tf_vit;

/* The configuration alone. Errors: MODEL_INVALID. */
tf_code tf_vit_read_config(const tf_gguf *file, tf_vit_config *out, tf_error *error);

/* Reads and checks the configuration and every tensor, packs the weights (the LoRA that the adapter has for them
 * merged; NULL: none), resizes the positions to the grid and takes the workspace for batch_max images, so that a pass
 * itself takes no memory but attention's scratch. The files are not needed afterwards, the store (NULL: none) as long
 * as the ViT. The caller frees. Errors: MODEL_INVALID, OUT_OF_MEMORY. */
tf_code tf_vit_load(const tf_gguf *file, const tf_gguf *adapter, int64_t batch_max, tf_pack_store *store, tf_vit **out,
                    tf_error *error);
void tf_vit_free(tf_vit **self);
const tf_vit_config *tf_vit_configuration(const tf_vit *self);

/* Shown every stage of a pass (golden tests): "embeddings" (layer -1: after the positions, before a CLIP pre-norm) and
 * "block" (layer 0..). x: [batch, tokens, width], valid during the call. */
typedef void (*tf_vit_observer)(void *context, const char *stage, int64_t layer, const float *x, int64_t batch);

/* pixels: [batch, 3, image_size, image_size], batch 1..batch_max; out: [batch, patches, width], after the final norm.
 * observer may be NULL. One caller at a time. Errors: INVALID_ARGUMENT (batch), OUT_OF_MEMORY. */
tf_code tf_vit_run(tf_vit *self, tf_pool *pool, const float *pixels, int64_t batch, float *out,
                   tf_vit_observer observer, void *context, tf_error *error);

#endif

/* The projector: patch features of one image to N tokens of the LLM's width. In: adapter.gguf; [patches, vision_width].
 * Out: [N, llm_width] for any N that the adapter names; one set of weights serves every N.
 * y = Wg (SiLU(W1 u + b1) * (W2 u + b2)) + bg, u = LayerNorm(pool(x)); no residual, no norm after.  Source: TokenFLEX.
 */
#ifndef TF_ENCODER_PROJECTOR_H
#define TF_ENCODER_PROJECTOR_H

#include "encoder-svc/pool.h"
#include "tensor/gguf.h"
#include "tensor/pack_store.h"
#include "tensor/parallel.h"

typedef struct tf_projector tf_projector;

/* Checks metadata and tensors, packs the weights, makes the poolings and the workspace for the largest N. The file's
 * LoRAs are for the ViT and the LLM, and not looked at. The file is not needed afterwards, the store (NULL: none) as
 * long as the projector. The caller frees. Errors: MODEL_INVALID, OUT_OF_MEMORY. */
tf_code tf_projector_load(const tf_gguf *file, tf_pack_store *store, tf_projector **out, tf_error *error);
void tf_projector_free(tf_projector **self);
int64_t tf_projector_grid(const tf_projector *self);         /* patches a side that it expects */
int64_t tf_projector_image_size(const tf_projector *self);   /* pixels a side that it was trained on */
int64_t tf_projector_vision_width(const tf_projector *self); /* columns of its input */
int64_t tf_projector_llm_width(const tf_projector *self);    /* columns of its output */
bool tf_projector_supports(const tf_projector *self, uint32_t tokens);

/* x: [grid * grid, vision_width], out: [tokens, llm_width]; may not overlap. One caller at a time.
 * Errors: VISION_TOKENS_UNSUPPORTED. */
tf_code tf_projector_run(tf_projector *self, tf_pool *pool, const float *x, uint32_t tokens, float *out,
                         tf_error *error);

#endif

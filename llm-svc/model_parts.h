/* What model.c and model_load.c share: the decoder's weights.
 * In: model_load.c fills it from a GGUF file. Out: model.c reads it. Nobody else includes this. */
#ifndef TF_LLM_MODEL_PARTS_H
#define TF_LLM_MODEL_PARTS_H

#include "llm-svc/model.h"

typedef struct tf_llm_layer {
  float *attention_norm, *ffn_norm; /* [width] */
  tf_linear *qkv;                   /* width -> heads * head_dim, kv_heads * head_dim twice: joined parts */
  tf_linear *attention_output;      /* heads * head_dim -> width */
  tf_linear *gate_up, *down;        /* width -> ffn_width, SwiGLU; ffn_width -> width */
} tf_llm_layer;

struct tf_llm {
  tf_llm_config config;
  bool attention_bf16;        /* keys and values are kept in bf16 */
  tf_llm_layer *layers;       /* [config.layers] */
  float *output_norm;         /* [width] */
  tf_linear *output;          /* width -> vocabulary */
  const tf_tensor *embedding; /* [vocabulary, width] in the file; NULL: rows come from `output` */
};

#endif

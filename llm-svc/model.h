/* The decoder: GGUF's llama and qwen2 architectures, told apart by configuration alone.
 * In: rows of a batch (a token or an embedding each, with its position and its sequence's blocks). Out: logits of the
 * rows that ask for them. The keys and values of every row are stored in its sequence's blocks on the way. One block: x
 * += Wo attention(rope(Wq n), rope(Wk n), Wv n), n = rms_norm(x); x += Wdown(silu(Wgate m) * Wup m), m = rms_norm(x);
 * logits = Wout rms_norm(x). */
#ifndef TF_LLM_MODEL_H
#define TF_LLM_MODEL_H

#include "llm-svc/kv.h"
#include "tensor/gguf.h"
#include "tensor/ops.h"
#include "tensor/pack_store.h"

enum { TF_LLM_LAYERS_MAX = 512, TF_LLM_WIDTH_MAX = 1 << 16 };

typedef struct tf_llm_config {
  char architecture[16]; /* "llama", "qwen2" */
  uint32_t layers, width, heads, kv_heads, head_dim, ffn_width, vocabulary, context_tokens;
  float norm_epsilon;
  double rope_base;
  tf_rope_layout rope_layout;
} tf_llm_config;

typedef struct tf_llm tf_llm;

/* adapter: its LoRA (blk.L.NAME.weight.lora_a, .lora_b) is merged into the weights; NULL: none. file must outlive the
 * model, adapter need not. Packs the weights on the pool's threads, or takes them from the store (NULL: none), which
 * must outlive the model. The caller frees. Errors: MODEL_INVALID, UNSUPPORTED, OUT_OF_MEMORY; the text names file and
 * tensor. */
tf_code tf_llm_load(const tf_gguf *file, const tf_gguf *adapter, tf_pool *pool, tf_pack_store *store, tf_llm **out,
                    tf_error *error);
void tf_llm_free(tf_llm **self);
const tf_llm_config *tf_llm_configuration(const tf_llm *self);
/* What tf_kv_new needs to know: keys and values are f32 rows, or bf16 (tensor/attention_bf16.h). */
size_t tf_llm_kv_part_bytes(const tf_llm *self);

typedef struct tf_llm_row {
  int32_t token;          /* 0 .. vocabulary - 1; not read where there is an embedding */
  const float *embedding; /* [width], or NULL */
  int32_t position;       /* inside the blocks of table; all positions before it are stored or in this batch */
  const tf_kv_table *table;
  bool wants_logits;
} tf_llm_row;

/* Memory of one forward pass: activations, logits, pointers. One caller at a time. */
typedef struct tf_llm_scratch tf_llm_scratch;
/* Batches of at most rows_max rows, logits_max of which want logits, over kv_blocks_max blocks in all. */
tf_code tf_llm_scratch_new(const tf_llm *model, uint32_t rows_max, uint32_t logits_max, uint32_t kv_blocks_max,
                           tf_llm_scratch **out, tf_error *error);
void tf_llm_scratch_free(tf_llm_scratch **self);

/* Rows of one sequence must be neighbours, in the order of positions. *logits: [rows that want them, vocabulary], in
 * the order of rows, until the next call. Errors: OUT_OF_MEMORY. */
tf_code tf_llm_forward(const tf_llm *self, tf_pool *pool, tf_kv *kv, tf_llm_scratch *scratch, const tf_llm_row *rows,
                       uint32_t count, const float **logits, tf_error *error);

#endif

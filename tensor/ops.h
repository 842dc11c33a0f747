/* The small operations between matrix products: norms, activations, RoPE, soft maximum; and attention.
 * In, out: dense row-major f32. Rows are split over the pool; results do not depend on the number of threads. */
#ifndef TF_TENSOR_OPS_H
#define TF_TENSOR_OPS_H

#include "tensor/linear.h"

/* x, y: [rows, width]; y may be x. weight, bias: [width]. */
void tf_layer_norm(tf_pool *pool, const float *x, int64_t rows, int64_t width, const float *weight, const float *bias,
                   float epsilon, float *y);
/* One row, on the caller's thread. */
void tf_layer_norm_row(const float *x, int64_t width, const float *weight, const float *bias, float epsilon, float *y);
void tf_rms_norm_row(const float *x, int64_t width, const float *weight, float epsilon, float *y);
/* gate[i] = silu(gate[i]) * up[i] */
void tf_silu_multiply(tf_pool *pool, float *gate, const float *up, int64_t count);
/* One value, by libm: the reference. */
float tf_activate(tf_activation activation, float x);
/* count values in place, eight at a time: within 1e-6 * max(1, |x|) of the exact function. */
void tf_activate_many(tf_activation activation, float *x, int64_t count);
/* In place, numerically safe. */
void tf_softmax(float *x, int64_t count);
/* x[i] = e^(x[i] - max); returns the sum, which is left to divide by. count > 0; -infinity gives 0. */
float tf_softmax_unscaled(float *x, int64_t count);
/* x[i] *= factor */
void tf_scale_many(float *x, int64_t count, float factor);

/* Loaders refuse models with larger heads, or odd ones where RoPE is used. */
enum { TF_HEAD_DIM_MAX = 512 };

typedef enum tf_rope_layout {
  TF_ROPE_INTERLEAVED, /* pairs (2i, 2i+1): GGUF's llama architecture */
  TF_ROPE_HALF_SPLIT   /* pairs (i, i + d/2): qwen2 */
} tf_rope_layout;
/* The angles of rows at these positions, once for all layers: cosine and sine [rows, head_dim], laid out for
 * tf_rope_row. head_dim is even and at most TF_HEAD_DIM_MAX. */
void tf_rope_angles(const int32_t *positions, int64_t rows, int64_t head_dim, double base, tf_rope_layout layout,
                    float *cosine, float *sine);
/* One row, x: [heads, head_dim], in place; cosine and sine: that row's. */
void tf_rope_row(float *x, int64_t heads, int64_t head_dim, tf_rope_layout layout, const float *cosine,
                 const float *sine);

/* Index of the largest of count numbers, the first of equals; NaN and -infinity never win. -1: there is none. */
int64_t tf_largest(const float *x, int64_t count);

/* Bidirectional attention of a ViT over a batch, scaled by 1/sqrt(head_dim).
 * q, k, v, out: [batch, tokens, heads * head_dim], out none of the others.
 * No [tokens, tokens] matrix is kept: scores live in the pool's scratch, a tile of rows a thread.
 * Error: UNSUPPORTED for heads past TF_HEAD_DIM_MAX or more than TF_ATTENTION_TOKENS_MAX tokens. */
enum { TF_ATTENTION_TOKENS_MAX = 65536 };
tf_code tf_attention_full(tf_pool *pool, const float *q, const float *k, const float *v, int64_t batch, int64_t tokens,
                          int64_t heads, int64_t head_dim, float *out);

/* Causal attention over keys and values that live in blocks.
 * A block holds `block_tokens` positions: keys [block_tokens, kv_heads, head_dim] and values of the same shape.
 * Row r (a query token) belongs to one sequence and sees positions 0..positions[r], all of them already stored. */
typedef struct tf_paged_rows {
  int64_t rows;
  const int32_t *positions;          /* [rows] */
  const float *const *const *keys;   /* keys[r][b]: block b of the sequence of row r */
  const float *const *const *values; /* likewise */
  int64_t block_tokens;
} tf_paged_rows;
/* q, out: [rows, heads * head_dim]; head h reads KV head h / (heads / kv_heads).
 * Neighbouring rows with the same keys[r] are taken together, so K and V are read once for them and for the heads that
 * share them. Error: UNSUPPORTED for heads past TF_HEAD_DIM_MAX, no whole number of heads to a KV head, or more than
 * TF_HEADS_A_KV_MAX of them. */
enum { TF_HEADS_A_KV_MAX = 64 };
tf_code tf_attention_paged(tf_pool *pool, const float *q, const tf_paged_rows *rows, int64_t heads, int64_t kv_heads,
                           int64_t head_dim, float *out);

#endif

/* Attention on keys and values rounded to bf16, in the form that vector and tile instructions take: for compute modes
 * other than f32, from AVX-512 on. In: queries in f32, blocks of 16 positions. Out: rows in f32; sums are in f32.
 * A block of one KV head holds its keys as 16 columns: steps of 64 bytes, each with two neighbouring dimensions of all
 * 16 positions; and its values as panels of 16 dimensions: 8 steps of 64 bytes, each with two neighbouring positions.
 * So scores come 16 positions at a time without sums across lanes, and nothing is repacked while a sequence grows. */
#ifndef TF_TENSOR_ATTENTION_BF16_H
#define TF_TENSOR_ATTENTION_BF16_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/ops.h"

enum { TF_BF16_BLOCK_TOKENS = 16 };

/* True where the level in use is AVX-512 or better and the process computes in anything but f32. */
bool tf_attention_bf16_wanted(void);
/* Bytes of the keys (as many as of the values) of one block. head_dim up to TF_HEAD_DIM_MAX. */
size_t tf_attention_bf16_block_bytes(int64_t kv_heads, int64_t head_dim);
/* How RoPE turns heads on their way to bf16: cosine and sine of a row [head_dim] (of several: [rows, head_dim]), as
 * tf_rope_angles lays them out. */
typedef struct tf_bf16_turn {
  tf_rope_layout layout;
  const float *cosine, *sine;
} tf_bf16_turn;
/* Puts one position into its place (0..15) of a block: key and value [kv_heads, head_dim]; turn: of the key, NULL for
 * none. Blocks are aligned to 64 bytes and start zeroed; a block that is used again may hold old positions behind the
 * newest: they are finite, and no row sees them. */
void tf_attention_bf16_store(void *keys, void *values, int64_t place, const float *key, const float *value,
                             int64_t kv_heads, int64_t head_dim, const tf_bf16_turn *turn);

typedef struct tf_bf16_rows {
  int64_t rows;
  const int32_t *positions;         /* [rows] row r sees 0..positions[r], all of them stored */
  const void *const *const *keys;   /* keys[r][b]: block b of the sequence of row r */
  const void *const *const *values; /* likewise */
  const tf_bf16_turn *turn;         /* of the queries; NULL: none */
} tf_bf16_rows;
/* As tf_attention_paged. Errors: UNSUPPORTED (as there), OUT_OF_MEMORY. */
tf_code tf_attention_bf16_paged(tf_pool *pool, const float *q, const tf_bf16_rows *rows, int64_t heads,
                                int64_t kv_heads, int64_t head_dim, float *out);
/* As tf_attention_full. Error: UNSUPPORTED (then tf_attention_full does it), also for more tokens than a thread's
 * scratch holds (TF_POOL_SCRATCH_BYTES). */
tf_code tf_attention_bf16_full(tf_pool *pool, const float *q, const float *k, const float *v, int64_t batch,
                               int64_t tokens, int64_t heads, int64_t head_dim, float *out);

#endif

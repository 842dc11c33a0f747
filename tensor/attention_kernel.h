/* The two products of bf16 attention and the soft maximum between them, as a table by processor.
 * In: lines of queries, blocks as attention_bf16.h lays them out. Out: scores, powers, sums. Private to tensor/. */
#ifndef TF_TENSOR_ATTENTION_KERNEL_H
#define TF_TENSOR_ATTENTION_KERNEL_H

#include <stdint.h>

#include "tensor/ops.h"

enum { TF_LINES_MAX = 96, TF_STRETCH = 512, TF_BLOCK_KEYS = 16, TF_KEY_STEP = 64, TF_VALUE_PANEL = 512 };

/* One stretch of positions for some lines. Lines and powers are bf16; rows of both and of scores may be read and
 * written up to a multiple of 16 lines. */
typedef struct tf_stretch {
  int64_t lines, steps, panels, blocks; /* steps: pairs of dimensions; panels: 16 dimensions */
  const uint16_t *query;                /* [lines, 2 * steps] */
  const char *const *keys, *const *values;
  float *scores;    /* [lines, TF_STRETCH] */
  uint16_t *powers; /* [lines, TF_STRETCH] */
  float *sums;      /* [lines, 16 * panels] */
} tf_stretch;

typedef struct tf_attention_kernel {
  void (*score)(const tf_stretch *stretch);  /* scores = query . keys */
  void (*gather)(const tf_stretch *stretch); /* sums += powers . values */
} tf_attention_kernel;

/* Few lines, many lines. */
extern const tf_attention_kernel tf_attention_avx512, tf_attention_avx512_bf16, tf_attention_amx;

/* scores[0..visible) of a line to powers about the running maximum, 0 from there to `positions`; total and the line's
 * sums [width] follow the maximum. visible >= 0. */
void tf_attention_absorb(const float *scores, uint16_t *powers, int64_t positions, int64_t visible, float *maximum,
                         float *total, float *sums, int64_t width);
/* The same, bit for bit, by the instructions that round to bf16. */
void tf_attention_absorb_bf16(const float *scores, uint16_t *powers, int64_t positions, int64_t visible, float *maximum,
                              float *total, float *sums, int64_t width);
/* y = x / total */
void tf_attention_divide(const float *x, float total, float *y, int64_t count);
/* count floats times scale to bf16, zeros from there to padded (both: any; padded a multiple of 16 past). */
void tf_attention_round(const float *x, float scale, int64_t count, int64_t padded, uint16_t *out);

/* The same of a head that RoPE turns on the way: x[i] * cosine[i] + partner of x[i] * sine[i]. layout: see ops.h. */
void tf_attention_round_turned(const float *x, const float *cosine, const float *sine, tf_rope_layout layout,
                               float scale, int64_t count, int64_t padded, uint16_t *out);

/* A whole block of one head, as tf_attention_bf16_store fills it place by place: count (1..16) keys and values of dim
 * floats, rows `stride` apart; places from count on are zeroed. */
void tf_attention_pack_block(const float *keys, const float *values, int64_t stride, int64_t count, int64_t dim,
                             char *packed_keys, char *packed_values);

#endif

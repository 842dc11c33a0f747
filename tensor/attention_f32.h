/* The two products of f32 attention over a stretch of positions, as a table by processor. In: query lines, keys and
 * values as they lie. Out: scores, sums. Private to tensor/. */
#ifndef TF_TENSOR_ATTENTION_F32_H
#define TF_TENSOR_ATTENTION_F32_H

#include <stdint.h>

/* Positions taken at once: the scores of some lines stay in the first- or second-level cache. A line of scores has room
 * for one panel more, as products write whole ones. */
enum { TF_F32_STRETCH = 128, TF_F32_PANEL = 16, TF_F32_SCORES = TF_F32_STRETCH + TF_F32_PANEL };

/* Positions whose rows lie in one block, `stride` floats apart. */
typedef struct tf_f32_piece {
  const float *keys, *values;
  int64_t positions;
} tf_f32_piece;

typedef struct tf_f32_stretch {
  int64_t lines, dim, stride;
  const float *query; /* [lines, dim] */
  float *scores;      /* [lines, TF_F32_SCORES]: of the pieces, one behind the other */
  float *sums;        /* [lines, dim] */
  float *packed;      /* scratch: [TF_F32_STRETCH, dim + TF_F32_PANEL] floats */
  const tf_f32_piece *pieces;
  int64_t piece_count;
} tf_f32_stretch;

typedef struct tf_f32_attention {
  void (*score)(const tf_f32_stretch *stretch);  /* scores = query . keys */
  void (*gather)(const tf_f32_stretch *stretch); /* sums += scores . values */
  /* scores[0..visible) of a line to powers about the running maximum, 0 from there to `positions`; total and the line's
   * sums [dim] follow the maximum. visible >= 0. */
  void (*absorb)(float *scores, int64_t positions, int64_t visible, float *maximum, float *total, float *sums,
                 int64_t dim);
} tf_f32_attention;

extern const tf_f32_attention tf_f32_attention_avx2; /* of x86-64 alone */

#endif

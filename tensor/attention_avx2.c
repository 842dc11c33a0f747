/* Both products of f32 attention with AVX2 and FMA. In: stretches (attention_f32.h). Out: scores, sums.
 * Tiles of 6 lines by 16 positions (scores) or 16 dimensions (sums) keep their sums in 12 registers. Both sides come
 * from panels, packed once for all lines: keys turned into columns, 16 positions each; values by 16 dimensions each. */
#include "tensor/attention_f32.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>

#define TF_AVX2        __attribute__((target("avx2,fma")))
#define TF_AVX2_INLINE TF_AVX2 static inline __attribute__((always_inline))

enum { TILE_LINES = 6, LANES = 8 };

/* The first count lanes; count may be negative or past 8. */
TF_AVX2_INLINE __m256i first_lanes(int64_t count) {
  int32_t bounded = count < 0 ? 0 : count > LANES ? LANES : (int32_t)count;
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(bounded), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* rows[i] lane j <-> rows[j] lane i */
TF_AVX2_INLINE void transpose8(__m256 rows[LANES]) {
  __m256 a[LANES], b[LANES];
#pragma GCC unroll 4
  for (int i = 0; i < LANES; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < LANES; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    rows[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

/* packed[d, t] = keys[t, d] for up to 16 positions; zeros where there are none. */
TF_AVX2 static void pack_keys(const float *keys, int64_t stride, int64_t count, int64_t dim, float *packed) {
  for (int64_t d = 0; d < dim; d += LANES) {
    __m256i lanes = first_lanes(dim - d);
    for (int64_t half = 0; half < TF_F32_PANEL; half += LANES) {
      __m256 rows[LANES];
#pragma GCC unroll 8
      for (int64_t r = 0; r < LANES; r++)
        rows[r] = half + r < count ? _mm256_maskload_ps(keys + (half + r) * stride + d, lanes) : _mm256_setzero_ps();
      transpose8(rows);
#pragma GCC unroll 8
      for (int64_t r = 0; r < LANES; r++) _mm256_storeu_ps(packed + (d + r) * TF_F32_PANEL + half, rows[r]);
    }
  }
}

/* low, high [lines] += a[l * stride + i] * panel[i, 0..16) for i of 0..count. */
TF_AVX2_INLINE void add_products(const float *a, int64_t stride, int64_t count, const float *panel, int lines,
                                 __m256 *low, __m256 *high) {
  for (const float *end = a + count; a < end; a++, panel += TF_F32_PANEL) {
    __m256 first = _mm256_loadu_ps(panel), second = _mm256_loadu_ps(panel + LANES);
#pragma GCC unroll 6
    for (int l = 0; l < lines; l++) {
      __m256 one = _mm256_broadcast_ss(a + l * stride);
      low[l] = _mm256_fmadd_ps(one, first, low[l]);
      high[l] = _mm256_fmadd_ps(one, second, high[l]);
    }
  }
}

TF_AVX2_INLINE void score_tile(const tf_f32_stretch *self, int64_t line, int lines, float *scores) {
  __m256 low[TILE_LINES], high[TILE_LINES];
#pragma GCC unroll 6
  for (int l = 0; l < lines; l++) low[l] = high[l] = _mm256_setzero_ps();
  add_products(self->query + line * self->dim, self->dim, self->dim, self->packed, lines, low, high);
#pragma GCC unroll 6
  for (int l = 0; l < lines; l++) {
    _mm256_storeu_ps(scores + (line + l) * TF_F32_SCORES, low[l]);
    _mm256_storeu_ps(scores + (line + l) * TF_F32_SCORES + LANES, high[l]);
  }
}

/* A constant number of lines makes one straight loop. */
#define EACH_TILE(self, tile, ...)                                                                                     \
  do {                                                                                                                 \
    int64_t line = 0;                                                                                                  \
    for (; line + TILE_LINES <= (self)->lines; line += TILE_LINES) tile(self, line, TILE_LINES, __VA_ARGS__);          \
    if (line + 3 <= (self)->lines) {                                                                                   \
      tile(self, line, 3, __VA_ARGS__);                                                                                \
      line += 3;                                                                                                       \
    }                                                                                                                  \
    for (; line < (self)->lines; line++) tile(self, line, 1, __VA_ARGS__);                                             \
  } while (0)

/* A panel that ends within whole vectors is overwritten by the next piece, or lies in the room behind the scores. */
TF_AVX2 static void score(const tf_f32_stretch *self) {
  float *scores = self->scores;
  for (int64_t p = 0; p < self->piece_count; p++) {
    const tf_f32_piece *piece = &self->pieces[p];
    for (int64_t at = 0; at < piece->positions; at += TF_F32_PANEL) {
      int64_t left = piece->positions - at;
      pack_keys(piece->keys + at * self->stride, self->stride, left < TF_F32_PANEL ? left : TF_F32_PANEL, self->dim,
                self->packed);
      EACH_TILE(self, score_tile, scores + at);
    }
    scores += piece->positions;
  }
}

/* packed[t, 0..16) = values[t, at..at + 16) of all pieces, zeros past dim; how many positions. */
TF_AVX2 static int64_t pack_values(const tf_f32_stretch *self, int64_t at, float *packed) {
  __m256i low = first_lanes(self->dim - at), high = first_lanes(self->dim - at - LANES);
  int64_t count = 0;
  for (int64_t p = 0; p < self->piece_count; p++) {
    const float *value = self->pieces[p].values + at;
    for (int64_t t = 0; t < self->pieces[p].positions; t++, value += self->stride, count++) {
      _mm256_storeu_ps(packed + count * TF_F32_PANEL, _mm256_maskload_ps(value, low));
      _mm256_storeu_ps(packed + count * TF_F32_PANEL + LANES, _mm256_maskload_ps(value + LANES, high));
    }
  }
  return count;
}

/* Up to 16 dimensions from `at` on. */
TF_AVX2_INLINE void gather_tile(const tf_f32_stretch *self, int64_t line, int lines, int64_t at, int64_t positions) {
  __m256 low[TILE_LINES], high[TILE_LINES];
  __m256i low_lanes = first_lanes(self->dim - at), high_lanes = first_lanes(self->dim - at - LANES);
  float *sums = self->sums + line * self->dim + at;
#pragma GCC unroll 6
  for (int l = 0; l < lines; l++) {
    low[l] = _mm256_maskload_ps(sums + l * self->dim, low_lanes);
    high[l] = _mm256_maskload_ps(sums + l * self->dim + LANES, high_lanes);
  }
  add_products(self->scores + line * TF_F32_SCORES, TF_F32_SCORES, positions, self->packed, lines, low, high);
#pragma GCC unroll 6
  for (int l = 0; l < lines; l++) {
    _mm256_maskstore_ps(sums + l * self->dim, low_lanes, low[l]);
    _mm256_maskstore_ps(sums + l * self->dim + LANES, high_lanes, high[l]);
  }
}

TF_AVX2 static void gather(const tf_f32_stretch *self) {
  for (int64_t at = 0; at < self->dim; at += TF_F32_PANEL) {
    int64_t positions = pack_values(self, at, self->packed);
    EACH_TILE(self, gather_tile, at, positions);
  }
}

/* e^x for x up to 0, as tf_exp16; what is below -87.3 counts as that. */
TF_AVX2_INLINE __m256 exp8(__m256 x) {
  x = _mm256_max_ps(x, _mm256_set1_ps(-87.3f));
  __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x); /* ln 2 in two parts: the first is exact */
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(2.12194440e-4f), r);
  __m256 p = _mm256_fmadd_ps(r, _mm256_set1_ps(0.00138144650f), _mm256_set1_ps(0.00836878084f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.0416683927f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.166665196f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.499999940f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23); /* n >= -126: p stays a normal float */
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

TF_AVX2_INLINE float reduce(__m256 x, bool sum) {
  __m128 a = _mm256_castps256_ps128(x), b = _mm256_extractf128_ps(x, 1);
  a = sum ? _mm_add_ps(a, b) : _mm_max_ps(a, b);
  b = _mm_movehl_ps(a, a);
  a = sum ? _mm_add_ps(a, b) : _mm_max_ps(a, b);
  b = _mm_shuffle_ps(a, a, 1);
  return _mm_cvtss_f32(sum ? _mm_add_ss(a, b) : _mm_max_ss(a, b));
}

TF_AVX2_INLINE __m256 scores_at(const float *scores, int64_t t, int64_t visible, __m256 rest) {
  if (t + LANES <= visible) return _mm256_loadu_ps(scores + t);
  return _mm256_blendv_ps(rest, _mm256_loadu_ps(scores + t), _mm256_castsi256_ps(first_lanes(visible - t)));
}

/* Whole vectors are read and written: a line has room for them. */
TF_AVX2 static void absorb(float *scores, int64_t positions, int64_t visible, float *maximum, float *total, float *sums,
                           int64_t dim) {
  const __m256 least = _mm256_set1_ps(-INFINITY);
  __m256 most = least, sum = _mm256_setzero_ps();
  for (int64_t t = 0; t < visible; t += LANES) most = _mm256_max_ps(most, scores_at(scores, t, visible, least));
  float highest = reduce(most, false);
  if (highest > *maximum) {
    if (*total > 0.0f) {
      float factor = expf(*maximum - highest);
      *total *= factor;
      for (int64_t i = 0; i < dim; i++) sums[i] *= factor;
    }
    *maximum = highest;
  }
  const __m256 about = _mm256_set1_ps(*maximum);
  for (int64_t t = 0; t < positions; t += LANES) {
    __m256 power = _mm256_setzero_ps();
    if (t < visible) {
      power = exp8(_mm256_sub_ps(scores_at(scores, t, visible, about), about));
      power = _mm256_and_ps(power, _mm256_castsi256_ps(first_lanes(visible - t)));
    }
    _mm256_storeu_ps(scores + t, power);
    sum = _mm256_add_ps(sum, power);
  }
  *total += reduce(sum, true);
}

const tf_f32_attention tf_f32_attention_avx2 = {score, gather, absorb};
#endif

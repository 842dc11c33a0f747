/* bf16 attention with AVX-512: with its bf16 dot products, or by widening to f32 where they are missing; and the soft
 * maximum. In: stretches (attention_kernel.h). Out: scores, powers, sums.
 * A tile of 4 lines by 2 blocks or panels keeps its sums in registers: each step loads 2 vectors and spreads 4 pairs.
 */
#include "tensor/attention_kernel.h"

#if defined(__x86_64__)
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "tensor/simd512.h"

enum { TILE_LINES = 4 };

#define NEEDS "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"

static inline __attribute__((always_inline)) int32_t pair_of(const uint16_t *line, int64_t step) {
  int32_t value;
  memcpy(&value, line + 2 * step, sizeof value);
  return value;
}

TF_AVX512_INLINE __m512 dot_f32(__m512 sum, __m512i two, __m512i pair) {
  const __m512i high = _mm512_set1_epi32((int32_t)0xffff0000);
  sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(two, 16)),
                        _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)), sum);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(two, high)),
                         _mm512_castsi512_ps(_mm512_and_si512(pair, high)), sum);
}
__attribute__((target(NEEDS ",avx512bf16"), always_inline)) static inline __m512 dot_bf16(__m512 sum, __m512i two,
                                                                                          __m512i pair) {
  return _mm512_dpbf16_ps(sum, (__m512bh)two, (__m512bh)pair);
}

/* KERNEL(name, target, dot): the tile of constant size, then both products over it. */
#define KERNEL(name, needs, dot)                                                                                       \
  __attribute__((target(needs), always_inline)) static inline void name##_score_tile(                                  \
      const tf_stretch *self, int64_t line, int64_t block, int lines, int blocks) {                                    \
    __m512 sum[TILE_LINES][2];                                                                                         \
    const uint16_t *query = self->query + line * 2 * self->steps;                                                      \
    _Pragma("GCC unroll 4") for (int l = 0; l < lines; l++) _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++)   \
        sum[l][b] = _mm512_setzero_ps();                                                                               \
    for (int64_t step = 0; step < self->steps; step++) {                                                               \
      __m512i key[2];                                                                                                  \
      _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++) key[b] =                                                \
          _mm512_load_si512(self->keys[block + b] + step * TF_KEY_STEP);                                               \
      _Pragma("GCC unroll 4") for (int l = 0; l < lines; l++) {                                                        \
        __m512i pair = _mm512_set1_epi32(pair_of(query + l * 2 * self->steps, step));                                  \
        _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++) sum[l][b] = dot(sum[l][b], key[b], pair);             \
      }                                                                                                                \
    }                                                                                                                  \
    _Pragma("GCC unroll 4") for (int l = 0; l < lines; l++) _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++)   \
        _mm512_storeu_ps(self->scores + (line + l) * TF_STRETCH + (block + b) * TF_BLOCK_KEYS, sum[l][b]);             \
  }                                                                                                                    \
  __attribute__((target(needs), always_inline)) static inline void name##_score_lines(const tf_stretch *self,          \
                                                                                      int64_t line, int lines) {       \
    int64_t block = 0;                                                                                                 \
    for (; block + 2 <= self->blocks; block += 2) name##_score_tile(self, line, block, lines, 2);                      \
    if (block < self->blocks) name##_score_tile(self, line, block, lines, 1);                                          \
  }                                                                                                                    \
  __attribute__((target(needs), always_inline)) static inline void name##_gather_tile(                                 \
      const tf_stretch *self, int64_t line, int64_t panel, int lines, int panels) {                                    \
    __m512 sum[TILE_LINES][2];                                                                                         \
    float *sums = self->sums + line * 16 * self->panels + 16 * panel;                                                  \
    _Pragma("GCC unroll 4") for (int l = 0; l < lines; l++) _Pragma("GCC unroll 2") for (int p = 0; p < panels; p++)   \
        sum[l][p] = _mm512_loadu_ps(sums + l * 16 * self->panels + 16 * p);                                            \
    for (int64_t block = 0; block < self->blocks; block++) {                                                           \
      const char *value = self->values[block] + panel * TF_VALUE_PANEL;                                                \
      const uint16_t *powers = self->powers + line * TF_STRETCH + block * TF_BLOCK_KEYS;                               \
      for (int64_t step = 0; step < TF_BLOCK_KEYS / 2; step++) {                                                       \
        __m512i two[2];                                                                                                \
        _Pragma("GCC unroll 2") for (int p = 0; p < panels; p++) two[p] =                                              \
            _mm512_load_si512(value + p * TF_VALUE_PANEL + step * 64);                                                 \
        _Pragma("GCC unroll 4") for (int l = 0; l < lines; l++) {                                                      \
          __m512i pair = _mm512_set1_epi32(pair_of(powers + l * TF_STRETCH, step));                                    \
          _Pragma("GCC unroll 2") for (int p = 0; p < panels; p++) sum[l][p] = dot(sum[l][p], two[p], pair);           \
        }                                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
    _Pragma("GCC unroll 4") for (int l = 0; l < lines; l++) _Pragma("GCC unroll 2") for (int p = 0; p < panels; p++)   \
        _mm512_storeu_ps(sums + l * 16 * self->panels + 16 * p, sum[l][p]);                                            \
  }                                                                                                                    \
  __attribute__((target(needs), always_inline)) static inline void name##_gather_lines(const tf_stretch *self,         \
                                                                                       int64_t line, int lines) {      \
    int64_t panel = 0;                                                                                                 \
    for (; panel + 2 <= self->panels; panel += 2) name##_gather_tile(self, line, panel, lines, 2);                     \
    if (panel < self->panels) name##_gather_tile(self, line, panel, lines, 1);                                         \
  }                                                                                                                    \
  __attribute__((target(needs))) static void name##_score(const tf_stretch *self) {                                    \
    int64_t line = 0;                                                                                                  \
    for (; line + 4 <= self->lines; line += 4) name##_score_lines(self, line, 4);                                      \
    for (; line + 3 <= self->lines; line += 3) name##_score_lines(self, line, 3);                                      \
    for (; line < self->lines; line++) name##_score_lines(self, line, 1);                                              \
  }                                                                                                                    \
  __attribute__((target(needs))) static void name##_gather(const tf_stretch *self) {                                   \
    int64_t line = 0;                                                                                                  \
    for (; line + 4 <= self->lines; line += 4) name##_gather_lines(self, line, 4);                                     \
    for (; line + 3 <= self->lines; line += 3) name##_gather_lines(self, line, 3);                                     \
    for (; line < self->lines; line++) name##_gather_lines(self, line, 1);                                             \
  }
KERNEL(plain, NEEDS, dot_f32)
KERNEL(bf16, NEEDS ",avx512bf16", dot_bf16)

const tf_attention_kernel tf_attention_avx512 = {plain_score, plain_gather};
const tf_attention_kernel tf_attention_avx512_bf16 = {bf16_score, bf16_gather};

/* To nearest, ties to even; NaN is not looked for: a row of NaN ends as the sampler says. */
TF_AVX512_INLINE __m256i to_bf16(__m512 x) {
  __m512i bits = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
}

TF_AVX512 void tf_attention_round(const float *x, float scale, int64_t count, int64_t padded, uint16_t *out) {
  for (int64_t i = 0; i < padded; i += 16) {
    __m512 part =
        _mm512_mul_ps(_mm512_maskz_loadu_ps(i < count ? tf_lanes16(count - i) : 0, x + i), _mm512_set1_ps(scale));
    _mm256_mask_storeu_epi16(out + i, tf_lanes16(padded - i), to_bf16(part));
  }
}

TF_AVX512 void tf_attention_round_turned(const float *x, const float *cosine, const float *sine, tf_rope_layout layout,
                                         float scale, int64_t count, int64_t padded, uint16_t *out) {
  float partners[TF_HEAD_DIM_MAX];
  bool split = layout == TF_ROPE_HALF_SPLIT;
  if (split) {
    memcpy(partners, x + count / 2, (size_t)(count / 2) * sizeof *x);
    memcpy(partners + count / 2, x, (size_t)(count / 2) * sizeof *x);
  }
  for (int64_t i = 0; i < padded; i += 16) {
    __mmask16 lanes = i < count ? tf_lanes16(count - i) : 0;
    __m512 part = _mm512_maskz_loadu_ps(lanes, x + i);
    __m512 partner = split ? _mm512_maskz_loadu_ps(lanes, partners + i) : _mm512_permute_ps(part, 0xb1);
    __m512 turned = _mm512_mul_ps(part, _mm512_maskz_loadu_ps(lanes, cosine + i));
    turned = _mm512_add_ps(turned, _mm512_mul_ps(partner, _mm512_maskz_loadu_ps(lanes, sine + i)));
    turned = _mm512_mul_ps(turned, _mm512_set1_ps(scale));
    _mm256_mask_storeu_epi16(out + i, tf_lanes16(padded - i), to_bf16(turned));
  }
}

/* The highest of a line's first scores; two vectors at a time, as each waits for the one before. */
TF_AVX512_INLINE float highest_of(const float *scores, int64_t visible) {
  const __m512 least = _mm512_set1_ps(-INFINITY);
  __m512 most = least, other = least;
  int64_t t = 0;
  for (; t + 32 <= visible; t += 32) {
    most = _mm512_max_ps(most, _mm512_loadu_ps(scores + t));
    other = _mm512_max_ps(other, _mm512_loadu_ps(scores + t + 16));
  }
  for (; t < visible; t += 16)
    most = _mm512_max_ps(most, _mm512_mask_loadu_ps(least, tf_lanes16(visible - t), scores + t));
  return _mm512_reduce_max_ps(_mm512_max_ps(most, other));
}

/* The line's total and sums follow its maximum. */
TF_AVX512_INLINE void raise_maximum(float highest, float *maximum, float *total, float *sums, int64_t width) {
  if (!(highest > *maximum)) return;
  if (*total > 0.0f) {
    float factor = expf(*maximum - highest);
    *total *= factor;
    for (int64_t i = 0; i < width; i += 16)
      _mm512_storeu_ps(sums + i, _mm512_mul_ps(_mm512_loadu_ps(sums + i), _mm512_set1_ps(factor)));
  }
  *maximum = highest;
}

TF_AVX512_INLINE __m512i two_to_bf16(__m512 low, __m512 high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(low)), to_bf16(high), 1);
}
__attribute__((target(NEEDS ",avx512bf16"), always_inline)) static inline __m512i two_to_bf16_at_once(__m512 low,
                                                                                                      __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low); /* powers are normal floats or 0: rounded alike */
}

/* ABSORB(name, target, rounding): past what is visible no power is computed. */
#define ABSORB(name, needs, rounded)                                                                                   \
  __attribute__((target(needs))) void name(const float *scores, uint16_t *powers, int64_t positions, int64_t visible,  \
                                           float *maximum, float *total, float *sums, int64_t width) {                 \
    raise_maximum(highest_of(scores, visible), maximum, total, sums, width);                                           \
    const __m512 about = _mm512_set1_ps(*maximum), none = _mm512_setzero_ps();                                         \
    __m512 sum = none, other = none;                                                                                   \
    int64_t t = 0;                                                                                                     \
    for (; t + 32 <= visible; t += 32) {                                                                               \
      __m512 low = tf_exp_bounded16(_mm512_sub_ps(_mm512_loadu_ps(scores + t), about));                                \
      __m512 high = tf_exp_bounded16(_mm512_sub_ps(_mm512_loadu_ps(scores + t + 16), about));                          \
      _mm512_storeu_si512(powers + t, rounded(low, high));                                                             \
      sum = _mm512_add_ps(sum, low);                                                                                   \
      other = _mm512_add_ps(other, high);                                                                              \
    }                                                                                                                  \
    for (; t < positions; t += 16) {                                                                                   \
      __mmask16 lanes = t < visible ? tf_lanes16(visible - t) : 0;                                                     \
      __m512 power = none;                                                                                             \
      if (lanes)                                                                                                       \
        power = _mm512_maskz_mov_ps(lanes,                                                                             \
                                    tf_exp_bounded16(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, scores + t), about))); \
      _mm256_storeu_si256((__m256i *)(void *)(powers + t), _mm512_castsi512_si256(rounded(power, none)));              \
      sum = _mm512_add_ps(sum, power);                                                                                 \
    }                                                                                                                  \
    *total += _mm512_reduce_add_ps(_mm512_add_ps(sum, other));                                                         \
  }
ABSORB(tf_attention_absorb, NEEDS, two_to_bf16)
ABSORB(tf_attention_absorb_bf16, NEEDS ",avx512bf16", two_to_bf16_at_once)

TF_AVX512 void tf_attention_divide(const float *x, float total, float *y, int64_t count) {
  const __m512 factor = _mm512_set1_ps(1.0f / total);
  for (int64_t i = 0; i < count; i += 16) {
    __mmask16 lanes = tf_lanes16(count - i);
    _mm512_mask_storeu_ps(y + i, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), factor));
  }
}

/* 32 floats of a row to 16 pairs; past `count` zeros. */
TF_AVX512_INLINE __m512i round_pairs(const float *x, int64_t count) {
  __m512 low = _mm512_maskz_loadu_ps(tf_lanes16(count > 0 ? count : 0), x);
  __m512 high = _mm512_maskz_loadu_ps(tf_lanes16(count > 16 ? count - 16 : 0), x + 16);
  return _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(low)), to_bf16(high), 1);
}

/* rows[i] lane j <-> rows[j] lane i */
TF_AVX512_INLINE void transpose16(__m512i rows[16]) {
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  /* b[4 g + c]: lanes c, c + 4, c + 8, c + 12 of rows 4 g .. 4 g + 3, 128 bits each. */
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    __m512i low = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88), high = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd);
    __m512i low2 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88);
    __m512i high2 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
    rows[c + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    rows[c + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
    rows[c + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
}

TF_AVX512 void tf_attention_pack_block(const float *keys, const float *values, int64_t stride, int64_t count,
                                       int64_t dim, char *packed_keys, char *packed_values) {
  for (int64_t first = 0; first < dim; first += 32, packed_keys += 16 * TF_KEY_STEP) {
    __m512i rows[16];
    for (int64_t r = 0; r < 16; r++)
      rows[r] = r < count ? round_pairs(keys + r * stride + first, dim - first) : _mm512_setzero_si512();
    transpose16(rows);
    for (int64_t step = 0; step < 16; step++) _mm512_store_si512(packed_keys + step * TF_KEY_STEP, rows[step]);
  }
  for (int64_t first = 0; first < dim; first += 16, packed_values += TF_VALUE_PANEL) {
    __mmask16 lanes = tf_lanes16(dim - first);
    for (int64_t r = 0; r < 16; r += 2) {
      const float *value = values + r * stride + first;
      __m512 even = _mm512_maskz_loadu_ps(r < count ? lanes : 0, value);
      __m512 odd = _mm512_maskz_loadu_ps(r + 1 < count ? lanes : 0, value + stride);
      __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(to_bf16(even)),
                                      _mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16(odd)), 16));
      _mm512_store_si512(packed_values + r / 2 * 64, pairs);
    }
  }
}
#endif

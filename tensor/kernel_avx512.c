/* Kernels of AVX-512: products in f32, bf16 and int8 (VNNI), the finish of a block, rows to bf16 and int8.
 * In: blocks as kernel.h lays them out. Out: sums, outputs, rows. All functions carry their target themselves.
 * A product keeps up to 6 rows x 4 panels of sums in 24 registers: each step loads 4 vectors of weights and spreads 4
 * bytes of each row, so 24 multiply-adds stand against 10 loads. */
#include "tensor/kernel.h"

#if defined(__x86_64__)
#include <math.h>
#include <string.h>

#include "tensor/simd512.h"

#define TARGET_F32  "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"
#define TARGET_VNNI TARGET_F32 ",avx512vnni"
#define TARGET_BF16 TARGET_F32 ",avx512bf16"

enum { TILE_ROWS = 6 };

static inline __attribute__((always_inline)) int32_t step_of(const char *row, int64_t step) {
  int32_t value;
  memcpy(&value, row + step * 4, sizeof value);
  return value;
}

/* PRODUCT(name, target, sums' type, zero, sum + weights . 4 bytes of the row): name(block), and its tile of constant
 * size, which the compiler unrolls. */
#define PRODUCT(name, needs, vector, zero, add)                                                                        \
  __attribute__((target(needs), always_inline)) static inline void name##_tile(const tf_block *block, int64_t first,   \
                                                                               int rows, int panels) {                 \
    vector sum[TILE_ROWS][TF_BLOCK_PANELS_MAX];                                                                        \
    const char *x = block->x + first * block->line_bytes, *weight = block->weight;                                     \
    int64_t row_bytes = block->line_bytes, panel_bytes = block->panel_bytes, steps = block->steps;                     \
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) _Pragma("GCC unroll 4") for (int p = 0; p < panels; p++)    \
        sum[r][p] = zero;                                                                                              \
    for (int64_t step = 0; step < steps; step++, weight += TF_STEP_BYTES) {                                            \
      __m512i w[TF_BLOCK_PANELS_MAX];                                                                                  \
      _Pragma("GCC unroll 4") for (int p = 0; p < panels; p++) w[p] = _mm512_load_si512(weight + p * panel_bytes);     \
      _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) {                                                         \
        __m512i four = _mm512_set1_epi32(step_of(x + r * row_bytes, step));                                            \
        _Pragma("GCC unroll 4") for (int p = 0; p < panels; p++) sum[r][p] = add(sum[r][p], w[p], four);               \
      }                                                                                                                \
    }                                                                                                                  \
    char *out = (char *)block->sums + first * block->panels * TF_STEP_BYTES;                                           \
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) _Pragma("GCC unroll 4") for (int p = 0; p < panels; p++)    \
        memcpy(out + (r * panels + p) * TF_STEP_BYTES, &sum[r][p], TF_STEP_BYTES);                                     \
  }                                                                                                                    \
  __attribute__((target(needs), always_inline)) static inline void name##_rows(const tf_block *block, int panels) {    \
    int64_t tiles = (block->lines + TILE_ROWS - 1) / TILE_ROWS, first = 0;                                             \
    for (int64_t i = 0; i < tiles; i++) { /* even tiles: 8 rows are 4 + 4, not 6 + 2 */                                \
      int64_t rows = (block->lines - first + tiles - i - 1) / (tiles - i);                                             \
      switch (rows) {                                                                                                  \
      case 1:                                                                                                          \
        name##_tile(block, first, 1, panels);                                                                          \
        break;                                                                                                         \
      case 2:                                                                                                          \
        name##_tile(block, first, 2, panels);                                                                          \
        break;                                                                                                         \
      case 3:                                                                                                          \
        name##_tile(block, first, 3, panels);                                                                          \
        break;                                                                                                         \
      case 4:                                                                                                          \
        name##_tile(block, first, 4, panels);                                                                          \
        break;                                                                                                         \
      case 5:                                                                                                          \
        name##_tile(block, first, 5, panels);                                                                          \
        break;                                                                                                         \
      default:                                                                                                         \
        name##_tile(block, first, 6, panels);                                                                          \
        break;                                                                                                         \
      }                                                                                                                \
      first += rows;                                                                                                   \
    }                                                                                                                  \
  }                                                                                                                    \
  __attribute__((target(needs))) void name(const tf_block *block) {                                                    \
    switch (block->panels) {                                                                                           \
    case 1:                                                                                                            \
      name##_rows(block, 1);                                                                                           \
      break;                                                                                                           \
    case 2:                                                                                                            \
      name##_rows(block, 2);                                                                                           \
      break;                                                                                                           \
    case 3:                                                                                                            \
      name##_rows(block, 3);                                                                                           \
      break;                                                                                                           \
    default:                                                                                                           \
      name##_rows(block, 4);                                                                                           \
      break;                                                                                                           \
    }                                                                                                                  \
  }

#define ADD_F32(sum, w, four)  _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(four), sum)
#define ADD_BF16(sum, w, four) _mm512_dpbf16_ps(sum, (__m512bh)(four), (__m512bh)(w))
#define ADD_INT8(sum, w, four) _mm512_dpbusd_epi32(sum, four, w)
static void product_f32(const tf_block *block);
PRODUCT(product_f32, TARGET_F32, __m512, _mm512_setzero_ps(), ADD_F32)
PRODUCT(tf_product_bf16_avx512, TARGET_BF16, __m512, _mm512_setzero_ps(), ADD_BF16)
PRODUCT(tf_product_int8_vnni, TARGET_VNNI, __m512i, _mm512_setzero_si512(), ADD_INT8)

/* -- the finish ------------------------------------------------------------------------------------------------- */

/* Sixteen sums of a line as floats, the offset taken off. */
TF_AVX512_INLINE __m512 line_sums(const tf_finish *f, int64_t line, int64_t at) {
  __m512i sums = _mm512_loadu_si512((const char *)f->sums + (line * f->sums_stride + at) * 4);
  return _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_loadu_si512(f->offset + at)));
}

/* What form the sums have. */
typedef enum sums_form { FLOATS, INTEGERS, HALVES } sums_form;

/* Sums of one vector as floats: scaled (int8), bias added. at: column in the panels. */
TF_AVX512_INLINE __m512 scaled(const tf_finish *f, int64_t row, int64_t at, sums_form form) {
  __m512 bias = _mm512_loadu_ps(f->bias + at), sum;
  if (form == FLOATS)
    return _mm512_add_ps(_mm512_loadu_ps((const char *)f->sums + (row * f->sums_stride + at) * 4), bias);
  if (form == HALVES)
    sum = _mm512_fmadd_ps(line_sums(f, 2 * row, at), _mm512_set1_ps(256.0f), line_sums(f, 2 * row + 1, at));
  else
    sum = line_sums(f, row, at);
  __m512 factor = _mm512_mul_ps(_mm512_set1_ps(f->row_scale[row]), _mm512_loadu_ps(f->column_scale + at));
  return _mm512_fmadd_ps(sum, factor, bias);
}

TF_AVX512_INLINE void finish_all(const tf_finish *f, sums_form form, bool swiglu, tf_activation activation,
                                 bool exact) {
  for (int64_t row = 0; row < f->rows; row++) {
    float *y = f->y + row * f->y_stride;
    const float *residual = f->residual ? f->residual + row * f->y_stride : NULL;
    for (int64_t at = 0; at < f->columns; at += TF_PANEL) {
      __mmask16 lanes = tf_lanes16(f->columns - at);
      __m512 value = scaled(f, row, swiglu ? 2 * at : at, form);
      if (swiglu)
        value = _mm512_mul_ps(tf_gated16(value, value), scaled(f, row, 2 * at + TF_PANEL, form));
      else
        value = tf_activate16(activation, exact, value);
      if (f->scale) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(lanes, f->scale + at));
      if (residual) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, residual + at));
      _mm512_mask_storeu_ps(y + at, lanes, value);
    }
  }
}

/* A constant activation makes one straight loop. */
TF_AVX512_INLINE void finish_kind(const tf_finish *f, sums_form form) {
  if (f->swiglu) {
    finish_all(f, form, true, TF_ACTIVATION_NONE, true);
    return;
  }
  switch (f->activation) {
  case TF_ACTIVATION_NONE:
    finish_all(f, form, false, TF_ACTIVATION_NONE, true);
    return;
  case TF_ACTIVATION_GELU:
    if (f->exact)
      finish_all(f, form, false, TF_ACTIVATION_GELU, true);
    else
      finish_all(f, form, false, TF_ACTIVATION_GELU, false);
    return;
  case TF_ACTIVATION_GELU_TANH:
    finish_all(f, form, false, TF_ACTIVATION_GELU_TANH, true);
    return;
  case TF_ACTIVATION_QUICK_GELU:
    finish_all(f, form, false, TF_ACTIVATION_QUICK_GELU, true);
    return;
  case TF_ACTIVATION_SILU:
    finish_all(f, form, false, TF_ACTIVATION_SILU, true);
    return;
  }
}

TF_AVX512 void tf_finish_avx512(const tf_finish *finish) {
  if (!finish->row_scale)
    finish_kind(finish, FLOATS);
  else if (finish->halves)
    finish_kind(finish, HALVES);
  else
    finish_kind(finish, INTEGERS);
}

/* -- rows ------------------------------------------------------------------------------------------------------- */

/* Four vectors at a time, as each waits for the one before. */
TF_AVX512_INLINE float largest_of(const float *x, int64_t width) {
  __m512 most[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) most[k] = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 64 <= width; i += 64) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) most[k] = _mm512_max_ps(most[k], _mm512_abs_ps(_mm512_loadu_ps(x + i + 16 * k)));
  }
  for (; i < width; i += 16)
    most[0] = _mm512_max_ps(most[0], _mm512_abs_ps(_mm512_maskz_loadu_ps(tf_lanes16(width - i), x + i)));
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])));
}

/* largest_of(x[i] * weight[i]), and the squares of x added up. */
TF_AVX512_INLINE float largest_and_squares_of(const float *x, const float *weight, int64_t width, float *squares) {
  __m512 most[4], sums[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) most[k] = sums[k] = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 64) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      int64_t left = width - i - 16 * k;
      __mmask16 lanes = tf_lanes16(left < 0 ? 0 : left);
      __m512 part = _mm512_maskz_loadu_ps(lanes, x + i + 16 * k);
      __m512 weighted = _mm512_mul_ps(part, _mm512_maskz_loadu_ps(lanes, weight + i + 16 * k));
      sums[k] = _mm512_fmadd_ps(part, part, sums[k]);
      most[k] = _mm512_max_ps(most[k], _mm512_abs_ps(weighted));
    }
  }
  *squares = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])));
}

/* 64 inputs from i on, times factor and weight (NULL: 1), as integers; zeros past width. */
TF_AVX512_INLINE void scaled_inputs(const float *x, const float *weight, int64_t i, int64_t width, __m512 factor,
                                    __m512i q[4]) {
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) {
    int64_t left = width - i - 16 * k;
    __mmask16 lanes = tf_lanes16(left < 0 ? 0 : left);
    __m512 part = _mm512_maskz_loadu_ps(lanes, x + i + 16 * k);
    if (weight) part = _mm512_mul_ps(part, _mm512_maskz_loadu_ps(lanes, weight + i + 16 * k));
    q[k] = _mm512_cvtps_epi32(_mm512_mul_ps(part, factor));
  }
}

/* 64 integers within int8's range, plus 128, as bytes. Packing goes by quarters of a vector; the order is put right. */
TF_AVX512_INLINE void store_bytes(uint8_t *to, const __m512i q[4]) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  bytes = _mm512_xor_si512(_mm512_permutexvar_epi32(order, bytes), _mm512_set1_epi8((char)-128));
  _mm512_storeu_si512(to, bytes);
}

/* q = round(x * 127 / largest), ties to even, plus 128. line_bytes is a multiple of 64 (kernel.h). */
TF_AVX512_INLINE void to_int8(const float *x, const float *weight, float largest, int64_t width, int64_t line_bytes,
                              uint8_t *out) {
  __m512 factor = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
  for (int64_t i = 0; i < line_bytes; i += 64) {
    __m512i q[4];
    scaled_inputs(x, weight, i, width, factor, q);
    store_bytes(out + i, q);
  }
}

/* q = round(x * 32512 / largest) = 256 high + low, high within +-127, low -128..127; each plus 128, in a line each. */
TF_AVX512_INLINE void to_int8x2(const float *x, const float *weight, float largest, int64_t width, int64_t line_bytes,
                                uint8_t *out) {
  __m512 factor = _mm512_set1_ps(largest > 0 ? 32512.0f / largest : 0.0f);
  for (int64_t i = 0; i < line_bytes; i += 64) {
    __m512i q[4], high[4];
    scaled_inputs(x, weight, i, width, factor, q);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      high[k] = _mm512_srai_epi32(_mm512_add_epi32(q[k], _mm512_set1_epi32(128)), 8);
      q[k] = _mm512_sub_epi32(q[k], _mm512_slli_epi32(high[k], 8));
    }
    store_bytes(out + i, high);
    store_bytes(out + line_bytes + i, q);
  }
}

/* CONVERT(name, name with norm, to, steps): the scale takes it back: largest / steps. The root mean square of a row is
 * one factor for all of it: it leaves the integers as they are and goes into their scale. */
#define CONVERT(name, normed_name, to, steps)                                                                          \
  TF_AVX512 void name(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale) {                    \
    float largest = largest_of(x, width);                                                                              \
    *scale = largest / (steps);                                                                                        \
    to(x, NULL, largest, width, line_bytes, out);                                                                      \
  }                                                                                                                    \
  TF_AVX512 void normed_name(const float *x, int64_t width, const float *weight, float epsilon, int64_t line_bytes,    \
                             void *out, float *scale) {                                                                \
    float squares, largest = largest_and_squares_of(x, weight, width, &squares);                                       \
    *scale = largest / (steps) / sqrtf(squares / (float)width + epsilon);                                              \
    to(x, weight, largest, width, line_bytes, out);                                                                    \
  }
CONVERT(tf_convert_int8_avx512, tf_convert_normed_int8_avx512, to_int8, 127.0f)
CONVERT(tf_convert_int8x2_avx512, tf_convert_normed_int8x2_avx512, to_int8x2, 32512.0f)

TF_AVX512 void tf_convert_bf16_avx512(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale) {
  (void)scale;
  uint16_t *halves = out;
  const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
  int64_t i = 0;
  for (; i < width; i += 16) { /* round to nearest even; line_bytes is a multiple of 64 */
    __m512 value = _mm512_maskz_loadu_ps(tf_lanes16(width - i), x + i);
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(half, odd)), 16);
    __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((void *)(halves + i), _mm512_cvtepi32_epi16(rounded));
  }
  for (; i < line_bytes / 2; i += 16) _mm256_storeu_si256((void *)(halves + i), _mm256_setzero_si256());
}

const tf_kernel tf_kernel_f32_avx512 = {TF_KERNEL_F32, .name = "f32 avx512",   .cpu = TF_CPU_AVX512,
                                        .panels = 4,   .product = product_f32, .finish = tf_finish_avx512};
const tf_kernel tf_kernel_bf16_avx512 = {TF_KERNEL_BF16,
                                         .name = "bf16 avx512",
                                         .cpu = TF_CPU_AVX512,
                                         .panels = 4,
                                         .product = tf_product_bf16_avx512,
                                         .finish = tf_finish_avx512,
                                         .convert = tf_convert_bf16_avx512};
const tf_kernel tf_kernel_int8_vnni = {TF_KERNEL_INT8,
                                       .name = "int8 vnni",
                                       .cpu = TF_CPU_VNNI,
                                       .panels = 4,
                                       .product = tf_product_int8_vnni,
                                       .finish = tf_finish_avx512,
                                       .convert = tf_convert_int8_avx512,
                                       .convert_normed = tf_convert_normed_int8_avx512};
const tf_kernel tf_kernel_int8x2_vnni = {TF_KERNEL_INT8X2,
                                         .name = "int8x2 vnni",
                                         .cpu = TF_CPU_VNNI,
                                         .panels = 4,
                                         .product = tf_product_int8_vnni,
                                         .finish = tf_finish_avx512,
                                         .convert = tf_convert_int8x2_avx512,
                                         .convert_normed = tf_convert_normed_int8x2_avx512};
#endif

/* Kernels of AVX2: products in f32 and int8 (AVX-VNNI where there is one), the finish of a block, rows to int8.
 * In: blocks as kernel.h lays them out. Out: sums, outputs, rows, bit for bit those of the AVX-512 int8 kernels but for
 * activations. A panel is two vectors; up to 6 rows of one panel are summed in 12 registers.
 * int8 without VNNI: |x| * (w with x's sign) in pairs to 16 bits. Weights stay within +-127 and inputs within +-128, so
 * a pair's sum stays within 32,512 and the saturating instruction never saturates. */
#include "tensor/kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "tensor/ops.h"
#include "tensor/vector.h"

#define TARGET_AVX2     "avx2,fma"
#define TARGET_AVX_VNNI TARGET_AVX2 ",avxvnni"
#define TF_AVX2         __attribute__((target(TARGET_AVX2)))
#define TF_AVX2_INLINE  TF_AVX2 static inline __attribute__((always_inline))

enum { TILE_ROWS = 6 };

static inline __attribute__((always_inline)) int32_t step_of(const char *row, int64_t step) {
  int32_t value;
  memcpy(&value, row + step * 4, sizeof value);
  return value;
}

/* PRODUCT(name, target, rows in a tile, sums' type, zero, sum + weights . 4 bytes of the row) */
#define PRODUCT(name, needs, tile_rows, vector, zero, add)                                                             \
  __attribute__((target(needs), always_inline)) static inline void name##_tile(const tf_block *block, int64_t first,   \
                                                                               int rows, int64_t panel) {              \
    vector low[tile_rows], high[tile_rows];                                                                            \
    const char *x = block->x + first * block->line_bytes, *weight = block->weight + panel * block->panel_bytes;        \
    int64_t row_bytes = block->line_bytes, steps = block->steps;                                                       \
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) low[r] = high[r] = zero;                                    \
    for (int64_t step = 0; step < steps; step++, weight += TF_STEP_BYTES) {                                            \
      __m256i w0 = _mm256_load_si256((const void *)weight), w1 = _mm256_load_si256((const void *)(weight + 32));       \
      _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) {                                                         \
        __m256i four = _mm256_set1_epi32(step_of(x + r * row_bytes, step));                                            \
        low[r] = add(low[r], w0, four);                                                                                \
        high[r] = add(high[r], w1, four);                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) {                                                           \
      char *out = (char *)block->sums + ((first + r) * block->panels + panel) * TF_STEP_BYTES;                         \
      memcpy(out, &low[r], 32);                                                                                        \
      memcpy(out + 32, &high[r], 32);                                                                                  \
    }                                                                                                                  \
  }                                                                                                                    \
  __attribute__((target(needs))) static void name(const tf_block *block) {                                             \
    for (int64_t panel = 0; panel < block->panels; panel++) {                                                          \
      int64_t first = 0;                                                                                               \
      for (; first + (tile_rows) <= block->lines; first += (tile_rows)) name##_tile(block, first, tile_rows, panel);   \
      switch (block->lines - first) {                                                                                  \
      case 1:                                                                                                          \
        name##_tile(block, first, 1, panel);                                                                           \
        break;                                                                                                         \
      case 2:                                                                                                          \
        name##_tile(block, first, 2, panel);                                                                           \
        break;                                                                                                         \
      case 3:                                                                                                          \
        name##_tile(block, first, 3, panel);                                                                           \
        break;                                                                                                         \
      case 4:                                                                                                          \
        name##_tile(block, first, 4 < (tile_rows) ? 4 : 1, panel);                                                     \
        break;                                                                                                         \
      case 5:                                                                                                          \
        name##_tile(block, first, 5 < (tile_rows) ? 5 : 1, panel);                                                     \
        break;                                                                                                         \
      default:                                                                                                         \
        break;                                                                                                         \
      }                                                                                                                \
    }                                                                                                                  \
  }

TF_AVX2_INLINE __m256i add_int8(__m256i sum, __m256i w, __m256i four) {
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(four), _mm256_sign_epi8(w, four));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#define ADD_F32(sum, w, four)  _mm256_fmadd_ps(_mm256_castsi256_ps(w), _mm256_castsi256_ps(four), sum)
#define ADD_VNNI(sum, w, four) _mm256_dpbusd_avx_epi32(sum, four, w)
PRODUCT(product_f32, TARGET_AVX2, 6, __m256, _mm256_setzero_ps(), ADD_F32)
PRODUCT(product_int8, TARGET_AVX2, 4, __m256i, _mm256_setzero_si256(), add_int8)
PRODUCT(product_avx_vnni, TARGET_AVX_VNNI, 6, __m256i, _mm256_setzero_si256(), ADD_VNNI)

/* -- the finish ------------------------------------------------------------------------------------------------- */

/* Eight sums of a line as floats, the offset taken off. */
TF_AVX2_INLINE __m256 line_sums(const tf_finish *f, int64_t line, int64_t at) {
  __m256i sums = _mm256_loadu_si256((const void *)((const char *)f->sums + (line * f->sums_stride + at) * 4));
  return _mm256_cvtepi32_ps(_mm256_add_epi32(sums, _mm256_loadu_si256((const void *)(f->offset + at))));
}

/* One row's sums as floats, scaled (int8), bias added: count columns from `at` of the panels on, a multiple of 8. */
TF_AVX2_INLINE void scale_row(const tf_finish *f, int64_t row, int64_t at, int64_t count, float *out) {
  const float *floats = f->sums;
  for (int64_t i = at; i < at + count; i += 8, out += 8) {
    __m256 bias = _mm256_loadu_ps(f->bias + i), sum;
    if (!f->row_scale) {
      _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(floats + row * f->sums_stride + i), bias));
      continue;
    }
    if (f->halves)
      sum = _mm256_fmadd_ps(line_sums(f, 2 * row, i), _mm256_set1_ps(256.0f), line_sums(f, 2 * row + 1, i));
    else
      sum = line_sums(f, row, i);
    __m256 factor = _mm256_mul_ps(_mm256_set1_ps(f->row_scale[row]), _mm256_loadu_ps(f->column_scale + i));
    _mm256_storeu_ps(out, _mm256_fmadd_ps(sum, factor, bias));
  }
}

TF_AVX2 void tf_finish_avx2(const tf_finish *f) {
  float values[TF_BLOCK_PANELS_MAX * TF_PANEL], second[TF_PANEL];
  int64_t columns = f->columns;
  for (int64_t row = 0; row < f->rows; row++) {
    float *y = f->y + row * f->y_stride;
    const float *residual = f->residual ? f->residual + row * f->y_stride : NULL;
    if (f->swiglu) {
      for (int64_t at = 0; at < columns; at += TF_PANEL) {
        scale_row(f, row, 2 * at, TF_PANEL, values + at);
        scale_row(f, row, 2 * at + TF_PANEL, TF_PANEL, second);
        tf_activate_many(TF_ACTIVATION_SILU, values + at, TF_PANEL);
        for (int i = 0; i < TF_PANEL; i++) values[at + i] *= second[i];
      }
    } else {
      scale_row(f, row, 0, (columns + 7) / 8 * 8, values);
      tf_activate_many(f->activation, values, columns);
    }
    for (int64_t i = 0; f->scale && i < columns; i++) values[i] *= f->scale[i];
    for (int64_t i = 0; residual && i < columns; i++) values[i] += residual[i];
    memcpy(y, values, (size_t)columns * sizeof *y);
  }
}

/* -- rows ------------------------------------------------------------------------------------------------------- */

TF_AVX2_INLINE float largest_of(const float *x, int64_t width) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MAX));
  __m256 most = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) most = _mm256_max_ps(most, _mm256_and_ps(_mm256_loadu_ps(x + i), magnitude));
  float lanes[8], largest = 0;
  _mm256_storeu_ps(lanes, most);
  for (int lane = 0; lane < 8; lane++) largest = lanes[lane] > largest ? lanes[lane] : largest;
  for (; i < width; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
  return largest;
}

/* Eight inputs (fewer at the end) times the factor, as integers. */
TF_AVX2_INLINE __m256i scaled_inputs(const float *x, int64_t count, float factor) {
  float lanes[8] = {0};
  memcpy(lanes, x, (size_t)(count < 8 ? count : 8) * sizeof *lanes);
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(lanes), _mm256_set1_ps(factor)));
}

TF_AVX2_INLINE void store_bytes(int8_t *out, __m256i q, int middle) {
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64((void *)out, _mm_xor_si128(_mm_packs_epi16(words, words), _mm_set1_epi8((char)middle)));
}

/* As tf_convert_int8_avx512, but signed where middle is 0. Lines are a multiple of 64 bytes. */
TF_AVX2_INLINE void convert(const float *x, int64_t width, int64_t line_bytes, int8_t *out, float *scale, int middle) {
  float largest = largest_of(x, width), factor = largest > 0 ? 127.0f / largest : 0.0f;
  *scale = largest / 127.0f;
  memset(out, middle, (size_t)line_bytes);
  for (int64_t i = 0; i < width; i += 8) store_bytes(out + i, scaled_inputs(x + i, width - i, factor), middle);
}
TF_AVX2 static void convert_signed(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale) {
  convert(x, width, line_bytes, out, scale, 0);
}
TF_AVX2 static void convert_unsigned(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale) {
  convert(x, width, line_bytes, out, scale, -128);
}

/* As tf_convert_int8x2_avx512, likewise. */
TF_AVX2_INLINE void convert_halves(const float *x, int64_t width, int64_t line_bytes, int8_t *out, float *scale,
                                   int middle) {
  float largest = largest_of(x, width), factor = largest > 0 ? 32512.0f / largest : 0.0f;
  *scale = largest / 32512.0f;
  memset(out, middle, 2 * (size_t)line_bytes);
  for (int64_t i = 0; i < width; i += 8) {
    __m256i q = scaled_inputs(x + i, width - i, factor);
    __m256i high = _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(128)), 8);
    store_bytes(out + i, high, middle);
    store_bytes(out + line_bytes + i, _mm256_sub_epi32(q, _mm256_slli_epi32(high, 8)), middle);
  }
}
TF_AVX2 static void halves_signed(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale) {
  convert_halves(x, width, line_bytes, out, scale, 0);
}
TF_AVX2 static void halves_unsigned(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale) {
  convert_halves(x, width, line_bytes, out, scale, -128);
}

const tf_kernel tf_kernel_f32_avx2 = {TF_KERNEL_F32, .name = "f32 avx2",     .cpu = TF_CPU_AVX2,
                                      .panels = 4,   .product = product_f32, .finish = tf_finish_avx2};
/* The int8 kernels of AVX2: rows are signed without AVX-VNNI. */
const tf_kernel tf_kernel_int8_avx2 = {
    TF_KERNEL_INT8, .name = "int8 avx2",     .cpu = TF_CPU_AVX2,        .is_signed = true,
    .panels = 4,    .product = product_int8, .convert = convert_signed, .finish = tf_finish_avx2};
const tf_kernel tf_kernel_int8x2_avx2 = {
    TF_KERNEL_INT8X2, .name = "int8x2 avx2",   .cpu = TF_CPU_AVX2,       .is_signed = true,
    .panels = 4,      .product = product_int8, .convert = halves_signed, .finish = tf_finish_avx2};
const tf_kernel tf_kernel_int8_avx_vnni = {
    TF_KERNEL_INT8, .name = "int8 avx-vnni",     .cpu = TF_CPU_AVX2,          .is_signed = false,
    .panels = 4,    .product = product_avx_vnni, .convert = convert_unsigned, .finish = tf_finish_avx2};
const tf_kernel tf_kernel_int8x2_avx_vnni = {
    TF_KERNEL_INT8X2, .name = "int8x2 avx-vnni",   .cpu = TF_CPU_AVX2,         .is_signed = false,
    .panels = 4,      .product = product_avx_vnni, .convert = halves_unsigned, .finish = tf_finish_avx2};
#endif

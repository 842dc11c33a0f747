/* Kernels of AMX: products in int8 and bf16 with tile registers. In: blocks as kernel.h lays them out. Out: sums.
 * Two tiles of 16 rows by two of 16 outputs: each 64 bytes of depth take 2 + 2 tile loads and 4 products, so that the
 * loads hide behind the products. Lines are read as they lie; past the last of them up to 15 more are read whose
 * sums nobody looks at (rows are always stored in memory of whole blocks). bf16 stays here for any number of rows:
 * AVX-512 sums in another order, and a row's result is not to depend on how many are beside it. Sums of int8 are exact,
 * so few rows may take VNNI. */
#include "tensor/kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#define TF_AMX __attribute__((target("amx-tile,amx-int8,amx-bf16")))

enum { TILE_ROWS = 16 };

typedef struct tile_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tile_config;

/* All eight tiles 16 rows of 64 bytes. Setting up and releasing takes 170 cycles, more than a small block's products:
 * so it is done once for a thread's whole piece of work. */
static const tile_config CONFIG = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

TF_AMX static void begin(void) {
  _tile_loadconfig(&CONFIG);
}
TF_AMX static void end(void) {
  _tile_release();
}

/* PRODUCT(name, instruction): 0..3 sums, 4 and 5 rows, 6 and 7 weights. Rows past 16 and the second panel are optional.
 */
#define PRODUCT(name, multiply)                                                                                        \
  TF_AMX static void name(const tf_block *block) {                                                                     \
    const char *x = block->x, *second_x = x + TILE_ROWS * block->line_bytes;                                           \
    const char *weight = block->weight, *second_weight = weight + block->panel_bytes;                                  \
    int64_t depth = block->steps / TILE_ROWS;                                                                          \
    bool tall = block->lines > TILE_ROWS, wide = block->panels > 1;                                                    \
    _tile_zero(0);                                                                                                     \
    _tile_zero(1);                                                                                                     \
    _tile_zero(2);                                                                                                     \
    _tile_zero(3);                                                                                                     \
    if (tall && wide) {                                                                                                \
      for (int64_t i = 0; i < depth; i++) {                                                                            \
        _tile_loadd(6, weight + i * 1024, 64);                                                                         \
        _tile_loadd(4, x + i * 64, block->line_bytes);                                                                 \
        multiply(0, 4, 6);                                                                                             \
        _tile_loadd(7, second_weight + i * 1024, 64);                                                                  \
        multiply(1, 4, 7);                                                                                             \
        _tile_loadd(5, second_x + i * 64, block->line_bytes);                                                          \
        multiply(2, 5, 6);                                                                                             \
        multiply(3, 5, 7);                                                                                             \
      }                                                                                                                \
    } else {                                                                                                           \
      for (int64_t i = 0; i < depth; i++) {                                                                            \
        _tile_loadd(6, weight + i * 1024, 64);                                                                         \
        _tile_loadd(4, x + i * 64, block->line_bytes);                                                                 \
        multiply(0, 4, 6);                                                                                             \
        if (wide) {                                                                                                    \
          _tile_loadd(7, second_weight + i * 1024, 64);                                                                \
          multiply(1, 4, 7);                                                                                           \
        }                                                                                                              \
        if (tall) {                                                                                                    \
          _tile_loadd(5, second_x + i * 64, block->line_bytes);                                                        \
          multiply(2, 5, 6);                                                                                           \
        }                                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
    char *sums = block->sums;                                                                                          \
    int64_t stride = block->panels * TF_STEP_BYTES;                                                                    \
    _tile_stored(0, sums, stride);                                                                                     \
    if (wide) _tile_stored(1, sums + TF_STEP_BYTES, stride);                                                           \
    if (tall) _tile_stored(2, sums + TILE_ROWS * stride, stride);                                                      \
    if (tall && wide) _tile_stored(3, sums + TILE_ROWS * stride + TF_STEP_BYTES, stride);                              \
  }
PRODUCT(product_int8, _tile_dpbusd)
PRODUCT(product_bf16, _tile_dpbf16ps)

const tf_kernel tf_kernel_int8_amx = {.name = "int8 amx",
                                      .compute = TF_COMPUTE_INT8,
                                      .cpu = TF_CPU_AMX,
                                      .step_inputs = 4,
                                      .inputs_align = 64,
                                      .halves = 1,
                                      .few_panels = 4,
                                      .many_panels = 2,
                                      .many_lines = 5,
                                      .begin = begin,
                                      .end = end,
                                      .few = tf_product_int8_vnni,
                                      .many = product_int8,
                                      .finish = tf_finish_avx512,
                                      .convert = tf_convert_int8_avx512};
const tf_kernel tf_kernel_int8x2_amx = {.name = "int8x2 amx",
                                        .compute = TF_COMPUTE_INT8X2,
                                        .cpu = TF_CPU_AMX,
                                        .step_inputs = 4,
                                        .inputs_align = 64,
                                        .halves = 2,
                                        .few_panels = 4,
                                        .many_panels = 2,
                                        .many_lines = 5,
                                        .begin = begin,
                                        .end = end,
                                        .few = tf_product_int8_vnni,
                                        .many = product_int8,
                                        .finish = tf_finish_avx512,
                                        .convert = tf_convert_int8x2_avx512};
const tf_kernel tf_kernel_bf16_amx = {.name = "bf16 amx",
                                      .compute = TF_COMPUTE_BF16,
                                      .cpu = TF_CPU_AMX,
                                      .step_inputs = 2,
                                      .inputs_align = 32,
                                      .halves = 1,
                                      .few_panels = 2,
                                      .many_panels = 2,
                                      .many_lines = 1,
                                      .begin = begin,
                                      .end = end,
                                      .few = product_bf16,
                                      .many = product_bf16,
                                      .finish = tf_finish_avx512,
                                      .convert = tf_convert_bf16_avx512};
#endif

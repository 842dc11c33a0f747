/* Kernels of AMX: products in int8 and bf16 with tile registers. In: blocks as kernel.h lays them out. Out: sums.
 * Two tiles of 16 rows by two of 16 outputs: each 64 bytes of depth take 2 + 2 tile loads and 4 products, so that the
 * loads hide behind the products. Lines are read as they lie; past the last of them up to 15 more are read whose
 * sums nobody looks at (rows are always stored in memory of whole blocks). One row
 * takes this way too: its time is the weights' way from memory, and bf16's sums would come out otherwise with AVX-512,
 * while a row's result is not to depend on how many are beside it. */
#include "tensor/kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "tensor/amx.h"

#define TF_AMX __attribute__((target("amx-tile,amx-int8,amx-bf16")))

enum { TILE_ROWS = 16, FETCH_BYTES = 4096 };

/* Setting up and releasing takes 170 cycles, more than a small block's products: so it is done once for a thread's
 * whole piece of work. */
static const tf_tile_config CONFIG = TF_TILES_WHOLE;

TF_AMX static void begin(void) {
  _tile_loadconfig(&CONFIG);
}
TF_AMX static void end(void) {
  _tile_release();
}

/* Weights on their way to the second-level cache, four tiles ahead, also into the panels that come next: tile loads
 * wait for memory longer than the processor looks ahead, and its own prefetchers stop at every page. */
static inline __attribute__((always_inline)) void fetch(const char *first, const char *second) {
#pragma GCC unroll 16
  for (int line = 0; line < 16; line++) {
    __builtin_prefetch(first + FETCH_BYTES + line * 64, 0, 2);
    __builtin_prefetch(second + FETCH_BYTES + line * 64, 0, 2);
  }
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
        if (block->is_first) fetch(weight + i * 1024, second_weight + i * 1024);                                       \
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
        if (block->is_first) fetch(weight + i * 1024, second_weight + i * 1024);                                       \
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

#define AMX .cpu = TF_CPU_AMX, .panels = 2, .begin = begin, .end = end, .finish = tf_finish_avx512
const tf_kernel tf_kernel_int8_amx = {TF_KERNEL_INT8,
                                      .name = "int8 amx",
                                      AMX,
                                      .product = product_int8,
                                      .convert = tf_convert_int8_avx512,
                                      .convert_normed = tf_convert_normed_int8_avx512};
const tf_kernel tf_kernel_int8x2_amx = {TF_KERNEL_INT8X2,
                                        .name = "int8x2 amx",
                                        AMX,
                                        .product = product_int8,
                                        .convert = tf_convert_int8x2_avx512,
                                        .convert_normed = tf_convert_normed_int8x2_avx512};
const tf_kernel tf_kernel_bf16_amx = {TF_KERNEL_BF16, .name = "bf16 amx", AMX, .product = product_bf16,
                                      .convert = tf_convert_bf16_avx512};
#endif

/* bf16 attention with AMX tiles. In: stretches (attention_kernel.h) of many lines. Out: scores, sums.
 * Scores: two tiles of 16 lines by two blocks; values: two tiles of lines by two panels, half a tile deep, as a block
 * has 16 positions. Lines past the last one are computed with what lies there, and nobody looks at them. */
#include "tensor/attention_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <stdbool.h>

#include "tensor/amx.h"

#define TF_AMX __attribute__((target("amx-tile,amx-bf16")))

enum { TILE_LINES = 16, TILE_STEPS = 16, TILE_BYTES = TILE_STEPS * TF_KEY_STEP };

/* 0..3: sums; 4, 5: lines; 6, 7: keys or values. */
static const tf_tile_config SCORE = TF_TILES_WHOLE;
static const tf_tile_config GATHER = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 32, 32, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 8, 8}};

TF_AMX static void score_tile(const tf_stretch *self, int64_t line, int64_t block, bool tall, bool wide) {
  int64_t line_bytes = 4 * self->steps;
  const char *query = (const char *)self->query + line * line_bytes, *below = query + TILE_LINES * line_bytes;
  const char *key = self->keys[block], *next = wide ? self->keys[block + 1] : key;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < self->steps; step += TILE_STEPS) {
    _tile_loadd(4, query + 4 * step, line_bytes);
    _tile_loadd(6, key + step * TF_KEY_STEP, TF_KEY_STEP);
    _tile_dpbf16ps(0, 4, 6);
    if (wide) {
      _tile_loadd(7, next + step * TF_KEY_STEP, TF_KEY_STEP);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (tall) {
      _tile_loadd(5, below + 4 * step, line_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (wide) _tile_dpbf16ps(3, 5, 7);
    }
  }
  float *scores = self->scores + line * TF_STRETCH + block * TF_BLOCK_KEYS;
  int64_t stride = TF_STRETCH * (int64_t)sizeof *scores;
  _tile_stored(0, scores, stride);
  if (wide) _tile_stored(1, scores + TF_BLOCK_KEYS, stride);
  if (tall) _tile_stored(2, scores + TILE_LINES * TF_STRETCH, stride);
  if (tall && wide) _tile_stored(3, scores + TILE_LINES * TF_STRETCH + TF_BLOCK_KEYS, stride);
}

TF_AMX static void score(const tf_stretch *self) {
  _tile_loadconfig(&SCORE);
  for (int64_t line = 0; line < self->lines; line += 2 * TILE_LINES)
    for (int64_t block = 0; block < self->blocks; block += 2)
      score_tile(self, line, block, line + TILE_LINES < self->lines, block + 1 < self->blocks);
  _tile_release();
}

TF_AMX static void gather_tile(const tf_stretch *self, int64_t line, int64_t panel, bool tall, bool wide) {
  float *sums = self->sums + line * 16 * self->panels + 16 * panel, *below = sums + TILE_LINES * 16 * self->panels;
  int64_t stride = 64 * self->panels, power_bytes = TF_STRETCH * (int64_t)sizeof *self->powers;
  const char *powers = (const char *)(self->powers + line * TF_STRETCH);
  _tile_loadd(0, sums, stride);
  if (wide) _tile_loadd(1, sums + 16, stride);
  if (tall) _tile_loadd(2, below, stride);
  if (tall && wide) _tile_loadd(3, below + 16, stride);
  for (int64_t block = 0; block < self->blocks; block++, powers += 2 * TF_BLOCK_KEYS) {
    const char *value = self->values[block] + panel * TF_VALUE_PANEL;
    _tile_loadd(4, powers, power_bytes);
    _tile_loadd(6, value, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (wide) {
      _tile_loadd(7, value + TF_VALUE_PANEL, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (tall) {
      _tile_loadd(5, powers + TILE_LINES * power_bytes, power_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (wide) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, stride);
  if (wide) _tile_stored(1, sums + 16, stride);
  if (tall) _tile_stored(2, below, stride);
  if (tall && wide) _tile_stored(3, below + 16, stride);
}

TF_AMX static void gather(const tf_stretch *self) {
  _tile_loadconfig(&GATHER);
  for (int64_t line = 0; line < self->lines; line += 2 * TILE_LINES)
    for (int64_t panel = 0; panel < self->panels; panel += 2)
      gather_tile(self, line, panel, line + TILE_LINES < self->lines, panel + 1 < self->panels);
  _tile_release();
}

const tf_attention_kernel tf_attention_amx = {score, gather};
#endif

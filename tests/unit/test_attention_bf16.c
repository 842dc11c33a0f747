/* Attention in bf16 against the formula in double, at every level that this machine has.
 * In: numbers made here, representable in bf16. Out: a Criterion suite.
 * What is left to differ: powers are rounded to bf16 (2^-9 of each), and the scaled query, exactly for 64 dimensions;
 * with scores within 4 that is 1e-2 of the largest |v| = 1 at most. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/attention_bf16.h"
#include "tensor/attention_kernel.h"
#include "tensor/cpu.h"

#define TOLERANCE 1e-2

static const char *const LEVELS[] = {"avx512", "vnni", "amx"};
enum { LEVEL_COUNT = 3, SEQUENCES = 3, BLOCKS_MAX = 64, ROWS_MAX = 800 };

static float *random_floats(int64_t count, float scale, uint32_t seed) {
  float *x = malloc((size_t)count * sizeof *x);
  cr_assert_not_null(x);
  for (int64_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = scale * (float)((int32_t)seed >> 25) / 64.0f; /* 7 bits */
  }
  return x;
}

static void exact_attention(const float *query, const float *keys, const float *values, int64_t count, int64_t stride,
                            int64_t dim, double *out) {
  double total = 0.0;
  for (int64_t i = 0; i < dim; i++) out[i] = 0.0;
  for (int64_t t = 0; t < count; t++) {
    double score = 0.0;
    for (int64_t i = 0; i < dim; i++) score += (double)query[i] * (double)keys[t * stride + i];
    double power = exp(score / sqrt((double)dim));
    total += power;
    for (int64_t i = 0; i < dim; i++) out[i] += power * (double)values[t * stride + i];
  }
  for (int64_t i = 0; i < dim; i++) out[i] /= total;
}

static bool use_level(const char *level) {
  tf_error error;
  if (tf_cpu_use(level, "int8", &error) == TF_OK && tf_attention_bf16_wanted()) return true;
  cr_log_info("%s: not on this machine", level);
  return false;
}

static void check_full(tf_pool *pool, int64_t batch, int64_t tokens, int64_t heads, int64_t dim) {
  int64_t width = heads * dim, count = batch * tokens * width;
  float *q = random_floats(count, 1.0f, 1), *k = random_floats(count, 1.0f, 2), *v = random_floats(count, 1.0f, 3);
  float *out = random_floats(count, 1.0f, 4);
  double exact[TF_HEAD_DIM_MAX];
  cr_assert_eq(tf_attention_bf16_full(pool, q, k, v, batch, tokens, heads, dim, out), TF_OK);
  for (int64_t at = 0; at < batch * tokens * heads; at++) {
    int64_t image = at / tokens / heads, row = at / heads % tokens, head = at % heads;
    int64_t base = image * tokens * width + head * dim;
    exact_attention(q + base + row * width, k + base, v + base, tokens, width, dim, exact);
    for (int64_t i = 0; i < dim; i++)
      cr_assert_float_eq((double)out[base + row * width + i], exact[i], TOLERANCE, "%ld tokens, %ld dims: row %ld",
                         (long)tokens, (long)dim, (long)row);
  }
  free(q);
  free(k);
  free(v);
  free(out);
}

Test(attention_bf16, full, .timeout = 120) {
  for (int level = 0; level < LEVEL_COUNT; level++) {
    if (!use_level(LEVELS[level])) continue;
    for (int threads = 1; threads <= 3; threads++) {
      tf_pool *pool = tf_pool_new(threads);
      check_full(pool, 1, 1, 1, 64);
      check_full(pool, 2, 17, 3, 16);
      check_full(pool, 3, 5, 2, 7);
      check_full(pool, 1, 257, 2, 64);
      check_full(pool, 1, 530, 1, 72);
      tf_pool_free(&pool);
    }
  }
}

Test(attention_bf16, refuses_what_does_not_fit, .timeout = 30) {
  tf_pool *pool = tf_pool_new(1);
  float x = 0.0f;
  cr_assert_eq(tf_attention_bf16_full(pool, &x, &x, &x, 1, 60000, 1, 64, &x), TF_ERR_UNSUPPORTED);
  tf_bf16_rows rows = {.rows = 1};
  cr_assert_eq(tf_attention_bf16_paged(pool, &x, &rows, 3, 2, 64, &x), TF_ERR_UNSUPPORTED);
  tf_pool_free(&pool);
}

/* Sequences that end with some rows of a prompt, or one that decodes. */
typedef struct paged {
  int64_t heads, kv_heads, dim, length[SEQUENCES], rows[SEQUENCES], row_count;
  float *keys[SEQUENCES], *values[SEQUENCES]; /* [length, kv_heads, dim] */
  void *key_blocks[SEQUENCES][BLOCKS_MAX], *value_blocks[SEQUENCES][BLOCKS_MAX];
  const void *const *row_keys[ROWS_MAX], *const *row_values[ROWS_MAX];
  int32_t positions[ROWS_MAX];
} paged;

static void fill_paged(paged *self) {
  int64_t width = self->kv_heads * self->dim;
  size_t bytes = (tf_attention_bf16_block_bytes(self->kv_heads, self->dim) + 63) / 64 * 64;
  for (int s = 0; s < SEQUENCES; s++) {
    int64_t length = self->length[s], blocks = (length - 1) / TF_BF16_BLOCK_TOKENS + 1;
    self->keys[s] = random_floats(length * width, 1.0f, 10 + (uint32_t)s);
    self->values[s] = random_floats(length * width, 1.0f, 20 + (uint32_t)s);
    float *stale = random_floats(width, 64.0f, 30);
    for (int64_t b = 0; b < blocks; b++) {
      self->key_blocks[s][b] = aligned_alloc(64, bytes);
      self->value_blocks[s][b] = aligned_alloc(64, bytes);
      memset(self->key_blocks[s][b], 0, bytes);
      memset(self->value_blocks[s][b], 0, bytes);
      for (int64_t place = 0; place < TF_BF16_BLOCK_TOKENS; place++) {
        int64_t t = b * TF_BF16_BLOCK_TOKENS + place;
        tf_attention_bf16_store(self->key_blocks[s][b], self->value_blocks[s][b], place,
                                t < length ? self->keys[s] + t * width : stale,
                                t < length ? self->values[s] + t * width : stale, self->kv_heads, self->dim, NULL);
      }
    }
    free(stale);
    for (int64_t r = 0; r < self->rows[s]; r++, self->row_count++) {
      self->positions[self->row_count] = (int32_t)(length - self->rows[s] + r);
      self->row_keys[self->row_count] = (const void *const *)self->key_blocks[s];
      self->row_values[self->row_count] = (const void *const *)self->value_blocks[s];
    }
  }
}

static void free_paged(paged *self) {
  for (int s = 0; s < SEQUENCES; s++) {
    for (int64_t b = 0; b <= (self->length[s] - 1) / TF_BF16_BLOCK_TOKENS; b++) {
      free(self->key_blocks[s][b]);
      free(self->value_blocks[s][b]);
    }
    free(self->keys[s]);
    free(self->values[s]);
  }
}

static void check_paged(paged self) {
  int64_t width = self.heads * self.dim, kv_width = self.kv_heads * self.dim, row = 0;
  fill_paged(&self);
  float *q = random_floats(self.row_count * width, 1.0f, 1), *first = NULL;
  double exact[TF_HEAD_DIM_MAX];
  tf_bf16_rows rows = {self.row_count, self.positions, self.row_keys, self.row_values, NULL};
  for (int threads = 1; threads <= 2; threads++) {
    tf_pool *pool = tf_pool_new(threads);
    float *out = random_floats(self.row_count * width, 1.0f, 2);
    cr_assert_eq(tf_attention_bf16_paged(pool, q, &rows, self.heads, self.kv_heads, self.dim, out), TF_OK);
    tf_pool_free(&pool);
    if (first == NULL) {
      first = out;
      continue;
    }
    cr_assert_eq(memcmp(first, out, (size_t)(self.row_count * width) * sizeof *out), 0, "threads change the result");
    free(out);
  }
  for (int s = 0; s < SEQUENCES; s++) {
    for (int64_t r = 0; r < self.rows[s]; r++, row++) {
      for (int64_t head = 0; head < self.heads; head++) {
        int64_t kv_head = head / (self.heads / self.kv_heads);
        exact_attention(q + row * width + head * self.dim, self.keys[s] + kv_head * self.dim,
                        self.values[s] + kv_head * self.dim, self.positions[row] + 1, kv_width, self.dim, exact);
        for (int64_t i = 0; i < self.dim; i++)
          cr_assert_float_eq((double)first[row * width + head * self.dim + i], exact[i], TOLERANCE,
                             "sequence %d, row %ld, head %ld", s, (long)r, (long)head);
      }
    }
  }
  free(q);
  free(first);
  free_paged(&self);
}

Test(attention_bf16, paged, .timeout = 120) {
  for (int level = 0; level < LEVEL_COUNT; level++) {
    if (!use_level(LEVELS[level])) continue;
    check_paged((paged){.heads = 9, .kv_heads = 3, .dim = 64, .length = {271, 5, 40}, .rows = {1, 1, 1}});
    check_paged((paged){.heads = 9, .kv_heads = 3, .dim = 64, .length = {271, 33, 700}, .rows = {271, 33, 1}});
    check_paged((paged){.heads = 4, .kv_heads = 4, .dim = 72, .length = {700, 16, 17}, .rows = {120, 16, 2}});
    check_paged((paged){.heads = 14, .kv_heads = 2, .dim = 16, .length = {1, 2, 530}, .rows = {1, 2, 30}});
  }
}

#if defined(__x86_64__)
/* One line's state after some scores, and their powers. */
typedef struct absorbed {
  uint16_t powers[TF_STRETCH];
  float maximum, total, sums[32];
} absorbed;

/* Both ways to round, however many positions are visible: one result, and it is the formula's. */
Test(attention_bf16, powers_by_either_rounding) {
  enum { POSITIONS = 80 };
  if (!use_level("avx512")) return;
  float *scores = random_floats(POSITIONS, 60.0f, 7); /* steep: most powers are small */
  for (int64_t visible = 0; visible <= POSITIONS; visible++) {
    absorbed plain = {.maximum = 1.5f, .total = 3.0f}, native;
    for (int i = 0; i < 32; i++) plain.sums[i] = (float)i;
    native = plain;
    int64_t positions = (visible + 31) / 16 * 16; /* a block more than some line sees */
    if (positions > POSITIONS) positions = POSITIONS;
    tf_attention_absorb(scores, plain.powers, positions, visible, &plain.maximum, &plain.total, plain.sums, 32);
    double most = 1.5, total = 0.0;
    for (int64_t t = 0; t < visible; t++) most = fmax(most, (double)scores[t]);
    for (int64_t t = 0; t < visible; t++) total += exp((double)scores[t] - most);
    total += 3.0 * exp(1.5 - most);
    cr_assert_float_eq((double)plain.maximum, most, 0.0);
    cr_assert_float_eq((double)plain.total, total, 1e-6 * total, "%ld visible", (long)visible);
    cr_assert_float_eq((double)plain.sums[31], 31.0 * exp(1.5 - most), 1e-4);
    for (int64_t t = 0; t < positions; t++) {
      uint32_t bits = (uint32_t)plain.powers[t] << 16;
      float power;
      memcpy(&power, &bits, sizeof power);
      double exact = t < visible ? exp((double)scores[t] - most) : 0.0;
      cr_assert_float_eq((double)power, exact, 4e-3 * exact + 1e-37, "%ld of %ld", (long)t, (long)visible);
    }
    if (!tf_cpu_has_bf16()) continue; /* this machine rounds one way alone */
    tf_attention_absorb_bf16(scores, native.powers, positions, visible, &native.maximum, &native.total, native.sums,
                             32);
    cr_assert_eq(memcmp(&plain, &native, sizeof plain), 0, "%ld visible", (long)visible);
  }
  free(scores);
}

/* Turned and rounded at once: within a step of bf16 of RoPE alone and then rounding; zeros behind the head. */
Test(attention_bf16, round_turned) {
  enum { PADDED = 128, HEADS_DIMS = 4 };
  static const int64_t dims[HEADS_DIMS] = {6, 64, 80, 96};
  if (!use_level("avx512")) return;
  for (int i = 0; i < 2 * HEADS_DIMS; i++) {
    tf_rope_layout layout = i % 2 ? TF_ROPE_HALF_SPLIT : TF_ROPE_INTERLEAVED;
    int64_t dim = dims[i / 2];
    float cosine[PADDED], sine[PADDED], *x = random_floats(dim, 2.0f, 40);
    uint16_t turned[PADDED];
    tf_rope_angles((int32_t[]){77}, 1, dim, 10000.0, layout, cosine, sine);
    tf_attention_round_turned(x, cosine, sine, layout, 0.125f, dim, PADDED, turned);
    tf_rope_row(x, 1, dim, layout, cosine, sine);
    for (int64_t at = 0; at < PADDED; at++) {
      uint32_t bits = (uint32_t)turned[at] << 16;
      float got, expected = at < dim ? 0.125f * x[at] : 0.0f;
      memcpy(&got, &bits, sizeof got);
      cr_assert_float_eq((double)got, (double)expected, 4e-3 * fabs((double)expected) + 1e-7, "%ld of %ld", (long)at,
                         (long)dim);
    }
    free(x);
  }
}
#endif

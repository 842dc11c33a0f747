/* Both attentions against the formula in double. In: numbers made here. Out: a Criterion suite.
 * Tolerance 8e-6 * the largest |v|: scores reach 30 to 100 here, where an f32 ulp is 2e-6 to 8e-6, and a weight's
 * relative error is its score's absolute one; the mean over positions makes it smaller again. Real scores are
 * within 20. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/cpu.h"
#include "tensor/ops.h"

#define TOLERANCE 8e-6

/* Levels whose ways differ: OpenBLAS, our kernels; the best of this machine. */
static const char *const LEVELS[] = {"portable", "avx2", "auto"};
enum { LEVEL_COUNT = sizeof LEVELS / sizeof *LEVELS };

static bool use_level(int level) {
  tf_error error;
  return tf_cpu_use(LEVELS[level], "f32", &error) == TF_OK; /* this machine may lack it */
}

static float *random_floats(int64_t count, float scale, uint32_t seed) {
  float *x = malloc((size_t)count * sizeof *x);
  cr_assert_not_null(x);
  for (int64_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = scale * (float)(int32_t)seed / 2147483648.0f;
  }
  return x;
}

/* One query against `count` keys and values, `stride` floats apart: out[dim] in double. */
static void exact_attention(const float *query, const float *keys, const float *values, int64_t count, int64_t stride,
                            int64_t dim, double *out) {
  double *weights = malloc((size_t)count * sizeof *weights), most = -INFINITY, total = 0.0;
  cr_assert_not_null(weights);
  for (int64_t t = 0; t < count; t++) {
    weights[t] = 0.0;
    for (int64_t i = 0; i < dim; i++) weights[t] += (double)query[i] * (double)keys[t * stride + i];
    weights[t] /= sqrt((double)dim);
    most = fmax(most, weights[t]);
  }
  for (int64_t t = 0; t < count; t++) total += weights[t] = exp(weights[t] - most);
  for (int64_t i = 0; i < dim; i++) out[i] = 0.0;
  for (int64_t t = 0; t < count; t++) {
    for (int64_t i = 0; i < dim; i++) out[i] += weights[t] / total * (double)values[t * stride + i];
  }
  free(weights);
}

static void check_full(tf_pool *pool, int64_t batch, int64_t tokens, int64_t heads, int64_t dim) {
  int64_t width = heads * dim, count = batch * tokens * width;
  float *q = random_floats(count, 4.0f, 1), *k = random_floats(count, 4.0f, 2), *v = random_floats(count, 1.0f, 3);
  float *out = random_floats(count, 1.0f, 4);
  double exact[TF_HEAD_DIM_MAX];
  cr_assert_eq(tf_attention_full(pool, q, k, v, batch, tokens, heads, dim, out), TF_OK);
  for (int64_t image = 0; image < batch; image++) {
    for (int64_t row = 0; row < tokens; row++) {
      for (int64_t head = 0; head < heads; head++) {
        int64_t base = image * tokens * width + head * dim;
        exact_attention(q + base + row * width, k + base, v + base, tokens, width, dim, exact);
        for (int64_t i = 0; i < dim; i++) {
          cr_assert_float_eq((double)out[base + row * width + i], exact[i], TOLERANCE,
                             "%ld tokens: image %ld, row %ld, head %ld", (long)tokens, (long)image, (long)row,
                             (long)head);
        }
      }
    }
  }
  free(q);
  free(k);
  free(v);
  free(out);
}

Test(attention, full, .timeout = 120) {
  for (int level = 0; level < LEVEL_COUNT; level++) {
    for (int threads = 1; threads <= 3 && use_level(level); threads++) {
      tf_pool *pool = tf_pool_new(threads);
      check_full(pool, 1, 1, 1, 4);
      check_full(pool, 2, 17, 3, 16);
      check_full(pool, 3, 5, 2, 7);
      check_full(pool, 2, 9, 2, 21);
      check_full(pool, 1, 257, 2, 64);
      check_full(pool, 1, 129, 1, 31);
      check_full(pool, 1, 130, 1, 72);
      tf_pool_free(&pool);
    }
  }
}

/* More tokens than a tile of 128 rows of scores fits the scratch for. */
Test(attention, full_with_many_tokens, .timeout = 120) {
  enum { TOKENS = 4097, DIM = 4 };
  tf_pool *pool = tf_pool_new(2);
  float *q = random_floats(TOKENS * DIM, 4.0f, 1), *out = random_floats(TOKENS * DIM, 1.0f, 4);
  double exact[DIM];
  for (int level = 0; level < LEVEL_COUNT; level++) {
    if (!use_level(level)) continue;
    cr_assert_eq(tf_attention_full(pool, q, q, q, 1, TOKENS, 1, DIM, out), TF_OK);
    for (int64_t row = 0; row < TOKENS; row += 37) {
      exact_attention(q + row * DIM, q, q, TOKENS, DIM, DIM, exact);
      for (int i = 0; i < DIM; i++) cr_assert_float_eq((double)out[row * DIM + i], exact[i], 4 * TOLERANCE);
    }
  }
  free(q);
  free(out);
  tf_pool_free(&pool);
}

/* Sequences in blocks of random order, as a cache hands them out. */
typedef struct sequence {
  int64_t length, rows; /* the rows are its last `rows` positions */
} sequence;
typedef struct paged_case {
  int64_t heads, kv_heads, dim, block_tokens;
  const sequence *sequences;
  int sequence_count;
  float score_scale;
} paged_case;

enum { SEQUENCES_MAX = 8, BLOCKS_MAX = 64, ROWS_MAX = 400 };

static void check_paged(tf_pool *pool, const paged_case *self) {
  int64_t width = self->kv_heads * self->dim, total_rows = 0;
  float *keys[SEQUENCES_MAX], *values[SEQUENCES_MAX]; /* dense copies: [length, kv_heads, dim] */
  const float *key_blocks[SEQUENCES_MAX][BLOCKS_MAX], *value_blocks[SEQUENCES_MAX][BLOCKS_MAX];
  const float *const *row_keys[ROWS_MAX], *const *row_values[ROWS_MAX];
  int32_t positions[ROWS_MAX];
  for (int s = 0; s < self->sequence_count; s++) {
    int64_t blocks = (self->sequences[s].length - 1) / self->block_tokens + 1;
    int64_t stored = blocks * self->block_tokens * width;
    cr_assert(blocks <= BLOCKS_MAX);
    keys[s] = random_floats(stored, self->score_scale, 100 + (uint32_t)s);
    values[s] = random_floats(stored, 1.0f, 200 + (uint32_t)s);
    /* What lies after the last position is not to be read: it would spoil everything. */
    for (int64_t i = self->sequences[s].length * width; i < stored; i++) keys[s][i] = values[s][i] = NAN;
    for (int64_t b = 0; b < blocks; b++) {
      /* Each block is an allocation of its own, so that reading past one is seen. */
      size_t bytes = (size_t)(self->block_tokens * width) * sizeof(float);
      float *k = malloc(bytes), *v = malloc(bytes);
      cr_assert(k && v);
      memcpy(k, keys[s] + b * self->block_tokens * width, bytes);
      memcpy(v, values[s] + b * self->block_tokens * width, bytes);
      key_blocks[s][b] = k;
      value_blocks[s][b] = v;
    }
    for (int64_t r = 0; r < self->sequences[s].rows; r++, total_rows++) {
      cr_assert(total_rows < ROWS_MAX);
      positions[total_rows] = (int32_t)(self->sequences[s].length - self->sequences[s].rows + r);
      row_keys[total_rows] = key_blocks[s];
      row_values[total_rows] = value_blocks[s];
    }
  }
  tf_paged_rows rows = {.rows = total_rows,
                        .positions = positions,
                        .keys = row_keys,
                        .values = row_values,
                        .block_tokens = self->block_tokens};
  float *q = random_floats(total_rows * self->heads * self->dim, self->score_scale, 1);
  float *out = random_floats(total_rows * self->heads * self->dim, 1.0f, 2);
  double exact[TF_HEAD_DIM_MAX];
  cr_assert_eq(tf_attention_paged(pool, q, &rows, self->heads, self->kv_heads, self->dim, out), TF_OK);
  for (int s = 0, row = 0; s < self->sequence_count; s++) {
    for (int64_t r = 0; r < self->sequences[s].rows; r++, row++) {
      for (int64_t head = 0; head < self->heads; head++) {
        int64_t kv = head / (self->heads / self->kv_heads) * self->dim, at = (row * self->heads + head) * self->dim;
        exact_attention(q + at, keys[s] + kv, values[s] + kv, positions[row] + 1, width, self->dim, exact);
        for (int64_t i = 0; i < self->dim; i++) {
          cr_assert_float_eq((double)out[at + i], exact[i], TOLERANCE, "sequence %d, position %d, head %ld, %ld", s,
                             positions[row], (long)head, (long)i);
        }
      }
    }
    for (int64_t b = 0; b <= (self->sequences[s].length - 1) / self->block_tokens; b++) {
      free((void *)(uintptr_t)key_blocks[s][b]);
      free((void *)(uintptr_t)value_blocks[s][b]);
    }
    free(keys[s]);
    free(values[s]);
  }
  free(q);
  free(out);
}

static void check_paged_threads(const paged_case *self) {
  for (int level = 0; level < LEVEL_COUNT; level++) {
    for (int threads = 1; threads <= 3 && use_level(level); threads++) {
      tf_pool *pool = tf_pool_new(threads);
      check_paged(pool, self);
      tf_pool_free(&pool);
    }
  }
}

static const sequence decoding[] = {
    {.length = 1, .rows = 1}, {.length = 16, .rows = 1}, {.length = 17, .rows = 1}, {.length = 300, .rows = 1}};
static const sequence mixed[] = {{.length = 1, .rows = 1},     {.length = 150, .rows = 150}, {.length = 47, .rows = 1},
                                 {.length = 200, .rows = 100}, {.length = 33, .rows = 2},    {.length = 64, .rows = 4}};

Test(attention, paged_decoding, .timeout = 120) {
  check_paged_threads(&(paged_case){.heads = 9,
                                    .kv_heads = 3,
                                    .dim = 64,
                                    .block_tokens = 16,
                                    .sequences = decoding,
                                    .sequence_count = 4,
                                    .score_scale = 2.0f});
  check_paged_threads(&(paged_case){.heads = 4,
                                    .kv_heads = 4,
                                    .dim = 6,
                                    .block_tokens = 5,
                                    .sequences = decoding,
                                    .sequence_count = 4,
                                    .score_scale = 2.0f});
}

Test(attention, paged_prefill_beside_decoding, .timeout = 120) {
  check_paged_threads(&(paged_case){.heads = 6,
                                    .kv_heads = 2,
                                    .dim = 16,
                                    .block_tokens = 16,
                                    .sequences = mixed,
                                    .sequence_count = 6,
                                    .score_scale = 2.0f});
}

/* Blocks, lines and dimensions that end within a vector. */
Test(attention, paged_with_odd_blocks, .timeout = 120) {
  check_paged_threads(&(paged_case){.heads = 9,
                                    .kv_heads = 3,
                                    .dim = 21,
                                    .block_tokens = 7,
                                    .sequences = mixed,
                                    .sequence_count = 6,
                                    .score_scale = 2.0f});
  check_paged_threads(&(paged_case){.heads = 8,
                                    .kv_heads = 1,
                                    .dim = 72,
                                    .block_tokens = 16,
                                    .sequences = decoding,
                                    .sequence_count = 4,
                                    .score_scale = 2.0f});
}

/* One block longer than what is taken at once. */
Test(attention, paged_with_long_blocks, .timeout = 120) {
  static const sequence one[] = {{.length = 700, .rows = 40}, {.length = 513, .rows = 1}};
  check_paged_threads(&(paged_case){.heads = 2,
                                    .kv_heads = 1,
                                    .dim = 8,
                                    .block_tokens = 1024,
                                    .sequences = one,
                                    .sequence_count = 2,
                                    .score_scale = 2.0f});
}

/* Scores of up to several hundred: e^score alone is no float. */
Test(attention, paged_with_steep_scores, .timeout = 120) {
  check_paged_threads(&(paged_case){.heads = 4,
                                    .kv_heads = 2,
                                    .dim = 64,
                                    .block_tokens = 16,
                                    .sequences = decoding,
                                    .sequence_count = 4,
                                    .score_scale = 9.0f});
}

Test(attention, what_does_not_fit_is_refused) {
  tf_pool *pool = tf_pool_new(1);
  tf_paged_rows rows = {.rows = 0, .block_tokens = 16};
  float x[4] = {0};
  cr_assert_eq(tf_attention_full(pool, x, x, x, 1, 1, 1, TF_HEAD_DIM_MAX + 1, x), TF_ERR_UNSUPPORTED);
  cr_assert_eq(tf_attention_full(pool, x, x, x, 1, TF_ATTENTION_TOKENS_MAX + 1, 1, 4, x), TF_ERR_UNSUPPORTED);
  cr_assert_eq(tf_attention_full(pool, x, x, x, 0, 0, 1, 4, x), TF_OK);
  cr_assert_eq(tf_attention_paged(pool, x, &rows, 4, 3, 8, x), TF_ERR_UNSUPPORTED);
  cr_assert_eq(tf_attention_paged(pool, x, &rows, 4, 0, 8, x), TF_ERR_UNSUPPORTED);
  cr_assert_eq(tf_attention_paged(pool, x, &rows, TF_HEADS_A_KV_MAX + 1, 1, 8, x), TF_ERR_UNSUPPORTED);
  cr_assert_eq(tf_attention_paged(pool, x, &rows, 2, 1, TF_HEAD_DIM_MAX + 1, x), TF_ERR_UNSUPPORTED);
  cr_assert_eq(tf_attention_paged(pool, x, &rows, 4, 2, 8, x), TF_OK, "no rows");
  tf_pool_free(&pool);
}

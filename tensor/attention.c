/* Both attentions: bidirectional over a batch (ViT), causal over keys and values in blocks (LLM). In: q, k, v. Out:
 * rows. Scores of a tile of query rows live in the thread's scratch alone. The causal one keeps a running maximum and
 * sum for each row (online soft maximum, Milakov and Gimelshein 2018), so its scratch does not grow with the context.
 */
#include <assert.h>
#include <cblas.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "tensor/ops.h"
#include "tensor/vector.h"

enum {
  SCRATCH_FLOATS = TF_POOL_SCRATCH_BYTES / (int)sizeof(float),
  FULL_TILE_ROWS = 128,
  PAGED_TILE_ROWS = 128, /* query rows times the heads that share a KV head */
  PAGED_STRETCH = 256,   /* positions taken at once */
  PRODUCT_ROWS_MIN = 12  /* from here on a matrix product beats row-by-row dots */
};

typedef struct full_job {
  tf_pool *pool;
  const float *q, *k, *v;
  int64_t tokens, heads, head_dim, tile_rows, tiles; /* tiles: of one head of one image */
  float scale;
  float *out;
} full_job;

static void full_tile(const full_job *job, int64_t index, float *scores) {
  int64_t width = job->heads * job->head_dim;
  int64_t tile = index % job->tiles, head = index / job->tiles % job->heads, image = index / job->tiles / job->heads;
  int64_t first = tile * job->tile_rows, base = image * job->tokens * width + head * job->head_dim;
  int64_t count = job->tokens - first < job->tile_rows ? job->tokens - first : job->tile_rows;
  int rows = (int)count, tokens = (int)job->tokens, dim = (int)job->head_dim, stride = (int)width;
  float *out = job->out + base + first * width;
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, tokens, dim, job->scale, job->q + base + first * width,
              stride, job->k + base, stride, 0.0f, scores, tokens);
  float sums[FULL_TILE_ROWS];
  for (int i = 0; i < rows; i++) sums[i] = tf_softmax_unscaled(scores + (int64_t)i * tokens, tokens);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, dim, tokens, 1.0f, scores, tokens, job->v + base, stride,
              0.0f, out, stride);
  for (int i = 0; i < rows; i++) tf_scale_many(out + i * width, dim, 1.0f / sums[i]);
}

static void full_tiles(void *context, int64_t begin, int64_t end, int thread) {
  const full_job *job = context;
  for (int64_t i = begin; i < end; i++) full_tile(job, i, tf_pool_scratch(job->pool, thread));
}

tf_code tf_attention_full(tf_pool *pool, const float *q, const float *k, const float *v, int64_t batch, int64_t tokens,
                          int64_t heads, int64_t head_dim, float *out) {
  if (head_dim > TF_HEAD_DIM_MAX || tokens > TF_ATTENTION_TOKENS_MAX) return TF_ERR_UNSUPPORTED;
  if (batch <= 0 || tokens <= 0) return TF_OK;
  full_job job = {.pool = pool,
                  .q = q,
                  .k = k,
                  .v = v,
                  .tokens = tokens,
                  .heads = heads,
                  .head_dim = head_dim,
                  .scale = 1.0f / sqrtf((float)head_dim),
                  .out = out};
  int64_t rows = SCRATCH_FLOATS / tokens;
  job.tile_rows = rows < FULL_TILE_ROWS ? rows : FULL_TILE_ROWS;
  job.tiles = (tokens - 1) / job.tile_rows + 1;
  job.tile_rows = (tokens - 1) / job.tiles + 1; /* even ones */
  tf_parallel(pool, batch * heads * job.tiles, 1, full_tiles, &job);
  return TF_OK;
}

/* Neighbouring rows of one sequence. */
typedef struct paged_tile {
  int64_t first, rows;
} paged_tile;

typedef struct paged_job {
  tf_pool *pool;
  const float *q;
  const tf_paged_rows *rows;
  int64_t heads, kv_heads, group, head_dim;
  float scale;
  const paged_tile *tiles;
  int64_t tile_count;
  float *out;
} paged_job;

/* One tile's running state: `count` lines, a line being one query row and one of its group's heads. */
typedef struct paged_state {
  int64_t count, group, dim, stride; /* stride: from one position to the next in a block */
  float *query;                      /* [count, dim], scaled */
  float *sum;                        /* [count, dim]: sum of power * value */
  float *scores;                     /* [count, PAGED_STRETCH] */
  float maximum[PAGED_TILE_ROWS], total[PAGED_TILE_ROWS];
} paged_state;

/* scores[line, t] = query[line] . key[t] */
TF_CLONES static void score(paged_state *self, const float *keys, int64_t positions) {
  if (self->count >= PRODUCT_ROWS_MIN) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)self->count, (int)positions, (int)self->dim, 1.0f,
                self->query, (int)self->dim, keys, (int)self->stride, 0.0f, self->scores, (int)positions);
    return;
  }
  for (int64_t t = 0; t < positions; t++) {
    const float *key = keys + t * self->stride;
    for (int64_t line = 0; line < self->count; line++) {
      self->scores[line * positions + t] = tf_dot(self->query + line * self->dim, key, self->dim);
    }
  }
}

/* sum[line] += power[line, t] * value[t] */
TF_CLONES static void gather(paged_state *self, const float *values, int64_t positions) {
  if (self->count >= PRODUCT_ROWS_MIN) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)self->count, (int)self->dim, (int)positions, 1.0f,
                self->scores, (int)positions, values, (int)self->stride, 1.0f, self->sum, (int)self->dim);
    return;
  }
  for (int64_t line = 0; line < self->count; line++) {
    const float *power = self->scores + line * positions;
    float *sum = self->sum + line * self->dim;
    int64_t i = 0;
    for (; i + TF_LANES <= self->dim; i += TF_LANES) {
      tf_f32x8 lanes = tf_load8(sum + i);
      for (int64_t t = 0; t < positions; t++) lanes += power[t] * tf_load8(values + t * self->stride + i);
      tf_store8(sum + i, lanes);
    }
    for (; i < self->dim; i++) {
      for (int64_t t = 0; t < positions; t++) sum[i] += power[t] * values[t * self->stride + i];
    }
  }
}

/* Scores of one line become powers about the running maximum; visible: how many of them the line may see. */
TF_CLONES static void absorb(paged_state *self, int64_t line, int64_t positions, int64_t visible) {
  float *scores = self->scores + line * positions, maximum = self->maximum[line];
  for (int64_t t = 0; t < visible; t++) maximum = scores[t] > maximum ? scores[t] : maximum;
  if (maximum > self->maximum[line]) {
    /* Before the first position the old maximum is -infinity, the factor 0 and what it multiplies 0 too. */
    float factor = expf(self->maximum[line] - maximum);
    self->maximum[line] = maximum;
    self->total[line] *= factor;
    tf_scale_many(self->sum + line * self->dim, self->dim, factor);
  }
  tf_f32x8 lanes = {0};
  int64_t t = 0;
  for (; t + TF_LANES <= visible; t += TF_LANES) {
    tf_f32x8 power = tf_exp8(tf_load8(scores + t) - maximum);
    tf_store8(scores + t, power);
    lanes += power;
  }
  if (t < visible) {
    tf_f32x8 power = tf_exp8(tf_load_part8(scores + t, visible - t, -INFINITY) - maximum);
    tf_store_part8(scores + t, visible - t, power);
    lanes += power;
  }
  for (t = visible; t < positions; t++) scores[t] = 0.0f;
  self->total[line] += tf_sum8(lanes);
}

static void start_state(const paged_job *job, const paged_tile *tile, int64_t kv_head, float *scratch,
                        paged_state *self) {
  int64_t group = job->group, dim = job->head_dim;
  self->count = tile->rows * group;
  self->group = group;
  self->dim = dim;
  self->stride = job->kv_heads * dim;
  self->query = scratch;
  self->sum = self->query + self->count * dim;
  self->scores = self->sum + self->count * dim;
  for (int64_t r = 0; r < tile->rows; r++) {
    memcpy(self->query + r * group * dim, job->q + ((tile->first + r) * job->heads + kv_head * group) * dim,
           (size_t)(group * dim) * sizeof(float));
  }
  tf_scale_many(self->query, self->count * dim, job->scale);
  memset(self->sum, 0, (size_t)(self->count * dim) * sizeof(float));
  for (int64_t line = 0; line < self->count; line++) {
    self->maximum[line] = -INFINITY;
    self->total[line] = 0.0f;
  }
}

static void paged_tile_head(const paged_job *job, const paged_tile *tile, int64_t kv_head, float *scratch) {
  const tf_paged_rows *rows = job->rows;
  paged_state state;
  start_state(job, tile, kv_head, scratch, &state);
  int64_t end = 0; /* positions that some row sees */
  for (int64_t r = tile->first; r < tile->first + tile->rows; r++) {
    if (rows->positions[r] >= end) end = (int64_t)rows->positions[r] + 1;
  }
  for (int64_t at = 0, count; at < end; at += count) {
    int64_t block = at / rows->block_tokens, inside = at % rows->block_tokens;
    count = rows->block_tokens - inside;
    if (count > PAGED_STRETCH) count = PAGED_STRETCH;
    if (count > end - at) count = end - at;
    int64_t place = inside * state.stride + kv_head * state.dim;
    score(&state, rows->keys[tile->first][block] + place, count);
    for (int64_t line = 0; line < state.count; line++) {
      int64_t visible = (int64_t)rows->positions[tile->first + line / state.group] + 1 - at;
      absorb(&state, line, count, visible < 0 ? 0 : visible < count ? visible : count);
    }
    gather(&state, rows->values[tile->first][block] + place, count);
  }
  for (int64_t line = 0; line < state.count; line++) {
    float *sum = state.sum + line * state.dim;
    int64_t row = tile->first + line / state.group, head = kv_head * state.group + line % state.group;
    tf_scale_many(sum, state.dim, 1.0f / state.total[line]);
    memcpy(job->out + (row * job->heads + head) * state.dim, sum, (size_t)state.dim * sizeof(float));
  }
}

/* Index = KV head * tiles + tile, so that each piece holds some of the long and some of the short sequences. */
static void paged_pieces(void *context, int64_t begin, int64_t end, int thread) {
  const paged_job *job = context;
  for (int64_t i = begin; i < end; i++) {
    paged_tile_head(job, &job->tiles[i % job->tile_count], i / job->tile_count, tf_pool_scratch(job->pool, thread));
  }
}

/* Cuts the rows where the sequence changes and where a tile is full. */
static int64_t cut_tiles(const tf_paged_rows *rows, int64_t tile_rows_max, paged_tile *tiles) {
  int64_t count = 0;
  for (int64_t r = 0; r < rows->rows; r++) {
    paged_tile *last = count ? &tiles[count - 1] : NULL;
    if (last && rows->keys[r] == rows->keys[last->first] && rows->values[r] == rows->values[last->first] &&
        last->rows < tile_rows_max) {
      last->rows++;
    } else {
      tiles[count++] = (paged_tile){.first = r, .rows = 1};
    }
  }
  return count;
}

tf_code tf_attention_paged(tf_pool *pool, const float *q, const tf_paged_rows *rows, int64_t heads, int64_t kv_heads,
                           int64_t head_dim, float *out) {
  _Static_assert((int)PAGED_TILE_ROWS * (2 * (int)TF_HEAD_DIM_MAX + (int)PAGED_STRETCH) <= (int)SCRATCH_FLOATS,
                 "a tile's state fits");
  _Static_assert((int)TF_HEADS_A_KV_MAX <= (int)PAGED_TILE_ROWS, "one row's heads fit a tile");
  if (head_dim > TF_HEAD_DIM_MAX || kv_heads <= 0 || heads % kv_heads != 0 || heads / kv_heads > TF_HEADS_A_KV_MAX) {
    return TF_ERR_UNSUPPORTED;
  }
  if (rows->rows <= 0) return TF_OK;
  assert(rows->block_tokens > 0);
  paged_tile *tiles = malloc((size_t)rows->rows * sizeof *tiles);
  if (!tiles) return TF_ERR_OUT_OF_MEMORY;
  paged_job job = {.pool = pool,
                   .q = q,
                   .rows = rows,
                   .heads = heads,
                   .kv_heads = kv_heads,
                   .group = heads / kv_heads,
                   .head_dim = head_dim,
                   .scale = 1.0f / sqrtf((float)head_dim),
                   .tiles = tiles,
                   .out = out};
  job.tile_count = cut_tiles(rows, PAGED_TILE_ROWS / job.group, tiles);
  tf_parallel(pool, job.tile_count * kv_heads, 1, paged_pieces, &job);
  free(tiles);
  return TF_OK;
}

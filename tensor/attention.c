/* Both attentions: bidirectional over a batch (ViT), causal over keys and values in blocks (LLM). In: q, k, v. Out:
 * rows. Scores of a tile of query rows live in the thread's scratch alone. The causal one, and with AVX2 both, take a
 * stretch of positions at a time and keep a running maximum and sum for each row (online soft maximum, Milakov and
 * Gimelshein 2018), so their scratch does not grow with the context. */
#include <assert.h>
#include <cblas.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "tensor/attention_f32.h"
#include "tensor/cpu.h"
#include "tensor/ops.h"
#include "tensor/vector.h"

enum {
  SCRATCH_FLOATS = TF_POOL_SCRATCH_BYTES / (int)sizeof(float),
  FULL_TILE_ROWS = 128,
  TILE_LINES_MAX = 128,  /* query rows times the heads that share a KV head */
  PRODUCT_ROWS_MIN = 12, /* from here on a matrix product beats row-by-row dots */
  FUSED_LINES_MIN = 3    /* so do our own, keys turned into columns first */
};

_Static_assert((int)TILE_LINES_MAX *(2 * (int)TF_HEAD_DIM_MAX + (int)TF_F32_SCORES) +
                       (int)TF_F32_STRETCH * ((int)TF_HEAD_DIM_MAX + (int)TF_F32_PANEL) <=
                   (int)SCRATCH_FLOATS,
               "a tile's state fits");

/* ---- keys and values in blocks ---- */

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
typedef struct line_state {
  int64_t count, group, dim, stride; /* stride: from one position to the next */
  float *query;                      /* [count, dim], scaled */
  float *sum;                        /* [count, dim]: sum of power * value */
  float *scores;                     /* [count, TF_F32_SCORES] */
  float *packed;                     /* a kernel's scratch */
  float maximum[TILE_LINES_MAX], total[TILE_LINES_MAX];
  tf_f32_piece pieces[TF_F32_STRETCH]; /* of a stretch of positions */
  int64_t piece_count;
} line_state;

/* scores[line, t] = query[line] . key[t] */
TF_CLONES static void score(line_state *self) {
  float *scores = self->scores;
  for (int64_t p = 0; p < self->piece_count; scores += self->pieces[p++].positions) {
    int64_t positions = self->pieces[p].positions;
    if (self->count >= PRODUCT_ROWS_MIN) {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)self->count, (int)positions, (int)self->dim, 1.0f,
                  self->query, (int)self->dim, self->pieces[p].keys, (int)self->stride, 0.0f, scores, TF_F32_SCORES);
      continue;
    }
    for (int64_t t = 0; t < positions; t++) {
      const float *key = self->pieces[p].keys + t * self->stride;
      for (int64_t line = 0; line < self->count; line++)
        scores[line * TF_F32_SCORES + t] = tf_dot(self->query + line * self->dim, key, self->dim);
    }
  }
}

/* sum[line, i..] += power[line, t] * value[t, i..] for few lines. */
TF_VECTOR void gather_line(const line_state *self, int64_t line, const tf_f32_piece *piece, const float *power) {
  float *sum = self->sum + line * self->dim;
  int64_t i = 0;
  for (; i + TF_LANES <= self->dim; i += TF_LANES) {
    tf_f32x8 lanes = tf_load8(sum + i);
    for (int64_t t = 0; t < piece->positions; t++) lanes += power[t] * tf_load8(piece->values + t * self->stride + i);
    tf_store8(sum + i, lanes);
  }
  for (; i < self->dim; i++) {
    for (int64_t t = 0; t < piece->positions; t++) sum[i] += power[t] * piece->values[t * self->stride + i];
  }
}

/* sum[line] += power[line, t] * value[t] */
TF_CLONES static void gather(line_state *self) {
  const float *powers = self->scores;
  for (int64_t p = 0; p < self->piece_count; powers += self->pieces[p++].positions) {
    const tf_f32_piece *piece = &self->pieces[p];
    if (self->count >= PRODUCT_ROWS_MIN) {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)self->count, (int)self->dim, (int)piece->positions,
                  1.0f, powers, TF_F32_SCORES, piece->values, (int)self->stride, 1.0f, self->sum, (int)self->dim);
      continue;
    }
    for (int64_t line = 0; line < self->count; line++) gather_line(self, line, piece, powers + line * TF_F32_SCORES);
  }
}

/* Scores of one line become powers about the running maximum; visible: how many of them the line may see. */
TF_CLONES static void absorb(line_state *self, int64_t line, int64_t positions, int64_t visible) {
  float *scores = self->scores + line * TF_F32_SCORES, maximum = self->maximum[line];
  tf_f32x8 most = tf_splat8(maximum), lanes = {0};
  int64_t t = 0;
  for (; t + TF_LANES <= visible; t += TF_LANES) most = tf_max8(tf_load8(scores + t), most);
  if (t < visible) most = tf_max8(tf_load_part8(scores + t, visible - t, -INFINITY), most);
  for (int lane = 0; lane < TF_LANES; lane++) maximum = most[lane] > maximum ? most[lane] : maximum;
  if (maximum > self->maximum[line]) {
    /* Before the first position the old maximum is -infinity, the factor 0 and what it multiplies 0 too. */
    float factor = expf(self->maximum[line] - maximum);
    self->maximum[line] = maximum;
    self->total[line] *= factor;
    tf_scale_many(self->sum + line * self->dim, self->dim, factor);
  }
  for (t = 0; t + TF_LANES <= visible; t += TF_LANES) {
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

#if defined(__x86_64__)
/* The fused kernels, where they serve so many lines here; else NULL. */
static const tf_f32_attention *fused_for(int64_t lines) {
  return tf_cpu_level() >= TF_CPU_AVX2 && lines >= FUSED_LINES_MIN ? &tf_f32_attention_avx2 : NULL;
}
#else
static const tf_f32_attention *fused_for(int64_t lines) {
  (void)lines;
  return NULL;
}
#endif

/* Takes in the stretch that the pieces are, from position `at` on; last: of each row the last position that it sees. */
static void take_stretch(line_state *self, int64_t positions, int64_t at, const int32_t *last) {
  const tf_f32_attention *fused = fused_for(self->count);
  const tf_f32_stretch stretch = {.lines = self->count,
                                  .dim = self->dim,
                                  .stride = self->stride,
                                  .query = self->query,
                                  .scores = self->scores,
                                  .sums = self->sum,
                                  .packed = self->packed,
                                  .pieces = self->pieces,
                                  .piece_count = self->piece_count};
  fused ? fused->score(&stretch) : score(self);
  for (int64_t line = 0; line < self->count; line++) {
    int64_t visible = last ? (int64_t)last[line / self->group] + 1 - at : positions;
    visible = visible < 0 ? 0 : visible < positions ? visible : positions;
    if (fused)
      fused->absorb(self->scores + line * TF_F32_SCORES, positions, visible, &self->maximum[line], &self->total[line],
                    self->sum + line * self->dim, self->dim);
    else
      absorb(self, line, positions, visible);
  }
  fused ? fused->gather(&stretch) : gather(self);
}

/* Room for `count` lines; the caller fills query. */
static void start_lines(line_state *self, int64_t count, int64_t group, int64_t dim, int64_t stride, float *scratch) {
  self->count = count;
  self->group = group;
  self->dim = dim;
  self->stride = stride;
  self->packed = scratch;
  self->query = self->packed + TF_F32_STRETCH * (dim + TF_F32_PANEL);
  self->sum = self->query + count * dim;
  self->scores = self->sum + count * dim;
  memset(self->sum, 0, (size_t)(count * dim) * sizeof(float));
  for (int64_t line = 0; line < count; line++) {
    self->maximum[line] = -INFINITY;
    self->total[line] = 0.0f;
  }
}

/* y = sum / total of one line */
static void finish_line(const line_state *self, int64_t line, float *y) {
  float *sum = self->sum + line * self->dim;
  tf_scale_many(sum, self->dim, 1.0f / self->total[line]);
  memcpy(y, sum, (size_t)self->dim * sizeof(float));
}

/* Positions from `at` on to the end of the stretch, a piece for each block that they are in; how many. */
static int64_t list_pieces(line_state *self, const paged_job *job, const paged_tile *tile, int64_t kv_head, int64_t at,
                           int64_t end) {
  const tf_paged_rows *rows = job->rows;
  int64_t taken = 0;
  for (self->piece_count = 0; at < end && taken < TF_F32_STRETCH;) {
    int64_t block = at / rows->block_tokens, inside = at % rows->block_tokens, count = rows->block_tokens - inside;
    if (count > TF_F32_STRETCH - taken) count = TF_F32_STRETCH - taken;
    if (count > end - at) count = end - at;
    int64_t place = inside * self->stride + kv_head * self->dim;
    self->pieces[self->piece_count++] = (tf_f32_piece){.keys = rows->keys[tile->first][block] + place,
                                                       .values = rows->values[tile->first][block] + place,
                                                       .positions = count};
    taken += count;
    at += count;
  }
  return taken;
}

static void paged_tile_head(const paged_job *job, const paged_tile *tile, int64_t kv_head, float *scratch) {
  const tf_paged_rows *rows = job->rows;
  int64_t group = job->group, dim = job->head_dim, end = 0; /* end: positions that some row sees */
  line_state state;
  start_lines(&state, tile->rows * group, group, dim, job->kv_heads * dim, scratch);
  for (int64_t r = 0; r < tile->rows; r++) {
    memcpy(state.query + r * group * dim, job->q + ((tile->first + r) * job->heads + kv_head * group) * dim,
           (size_t)(group * dim) * sizeof(float));
    int32_t position = rows->positions[tile->first + r];
    if (position >= end) end = (int64_t)position + 1;
  }
  tf_scale_many(state.query, state.count * dim, job->scale);
  for (int64_t at = 0, count; at < end; at += count) {
    count = list_pieces(&state, job, tile, kv_head, at, end);
    take_stretch(&state, count, at, rows->positions + tile->first);
  }
  for (int64_t line = 0; line < state.count; line++) {
    int64_t row = tile->first + line / group, head = kv_head * group + line % group;
    finish_line(&state, line, job->out + (row * job->heads + head) * dim);
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
  _Static_assert((int)TF_HEADS_A_KV_MAX <= (int)TILE_LINES_MAX, "one row's heads fit a tile");
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
  job.tile_count = cut_tiles(rows, TILE_LINES_MAX / job.group, tiles);
  tf_parallel(pool, job.tile_count * kv_heads, 1, paged_pieces, &job);
  free(tiles);
  return TF_OK;
}

/* ---- all of one image ---- */

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

/* As full_tile, stretch by stretch: no line of scores is ever whole. */
static void fused_tile(const full_job *job, int64_t index, float *scratch) {
  int64_t width = job->heads * job->head_dim, dim = job->head_dim;
  int64_t tile = index % job->tiles, head = index / job->tiles % job->heads, image = index / job->tiles / job->heads;
  int64_t first = tile * job->tile_rows, base = image * job->tokens * width + head * dim;
  int64_t rows = job->tokens - first < job->tile_rows ? job->tokens - first : job->tile_rows;
  line_state state;
  start_lines(&state, rows, 1, dim, width, scratch);
  for (int64_t r = 0; r < rows; r++)
    memcpy(state.query + r * dim, job->q + base + (first + r) * width, (size_t)dim * sizeof(float));
  tf_scale_many(state.query, rows * dim, job->scale);
  for (int64_t at = 0; at < job->tokens; at += TF_F32_STRETCH) {
    int64_t count = job->tokens - at < TF_F32_STRETCH ? job->tokens - at : TF_F32_STRETCH;
    state.pieces[0] = (tf_f32_piece){job->k + base + at * width, job->v + base + at * width, count};
    state.piece_count = 1;
    take_stretch(&state, count, at, NULL);
  }
  for (int64_t r = 0; r < rows; r++) finish_line(&state, r, job->out + base + (first + r) * width);
}

static void full_tiles(void *context, int64_t begin, int64_t end, int thread) {
  const full_job *job = context;
  for (int64_t i = begin; i < end; i++) {
    if (fused_for(job->tile_rows))
      fused_tile(job, i, tf_pool_scratch(job->pool, thread));
    else
      full_tile(job, i, tf_pool_scratch(job->pool, thread));
  }
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
  int64_t rows = fused_for(tokens) ? TILE_LINES_MAX : SCRATCH_FLOATS / tokens;
  job.tile_rows = rows < FULL_TILE_ROWS ? rows : FULL_TILE_ROWS;
  job.tiles = (tokens - 1) / job.tile_rows + 1;
  job.tile_rows = (tokens - 1) / job.tiles + 1; /* even ones */
  tf_parallel(pool, batch * heads * job.tiles, 1, full_tiles, &job);
  return TF_OK;
}

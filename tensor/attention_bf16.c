/* Both attentions in bf16: tiles of queries against blocks of 16 positions. In: f32 queries, stored blocks (LLM) or f32
 * keys and values (ViT). Out: f32 rows. A tile passes over its positions in stretches and keeps a running maximum and
 * sum for each line (online soft maximum), so its memory does not grow with the context. */
#include "tensor/attention_bf16.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/attention_kernel.h"
#include "tensor/cpu.h"

#if defined(__x86_64__)

enum {
  STEPS_ALIGN = 16, /* AMX: 32 dimensions */
  FEW_LINES = 8,    /* fewer are not worth tiles */
  FULL_LINES = 64,  /* of a tile of the ViT */
  PANEL = 16,
  DIMS_MAX = TF_HEAD_DIM_MAX,
  STRETCH_BLOCKS = TF_STRETCH / TF_BLOCK_KEYS
};

static int64_t steps_of(int64_t head_dim) {
  return (head_dim / 2 + head_dim % 2 + STEPS_ALIGN - 1) / STEPS_ALIGN * STEPS_ALIGN;
}
static int64_t panels_of(int64_t head_dim) {
  return (head_dim + PANEL - 1) / PANEL;
}
/* Of one KV head; keys and values take as much, so that a cache has one size of part. */
static int64_t head_bytes(int64_t head_dim) {
  int64_t keys = steps_of(head_dim) * TF_KEY_STEP, values = panels_of(head_dim) * TF_VALUE_PANEL;
  return keys > values ? keys : values;
}

bool tf_attention_bf16_wanted(void) {
  return tf_cpu_level() >= TF_CPU_AVX512 && tf_cpu_compute() != TF_COMPUTE_F32;
}

size_t tf_attention_bf16_block_bytes(int64_t kv_heads, int64_t head_dim) {
  assert(head_dim > 0 && head_dim <= TF_HEAD_DIM_MAX);
  return (size_t)(kv_heads * head_bytes(head_dim));
}

/* A head of row `row`, turned if that is asked for. */
static void round_head(const float *x, const tf_bf16_turn *turn, int64_t row, float scale, int64_t dim, int64_t padded,
                       uint16_t *out) {
  if (turn)
    tf_attention_round_turned(x, turn->cosine + row * dim, turn->sine + row * dim, turn->layout, scale, dim, padded,
                              out);
  else
    tf_attention_round(x, scale, dim, padded, out);
}

/* One position of one head into its place. */
static void store_head(char *keys, char *values, int64_t place, const float *key, const float *value, int64_t dim,
                       const tf_bf16_turn *turn) {
  _Alignas(64) uint16_t rounded[DIMS_MAX + 2 * STEPS_ALIGN];
  int64_t steps = steps_of(dim), panels = panels_of(dim);
  round_head(key, turn, 0, 1.0f, dim, 2 * steps, rounded);
  for (int64_t step = 0; step < steps; step++) memcpy(keys + step * TF_KEY_STEP + 4 * place, rounded + 2 * step, 4);
  tf_attention_round(value, 1.0f, dim, PANEL * panels, rounded);
  char *at = values + place / 2 * 64 + place % 2 * 2;
  for (int64_t panel = 0; panel < panels; panel++)
    for (int64_t i = 0; i < PANEL; i++)
      memcpy(at + panel * TF_VALUE_PANEL + 4 * i, rounded + panel * PANEL + i, sizeof *rounded);
}

void tf_attention_bf16_store(void *keys, void *values, int64_t place, const float *key, const float *value,
                             int64_t kv_heads, int64_t head_dim, const tf_bf16_turn *turn) {
  assert(place >= 0 && place < TF_BF16_BLOCK_TOKENS);
  for (int64_t head = 0; head < kv_heads; head++) {
    int64_t at = head * head_bytes(head_dim);
    store_head((char *)keys + at, (char *)values + at, place, key + head * head_dim, value + head * head_dim, head_dim,
               turn);
  }
}

/* Lines of a thread, in its scratch. */
typedef struct lines {
  int64_t count, steps, panels;
  uint16_t *query, *powers;
  float *scores, *sums;
  const char *keys[STRETCH_BLOCKS], *values[STRETCH_BLOCKS];
  float maximum[TF_LINES_MAX], total[TF_LINES_MAX];
} lines;

static const tf_attention_kernel *kernel_for(int64_t count) {
  if (tf_cpu_level() >= TF_CPU_AMX && count >= FEW_LINES) return &tf_attention_amx;
  return tf_cpu_has_bf16() ? &tf_attention_avx512_bf16 : &tf_attention_avx512;
}

/* Scratch for `count` lines; returns the bytes taken. */
static size_t start_lines(lines *self, int64_t count, int64_t head_dim, char *scratch) {
  self->count = count;
  self->steps = steps_of(head_dim);
  self->panels = panels_of(head_dim);
  int64_t most = (count + 15) / 16 * 16;
  self->scores = (float *)(void *)scratch;
  self->sums = self->scores + most * TF_STRETCH;
  self->powers = (uint16_t *)(void *)(self->sums + most * PANEL * self->panels);
  self->query = self->powers + most * TF_STRETCH;
  memset(self->sums, 0, (size_t)(count * PANEL * self->panels) * sizeof(float));
  for (int64_t line = 0; line < count; line++) {
    self->maximum[line] = -INFINITY;
    self->total[line] = 0.0f;
  }
  char *end = (char *)(self->query + most * 2 * self->steps);
  return (size_t)(end - scratch);
}

/* positions: of this stretch; visible(line) = first + line / group * step, bounded: what each line may see of them. */
static void run_stretch(lines *self, const tf_attention_kernel *kernel, int64_t positions, int64_t at, int64_t group,
                        const int32_t *last) {
  tf_stretch stretch = {.lines = self->count,
                        .steps = self->steps,
                        .panels = self->panels,
                        .blocks = (positions + TF_BLOCK_KEYS - 1) / TF_BLOCK_KEYS,
                        .query = self->query,
                        .keys = self->keys,
                        .values = self->values,
                        .scores = self->scores,
                        .powers = self->powers,
                        .sums = self->sums};
  int64_t padded = stretch.blocks * TF_BLOCK_KEYS, width = PANEL * self->panels;
  void (*absorb)(const float *, uint16_t *, int64_t, int64_t, float *, float *, float *, int64_t) =
      tf_cpu_has_bf16() ? tf_attention_absorb_bf16 : tf_attention_absorb;
  kernel->score(&stretch);
  for (int64_t line = 0; line < self->count; line++) {
    int64_t visible = last ? (int64_t)last[line / group] + 1 - at : positions;
    visible = visible < 0 ? 0 : visible < positions ? visible : positions;
    absorb(self->scores + line * TF_STRETCH, self->powers + line * TF_STRETCH, padded, visible, &self->maximum[line],
           &self->total[line], self->sums + line * width, width);
  }
  kernel->gather(&stretch);
}

/* ---- LLM ---- */

/* Neighbouring rows of one sequence. */
typedef struct paged_tile {
  int64_t first, rows;
} paged_tile;

typedef struct paged_job {
  tf_pool *pool;
  const float *q;
  const tf_bf16_rows *rows;
  int64_t heads, kv_heads, group, head_dim;
  const paged_tile *tiles;
  float *out;
} paged_job;

static void run_paged_tile(const paged_job *job, const paged_tile *tile, int64_t kv_head, int thread) {
  const tf_bf16_rows *rows = job->rows;
  int64_t dim = job->head_dim, group = job->group, at_head = kv_head * head_bytes(dim), end = 0;
  float scale = 1.0f / sqrtf((float)dim);
  lines self;
  start_lines(&self, tile->rows * group, dim, tf_pool_scratch(job->pool, thread));
  for (int64_t line = 0; line < self.count; line++) {
    int64_t row = tile->first + line / group;
    round_head(job->q + (row * job->heads + kv_head * group + line % group) * dim, rows->turn, row, scale, dim,
               2 * self.steps, self.query + line * 2 * self.steps);
  }
  for (int64_t r = tile->first; r < tile->first + tile->rows; r++)
    if (rows->positions[r] >= end) end = (int64_t)rows->positions[r] + 1;
  const tf_attention_kernel *kernel = kernel_for(self.count);
  for (int64_t at = 0; at < end; at += TF_STRETCH) {
    int64_t positions = end - at < TF_STRETCH ? end - at : TF_STRETCH;
    for (int64_t b = 0; b * TF_BLOCK_KEYS < positions; b++) {
      self.keys[b] = (const char *)rows->keys[tile->first][at / TF_BLOCK_KEYS + b] + at_head;
      self.values[b] = (const char *)rows->values[tile->first][at / TF_BLOCK_KEYS + b] + at_head;
    }
    run_stretch(&self, kernel, positions, at, group, rows->positions + tile->first);
  }
  for (int64_t line = 0; line < self.count; line++) {
    int64_t row = tile->first + line / group, head = kv_head * group + line % group;
    tf_attention_divide(self.sums + line * PANEL * self.panels, self.total[line],
                        job->out + (row * job->heads + head) * dim, dim);
  }
}

/* Index = tile * KV heads + KV head: rows come in their order, as in the linears before and after. */
static void run_paged(void *context, int64_t begin, int64_t end, int thread) {
  const paged_job *job = context;
  for (int64_t i = begin; i < end; i++) run_paged_tile(job, &job->tiles[i / job->kv_heads], i % job->kv_heads, thread);
}

/* Cuts the rows where the sequence changes and where a tile is full. */
static int64_t cut_tiles(const tf_bf16_rows *rows, int64_t tile_rows_max, paged_tile *tiles) {
  int64_t count = 0;
  for (int64_t r = 0; r < rows->rows; r++) {
    paged_tile *last = count ? &tiles[count - 1] : NULL;
    if (last && rows->keys[r] == rows->keys[last->first] && last->rows < tile_rows_max)
      last->rows++;
    else
      tiles[count++] = (paged_tile){.first = r, .rows = 1};
  }
  return count;
}

tf_code tf_attention_bf16_paged(tf_pool *pool, const float *q, const tf_bf16_rows *rows, int64_t heads,
                                int64_t kv_heads, int64_t head_dim, float *out) {
  _Static_assert((int)TF_LINES_MAX * (6 * (int)TF_STRETCH + 6 * ((int)TF_HEAD_DIM_MAX + 32)) <=
                     (int)TF_POOL_SCRATCH_BYTES,
                 "a tile's lines fit");
  _Static_assert((int)TF_HEADS_A_KV_MAX <= (int)TF_LINES_MAX, "one row's heads fit a tile");
  if (head_dim > TF_HEAD_DIM_MAX || kv_heads <= 0 || heads % kv_heads != 0 || heads / kv_heads > TF_HEADS_A_KV_MAX)
    return TF_ERR_UNSUPPORTED;
  if (rows->rows <= 0) return TF_OK;
  paged_tile *tiles = malloc((size_t)rows->rows * sizeof *tiles);
  if (!tiles) return TF_ERR_OUT_OF_MEMORY;
  paged_job job = {.pool = pool,
                   .q = q,
                   .rows = rows,
                   .heads = heads,
                   .kv_heads = kv_heads,
                   .group = heads / kv_heads,
                   .head_dim = head_dim,
                   .tiles = tiles,
                   .out = out};
  int64_t tile_count = cut_tiles(rows, TF_LINES_MAX / job.group, tiles);
  tf_parallel(pool, tile_count * kv_heads, 1, run_paged, &job);
  free(tiles);
  return TF_OK;
}

/* ---- ViT ---- */

typedef struct full_job {
  tf_pool *pool;
  const float *q, *k, *v;
  int64_t tokens, heads, head_dim, parts, part_rows; /* parts: of the queries of one head of one image */
  float *out;
} full_job;

/* Keys and values of one head of one image to blocks behind `packed`. */
static void pack_head(const full_job *job, int64_t base, char *packed) {
  int64_t dim = job->head_dim, width = job->heads * dim, bytes = head_bytes(dim);
  int64_t blocks = (job->tokens + TF_BLOCK_KEYS - 1) / TF_BLOCK_KEYS;
  for (int64_t block = 0; block < blocks; block++) {
    int64_t first = block * TF_BLOCK_KEYS, count = job->tokens - first;
    char *keys = packed + block * 2 * bytes;
    tf_attention_pack_block(job->k + base + first * width, job->v + base + first * width, width,
                            count < TF_BLOCK_KEYS ? count : TF_BLOCK_KEYS, dim, keys, keys + bytes);
  }
}

static void run_full_lines(const full_job *job, int64_t base, int64_t first, int64_t count, const char *packed,
                           char *scratch) {
  int64_t dim = job->head_dim, width = job->heads * dim, bytes = head_bytes(dim);
  lines self;
  start_lines(&self, count, dim, scratch);
  for (int64_t line = 0; line < count; line++)
    tf_attention_round(job->q + base + (first + line) * width, 1.0f / sqrtf((float)dim), dim, 2 * self.steps,
                       self.query + line * 2 * self.steps);
  const tf_attention_kernel *kernel = kernel_for(FEW_LINES); /* the same for all rows, few at the end or not */
  for (int64_t at = 0; at < job->tokens; at += TF_STRETCH) {
    int64_t positions = job->tokens - at < TF_STRETCH ? job->tokens - at : TF_STRETCH;
    for (int64_t b = 0; b * TF_BLOCK_KEYS < positions; b++) {
      self.keys[b] = packed + (at / TF_BLOCK_KEYS + b) * 2 * bytes;
      self.values[b] = self.keys[b] + bytes;
    }
    run_stretch(&self, kernel, positions, at, 1, NULL);
  }
  for (int64_t line = 0; line < count; line++)
    tf_attention_divide(self.sums + line * PANEL * self.panels, self.total[line],
                        job->out + base + (first + line) * width, dim);
}

/* Index = head * parts + part. */
static void run_full(void *context, int64_t begin, int64_t end, int thread) {
  const full_job *job = context;
  int64_t packed_head = -1;
  for (int64_t i = begin; i < end; i++) {
    int64_t head = i / job->parts, first = i % job->parts * job->part_rows;
    int64_t base = (head / job->heads * job->tokens * job->heads + head % job->heads) * job->head_dim;
    char *packed = tf_pool_scratch(job->pool, thread);
    int64_t blocks = (job->tokens + TF_BLOCK_KEYS - 1) / TF_BLOCK_KEYS;
    if (head != packed_head) pack_head(job, base, packed);
    packed_head = head;
    int64_t last = first + job->part_rows < job->tokens ? first + job->part_rows : job->tokens;
    for (; first < last; first += FULL_LINES)
      run_full_lines(job, base, first, last - first < FULL_LINES ? last - first : FULL_LINES, packed,
                     packed + blocks * 2 * head_bytes(job->head_dim));
  }
}

tf_code tf_attention_bf16_full(tf_pool *pool, const float *q, const float *k, const float *v, int64_t batch,
                               int64_t tokens, int64_t heads, int64_t head_dim, float *out) {
  if (head_dim > TF_HEAD_DIM_MAX || tokens > TF_ATTENTION_TOKENS_MAX) return TF_ERR_UNSUPPORTED;
  if (batch <= 0 || tokens <= 0) return TF_OK;
  int64_t blocks = (tokens + TF_BLOCK_KEYS - 1) / TF_BLOCK_KEYS;
  int64_t lines_bytes = FULL_LINES * (6 * TF_STRETCH + 4 * PANEL * panels_of(head_dim) + 4 * steps_of(head_dim));
  if (blocks * 2 * head_bytes(head_dim) > TF_POOL_SCRATCH_BYTES - lines_bytes) return TF_ERR_UNSUPPORTED;
  full_job job = {
      .pool = pool, .q = q, .k = k, .v = v, .tokens = tokens, .heads = heads, .head_dim = head_dim, .out = out};
  /* Whole heads where there are enough of them: each part packs its head's keys and values for itself. */
  job.parts = batch * heads >= 3 * (int64_t)tf_pool_threads(pool) ? 1 : 2;
  job.part_rows = ((tokens + job.parts - 1) / job.parts + 15) / 16 * 16;
  job.parts = (tokens - 1) / job.part_rows + 1;
  tf_parallel(pool, batch * heads * job.parts, 1, run_full, &job);
  return TF_OK;
}

#else

bool tf_attention_bf16_wanted(void) {
  return false;
}
size_t tf_attention_bf16_block_bytes(int64_t kv_heads, int64_t head_dim) {
  return (size_t)(kv_heads * head_dim) * TF_BF16_BLOCK_TOKENS * sizeof(uint16_t);
}
void tf_attention_bf16_store(void *keys, void *values, int64_t place, const float *key, const float *value,
                             int64_t kv_heads, int64_t head_dim, const tf_bf16_turn *turn) {
  (void)keys, (void)values, (void)place, (void)key, (void)value, (void)kv_heads, (void)head_dim, (void)turn;
  assert(false); /* tf_attention_bf16_wanted says so */
}
tf_code tf_attention_bf16_paged(tf_pool *pool, const float *q, const tf_bf16_rows *rows, int64_t heads,
                                int64_t kv_heads, int64_t head_dim, float *out) {
  (void)pool, (void)q, (void)rows, (void)heads, (void)kv_heads, (void)head_dim, (void)out;
  return TF_ERR_UNSUPPORTED;
}
tf_code tf_attention_bf16_full(tf_pool *pool, const float *q, const float *k, const float *v, int64_t batch,
                               int64_t tokens, int64_t heads, int64_t head_dim, float *out) {
  (void)pool, (void)q, (void)k, (void)v, (void)batch, (void)tokens, (void)heads, (void)head_dim, (void)out;
  return TF_ERR_UNSUPPORTED;
}

#endif

/* The decoder's forward pass. In: rows of a batch. Out: logits of the rows that ask for them; keys and values in
 * blocks. Shapes are [rows, ...], row-major f32; `rows` counts prompt and decoding rows of all sequences together.
 * Loading is in model_load.c. */
#include "llm-svc/model.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "llm-svc/model_parts.h"
#include "tensor/attention_bf16.h"

_Static_assert((int)TF_BF16_BLOCK_TOKENS == (int)TF_KV_BLOCK_TOKENS,
               "one block of the cache is one of the attention's");

struct tf_llm_scratch {
  uint32_t rows_max, logits_max, blocks_max;
  float *x;             /* [rows, width]: the residual stream */
  tf_rows *rows;        /* what goes into a linear, of any width */
  float *q, *mixed;     /* [rows, heads * head_dim] */
  float *k, *v;         /* [rows, kv_heads * head_dim] */
  float *hidden;        /* [rows, ffn_width] */
  float *logits;        /* [logits_max, vocabulary] */
  int32_t *positions;   /* [rows] */
  float *cosine, *sine; /* [rows, head_dim]: RoPE's angles, the same in all layers */
  /* One layer's blocks: block_* hold the pointers of one sequence after the other, row_* each row's first. */
  void **block_keys, **block_values;           /* [blocks] */
  void *const **row_keys, *const **row_values; /* [rows] */
};

const tf_llm_config *tf_llm_configuration(const tf_llm *self) {
  return &self->config;
}

size_t tf_llm_kv_part_bytes(const tf_llm *self) {
  const tf_llm_config *c = &self->config;
  if (self->attention_bf16) return tf_attention_bf16_block_bytes(c->kv_heads, c->head_dim);
  return (size_t)c->kv_heads * c->head_dim * TF_KV_BLOCK_TOKENS * sizeof(float);
}

static float *floats(uint64_t rows, uint64_t columns) {
  if (columns == 0 || rows > SIZE_MAX / sizeof(float) / columns) return NULL;
  return malloc(rows * columns * sizeof(float));
}

tf_code tf_llm_scratch_new(const tf_llm *model, uint32_t rows_max, uint32_t logits_max, uint32_t kv_blocks_max,
                           tf_llm_scratch **out, tf_error *error) {
  assert(rows_max > 0 && logits_max > 0 && kv_blocks_max > 0);
  const tf_llm_config *c = &model->config;
  tf_llm_scratch *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a batch");
  uint64_t q_width = (uint64_t)c->heads * c->head_dim, kv_width = (uint64_t)c->kv_heads * c->head_dim;
  self->rows_max = rows_max;
  self->logits_max = logits_max;
  self->blocks_max = kv_blocks_max;
  self->x = floats(rows_max, c->width);
  uint64_t width_max = c->width > q_width ? c->width : q_width;
  self->rows = tf_rows_new(rows_max, (int64_t)(width_max > c->ffn_width ? width_max : c->ffn_width));
  self->q = floats(rows_max, q_width);
  self->mixed = floats(rows_max, q_width);
  self->k = floats(rows_max, kv_width);
  self->v = floats(rows_max, kv_width);
  self->hidden = floats(rows_max, c->ffn_width);
  self->logits = floats(logits_max, c->vocabulary);
  self->cosine = floats(rows_max, c->head_dim);
  self->sine = floats(rows_max, c->head_dim);
  self->positions = malloc(rows_max * sizeof *self->positions);
  self->block_keys = malloc(kv_blocks_max * sizeof *self->block_keys);
  self->block_values = malloc(kv_blocks_max * sizeof *self->block_values);
  self->row_keys = malloc(rows_max * sizeof *self->row_keys);
  self->row_values = malloc(rows_max * sizeof *self->row_values);
  if (self->x == NULL || self->rows == NULL || self->q == NULL || self->mixed == NULL || self->k == NULL ||
      self->v == NULL || self->hidden == NULL || self->cosine == NULL || self->sine == NULL || self->logits == NULL ||
      self->positions == NULL || self->block_keys == NULL || self->block_values == NULL || self->row_keys == NULL ||
      self->row_values == NULL) {
    tf_llm_scratch_free(&self);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for batches of %u rows", rows_max);
  }
  *out = self;
  return TF_OK;
}

void tf_llm_scratch_free(tf_llm_scratch **handle) {
  tf_llm_scratch *self = *handle;
  if (self == NULL) return;
  void *parts[] = {self->x,        self->q,         self->mixed,  self->k,         self->v,          self->hidden,
                   self->cosine,   self->sine,      self->logits, self->positions, self->block_keys, self->block_values,
                   self->row_keys, self->row_values};
  tf_rows_free(&self->rows);
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
  free(self);
  *handle = NULL;
}

static void embed(const tf_llm *self, const tf_llm_row *rows, uint32_t count, tf_llm_scratch *scratch) {
  size_t width = self->config.width;
  for (uint32_t r = 0; r < count; r++) {
    const tf_llm_row *row = &rows[r];
    float *x = scratch->x + r * width;
    assert(row->position >= 0 && (uint32_t)row->position < row->table->count * TF_KV_BLOCK_TOKENS);
    scratch->positions[r] = row->position;
    if (row->embedding != NULL) {
      memcpy(x, row->embedding, width * sizeof *x);
      continue;
    }
    assert(row->token >= 0 && (uint32_t)row->token < self->config.vocabulary);
    if (self->embedding == NULL)
      tf_linear_row(self->output, row->token, x);
    else
      tf_tensor_to_f32(self->embedding, row->token * (int64_t)width, (int64_t)width, x);
  }
}

/* Lists every sequence's blocks of this layer for the attention. */
static void list_blocks(const tf_kv *kv, uint32_t layer, const tf_llm_row *rows, uint32_t count,
                        tf_llm_scratch *scratch) {
  size_t used = 0;
  for (uint32_t r = 0; r < count; r++) {
    const tf_kv_table *table = rows[r].table;
    if (r > 0 && table == rows[r - 1].table) {
      scratch->row_keys[r] = scratch->row_keys[r - 1];
      scratch->row_values[r] = scratch->row_values[r - 1];
      continue;
    }
    assert(table->count <= scratch->blocks_max - used);
    scratch->row_keys[r] = scratch->block_keys + used;
    scratch->row_values[r] = scratch->block_values + used;
    for (uint32_t b = 0; b < table->count; b++, used++) {
      scratch->block_keys[used] = tf_kv_keys(kv, layer, table->blocks[b]);
      scratch->block_values[used] = tf_kv_values(kv, layer, table->blocks[b]);
    }
  }
}

typedef struct turn_job {
  const tf_llm *self;
  const tf_llm_row *rows;
  const tf_llm_scratch *scratch;
} turn_job;

/* k and v of some rows go to their places of their blocks, k turned by its position. q is turned here as well for
 * attention in f32, which takes it as it lies; in bf16 it is on the way into a tile. */
static void turn_and_store(void *context, int64_t begin, int64_t end, int thread) {
  const turn_job *job = context;
  const tf_llm_config *c = &job->self->config;
  const tf_llm_scratch *scratch = job->scratch;
  size_t width = (size_t)c->kv_heads * c->head_dim, q_width = (size_t)c->heads * c->head_dim;
  (void)thread;
  for (int64_t r = begin; r < end; r++) {
    uint32_t position = (uint32_t)job->rows[r].position, place = position % TF_KV_BLOCK_TOKENS;
    void *keys = scratch->row_keys[r][position / TF_KV_BLOCK_TOKENS];
    void *values = scratch->row_values[r][position / TF_KV_BLOCK_TOKENS];
    float *key = scratch->k + (size_t)r * width, *value = scratch->v + (size_t)r * width;
    tf_bf16_turn turn = {c->rope_layout, scratch->cosine + (size_t)r * c->head_dim,
                         scratch->sine + (size_t)r * c->head_dim};
    if (job->self->attention_bf16) {
      tf_attention_bf16_store(keys, values, place, key, value, c->kv_heads, c->head_dim, &turn);
      continue;
    }
    tf_rope_row(scratch->q + (size_t)r * q_width, c->heads, c->head_dim, c->rope_layout, turn.cosine, turn.sine);
    tf_rope_row(key, c->kv_heads, c->head_dim, c->rope_layout, turn.cosine, turn.sine);
    memcpy((float *)keys + place * width, key, width * sizeof(float));
    memcpy((float *)values + place * width, value, width * sizeof(float));
  }
}

/* mixed = attention of a layer over all rows, whose keys and values are stored. */
static tf_code attend(const tf_llm *self, tf_pool *pool, uint32_t count, tf_llm_scratch *scratch) {
  const tf_llm_config *c = &self->config;
  if (self->attention_bf16) {
    tf_bf16_turn turn = {c->rope_layout, scratch->cosine, scratch->sine};
    tf_bf16_rows paged = {count, scratch->positions, (const void *const *const *)scratch->row_keys,
                          (const void *const *const *)scratch->row_values, &turn};
    return tf_attention_bf16_paged(pool, scratch->q, &paged, c->heads, c->kv_heads, c->head_dim, scratch->mixed);
  }
  tf_paged_rows paged = {count, scratch->positions, (const float *const *const *)(const void *)scratch->row_keys,
                         (const float *const *const *)(const void *)scratch->row_values, TF_KV_BLOCK_TOKENS};
  return tf_attention_paged(pool, scratch->q, &paged, c->heads, c->kv_heads, c->head_dim, scratch->mixed);
}

static tf_row_norm norm_of(const tf_llm *self, const float *weight) {
  return (tf_row_norm){.weight = weight, .epsilon = self->config.norm_epsilon};
}

/* x += Wo mixed; x += feed-forward (weights NULL: there is no layer before); then q, k and v of the next layer, and the
 * last two to their blocks (next NULL: it was the last). */
static void run_linears(const tf_llm *self, tf_pool *pool, const tf_llm_layer *weights, const tf_llm_layer *next,
                        uint32_t count, turn_job *turn, tf_llm_scratch *scratch) {
  tf_epilogue add = {.residual = scratch->x};
  tf_row_norm ffn_norm, next_norm;
  tf_linear_step steps[4];
  int used = 0;
  if (weights != NULL) {
    ffn_norm = norm_of(self, weights->ffn_norm);
    steps[used++] =
        (tf_linear_step){.linear = weights->attention_output, .x = scratch->mixed, .epilogue = add, .y = {scratch->x}};
    steps[used++] = (tf_linear_step){.linear = weights->gate_up, /* silu(gate) * up */
                                     .norm = &ffn_norm,
                                     .x = scratch->x,
                                     .y = {scratch->hidden},
                                     .passing = true};
    steps[used++] = (tf_linear_step){.linear = weights->down, .x = scratch->hidden, .epilogue = add, .y = {scratch->x}};
  }
  if (next != NULL) {
    next_norm = norm_of(self, next->attention_norm);
    steps[used++] = (tf_linear_step){
        .linear = next->qkv, .norm = &next_norm, .x = scratch->x, .y = {scratch->q, scratch->k, scratch->v}};
  }
  tf_linear_chain(pool, steps, used, count, scratch->rows, next ? turn_and_store : NULL, turn);
}

/* Past the last layer's attention only rows that want logits matter: moves them to the front, returns how many. */
static uint32_t keep_wanted(const tf_llm *self, const tf_llm_row *rows, uint32_t count, tf_llm_scratch *scratch) {
  size_t width = self->config.width, q_width = (size_t)self->config.heads * self->config.head_dim;
  uint32_t kept = 0;
  for (uint32_t r = 0; r < count; r++) {
    if (!rows[r].wants_logits) continue;
    memmove(scratch->x + kept * width, scratch->x + r * width, width * sizeof(float));
    memmove(scratch->mixed + kept * q_width, scratch->mixed + r * q_width, q_width * sizeof(float));
    kept++;
  }
  return kept;
}

tf_code tf_llm_forward(const tf_llm *self, tf_pool *pool, tf_kv *kv, tf_llm_scratch *scratch, const tf_llm_row *rows,
                       uint32_t count, const float **logits, tf_error *error) {
  const tf_llm_config *c = &self->config;
  assert(count > 0 && count <= scratch->rows_max);
  *logits = scratch->logits;
  embed(self, rows, count, scratch);
  tf_rope_angles(scratch->positions, count, c->head_dim, c->rope_base, c->rope_layout, scratch->cosine, scratch->sine);
  turn_job turn = {self, rows, scratch};
  for (uint32_t layer = 0; layer < c->layers; layer++) {
    list_blocks(kv, layer, rows, count, scratch);
    run_linears(self, pool, layer > 0 ? &self->layers[layer - 1] : NULL, &self->layers[layer], count, &turn, scratch);
    tf_code code = attend(self, pool, count, scratch);
    if (code != TF_OK) return tf_fail(error, code, "attention over %u rows failed", count);
  }
  uint32_t wanted = keep_wanted(self, rows, count, scratch);
  if (wanted == 0) return TF_OK;
  run_linears(self, pool, &self->layers[c->layers - 1], NULL, wanted, &turn, scratch);
  assert(wanted <= scratch->logits_max);
  tf_row_norm norm = norm_of(self, self->output_norm);
  tf_rows_load(scratch->rows, pool, self->output, scratch->x, wanted, &norm);
  tf_linear_apply_rows(self->output, pool, scratch->rows, &scratch->logits, NULL);
  return TF_OK;
}

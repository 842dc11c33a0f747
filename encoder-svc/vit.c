/* The vision transformer. In: vision.gguf and an adapter's LoRA, then normalised pixels. Out: [batch, patches, width]
 * features. Loading first (configuration, weights, workspace), then the pass, in the order of the data: patches ->
 * embeddings with positions -> blocks (attention, MLP) -> final norm. Shapes stand beside every step. */
#include "encoder-svc/vit.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encoder-svc/positions.h"
#include "tensor/attention_bf16.h"
#include "tensor/lora.h"
#include "tensor/ops.h"

enum { CHANNELS = 3, NAME_BYTES_MAX = 96, PART_BYTES_MAX = 32 };

typedef struct vit_norm {
  const float *weight, *bias; /* [width] */
} vit_norm;

typedef struct vit_block {
  vit_norm norm1, norm2;
  tf_linear *qkv, *output;      /* [width, width], three of them joined */
  tf_linear *up, *down;         /* [mlp_width, width], [width, mlp_width] */
  const float *scale1, *scale2; /* [width] LayerScale; NULL: none */
} vit_block;

struct tf_vit {
  tf_vit_config config;
  bool attention_bf16;
  int64_t batch_max;
  tf_linear *patch; /* the patch convolution as a matrix: [width, 3 * p * p] */
  vit_block *blocks;
  vit_norm pre_norm, final_norm;
  const float *class_embedding; /* [width] class token plus its position; NULL: none */
  const float *positions;       /* [patches, width], at the grid of the image */
  /* One block of memory for all vectors above; vector_end is where the next goes. */
  float *vectors;
  int64_t vector_end, vectors_max;
  /* Workspace of a pass, rows = batch_max * tokens. */
  float *columns;             /* [patches, 3 * p * p], one image */
  float *x, *mixed;           /* [rows, width] */
  tf_rows *rows;              /* what goes into a linear, of any width */
  float *query, *key, *value; /* [rows, width] */
  float *hidden;              /* [rows, mlp_width] */
};

/* ---- configuration ---- */

static bool read_size(const tf_gguf *file, const char *key, int64_t maximum, int64_t *out) {
  uint64_t value;
  if (!tf_gguf_u64(file, key, &value) || value < 1 || value > (uint64_t)maximum) return false;
  *out = (int64_t)value;
  return true;
}

/* The limits only keep products of sizes inside 64 bits and absurd files from taking memory. */
static tf_code read_sizes(const tf_gguf *file, tf_vit_config *config, tf_error *error) {
  const struct {
    const char *key;
    int64_t maximum, *value;
  } sizes[] = {{"tokenflex.vision.image_size", 4096, &config->image_size},
               {"tokenflex.vision.patch_size", 256, &config->patch_size},
               {"tokenflex.vision.width", 16384, &config->width},
               {"tokenflex.vision.layer_count", 256, &config->layer_count},
               {"tokenflex.vision.head_count", 256, &config->head_count},
               {"tokenflex.vision.mlp_width", 65536, &config->mlp_width},
               {"tokenflex.vision.position_grid", 1024, &config->position_grid}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    if (!read_size(file, sizes[i].key, sizes[i].maximum, sizes[i].value))
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: %s is missing or not within 1..%lld", tf_gguf_path(file),
                     sizes[i].key, (long long)sizes[i].maximum);
  config->grid = config->image_size / config->patch_size;
  config->patches = config->grid * config->grid;
  if (config->grid < 1 || config->grid > 256)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: images of %lld pixels in patches of %lld", tf_gguf_path(file),
                   (long long)config->image_size, (long long)config->patch_size);
  if (config->width % config->head_count != 0)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: width %lld does not divide into %lld heads", tf_gguf_path(file),
                   (long long)config->width, (long long)config->head_count);
  return TF_OK;
}

static tf_code read_flags(const tf_gguf *file, tf_vit_config *config, tf_error *error) {
  const struct {
    const char *key;
    bool *value;
  } flags[] = {{"tokenflex.vision.class_token", &config->class_token},
               {"tokenflex.vision.pre_layer_norm", &config->pre_layer_norm},
               {"tokenflex.vision.layer_scale", &config->layer_scale},
               {"tokenflex.vision.final_layer_norm", &config->final_layer_norm}};
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
    if (!tf_gguf_bool(file, flags[i].key, flags[i].value))
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: %s is missing or no bool", tf_gguf_path(file), flags[i].key);
  config->tokens = config->patches + (config->class_token ? 1 : 0);
  return TF_OK;
}

static bool read_activation(const tf_gguf *file, tf_activation *out) {
  static const struct {
    const char *name;
    tf_activation activation;
  } names[] = {
      {"gelu", TF_ACTIVATION_GELU}, {"gelu_tanh", TF_ACTIVATION_GELU_TANH}, {"quick_gelu", TF_ACTIVATION_QUICK_GELU}};
  char text[32];
  if (!tf_gguf_text(file, "tokenflex.vision.activation", text, sizeof text)) return false;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(text, names[i].name) == 0) {
      *out = names[i].activation;
      return true;
    }
  return false;
}

static bool read_three(const tf_gguf *file, const char *key, float out[3]) {
  if (tf_gguf_array_count(file, key) != CHANNELS) return false;
  for (uint64_t i = 0; i < CHANNELS; i++) {
    double value;
    if (!tf_gguf_array_f64(file, key, i, &value)) return false;
    out[i] = (float)value;
  }
  return true;
}

tf_code tf_vit_read_config(const tf_gguf *file, tf_vit_config *config, tf_error *error) {
  const char *path = tf_gguf_path(file);
  char type[32];
  if (!tf_gguf_text(file, "general.type", type, sizeof type) || strcmp(type, "vision") != 0)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: no vision model (general.type is not \"vision\")", path);
  tf_code code = read_sizes(file, config, error);
  if (code == TF_OK) code = read_flags(file, config, error);
  if (code != TF_OK) return code;
  if (!read_activation(file, &config->activation))
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: tokenflex.vision.activation is not gelu, gelu_tanh or quick_gelu",
                   path);
  double epsilon;
  if (!tf_gguf_f64(file, "tokenflex.vision.layer_norm_epsilon", &epsilon) || !(epsilon > 0 && epsilon < 1))
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: tokenflex.vision.layer_norm_epsilon is missing or not in 0..1",
                   path);
  config->layer_norm_epsilon = (float)epsilon;
  if (!read_three(file, "tokenflex.vision.image_mean", config->image_mean) ||
      !read_three(file, "tokenflex.vision.image_std", config->image_std) || !(config->image_std[0] > 0) ||
      !(config->image_std[1] > 0) || !(config->image_std[2] > 0))
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: image_mean and image_std must hold 3 numbers each, std above 0",
                   path);
  return TF_OK;
}

/* ---- weights ---- */

/* What loading carries from tensor to tensor: the first failure stays in code, later calls do nothing. */
typedef struct loader {
  const tf_gguf *file;
  tf_lora_set loras;
  tf_pack_store *store;
  tf_vit *vit;
  tf_error *error;
  tf_code code;
  int64_t layer; /* -1: names stand as they are; else "vision.blk.LAYER." comes before them */
} loader;

static const char *full_name(const loader *self, const char *name, char out[NAME_BYTES_MAX]) {
  if (self->layer >= 0)
    snprintf(out, NAME_BYTES_MAX, "vision.blk.%lld.%s", (long long)self->layer, name);
  else
    snprintf(out, NAME_BYTES_MAX, "vision.%s", name);
  return out;
}

static float *take_vector(tf_vit *vit, int64_t count) {
  assert(count <= vit->vectors_max - vit->vector_end);
  float *at = vit->vectors + vit->vector_end;
  vit->vector_end += count;
  return at;
}

static const float *load_vector(loader *self, const char *name) {
  char full[NAME_BYTES_MAX];
  int64_t width = self->vit->config.width;
  const tf_tensor *tensor;
  if (self->code != TF_OK) return NULL;
  self->code = tf_gguf_require(self->file, full_name(self, name, full), 1, (int64_t[]){width}, &tensor, self->error);
  if (self->code != TF_OK) return NULL;
  float *at = take_vector(self->vit, width);
  tf_tensor_to_f32(tensor, 0, width, at);
  return at;
}

static vit_norm load_norm(loader *self, const char *weight, const char *bias) {
  return (vit_norm){.weight = load_vector(self, weight), .bias = load_vector(self, bias)};
}

/* name.weight [out, in] with its LoRA and name.bias [out], one or several of them joined; kept under the first name. */
static tf_linear *load_linear(loader *self, const char *const *names, int count, int64_t out, int64_t in,
                              tf_compute compute) {
  char part[PART_BYTES_MAX], full[NAME_BYTES_MAX];
  tf_linear_source sources[TF_LINEAR_PARTS_MAX] = {{.lora = NULL}};
  tf_lora loras[TF_LINEAR_PARTS_MAX];
  tf_linear *linear = NULL;
  for (int i = 0; i < count; i++) {
    if (self->code != TF_OK) return NULL;
    tf_linear_source *source = &sources[i];
    snprintf(part, sizeof part, "%s.weight", names[i]);
    self->code =
        tf_gguf_require(self->file, full_name(self, part, full), 2, (int64_t[]){out, in}, &source->weight, self->error);
    if (self->code == TF_OK) self->code = tf_lora_find(&self->loras, full, out, in, &loras[i], self->error);
    if (self->code != TF_OK) return NULL;
    if (loras[i].a != NULL) source->lora = &loras[i];
    snprintf(part, sizeof part, "%s.bias", names[i]);
    self->code =
        tf_gguf_require(self->file, full_name(self, part, full), 1, (int64_t[]){out}, &source->bias, self->error);
  }
  if (self->code == TF_OK)
    self->code = tf_linear_pack_kept(sources, count, TF_JOIN_PARTS, compute, self->store,
                                     full_name(self, names[0], full), &linear, self->error);
  return linear;
}

/* The convolution [width, 3, p, p] with stride p is a matrix product over patches laid out as columns (3, p, p). */
static void load_patch(loader *self) {
  const tf_vit_config *config = &self->vit->config;
  int64_t p = config->patch_size;
  const tf_tensor *weight;
  if (self->code != TF_OK) return;
  self->code = tf_gguf_require(self->file, "vision.patch.weight", 4, (int64_t[]){config->width, CHANNELS, p, p},
                               &weight, self->error);
  if (self->code != TF_OK) return;
  tf_tensor matrix = *weight;
  matrix.rank = 2;
  matrix.shape[1] = CHANNELS * p * p;
  matrix.shape[2] = matrix.shape[3] = 1;
  const tf_tensor *bias = tf_gguf_tensor(self->file, "vision.patch.bias"); /* CLIP has none */
  tf_linear_source source = {.weight = &matrix, .bias = bias};
  self->code = tf_linear_pack_kept(&source, 1, TF_JOIN_PARTS, TF_COMPUTE_AUTO, self->store, "vision.patch",
                                   &self->vit->patch, self->error);
}

static void load_positions(loader *self) {
  tf_vit *vit = self->vit;
  const tf_vit_config *config = &vit->config;
  int64_t stored = config->position_grid * config->position_grid;
  const tf_tensor *tensor;
  if (self->code != TF_OK) return;
  self->code =
      tf_gguf_require(self->file, "vision.position.patch", 2, (int64_t[]){stored, config->width}, &tensor, self->error);
  if (self->code != TF_OK) return;
  float *raw = malloc((size_t)(stored * config->width) * sizeof *raw);
  if (raw == NULL) {
    self->code = tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory for the position embeddings");
    return;
  }
  tf_tensor_to_f32(tensor, 0, stored * config->width, raw);
  float *positions = take_vector(vit, config->patches * config->width);
  tf_positions_resize(raw, config->position_grid, positions, config->grid, config->width);
  vit->positions = positions;
  free(raw);
}

static void load_class(loader *self) {
  const float *token = load_vector(self, "class"), *position = load_vector(self, "position.class");
  if (self->code != TF_OK) return;
  float *sum = take_vector(self->vit, self->vit->config.width);
  for (int64_t i = 0; i < self->vit->config.width; i++) sum[i] = token[i] + position[i];
  self->vit->class_embedding = sum;
}

static void load_block(loader *self, vit_block *block) {
  const tf_vit_config *config = &self->vit->config;
  int64_t width = config->width;
  /* What comes out of a LayerNorm has a few channels far larger than the rest: eight bits leave too little for those.
   * Features of int8 throughout have a cosine to f32's of 0.9973 at worst, these of 0.9992. */
  tf_compute fine = tf_cpu_compute_fine();
  block->norm1 = load_norm(self, "norm1.weight", "norm1.bias");
  block->qkv = load_linear(self, (const char *[]){"attn_q", "attn_k", "attn_v"}, 3, width, width, fine);
  block->output = load_linear(self, (const char *[]){"attn_output"}, 1, width, width, TF_COMPUTE_AUTO);
  block->norm2 = load_norm(self, "norm2.weight", "norm2.bias");
  block->up = load_linear(self, (const char *[]){"mlp_up"}, 1, config->mlp_width, width, fine);
  block->down = load_linear(self, (const char *[]){"mlp_down"}, 1, width, config->mlp_width, TF_COMPUTE_AUTO);
  if (!config->layer_scale) return;
  block->scale1 = load_vector(self, "scale1");
  block->scale2 = load_vector(self, "scale2");
}

static tf_code load_weights(tf_vit *vit, const tf_gguf *file, const tf_gguf *adapter, tf_pack_store *store,
                            tf_error *error) {
  const tf_vit_config *config = &vit->config;
  loader self = {.file = file,
                 .loras = tf_lora_set_of(adapter, true),
                 .store = store,
                 .vit = vit,
                 .error = error,
                 .code = TF_OK,
                 .layer = -1};
  load_patch(&self);
  load_positions(&self);
  if (config->class_token) load_class(&self);
  if (config->pre_layer_norm) vit->pre_norm = load_norm(&self, "pre_norm.weight", "pre_norm.bias");
  if (config->final_layer_norm) vit->final_norm = load_norm(&self, "norm.weight", "norm.bias");
  for (self.layer = 0; self.layer < config->layer_count; self.layer++) load_block(&self, &vit->blocks[self.layer]);
  if (self.code == TF_OK) self.code = tf_lora_check_used(&self.loras, tf_gguf_path(file), error);
  return self.code;
}

static float *new_floats(int64_t count) {
  assert(count > 0);
  return calloc((size_t)count, sizeof(float));
}

static tf_code take_memory(tf_vit *vit, tf_error *error) {
  const tf_vit_config *config = &vit->config;
  int64_t rows = vit->batch_max * config->tokens, width = config->width;
  /* A block has 2 norms of 2 vectors and 2 scales; besides: class token, its position, their sum, 2 norms. */
  vit->vectors_max = (6 * config->layer_count + 7 + config->patches) * width;
  vit->vectors = new_floats(vit->vectors_max);
  vit->blocks = calloc((size_t)config->layer_count, sizeof *vit->blocks);
  vit->columns = new_floats(config->patches * CHANNELS * config->patch_size * config->patch_size);
  vit->x = new_floats(rows * width);
  vit->mixed = new_floats(rows * width);
  vit->rows = tf_rows_new(rows, width > config->mlp_width ? width : config->mlp_width);
  vit->query = new_floats(rows * width);
  vit->key = new_floats(rows * width);
  vit->value = new_floats(rows * width);
  vit->hidden = new_floats(rows * config->mlp_width);
  if (vit->vectors == NULL || vit->blocks == NULL || vit->columns == NULL || vit->x == NULL || vit->mixed == NULL ||
      vit->rows == NULL || vit->query == NULL || vit->key == NULL || vit->value == NULL || vit->hidden == NULL)
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a ViT pass over %lld images", (long long)vit->batch_max);
  return TF_OK;
}

tf_code tf_vit_load(const tf_gguf *file, const tf_gguf *adapter, int64_t batch_max, tf_pack_store *store, tf_vit **out,
                    tf_error *error) {
  assert(batch_max >= 1 && batch_max <= 1024);
  *out = NULL;
  tf_vit *vit = calloc(1, sizeof *vit);
  if (vit == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the ViT");
  vit->batch_max = batch_max;
  tf_code code = tf_vit_read_config(file, &vit->config, error);
  vit->attention_bf16 = tf_attention_bf16_wanted();
  if (code == TF_OK) code = take_memory(vit, error);
  if (code == TF_OK) code = load_weights(vit, file, adapter, store, error);
  if (code != TF_OK)
    tf_vit_free(&vit);
  else
    *out = vit;
  return code;
}

void tf_vit_free(tf_vit **self) {
  tf_vit *vit = *self;
  if (vit == NULL) return;
  for (int64_t i = 0; vit->blocks != NULL && i < vit->config.layer_count; i++) {
    vit_block *block = &vit->blocks[i];
    tf_linear **linears[] = {&block->qkv, &block->output, &block->up, &block->down};
    for (size_t j = 0; j < sizeof linears / sizeof *linears; j++) tf_linear_free(linears[j]);
  }
  tf_linear_free(&vit->patch);
  float *buffers[] = {vit->vectors, vit->columns, vit->x, vit->mixed, vit->query, vit->key, vit->value, vit->hidden};
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
  tf_rows_free(&vit->rows);
  free(vit->blocks);
  free(vit);
  *self = NULL;
}

const tf_vit_config *tf_vit_configuration(const tf_vit *self) {
  return &self->config;
}

/* ---- the pass ---- */

/* image: [3, size, size] -> columns: [patches, 3 * p * p], patches row-major, each in kernel order (c, y, x). */
static void lay_out_patches(const tf_vit_config *config, const float *image, float *columns) {
  int64_t p = config->patch_size, size = config->image_size;
  for (int64_t row = 0; row < config->grid; row++)
    for (int64_t column = 0; column < config->grid; column++)
      for (int64_t channel = 0; channel < CHANNELS; channel++) {
        const float *from = image + (channel * size + row * p) * size + column * p;
        for (int64_t y = 0; y < p; y++, from += size, columns += p) memcpy(columns, from, (size_t)p * sizeof *columns);
      }
}

/* pixels: [batch, 3, size, size] -> x: [batch, tokens, width]; the class token comes first. */
static void embed(tf_vit *vit, tf_pool *pool, const float *pixels, int64_t batch) {
  const tf_vit_config *config = &vit->config;
  const tf_epilogue add_positions = {.residual = vit->positions}; /* [patches, width], the same for every image */
  for (int64_t i = 0; i < batch; i++) {
    float *x = vit->x + i * config->tokens * config->width;
    if (config->class_token) {
      memcpy(x, vit->class_embedding, (size_t)config->width * sizeof *x);
      x += config->width;
    }
    lay_out_patches(config, pixels + i * CHANNELS * config->image_size * config->image_size, vit->columns);
    tf_linear_apply(vit->patch, pool, vit->columns, config->patches, x, &add_positions);
  }
}

static void norm(const tf_vit *vit, tf_pool *pool, const vit_norm *weights, const float *x, int64_t rows, float *y) {
  tf_layer_norm(pool, x, rows, vit->config.width, weights->weight, weights->bias, vit->config.layer_norm_epsilon, y);
}

static tf_row_norm row_norm(const tf_vit *vit, const vit_norm *weights) {
  return (tf_row_norm){.weight = weights->weight, .bias = weights->bias, .epsilon = vit->config.layer_norm_epsilon};
}

/* mixed = attention of query, key, value: in bf16 where that is wanted and fits, else in f32. */
static tf_code run_attention(tf_vit *vit, tf_pool *pool, int64_t batch) {
  const tf_vit_config *config = &vit->config;
  int64_t tokens = config->tokens, heads = config->head_count, head_dim = config->width / heads;
  tf_code code = TF_ERR_UNSUPPORTED;
  if (vit->attention_bf16)
    code = tf_attention_bf16_full(pool, vit->query, vit->key, vit->value, batch, tokens, heads, head_dim, vit->mixed);
  if (code == TF_ERR_UNSUPPORTED)
    code = tf_attention_full(pool, vit->query, vit->key, vit->value, batch, tokens, heads, head_dim, vit->mixed);
  return code;
}

/* query, key, value = the block's, of norm1(x).  x: [batch * tokens, width] */
static tf_linear_step project(const tf_vit *vit, const vit_block *block, const tf_row_norm *norm) {
  return (tf_linear_step){.linear = block->qkv, .norm = norm, .x = vit->x, .y = {vit->query, vit->key, vit->value}};
}

/* x += scale1 * attention(norm1(x)); x += scale2 * mlp(norm2(x)).  x: [batch * tokens, width]
 * query, key and value of the block are there already; those of the next one are left behind. */
static tf_code run_block(tf_vit *vit, tf_pool *pool, const vit_block *block, const vit_block *next, int64_t batch) {
  const tf_vit_config *config = &vit->config;
  tf_code code = run_attention(vit, pool, batch); /* mixed: [rows, width] */
  if (code != TF_OK) return code;
  tf_row_norm norm2 = row_norm(vit, &block->norm2), next_norm1 = next ? row_norm(vit, &next->norm1) : norm2;
  const tf_linear_step steps[] = {{.linear = block->output, /* [rows, width] */
                                   .x = vit->mixed,
                                   .epilogue = {.scale = block->scale1, .residual = vit->x},
                                   .y = {vit->x}},
                                  {.linear = block->up, /* [rows, mlp_width] */
                                   .norm = &norm2,
                                   .x = vit->x,
                                   .epilogue = {.activation = config->activation},
                                   .y = {vit->hidden},
                                   .passing = true},
                                  {.linear = block->down, /* [rows, width] */
                                   .x = vit->hidden,
                                   .epilogue = {.scale = block->scale2, .residual = vit->x},
                                   .y = {vit->x}},
                                  next ? project(vit, next, &next_norm1) : (tf_linear_step){.linear = NULL}};
  tf_linear_chain(pool, steps, next ? 4 : 3, batch * config->tokens, vit->rows, NULL, NULL);
  return TF_OK;
}

/* x: [batch, tokens, width] -> out: [batch, patches, width] */
static void finish(const tf_vit *vit, tf_pool *pool, int64_t batch, float *out) {
  const tf_vit_config *config = &vit->config;
  for (int64_t i = 0; i < batch; i++, out += config->patches * config->width) {
    const float *patches = vit->x + (i * config->tokens + config->tokens - config->patches) * config->width;
    if (config->final_layer_norm)
      norm(vit, pool, &vit->final_norm, patches, config->patches, out);
    else
      memcpy(out, patches, (size_t)(config->patches * config->width) * sizeof *out);
  }
}

tf_code tf_vit_run(tf_vit *self, tf_pool *pool, const float *pixels, int64_t batch, float *out,
                   tf_vit_observer observer, void *context, tf_error *error) {
  const tf_vit_config *config = &self->config;
  if (batch < 1 || batch > self->batch_max)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "a batch of %lld images; 1 to %lld fit", (long long)batch,
                   (long long)self->batch_max);
  embed(self, pool, pixels, batch);
  if (observer != NULL) observer(context, "embeddings", -1, self->x, batch);
  if (config->pre_layer_norm) norm(self, pool, &self->pre_norm, self->x, batch * config->tokens, self->x);
  tf_row_norm norm1 = row_norm(self, &self->blocks[0].norm1);
  tf_linear_step first = project(self, &self->blocks[0], &norm1);
  tf_linear_chain(pool, &first, 1, batch * config->tokens, self->rows, NULL, NULL);
  for (int64_t i = 0; i < config->layer_count; i++) {
    const vit_block *next = i + 1 < config->layer_count ? &self->blocks[i + 1] : NULL;
    tf_code code = run_block(self, pool, &self->blocks[i], next, batch);
    if (code != TF_OK) return tf_fail(error, code, "attention of layer %lld: %s", (long long)i, tf_code_text(code));
    if (observer != NULL) observer(context, "block", i, self->x, batch);
  }
  finish(self, pool, batch, out);
  return TF_OK;
}

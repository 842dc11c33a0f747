/* The projector. In: adapter.gguf, then patch features of one image. Out: [N, llm_width].
 * pool -> LayerNorm -> gate and up -> SwiGLU -> down, the last straight into the caller's memory.
 * Everything about the file is checked at load, so that a pass can only fail on an N that is not supported. */
#include "encoder-svc/projector.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/model_dir.h"
#include "tensor/ops.h"

struct tf_projector {
  int64_t grid, image_size, vision_width, llm_width, hidden;
  float layer_norm_epsilon;
  uint32_t count;                          /* of poolers */
  tf_pooler *poolers[TF_TOKEN_COUNTS_MAX]; /* one for each N, ascending */
  tf_linear *gate_up, *down;               /* [hidden, vision_width] twice as SwiGLU, [llm_width, hidden] */
  float *norm_weight, *norm_bias;          /* [vision_width] */
  /* Workspace for the largest N */
  float *pooled;      /* [N, vision_width] */
  float *hidden_rows; /* [N, hidden] */
  tf_rows *rows;      /* what goes into a linear */
};

static tf_code read_sizes(tf_projector *self, const tf_gguf *file, tf_error *error) {
  const struct {
    const char *key;
    uint64_t maximum;
    int64_t *value;
  } sizes[] = {{"tokenflex.grid", 256, &self->grid},
               {"tokenflex.image_size", 4096, &self->image_size},
               {"tokenflex.vision_width", 16384, &self->vision_width},
               {"tokenflex.llm_width", 65536, &self->llm_width},
               {"tokenflex.hidden", 262144, &self->hidden}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    uint64_t value;
    if (!tf_gguf_u64(file, sizes[i].key, &value) || value < 1 || value > sizes[i].maximum)
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: %s is missing or not within 1..%llu", tf_gguf_path(file),
                     sizes[i].key, (unsigned long long)sizes[i].maximum);
    *sizes[i].value = (int64_t)value;
  }
  double epsilon;
  if (!tf_gguf_f64(file, "tokenflex.layer_norm_epsilon", &epsilon) || !(epsilon > 0 && epsilon < 1))
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: tokenflex.layer_norm_epsilon is missing or not in 0..1",
                   tf_gguf_path(file));
  self->layer_norm_epsilon = (float)epsilon;
  return TF_OK;
}

static int64_t square_root(uint64_t square) { /* 0: no square of 1..256 */
  for (uint64_t n = 1; n <= 256; n++)
    if (n * n == square) return (int64_t)n;
  return 0;
}

/* tokenflex.token_counts: ascending squares; a pooling for each. */
static tf_code make_poolers(tf_projector *self, const tf_gguf *file, tf_error *error) {
  const char *path = tf_gguf_path(file);
  char type[32], name[32];
  if (!tf_gguf_text(file, "general.type", type, sizeof type) || strcmp(type, "adapter") != 0)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: no adapter (general.type is not \"adapter\")", path);
  tf_pooling method;
  if (!tf_gguf_text(file, "tokenflex.pooling", name, sizeof name) || !tf_pooling_from_name(name, &method))
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: tokenflex.pooling is neither resize_average nor adaptive_average",
                   path);
  uint64_t count = tf_gguf_array_count(file, "tokenflex.token_counts"), before = 0;
  if (count < 1 || count > TF_TOKEN_COUNTS_MAX)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: tokenflex.token_counts must hold 1 to %d numbers", path,
                   TF_TOKEN_COUNTS_MAX);
  for (uint64_t i = 0; i < count; i++) {
    uint64_t tokens = 0;
    int64_t n = tf_gguf_array_u64(file, "tokenflex.token_counts", i, &tokens) ? square_root(tokens) : 0;
    if (n == 0 || tokens <= before)
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: tokenflex.token_counts must be ascending squares up to 65536",
                     path);
    before = tokens;
    tf_code code = tf_pooler_new(method, self->grid, n, &self->poolers[i], error);
    if (code != TF_OK) return code;
    self->count++;
  }
  return TF_OK;
}

static tf_code load_vector(const tf_gguf *file, const char *name, int64_t width, float **out, tf_error *error) {
  const tf_tensor *tensor;
  tf_code code = tf_gguf_require(file, name, 1, (int64_t[]){width}, &tensor, error);
  if (code != TF_OK) return code;
  assert(width > 0);
  *out = malloc((size_t)width * sizeof **out);
  if (*out == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for %s", name);
  tf_tensor_to_f32(tensor, 0, width, *out);
  return TF_OK;
}

static tf_code find_linear(const tf_gguf *file, const char *weight_name, const char *bias_name, int64_t out, int64_t in,
                           tf_linear_source *source, tf_error *error) {
  tf_code code = tf_gguf_require(file, weight_name, 2, (int64_t[]){out, in}, &source->weight, error);
  if (code == TF_OK) code = tf_gguf_require(file, bias_name, 1, (int64_t[]){out}, &source->bias, error);
  return code;
}

static tf_code load_weights(tf_projector *self, const tf_gguf *file, tf_pack_store *store, tf_error *error) {
  int64_t width = self->vision_width, hidden = self->hidden;
  tf_linear_source gate_up[2] = {{.lora = NULL}}, down = {.lora = NULL};
  tf_code code = load_vector(file, "projector.norm.weight", width, &self->norm_weight, error);
  if (code == TF_OK) code = load_vector(file, "projector.norm.bias", width, &self->norm_bias, error);
  if (code == TF_OK)
    code = find_linear(file, "projector.gate.weight", "projector.gate.bias", hidden, width, &gate_up[0], error);
  if (code == TF_OK)
    code = find_linear(file, "projector.up.weight", "projector.up.bias", hidden, width, &gate_up[1], error);
  if (code == TF_OK)
    code = find_linear(file, "projector.down.weight", "projector.down.bias", self->llm_width, hidden, &down, error);
  if (code == TF_OK)
    code = tf_linear_pack_kept(gate_up, 2, TF_JOIN_SWIGLU, TF_COMPUTE_AUTO, store, "projector.gate_up", &self->gate_up,
                               error);
  if (code == TF_OK)
    code = tf_linear_pack_kept(&down, 1, TF_JOIN_PARTS, TF_COMPUTE_AUTO, store, "projector.down", &self->down, error);
  return code;
}

static tf_code take_workspace(tf_projector *self, tf_error *error) {
  size_t rows = (size_t)tf_pooler_tokens(self->poolers[self->count - 1]);
  self->pooled = calloc(rows * (size_t)self->vision_width, sizeof(float));
  self->hidden_rows = calloc(rows * (size_t)self->hidden, sizeof(float));
  self->rows = tf_rows_new((int64_t)rows, self->vision_width > self->hidden ? self->vision_width : self->hidden);
  if (self->pooled == NULL || self->hidden_rows == NULL || self->rows == NULL)
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to project %zu tokens", rows);
  return TF_OK;
}

tf_code tf_projector_load(const tf_gguf *file, tf_pack_store *store, tf_projector **out, tf_error *error) {
  *out = NULL;
  tf_projector *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the projector");
  tf_code code = read_sizes(self, file, error);
  if (code == TF_OK) code = make_poolers(self, file, error);
  if (code == TF_OK) code = load_weights(self, file, store, error);
  if (code == TF_OK) code = take_workspace(self, error);
  if (code != TF_OK)
    tf_projector_free(&self);
  else
    *out = self;
  return code;
}

void tf_projector_free(tf_projector **self) {
  tf_projector *projector = *self;
  if (projector == NULL) return;
  for (uint32_t i = 0; i < projector->count; i++) tf_pooler_free(&projector->poolers[i]);
  tf_linear_free(&projector->gate_up);
  tf_linear_free(&projector->down);
  free(projector->norm_weight);
  free(projector->norm_bias);
  free(projector->pooled);
  free(projector->hidden_rows);
  tf_rows_free(&projector->rows);
  free(projector);
  *self = NULL;
}

int64_t tf_projector_grid(const tf_projector *self) {
  return self->grid;
}
int64_t tf_projector_image_size(const tf_projector *self) {
  return self->image_size;
}
int64_t tf_projector_vision_width(const tf_projector *self) {
  return self->vision_width;
}
int64_t tf_projector_llm_width(const tf_projector *self) {
  return self->llm_width;
}

static const tf_pooler *find_pooler(const tf_projector *self, uint32_t tokens) {
  for (uint32_t i = 0; i < self->count; i++)
    if (tf_pooler_tokens(self->poolers[i]) == (int64_t)tokens) return self->poolers[i];
  return NULL;
}

bool tf_projector_supports(const tf_projector *self, uint32_t tokens) {
  return find_pooler(self, tokens) != NULL;
}

tf_code tf_projector_run(tf_projector *self, tf_pool *pool, const float *x, uint32_t tokens, float *out,
                         tf_error *error) {
  const tf_pooler *pooler = find_pooler(self, tokens);
  if (pooler == NULL)
    return tf_fail(error, TF_ERR_VISION_TOKENS_UNSUPPORTED, "%u vision tokens; the adapter was not trained for that",
                   (unsigned)tokens);
  int64_t rows = tokens;
  tf_pooler_apply(pooler, x, self->vision_width, self->pooled); /* [tokens, vision_width] */
  tf_row_norm norm = {.weight = self->norm_weight, .bias = self->norm_bias, .epsilon = self->layer_norm_epsilon};
  tf_rows_load(self->rows, pool, self->gate_up, self->pooled, rows, &norm);
  tf_linear_apply_rows(self->gate_up, pool, self->rows, &self->hidden_rows, NULL); /* [tokens, hidden] */
  tf_rows_load(self->rows, pool, self->down, self->hidden_rows, rows, NULL);
  tf_linear_apply_rows(self->down, pool, self->rows, &out, NULL); /* [tokens, llm_width] */
  return TF_OK;
}

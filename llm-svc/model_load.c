/* Loading the decoder. In: llm.gguf, and adapter.gguf for its LoRA. Out: a tf_llm, every shape checked.
 * Linears are first listed, then packed (LoRA merged) in parallel. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llm-svc/model_parts.h"
#include "tensor/attention_bf16.h"
#include "tensor/lora.h"

enum { LINEARS_PER_LAYER = 4, PARTS_MAX = 3, NAME_BYTES_MAX = 96 };

/* One architecture of GGUF: what differs between them. */
typedef struct architecture {
  const char *name;
  tf_rope_layout rope_layout;
} architecture;

static const architecture ARCHITECTURES[] = {
    {"llama", TF_ROPE_INTERLEAVED},
    {"qwen2", TF_ROPE_HALF_SPLIT},
};

/* A linear to be packed: of one matrix, or of several that read the same input. */
typedef struct pack_job {
  char name[NAME_BYTES_MAX]; /* the first of its matrices' */
  tf_linear_source parts[PARTS_MAX];
  tf_lora loras[PARTS_MAX];
  int count;
  tf_linear_join join;
  tf_linear **out;
} pack_job;

typedef struct loader {
  const tf_gguf *file;
  tf_pack_store *store;
  tf_lora_set loras;
  tf_llm *model;
  pack_job *jobs;
  size_t job_count;
  pthread_mutex_t mutex; /* guards code and error while packing */
  tf_code code;
  tf_error *error;
} loader;

static bool setting_u32(const loader *self, const char *name, uint64_t maximum, uint32_t *out) {
  char key[NAME_BYTES_MAX];
  uint64_t value;
  snprintf(key, sizeof key, "%s.%s", self->model->config.architecture, name);
  if (!tf_gguf_u64(self->file, key, &value) || value == 0 || value > maximum) return false;
  *out = (uint32_t)value;
  return true;
}

static bool setting_f64(const loader *self, const char *name, double *out) {
  char key[NAME_BYTES_MAX];
  double value;
  snprintf(key, sizeof key, "%s.%s", self->model->config.architecture, name);
  if (!tf_gguf_f64(self->file, key, &value) || !isfinite(value) || value <= 0) return false;
  *out = value;
  return true;
}

static tf_code find_architecture(loader *self) {
  tf_llm_config *c = &self->model->config;
  if (tf_gguf_text(self->file, "general.architecture", c->architecture, sizeof c->architecture))
    for (size_t i = 0; i < sizeof ARCHITECTURES / sizeof *ARCHITECTURES; i++)
      if (strcmp(c->architecture, ARCHITECTURES[i].name) == 0) {
        c->rope_layout = ARCHITECTURES[i].rope_layout;
        return TF_OK;
      }
  return tf_fail(self->error, TF_ERR_UNSUPPORTED, "%s: general.architecture is '%s', not llama or qwen2",
                 tf_gguf_path(self->file), c->architecture);
}

static tf_code refuse_scaled_rope(const loader *self) {
  char key[NAME_BYTES_MAX], scaling[32] = "none";
  const char *text;
  size_t size;
  snprintf(key, sizeof key, "%s.rope.scaling.type", self->model->config.architecture);
  bool is_given = tf_gguf_string(self->file, key, &text, &size);
  if (is_given && !tf_gguf_text(self->file, key, scaling, sizeof scaling)) strcpy(scaling, "?");
  if (strcmp(scaling, "none") == 0 && tf_gguf_tensor(self->file, "rope_freqs.weight") == NULL) return TF_OK;
  return tf_fail(self->error, TF_ERR_UNSUPPORTED, "%s: scaled RoPE is not supported", tf_gguf_path(self->file));
}

static tf_code load_config(loader *self) {
  tf_code code = find_architecture(self);
  if (code == TF_OK) code = refuse_scaled_rope(self);
  if (code != TF_OK) return code;
  tf_llm_config *c = &self->model->config;
  double epsilon = 0;
  c->rope_base = 10000.0; /* the format's default */
  setting_f64(self, "rope.freq_base", &c->rope_base);
  uint32_t rope_dims = 0, key_length = 0;
  bool complete = setting_u32(self, "block_count", TF_LLM_LAYERS_MAX, &c->layers) &&
                  setting_u32(self, "embedding_length", TF_LLM_WIDTH_MAX, &c->width) &&
                  setting_u32(self, "attention.head_count", TF_LLM_WIDTH_MAX, &c->heads) &&
                  setting_u32(self, "feed_forward_length", 1 << 20, &c->ffn_width) &&
                  setting_u32(self, "context_length", 1 << 24, &c->context_tokens) &&
                  setting_f64(self, "attention.layer_norm_rms_epsilon", &epsilon);
  if (!complete)
    return tf_fail(self->error, TF_ERR_MODEL_INVALID,
                   "%s: block_count, embedding_length, head_count, feed_forward_length, context_length or "
                   "layer_norm_rms_epsilon is missing or out of range",
                   tf_gguf_path(self->file));
  c->norm_epsilon = (float)epsilon;
  c->kv_heads = c->heads;
  setting_u32(self, "attention.head_count_kv", TF_LLM_WIDTH_MAX, &c->kv_heads);
  c->head_dim = c->width / c->heads;
  if (setting_u32(self, "attention.key_length", TF_LLM_WIDTH_MAX, &key_length)) c->head_dim = key_length;
  if (!setting_u32(self, "rope.dimension_count", TF_LLM_WIDTH_MAX, &rope_dims)) rope_dims = c->head_dim;
  if (c->head_dim == 0 || c->head_dim % 2 != 0 || rope_dims != c->head_dim || c->heads % c->kv_heads != 0 ||
      c->head_dim > TF_HEAD_DIM_MAX || c->heads / c->kv_heads > TF_HEADS_A_KV_MAX ||
      (uint64_t)c->heads * c->head_dim > TF_LLM_WIDTH_MAX)
    return tf_fail(self->error, TF_ERR_MODEL_INVALID, "%s: %u heads, %u KV heads, width %u, %u of %u rotated: no fit",
                   tf_gguf_path(self->file), c->heads, c->kv_heads, c->width, rope_dims, c->head_dim);
  return TF_OK;
}

static tf_code load_vector(const loader *self, const char *name, float **out) {
  const tf_tensor *tensor;
  int64_t width = self->model->config.width;
  tf_code code = tf_gguf_require(self->file, name, 1, &width, &tensor, self->error);
  if (code != TF_OK) return code;
  *out = malloc((size_t)width * sizeof **out);
  if (*out == NULL) return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory for the model");
  tf_tensor_to_f32(tensor, 0, width, *out);
  return TF_OK;
}

/* Adds a matrix to the job that is being listed, self->jobs[self->job_count]. */
static tf_code list_part(loader *self, const char *prefix, int64_t outputs, int64_t inputs) {
  char weight_name[NAME_BYTES_MAX - 8], bias_name[NAME_BYTES_MAX - 8];
  snprintf(weight_name, sizeof weight_name, "%s.weight", prefix);
  snprintf(bias_name, sizeof bias_name, "%s.bias", prefix);
  pack_job *job = &self->jobs[self->job_count];
  tf_linear_source *part = &job->parts[job->count];
  tf_lora *lora = &job->loras[job->count];
  int64_t shape[2] = {outputs, inputs};
  tf_code code = tf_gguf_require(self->file, weight_name, 2, shape, &part->weight, self->error);
  if (code == TF_OK && tf_gguf_tensor(self->file, bias_name) != NULL)
    code = tf_gguf_require(self->file, bias_name, 1, &outputs, &part->bias, self->error);
  if (code == TF_OK) code = tf_lora_find(&self->loras, weight_name, outputs, inputs, lora, self->error);
  if (lora->a != NULL) part->lora = lora;
  if (job->count == 0) snprintf(job->name, sizeof job->name, "%s", prefix);
  job->count++;
  return code;
}

static tf_code list_layer(loader *self, uint32_t index) {
  const tf_llm_config *c = &self->model->config;
  tf_llm_layer *layer = &self->model->layers[index];
  int64_t q_width = (int64_t)c->heads * c->head_dim, kv_width = (int64_t)c->kv_heads * c->head_dim;
  struct {
    int count;
    tf_linear_join join;
    tf_linear **out;
    struct {
      const char *name;
      int64_t outputs, inputs;
    } parts[PARTS_MAX];
  } linears[LINEARS_PER_LAYER] = {
      {3,
       TF_JOIN_PARTS,
       &layer->qkv,
       {{"attn_q", q_width, c->width}, {"attn_k", kv_width, c->width}, {"attn_v", kv_width, c->width}}},
      {1, TF_JOIN_PARTS, &layer->attention_output, {{"attn_output", c->width, q_width}}},
      {2, TF_JOIN_SWIGLU, &layer->gate_up, {{"ffn_gate", c->ffn_width, c->width}, {"ffn_up", c->ffn_width, c->width}}},
      {1, TF_JOIN_PARTS, &layer->down, {{"ffn_down", c->width, c->ffn_width}}}};
  char name[NAME_BYTES_MAX / 2];
  snprintf(name, sizeof name, "blk.%u.attn_norm.weight", index);
  tf_code code = load_vector(self, name, &layer->attention_norm);
  snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", index);
  if (code == TF_OK) code = load_vector(self, name, &layer->ffn_norm);
  for (int i = 0; i < LINEARS_PER_LAYER && code == TF_OK; i++) {
    self->jobs[self->job_count].join = linears[i].join;
    self->jobs[self->job_count].out = linears[i].out;
    for (int p = 0; p < linears[i].count && code == TF_OK; p++) {
      snprintf(name, sizeof name, "blk.%u.%s", index, linears[i].parts[p].name);
      code = list_part(self, name, linears[i].parts[p].outputs, linears[i].parts[p].inputs);
    }
    self->job_count++;
  }
  return code;
}

/* Embedding and output: one matrix where they are tied. Embeddings are read from the file, as exact as it is, unless a
 * LoRA changes them. */
static tf_code list_output(loader *self) {
  tf_llm *model = self->model;
  int64_t shape[2] = {-1, model->config.width};
  const tf_tensor *embedding;
  tf_code code = tf_gguf_require(self->file, "token_embd.weight", 2, shape, &embedding, self->error);
  if (code == TF_OK) code = load_vector(self, "output_norm.weight", &model->output_norm);
  if (code != TF_OK) return code;
  if (embedding->shape[0] < 1 || embedding->shape[0] > 1 << 24)
    return tf_fail(self->error, TF_ERR_MODEL_INVALID, "%s: a vocabulary of %lld tokens", tf_gguf_path(self->file),
                   (long long)embedding->shape[0]);
  model->config.vocabulary = (uint32_t)embedding->shape[0];
  bool tied = tf_gguf_tensor(self->file, "output.weight") == NULL;
  pack_job *job = &self->jobs[self->job_count];
  job->out = &model->output;
  code = list_part(self, tied ? "token_embd" : "output", embedding->shape[0], model->config.width);
  if (!tied || job->parts[0].lora == NULL) model->embedding = embedding;
  self->job_count++;
  return code;
}

static void pack_some(void *context, int64_t begin, int64_t end, int thread) {
  (void)thread;
  loader *self = context;
  for (int64_t i = begin; i < end; i++) {
    const pack_job *job = &self->jobs[i];
    tf_error error;
    tf_code code = tf_linear_pack_kept(job->parts, job->count, job->join, TF_COMPUTE_AUTO, self->store, job->name,
                                       job->out, &error);
    if (code == TF_OK) continue;
    pthread_mutex_lock(&self->mutex);
    if (self->code == TF_OK) self->code = tf_fail(self->error, code, "%s: %s", tf_gguf_path(self->file), error.text);
    pthread_mutex_unlock(&self->mutex);
    return;
  }
}

static tf_code load_weights(loader *self, tf_pool *pool) {
  tf_llm *model = self->model;
  uint32_t layers = model->config.layers;
  model->layers = calloc(layers, sizeof *model->layers);
  self->jobs = calloc((size_t)layers * LINEARS_PER_LAYER + 1, sizeof *self->jobs);
  if (model->layers == NULL || self->jobs == NULL)
    return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory for the model");
  tf_code code = list_output(self);
  for (uint32_t i = 0; i < layers && code == TF_OK; i++) code = list_layer(self, i);
  if (code == TF_OK) code = tf_lora_check_used(&self->loras, tf_gguf_path(self->file), self->error);
  if (code != TF_OK) return code;
  pthread_mutex_init(&self->mutex, NULL);
  tf_parallel(pool, (int64_t)self->job_count, 1, pack_some, self);
  pthread_mutex_destroy(&self->mutex);
  return self->code;
}

tf_code tf_llm_load(const tf_gguf *file, const tf_gguf *adapter, tf_pool *pool, tf_pack_store *store, tf_llm **out,
                    tf_error *error) {
  loader self = {.file = file, .loras = tf_lora_set_of(adapter, false), .store = store, .error = error};
  self.model = calloc(1, sizeof *self.model);
  if (self.model == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the model");
  tf_code code = load_config(&self);
  if (code == TF_OK) self.model->attention_bf16 = tf_attention_bf16_wanted();
  if (code == TF_OK) code = load_weights(&self, pool);
  free(self.jobs);
  if (code != TF_OK) {
    tf_llm_free(&self.model);
    return code;
  }
  *out = self.model;
  return TF_OK;
}

void tf_llm_free(tf_llm **handle) {
  tf_llm *self = *handle;
  if (self == NULL) return;
  for (uint32_t i = 0; self->layers != NULL && i < self->config.layers; i++) {
    tf_llm_layer *layer = &self->layers[i];
    tf_linear **linears[LINEARS_PER_LAYER] = {&layer->qkv, &layer->attention_output, &layer->gate_up, &layer->down};
    for (int j = 0; j < LINEARS_PER_LAYER; j++) tf_linear_free(linears[j]);
    free(layer->attention_norm);
    free(layer->ffn_norm);
  }
  free(self->layers);
  free(self->output_norm);
  tf_linear_free(&self->output);
  free(self);
  *handle = NULL;
}

/* The LLM tier's work without sockets: requests join and leave a running batch at any step.
 * In: projected vision tokens, prompt, sampling. Out: events from each step.
 * The scheduler decides, the model computes, the sampler chooses; here are the requests themselves, the loading, and
 * the way of one step: plan -> rows -> forward -> next tokens -> events. */
#include "llm-svc/engine.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "llm-svc/answer.h"
#include "llm-svc/chat.h"
#include "llm-svc/model.h"
#include "llm-svc/sampler.h"
#include "llm-svc/scheduler.h"

enum {
  BATCH_ROWS_DEFAULT = 512,
  SEQUENCES_DEFAULT = 32,
  WAITING_DEFAULT = 256,
  KV_TOKENS_DEFAULT = 16384,
  EVENTS_A_SEQUENCE = 2 /* a step: its last piece and its end */
};

/* A live request. Its index is the scheduler's id. */
typedef struct sequence {
  bool live, stream, ignore_end;
  uint64_t handle;
  tf_prompt prompt;
  float *vision; /* [prompt.image_tokens, width]; freed once it is in the cache */
  tf_kv_table table;
  tf_sampler sampler;
  tf_answer answer;
  int32_t last_token;
  uint32_t new_tokens_max, prompt_tokens, completion_tokens;
  int64_t submitted_us, admitted_us, first_token_us;
} sequence;

struct tf_engine {
  tf_engine_config config;
  uint32_t context_tokens_max;
  tf_pool *pool;
  tf_gguf *file;
  tf_tokenizer *tokenizer;
  tf_chat chat;
  char *default_prompt;
  tf_pack_store *store; /* the weights' memory; NULL: the heap alone */
  tf_llm *model;
  tf_kv *kv;
  uint32_t kv_blocks;  /* for sequences: without the head's */
  tf_prompt head;      /* what every prompt begins with; empty where that alone fills the context */
  tf_kv_table head_kv; /* its keys and values, copied to each sequence */
  tf_scheduler *scheduler;
  tf_llm_scratch *scratch;
  sequence *sequences; /* [sequences_max + waiting_max] */
  tf_llm_row *rows;    /* [batch_rows_max] */
  tf_candidate *candidates;
  tf_engine_event *events; /* [sequences_max * EVENTS_A_SEQUENCE] */
  size_t *event_texts;     /* each event's text, an offset into texts: that may move while a step goes on */
  size_t event_count;
  tf_buffer texts;
  tf_llm_step_cost last_step;
};

/* ---- Loading ---- */

static void set_defaults(tf_engine_config *config) {
  if (config->batch_rows_max == 0) config->batch_rows_max = BATCH_ROWS_DEFAULT;
  if (config->sequences_max == 0) config->sequences_max = SEQUENCES_DEFAULT;
  if (config->waiting_max == 0) config->waiting_max = WAITING_DEFAULT;
  if (config->kv_tokens_max == 0) config->kv_tokens_max = KV_TOKENS_DEFAULT;
}

static tf_code load_prompt(tf_engine *self, const tf_gguf *adapter, tf_error *error) {
  self->default_prompt = malloc(TF_PROMPT_BYTES_MAX + 1);
  if (self->default_prompt == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the prompt");
  if (!tf_gguf_text(adapter, "tokenflex.prompt", self->default_prompt, TF_PROMPT_BYTES_MAX + 1))
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: no tokenflex.prompt, or a very long one", tf_gguf_path(adapter));
  return TF_OK;
}

static tf_code check_fit(const tf_engine *self, const tf_gguf *adapter, tf_error *error) {
  const tf_llm_config *model = tf_llm_configuration(self->model);
  uint64_t width;
  if (!tf_gguf_u64(adapter, "tokenflex.llm_width", &width) || width != model->width)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s is made for another LLM than %s, whose width is %u",
                   tf_gguf_path(adapter), tf_gguf_path(self->file), model->width);
  if (tf_tokenizer_vocabulary(self->tokenizer) != model->vocabulary)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: %u tokens, but embeddings for %u", tf_gguf_path(self->file),
                   tf_tokenizer_vocabulary(self->tokenizer), model->vocabulary);
  return TF_OK;
}

static tf_code load_model(tf_engine *self, const tf_model_dir *dir, tf_error *error) {
  tf_gguf *adapter = NULL;
  tf_code code = tf_gguf_open(dir->llm_path, &self->file, error);
  if (code == TF_OK) code = tf_gguf_open(dir->adapter_path, &adapter, error);
  if (code == TF_OK) code = tf_tokenizer_load(self->file, &self->tokenizer, error);
  if (code == TF_OK) code = tf_chat_load(self->file, adapter, self->tokenizer, &self->chat, error);
  if (code == TF_OK) code = load_prompt(self, adapter, error);
  if (code == TF_OK) self->store = tf_pack_store_open(&self->config.cache, "llm", dir->pair_hash);
  if (code == TF_OK) code = tf_llm_load(self->file, adapter, self->pool, self->store, &self->model, error);
  if (code == TF_OK) code = check_fit(self, adapter, error);
  if (code == TF_OK) tf_pack_store_save(self->store);
  tf_gguf_close(&adapter);
  return code;
}

static tf_code make_batch(tf_engine *self, tf_error *error) {
  const tf_engine_config *c = &self->config;
  const tf_llm_config *model = tf_llm_configuration(self->model);
  uint32_t blocks = self->kv_blocks, head_tokens = (uint32_t)self->head.tokens.count;
  tf_scheduler_config plan = {.rows_max = c->batch_rows_max,
                              .sequences_max = c->sequences_max,
                              .waiting_max = c->waiting_max,
                              .blocks_max = blocks,
                              .block_tokens = TF_KV_BLOCK_TOKENS,
                              .head_tokens = head_tokens};
  tf_code code = tf_scheduler_new(&plan, &self->scheduler, error);
  if (code == TF_OK)
    code = tf_kv_new(model->layers, tf_llm_kv_part_bytes(self->model), blocks + tf_kv_blocks_for(head_tokens),
                     &self->kv, error);
  if (code == TF_OK)
    code = tf_llm_scratch_new(self->model, c->batch_rows_max, c->sequences_max, blocks, &self->scratch, error);
  return code;
}

static tf_code make_memory(tf_engine *self, tf_error *error) {
  const tf_engine_config *c = &self->config;
  const tf_llm_config *model = tf_llm_configuration(self->model);
  self->kv_blocks = tf_kv_blocks_for(c->kv_tokens_max);
  uint64_t kv_tokens = (uint64_t)self->kv_blocks * TF_KV_BLOCK_TOKENS;
  self->context_tokens_max = kv_tokens < model->context_tokens ? (uint32_t)kv_tokens : model->context_tokens;
  tf_code code = tf_chat_head(&self->chat, &self->head, error);
  if (code == TF_OK && self->head.tokens.count >= self->context_tokens_max) tf_prompt_free(&self->head);
  if (code == TF_OK) code = make_batch(self, error);
  if (code != TF_OK) return code;
  size_t events = (size_t)c->sequences_max * EVENTS_A_SEQUENCE;
  self->sequences = calloc((size_t)c->sequences_max + c->waiting_max, sizeof *self->sequences);
  self->rows = calloc(c->batch_rows_max, sizeof *self->rows);
  self->candidates = malloc(model->vocabulary * sizeof *self->candidates);
  self->events = calloc(events, sizeof *self->events);
  self->event_texts = calloc(events, sizeof *self->event_texts);
  tf_buffer_init(&self->texts, events * (TF_CAPTION_BYTES_MAX + 1));
  if (self->sequences == NULL || self->rows == NULL || self->candidates == NULL || self->events == NULL ||
      self->event_texts == NULL)
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for %u sequences", c->sequences_max);
  return TF_OK;
}

/* Keys and values of the head, once for all sequences. A row's do not depend on what comes after it. */
static tf_code compute_head(tf_engine *self, tf_error *error) {
  uint32_t count = (uint32_t)self->head.tokens.count, rows_max = self->config.batch_rows_max;
  tf_code code = TF_OK;
  if (count == 0) return TF_OK;
  if (!tf_kv_reserve(self->kv, count, &self->head_kv)) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory");
  for (uint32_t first = 0; first < count && code == TF_OK; first += rows_max) {
    const float *logits;
    uint32_t rows = count - first < rows_max ? count - first : rows_max;
    for (uint32_t i = 0; i < rows; i++)
      self->rows[i] = (tf_llm_row){
          .token = self->head.tokens.ids[first + i], .position = (int32_t)(first + i), .table = &self->head_kv};
    code = tf_llm_forward(self->model, self->pool, self->kv, self->scratch, self->rows, rows, &logits, error);
  }
  return code;
}

tf_code tf_engine_load(const tf_model_dir *model, const tf_engine_config *config, tf_pool *pool, tf_engine **out,
                       tf_error *error) {
  tf_engine *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the engine");
  self->config = *config;
  self->pool = pool;
  set_defaults(&self->config);
  tf_code code = load_model(self, model, error);
  if (code == TF_OK) code = make_memory(self, error);
  if (code == TF_OK) code = compute_head(self, error);
  if (code != TF_OK) {
    tf_engine_free(&self);
    return code;
  }
  *out = self;
  return TF_OK;
}

static void clear_sequence(tf_engine *self, sequence *one) {
  tf_kv_release(self->kv, &one->table);
  tf_prompt_free(&one->prompt);
  tf_answer_free(&one->answer);
  free(one->vision);
  *one = (sequence){0};
}

void tf_engine_free(tf_engine **handle) {
  tf_engine *self = *handle;
  if (self == NULL) return;
  for (size_t i = 0; self->sequences != NULL && i < (size_t)self->config.sequences_max + self->config.waiting_max; i++)
    if (self->sequences[i].live) clear_sequence(self, &self->sequences[i]);
  free(self->sequences);
  free(self->rows);
  free(self->candidates);
  free(self->events);
  free(self->event_texts);
  tf_buffer_free(&self->texts);
  tf_llm_scratch_free(&self->scratch);
  tf_scheduler_free(&self->scheduler);
  if (self->kv != NULL) tf_kv_release(self->kv, &self->head_kv);
  tf_prompt_free(&self->head);
  tf_kv_free(&self->kv);
  tf_pack_store_end(self->store);
  tf_llm_free(&self->model);
  tf_pack_store_close(&self->store);
  free(self->default_prompt);
  tf_tokenizer_free(&self->tokenizer);
  tf_gguf_close(&self->file);
  free(self);
  *handle = NULL;
}

uint32_t tf_engine_width(const tf_engine *self) {
  return tf_llm_configuration(self->model)->width;
}
uint32_t tf_engine_context_tokens_max(const tf_engine *self) {
  return self->context_tokens_max;
}

/* ---- Requests come and go ---- */

static sequence *find_sequence(const tf_engine *self, uint64_t handle) {
  for (size_t i = 0; i < (size_t)self->config.sequences_max + self->config.waiting_max; i++)
    if (self->sequences[i].live && self->sequences[i].handle == handle) return &self->sequences[i];
  return NULL;
}

static tf_code check_request(const tf_engine *self, const tf_engine_request *request, tf_error *error) {
  if (find_sequence(self, request->handle) != NULL)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "handle %llu is in use", (unsigned long long)request->handle);
  if (request->vision_tokens > TF_VISION_TOKENS_MAX || (request->vision_tokens > 0 && request->vision == NULL))
    return tf_fail(error, TF_ERR_FIELD_INVALID, "%u vision tokens, the most is %d", request->vision_tokens,
                   TF_VISION_TOKENS_MAX);
  size_t floats = (size_t)request->vision_tokens * tf_engine_width(self);
  for (size_t i = 0; i < floats; i++)
    if (!isfinite(request->vision[i]))
      return tf_fail(error, TF_ERR_TENSOR_INVALID, "vision token %zu is not finite", i / tf_engine_width(self));
  return tf_sampling_check(&request->sampling, error);
}

/* Prompt and vision of a checked request into *one. */
static tf_code fill_sequence(tf_engine *self, const tf_engine_request *request, sequence *one, tf_error *error) {
  const char *text = request->prompt != NULL && request->prompt[0] != '\0' ? request->prompt : self->default_prompt;
  if (strnlen(text, TF_PROMPT_BYTES_MAX + 1) > TF_PROMPT_BYTES_MAX)
    return tf_fail(error, TF_ERR_FIELD_INVALID, "the prompt has more than %d bytes", TF_PROMPT_BYTES_MAX);
  tf_code code = tf_chat_prompt(&self->chat, text, request->vision_tokens, &one->prompt, error);
  if (code != TF_OK) return code;
  assert(one->prompt.tokens.count > self->head.tokens.count);
  uint32_t new_tokens =
      request->sampling.max_new_tokens > 0 ? request->sampling.max_new_tokens : TF_ENGINE_NEW_TOKENS_DEFAULT;
  size_t prompt_tokens = one->prompt.tokens.count;
  if (prompt_tokens > self->context_tokens_max || new_tokens > self->context_tokens_max - prompt_tokens)
    return tf_fail(error, TF_ERR_PROMPT_TOO_LONG, "%zu prompt and %u new tokens are more than the context's %u",
                   prompt_tokens, new_tokens, self->context_tokens_max);
  size_t floats = (size_t)request->vision_tokens * tf_engine_width(self);
  if (floats > 0) {
    one->vision = malloc(floats * sizeof *one->vision);
    if (one->vision == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the vision tokens");
    memcpy(one->vision, request->vision, floats * sizeof *one->vision);
  }
  one->live = true;
  one->stream = request->stream;
  one->ignore_end = request->sampling.ignore_end;
  one->handle = request->handle;
  one->sampler = tf_sampler_make(&request->sampling);
  one->new_tokens_max = new_tokens;
  one->prompt_tokens = (uint32_t)prompt_tokens;
  one->submitted_us = tf_now_us();
  return TF_OK;
}

tf_code tf_engine_submit(tf_engine *self, const tf_engine_request *request, tf_error *error) {
  tf_code code = check_request(self, request, error);
  if (code != TF_OK) return code;
  sequence one = {0};
  tf_answer_init(&one.answer);
  uint32_t id = 0;
  code = fill_sequence(self, request, &one, error);
  if (code == TF_OK) code = tf_scheduler_add(self->scheduler, one.prompt_tokens, one.new_tokens_max, &id, error);
  if (code != TF_OK) {
    clear_sequence(self, &one);
    return code;
  }
  self->sequences[id] = one;
  return TF_OK;
}

static void drop_sequence(tf_engine *self, sequence *one) {
  tf_scheduler_remove(self->scheduler, (uint32_t)(one - self->sequences));
  clear_sequence(self, one);
}

bool tf_engine_cancel(tf_engine *self, uint64_t handle) {
  sequence *one = find_sequence(self, handle);
  if (one == NULL) return false;
  tf_kv_clear(self->kv, &one->table); /* nobody knows whether its values were finite */
  drop_sequence(self, one);
  return true;
}

/* ---- Events ---- */

static tf_engine_event *add_event(tf_engine *self, tf_engine_event_kind kind, const sequence *one, const char *text,
                                  size_t size) {
  assert(self->event_count < (size_t)self->config.sequences_max * EVENTS_A_SEQUENCE);
  tf_engine_event *event = &self->events[self->event_count];
  *event = (tf_engine_event){.kind = kind,
                             .handle = one->handle,
                             .prompt_tokens = one->prompt_tokens,
                             .completion_tokens = one->completion_tokens};
  self->event_texts[self->event_count++] = self->texts.size;
  tf_buffer_append(&self->texts, text, size);
  tf_buffer_append(&self->texts, "", 1);
  return event;
}

static void add_delta(tf_engine *self, sequence *one) {
  if (!one->stream) return;
  size_t size;
  const char *text = tf_answer_take(&one->answer, &size);
  if (size > 0) add_event(self, TF_ENGINE_DELTA, one, text, size);
}

static float ms_between(int64_t from_us, int64_t to_us) {
  return (float)(to_us - from_us) / 1000.0f;
}

static void finish_sequence(tf_engine *self, sequence *one, tf_finish_reason reason, int64_t now_us) {
  tf_answer_finish(&one->answer);
  add_delta(self, one);
  size_t size;
  const char *text = tf_answer_text(&one->answer, &size);
  tf_engine_event *event = add_event(self, TF_ENGINE_DONE, one, text, size);
  event->finish_reason = reason;
  event->wait_ms = ms_between(one->submitted_us, one->admitted_us);
  event->prefill_ms = ms_between(one->admitted_us, one->first_token_us);
  event->generate_ms = ms_between(one->first_token_us, now_us);
  drop_sequence(self, one);
}

static void fail_sequence(tf_engine *self, sequence *one, const tf_error *error) {
  add_event(self, TF_ENGINE_FAILED, one, error->text, strlen(error->text))->code = error->code;
  tf_kv_clear(self->kv, &one->table);
  drop_sequence(self, one);
}

/* Points every event at its text. A text that found no memory makes its event a failure: a caption is never cut. */
static void settle_events(tf_engine *self) {
  for (size_t i = 0; i < self->event_count; i++) {
    tf_engine_event *event = &self->events[i];
    if (!self->texts.overflow) {
      event->text = self->texts.data + self->event_texts[i];
    } else if (event->kind == TF_ENGINE_DELTA) {
      event->text = "";
    } else {
      event->text = "no memory for the caption";
      event->code = event->kind == TF_ENGINE_DONE ? TF_ERR_OUT_OF_MEMORY : event->code;
      event->kind = TF_ENGINE_FAILED;
    }
  }
}

/* ---- One step ---- */

/* Rows of one item of the plan, appended at *count. */
static void add_rows(tf_engine *self, const tf_scheduled *item, uint32_t *count) {
  sequence *one = &self->sequences[item->id];
  const tf_prompt *prompt = &one->prompt;
  size_t width = tf_engine_width(self);
  for (uint32_t i = 0; i < item->count; i++) {
    uint32_t position = item->first + i;
    tf_llm_row row = {.position = (int32_t)position, .table = &one->table};
    row.token = position < one->prompt_tokens ? prompt->tokens.ids[position] : one->last_token;
    if (row.token == TF_CHAT_IMAGE) row.embedding = one->vision + (position - prompt->image_first) * width;
    row.wants_logits = item->samples && i + 1 == item->count;
    self->rows[(*count)++] = row;
  }
}

/* Takes the next token of one sequence: the answer grows, or ends. */
static void take_token(tf_engine *self, sequence *one, const float *logits, int64_t now_us) {
  if (one->first_token_us == 0) {
    one->first_token_us = now_us;
    free(one->vision);
    one->vision = NULL;
  }
  uint32_t vocabulary = tf_llm_configuration(self->model)->vocabulary;
  int32_t token = tf_sampler_next(&one->sampler, logits, vocabulary, self->candidates);
  if (token < 0) {
    tf_error error;
    tf_fail(&error, TF_ERR_INTERNAL, "the model gave no finite logits");
    fail_sequence(self, one, &error);
    return;
  }
  if (tf_chat_is_end(&self->chat, token) && !one->ignore_end) {
    finish_sequence(self, one, TF_FINISH_STOP, now_us);
    return;
  }
  one->last_token = token;
  one->completion_tokens++;
  bool has_room = true;
  if (!tf_tokenizer_is_control(self->tokenizer, token)) {
    size_t size;
    const char *piece = tf_tokenizer_piece(self->tokenizer, token, &size);
    has_room = tf_answer_add(&one->answer, piece, size);
  }
  if (!has_room || one->completion_tokens == one->new_tokens_max)
    finish_sequence(self, one, TF_FINISH_LENGTH, now_us);
  else
    add_delta(self, one);
}

/* The scheduler has counted the blocks of whom it admits; only memory for the table itself can be missing. */
static bool admit(tf_engine *self, sequence *one, int64_t now_us) {
  one->admitted_us = now_us;
  if (!tf_kv_reserve(self->kv, one->prompt_tokens + one->new_tokens_max, &one->table)) return false;
  tf_kv_copy(self->kv, &self->head_kv, &one->table);
  return true;
}

/* A plan in the meter's terms. Positions attended: each row looks at itself and all before it. */
static tf_llm_step_cost cost_of(const tf_engine *self, const tf_scheduled *items, size_t count) {
  tf_llm_step_cost cost = {0};
  for (size_t i = 0; i < count; i++) {
    uint64_t rows = items[i].count;
    if (items[i].first < self->sequences[items[i].id].prompt_tokens)
      cost.prompt_rows += items[i].count;
    else
      cost.decoded++;
    cost.attended += rows * items[i].first + rows * (rows + 1) / 2;
  }
  return cost;
}

static tf_code run_plan(tf_engine *self, const tf_scheduled *items, size_t count, const float **logits,
                        tf_error *error) {
  int64_t now_us = tf_now_us();
  uint32_t rows = 0;
  for (size_t i = 0; i < count; i++) {
    if (items[i].admitted && !admit(self, &self->sequences[items[i].id], now_us))
      return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a sequence's block table");
    add_rows(self, &items[i], &rows);
  }
  return tf_llm_forward(self->model, self->pool, self->kv, self->scratch, self->rows, rows, logits, error);
}

bool tf_engine_step(tf_engine *self, const tf_engine_event **events, size_t *count) {
  const tf_scheduled *items;
  size_t item_count;
  self->event_count = 0;
  tf_buffer_clear(&self->texts);
  *events = self->events;
  *count = 0;
  if (tf_scheduler_plan(self->scheduler, &items, &item_count) == 0) return false;
  self->last_step = cost_of(self, items, item_count);
  const float *logits = NULL;
  tf_error error;
  tf_code code = run_plan(self, items, item_count, &logits, &error);
  int64_t now_us = tf_now_us();
  uint32_t vocabulary = tf_llm_configuration(self->model)->vocabulary;
  for (size_t i = 0; i < item_count; i++) {
    sequence *one = &self->sequences[items[i].id];
    if (code != TF_OK) {
      fail_sequence(self, one, &error);
    } else if (items[i].samples) {
      take_token(self, one, logits, now_us);
      logits += vocabulary;
    }
  }
  settle_events(self);
  *count = self->event_count;
  return true;
}

tf_llm_step_cost tf_engine_last_step(const tf_engine *self) {
  return self->last_step;
}

tf_engine_load_now tf_engine_load_state(const tf_engine *self) {
  return (tf_engine_load_now){.running = tf_scheduler_running(self->scheduler),
                              .waiting = tf_scheduler_waiting(self->scheduler),
                              .kv_tokens_used = tf_scheduler_blocks_used(self->scheduler) * TF_KV_BLOCK_TOKENS,
                              .kv_tokens_max = self->kv_blocks * TF_KV_BLOCK_TOKENS,
                              .sequences_max = self->config.sequences_max};
}

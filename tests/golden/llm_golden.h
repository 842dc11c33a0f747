/* What the golden tests of the LLM share. In: GGUF files, a golden sequence. Out: a loaded decoder with its cache,
 * logits of a sequence computed in any chunks, greedy captions. Failures to load fail the test that asked. */
#ifndef TF_TESTS_LLM_GOLDEN_H
#define TF_TESTS_LLM_GOLDEN_H

#include <stdio.h>
#include <string.h>

#include "llm-svc/answer.h"
#include "llm-svc/chat.h"
#include "llm-svc/engine.h"
#include "llm-svc/model.h"
#include "tensor/model_dir.h"
#include "tests/golden/vision_golden.h"

enum { RIG_BLOCKS = 256, RIG_ROWS_MAX = 512 };

/* The model that `make model` installs; without it the test fails and says so. */
static inline tf_model_dir installed_model(void) {
  tf_model_dir model;
  tf_error error = {0}, second = {0};
  /* Test programs lie deeper than the services, so build/model is named here as well. */
  if (tf_model_dir_open(NULL, &model, &error) != TF_OK && tf_model_dir_open("build/model", &model, &second) != TF_OK)
    cr_assert_fail("the model is not installed; run `make model` (%s)", error.text);
  return model;
}

/* A small file's bytes with one text in place of another of the same length; the caller frees. */
static inline char *patched_file(const char *path, const char *from, const char *to, size_t *size) {
  FILE *file = fopen(path, "rb");
  cr_assert_not_null(file);
  char *bytes = malloc(1 << 20);
  cr_assert_not_null(bytes);
  *size = fread(bytes, 1, 1 << 20, file);
  fclose(file);
  int found = 0;
  for (char *at = bytes; (at = memmem(at, *size - (size_t)(at - bytes), from, strlen(from))) != NULL; found++) {
    memcpy(at, to, strlen(from));
    at += strlen(from);
  }
  cr_assert_gt(found, 0, "%s holds no %s", path, from);
  return bytes;
}

/* A decoder and everything that a forward pass needs. */
typedef struct llm_rig {
  tf_gguf *file;
  tf_pool *pool;
  tf_llm *model;
  tf_kv *kv;
  tf_llm_scratch *scratch;
} llm_rig;

static inline llm_rig rig_load(const char *llm_path, const char *adapter_path, uint32_t logits_max) {
  llm_rig rig = {.file = open_golden(llm_path), .pool = tf_pool_new(2)};
  tf_gguf *adapter = adapter_path != NULL ? open_golden(adapter_path) : NULL;
  tf_error error = {0};
  cr_assert_not_null(rig.pool);
  cr_assert_eq(tf_llm_load(rig.file, adapter, rig.pool, NULL, &rig.model, &error), TF_OK, "%s", error.text);
  tf_gguf_close(&adapter);
  const tf_llm_config *c = tf_llm_configuration(rig.model);
  cr_assert_eq(tf_kv_new(c->layers, tf_llm_kv_part_bytes(rig.model), RIG_BLOCKS, &rig.kv, &error), TF_OK, "%s",
               error.text);
  cr_assert_eq(tf_llm_scratch_new(rig.model, RIG_ROWS_MAX, logits_max, RIG_BLOCKS, &rig.scratch, &error), TF_OK);
  return rig;
}

static inline void rig_free(llm_rig *rig) {
  tf_llm_scratch_free(&rig->scratch);
  tf_kv_free(&rig->kv);
  tf_llm_free(&rig->model);
  tf_pool_free(&rig->pool);
  tf_gguf_close(&rig->file);
}

/* Logits of `count` rows that all want them; borrowed. */
static inline const float *rig_forward(llm_rig *rig, const tf_llm_row *rows, uint32_t count) {
  const float *logits = NULL;
  tf_error error = {0};
  tf_code code = tf_llm_forward(rig->model, rig->pool, rig->kv, rig->scratch, rows, count, &logits, &error);
  cr_assert_eq(code, TF_OK, "%s", error.text);
  return logits;
}

/* ---- Greedy captions by the decoder alone, one sequence at a time ---- */

enum { CAPTION_BYTES = 4096 };
static const float MARGIN = 1e-3f; /* a choice closer than this may fall either way in another batch */

typedef struct reference {
  char caption[CAPTION_BYTES];
  uint32_t prompt_tokens;
  float margin_min; /* the smallest distance of the two best logits on the way */
} reference;

/* Lowest id of the best, and how far the next one is. */
static inline int32_t best_of(const float *logits, uint32_t count, float *margin) {
  int32_t best = 0;
  float second = -INFINITY;
  for (uint32_t i = 1; i < count; i++) {
    if (logits[i] > logits[best]) {
      second = logits[best];
      best = (int32_t)i;
    } else if (logits[i] > second) {
      second = logits[i];
    }
  }
  *margin = logits[best] - second;
  return best;
}

static inline reference greedy_alone(llm_rig *rig, const tf_tokenizer *tokenizer, const tf_chat *chat,
                                     const tf_engine_request *one, const char *default_prompt) {
  const tf_llm_config *config = tf_llm_configuration(rig->model);
  const char *text = one->prompt[0] != '\0' ? one->prompt : default_prompt;
  reference out = {.margin_min = INFINITY};
  tf_prompt prompt = {0};
  tf_kv_table table = {0};
  tf_answer answer;
  tf_answer_init(&answer);
  cr_assert_eq(tf_chat_prompt(chat, text, one->vision_tokens, &prompt, NULL), TF_OK);
  out.prompt_tokens = (uint32_t)prompt.tokens.count;
  cr_assert(tf_kv_reserve(rig->kv, out.prompt_tokens + one->sampling.max_new_tokens, &table));
  tf_llm_row rows[RIG_ROWS_MAX] = {0};
  cr_assert_leq(out.prompt_tokens, RIG_ROWS_MAX);
  for (uint32_t i = 0; i < out.prompt_tokens; i++) {
    rows[i] = (tf_llm_row){.position = (int32_t)i, .table = &table, .token = prompt.tokens.ids[i]};
    if (rows[i].token == TF_CHAT_IMAGE) rows[i].embedding = one->vision + (i - prompt.image_first) * config->width;
  }
  rows[out.prompt_tokens - 1].wants_logits = true;
  uint32_t count = out.prompt_tokens;
  for (uint32_t i = 0; i < one->sampling.max_new_tokens; i++, count = 1) {
    float margin;
    int32_t token = best_of(rig_forward(rig, rows, count), config->vocabulary, &margin);
    if (margin < out.margin_min) out.margin_min = margin;
    if (tf_chat_is_end(chat, token)) break;
    size_t size;
    const char *piece = tf_tokenizer_piece(tokenizer, token, &size);
    if (!tf_tokenizer_is_control(tokenizer, token)) tf_answer_add(&answer, piece, size);
    rows[0] = (tf_llm_row){
        .position = (int32_t)(out.prompt_tokens + i), .table = &table, .token = token, .wants_logits = true};
  }
  tf_answer_finish(&answer);
  size_t size;
  const char *caption = tf_answer_text(&answer, &size);
  cr_assert_lt(size, CAPTION_BYTES);
  memcpy(out.caption, caption, size);
  tf_answer_free(&answer);
  tf_kv_release(rig->kv, &table);
  tf_prompt_free(&prompt);
  return out;
}

#endif

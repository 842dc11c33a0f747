/* The real LLM with its LoRA against PyTorch. In: the installed model folder, real_llm.gguf (three prompts with
 * synthetic vision tokens). Out: the same prompt ids, first-step logits within 1e-3, the same best ids; and captions
 * that are the same alone and in a batch of 16 (a choice by less than 1e-3 is excused and counted). The model is
 * needed: without it the tests fail and name the command that gets it. */
#include "llm-svc/chat.h"
#include "tests/golden/llm_golden.h"

static const double TOLERANCE = 1e-3;

/* Prompt `index` of the golden: our ids must be the golden's. */
static tf_prompt golden_prompt(const tf_gguf *golden, const tf_chat *chat, uint64_t index, uint32_t image_tokens) {
  char text[256], before[32], after[32];
  const char *stored;
  size_t size;
  cr_assert(tf_gguf_array_string(golden, "prompt", index, &stored, &size) && size < sizeof text);
  memcpy(text, stored, size);
  text[size] = '\0';
  snprintf(before, sizeof before, "before.%llu", (unsigned long long)index);
  snprintf(after, sizeof after, "after.%llu", (unsigned long long)index);
  tf_prompt prompt = {0};
  tf_error error = {0};
  cr_assert_eq(tf_chat_prompt(chat, text, image_tokens, &prompt, &error), TF_OK, "%s", error.text);
  uint64_t before_count = tf_gguf_array_count(golden, before), after_count = tf_gguf_array_count(golden, after);
  cr_assert_eq(prompt.image_first, before_count);
  cr_assert_eq(prompt.tokens.count, before_count + image_tokens + after_count);
  for (uint64_t i = 0; i < prompt.tokens.count; i++) {
    int64_t id = TF_CHAT_IMAGE;
    if (i < before_count)
      cr_assert(tf_gguf_array_i64(golden, before, i, &id));
    else if (i >= before_count + image_tokens)
      cr_assert(tf_gguf_array_i64(golden, after, i - before_count - image_tokens, &id));
    cr_assert_eq(prompt.tokens.ids[i], id, "prompt %llu, id %llu", (unsigned long long)index, (unsigned long long)i);
  }
  return prompt;
}

static void expect_golden_logits(const tf_gguf *golden, uint64_t index, const float *logits, uint32_t vocabulary) {
  char name[32];
  uint64_t stride;
  int64_t count, best;
  cr_assert(tf_gguf_u64(golden, "stride", &stride));
  snprintf(name, sizeof name, "logits.%llu", (unsigned long long)index);
  float *expected = golden_floats(golden, name, &count);
  cr_assert_eq((uint64_t)count, (vocabulary + stride - 1) / stride);
  double largest = 0;
  for (int64_t i = 0; i < count; i++) {
    double difference = largest_difference(logits + (uint64_t)i * stride, expected + i, 1);
    if (difference > largest) largest = difference;
  }
  cr_log_info("prompt %llu: largest difference %g", (unsigned long long)index, largest);
  cr_assert_leq(largest, TOLERANCE, "prompt %llu: off by %g", (unsigned long long)index, largest);
  snprintf(name, sizeof name, "top.%llu", (unsigned long long)index);
  cr_assert(tf_gguf_array_i64(golden, name, 0, &best) && best >= 0 && best < vocabulary);
  for (uint32_t i = 0; i < vocabulary; i++)
    cr_assert_leq(logits[i], logits[best], "%u is better than %d", i, (int)best);
  free(expected);
}

Test(llm_real, first_step_logits_equal_pytorch, .timeout = 120) {
  tf_model_dir model = installed_model();
  tf_gguf *golden = open_golden(GOLDEN_FOLDER "real_llm.gguf");
  llm_rig rig = rig_load(model.llm_path, model.adapter_path, 4);
  const tf_llm_config *config = tf_llm_configuration(rig.model);
  tf_tokenizer *tokenizer = NULL;
  tf_chat chat;
  tf_error error = {0};
  cr_assert_eq(tf_tokenizer_load(rig.file, &tokenizer, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_chat_load(rig.file, NULL, tokenizer, &chat, &error), TF_OK, "%s", error.text);
  uint64_t prompts = tf_gguf_array_count(golden, "prompt");
  cr_assert_gt(prompts, 0);
  for (uint64_t index = 0; index < prompts; index++) {
    char name[32];
    int64_t floats;
    snprintf(name, sizeof name, "vision.%llu", (unsigned long long)index);
    float *vision = golden_floats(golden, name, &floats);
    tf_prompt prompt = golden_prompt(golden, &chat, index, (uint32_t)(floats / config->width));
    uint32_t count = (uint32_t)prompt.tokens.count;
    tf_kv_table table = {0};
    cr_assert(tf_kv_reserve(rig.kv, count, &table));
    tf_llm_row rows[RIG_ROWS_MAX] = {0};
    for (uint32_t i = 0; i < count; i++) {
      rows[i] = (tf_llm_row){.token = prompt.tokens.ids[i], .position = (int32_t)i, .table = &table};
      if (rows[i].token == TF_CHAT_IMAGE) rows[i].embedding = vision + (i - prompt.image_first) * config->width;
    }
    rows[count - 1].wants_logits = true;
    expect_golden_logits(golden, index, rig_forward(&rig, rows, count), config->vocabulary);
    tf_kv_release(rig.kv, &table);
    tf_prompt_free(&prompt);
    free(vision);
  }
  tf_tokenizer_free(&tokenizer);
  rig_free(&rig);
  tf_gguf_close(&golden);
}

/* ---- Alone and in a batch ---- */

enum { BATCH = 16, VISION_SETS = 3, NEW_TOKENS = 10 };

/* Request i: one of the golden's visions, as many of its tokens as no other request has with it. */
static tf_engine_request batch_request(float *const vision[VISION_SETS], uint32_t i) {
  return (tf_engine_request){.handle = i,
                             .vision = vision[i % VISION_SETS],
                             .vision_tokens = 64 - 4 * (i / VISION_SETS),
                             .prompt = i % 4 == 3 ? "What is in the picture?" : "",
                             .sampling = {.max_new_tokens = NEW_TOKENS}};
}

static void captions_alone(const tf_model_dir *model, float *const vision[VISION_SETS], reference *out) {
  llm_rig rig = rig_load(model->llm_path, model->adapter_path, 1);
  tf_tokenizer *tokenizer = NULL;
  tf_chat chat;
  cr_assert_eq(tf_tokenizer_load(rig.file, &tokenizer, NULL), TF_OK);
  cr_assert_eq(tf_chat_load(rig.file, NULL, tokenizer, &chat, NULL), TF_OK);
  for (uint32_t i = 0; i < BATCH; i++) {
    tf_engine_request one = batch_request(vision, i);
    out[i] = greedy_alone(&rig, tokenizer, &chat, &one, "Describe this image.");
  }
  tf_tokenizer_free(&tokenizer);
  rig_free(&rig);
}

Test(llm_real, captions_are_the_same_alone_and_in_a_batch_of_16, .timeout = 300) {
  tf_model_dir model = installed_model();
  tf_gguf *golden = open_golden(GOLDEN_FOLDER "real_llm.gguf");
  float *vision[VISION_SETS] = {golden_floats(golden, "vision.0", NULL), golden_floats(golden, "vision.1", NULL),
                                golden_floats(golden, "vision.2", NULL)};
  tf_gguf_close(&golden);
  static reference alone[BATCH];
  captions_alone(&model, vision, alone);
  tf_pool *pool = tf_pool_new(0);
  tf_engine_config config = {.sequences_max = BATCH};
  tf_engine *engine = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_engine_load(&model, &config, pool, &engine, &error), TF_OK, "%s", error.text);
  for (uint32_t i = 0; i < BATCH; i++) {
    tf_engine_request one = batch_request(vision, i);
    cr_assert_eq(tf_engine_submit(engine, &one, &error), TF_OK, "%s", error.text);
  }
  const tf_engine_event *events;
  size_t count;
  int ended = 0, excused = 0;
  while (tf_engine_step(engine, &events, &count))
    for (size_t e = 0; e < count; e++, ended++) {
      const reference *expected = &alone[events[e].handle];
      cr_assert_eq(events[e].kind, TF_ENGINE_DONE, "%s", events[e].text);
      cr_assert_eq(events[e].prompt_tokens, expected->prompt_tokens);
      if (strcmp(events[e].text, expected->caption) == 0) continue;
      cr_assert_lt(expected->margin_min, MARGIN, "'%s', not '%s'", events[e].text, expected->caption);
      excused++;
    }
  cr_assert_eq(ended, BATCH);
  cr_log_info("%d captions differ, each by a choice of less than %g", excused, (double)MARGIN);
  cr_assert_leq(excused, BATCH / 4);
  cr_assert_str_neq(alone[0].caption, alone[1].caption, "the image matters");
  for (int i = 0; i < VISION_SETS; i++) free(vision[i]);
  tf_engine_free(&engine);
  tf_pool_free(&pool);
}

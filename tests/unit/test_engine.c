/* The engine on the tiny random model. In: requests that come, go and are cancelled at any step. Out: the captions that
 * the decoder gives by itself token by token, whatever else is in the batch; events; limits; nothing left behind. */
#include <unistd.h>

#include "common/utf8.h"
#include "tests/golden/llm_golden.h"

enum { REQUESTS_MAX = 128, STEPS_MAX = 20000, VISION_TOKENS = 9, WIDTH = 64, PROMPTS = 16 };

static tf_model_dir tiny_model(void) {
  tf_model_dir dir;
  tf_error error = {0};
  cr_assert_eq(tf_model_dir_open("tests/golden/data/tiny", &dir, &error), TF_OK, "%s", error.text);
  return dir;
}

typedef struct bench {
  tf_pool *pool;
  tf_engine *engine;
} bench;

static bench make_of(const tf_model_dir *dir, uint32_t rows, uint32_t sequences, uint32_t waiting, uint32_t kv_tokens) {
  tf_engine_config config = {
      .batch_rows_max = rows, .sequences_max = sequences, .waiting_max = waiting, .kv_tokens_max = kv_tokens};
  bench self = {.pool = tf_pool_new(2)};
  tf_error error = {0};
  cr_assert_eq(tf_engine_load(dir, &config, self.pool, &self.engine, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_engine_width(self.engine), WIDTH);
  return self;
}
static bench make(uint32_t rows, uint32_t sequences, uint32_t waiting, uint32_t kv_tokens) {
  tf_model_dir dir = tiny_model();
  return make_of(&dir, rows, sequences, waiting, kv_tokens);
}

/* Nothing may be left in the batch. */
static void done(bench *self) {
  tf_engine_load_now load = tf_engine_load_state(self->engine);
  cr_assert(load.running == 0 && load.waiting == 0 && load.kv_tokens_used == 0);
  tf_engine_free(&self->engine);
  tf_pool_free(&self->pool);
}

/* Request i of a fixed set: prompts, vision and lengths of their own. */
static tf_engine_request request(uint64_t i) {
  static const char *const TEXTS[] = {"", "What is this?", "Describe the photo in one short sentence.", "x"};
  static float vision[VISION_TOKENS * WIDTH];
  for (int j = 0; j < VISION_TOKENS * WIDTH; j++) vision[j] = (float)((j * 37 + (int)i * 101) % 23 - 11) / 11.0f;
  return (tf_engine_request){.handle = 1000 + i,
                             .vision = vision,
                             .vision_tokens = i % 3 == 2 ? 4 : VISION_TOKENS,
                             .prompt = TEXTS[i % 4],
                             .sampling = {.max_new_tokens = 10 + (uint32_t)i * 3 % 20}};
}

static void submit(bench *self, const tf_engine_request *one) {
  tf_error error = {0};
  cr_assert_eq(tf_engine_submit(self->engine, one, &error), TF_OK, "%s", error.text);
}

static tf_code refusal(bench *self, const tf_engine_request *one) {
  tf_error error = {0};
  tf_code code = tf_engine_submit(self->engine, one, &error);
  if (code != TF_OK) cr_assert_gt(strlen(error.text), 0);
  return code;
}

/* What came of the requests, by handle - 1000. */
typedef struct outcome {
  bool ended;
  char caption[CAPTION_BYTES], streamed[CAPTION_BYTES];
  tf_engine_event event;
} outcome;
static outcome outcomes[REQUESTS_MAX];

static void take_events(const tf_engine_event *events, size_t count) {
  for (size_t i = 0; i < count; i++) {
    const tf_engine_event *event = &events[i];
    cr_assert(event->handle >= 1000 && event->handle < 1000 + REQUESTS_MAX);
    outcome *one = &outcomes[event->handle - 1000];
    cr_assert_not(one->ended, "an event after the end");
    cr_assert_neq(event->kind, TF_ENGINE_FAILED, "%s", event->text);
    cr_assert(tf_utf8_is_valid(event->text, strlen(event->text)));
    if (event->kind == TF_ENGINE_DELTA) {
      cr_assert_gt(strlen(event->text), 0);
      cr_assert_lt(strlen(one->streamed) + strlen(event->text), CAPTION_BYTES);
      strcat(one->streamed, event->text);
    } else {
      cr_assert_lt(strlen(event->text), CAPTION_BYTES);
      strcpy(one->caption, event->text);
      one->ended = true;
      one->event = *event;
      one->event.text = NULL;
    }
  }
}

static bool step(bench *self) {
  const tf_engine_event *events;
  size_t count;
  bool worked = tf_engine_step(self->engine, &events, &count);
  take_events(events, count);
  return worked;
}

static void run(bench *self) {
  int steps = 0;
  while (step(self)) cr_assert_lt(++steps, STEPS_MAX);
}

/* ---- The decoder alone, token by token: what the engine must give ---- */

/* references[i] for request(i). adapter: what the prompts are made by; NULL: none. */
static void make_references_of(const tf_model_dir *dir, const tf_gguf *adapter, reference *references, int count) {
  llm_rig rig = rig_load(dir->llm_path, dir->adapter_path, 1);
  tf_tokenizer *tokenizer = NULL;
  tf_chat chat;
  cr_assert_eq(tf_tokenizer_load(rig.file, &tokenizer, NULL), TF_OK);
  cr_assert_eq(tf_chat_load(rig.file, adapter, tokenizer, &chat, NULL), TF_OK);
  for (int i = 0; i < count; i++) {
    tf_engine_request one = request((uint64_t)i);
    references[i] = greedy_alone(&rig, tokenizer, &chat, &one, "Describe this image.");
  }
  tf_tokenizer_free(&tokenizer);
  rig_free(&rig);
}
static void make_references(reference *references, int count) {
  tf_model_dir dir = tiny_model();
  make_references_of(&dir, NULL, references, count);
}

static void expect_references(const reference *references, int count) {
  int excused = 0;
  for (int i = 0; i < count; i++) {
    cr_assert(outcomes[i].ended, "request %d has not ended", i);
    cr_assert_eq(outcomes[i].event.prompt_tokens, references[i].prompt_tokens);
    if (strcmp(outcomes[i].caption, references[i].caption) == 0) continue;
    cr_assert_lt(references[i].margin_min, MARGIN, "request %d: '%s', not '%s'", i, outcomes[i].caption,
                 references[i].caption);
    excused++;
  }
  cr_assert_leq(excused, count / 4, "%d of %d differ", excused, count);
}

static reference references[PROMPTS];

Test(engine, one_by_one, .timeout = 60) {
  make_references(references, PROMPTS);
  bench self = make(512, 32, 8, 4096);
  for (int i = 0; i < PROMPTS; i++) {
    tf_engine_request one = request((uint64_t)i);
    submit(&self, &one);
    run(&self);
  }
  expect_references(references, PROMPTS);
  /* The set is no test where all captions are one, or most are empty. */
  int empty = 0;
  for (int i = 0; i < PROMPTS; i++) empty += references[i].caption[0] == '\0';
  cr_assert_leq(empty, 2);
  cr_assert_str_neq(references[0].caption, references[4].caption, "same prompt, other image");
  done(&self);
}

Test(engine, sixteen_together, .timeout = 60) {
  make_references(references, PROMPTS);
  bench self = make(512, 16, 8, 4096);
  for (int i = 0; i < PROMPTS; i++) {
    tf_engine_request one = request((uint64_t)i);
    submit(&self, &one);
  }
  run(&self);
  expect_references(references, PROMPTS);
  done(&self);
}

/* Rows so few that every prompt goes in chunks beside decoding rows, sequences so few that most wait. */
Test(engine, they_join_and_leave_at_any_step, .timeout = 60) {
  make_references(references, PROMPTS);
  bench self = make(7, 3, 32, 256);
  for (int i = 0; i < PROMPTS; i++) {
    tf_engine_request one = request((uint64_t)i);
    submit(&self, &one);
    for (int s = 0; s < i % 5; s++) cr_assert(step(&self));
    cr_assert_leq(tf_engine_load_state(self.engine).running, 3);
  }
  run(&self);
  expect_references(references, PROMPTS);
  done(&self);
}

/* The tiny model with a system turn before every prompt, in a folder of its own. */
static tf_model_dir model_with_system(char folder[64]) {
  /* A key and its text of a multiple of 32 bytes at the front of the metadata: what follows stays aligned. */
  static const char key[] = "tokenflex.system", text[] = "Be brief; name what can be seen in the picture, and no more.";
  enum { ALIGN = 32, HEADER = 24, KEYS_AT = 16, STRING = 8 };
  const uint64_t sizes[2] = {sizeof key - 1, sizeof text - 1};
  const uint32_t type = STRING;
  tf_model_dir tiny = tiny_model(), out;
  char path[256], target[4200], cwd[4096];
  static char bytes[1 << 20];
  FILE *from = fopen(tiny.adapter_path, "re");
  cr_assert_not_null(from);
  size_t size = fread(bytes, 1, sizeof bytes, from);
  fclose(from);
  uint64_t keys;
  snprintf(folder, 64, "/tmp/tokenflex-engine-XXXXXX");
  cr_assert(mkdtemp(folder) != NULL && getcwd(cwd, sizeof cwd) != NULL);
  cr_assert_eq((16 + sizeof type + sizes[0] + sizes[1]) % ALIGN, 0);
  snprintf(path, sizeof path, "%s/adapter.gguf", folder);
  memcpy(&keys, bytes + KEYS_AT, sizeof keys);
  keys++;
  memcpy(bytes + KEYS_AT, &keys, sizeof keys);
  FILE *file = fopen(path, "we");
  fwrite(bytes, 1, HEADER, file);
  fwrite(&sizes[0], 8, 1, file);
  fwrite(key, 1, sizeof key - 1, file);
  fwrite(&type, 4, 1, file);
  fwrite(&sizes[1], 8, 1, file);
  fwrite(text, 1, sizeof text - 1, file);
  fwrite(bytes + HEADER, 1, size - HEADER, file);
  cr_assert_eq(fclose(file), 0);
  static const char *const others[] = {"vision.gguf", "llm.gguf"};
  for (int i = 0; i < 2; i++) {
    snprintf(target, sizeof target, "%s/tests/golden/data/tiny/%s", cwd, others[i]);
    snprintf(path, sizeof path, "%s/%s", folder, others[i]);
    cr_assert_eq(symlink(target, path), 0);
  }
  tf_error error = {0};
  cr_assert_eq(tf_model_dir_open(folder, &out, &error), TF_OK, "%s", error.text);
  return out;
}

/* What all prompts begin with is computed once, here over several blocks and in steps of few rows. */
Test(engine, a_long_head_is_computed_once, .timeout = 60) {
  char folder[64], command[128];
  tf_model_dir dir = model_with_system(folder);
  tf_gguf *adapter = open_golden(dir.adapter_path);
  make_references_of(&dir, adapter, references, PROMPTS);
  for (int few = 0; few < 2; few++) {
    bench self = make_of(&dir, few ? 7 : 512, few ? 3 : 16, 32, 1024);
    memset(outcomes, 0, sizeof outcomes);
    uint32_t rows = 0, prompts = 0;
    for (int i = 0; i < PROMPTS; i++) {
      tf_engine_request one = request((uint64_t)i);
      submit(&self, &one);
    }
    while (step(&self)) rows += tf_engine_last_step(self.engine).prompt_rows;
    expect_references(references, PROMPTS);
    for (int i = 0; i < PROMPTS; i++) prompts += references[i].prompt_tokens;
    cr_assert_geq(prompts - rows, 20 * PROMPTS, "%u rows of %u", rows, prompts);
    cr_assert_eq((prompts - rows) % PROMPTS, 0, "as many of each");
    cr_assert_eq(tf_engine_load_state(self.engine).kv_tokens_max, 1024);
    done(&self);
  }
  tf_gguf_close(&adapter);
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  cr_assert_eq(system(command), 0);
}

Test(engine, a_stream_is_the_caption_in_parts, .timeout = 60) {
  bench self = make(64, 8, 32, 4096);
  for (int i = 0; i < PROMPTS; i++) {
    tf_engine_request one = request((uint64_t)i);
    one.stream = i % 4 != 3;
    one.sampling.temperature = 1.5f; /* bytes of all kinds */
    one.sampling.seed = (uint64_t)i;
    submit(&self, &one);
  }
  run(&self);
  for (int i = 0; i < PROMPTS; i++) {
    cr_assert(outcomes[i].ended);
    cr_assert_str_eq(outcomes[i].streamed, i % 4 != 3 ? outcomes[i].caption : "");
  }
  done(&self);
}

Test(engine, cancelling, .timeout = 60) {
  make_references(references, 4);
  bench self = make(16, 2, 8, 4096);
  for (int i = 0; i < 4; i++) {
    tf_engine_request one = request((uint64_t)i);
    submit(&self, &one);
  }
  for (int s = 0; s < 3; s++) step(&self);
  cr_assert(tf_engine_cancel(self.engine, 1001), "running");
  cr_assert(tf_engine_cancel(self.engine, 1003), "waiting");
  cr_assert_not(tf_engine_cancel(self.engine, 1003));
  cr_assert_not(tf_engine_cancel(self.engine, 77));
  run(&self);
  cr_assert(outcomes[0].ended && outcomes[2].ended);
  cr_assert(!outcomes[1].ended && !outcomes[3].ended, "no event follows");
  cr_assert(strcmp(outcomes[2].caption, references[2].caption) == 0 || references[2].margin_min < MARGIN);
  done(&self);
  /* What still runs is freed with the engine (the sanitizers would tell). */
  self = make(16, 2, 8, 4096);
  for (int i = 0; i < 4; i++) {
    tf_engine_request one = request((uint64_t)i);
    submit(&self, &one);
  }
  outcomes[0].ended = outcomes[2].ended = false;
  step(&self);
  tf_engine_free(&self.engine);
  tf_pool_free(&self.pool);
}

Test(engine, limits) {
  bench self = make(32, 1, 2, 128);
  cr_assert_eq(tf_engine_context_tokens_max(self.engine), 128, "the cache is smaller than the model's context");
  tf_engine_request one = request(0);
  one.sampling.max_new_tokens = 127;
  cr_assert_eq(refusal(&self, &one), TF_ERR_PROMPT_TOO_LONG);
  one = request(0);
  one.sampling.temperature = -1;
  cr_assert_eq(refusal(&self, &one), TF_ERR_FIELD_INVALID);
  one = request(0);
  one.prompt = "broken \xff";
  cr_assert_eq(refusal(&self, &one), TF_ERR_FIELD_INVALID);
  one = request(0);
  char *endless = malloc(TF_PROMPT_BYTES_MAX + 2);
  memset(endless, 'a', TF_PROMPT_BYTES_MAX + 1);
  endless[TF_PROMPT_BYTES_MAX + 1] = '\0';
  one.prompt = endless;
  cr_assert_eq(refusal(&self, &one), TF_ERR_FIELD_INVALID);
  endless[TF_PROMPT_BYTES_MAX] = '\0';
  cr_assert_eq(refusal(&self, &one), TF_ERR_PROMPT_TOO_LONG);
  free(endless);
  one = request(0);
  one.vision_tokens = TF_VISION_TOKENS_MAX + 1;
  cr_assert_eq(refusal(&self, &one), TF_ERR_FIELD_INVALID);
  one = request(0);
  float broken[VISION_TOKENS * WIDTH] = {0};
  broken[VISION_TOKENS * WIDTH - 1] = NAN;
  one.vision = broken;
  cr_assert_eq(refusal(&self, &one), TF_ERR_TENSOR_INVALID);
  for (int i = 0; i < 3; i++) {
    one = request((uint64_t)i);
    submit(&self, &one);
  }
  one = request(2);
  cr_assert_eq(refusal(&self, &one), TF_ERR_INVALID_ARGUMENT, "a handle twice");
  one = request(3);
  cr_assert_eq(refusal(&self, &one), TF_ERR_WORKER_FULL);
  run(&self);
  submit(&self, &one);
  run(&self);
  cr_assert(outcomes[3].ended);
  done(&self);
}

Test(engine, a_batch_without_a_row_a_sequence_is_refused) {
  tf_model_dir dir = tiny_model();
  tf_engine_config config = {.batch_rows_max = 4, .sequences_max = 5};
  tf_pool *pool = tf_pool_new(1);
  tf_engine *engine = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_engine_load(&dir, &config, pool, &engine, &error), TF_ERR_INVALID_ARGUMENT);
  cr_assert_null(engine);
  tf_pool_free(&pool);
}

Test(engine, text_without_an_image_and_default_length) {
  bench self = make(0, 0, 0, 0);
  tf_engine_load_now load = tf_engine_load_state(self.engine);
  cr_assert_eq(load.kv_tokens_max, 16384);
  cr_assert_eq(tf_engine_context_tokens_max(self.engine), 512);
  tf_engine_request one = {.handle = 1000, .sampling = {.ignore_end = true}};
  submit(&self, &one);
  run(&self);
  cr_assert_eq(outcomes[0].event.completion_tokens, 40);
  cr_assert_eq(outcomes[0].event.finish_reason, TF_FINISH_LENGTH);
  done(&self);
}

/* Hot sampling meets the end token now and then; with ignore_end nobody stops there. */
Test(engine, the_end_token_ends_unless_it_is_ignored, .timeout = 60) {
  for (int ignore = 0; ignore < 2; ignore++) {
    enum { COUNT = 64, LENGTH = 40 };
    memset(outcomes, 0, sizeof outcomes);
    bench self = make(256, 16, 64, 8192);
    for (int i = 0; i < COUNT; i++) {
      tf_engine_request one = request((uint64_t)i);
      one.sampling =
          (tf_sampling){.max_new_tokens = LENGTH, .temperature = 50, .seed = (uint64_t)i, .ignore_end = ignore != 0};
      submit(&self, &one);
    }
    run(&self);
    int stopped = 0;
    for (int i = 0; i < COUNT; i++) {
      const tf_engine_event *event = &outcomes[i].event;
      cr_assert(outcomes[i].ended);
      if (event->finish_reason == TF_FINISH_STOP)
        cr_assert_lt(event->completion_tokens, LENGTH);
      else
        cr_assert_eq(event->completion_tokens, LENGTH);
      stopped += event->finish_reason == TF_FINISH_STOP;
      cr_assert(event->wait_ms >= 0 && event->prefill_ms > 0 && event->generate_ms >= 0);
    }
    /* 2 of 459 ids end: of 64 captions of 40 about 10 stop. */
    cr_assert(ignore ? stopped == 0 : stopped > 0 && stopped < COUNT, "%d stopped", stopped);
    done(&self);
  }
}

/* The seed alone decides: not the batch, not the handle. */
Test(engine, sampling_does_not_depend_on_the_batch, .timeout = 60) {
  bench self = make(64, 16, 64, 4096);
  char alone[CAPTION_BYTES];
  tf_engine_request one = request(5);
  one.sampling = (tf_sampling){.max_new_tokens = 20, .temperature = 0.8f, .top_k = 50, .top_p = 0.9f, .seed = 99};
  submit(&self, &one);
  run(&self);
  strcpy(alone, outcomes[5].caption);
  memset(outcomes, 0, sizeof outcomes);
  for (int i = 0; i < PROMPTS; i++) {
    tf_engine_request other = request((uint64_t)i);
    other.sampling = one.sampling;
    other.sampling.seed = i == 5 || i == 8 ? 99 : (uint64_t)i;
    if (i == 8) { /* the same request under another handle */
      other = request(5);
      other.handle = 1008;
      other.sampling = one.sampling;
    }
    submit(&self, &other);
  }
  run(&self);
  cr_assert_str_eq(outcomes[5].caption, alone);
  cr_assert_str_eq(outcomes[8].caption, alone);
  cr_assert_str_neq(outcomes[9].caption, alone);
  done(&self);
}

Test(engine, a_hundred_requests_leave_nothing_behind, .timeout = 60) {
  enum { COUNT = 100 };
  bench self = make(24, 6, COUNT, 512);
  for (int i = 0; i < COUNT; i++) {
    tf_engine_request one = request((uint64_t)i);
    submit(&self, &one);
  }
  cr_assert_eq(tf_engine_load_state(self.engine).waiting, COUNT);
  run(&self);
  for (int i = 0; i < COUNT; i++) cr_assert(outcomes[i].ended);
  done(&self);
}

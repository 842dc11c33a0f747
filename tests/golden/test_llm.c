/* The decoder against PyTorch on tiny random models: llama with and without LoRA, qwen2.
 * In: tests/golden/data/{tiny/llm,tiny/adapter,llm_qwen2}.gguf and the logits of a whole sequence beside them.
 * Out: logits within 1e-4 (they reach about 10), whole, in chunks, and beside other sequences in one batch. */
#include "tests/golden/llm_golden.h"

static const double TOLERANCE = 1e-4;

typedef struct golden_case {
  const char *llm, *adapter, *golden, *logits;
} golden_case;

static const golden_case LLAMA = {GOLDEN_FOLDER "tiny/llm.gguf", NULL, GOLDEN_FOLDER "llm_tiny.gguf", "logits"};
static const golden_case LORA = {GOLDEN_FOLDER "tiny/llm.gguf", GOLDEN_FOLDER "tiny/adapter.gguf",
                                 GOLDEN_FOLDER "llm_tiny.gguf", "logits_lora"};
static const golden_case QWEN2 = {GOLDEN_FOLDER "llm_qwen2.gguf", NULL, GOLDEN_FOLDER "llm_qwen2_golden.gguf",
                                  "logits"};

/* A golden sequence as rows without positions in the cache yet, and its logits. */
typedef struct sequence {
  tf_gguf *golden;
  float *vision, *logits;
  tf_llm_row rows[RIG_ROWS_MAX];
  uint32_t count, vocabulary;
} sequence;

static void load_sequence(const golden_case *from, uint32_t width, sequence *out) {
  memset(out, 0, sizeof *out);
  out->golden = open_golden(from->golden);
  uint64_t first;
  int64_t floats;
  cr_assert(tf_gguf_u64(out->golden, "vision_position", &first));
  out->vision = golden_floats(out->golden, "vision", &floats);
  uint32_t text = (uint32_t)tf_gguf_array_count(out->golden, "tokens"), image = (uint32_t)(floats / width);
  out->count = text + image;
  cr_assert(text > first && out->count <= RIG_ROWS_MAX);
  for (uint32_t i = 0; i < out->count; i++) {
    out->rows[i] = (tf_llm_row){.position = (int32_t)i, .wants_logits = true};
    if (i >= first && i < first + image) {
      out->rows[i].embedding = out->vision + (i - first) * width;
      continue;
    }
    int64_t token;
    cr_assert(tf_gguf_array_i64(out->golden, "tokens", i < first ? i : i - image, &token));
    out->rows[i].token = (int32_t)token;
  }
  out->logits = golden_floats(out->golden, from->logits, NULL);
  cr_assert_eq(golden_shape(out->golden, from->logits, 0), out->count);
  out->vocabulary = (uint32_t)golden_shape(out->golden, from->logits, 1);
}

static void free_sequence(sequence *self) {
  free(self->vision);
  free(self->logits);
  tf_gguf_close(&self->golden);
}

static void expect_logits(const sequence *golden, uint32_t first, uint32_t count, const float *logits,
                          const char *what) {
  double largest = largest_difference(logits, golden->logits + (size_t)first * golden->vocabulary,
                                      (int64_t)count * golden->vocabulary);
  cr_assert_leq(largest, TOLERANCE, "%s, rows %u..%u: off by %g", what, first, first + count - 1, largest);
}

static void expect_chunked(const golden_case *from, uint32_t chunk) {
  llm_rig rig = rig_load(from->llm, from->adapter, RIG_ROWS_MAX);
  static sequence golden;
  load_sequence(from, tf_llm_configuration(rig.model)->width, &golden);
  cr_assert_eq(golden.vocabulary, tf_llm_configuration(rig.model)->vocabulary);
  tf_kv_table table = {0};
  cr_assert(tf_kv_reserve(rig.kv, golden.count, &table));
  for (uint32_t i = 0; i < golden.count; i++) golden.rows[i].table = &table;
  for (uint32_t first = 0; first < golden.count; first += chunk) {
    uint32_t count = golden.count - first < chunk ? golden.count - first : chunk;
    expect_logits(&golden, first, count, rig_forward(&rig, golden.rows + first, count), from->logits);
  }
  tf_kv_release(rig.kv, &table);
  free_sequence(&golden);
  rig_free(&rig);
}

Test(llm, llama_whole) {
  expect_chunked(&LLAMA, RIG_ROWS_MAX);
}
Test(llm, llama_with_lora_whole) {
  expect_chunked(&LORA, RIG_ROWS_MAX);
}
Test(llm, qwen2_whole) {
  expect_chunked(&QWEN2, RIG_ROWS_MAX);
}
Test(llm, llama_with_lora_token_by_token) {
  expect_chunked(&LORA, 1);
}
Test(llm, llama_with_lora_in_chunks) {
  expect_chunked(&LORA, 7);
}
Test(llm, qwen2_in_chunks) {
  expect_chunked(&QWEN2, 5);
}

/* LoRA must matter, or the test above would pass without it. */
Test(llm, lora_changes_the_logits) {
  tf_gguf *golden = open_golden(LORA.golden);
  int64_t count;
  float *with = golden_floats(golden, "logits_lora", &count), *without = golden_floats(golden, "logits", NULL);
  cr_assert_gt(largest_difference(with, without, count), 100 * TOLERANCE);
  free(with);
  free(without);
  tf_gguf_close(&golden);
}

/* Sixteen copies of the sequence, each some rows further on than the one before, one chunk of each in every batch:
 * every step mixes prompt chunks and single rows, and blocks of all of them lie mixed in the cache. */
static void expect_batched(const golden_case *from) {
  enum { COPIES = 16, CHUNK = 5 };
  llm_rig rig = rig_load(from->llm, from->adapter, RIG_ROWS_MAX);
  static sequence golden;
  load_sequence(from, tf_llm_configuration(rig.model)->width, &golden);
  tf_kv_table tables[COPIES] = {0};
  uint32_t done[COPIES] = {0}, finished = 0;
  for (int i = 0; i < COPIES; i++) cr_assert(tf_kv_reserve(rig.kv, golden.count, &tables[i]));
  for (uint32_t step = 0; finished < COPIES; step++) {
    cr_assert_lt(step, COPIES + golden.count);
    tf_llm_row rows[RIG_ROWS_MAX];
    uint32_t count = 0, taken[COPIES] = {0};
    for (uint32_t i = 0; i < COPIES && i <= step; i++) {
      uint32_t left = golden.count - done[i], chunk = i % 2 ? CHUNK : 1;
      taken[i] = left < chunk ? left : chunk;
      for (uint32_t r = 0; r < taken[i]; r++) {
        rows[count] = golden.rows[done[i] + r];
        rows[count++].table = &tables[i];
      }
    }
    const float *logits = rig_forward(&rig, rows, count);
    for (uint32_t i = 0; i < COPIES; i++) {
      if (taken[i] == 0) continue;
      expect_logits(&golden, done[i], taken[i], logits, "batched");
      logits += (size_t)taken[i] * golden.vocabulary;
      done[i] += taken[i];
      finished += done[i] == golden.count;
    }
  }
  for (int i = 0; i < COPIES; i++) tf_kv_release(rig.kv, &tables[i]);
  free_sequence(&golden);
  rig_free(&rig);
}

Test(llm, llama_batched) {
  expect_batched(&LORA);
}
Test(llm, qwen2_batched) {
  expect_batched(&QWEN2);
}

/* Rows that want no logits change nothing for those that do. */
Test(llm, only_wanted_rows_get_logits) {
  llm_rig rig = rig_load(LORA.llm, LORA.adapter, 2);
  static sequence golden;
  load_sequence(&LORA, tf_llm_configuration(rig.model)->width, &golden);
  tf_kv_table table = {0};
  cr_assert(tf_kv_reserve(rig.kv, golden.count, &table));
  for (uint32_t i = 0; i < golden.count; i++) {
    golden.rows[i].table = &table;
    golden.rows[i].wants_logits = i == 4 || i == golden.count - 1;
  }
  uint32_t half = golden.count / 2;
  expect_logits(&golden, 4, 1, rig_forward(&rig, golden.rows, half), "row 4");
  const float *logits = rig_forward(&rig, golden.rows + half, golden.count - half);
  expect_logits(&golden, golden.count - 1, 1, logits, "last row");
  tf_kv_release(rig.kv, &table);
  free_sequence(&golden);
  rig_free(&rig);
}

static void expect_refused(const char *from, const char *to, tf_code expected) {
  size_t size;
  char *bytes = patched_file(LLAMA.llm, from, to, &size);
  tf_gguf *file = NULL;
  tf_llm *model = NULL;
  tf_error error = {0};
  tf_pool *pool = tf_pool_new(1);
  cr_assert_eq(tf_gguf_parse(bytes, size, "patched", &file, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_llm_load(file, NULL, pool, NULL, &model, &error), expected, "%s for %s: %s", to, from, error.text);
  cr_assert_null(model);
  cr_assert(strstr(error.text, "patched") != NULL, "the error names the file: %s", error.text);
  tf_gguf_close(&file);
  tf_pool_free(&pool);
  free(bytes);
}

Test(llm, refuses_what_it_can_not_run) {
  expect_refused("general.architecture", "general.architecturx", TF_ERR_UNSUPPORTED);
  expect_refused("llama.block_count", "llama.block_cound", TF_ERR_MODEL_INVALID);
  expect_refused("blk.1.ffn_norm.weight", "blk.1.ffn_norm.weighs", TF_ERR_MODEL_INVALID);
  expect_refused("blk.0.attn_k.weight", "blk.0.attn_K.weight", TF_ERR_MODEL_INVALID);
}

/* An adapter of another LLM: its LoRA finds no weight. */
Test(llm, refuses_lora_of_another_model) {
  tf_gguf *file = open_golden(LLAMA.llm), *adapter = NULL;
  size_t size;
  char *bytes = patched_file(LORA.adapter, "blk.1.", "blk.7.", &size);
  tf_llm *model = NULL;
  tf_error error = {0};
  tf_pool *pool = tf_pool_new(1);
  cr_assert_eq(tf_gguf_parse(bytes, size, "other", &adapter, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_llm_load(file, adapter, pool, NULL, &model, &error), TF_ERR_MODEL_INVALID);
  tf_gguf_close(&adapter);
  tf_gguf_close(&file);
  tf_pool_free(&pool);
  free(bytes);
}

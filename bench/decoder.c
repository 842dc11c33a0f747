/* The LLM tier's parts under the clock: prompts, decoding steps, whole answers, through the engine that the service
 * runs. In: a command's numbers. Out: samples. Vision tokens are noise, drawn anew for each request: nothing can be
 * reused between them but what reuse by content gives to every job (the words before the image). */
#include <stdio.h>
#include <stdlib.h>

#include "bench/bench.h"
#include "common/clock.h"
#include "llm-svc/engine.h"
#include "proto/wire.h"
#include "tensor/tensor.h"

enum { SEQUENCES_MAX = 32, DECODE_TOKENS = 256 };

static tf_engine *load(const tf_model_dir *model) {
  static tf_engine *engine;
  tf_error error;
  if (engine != NULL) return engine;
  tf_pool *pool = tf_pool_new(0);
  tf_engine_config config = {.sequences_max = SEQUENCES_MAX};
  if (pool == NULL) bench_die("engine", "no threads");
  if (tf_engine_load(model, &config, pool, &engine, &error) != TF_OK) bench_die("engine", error.text);
  return engine;
}

static void submit(tf_engine *engine, int tokens, int new_tokens) {
  static uint64_t handle, state = 1;
  size_t floats = (size_t)tokens * tf_engine_width(engine);
  float *vision = malloc((floats + 1) * sizeof *vision);
  if (vision == NULL) bench_die("engine", "no memory");
  for (size_t i = 0; i < floats; i++) vision[i] = 0.2f * bench_noise(&state);
  tf_engine_request request = {.handle = ++handle,
                               .vision = vision,
                               .vision_tokens = (uint32_t)tokens,
                               .sampling = {.max_new_tokens = (uint32_t)new_tokens, .ignore_end = true}};
  tf_error error;
  if (tf_engine_submit(engine, &request, &error) != TF_OK) bench_die("engine", error.text);
  free(vision);
}

/* One step; how many answers it ended. */
static int step(tf_engine *engine) {
  const tf_engine_event *events;
  size_t count;
  int ended = 0;
  if (!tf_engine_step(engine, &events, &count)) bench_die("engine", "nothing to do");
  for (size_t i = 0; i < count; i++) {
    if (events[i].kind == TF_ENGINE_FAILED) bench_die("engine", events[i].text);
    ended += events[i].kind == TF_ENGINE_DONE;
  }
  return ended;
}

/* Every request at once, then steps until all are done. */
static void answer(tf_engine *engine, int tokens, int sequences, int new_tokens) {
  for (int i = 0; i < sequences; i++) submit(engine, tokens, new_tokens);
  for (int ended = 0; ended < sequences;) ended += step(engine);
}

void bench_prompt(const tf_model_dir *model, int tokens) {
  tf_engine *engine = load(model);
  const tf_engine_event *events = NULL;
  size_t count = 0;
  submit(engine, tokens, 1);
  while (count == 0)
    if (!tf_engine_step(engine, &events, &count)) bench_die("engine", "nothing to do");
  printf("{\"prompt_tokens\": %u}\n", (unsigned)events[0].prompt_tokens);
  fflush(stdout);
}

void bench_prefill(const tf_model_dir *model, int tokens, int calls) {
  bench_answers(model, tokens, 1, 1, calls);
}

void bench_answers(const tf_model_dir *model, int tokens, int sequences, int new_tokens, int calls) {
  tf_engine *engine = load(model);
  bench_samples samples = {.count = 0};
  answer(engine, tokens, sequences, 1); /* warms */
  for (int i = 0; i < calls; i++) {
    int64_t start_us = tf_now_us();
    answer(engine, tokens, sequences, new_tokens);
    bench_add(&samples, start_us);
  }
  bench_print(&samples, sequences);
}

void bench_decode(const tf_model_dir *model, int sequences, int steps) {
  tf_engine *engine = load(model);
  if (sequences < 1 || sequences > SEQUENCES_MAX) bench_die("decode", "out of range");
  /* A step takes one prompt whole at least, beside the rows that decode already: after as many steps and one more all
   * of them decode. The first must last until then. */
  for (int i = 0; i < sequences; i++) submit(engine, DECODE_TOKENS, steps + sequences + 2);
  for (int i = 0; i <= sequences; i++) step(engine);
  bench_samples samples = {.count = 0};
  for (int i = 0; i < steps; i++) {
    int64_t start_us = tf_now_us();
    step(engine);
    bench_add(&samples, start_us);
  }
  while (tf_engine_load_state(engine).running > 0) step(engine);
  bench_print(&samples, sequences);
}

/* What the bench's commands share. In: a model folder and words of a command line. Out: one JSON line a command.
 * Every command measures code that ships (libtf_parts), never a copy of it; a peer does the same work by the same rules
 * in tools/bench/. Errors end the program: a measurement that failed has no number. */
#ifndef TF_BENCH_BENCH_H
#define TF_BENCH_BENCH_H

#include <stdint.h>

#include "tensor/model_dir.h"

enum { BENCH_SAMPLES_MAX = 4096 };

/* Milliseconds, printed as {"ms": [...], "units": UNITS}: units of work in each sample (images, steps, ...). */
typedef struct bench_samples {
  double ms[BENCH_SAMPLES_MAX];
  int count;
} bench_samples;

void bench_add(bench_samples *self, int64_t since_us);
void bench_print(const bench_samples *self, double units);
_Noreturn void bench_die(const char *what, const char *why);
/* The same numbers in every run and on both sides: [-1, 1). */
float bench_noise(uint64_t *state);

/* vit STREAMS THREADS BATCH CALLS: STREAMS passes at once, each on THREADS threads; a sample: one call on every stream.
 */
void bench_vit(const tf_model_dir *model, int streams, int threads, int batch, int calls);
/* features IN OUT IMAGES: IN holds [IMAGES, 3, size, size] f32, OUT gets [IMAGES, patches, width] f32. */
void bench_features(const tf_model_dir *model, const char *in, const char *out, int images);
/* projector TOKENS CALLS. */
void bench_projector(const tf_model_dir *model, int tokens, int calls);
/* picture FILE CALLS: JPEG bytes to the ViT's input on one thread. */
void bench_picture(const tf_model_dir *model, const char *path, int calls);
/* prompt TOKENS: prints {"prompt_tokens": ...}, vision tokens and the default prompt's. */
void bench_prompt(const tf_model_dir *model, int tokens);
/* prefill TOKENS CALLS: one image of TOKENS and the default prompt, to the first new token; no prompt twice. */
void bench_prefill(const tf_model_dir *model, int tokens, int calls);
/* decode SEQUENCES STEPS: steps of SEQUENCES captions after 256 vision tokens each; a sample: a step. */
void bench_decode(const tf_model_dir *model, int sequences, int steps);
/* answers TOKENS SEQUENCES NEW CALLS: SEQUENCES requests at once, NEW tokens each; a sample: all of them. */
void bench_answers(const tf_model_dir *model, int tokens, int sequences, int new_tokens, int calls);
/* hop ENDPOINT TOKENS WIDTH CALLS: one TENSOR message of f16 and its acknowledgement. */
void bench_hop(const char *endpoint, int tokens, int width, int calls);

#endif

/* Our side of the bench: a program that takes measurements on demand, so that the driver can alternate it with a peer.
 * In: --model's folder as the argument; commands on stdin, a line each (bench.h). Out: a JSON line each on stdout.
 * Models are loaded at the first command that needs them and stay, as in the services. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "common/clock.h"

enum { WORDS_MAX = 8, LINE_BYTES_MAX = 8192 };

void bench_add(bench_samples *self, int64_t since_us) {
  if (self->count == BENCH_SAMPLES_MAX) bench_die("samples", "more than fit");
  self->ms[self->count++] = (double)(tf_now_us() - since_us) / 1000;
}

void bench_print(const bench_samples *self, double units) {
  printf("{\"units\": %g, \"ms\": [", units);
  for (int i = 0; i < self->count; i++) printf("%s%.4f", i ? ", " : "", self->ms[i]);
  printf("]}\n");
  fflush(stdout);
}

_Noreturn void bench_die(const char *what, const char *why) {
  fprintf(stderr, "bench: %s: %s\n", what, why);
  exit(1);
}

float bench_noise(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (float)(int32_t)(*state >> 32) * 0x1p-31f;
}

static int number(char *const *words, int count, int at) {
  char *end = NULL;
  long value = at < count ? strtol(words[at], &end, 10) : -1;
  if (end == NULL || *end != '\0' || value < 0 || value > 1000000) bench_die(words[0], "a number is missing");
  return (int)value;
}

static void run(const tf_model_dir *model, char *const *words, int count) {
#define N(at) number(words, count, at)
  const char *name = words[0];
  if (strcmp(name, "vit") == 0)
    bench_vit(model, N(1), N(2), N(3), N(4));
  else if (strcmp(name, "features") == 0 && count == 4)
    bench_features(model, words[1], words[2], N(3));
  else if (strcmp(name, "projector") == 0)
    bench_projector(model, N(1), N(2));
  else if (strcmp(name, "picture") == 0 && count == 3)
    bench_picture(model, words[1], N(2));
  else if (strcmp(name, "prompt") == 0)
    bench_prompt(model, N(1));
  else if (strcmp(name, "prefill") == 0)
    bench_prefill(model, N(1), N(2));
  else if (strcmp(name, "decode") == 0)
    bench_decode(model, N(1), N(2));
  else if (strcmp(name, "answers") == 0)
    bench_answers(model, N(1), N(2), N(3), N(4));
  else if (strcmp(name, "hop") == 0 && count == 5)
    bench_hop(words[1], N(2), N(3), N(4));
  else
    bench_die(name, "no such command, or other arguments");
#undef N
}

int main(int argc, char **argv) {
  static char line[LINE_BYTES_MAX];
  static tf_model_dir model;
  tf_error error;
  if (argc != 2) bench_die("usage", "ours MODEL-FOLDER, commands on stdin");
  if (tf_model_dir_open(argv[1], &model, &error) != TF_OK) bench_die(argv[1], error.text);
  while (fgets(line, sizeof line, stdin) != NULL) {
    char *words[WORDS_MAX], *rest = NULL;
    int count = 0;
    for (char *word = strtok_r(line, " \n", &rest); word != NULL && count < WORDS_MAX;
         word = strtok_r(NULL, " \n", &rest))
      words[count++] = word;
    if (count > 0) run(&model, words, count);
  }
  return 0;
}

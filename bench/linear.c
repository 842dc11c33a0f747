/* How fast tf_linear is, shape by shape: the default model's matrices at the row counts of decoding, prefill and ViT.
 * In: argv: threads, then cpu:compute pairs ("amx:int8"; none: all that this machine has). Out: a table on stdout, in
 * GF/s or GOP/s (2 x rows x in x out) and, for few rows, GB/s of weights. Time is the best of several stretches of at
 * least 20 ms, so that neighbours on the machine disturb little. Weights of a shape take turns over 64 MB, as in a
 * model: they come from memory or the last-level cache, not from the core's own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "tensor/linear.h"

enum { TURNS_BYTES = 64 << 20, COPIES_MAX = 256, STRETCHES = 7, STRETCH_US = 20000, ROWS_LARGEST = 1028 };

typedef struct shape {
  const char *name;
  int64_t out, in;
} shape;

static const shape SHAPES[] = {{"vit qkv", 1152, 384},  {"vit up", 1536, 384},      {"vit down", 384, 1536},
                               {"llm qkv", 960, 576},   {"llm gate+up", 3072, 576}, {"llm down", 576, 1536},
                               {"llm head", 49152, 576}};
static const int64_t ROWS[] = {1, 2, 4, 8, 16, 32, 64, 257, 1028};

static void fill(float *x, int64_t count, uint32_t seed) {
  for (int64_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)(int32_t)seed / 2147483648.0f;
  }
}

/* With one thread its own time, which neighbours on the machine change less; else the wall's. */
static int64_t time_us(const tf_pool *pool) {
  struct timespec now;
  if (tf_pool_threads(pool) > 1 || clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) != 0) return tf_now_us();
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static double best_seconds(tf_linear *const *copies, int count, tf_pool *pool, const float *x, int64_t rows, float *y) {
  double best = 1e9;
  int turn = 0;
  for (int s = 0; s < STRETCHES; s++) {
    int64_t begin = time_us(pool), now = begin;
    int64_t calls = 0;
    for (; now - begin < STRETCH_US; now = time_us(pool), calls++)
      tf_linear_apply(copies[turn++ % count], pool, x, rows, y, NULL);
    double each = (double)(now - begin) * 1e-6 / (double)calls;
    if (each < best) best = each;
  }
  return best;
}

static int measure(const shape *s, tf_pool *pool, const float *x, float *y) {
  float *numbers = malloc((size_t)(s->out * s->in) * sizeof *numbers);
  tf_linear *copies[COPIES_MAX] = {NULL};
  tf_error error;
  int count = 0;
  if (!numbers) return 1;
  fill(numbers, s->out * s->in, 7);
  tf_tensor weight = {.dtype = TF_F32, .rank = 2, .shape = {s->out, s->in, 1, 1}, .data = numbers};
  weight.bytes = (size_t)(s->out * s->in) * sizeof *numbers;
  do {
    if (tf_linear_pack(&weight, NULL, NULL, TF_COMPUTE_AUTO, &copies[count], &error) != TF_OK) {
      fprintf(stderr, "bench-linear: %s\n", error.text);
      return 1;
    }
  } while (++count < COPIES_MAX && (size_t)count * tf_linear_bytes(copies[0]) < TURNS_BYTES);
  printf("%-12s %-11s", s->name, tf_linear_kernel(copies[0]));
  for (size_t r = 0; r < sizeof ROWS / sizeof *ROWS; r++) {
    if (s->out > 40000 && ROWS[r] > 64) continue;
    double seconds = best_seconds(copies, count, pool, x, ROWS[r], y);
    if (ROWS[r] <= 8)
      printf(" %6.1f", (double)tf_linear_bytes(copies[0]) / seconds * 1e-9);
    else
      printf(" %6.0f", 2e-9 * (double)(ROWS[r] * s->out * s->in) / seconds);
    fflush(stdout);
  }
  printf("\n");
  for (int i = 0; i < count; i++) tf_linear_free(&copies[i]);
  free(numbers);
  return 0;
}

int main(int argc, char **argv) {
  static const char *const ALL[] = {"amx:int8",  "vnni:int8",  "avx2:int8", "amx:bf16",
                                    "vnni:bf16", "avx512:f32", "avx2:f32",  "portable:f32"};
  tf_pool *pool = tf_pool_new(argc > 1 ? atoi(argv[1]) : 0);
  float *x = malloc((size_t)ROWS_LARGEST * 1536 * sizeof *x), *y = malloc((size_t)ROWS_LARGEST * 49152 * sizeof *y);
  if (!pool || !x || !y) return 1;
  fill(x, (int64_t)ROWS_LARGEST * 1536, 3);
  printf("%d threads; rows 1 to 8: GB/s of weights, then GF/s or GOP/s\n%-24s", tf_pool_threads(pool), "rows");
  for (size_t r = 0; r < sizeof ROWS / sizeof *ROWS; r++) printf(" %6d", (int)ROWS[r]);
  printf("\n");
  int count = argc > 2 ? argc - 2 : (int)(sizeof ALL / sizeof *ALL), failed = 0;
  for (int i = 0; i < count; i++) {
    char pair[64];
    tf_error error;
    snprintf(pair, sizeof pair, "%s", argc > 2 ? argv[i + 2] : ALL[i]);
    char *colon = strchr(pair, ':');
    if (colon) *colon = 0;
    if (tf_cpu_use(pair, colon ? colon + 1 : "auto", &error) != TF_OK) {
      printf("%s\n", error.text);
      continue;
    }
    for (size_t s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++) failed |= measure(&SHAPES[s], pool, x, y);
  }
  tf_pool_free(&pool);
  free(x);
  free(y);
  return failed;
}

/* One call of one kernel, to be counted by callgrind: `measured` is the function between whose entry and exit it
 * counts. In: argv: cpu, compute, then `linear OUT IN ROWS` or `attention TOKENS HEADS DIM`. Out: nothing but the exit
 * status. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/linear.h"
#include "tensor/ops.h"

static float *noise(int64_t count) {
  float *x = malloc((size_t)count * sizeof *x);
  uint32_t seed = 1;
  if (x == NULL) exit(1);
  for (int64_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)(int32_t)seed / 2147483648.0f;
  }
  return x;
}

typedef struct work {
  tf_pool *pool;
  tf_linear *linear;
  int64_t rows, tokens, heads, dim;
  float *q, *k, *v, *y;
} work;

int measured(const work *self);
__attribute__((noinline)) int measured(const work *self) {
  if (self->linear == NULL)
    return tf_attention_full(self->pool, self->q, self->k, self->v, 1, self->tokens, self->heads, self->dim, self->y);
  tf_linear_apply(self->linear, self->pool, self->q, self->rows, self->y, NULL);
  return 0;
}

static int64_t number(const char *text) {
  long value = strtol(text, NULL, 10);
  return value > 0 && value < 1 << 20 ? value : 1;
}

int main(int argc, char **argv) {
  tf_error error = {.text = "cpu, compute, then linear OUT IN ROWS or attention TOKENS HEADS DIM"};
  if (argc != 7 || tf_cpu_use(argv[1], argv[2], &error) != TF_OK) {
    fprintf(stderr, "instructions: %s\n", error.text);
    return 2;
  }
  int64_t a = number(argv[4]), b = number(argv[5]), c = number(argv[6]);
  bool is_linear = strcmp(argv[3], "linear") == 0;
  work self = {.pool = tf_pool_new(1), .rows = c, .tokens = a, .heads = b, .dim = c};
  if (is_linear) {
    float *numbers = noise(a * b);
    tf_tensor weight = {.dtype = TF_F32, .rank = 2, .shape = {a, b, 1, 1}, .data = numbers};
    weight.bytes = (size_t)(a * b) * sizeof *numbers;
    if (tf_linear_pack(&weight, NULL, NULL, TF_COMPUTE_AUTO, &self.linear, &error) != TF_OK) return 1;
    free(numbers);
  }
  int64_t count = is_linear ? b * c : a * b * c;
  self.q = noise(count);
  self.k = noise(count);
  self.v = noise(count);
  self.y = noise(is_linear ? a * c : count);
  int code = measured(&self);
  free(self.q);
  free(self.k);
  free(self.v);
  free(self.y);
  tf_linear_free(&self.linear);
  tf_pool_free(&self.pool);
  return code;
}

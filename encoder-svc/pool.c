/* Token pooling. In: [grid * grid, width]. Out: [n * n, width].
 * Both methods are linear and separable: a matrix P [n, grid] with out = P in P^T, the same along rows and columns.
 * So they differ in how P is filled, once; applying it sums a few weighted patches for each token. */
#include "encoder-svc/pool.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE_MAX = 256 };

struct tf_pooler {
  int64_t grid, n;
  int64_t *first, *end; /* [n] the part of each row of P that is not zero */
  float *weights;       /* [n, grid] = P */
};

bool tf_pooling_from_name(const char *name, tf_pooling *out) {
  if (strcmp(name, "resize_average") == 0)
    *out = TF_POOLING_RESIZE_AVERAGE;
  else if (strcmp(name, "adaptive_average") == 0)
    *out = TF_POOLING_ADAPTIVE_AVERAGE;
  else
    return false;
  return true;
}

/* Row i of P: the mean of the R/n points of the resized line that belong to token i, each point between two patches. */
static void fill_resize_average(int64_t grid, int64_t n, int64_t i, double *row) {
  int64_t resized = (grid + n - 1) / n * n, window = resized / n;
  for (int64_t k = i * window; k < (i + 1) * window; k++) {
    double at = resized > 1 ? (double)k * (double)(grid - 1) / (double)(resized - 1) : 0; /* align_corners = true */
    int64_t left = (int64_t)floor(at);
    double part = at - (double)left;
    row[left] += (1 - part) / (double)window;
    if (left + 1 < grid) row[left + 1] += part / (double)window; /* at the last patch part is 0 */
  }
}

static void fill_adaptive_average(int64_t grid, int64_t n, int64_t i, double *row) {
  int64_t first = i * grid / n, end = ((i + 1) * grid + n - 1) / n;
  for (int64_t k = first; k < end; k++) row[k] = 1 / (double)(end - first);
}

static void fill(tf_pooler *self, tf_pooling method) {
  for (int64_t i = 0; i < self->n; i++) {
    double row[SIDE_MAX] = {0};
    if (method == TF_POOLING_RESIZE_AVERAGE)
      fill_resize_average(self->grid, self->n, i, row);
    else
      fill_adaptive_average(self->grid, self->n, i, row);
    int64_t first = 0, end = self->grid;
    while (first < end - 1 && row[first] == 0) first++;
    while (end > first + 1 && row[end - 1] == 0) end--;
    self->first[i] = first;
    self->end[i] = end;
    for (int64_t k = 0; k < self->grid; k++) self->weights[i * self->grid + k] = (float)row[k];
  }
}

tf_code tf_pooler_new(tf_pooling method, int64_t grid, int64_t n, tf_pooler **out, tf_error *error) {
  *out = NULL;
  if (grid < 1 || grid > SIDE_MAX || n < 1 || n > SIDE_MAX)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "pooling a grid of %lld to %lld: sides are 1 to %d", (long long)grid,
                   (long long)n, SIDE_MAX);
  tf_pooler *self = calloc(1, sizeof *self);
  if (self != NULL) {
    self->grid = grid;
    self->n = n;
    self->first = malloc((size_t)n * sizeof *self->first);
    self->end = malloc((size_t)n * sizeof *self->end);
    self->weights = malloc((size_t)(n * grid) * sizeof *self->weights);
  }
  if (self == NULL || self->first == NULL || self->end == NULL || self->weights == NULL) {
    tf_pooler_free(&self);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a pooling matrix");
  }
  fill(self, method);
  *out = self;
  return TF_OK;
}

void tf_pooler_free(tf_pooler **self) {
  tf_pooler *pooler = *self;
  if (pooler == NULL) return;
  free(pooler->first);
  free(pooler->end);
  free(pooler->weights);
  free(pooler);
  *self = NULL;
}

int64_t tf_pooler_tokens(const tf_pooler *self) {
  return self->n * self->n;
}

void tf_pooler_apply(const tf_pooler *self, const float *in, int64_t width, float *out) {
  for (int64_t row = 0; row < self->n; row++)
    for (int64_t column = 0; column < self->n; column++, out += width) {
      memset(out, 0, (size_t)width * sizeof *out);
      for (int64_t y = self->first[row]; y < self->end[row]; y++)
        for (int64_t x = self->first[column]; x < self->end[column]; x++) {
          float weight = self->weights[row * self->grid + y] * self->weights[column * self->grid + x];
          const float *patch = in + (y * self->grid + x) * width;
          for (int64_t c = 0; c < width; c++) out[c] += weight * patch[c];
        }
    }
}

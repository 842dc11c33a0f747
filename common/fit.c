/* Least squares that forgets. In: observations. Out: costs of the terms, none below zero.
 * The sums of products fade with each observation. With so few terms every choice of which are above zero can
 * be solved and the best taken: that is exact, and takes a microsecond or two. */
#include "common/fit.h"

#include <assert.h>
#include <math.h>
#include <string.h>

void tf_fit_init(tf_fit *self, int terms, const double *penalty) {
  assert(terms > 0 && terms <= TF_FIT_TERMS_MAX);
  *self = (tf_fit){.terms = terms};
  memcpy(self->penalty, penalty, (size_t)terms * sizeof *penalty);
}

void tf_fit_add(tf_fit *self, const double *amounts, double total, double keep) {
  assert(keep > 0 && keep <= 1);
  bool sound = isfinite(total) && total >= 0;
  for (int i = 0; i < self->terms; i++) sound = sound && isfinite(amounts[i]) && amounts[i] >= 0;
  if (!sound) return;
  self->weight = self->weight * keep + 1;
  for (int i = 0; i < self->terms; i++) {
    self->target[i] = self->target[i] * keep + amounts[i] * total;
    for (int j = 0; j < self->terms; j++) self->moment[i][j] = self->moment[i][j] * keep + amounts[i] * amounts[j];
  }
  self->count++;
}

/* Solves for the terms of `mask` alone, by Cholesky on moments scaled to a diagonal near 1. False: can't be solved, or
 * a cost would be negative. *gain: how much this explains. */
static bool solve_some(const tf_fit *self, unsigned mask, double *cost, double *gain) {
  double lower[TF_FIT_TERMS_MAX][TF_FIT_TERMS_MAX] = {{0}}, scale[TF_FIT_TERMS_MAX], y[TF_FIT_TERMS_MAX];
  int at[TF_FIT_TERMS_MAX], n = 0;
  for (int i = 0; i < self->terms; i++)
    if (mask >> i & 1) at[n++] = i;
  for (int i = 0; i < n; i++) {
    if (self->moment[at[i]][at[i]] <= 0) return false; /* never seen */
    scale[i] = 1 / sqrt(self->moment[at[i]][at[i]]);
    double forward = self->target[at[i]] * scale[i];
    for (int j = 0; j <= i; j++) {
      double sum = self->moment[at[i]][at[j]] * scale[i] * scale[j] + (i == j ? self->penalty[at[i]] : 0);
      for (int k = 0; k < j; k++) sum -= lower[i][k] * lower[j][k];
      if (i == j && !(sum > 1e-12)) return false;
      lower[i][j] = i == j ? sqrt(sum) : sum / lower[j][j];
      if (j < i) forward -= lower[i][j] * y[j];
    }
    y[i] = forward / lower[i][i];
  }
  memset(cost, 0, (size_t)self->terms * sizeof *cost);
  *gain = 0;
  for (int i = n - 1; i >= 0; i--) {
    double value = y[i];
    for (int k = i + 1; k < n; k++) value -= lower[k][i] * cost[at[k]] / scale[k];
    value *= scale[i] / lower[i][i];
    if (!(value >= 0) || !isfinite(value)) return false;
    cost[at[i]] = value;
    *gain += value * self->target[at[i]];
  }
  return true;
}

void tf_fit_solve(const tf_fit *self, double *cost) {
  memset(cost, 0, (size_t)self->terms * sizeof *cost);
  double best = 0;
  for (unsigned mask = 1; mask < 1u << self->terms; mask++) {
    double found[TF_FIT_TERMS_MAX], gain;
    if (!solve_some(self, mask, found, &gain) || gain <= best) continue;
    best = gain;
    memcpy(cost, found, (size_t)self->terms * sizeof *cost);
  }
}

/* Least squares that forgets: what the terms of a cost cost, from a stream of measured sums. Pure: no I/O, no clock.
 * In: one observation at a time, the amounts of each term and what they took together. Out: a cost for each term, never
 * negative. Recent observations count more; terms that can't be told apart yet are shared out by their penalties. */
#ifndef TF_COMMON_FIT_H
#define TF_COMMON_FIT_H

#include <stdbool.h>
#include <stdint.h>

enum { TF_FIT_TERMS_MAX = 4 };

typedef struct tf_fit {
  int terms;
  double penalty[TF_FIT_TERMS_MAX]; /* relative to the term's own weight: 1e-6 trusts it, 1e-2 wants evidence */
  double weight;                    /* of all observations; 0: none yet */
  double moment[TF_FIT_TERMS_MAX][TF_FIT_TERMS_MAX], target[TF_FIT_TERMS_MAX];
  uint64_t count; /* observations ever */
} tf_fit;

/* penalties above 0. */
void tf_fit_init(tf_fit *self, int terms, const double *penalty);
/* Amounts and the total that they took; values that are not finite or negative are left out. keep in (0, 1]: the weight
 * that this leaves of all before. */
void tf_fit_add(tf_fit *self, const double *amounts, double total, double keep);
/* cost[terms], each >= 0; all 0 before the first observation. */
void tf_fit_solve(const tf_fit *self, double *cost);

#endif

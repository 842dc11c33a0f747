/* The policy's state as a line of text, for the replicas to share. In: a state, or text from anywhere. Out: the other.
 * "1 observed_ms arrived budget idle_ms per_s window_ms dispersion (score jobs ms)*": the first number is the version.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"

enum { VERSION = 1, REALS = 5 + 3 * TF_RATE_TESTS };

static void reals_of(tf_policy_state *state, double *out[REALS]) {
  double **next = out;
  *next++ = &state->budget;
  *next++ = &state->idle_ms;
  *next++ = &state->rate.per_s;
  *next++ = &state->rate.window_ms;
  *next++ = &state->rate.dispersion;
  for (int i = 0; i < TF_RATE_TESTS; i++) {
    *next++ = &state->rate.tests[i].score;
    *next++ = &state->rate.tests[i].jobs;
    *next++ = &state->rate.tests[i].ms;
  }
}

bool tf_policy_state_write(const tf_policy_state *state, char *out, size_t size) {
  tf_policy_state copy = *state;
  double *reals[REALS];
  reals_of(&copy, reals);
  int used = snprintf(out, size, "%d %" PRId64 " %" PRId64, VERSION, state->observed_ms, state->arrived);
  for (int i = 0; i < REALS && used >= 0 && (size_t)used < size; i++)
    used += snprintf(out + used, size - (size_t)used, " %.12g", *reals[i]);
  return used >= 0 && (size_t)used < size;
}

bool tf_policy_state_read(const char *text, size_t size, tf_policy_state *out) {
  char line[TF_POLICY_STATE_TEXT_BYTES_MAX];
  *out = (tf_policy_state){0};
  if (size >= sizeof line) return false;
  memcpy(line, text, size);
  line[size] = 0;
  tf_policy_state read = {0};
  double *reals[REALS];
  reals_of(&read, reals);
  int version = 0, used = 0;
  if (sscanf(line, "%d %" SCNd64 " %" SCNd64 "%n", &version, &read.observed_ms, &read.arrived, &used) != 3)
    return false;
  if (version != VERSION) return false;
  char *at = line + used;
  for (int i = 0; i < REALS; i++) {
    char *end;
    *reals[i] = strtod(at, &end);
    if (end == at || !isfinite(*reals[i]) || *reals[i] < 0) return false;
    at = end;
  }
  while (*at == ' ' || *at == '\n') at++;
  if (*at || (size_t)(at - line) != size) return false;
  *out = read;
  return true;
}

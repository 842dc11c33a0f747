/* The rules that the simulator compares: the policy itself, a fixed count, thresholds, AIMD.
 * In: the same readings of the load for each. Out: the mean tokens a job that it asks for.
 * Thresholds: a count down where the predicted wait passes the target, up again below half of it. AIMD: as in TCP, a
 * bit more while the predicted wait is within the target, much less when it is not (Chiu and Jain 1989). */
#include "policy/rules.h"

#include <stdlib.h>
#include <string.h>

enum { DOWN_MS = 250, UP_MS = 1000, AIMD_MS = 1000 };
#define AIMD_LESS       0.7
#define AIMD_MORE_SHARE 0.05 /* of the whole range, each second */

bool tf_rule_parse(const char *text, tf_rule *out) {
  *out = (tf_rule){.kind = TF_RULE_ADAPTIVE};
  if (strcmp(text, "adaptive") == 0) return true;
  if (strcmp(text, "thresholds") == 0) return out->kind = TF_RULE_THRESHOLDS, true;
  if (strcmp(text, "aimd") == 0) return out->kind = TF_RULE_AIMD, true;
  if (strncmp(text, "fixed:", 6) != 0) return false;
  char *end;
  unsigned long tokens = strtoul(text + 6, &end, 10);
  out->kind = TF_RULE_FIXED;
  out->tokens = (uint32_t)tokens;
  return text[6] >= '0' && text[6] <= '9' && *end == 0 && tokens >= 1 && tokens <= 1000000;
}

static double thresholds(tf_rule *self, const tf_policy_config *config, const tf_policy_load *load) {
  uint32_t lowest = load->count_count - 1;
  double wait_ms = tf_policy_wait_ms(load, load->counts[lowest - self->level]);
  int64_t since_ms = load->now_ms - self->acted_ms;
  if (self->level < lowest && wait_ms > (double)config->target_wait_ms && since_ms >= DOWN_MS) {
    self->level++;
    self->acted_ms = load->now_ms;
  } else if (self->level > 0 && wait_ms < (double)config->target_wait_ms / 2 && since_ms >= UP_MS) {
    self->level--;
    self->acted_ms = load->now_ms;
  }
  return load->counts[lowest - self->level];
}

static double aimd(tf_rule *self, const tf_policy_config *config, const tf_policy_load *load) {
  double least = load->counts[0], most = load->counts[load->count_count - 1];
  if (self->budget <= 0) self->budget = most;
  if (load->now_ms - self->acted_ms < AIMD_MS) return self->budget;
  self->acted_ms = load->now_ms;
  if (tf_policy_wait_ms(load, self->budget) > (double)config->target_wait_ms)
    self->budget *= AIMD_LESS;
  else
    self->budget += (most - least) * AIMD_MORE_SHARE;
  self->budget = self->budget < least ? least : self->budget > most ? most : self->budget;
  return self->budget;
}

double tf_rule_observe(tf_rule *self, const tf_policy_state *policy, const tf_policy_config *config,
                       const tf_policy_load *load) {
  switch (self->kind) {
  case TF_RULE_FIXED:
    return self->tokens;
  case TF_RULE_THRESHOLDS:
    return thresholds(self, config, load);
  case TF_RULE_AIMD:
    return aimd(self, config, load);
  default:
    return policy->budget;
  }
}

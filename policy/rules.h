/* The rules that the simulator compares: the policy itself, a fixed count, thresholds, AIMD.
 * In: the same readings of the load for each. Out: the mean tokens a job that it asks for; allocation is the policy's
 * for all of them. The simpler ones are here to be measured against; the router knows the policy alone. */
#ifndef TF_POLICY_RULES_H
#define TF_POLICY_RULES_H

#include "policy/policy.h"

typedef enum tf_rule_kind { TF_RULE_ADAPTIVE, TF_RULE_FIXED, TF_RULE_THRESHOLDS, TF_RULE_AIMD } tf_rule_kind;

typedef struct tf_rule {
  tf_rule_kind kind;
  uint32_t tokens; /* FIXED */
  /* Memory; zero at the start. */
  uint32_t level;   /* THRESHOLDS: counts below the largest */
  double budget;    /* AIMD */
  int64_t acted_ms; /* of the last change */
} tf_rule;

/* "adaptive", "fixed:144", "thresholds", "aimd"; false: something else. */
bool tf_rule_parse(const char *text, tf_rule *out);
/* A new reading. policy: the shared state, already brought up to date by tf_policy_observe. Returns mean tokens.
 * load->count_count >= 1. */
double tf_rule_observe(tf_rule *self, const tf_policy_state *policy, const tf_policy_config *config,
                       const tf_policy_load *load);

#endif

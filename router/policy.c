/* Which N a job gets: thresholds on the backlog, with hysteresis. In: load, counts, limits. Out: N and reason.
 * Backlog is measured in "decks": how often the waiting jobs would fill every decode slot. At two decks a level down,
 * at four the next, and so on; a level up again only below half of that, so that a steady load does not flap. */
#include "router/policy.h"

#include <string.h>

enum {
  LEVELS_MAX = 15,
  DECKS_PER_LEVEL = 2, /* at the reference target of REFERENCE_WAIT_MS; a longer target bears more */
  REFERENCE_WAIT_MS = 2000,
  STEP_DOWN_MS = 250, /* between two steps to fewer tokens */
  STEP_UP_MS = 1000   /* between two steps to more */
};

static const char *const names[] = {"", "fixed", "idle", "queue", "job_min", "job_max", "deadline", "reassigned"};
enum { NAME_COUNT = sizeof names / sizeof *names };

const char *tf_reason_name(tf_reason reason) {
  return (unsigned)reason < NAME_COUNT ? names[reason] : "";
}

tf_reason tf_reason_from_name(const char *name, size_t size) {
  for (int i = 1; i < NAME_COUNT; i++)
    if (strlen(names[i]) == size && !memcmp(names[i], name, size)) return (tf_reason)i;
  return TF_REASON_NONE;
}

/* Waiting jobs that a level stands for. */
static double jobs_per_level(const tf_policy_config *config, const tf_policy_load *load) {
  double capacity = load->decode_capacity > 0 ? (double)load->decode_capacity : 1;
  double target_ms = config->target_wait_ms > 0 ? (double)config->target_wait_ms : 1;
  double jobs = capacity * DECKS_PER_LEVEL * target_ms / REFERENCE_WAIT_MS;
  return jobs < 1 ? 1 : jobs;
}

void tf_policy_observe(tf_policy_state *state, const tf_policy_config *config, const tf_policy_load *load) {
  double step = jobs_per_level(config, load);
  double waiting = load->waiting > 0 ? (double)load->waiting : 0;
  uint32_t lowest = load->counts_offered > 0 ? load->counts_offered - 1 : 0;
  if (lowest > LEVELS_MAX) lowest = LEVELS_MAX;
  if (state->level > lowest) state->level = lowest;
  /* A clock that was set back counts as a long time. */
  bool backwards = load->now_ms < state->changed_ms;
  uint64_t since_ms = backwards ? UINT64_MAX : (uint64_t)load->now_ms - (uint64_t)state->changed_ms;
  if (state->level < lowest && waiting >= step * (state->level + 1)) {
    if (since_ms < STEP_DOWN_MS) return;
    state->level++;
    state->changed_ms = load->now_ms;
  } else if (state->level > 0 && waiting < step * state->level / 2) {
    if (since_ms < STEP_UP_MS) return;
    state->level--;
    state->changed_ms = load->now_ms;
  }
}

static bool within(const tf_policy_job *job, uint32_t n) {
  return n >= job->minimum && (job->maximum == 0 || n <= job->maximum);
}

static bool offered(const tf_policy_job *job, uint32_t n) {
  for (size_t i = 0; i < job->count_count; i++)
    if (job->counts[i] == n) return true;
  return false;
}

tf_policy_choice tf_policy_choose(const tf_policy_state *state, const tf_policy_job *job) {
  tf_policy_choice choice = {0, TF_REASON_NONE};
  if (job->count_count == 0) return choice;
  bool again = job->previous != 0;
  if (again && offered(job, job->previous) && within(job, job->previous)) {
    choice.vision_tokens = job->previous;
    choice.reason = job->previous_reason;
    if (choice.reason == TF_REASON_NONE) choice.reason = TF_REASON_REASSIGNED;
    return choice;
  }
  size_t top = job->count_count - 1;
  size_t level = state->level < top ? state->level : top;
  uint32_t wanted = job->counts[top - level];
  /* The nearest count within the limits: up to the minimum, down to the maximum. */
  for (size_t i = 0; i <= top; i++) {
    uint32_t n = job->counts[i];
    if (!within(job, n)) continue;
    choice.vision_tokens = n;
    if (n >= wanted) break;
  }
  if (choice.vision_tokens == 0) return choice;
  if (job->minimum && job->minimum == job->maximum)
    choice.reason = TF_REASON_FIXED;
  else if (again)
    choice.reason = TF_REASON_REASSIGNED;
  else if (choice.vision_tokens > wanted)
    choice.reason = TF_REASON_JOB_MIN;
  else if (choice.vision_tokens < wanted)
    choice.reason = TF_REASON_JOB_MAX;
  else
    choice.reason = level == 0 ? TF_REASON_IDLE : TF_REASON_QUEUE;
  return choice;
}

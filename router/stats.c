/* The router's metrics. In: increments. Out: series in the registry, named tokenflex_*.
 * Series with labels that vary are looked up by the registry, which bounds them. */
#include "router/stats.h"

#include <stdio.h>

void tf_router_stats_init(tf_router_stats *self, tf_metrics *metrics) {
  static const char *const outcomes[TF_OUTCOME_COUNT] = {
      [TF_OUTCOME_RESULT] = "outcome=\"result\"",       [TF_OUTCOME_DEAD] = "outcome=\"dead\"",
      [TF_OUTCOME_RETRY] = "outcome=\"retry\"",         [TF_OUTCOME_DUPLICATE] = "outcome=\"duplicate\"",
      [TF_OUTCOME_STALE] = "outcome=\"stale_failure\"", [TF_OUTCOME_UNKNOWN] = "outcome=\"unknown\""};
  *self = (tf_router_stats){.metrics = metrics};
  for (int i = 0; i < TF_OUTCOME_COUNT; i++)
    self->outcomes[i] = tf_metrics_counter(metrics, "tokenflex_jobs_total", outcomes[i], "How attempts at jobs ended");
  self->claimed = tf_metrics_counter(metrics, "tokenflex_claimed_total", "", "Jobs claimed from Redis");
  self->claims = tf_metrics_counter(metrics, "tokenflex_claims_total", "", "Calls of the claim script");
  self->commit_errors =
      tf_metrics_counter(metrics, "tokenflex_commit_errors_total", "", "Commits that Redis did not answer or refused");
  self->leases_lost =
      tf_metrics_counter(metrics, "tokenflex_leases_lost_total", "", "Jobs that another router took over");
  self->workers_lost = tf_metrics_counter(metrics, "tokenflex_workers_lost_total", "", "Workers that fell silent");
  self->sweeps_recovered = tf_metrics_counter(metrics, "tokenflex_sweep_recovered_total", "",
                                              "Claimed jobs that nobody answered for, made claimable again");
  self->dead_dropped =
      tf_metrics_counter(metrics, "tokenflex_dead_dropped_total", "",
                         "Dead letters, the oldest, that went because there were more than --dead-max");
  self->unfinished = tf_metrics_gauge(metrics, "tokenflex_queue_jobs", "state=\"unfinished\"", "Jobs of the queue");
  self->waiting = tf_metrics_gauge(metrics, "tokenflex_queue_jobs", "state=\"waiting\"", "Jobs of the queue");
  self->in_encode = tf_metrics_gauge(metrics, "tokenflex_queue_jobs", "state=\"encode\"", "Jobs of the queue");
  self->in_decode = tf_metrics_gauge(metrics, "tokenflex_queue_jobs", "state=\"decode\"", "Jobs of the queue");
  self->results_length = tf_metrics_gauge(metrics, "tokenflex_results_length", "", "Entries in the results stream");
  self->held = tf_metrics_gauge(metrics, "tokenflex_router_jobs", "", "Jobs that this router holds");
  self->encoders = tf_metrics_gauge(metrics, "tokenflex_workers", "tier=\"encoder\"", "Workers connected");
  self->arrivals = tf_metrics_gauge(metrics, "tokenflex_arrivals_per_second", "", "Jobs that arrive, smoothed");
  self->budget =
      tf_metrics_gauge(metrics, "tokenflex_budget_tokens", "", "Mean vision tokens that the load allows a job");
  self->encoders_wanted = tf_metrics_gauge(metrics, "tokenflex_workers_wanted", "tier=\"encoder\"",
                                           "Workers that would carry the load at full detail within the target wait");
  self->llms_wanted = tf_metrics_gauge(metrics, "tokenflex_workers_wanted", "tier=\"llm\"",
                                       "Workers that would carry the load at full detail within the target wait");
  self->llms = tf_metrics_gauge(metrics, "tokenflex_workers", "tier=\"llm\"", "Workers connected");
}

static void set_times(tf_router_stats *self, const char *tier, const tf_policy_load *load,
                      const tf_policy_tier *measured) {
  for (uint32_t i = 0; i < load->count_count; i++) {
    char labels[96];
    snprintf(labels, sizeof labels, "tier=\"%s\",vision_tokens=\"%u\"", tier, load->counts[i]);
    tf_metric_set(tf_metrics_gauge(self->metrics, "tokenflex_service_ms", labels,
                                   "Worker time that a job costs in a full batch, as the workers measure it"),
                  measured->service_ms[i]);
  }
}

void tf_router_stats_load(tf_router_stats *self, const tf_policy_load *load, const tf_policy_state *state,
                          double encoders_wanted, double llms_wanted) {
  tf_metric_set(self->arrivals, state->rate.per_s);
  tf_metric_set(self->budget, state->budget);
  tf_metric_set(self->encoders_wanted, encoders_wanted);
  tf_metric_set(self->llms_wanted, llms_wanted);
  set_times(self, "encoder", load, &load->encode);
  set_times(self, "llm", load, &load->decode);
}

void tf_router_stats_assigned(tf_router_stats *self, uint32_t vision_tokens, const char *reason) {
  char labels[96];
  snprintf(labels, sizeof labels, "vision_tokens=\"%u\",reason=\"%s\"", vision_tokens, reason);
  tf_metric_add(tf_metrics_counter(self->metrics, "tokenflex_assigned_total", labels, "Assignments by N and reason"),
                1);
}

void tf_router_stats_protocol_error(tf_router_stats *self, const char *kind) {
  char labels[96];
  snprintf(labels, sizeof labels, "kind=\"%s\"", kind);
  tf_metric_add(
      tf_metrics_counter(self->metrics, "tokenflex_protocol_errors_total", labels, "Messages that were dropped"), 1);
}

void tf_router_stats_dead(tf_router_stats *self, const char *code) {
  char labels[96];
  snprintf(labels, sizeof labels, "code=\"%s\"", code);
  tf_metric_add(tf_metrics_counter(self->metrics, "tokenflex_dead_total", labels, "Jobs given up, by error code"), 1);
}

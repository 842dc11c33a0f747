/* tokenflex-router: options, health endpoint, then the router until SIGTERM.
 * In: argv, environment, --config file. Out: exit status 0 (drained), 1 (could not run), 2 (wrong usage).
 * Signals are blocked before any thread starts, so that they reach the reactor alone. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/log.h"
#include "common/options.h"
#include "router/router.h"

#define AT(field) offsetof(tf_router_config, field)
/* clang-format off */
static const tf_option options[] = {
  {"redis", 'r', TF_OPTION_STRING, AT(redis), 0, 0, "redis://127.0.0.1:6379", "URL", "redis://[user:password@]host[:port][/db] or unix:///path[?db=N]"},
  {"queue", 'q', TF_OPTION_STRING, AT(queue), 0, 0, "default", "NAME", "queue that this router serves"},
  {"bind", 'b', TF_OPTION_STRING, AT(bind), 0, 0, "tcp://127.0.0.1:7701", "ENDPOINT", "where workers connect"},
  {"lease-ms", 0, TF_OPTION_INT, AT(lease_ms), 300, 600000, "15000", "ms", "after which another router takes the jobs of one that died"},
  {"max-attempts", 0, TF_OPTION_INT, AT(max_attempts), 1, 100, "3", "tries", "that count against a job before it is given up"},
  {"target-wait-ms", 0, TF_OPTION_INT, AT(target_wait_ms), 1, 3600000, "2000", "ms", "that jobs may wait before they get fewer vision tokens"},
  {"job-timeout-ms", 0, TF_OPTION_INT, AT(job_timeout_ms), 1000, 86400000, "300000", "ms", "from assignment to result; then the job is tried again"},
  {"dedupe-window-s", 0, TF_OPTION_INT, AT(dedupe_window_s), 1, 31536000, "604800", "s", "in which an id ends only once"},
  {"results-max", 0, TF_OPTION_INT, AT(results_max), 1, 1000000000, "1000000", "entries", "in the results stream; full: nothing more is claimed"},
  {"results-keep-s", 0, TF_OPTION_INT, AT(results_keep_s), 1, 31536000, "604800", "s", "that results stay, and longer where a consumer group has them unread"},
  {"max-waiting", 0, TF_OPTION_INT, AT(max_waiting), 0, 1000000000, "1000000", "jobs", "that may wait; clients then get queue_full; 0: no limit"},
  {"max-waiting-bytes", 0, TF_OPTION_INT, AT(max_waiting_bytes), 0, INT64_C(1) << 50, "17179869184", "bytes", "that waiting jobs may take in Redis; 0: no limit"},
  {"dead-image-bytes-max", 0, TF_OPTION_INT, AT(dead_image_bytes_max), 0, INT64_C(1) << 40, "268435456", "bytes", "of images that dead letters keep"},
  {"peer-timeout-ms", 0, TF_OPTION_INT, AT(peer_timeout_ms), 100, 600000, "5000", "ms", "of silence after which a worker counts as gone"},
  {"drain-timeout-s", 0, TF_OPTION_INT, AT(drain_timeout_s), 0, 86400, "30", "s", "to finish the jobs at hand after SIGTERM"},
  {"insecure", 0, TF_OPTION_FLAG, AT(insecure), 0, 0, NULL, NULL, "bind to addresses that other machines reach, without encryption"},
  {"health", 0, TF_OPTION_STRING, AT(health), 0, 0, "127.0.0.1:9101", "ADDRESS", "of /healthz, /readyz and /metrics; off: none"},
  {"log-level", 0, TF_OPTION_CHOICE, AT(log_level), 0, 0, "info", "debug|info|warn|error", "lines below this are not logged"},
};
/* clang-format on */
static const tf_program program = {
    .name = "tokenflex-router",
    .synopsis = "[options]",
    .summary =
        "Takes jobs from a Redis queue, gives each its number of vision tokens, and sends it through the workers.",
    .options = options,
    .option_count = sizeof options / sizeof *options,
};

/* What main owns; freed in the reverse order of making. */
typedef struct process {
  tf_router_config config;
  tf_reactor *reactor;
  tf_metrics *metrics;
  tf_health *health;
  tf_router *router;
} process;

static void on_terminate(void *context, int signal_number) {
  (void)signal_number;
  process *self = context;
  if (self->router) tf_router_drain(self->router);
}

static tf_code start(process *self, tf_error *error) {
  self->reactor = tf_reactor_new();
  self->metrics = tf_metrics_new();
  if (!self->reactor || !self->metrics) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  tf_code code = tf_reactor_on_terminate(self->reactor, on_terminate, self);
  if (code != TF_OK) return tf_fail(error, code, "can not handle signals");
  code = tf_health_start(self->config.health, self->metrics, &self->health, error);
  if (code != TF_OK) return code;
  tf_health_set_ready(self->health, false, "starting");
  return tf_router_new(&self->config, self->reactor, self->metrics, self->health, &self->router, error);
}

static void stop(process *self) {
  tf_router_free(&self->router);
  tf_health_stop(&self->health);
  tf_metrics_free(&self->metrics);
  tf_reactor_free(&self->reactor);
}

int main(int argc, char **argv) {
  process self = {.router = NULL};
  tf_error error = {.code = TF_OK};
  tf_options_outcome outcome = TF_OPTIONS_RUN;
  tf_code code = tf_options_parse(&program, argc, argv, &self.config, NULL, NULL, &outcome, &error);
  if (code != TF_OK) {
    fprintf(stderr, "tokenflex-router: %s (--help shows the options)\n", error.text);
    return 2;
  }
  if (outcome != TF_OPTIONS_RUN) return 0;
  tf_log_setup("router", self.config.log_level);
  code = start(&self, &error);
  if (code == TF_OK) code = tf_reactor_run(self.reactor, &error);
  if (code != TF_OK) fprintf(stderr, "tokenflex-router: %s\n", error.text);
  stop(&self);
  return code == TF_OK ? 0 : 1;
}

/* tokenflex-router: its options, then the router until SIGTERM.
 * In: argv, environment, --config file. Out: exit status 0 (drained), 1 (could not run), 2 (wrong usage).
 * What it shares with the other services is in proto/service.c. */
#include <stddef.h>

#include "proto/service.h"
#include "router/page_access.h"
#include "router/router.h"

typedef struct process {
  tf_router_config config;
  tf_service_options common;
  char wire_queue[TF_QUEUE_BYTES_MAX + 1];
  tf_page_token token;
  tf_router *router;
} process;

#define AT(field) (offsetof(process, config) + offsetof(tf_router_config, field))
/* clang-format off */
static const tf_option options[] = {
  {"redis", 'r', TF_OPTION_STRING, AT(redis), 0, 0, "redis://127.0.0.1:6379", "URL", "redis://[user:password@]host[:port][/db] or unix:///path[?db=N]; ?password-file=PATH keeps the password out of it"},
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
  {"dead-max", 0, TF_OPTION_INT, AT(dead_max), 1, 1000000000, "100000", "letters", "that are kept of jobs given up; past it the oldest go"},
  {"dead-image-bytes-max", 0, TF_OPTION_INT, AT(dead_image_bytes_max), 0, INT64_C(1) << 40, "268435456", "bytes", "of images that dead letters keep"},
  {"peer-timeout-ms", 0, TF_OPTION_INT, AT(peer_timeout_ms), 100, 600000, "5000", "ms", "of silence after which a worker counts as gone"},
  {"ready-without-workers", 0, TF_OPTION_FLAG, AT(ready_without_workers), 0, 0, NULL, NULL, "be ready while no router of the queue has workers: for tiers that may scale to zero"},
  {"drain-timeout-s", 0, TF_OPTION_INT, AT(drain_timeout_s), 0, 86400, "30", "s", "to finish the jobs at hand after SIGTERM"},
  {"page", 0, TF_OPTION_CHOICE, AT(page), 0, 0, "on", "on|off", "status page at the health address, for this machine and who has the token"},
  {"page-token-file", 0, TF_OPTION_STRING, AT(page_token_file), 0, 0, NULL, "FILE", "token of 16 characters or more that the page's Retry and Drop need; unset: they are off"},
  {"insecure", 0, TF_OPTION_FLAG, AT(insecure), 0, 0, NULL, NULL, "bind to addresses that other machines reach, without encryption"},
  TF_SERVICE_BINDS_ROW(process, common),
  TF_SERVICE_ROWS(process, common, "127.0.0.1:9101"),
};
/* clang-format on */

static tf_code check(void *context, tf_error *error) {
  process *self = context;
  self->config.wire_queue = self->wire_queue;
  tf_code code = tf_router_wire_queue(self->config.redis, self->config.queue, self->wire_queue, error);
  if (code == TF_OK) code = tf_page_token_read(self->config.page_token_file, &self->token, error);
  if (code != TF_OK) return code;
  self->config.page_token = &self->token;
  return tf_curve_check_bind(&self->common.curve, "bind", self->config.bind, self->config.insecure, error);
}

static tf_code start(void *context, const tf_service *service, tf_error *error) {
  process *self = context;
  return tf_router_new(&self->config, service, &self->router, error);
}

static void drain(void *context) {
  tf_router_drain(((process *)context)->router);
}

static void stop(void *context) {
  tf_router_free(&((process *)context)->router);
}

static const tf_service_program program = {
    .role = "router",
    .program = {.name = "tokenflex-router",
                .synopsis = "[options]",
                .summary = "Takes jobs from a Redis queue, gives each its number of vision tokens, and sends it "
                           "through the workers.",
                .options = options,
                .option_count = sizeof options / sizeof *options},
    .options = offsetof(process, common),
    .check = check,
    .start = start,
    .drain = drain,
    .stop = stop,
};

int main(int argc, char **argv) {
  process self = {.router = NULL};
  return tf_service_run(&program, argc, argv, &self, &self);
}

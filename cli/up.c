/* `tokenflex up`: the whole service on one machine, in the foreground.
 * In: options. Out: running services, the lines that say how to use them; the exit status once stopped.
 * A worker that was drained is started again; any other process that ends ends all. A signal stops them in order, and
 * jobs in hand are finished first. */
#include "cli/command.h"
#include "cli/jsonl.h"
#include "cli/ready.h"
#include "cli/stack.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/options.h"
#include "proto/wire.h"
#include "proto/curve.h"
#include "tensor/cpu.h"
#include "tensor/model_dir.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { POLL_US = 100000, NOTE_MS = 5000, REPORT_BYTES_MAX = 65536 };

typedef struct up_config {
  const char *redis, *queue, *model, *bind, *tensor_bind, *health, *log_level, *compute, *cpu, *cache_dir;
  tf_string_list allow_dirs;
  tf_curve_options curve;
  bool allow_http, allow_private_addresses, insecure;
  int64_t threads, max_pixels, cache_dir_mib, drain_timeout_s;
} up_config;

#define FIELD(name) offsetof(up_config, name)
static const tf_option options[] = {
    {"redis", 0, TF_OPTION_STRING, FIELD(redis), 0, 0, NULL, "URL",
     "Redis that holds the queue; else one of its own, in memory only"},
    {"queue", 0, TF_OPTION_STRING, FIELD(queue), 0, 0, "default", "NAME", "Queue"},
    {"model", 0, TF_OPTION_STRING, FIELD(model), 0, 0, NULL, "DIR", "Model folder; else the installed one"},
    {"allow-dir", 0, TF_OPTION_LIST, FIELD(allow_dirs), 0, 0, NULL, "DIR",
     "Folder that jobs may name files in (file://); repeatable"},
    {"allow-http", 0, TF_OPTION_FLAG, FIELD(allow_http), 0, 0, NULL, NULL,
     "Fetch http: and https: URIs that jobs name"},
    {"allow-private-addresses", 0, TF_OPTION_FLAG, FIELD(allow_private_addresses), 0, 0, NULL, NULL,
     "Fetch from private, loopback and link-local addresses too"},
    {"bind", 0, TF_OPTION_STRING, FIELD(bind), 0, 0, NULL, "ENDPOINT",
     "Where more workers may reach the router, e.g. tcp://127.0.0.1:7701"},
    {"tensor-bind", 0, TF_OPTION_STRING, FIELD(tensor_bind), 0, 0, NULL, "ENDPOINT",
     "Where more encoders may reach the LLM, e.g. tcp://127.0.0.1:7703"},
    {"health", 0, TF_OPTION_CHOICE, FIELD(health), 0, 0, "on", "on|off",
     "Health and metrics on 127.0.0.1:9101, 9102, 9103; the status page on the first"},
    {"curve-key", 0, TF_OPTION_STRING, FIELD(curve.key), 0, 0, NULL, "FILE",
     "CURVE keys of the services (`tokenflex keygen`), where others may reach them"},
    {"curve-server", 0, TF_OPTION_STRING, FIELD(curve.server), 0, 0, NULL, "FILE",
     "Public key of the routers and LLMs that they connect to; else their own"},
    {"curve-allow", 0, TF_OPTION_STRING, FIELD(curve.allow), 0, 0, NULL, "FILE",
     "Public keys of others that may connect to them"},
    {"insecure", 0, TF_OPTION_FLAG, FIELD(insecure), 0, 0, NULL, NULL, "Allow addresses that others can reach"},
    {"threads", 0, TF_OPTION_INT, FIELD(threads), 0, 1024, "0", "threads", "Compute threads (0: every core)"},
    {"compute", 0, TF_OPTION_CHOICE, FIELD(compute), 0, 0, "auto", TF_COMPUTE_CHOICES,
     "Arithmetic (auto: the fastest that keeps the captions' quality)"},
    {"cpu", 0, TF_OPTION_CHOICE, FIELD(cpu), 0, 0, "auto", TF_CPU_CHOICES,
     "Instructions to use (auto: the best that there are)"},
    {"cache-dir", 0, TF_OPTION_STRING, FIELD(cache_dir), 0, 0, NULL, "DIR",
     "Where prepared weights are kept for the next start (off: nowhere); else ~/.cache/tokenflex"},
    {"cache-dir-mib", 0, TF_OPTION_INT, FIELD(cache_dir_mib), 1, 1048576, "2048", "MiB",
     "That they may take; those unused for longest go first"},
    {"max-pixels", 0, TF_OPTION_INT, FIELD(max_pixels), 1, 4e9, "250000000", "pixels", "Larger pictures are errors"},
    {"drain-timeout-s", 0, TF_OPTION_INT, FIELD(drain_timeout_s), 0, 3600, "30", "s",
     "How long jobs in hand are finished on a stop"},
    {"log-level", 0, TF_OPTION_CHOICE, FIELD(log_level), 0, 0, "info", "debug|info|warn|error",
     "Lines below this are not logged"},
};
static const tf_program program = {
    .name = "tokenflex up",
    .synopsis = "[options]",
    .summary = "Runs Redis, router, encoder and LLM on this machine until it is stopped (SIGTERM, Ctrl-C).",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

static void tell_note(void *context, const char *note) {
  int64_t *told_ms = context;
  if (tf_now_ms() - *told_ms < NOTE_MS) return;
  *told_ms = tf_now_ms();
  tf_say("%s", note);
}

/* How redis-cli reaches the queue. */
static void put_client(const tf_link *link, tf_buffer *out) {
  const tf_redis_url *url = &link->url;
  if (url->unix_path[0])
    tf_buffer_printf(out, "redis-cli -s %s", url->unix_path);
  else
    tf_buffer_printf(out, "redis-cli -h %s -p %d", url->host, url->port);
  if (url->database) tf_buffer_printf(out, " -n %d", url->database);
}

static void tell_use(const up_config *config, const tf_link *link, const tf_queue_model *model) {
  char counts[128], place[400];
  tf_buffer client, folder;
  tf_buffer_init(&client, 1024);
  tf_buffer_init(&folder, 65536);
  put_client(link, &client);
  tf_queue_counts_text(model->token_counts, model->token_count_count, counts, sizeof counts);
  tf_link_place(link, place, sizeof place);
  bool files = config->allow_dirs.count > 0;
  if (files) tf_uri_escape(config->allow_dirs.items[0], &folder);
  bool named = strcmp(config->queue, "default") != 0;
  fprintf(stderr, "tokenflex: up, model %s\n  vision tokens %s\n  queue %s on %s\n", model->name, counts, config->queue,
          place);
  if (!config->redis) fprintf(stderr, "  (in memory only: give --redis for a queue that lasts)\n");
  if (link->url.password[0] || link->url.password_file[0])
    fprintf(stderr, "  (put the password into REDISCLI_AUTH first)\n");
  fprintf(stderr, "Submit a photo:\n");
  if (files)
    fprintf(stderr, "  %s XADD 'tf:{%s}:jobs:1' '*' id photo-1 uri file://%s/photo.jpg\n", client.data, config->queue,
            folder.data ? folder.data : "");
  else
    fprintf(stderr, "  %s -x XADD 'tf:{%s}:jobs:1' '*' id photo-1 image < photo.jpg\n", client.data, config->queue);
  fprintf(stderr, "Read the captions:\n  %s XREAD BLOCK 0 STREAMS 'tf:{%s}:results' 0\n", client.data, config->queue);
  fprintf(stderr, "Or both, for a folder:\n  tokenflex caption --redis %s%s%s ~/Pictures\n", place,
          named ? " --queue " : "", named ? config->queue : "");
  if (!files) fprintf(stderr, "Jobs that name files need --allow-dir DIR.\n");
  if (strcmp(config->health, "on") == 0) fprintf(stderr, "Watch it:\n  http://%s/\n", TF_STACK_ROUTER_HEALTH);
  tf_buffer_free(&client);
  tf_buffer_free(&folder);
}

static tf_code serve(const up_config *config, tf_stack *stack, tf_link *link, tf_buffer *report, tf_error *error) {
  tf_queue_model model;
  int64_t told_ms = tf_now_ms();
  tf_code code = tf_link_init(link, tf_stack_redis_url(stack), config->queue, NULL, error);
  if (!code) code = tf_ready_wait(link, stack, tell_note, &told_ms, &model, report, error);
  if (code) return code;
  tell_use(config, link, &model);
  tf_link_close(link);
  while (tf_interrupt_count() == 0) {
    if (!tf_stack_alive(stack, report)) return TF_ERR_WORKER_LOST;
    usleep(POLL_US);
  }
  return TF_ERR_CANCELLED;
}

/* Checks of what would otherwise be found by a service, later. */
static tf_code check(up_config *config, tf_model_dir *model, tf_error *error) {
  tf_link names;
  for (size_t i = 0; i < config->allow_dirs.count; i++) {
    char *folder =
        realpath(config->allow_dirs.items[i], NULL); /* kept: the table's strings last as long as the process */
    if (!folder)
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--allow-dir %.200s: %s", config->allow_dirs.items[i],
                     strerror(errno));
    config->allow_dirs.items[i] = folder;
  }
  tf_error why;
  if (config->bind && tf_wire_endpoint_check(config->bind, false, &why))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--bind: %s", why.text);
  tf_code code = TF_OK;
  if (config->bind) code = tf_curve_check_bind(&config->curve, "bind", config->bind, config->insecure, error);
  if (!code && config->tensor_bind)
    code = tf_curve_check_bind(&config->curve, "tensor-bind", config->tensor_bind, config->insecure, error);
  tf_curve *keys = NULL;
  if (!code) code = tf_curve_new(&config->curve, &keys, error);
  tf_curve_free(&keys);
  if (!code) code = tf_cpu_use(config->cpu, config->compute, error);
  if (!code) code = tf_link_init(&names, config->redis ? config->redis : "unix:///none", config->queue, NULL, error);
  return code ? code : tf_model_dir_open(config->model, model, error);
}

static int run_up(up_config *config) {
  tf_error error = {0};
  tf_buffer report;
  tf_link link = {0};
  static tf_model_dir model;
  tf_stack *stack = NULL;
  tf_buffer_init(&report, REPORT_BYTES_MAX);
  tf_code code = check(config, &model, &error);
  if (code) {
    tf_say("%s", error.text);
    return code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
  }
  tf_interrupt_setup();
  tf_stack_config stack_config = {.redis_url = config->redis,
                                  .queue = config->queue,
                                  .model = model.path,
                                  .bind = config->bind,
                                  .tensor_bind = config->tensor_bind,
                                  .allow_dirs = &config->allow_dirs,
                                  .allow_http = config->allow_http,
                                  .allow_private_addresses = config->allow_private_addresses,
                                  .threads = config->threads,
                                  .compute = config->compute,
                                  .cpu = config->cpu,
                                  .cache_dir = config->cache_dir,
                                  .cache_dir_mib = config->cache_dir_mib,
                                  .max_pixels = config->max_pixels,
                                  .drain_timeout_s = config->drain_timeout_s,
                                  .log_level = config->log_level,
                                  .served = true,
                                  .health = strcmp(config->health, "on") == 0,
                                  .insecure = config->insecure,
                                  .curve = config->curve};
  code = tf_stack_start(&stack_config, &stack, &error);
  if (stack && !tf_stack_alive(stack, &report))
    code = TF_ERR_WORKER_LOST;
  else if (!code)
    code = serve(config, stack, &link, &report, &error);
  tf_link_close(&link);
  if (tf_interrupt_count() > 0) code = TF_ERR_CANCELLED;
  if (code == TF_ERR_CANCELLED)
    tf_say("stopping");
  else if (report.data)
    fprintf(stderr, "tokenflex: %s", report.data);
  else
    tf_say("%s", error.text);
  tf_stack_stop(&stack);
  tf_buffer_free(&report);
  return code == TF_ERR_CANCELLED ? TF_EXIT_OK : code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
}

int tf_up_main(int argc, char **argv) {
  static up_config config;
  tf_error error;
  tf_options_outcome outcome;
  size_t count = 0;
  if (tf_options_parse(&program, argc, argv, &config, NULL, &count, &outcome, &error)) {
    tf_say("%s", error.text);
    return TF_EXIT_USAGE;
  }
  if (outcome != TF_OPTIONS_RUN) return TF_EXIT_OK;
  tf_log_setup("tokenflex", config.log_level);
  return run_up(&config);
}

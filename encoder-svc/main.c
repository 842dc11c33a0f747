/* tokenflex-encoder: options, model, health endpoint, then the service until SIGTERM.
 * In: argv, environment, --config file. Out: exit status 0 (drained), 1 (could not run), 2 (wrong usage).
 * Signals are blocked before any thread starts, so that they reach the reactor alone. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "encoder-svc/service.h"
#include "tensor/cpu.h"

typedef struct settings {
  const char *model, *compute, *cpu, *log_level, *health, *tensor_dtype;
  tf_string_list routers, allow_dirs;
  int64_t threads, decode_threads, batch, jobs, pixels_max, image_bytes_max;
  int64_t fetch_timeout_ms, ack_timeout_ms, peer_timeout_ms, drain_timeout_s;
  bool allow_http, allow_private_addresses;
} settings;

#define AT(field) offsetof(settings, field)
/* clang-format off */
static const tf_option options[] = {
  {"model", 'm', TF_OPTION_STRING, AT(model), 0, 0, NULL, "DIR", "model folder; unset: the installed one"},
  {"routers", 'r', TF_OPTION_LIST, AT(routers), 0, 0, "tcp://127.0.0.1:7701", "ENDPOINTS", "routers to work for"},
  {"threads", 't', TF_OPTION_INT, AT(threads), 0, 1024, "0", "threads", "that encode; 0: one for each allowed core"},
  {"compute", 0, TF_OPTION_CHOICE, AT(compute), 0, 0, "auto", TF_COMPUTE_CHOICES, "arithmetic of the matrix products; auto: the fastest that keeps the captions' quality"},
  {"cpu", 0, TF_OPTION_CHOICE, AT(cpu), 0, 0, "auto", TF_CPU_CHOICES, "instructions to use; auto: the best that there are"},
  {"decode-threads", 0, TF_OPTION_INT, AT(decode_threads), 0, TF_PIPELINE_DECODE_THREADS_MAX, "0", "threads", "that fetch files and decode; 0: half the allowed cores, at least 2"},
  {"batch", 'b', TF_OPTION_INT, AT(batch), 1, TF_PIPELINE_BATCH_MAX, "4", "images", "in one pass of the vision encoder at most"},
  {"jobs", 'j', TF_OPTION_INT, AT(jobs), 0, 4096, "0", "jobs", "taken at once, over all routers; 0: decode threads + 2 x batch"},
  {"max-pixels", 0, TF_OPTION_INT, AT(pixels_max), 1, 4e9, "250000000", "pixels", "larger images are refused from their header"},
  {"max-image-bytes", 0, TF_OPTION_INT, AT(image_bytes_max), 1, TF_IMAGE_BYTES_MAX, "67108864", "bytes", "larger files and downloads are refused"},
  {"allow-dir", 'd', TF_OPTION_LIST, AT(allow_dirs), 0, 0, NULL, "DIRS", "folders that file: URIs may name; unset: file: URIs are refused"},
  {"allow-http", 0, TF_OPTION_FLAG, AT(allow_http), 0, 0, NULL, NULL, "fetch http: and https: URIs"},
  {"allow-private-addresses", 0, TF_OPTION_FLAG, AT(allow_private_addresses), 0, 0, NULL, NULL, "fetch from private, loopback and link-local addresses too"},
  {"fetch-timeout-ms", 0, TF_OPTION_INT, AT(fetch_timeout_ms), 1, 600000, "10000", "ms", "for one http fetch, redirects included"},
  {"tensor-dtype", 0, TF_OPTION_STRING, AT(tensor_dtype), 0, 0, "f32", "f32|f16", "of the vision tokens on the wire"},
  {"ack-timeout-ms", 0, TF_OPTION_INT, AT(ack_timeout_ms), 1, 600000, "10000", "ms", "until an LLM worker must have taken a tensor"},
  {"peer-timeout-ms", 0, TF_OPTION_INT, AT(peer_timeout_ms), 100, 600000, "5000", "ms", "of silence after which a router counts as gone"},
  {"drain-timeout-s", 0, TF_OPTION_INT, AT(drain_timeout_s), 0, 86400, "30", "s", "to finish the jobs at hand after SIGTERM"},
  {"health", 0, TF_OPTION_STRING, AT(health), 0, 0, "127.0.0.1:9102", "ADDRESS", "of /healthz, /readyz and /metrics; off: none"},
  {"log-level", 0, TF_OPTION_CHOICE, AT(log_level), 0, 0, "info", "debug|info|warn|error", "lines below this are not logged"},
};
/* clang-format on */
static const tf_program program = {
    .name = "tokenflex-encoder",
    .synopsis = "[options]",
    .summary = "Turns images into vision tokens for LLM workers, as routers ask.",
    .options = options,
    .option_count = sizeof options / sizeof *options,
};

/* What main owns; freed in the reverse order of making. */
typedef struct process {
  settings settings;
  tf_tensor_dtype dtype;
  tf_reactor *reactor;
  tf_metrics *metrics;
  tf_health *health;
  tf_model_dir model;
  tf_encoder *encoder;
  tf_pool *pool;
  tf_fetcher *fetcher;
  void *zmq_context;
  char instance[TF_INSTANCE_BYTES_MAX + 1];
  tf_encoder_service *service;
} process;

static void on_terminate(void *context, int signal_number) {
  (void)signal_number;
  tf_encoder_service_drain(((process *)context)->service);
}

static tf_code check_settings(process *self, tf_error *error) {
  const char *dtype = self->settings.tensor_dtype != NULL ? self->settings.tensor_dtype : "f32";
  if (strcmp(dtype, "f32") != 0 && strcmp(dtype, "f16") != 0) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--tensor-dtype %.40s: f32 or f16 is expected", dtype);
  }
  self->dtype = dtype[1] == '3' ? TF_TENSOR_F32 : TF_TENSOR_F16;
  return TF_OK;
}

/* Enough decoders to feed the compute threads: decoding takes less than half as long as encoding. */
static int decode_threads(const process *self) {
  if (self->settings.decode_threads != 0) return (int)self->settings.decode_threads;
  int half = tf_pool_threads(self->pool) / 2;
  return half < 2 ? 2 : half > TF_PIPELINE_DECODE_THREADS_MAX ? TF_PIPELINE_DECODE_THREADS_MAX : half;
}

static tf_code start_service(process *self, tf_error *error) {
  const settings *from = &self->settings;
  tf_encoder_service_config config = {.zmq_context = self->zmq_context,
                                      .reactor = self->reactor,
                                      .instance = self->instance,
                                      .model = &self->model,
                                      .routers = from->routers,
                                      .jobs_max = (uint32_t)from->jobs,
                                      .peer_timeout_ms = from->peer_timeout_ms,
                                      .ack_timeout_ms = from->ack_timeout_ms,
                                      .drain_timeout_ms = from->drain_timeout_s * 1000,
                                      .pipeline = {.encoder = self->encoder,
                                                   .pool = self->pool,
                                                   .fetcher = self->fetcher,
                                                   .allow_http = from->allow_http,
                                                   .decode_threads = decode_threads(self),
                                                   .batch_max = (int)from->batch,
                                                   .pixels_max = from->pixels_max,
                                                   .dtype = self->dtype},
                                      .metrics = self->metrics,
                                      .health = self->health};
  return tf_encoder_service_new(&config, &self->service, error);
}

static tf_code start(process *self, tf_error *error) {
  const settings *from = &self->settings;
  tf_fetch_config fetch = {.allow_dirs = from->allow_dirs,
                           .allow_http = from->allow_http,
                           .allow_private_addresses = from->allow_private_addresses,
                           .timeout_ms = from->fetch_timeout_ms,
                           .bytes_max = (size_t)from->image_bytes_max};
  self->reactor = tf_reactor_new();
  self->metrics = tf_metrics_new();
  if (self->reactor == NULL || self->metrics == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  tf_code code = tf_reactor_on_terminate(self->reactor, on_terminate, self);
  if (code != TF_OK) return tf_fail(error, code, "can not handle signals");
  code = tf_health_start(from->health, self->metrics, &self->health, error);
  if (code == TF_OK) tf_health_set_ready(self->health, false, "loading the model");
  if (code == TF_OK) code = tf_model_dir_open(from->model, &self->model, error);
  if (code == TF_OK) code = tf_encoder_load(&self->model, &self->encoder, error);
  if (code == TF_OK) code = tf_fetcher_new(&fetch, &self->fetcher, error);
  if (code != TF_OK) return code;
  self->pool = tf_pool_new((int)from->threads);
  self->zmq_context = zmq_ctx_new();
  if (self->pool == NULL || self->zmq_context == NULL) {
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  }
  tf_instance_make("encoder", self->instance, sizeof self->instance);
  return start_service(self, error);
}

static void stop(process *self) {
  tf_encoder_service_free(&self->service);
  if (self->zmq_context != NULL) zmq_ctx_term(self->zmq_context); /* waits for the sockets' linger, a second at most */
  tf_pool_free(&self->pool);
  tf_fetcher_free(&self->fetcher);
  tf_encoder_free(&self->encoder);
  tf_health_stop(&self->health);
  tf_metrics_free(&self->metrics);
  tf_reactor_free(&self->reactor);
}

int main(int argc, char **argv) {
  process self = {.service = NULL};
  tf_error error = {.code = TF_OK};
  tf_options_outcome outcome = TF_OPTIONS_RUN;
  tf_code code = tf_options_parse(&program, argc, argv, &self.settings, NULL, NULL, &outcome, &error);
  if (code == TF_OK && outcome != TF_OPTIONS_RUN) return 0;
  if (code == TF_OK) code = tf_cpu_use(self.settings.cpu, self.settings.compute, &error);
  if (code == TF_OK) code = check_settings(&self, &error);
  if (code != TF_OK) {
    fprintf(stderr, "tokenflex-encoder: %s (--help shows the options)\n", error.text);
    return 2;
  }
  tf_log_setup("encoder", self.settings.log_level);
  code = start(&self, &error);
  if (code == TF_OK) {
    tf_log_info("started", TF_STR("instance", self.instance), TF_STR("model", self.model.name),
                TF_STR("model_dir", self.model.path), TF_STR("version", TF_VERSION),
                TF_STR("cpu", tf_cpu_name(tf_cpu_level())), TF_STR("compute", tf_compute_name(tf_cpu_compute())),
                TF_INT("threads", tf_pool_threads(self.pool)), TF_INT("decode_threads", decode_threads(&self)),
                TF_INT("batch", self.settings.batch));
    code = tf_reactor_run(self.reactor, &error);
  }
  if (code != TF_OK) fprintf(stderr, "tokenflex-encoder: %s\n", error.text);
  stop(&self);
  return code == TF_OK ? 0 : 1;
}

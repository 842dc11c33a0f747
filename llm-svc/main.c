/* tokenflex-llm: options, model, health endpoint, then the service until SIGTERM.
 * In: argv, environment, --config file. Out: exit status 0 (drained), 1 (could not run), 2 (wrong usage).
 * Signals are blocked before any thread starts, so that they reach the reactor alone. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/log.h"
#include "llm-svc/service.h"
#include "tensor/cpu.h"

typedef struct settings {
  const char *model, *compute, *cpu, *log_level, *health, *tensor_bind, *tensor_advertise;
  tf_string_list routers;
  int64_t threads, kv_tokens, sequences, batch_rows, peer_timeout_ms, drain_timeout_s;
  bool insecure;
} settings;

#define AT(field) offsetof(settings, field)
/* clang-format off */
static const tf_option options[] = {
  {"model", 'm', TF_OPTION_STRING, AT(model), 0, 0, NULL, "DIR", "model folder; unset: the installed one"},
  {"routers", 'r', TF_OPTION_LIST, AT(routers), 0, 0, "tcp://127.0.0.1:7701", "ENDPOINTS", "routers to work for"},
  {"threads", 't', TF_OPTION_INT, AT(threads), 0, 1024, "0", "threads", "that compute; 0: one for each allowed core"},
  {"compute", 0, TF_OPTION_CHOICE, AT(compute), 0, 0, "auto", TF_COMPUTE_CHOICES, "arithmetic of the matrix products; auto: the fastest that keeps the captions' quality"},
  {"cpu", 0, TF_OPTION_CHOICE, AT(cpu), 0, 0, "auto", TF_CPU_CHOICES, "instructions to use; auto: the best that there are"},
  {"tensor-bind", 'b', TF_OPTION_STRING, AT(tensor_bind), 0, 0, "tcp://127.0.0.1:*", "ENDPOINT", "where encoders deliver vision tokens"},
  {"tensor-advertise", 0, TF_OPTION_STRING, AT(tensor_advertise), 0, 0, NULL, "ENDPOINT", "what encoders are told; unset: where --tensor-bind ended up"},
  {"kv-tokens", 0, TF_OPTION_INT, AT(kv_tokens), 64, 16777216, "16384", "tokens", "that the KV cache holds"},
  {"sequences", 's', TF_OPTION_INT, AT(sequences), 1, 1024, "16", "sequences", "in the running batch at most"},
  {"batch-rows", 0, TF_OPTION_INT, AT(batch_rows), 1, 65536, "512", "rows", "of tokens in one step, prefill and decoding together"},
  {"peer-timeout-ms", 0, TF_OPTION_INT, AT(peer_timeout_ms), 100, 600000, "5000", "ms", "of silence after which a router counts as gone"},
  {"drain-timeout-s", 0, TF_OPTION_INT, AT(drain_timeout_s), 0, 86400, "30", "s", "to finish the jobs at hand after SIGTERM"},
  {"insecure", 0, TF_OPTION_FLAG, AT(insecure), 0, 0, NULL, NULL, "bind to addresses that other machines reach, without encryption"},
  {"health", 0, TF_OPTION_STRING, AT(health), 0, 0, "127.0.0.1:9103", "ADDRESS", "of /healthz, /readyz and /metrics; off: none"},
  {"log-level", 0, TF_OPTION_CHOICE, AT(log_level), 0, 0, "info", "debug|info|warn|error", "lines below this are not logged"},
};
/* clang-format on */
static const tf_program program = {
    .name = "tokenflex-llm",
    .synopsis = "[options]",
    .summary = "Writes captions from the vision tokens that encoders deliver.",
    .options = options,
    .option_count = sizeof options / sizeof *options,
};

/* What main owns; freed in the reverse order of making. */
typedef struct process {
  settings settings;
  tf_reactor *reactor;
  tf_metrics *metrics;
  tf_health *health;
  tf_model_dir model;
  tf_pool *pool;
  tf_engine *engine;
  void *zmq_context;
  char instance[TF_INSTANCE_BYTES_MAX + 1];
  tf_llm_service *service;
} process;

static void on_terminate(void *context, int signal_number) {
  (void)signal_number;
  tf_llm_service_drain(((process *)context)->service);
}

static tf_code check_settings(const settings *self, tf_error *error) {
  tf_error why;
  if (tf_wire_endpoint_check(self->tensor_bind, true, &why) != TF_OK) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--tensor-bind: %s", why.text);
  }
  if (!self->insecure && !tf_wire_endpoint_is_local(self->tensor_bind)) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "--tensor-bind %.200s: other machines reach this address; that needs --insecure", self->tensor_bind);
  }
  return TF_OK;
}

/* Slots: what runs, and as many again that wait or are still in the encoder. */
static uint32_t jobs_max(const settings *self) {
  return 2 * (uint32_t)self->sequences;
}

static tf_code load_engine(process *self, tf_error *error) {
  const settings *from = &self->settings;
  tf_engine_config config = {.batch_rows_max = (uint32_t)from->batch_rows,
                             .sequences_max = (uint32_t)from->sequences,
                             .waiting_max = tf_llm_service_jobs_limit(jobs_max(from)),
                             .kv_tokens_max = (uint32_t)from->kv_tokens};
  self->pool = tf_pool_new((int)from->threads);
  if (self->pool == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  return tf_engine_load(&self->model, &config, self->pool, &self->engine, error);
}

static tf_code start_service(process *self, tf_error *error) {
  const settings *from = &self->settings;
  tf_llm_service_config config = {.zmq_context = self->zmq_context,
                                  .reactor = self->reactor,
                                  .instance = self->instance,
                                  .model = &self->model,
                                  .engine = self->engine,
                                  .routers = from->routers,
                                  .tensor_bind = from->tensor_bind,
                                  .tensor_advertise = from->tensor_advertise,
                                  .jobs_max = jobs_max(from),
                                  .kv_tokens_max = (uint32_t)(from->kv_tokens + from->kv_tokens / 2),
                                  .peer_timeout_ms = from->peer_timeout_ms,
                                  .drain_timeout_ms = from->drain_timeout_s * 1000,
                                  .metrics = self->metrics,
                                  .health = self->health};
  return tf_llm_service_new(&config, &self->service, error);
}

static tf_code start(process *self, tf_error *error) {
  const settings *from = &self->settings;
  self->reactor = tf_reactor_new();
  self->metrics = tf_metrics_new();
  if (self->reactor == NULL || self->metrics == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  tf_code code = tf_reactor_on_terminate(self->reactor, on_terminate, self);
  if (code != TF_OK) return tf_fail(error, code, "can not handle signals");
  code = tf_health_start(from->health, self->metrics, &self->health, error);
  if (code == TF_OK) tf_health_set_ready(self->health, false, "loading the model");
  if (code == TF_OK) code = tf_model_dir_open(from->model, &self->model, error);
  if (code == TF_OK) code = load_engine(self, error);
  if (code != TF_OK) return code;
  self->zmq_context = zmq_ctx_new();
  if (self->zmq_context == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  tf_instance_make("llm", self->instance, sizeof self->instance);
  return start_service(self, error);
}

static void stop(process *self) {
  tf_llm_service_free(&self->service);
  if (self->zmq_context != NULL) zmq_ctx_term(self->zmq_context); /* waits for the sockets' linger, a second at most */
  tf_engine_free(&self->engine);
  tf_pool_free(&self->pool);
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
  if (code == TF_OK) code = check_settings(&self.settings, &error);
  if (code != TF_OK) {
    fprintf(stderr, "tokenflex-llm: %s (--help shows the options)\n", error.text);
    return 2;
  }
  tf_log_setup("llm", self.settings.log_level);
  code = start(&self, &error);
  if (code == TF_OK) {
    tf_log_info("started", TF_STR("instance", self.instance), TF_STR("model", self.model.name),
                TF_STR("model_dir", self.model.path), TF_STR("version", TF_VERSION),
                TF_STR("cpu", tf_cpu_name(tf_cpu_level())), TF_STR("compute", tf_compute_name(tf_cpu_compute())),
                TF_STR("tensor_endpoint", tf_llm_service_endpoint(self.service)),
                TF_INT("threads", tf_pool_threads(self.pool)), TF_INT("sequences", self.settings.sequences),
                TF_INT("kv_tokens", self.settings.kv_tokens));
    code = tf_reactor_run(self.reactor, &error);
  }
  if (code != TF_OK) fprintf(stderr, "tokenflex-llm: %s\n", error.text);
  stop(&self);
  return code == TF_OK ? 0 : 1;
}

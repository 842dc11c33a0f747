/* tokenflex-llm: its options, the model, then the service until SIGTERM.
 * In: argv, environment, --config file. Out: exit status 0 (drained), 1 (could not run), 2 (wrong usage).
 * What it shares with the other services is in proto/service.c. */
#include <stddef.h>

#include "common/log.h"
#include "llm-svc/service.h"
#include "proto/service.h"
#include "tensor/cpu.h"

typedef struct settings {
  tf_service_options common;
  const char *model, *compute, *cpu, *cache_dir, *tensor_bind, *tensor_advertise;
  tf_string_list routers;
  int64_t threads, kv_tokens, cache_dir_mib, sequences, batch_rows, peer_timeout_ms, drain_timeout_s;
  bool insecure;
} settings;

#define AT(field) offsetof(settings, field)
/* clang-format off */
static const tf_option options[] = {
  {"model", 'm', TF_OPTION_STRING, AT(model), 0, 0, NULL, "DIR", "model folder; unset: the installed one"},
  {"routers", 'r', TF_OPTION_LIST, AT(routers), 0, 0, "tcp://127.0.0.1:7701", "ENDPOINTS", "routers to work for; dns+tcp://NAME:PORT: all addresses of a name, as they change"},
  {"threads", 't', TF_OPTION_INT, AT(threads), 0, 1024, "0", "threads", "that compute; 0: one for each allowed core"},
  {"compute", 0, TF_OPTION_CHOICE, AT(compute), 0, 0, "auto", TF_COMPUTE_CHOICES, "arithmetic of the matrix products; auto: the fastest that keeps the captions' quality"},
  {"cpu", 0, TF_OPTION_CHOICE, AT(cpu), 0, 0, "auto", TF_CPU_CHOICES, "instructions to use; auto: the best that there are"},
  {"cache-dir", 0, TF_OPTION_STRING, AT(cache_dir), 0, 0, "off", "DIR", "where weights are kept as the kernels want them, for the next start and for others on this machine; off: nowhere"},
  {"cache-dir-mib", 0, TF_OPTION_INT, AT(cache_dir_mib), 1, 1048576, "2048", "MiB", "that the weights kept in --cache-dir may take, of all programs and models; those that nobody has used for longest go first"},
  {"tensor-bind", 'b', TF_OPTION_STRING, AT(tensor_bind), 0, 0, "tcp://127.0.0.1:*", "ENDPOINT", "where encoders deliver vision tokens"},
  {"tensor-advertise", 0, TF_OPTION_STRING, AT(tensor_advertise), 0, 0, NULL, "ENDPOINT", "what encoders are told; unset: where --tensor-bind ended up"},
  {"kv-tokens", 0, TF_OPTION_INT, AT(kv_tokens), 64, 16777216, "16384", "tokens", "that the KV cache holds"},
  {"sequences", 's', TF_OPTION_INT, AT(sequences), 1, 1024, "16", "sequences", "in the running batch at most"},
  {"batch-rows", 0, TF_OPTION_INT, AT(batch_rows), 1, 65536, "512", "rows", "of tokens in one step, prefill and decoding together"},
  {"peer-timeout-ms", 0, TF_OPTION_INT, AT(peer_timeout_ms), 100, 600000, "5000", "ms", "of silence after which a router counts as gone"},
  {"drain-timeout-s", 0, TF_OPTION_INT, AT(drain_timeout_s), 0, 86400, "30", "s", "to finish the jobs at hand after SIGTERM"},
  {"insecure", 0, TF_OPTION_FLAG, AT(insecure), 0, 0, NULL, NULL, "bind to addresses that other machines reach, without encryption"},
  TF_SERVICE_CONNECTS_ROW(settings, common),
  TF_SERVICE_BINDS_ROW(settings, common),
  TF_SERVICE_ROWS(settings, common, "127.0.0.1:9103"),
};
/* clang-format on */
/* What main owns; freed in the reverse order of making. */
typedef struct process {
  settings settings;
  tf_model_dir model;
  tf_pool *pool;
  tf_engine *engine;
  tf_llm_service *service;
} process;

static tf_code check(void *context, tf_error *error) {
  const settings *from = &((process *)context)->settings;
  tf_code code = tf_cpu_use(from->cpu, from->compute, error);
  if (code != TF_OK) return code;
  return tf_curve_check_bind(&from->common.curve, "tensor-bind", from->tensor_bind, from->insecure, error);
}

/* Slots: what runs, and half as many again that wait or are still in the encoder: enough to refill the batch without a
 * pause, few enough that what the policy decides is soon felt. */
static uint32_t jobs_max(const settings *self) {
  return (uint32_t)(self->sequences + (self->sequences + 1) / 2);
}

static tf_code load_engine(process *self, tf_error *error) {
  const settings *from = &self->settings;
  tf_engine_config config = {.batch_rows_max = (uint32_t)from->batch_rows,
                             .sequences_max = (uint32_t)from->sequences,
                             .waiting_max = tf_llm_service_jobs_limit(jobs_max(from)),
                             .kv_tokens_max = (uint32_t)from->kv_tokens,
                             .cache = {.folder = from->cache_dir, .bytes_max = (uint64_t)from->cache_dir_mib << 20}};
  self->pool = tf_pool_new((int)from->threads);
  if (self->pool == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  return tf_engine_load(&self->model, &config, self->pool, &self->engine, error);
}

static tf_code start_service(process *self, const tf_service *service, tf_error *error) {
  const settings *from = &self->settings;
  tf_llm_service_config config = {.zmq_context = service->zmq_context,
                                  .curve = service->curve,
                                  .reactor = service->reactor,
                                  .instance = service->instance,
                                  .model = &self->model,
                                  .engine = self->engine,
                                  .routers = from->routers,
                                  .tensor_bind = from->tensor_bind,
                                  .tensor_advertise = from->tensor_advertise,
                                  .jobs_max = jobs_max(from),
                                  .kv_tokens_max = (uint32_t)(from->kv_tokens + from->kv_tokens / 2),
                                  .peer_timeout_ms = from->peer_timeout_ms,
                                  .drain_timeout_ms = from->drain_timeout_s * 1000,
                                  .metrics = service->metrics,
                                  .health = service->health};
  return tf_llm_service_new(&config, &self->service, error);
}

static tf_code start(void *context, const tf_service *service, tf_error *error) {
  process *self = context;
  tf_health_set_ready(service->health, false, "loading the model");
  tf_code code = tf_model_dir_open(self->settings.model, &self->model, error);
  if (code == TF_OK) code = load_engine(self, error);
  if (code == TF_OK) code = start_service(self, service, error);
  if (code != TF_OK) return code;
  tf_log_info("started", TF_STR("instance", service->instance), TF_STR("model", self->model.name),
              TF_STR("model_dir", self->model.path), TF_STR("version", TF_VERSION),
              TF_STR("cpu", tf_cpu_name(tf_cpu_level())), TF_STR("compute", tf_compute_name(tf_cpu_compute())),
              TF_STR("tensor_endpoint", tf_llm_service_endpoint(self->service)),
              TF_INT("threads", tf_pool_threads(self->pool)), TF_INT("sequences", self->settings.sequences),
              TF_INT("kv_tokens", self->settings.kv_tokens), TF_STR("curve", service->curve ? "on" : "off"));
  return TF_OK;
}

static void drain(void *context) {
  tf_llm_service_drain(((process *)context)->service);
}

static void stop(void *context) {
  process *self = context;
  tf_llm_service_free(&self->service);
  tf_engine_free(&self->engine);
  tf_pool_free(&self->pool);
}

static const tf_service_program program = {
    .role = "llm",
    .program = {.name = "tokenflex-llm",
                .synopsis = "[options]",
                .summary = "Writes captions from the vision tokens that encoders deliver.",
                .options = options,
                .option_count = sizeof options / sizeof *options},
    .options = offsetof(settings, common),
    .check = check,
    .start = start,
    .drain = drain,
    .stop = stop,
};

int main(int argc, char **argv) {
  process self = {.service = NULL};
  return tf_service_run(&program, argc, argv, &self.settings, &self);
}

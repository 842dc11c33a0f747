/* tokenflex-encoder: its options, the model, then the service until SIGTERM.
 * In: argv, environment, --config file. Out: exit status 0 (drained), 1 (could not run), 2 (wrong usage).
 * What it shares with the other services is in proto/service.c. */
#include <stddef.h>
#include <string.h>

#include "common/log.h"
#include "encoder-svc/service.h"
#include "proto/service.h"
#include "tensor/cpu.h"

typedef struct settings {
  tf_service_options common;
  const char *model, *compute, *cpu, *cache_dir, *tensor_dtype;
  tf_string_list routers, allow_dirs;
  int64_t threads, decode_threads, batch, jobs, feature_cache_mib, cache_dir_mib, pixels_max, image_bytes_max;
  int64_t fetch_timeout_ms, ack_timeout_ms, peer_timeout_ms, drain_timeout_s;
  bool allow_http, allow_private_addresses;
} settings;

#define AT(field) offsetof(settings, field)
/* clang-format off */
static const tf_option options[] = {
  {"model", 'm', TF_OPTION_STRING, AT(model), 0, 0, NULL, "DIR", "model folder; unset: the installed one"},
  {"routers", 'r', TF_OPTION_LIST, AT(routers), 0, 0, "tcp://127.0.0.1:7701", "ENDPOINTS", "routers to work for; dns+tcp://NAME:PORT: all addresses of a name, as they change"},
  {"threads", 't', TF_OPTION_INT, AT(threads), 0, 1024, "0", "threads", "that encode; 0: one for each allowed core"},
  {"compute", 0, TF_OPTION_CHOICE, AT(compute), 0, 0, "auto", TF_COMPUTE_CHOICES, "arithmetic of the matrix products; auto: the fastest that keeps the captions' quality"},
  {"cpu", 0, TF_OPTION_CHOICE, AT(cpu), 0, 0, "auto", TF_CPU_CHOICES, "instructions to use; auto: the best that there are"},
  {"cache-dir", 0, TF_OPTION_STRING, AT(cache_dir), 0, 0, "off", "DIR", "where weights are kept as the kernels want them, for the next start and for others on this machine; off: nowhere"},
  {"cache-dir-mib", 0, TF_OPTION_INT, AT(cache_dir_mib), 1, 1048576, "2048", "MiB", "that the weights kept in --cache-dir may take, of all programs and models; those that nobody has used for longest go first"},
  {"decode-threads", 0, TF_OPTION_INT, AT(decode_threads), 0, TF_PIPELINE_DECODE_THREADS_MAX, "0", "threads", "that fetch files and decode; 0: half the allowed cores, at least 2"},
  {"batch", 'b', TF_OPTION_INT, AT(batch), 1, TF_PIPELINE_BATCH_MAX, "4", "images", "in one pass of the vision encoder at most"},
  {"jobs", 'j', TF_OPTION_INT, AT(jobs), 0, 4096, "0", "jobs", "taken at once, over all routers; 0: decode threads + 2 x batch"},
  {"feature-cache-mib", 0, TF_OPTION_INT, AT(feature_cache_mib), 0, 1048576, "32", "MiB", "of the vision encoder's output for the last pictures: one that comes again is not computed again; 0: none"},
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
  TF_SERVICE_CONNECTS_ROW(settings, common),
  TF_SERVICE_ROWS(settings, common, "127.0.0.1:9102"),
};
/* clang-format on */
/* What main owns; freed in the reverse order of making. */
typedef struct process {
  settings settings;
  tf_tensor_dtype dtype;
  tf_model_dir model;
  tf_encoder *encoder;
  tf_pool *pool;
  tf_fetcher *fetcher;
  tf_feature_cache *cache; /* NULL: none */
  tf_encoder_service *service;
} process;

static tf_code check(void *context, tf_error *error) {
  process *self = context;
  const char *dtype = self->settings.tensor_dtype != NULL ? self->settings.tensor_dtype : "f32";
  if (strcmp(dtype, "f32") != 0 && strcmp(dtype, "f16") != 0) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--tensor-dtype %.40s: f32 or f16 is expected", dtype);
  }
  self->dtype = dtype[1] == '3' ? TF_TENSOR_F32 : TF_TENSOR_F16;
  return tf_cpu_use(self->settings.cpu, self->settings.compute, error);
}

/* Enough decoders to feed the compute threads: decoding takes less than half as long as encoding. */
static int decode_threads(const process *self) {
  if (self->settings.decode_threads != 0) return (int)self->settings.decode_threads;
  int half = tf_pool_threads(self->pool) / 2;
  return half < 2 ? 2 : half > TF_PIPELINE_DECODE_THREADS_MAX ? TF_PIPELINE_DECODE_THREADS_MAX : half;
}

static tf_code start_service(process *self, const tf_service *service, tf_error *error) {
  const settings *from = &self->settings;
  tf_encoder_service_config config = {.zmq_context = service->zmq_context,
                                      .curve = service->curve,
                                      .reactor = service->reactor,
                                      .instance = service->instance,
                                      .model = &self->model,
                                      .routers = from->routers,
                                      .jobs_max = (uint32_t)from->jobs,
                                      .peer_timeout_ms = from->peer_timeout_ms,
                                      .ack_timeout_ms = from->ack_timeout_ms,
                                      .drain_timeout_ms = from->drain_timeout_s * 1000,
                                      .pipeline = {.encoder = self->encoder,
                                                   .pool = self->pool,
                                                   .fetcher = self->fetcher,
                                                   .cache = self->cache,
                                                   .allow_http = from->allow_http,
                                                   .decode_threads = decode_threads(self),
                                                   .batch_max = (int)from->batch,
                                                   .pixels_max = from->pixels_max,
                                                   .dtype = self->dtype},
                                      .metrics = service->metrics,
                                      .health = service->health};
  return tf_encoder_service_new(&config, &self->service, error);
}

/* A model of which not one picture fits is served without. */
static tf_code make_cache(process *self, tf_metrics *metrics, tf_error *error) {
  size_t bytes_max = (size_t)self->settings.feature_cache_mib << 20;
  if (bytes_max == 0) return TF_OK;
  tf_code code = tf_feature_cache_new(tf_encoder_feature_count(self->encoder), bytes_max, metrics, &self->cache, error);
  if (code != TF_ERR_INVALID_ARGUMENT) return code;
  tf_log_warn("feature_cache_off", TF_STR("reason", error->text));
  return TF_OK;
}

static tf_code start(void *context, const tf_service *service, tf_error *error) {
  process *self = context;
  const settings *from = &self->settings;
  tf_fetch_config fetch = {.allow_dirs = from->allow_dirs,
                           .allow_http = from->allow_http,
                           .allow_private_addresses = from->allow_private_addresses,
                           .timeout_ms = from->fetch_timeout_ms,
                           .bytes_max = (size_t)from->image_bytes_max};
  tf_pack_place cache = {.folder = from->cache_dir, .bytes_max = (uint64_t)from->cache_dir_mib << 20};
  tf_health_set_ready(service->health, false, "loading the model");
  tf_code code = tf_model_dir_open(from->model, &self->model, error);
  if (code == TF_OK) code = tf_encoder_load(&self->model, &cache, &self->encoder, error);
  if (code == TF_OK) code = make_cache(self, service->metrics, error);
  if (code == TF_OK) code = tf_fetcher_new(&fetch, &self->fetcher, error);
  if (code != TF_OK) return code;
  self->pool = tf_pool_new((int)from->threads);
  if (self->pool == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  code = start_service(self, service, error);
  if (code != TF_OK) return code;
  tf_log_info("started", TF_STR("instance", service->instance), TF_STR("model", self->model.name),
              TF_STR("model_dir", self->model.path), TF_STR("version", TF_VERSION),
              TF_STR("cpu", tf_cpu_name(tf_cpu_level())), TF_STR("compute", tf_compute_name(tf_cpu_compute())),
              TF_INT("threads", tf_pool_threads(self->pool)), TF_INT("decode_threads", decode_threads(self)),
              TF_INT("batch", from->batch), TF_INT("feature_cache_mib", from->feature_cache_mib),
              TF_STR("curve", service->curve ? "on" : "off"));
  return TF_OK;
}

static void drain(void *context) {
  tf_encoder_service_drain(((process *)context)->service);
}

static void stop(void *context) {
  process *self = context;
  tf_encoder_service_free(&self->service);
  tf_pool_free(&self->pool);
  tf_fetcher_free(&self->fetcher);
  tf_feature_cache_free(&self->cache);
  tf_encoder_free(&self->encoder);
}

static const tf_service_program program = {
    .role = "encoder",
    .program = {.name = "tokenflex-encoder",
                .synopsis = "[options]",
                .summary = "Turns images into vision tokens for LLM workers, as routers ask.",
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

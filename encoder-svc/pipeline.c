/* An encoder's threads. In: jobs by mailbox. Out: jobs by mailbox, each with a tensor or an error that names the image.
 * Every mailbox holds jobs_max items, and no more jobs than that are inside: a push between stages never fails.
 * http has threads of its own, so that a slow server never keeps a local file waiting. */
#include "encoder-svc/pipeline.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/clock.h"
#include "common/log.h"
#include "encoder-svc/meter.h"
#include "tensor/tensor.h"

enum {
  WAIT_MS = 200,            /* of an idle thread, before it looks whether it should end */
  MATES_WAIT_MS = 2,        /* for more images of a batch, while some are being decoded */
  COMPUTE_STALL_MS = 120000 /* one batch takes well under a second on any machine that is of use */
};

typedef struct count_series {
  uint32_t vision_tokens;
  tf_metric *decode, *encode;
} count_series;

struct tf_pipeline {
  tf_pipeline_config config;
  tf_mailbox *fetching, *decoding, *ready, *finished;
  pthread_t fetch_threads[TF_PIPELINE_FETCH_THREADS], decode_threads[TF_PIPELINE_DECODE_THREADS_MAX], compute_thread;
  int fetch_count, decode_count;
  bool compute_started;
  atomic_size_t inside, decode_busy;
  int32_t size;
  float *batch_pixels;   /* [batch_max, 3, size, size] */
  float *batch_features; /* [batch_max, tf_encoder_feature_count] */
  count_series series[TF_TOKEN_COUNTS_MAX];
  size_t series_count;
  pthread_mutex_t meter_lock; /* held for a few microseconds */
  tf_encoder_meter meter;
  tf_metric *fetch_seconds, *batch_size, *depth_fetch, *depth_decode, *depth_encode;
};

/* ---- what every stage does ---- */

static const tf_job *job_of(const tf_encode_job *job) {
  return &job->message->u.job;
}

/* The image as a person knows it: path, URI or "inline image". */
static void image_name(const tf_encode_job *job, char *out, size_t out_bytes) {
  const char *uri = job_of(job)->uri;
  tf_uri parsed;
  if (uri[0] == '\0') {
    snprintf(out, out_bytes, "inline image");
  } else if (tf_uri_parse(uri, &parsed, NULL) == TF_OK && parsed.kind == TF_URI_FILE) {
    snprintf(out, out_bytes, "%s", parsed.path);
  } else {
    snprintf(out, out_bytes, "%s", uri);
  }
}

static void finish(tf_pipeline *self, tf_encode_job *job) {
  free(job->bytes);
  free(job->pixels);
  tf_features_release(&job->features);
  job->bytes = NULL;
  job->pixels = NULL;
  job->idle_since_us = tf_now_us();
  bool pushed = tf_mailbox_push(self->finished, job);
  assert(pushed);
  (void)pushed;
}

static void hand_on(tf_mailbox *next, tf_encode_job *job) {
  job->idle_since_us = tf_now_us();
  bool pushed = tf_mailbox_push(next, job);
  assert(pushed);
  (void)pushed;
}

/* Ends the wait for a stage. False: the job is cancelled or too late, and job->error says so. */
static bool begin_stage(tf_encode_job *job) {
  job->timing.wait_ms += (float)(tf_now_us() - job->idle_since_us) / 1000;
  if (atomic_load(&job->cancelled)) {
    tf_fail(&job->error, TF_ERR_CANCELLED, "cancelled");
    return false;
  }
  int64_t deadline_ms = job_of(job)->deadline_unix_ms, now_ms = tf_unix_ms();
  if (deadline_ms != 0 && now_ms > deadline_ms) {
    tf_fail(&job->error, TF_ERR_DEADLINE, "the deadline passed %lld ms ago in the encoder",
            (long long)(now_ms - deadline_ms));
    return false;
  }
  return true;
}

static const count_series *series_of(tf_pipeline *self, uint32_t vision_tokens) {
  for (size_t i = 0; i < self->series_count; i++) {
    if (self->series[i].vision_tokens == vision_tokens) return &self->series[i];
  }
  return NULL;
}

/* ---- fetch ---- */

static bool is_http(const tf_encode_job *job) {
  return strncasecmp(job_of(job)->uri, "http", 4) == 0;
}

static tf_code fetch(tf_pipeline *self, tf_encode_job *job) {
  int64_t begin_us = tf_now_us();
  tf_code code =
      tf_fetch(self->config.fetcher, job_of(job)->uri, &job->cancelled, &job->bytes, &job->bytes_size, &job->error);
  int64_t taken_us = tf_now_us() - begin_us;
  job->timing.fetch_ms += (float)taken_us / 1000;
  tf_metric_observe(self->fetch_seconds, (double)taken_us / 1e6);
  pthread_mutex_lock(&self->meter_lock);
  tf_encoder_meter_fetched(&self->meter, (double)taken_us / 1000);
  pthread_mutex_unlock(&self->meter_lock);
  return code;
}

static void *fetch_main(void *context) {
  tf_pipeline *self = context;
  while (!tf_mailbox_is_closed(self->fetching) || tf_mailbox_count(self->fetching) > 0) {
    tf_encode_job *job = tf_mailbox_pop(self->fetching, WAIT_MS);
    if (job == NULL) continue;
    if (begin_stage(job) && fetch(self, job) == TF_OK) {
      hand_on(self->decoding, job);
    } else {
      finish(self, job);
    }
  }
  return NULL;
}

/* ---- decode and preprocess ---- */

static tf_code decode(tf_pipeline *self, tf_encode_job *job, const uint8_t *data, size_t size, tf_error *error) {
  tf_image image = {0};
  tf_image_limits limits = {.pixels_max = self->config.pixels_max, .side_wanted = self->size};
  tf_code code = tf_image_decode(data, size, &limits, &image, error);
  if (code != TF_OK) return code;
  if (image.warned) snprintf(job->warning, sizeof job->warning, "%s", image.warning);
  job->pixels = malloc((size_t)3 * (size_t)self->size * (size_t)self->size * sizeof *job->pixels);
  if (job->pixels == NULL) code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the pixels");
  if (code == TF_OK) code = tf_encoder_preprocess(self->config.encoder, &image, job->pixels, error);
  tf_image_free(&image);
  return code;
}

/* Whether the picture's features are in the cache; else job->digest is what they are to be kept under. */
static bool look_up(tf_pipeline *self, tf_encode_job *job, const uint8_t *data, size_t size) {
  if (self->config.cache == NULL || size == 0) return false;
  job->digest = tf_picture_digest_of(data, size);
  job->features = tf_feature_cache_get(self->config.cache, &job->digest);
  if (job->features == NULL) return false;
  snprintf(job->warning, sizeof job->warning, "%s", tf_features_warning(job->features));
  return true;
}

static tf_code decode_job(tf_pipeline *self, tf_encode_job *job) {
  const uint8_t *data = job->bytes;
  size_t size = job->bytes_size;
  if (job_of(job)->uri[0] == '\0') {
    data = job->message->has_payload ? zmq_msg_data(&job->message->payload) : NULL;
    size = job->message->has_payload ? zmq_msg_size(&job->message->payload) : 0;
  }
  int64_t begin_us = tf_now_us();
  tf_error reason = {.code = TF_OK};
  tf_code code = TF_OK;
  bool cached = look_up(self, job, data, size);
  if (size == 0)
    code = tf_fail(&reason, TF_ERR_IMAGE_EMPTY, "%s", tf_code_text(TF_ERR_IMAGE_EMPTY));
  else if (!cached)
    code = decode(self, job, data, size, &reason);
  int64_t taken_us = tf_now_us() - begin_us;
  free(job->bytes); /* not needed any more, and the job may wait for a while */
  job->bytes = NULL;
  job->timing.decode_ms += (float)taken_us / 1000;
  if (cached) return TF_OK;
  const count_series *series = series_of(self, job_of(job)->vision_tokens);
  if (series != NULL) tf_metric_observe(series->decode, (double)taken_us / 1e6);
  if (code == TF_OK) {
    pthread_mutex_lock(&self->meter_lock);
    tf_encoder_meter_decoded(&self->meter, (double)taken_us / 1000);
    pthread_mutex_unlock(&self->meter_lock);
    return TF_OK;
  }
  char name[TF_URI_BYTES_MAX + 1];
  image_name(job, name, sizeof name);
  return tf_fail(&job->error, code, "%.250s: %.250s", name, reason.text);
}

static void *decode_main(void *context) {
  tf_pipeline *self = context;
  while (!tf_mailbox_is_closed(self->decoding) || tf_mailbox_count(self->decoding) > 0) {
    tf_encode_job *job = tf_mailbox_pop(self->decoding, WAIT_MS);
    if (job == NULL) continue;
    atomic_fetch_add(&self->decode_busy, 1);
    bool ok = begin_stage(job);
    if (ok && job_of(job)->uri[0] != '\0' && job->bytes == NULL) ok = fetch(self, job) == TF_OK;
    if (ok && decode_job(self, job) == TF_OK) {
      hand_on(self->ready, job);
    } else {
      finish(self, job);
    }
    atomic_fetch_sub(&self->decode_busy, 1);
  }
  return NULL;
}

/* ---- encode ---- */

/* Fills jobs with what is ready, up to the batch; waits a moment for mates only while some are on their way. */
static int collect(tf_pipeline *self, tf_encode_job **jobs) {
  int count = 0;
  tf_encode_job *job = tf_mailbox_pop(self->ready, WAIT_MS);
  int64_t until_us = tf_now_us() + MATES_WAIT_MS * 1000;
  while (job != NULL) {
    if (begin_stage(job)) {
      jobs[count++] = job;
    } else {
      finish(self, job);
    }
    if (count == self->config.batch_max) break;
    job = tf_mailbox_try_pop(self->ready);
    int64_t left_us = until_us - tf_now_us();
    if (job == NULL && left_us > 0 && atomic_load(&self->decode_busy) > 0) {
      job = tf_mailbox_pop(self->ready, (left_us + 999) / 1000);
    }
  }
  return count;
}

/* Replaces job->tensor by f16 values where the wire wants them. */
static tf_code convert_tensor(const tf_pipeline *self, tf_encode_job *job, size_t elements) {
  job->tensor_bytes = elements * sizeof(float);
  if (self->config.dtype == TF_TENSOR_F32) return TF_OK;
  uint16_t *halves = malloc(elements * sizeof *halves);
  if (halves == NULL) return tf_fail(&job->error, TF_ERR_OUT_OF_MEMORY, "no memory for the tensor");
  const float *values = job->tensor;
  for (size_t i = 0; i < elements; i++) halves[i] = tf_f32_to_f16(values[i]);
  free(job->tensor);
  job->tensor = halves;
  job->tensor_bytes = elements * sizeof *halves;
  return TF_OK;
}

/* job->tensor, of the job's number of tokens, from features. */
static tf_code project(tf_pipeline *self, tf_encode_job *job, const float *features, tf_error *error) {
  uint32_t vision_tokens = job_of(job)->vision_tokens;
  job->tensor = malloc(vision_tokens * (size_t)tf_encoder_llm_width(self->config.encoder) * sizeof(float));
  if (job->tensor == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a tensor");
  return tf_encoder_project(self->config.encoder, self->config.pool, features, vision_tokens, job->tensor, error);
}

static tf_code run_encoder(tf_pipeline *self, tf_encode_job **jobs, int count, tf_error *error) {
  size_t image = (size_t)3 * (size_t)self->size * (size_t)self->size;
  size_t features = tf_encoder_feature_count(self->config.encoder);
  for (int i = 0; i < count; i++) {
    memcpy(self->batch_pixels + (size_t)i * image, jobs[i]->pixels, image * sizeof(float));
    free(jobs[i]->pixels);
    jobs[i]->pixels = NULL;
  }
  tf_code code =
      tf_encoder_see(self->config.encoder, self->config.pool, self->batch_pixels, count, self->batch_features, error);
  for (int i = 0; code == TF_OK && i < count; i++) {
    const float *values = self->batch_features + (size_t)i * features;
    if (self->config.cache != NULL)
      tf_feature_cache_put(self->config.cache, &jobs[i]->digest, values, jobs[i]->warning);
    code = project(self, jobs[i], values, error);
  }
  return code;
}

/* What every job gets, however its features came. taken_us: its latency; work_us: its own share of it. */
static void end_job(tf_pipeline *self, tf_encode_job *job, tf_code code, const tf_error *reason, int64_t taken_us,
                    int64_t work_us) {
  size_t width = (size_t)tf_encoder_llm_width(self->config.encoder);
  job->timing.encode_ms += (float)taken_us / 1000;
  const count_series *series = series_of(self, job_of(job)->vision_tokens);
  if (series != NULL) tf_metric_observe(series->encode, (double)work_us / 1e6);
  if (code == TF_OK) {
    job->error.code = convert_tensor(self, job, job_of(job)->vision_tokens * width);
  } else {
    job->error = *reason;
  }
  if (job->error.code != TF_OK) {
    free(job->tensor);
    job->tensor = NULL;
  }
  finish(self, job);
}

static void meter_batch(tf_pipeline *self, tf_encode_job **jobs, int count, int64_t taken_us) {
  uint64_t vision_tokens = 0;
  for (int i = 0; i < count; i++) vision_tokens += job_of(jobs[i])->vision_tokens;
  pthread_mutex_lock(&self->meter_lock);
  tf_encoder_meter_batch(&self->meter, count, vision_tokens, (double)taken_us / 1000);
  pthread_mutex_unlock(&self->meter_lock);
}

static void encode_batch(tf_pipeline *self, tf_encode_job **jobs, int count) {
  tf_error reason = {.code = TF_OK};
  int64_t begin_us = tf_now_us();
  tf_code code = run_encoder(self, jobs, count, &reason);
  int64_t taken_us = tf_now_us() - begin_us;
  tf_metric_observe(self->batch_size, count);
  if (code == TF_OK) meter_batch(self, jobs, count, taken_us);
  /* Each waited for the whole batch: that is its latency. */
  for (int i = 0; i < count; i++) end_job(self, jobs[i], code, &reason, taken_us, taken_us / count);
}

static void encode_cached(tf_pipeline *self, tf_encode_job *job) {
  tf_error reason = {.code = TF_OK};
  int64_t begin_us = tf_now_us();
  tf_code code = project(self, job, tf_features_values(job->features), &reason);
  int64_t taken_us = tf_now_us() - begin_us;
  if (code == TF_OK) {
    pthread_mutex_lock(&self->meter_lock);
    tf_encoder_meter_cached(&self->meter, job_of(job)->vision_tokens, (double)taken_us / 1000);
    pthread_mutex_unlock(&self->meter_lock);
  }
  end_job(self, job, code, &reason, taken_us, taken_us);
}

/* Ends the jobs whose features are there already, at once: they need not wait for the others' ViT pass. Returns how
 * many are left, at the front. */
static int encode_all_cached(tf_pipeline *self, tf_encode_job **jobs, int count) {
  int left = 0;
  for (int i = 0; i < count; i++) {
    if (jobs[i]->features != NULL)
      encode_cached(self, jobs[i]);
    else
      jobs[left++] = jobs[i];
  }
  return left;
}

static void *compute_main(void *context) {
  tf_pipeline *self = context;
  tf_encode_job *jobs[TF_PIPELINE_BATCH_MAX];
  while (!tf_mailbox_is_closed(self->ready) || tf_mailbox_count(self->ready) > 0) {
    tf_health_beat(self->config.health, 0, COMPUTE_STALL_MS);
    int count = encode_all_cached(self, jobs, collect(self, jobs));
    if (count > 0) encode_batch(self, jobs, count);
  }
  tf_health_beat(self->config.health, 0, 0);
  return NULL;
}

/* ---- life ---- */

static void make_metrics(tf_pipeline *self, const tf_encoder *encoder) {
  static const double seconds[] = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10};
  static const double images[] = {1, 2, 4, 8, 16, 32, 64};
  static const char name[] = "tokenflex_stage_seconds", help[] = "Time of one image in a stage";
  static const char depth[] = "tokenflex_queue_depth", depth_help[] = "Jobs that wait inside this process";
  enum { SECONDS = sizeof seconds / sizeof *seconds };
  tf_metrics *metrics = self->config.metrics;
  for (uint32_t n = 1; n * n <= TF_VISION_TOKENS_MAX; n++) {
    size_t count = self->series_count;
    if (!tf_encoder_supports(encoder, n * n) || count == TF_TOKEN_COUNTS_MAX) continue;
    char labels[64];
    self->series[count].vision_tokens = n * n;
    snprintf(labels, sizeof labels, "stage=\"decode\",vision_tokens=\"%u\"", n * n);
    self->series[count].decode = tf_metrics_histogram(metrics, name, labels, help, seconds, SECONDS);
    snprintf(labels, sizeof labels, "stage=\"encode\",vision_tokens=\"%u\"", n * n);
    self->series[count].encode = tf_metrics_histogram(metrics, name, labels, help, seconds, SECONDS);
    self->series_count++;
  }
  self->fetch_seconds = tf_metrics_histogram(metrics, name, "stage=\"fetch\"", help, seconds, SECONDS);
  self->batch_size = tf_metrics_histogram(metrics, "tokenflex_batch_images", "", "Images in one pass of the encoder",
                                          images, sizeof images / sizeof *images);
  self->depth_fetch = tf_metrics_gauge(metrics, depth, "stage=\"fetch\"", depth_help);
  self->depth_decode = tf_metrics_gauge(metrics, depth, "stage=\"decode\"", depth_help);
  self->depth_encode = tf_metrics_gauge(metrics, depth, "stage=\"encode\"", depth_help);
}

static tf_code start_threads(tf_pipeline *self, tf_error *error) {
  int failed = 0, fetch_threads = self->config.allow_http ? TF_PIPELINE_FETCH_THREADS : 0;
  while (failed == 0 && self->fetch_count < fetch_threads) {
    failed = pthread_create(&self->fetch_threads[self->fetch_count], NULL, fetch_main, self);
    if (failed == 0) self->fetch_count++;
  }
  while (failed == 0 && self->decode_count < self->config.decode_threads) {
    failed = pthread_create(&self->decode_threads[self->decode_count], NULL, decode_main, self);
    if (failed == 0) self->decode_count++;
  }
  if (failed == 0) failed = pthread_create(&self->compute_thread, NULL, compute_main, self);
  self->compute_started = failed == 0;
  return failed == 0 ? TF_OK : tf_fail(error, TF_ERR_INTERNAL, "can not start a thread: %s", strerror(failed));
}

tf_code tf_pipeline_new(const tf_pipeline_config *config, tf_pipeline **out, tf_error *error) {
  assert(config->decode_threads >= 1 && config->decode_threads <= TF_PIPELINE_DECODE_THREADS_MAX);
  assert(config->batch_max >= 1 && config->batch_max <= TF_PIPELINE_BATCH_MAX && config->jobs_max > 0);
  *out = NULL;
  tf_pipeline *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the pipeline");
  self->config = *config;
  self->size = tf_encoder_image_size(config->encoder);
  self->fetching = tf_mailbox_new(config->jobs_max);
  self->decoding = tf_mailbox_new(config->jobs_max);
  self->ready = tf_mailbox_new(config->jobs_max);
  self->finished = tf_mailbox_new(config->jobs_max);
  self->batch_pixels = malloc((size_t)config->batch_max * 3 * (size_t)self->size * (size_t)self->size * sizeof(float));
  self->batch_features = malloc((size_t)config->batch_max * tf_encoder_feature_count(config->encoder) * sizeof(float));
  pthread_mutex_init(&self->meter_lock, NULL);
  tf_encoder_meter_init(&self->meter, config->batch_max, config->decode_threads);
  make_metrics(self, config->encoder);
  tf_code code = TF_OK;
  if (!self->fetching || !self->decoding || !self->ready || !self->finished || !self->batch_pixels ||
      !self->batch_features) {
    code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the pipeline");
  } else {
    code = start_threads(self, error);
  }
  if (code != TF_OK) {
    tf_pipeline_free(&self);
    return code;
  }
  *out = self;
  return TF_OK;
}

/* Stage by stage, in the order of the data: a thread never pushes to a mailbox that is closed. */
void tf_pipeline_free(tf_pipeline **self) {
  tf_pipeline *pipeline = *self;
  if (pipeline == NULL) return;
  *self = NULL;
  if (pipeline->fetching) tf_mailbox_close(pipeline->fetching);
  for (int i = 0; i < pipeline->fetch_count; i++) pthread_join(pipeline->fetch_threads[i], NULL);
  if (pipeline->decoding) tf_mailbox_close(pipeline->decoding);
  for (int i = 0; i < pipeline->decode_count; i++) pthread_join(pipeline->decode_threads[i], NULL);
  if (pipeline->ready) tf_mailbox_close(pipeline->ready);
  if (pipeline->compute_started) pthread_join(pipeline->compute_thread, NULL);
  tf_mailbox_free(&pipeline->fetching, NULL);
  tf_mailbox_free(&pipeline->decoding, NULL);
  tf_mailbox_free(&pipeline->ready, NULL);
  tf_mailbox_free(&pipeline->finished, NULL);
  pthread_mutex_destroy(&pipeline->meter_lock);
  free(pipeline->batch_pixels);
  free(pipeline->batch_features);
  free(pipeline);
}

bool tf_pipeline_submit(tf_pipeline *self, tf_encode_job *job) {
  if (atomic_load(&self->inside) >= self->config.jobs_max) return false;
  atomic_fetch_add(&self->inside, 1);
  /* http without fetch threads goes to a decode thread, where the fetcher refuses it at once. */
  hand_on(self->fetch_count > 0 && is_http(job) ? self->fetching : self->decoding, job);
  return true;
}

tf_encode_job *tf_pipeline_take(tf_pipeline *self) {
  tf_encode_job *job = tf_mailbox_try_pop(self->finished);
  if (job != NULL) atomic_fetch_sub(&self->inside, 1);
  return job;
}

int tf_pipeline_fd(const tf_pipeline *self) {
  return tf_mailbox_fd(self->finished);
}

bool tf_pipeline_times(tf_pipeline *self, const uint32_t *counts, size_t count, float *service_ms, float *latency_ms) {
  pthread_mutex_lock(&self->meter_lock);
  bool known = tf_encoder_meter_read(&self->meter, counts, count, service_ms, latency_ms);
  pthread_mutex_unlock(&self->meter_lock);
  return known;
}

void tf_pipeline_measure(tf_pipeline *self) {
  tf_metric_set(self->depth_fetch, (double)tf_mailbox_count(self->fetching));
  tf_metric_set(self->depth_decode, (double)tf_mailbox_count(self->decoding));
  tf_metric_set(self->depth_encode, (double)tf_mailbox_count(self->ready));
}

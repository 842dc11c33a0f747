/* The cache of features, alone and in the encoder's pipeline. In: made-up digests and features; a tiny model and
 * pictures. Out: bounds kept, the right picture's features, tensors equal bit for bit with and without the cache.
 * Threads take and drop references while others push features out: run under the sanitizers, too. */
#include <criterion/criterion.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "encoder-svc/pipeline.h"
#include "tensor/cpu.h"
#include "tests/unit/jpeg_writer.h"

enum { VALUES = 64 };

static tf_picture_digest digest_of(int number) {
  return tf_picture_digest_of(&number, sizeof number);
}

static void put(tf_feature_cache *cache, int number, const char *warning) {
  float values[VALUES];
  for (int i = 0; i < VALUES; i++) values[i] = (float)(number * 1000 + i);
  tf_picture_digest digest = digest_of(number);
  tf_feature_cache_put(cache, &digest, values, warning);
}

/* Whether the picture is there; if so, with its own features. */
static bool has(tf_feature_cache *cache, int number) {
  tf_picture_digest digest = digest_of(number);
  tf_features *found = tf_feature_cache_get(cache, &digest);
  if (found == NULL) return false;
  for (int i = 0; i < VALUES; i++)
    cr_assert_eq(tf_features_values(found)[i], (float)(number * 1000 + i), "picture %d", number);
  tf_features_release(&found);
  cr_assert_null(found);
  return true;
}

/* The value of a series on the metrics page; -1: none. */
static double metric(tf_metrics *metrics, const char *series) {
  tf_buffer page;
  tf_buffer_init(&page, 1 << 20);
  tf_metrics_write(metrics, &page);
  const char *at = page.data ? strstr(page.data, series) : NULL;
  while (at != NULL && at > page.data && at[-1] != '\n') at = strstr(at + 1, series);
  double value = at != NULL ? atof(at + strlen(series)) : -1;
  tf_buffer_free(&page);
  return value;
}
static const char HITS[] = "tokenflex_feature_cache_lookups_total{outcome=\"hit\"} ";
static const char MISSES[] = "tokenflex_feature_cache_lookups_total{outcome=\"miss\"} ";
static const char EVICTIONS[] = "tokenflex_feature_cache_evictions_total ";
static const char BYTES[] = "tokenflex_feature_cache_bytes ";

static tf_feature_cache *new_cache(size_t values, size_t bytes_max, tf_metrics *metrics) {
  tf_feature_cache *cache;
  tf_error error = {.text = ""};
  cr_assert_eq(tf_feature_cache_new(values, bytes_max, metrics, &cache, &error), TF_OK, "%s", error.text);
  return cache;
}

Test(feature_cache, digests_are_blake2b) {
  /* BLAKE2b with 32 bytes of "abc", as Python's hashlib gives it. */
  static const uint8_t abc[TF_PICTURE_DIGEST_BYTES] = {0xbd, 0xdd, 0x81, 0x3c, 0x63, 0x42, 0x39, 0x72, 0x31, 0x71, 0xef,
                                                       0x3f, 0xee, 0x98, 0x57, 0x9b, 0x94, 0x96, 0x4e, 0x3b, 0xb1, 0xcb,
                                                       0x3e, 0x42, 0x72, 0x62, 0xc8, 0xc0, 0x68, 0xd5, 0x23, 0x19};
  tf_picture_digest digest = tf_picture_digest_of("abc", 3);
  cr_assert_arr_eq(digest.bytes, abc, sizeof abc);
}

Test(feature_cache, what_was_asked_for_longest_ago_goes_first) {
  enum { KEPT = 10 };
  tf_metrics *metrics = tf_metrics_new();
  tf_error error;
  tf_feature_cache *cache = NULL;
  cr_assert_eq(tf_feature_cache_new(VALUES, VALUES * sizeof(float), metrics, &cache, &error), TF_ERR_INVALID_ARGUMENT);
  cr_assert_null(cache);
  size_t each = VALUES * sizeof(float) + 320; /* what a picture takes beside its features is less than that */
  cache = new_cache(VALUES, KEPT * each, metrics);
  for (int i = 0; i < KEPT; i++) put(cache, i, "");
  double full = metric(metrics, BYTES);
  cr_assert(full > (double)(KEPT * VALUES * sizeof(float)) && full <= (double)(KEPT * each), "%g", full);
  for (int i = 0; i < KEPT; i++) cr_assert(has(cache, i));
  cr_assert(has(cache, 0)); /* used again: 1 is the next to go */
  int more = 0, first_gone = -1;
  while (first_gone < 0 && more < KEPT) {
    put(cache, 100 + more++, "");
    if (metric(metrics, EVICTIONS) > 0) first_gone = 1;
  }
  cr_assert_eq(first_gone, 1, "%d more went in and nothing went out", more);
  cr_assert(!has(cache, 1) && has(cache, 0) && has(cache, 2) && has(cache, 100));
  for (int i = 0; i < 500; i++) put(cache, 1000 + i, "");
  cr_assert(metric(metrics, BYTES) <= (double)(KEPT * each));
  cr_assert(has(cache, 1499) && has(cache, 1498) && !has(cache, 0) && !has(cache, 100) && !has(cache, 1100));
  cr_assert_eq(metric(metrics, HITS), KEPT + 1 + 3 + 2);
  cr_assert_eq(metric(metrics, MISSES), 1 + 3);
  tf_feature_cache_free(&cache);
  cr_assert_null(cache);
  tf_metrics_free(&metrics);
}

Test(feature_cache, features_outlive_their_place_and_the_cache) {
  tf_metrics *metrics = tf_metrics_new();
  tf_feature_cache *cache = new_cache(VALUES, 2 * (VALUES * sizeof(float) + 320), metrics);
  put(cache, 7, "a stripe is missing");
  put(cache, 7, "another warning"); /* there already: stays as it is */
  tf_picture_digest digest = digest_of(7);
  tf_features *held = tf_feature_cache_get(cache, &digest);
  cr_assert_not_null(held);
  cr_assert_str_eq(tf_features_warning(held), "a stripe is missing");
  for (int i = 0; i < 20; i++) put(cache, 100 + i, "");
  cr_assert_not(has(cache, 7));
  cr_assert_eq(tf_features_values(held)[3], 7003.0f);
  tf_feature_cache_free(&cache);
  cr_assert_eq(tf_features_values(held)[VALUES - 1], 7000.0f + VALUES - 1);
  tf_features_release(&held);
  tf_features_release(&held); /* nothing */
  tf_metrics_free(&metrics);
}

/* ---- threads ---- */

static void *hammer(void *context) {
  tf_feature_cache *cache = context;
  for (int i = 0; i < 3000; i++)
    if (!has(cache, i % 23)) put(cache, i % 23, "");
  return NULL;
}

Test(feature_cache, threads_share_it, .timeout = 120) {
  enum { THREADS = 4 };
  pthread_t threads[THREADS];
  tf_metrics *metrics = tf_metrics_new();
  tf_feature_cache *cache = new_cache(VALUES, 9 * (VALUES * sizeof(float) + 320), metrics);
  for (int i = 0; i < THREADS; i++) cr_assert_eq(pthread_create(&threads[i], NULL, hammer, cache), 0);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  cr_assert_eq(metric(metrics, HITS) + metric(metrics, MISSES), 3000.0 * THREADS);
  tf_feature_cache_free(&cache);
  tf_metrics_free(&metrics);
}

/* ---- in the pipeline ---- */

typedef struct rig {
  tf_model_dir model;
  tf_encoder *encoder;
  tf_pool *pool;
  tf_metrics *metrics;
  tf_feature_cache *cache;
  tf_pipeline *pipeline;
} rig;

static void rig_start(rig *self, bool cached, tf_tensor_dtype dtype) {
  tf_error error = {.text = ""};
  memset(self, 0, sizeof *self);
  cr_assert_eq(tf_model_dir_open("tests/golden/data/tiny", &self->model, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_encoder_load(&self->model, NULL, &self->encoder, &error), TF_OK, "%s", error.text);
  self->pool = tf_pool_new(1);
  self->metrics = tf_metrics_new();
  if (cached) self->cache = new_cache(tf_encoder_feature_count(self->encoder), 1 << 20, self->metrics);
  tf_pipeline_config config = {.encoder = self->encoder,
                               .pool = self->pool,
                               .cache = self->cache,
                               .decode_threads = 2,
                               .batch_max = 4,
                               .jobs_max = 16,
                               .pixels_max = 1000000,
                               .dtype = dtype,
                               .metrics = self->metrics};
  cr_assert_eq(tf_pipeline_new(&config, &self->pipeline, &error), TF_OK, "%s", error.text);
}

static void rig_stop(rig *self) {
  tf_pipeline_free(&self->pipeline);
  tf_feature_cache_free(&self->cache);
  tf_encoder_free(&self->encoder);
  tf_pool_free(&self->pool);
  tf_metrics_free(&self->metrics);
}

static jpeg_bytes make_picture(int seed) {
  uint8_t shade = (uint8_t)(40 * seed + 7);
  return write_jpeg(
      &(jpeg_recipe){.width = 90, .height = 70, .texture = true, .quadrants = {{shade, 9, 200}, {3, shade}}});
}

static tf_encode_job *job_new(const jpeg_bytes *from, uint32_t vision_tokens) {
  tf_encode_job *job = calloc(1, sizeof *job);
  job->message = calloc(1, sizeof *job->message);
  *job->message = (tf_message){.type = TF_MESSAGE_JOB, .has_payload = true, .u.job = {.uri = ""}};
  job->message->u.job.vision_tokens = vision_tokens;
  zmq_msg_init_size(&job->message->payload, from->size);
  memcpy(zmq_msg_data(&job->message->payload), from->data, from->size);
  atomic_init(&job->cancelled, false);
  return job;
}

static void job_free(tf_encode_job *job) {
  zmq_msg_close(&job->message->payload);
  free(job->message);
  free(job->tensor);
  free(job);
}

/* The job that comes out. */
static tf_encode_job *run_one(rig *self, const jpeg_bytes *from, uint32_t vision_tokens) {
  tf_encode_job *job = job_new(from, vision_tokens), *out = NULL;
  cr_assert(tf_pipeline_submit(self->pipeline, job));
  int64_t until_ms = tf_now_ms() + 20000;
  while ((out = tf_pipeline_take(self->pipeline)) == NULL && tf_now_ms() < until_ms) {
    struct pollfd ready = {.fd = tf_pipeline_fd(self->pipeline), .events = POLLIN};
    poll(&ready, 1, 100);
  }
  cr_assert_eq(out, job, "nothing came");
  return out;
}

static void expect_equal(const tf_encode_job *a, const tf_encode_job *b) {
  cr_assert(a->error.code == TF_OK && b->error.code == TF_OK, "%s %s", a->error.text, b->error.text);
  cr_assert_eq(a->tensor_bytes, b->tensor_bytes);
  cr_assert(a->tensor_bytes > 0 && memcmp(a->tensor, b->tensor, a->tensor_bytes) == 0, "the tensors differ");
  cr_assert_str_eq(a->warning, b->warning);
}

static void cached_equals_computed(tf_tensor_dtype dtype) {
  static const uint32_t counts[] = {16, 9, 4};
  enum { COUNTS = sizeof counts / sizeof *counts };
  rig plain, cached;
  jpeg_bytes pictures[2];
  for (int i = 0; i < 2; i++) pictures[i] = make_picture(i);
  pictures[1].size -= 2; /* no end-of-image marker: the decoder forgives that, and says so */
  rig_start(&plain, false, dtype);
  rig_start(&cached, true, dtype);
  for (int round = 0; round < 2; round++)
    for (int p = 0; p < 2; p++)
      for (int n = 0; n < COUNTS; n++) {
        tf_encode_job *a = run_one(&plain, &pictures[p], counts[n]), *b = run_one(&cached, &pictures[p], counts[n]);
        expect_equal(a, b);
        cr_assert_eq(a->warning[0] != '\0', p == 1);
        job_free(a);
        job_free(b);
      }
  cr_assert_eq(metric(cached.metrics, MISSES), 2, "each picture was seen once");
  cr_assert_eq(metric(cached.metrics, HITS), 2 * 2 * COUNTS - 2);
  cr_assert_eq(metric(cached.metrics, "tokenflex_batch_images_count "), 2, "and once by the ViT");
  cr_assert_eq(metric(plain.metrics, "tokenflex_batch_images_count "), 2 * 2 * COUNTS);
  rig_stop(&plain);
  rig_stop(&cached);
  for (int i = 0; i < 2; i++) free(pictures[i].data);
}

Test(feature_cache, a_cached_tensor_is_the_computed_one_at_every_count, .timeout = 120) {
  cached_equals_computed(TF_TENSOR_F32);
}
Test(feature_cache, as_f16_too, .timeout = 120) {
  cached_equals_computed(TF_TENSOR_F16);
}

Test(feature_cache, pictures_that_fail_are_not_kept, .timeout = 120) {
  rig self;
  rig_start(&self, true, TF_TENSOR_F32);
  uint8_t text[] = "no picture at all";
  const jpeg_bytes bad = {text, sizeof text}, empty = {text, 0};
  for (int round = 0; round < 2; round++) {
    tf_encode_job *a = run_one(&self, &bad, 4), *b = run_one(&self, &empty, 4);
    cr_assert_eq(a->error.code, TF_ERR_IMAGE_UNSUPPORTED, "%s", a->error.text);
    cr_assert_eq(b->error.code, TF_ERR_IMAGE_EMPTY, "%s", b->error.text);
    cr_assert(a->tensor == NULL && b->tensor == NULL);
    job_free(a);
    job_free(b);
  }
  cr_assert_eq(metric(self.metrics, HITS), 0);
  cr_assert_eq(metric(self.metrics, MISSES), 2);
  rig_stop(&self);
}

/* Many at once, of few pictures: hits and misses share batches, and jobs are cancelled on the way. */
Test(feature_cache, busy_pipelines_mix_hits_and_misses, .timeout = 120) {
  enum { PICTURES = 5, JOBS = 200, AT_ONCE = 12 };
  static const uint32_t counts[] = {16, 9, 4};
  rig self;
  jpeg_bytes pictures[PICTURES];
  tf_encode_job *first[PICTURES][3] = {{NULL}};
  for (int i = 0; i < PICTURES; i++) pictures[i] = make_picture(i);
  rig_start(&self, true, TF_TENSOR_F32);
  int sent = 0, done = 0, number_of[JOBS];
  tf_encode_job *jobs[JOBS];
  while (done < JOBS) {
    for (; sent < JOBS && sent - done < AT_ONCE; sent++) {
      number_of[sent] = (sent * 7 + sent / 11) % (PICTURES * 3);
      jobs[sent] = job_new(&pictures[number_of[sent] / 3], counts[number_of[sent] % 3]);
      cr_assert(tf_pipeline_submit(self.pipeline, jobs[sent]));
      if (sent % 10 == 9) atomic_store(&jobs[sent]->cancelled, true);
    }
    struct pollfd ready = {.fd = tf_pipeline_fd(self.pipeline), .events = POLLIN};
    cr_assert_geq(poll(&ready, 1, 20000), 1);
    tf_encode_job *out = tf_pipeline_take(self.pipeline);
    if (out == NULL) continue;
    int at = sent - 1; /* from the last on: memory of an earlier job may be that of a later one now */
    while (jobs[at] != out) at--;
    tf_encode_job **known = &first[number_of[at] / 3][number_of[at] % 3];
    done++;
    /* OpenBLAS alone lets a row's last bits depend on its neighbours: its batches are compared by the tests above. */
    if (out->error.code == TF_OK && *known != NULL && tf_cpu_level() > TF_CPU_PORTABLE) expect_equal(*known, out);
    if (out->error.code == TF_OK && *known == NULL)
      *known = out;
    else
      job_free(out);
  }
  cr_assert(metric(self.metrics, HITS) > JOBS / 2);
  for (int i = 0; i < PICTURES; i++)
    for (int n = 0; n < 3; n++)
      if (first[i][n] != NULL) job_free(first[i][n]);
  rig_stop(&self);
  for (int i = 0; i < PICTURES; i++) free(pictures[i].data);
}

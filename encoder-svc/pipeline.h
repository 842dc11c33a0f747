/* An encoder's threads: fetch, decode and preprocess, encode in batches. In: jobs. Out: the same jobs with a tensor or
 * an error. A picture whose features are in the cache is neither decoded nor seen again. fetch threads (http only) ->
 * decode threads -> one compute thread -> the finished mailbox, which a reactor polls. A job belongs to the pipeline
 * from tf_pipeline_submit until it comes out of the finished mailbox. */
#ifndef TF_ENCODER_PIPELINE_H
#define TF_ENCODER_PIPELINE_H

#include <stdatomic.h>

#include "common/health.h"
#include "common/mailbox.h"
#include "encoder-svc/encoder.h"
#include "encoder-svc/feature_cache.h"
#include "encoder-svc/fetch.h"
#include "proto/wire.h"

typedef struct tf_pipeline tf_pipeline;

enum { TF_PIPELINE_FETCH_THREADS = 8, TF_PIPELINE_DECODE_THREADS_MAX = 64, TF_PIPELINE_BATCH_MAX = 64 };

typedef struct tf_encode_job {
  tf_message *message;   /* JOB, owned by whoever owns the job; only read here */
  atomic_bool cancelled; /* set by the reactor at any time; looked at between stages */
  tf_timing timing;      /* starts as the JOB's; fetch, decode, encode and wait are added */
  int64_t idle_since_us; /* monotonic; set at submit */
  uint8_t *bytes;        /* fetched image between two stages; NULL for inline images */
  size_t bytes_size;
  float *pixels;            /* [3, size, size] between two stages */
  tf_picture_digest digest; /* where there is a cache */
  tf_features *features;    /* from the cache: instead of pixels */
  void *tensor;             /* out: [vision_tokens, llm_width] of the pipeline's dtype; malloc'ed, the taker frees */
  size_t tensor_bytes;      /* out */
  tf_error error;           /* out: code TF_OK where tensor is there; text names the image */
  char warning[200];        /* out: what the image decoder forgave */
} tf_encode_job;

typedef struct tf_pipeline_config {
  tf_encoder *encoder; /* borrowed, as all below */
  tf_pool *pool;
  const tf_fetcher *fetcher;
  tf_feature_cache *cache; /* NULL: none */
  bool allow_http;         /* false: no fetch threads */
  int decode_threads;      /* 1..TF_PIPELINE_DECODE_THREADS_MAX */
  int batch_max;           /* images in one ViT pass, 1..TF_PIPELINE_BATCH_MAX */
  size_t jobs_max;         /* submitted and not yet taken from the finished mailbox */
  int64_t pixels_max;
  tf_tensor_dtype dtype;
  tf_metrics *metrics;
  tf_health *health; /* beat slot 0: the compute thread */
} tf_pipeline_config;

/* Starts the threads. */
tf_code tf_pipeline_new(const tf_pipeline_config *config, tf_pipeline **out, tf_error *error);
/* Cancel the jobs inside first; joins the threads. Jobs still in the finished mailbox stay the caller's. */
void tf_pipeline_free(tf_pipeline **self);
/* False: jobs_max are inside; the job stays the caller's. Never blocks. */
bool tf_pipeline_submit(tf_pipeline *self, tf_encode_job *job);
/* The next finished job, NULL where there is none. Never blocks. */
tf_encode_job *tf_pipeline_take(tf_pipeline *self);
int tf_pipeline_fd(const tf_pipeline *self); /* readable while finished jobs wait */
/* service_ms[count] and latency_ms[count] at these token counts (encoder-svc/meter.h). False: nothing is known yet. Any
 * thread. */
bool tf_pipeline_times(tf_pipeline *self, const uint32_t *counts, size_t count, float *service_ms, float *latency_ms);
/* Updates the gauges of the queues' depths. */
void tf_pipeline_measure(tf_pipeline *self);

#endif

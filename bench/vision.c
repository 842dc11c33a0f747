/* The encoder's parts under the clock: ViT passes on one or more streams, projector, pictures.
 * In: a command's numbers. Out: samples. Inputs are noise of a picture's range: none of these takes time by content,
 * but the JPEG decoder, which gets real files. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bench/bench.h"
#include "common/clock.h"
#include "encoder-svc/encoder.h"
#include "encoder-svc/projector.h"
#include "encoder-svc/vit.h"

enum { STREAMS_MAX = 16, BATCH_MAX = 8 };

typedef struct stream {
  tf_vit *vit;
  tf_pool *pool;
  float *pixels, *features;
  int batch, calls;
  pthread_barrier_t *barrier;
} stream;

static tf_vit *load_vit(const tf_model_dir *model) {
  tf_error error;
  tf_gguf *file;
  tf_vit *vit;
  if (tf_gguf_open(model->vision_path, &file, &error) != TF_OK) bench_die("vision", error.text);
  if (tf_vit_load(file, NULL, BATCH_MAX, NULL, &vit, &error) != TF_OK) bench_die("vision", error.text);
  tf_gguf_close(&file);
  return vit;
}

static void open_stream(const tf_model_dir *model, stream *self) {
  if (self->vit != NULL) return;
  self->vit = load_vit(model);
  const tf_vit_config *config = tf_vit_configuration(self->vit);
  size_t pixels = BATCH_MAX * 3 * (size_t)(config->image_size * config->image_size);
  self->pixels = malloc(pixels * sizeof(float));
  self->features = malloc(BATCH_MAX * (size_t)(config->patches * config->width) * sizeof(float));
  if (self->pixels == NULL || self->features == NULL) bench_die("vit", "no memory");
  uint64_t state = 1;
  for (size_t i = 0; i < pixels; i++) self->pixels[i] = 2 * bench_noise(&state);
}

static void pass(stream *self) {
  tf_error error;
  if (tf_vit_run(self->vit, self->pool, self->pixels, self->batch, self->features, NULL, NULL, &error) != TF_OK)
    bench_die("vit", error.text);
}

static void *stream_main(void *argument) {
  stream *self = argument;
  pass(self); /* warms */
  pthread_barrier_wait(self->barrier);
  for (int i = 0; i < self->calls; i++) pass(self);
  pthread_barrier_wait(self->barrier);
  return NULL;
}

void bench_vit(const tf_model_dir *model, int streams, int threads, int batch, int calls) {
  static stream all[STREAMS_MAX];
  if (streams < 1 || streams > STREAMS_MAX || batch < 1 || batch > BATCH_MAX) bench_die("vit", "out of range");
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, NULL, (unsigned)streams + 1);
  pthread_t ids[STREAMS_MAX];
  for (int i = 0; i < streams; i++) {
    open_stream(model, &all[i]);
    all[i].batch = batch;
    all[i].calls = calls;
    all[i].barrier = &barrier;
    all[i].pool = tf_pool_new(threads);
    if (all[i].pool == NULL) bench_die("vit", "no threads");
  }
  for (int i = 0; i < streams; i++)
    if (pthread_create(&ids[i], NULL, stream_main, &all[i]) != 0) bench_die("vit", "no threads");
  pthread_barrier_wait(&barrier);
  int64_t start_us = tf_now_us();
  pthread_barrier_wait(&barrier);
  bench_samples samples = {.count = 0};
  bench_add(&samples, start_us);
  for (int i = 0; i < streams; i++) {
    pthread_join(ids[i], NULL);
    tf_pool_free(&all[i].pool);
  }
  pthread_barrier_destroy(&barrier);
  bench_print(&samples, (double)streams * batch * calls);
}

void bench_features(const tf_model_dir *model, const char *in, const char *out, int images) {
  stream one = {.batch = 1};
  open_stream(model, &one);
  one.pool = tf_pool_new(0);
  const tf_vit_config *config = tf_vit_configuration(one.vit);
  size_t pixels = 3 * (size_t)(config->image_size * config->image_size);
  size_t features = (size_t)(config->patches * config->width);
  FILE *from = fopen(in, "re"), *to = fopen(out, "we");
  if (from == NULL || to == NULL || one.pool == NULL) bench_die("features", "can not open the files");
  for (int i = 0; i < images; i++) {
    if (fread(one.pixels, sizeof(float), pixels, from) != pixels) bench_die(in, "too short");
    pass(&one);
    if (fwrite(one.features, sizeof(float), features, to) != features) bench_die(out, "can not be written");
  }
  fclose(from);
  if (fclose(to) != 0) bench_die(out, "can not be written");
  tf_pool_free(&one.pool);
  tf_vit_free(&one.vit);
  free(one.pixels);
  free(one.features);
  printf("{\"images\": %d}\n", images);
  fflush(stdout);
}

void bench_projector(const tf_model_dir *model, int tokens, int calls) {
  tf_error error;
  tf_gguf *file;
  tf_projector *projector;
  if (tf_gguf_open(model->adapter_path, &file, &error) != TF_OK) bench_die("adapter", error.text);
  if (tf_projector_load(file, NULL, &projector, &error) != TF_OK) bench_die("adapter", error.text);
  tf_gguf_close(&file);
  size_t in =
      (size_t)(tf_projector_grid(projector) * tf_projector_grid(projector) * tf_projector_vision_width(projector));
  float *x = malloc(in * sizeof *x), *y = malloc((size_t)(tokens * tf_projector_llm_width(projector)) * sizeof *y);
  tf_pool *pool = tf_pool_new(0);
  if (x == NULL || y == NULL || pool == NULL) bench_die("projector", "no memory");
  uint64_t state = 1;
  for (size_t i = 0; i < in; i++) x[i] = bench_noise(&state);
  bench_samples samples = {.count = 0};
  for (int i = 0; i < calls + 1; i++) {
    int64_t start_us = tf_now_us();
    if (tf_projector_run(projector, pool, x, (uint32_t)tokens, y, &error) != TF_OK) bench_die("projector", error.text);
    if (i > 0) bench_add(&samples, start_us);
  }
  bench_print(&samples, 1);
  tf_pool_free(&pool);
  tf_projector_free(&projector);
  free(x);
  free(y);
}

static uint8_t *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "re");
  if (file == NULL || fseek(file, 0, SEEK_END) != 0) bench_die(path, "can not be read");
  long end = ftell(file);
  uint8_t *bytes = end > 0 ? malloc((size_t)end) : NULL;
  rewind(file);
  if (bytes == NULL || fread(bytes, 1, (size_t)end, file) != (size_t)end) bench_die(path, "can not be read");
  fclose(file);
  *size = (size_t)end;
  return bytes;
}

void bench_picture(const tf_model_dir *model, const char *path, int calls) {
  static tf_encoder *encoder;
  tf_error error;
  if (encoder == NULL && tf_encoder_load(model, NULL, &encoder, &error) != TF_OK) bench_die("encoder", error.text);
  size_t size;
  uint8_t *bytes = read_file(path, &size);
  int32_t side = tf_encoder_image_size(encoder);
  tf_image_limits limits = {.pixels_max = 250000000, .side_wanted = side}; /* as the pipeline asks */
  float *pixels = malloc(3 * (size_t)side * (size_t)side * sizeof *pixels);
  if (pixels == NULL) bench_die("picture", "no memory");
  bench_samples samples = {.count = 0};
  for (int i = 0; i < calls + 1; i++) {
    int64_t start_us = tf_now_us();
    tf_image image;
    if (tf_image_decode(bytes, size, &limits, &image, &error) != TF_OK) bench_die(path, error.text);
    if (tf_encoder_preprocess(encoder, &image, pixels, &error) != TF_OK) bench_die(path, error.text);
    tf_image_free(&image);
    if (i > 0) bench_add(&samples, start_us);
  }
  bench_print(&samples, 1);
  free(pixels);
  free(bytes);
}

/* The ViT's features of pictures seen lately. In: digests, features. Out: references to features.
 * All pictures' features are of one size, so the cache is so many places: a table of chains finds one, a list in the
 * order of use says which goes next. The features themselves lie outside and are counted by reference: they are copied
 * in before the lock is taken, and read without it. */
#include "encoder-svc/feature_cache.h"

#include <assert.h>
#include <pthread.h>
#include <sodium.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = -1, PLACES_MAX = 1 << 20 };

struct tf_features {
  atomic_int references;
  char warning[TF_FEATURE_WARNING_BYTES];
  float values[];
};

typedef struct place {
  tf_picture_digest digest;
  tf_features *features;
  int32_t chain;        /* the next of the same bucket */
  int32_t newer, older; /* by use */
} place;

struct tf_feature_cache {
  size_t value_count, bytes_each;
  pthread_mutex_t mutex; /* guards all below */
  place *places;         /* [place_count], the first `used` of them taken */
  int32_t *buckets;      /* [bucket_count], a power of two */
  int32_t place_count, used, newest, oldest;
  uint32_t bucket_count;
  tf_metric *hits, *misses, *evictions, *bytes;
};

tf_picture_digest tf_picture_digest_of(const void *data, size_t size) {
  tf_picture_digest out;
  crypto_generichash(out.bytes, sizeof out.bytes, data, size, NULL, 0);
  return out;
}

/* ---- one picture's features ---- */

const float *tf_features_values(const tf_features *self) {
  return self->values;
}
const char *tf_features_warning(const tf_features *self) {
  return self->warning;
}

void tf_features_release(tf_features **self) {
  tf_features *features = *self;
  *self = NULL;
  if (features != NULL && atomic_fetch_sub(&features->references, 1) == 1) free(features);
}

static tf_features *features_new(const float *values, size_t count, const char *warning) {
  tf_features *self = malloc(sizeof *self + count * sizeof *values);
  if (self == NULL) return NULL;
  atomic_init(&self->references, 1);
  snprintf(self->warning, sizeof self->warning, "%s", warning);
  memcpy(self->values, values, count * sizeof *values);
  return self;
}

/* ---- the cache ---- */

static void make_metrics(tf_feature_cache *self, tf_metrics *metrics) {
  static const char name[] = "tokenflex_feature_cache_lookups_total", help[] = "Pictures looked for in the cache";
  self->hits = tf_metrics_counter(metrics, name, "outcome=\"hit\"", help);
  self->misses = tf_metrics_counter(metrics, name, "outcome=\"miss\"", help);
  self->evictions = tf_metrics_counter(metrics, "tokenflex_feature_cache_evictions_total", "",
                                       "Pictures that made room in the cache for others");
  self->bytes = tf_metrics_gauge(metrics, "tokenflex_feature_cache_bytes", "", "Memory of the features that are kept");
}

tf_code tf_feature_cache_new(size_t value_count, size_t bytes_max, tf_metrics *metrics, tf_feature_cache **out,
                             tf_error *error) {
  assert(value_count > 0 && value_count < SIZE_MAX / 2 / sizeof(float));
  *out = NULL;
  /* A place takes its share of the table too: at most two buckets. */
  size_t each = sizeof(tf_features) + value_count * sizeof(float) + sizeof(place) + 2 * sizeof(int32_t);
  size_t count = bytes_max / each;
  if (count == 0)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "the features of one picture take %zu bytes, more than %zu", each,
                   bytes_max);
  if (sodium_init() < 0)
    return tf_fail(error, TF_ERR_INTERNAL, "libsodium does not start"); /* picks its fastest code */
  tf_feature_cache *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the cache of features");
  pthread_mutex_init(&self->mutex, NULL);
  self->value_count = value_count;
  self->bytes_each = each;
  self->place_count = (int32_t)(count < PLACES_MAX ? count : PLACES_MAX);
  self->newest = self->oldest = NONE;
  self->bucket_count = 1;
  while (self->bucket_count < (uint32_t)self->place_count) self->bucket_count *= 2;
  self->places = calloc((size_t)self->place_count, sizeof *self->places);
  self->buckets = malloc(self->bucket_count * sizeof *self->buckets);
  if (self->places == NULL || self->buckets == NULL) {
    tf_feature_cache_free(&self);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the cache of features");
  }
  for (uint32_t i = 0; i < self->bucket_count; i++) self->buckets[i] = NONE;
  make_metrics(self, metrics);
  *out = self;
  return TF_OK;
}

void tf_feature_cache_free(tf_feature_cache **self) {
  tf_feature_cache *cache = *self;
  if (cache == NULL) return;
  *self = NULL;
  for (int32_t i = 0; cache->places != NULL && i < cache->used; i++) tf_features_release(&cache->places[i].features);
  pthread_mutex_destroy(&cache->mutex);
  free(cache->places);
  free(cache->buckets);
  free(cache);
}

/* A digest's bits are as good as random. */
static int32_t *bucket_of(tf_feature_cache *self, const tf_picture_digest *digest) {
  uint32_t bits;
  memcpy(&bits, digest->bytes, sizeof bits);
  return &self->buckets[bits & (self->bucket_count - 1)];
}

static int32_t find(tf_feature_cache *self, const tf_picture_digest *digest) {
  int32_t at = *bucket_of(self, digest);
  while (at != NONE && memcmp(self->places[at].digest.bytes, digest->bytes, sizeof digest->bytes) != 0)
    at = self->places[at].chain;
  return at;
}

/* ---- the order of use ---- */

static void unlink_place(tf_feature_cache *self, int32_t at) {
  const place *item = &self->places[at];
  *(item->newer == NONE ? &self->newest : &self->places[item->newer].older) = item->older;
  *(item->older == NONE ? &self->oldest : &self->places[item->older].newer) = item->newer;
}

static void link_newest(tf_feature_cache *self, int32_t at) {
  place *item = &self->places[at];
  item->newer = NONE;
  item->older = self->newest;
  *(self->newest == NONE ? &self->oldest : &self->places[self->newest].newer) = at;
  self->newest = at;
}

/* Takes the place of the picture that was asked for longest ago; its features are the caller's to release. */
static int32_t evict(tf_feature_cache *self, tf_features **old) {
  int32_t at = self->oldest;
  place *item = &self->places[at];
  int32_t *link = bucket_of(self, &item->digest);
  while (*link != at) link = &self->places[*link].chain;
  *link = item->chain;
  unlink_place(self, at);
  *old = item->features;
  tf_metric_add(self->evictions, 1);
  return at;
}

/* ---- the door ---- */

tf_features *tf_feature_cache_get(tf_feature_cache *self, const tf_picture_digest *digest) {
  tf_features *found = NULL;
  pthread_mutex_lock(&self->mutex);
  int32_t at = find(self, digest);
  if (at != NONE) {
    found = self->places[at].features;
    atomic_fetch_add(&found->references, 1);
    unlink_place(self, at);
    link_newest(self, at);
  }
  pthread_mutex_unlock(&self->mutex);
  tf_metric_add(found != NULL ? self->hits : self->misses, 1);
  return found;
}

void tf_feature_cache_put(tf_feature_cache *self, const tf_picture_digest *digest, const float *values,
                          const char *warning) {
  tf_features *fresh = features_new(values, self->value_count, warning), *old = NULL;
  if (fresh == NULL) return;
  pthread_mutex_lock(&self->mutex);
  if (find(self, digest) != NONE) { /* the same picture twice in one batch */
    old = fresh;
  } else {
    int32_t at = self->used < self->place_count ? self->used++ : evict(self, &old), *bucket = bucket_of(self, digest);
    self->places[at] = (place){.digest = *digest, .features = fresh, .chain = *bucket};
    *bucket = at;
    link_newest(self, at);
    tf_metric_set(self->bytes, (double)self->used * (double)self->bytes_each);
  }
  pthread_mutex_unlock(&self->mutex);
  tf_features_release(&old);
}

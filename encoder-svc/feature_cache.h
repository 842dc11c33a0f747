/* The ViT's features of pictures seen lately, by their bytes. In: an encoded picture's digest. Out: what pooling starts
 * from, as the ViT made it, so that a cached caption is the one that would have been written without. Before pooling,
 * so that the same picture may come back with another number of vision tokens. Bounded in bytes; the picture that was
 * asked for longest ago goes first. Any thread. */
#ifndef TF_ENCODER_FEATURE_CACHE_H
#define TF_ENCODER_FEATURE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/metrics.h"

enum { TF_PICTURE_DIGEST_BYTES = 32, TF_FEATURE_WARNING_BYTES = 200 };

/* BLAKE2b: nobody can make two pictures of one digest, so nobody's picture gets another one's caption. Of the bytes,
 * not of the pixels: a hit then spares decoding as well, and who sends a picture again sends the same bytes. */
typedef struct tf_picture_digest {
  uint8_t bytes[TF_PICTURE_DIGEST_BYTES];
} tf_picture_digest;
tf_picture_digest tf_picture_digest_of(const void *data, size_t size);

/* One picture's features; read only. Whoever holds a reference may read them, whatever the cache drops meanwhile. */
typedef struct tf_features tf_features;
const float *tf_features_values(const tf_features *self);
const char *tf_features_warning(const tf_features *self); /* what the image decoder forgave; "": nothing */
/* Takes and nulls; NULL: nothing. Also after the cache is gone. */
void tf_features_release(tf_features **self);

typedef struct tf_feature_cache tf_feature_cache;
/* value_count: floats of one picture; bytes_max: of all that is kept, everything counted. metrics: borrowed. The caller
 * frees. Errors: INVALID_ARGUMENT (bytes_max holds not even one picture), OUT_OF_MEMORY, INTERNAL. */
tf_code tf_feature_cache_new(size_t value_count, size_t bytes_max, tf_metrics *metrics, tf_feature_cache **out,
                             tf_error *error);
void tf_feature_cache_free(tf_feature_cache **self);
/* A reference that the caller releases; NULL: not there. Counts a hit or a miss. */
tf_features *tf_feature_cache_get(tf_feature_cache *self, const tf_picture_digest *digest);
/* Keeps a copy of values[value_count] and the warning. What is there already stays; without memory nothing is kept. */
void tf_feature_cache_put(tf_feature_cache *self, const tf_picture_digest *digest, const float *values,
                          const char *warning);

#endif

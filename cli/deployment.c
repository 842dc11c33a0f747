/* Links to every Redis of a queue, and which of them an id belongs to.
 * In: options. Out: links; errors that name the address, never a password.
 * The hash is XXH3 over address and id: part of the contract, as a resubmission must meet its twin. */
#include "cli/deployment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

tf_code tf_deployment_init(tf_deployment *self, const tf_deployment_options *options, const char *reply_name,
                           tf_error *error) {
  memset(self, 0, sizeof *self);
  self->count = options->redis.count;
  self->queue = options->queue;
  self->links = calloc(self->count, sizeof *self->links);
  self->places = calloc(self->count, sizeof *self->places);
  if (!self->links || !self->places) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  for (size_t i = 0; i < self->count; i++) {
    tf_error why;
    tf_code code = tf_link_init(&self->links[i], options->redis.items[i], options->queue, reply_name, &why);
    /* The queue's name is told as it is; a URL needs its option's name in front. */
    if (code && strncmp(why.text, "--", 2) == 0) return tf_fail(error, code, "%s", why.text);
    if (code) return tf_fail(error, code, "--redis: %s", why.text);
    tf_link_place(&self->links[i], self->places[i], sizeof self->places[i]);
    for (size_t before = 0; before < i; before++)
      if (strcmp(self->places[before], self->places[i]) == 0)
        return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--redis: %s is given twice", self->places[i]);
  }
  return TF_OK;
}

tf_code tf_deployment_connect(tf_deployment *self, tf_error *error) {
  for (size_t i = 0; i < self->count; i++) {
    tf_code code = tf_link_connect(&self->links[i], error);
    if (code) return code;
  }
  return TF_OK;
}

void tf_deployment_free(tf_deployment *self) {
  for (size_t i = 0; self->links && i < self->count; i++) tf_link_close(&self->links[i]);
  if (self->links) explicit_bzero(self->links, self->count * sizeof *self->links);
  free(self->links);
  free(self->places);
  memset(self, 0, sizeof *self);
}

void tf_deployment_key(const tf_deployment *self, const char *suffix, char out[TF_LINK_KEY_BYTES]) {
  if (tf_redis_key(self->queue, suffix, out, TF_LINK_KEY_BYTES)) out[0] = '\0'; /* init has checked the name */
}

size_t tf_spread(const char *id, const char (*places)[TF_DEPLOYMENT_PLACE_BYTES], size_t count) {
  size_t best = 0;
  XXH64_hash_t best_score = 0;
  for (size_t i = 0; i < count; i++) {
    XXH64_hash_t score = XXH3_64bits_withSeed(id, strlen(id), XXH3_64bits(places[i], strlen(places[i])));
    if (i > 0 && score <= best_score) continue;
    best = i;
    best_score = score;
  }
  return best;
}

tf_link *tf_deployment_link(const tf_deployment *self, const char *id) {
  return &self->links[tf_spread(id, (const char(*)[TF_DEPLOYMENT_PLACE_BYTES])self->places, self->count)];
}

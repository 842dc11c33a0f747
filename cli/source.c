/* Order and number of pictures. In: the walk. Out: the walk, shuffled and cut.
 * Errors pass at once: they are no pictures, and need no place in the order.
 * The generator is splitmix64. */
#include "cli/source.h"

#include <stdlib.h>
#include <string.h>

typedef struct held {
  char *image, *path;
} held;

struct tf_source {
  tf_source_config config;
  tf_inputs *inputs;
  held *window, given; /* given: the last picture handed out */
  size_t count, bytes;
  bool walked;   /* to the end */
  tf_error stop; /* what ended the walk early, to be told after the window; code TF_OK: nothing, or told */
  uint64_t taken, state;
};

tf_source *tf_source_new(const tf_source_config *config) {
  tf_source *self = calloc(1, sizeof *self);
  if (!self) return NULL;
  self->config = *config;
  self->state = config->seed;
  self->inputs = tf_inputs_new(&config->inputs);
  if (config->shuffle) self->window = calloc(TF_SOURCE_WINDOW, sizeof *self->window);
  if (self->inputs && (self->window || !config->shuffle)) return self;
  tf_source_free(&self);
  return NULL;
}

static void free_held(held *item) {
  free(item->image);
  free(item->path);
  memset(item, 0, sizeof *item);
}

void tf_source_free(tf_source **self_in) {
  tf_source *self = *self_in;
  if (!self) return;
  for (size_t i = 0; self->window && i < self->count; i++) free_held(&self->window[i]);
  free_held(&self->given);
  free(self->window);
  tf_inputs_free(&self->inputs);
  free(self);
  *self_in = NULL;
}

uint64_t tf_source_skipped(const tf_source *self) {
  return tf_inputs_skipped(self->inputs);
}

static uint64_t draw(tf_source *self) {
  uint64_t z = self->state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static bool is_full(const tf_source *self) {
  return self->count == TF_SOURCE_WINDOW || self->bytes >= TF_SOURCE_WINDOW_BYTES_MAX;
}

/* TF_INPUT_IMAGE: it is in the window. */
static tf_input_kind hold_next(tf_source *self, size_t names_max, tf_input *out) {
  tf_input_kind kind = tf_inputs_next(self->inputs, names_max, out);
  if (kind == TF_INPUT_END || kind == TF_INPUT_STOP) self->walked = true;
  if (kind == TF_INPUT_STOP) self->stop = out->error;
  if (kind != TF_INPUT_IMAGE) return kind;
  held item = {strdup(out->image), strdup(out->path)};
  if (!item.image || !item.path) {
    free_held(&item);
    tf_fail(&out->error, TF_ERR_OUT_OF_MEMORY, "out of memory");
    out->path = NULL;
    return TF_INPUT_ERROR;
  }
  self->bytes += strlen(item.image) + strlen(item.path) + 2;
  self->window[self->count++] = item;
  return kind;
}

static tf_input_kind next_shuffled(tf_source *self, size_t names_max, tf_input *out) {
  for (size_t looked = 0; !self->walked && !is_full(self); looked++) {
    if (looked == names_max) return TF_INPUT_PAUSE;
    tf_input_kind kind = hold_next(self, names_max, out);
    if (kind != TF_INPUT_IMAGE && !self->walked) return kind;
  }
  if (self->count == 0 && self->stop.code) {
    out->error = self->stop;
    self->stop.code = TF_OK;
    return TF_INPUT_STOP;
  }
  if (self->count == 0) return TF_INPUT_END;
  size_t at = (size_t)(draw(self) % self->count);
  free_held(&self->given);
  self->given = self->window[at];
  self->window[at] = self->window[--self->count];
  self->bytes -= strlen(self->given.image) + strlen(self->given.path) + 2;
  out->image = self->given.image;
  out->path = self->given.path;
  return TF_INPUT_IMAGE;
}

tf_input_kind tf_source_next(tf_source *self, size_t names_max, tf_input *out) {
  if (self->config.limit > 0 && self->taken == self->config.limit) return TF_INPUT_END;
  tf_input_kind kind =
      self->config.shuffle ? next_shuffled(self, names_max, out) : tf_inputs_next(self->inputs, names_max, out);
  if (kind == TF_INPUT_IMAGE) self->taken++;
  return kind;
}

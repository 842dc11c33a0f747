/* The pictures of a run in the order in which it takes them: as the walk finds them, or shuffled; all, or the first N.
 * In: names. Out: pictures and errors, one a call.
 * Shuffling holds a window of TF_SOURCE_WINDOW names (64 MiB at most) and takes any of them: up to that many pictures
 * every order is equally likely, past it a picture comes at most that many places early. */
#ifndef TF_CLI_SOURCE_H
#define TF_CLI_SOURCE_H

#include "cli/inputs.h"

enum { TF_SOURCE_WINDOW = 65536, TF_SOURCE_WINDOW_BYTES_MAX = 64 * 1024 * 1024 };

typedef struct tf_source_config {
  tf_inputs_config inputs;
  uint64_t limit; /* pictures; 0: all */
  bool shuffle;
  uint64_t seed; /* the same seed and the same names give the same order */
} tf_source_config;

typedef struct tf_source tf_source;

/* NULL: out of memory. What config points to outlives the source. */
tf_source *tf_source_new(const tf_source_config *config);
void tf_source_free(tf_source **self);
/* As tf_inputs_next. */
tf_input_kind tf_source_next(tf_source *self, size_t names_max, tf_input *out);
/* Files in folders that are no images, so far. */
uint64_t tf_source_skipped(const tf_source *self);

#endif

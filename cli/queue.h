/* What a queue says about itself: the model it serves, its live routers, how deep it is by tier.
 * In: the keys of docs/REDIS.md. Out: plain structs. Times are compared by Redis's own clock. */
#ifndef TF_CLI_QUEUE_H
#define TF_CLI_QUEUE_H

#include <stdint.h>

#include "cli/link.h"

enum { TF_QUEUE_COUNTS_MAX = 16, TF_QUEUE_FRESH_MS = 10000 };

typedef struct tf_queue_model {
  bool live;    /* a router says that it has a pair of workers, within the last TF_QUEUE_FRESH_MS */
  bool routers; /* some router is there */
  char name[160], pair_hash[40];
  uint32_t token_counts[TF_QUEUE_COUNTS_MAX], token_count_count; /* ascending */
} tf_queue_model;

typedef struct tf_queue_depth {
  int64_t waiting, encoding, decoding; /* jobs of the whole queue */
} tf_queue_depth;

tf_code tf_queue_read_model(tf_link *link, tf_queue_model *out, tf_error *error);
tf_code tf_queue_read_depth(tf_link *link, tf_queue_depth *out, tf_error *error);

/* "64,144,256" -> numbers, ascending; the count, 0 where the text is none of that. */
uint32_t tf_queue_parse_counts(const char *text, uint32_t *counts, uint32_t counts_max);
/* Numbers -> "64, 144, 256". */
void tf_queue_counts_text(const uint32_t *counts, uint32_t count, char *out, size_t out_bytes);

#endif

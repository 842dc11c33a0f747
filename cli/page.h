/* The report: one HTML page of what an output holds, with thumbnails; it needs no network and no other file.
 * In: an output's captions (JSON Lines or CSV), FILE.errors.jsonl, FILE.run.json, and the pictures themselves.
 * Out: the page, replaced at once. Memory stays bounded whatever the number of pictures. */
#ifndef TF_CLI_PAGE_H
#define TF_CLI_PAGE_H

#include <stdint.h>

#include "common/error.h"

enum {
  TF_PAGE_BATCH = 64,                             /* pictures whose thumbnails are made together */
  TF_PAGE_THUMBNAIL_SIDE = 240,                   /* pixels */
  TF_PAGE_THUMBNAILS_BYTES_MAX = 96 * 1024 * 1024 /* of all; later pictures have none, and the page says so */
};

typedef struct tf_page_config {
  const char *output; /* FILE */
  const char *page;   /* where the page goes; "-": to standard output */
  int threads;        /* for thumbnails; 0: every core */
  int64_t max_pixels;
} tf_page_config;

typedef struct tf_page_counts {
  uint64_t captions, failures, thumbnails;
} tf_page_counts;

/* Where a page may go: *target is malloc'ed, NULL for standard output ("-"). INVALID_ARGUMENT: see cli/target.h. */
tf_code tf_page_target(const char *page, const char *output, char **target, tf_error *error);
/* Errors: INVALID_ARGUMENT (as above), IO, INVALID_FORMAT (not an output of ours), OUT_OF_MEMORY, CANCELLED (a signal
 * came); then nothing changed.
 */
tf_code tf_page_write(const tf_page_config *config, tf_page_counts *counts, tf_error *error);

#endif

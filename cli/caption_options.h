/* The options of `tokenflex caption`, and what can be wrong with them before anything is started.
 * In: argv. Out: a configuration that fits together. */
#ifndef TF_CLI_CAPTION_OPTIONS_H
#define TF_CLI_CAPTION_OPTIONS_H

#include <stdint.h>

#include "cli/records.h"
#include "common/options.h"

typedef struct tf_caption_config {
  const char *output, *format, *vision_tokens, *prompt, *model, *queue, *log_level, *files_from, *within, *finish_by,
      *report;
  const char *compute, *cpu, *cache_dir; /* of a private stack */
  tf_string_list redis;                  /* none: a private stack */
  bool overwrite, retry_failed, upgrade, sidecar, recursive, no_recursive, null, shuffle, by_reference, verbose, quiet;
  int64_t max_new_tokens, max_pixels, threads, cache_dir_mib, limit, seed;
  /* What follows from the words. */
  const char **names; /* files, folders, patterns: without "-" */
  size_t name_count;
  const char *list; /* a file of names, "-": standard input; NULL: none */
  tf_format lines;
  int64_t finish_unix_ms; /* 0: no deadline */
} tf_caption_config;

extern const tf_program tf_caption_program;

/* names: the positional arguments; kept. TF_ERR_INVALID_ARGUMENT: the text says which word is wrong. */
tf_code tf_caption_check(tf_caption_config *config, const char **names, size_t name_count, tf_error *error);

#endif

/* What a run did, for people (the summary on stderr) and for programs (FILE.run.json).
 * In: settings, the model, counts and sums. Out: text. Pure. */
#ifndef TF_CLI_REPORT_H
#define TF_CLI_REPORT_H

#include <stdint.h>

#include "cli/jsonl.h"
#include "cli/queue.h"
#include "cli/records.h"
#include "cli/submit.h"

typedef struct tf_run_record {
  char run[64];             /* the run's name; ids begin with it */
  const char *state;        /* "running", "complete", "interrupted", "failed" */
  const char *const *named; /* the arguments */
  size_t named_count;
  const char *redis; /* where it ran, without credentials; NULL: a private stack */
  const char *queue;
  const char *model_dir; /* NULL on a deployment */
  const tf_submit_settings *settings;
  int64_t max_pixels;        /* private stack only */
  const char *compute, *cpu; /* what was used, never "auto"; NULL on a deployment */
  tf_queue_model model;
  int64_t started_unix_ms, ended_unix_ms; /* 0: not yet */
  int64_t working_ms;                     /* from the first image submitted to the last answer */
  uint64_t captioned, failed, skipped;
  uint64_t duplicates;                       /* of the captioned: pictures of the same bytes as another */
  uint64_t sidecars_kept;                    /* there before, and left as they were */
  uint64_t upgraded;                         /* lines of earlier runs that were replaced */
  uint64_t already;                          /* passed over: an earlier run has done them, or they are named twice */
  uint64_t output_captions, output_failures; /* pictures in the output altogether */
  bool full_detail;                          /* --upgrade found no line of fewer vision tokens */
  bool stays_auto; /* upgraded lines of a run with --vision-tokens auto: the output's setting stays that */
  bool shuffled;
  uint64_t seed;
  const char *folder; /* where relative names begin */
  tf_format format;
  double tokens_sum, timing_ms_sum[TF_JSONL_STAGE_COUNT]; /* over the captioned */
} tf_run_record;

/* Indented JSON with a newline at the end. */
tf_code tf_report_json(const tf_run_record *record, tf_buffer *out, tf_error *error);
/* A few lines, each with a newline. output, errors: names to mention, NULL: none. */
void tf_report_summary(const tf_run_record *record, const char *output, const char *errors, tf_buffer *out);
/* "2025-01-31T10:15:00Z". */
void tf_time_text(int64_t unix_ms, char *out, size_t out_bytes);

#endif

/* Where a run's lines go: FILE, FILE.errors.jsonl and FILE.run.json, or standard output.
 * In: finished lines. Out: files whose lines are whole, also when the disk is full. */
#ifndef TF_CLI_OUTPUT_H
#define TF_CLI_OUTPUT_H

#include <stdint.h>
#include <sys/types.h>

#include "common/buffer.h"
#include "common/error.h"

typedef struct tf_lines {
  char *path;      /* NULL: standard output, or nowhere */
  int fd;          /* -1: not open */
  off_t size;      /* whole lines so far */
  bool is_regular; /* can be cut back to whole lines */
} tf_lines;

typedef struct tf_output {
  tf_lines captions, errors;
  char *run_path; /* NULL: no settings are kept */
  bool begun, created;
} tf_output;

/* path NULL: standard output, and errors only on stderr. Refuses a file that is there unless overwrite
 * (TF_ERR_INVALID_ARGUMENT); opens it, so that a folder that is missing or closed shows at once (TF_ERR_IO). */
tf_code tf_output_open(tf_output *self, const char *path, bool overwrite, tf_error *error);
/* The run is about to write: what was in the files goes. Until now nothing was changed. */
tf_code tf_output_begin(tf_output *self, tf_error *error);
/* One line or more, whole. After TF_ERR_IO the file ends with the last whole line. */
tf_code tf_output_caption(tf_output *self, const tf_buffer *lines, tf_error *error);
/* The same for the errors' file, which is made at the first one. */
tf_code tf_output_failure(tf_output *self, const tf_buffer *lines, tf_error *error);
/* Replaces FILE.run.json atomically. */
tf_code tf_output_settings(tf_output *self, const tf_buffer *json, tf_error *error);
/* Syncs and closes; removes a file that this run made and never began. */
tf_code tf_output_close(tf_output *self, tf_error *error);

#endif

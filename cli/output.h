/* Where a run's lines go: FILE, FILE.errors.jsonl and FILE.run.json, or standard output.
 * In: finished lines. Out: files whose lines are whole, also when the disk is full, and durable within a second.
 * One process an output: FILE is locked for as long as it is open. */
#ifndef TF_CLI_OUTPUT_H
#define TF_CLI_OUTPUT_H

#include <stdint.h>
#include <sys/types.h>

#include "cli/records.h"
#include "common/buffer.h"
#include "common/error.h"

enum { TF_OUTPUT_GROUP_LINES_MAX = 64, TF_OUTPUT_GROUP_MS_MAX = 1000 };

typedef struct tf_lines {
  char *path;      /* NULL: standard output, or nowhere */
  int fd;          /* -1: not open */
  off_t size;      /* whole lines so far */
  bool is_regular; /* can be cut back to whole lines */
} tf_lines;

typedef struct tf_output {
  tf_lines captions, errors, upgrade; /* upgrade: takes the captions' place while it is open */
  char *run_path;                     /* NULL: no settings are kept */
  tf_format format;
  bool begun, created, silent; /* silent: captions go nowhere (path NULL) */
  size_t group_lines;          /* written, not synced yet */
  int64_t group_ms;            /* when the first of those was written */
} tf_output;

/* path NULL: standard output, and errors only on stderr. Opens FILE, or makes it, and locks it; changes nothing in it.
 * TF_ERR_INVALID_ARGUMENT: it is no regular file. TF_ERR_IO: also where another run has it. */
tf_code tf_output_open(tf_output *self, const char *path, tf_format format, tf_error *error);
/* An earlier run has left captions or failures there. */
bool tf_output_has_past(const tf_output *self);
/* FILE and the files beside it that a new beginning replaces or removes are empty, or begin as ours do.
 * TF_ERR_INVALID_ARGUMENT: the text names the one that does not. */
tf_code tf_output_is_ours(const tf_output *self, tf_error *error);
/* The same of FILE.upgrade alone, which tf_upgrade_merge removes. */
tf_code tf_output_upgrade_is_ours(const tf_output *self, tf_error *error);
/* The run is about to write. anew: what was in the files goes; else lines are added to them. */
tf_code tf_output_begin(tf_output *self, bool anew, tf_error *error);
/* One line of JSON or more, whole (CSV: one). at (may be NULL): where it begins. After TF_ERR_IO the file ends with the
 * last whole line. */
tf_code tf_output_caption(tf_output *self, const tf_buffer *lines, off_t *at, tf_error *error);
/* The same for the errors' file, which is made at the first one. */
tf_code tf_output_failure(tf_output *self, const tf_buffer *lines, tf_error *error);
/* Captions go to FILE.upgrade from here on, until tf_upgrade_merge. */
tf_code tf_output_divert(tf_output *self, tf_error *error);
/* Makes lines durable once TF_OUTPUT_GROUP_LINES_MAX of them, or TF_OUTPUT_GROUP_MS_MAX, have come together, or now. */
tf_code tf_output_sync(tf_output *self, bool now, tf_error *error);
/* Replaces FILE.run.json atomically. */
tf_code tf_output_settings(tf_output *self, const tf_buffer *json, tf_error *error);
/* The file that takes captions at the moment: -1 where it can not be read back. */
int tf_output_fd(const tf_output *self);
/* Syncs and closes; removes a file that this run made and never began. */
tf_code tf_output_close(tf_output *self, tf_error *error);

#endif

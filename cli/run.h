/* The work of `tokenflex caption`: images in, lines out, a bounded number of jobs on the way.
 * In: a ready queue, inputs, settings. Out: the output's lines, counts and sums in the record, progress on stderr.
 * One thread; every wait in it is at most a tenth of a second, but for Redis's own timeouts. */
#ifndef TF_CLI_RUN_H
#define TF_CLI_RUN_H

#include "cli/collect.h"
#include "cli/inputs.h"
#include "cli/output.h"
#include "cli/past.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/stack.h"

enum {
  TF_RUN_JOBS_MAX = 256,                  /* submitted and not answered */
  TF_RUN_BYTES_MAX = 256 * 1024 * 1024,   /* of image data in those */
  TF_RUN_RECONNECT_MS_MAX = 60 * 1000,    /* how long a lost Redis is waited for */
  TF_RUN_SILENCE_MS_MAX = 10 * 60 * 1000, /* without an answer while nobody holds a job */
  TF_RUN_EMPTY_MS_MAX = 10 * 1000         /* the same while the queue holds no job at all */
};

typedef struct tf_run_job {
  uint64_t number; /* 0: a free slot */
  char id[80];
  char *image, *path;
  uint64_t key; /* of the name, in past->names */
  size_t bytes;
} tf_run_job;

typedef struct tf_run {
  /* Set by the caller; borrowed. */
  tf_link *link;   /* NULL: there is nothing to caption, only errors to tell */
  tf_stack *stack; /* NULL: a deployment */
  tf_output *output;
  tf_progress *progress;
  tf_run_record *record;
  tf_past *past;     /* what is done already, and becomes so */
  bool retry_failed; /* earlier failures are tried again */
  tf_inputs *inputs;
  tf_inputs *counter; /* the same arguments, walked ahead to know the total */
  uint64_t total;     /* found by the counter so far */
  uint64_t found;     /* of those: not done yet */
  bool total_known;
  /* The run's own. */
  tf_run_job jobs[TF_RUN_JOBS_MAX], pending; /* pending: found, not submitted yet */
  size_t job_count, job_bytes;
  uint64_t next_number;
  bool inputs_ended;
  tf_collector collector;
  tf_rate rate;
  tf_queue_depth depth;
  bool depth_known, lost;
  int64_t first_submit_ms, last_answer_ms, quiet_ms, lost_ms, connect_ms, submit_ms, depth_ms, silence_ms;
} tf_run;

/* Counts one image of the counter. */
void tf_run_count_one(tf_run *self, const char *image);
/* Walks the counter on. names_max bounds the names looked at. */
void tf_run_count(tf_run *self, size_t names_max);
/* Until every image is answered. TF_ERR_CANCELLED: a signal came. TF_ERR_WORKER_LOST: a process of the stack ended
 * (report says which). Others: could not go on; the text says why. What was answered is in the output in every case. */
tf_code tf_run_work(tf_run *self, tf_buffer *report, tf_error *error);
/* Takes what has come meanwhile, cancels what is still out on a deployment, frees the jobs. */
void tf_run_end(tf_run *self);
/* Shows a note in place of the numbers (a tf_ready_fn; context is the run). */
void tf_run_show_note(void *context, const char *note);

#endif

/* The work of `tokenflex caption`: pictures in, lines out, a bounded number of jobs on the way.
 * In: a ready queue, pictures, settings. Out: the output's lines, sidecars, counts and sums in the record, progress on
 * stderr. One thread; every wait in it is at most a tenth of a second, but for Redis's own timeouts and the disk.
 * run.c is the loop, window.c finds and submits, tell.c writes what has ended. */
#ifndef TF_CLI_RUN_H
#define TF_CLI_RUN_H

#include "cli/deployment.h"
#include "cli/duplicates.h"
#include "cli/output.h"
#include "cli/pace.h"
#include "cli/past.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/server.h"
#include "cli/source.h"
#include "cli/stack.h"
#include "cli/upgrade.h"

enum {
  TF_RUN_JOBS_MAX = 256,                /* found and not answered */
  TF_RUN_BYTES_MAX = 256 * 1024 * 1024, /* of image data in those */
  TF_RUN_NAMES_A_TURN = 4096
};

typedef struct tf_run_job {
  uint64_t number; /* 0: a free slot */
  char id[80];
  char *image, *path;
  char *before; /* the caption that it has, of fewer tokens; NULL: it has none */
  uint64_t key; /* of the name, in past->names */
  tf_content content;
  uint64_t leader; /* number of a job of the same bytes, whose answer is this one's, too; 0: it is submitted itself */
  size_t bytes, server;
} tf_run_job;

typedef struct tf_run_options {
  bool retry_failed; /* earlier failures are tried again */
  bool sidecar;      /* a caption beside each photo */
  bool overwrite;    /* sidecars that are there */
  bool verbose;      /* each caption on stderr, with its path */
  bool quiet;        /* no progress */
  bool by_sidecars;  /* there is no output: a photo that has a sidecar is done */
  uint32_t upgrade;  /* lines of fewer vision tokens are done again; 0: none */
} tf_run_options;

typedef struct tf_run {
  /* Set by the caller; borrowed. */
  tf_server *servers;  /* ready */
  size_t server_count; /* 0: there is nothing to caption, only errors to tell */
  tf_stack *stack;     /* NULL: a deployment */
  tf_output *output;
  tf_progress *progress;
  tf_run_record *record;
  tf_past *past; /* what is done already, and becomes so */
  tf_pace *pace;
  tf_run_options options;
  tf_source *source;
  tf_source *counter; /* the same names, walked ahead to know the total */
  uint64_t total;     /* found by the counter so far, those that are done already among them */
  uint64_t found;     /* of those: not done yet */
  bool total_known;
  /* The run's own. */
  char places[TF_SERVERS_MAX][TF_DEPLOYMENT_PLACE_BYTES]; /* of the servers: they decide where an id belongs */
  tf_run_job jobs[TF_RUN_JOBS_MAX], pending;              /* pending: found, not submitted yet */
  size_t job_count, job_bytes, next_server;
  uint64_t next_number, failures_shown;
  bool names_ended, source_ended; /* source_ended: the pictures to upgrade, too */
  tf_error names_fault;           /* what ended the names early; code TF_OK: nothing */
  bool waiting;                   /* for names that have not come yet, or for jobs that are out */
  bool forecast_told, late_told;
  tf_upgrade upgrade;
  tf_duplicates duplicates;
  tf_keymap swept; /* folders of sidecars that hold nothing of killed runs any more */
  tf_rate rate;
  tf_queue_depth depth;
  bool depth_known;
  int64_t first_submit_ms, last_answer_ms, depth_ms;
} tf_run;

/* Walks the counter on. names_max bounds the names looked at. Returns what the last name was. */
tf_input_kind tf_run_count(tf_run *self, size_t names_max);
/* The deadline, where there is one: tells the routers, and a person once each what they should know. */
void tf_run_keep_pace(tf_run *self);
/* Until every picture is answered. TF_ERR_CANCELLED: a signal came. TF_ERR_WORKER_LOST: a process of the stack ended
 * (report says which). Others: could not go on; the text says why. What was answered is in the output in every case. */
tf_code tf_run_work(tf_run *self, tf_buffer *report, tf_error *error);
/* Takes what has come meanwhile, cancels what is still out on a deployment, frees the jobs. */
void tf_run_end(tf_run *self);
/* Shows a note in place of the numbers (a tf_ready_fn; context is the run). */
void tf_run_show_note(void *context, const char *note);
/* A line on stderr, above the progress. */
void tf_run_say(tf_run *self, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Pictures that are still to be done, as far as they are counted. */
uint64_t tf_run_remaining(const tf_run *self);

/* -- window.c: finding and submitting -- */

/* Submits until the window is full or this turn's share is used. *busy: there was more to do. */
tf_code tf_window_fill(tf_run *self, bool *busy, tf_error *error);
/* Tells the errors of the names, where there is nothing to caption. */
tf_code tf_window_drain(tf_run *self, tf_error *error);
/* The pending job is out: it gets a slot of the table, which is returned. */
tf_run_job *tf_window_keep_pending(tf_run *self);
void tf_window_free_job(tf_run_job *job);
/* Frees the job's slot in the table. */
void tf_window_remove(tf_run *self, tf_run_job *job);
/* Whether an earlier run has done what has this name, or it is named twice. */
bool tf_window_is_done(const tf_run *self, uint64_t key, const char *path);

/* -- tell.c: writing what has ended -- */

/* A server's answer to a job, and to those of the same bytes; the job is freed. */
tf_code tf_tell_answer(tf_run *self, tf_run_job *job, const tf_answer *answer, tf_error *error);
/* The job's own line out of first, the line of another picture of the same bytes. The job stays. */
tf_code tf_tell_duplicate(tf_run *self, const tf_run_job *job, const tf_buffer *first, tf_error *error);
tf_code tf_tell_failure(tf_run *self, const tf_run_job *job, const char *code_name, const char *message,
                        int64_t attempts, tf_error *error);

#endif

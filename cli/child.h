/* One process of the stack: started so that it can not outlive tokenflex, watched, stopped.
 * In: a program and its arguments, where its output goes. Out: a process id, its end, the last lines that it wrote.
 * Start children from the main thread only: the parent-death signal is tied to the thread that forked. */
#ifndef TF_CLI_CHILD_H
#define TF_CLI_CHILD_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "common/buffer.h"
#include "common/error.h"

enum { TF_CHILD_ARGUMENTS_MAX = 192, TF_CHILD_LOG_BYTES_MAX = 8 * 1024 * 1024 };

typedef struct tf_child {
  const char *name; /* "router" */
  pid_t pid;        /* 0: not running */
  bool ended;
  int wait_status; /* once ended */
  char log_path[160];
  int log_fd; /* -1: stderr */
} tf_child;

/* Finds a program: beside this one, else in PATH. */
tf_code tf_child_find(const char *program, char *out, size_t out_bytes, tf_error *error);

/* Starts argv (NULL-terminated, argv[0] an absolute path). log_path: where stdout and stderr go; NULL: both to our
 * stderr. */
tf_code tf_child_start(tf_child *self, const char *name, char *const *argv, const char *log_path, tf_error *error);
/* True while it runs; notes its end. Never blocks. Keeps the log below its maximum. */
bool tf_child_running(tf_child *self);
void tf_child_signal(tf_child *self, int number);
/* Waits up to wait_ms for the end, then kills. */
void tf_child_end(tf_child *self, long wait_ms);
/* Whether it has ended by itself with exit status 0. */
bool tf_child_ended_in_order(const tf_child *self);
/* "the encoder was ended by signal 9 (Killed)". */
void tf_child_obituary(const tf_child *self, tf_buffer *out);
/* Ends that line; then the last lines of its log, two blanks before each, where it has any. */
void tf_child_last_words(const tf_child *self, tf_buffer *out);
void tf_child_close(tf_child *self);

#endif

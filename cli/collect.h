/* Takes finished jobs off a reply stream. In: `tf:{Q}:reply:RUN`. Out: one answer a call of the caller's function.
 * What has been handed over is trimmed from the run's own stream, so that Redis stays small however long the run; a
 * stream that the user named is others' too, and only read. */
#ifndef TF_CLI_COLLECT_H
#define TF_CLI_COLLECT_H

#include "cli/link.h"

enum { TF_COLLECT_ENTRIES_MAX = 64 };

typedef struct tf_answer {
  const char *id;
  const char *json; /* NULL: it failed */
  size_t json_bytes;
  const char *error_code, *error_message; /* where it failed */
  int64_t attempts;
} tf_answer;

/* Anything but TF_OK ends the collecting; the entry and those after it stay in Redis. */
typedef tf_code (*tf_answer_fn)(void *context, const tf_answer *answer);

typedef struct tf_collector {
  char last[48]; /* stream id; empty: from the start */
  bool keep;     /* the stream is not this run's alone: nothing is trimmed */
} tf_collector;

/* Makes self a reader of a stream that others may read and write, too: from now on, as an old answer to an id is not
 * this run's (an id that has ended is answered anew). TF_ERR_REDIS as in tf_link_command. */
tf_code tf_collect_shared(tf_link *link, tf_collector *self, tf_error *error);

/* Hands over at most TF_COLLECT_ENTRIES_MAX answers; waits up to block_ms for the first (0: not at all).
 * TF_ERR_REDIS as in tf_link_command; else what fn returned. */
tf_code tf_collect(tf_link *link, tf_collector *self, int block_ms, tf_answer_fn fn, void *context, tf_error *error);

/* Asks the routers to drop jobs that nobody will collect. Best effort. */
void tf_collect_cancel(tf_link *link, const char *id);
/* Removes the reply stream at the end of a run. Best effort; it would expire by itself. */
void tf_collect_end(tf_link *link);

#endif

/* One Redis of a run: a link that may be lost and made again, and the reply stream that is read there.
 * In: a queue's address. Out: answers, or the news that the server stays away.
 * A run may have several; each job goes to one of them by its id. */
#ifndef TF_CLI_SERVER_H
#define TF_CLI_SERVER_H

#include "cli/collect.h"
#include "cli/queue.h"

enum {
  TF_SERVERS_MAX = 16,
  TF_SERVER_RECONNECT_MS_MAX = 10 * 60 * 1000, /* how long a lost Redis is waited for */
  TF_SERVER_SILENCE_MS_MAX = 10 * 60 * 1000,   /* without an answer while nobody holds a job */
  TF_SERVER_EMPTY_MS_MAX = 10 * 1000           /* the same while the queue holds no job at all */
};

typedef struct tf_server {
  tf_link link;
  tf_collector collector;
  size_t jobs; /* of the run, out at this server */
  bool lost;
  int64_t lost_ms, connect_ms;  /* since when, next try */
  int64_t quiet_ms, silence_ms; /* last answer or submission after a pause, last look */
  int64_t submit_ms;            /* nothing is submitted before that time: the queue was full */
} tf_server;

/* Makes a lost link again, in tries half a second apart. *news: something to tell a person, NULL: nothing.
 * TF_OK with link.context NULL: still lost. TF_ERR_REDIS: it stayed away too long. */
tf_code tf_server_look_after(tf_server *self, const char **news, tf_error *error);
/* TF_ERR_REDIS, TF_ERR_TIMEOUT: the jobs that are out will never be answered. */
tf_code tf_server_look_for_silence(tf_server *self, tf_error *error);

#endif

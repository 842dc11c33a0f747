/* The connection of a run to its queue's Redis, which may be lost and made again.
 * In: a Redis URL, a queue, the name of the run's reply stream. Out: replies to commands; the names of the keys.
 * Blocking, with a timeout on every command. One thread. */
#ifndef TF_CLI_LINK_H
#define TF_CLI_LINK_H

#include "common/error.h"
#include "common/redis.h"

enum { TF_LINK_KEY_BYTES = 256, TF_LINK_TIMEOUT_MS = 10000 };

typedef struct tf_link {
  tf_redis_url url;
  char jobs[2][TF_LINK_KEY_BYTES];                           /* interactive, batch */
  char encode[TF_LINK_KEY_BYTES], decode[TF_LINK_KEY_BYTES]; /* leases */
  char reply[TF_LINK_KEY_BYTES], model[TF_LINK_KEY_BYTES], routers[TF_LINK_KEY_BYTES], cancel[TF_LINK_KEY_BYTES];
  char workers[TF_LINK_KEY_BYTES], load[TF_LINK_KEY_BYTES], called[TF_LINK_KEY_BYTES],
      pace[TF_LINK_KEY_BYTES]; /* pace: of the run that collects on this link */
  char reply_name[129];
  redisContext *context; /* NULL: not connected */
  char submit_sha[41];   /* of submit.lua on this connection's server; empty: not loaded yet */
} tf_link;

/* Checks and keeps the names; connects nothing. reply_name NULL: this link collects nothing. */
tf_code tf_link_init(tf_link *self, const char *url, const char *queue, const char *reply_name, tf_error *error);
/* Connects where it is not connected. TF_ERR_REDIS with a text for the user. */
tf_code tf_link_connect(tf_link *self, tf_error *error);
void tf_link_close(tf_link *self);
/* A command of count parts. *out may be an error reply; the caller frees it. TF_ERR_REDIS: the connection is lost (and
 * closed). */
tf_code tf_link_command(tf_link *self, size_t count, const char **parts, const size_t *sizes, redisReply **out,
                        tf_error *error);
/* The same of NUL-terminated strings, ended by NULL; an error reply becomes TF_ERR_REDIS. */
tf_code tf_link_ask(tf_link *self, redisReply **out, tf_error *error, ...) __attribute__((sentinel));
/* The number that a command answers (a text is read as one, nothing is 0); a key and two more words, NULL: fewer. */
tf_code tf_link_ask_number(tf_link *self, int64_t *out, tf_error *error, const char *command, const char *key,
                           const char *from, const char *to);
/* What a reply says as a number. */
int64_t tf_link_number(const redisReply *reply);
/* "redis://host:port/db" or "unix:///path": fit to be shown and kept, without user and password. */
void tf_link_place(const tf_link *self, char *out, size_t out_bytes);

#endif

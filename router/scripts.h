/* The Lua scripts as calls: loaded at every connect, run by their hash.
 * In: a script's number and its arguments after the prefix. Out: the reply; NULL where no answer came or Redis refused.
 * A refusal (NOSCRIPT after a flush: the scripts are loaded again) changed nothing; callers ask again in either case.
 */
#ifndef TF_ROUTER_SCRIPTS_H
#define TF_ROUTER_SCRIPTS_H

#include "common/metrics.h"
#include "router/redis_async.h"

typedef enum tf_script {
  TF_SCRIPT_CLAIM,
  TF_SCRIPT_ASSIGN,
  TF_SCRIPT_STAGE,
  TF_SCRIPT_RENEW,
  TF_SCRIPT_COMMIT,
  TF_SCRIPT_FAIL,
  TF_SCRIPT_RELEASE,
  TF_SCRIPT_BEAT,
  TF_SCRIPT_CANCEL,
  TF_SCRIPT_SWEEP,
  TF_SCRIPT_POLICY,
  TF_SCRIPT_PUBLISH,
  TF_SCRIPT_COUNT
} tf_script;

enum { TF_ARGUMENTS_MAX = 1024, TF_REDIS_KEY_BYTES_MAX = 512 };

/* Arguments of one call: numbers are written into `text`, strings are borrowed until the call. */
typedef struct tf_arguments {
  int count;
  bool overflow; /* more than fit: the call is refused */
  size_t text_used;
  const char *items[TF_ARGUMENTS_MAX];
  size_t sizes[TF_ARGUMENTS_MAX];
  char text[TF_ARGUMENTS_MAX * 12];
} tf_arguments;

void tf_arguments_clear(tf_arguments *self);
void tf_arguments_add(tf_arguments *self, const char *text); /* NULL: "" */
void tf_arguments_add_bytes(tf_arguments *self, const char *data, size_t size);
void tf_arguments_add_int(tf_arguments *self, int64_t value);

typedef struct tf_scripts tf_scripts;

typedef struct tf_scripts_events {
  void (*ready)(void *context); /* scripts are loaded */
  void (*lost)(void *context);
  void *context;
} tf_scripts_events;

/* queue: a valid name. Errors: OUT_OF_MEMORY. */
tf_code tf_scripts_new(tf_reactor *reactor, const tf_redis_url *url, const char *queue, tf_metrics *metrics,
                       const tf_scripts_events *events, tf_scripts **out);
void tf_scripts_free(tf_scripts **self);
bool tf_scripts_is_ready(const tf_scripts *self);
/* False, and no callback: not ready, too much in flight, or the arguments overflowed. fn's reply is never an error. */
bool tf_scripts_call(tf_scripts *self, tf_script script, const tf_arguments *arguments, tf_redis_reply_fn fn,
                     void *context);
/* A plain command, its words as arguments (the first is the command's name); the same rules. */
bool tf_scripts_command(tf_scripts *self, const tf_arguments *words, tf_redis_reply_fn fn, void *context);
/* A plain command that may be forbidden: fn's reply may be an error, which is neither logged nor counted. */
bool tf_scripts_try(tf_scripts *self, int count, const char **words, tf_redis_reply_fn fn, void *context);
/* XREAD of the entries after `cursor` in "tf:{queue}:suffix", count at most; the same rules. */
bool tf_scripts_read(tf_scripts *self, const char *suffix, int count, const char *cursor, tf_redis_reply_fn fn,
                     void *context);
/* Its reply's entries, each {stream id, {field, value...}}; NULL where there are none. Borrowed from the reply. */
const redisReply *tf_scripts_entries(const redisReply *reply);
/* "tf:{queue}:suffix" into out, which holds TF_REDIS_KEY_BYTES_MAX. */
void tf_scripts_key(const tf_scripts *self, const char *suffix, char *out);

#endif

/* Redis for the command line. In: commands. Out: replies, or the news that the connection is gone.
 * A connection that failed once is closed: hiredis can not know what of a reply was already read.
 * What to do then, and for how long, is the run's to decide. */
#include "cli/link.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS_MAX = 32 };

tf_code tf_link_init(tf_link *self, const char *url, const char *queue, const char *reply_name, tf_error *error) {
  memset(self, 0, sizeof *self);
  tf_code code = tf_redis_url_parse(url, &self->url, error);
  if (code) return code;
  char reply[160], pace[160];
  snprintf(self->reply_name, sizeof self->reply_name, "%s", reply_name ? reply_name : "");
  snprintf(pace, sizeof pace, "pace:%s", self->reply_name);
  snprintf(reply, sizeof reply, "reply:%s", self->reply_name);
  struct {
    const char *suffix;
    char *key;
  } keys[] = {{"jobs:0", self->jobs[0]},      {"jobs:1", self->jobs[1]},
              {"lease:encode", self->encode}, {"lease:decode", self->decode},
              {"model", self->model},         {"routers", self->routers},
              {"cancel", self->cancel},       {reply, self->reply},
              {"load", self->load},           {pace, self->pace},
              {"workers", self->workers},     {"called", self->called}};
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
    if (tf_redis_key(queue, keys[i].suffix, keys[i].key, TF_LINK_KEY_BYTES))
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--queue %.80s: a name is 1 to 64 of A-Z a-z 0-9 . _ -", queue);
  return TF_OK;
}

tf_code tf_link_connect(tf_link *self, tf_error *error) {
  if (self->context) return TF_OK;
  self->submit_sha[0] = '\0';
  return tf_redis_connect(&self->url, TF_LINK_TIMEOUT_MS, &self->context, error);
}

void tf_link_close(tf_link *self) {
  if (self->context) redisFree(self->context);
  self->context = NULL;
}

tf_code tf_link_command(tf_link *self, size_t count, const char **parts, const size_t *sizes, redisReply **out,
                        tf_error *error) {
  *out = NULL;
  if (!self->context) {
    tf_fail(error, TF_ERR_REDIS, "not connected to Redis");
    return TF_ERR_REDIS;
  }
  *out = redisCommandArgv(self->context, (int)count, parts, sizes);
  if (*out) return TF_OK;
  tf_fail(error, TF_ERR_REDIS, "the connection to Redis was lost: %s", self->context->errstr);
  tf_link_close(self);
  return TF_ERR_REDIS;
}

tf_code tf_link_ask(tf_link *self, redisReply **out, tf_error *error, ...) {
  const char *parts[PARTS_MAX];
  size_t count = 0;
  va_list list;
  va_start(list, error);
  for (const char *part = va_arg(list, const char *); part && count < PARTS_MAX; part = va_arg(list, const char *))
    parts[count++] = part;
  va_end(list);
  tf_code code = tf_link_command(self, count, parts, NULL, out, error);
  if (code || (*out)->type != REDIS_REPLY_ERROR) return code;
  tf_fail(error, TF_ERR_REDIS, "Redis refused %s: %.200s", parts[0], (*out)->str);
  freeReplyObject(*out);
  *out = NULL;
  return TF_ERR_REDIS;
}

int64_t tf_link_number(const redisReply *reply) {
  if (reply->type == REDIS_REPLY_INTEGER) return reply->integer;
  return reply->type == REDIS_REPLY_STRING ? strtoll(reply->str, NULL, 10) : 0;
}

tf_code tf_link_ask_number(tf_link *self, int64_t *out, tf_error *error, const char *command, const char *key,
                           const char *from, const char *to) {
  redisReply *reply;
  tf_code code = tf_link_ask(self, &reply, error, command, key, from, to, NULL);
  if (code) return code;
  *out = tf_link_number(reply);
  freeReplyObject(reply);
  return TF_OK;
}

void tf_link_place(const tf_link *self, char *out, size_t out_bytes) {
  tf_redis_place(&self->url, out, out_bytes);
}

/* Reads answers with XREAD. In: stream entries, whose fields may be anything. Out: answers.
 * An entry without an id is passed over: it is nobody's.
 * Reading goes on after the last entry seen, also over a new connection, so that nothing is handed over twice. */
#include "cli/collect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void read_answer(const redisReply *fields, tf_answer *out) {
  memset(out, 0, sizeof *out);
  for (size_t i = 0; i + 1 < fields->elements; i += 2) {
    const redisReply *name = fields->element[i], *value = fields->element[i + 1];
    if (name->type != REDIS_REPLY_STRING || value->type != REDIS_REPLY_STRING) continue;
    if (strcmp(name->str, "id") == 0) out->id = value->str;
    if (strcmp(name->str, "json") == 0) out->json = value->str, out->json_bytes = (size_t)value->len;
    if (strcmp(name->str, "error_code") == 0) out->error_code = value->str;
    if (strcmp(name->str, "error_message") == 0) out->error_message = value->str;
    if (strcmp(name->str, "attempts") == 0) out->attempts = strtoll(value->str, NULL, 10);
  }
}

tf_code tf_collect_shared(tf_link *link, tf_collector *self, tf_error *error) {
  redisReply *reply;
  tf_code code = tf_link_ask(link, &reply, error, "TIME", NULL); /* what Redis makes stream ids of */
  if (code) return code;
  self->keep = true;
  if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 && reply->element[0]->type == REDIS_REPLY_STRING &&
      reply->element[1]->type == REDIS_REPLY_STRING) {
    int64_t now_ms =
        strtoll(reply->element[0]->str, NULL, 10) * 1000 + strtoll(reply->element[1]->str, NULL, 10) / 1000;
    snprintf(self->last, sizeof self->last, "%lld-0", (long long)now_ms - 1);
  }
  freeReplyObject(reply);
  return TF_OK;
}

static void trim(tf_link *link, const tf_collector *self) {
  redisReply *reply;
  if (self->last[0] && tf_link_ask(link, &reply, NULL, "XTRIM", link->reply, "MINID", self->last, NULL) == TF_OK)
    freeReplyObject(reply);
}

/* The entries of the one stream that was asked for, or NULL. */
static const redisReply *entries_of(const redisReply *reply) {
  if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 1) return NULL;
  const redisReply *stream = reply->element[0];
  if (stream->type != REDIS_REPLY_ARRAY || stream->elements != 2) return NULL;
  return stream->element[1]->type == REDIS_REPLY_ARRAY ? stream->element[1] : NULL;
}

tf_code tf_collect(tf_link *link, tf_collector *self, int block_ms, tf_answer_fn fn, void *context, tf_error *error) {
  char block[16], count[16];
  snprintf(block, sizeof block, "%d", block_ms);
  snprintf(count, sizeof count, "%d", TF_COLLECT_ENTRIES_MAX);
  const char *from = self->last[0] ? self->last : "0";
  redisReply *reply;
  tf_code code = block_ms > 0
                     ? tf_link_ask(link, &reply, error, "XREAD", "COUNT", count, "BLOCK", block, "STREAMS", link->reply,
                                   from, NULL)
                     : tf_link_ask(link, &reply, error, "XREAD", "COUNT", count, "STREAMS", link->reply, from, NULL);
  if (code) return code;
  const redisReply *entries = entries_of(reply);
  bool any = false;
  for (size_t i = 0; entries && !code && i < entries->elements; i++) {
    const redisReply *entry = entries->element[i];
    if (entry->type != REDIS_REPLY_ARRAY || entry->elements != 2 || entry->element[0]->type != REDIS_REPLY_STRING)
      continue;
    tf_answer answer = {0};
    if (entry->element[1]->type == REDIS_REPLY_ARRAY) read_answer(entry->element[1], &answer);
    if (answer.id) code = fn(context, &answer);
    if (code) break;
    snprintf(self->last, sizeof self->last, "%s", entry->element[0]->str);
    any = true;
  }
  freeReplyObject(reply);
  if (any && !self->keep) trim(link, self);
  return code;
}

void tf_collect_cancel(tf_link *link, const char *id) {
  redisReply *reply;
  if (tf_link_ask(link, &reply, NULL, "XADD", link->cancel, "*", "id", id, NULL) == TF_OK) freeReplyObject(reply);
}

void tf_collect_end(tf_link *link) {
  redisReply *reply;
  if (tf_link_ask(link, &reply, NULL, "DEL", link->reply, NULL) == TF_OK) freeReplyObject(reply);
}

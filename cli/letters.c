/* Calls the scripts of dead letters. In: keys, stream ids. Out: letters, verdicts.
 * A few letters a call: an image that a letter keeps may be large, and a script holds Redis up. */
#include "cli/letters.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lua_scripts.h"

static const char *text_at(const redisReply *reply, size_t index) {
  bool there = index < reply->elements && reply->element[index]->type == REDIS_REPLY_STRING;
  return there ? reply->element[index]->str : "";
}

static void read_letter(const redisReply *entry, tf_letter *out) {
  *out = (tf_letter){.sid = text_at(entry, 0), .id = "", .code = "", .message = "", .attempts = "", .image_bytes = -1};
  if (entry->elements < 3 || entry->element[2]->type != REDIS_REPLY_ARRAY) return;
  if (entry->element[1]->type == REDIS_REPLY_INTEGER) out->image_bytes = entry->element[1]->integer;
  out->fields = entry->element[2];
  for (size_t i = 0; i + 1 < out->fields->elements; i += 2) {
    const char *name = text_at(out->fields, i), *value = text_at(out->fields, i + 1);
    if (strcmp(name, "id") == 0) out->id = value;
    if (strcmp(name, "error_code") == 0) out->code = value;
    if (strcmp(name, "error_message") == 0) out->message = value;
    if (strcmp(name, "attempts") == 0) out->attempts = value;
    if (strcmp(name, "image_dropped") == 0) out->image_dropped = true;
  }
}

static tf_code last_letter(tf_link *link, const char *key, char *out, size_t out_bytes, tf_error *error) {
  redisReply *reply;
  out[0] = '\0';
  tf_code code = tf_link_ask(link, &reply, error, "XREVRANGE", key, "+", "-", "COUNT", "1", NULL);
  if (code) return code;
  if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 && reply->element[0]->type == REDIS_REPLY_ARRAY)
    snprintf(out, out_bytes, "%s", text_at(reply->element[0], 0));
  freeReplyObject(reply);
  return TF_OK;
}

tf_code tf_letters_each(const tf_deployment *deployment, tf_link *link, const char *code_wanted, const char *id,
                        tf_letter_fn fn, void *context, tf_error *error) {
  char key[TF_LINK_KEY_BYTES], last[TF_LETTER_SID_BYTES], from[TF_LETTER_SID_BYTES + 1] = "-", count[16];
  tf_deployment_key(deployment, "dead", key);
  snprintf(count, sizeof count, "%d", TF_LETTERS_A_CALL);
  tf_code code = last_letter(link, key, last, sizeof last, error);
  bool more = last[0] != '\0';
  while (!code && more) {
    redisReply *reply;
    code = tf_link_ask(link, &reply, error, "EVAL", tf_lua_letters, "1", key, from, last, count,
                       code_wanted ? code_wanted : "", id ? id : "", NULL);
    if (code) break;
    bool fine =
        reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 && reply->element[1]->type == REDIS_REPLY_ARRAY;
    const char *reached = fine ? text_at(reply, 0) : "";
    more = reached[0] != '\0';
    if (more) snprintf(from, sizeof from, "(%s", reached);
    for (size_t i = 0; fine && !code && i < reply->element[1]->elements; i++) {
      tf_letter letter;
      read_letter(reply->element[1]->element[i], &letter);
      if (letter.sid[0]) code = fn(context, &letter);
    }
    freeReplyObject(reply);
  }
  return code;
}

tf_code tf_letters_find(const tf_deployment *deployment, tf_link *link, const char *id, char sid[TF_LETTER_SID_BYTES],
                        tf_error *error) {
  char suffix[TF_LINK_KEY_BYTES], key[2 * TF_LINK_KEY_BYTES];
  sid[0] = '\0';
  tf_deployment_key(deployment, "done:", suffix);
  snprintf(key, sizeof key, "%s%s", suffix, id);
  redisReply *reply;
  tf_code code = tf_link_ask(link, &reply, error, "GET", key, NULL);
  if (code) return code;
  if (reply->type == REDIS_REPLY_STRING && strncmp(reply->str, "d ", 2) == 0)
    snprintf(sid, TF_LETTER_SID_BYTES, "%s", reply->str + 2);
  freeReplyObject(reply);
  return TF_OK;
}

tf_code tf_letters_settle(const tf_deployment *deployment, tf_link *link, const char *action,
                          const char (*sids)[TF_LETTER_SID_BYTES], size_t count, redisReply **reply, tf_error *error) {
  char dead[TF_LINK_KEY_BYTES], prefix[TF_LINK_KEY_BYTES];
  tf_deployment_key(deployment, "dead", dead);
  tf_deployment_key(deployment, "", prefix);
  const char *parts[8 + TF_LETTERS_A_CALL] = {"EVAL",        tf_lua_retry,  "3",    dead,
                                              link->jobs[0], link->jobs[1], prefix, action};
  for (size_t i = 0; i < count; i++) parts[8 + i] = sids[i];
  tf_code code = tf_link_command(link, 8 + count, parts, NULL, reply, error);
  if (code) return code;
  bool fine = (*reply)->type == REDIS_REPLY_ARRAY && (*reply)->elements == count;
  for (size_t i = 0; fine && i < count; i++) fine = (*reply)->element[i]->type == REDIS_REPLY_STRING;
  if (fine) return TF_OK;
  tf_fail(error, TF_ERR_REDIS, "Redis refused: %.300s",
          (*reply)->type == REDIS_REPLY_ERROR ? (*reply)->str : "no list");
  freeReplyObject(*reply);
  *reply = NULL;
  return TF_ERR_REDIS;
}

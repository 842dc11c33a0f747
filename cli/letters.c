/* Calls the scripts of dead letters over a link. In: stream ids. Out: letters, verdicts.
 * What is said and answered is in common/letters.h, as routers say it too. */
#include "cli/letters.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static tf_code last_letter(tf_link *link, const char *key, char *out, size_t out_bytes, tf_error *error) {
  redisReply *reply;
  out[0] = '\0';
  tf_code code = tf_link_ask(link, &reply, error, "XREVRANGE", key, "+", "-", "COUNT", "1", NULL);
  if (code) return code;
  tf_letter letter;
  if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 && tf_letter_read(reply->element[0], &letter))
    snprintf(out, out_bytes, "%s", letter.sid);
  freeReplyObject(reply);
  return TF_OK;
}

/* An error reply becomes TF_ERR_REDIS. */
static tf_code ask(tf_link *link, const char **words, size_t count, redisReply **reply, tf_error *error) {
  tf_code code = tf_link_command(link, count, words, NULL, reply, error);
  if (code || (*reply)->type != REDIS_REPLY_ERROR) return code;
  tf_fail(error, TF_ERR_REDIS, "Redis refused: %.300s", (*reply)->str);
  freeReplyObject(*reply);
  *reply = NULL;
  return TF_ERR_REDIS;
}

tf_code tf_letters_each(const tf_deployment *deployment, tf_link *link, const char *code_wanted, const char *id,
                        tf_letter_fn fn, void *context, tf_error *error) {
  char key[TF_LINK_KEY_BYTES], last[TF_LETTER_SID_BYTES], from[TF_LETTER_SID_BYTES + 1] = "-", count[16];
  tf_deployment_key(deployment, "dead", key);
  snprintf(count, sizeof count, "%d", TF_LETTERS_A_CALL);
  tf_code code = last_letter(link, key, last, sizeof last, error);
  bool more = last[0] != '\0';
  while (!code && more) {
    const char *words[TF_LETTERS_READ_WORDS], *reached;
    const tf_letters_range range = {.first = from, .last = last, .code = code_wanted, .id = id};
    redisReply *reply;
    code = ask(link, words, tf_letters_read_words(key, &range, count, words), &reply, error);
    if (code) break;
    const redisReply *letters = tf_letters_of(reply, &reached);
    more = reached[0] != '\0';
    if (more) snprintf(from, sizeof from, "(%s", reached);
    for (size_t i = 0; letters && !code && i < letters->elements; i++) {
      tf_letter letter;
      if (tf_letter_read(letters->element[i], &letter)) code = fn(context, &letter);
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
  const char *const keys[] = {dead, link->jobs[0], link->jobs[1]};
  const char *words[TF_LETTERS_SETTLE_WORDS];
  size_t used = tf_letters_settle_words(keys, prefix, action, sids, count, words);
  tf_code code = ask(link, words, used, reply, error);
  if (code) return code;
  if (tf_letters_are_verdicts(*reply, count)) return TF_OK;
  freeReplyObject(*reply);
  *reply = NULL;
  return tf_fail(error, TF_ERR_REDIS, "Redis refused: no list");
}

/* Reads a queue's own account of itself. In: Redis. Out: model and depth.
 * Waiting is what the streams hold less what has a live lease, as the router counts it. */
#include "cli/queue.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static tf_code redis_now_ms(tf_link *link, int64_t *out, tf_error *error) {
  redisReply *reply;
  tf_code code = tf_link_ask(link, &reply, error, "TIME", NULL);
  if (code) return code;
  bool fine = reply->type == REDIS_REPLY_ARRAY && reply->elements == 2;
  if (fine) *out = tf_link_number(reply->element[0]) * 1000 + tf_link_number(reply->element[1]) / 1000;
  freeReplyObject(reply);
  return fine ? TF_OK : tf_fail(error, TF_ERR_REDIS, "Redis does not tell the time");
}

uint32_t tf_queue_parse_counts(const char *text, uint32_t *counts, uint32_t counts_max) {
  uint32_t count = 0;
  while (*text) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (end == text || value < 1 || value > 65536 || (*end && *end != ',') || count == counts_max) return 0;
    if (count > 0 && counts[count - 1] >= value) return 0;
    counts[count++] = (uint32_t)value;
    text = *end ? end + 1 : end;
  }
  return count;
}

void tf_queue_counts_text(const uint32_t *counts, uint32_t count, char *out, size_t out_bytes) {
  size_t at = 0;
  if (out_bytes > 0) out[0] = '\0';
  for (uint32_t i = 0; i < count && at < out_bytes; i++) {
    int written = snprintf(out + at, out_bytes - at, "%s%u", i > 0 ? ", " : "", counts[i]);
    at += written > 0 ? (size_t)written : 0;
  }
}

static void copy_text(const redisReply *reply, char *out, size_t out_bytes) {
  snprintf(out, out_bytes, "%s", reply->type == REDIS_REPLY_STRING ? reply->str : "");
}

tf_code tf_queue_read_model(tf_link *link, tf_queue_model *out, tf_error *error) {
  memset(out, 0, sizeof *out);
  int64_t now_ms = 0, routers = 0;
  char now[32], counts[256];
  tf_code code = redis_now_ms(link, &now_ms, error);
  if (code) return code;
  snprintf(now, sizeof now, "(%lld", (long long)now_ms);
  code = tf_link_ask_number(link, &routers, error, "ZCOUNT", link->routers, now, "+inf");
  if (code) return code;
  out->routers = routers > 0;
  redisReply *reply;
  code =
      tf_link_ask(link, &reply, error, "HMGET", link->model, "token_counts", "model", "pair_hash", "updated_ms", NULL);
  if (code) return code;
  if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 4) {
    copy_text(reply->element[0], counts, sizeof counts);
    copy_text(reply->element[1], out->name, sizeof out->name);
    copy_text(reply->element[2], out->pair_hash, sizeof out->pair_hash);
    out->token_count_count = tf_queue_parse_counts(counts, out->token_counts, TF_QUEUE_COUNTS_MAX);
    out->live = out->token_count_count > 0 && now_ms - tf_link_number(reply->element[3]) < TF_QUEUE_FRESH_MS;
  }
  freeReplyObject(reply);
  return TF_OK;
}

tf_code tf_queue_read_depth(tf_link *link, tf_queue_depth *out, tf_error *error) {
  int64_t now_ms = 0, interactive = 0, batch = 0;
  char now[32];
  memset(out, 0, sizeof *out);
  tf_code code = redis_now_ms(link, &now_ms, error);
  snprintf(now, sizeof now, "(%lld", (long long)now_ms);
  if (!code) code = tf_link_ask_number(link, &interactive, error, "XLEN", link->jobs[0], NULL, NULL);
  if (!code) code = tf_link_ask_number(link, &batch, error, "XLEN", link->jobs[1], NULL, NULL);
  if (!code) code = tf_link_ask_number(link, &out->encoding, error, "ZCOUNT", link->encode, now, "+inf");
  if (!code) code = tf_link_ask_number(link, &out->decoding, error, "ZCOUNT", link->decode, now, "+inf");
  if (code) return code;
  out->waiting = interactive + batch - out->encoding - out->decoding;
  if (out->waiting < 0) out->waiting = 0; /* the numbers are of slightly different moments */
  return TF_OK;
}

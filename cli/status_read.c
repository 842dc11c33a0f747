/* Reads a queue's account of itself. In: Redis; what routers wrote there, which is checked like any input.
 * Out: tf_status. Nothing is written, and no command is longer than the queue has workers. */
#include "cli/status_read.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- parsing ------------------------------------------------------------------------------------------------------ */

void tf_status_parse_reals(const char *text, double *out, size_t count) {
  for (size_t i = 0; i < count; i++) {
    char *end = NULL;
    double value = *text ? strtod(text, &end) : 0;
    out[i] = end && end != text && isfinite(value) ? value : 0;
    text = end ? end : text;
    if (*text == ',') text++;
  }
}

static void copy_string(const json_t *object, const char *key, char *out, size_t out_bytes) {
  const char *text = json_string_value(json_object_get(object, key));
  snprintf(out, out_bytes, "%s", text ? text : "");
}

bool tf_status_parse_worker(const char *instance, const char *json, size_t json_bytes, int64_t now_ms,
                            tf_status_worker *out) {
  memset(out, 0, sizeof *out);
  json_t *root = json_loadb(json, json_bytes, 0, NULL);
  if (!json_is_object(root)) {
    json_decref(root);
    return false;
  }
  snprintf(out->instance, sizeof out->instance, "%s", instance);
  copy_string(root, "role", out->role, sizeof out->role);
  copy_string(root, "model", out->model, sizeof out->model);
  copy_string(root, "pair_hash", out->pair_hash, sizeof out->pair_hash);
  copy_string(root, "version", out->version, sizeof out->version);
  out->jobs_out = json_integer_value(json_object_get(root, "jobs_out"));
  out->jobs_max = json_integer_value(json_object_get(root, "jobs_max"));
  out->kv_out = json_integer_value(json_object_get(root, "kv_out"));
  out->kv_max = json_integer_value(json_object_get(root, "kv_max"));
  out->draining = json_is_true(json_object_get(root, "draining"));
  int64_t heard_ms = json_integer_value(json_object_get(root, "heard_ms"));
  out->silent_ms = heard_ms > 0 && heard_ms < now_ms ? now_ms - heard_ms : 0;
  const json_t *times = json_object_get(root, "service_ms");
  size_t count = json_array_size(times);
  out->service_ms = count > 0 ? json_number_value(json_array_get(times, count - 1)) : 0;
  json_decref(root);
  return true;
}

bool tf_status_worker_is_gone(const tf_status_worker *worker) {
  return worker->silent_ms > TF_STATUS_GONE_MS;
}

static int by_count(const void *a, const void *b) {
  const tf_status_error *left = a, *right = b;
  if (left->count != right->count) return left->count < right->count ? 1 : -1;
  return strcmp(left->code, right->code);
}

size_t tf_status_parse_errors(const char *json, tf_status_error *out, size_t count_max) {
  json_t *root = json_loads(json, 0, NULL), *value;
  const char *code;
  size_t count = 0;
  json_object_foreach(root, code, value) {
    if (count == count_max || json_integer_value(value) <= 0) continue;
    snprintf(out[count].code, sizeof out[count].code, "%s", code);
    out[count++].count = json_integer_value(value);
  }
  json_decref(root);
  if (count > 1) qsort(out, count, sizeof *out, by_count);
  return count;
}

static int by_role_and_name(const void *a, const void *b) {
  const tf_status_worker *left = a, *right = b;
  int role = strcmp(left->role, right->role);
  return role ? role : strcmp(left->instance, right->instance);
}

/* -- reading ------------------------------------------------------------------------------------------------------ */

static const char *text_of(const redisReply *reply) {
  return reply->type == REDIS_REPLY_STRING ? reply->str : "";
}

static tf_code ask_length(const tf_deployment *deployment, tf_link *link, const char *command, const char *suffix,
                          int64_t *out, tf_error *error) {
  char key[TF_LINK_KEY_BYTES];
  tf_deployment_key(deployment, suffix, key);
  return tf_link_ask_number(link, out, error, command, key, NULL, NULL);
}

static tf_code now_of(tf_link *link, int64_t *out, tf_error *error) {
  redisReply *reply;
  *out = 0;
  tf_code code = tf_link_ask(link, &reply, error, "TIME", NULL);
  if (code) return code;
  if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2)
    *out = strtoll(text_of(reply->element[0]), NULL, 10) * 1000 + strtoll(text_of(reply->element[1]), NULL, 10) / 1000;
  freeReplyObject(reply);
  return TF_OK;
}

/* What the routers' scripts count. XINFO STREAM could tell it too, but hands out entries: pictures and prompts. */
static tf_code ask_ended(const tf_deployment *deployment, tf_link *link, int64_t *out, tf_error *error) {
  char key[TF_LINK_KEY_BYTES];
  redisReply *reply;
  tf_deployment_key(deployment, "ended", key);
  tf_code code = tf_link_ask(link, &reply, error, "GET", key, NULL);
  if (code) return code;
  *out = strtoll(text_of(reply), NULL, 10);
  freeReplyObject(reply);
  return TF_OK;
}

static tf_code read_depth(const tf_deployment *deployment, tf_link *link, int64_t now_ms, tf_status *out,
                          tf_error *error) {
  char now[32];
  snprintf(now, sizeof now, "(%lld", (long long)now_ms);
  tf_code code = tf_queue_read_depth(link, &out->depth, error);
  if (!code) code = tf_link_ask_number(link, &out->interactive, error, "XLEN", link->jobs[0], NULL, NULL);
  if (!code) code = tf_link_ask_number(link, &out->batch, error, "XLEN", link->jobs[1], NULL, NULL);
  if (!code) code = tf_link_ask_number(link, &out->routers, error, "ZCOUNT", link->routers, now, "+inf");
  if (!code) code = ask_length(deployment, link, "ZCARD", "retry", &out->retrying, error);
  if (!code) code = ask_length(deployment, link, "XLEN", "results", &out->results, error);
  if (!code) code = ask_length(deployment, link, "XLEN", "dead", &out->dead, error);
  return code ? code : ask_ended(deployment, link, &out->ended, error);
}

static tf_code read_load(const tf_deployment *deployment, tf_link *link, int64_t now_ms, tf_status *out,
                         tf_error *error) {
  static const char *const names[] = {
      "updated_ms",     "arrivals_per_s", "budget",          "target_wait_ms", "encode_workers",
      "decode_workers", "encode_wanted",  "decode_wanted",   "counts",         "mix",
      "capacity_per_s", "errors",         "maxmemory_policy"};
  enum { NAMES = sizeof names / sizeof names[0] };
  char key[TF_LINK_KEY_BYTES];
  const char *parts[NAMES + 2] = {"HMGET", key};
  redisReply *reply;
  tf_deployment_key(deployment, "load", key);
  memcpy(parts + 2, names, sizeof names);
  tf_code code = tf_link_command(link, NAMES + 2, parts, NULL, &reply, error);
  if (code) return code;
  if (reply->type == REDIS_REPLY_ARRAY && reply->elements == NAMES) {
    const char *values[NAMES];
    for (size_t i = 0; i < NAMES; i++) values[i] = text_of(reply->element[i]);
    int64_t age_ms = now_ms - strtoll(values[0], NULL, 10);
    out->load_age_ms = !values[0][0] ? -1 : age_ms > 0 ? age_ms : 0;
    out->load_known = values[0][0] && age_ms < TF_STATUS_LOAD_OLD_MS && out->routers > 0;
    double *const reals[] = {&out->arrivals_per_s, &out->budget, &out->target_wait_ms};
    int64_t *const numbers[] = {&out->encode_workers, &out->decode_workers, &out->encode_wanted, &out->decode_wanted};
    for (size_t i = 0; i < 3; i++) tf_status_parse_reals(values[1 + i], reals[i], 1);
    for (size_t i = 0; i < 4; i++) *numbers[i] = strtoll(values[4 + i], NULL, 10);
    out->count_count = tf_queue_parse_counts(values[8], out->counts, TF_QUEUE_COUNTS_MAX);
    tf_status_parse_reals(values[9], out->mix, out->count_count);
    tf_status_parse_reals(values[10], out->capacity_per_s, out->count_count);
    snprintf(out->maxmemory_policy, sizeof out->maxmemory_policy, "%s", out->load_known ? values[12] : "");
    out->error_count = tf_status_parse_errors(values[11], out->errors, TF_STATUS_ERRORS_MAX);
  }
  freeReplyObject(reply);
  return TF_OK;
}

static tf_code read_workers(const tf_deployment *deployment, tf_link *link, int64_t now_ms, tf_status *out,
                            tf_error *error) {
  char key[TF_LINK_KEY_BYTES];
  redisReply *reply;
  tf_deployment_key(deployment, "workers", key);
  tf_code code = tf_link_ask(link, &reply, error, "HGETALL", key, NULL);
  if (code) return code;
  size_t count = reply->type == REDIS_REPLY_ARRAY ? reply->elements / 2 : 0;
  if (count > TF_STATUS_WORKERS_MAX) count = TF_STATUS_WORKERS_MAX;
  out->workers = calloc(count > 0 ? count : 1, sizeof *out->workers);
  for (size_t i = 0; out->workers && i < count; i++) {
    const redisReply *name = reply->element[2 * i], *json = reply->element[2 * i + 1];
    if (json->type != REDIS_REPLY_STRING) continue;
    if (tf_status_parse_worker(text_of(name), json->str, (size_t)json->len, now_ms, &out->workers[out->worker_count]))
      out->worker_count++;
  }
  freeReplyObject(reply);
  if (!out->workers) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  if (out->worker_count > 1) qsort(out->workers, out->worker_count, sizeof *out->workers, by_role_and_name);
  return TF_OK;
}

tf_code tf_status_read(const tf_deployment *deployment, tf_link *link, tf_status *out, tf_error *error) {
  int64_t now_ms;
  memset(out, 0, sizeof *out);
  tf_code code = tf_link_connect(link, error);
  if (!code) code = now_of(link, &now_ms, error);
  if (!code) code = tf_queue_read_model(link, &out->model, error);
  if (!code) code = read_depth(deployment, link, now_ms, out, error);
  if (!code) code = read_load(deployment, link, now_ms, out, error);
  if (!code) code = read_workers(deployment, link, now_ms, out, error);
  out->reachable = code == TF_OK;
  if (code) snprintf(out->problem, sizeof out->problem, "%s", error->text);
  return code;
}

void tf_status_free(tf_status *self) {
  free(self->workers);
  self->workers = NULL;
  self->worker_count = 0;
}

/* Load and workers, told once a second. In: load, workers. Out: publish.lua calls, gauges.
 * No call is owed an answer: the next one says it all again. */
#include "router/publish.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/buffer.h"

enum { VALUE_BYTES = 16 * 16, LOAD_FIELDS_MAX = 16 };

struct tf_publish {
  tf_publish_parts parts;
  int timer;
  bool recalled; /* what routers knew before this one has been read: it is not written over unread */
  size_t turn;   /* the first worker of the next turn */
  char *jsons[TF_PUBLISH_WORKERS_MAX];
  size_t json_count;
  char budgets[TF_PACES_MAX][24];
  struct {
    const char *name;
    char value[VALUE_BYTES];
  } fields[LOAD_FIELDS_MAX];
  size_t field_count;
  char size_text[12];
  tf_arguments arguments;
};

static void ignore_reply(void *context, const redisReply *reply) {
  (void)context;
  (void)reply;
}

/* --- Load --- */

static char *add_field(tf_publish *self, const char *name) {
  self->fields[self->field_count].name = name;
  return self->fields[self->field_count++].value;
}

static void add_number(tf_publish *self, const char *name, double value, int digits) {
  snprintf(add_field(self, name), VALUE_BYTES, "%.*f", digits, isfinite(value) ? value : 0);
}

/* "92.1,93,94.7"; "" where nothing is known. */
static void add_numbers(tf_publish *self, const char *name, const double *values, size_t count) {
  char *out = add_field(self, name);
  size_t used = 0;
  bool known = false;
  out[0] = 0;
  for (size_t i = 0; i < count && used < VALUE_BYTES; i++) {
    double value = isfinite(values[i]) && values[i] > 0 ? values[i] : 0;
    known = known || value > 0;
    used += (size_t)snprintf(out + used, VALUE_BYTES - used, "%s%.6g", i ? "," : "", value);
  }
  if (!known) out[0] = 0;
}

/* Workers wanted, for an autoscaler that reads JSON; not known without a fresh reading of Redis: it must not take old
 * numbers for new. */
static void tell_wanted(tf_publish *self, double encoders, double llms) {
  char text[TF_HEALTH_TEXT_BYTES_MAX];
  bool known = self->recalled && tf_scripts_is_ready(self->parts.scripts) && tf_load_is_fresh(self->parts.load);
  snprintf(text, sizeof text, "{\"encoder\":%.0f,\"llm\":%.0f}\n", encoders, llms);
  tf_health_publish(self->parts.health, "/wanted", "application/json", known ? text : NULL);
}

static void make_load(tf_publish *self) {
  const tf_policy_load *load = tf_load_now(self->parts.load);
  const tf_policy_state *state = tf_load_state(self->parts.load);
  tf_policy_config config = tf_load_config(self->parts.load);
  double counts[TF_POLICY_COUNTS_MAX], capacity[TF_POLICY_COUNTS_MAX], encoders, llms;
  for (uint32_t i = 0; i < load->count_count; i++) {
    counts[i] = load->counts[i];
    capacity[i] = tf_policy_capacity_per_s(load, counts[i]);
  }
  tf_policy_demand(&config, state, load, &encoders, &llms);
  self->field_count = 0;
  add_number(self, "arrivals_per_s", state->rate.per_s, 3);
  add_number(self, "budget", state->budget, 1);
  add_numbers(self, "counts", counts, load->count_count);
  add_number(self, "encode_workers", load->encode.workers, 0);
  add_number(self, "decode_workers", load->decode.workers, 0);
  add_numbers(self, "encode_service_ms", load->encode.service_ms, load->count_count);
  add_numbers(self, "decode_service_ms", load->decode.service_ms, load->count_count);
  add_numbers(self, "encode_latency_ms", load->encode.latency_ms, load->count_count);
  add_numbers(self, "decode_latency_ms", load->decode.latency_ms, load->count_count);
  add_numbers(self, "capacity_per_s", capacity, load->count_count);
  add_number(self, "encode_wanted", ceil(encoders), 0);
  add_number(self, "decode_wanted", ceil(llms), 0);
  add_number(self, "target_wait_ms", (double)config.target_wait_ms, 0);
  snprintf(add_field(self, "maxmemory_policy"), VALUE_BYTES, "%s", tf_eviction_policy(self->parts.eviction));
  tf_router_stats_load(self->parts.stats, load, state, ceil(encoders), ceil(llms));
  tell_wanted(self, ceil(encoders), ceil(llms));
}

/* --- Workers --- */

static json_t *times_of(const double *values, uint32_t count) {
  json_t *out = json_array();
  bool known = false;
  for (uint32_t i = 0; i < count; i++) known = known || values[i] > 0;
  for (uint32_t i = 0; known && i < count; i++) json_array_append_new(out, json_real(round(values[i] * 100) / 100));
  return out;
}

/* NULL: out of memory. The caller frees. */
static char *worker_json(const tf_publish *self, const tf_worker *worker) {
  json_t *root = json_object(), *counts = json_array();
  int64_t silent_ms = tf_now_ms() - worker->heard_ms;
  int64_t heard_ms = tf_redis_clock_us(self->parts.clock) / 1000 - silent_ms;
  for (uint32_t i = 0; i < worker->token_count_count; i++)
    json_array_append_new(counts, json_integer(worker->token_counts[i]));
  json_object_set_new(root, "role", json_string(worker->role == TF_ROLE_LLM ? "llm" : "encoder"));
  json_object_set_new(root, "model", json_string(worker->model));
  json_object_set_new(root, "pair_hash", json_string(worker->pair_hash));
  json_object_set_new(root, "version", json_string(worker->version));
  json_object_set_new(root, "jobs_out", json_integer(worker->jobs_all));
  json_object_set_new(root, "jobs_max", json_integer(worker->jobs_all_max));
  json_object_set_new(root, "kv_out", json_integer(worker->kv_all));
  json_object_set_new(root, "kv_max", json_integer(worker->kv_all_max));
  json_object_set_new(root, "draining", json_boolean(worker->draining));
  json_object_set_new(root, "counts", counts);
  json_object_set_new(root, "service_ms", times_of(worker->service_ms, worker->token_count_count));
  json_object_set_new(root, "latency_ms", times_of(worker->latency_ms, worker->token_count_count));
  json_object_set_new(root, "started_ms", json_integer(worker->started_unix_ms));
  json_object_set_new(root, "heard_ms", json_integer(heard_ms));
  json_object_set_new(root, "router", json_string(self->parts.instance));
  char *text = json_dumps(root, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(15));
  json_decref(root);
  return text;
}

/* Adds the workers whose turn it is, as (instance, JSON) arguments. */
static size_t add_workers(tf_publish *self) {
  size_t all =
      tf_workers_count(self->parts.workers, TF_ROLE_ENCODER) + tf_workers_count(self->parts.workers, TF_ROLE_LLM);
  size_t at = 0, first = self->turn < all ? self->turn : 0;
  const tf_worker *worker = tf_workers_first(self->parts.workers);
  self->json_count = 0;
  for (; worker && self->json_count < TF_PUBLISH_WORKERS_MAX;
       worker = tf_workers_next(self->parts.workers, worker), at++) {
    if (at < first) continue;
    char *json = worker_json(self, worker);
    if (!json) break;
    tf_arguments_add(&self->arguments, worker->instance);
    tf_arguments_add(&self->arguments, json);
    self->jsons[self->json_count++] = json;
  }
  self->turn = worker ? at : 0;
  return self->json_count;
}

void tf_publish_worker_gone(tf_publish *self, const char *instance) {
  char key[TF_REDIS_KEY_BYTES_MAX];
  tf_scripts_key(self->parts.scripts, "workers", key);
  tf_arguments_clear(&self->arguments);
  tf_arguments_add(&self->arguments, "HDEL");
  tf_arguments_add(&self->arguments, key);
  tf_arguments_add(&self->arguments, instance);
  tf_scripts_command(self->parts.scripts, &self->arguments, ignore_reply, self);
}

/* --- Once a second --- */

static void set_number(tf_publish *self, size_t at, char text[12], size_t value) {
  snprintf(text, 12, "%zu", value);
  self->arguments.items[at] = text;
  self->arguments.sizes[at] = strlen(text);
}

static void publish(tf_publish *self) {
  tf_arguments *arguments = &self->arguments;
  tf_arguments_clear(arguments);
  tf_arguments_add_int(arguments, TF_PUBLISH_INTERVAL_MS);
  tf_arguments_add_int(arguments, TF_PUBLISH_WORKER_KEPT_MS);
  tf_arguments_add_int(arguments, (int64_t)(2 * self->field_count));
  for (size_t i = 0; i < self->field_count; i++) {
    tf_arguments_add(arguments, self->fields[i].name);
    tf_arguments_add(arguments, self->fields[i].value);
  }
  size_t size_at = (size_t)arguments->count;
  tf_arguments_add(arguments, "0");
  set_number(self, size_at, self->size_text, 2 * add_workers(self));
  double budget;
  const char *name;
  for (size_t i = 0; (name = tf_load_pace_at(self->parts.load, i, &budget)) != NULL; i++) {
    snprintf(self->budgets[i], sizeof self->budgets[i], "%.1f", budget);
    tf_arguments_add(arguments, name);
    tf_arguments_add(arguments, self->budgets[i]);
  }
  tf_scripts_call(self->parts.scripts, TF_SCRIPT_PUBLISH, arguments, ignore_reply, self);
  for (size_t i = 0; i < self->json_count; i++) free(self->jsons[i]); /* the call has copied them */
  self->json_count = 0;
}

static const char *text_of(const redisReply *reply) {
  return reply->type == REDIS_REPLY_STRING ? reply->str : "";
}

static void on_recalled(void *context, const redisReply *reply) {
  tf_publish *self = context;
  bool first = !self->recalled && tf_scripts_is_ready(self->parts.scripts);
  if (reply && reply->type == REDIS_REPLY_ARRAY && reply->elements == 3)
    tf_load_recall(self->parts.load, text_of(reply->element[0]), text_of(reply->element[1]),
                   text_of(reply->element[2]));
  if (!first) return;
  self->recalled = true; /* a key of a wrong type tells nothing: then all is told anew */
  make_load(self);
  publish(self);
}

/* What jobs cost, as any router last knew it: so that all answer alike while nobody is there to measure. */
static void recall(tf_publish *self) {
  char key[TF_REDIS_KEY_BYTES_MAX];
  tf_scripts_key(self->parts.scripts, "load", key);
  tf_arguments_clear(&self->arguments);
  const char *words[] = {"HMGET", key, "counts", "encode_service_ms", "decode_service_ms"};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) tf_arguments_add(&self->arguments, words[i]);
  tf_scripts_command(self->parts.scripts, &self->arguments, on_recalled, self);
}

static void on_timer(void *context) {
  tf_publish *self = context;
  make_load(self);
  if (!tf_scripts_is_ready(self->parts.scripts)) return;
  if (!self->recalled || tf_load_is_unmeasured(self->parts.load)) recall(self);
  if (self->recalled) publish(self);
}

tf_code tf_publish_new(const tf_publish_parts *parts, tf_publish **out) {
  tf_publish *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->parts = *parts;
  tf_health_publish(parts->health, "/wanted", "application/json", NULL);
  self->timer = tf_reactor_add_timer(parts->reactor, TF_PUBLISH_MS, true, on_timer, self);
  if (self->timer < 0) {
    free(self);
    return TF_ERR_OUT_OF_MEMORY;
  }
  *out = self;
  return TF_OK;
}

void tf_publish_free(tf_publish **self) {
  if (!self || !*self) return;
  tf_reactor_remove_timer((*self)->parts.reactor, (*self)->timer);
  free(*self);
  *self = NULL;
}

/* The Lua scripts as calls. In: script numbers and arguments. Out: replies that are never errors, or NULL.
 * Every script is the prelude and its own body; SCRIPT LOAD tells its hash, EVALSHA runs it. All take the same keys. */
#include "router/scripts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "lua_scripts.h"

enum { KEY_COUNT = 10, HASH_BYTES = 41, ERRORS_LOGGED_EVERY_MS = 1000 };

static const char *const key_suffixes[KEY_COUNT] = {"jobs:0",       "jobs:1", "results", "dead",    "lease:encode",
                                                    "lease:decode", "retry",  "cancel",  "routers", "model"};
static const struct {
  const char *name, *body;
} bodies[TF_SCRIPT_COUNT] = {
    [TF_SCRIPT_CLAIM] = {"claim", tf_lua_claim},       [TF_SCRIPT_ASSIGN] = {"assign", tf_lua_assign},
    [TF_SCRIPT_STAGE] = {"stage", tf_lua_stage},       [TF_SCRIPT_RENEW] = {"renew", tf_lua_renew},
    [TF_SCRIPT_COMMIT] = {"commit", tf_lua_commit},    [TF_SCRIPT_FAIL] = {"fail", tf_lua_fail},
    [TF_SCRIPT_RELEASE] = {"release", tf_lua_release}, [TF_SCRIPT_BEAT] = {"beat", tf_lua_beat},
    [TF_SCRIPT_CANCEL] = {"cancel", tf_lua_cancel},    [TF_SCRIPT_SWEEP] = {"sweep", tf_lua_sweep},
    [TF_SCRIPT_POLICY] = {"policy", tf_lua_policy},    [TF_SCRIPT_PUBLISH] = {"publish", tf_lua_publish},
};

struct tf_scripts {
  tf_redis_async *redis;
  tf_scripts_events events;
  char queue[72], prefix[96];
  char keys[KEY_COUNT][TF_REDIS_KEY_BYTES_MAX];
  char hashes[TF_SCRIPT_COUNT][HASH_BYTES];
  int loads_left; /* SCRIPT LOADs without an answer */
  bool ready;
  tf_metric *latency, *errors;
  int64_t error_logged_ms;
};

/* One call on its way. */
typedef struct call {
  tf_scripts *owner;
  const char *what;
  tf_redis_reply_fn fn;
  void *context;
} call;

/* One SCRIPT LOAD on its way. */
typedef struct load {
  tf_scripts *owner;
  tf_script script;
} load;

void tf_arguments_clear(tf_arguments *self) {
  self->count = 0;
  self->text_used = 0;
  self->overflow = false;
}

void tf_arguments_add_bytes(tf_arguments *self, const char *data, size_t size) {
  if (self->count == TF_ARGUMENTS_MAX) {
    self->overflow = true;
    return;
  }
  self->items[self->count] = data ? data : "";
  self->sizes[self->count++] = data ? size : 0;
}

void tf_arguments_add(tf_arguments *self, const char *text) {
  tf_arguments_add_bytes(self, text, text ? strlen(text) : 0);
}

void tf_arguments_add_int(tf_arguments *self, int64_t value) {
  char *at = self->text + self->text_used;
  size_t room = sizeof self->text - self->text_used;
  int written = snprintf(at, room, "%" PRId64, value);
  if (written < 0 || (size_t)written >= room) {
    self->overflow = true;
    return;
  }
  self->text_used += (size_t)written;
  tf_arguments_add_bytes(self, at, (size_t)written);
}

static void script_loaded(void *context, const redisReply *reply) {
  load *done = context;
  tf_scripts *self = done->owner;
  tf_script script = done->script;
  free(done);
  if (!reply) return; /* the connection went; the next one loads again */
  if (reply->type != REDIS_REPLY_STRING || reply->len != HASH_BYTES - 1) {
    tf_log_error("redis_script_refused", TF_STR("script", bodies[script].name),
                 TF_STR("reason", reply->type == REDIS_REPLY_ERROR ? reply->str : "unexpected answer"));
    tf_redis_async_reconnect(self->redis);
    return;
  }
  memcpy(self->hashes[script], reply->str, HASH_BYTES);
  if (--self->loads_left > 0) return;
  self->ready = true;
  self->events.ready(self->events.context);
}

static void load_scripts(tf_scripts *self) {
  self->ready = false;
  self->loads_left = TF_SCRIPT_COUNT;
  for (int i = 0; i < TF_SCRIPT_COUNT; i++) {
    size_t prelude = strlen(tf_lua_prelude), body = strlen(bodies[i].body);
    char *source = malloc(prelude + body + 1);
    load *started = calloc(1, sizeof *started);
    bool sent = false;
    if (source && started) {
      memcpy(source, tf_lua_prelude, prelude);
      memcpy(source + prelude, bodies[i].body, body);
      source[prelude + body] = 0;
      *started = (load){.owner = self, .script = (tf_script)i};
      const char *words[3] = {"SCRIPT", "LOAD", source};
      size_t sizes[3] = {6, 4, prelude + body};
      sent = tf_redis_async_command(self->redis, 3, words, sizes, script_loaded, started);
    }
    free(source);
    if (sent) continue;
    free(started);
    tf_redis_async_reconnect(self->redis);
    return;
  }
}

static void on_connected(void *context) {
  load_scripts(context);
}

static void on_lost(void *context) {
  tf_scripts *self = context;
  bool was_ready = self->ready;
  self->ready = false;
  if (was_ready) self->events.lost(self->events.context);
}

static void on_latency(void *context, double seconds) {
  tf_scripts *self = context;
  tf_metric_observe(self->latency, seconds);
}

tf_code tf_scripts_new(tf_reactor *reactor, const tf_redis_url *url, const char *queue, tf_metrics *metrics,
                       const tf_scripts_events *events, tf_scripts **out) {
  static const double bounds[] = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5};
  tf_scripts *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->events = *events;
  snprintf(self->queue, sizeof self->queue, "%s", queue);
  snprintf(self->prefix, sizeof self->prefix, "tf:{%s}:", self->queue);
  for (int i = 0; i < KEY_COUNT; i++) tf_scripts_key(self, key_suffixes[i], self->keys[i]);
  self->latency =
      tf_metrics_histogram(metrics, "tokenflex_redis_seconds", "", "Time from a Redis command to its answer", bounds,
                           sizeof bounds / sizeof *bounds);
  self->errors = tf_metrics_counter(metrics, "tokenflex_redis_errors_total", "", "Redis commands that were refused");
  tf_redis_events hooks = {.connected = on_connected, .lost = on_lost, .latency = on_latency, .context = self};
  tf_code code = tf_redis_async_new(reactor, url, &hooks, &self->redis);
  if (code != TF_OK) {
    free(self);
    return code;
  }
  *out = self;
  return TF_OK;
}

void tf_scripts_free(tf_scripts **self) {
  if (!self || !*self) return;
  (*self)->ready = false; /* nobody asks on while callbacks get their last NULL */
  tf_redis_async_free(&(*self)->redis);
  free(*self);
  *self = NULL;
}

bool tf_scripts_is_ready(const tf_scripts *self) {
  return self->ready && tf_redis_async_is_connected(self->redis);
}

void tf_scripts_key(const tf_scripts *self, const char *suffix, char *out) {
  snprintf(out, TF_REDIS_KEY_BYTES_MAX, "%s%s", self->prefix, suffix);
}

/* Says what Redis refused (once a second at most) and does what heals it. */
static void refused(tf_scripts *self, const char *what, const char *reason) {
  tf_metric_add(self->errors, 1);
  int64_t now_ms = tf_now_ms();
  if (now_ms - self->error_logged_ms >= ERRORS_LOGGED_EVERY_MS) {
    self->error_logged_ms = now_ms;
    tf_log_error("redis_error", TF_STR("command", what), TF_STR("reason", reason));
  }
  if (!strncmp(reason, "NOSCRIPT", 8)) {
    if (self->ready) load_scripts(self);
  } else if (!strncmp(reason, "READONLY", 8) || !strncmp(reason, "NOAUTH", 6) || !strncmp(reason, "MASTERDOWN", 10)) {
    tf_redis_async_reconnect(self->redis);
  }
}

static void call_answered(void *context, const redisReply *reply) {
  call *done = context;
  if (reply && reply->type == REDIS_REPLY_ERROR) {
    refused(done->owner, done->what, reply->str);
    reply = NULL;
  }
  done->fn(done->context, reply);
  free(done);
}

static bool send_call(tf_scripts *self, const char *what, int count, const char **words, const size_t *sizes,
                      tf_redis_reply_fn fn, void *context) {
  call *started = calloc(1, sizeof *started);
  if (!started) return false;
  *started = (call){.owner = self, .what = what, .fn = fn, .context = context};
  if (tf_redis_async_command(self->redis, count, words, sizes, call_answered, started)) return true;
  free(started);
  return false;
}

bool tf_scripts_call(tf_scripts *self, tf_script script, const tf_arguments *arguments, tf_redis_reply_fn fn,
                     void *context) {
  enum { BEFORE = 3 + KEY_COUNT + 1 };
  if (!tf_scripts_is_ready(self) || arguments->overflow) return false;
  const char *words[BEFORE + TF_ARGUMENTS_MAX] = {"EVALSHA", self->hashes[script], "10"};
  size_t sizes[BEFORE + TF_ARGUMENTS_MAX] = {7, HASH_BYTES - 1, 2};
  _Static_assert(KEY_COUNT == 10, "the third word says how many keys follow");
  for (int i = 0; i < KEY_COUNT; i++) {
    words[3 + i] = self->keys[i];
    sizes[3 + i] = strlen(self->keys[i]);
  }
  words[BEFORE - 1] = self->prefix;
  sizes[BEFORE - 1] = strlen(self->prefix);
  memcpy(words + BEFORE, arguments->items, (size_t)arguments->count * sizeof *words);
  memcpy(sizes + BEFORE, arguments->sizes, (size_t)arguments->count * sizeof *sizes);
  return send_call(self, bodies[script].name, BEFORE + arguments->count, words, sizes, fn, context);
}

bool tf_scripts_command(tf_scripts *self, const tf_arguments *words, tf_redis_reply_fn fn, void *context) {
  if (!tf_scripts_is_ready(self) || words->overflow || words->count == 0) return false;
  const char *items[TF_ARGUMENTS_MAX];
  memcpy(items, words->items, (size_t)words->count * sizeof *items);
  return send_call(self, items[0], words->count, items, words->sizes, fn, context);
}

bool tf_scripts_try(tf_scripts *self, int count, const char **words, tf_redis_reply_fn fn, void *context) {
  enum { WORDS_MAX = 8 };
  size_t sizes[WORDS_MAX];
  if (!tf_scripts_is_ready(self) || count > WORDS_MAX) return false;
  for (int i = 0; i < count; i++) sizes[i] = strlen(words[i]);
  return tf_redis_async_command(self->redis, count, words, sizes, fn, context);
}

bool tf_scripts_read(tf_scripts *self, const char *suffix, int count, const char *cursor, tf_redis_reply_fn fn,
                     void *context) {
  if (!tf_scripts_is_ready(self)) return false;
  char key[TF_REDIS_KEY_BYTES_MAX], count_text[12];
  tf_scripts_key(self, suffix, key);
  snprintf(count_text, sizeof count_text, "%d", count);
  const char *words[] = {"XREAD", "COUNT", count_text, "STREAMS", key, cursor};
  size_t sizes[] = {5, 5, strlen(count_text), 7, strlen(key), strlen(cursor)};
  return send_call(self, words[0], sizeof words / sizeof *words, words, sizes, fn, context);
}

/* reply: {{key, {{stream id, {field, value...}}...}}}, or nil. */
const redisReply *tf_scripts_entries(const redisReply *reply) {
  if (!reply || reply->type != REDIS_REPLY_ARRAY || reply->elements != 1) return NULL;
  const redisReply *stream = reply->element[0];
  if (stream->type != REDIS_REPLY_ARRAY || stream->elements != 2) return NULL;
  return stream->element[1]->type == REDIS_REPLY_ARRAY ? stream->element[1] : NULL;
}

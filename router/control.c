/* The control stream. In: entries, one field a wish. Out: DRAIN messages.
 * Read from its beginning (routers keep ten minutes of it): a worker's instance is unique to its start, so that an old
 * wish can only ever mean the worker that it meant then. A worker that drains already ignores another DRAIN. */
#include "router/control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

enum { CURSOR_BYTES = 48 };

struct tf_control {
  tf_control_parts parts;
  int timer;
  bool reading;
  char cursor[CURSOR_BYTES];
  char drains[TF_CONTROL_DRAINS_MAX][TF_INSTANCE_BYTES_MAX + 1];
  size_t drain_count; /* ever; the newest are kept */
};

static void send_drain(tf_control *self, const tf_worker *worker) {
  tf_message message = {.type = TF_MESSAGE_DRAIN, .u.drain.instance = worker->instance};
  tf_error error;
  tf_code code = tf_wire_send(self->parts.socket, worker->peer, worker->peer_size, &message, NULL, &error);
  if (code == TF_OK)
    tf_log_info("worker_told_to_drain", TF_STR("instance", worker->instance));
  else
    tf_log_warn("drain_not_sent", TF_STR("instance", worker->instance), TF_STR("reason", error.text));
}

void tf_control_hello(tf_control *self, const tf_worker *worker) {
  size_t kept = self->drain_count < TF_CONTROL_DRAINS_MAX ? self->drain_count : TF_CONTROL_DRAINS_MAX;
  for (size_t i = 0; i < kept; i++) {
    if (strcmp(self->drains[i], worker->instance) != 0) continue;
    send_drain(self, worker);
    return;
  }
}

static void drain(tf_control *self, const char *instance, size_t size) {
  if (size == 0 || size > TF_INSTANCE_BYTES_MAX || memchr(instance, 0, size)) return;
  char *kept = self->drains[self->drain_count++ % TF_CONTROL_DRAINS_MAX];
  memcpy(kept, instance, size);
  kept[size] = 0;
  for (tf_worker *w = tf_workers_first(self->parts.workers); w; w = tf_workers_next(self->parts.workers, w))
    if (!strcmp(w->instance, kept)) send_drain(self, w);
}

static void obey(tf_control *self, const redisReply *fields) {
  for (size_t i = 0; fields->type == REDIS_REPLY_ARRAY && i + 1 < fields->elements; i += 2) {
    const redisReply *name = fields->element[i], *value = fields->element[i + 1];
    bool strings = name->type == REDIS_REPLY_STRING && value->type == REDIS_REPLY_STRING;
    if (strings && name->len == 5 && !memcmp(name->str, "drain", 5)) drain(self, value->str, value->len);
  }
}

static void on_read(void *context, const redisReply *reply) {
  tf_control *self = context;
  self->reading = false;
  const redisReply *entries = tf_scripts_entries(reply);
  for (size_t i = 0; entries && i < entries->elements; i++) {
    const redisReply *entry = entries->element[i];
    if (entry->type != REDIS_REPLY_ARRAY || entry->elements != 2) continue;
    if (entry->element[0]->type == REDIS_REPLY_STRING && entry->element[0]->len < sizeof self->cursor)
      snprintf(self->cursor, sizeof self->cursor, "%s", entry->element[0]->str);
    obey(self, entry->element[1]);
  }
}

static void on_timer(void *context) {
  tf_control *self = context;
  if (self->reading) return;
  self->reading = tf_scripts_read(self->parts.scripts, "control", TF_CONTROL_READ_MAX, self->cursor, on_read, self);
}

tf_code tf_control_new(const tf_control_parts *parts, tf_control **out) {
  tf_control *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->parts = *parts;
  snprintf(self->cursor, sizeof self->cursor, "0-0");
  self->timer = tf_reactor_add_timer(parts->reactor, TF_CONTROL_POLL_MS, true, on_timer, self);
  if (self->timer < 0) {
    free(self);
    return TF_ERR_OUT_OF_MEMORY;
  }
  *out = self;
  return TF_OK;
}

void tf_control_free(tf_control **self) {
  if (!self || !*self) return;
  tf_reactor_remove_timer((*self)->parts.reactor, (*self)->timer);
  free(*self);
  *self = NULL;
}

/* Keeps a run's servers. In: links. Out: links that are connected again, or errors.
 * A queue that has gone silent while nobody works on anything will not speak again; one without a job in it never had
 * ours, or lost them: a job leaves it together with its answer. */
#include "cli/server.h"

#include "common/clock.h"

#include <stdio.h>

enum { RECONNECT_MS = 500, LOOK_MS = 1000 };

tf_code tf_server_look_after(tf_server *self, const char **news, tf_error *error) {
  int64_t now_ms = tf_now_ms();
  *news = NULL;
  if (self->link.context) return TF_OK;
  if (!self->lost) {
    self->lost = true;
    self->lost_ms = now_ms;
    self->connect_ms = now_ms;
    *news = "the connection to Redis was lost; trying again";
    return TF_OK;
  }
  if (now_ms < self->connect_ms) return TF_OK;
  self->connect_ms = now_ms + RECONNECT_MS;
  tf_error why;
  if (tf_link_connect(&self->link, &why) == TF_OK) {
    self->lost = false;
    self->quiet_ms = now_ms; /* the time without Redis is not the queue's silence */
    *news = "connected to Redis again";
    return TF_OK;
  }
  if (tf_now_ms() - self->lost_ms < TF_SERVER_RECONNECT_MS_MAX) return TF_OK;
  return tf_fail(error, TF_ERR_REDIS, "Redis stayed out of reach for %d min: %.300s",
                 TF_SERVER_RECONNECT_MS_MAX / 60000, why.text);
}

tf_code tf_server_look_for_silence(tf_server *self, tf_error *error) {
  int64_t now_ms = tf_now_ms();
  tf_queue_depth depth;
  if (self->jobs == 0 || now_ms - self->quiet_ms < TF_SERVER_EMPTY_MS_MAX) return TF_OK;
  if (now_ms - self->silence_ms < LOOK_MS || !self->link.context) return TF_OK;
  self->silence_ms = now_ms;
  tf_code code = tf_queue_read_depth(&self->link, &depth, error);
  if (code) return self->link.context ? code : TF_OK; /* lost: not silent */
  if (depth.encoding + depth.decoding > 0) return TF_OK;
  if (depth.waiting == 0)
    return tf_fail(error, TF_ERR_REDIS,
                   "Redis holds neither %zu jobs of this run nor their answers: was it restarted without its data?",
                   self->jobs);
  if (now_ms - self->quiet_ms < TF_SERVER_SILENCE_MS_MAX) return TF_OK;
  return tf_fail(error, TF_ERR_TIMEOUT,
                 "nothing has come back for %d minutes, and no worker holds a job (%lld wait); is the service running?",
                 TF_SERVER_SILENCE_MS_MAX / 60000, (long long)depth.waiting);
}

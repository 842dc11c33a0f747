/* Reads monitor events: a frame of event (16 bits) and value (32 bits), then a frame with the address.
 * In: events of handshakes that failed. Out: counts, and lines that are held back where they come often; a new try.
 * A peer that goes in the middle of a handshake is everyday life for whoever binds (probes do it): counted, not told.
 */
#include "proto/wire_watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/log.h"

enum {
  EVENTS_A_TURN_MAX = 64,
  EVENTS_KEPT_MAX = 8192,
  TOLD_EVERY_MS = 10000,
  RECONNECT_MS = 2000,
  EVENT_BYTES = 6,
  WATCHED = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
            ZMQ_EVENT_HANDSHAKE_FAILED_AUTH
};

struct tf_wire_watch {
  void *socket, *monitor;
  tf_reactor *reactor;
  tf_metrics *metrics;
  char *endpoint;
  bool binds, keyed;
  int reconnect_timer; /* -1: none runs */
  int64_t told_ms[TF_HANDSHAKE_FAILURES];
  uint64_t untold[TF_HANDSHAKE_FAILURES];
};
static const char *const names[TF_HANDSHAKE_FAILURES] = {"key_refused", "closed", "mechanism", "server_key",
                                                         "protocol"};

tf_handshake_failure tf_handshake_judge(int event, uint32_t value, bool binds, bool keyed, const char **meaning) {
  *meaning = "";
  if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) {
    *meaning = binds ? "its key is not allowed here (--curve-allow)"
                     : "the other side does not allow our key (its --curve-allow)";
    return TF_HANDSHAKE_KEY_REFUSED;
  }
  if (event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) {
    *meaning = binds   ? "the other side went before the end of the handshake"
               : keyed ? "the other side ended the handshake: its key may be another than --curve-server says"
                       : "the other side ended the handshake: it may want CURVE keys, and we have none (--curve-key)";
    return TF_HANDSHAKE_CLOSED;
  }
  if (event != ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL) return TF_HANDSHAKE_FAILURES;
  if (value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH) {
    *meaning = keyed ? "we have CURVE keys and the other side has none (its --curve-key)"
                     : "the other side has CURVE keys and we have none (--curve-key)";
    return TF_HANDSHAKE_MECHANISM;
  }
  if (value == ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC) {
    *meaning = binds ? "it expects another server key than ours (its --curve-server)"
                     : "its server key is another than --curve-server says";
    return TF_HANDSHAKE_SERVER_KEY;
  }
  *meaning = "the other side does not speak our protocol";
  return TF_HANDSHAKE_PROTOCOL;
}

/* libzmq gives an endpoint up for good where the other side said no; it may say yes later (a key is added, a port is
 * taken over), so that we ask again. What was queued is lost with the old pipe. */
static void on_reconnect(void *context) {
  tf_wire_watch *self = context;
  self->reconnect_timer = -1;
  zmq_disconnect(self->socket, self->endpoint); /* fails where libzmq has forgotten it already */
  if (zmq_connect(self->socket, self->endpoint) != 0)
    tf_log_error("reconnect_failed", TF_STR("endpoint", self->endpoint), TF_STR("reason", zmq_strerror(zmq_errno())));
}

static void forget_reconnect(tf_wire_watch *self) {
  if (self->reconnect_timer >= 0) tf_reactor_remove_timer(self->reactor, self->reconnect_timer);
  self->reconnect_timer = -1;
}

static void on_event(tf_wire_watch *self, int event, uint32_t value) {
  const char *meaning;
  if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) forget_reconnect(self);
  tf_handshake_failure failure = tf_handshake_judge(event, value, self->binds, self->keyed, &meaning);
  if (failure == TF_HANDSHAKE_FAILURES) return;
  char label[64];
  snprintf(label, sizeof label, "reason=\"%s\"", names[failure]);
  tf_metric_add(tf_metrics_counter(self->metrics, "tokenflex_handshakes_failed_total", label,
                                   "Connections between the tiers that ended in their handshake"),
                1);
  if (!self->binds && failure != TF_HANDSHAKE_CLOSED && self->reconnect_timer < 0)
    self->reconnect_timer = tf_reactor_add_timer(self->reactor, RECONNECT_MS, false, on_reconnect, self);
  if (self->binds && failure == TF_HANDSHAKE_CLOSED) return;
  int64_t now_ms = tf_now_ms();
  if (self->told_ms[failure] != 0 && now_ms - self->told_ms[failure] < TOLD_EVERY_MS) {
    self->untold[failure]++;
    return;
  }
  self->told_ms[failure] = now_ms;
  tf_log_warn("handshake_failed", TF_STR(self->binds ? "bind" : "endpoint", self->endpoint), TF_STR("reason", meaning),
              TF_INT("untold", self->untold[failure]));
  self->untold[failure] = 0;
}

static void on_monitor(void *context, void *monitor) {
  tf_wire_watch *self = context;
  for (int i = 0; i < EVENTS_A_TURN_MAX; i++) {
    unsigned char bytes[EVENT_BYTES];
    char address[1];
    int size = zmq_recv(monitor, bytes, sizeof bytes, ZMQ_DONTWAIT), more = 0;
    if (size < 0) return;
    size_t more_bytes = sizeof more;
    while (zmq_getsockopt(monitor, ZMQ_RCVMORE, &more, &more_bytes) == 0 && more)
      if (zmq_recv(monitor, address, sizeof address, ZMQ_DONTWAIT) < 0) return;
    if (size != EVENT_BYTES) continue;
    uint16_t event;
    uint32_t value;
    memcpy(&event, bytes, sizeof event);
    memcpy(&value, bytes + sizeof event, sizeof value);
    on_event(self, event, value);
  }
}

tf_wire_watch *tf_wire_watch_new(void *zmq_context, tf_reactor *reactor, tf_metrics *metrics, void *socket,
                                 const char *endpoint, bool binds, bool keyed) {
  tf_wire_watch *self = calloc(1, sizeof *self);
  if (!self) return NULL;
  *self = (tf_wire_watch){
      .socket = socket, .reactor = reactor, .metrics = metrics, .binds = binds, .keyed = keyed, .reconnect_timer = -1};
  char name[64];
  snprintf(name, sizeof name, "inproc://tokenflex-watch-%p", (void *)self);
  int linger_ms = 0, kept_max = EVENTS_KEPT_MAX;
  self->endpoint = strdup(endpoint);
  bool monitored = self->endpoint && zmq_socket_monitor(socket, name, WATCHED) == 0;
  self->monitor = monitored ? zmq_socket(zmq_context, ZMQ_PAIR) : NULL;
  if (self->monitor && zmq_setsockopt(self->monitor, ZMQ_LINGER, &linger_ms, sizeof linger_ms) == 0 &&
      zmq_setsockopt(self->monitor, ZMQ_RCVHWM, &kept_max, sizeof kept_max) == 0 &&
      zmq_connect(self->monitor, name) == 0 && tf_reactor_add_socket(reactor, self->monitor, on_monitor, self) == TF_OK)
    return self;
  if (monitored) zmq_socket_monitor(socket, NULL, 0);
  if (self->monitor) zmq_close(self->monitor);
  free(self->endpoint);
  free(self);
  return NULL;
}

void tf_wire_watch_free(tf_wire_watch **self_in) {
  tf_wire_watch *self = *self_in;
  *self_in = NULL;
  if (!self) return;
  forget_reconnect(self);
  tf_reactor_remove_socket(self->reactor, self->monitor);
  zmq_socket_monitor(self->socket, NULL, 0);
  zmq_close(self->monitor);
  free(self->endpoint);
  free(self);
}

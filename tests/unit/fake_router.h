/* A router for tests: the other end of the workers' DEALERs, driven step by step. In: an endpoint. Out: messages, with
 * timeouts. Everything is called from the test's own thread. */
#ifndef TF_TESTS_FAKE_ROUTER_H
#define TF_TESTS_FAKE_ROUTER_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "common/clock.h"
#include "proto/wire.h"

typedef struct fake_peer {
  char id[256];
  size_t size;
} fake_peer;

typedef struct fake_router {
  void *socket;
  const char *instance, *queue;
} fake_router;

static inline void fake_open(fake_router *self, void *zmq_context, const char *endpoint, const char *instance,
                             const char *queue) {
  *self = (fake_router){.socket = tf_wire_socket(zmq_context, ZMQ_ROUTER), .instance = instance, .queue = queue};
  cr_assert_not_null(self->socket);
  cr_assert_eq(zmq_bind(self->socket, endpoint), 0, "%s: %s", endpoint, zmq_strerror(zmq_errno()));
}

static inline void fake_close(fake_router *self) {
  if (self->socket != NULL) zmq_close(self->socket);
  self->socket = NULL;
}

/* The next message of any type; false on timeout. The caller clears *out. */
static inline bool fake_receive(fake_router *self, int64_t timeout_ms, tf_message *out) {
  int64_t until_ms = tf_now_ms() + timeout_ms;
  for (;;) {
    tf_error error;
    memset(out, 0, sizeof *out);
    tf_code code = tf_wire_receive(self->socket, true, out, &error);
    if (code == TF_OK) return true;
    cr_assert_eq(code, TF_ERR_TIMEOUT, "%s", error.text);
    int64_t left_ms = until_ms - tf_now_ms();
    if (left_ms <= 0) return false;
    zmq_pollitem_t item = {.socket = self->socket, .events = ZMQ_POLLIN};
    zmq_poll(&item, 1, (long)left_ms);
  }
}

/* The next message of this type, others are dropped; false on timeout. The caller clears *out. */
static inline bool fake_wait(fake_router *self, tf_message_type type, int64_t timeout_ms, tf_message *out) {
  int64_t until_ms = tf_now_ms() + timeout_ms;
  while (fake_receive(self, until_ms > tf_now_ms() ? until_ms - tf_now_ms() : 0, out)) {
    if (out->type == type) return true;
    tf_message_clear(out);
    if (tf_now_ms() > until_ms) return false;
  }
  return false;
}

static inline void fake_send(fake_router *self, const fake_peer *to, const tf_message *message, zmq_msg_t *payload) {
  tf_error error = {.text = ""};
  cr_assert_eq(tf_wire_send(self->socket, to->id, to->size, message, payload, &error), TF_OK, "%s", error.text);
}

static inline void fake_hello(fake_router *self, const fake_peer *to) {
  tf_message message = {.type = TF_MESSAGE_HELLO,
                        .u.hello = {.role = TF_ROLE_ROUTER, .instance = self->instance, .queue = self->queue}};
  fake_send(self, to, &message, NULL);
}

static inline void fake_ping(fake_router *self, const fake_peer *to, uint32_t demand_jobs) {
  tf_message message = {.type = TF_MESSAGE_PING, .u.ping = {.sequence = 7, .demand_jobs = demand_jobs}};
  fake_send(self, to, &message, NULL);
}

/* Waits for a worker's HELLO, answers it, and takes the WINDOW that follows. hello and window: the caller clears. */
static inline void fake_meet(fake_router *self, fake_peer *peer, tf_message *hello, tf_message *window) {
  cr_assert(fake_wait(self, TF_MESSAGE_HELLO, 5000, hello), "no HELLO");
  peer->size = hello->peer_size;
  memcpy(peer->id, hello->peer, hello->peer_size);
  fake_hello(self, peer);
  cr_assert(fake_wait(self, TF_MESSAGE_WINDOW, 5000, window), "no WINDOW");
}

#endif

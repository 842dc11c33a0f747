/* The way of a tensor from encoder to LLM, alone: one TENSOR message over ZeroMQ, checked, acknowledged.
 * In: an endpoint (ipc:// or tcp:// on loopback), a shape. Out: samples of there and back. The receiver is a thread of
 * its own with its own socket, as the LLM's reactor is. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "bench/bench.h"
#include "common/clock.h"
#include "proto/wire.h"

enum { WAIT_MS = 5000 };

typedef struct receiver {
  void *socket;
  int calls;
} receiver;

static void wait_message(void *socket, bool router, tf_message *out) {
  tf_error error;
  zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};
  if (zmq_poll(&item, 1, WAIT_MS) != 1) bench_die("hop", "no message came");
  if (tf_wire_receive(socket, router, out, &error) != TF_OK) bench_die("hop", error.text);
}

static void *receive_main(void *argument) {
  receiver *self = argument;
  for (int i = 0; i < self->calls; i++) {
    tf_message message = {.type = 0}, ack = {.type = TF_MESSAGE_TENSOR_ACK};
    tf_error error;
    wait_message(self->socket, true, &message);
    ack.u.tensor_ack.key = message.u.tensor.key;
    if (tf_wire_send(self->socket, message.peer, message.peer_size, &ack, NULL, &error) != TF_OK)
      bench_die("hop", error.text);
    tf_message_clear(&message);
  }
  return NULL;
}

static void free_payload(void *data, void *hint) {
  (void)hint;
  free(data);
}

static void send_tensor(void *socket, int tokens, int width) {
  size_t bytes = (size_t)tokens * (size_t)width * 2;
  void *data = malloc(bytes);
  zmq_msg_t payload;
  tf_error error;
  if (data == NULL) bench_die("hop", "no memory");
  memset(data, 0, bytes);
  zmq_msg_init_data(&payload, data, bytes, free_payload, NULL);
  tf_message message = {.type = TF_MESSAGE_TENSOR,
                        .u.tensor = {.key = {"bench", "1:1-0", "1", 1, "router", NULL},
                                     .llm_instance = "llm",
                                     .encoder_instance = "encoder",
                                     .vision_tokens = (uint32_t)tokens,
                                     .width = (uint32_t)width,
                                     .grid = 16,
                                     .dtype = TF_TENSOR_F16,
                                     .pair_hash = "0123456789abcdef0123456789abcdef",
                                     .sampling = {.max_new_tokens = 15},
                                     .byte_length = bytes}};
  if (tf_wire_send(socket, NULL, 0, &message, &payload, &error) != TF_OK) bench_die("hop", error.text);
}

void bench_hop(const char *endpoint, int tokens, int width, int calls) {
  void *context = zmq_ctx_new(), *router = tf_wire_socket(context, ZMQ_ROUTER),
       *dealer = tf_wire_socket(context, ZMQ_DEALER);
  if (router == NULL || dealer == NULL || zmq_bind(router, endpoint) != 0) bench_die(endpoint, "can not be bound");
  char bound[256];
  size_t size = sizeof bound;
  zmq_getsockopt(router, ZMQ_LAST_ENDPOINT, bound, &size);
  if (zmq_connect(dealer, bound) != 0) bench_die(bound, "can not be reached");
  receiver self = {.socket = router, .calls = calls + 1};
  pthread_t id;
  if (pthread_create(&id, NULL, receive_main, &self) != 0) bench_die("hop", "no thread");
  bench_samples samples = {.count = 0};
  for (int i = 0; i < calls + 1; i++) {
    tf_message ack = {.type = 0};
    int64_t start_us = tf_now_us();
    send_tensor(dealer, tokens, width);
    wait_message(dealer, false, &ack);
    tf_message_clear(&ack);
    if (i > 0) bench_add(&samples, start_us);
  }
  pthread_join(id, NULL);
  zmq_close(router);
  zmq_close(dealer);
  zmq_ctx_term(context);
  bench_print(&samples, 1);
}

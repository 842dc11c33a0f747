/* Messages over ZeroMQ: one header frame, for JOB and TENSOR a raw payload frame, on ROUTER sockets a routing id first.
 * In: a message to send, or a socket that has input. Out: frames sent whole or not at all; one checked message.
 * Nothing here waits: every send and receive is ZMQ_DONTWAIT, and a malformed message is read to its end and dropped.
 */
#include "proto/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
  INTERRUPTS_MAX = 100,
  FRAMES_MAX = 3, /* routing id, header, payload */
  SOCKET_MESSAGES_MAX = 1024,
  HEARTBEAT_MS = 2000,
  HEARTBEAT_TIMEOUT_MS = 6000,
  HANDSHAKE_MS = 5000,
  RECONNECT_MS = 50,
  RECONNECT_MS_MAX = 2000
};

/* size: of the payload; NULL where there is none. JOB needs one unless it names a URI, TENSOR always, others never. */
static tf_code check_payload(const tf_message *message, const size_t *size, tf_error *error) {
  bool is_job = message->type == TF_MESSAGE_JOB;
  bool has_uri = is_job && message->u.job.uri && *message->u.job.uri;
  bool needed = message->type == TF_MESSAGE_TENSOR || (is_job && !has_uri);
  size_t bytes_max = is_job ? TF_IMAGE_BYTES_MAX : TF_TENSOR_BYTES_MAX;
  int type = (int)message->type;
  if (needed && !size) return tf_fail(error, TF_ERR_PROTOCOL, "message of type %d: its payload is missing", type);
  if (!needed && size) return tf_fail(error, TF_ERR_PROTOCOL, "message of type %d: a payload where none belongs", type);
  if (needed && *size > bytes_max) {
    return tf_fail(error, TF_ERR_PROTOCOL, "message of type %d: a payload of %zu bytes is too long", type, *size);
  }
  return TF_OK;
}

/* One frame, without waiting. 0, or errno. */
static int send_frame(void *socket, zmq_msg_t *frame, bool more) {
  for (int i = 0; i < INTERRUPTS_MAX; i++) {
    if (zmq_msg_send(frame, socket, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) >= 0) return 0;
    if (errno != EINTR) return errno;
  }
  return EINTR;
}

/* ZeroMQ queues a message whole or not at all: only the first frame can find the queue full, and a queue that dies
 * between the frames rolls back what it had (a DEALER then says EAGAIN, a ROUTER drops the rest in silence). So
 * nothing has to be undone here. address: NULL on a DEALER. */
static tf_code send_frames(void *socket, zmq_msg_t *address, zmq_msg_t *header, zmq_msg_t *payload, tf_error *error) {
  zmq_msg_t *frames[FRAMES_MAX];
  size_t count = 0;
  if (address) frames[count++] = address;
  frames[count++] = header;
  if (payload) frames[count++] = payload;
  for (size_t i = 0; i < count; i++) {
    int failed = send_frame(socket, frames[i], i + 1 < count);
    if (!failed) continue;
    if (failed == EHOSTUNREACH || (failed == EAGAIN && i > 0)) {
      return tf_fail(error, TF_ERR_WORKER_UNREACHABLE, "the peer is not connected");
    }
    if (failed == EAGAIN) return tf_fail(error, TF_ERR_WORKER_FULL, "the peer's queue is full");
    return tf_fail(error, TF_ERR_IO, "sending failed: %s", zmq_strerror(failed));
  }
  return TF_OK;
}

static void free_bytes(void *data, void *hint) {
  (void)hint;
  free(data);
}

tf_code tf_wire_send(void *socket, const void *peer, size_t peer_size, const tf_message *message, zmq_msg_t *payload,
                     tf_error *error) {
  uint8_t *bytes;
  size_t size, payload_size = payload ? zmq_msg_size(payload) : 0;
  tf_code code = tf_wire_encode(message, &bytes, &size, error);
  if (code != TF_OK) return code;
  code = check_payload(message, payload ? &payload_size : NULL, error);
  zmq_msg_t header, address;
  if (code == TF_OK && zmq_msg_init_data(&header, bytes, size, free_bytes, NULL) != 0) {
    code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "message: out of memory");
  }
  if (code != TF_OK) {
    free(bytes);
    return code;
  }
  if (zmq_msg_init_size(&address, peer ? peer_size : 0) != 0) {
    zmq_msg_close(&header);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "message: out of memory");
  }
  if (peer && peer_size > 0) memcpy(zmq_msg_data(&address), peer, peer_size);
  code = send_frames(socket, peer ? &address : NULL, &header, payload, error);
  zmq_msg_close(&address); /* both are empty by now where they were sent */
  zmq_msg_close(&header);
  return code;
}

/* Reads all frames of one message and keeps the first FRAMES_MAX, which must be initialised. Never waits: ZeroMQ hands
 * out a message once all of it is there. */
static tf_code receive_frames(void *socket, zmq_msg_t frames[FRAMES_MAX], size_t *count, tf_error *error) {
  zmq_msg_t spare;
  int interrupts = 0;
  *count = 0;
  zmq_msg_init(&spare);
  for (bool more = true; more;) {
    zmq_msg_t *frame = *count < FRAMES_MAX ? &frames[*count] : &spare;
    if (zmq_msg_recv(frame, socket, ZMQ_DONTWAIT) < 0) {
      if (errno == EINTR && ++interrupts < INTERRUPTS_MAX) continue;
      int failed = errno;
      zmq_msg_close(&spare);
      if (failed == EAGAIN && *count == 0) return tf_fail(error, TF_ERR_TIMEOUT, "no message is waiting");
      return tf_fail(error, TF_ERR_IO, "receiving failed: %s", zmq_strerror(failed));
    }
    (*count)++;
    more = zmq_msg_more(frame);
  }
  zmq_msg_close(&spare);
  return TF_OK;
}

/* frames[0 .. count), header first, as one message. */
static tf_code accept_frames(zmq_msg_t *frames, size_t count, tf_message *out, tf_error *error) {
  if (count == 0) return tf_fail(error, TF_ERR_PROTOCOL, "message without a header");
  if (count > 2) return tf_fail(error, TF_ERR_PROTOCOL, "message with %zu frames too many", count - 2);
  tf_code code = tf_wire_decode(zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), out, error);
  if (code != TF_OK) return code;
  size_t payload_size = count == 2 ? zmq_msg_size(&frames[1]) : 0;
  code = check_payload(out, count == 2 ? &payload_size : NULL, error);
  if (code != TF_OK || count == 1) return code;
  out->has_payload = true;
  zmq_msg_move(&out->payload, &frames[1]);
  return TF_OK;
}

tf_code tf_wire_receive(void *socket, bool router_socket, tf_message *out, tf_error *error) {
  zmq_msg_t frames[FRAMES_MAX];
  size_t count, first = router_socket ? 1 : 0;
  memset(out, 0, sizeof *out);
  for (int i = 0; i < FRAMES_MAX; i++) zmq_msg_init(&frames[i]);
  tf_code code = receive_frames(socket, frames, &count, error);
  if (code == TF_OK) {
    code = accept_frames(frames + first, count - first, out, error);
    /* Nothing of a bad message is left to the caller but whose it was. */
    if (code != TF_OK) tf_message_clear(out);
    if (router_socket) {
      size_t size = zmq_msg_size(&frames[0]);
      out->peer_size = size < sizeof out->peer ? size : sizeof out->peer;
      memcpy(out->peer, zmq_msg_data(&frames[0]), out->peer_size);
    }
  }
  for (int i = 0; i < FRAMES_MAX; i++) zmq_msg_close(&frames[i]);
  return code;
}

void *tf_wire_socket(void *zmq_context, int type) {
  static const struct {
    int option, value;
  } settings[] = {
      {ZMQ_LINGER, 0},
      {ZMQ_SNDHWM, SOCKET_MESSAGES_MAX},
      {ZMQ_RCVHWM, SOCKET_MESSAGES_MAX},
      {ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS},
      {ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS},
      {ZMQ_HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS},
      {ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS},
      {ZMQ_RECONNECT_IVL, RECONNECT_MS},
      {ZMQ_RECONNECT_IVL_MAX, RECONNECT_MS_MAX},
  };
  void *socket = zmq_socket(zmq_context, type);
  if (!socket) return NULL;
  /* ZMQ_IMMEDIATE stays off: the first HELLO or TENSOR after a connect waits for the handshake instead of failing. */
  int64_t frame_bytes_max = TF_IMAGE_BYTES_MAX > TF_TENSOR_BYTES_MAX ? TF_IMAGE_BYTES_MAX : TF_TENSOR_BYTES_MAX;
  int on = 1;
  bool ok = zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &frame_bytes_max, sizeof frame_bytes_max) == 0;
  for (size_t i = 0; ok && i < sizeof settings / sizeof settings[0]; i++) {
    ok = zmq_setsockopt(socket, settings[i].option, &settings[i].value, sizeof settings[i].value) == 0;
  }
  if (ok && type == ZMQ_ROUTER) {
    ok = zmq_setsockopt(socket, ZMQ_ROUTER_MANDATORY, &on, sizeof on) == 0 &&
         zmq_setsockopt(socket, ZMQ_ROUTER_HANDOVER, &on, sizeof on) == 0;
  }
  if (ok) return socket;
  zmq_close(socket);
  return NULL;
}

tf_code tf_wire_endpoint_check(const char *endpoint, bool binds, tf_error *error) {
  if (strncmp(endpoint, "ipc://", 6) == 0 && endpoint[6]) return TF_OK;
  if (strncmp(endpoint, "inproc://", 9) == 0 && endpoint[9]) return TF_OK;
  const char *host = strncmp(endpoint, "tcp://", 6) == 0 ? endpoint + 6 : "", *colon = strrchr(host, ':');
  if (!colon || colon == host)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "\"%.200s\": expected tcp://HOST:PORT or ipc://PATH", endpoint);
  const char *port = colon + 1;
  if (binds && strcmp(port, "*") == 0) return TF_OK;
  size_t digits = strspn(port, "0123456789");
  long number = digits > 0 && digits <= 5 && !port[digits] ? strtol(port, NULL, 10) : 0;
  if (number < 1 || number > 65535)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "\"%.200s\": the port must be a number from 1 to 65535%s", endpoint,
                   binds ? ", or *" : "");
  return TF_OK;
}

bool tf_wire_endpoint_is_local(const char *endpoint) {
  if (!endpoint) return false;
  if (strncmp(endpoint, "ipc://", 6) == 0 || strncmp(endpoint, "inproc://", 9) == 0) return true;
  if (strncmp(endpoint, "tcp://", 6) != 0) return false;
  const char *host = endpoint + 6, *colon = strrchr(host, ':');
  size_t size = colon ? (size_t)(colon - host) : 0;
  char text[64];
  if (size == 0 || size >= sizeof text) return false;
  bool bracketed = size > 2 && host[0] == '[' && host[size - 1] == ']';
  if (bracketed) {
    host++;
    size -= 2;
  }
  memcpy(text, host, size);
  text[size] = '\0';
  struct in_addr v4;
  struct in6_addr v6;
  if (bracketed) return inet_pton(AF_INET6, text, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
  if (strcmp(text, "localhost") == 0 || strcmp(text, "lo") == 0) return true;
  return inet_pton(AF_INET, text, &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127;
}

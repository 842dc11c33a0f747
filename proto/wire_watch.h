/* Handshakes that fail: a socket's own account of them, as log lines and a count.
 * In: libzmq's monitor events of one socket. Out: a line that says what to do, at most one in ten seconds for each
 * reason; tokenflex_handshakes_failed_total{reason}; a new try where libzmq would make none. On the reactor's thread.
 */
#ifndef TF_PROTO_WIRE_WATCH_H
#define TF_PROTO_WIRE_WATCH_H

#include "common/metrics.h"
#include "common/reactor.h"

typedef struct tf_wire_watch tf_wire_watch;

typedef enum tf_handshake_failure {
  TF_HANDSHAKE_KEY_REFUSED,
  TF_HANDSHAKE_CLOSED,
  TF_HANDSHAKE_MECHANISM,
  TF_HANDSHAKE_SERVER_KEY,
  TF_HANDSHAKE_PROTOCOL,
  TF_HANDSHAKE_FAILURES
} tf_handshake_failure;

/* Before zmq_bind or zmq_connect. endpoint: for the log, copied; what a socket that does not bind
 * connects to. binds: we are who is connected to. keyed: the socket has CURVE keys. NULL: out of memory
 * or of places in the reactor; nothing depends on a watch, so a caller may go on without. */
tf_wire_watch *tf_wire_watch_new(void *zmq_context, tf_reactor *reactor, tf_metrics *metrics, void *socket,
                                 const char *endpoint, bool binds, bool keyed);
/* Before zmq_close of the socket. */
void tf_wire_watch_free(tf_wire_watch **self);

/* Pure: which failure a monitor event tells of, and what that means for a person; TF_HANDSHAKE_FAILURES: none. */
tf_handshake_failure tf_handshake_judge(int event, uint32_t value, bool binds, bool keyed, const char **meaning);

#endif

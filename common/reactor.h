/* One thread's event loop over ZeroMQ sockets, file descriptors and timers (zmq_poll inside).
 * In: sockets, descriptors, timers with callbacks. Out: callbacks, all on the thread that calls tf_reactor_run.
 * Callbacks may add and remove anything, themselves included. Not thread-safe, but for tf_reactor_stop. */
#ifndef TF_COMMON_REACTOR_H
#define TF_COMMON_REACTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

typedef struct tf_reactor tf_reactor;
enum { TF_REACTOR_SOURCES_MAX = 1024, TF_REACTOR_TIMERS_MAX = 256 };
enum { TF_READABLE = 1, TF_WRITABLE = 2 };

typedef void (*tf_reactor_socket_fn)(void *context,
                                     void *socket); /* called while the socket has input; drain with a bound */
typedef void (*tf_reactor_fd_fn)(void *context, int fd, int events); /* TF_READABLE | TF_WRITABLE */
typedef void (*tf_reactor_timer_fn)(void *context);

tf_reactor *tf_reactor_new(void);
void tf_reactor_free(tf_reactor **self);
tf_code tf_reactor_add_socket(tf_reactor *self, void *zmq_socket, tf_reactor_socket_fn fn, void *context);
void tf_reactor_remove_socket(tf_reactor *self, void *zmq_socket);
/* Adds fd, or changes what an fd that is there already waits for (events 0: stays, waits for nothing). */
tf_code tf_reactor_set_fd(tf_reactor *self, int fd, int events, tf_reactor_fd_fn fn, void *context);
void tf_reactor_remove_fd(tf_reactor *self, int fd);
/* Every interval_ms from now on (repeat), or once. Returns a handle >= 0, or -1 when full. */
int tf_reactor_add_timer(tf_reactor *self, int64_t interval_ms, bool repeat, tf_reactor_timer_fn fn, void *context);
void tf_reactor_remove_timer(tf_reactor *self, int timer);
/* Runs until tf_reactor_stop. */
tf_code tf_reactor_run(tf_reactor *self, tf_error *error);
/* From any thread, and from signal handlers (writes one eventfd). */
void tf_reactor_stop(tf_reactor *self);

/* Blocks SIGTERM and SIGINT in this thread (call before making threads) and hands each arrival to fn on the loop.
 * Also ignores SIGPIPE. Both are inherited by children: a program that forks unblocks the two signals in the child. */
tf_code tf_reactor_on_terminate(tf_reactor *self, void (*fn)(void *context, int signal_number), void *context);

#endif

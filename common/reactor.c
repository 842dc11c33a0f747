/* One thread's event loop over ZeroMQ sockets, file descriptors and timers.
 * In: sockets, descriptors, timers with callbacks. Out: callbacks, all on the thread that runs the loop.
 * Sources and timers live in slots with a generation: what a callback removes is never called again in that round,
 * even where its slot was taken over, and what it adds is first polled in the next round. */
#include "common/reactor.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/terminate.h"

enum { POLL_MS_MAX = 60000, TIMER_SLOT_BITS = 8, TIMER_GENERATION_MASK = 0x3fffff, SIGNALS_PER_ROUND_MAX = 16 };
_Static_assert(TF_REACTOR_TIMERS_MAX <= 1 << TIMER_SLOT_BITS, "a timer handle holds its slot in its low bits");

typedef struct source {
  bool used;
  uint32_t generation;
  void *socket; /* NULL: a file descriptor */
  int fd, events;
  tf_reactor_socket_fn socket_fn;
  tf_reactor_fd_fn fd_fn;
  void *context;
} source;

typedef struct timer {
  bool used, repeat;
  uint32_t generation;
  int64_t due_ms, interval_ms;
  tf_reactor_timer_fn fn;
  void *context;
} timer;

struct tf_reactor {
  source sources[TF_REACTOR_SOURCES_MAX];
  int source_end; /* slots from here on were never used */
  timer timers[TF_REACTOR_TIMERS_MAX];
  bool changed; /* the poll set below is out of date */
  int poll_count;
  zmq_pollitem_t items[TF_REACTOR_SOURCES_MAX + 1]; /* the last one is the wake-up */
  struct {
    int slot;
    uint32_t generation;
  } polled[TF_REACTOR_SOURCES_MAX];
  int wake_fd, signal_fd;
  atomic_bool stopping;
  void (*terminate_fn)(void *context, int signal_number);
  void *terminate_context;
};

tf_reactor *tf_reactor_new(void) {
  tf_reactor *self = calloc(1, sizeof *self);
  if (!self) return NULL;
  self->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (self->wake_fd < 0) {
    free(self);
    return NULL;
  }
  self->signal_fd = -1;
  self->changed = true;
  atomic_init(&self->stopping, false);
  return self;
}

void tf_reactor_free(tf_reactor **self) {
  if (!self || !*self) return;
  if ((*self)->signal_fd >= 0) close((*self)->signal_fd);
  close((*self)->wake_fd);
  free(*self);
  *self = NULL;
}

static source *find_source(tf_reactor *self, const void *socket, int fd) {
  for (int i = 0; i < self->source_end; i++) {
    source *at = &self->sources[i];
    if (at->used && at->socket == socket && (socket || at->fd == fd)) return at;
  }
  return NULL;
}

/* A free slot, marked used and with a new generation; NULL when full. */
static source *take_source(tf_reactor *self) {
  int slot = 0;
  while (slot < self->source_end && self->sources[slot].used) slot++;
  if (slot == TF_REACTOR_SOURCES_MAX) return NULL;
  if (slot == self->source_end) self->source_end++;
  source *taken = &self->sources[slot];
  *taken = (source){.used = true, .generation = taken->generation + 1, .fd = -1};
  self->changed = true;
  return taken;
}

static void drop_source(tf_reactor *self, source *dropped) {
  if (!dropped) return;
  dropped->used = false;
  self->changed = true;
}

tf_code tf_reactor_add_socket(tf_reactor *self, void *zmq_socket, tf_reactor_socket_fn fn, void *context) {
  source *added = find_source(self, zmq_socket, -1);
  if (!added) added = take_source(self);
  if (!added) return TF_ERR_OUT_OF_MEMORY;
  added->socket = zmq_socket;
  added->socket_fn = fn;
  added->context = context;
  return TF_OK;
}

void tf_reactor_remove_socket(tf_reactor *self, void *zmq_socket) {
  if (zmq_socket) drop_source(self, find_source(self, zmq_socket, -1));
}

tf_code tf_reactor_set_fd(tf_reactor *self, int fd, int events, tf_reactor_fd_fn fn, void *context) {
  if (fd < 0) return TF_ERR_INVALID_ARGUMENT;
  source *set = find_source(self, NULL, fd);
  if (!set) set = take_source(self);
  if (!set) return TF_ERR_OUT_OF_MEMORY;
  if (set->events != events) self->changed = true;
  set->fd = fd;
  set->events = events;
  set->fd_fn = fn;
  set->context = context;
  return TF_OK;
}

void tf_reactor_remove_fd(tf_reactor *self, int fd) {
  drop_source(self, find_source(self, NULL, fd));
}

int tf_reactor_add_timer(tf_reactor *self, int64_t interval_ms, bool repeat, tf_reactor_timer_fn fn, void *context) {
  int slot = 0;
  while (slot < TF_REACTOR_TIMERS_MAX && self->timers[slot].used) slot++;
  if (slot == TF_REACTOR_TIMERS_MAX) return -1;
  if (interval_ms < 0) interval_ms = 0;
  if (repeat && interval_ms == 0) interval_ms = 1; /* 0 would keep the loop from ever sleeping */
  timer *added = &self->timers[slot];
  *added = (timer){.used = true,
                   .repeat = repeat,
                   .generation = (added->generation + 1) & TIMER_GENERATION_MASK,
                   .due_ms = tf_now_ms() + interval_ms,
                   .interval_ms = interval_ms,
                   .fn = fn,
                   .context = context};
  return (int)(added->generation << TIMER_SLOT_BITS) | slot;
}

void tf_reactor_remove_timer(tf_reactor *self, int handle) {
  if (handle < 0) return;
  int slot = handle & ((1 << TIMER_SLOT_BITS) - 1);
  if (slot >= TF_REACTOR_TIMERS_MAX) return;
  timer *removed = &self->timers[slot];
  if (removed->generation == (uint32_t)handle >> TIMER_SLOT_BITS) removed->used = false;
}

static int poll_timeout_ms(const tf_reactor *self) {
  int64_t now_ms = tf_now_ms(), wait_ms = POLL_MS_MAX;
  for (int i = 0; i < TF_REACTOR_TIMERS_MAX; i++) {
    const timer *at = &self->timers[i];
    if (at->used && at->due_ms - now_ms < wait_ms) wait_ms = at->due_ms - now_ms;
  }
  return wait_ms < 0 ? 0 : (int)wait_ms;
}

static void fire_timers(tf_reactor *self) {
  int64_t now_ms = tf_now_ms();
  for (int i = 0; i < TF_REACTOR_TIMERS_MAX && !atomic_load(&self->stopping); i++) {
    timer *at = &self->timers[i];
    if (!at->used || at->due_ms > now_ms) continue;
    if (at->repeat) {
      at->due_ms += at->interval_ms;
      if (at->due_ms <= now_ms) at->due_ms = now_ms + at->interval_ms; /* a late loop does not catch up in a burst */
    } else {
      at->used = false;
    }
    at->fn(at->context);
  }
}

static void build_poll_set(tf_reactor *self) {
  int count = 0;
  for (int i = 0; i < self->source_end; i++) {
    const source *at = &self->sources[i];
    if (!at->used || (!at->socket && at->events == 0)) continue;
    short wanted = ZMQ_POLLIN;
    if (!at->socket) {
      wanted = (short)((at->events & TF_READABLE ? ZMQ_POLLIN : 0) | (at->events & TF_WRITABLE ? ZMQ_POLLOUT : 0));
    }
    self->items[count] = (zmq_pollitem_t){.socket = at->socket, .fd = at->socket ? 0 : at->fd, .events = wanted};
    self->polled[count].slot = i;
    self->polled[count].generation = at->generation;
    count++;
  }
  self->items[count] = (zmq_pollitem_t){.fd = self->wake_fd, .events = ZMQ_POLLIN};
  self->poll_count = count;
  self->changed = false;
}

static void dispatch(tf_reactor *self) {
  for (int i = 0; i < self->poll_count && !atomic_load(&self->stopping); i++) {
    short ready = self->items[i].revents;
    if (ready == 0) continue;
    const source *at = &self->sources[self->polled[i].slot];
    if (!at->used || at->generation != self->polled[i].generation) continue;
    if (at->socket) {
      at->socket_fn(at->context, at->socket);
      continue;
    }
    int events = (ready & ZMQ_POLLIN ? TF_READABLE : 0) | (ready & ZMQ_POLLOUT ? TF_WRITABLE : 0);
    /* An error or hang-up is seen by the read or write that the owner waits to do. */
    if (ready & ZMQ_POLLERR) events = TF_READABLE | TF_WRITABLE;
    events &= at->events; /* an earlier callback may have changed what is wanted */
    if (events) at->fd_fn(at->context, at->fd, events);
  }
}

static void drain_wake_up(tf_reactor *self) {
  uint64_t value;
  while (read(self->wake_fd, &value, sizeof value) < 0 && errno == EINTR) continue;
}

tf_code tf_reactor_run(tf_reactor *self, tf_error *error) {
  tf_code code = TF_OK;
  while (!atomic_load(&self->stopping)) {
    if (self->changed) build_poll_set(self);
    int ready = zmq_poll(self->items, self->poll_count + 1, poll_timeout_ms(self));
    if (ready < 0) {
      if (errno == EINTR) continue;
      code = tf_fail(error, TF_ERR_IO, "the event loop can not wait for input: %s", zmq_strerror(errno));
      break;
    }
    if (ready > 0) {
      if (self->items[self->poll_count].revents) drain_wake_up(self);
      dispatch(self);
    }
    fire_timers(self);
  }
  drain_wake_up(self);
  atomic_store(&self->stopping, false); /* so that the loop can be run again */
  return code;
}

void tf_reactor_stop(tf_reactor *self) {
  int saved = errno; /* a signal handler must not change it */
  atomic_store(&self->stopping, true);
  uint64_t one = 1;
  while (write(self->wake_fd, &one, sizeof one) < 0 && errno == EINTR) continue;
  errno = saved;
}

static void on_signal(void *context, int fd, int events) {
  tf_reactor *self = context;
  (void)events;
  struct signalfd_siginfo arrived;
  for (int i = 0; i < SIGNALS_PER_ROUND_MAX && read(fd, &arrived, sizeof arrived) == sizeof arrived; i++) {
    if (self->terminate_fn) self->terminate_fn(self->terminate_context, (int)arrived.ssi_signo);
  }
}

tf_code tf_reactor_on_terminate(tf_reactor *self, void (*fn)(void *context, int signal_number), void *context) {
  self->terminate_fn = fn;
  self->terminate_context = context;
  if (self->signal_fd >= 0) return TF_OK;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0) return TF_ERR_IO;
  signal(SIGPIPE, SIG_IGN); /* hiredis writes without MSG_NOSIGNAL: a peer that left must be an error, not our end */
  int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
  if (fd < 0) return TF_ERR_IO;
  tf_code code = tf_reactor_set_fd(self, fd, TF_READABLE, on_signal, self);
  if (code != TF_OK) {
    close(fd);
    return code;
  }
  self->signal_fd = fd;
  return tf_terminate_redirect(NULL);
}

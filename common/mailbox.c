/* A bounded queue of pointers between threads, with a file descriptor that a reactor can poll.
 * In: pointers (ownership moves with them). Out: the same, first in first out.
 * A ring under one mutex; the eventfd holds 1 exactly while the ring holds items. */
#include "common/mailbox.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

struct tf_mailbox {
  pthread_mutex_t mutex;
  pthread_cond_t changed; /* on CLOCK_MONOTONIC: a stepped wall clock must not stretch a wait */
  int fd;
  bool closed;
  size_t capacity, first, count;
  void *items[];
};

static bool init_locks(tf_mailbox *self) {
  pthread_condattr_t attributes;
  if (pthread_mutex_init(&self->mutex, NULL) != 0) return false;
  if (pthread_condattr_init(&attributes) != 0) {
    pthread_mutex_destroy(&self->mutex);
    return false;
  }
  bool ok = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
            pthread_cond_init(&self->changed, &attributes) == 0;
  pthread_condattr_destroy(&attributes);
  if (!ok) pthread_mutex_destroy(&self->mutex);
  return ok;
}

tf_mailbox *tf_mailbox_new(size_t items_max) {
  assert(items_max > 0);
  if (items_max > (SIZE_MAX - sizeof(tf_mailbox)) / sizeof(void *)) return NULL;
  tf_mailbox *self = calloc(1, sizeof *self + items_max * sizeof(void *));
  if (!self) return NULL;
  self->capacity = items_max;
  self->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (self->fd < 0) {
    free(self);
    return NULL;
  }
  if (!init_locks(self)) {
    close(self->fd);
    free(self);
    return NULL;
  }
  return self;
}

static void signal_fd(tf_mailbox *self) {
  uint64_t one = 1;
  ssize_t done;
  do done = write(self->fd, &one, sizeof one);
  while (done < 0 && errno == EINTR);
}

static void clear_fd(tf_mailbox *self) {
  uint64_t value;
  ssize_t done;
  do done = read(self->fd, &value, sizeof value);
  while (done < 0 && errno == EINTR);
}

/* Call with the mutex held. */
static void *take_first(tf_mailbox *self) {
  if (self->count == 0) return NULL;
  void *item = self->items[self->first];
  self->first = self->first + 1 == self->capacity ? 0 : self->first + 1;
  if (--self->count == 0) clear_fd(self);
  return item;
}

void tf_mailbox_free(tf_mailbox **self, void (*free_item)(void *item)) {
  if (!self || !*self) return;
  tf_mailbox *mailbox = *self;
  *self = NULL;
  for (void *item; (item = take_first(mailbox));) {
    if (free_item) free_item(item);
  }
  pthread_cond_destroy(&mailbox->changed);
  pthread_mutex_destroy(&mailbox->mutex);
  close(mailbox->fd);
  free(mailbox);
}

bool tf_mailbox_push(tf_mailbox *self, void *item) {
  assert(item);
  pthread_mutex_lock(&self->mutex);
  bool ok = !self->closed && self->count < self->capacity;
  if (ok) {
    size_t to_end = self->capacity - self->first;
    self->items[self->count < to_end ? self->first + self->count : self->count - to_end] = item;
    if (self->count++ == 0) signal_fd(self);
    pthread_cond_signal(&self->changed);
  }
  pthread_mutex_unlock(&self->mutex);
  return ok;
}

void *tf_mailbox_try_pop(tf_mailbox *self) {
  pthread_mutex_lock(&self->mutex);
  void *item = take_first(self);
  pthread_mutex_unlock(&self->mutex);
  return item;
}

void *tf_mailbox_pop(tf_mailbox *self, int64_t timeout_ms) {
  if (timeout_ms < 0) timeout_ms = 0;
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += (time_t)(timeout_ms / 1000);
  until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
  if (until.tv_nsec >= 1000000000) {
    until.tv_sec++;
    until.tv_nsec -= 1000000000;
  }
  pthread_mutex_lock(&self->mutex);
  while (self->count == 0 && !self->closed) {
    if (pthread_cond_timedwait(&self->changed, &self->mutex, &until) == ETIMEDOUT) break;
  }
  void *item = take_first(self);
  pthread_mutex_unlock(&self->mutex);
  return item;
}

size_t tf_mailbox_count(tf_mailbox *self) {
  pthread_mutex_lock(&self->mutex);
  size_t count = self->count;
  pthread_mutex_unlock(&self->mutex);
  return count;
}

int tf_mailbox_fd(const tf_mailbox *self) {
  return self->fd;
}

void tf_mailbox_close(tf_mailbox *self) {
  pthread_mutex_lock(&self->mutex);
  self->closed = true;
  pthread_cond_broadcast(&self->changed);
  pthread_mutex_unlock(&self->mutex);
}

bool tf_mailbox_is_closed(tf_mailbox *self) {
  pthread_mutex_lock(&self->mutex);
  bool closed = self->closed;
  pthread_mutex_unlock(&self->mutex);
  return closed;
}

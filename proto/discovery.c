/* Resolves names again and again on a thread of its own.
 * In: names, a way to resolve them. Out: the newest answer of each, under a lock that is held for copies only.
 * getaddrinfo can neither be interrupted nor given a time: the thread is detached and shares the memory with its owner;
 * whoever lets go last frees it. */
#include "proto/discovery.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char prefix[] = "dns+tcp://";
enum { PREFIX_BYTES = sizeof prefix - 1 };

typedef struct answer {
  tf_discovery_set set;
  tf_error error;
  bool fresh; /* not taken yet */
} answer;

struct tf_discovery {
  pthread_mutex_t lock;
  pthread_cond_t closed;
  bool closing;
  int holders; /* owner and thread */
  tf_resolve_fn resolve;
  void *context;
  int64_t interval_ms;
  size_t count;
  tf_discovery_name names[TF_DISCOVERY_NAMES_MAX];
  answer answers[TF_DISCOVERY_NAMES_MAX];
};

/* ---- pure parts ---- */

bool tf_discovery_is_name(const char *endpoint) {
  return strncmp(endpoint, prefix, PREFIX_BYTES) == 0;
}

tf_code tf_discovery_parse(const char *endpoint, tf_discovery_name *out, tf_error *error) {
  const char *host = tf_discovery_is_name(endpoint) ? endpoint + PREFIX_BYTES : "";
  size_t host_bytes = strspn(host, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_");
  if (host_bytes == 0 || host[host_bytes] != ':')
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "\"%.200s\": expected dns+tcp://NAME:PORT", endpoint);
  if (host_bytes > TF_DISCOVERY_HOST_BYTES_MAX)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "\"%.200s...\": a name has at most %d bytes", endpoint,
                   TF_DISCOVERY_HOST_BYTES_MAX);
  const char *port = host + host_bytes + 1;
  size_t digits = strspn(port, "0123456789");
  long number = digits > 0 && digits <= 5 && !port[digits] ? strtol(port, NULL, 10) : 0;
  if (number < 1 || number > 65535)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "\"%.300s\": the port must be a number from 1 to 65535", endpoint);
  memcpy(out->host, host, host_bytes);
  out->host[host_bytes] = '\0';
  out->port = (uint16_t)number;
  return TF_OK;
}

void tf_discovery_add(tf_discovery_set *self, uint32_t address, uint16_t port) {
  char text[INET_ADDRSTRLEN] = "", endpoint[TF_DISCOVERY_ENDPOINT_BYTES];
  struct in_addr in = {.s_addr = address};
  inet_ntop(AF_INET, &in, text, sizeof text);
  snprintf(endpoint, sizeof endpoint, "tcp://%s:%u", text, port);
  size_t at = 0;
  while (at < self->count && strcmp(self->endpoints[at], endpoint) < 0) at++;
  if (at < self->count && strcmp(self->endpoints[at], endpoint) == 0) return;
  if (self->count == TF_DISCOVERY_ENDPOINTS_MAX) {
    self->left_out++; /* the last one in order, so that every answer leaves out the same */
    if (at == self->count) return;
    self->count--;
  }
  memmove(self->endpoints[at + 1], self->endpoints[at], (self->count - at) * sizeof self->endpoints[0]);
  memcpy(self->endpoints[at], endpoint, sizeof endpoint);
  self->count++;
}

bool tf_discovery_has(const tf_discovery_set *self, const char *endpoint) {
  for (size_t i = 0; i < self->count; i++)
    if (strcmp(self->endpoints[i], endpoint) == 0) return true;
  return false;
}

/* ---- the thread ---- */

tf_code tf_discovery_resolve(void *context, const tf_discovery_name *name, tf_discovery_set *out, tf_error *error) {
  (void)context;
  struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = NULL;
  int failed = getaddrinfo(name->host, NULL, &hints, &found);
  if (failed != 0)
    return tf_fail(error, TF_ERR_WORKER_UNREACHABLE, "%s: %s", name->host,
                   failed == EAI_SYSTEM ? "a fault of the system" : gai_strerror(failed));
  for (const struct addrinfo *at = found; at != NULL; at = at->ai_next) {
    struct sockaddr_in address;
    if (at->ai_family != AF_INET || at->ai_addrlen != sizeof address) continue;
    memcpy(&address, at->ai_addr, sizeof address);
    tf_discovery_add(out, address.sin_addr.s_addr, name->port);
  }
  freeaddrinfo(found);
  return TF_OK;
}

/* With the lock held; returns without it. */
static void let_go(tf_discovery *self) {
  bool last = --self->holders == 0;
  pthread_mutex_unlock(&self->lock);
  if (!last) return;
  pthread_cond_destroy(&self->closed);
  pthread_mutex_destroy(&self->lock);
  free(self);
}

static void wait_ms(tf_discovery *self, int64_t wait_ms) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  int64_t ns = until.tv_nsec + wait_ms % 1000 * 1000000;
  until.tv_sec += wait_ms / 1000 + ns / 1000000000;
  until.tv_nsec = ns % 1000000000;
  while (!self->closing && pthread_cond_timedwait(&self->closed, &self->lock, &until) == 0) continue;
}

static void *discovery_main(void *context) {
  tf_discovery *self = context;
  pthread_mutex_lock(&self->lock);
  while (!self->closing) {
    bool failed = false;
    for (size_t i = 0; i < self->count && !self->closing; i++) {
      pthread_mutex_unlock(&self->lock);
      tf_discovery_set set = {.count = 0};
      tf_error error = {.code = TF_OK};
      tf_code code = self->resolve(self->context, &self->names[i], &set, &error);
      if (code == TF_OK && set.count == 0)
        code = tf_fail(&error, TF_ERR_WORKER_UNREACHABLE, "%s: no IPv4 address", self->names[i].host);
      failed = failed || code != TF_OK;
      pthread_mutex_lock(&self->lock);
      self->answers[i] = (answer){.set = set, .error = error, .fresh = true};
    }
    bool soon = failed && self->interval_ms > TF_DISCOVERY_RETRY_MS;
    wait_ms(self, soon ? TF_DISCOVERY_RETRY_MS : self->interval_ms);
  }
  let_go(self);
  return NULL;
}

static bool start_thread(tf_discovery *self) {
  pthread_attr_t attributes;
  pthread_t thread;
  if (pthread_attr_init(&attributes) != 0) return false;
  self->holders = 2;
  bool started = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0 &&
                 pthread_create(&thread, &attributes, discovery_main, self) == 0;
  pthread_attr_destroy(&attributes);
  if (!started) self->holders = 1;
  return started;
}

/* ---- life ---- */

tf_code tf_discovery_new(const tf_discovery_name *names, size_t count, tf_resolve_fn resolve, void *context,
                         int64_t interval_ms, tf_discovery **out, tf_error *error) {
  *out = NULL;
  if (count > TF_DISCOVERY_NAMES_MAX)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "more than %d dns+tcp:// names", TF_DISCOVERY_NAMES_MAX);
  tf_discovery *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to resolve names");
  self->resolve = resolve != NULL ? resolve : tf_discovery_resolve;
  self->context = context;
  self->interval_ms = interval_ms > 0 ? interval_ms : TF_DISCOVERY_INTERVAL_MS;
  self->count = count;
  memcpy(self->names, names, count * sizeof *names);
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_mutex_init(&self->lock, NULL);
  pthread_cond_init(&self->closed, &monotonic);
  pthread_condattr_destroy(&monotonic);
  if (!start_thread(self)) {
    pthread_mutex_lock(&self->lock);
    let_go(self);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no thread to resolve names");
  }
  *out = self;
  return TF_OK;
}

void tf_discovery_free(tf_discovery **self) {
  tf_discovery *discovery = *self;
  if (discovery == NULL) return;
  *self = NULL;
  pthread_mutex_lock(&discovery->lock);
  discovery->closing = true;
  pthread_cond_signal(&discovery->closed);
  let_go(discovery);
}

bool tf_discovery_take(tf_discovery *self, size_t name, tf_discovery_set *out, tf_error *error) {
  pthread_mutex_lock(&self->lock);
  answer *newest = &self->answers[name];
  bool fresh = newest->fresh;
  newest->fresh = false;
  if (fresh) {
    *out = newest->set;
    *error = newest->error;
  }
  pthread_mutex_unlock(&self->lock);
  return fresh;
}

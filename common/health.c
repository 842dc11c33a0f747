/* The health endpoint of every service: /healthz, /readyz, /metrics over HTTP.
 * In: an address, readiness and heartbeats from any thread, a metrics registry. Out: 200 or 503 with one line; the
 * metrics page. libmicrohttpd serves it on a thread of its own, so that it answers while the reactor is wedged. */
#include "common/health.h"

#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/clock.h"

enum {
  BEAT_SLOTS = 8,
  REASON_BYTES_MAX = 160,
  CONNECTIONS_MAX = 32,
  CONNECTION_TIMEOUT_S = 5,
  CONNECTION_MEMORY_BYTES = 16384,
  PAGE_BYTES_MAX = 4 * 1024 * 1024
};

struct tf_health {
  struct MHD_Daemon *daemon; /* NULL: off */
  tf_metrics *metrics;
  int port;
  _Atomic int64_t beat_due_ms[BEAT_SLOTS]; /* monotonic; 0: not watched */
  pthread_mutex_t mutex;                   /* guards the two below */
  bool ready;
  char reason[REASON_BYTES_MAX];
};

static enum MHD_Result respond(struct MHD_Connection *connection, unsigned status, void *body, size_t size,
                               enum MHD_ResponseMemoryMode mode, const char *type) {
  struct MHD_Response *response = MHD_create_response_from_buffer(size, body, mode);
  if (!response) {
    if (mode == MHD_RESPMEM_MUST_FREE) free(body);
    return MHD_NO;
  }
  MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
  enum MHD_Result result = MHD_queue_response(connection, status, response);
  MHD_destroy_response(response);
  return result;
}

static enum MHD_Result respond_line(struct MHD_Connection *connection, unsigned status, const char *text) {
  char body[REASON_BYTES_MAX + 2];
  int size = snprintf(body, sizeof body, "%s\n", text);
  return respond(connection, status, body, (size_t)size, MHD_RESPMEM_MUST_COPY, "text/plain; charset=utf-8");
}

static enum MHD_Result respond_health(tf_health *self, struct MHD_Connection *connection) {
  int64_t now_ms = tf_now_ms();
  for (int slot = 0; slot < BEAT_SLOTS; slot++) {
    int64_t due_ms = atomic_load(&self->beat_due_ms[slot]);
    if (due_ms == 0 || now_ms <= due_ms) continue;
    char text[REASON_BYTES_MAX];
    snprintf(text, sizeof text, "thread %d is late by %lld ms", slot, (long long)(now_ms - due_ms));
    return respond_line(connection, MHD_HTTP_SERVICE_UNAVAILABLE, text);
  }
  return respond_line(connection, MHD_HTTP_OK, "ok");
}

static enum MHD_Result respond_ready(tf_health *self, struct MHD_Connection *connection) {
  char reason[REASON_BYTES_MAX];
  pthread_mutex_lock(&self->mutex);
  bool ready = self->ready;
  memcpy(reason, self->reason, sizeof reason);
  pthread_mutex_unlock(&self->mutex);
  if (!reason[0]) snprintf(reason, sizeof reason, "%s", ready ? "ready" : "not ready");
  return respond_line(connection, ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, reason);
}

static enum MHD_Result respond_metrics(tf_health *self, struct MHD_Connection *connection) {
  tf_buffer page;
  tf_buffer_init(&page, PAGE_BYTES_MAX);
  if (self->metrics) tf_metrics_write(self->metrics, &page);
  if (page.overflow) {
    tf_buffer_free(&page);
    return respond_line(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "the metrics page is too long");
  }
  /* The response takes over the page's memory. */
  if (!page.data) return respond_line(connection, MHD_HTTP_OK, "# no metrics");
  return respond(connection, MHD_HTTP_OK, page.data, page.size, MHD_RESPMEM_MUST_FREE,
                 "text/plain; version=0.0.4; charset=utf-8");
}

static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *upload, size_t *upload_size, void **state) {
  tf_health *self = context;
  (void)version, (void)upload;
  if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
    if (!*state) { /* first call, headers alone: refuse before a body comes */
      *state = self;
      return respond_line(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD");
    }
    *upload_size = 0;
    return MHD_YES;
  }
  if (strcmp(url, "/healthz") == 0) return respond_health(self, connection);
  if (strcmp(url, "/readyz") == 0) return respond_ready(self, connection);
  if (strcmp(url, "/metrics") == 0) return respond_metrics(self, connection);
  return respond_line(connection, MHD_HTTP_NOT_FOUND, "try /healthz, /readyz or /metrics");
}

/* "host:port" or "[v6]:port" -> socket address. */
static tf_code resolve(const char *address, struct sockaddr_storage *out, tf_error *error) {
  char host[256];
  const char *colon = strrchr(address, ':');
  size_t host_bytes = colon ? (size_t)(colon - address) : 0;
  if (!colon || !colon[1] || host_bytes >= sizeof host) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "health address \"%.200s\": expected HOST:PORT or \"off\"", address);
  }
  if (host_bytes >= 2 && address[0] == '[' && address[host_bytes - 1] == ']') {
    address++;
    host_bytes -= 2;
  }
  memcpy(host, address, host_bytes);
  host[host_bytes] = '\0';
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found = NULL;
  int failed = getaddrinfo(host[0] ? host : NULL, colon + 1, &hints, &found);
  if (failed) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "health address \"%.200s:%.16s\": %s", host, colon + 1,
                   gai_strerror(failed));
  }
  memcpy(out, found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return TF_OK;
}

static tf_code listen_on(tf_health *self, const char *address, tf_error *error) {
  struct sockaddr_storage where = {0};
  tf_code code = resolve(address, &where, error);
  if (code != TF_OK) return code;
  unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | (where.ss_family == AF_INET6 ? MHD_USE_IPv6 : 0);
  self->daemon = MHD_start_daemon(flags, 0, NULL, NULL, on_request, self, MHD_OPTION_SOCK_ADDR, &where,
                                  MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
                                  (unsigned)CONNECTION_TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                                  (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_END);
  if (!self->daemon) {
    return tf_fail(error, TF_ERR_IO,
                   "health endpoint: can not listen on %.200s (is the port taken?); --health names another, or off",
                   address);
  }
  const union MHD_DaemonInfo *info = MHD_get_daemon_info(self->daemon, MHD_DAEMON_INFO_BIND_PORT);
  self->port = info ? info->port : 0;
  return TF_OK;
}

tf_code tf_health_start(const char *address, tf_metrics *metrics, tf_health **out, tf_error *error) {
  *out = NULL;
  tf_health *self = calloc(1, sizeof *self);
  if (!self || pthread_mutex_init(&self->mutex, NULL) != 0) {
    free(self);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "health endpoint: out of memory");
  }
  self->metrics = metrics;
  snprintf(self->reason, sizeof self->reason, "starting");
  *out = self;
  if (!address || !address[0] || strcmp(address, "off") == 0) return TF_OK;
  tf_code code = listen_on(self, address, error);
  if (code != TF_OK) tf_health_stop(out);
  return code;
}

void tf_health_stop(tf_health **self) {
  if (!self || !*self) return;
  if ((*self)->daemon) MHD_stop_daemon((*self)->daemon);
  pthread_mutex_destroy(&(*self)->mutex);
  free(*self);
  *self = NULL;
}

int tf_health_port(const tf_health *self) {
  return self ? self->port : 0;
}

void tf_health_set_ready(tf_health *self, bool ready, const char *reason) {
  if (!self) return;
  pthread_mutex_lock(&self->mutex);
  self->ready = ready;
  snprintf(self->reason, sizeof self->reason, "%s", reason ? reason : "");
  pthread_mutex_unlock(&self->mutex);
}

void tf_health_beat(tf_health *self, int slot, int64_t stall_ms_max) {
  if (!self || slot < 0 || slot >= BEAT_SLOTS) return;
  atomic_store(&self->beat_due_ms[slot], stall_ms_max > 0 ? tf_now_ms() + stall_ms_max : 0);
}

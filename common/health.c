/* The health endpoint of every service: /healthz, /readyz, /metrics over HTTP, and what a handler adds.
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
  CONNECTIONS_OF_ADDRESS_MAX = 16, /* whoever sends a byte now and then is never idle: a probe comes from elsewhere */
  CONNECTION_TIMEOUT_S = 5,
  CONNECTION_MEMORY_BYTES = 16384,
  PAGE_BYTES_MAX = 4 * 1024 * 1024
};

struct tf_health {
  struct MHD_Daemon *daemon; /* NULL: off */
  tf_metrics *metrics;
  int port;
  _Atomic int64_t beat_due_ms[BEAT_SLOTS]; /* monotonic; 0: not watched */
  pthread_mutex_t mutex;                   /* guards the five below */
  bool ready;
  char reason[REASON_BYTES_MAX];
  const char *text_path, *text_type;       /* NULL: no text */
  char text[TF_HEALTH_TEXT_BYTES_MAX + 1]; /* "": not known */
  pthread_mutex_t serving;                 /* guards the two below, and is held while fn runs */
  tf_health_fn fn;                         /* NULL: nothing beside health */
  void *context;
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

/* False: no text has this path. */
static bool respond_text(tf_health *self, struct MHD_Connection *connection, const char *url, enum MHD_Result *result) {
  char text[sizeof self->text];
  pthread_mutex_lock(&self->mutex);
  const char *type = self->text_path && strcmp(self->text_path, url) == 0 ? self->text_type : NULL;
  memcpy(text, self->text, sizeof text);
  pthread_mutex_unlock(&self->mutex);
  if (!type) return false;
  *result = text[0] ? respond(connection, MHD_HTTP_OK, text, strlen(text), MHD_RESPMEM_MUST_COPY, type)
                    : respond_line(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "not known");
  return true;
}

/* ---- what a handler adds ---- */

const char *tf_health_header(const tf_health_request *request, const char *name) {
  return MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, name);
}

const char *tf_health_argument(const tf_health_request *request, const char *name) {
  return MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, name);
}

bool tf_address_is_loopback(const struct sockaddr *address) {
  if (address && address->sa_family == AF_INET) {
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)address;
    return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  if (!address || address->sa_family != AF_INET6) return false;
  const struct in6_addr *v6 = &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(v6) || (IN6_IS_ADDR_V4MAPPED(v6) && v6->s6_addr[12] == IN_LOOPBACKNET);
}

static bool peer_is_loopback(struct MHD_Connection *connection) {
  const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
  return info && tf_address_is_loopback(info->client_addr);
}

/* Nothing of a page may be kept, framed, guessed at or told to others. */
static enum MHD_Result respond_answer(struct MHD_Connection *connection, const tf_health_answer *answer) {
  void *body = (void *)answer->body;
  struct MHD_Response *response = MHD_create_response_from_buffer(
      answer->size, body, answer->owned ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
  if (!response) {
    if (answer->owned) free(body);
    return MHD_NO;
  }
  MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, answer->type);
  MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
  MHD_add_response_header(response, "Content-Security-Policy",
                          answer->policy ? answer->policy : "default-src 'none'; frame-ancestors 'none'");
  MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
  MHD_add_response_header(response, "Referrer-Policy", "no-referrer");
  MHD_add_response_header(response, "Cross-Origin-Resource-Policy", "same-origin");
  if (answer->allow) MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, answer->allow);
  enum MHD_Result result = MHD_queue_response(connection, answer->status, response);
  MHD_destroy_response(response);
  return result;
}

void tf_health_serve(tf_health *self, tf_health_fn fn, void *context) {
  if (!self) return;
  pthread_mutex_lock(&self->serving);
  self->fn = fn;
  self->context = context;
  pthread_mutex_unlock(&self->serving);
}

/* False: nobody answers this. */
static bool ask_handler(tf_health *self, struct MHD_Connection *connection, const char *method, const char *url,
                        enum MHD_Result *result) {
  bool head = strcmp(method, MHD_HTTP_METHOD_HEAD) == 0;
  tf_health_request request = {.method = head ? MHD_HTTP_METHOD_GET : method,
                               .path = url,
                               .loopback = peer_is_loopback(connection),
                               .connection = connection};
  tf_health_answer answer = {.type = "text/plain; charset=utf-8", .body = ""};
  pthread_mutex_lock(&self->serving);
  if (self->fn) self->fn(self->context, &request, &answer);
  pthread_mutex_unlock(&self->serving);
  if (answer.status == 0) return false;
  *result = respond_answer(connection, &answer);
  return true;
}

/* ---- requests ---- */

/* Answers at the first call, when the headers are there: of a body nothing is read, and the connection ends after. */
static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *upload, size_t *upload_size, void **state) {
  tf_health *self = context;
  (void)version, (void)upload;
  if (*state) { /* a body after the answer */
    *upload_size = 0;
    return MHD_YES;
  }
  bool reads = strcmp(method, MHD_HTTP_METHOD_GET) == 0 || strcmp(method, MHD_HTTP_METHOD_HEAD) == 0;
  if (!reads) *state = self;
  if (reads && strcmp(url, "/healthz") == 0) return respond_health(self, connection);
  if (reads && strcmp(url, "/readyz") == 0) return respond_ready(self, connection);
  if (reads && strcmp(url, "/metrics") == 0) return respond_metrics(self, connection);
  enum MHD_Result result;
  if (reads && respond_text(self, connection, url, &result)) return result;
  if (ask_handler(self, connection, method, url, &result)) return result;
  return reads ? respond_line(connection, MHD_HTTP_NOT_FOUND, "try /healthz, /readyz or /metrics")
               : respond_line(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD");
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
                                  MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
                                  MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)CONNECTIONS_OF_ADDRESS_MAX,
                                  MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)CONNECTION_TIMEOUT_S,
                                  MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_END);
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
  bool made = self && pthread_mutex_init(&self->mutex, NULL) == 0;
  if (made && pthread_mutex_init(&self->serving, NULL) != 0) {
    pthread_mutex_destroy(&self->mutex);
    made = false;
  }
  if (!made) {
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
  pthread_mutex_destroy(&(*self)->serving);
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

void tf_health_publish(tf_health *self, const char *path, const char *type, const char *body) {
  if (!self) return;
  pthread_mutex_lock(&self->mutex);
  self->text_path = path;
  self->text_type = type;
  snprintf(self->text, sizeof self->text, "%s", body ? body : "");
  pthread_mutex_unlock(&self->mutex);
}

void tf_health_beat(tf_health *self, int slot, int64_t stall_ms_max) {
  if (!self || slot < 0 || slot >= BEAT_SLOTS) return;
  atomic_store(&self->beat_due_ms[slot], stall_ms_max > 0 ? tf_now_ms() + stall_ms_max : 0);
}

/* An asynchronous Redis connection on our reactor (hiredis async, whose 0.14 has neither timeouts nor reconnecting).
 * In: a URL, commands. Out: replies in order; NULL for every command that got no answer.
 * States: WAITING -> RESOLVING (host names only) -> CONNECTING -> GREETING (AUTH, SELECT) -> READY -> WAITING ... */
#include "router/redis_async.h"

#include <arpa/inet.h>
#include <hiredis/async.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

enum { TICK_MS = 25 };

typedef enum state { WAITING, RESOLVING, CONNECTING, GREETING, READY } state;

/* One command in flight. hiredis answers in order, so the first of the list is the oldest. */
typedef struct command {
  struct command *next;
  struct tf_redis_async *owner;
  tf_redis_reply_fn fn;
  void *context;
  int64_t sent_us;
} command;

/* A name being looked up; on the heap, as a lookup that can't be cancelled outlives us. */
typedef struct lookup {
  struct gaicb request;
  struct addrinfo hints;
  char host[256];
} lookup;

struct tf_redis_async {
  tf_reactor *reactor;
  tf_redis_url url;
  tf_redis_events events;
  state state;
  redisAsyncContext *connection; /* CONNECTING and later */
  int fd, wanted;                /* its descriptor, and what hiredis waits for there */
  int tick;                      /* timer */
  int64_t since_ms;              /* when the state was entered */
  int64_t wait_ms;               /* of WAITING; grows with every failure */
  command *first, *last;
  size_t command_count;
  bool give_up_soon; /* asked for inside one of hiredis's callbacks, where it can't be done */
  bool closing, warned;
  lookup *lookup; /* RESOLVING */
};

static void enter(tf_redis_async *self, state next) {
  self->state = next;
  self->since_ms = tf_now_ms();
}

/* The connection is gone: back to WAITING, longer each time until a connection works. Warns once for a row of failures.
 */
static void connection_lost(tf_redis_async *self, bool was_ready, const char *why) {
  if (!self->closing && (was_ready || !self->warned)) {
    tf_log_warn("redis_unreachable", TF_STR("reason", why), TF_STR("host", self->url.host),
                TF_STR("path", self->url.unix_path), TF_INT("port", self->url.port));
    self->warned = true;
  }
  self->wait_ms = was_ready ? TF_REDIS_RECONNECT_MS_MIN : self->wait_ms * 2;
  if (self->wait_ms < TF_REDIS_RECONNECT_MS_MIN) self->wait_ms = TF_REDIS_RECONNECT_MS_MIN;
  if (self->wait_ms > TF_REDIS_RECONNECT_MS_MAX) self->wait_ms = TF_REDIS_RECONNECT_MS_MAX;
  self->give_up_soon = false;
  enter(self, WAITING);
  if (was_ready && !self->closing) self->events.lost(self->events.context);
}

/* Closes the connection ourselves; what is in flight gets NULL on the way. Never inside a hiredis callback. */
static void drop_connection(tf_redis_async *self, const char *why) {
  bool was_ready = self->state == READY;
  redisAsyncContext *connection = self->connection;
  self->connection = NULL;
  enter(self, WAITING); /* callbacks that ask again at once are refused */
  if (connection) redisAsyncFree(connection);
  connection_lost(self, was_ready, why);
}

/* hiredis's hooks. */
static void on_fd(void *context, int fd, int events) {
  tf_redis_async *self = context;
  (void)fd;
  redisAsyncContext *connection = self->connection;
  if (connection && (events & TF_READABLE)) redisAsyncHandleRead(connection);
  /* Reading may have freed it. */
  if (connection && self->connection == connection && (events & TF_WRITABLE)) redisAsyncHandleWrite(connection);
}
static void want(tf_redis_async *self, int wanted) {
  if (self->fd < 0 || wanted == self->wanted) return;
  self->wanted = wanted;
  if (tf_reactor_set_fd(self->reactor, self->fd, wanted, on_fd, self) == TF_OK) return;
  tf_log_error("reactor_full", TF_STR("source", "redis"));
  self->give_up_soon = true;
}
static void add_read(void *self) {
  want(self, ((tf_redis_async *)self)->wanted | TF_READABLE);
}
static void del_read(void *self) {
  want(self, ((tf_redis_async *)self)->wanted & ~TF_READABLE);
}
static void add_write(void *self) {
  want(self, ((tf_redis_async *)self)->wanted | TF_WRITABLE);
}
static void del_write(void *self) {
  want(self, ((tf_redis_async *)self)->wanted & ~TF_WRITABLE);
}
static void cleanup(void *context) {
  tf_redis_async *self = context;
  if (self->fd >= 0) tf_reactor_remove_fd(self->reactor, self->fd);
  self->fd = -1;
  self->wanted = 0;
}

static void on_reply(redisAsyncContext *connection, void *reply, void *context) {
  (void)connection;
  command *done = context;
  tf_redis_async *self = done->owner;
  if (self->first == done) self->first = done->next;
  if (!self->first) self->last = NULL;
  self->command_count--;
  if (reply && self->events.latency)
    self->events.latency(self->events.context, (double)(tf_now_us() - done->sent_us) / 1e6);
  done->fn(done->context, reply);
  free(done);
}

static bool send_command(tf_redis_async *self, int count, const char **arguments, const size_t *sizes,
                         tf_redis_reply_fn fn, void *context) {
  if (self->command_count >= TF_REDIS_COMMANDS_MAX) return false;
  command *added = calloc(1, sizeof *added);
  if (!added) return false;
  *added = (command){.owner = self, .fn = fn, .context = context, .sent_us = tf_now_us()};
  if (redisAsyncCommandArgv(self->connection, on_reply, added, count, arguments, sizes) != REDIS_OK) {
    free(added);
    return false;
  }
  if (self->last)
    self->last->next = added;
  else
    self->first = added;
  self->last = added;
  self->command_count++;
  return true;
}

/* AUTH and SELECT are pipelined; the last one's answer makes the connection ready. */
static void become_ready(tf_redis_async *self) {
  enter(self, READY);
  self->wait_ms = 0;
  self->warned = false;
  tf_log_info("redis_connected", TF_STR("host", self->url.host), TF_STR("path", self->url.unix_path),
              TF_INT("port", self->url.port));
  self->events.connected(self->events.context);
}

static void on_greeting(void *context, const redisReply *reply) {
  tf_redis_async *self = context;
  if (self->state != GREETING || self->give_up_soon) return;
  if (!reply || reply->type == REDIS_REPLY_ERROR) {
    if (reply && !self->warned) {
      tf_log_error("redis_refused", TF_STR("reason", reply->str));
      self->warned = true;
    }
    self->give_up_soon = true;
    return;
  }
  if (self->command_count == 0) become_ready(self);
}

static void greet(tf_redis_async *self) {
  enter(self, GREETING);
  char password[256];
  tf_error error;
  if (tf_redis_password(&self->url, password, &error) != TF_OK) {
    if (!self->warned) tf_log_error("redis_refused", TF_STR("reason", error.text));
    self->warned = self->give_up_soon = true;
    return;
  }
  const char *auth[3] = {"AUTH", self->url.user, password};
  size_t auth_sizes[3] = {4, strlen(self->url.user), strlen(password)};
  bool sent = true;
  if (password[0] && self->url.user[0]) {
    sent = send_command(self, 3, auth, auth_sizes, on_greeting, self);
  } else if (password[0]) {
    auth[1] = auth[2];
    auth_sizes[1] = auth_sizes[2];
    sent = send_command(self, 2, auth, auth_sizes, on_greeting, self);
  }
  explicit_bzero(password, sizeof password);
  char database[16];
  int digits = snprintf(database, sizeof database, "%d", self->url.database);
  const char *select[2] = {"SELECT", database};
  size_t select_sizes[2] = {6, (size_t)digits};
  if (sent) sent = send_command(self, 2, select, select_sizes, on_greeting, self);
  if (!sent) self->give_up_soon = true;
}

static void on_connect(const redisAsyncContext *connection, int status) {
  tf_redis_async *self = connection->ev.data;
  if (self->connection != connection) return;
  if (status == REDIS_OK) {
    greet(self);
    return;
  }
  self->connection = NULL; /* hiredis frees it after this call */
  connection_lost(self, false, connection->errstr ? connection->errstr : "can not connect");
}

static void on_disconnect(const redisAsyncContext *connection, int status) {
  tf_redis_async *self = connection->ev.data;
  (void)status;
  if (self->connection != connection) return; /* we closed it */
  self->connection = NULL;
  connection_lost(self, self->state == READY,
                  connection->err && connection->errstr ? connection->errstr : "the server closed the connection");
}

static void attach(tf_redis_async *self, redisAsyncContext *connection) {
  if (!connection || connection->err) {
    char why[160] = "out of memory";
    if (connection) snprintf(why, sizeof why, "%s", connection->errstr);
    if (connection) redisAsyncFree(connection);
    connection_lost(self, false, why);
    return;
  }
  self->connection = connection;
  self->fd = connection->c.fd;
  self->wanted = 0;
  connection->ev.data = self;
  connection->ev.addRead = add_read;
  connection->ev.delRead = del_read;
  connection->ev.addWrite = add_write;
  connection->ev.delWrite = del_write;
  connection->ev.cleanup = cleanup;
  enter(self, CONNECTING);
  redisAsyncSetDisconnectCallback(connection, on_disconnect);
  redisAsyncSetConnectCallback(connection, on_connect); /* waits for the socket to be writable */
}

static void look_up(tf_redis_async *self) {
  lookup *started = calloc(1, sizeof *started);
  if (!started) {
    connection_lost(self, false, "out of memory");
    return;
  }
  memcpy(started->host, self->url.host, sizeof started->host);
  started->hints = (struct addrinfo){.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  started->request = (struct gaicb){.ar_name = started->host, .ar_request = &started->hints};
  struct gaicb *list[1] = {&started->request};
  int status = getaddrinfo_a(GAI_NOWAIT, list, 1, NULL);
  if (status) {
    free(started);
    connection_lost(self, false, gai_strerror(status));
    return;
  }
  self->lookup = started;
  enter(self, RESOLVING);
}

static void abandon_lookup(tf_redis_async *self) {
  lookup *started = self->lookup;
  self->lookup = NULL;
  if (!started) return;
  if (gai_error(&started->request) == EAI_INPROGRESS && gai_cancel(&started->request) == EAI_NOTCANCELED)
    return; /* still written to by glibc's thread: it stays */
  if (started->request.ar_result) freeaddrinfo(started->request.ar_result);
  free(started);
}

static void poll_lookup(tf_redis_async *self) {
  int status = gai_error(&self->lookup->request);
  if (status == EAI_INPROGRESS) {
    if (tf_now_ms() - self->since_ms < TF_REDIS_TIMEOUT_MS) return;
    abandon_lookup(self);
    connection_lost(self, false, "looking up the host name timed out");
    return;
  }
  char address[INET6_ADDRSTRLEN] = "";
  const struct addrinfo *found = status ? NULL : self->lookup->request.ar_result;
  if (found) getnameinfo(found->ai_addr, found->ai_addrlen, address, sizeof address, NULL, 0, NI_NUMERICHOST);
  abandon_lookup(self);
  if (address[0])
    attach(self, redisAsyncConnect(address, self->url.port));
  else
    connection_lost(self, false, status ? gai_strerror(status) : "the host name has no address");
}

static void begin(tf_redis_async *self) {
  unsigned char numeric[sizeof(struct in6_addr)];
  if (self->url.unix_path[0])
    attach(self, redisAsyncConnectUnix(self->url.unix_path));
  else if (inet_pton(AF_INET, self->url.host, numeric) == 1 || inet_pton(AF_INET6, self->url.host, numeric) == 1)
    attach(self, redisAsyncConnect(self->url.host, self->url.port));
  else
    look_up(self);
}

static void on_tick(void *context) {
  tf_redis_async *self = context;
  int64_t now_ms = tf_now_ms();
  if (self->give_up_soon) {
    drop_connection(self, "the server can not serve us");
    return;
  }
  switch (self->state) {
  case WAITING:
    if (now_ms - self->since_ms >= self->wait_ms) begin(self);
    break;
  case RESOLVING:
    poll_lookup(self);
    break;
  case CONNECTING:
  case GREETING:
    if (now_ms - self->since_ms >= TF_REDIS_TIMEOUT_MS) drop_connection(self, "connecting timed out");
    break;
  case READY:
    if (self->first && now_ms - self->first->sent_us / 1000 >= TF_REDIS_TIMEOUT_MS)
      drop_connection(self, "a command timed out");
    break;
  }
}

tf_code tf_redis_async_new(tf_reactor *reactor, const tf_redis_url *url, const tf_redis_events *events,
                           tf_redis_async **out) {
  tf_redis_async *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->reactor = reactor;
  self->url = *url;
  self->events = *events;
  self->fd = -1;
  self->tick = tf_reactor_add_timer(reactor, TICK_MS, true, on_tick, self);
  if (self->tick < 0) {
    free(self);
    return TF_ERR_OUT_OF_MEMORY;
  }
  enter(self, WAITING);
  *out = self;
  return TF_OK;
}

void tf_redis_async_free(tf_redis_async **self) {
  if (!self || !*self) return;
  tf_redis_async *closed = *self;
  *self = NULL;
  closed->closing = true;
  drop_connection(closed, "closing");
  abandon_lookup(closed);
  tf_reactor_remove_timer(closed->reactor, closed->tick);
  free(closed);
}

bool tf_redis_async_is_connected(const tf_redis_async *self) {
  return self->state == READY && self->connection && !self->give_up_soon;
}

bool tf_redis_async_command(tf_redis_async *self, int count, const char **arguments, const size_t *sizes,
                            tf_redis_reply_fn fn, void *context) {
  return tf_redis_async_is_connected(self) && send_command(self, count, arguments, sizes, fn, context);
}

void tf_redis_async_reconnect(tf_redis_async *self) {
  if (self->connection) self->give_up_soon = true;
}

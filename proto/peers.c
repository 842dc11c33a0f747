/* The worker's side of the router connections: liveness, shares of the window, results that wait for a router.
 * In: HELLO, PING, JOB, CANCEL, DRAIN from routers; what names resolve to; messages of the service. Out: HELLO, PONG,
 * WINDOW; the rest handed on. Each DEALER has ZMQ_IMMEDIATE, so that nothing queues up for a router that is not there:
 * a failed send is known at once. */
#include "proto/peers.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/utf8.h"
#include "proto/wire_watch.h"

enum {
  MESSAGES_A_TURN_MAX = 64, /* of one socket, before the others get theirs */
  HELD_A_TICK_MAX = 256,
  SILENCE_HELLO_MS = 2500, /* PINGs come every second: the router may have been restarted */
  ACTIVE_LINGER_MS = 3000, /* a share is not taken back between two PINGs */
  LINGER_MS = 1000,
  BY_ADDRESS = -1
};

typedef struct peer {
  tf_peers *owner;
  int name;      /* that it was found under; BY_ADDRESS: given as it is */
  bool vanished; /* the name does not resolve to it any more */
  char *endpoint;
  void *socket;
  tf_wire_watch *watch;
  bool connected;    /* the pipe could take a message at the last tick */
  bool live;         /* answered HELLO and not silent since */
  bool hello_wanted; /* the connection is new: the router behind it may be too */
  bool silence_told; /* its silence is in the log */
  char instance[TF_INSTANCE_BYTES_MAX + 1], queue[TF_QUEUE_BYTES_MAX + 1];
  int64_t seen_ms, hello_due_ms, active_until_ms, window_sent_ms;
  uint32_t demand, outstanding, window_jobs;
} peer;

typedef struct held {
  uint8_t *bytes;
  size_t size;
  int64_t expires_ms;
} held;

typedef struct peer_name {
  tf_discovery_name name;
  bool failure_told, bound_told; /* in the log, until it resolves again */
} peer_name;

struct tf_peers {
  tf_peers_config config;
  void *zmq_context;
  tf_reactor *reactor;
  peer *items[TF_PEERS_MAX];
  size_t count;
  tf_discovery *discovery; /* NULL: no names */
  peer_name names[TF_DISCOVERY_NAMES_MAX];
  size_t name_count;
  int timer;
  uint64_t epoch;
  bool draining, paused;
  held *held; /* oldest first */
  size_t held_count, held_bytes;
  tf_metric *protocol_errors, *routers_live, *lookups_failed, *held_gauge, *held_lost;
};

/* ---- pure helpers ---- */

void tf_peers_share(uint32_t jobs_max, const bool *active, size_t count, uint32_t *out) {
  size_t wanting = 0;
  for (size_t i = 0; i < count; i++) wanting += active[i];
  bool everyone = wanting == 0;
  size_t sharers = everyone ? count : wanting, idle = count - sharers, given = 0;
  uint32_t pot = jobs_max > idle ? (uint32_t)(jobs_max - idle) : 0;
  for (size_t i = 0; i < count; i++) {
    if (!everyone && !active[i]) {
      out[i] = 1;
      continue;
    }
    uint32_t share = (uint32_t)(pot / sharers) + (given < pot % sharers ? 1 : 0);
    out[i] = share > 0 ? share : 1;
    given++;
  }
}

void tf_text_clean(char *text) {
  size_t size = strlen(text);
  for (size_t at = 0; at < size;) {
    size_t length = tf_utf8_character_bytes(text + at, size - at);
    unsigned char byte = (unsigned char)text[at];
    if (length == 0 || byte < 0x20 || byte == 0x7F) text[at] = '?';
    at += length > 0 ? length : 1;
  }
}

void tf_instance_make(const char *role, char *out, size_t out_bytes) {
  char host[64] = "";
  if (gethostname(host, sizeof host - 1) != 0 || host[0] == '\0') snprintf(host, sizeof host, "host");
  tf_text_clean(host);
  uint64_t random = 0;
  if (getentropy(&random, sizeof random) != 0) random = (uint64_t)tf_clock_us(CLOCK_REALTIME);
  snprintf(out, out_bytes, "%s-%s-%ld-%016llx", role, host, (long)getpid(), (unsigned long long)random);
}

bool tf_job_key_equal(const tf_job_key *a, const tf_job_key *b) {
  return a->attempt == b->attempt && strcmp(a->entry, b->entry) == 0 && strcmp(a->queue, b->queue) == 0;
}

void tf_peers_message_free(tf_message **message) {
  if (*message == NULL) return;
  tf_message_clear(*message);
  free(*message);
  *message = NULL;
}

/* ---- sending ---- */

static void send_hello(peer *self, int64_t now_ms) {
  if (self->owner->draining) return;
  tf_message message = {.type = TF_MESSAGE_HELLO, .u.hello = self->owner->config.hello};
  tf_error error;
  if (tf_wire_send(self->socket, NULL, 0, &message, NULL, &error) != TF_OK) return; /* the next tick tries again */
  self->hello_due_ms = now_ms + TF_PEERS_HELLO_INTERVAL_MS;
  self->hello_wanted = false;
}

static void send_window(peer *self, uint32_t jobs, int64_t now_ms) {
  const tf_peers_config *config = &self->owner->config;
  uint64_t kv_tokens = 0;
  if (config->kv_tokens_max > 0 && jobs > 0) {
    /* One job must always fit, whatever its length: the number of jobs bounds what idle routers may send. */
    uint64_t one_job = config->hello.context_tokens_max;
    kv_tokens = (uint64_t)config->kv_tokens_max * jobs / (config->jobs_max > 0 ? config->jobs_max : 1);
    if (kv_tokens < one_job) kv_tokens = one_job;
    if (kv_tokens > config->kv_tokens_max) kv_tokens = config->kv_tokens_max;
  }
  tf_message message = {.type = TF_MESSAGE_WINDOW,
                        .u.window = {.epoch = self->owner->epoch + 1,
                                     .jobs_max = jobs,
                                     .kv_tokens_max = (uint32_t)kv_tokens,
                                     .draining = self->owner->draining}};
  tf_error error;
  if (tf_wire_send(self->socket, NULL, 0, &message, NULL, &error) != TF_OK) return;
  self->owner->epoch++;
  self->window_jobs = jobs;
  self->window_sent_ms = now_ms;
}

/* Sends every live router its share where it changed or was said long ago. */
static void update_windows(tf_peers *self, int64_t now_ms) {
  bool active[TF_PEERS_MAX] = {false};
  uint32_t share[TF_PEERS_MAX];
  peer *live[TF_PEERS_MAX];
  size_t count = 0;
  for (size_t i = 0; i < self->count; i++) {
    peer *item = self->items[i];
    if (!item->live) continue;
    if (item->demand > 0 || item->outstanding > 0) item->active_until_ms = now_ms + ACTIVE_LINGER_MS;
    live[count] = item;
    active[count++] = item->active_until_ms > now_ms;
  }
  tf_peers_share(self->config.jobs_max, active, count, share);
  for (size_t i = 0; i < count; i++) {
    uint32_t jobs = self->draining || self->paused ? 0 : share[i];
    bool due = now_ms - live[i]->window_sent_ms >= TF_PEERS_WINDOW_INTERVAL_MS;
    if (due || jobs != live[i]->window_jobs) send_window(live[i], jobs, now_ms);
  }
}

static const tf_job_key *key_of(const tf_message *message) {
  switch (message->type) {
  case TF_MESSAGE_STAGE:
    return &message->u.stage.key;
  case TF_MESSAGE_DELTA:
    return &message->u.delta.key;
  case TF_MESSAGE_RESULT:
    return &message->u.result.key;
  case TF_MESSAGE_FAILURE:
    return &message->u.failure.key;
  default:
    return NULL;
  }
}

tf_code tf_peers_send(tf_peers *self, const tf_message *message, tf_error *error) {
  const tf_job_key *key = key_of(message);
  if (key == NULL) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "not a message about a job");
  tf_code code = tf_fail(error, TF_ERR_WORKER_UNREACHABLE, "no router of queue %s is connected", key->queue);
  for (int pass = 0; pass < 2; pass++) {
    for (size_t i = 0; i < self->count; i++) {
      peer *item = self->items[i];
      bool named = strcmp(item->instance, key->router) == 0;
      if (!item->live || (pass == 0) != named || strcmp(item->queue, key->queue) != 0) continue;
      code = tf_wire_send(item->socket, NULL, 0, message, NULL, error);
      if (code == TF_OK || code == TF_ERR_PROTOCOL) return code;
    }
  }
  return code;
}

static void tell_lost(const held *item, const char *reason) {
  tf_message message = {.type = 0};
  tf_error error;
  const tf_job_key *key = tf_wire_decode(item->bytes, item->size, &message, &error) == TF_OK ? key_of(&message) : NULL;
  tf_log_warn("message_lost", TF_STR("job", key ? key->id : ""), TF_STR("entry", key ? key->entry : ""),
              TF_STR("trace", key ? key->trace : ""), TF_STR("reason", reason));
  tf_message_clear(&message);
}

static void held_drop(tf_peers *self, size_t index) {
  self->held_bytes -= self->held[index].size;
  free(self->held[index].bytes);
  self->held_count--;
  memmove(&self->held[index], &self->held[index + 1], (self->held_count - index) * sizeof *self->held);
}

void tf_peers_deliver(tf_peers *self, const tf_message *message) {
  tf_error error;
  tf_code code = tf_peers_send(self, message, &error);
  if (code == TF_OK) return;
  const tf_job_key *key = key_of(message);
  held item = {.expires_ms = tf_now_ms() + TF_PEERS_HELD_MS};
  if (code != TF_ERR_PROTOCOL && key != NULL) (void)tf_wire_encode(message, &item.bytes, &item.size, &error);
  if (item.bytes == NULL || item.size > TF_PEERS_HELD_BYTES_MAX) {
    tf_metric_add(self->held_lost, 1);
    tf_log_error("message_lost", TF_STR("job", key ? key->id : ""), TF_STR("entry", key ? key->entry : ""),
                 TF_STR("trace", key ? key->trace : ""), TF_STR("reason", error.text));
    free(item.bytes);
    return;
  }
  while (self->held_count >= TF_PEERS_HELD_MAX || self->held_bytes > TF_PEERS_HELD_BYTES_MAX - item.size) {
    tf_metric_add(self->held_lost, 1);
    tell_lost(&self->held[0], "too many wait for a router");
    held_drop(self, 0);
  }
  self->held[self->held_count++] = item;
  self->held_bytes += item.size;
}

void tf_peers_fail_job(tf_peers *self, const tf_job_key *key, tf_code code, const char *text, bool no_attempt) {
  char clean[TF_ERROR_TEXT_BYTES_MAX];
  snprintf(clean, sizeof clean, "%s", text != NULL && text[0] != '\0' ? text : tf_code_text(code));
  tf_text_clean(clean);
  tf_message message = {
      .type = TF_MESSAGE_FAILURE,
      .u.failure = {.key = *key, .error_code = tf_code_name(code), .error_message = clean, .no_attempt = no_attempt}};
  tf_peers_deliver(self, &message);
}

/* Tries the oldest held messages again; those past their time are given up. */
static void retry_held(tf_peers *self, int64_t now_ms) {
  size_t tries = 0;
  for (size_t i = 0; i < self->held_count && tries < HELD_A_TICK_MAX;) {
    held *item = &self->held[i];
    tf_code code = TF_ERR_WORKER_UNREACHABLE;
    tf_error error = {.text = "no router came back"};
    if (tf_peers_live(self) > 0) {
      tries++;
      tf_message message = {.type = 0};
      code = tf_wire_decode(item->bytes, item->size, &message, &error);
      if (code == TF_OK) code = tf_peers_send(self, &message, &error);
      tf_message_clear(&message);
    }
    bool lost = code != TF_OK && (now_ms >= item->expires_ms || code == TF_ERR_PROTOCOL);
    if (lost) {
      tf_metric_add(self->held_lost, 1);
      tell_lost(item, error.text);
    }
    if (code == TF_OK || lost) {
      held_drop(self, i);
    } else {
      i++;
    }
  }
}

/* ---- receiving ---- */

static void copy_text(char *out, size_t out_bytes, const char *text) {
  snprintf(out, out_bytes, "%s", text);
}

static void on_hello(peer *self, const tf_hello *hello, int64_t now_ms) {
  if (hello->role != TF_ROLE_ROUTER || hello->instance[0] == '\0') {
    tf_metric_add(self->owner->protocol_errors, 1);
    return;
  }
  bool changed = strcmp(self->instance, hello->instance) != 0;
  if (changed) self->outstanding = 0;
  if (changed || !self->live) {
    tf_log_info("router_connected", TF_STR("router", hello->instance), TF_STR("queue", hello->queue),
                TF_STR("endpoint", self->endpoint));
  }
  copy_text(self->instance, sizeof self->instance, hello->instance);
  copy_text(self->queue, sizeof self->queue, hello->queue);
  self->live = true;
  self->silence_told = false;
  self->seen_ms = now_ms;
  self->window_sent_ms = now_ms - TF_PEERS_WINDOW_INTERVAL_MS; /* it may know none of ours */
  update_windows(self->owner, now_ms);
}

static void on_ping(peer *self, const tf_ping *ping, int64_t now_ms) {
  self->demand = ping->demand_jobs;
  const tf_peers_config *config = &self->owner->config;
  tf_message message = {.type = TF_MESSAGE_PONG};
  config->measure(config->context, &message.u.pong);
  message.u.pong.sequence = ping->sequence;
  message.u.pong.jobs_max = config->jobs_max;
  for (size_t i = 0; i < self->owner->count; i++) message.u.pong.jobs += self->owner->items[i]->outstanding;
  tf_error error;
  (void)tf_wire_send(self->socket, NULL, 0, &message, NULL, &error); /* the next PING asks again */
  update_windows(self->owner, now_ms);
}

static void on_drain(peer *self, const tf_drain *drain) {
  tf_peers *owner = self->owner;
  if (strcmp(drain->instance, owner->config.hello.instance) != 0) {
    tf_metric_add(owner->protocol_errors, 1);
    return;
  }
  if (owner->draining) return; /* every router says it */
  tf_log_info("drain_asked", TF_STR("router", self->instance));
  owner->config.on_drain(owner->config.context);
}

static void dispatch(peer *self, tf_message **message) {
  int64_t now_ms = tf_now_ms();
  if ((*message)->type == TF_MESSAGE_HELLO) {
    on_hello(self, &(*message)->u.hello, now_ms);
    return;
  }
  if (self->instance[0] == '\0') { /* who speaks without HELLO is not known yet: ask again */
    tf_metric_add(self->owner->protocol_errors, 1);
    self->hello_due_ms = now_ms;
    return;
  }
  self->seen_ms = now_ms;
  if (!self->live) {
    self->live = true;
    self->window_sent_ms = now_ms - TF_PEERS_WINDOW_INTERVAL_MS;
  }
  switch ((*message)->type) {
  case TF_MESSAGE_PING:
    on_ping(self, &(*message)->u.ping, now_ms);
    break;
  case TF_MESSAGE_PONG:
    break;
  case TF_MESSAGE_DRAIN:
    on_drain(self, &(*message)->u.drain);
    break;
  case TF_MESSAGE_JOB:
  case TF_MESSAGE_CANCEL:
    self->owner->config.on_message(self->owner->config.context, message);
    break;
  default:
    tf_metric_add(self->owner->protocol_errors, 1);
    break;
  }
}

static void on_socket(void *context, void *socket) {
  peer *self = context;
  for (int i = 0; i < MESSAGES_A_TURN_MAX; i++) {
    tf_message *message = calloc(1, sizeof *message);
    if (message == NULL) return; /* the socket stays readable; the next turn tries again */
    tf_error error;
    tf_code code = tf_wire_receive(socket, false, message, &error);
    if (code == TF_OK) {
      dispatch(self, &message);
      tf_peers_message_free(&message);
      continue;
    }
    free(message);
    if (code != TF_ERR_PROTOCOL) return;
    tf_metric_add(self->owner->protocol_errors, 1);
    tf_log_warn("message_refused", TF_STR("endpoint", self->endpoint), TF_STR("reason", error.text));
  }
}

/* Is it there, has it gone, does it want to know us? */
static void check_peer(tf_peers *self, peer *item, int64_t now_ms) {
  int events = 0;
  size_t size = sizeof events;
  bool connected = zmq_getsockopt(item->socket, ZMQ_EVENTS, &events, &size) == 0 && (events & ZMQ_POLLOUT) != 0;
  if (connected && !item->connected) {
    item->hello_wanted = true;
    item->hello_due_ms = now_ms;
  }
  item->connected = connected;
  int64_t silence_ms = now_ms - item->seen_ms;
  bool silent = silence_ms > self->config.peer_timeout_ms;
  if (silent && item->live) {
    tf_log_warn("router_gone", TF_STR("router", item->instance), TF_INT("silence_ms", silence_ms));
    item->live = false;
    item->demand = 0;
  } else if (silent && !item->silence_told) {
    tf_log_warn("router_not_found", TF_STR("endpoint", item->endpoint), TF_INT("silence_ms", silence_ms));
  }
  if (silent) item->silence_told = true;
  bool wanting = !item->live || silence_ms > SILENCE_HELLO_MS || item->hello_wanted;
  if (wanting && connected && now_ms >= item->hello_due_ms) send_hello(item, now_ms);
}

/* ---- one router ---- */

static void peer_free(tf_peers *self, peer *item) {
  if (item->socket != NULL) {
    int linger_ms = LINGER_MS;
    tf_wire_watch_free(&item->watch);
    tf_reactor_remove_socket(self->reactor, item->socket);
    zmq_setsockopt(item->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_close(item->socket);
  }
  free(item->endpoint);
  free(item);
}

static tf_code open_peer(tf_peers *self, peer *item, tf_error *error) {
  tf_error why;
  if (item->endpoint == NULL || item->socket == NULL)
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a socket to a router");
  const char *endpoint = item->endpoint;
  if (tf_wire_endpoint_check(endpoint, false, &why) != TF_OK)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--routers: %s", why.text);
  int immediate = 1;
  zmq_setsockopt(item->socket, ZMQ_IMMEDIATE, &immediate, sizeof immediate);
  tf_code code = tf_curve_connect(self->config.curve, item->socket, error);
  if (code != TF_OK) return code;
  item->watch = tf_wire_watch_new(self->zmq_context, self->reactor, self->config.metrics, item->socket, endpoint, false,
                                  self->config.curve != NULL);
  if (zmq_connect(item->socket, endpoint) != 0) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "can not connect to router %s: %s", endpoint,
                   zmq_strerror(zmq_errno()));
  }
  code = tf_reactor_add_socket(self->reactor, item->socket, on_socket, item);
  return code == TF_OK ? TF_OK : tf_fail(error, code, "the reactor is full");
}

/* There is room. */
static tf_code connect_peer(tf_peers *self, const char *endpoint, int name, tf_error *error) {
  peer *item = calloc(1, sizeof *item);
  if (item == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a router");
  *item = (peer){.owner = self,
                 .name = name,
                 .endpoint = strdup(endpoint),
                 .socket = tf_wire_socket(self->zmq_context, ZMQ_DEALER),
                 .seen_ms = tf_now_ms()};
  tf_code code = open_peer(self, item, error);
  if (code == TF_OK) {
    self->items[self->count++] = item;
  } else {
    peer_free(self, item);
  }
  return code;
}

/* ---- names ---- */

static peer *find_endpoint(tf_peers *self, const char *endpoint) {
  for (size_t i = 0; i < self->count; i++)
    if (strcmp(self->items[i]->endpoint, endpoint) == 0) return self->items[i];
  return NULL;
}

static void connect_found(tf_peers *self, int name, const tf_discovery_set *found) {
  peer_name *from = &self->names[name];
  size_t left_out = found->left_out;
  for (size_t i = 0; i < found->count; i++) {
    tf_error error = {.code = TF_OK};
    if (find_endpoint(self, found->endpoints[i]) != NULL) continue;
    if (self->count == TF_PEERS_MAX) {
      left_out++; /* until others go: every answer comes through here */
    } else if (connect_peer(self, found->endpoints[i], name, &error) != TF_OK) {
      tf_log_warn("router_not_connected", TF_STR("endpoint", found->endpoints[i]), TF_STR("reason", error.text));
    } else {
      tf_log_info("router_found", TF_STR("name", from->name.host), TF_STR("endpoint", found->endpoints[i]));
    }
  }
  if (left_out > 0 && !from->bound_told)
    tf_log_warn("routers_left_out", TF_STR("name", from->name.host), TF_INT("addresses", left_out),
                TF_INT("routers_max", TF_PEERS_MAX));
  from->bound_told = left_out > 0;
}

static void read_answer(tf_peers *self, int name, const tf_discovery_set *found, const tf_error *error) {
  peer_name *from = &self->names[name];
  if (error->code != TF_OK) { /* what is connected stays */
    tf_metric_add(self->lookups_failed, 1);
    if (!from->failure_told) tf_log_warn("router_lookup_failed", TF_STR("reason", error->text));
    from->failure_told = true;
    return;
  }
  from->failure_told = false;
  for (size_t i = 0; i < self->count; i++) {
    peer *item = self->items[i];
    if (item->name == name) item->vanished = !tf_discovery_has(found, item->endpoint);
  }
  connect_found(self, name, found);
}

/* Takes what names resolve to by now; closes what has vanished and is silent. Not while peers are being walked. */
static void follow_names(tf_peers *self, int64_t now_ms) {
  for (size_t i = 0; i < self->name_count; i++) {
    tf_discovery_set found;
    tf_error error;
    if (tf_discovery_take(self->discovery, i, &found, &error)) read_answer(self, (int)i, &found, &error);
  }
  for (size_t i = self->count; i-- > 0;) {
    peer *item = self->items[i];
    if (!item->vanished || item->live || now_ms - item->seen_ms <= self->config.peer_timeout_ms) continue;
    tf_log_info("router_dropped", TF_STR("endpoint", item->endpoint), TF_STR("router", item->instance));
    peer_free(self, item);
    self->items[i] = self->items[--self->count];
  }
}

static void on_tick(void *context) {
  tf_peers *self = context;
  int64_t now_ms = tf_now_ms();
  follow_names(self, now_ms);
  for (size_t i = 0; i < self->count; i++) check_peer(self, self->items[i], now_ms);
  update_windows(self, now_ms);
  retry_held(self, now_ms);
  tf_metric_set(self->routers_live, (double)tf_peers_live(self));
  tf_metric_set(self->held_gauge, (double)self->held_count);
}

/* ---- life ---- */

static void make_metrics(tf_peers *self) {
  tf_metrics *metrics = self->config.metrics;
  self->protocol_errors = tf_metrics_counter(metrics, "tokenflex_protocol_errors_total", "",
                                             "Messages that were malformed, unknown or out of place");
  self->routers_live = tf_metrics_gauge(metrics, "tokenflex_routers_live", "", "Routers connected and heard of");
  self->lookups_failed = tf_metrics_counter(metrics, "tokenflex_router_lookups_failed_total", "",
                                            "Times that a name in --routers did not resolve");
  self->held_gauge = tf_metrics_gauge(metrics, "tokenflex_messages_held", "", "Messages that wait for a live router");
  self->held_lost = tf_metrics_counter(metrics, "tokenflex_messages_lost_total", "",
                                       "Messages given up: no router took them in time");
}

/* Endpoints at once, names by and by. */
static tf_code use_endpoints(tf_peers *self, const tf_string_list *endpoints, tf_error *error) {
  const tf_peers_config *config = &self->config;
  tf_discovery_name names[TF_DISCOVERY_NAMES_MAX];
  tf_code code = TF_OK;
  for (size_t i = 0; code == TF_OK && i < endpoints->count; i++) {
    const char *endpoint = endpoints->items[i];
    tf_error why;
    if (!tf_discovery_is_name(endpoint)) {
      code = connect_peer(self, endpoint, BY_ADDRESS, error);
    } else if (self->name_count == TF_DISCOVERY_NAMES_MAX) {
      code = tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--routers: more than %d names", TF_DISCOVERY_NAMES_MAX);
    } else if (tf_discovery_parse(endpoint, &names[self->name_count], &why) != TF_OK) {
      code = tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--routers: %s", why.text);
    } else {
      self->names[self->name_count].name = names[self->name_count];
      self->name_count++;
    }
  }
  if (code != TF_OK || self->name_count == 0) return code;
  return tf_discovery_new(names, self->name_count, config->resolve, config->resolve_context,
                          config->resolve_interval_ms, &self->discovery, error);
}

tf_code tf_peers_new(void *zmq_context, tf_reactor *reactor, const tf_string_list *endpoints,
                     const tf_peers_config *config, tf_peers **out, tf_error *error) {
  *out = NULL;
  if (endpoints->count == 0) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "no router endpoint given (--routers)");
  tf_peers *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the router connections");
  self->config = *config;
  self->config.hello.started_unix_ms = tf_unix_ms();
  self->zmq_context = zmq_context;
  self->reactor = reactor;
  self->timer = -1;
  self->held = calloc(TF_PEERS_HELD_MAX, sizeof *self->held);
  tf_code code = TF_OK;
  if (self->held == NULL) {
    tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the router connections");
    code = TF_ERR_OUT_OF_MEMORY;
  }
  make_metrics(self);
  if (code == TF_OK) code = use_endpoints(self, endpoints, error);
  if (code == TF_OK) {
    self->timer = tf_reactor_add_timer(reactor, TF_PEERS_TICK_MS, true, on_tick, self);
    if (self->timer < 0) code = tf_fail(error, TF_ERR_INTERNAL, "no timer left for the router connections");
  }
  if (code != TF_OK) {
    tf_peers_free(&self);
    return code;
  }
  *out = self;
  return TF_OK;
}

void tf_peers_free(tf_peers **self) {
  tf_peers *peers = *self;
  if (peers == NULL) return;
  *self = NULL;
  if (peers->timer >= 0) tf_reactor_remove_timer(peers->reactor, peers->timer);
  tf_discovery_free(&peers->discovery);
  for (size_t i = 0; i < peers->count; i++) peer_free(peers, peers->items[i]);
  for (size_t i = 0; peers->held != NULL && i < peers->held_count; i++) free(peers->held[i].bytes);
  free(peers->held);
  free(peers);
}

size_t tf_peers_live(const tf_peers *self) {
  size_t live = 0;
  for (size_t i = 0; i < self->count; i++) live += self->items[i]->live;
  return live;
}

static peer *find_router(tf_peers *self, const char *router) {
  for (size_t i = 0; i < self->count; i++) {
    if (self->items[i]->instance[0] != '\0' && strcmp(self->items[i]->instance, router) == 0) return self->items[i];
  }
  return NULL;
}

void tf_peers_job_begin(tf_peers *self, const char *router) {
  peer *item = find_router(self, router);
  if (item != NULL) item->outstanding++;
}

void tf_peers_job_end(tf_peers *self, const char *router) {
  peer *item = find_router(self, router);
  if (item != NULL && item->outstanding > 0) item->outstanding--;
}

size_t tf_peers_held(const tf_peers *self) {
  return self->held_count;
}

void tf_peers_pause(tf_peers *self, bool paused) {
  self->paused = paused;
  update_windows(self, tf_now_ms());
}

void tf_peers_drain(tf_peers *self) {
  self->draining = true;
  int64_t now_ms = tf_now_ms();
  for (size_t i = 0; i < self->count; i++) self->items[i]->window_sent_ms = now_ms - TF_PEERS_WINDOW_INTERVAL_MS;
  update_windows(self, now_ms);
}

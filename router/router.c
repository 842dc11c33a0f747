/* The router: ties its stages together. In: messages of workers, ticks. Out: HELLO and PING, readiness, a drained end.
 * Messages about jobs go to dispatch; who is there (HELLO, WINDOW, PONG, silence) is kept here with workers.c.
 * Everything runs on the reactor's thread; every round over the socket is bounded. */
#include "router/router.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/log.h"
#include "proto/wire_watch.h"
#include "router/control.h"
#include "router/eviction.h"
#include "router/intake.h"
#include "router/page.h"
#include "router/publish.h"
#include "router/upkeep.h"

enum {
  TICK_MS = 50,
  PAUSES_PER_TIMEOUT = 4, /* a tick that is late by this part of the peer timeout was a pause */
  PING_MS = 1000,
  EXPIRE_MS = 250,
  REASON_MS = 5000,
  STALL_MS_MAX = 10000, /* a reactor thread that did not tick for so long is stuck */
  MESSAGES_PER_ROUND_MAX = 256,
  LEAVE_MS_MAX = 2000 /* to tell Redis that we go */
};

struct tf_router {
  const tf_router_config *config;
  const tf_service *service;
  tf_reactor *reactor;
  tf_health *health;
  tf_router_stats stats;
  tf_redis_clock clock;
  char instance[TF_INSTANCE_BYTES_MAX + 1];
  void *socket;
  tf_wire_watch *watch;
  tf_scripts *scripts;
  tf_jobs *jobs;
  tf_workers *workers;
  tf_results *results;
  tf_load *load;
  tf_dispatch *dispatch;
  tf_intake *intake;
  tf_eviction *eviction;
  tf_publish *publish;
  tf_control *control;
  tf_upkeep *upkeep;
  tf_board *board;
  tf_board_feed *feed;
  tf_page *page; /* NULL: off */
  int tick;
  int64_t ticked_ms, pinged_ms, expired_ms;
  const char *reason; /* why it is not ready, as last told; NULL: it is */
  int64_t reason_ms;  /* since when it is another one */
  enum { SERVING, DRAINING, LEAVING } phase;
  int64_t phase_until_ms; /* DRAINING, LEAVING */
};

/* --- Workers --- */

static void worker_lost(tf_router *self, tf_worker *worker) {
  tf_dispatch_worker_lost(self->dispatch, worker);
  tf_publish_worker_gone(self->publish, worker->instance);
  tf_workers_remove(self->workers, worker);
}

static void send_to(tf_router *self, tf_worker *worker, const tf_message *message) {
  if (tf_wire_send(self->socket, worker->peer, worker->peer_size, message, NULL, NULL) == TF_ERR_WORKER_UNREACHABLE)
    worker->reachable = false; /* it is lost when it stays silent */
}

static void on_hello(tf_router *self, const tf_message *message) {
  tf_worker *worker = NULL;
  tf_hello_outcome outcome = TF_HELLO_REFUSED;
  /* A HELLO may replace what its connection was before, and what its instance was before. */
  for (int round = 0; round < 3; round++) {
    outcome =
        tf_workers_hello(self->workers, &message->u.hello, message->peer, message->peer_size, tf_now_ms(), &worker);
    if (outcome != TF_HELLO_REPLACED) break;
    worker_lost(self, worker);
  }
  if (outcome == TF_HELLO_REFUSED || outcome == TF_HELLO_REPLACED) {
    tf_router_stats_protocol_error(&self->stats, "hello");
    return;
  }
  if (outcome == TF_HELLO_MOVED) tf_dispatch_worker_moved(self->dispatch, worker);
  if (outcome == TF_HELLO_NEW)
    tf_log_info("worker_joined", TF_STR("role", worker->role == TF_ROLE_LLM ? "llm" : "encoder"),
                TF_STR("instance", worker->instance), TF_STR("model", worker->model),
                TF_STR("pair_hash", worker->pair_hash), TF_STR("endpoint", worker->tensor_endpoint));
  tf_message answer = {.type = TF_MESSAGE_HELLO};
  answer.u.hello = (tf_hello){
      .role = TF_ROLE_ROUTER, .instance = self->instance, .queue = self->config->wire_queue, .version = TF_VERSION};
  send_to(self, worker, &answer);
  tf_control_hello(self->control, worker);
}

static void on_window(tf_router *self, tf_worker *from, const tf_window *window) {
  bool drained = from->draining, alone = !from->has_window && !tf_workers_main_pair(self->workers);
  tf_workers_window(from, window);
  /* The first pair: whoever waits for it need not wait for the next beat too. */
  if (alone && tf_workers_main_pair(self->workers)) tf_upkeep_beat(self->upkeep);
  if (from->draining && !drained && from->role == TF_ROLE_LLM) tf_dispatch_llm_drains(self->dispatch, from);
}

static void on_message(tf_router *self, const tf_message *message) {
  if (message->type == TF_MESSAGE_HELLO) {
    on_hello(self, message);
    return;
  }
  tf_worker *from = tf_workers_find_peer(self->workers, message->peer, message->peer_size);
  if (from) {
    from->heard_ms = tf_now_ms();
    from->reachable = true;
  }
  switch (message->type) {
  case TF_MESSAGE_RESULT:
  case TF_MESSAGE_FAILURE:
    tf_dispatch_message(self->dispatch, from, message);
    return;
  case TF_MESSAGE_STAGE:
    tf_dispatch_message(self->dispatch, from, message);
    return;
  case TF_MESSAGE_WINDOW:
    if (from) on_window(self, from, &message->u.window);
    break;
  case TF_MESSAGE_PONG:
    if (from) tf_workers_pong(from, &message->u.pong);
    break;
  case TF_MESSAGE_DELTA: /* nobody streams through a router yet */
    break;
  default:
    tf_router_stats_protocol_error(&self->stats, "unexpected");
    return;
  }
  if (!from) tf_router_stats_protocol_error(&self->stats, "unknown_peer"); /* it says HELLO when no PING comes */
}

static void on_socket(void *context, void *socket) {
  tf_router *self = context;
  for (int i = 0; i < MESSAGES_PER_ROUND_MAX; i++) {
    tf_message message;
    tf_error error;
    tf_code code = tf_wire_receive(socket, true, &message, &error);
    if (code == TF_ERR_TIMEOUT) break;
    if (code == TF_OK) {
      on_message(self, &message);
      tf_message_clear(&message);
    } else {
      tf_router_stats_protocol_error(&self->stats, "malformed");
      tf_log_debug("message_dropped", TF_STR("reason", error.text));
    }
  }
  tf_dispatch_flush(self->dispatch);
  tf_dispatch_place(self->dispatch);
}

static void ping_workers(tf_router *self) {
  int64_t demand = self->phase == SERVING
                       ? tf_intake_waiting(self->intake) + (int64_t)tf_jobs_count_state(self->jobs, TF_JOB_PENDING)
                       : 0;
  for (tf_worker *worker = tf_workers_first(self->workers); worker; worker = tf_workers_next(self->workers, worker)) {
    tf_message message = {.type = TF_MESSAGE_PING};
    message.u.ping = (tf_ping){.sequence = ++worker->ping_sequence,
                               .demand_jobs = demand > UINT32_MAX ? UINT32_MAX : (uint32_t)demand};
    send_to(self, worker, &message);
  }
}

static void drop_silent_workers(tf_router *self, int64_t now_ms) {
  for (tf_worker *worker = tf_workers_first(self->workers); worker; worker = tf_workers_next(self->workers, worker))
    if (now_ms - worker->heard_ms >= self->config->peer_timeout_ms) worker_lost(self, worker);
}

/* A pause of ours (a stopped process, a suspended machine) is no silence of theirs. */
static void forgive_pause(tf_router *self, int64_t now_ms) {
  int64_t pause_ms = now_ms - self->ticked_ms;
  self->ticked_ms = now_ms;
  if (pause_ms < self->config->peer_timeout_ms / PAUSES_PER_TIMEOUT + TICK_MS) return;
  tf_log_warn("router_paused", TF_INT("pause_ms", pause_ms));
  for (tf_worker *worker = tf_workers_first(self->workers); worker; worker = tf_workers_next(self->workers, worker))
    worker->heard_ms = now_ms;
}

/* --- State --- */

/* What keeps jobs from flowing is told once it has lasted: workers that start one after the other are no news. */
static void tell_state(tf_router *self, const char *reason) {
  if (reason == self->reason) {
    self->reason_ms = tf_now_ms();
    return;
  }
  if (reason && tf_now_ms() - self->reason_ms < REASON_MS) return;
  self->reason = reason;
  if (reason)
    tf_log_warn("not_ready", TF_STR("reason", reason));
  else
    tf_log_info("ready", TF_INT("encoders", tf_workers_count(self->workers, TF_ROLE_ENCODER)),
                TF_INT("llms", tf_workers_count(self->workers, TF_ROLE_LLM)));
}

static void report_health(tf_router *self) {
  size_t encoders = tf_workers_count(self->workers, TF_ROLE_ENCODER),
         llms = tf_workers_count(self->workers, TF_ROLE_LLM);
  tf_metric_set(self->stats.encoders, (double)encoders);
  tf_metric_set(self->stats.llms, (double)llms);
  tf_metric_set(self->stats.held, (double)tf_jobs_count(self->jobs));
  const char *reason = self->phase != SERVING                 ? "draining"
                       : !tf_scripts_is_ready(self->scripts)  ? "Redis is out of reach"
                       : tf_intake_results_full(self->intake) ? "results are full, intake has stopped"
                                                              : NULL;
  const char *missing = encoders == 0                          ? "no encoder"
                        : llms == 0                            ? "no LLM worker"
                        : !tf_workers_main_pair(self->workers) ? "no encoder and LLM of one model that take jobs"
                                                               : NULL;
  /* Workers that other routers have are on their way here: a new router that counted as ready without them would let an
   * update end the old ones first. */
  if (!reason && !(self->config->ready_without_workers && tf_upkeep_nobody_has_a_pair(self->upkeep))) reason = missing;
  tf_health_set_ready(self->health, !reason, reason ? reason : missing ? missing : "ready");
  if (self->phase == SERVING) tell_state(self, reason);
  if (self->page)
    tf_board_state(self->board, tf_redis_clock_us(&self->clock) / 1000, tf_scripts_is_ready(self->scripts),
                   reason ? reason : missing);
  tf_health_beat(self->health, 0, STALL_MS_MAX);
}

static void on_left(void *context) {
  tf_router *self = context;
  tf_log_info("router_left", TF_INT("jobs_handed_back", tf_jobs_count(self->jobs)));
  tf_reactor_stop(self->reactor);
}

static void leave(tf_router *self) {
  if (self->phase == LEAVING) return;
  self->phase = LEAVING;
  self->phase_until_ms = tf_now_ms() + LEAVE_MS_MAX;
  tf_upkeep_leave(self->upkeep, on_left, self);
}

static void advance_phase(tf_router *self, int64_t now_ms) {
  if (self->phase == DRAINING) {
    tf_upkeep_release_pending(self->upkeep);
    if (tf_jobs_count(self->jobs) == 0 || now_ms >= self->phase_until_ms) leave(self);
  } else if (self->phase == LEAVING && now_ms >= self->phase_until_ms) {
    tf_reactor_stop(self->reactor);
  }
}

static void on_tick(void *context) {
  tf_router *self = context;
  int64_t now_ms = tf_now_ms();
  if (now_ms - self->pinged_ms >= PING_MS) {
    self->pinged_ms = now_ms;
    ping_workers(self);
  }
  forgive_pause(self, now_ms);
  drop_silent_workers(self, now_ms);
  if (now_ms - self->expired_ms >= EXPIRE_MS) {
    self->expired_ms = now_ms;
    tf_dispatch_expire(self->dispatch);
    report_health(self);
  }
  advance_phase(self, now_ms);
}

void tf_router_drain(tf_router *self) {
  if (self->phase != SERVING) {
    leave(self);
    return;
  }
  tf_log_info("router_drains", TF_INT("jobs", tf_jobs_count(self->jobs)));
  self->phase = DRAINING;
  self->phase_until_ms = tf_now_ms() + self->config->drain_timeout_s * 1000;
  tf_intake_stop(self->intake);
  advance_phase(self, tf_now_ms());
}

static void on_redis_ready(void *context) {
  tf_router *self = context;
  tf_upkeep_kick(self->upkeep);
  tf_results_kick(self->results);
  tf_eviction_ask(self->eviction);
}
/* Every caller was told by its own callback. */
static void on_redis_lost(void *context) {
  tf_load_lost(((tf_router *)context)->load);
}

/* --- Life --- */

static tf_code bind_socket(tf_router *self, tf_error *error) {
  const tf_service *service = self->service;
  const char *endpoint = self->config->bind;
  self->socket = tf_wire_socket(service->zmq_context, ZMQ_ROUTER);
  if (!self->socket) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "can not make a socket");
  self->watch = tf_wire_watch_new(service->zmq_context, self->reactor, service->metrics, self->socket, endpoint, true,
                                  service->curve != NULL);
  tf_code code = tf_curve_bind(service->curve, self->socket, error);
  if (code != TF_OK) return code;
  if (zmq_bind(self->socket, endpoint) != 0)
    return tf_fail(error, TF_ERR_IO, "can not bind to %.200s: %s", endpoint, zmq_strerror(zmq_errno()));
  return tf_reactor_add_socket(self->reactor, self->socket, on_socket, self);
}

/* The status page: the board is there in any case, what feeds and shows it only where it is wanted. */
static tf_code make_page(tf_router *self, tf_metrics *metrics) {
  if (tf_health_port(self->health) == 0 || strcmp(self->config->page, "on") != 0) return TF_OK;
  tf_board_feed_parts feed = {self->reactor, self->scripts, self->board, &self->clock};
  tf_code code = tf_board_feed_new(&feed, &self->feed);
  if (code != TF_OK) return code;
  tf_page_parts page = {self->health,        metrics,       self->board, self->feed, self->config->page_token,
                        self->config->queue, self->instance};
  return tf_page_new(&page, &self->page);
}

static tf_code make_stages(tf_router *self, tf_metrics *metrics, const tf_redis_url *url) {
  tf_scripts_events events = {.ready = on_redis_ready, .lost = on_redis_lost, .context = self};
  tf_code code = tf_scripts_new(self->reactor, url, self->config->queue, metrics, &events, &self->scripts);
  if (code != TF_OK) return code;
  tf_results_parts results = {self->reactor, self->scripts, self->jobs,  self->config,
                              &self->clock,  &self->stats,  self->board, self->instance};
  code = tf_results_new(&results, &self->results);
  if (code != TF_OK) return code;
  tf_load_parts load = {self->scripts, self->workers, self->config, &self->clock, &self->stats};
  code = tf_load_new(&load, &self->load);
  if (code != TF_OK) return code;
  tf_dispatch_parts dispatch = {self->socket, self->scripts, self->jobs,   self->workers, self->results,
                                self->load,   self->config,  &self->clock, &self->stats,  self->instance};
  code = tf_dispatch_new(&dispatch, &self->dispatch);
  if (code != TF_OK) return code;
  tf_upkeep_parts upkeep = {self->reactor, self->scripts, self->jobs,   self->workers, self->dispatch,
                            self->config,  &self->clock,  &self->stats, self->instance};
  code = tf_upkeep_new(&upkeep, &self->upkeep);
  if (code != TF_OK) return code;
  code = tf_eviction_new(self->reactor, self->scripts, &self->eviction);
  if (code != TF_OK) return code;
  tf_publish_parts publish = {self->reactor, self->scripts, self->workers,  self->load,   self->config,
                              &self->clock,  &self->stats,  self->instance, self->health, self->eviction};
  code = tf_publish_new(&publish, &self->publish);
  if (code != TF_OK) return code;
  tf_control_parts control = {self->reactor, self->scripts, self->workers, self->socket};
  code = tf_control_new(&control, &self->control);
  if (code != TF_OK) return code;
  tf_intake_parts intake = {self->reactor, self->scripts, self->jobs,   self->dispatch, self->results,
                            self->load,    self->config,  &self->clock, &self->stats,   self->instance};
  code = tf_intake_new(&intake, &self->intake);
  return code == TF_OK ? make_page(self, metrics) : code;
}

tf_code tf_router_wire_queue(const char *redis_url, const char *queue, char out[TF_QUEUE_BYTES_MAX + 1],
                             tf_error *error) {
  char key[TF_REDIS_KEY_BYTES_MAX], place[400];
  if (tf_redis_key(queue, "jobs:0", key, sizeof key) != TF_OK)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--queue '%.80s': a name is 1 to 64 of A-Z a-z 0-9 . _ -", queue);
  tf_redis_url url;
  tf_code code = tf_redis_url_parse(redis_url, &url, error);
  if (code != TF_OK) return code;
  tf_redis_place(&url, place, sizeof place);
  snprintf(out, TF_QUEUE_BYTES_MAX + 1, "%s@%08x", queue, (unsigned)XXH3_64bits(place, strlen(place)));
  return TF_OK;
}

tf_code tf_router_new(const tf_router_config *config, const tf_service *service, tf_router **out, tf_error *error) {
  tf_redis_url url;
  tf_code code = tf_redis_url_parse(config->redis, &url, error);
  if (code != TF_OK) return code;
  tf_router *self = calloc(1, sizeof *self);
  if (!self) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  self->config = config;
  self->service = service;
  self->reactor = service->reactor;
  self->health = service->health;
  self->clock.offset_us = tf_unix_us() - tf_now_us(); /* until Redis tells its own */
  self->ticked_ms = self->reason_ms = tf_now_ms();
  self->reason = "starting";
  tf_router_stats_init(&self->stats, service->metrics);
  tf_metric_set(tf_metrics_gauge(service->metrics, "tokenflex_ready_without_workers", "",
                                 "1: tiers may have no worker (--ready-without-workers)"),
                config->ready_without_workers);
  memcpy(self->instance, service->instance, sizeof self->instance);
  self->jobs = tf_jobs_new();
  self->workers = tf_workers_new();
  self->board = tf_board_new();
  self->tick = tf_reactor_add_timer(self->reactor, TICK_MS, true, on_tick, self);
  code = self->jobs && self->workers && self->board && self->tick >= 0
             ? TF_OK
             : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  if (code == TF_OK) code = bind_socket(self, error);
  if (code == TF_OK) {
    code = make_stages(self, service->metrics, &url);
    if (code != TF_OK) tf_fail(error, code, "no memory to start");
  }
  if (code != TF_OK) {
    tf_router_free(&self);
    return code;
  }
  tf_log_info("router_started", TF_STR("instance", self->instance), TF_STR("queue", config->queue),
              TF_STR("bind", config->bind), TF_STR("curve", service->curve ? "on" : "off"));
  *out = self;
  return TF_OK;
}

void tf_router_free(tf_router **self) {
  if (!self || !*self) return;
  tf_router *freed = *self;
  *self = NULL;
  tf_page_free(&freed->page);
  if (freed->tick >= 0) tf_reactor_remove_timer(freed->reactor, freed->tick);
  tf_scripts_free(&freed->scripts); /* first: its callbacks still find the others */
  tf_board_feed_free(&freed->feed);
  tf_intake_free(&freed->intake);
  tf_control_free(&freed->control);
  tf_publish_free(&freed->publish);
  tf_eviction_free(&freed->eviction);
  tf_upkeep_free(&freed->upkeep);
  tf_dispatch_free(&freed->dispatch);
  tf_load_free(&freed->load);
  tf_results_free(&freed->results);
  tf_jobs_free(&freed->jobs);
  tf_workers_free(&freed->workers);
  tf_board_free(&freed->board);
  tf_wire_watch_free(&freed->watch);
  if (freed->socket) {
    tf_reactor_remove_socket(freed->reactor, freed->socket);
    zmq_close(freed->socket);
  }
  free(freed);
}

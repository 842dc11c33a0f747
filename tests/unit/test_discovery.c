/* Routers behind a name: parsing, sets of endpoints, and a worker that follows what a name resolves to.
 * In: a resolver that the test plays, routers at 127.0.0.1 and 127.0.0.2 of one port. Out: who is connected when. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "proto/peers.h"
#include "tests/unit/fake_router.h"

/* ---- pure parts ---- */

Test(discovery, names) {
  tf_discovery_name name;
  tf_error error;
  cr_assert_eq(tf_discovery_parse("dns+tcp://tokenflex-router.a_b:7701", &name, &error), TF_OK);
  cr_expect_str_eq(name.host, "tokenflex-router.a_b");
  cr_expect_eq(name.port, 7701);
  cr_expect(tf_discovery_is_name("dns+tcp://") && !tf_discovery_is_name("tcp://a:1") && !tf_discovery_is_name(""));
  static const char *const wrong[] = {"tcp://a:1",       "dns+tcp://",        "dns+tcp://a",     "dns+tcp://:1",
                                      "dns+tcp://a:",    "dns+tcp://a:0",     "dns+tcp://a:b",   "dns+tcp://a:65536",
                                      "dns+tcp://a:1 ",  "dns+tcp://a b:1",   "dns+tcp://[a]:1", "dns+tcp://a:123456",
                                      "dns+tcp://a/b:1", "dns+tcp://a:99999", "dns+tcp://a:*"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
    cr_expect_eq(tf_discovery_parse(wrong[i], &name, &error), TF_ERR_INVALID_ARGUMENT, "%s", wrong[i]);
  char text[400] = "dns+tcp://";
  memset(text + strlen(text), 'a', TF_DISCOVERY_HOST_BYTES_MAX);
  snprintf(text + strlen(text), 10, ":1");
  cr_expect_eq(tf_discovery_parse(text, &name, &error), TF_OK);
  cr_expect_eq(strlen(name.host), (size_t)TF_DISCOVERY_HOST_BYTES_MAX);
  memmove(text + strlen("dns+tcp://") + 1, text + strlen("dns+tcp://"), strlen(text + strlen("dns+tcp://")) + 1);
  cr_expect_eq(tf_discovery_parse(text, &name, &error), TF_ERR_INVALID_ARGUMENT, "one byte too long");
}

Test(discovery, sets) {
  static tf_discovery_set set, backwards;
  tf_discovery_add(&set, htonl(0x7F000002), 9);
  tf_discovery_add(&set, htonl(0x7F000001), 9);
  tf_discovery_add(&set, htonl(0x7F000002), 9);
  cr_assert_eq(set.count, 2u, "each once");
  cr_expect_str_eq(set.endpoints[0], "tcp://127.0.0.1:9");
  cr_expect_str_eq(set.endpoints[1], "tcp://127.0.0.2:9");
  cr_expect(tf_discovery_has(&set, "tcp://127.0.0.2:9") && !tf_discovery_has(&set, "tcp://127.0.0.2:99"));
  enum { MANY = TF_DISCOVERY_ENDPOINTS_MAX + 20 };
  set = (tf_discovery_set){.count = 0};
  for (uint32_t i = 0; i < MANY; i++) tf_discovery_add(&set, htonl(0xFFFFFF00 + i), 65535);
  for (uint32_t i = MANY; i-- > 0;) tf_discovery_add(&backwards, htonl(0xFFFFFF00 + i), 65535);
  cr_expect_eq(set.count, (size_t)TF_DISCOVERY_ENDPOINTS_MAX);
  cr_expect_eq(set.left_out, 20u);
  cr_assert_eq(backwards.count, set.count);
  for (size_t i = 0; i < set.count; i++)
    cr_expect_str_eq(backwards.endpoints[i], set.endpoints[i], "what is left out does not depend on the order");
}

/* ---- a resolver that the test plays ---- */

typedef struct zone {
  atomic_int state; /* bit i: 127.0.0.(i + 1) is there; -1: fails; -2: takes its time */
  atomic_int asked;
} zone;

static tf_code resolve(void *context, const tf_discovery_name *name, tf_discovery_set *out, tf_error *error) {
  zone *self = context;
  int state = atomic_load(&self->state);
  atomic_fetch_add(&self->asked, 1);
  if (state == -1) return tf_fail(error, TF_ERR_WORKER_UNREACHABLE, "%s: no answer", name->host);
  if (state == -2) sleep(3);
  for (int i = 0; i < 8; i++)
    if (state > 0 && (state >> i & 1)) tf_discovery_add(out, htonl(0x7F000001 + (uint32_t)i), name->port);
  return TF_OK;
}

static bool until(atomic_int *value, int wanted, int timeout_ms) {
  for (int i = 0; i < timeout_ms / 5; i++) {
    if (atomic_load(value) == wanted) return true;
    usleep(5000);
  }
  return false;
}

Test(discovery, the_systems_resolver, .timeout = 60) {
  static tf_discovery_set set;
  tf_error error = {.text = ""};
  tf_discovery_name name = {.host = "localhost", .port = 77};
  cr_assert_eq(tf_discovery_resolve(NULL, &name, &set, &error), TF_OK, "%s", error.text);
  cr_expect(tf_discovery_has(&set, "tcp://127.0.0.1:77"));
}

Test(discovery, a_question_under_way_holds_up_nobody, .timeout = 20) {
  static zone slow = {.state = -2};
  tf_discovery_name name = {.host = "routers", .port = 1};
  tf_discovery *discovery;
  tf_error error;
  static tf_discovery_set set;
  cr_assert_eq(tf_discovery_new(&name, 1, resolve, &slow, 50, &discovery, &error), TF_OK);
  cr_assert(until(&slow.asked, 1, 2000));
  int64_t begin_ms = tf_now_ms();
  cr_expect_not(tf_discovery_take(discovery, 0, &set, &error));
  tf_discovery_free(&discovery);
  cr_expect_null(discovery);
  cr_expect_lt(tf_now_ms() - begin_ms, 2000, "it sleeps three seconds");
  sleep(4); /* the thread frees what it holds */
}

/* ---- a worker that follows the name ---- */

typedef struct worker {
  void *zmq;
  tf_reactor *reactor;
  tf_metrics *metrics;
  tf_peers *peers;
  pthread_t thread;
  atomic_int live;
  zone zone;
} worker;

static void on_message(void *context, tf_message **message) {
  (void)context, (void)message;
}
static void measure(void *context, tf_pong *pong) {
  (void)context, (void)pong;
}
static void on_drain(void *context) {
  (void)context;
}
static void on_poll(void *context) {
  worker *self = context;
  atomic_store(&self->live, (int)tf_peers_live(self->peers));
}
static void *worker_main(void *context) {
  worker *self = context;
  tf_error error;
  return tf_reactor_run(self->reactor, &error) == TF_OK ? NULL : self;
}

static tf_code make_peers(worker *self, const tf_string_list *endpoints, tf_error *error) {
  tf_peers_config config = {.hello = {.role = TF_ROLE_ENCODER,
                                      .instance = "w",
                                      .pair_hash = "abc",
                                      .token_counts = {4},
                                      .token_count_count = 1},
                            .jobs_max = 8,
                            .peer_timeout_ms = 1000,
                            .on_message = on_message,
                            .measure = measure,
                            .on_drain = on_drain,
                            .metrics = self->metrics,
                            .resolve = resolve,
                            .resolve_context = &self->zone,
                            .resolve_interval_ms = 100};
  self->zmq = self->zmq ? self->zmq : zmq_ctx_new();
  self->reactor = self->reactor ? self->reactor : tf_reactor_new();
  config.metrics = self->metrics = self->metrics ? self->metrics : tf_metrics_new();
  return tf_peers_new(self->zmq, self->reactor, endpoints, &config, &self->peers, error);
}

static void worker_start(worker *self, int port, int state) {
  static char endpoint[64];
  tf_error error = {.text = ""};
  snprintf(endpoint, sizeof endpoint, "dns+tcp://routers:%d", port);
  atomic_store(&self->zone.state, state);
  tf_string_list endpoints = {.count = 1, .items = {endpoint}};
  cr_assert_eq(make_peers(self, &endpoints, &error), TF_OK, "%s", error.text);
  cr_assert_geq(tf_reactor_add_timer(self->reactor, 5, true, on_poll, self), 0);
  cr_assert_eq(pthread_create(&self->thread, NULL, worker_main, self), 0);
}

static void worker_stop(worker *self) {
  tf_reactor_stop(self->reactor);
  pthread_join(self->thread, NULL);
  tf_peers_free(&self->peers);
  tf_reactor_free(&self->reactor);
  tf_metrics_free(&self->metrics);
  usleep(300000); /* the resolving thread lets go of the zone */
}

/* Binds at 127.0.0.1 to a port that the system chooses, where *port is 0; at 127.0.0.2 to the same. */
static void open_router(fake_router *self, worker *at, const char *host, int *port, const char *instance) {
  char endpoint[64];
  size_t size = sizeof endpoint;
  at->zmq = at->zmq ? at->zmq : zmq_ctx_new();
  snprintf(endpoint, sizeof endpoint, *port ? "tcp://%s:%d" : "tcp://%s:*", host, *port);
  fake_open(self, at->zmq, endpoint, instance, "q");
  cr_assert_eq(zmq_getsockopt(self->socket, ZMQ_LAST_ENDPOINT, endpoint, &size), 0);
  *port = atoi(strrchr(endpoint, ':') + 1);
}

static void meet(fake_router *router, fake_peer *peer) {
  tf_message hello, window;
  fake_meet(router, peer, &hello, &window);
  tf_message_clear(&hello);
  tf_message_clear(&window);
}

/* Pings for so long; true where the worker counts `live` routers all the time. */
static bool stays(worker *self, int live, int for_ms, fake_router *a, const fake_peer *peer_a, fake_router *b,
                  const fake_peer *peer_b) {
  for (int i = 0; i < for_ms / 50; i++) {
    if (a != NULL) fake_ping(a, peer_a, 0);
    if (b != NULL) fake_ping(b, peer_b, 0);
    usleep(50000);
    if (atomic_load(&self->live) != live) return false;
  }
  return true;
}

static bool page_says(worker *self, const char *text) {
  tf_buffer page;
  tf_buffer_init(&page, 100000);
  tf_metrics_write(self->metrics, &page);
  bool found = strstr(page.data, text) != NULL;
  tf_buffer_free(&page);
  return found;
}

Test(discovery, a_worker_follows_a_name, .timeout = 60) {
  static worker self;
  fake_router a, b;
  fake_peer peer_a, peer_b;
  tf_message message;
  int port = 0;
  open_router(&a, &self, "127.0.0.1", &port, "router-a");
  open_router(&b, &self, "127.0.0.2", &port, "router-b");
  worker_start(&self, port, -1); /* the name does not resolve yet */
  cr_expect_not(fake_wait(&a, TF_MESSAGE_HELLO, 500, &message), "nobody is known");
  cr_expect(page_says(&self, "tokenflex_router_lookups_failed_total "));
  atomic_store(&self.zone.state, 1);
  meet(&a, &peer_a);
  cr_expect(until(&self.live, 1, 2000));
  cr_expect_not(fake_wait(&b, TF_MESSAGE_HELLO, 300, &message), "the second is not there yet");
  atomic_store(&self.zone.state, 3);
  fake_ping(&a, &peer_a, 0);
  meet(&b, &peer_b);
  cr_expect(until(&self.live, 2, 2000));
  cr_expect(stays(&self, 2, 1500, &a, &peer_a, &b, &peer_b));
  atomic_store(&self.zone.state, -1);
  cr_expect(stays(&self, 2, 1500, &a, &peer_a, &b, &peer_b), "no answer changes nothing");
  atomic_store(&self.zone.state, 1);
  cr_expect(stays(&self, 2, 1500, &a, &peer_a, &b, &peer_b), "who vanished and speaks is kept");
  fake_close(&b); /* and now it is silent */
  for (int i = 0; i < 40; i++) stays(&self, 1, 50, &a, &peer_a, NULL, NULL);
  cr_expect_eq(atomic_load(&self.live), 1);
  open_router(&b, &self, "127.0.0.2", &port, "router-b2");
  cr_expect_not(fake_wait(&b, TF_MESSAGE_HELLO, 2500, &message), "its connection is closed: nobody tries again");
  atomic_store(&self.zone.state, 3);
  meet(&b, &peer_b);
  worker_stop(&self);
  fake_close(&a), fake_close(&b);
  zmq_ctx_term(self.zmq);
}

Test(discovery, what_is_refused, .timeout = 20) {
  static worker self;
  tf_error error = {.text = ""};
  tf_string_list wrong = {.count = 1, .items = {"dns+tcp://routers"}};
  cr_expect_eq(make_peers(&self, &wrong, &error), TF_ERR_INVALID_ARGUMENT);
  cr_expect_not_null(strstr(error.text, "--routers"), "%s", error.text);
  tf_string_list many = {.count = TF_DISCOVERY_NAMES_MAX + 1};
  for (size_t i = 0; i < many.count; i++) many.items[i] = "dns+tcp://routers:1";
  cr_expect_eq(make_peers(&self, &many, &error), TF_ERR_INVALID_ARGUMENT);
  tf_reactor_free(&self.reactor);
  tf_metrics_free(&self.metrics);
  zmq_ctx_term(self.zmq);
}

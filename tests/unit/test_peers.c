/* The worker's side of the router connections, against routers that the test plays over real sockets.
 * In: scripts of messages. Out: what the worker answers, when it counts a router as gone, where its results go. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "proto/peers.h"
#include "tests/unit/fake_router.h"

/* ---- pure parts ---- */

Test(peers, shares) {
  uint32_t out[4];
  bool none[4] = {false}, one[4] = {true}, two[4] = {true, false, true, false};
  tf_peers_share(10, none, 1, out);
  cr_expect_eq(out[0], 10u);
  tf_peers_share(10, none, 3, out);
  cr_expect(out[0] == 4 && out[1] == 3 && out[2] == 3, "equal while all are idle");
  tf_peers_share(10, one, 4, out);
  cr_expect(out[0] == 7 && out[1] == 1 && out[2] == 1 && out[3] == 1, "idle ones keep one slot");
  tf_peers_share(11, two, 4, out);
  cr_expect(out[0] == 5 && out[1] == 1 && out[2] == 4 && out[3] == 1);
  tf_peers_share(2, two, 4, out);
  for (int i = 0; i < 4; i++) cr_expect_eq(out[i], 1u, "nobody starves");
  tf_peers_share(10, none, 0, out); /* no router: nothing to do */
}

Test(peers, no_slot_is_given_twice_or_lost) {
  for (uint32_t jobs = 8; jobs < 40; jobs++) {
    for (unsigned pattern = 0; pattern < 256; pattern++) {
      bool active[8];
      uint32_t out[8], sum = 0;
      for (int i = 0; i < 8; i++) active[i] = (pattern >> i) & 1;
      tf_peers_share(jobs, active, 8, out);
      for (int i = 0; i < 8; i++) sum += out[i];
      cr_assert_eq(sum, jobs, "%u jobs, pattern %x: %u", jobs, pattern, sum);
    }
  }
}

Test(peers, text_becomes_valid) {
  char text[] = "a\xC3\xA9\xFF\xC0\x80\xED\xA0\x80\n\xE2\x82"; /* the last one is cut off */
  tf_text_clean(text);
  char expected[] = "a\xC3\xA9.........";
  for (char *at = expected; *at != '\0'; at++) *at = *at == '.' ? '?' : *at;
  cr_expect_str_eq(text, expected);
}

Test(peers, instances_differ) {
  char a[TF_INSTANCE_BYTES_MAX + 1], b[TF_INSTANCE_BYTES_MAX + 1];
  tf_instance_make("llm", a, sizeof a);
  tf_instance_make("llm", b, sizeof b);
  cr_expect_str_neq(a, b);
  cr_expect_eq(strncmp(a, "llm-", 4), 0);
}

/* ---- a worker on a thread of its own ---- */

typedef struct worker {
  void *zmq;
  tf_reactor *reactor;
  tf_metrics *metrics;
  tf_peers *peers;
  pthread_t thread;
  atomic_int jobs, cancels, live, held, drains;
  void (*_Atomic step)(struct worker *self); /* run once on the reactor's thread */
  const tf_message *to_deliver;
} worker;

static void on_message(void *context, tf_message **message) {
  worker *self = context;
  if ((*message)->type == TF_MESSAGE_JOB) {
    tf_message *kept = *message; /* takes it over, as services do */
    *message = NULL;
    tf_peers_job_begin(self->peers, kept->u.job.key.router);
    tf_peers_message_free(&kept);
    atomic_fetch_add(&self->jobs, 1);
  } else {
    atomic_fetch_add(&self->cancels, 1);
  }
}

static void measure(void *context, tf_pong *pong) {
  (void)context;
  pong->service = (tf_times){2, {12.5f, 40}};
  pong->latency = (tf_times){2, {100, 200}};
  pong->batch_max = 4;
  pong->kv_tokens = 900, pong->kv_tokens_max = 1300;
}

static void on_drain(void *context) {
  worker *self = context;
  atomic_fetch_add(&self->drains, 1);
  tf_peers_drain(self->peers);
}

static void on_poll(void *context) {
  worker *self = context;
  void (*step)(worker *) = atomic_exchange(&self->step, NULL);
  if (step != NULL) step(self);
  atomic_store(&self->live, (int)tf_peers_live(self->peers));
  atomic_store(&self->held, (int)tf_peers_held(self->peers));
}

static void *worker_main(void *context) {
  worker *self = context;
  tf_error error;
  return tf_reactor_run(self->reactor, &error) == TF_OK ? NULL : self;
}

static void worker_start(worker *self, tf_role role, const char *first, const char *second) {
  memset(self, 0, sizeof *self);
  self->zmq = zmq_ctx_new();
  self->reactor = tf_reactor_new();
  self->metrics = tf_metrics_new();
  tf_string_list endpoints = {.count = second ? 2 : 1, .items = {first, second}};
  tf_peers_config config = {.hello = {.role = role,
                                      .instance = "worker-1",
                                      .pair_hash = "abc",
                                      .model = "m",
                                      .token_counts = {4, 9},
                                      .token_count_count = 2,
                                      .context_tokens_max = role == TF_ROLE_LLM ? 500 : 0},
                            .jobs_max = 8,
                            .kv_tokens_max = role == TF_ROLE_LLM ? 2000 : 0,
                            .peer_timeout_ms = 1500,
                            .on_message = on_message,
                            .measure = measure,
                            .on_drain = on_drain,
                            .context = self,
                            .metrics = self->metrics};
  tf_error error = {.text = ""};
  cr_assert_eq(tf_peers_new(self->zmq, self->reactor, &endpoints, &config, &self->peers, &error), TF_OK, "%s",
               error.text);
  cr_assert_geq(tf_reactor_add_timer(self->reactor, 5, true, on_poll, self), 0);
  cr_assert_eq(pthread_create(&self->thread, NULL, worker_main, self), 0);
}

static void worker_stop(worker *self) {
  tf_reactor_stop(self->reactor);
  pthread_join(self->thread, NULL);
  tf_peers_free(&self->peers);
  tf_reactor_free(&self->reactor);
  tf_metrics_free(&self->metrics);
}

static void run_step(worker *self, void (*step)(worker *)) {
  atomic_store(&self->step, step);
  for (int i = 0; i < 400 && atomic_load(&self->step) != NULL; i++) usleep(5000);
  cr_assert_null(atomic_load(&self->step));
  usleep(20000); /* the counters are brought up to date after the step */
}

static bool until(atomic_int *value, int wanted, int timeout_ms) {
  for (int i = 0; i < timeout_ms / 5; i++) {
    if (atomic_load(value) == wanted) return true;
    usleep(5000);
  }
  return false;
}

static char endpoint_a[64], endpoint_b[64];

static void make_endpoints(void) {
  snprintf(endpoint_a, sizeof endpoint_a, "ipc:///tmp/tokenflex-peers-%d-a", (int)getpid());
  snprintf(endpoint_b, sizeof endpoint_b, "ipc:///tmp/tokenflex-peers-%d-b", (int)getpid());
}

static void remove_endpoints(void) {
  unlink(endpoint_a + strlen("ipc://"));
  unlink(endpoint_b + strlen("ipc://"));
}

#define PEERS_TEST(name) Test(peers, name, .init = make_endpoints, .fini = remove_endpoints, .timeout = 40)

/* ---- conversations ---- */

PEERS_TEST(hello_window_ping) {
  worker self;
  fake_router router;
  fake_peer peer;
  tf_message hello, window, pong;
  worker_start(&self, TF_ROLE_LLM, endpoint_a, NULL); /* the router comes later */
  usleep(200000);
  fake_open(&router, self.zmq, endpoint_a, "router-1", "q");
  cr_assert(fake_wait(&router, TF_MESSAGE_HELLO, 5000, &hello));
  cr_expect_eq(hello.u.hello.role, TF_ROLE_LLM);
  cr_expect_str_eq(hello.u.hello.instance, "worker-1");
  cr_expect_eq(hello.u.hello.token_counts[1], 9u);
  tf_message_clear(&hello);
  cr_expect_eq(atomic_load(&self.live), 0, "a router that did not answer is not live");
  fake_meet(&router, &peer, &hello, &window); /* HELLO comes again until it is answered */
  cr_expect_eq(window.u.window.jobs_max, 8u);
  cr_expect_eq(window.u.window.kv_tokens_max, 2000u);
  cr_expect_not(window.u.window.draining);
  uint64_t epoch = window.u.window.epoch;
  tf_message_clear(&hello);
  tf_message_clear(&window);
  cr_expect(until(&self.live, 1, 2000));
  fake_ping(&router, &peer, 0);
  cr_assert(fake_wait(&router, TF_MESSAGE_PONG, 2000, &pong));
  cr_expect_eq(pong.u.pong.sequence, 7u);
  cr_expect(pong.u.pong.service.count == 2 && pong.u.pong.service.ms[0] == 12.5f && pong.u.pong.latency.ms[1] == 200);
  cr_expect(pong.u.pong.jobs == 0 && pong.u.pong.jobs_max == 8);
  cr_expect(pong.u.pong.kv_tokens == 900 && pong.u.pong.kv_tokens_max == 1300, "the cache, not the wider window");
  cr_expect_eq(pong.u.pong.batch_max, 4u);
  tf_message_clear(&pong);
  fake_hello(&router, &peer); /* a router that says HELLO again gets its WINDOW again, with a later epoch */
  cr_assert(fake_wait(&router, TF_MESSAGE_WINDOW, 1000, &window));
  cr_expect_gt(window.u.window.epoch, epoch);
  tf_message_clear(&window);
  worker_stop(&self);
  fake_close(&router);
  zmq_ctx_term(self.zmq);
}

static void fake_drain(fake_router *router, const fake_peer *peer, const char *instance) {
  tf_message message = {.type = TF_MESSAGE_DRAIN, .u.drain.instance = instance};
  fake_send(router, peer, &message, NULL);
}

PEERS_TEST(drain_by_a_router) {
  worker self;
  fake_router router;
  fake_peer peer;
  tf_message hello, window, pong;
  worker_start(&self, TF_ROLE_ENCODER, endpoint_a, NULL);
  fake_open(&router, self.zmq, endpoint_a, "router-1", "q");
  fake_meet(&router, &peer, &hello, &window);
  tf_message_clear(&hello);
  tf_message_clear(&window);
  fake_drain(&router, &peer, "worker-2"); /* another's: ignored */
  fake_ping(&router, &peer, 0);
  cr_assert(fake_wait(&router, TF_MESSAGE_PONG, 2000, &pong));
  tf_message_clear(&pong);
  cr_expect_eq(atomic_load(&self.drains), 0);
  fake_drain(&router, &peer, "worker-1");
  fake_drain(&router, &peer, "worker-1"); /* every router says it: a second one changes nothing */
  cr_assert(fake_wait(&router, TF_MESSAGE_WINDOW, 1000, &window));
  cr_expect(window.u.window.draining && window.u.window.jobs_max == 0);
  tf_message_clear(&window);
  fake_ping(&router, &peer, 0);
  cr_assert(fake_wait(&router, TF_MESSAGE_PONG, 2000, &pong), "a draining worker still answers");
  tf_message_clear(&pong);
  cr_expect_eq(atomic_load(&self.drains), 1);
  worker_stop(&self);
  fake_close(&router);
  zmq_ctx_term(self.zmq);
}

/* Waits for a WINDOW of this size; both routers are kept alive meanwhile. */
static bool window_becomes(fake_router *router, const fake_peer *peer, uint32_t jobs, uint32_t demand,
                           fake_router *other, const fake_peer *other_peer) {
  for (int i = 0; i < 50; i++) {
    tf_message message;
    fake_ping(router, peer, demand);
    fake_ping(other, other_peer, 0);
    while (fake_wait(router, TF_MESSAGE_WINDOW, 100, &message)) {
      bool right = message.u.window.jobs_max == jobs;
      tf_message_clear(&message);
      if (right) return true;
    }
  }
  return false;
}

PEERS_TEST(shares_follow_demand) {
  worker self;
  fake_router a, b;
  fake_peer peer_a, peer_b;
  tf_message hello, window;
  worker_start(&self, TF_ROLE_LLM, endpoint_a, endpoint_b);
  fake_open(&a, self.zmq, endpoint_a, "router-a", "q");
  fake_open(&b, self.zmq, endpoint_b, "router-b", "q");
  fake_meet(&a, &peer_a, &hello, &window);
  tf_message_clear(&hello), tf_message_clear(&window);
  fake_meet(&b, &peer_b, &hello, &window);
  cr_expect_eq(window.u.window.jobs_max, 4u);
  cr_expect_eq(window.u.window.kv_tokens_max, 1000u);
  tf_message_clear(&hello), tf_message_clear(&window);
  cr_expect(window_becomes(&a, &peer_a, 7, 5, &b, &peer_b), "the idle router's share moves to the one with demand");
  cr_assert(fake_wait(&b, TF_MESSAGE_WINDOW, 3000, &window));
  cr_expect_eq(window.u.window.jobs_max, 1u);
  cr_expect_eq(window.u.window.kv_tokens_max, 500u, "one job of any length still fits");
  tf_message_clear(&window);
  cr_expect(window_becomes(&b, &peer_b, 4, 1, &a, &peer_a), "and comes back when the other one wants it");
  worker_stop(&self);
  fake_close(&a), fake_close(&b);
  zmq_ctx_term(self.zmq);
}

static void pause_now(worker *self) {
  tf_peers_pause(self->peers, true);
}
static void go_on(worker *self) {
  tf_peers_pause(self->peers, false);
}

PEERS_TEST(a_pause_closes_the_windows_of_all) {
  worker self;
  fake_router a, b;
  fake_peer peer_a, peer_b;
  tf_message hello, window;
  worker_start(&self, TF_ROLE_LLM, endpoint_a, endpoint_b);
  fake_open(&a, self.zmq, endpoint_a, "router-a", "q");
  fake_open(&b, self.zmq, endpoint_b, "router-b", "q");
  fake_meet(&a, &peer_a, &hello, &window);
  tf_message_clear(&hello), tf_message_clear(&window);
  fake_meet(&b, &peer_b, &hello, &window);
  tf_message_clear(&hello), tf_message_clear(&window);
  run_step(&self, pause_now);
  cr_expect(window_becomes(&a, &peer_a, 0, 5, &b, &peer_b));
  cr_expect(window_becomes(&b, &peer_b, 0, 5, &a, &peer_a));
  run_step(&self, go_on);
  cr_expect(window_becomes(&b, &peer_b, 4, 5, &a, &peer_a), "a was wanting a moment ago");
  worker_stop(&self);
  fake_close(&a), fake_close(&b);
  zmq_ctx_term(self.zmq);
}

PEERS_TEST(jobs_are_handed_on_and_nonsense_is_counted) {
  worker self;
  fake_router router;
  fake_peer peer;
  tf_message hello, window;
  worker_start(&self, TF_ROLE_ENCODER, endpoint_a, NULL);
  fake_open(&router, self.zmq, endpoint_a, "router-1", "q");
  fake_meet(&router, &peer, &hello, &window);
  cr_expect_eq(window.u.window.kv_tokens_max, 0u);
  tf_message_clear(&hello), tf_message_clear(&window);
  tf_job_key key = {.queue = "q", .entry = "1:1-0", .id = "x", .attempt = 1, .router = "router-1"};
  tf_message job = {.type = TF_MESSAGE_JOB, .u.job = {.key = key, .vision_tokens = 4, .uri = "file:///a"}};
  tf_message cancel = {.type = TF_MESSAGE_CANCEL, .u.cancel = {.key = key}};
  tf_message result = {.type = TF_MESSAGE_RESULT,
                       .u.result = {.key = key, .finish_reason = TF_FINISH_STOP}}; /* no router sends that */
  fake_send(&router, &peer, &job, NULL);
  fake_send(&router, &peer, &cancel, NULL);
  fake_send(&router, &peer, &result, NULL);
  zmq_send(router.socket, peer.id, peer.size, ZMQ_SNDMORE);
  zmq_send(router.socket, "\xFF\xFF\xFF", 3, 0);
  cr_expect(until(&self.jobs, 1, 3000));
  cr_expect(until(&self.cancels, 1, 3000));
  usleep(100000);
  tf_buffer page;
  tf_buffer_init(&page, 100000);
  tf_metrics_write(self.metrics, &page);
  cr_expect_not_null(strstr(page.data, "tokenflex_protocol_errors_total 2"), "%s", page.data);
  tf_buffer_free(&page);
  worker_stop(&self);
  fake_close(&router);
  zmq_ctx_term(self.zmq);
}

static void deliver(worker *self) {
  tf_peers_deliver(self->peers, self->to_deliver);
}

static void expect_result(fake_router *router, const char *id) {
  tf_message got;
  cr_assert(fake_wait(router, TF_MESSAGE_RESULT, 5000, &got), "no RESULT for %s", id);
  cr_expect_str_eq(got.u.result.key.id, id);
  cr_expect_str_eq(got.u.result.caption, "a dog");
  tf_message_clear(&got);
}

PEERS_TEST(results_find_a_router_of_their_queue) {
  worker self;
  fake_router a, b;
  fake_peer peer;
  tf_message hello, window, got;
  worker_start(&self, TF_ROLE_LLM, endpoint_a, endpoint_b);
  tf_message result = {
      .type = TF_MESSAGE_RESULT,
      .u.result = {.key = {.queue = "q", .entry = "1:1-0", .id = "early", .attempt = 1, .router = "gone"},
                   .caption = "a dog",
                   .finish_reason = TF_FINISH_STOP}};
  self.to_deliver = &result;
  run_step(&self, deliver); /* no router at all: held */
  cr_expect_eq(atomic_load(&self.held), 1);
  fake_open(&b, self.zmq, endpoint_b, "router-b", "other");
  fake_meet(&b, &peer, &hello, &window);
  tf_message_clear(&hello), tf_message_clear(&window);
  cr_expect_not(fake_wait(&b, TF_MESSAGE_RESULT, 500, &got), "a router of another queue gets nothing");
  fake_open(&a, self.zmq, endpoint_a, "router-a", "q");
  fake_meet(&a, &peer, &hello, &window);
  tf_message_clear(&hello), tf_message_clear(&window);
  expect_result(&a, "early"); /* another instance, but the same queue */
  cr_expect(until(&self.held, 0, 2000));
  result.u.result.key.router = "router-a";
  result.u.result.key.id = "named";
  run_step(&self, deliver);
  expect_result(&a, "named");
  worker_stop(&self);
  fake_close(&a), fake_close(&b);
  zmq_ctx_term(self.zmq);
}

static void fail_with_path(worker *self) {
  tf_job_key key = {.queue = "q", .entry = "1:1-0", .id = "x", .attempt = 2, .router = "router-1"};
  tf_peers_fail_job(self->peers, &key, TF_ERR_IMAGE_MISSING, "/a\xFF\n.jpg: No such file", true);
}

PEERS_TEST(a_failure_survives_any_path) {
  worker self;
  fake_router router;
  fake_peer peer;
  tf_message hello, window, got;
  worker_start(&self, TF_ROLE_ENCODER, endpoint_a, NULL);
  fake_open(&router, self.zmq, endpoint_a, "router-1", "q");
  fake_meet(&router, &peer, &hello, &window);
  tf_message_clear(&hello), tf_message_clear(&window);
  run_step(&self, fail_with_path);
  cr_assert(fake_wait(&router, TF_MESSAGE_FAILURE, 3000, &got));
  cr_expect_str_eq(got.u.failure.error_code, "image_missing");
  cr_expect_str_eq(got.u.failure.error_message, "/a\?\?.jpg: No such file");
  cr_expect(got.u.failure.no_attempt);
  tf_message_clear(&got);
  worker_stop(&self);
  fake_close(&router);
  zmq_ctx_term(self.zmq);
}

PEERS_TEST(a_silent_router_is_gone_and_comes_back) {
  worker self;
  fake_router router;
  fake_peer peer;
  tf_message hello, window;
  worker_start(&self, TF_ROLE_ENCODER, endpoint_a, NULL);
  fake_open(&router, self.zmq, endpoint_a, "router-1", "q");
  fake_meet(&router, &peer, &hello, &window);
  tf_message_clear(&hello), tf_message_clear(&window);
  cr_assert(until(&self.live, 1, 2000));
  cr_expect(until(&self.live, 0, 4000), "silence of 1.5 s");
  fake_meet(&router, &peer, &hello, &window); /* HELLO is said again */
  tf_message_clear(&hello), tf_message_clear(&window);
  cr_expect(until(&self.live, 1, 2000));
  fake_close(&router); /* killed, and another start takes its place */
  usleep(300000);
  fake_open(&router, self.zmq, endpoint_a, "router-2", "q");
  fake_meet(&router, &peer, &hello, &window);
  cr_expect_eq(window.u.window.jobs_max, 8u);
  tf_message_clear(&hello), tf_message_clear(&window);
  worker_stop(&self);
  fake_close(&router);
  zmq_ctx_term(self.zmq);
}

static void drain(worker *self) {
  tf_peers_drain(self->peers);
}

PEERS_TEST(draining_is_told) {
  worker self;
  fake_router router;
  fake_peer peer;
  tf_message hello, window;
  worker_start(&self, TF_ROLE_ENCODER, endpoint_a, NULL);
  fake_open(&router, self.zmq, endpoint_a, "router-1", "q");
  fake_meet(&router, &peer, &hello, &window);
  tf_message_clear(&hello), tf_message_clear(&window);
  run_step(&self, drain);
  cr_assert(fake_wait(&router, TF_MESSAGE_WINDOW, 1000, &window));
  cr_expect(window.u.window.draining);
  cr_expect_eq(window.u.window.jobs_max, 0u);
  tf_message_clear(&window);
  worker_stop(&self);
  fake_close(&router);
  zmq_ctx_term(self.zmq);
}

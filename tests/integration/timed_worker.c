/* A worker whose times are given: encoder and LLM of one pair, one job after the other, to test how routers follow
 * load. In: ROUTERS NAME ENCODE_MS N=MS,N=MS,... ; jobs. Out: STAGE and RESULT after these times, PONGs that tell them;
 * a line for each job and each cancellation. A job named slow-* takes three seconds more than it should. DRAIN:
 * finishes and exits 0, as every worker does. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "proto/peers.h"

enum { ENCODER, LLM, ROLES };
enum { JOBS_MAX = 64, SLOTS = 16, TICK_MS = 2, SLOW_MS = 3000, DRAIN_MS = 300 };

typedef struct work {
  tf_message *message; /* JOB; NULL: free */
  int role;            /* where it is */
  int64_t due_us;
} work;

typedef struct timed {
  void *context;
  tf_reactor *reactor;
  tf_metrics *metrics;
  tf_peers *peers[ROLES];
  const char *name;
  double encode_ms, decode_ms[TF_HELLO_COUNTS_MAX];
  uint32_t counts[TF_HELLO_COUNTS_MAX], count;
  work jobs[JOBS_MAX];
  int64_t free_us[ROLES]; /* when each tier has done what it holds */
  int64_t drain_ms;
  pid_t parent;
} timed;

static const tf_job *job_of(const work *self) {
  return &self->message->u.job;
}

static double decode_ms(const timed *self, uint32_t vision_tokens) {
  for (uint32_t i = 0; i < self->count; i++)
    if (self->counts[i] == vision_tokens) return self->decode_ms[i];
  return 0;
}

/* Puts a job at the end of a tier's line. */
static void line_up(timed *self, work *item, int role, double ms) {
  int64_t now_us = tf_now_us(), begin_us = self->free_us[role] > now_us ? self->free_us[role] : now_us;
  item->role = role;
  item->due_us = self->free_us[role] = begin_us + (int64_t)(ms * 1000);
}

static void let_go(timed *self, work *item) {
  tf_peers_job_end(self->peers[item->role], job_of(item)->key.router);
  tf_peers_message_free(&item->message);
}

static void on_encoded(timed *self, work *item) {
  const tf_job *job = job_of(item);
  tf_message stage = {.type = TF_MESSAGE_STAGE, .u.stage = {.key = job->key, .stage = TF_STAGE_DECODE}};
  tf_peers_deliver(self->peers[ENCODER], &stage);
  tf_peers_job_end(self->peers[ENCODER], job->key.router);
  tf_peers_job_begin(self->peers[LLM], job->key.router);
  line_up(self, item, LLM, decode_ms(self, job->vision_tokens) + (strncmp(job->key.id, "slow-", 5) ? 0 : SLOW_MS));
}

static void on_decoded(timed *self, work *item) {
  const tf_job *job = job_of(item);
  tf_message result = {.type = TF_MESSAGE_RESULT,
                       .u.result = {.key = job->key,
                                    .caption = "a caption",
                                    .vision_tokens = job->vision_tokens,
                                    .prompt_tokens = job->vision_tokens + 10,
                                    .completion_tokens = 7,
                                    .finish_reason = TF_FINISH_STOP,
                                    .model = "timed/0",
                                    .timing = job->timing}};
  tf_peers_deliver(self->peers[LLM], &result);
  let_go(self, item);
}

static void on_tick(void *context) {
  timed *self = context;
  int64_t now_us = tf_now_us();
  size_t inside = 0;
  for (int i = 0; i < JOBS_MAX; i++) {
    work *item = &self->jobs[i];
    if (item->message && item->due_us <= now_us) (item->role == ENCODER ? on_encoded : on_decoded)(self, item);
    inside += item->message != NULL;
  }
  bool drained = self->drain_ms && inside == 0 && tf_now_ms() - self->drain_ms >= DRAIN_MS;
  if (drained || getppid() != self->parent) tf_reactor_stop(self->reactor); /* a test that died takes it along */
}

static void on_message(void *context, tf_message **message) {
  timed *self = context;
  if ((*message)->type == TF_MESSAGE_CANCEL) {
    const tf_job_key *key = &(*message)->u.cancel.key;
    for (int i = 0; i < JOBS_MAX; i++) {
      work *item = &self->jobs[i];
      if (!item->message || !tf_job_key_equal(&job_of(item)->key, key)) continue;
      printf("cancelled %s\n", key->id);
      if (item->due_us == self->free_us[item->role]) self->free_us[item->role] = 0; /* the last in line */
      let_go(self, item);
    }
    fflush(stdout);
    return;
  }
  const tf_job *job = &(*message)->u.job;
  printf("job %s vision_tokens %u\n", job->key.id, job->vision_tokens);
  fflush(stdout);
  work *item = self->jobs;
  while (item < self->jobs + JOBS_MAX && item->message) item++;
  if (item == self->jobs + JOBS_MAX) {
    tf_peers_fail_job(self->peers[ENCODER], &job->key, TF_ERR_WORKER_FULL, "full", true);
    return;
  }
  *item = (work){.message = *message};
  *message = NULL;
  tf_peers_job_begin(self->peers[ENCODER], job->key.router);
  line_up(self, item, ENCODER, self->encode_ms);
}

static void measure_encoder(void *context, tf_pong *pong) {
  const timed *self = context;
  pong->batch_max = 1;
  pong->service.count = pong->latency.count = self->count;
  for (uint32_t i = 0; i < self->count; i++) pong->service.ms[i] = pong->latency.ms[i] = (float)self->encode_ms;
}

static void measure_llm(void *context, tf_pong *pong) {
  const timed *self = context;
  pong->batch_max = 1;
  pong->service.count = pong->latency.count = self->count;
  for (uint32_t i = 0; i < self->count; i++) pong->service.ms[i] = pong->latency.ms[i] = (float)self->decode_ms[i];
}

static void on_drain(void *context) {
  timed *self = context;
  if (!self->drain_ms) self->drain_ms = tf_now_ms();
  for (int role = 0; role < ROLES; role++) tf_peers_drain(self->peers[role]);
}

static bool read_times(timed *self, char *text) {
  for (char *rest = text, *item; (item = strsep(&rest, ",")) != NULL; self->count++) {
    if (self->count == TF_HELLO_COUNTS_MAX) return false;
    if (sscanf(item, "%u=%lf", &self->counts[self->count], &self->decode_ms[self->count]) != 2) return false;
  }
  return self->count > 0;
}

static tf_code start(timed *self, char *routers, tf_error *error) {
  tf_string_list endpoints = {.count = 0};
  for (char *rest = routers, *item; (item = strsep(&rest, ",")) != NULL && endpoints.count < TF_STRING_LIST_ITEMS_MAX;)
    endpoints.items[endpoints.count++] = item;
  static char instances[ROLES][64];
  for (int role = 0; role < ROLES; role++) {
    snprintf(instances[role], sizeof instances[role], "%s-%s", role == LLM ? "llm" : "encoder", self->name);
    tf_peers_config config = {.hello = {.role = role == LLM ? TF_ROLE_LLM : TF_ROLE_ENCODER,
                                        .instance = instances[role],
                                        .pair_hash = "timed",
                                        .model = "timed/0",
                                        .tensor_endpoint = role == LLM ? "ipc:///nowhere" : "",
                                        .token_count_count = self->count,
                                        .context_tokens_max = role == LLM ? 2048 : 0,
                                        .version = "0"},
                              .jobs_max = SLOTS,
                              .kv_tokens_max = role == LLM ? 2048 * SLOTS : 0,
                              .peer_timeout_ms = 2500,
                              .on_message = on_message,
                              .measure = role == LLM ? measure_llm : measure_encoder,
                              .on_drain = on_drain,
                              .context = self,
                              .metrics = self->metrics};
    memcpy(config.hello.token_counts, self->counts, sizeof self->counts);
    tf_code code = tf_peers_new(self->context, self->reactor, &endpoints, &config, &self->peers[role], error);
    if (code != TF_OK) return code;
  }
  return tf_reactor_add_timer(self->reactor, TICK_MS, true, on_tick, self) < 0 ? TF_ERR_INTERNAL : TF_OK;
}

int main(int argc, char **argv) {
  static timed self;
  tf_error error = {.text = "usage: timed_worker ROUTERS NAME ENCODE_MS N=MS,..."};
  bool usable = argc == 5 && read_times(&self, argv[4]);
  if (usable) {
    self.name = argv[2];
    self.encode_ms = atof(argv[3]);
    self.parent = getppid();
    self.context = zmq_ctx_new();
    self.reactor = tf_reactor_new();
    self.metrics = tf_metrics_new();
    usable = start(&self, argv[1], &error) == TF_OK && tf_reactor_run(self.reactor, &error) == TF_OK;
  }
  if (!usable) fprintf(stderr, "%s\n", error.text);
  for (int i = 0; i < JOBS_MAX; i++) tf_peers_message_free(&self.jobs[i].message);
  for (int role = 0; role < ROLES; role++) tf_peers_free(&self.peers[role]);
  if (self.context) zmq_ctx_term(self.context);
  if (self.metrics) tf_metrics_free(&self.metrics);
  if (self.reactor) tf_reactor_free(&self.reactor);
  return usable ? 0 : 1;
}

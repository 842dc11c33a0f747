/* A worker that misbehaves on demand: encoder and LLM of one pair in one process, only to test the router's faults.
 * In: ROUTER-ENDPOINT[,ENDPOINT...] NAME [PAIR-HASH [SLOTS [eager]]]; jobs, whose ids say what to do. Out: STAGE,
 * RESULT, FAILURE. Ids: fail-CODE-*; full-*: WORKER_FULL once; die-*: exits; hold-*: no answer, unless eager; slow-*:
 * after 1.5 s; short-*: after 0.1 s; twice-*: RESULT twice; late-*: a second RESULT 1.5 s later; stale-*: FAILURE of
 * another attempt first; garbage-*: malformed frames first; keep-*: STAGE and no more, drain-*: the LLM says that it
 * goes (both unless eager); others at once. A job alone waits until it is the only one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "proto/wire.h"

enum { ENCODER, LLM, ROLES };
enum {
  ROUTERS_MAX = 4,
  ANSWERS_MAX = 8192,
  SLOW_MS = 1500,
  SHORT_MS = 100,
  ANNOUNCE_MS = 30,
  HELLO_MS = 500,
  SILENCE_MS_MAX = 30000
};

typedef struct answer { /* a RESULT that waits for its time */
  int64_t due_ms;
  char queue[80], entry[TF_ENTRY_BYTES_MAX], id[TF_ID_BYTES_MAX + 1], router[TF_INSTANCE_BYTES_MAX + 1];
  uint32_t attempt, vision_tokens;
  int from; /* which router's socket */
  bool twice, alone;
} answer;

typedef struct fake {
  void *context, *sockets[ROUTERS_MAX][ROLES];
  int router_count;
  const char *name, *pair_hash;
  uint32_t slots;
  bool eager; /* answers what it should hold */
  bool llm_drains;
  uint64_t epoch;
  int64_t hello_ms, heard_ms;
  enum { NOBODY, PARKED, ANNOUNCED, RUNNING } alone_state;
  answer alone; /* the job that is tried alone */
  answer answers[ANSWERS_MAX];
  size_t answer_count, full_count;
  char full_ids[64][TF_ID_BYTES_MAX + 1];
} fake;

static void send_message(fake *self, int router, int role, const tf_message *message) {
  tf_error error;
  if (tf_wire_send(self->sockets[router][role], NULL, 0, message, NULL, &error) != TF_OK)
    fprintf(stderr, "fake worker: %s\n", error.text);
}

static void say_hello(fake *self, int router, int role) {
  char instance[64];
  snprintf(instance, sizeof instance, "%s-%s", role == LLM ? "llm" : "encoder", self->name);
  tf_message message = {.type = TF_MESSAGE_HELLO};
  message.u.hello = (tf_hello){.role = role == LLM ? TF_ROLE_LLM : TF_ROLE_ENCODER,
                               .instance = instance,
                               .pair_hash = self->pair_hash,
                               .model = "fake/0",
                               .tensor_endpoint = role == LLM ? "ipc:///nowhere" : "",
                               .token_counts = {64, 144, 256},
                               .token_count_count = 3,
                               .context_tokens_max = 8192,
                               .version = "0"};
  send_message(self, router, role, &message);
}

static void send_window(fake *self, int router, int role) {
  uint32_t slots = self->alone_state == NOBODY ? self->slots : 0;
  tf_message message = {.type = TF_MESSAGE_WINDOW};
  bool drains = role == LLM && self->llm_drains;
  if (drains) slots = 0;
  message.u.window = (tf_window){
      .epoch = ++self->epoch, .jobs_max = slots, .kv_tokens_max = role == LLM ? slots * 1024 : 0, .draining = drains};
  send_message(self, router, role, &message);
}

static void send_windows(fake *self) {
  for (int router = 0; router < self->router_count; router++)
    for (int role = 0; role < ROLES; role++) send_window(self, router, role);
}

static tf_job_key key_of(const answer *from) {
  return (tf_job_key){
      .queue = from->queue, .entry = from->entry, .id = from->id, .attempt = from->attempt, .router = from->router};
}

static void send_failure(fake *self, const answer *about, uint32_t attempt, const char *code, bool no_attempt) {
  tf_message message = {.type = TF_MESSAGE_FAILURE};
  message.u.failure =
      (tf_failure){.key = key_of(about), .error_code = code, .error_message = "told to fail", .no_attempt = no_attempt};
  message.u.failure.key.attempt = attempt;
  send_message(self, about->from, ENCODER, &message);
}

static void send_stage(fake *self, const answer *about, int role, bool alone) {
  tf_message message = {.type = TF_MESSAGE_STAGE};
  tf_job_stage stage = alone && role == ENCODER ? TF_STAGE_ENCODE : TF_STAGE_DECODE;
  message.u.stage = (tf_stage){.key = key_of(about), .stage = stage, .alone = alone};
  send_message(self, about->from, role, &message);
}

static void send_result(fake *self, const answer *about) {
  char caption[TF_ID_BYTES_MAX + 32];
  snprintf(caption, sizeof caption, "caption of %s", about->id);
  tf_message message = {.type = TF_MESSAGE_RESULT};
  message.u.result = (tf_result){.key = key_of(about),
                                 .caption = caption,
                                 .vision_tokens = about->vision_tokens,
                                 .prompt_tokens = about->vision_tokens + 20,
                                 .completion_tokens = 7,
                                 .finish_reason = TF_FINISH_STOP,
                                 .model = "fake/0",
                                 .timing = {.queue_ms = 1.234f, .encode_ms = 2.5f, .generate_ms = 3},
                                 .encoder_instance = "encoder",
                                 .llm_instance = "llm",
                                 .warning = ""};
  for (int i = 0; i < (about->twice ? 2 : 1); i++) send_message(self, about->from, LLM, &message);
}

/* True the first time that an id is asked about. */
static bool first_time(fake *self, const char *id) {
  for (size_t i = 0; i < self->full_count; i++)
    if (!strcmp(self->full_ids[i], id)) return false;
  if (self->full_count < 64) snprintf(self->full_ids[self->full_count++], sizeof self->full_ids[0], "%s", id);
  return true;
}

static bool starts_with(const char *text, const char *with) {
  return !strncmp(text, with, strlen(with));
}

static void later(fake *self, answer about, int64_t delay_ms) {
  about.due_ms = tf_now_ms() + delay_ms;
  if (self->answer_count < ANSWERS_MAX) self->answers[self->answer_count++] = about;
}

/* The job is done, refused or held for ever. */
static void let_go(fake *self, const answer *about) {
  if (!about->alone) return;
  self->alone_state = NOBODY;
  send_windows(self);
}

static void work(fake *self, answer about) {
  if (starts_with(about.id, "die-")) _exit(9);
  if (starts_with(about.id, "hold-") && !self->eager) return;
  if (starts_with(about.id, "drain-") && !self->eager) {
    self->llm_drains = true;
    send_windows(self);
    return;
  }
  if (starts_with(about.id, "fail-")) {
    char code[64];
    snprintf(code, sizeof code, "%.*s", (int)strcspn(about.id + 5, "-"), about.id + 5);
    send_failure(self, &about, about.attempt, code, false);
    let_go(self, &about);
    return;
  }
  if (starts_with(about.id, "full-") && first_time(self, about.id)) {
    send_failure(self, &about, about.attempt, "worker_full", true);
    let_go(self, &about);
    return;
  }
  if (starts_with(about.id, "stale-")) send_failure(self, &about, about.attempt + 7, "image_corrupt", false);
  if (starts_with(about.id, "garbage-")) {
    zmq_send(self->sockets[about.from][ENCODER], "\xff\xff\xff", 3, 0);
    zmq_send(self->sockets[about.from][LLM], "", 0, 0);
  }
  send_stage(self, &about, ENCODER, false);
  if (starts_with(about.id, "keep-") && !self->eager) return;
  about.twice = starts_with(about.id, "twice-");
  later(self, about, starts_with(about.id, "slow-") ? SLOW_MS : starts_with(about.id, "short-") ? SHORT_MS : 0);
  about.alone = false;
  if (starts_with(about.id, "late-")) later(self, about, SLOW_MS);
}

static void on_job(fake *self, int router, const tf_job *job) {
  answer about = {
      .attempt = job->key.attempt, .vision_tokens = job->vision_tokens, .from = router, .alone = job->alone};
  snprintf(about.queue, sizeof about.queue, "%s", job->key.queue);
  snprintf(about.entry, sizeof about.entry, "%s", job->key.entry);
  snprintf(about.id, sizeof about.id, "%s", job->key.id);
  snprintf(about.router, sizeof about.router, "%s", job->key.router);
  if (self->alone_state != NOBODY) {
    send_failure(self, &about, about.attempt, "worker_full", true);
  } else if (job->alone) {
    self->alone_state = PARKED;
    self->alone = about;
    send_windows(self);
  } else {
    work(self, about);
  }
}

static void on_message(fake *self, int router, int role, const tf_message *message) {
  if (message->type == TF_MESSAGE_HELLO) {
    send_window(self, router, role);
  } else if (message->type == TF_MESSAGE_PING) {
    tf_message pong = {.type = TF_MESSAGE_PONG};
    pong.u.pong.sequence = message->u.ping.sequence;
    send_message(self, router, role, &pong);
  } else if (message->type == TF_MESSAGE_CANCEL) {
    printf("cancelled %s %s\n", message->u.cancel.key.id, message->u.cancel.reason);
    fflush(stdout);
  } else if (message->type == TF_MESSAGE_JOB) {
    printf("job %s attempt %u payload %zu%s\n", message->u.job.key.id, message->u.job.key.attempt,
           message->has_payload ? zmq_msg_size((zmq_msg_t *)&message->payload) : 0,
           message->u.job.alone ? " alone" : "");
    fflush(stdout);
    on_job(self, router, &message->u.job);
  }
}

static void send_due(fake *self) {
  for (size_t i = 0; i < self->answer_count;) {
    if (self->answers[i].due_ms > tf_now_ms()) {
      i++;
      continue;
    }
    answer due = self->answers[i];
    self->answers[i] = self->answers[--self->answer_count];
    send_result(self, &due);
    let_go(self, &due);
  }
}

/* The job alone: announced once nothing else is here, begun a moment later. */
static void advance_alone(fake *self) {
  if (self->alone_state == PARKED && self->answer_count == 0) {
    send_stage(self, &self->alone, ENCODER, true);
    send_stage(self, &self->alone, LLM, true);
    self->alone.due_ms = tf_now_ms() + ANNOUNCE_MS;
    self->alone_state = ANNOUNCED;
  } else if (self->alone_state == ANNOUNCED && tf_now_ms() >= self->alone.due_ms) {
    self->alone_state = RUNNING;
    work(self, self->alone);
  }
}

static bool connect_all(fake *self, char *endpoints) {
  for (char *rest = endpoints, *endpoint; (endpoint = strsep(&rest, ",")) != NULL; self->router_count++) {
    if (self->router_count == ROUTERS_MAX) return false;
    for (int role = 0; role < ROLES; role++) {
      void *socket = self->sockets[self->router_count][role] = tf_wire_socket(self->context, ZMQ_DEALER);
      if (!socket || zmq_connect(socket, endpoint) != 0) return false;
    }
  }
  return true;
}

static void receive_all(fake *self) {
  for (int router = 0; router < self->router_count; router++) {
    for (int role = 0; role < ROLES; role++) {
      tf_message message;
      tf_error error;
      while (tf_wire_receive(self->sockets[router][role], false, &message, &error) == TF_OK) {
        self->heard_ms = tf_now_ms();
        on_message(self, router, role, &message);
        tf_message_clear(&message);
      }
    }
  }
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  static fake self;
  self.name = argv[2];
  self.pair_hash = argc > 3 ? argv[3] : "0123456789abcdef0123456789abcdef";
  self.slots = argc > 4 ? (uint32_t)atoi(argv[4]) : 8;
  self.eager = argc > 5;
  self.context = zmq_ctx_new();
  if (!connect_all(&self, argv[1])) return 1;
  /* A test that died takes its workers along. */
  pid_t parent = getppid();
  self.heard_ms = tf_now_ms();
  while (getppid() == parent && tf_now_ms() - self.heard_ms < SILENCE_MS_MAX) {
    zmq_pollitem_t items[ROUTERS_MAX * ROLES];
    for (int i = 0; i < self.router_count * ROLES; i++)
      items[i] = (zmq_pollitem_t){.socket = self.sockets[i / ROLES][i % ROLES], .events = ZMQ_POLLIN};
    zmq_poll(items, self.router_count * ROLES, 20);
    if (tf_now_ms() - self.hello_ms >= HELLO_MS) {
      self.hello_ms = tf_now_ms();
      for (int i = 0; i < self.router_count * ROLES; i++) say_hello(&self, i / ROLES, i % ROLES);
    }
    receive_all(&self);
    send_due(&self);
    advance_alone(&self);
  }
  return 0;
}

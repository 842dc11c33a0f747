/* Both tiers without any model, to measure the router alone: every JOB is answered at once, over real ZeroMQ.
 * In: ROUTER-ENDPOINT SLOTS. Out: STAGE and RESULT for each job; runs until its parent is gone. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/clock.h"
#include "proto/wire.h"

enum { ENCODER, LLM, ROLES };
enum { HELLO_MS = 1000, POLL_MS = 100 };

typedef struct stub {
  void *sockets[ROLES];
  uint32_t slots;
  uint64_t epoch;
} stub;

static void send_message(stub *self, int role, const tf_message *message) {
  tf_error error;
  if (tf_wire_send(self->sockets[role], NULL, 0, message, NULL, &error) != TF_OK) fprintf(stderr, "%s\n", error.text);
}

static void say_hello(stub *self, int role) {
  tf_message message = {.type = TF_MESSAGE_HELLO};
  message.u.hello = (tf_hello){.role = role == LLM ? TF_ROLE_LLM : TF_ROLE_ENCODER,
                               .instance = role == LLM ? "llm-stub" : "encoder-stub",
                               .pair_hash = "0123456789abcdef0123456789abcdef",
                               .model = "stub/0",
                               .tensor_endpoint = role == LLM ? "ipc:///nowhere" : "",
                               .token_counts = {64, 144, 256},
                               .token_count_count = 3,
                               .context_tokens_max = 8192,
                               .version = "0"};
  send_message(self, role, &message);
}

static void send_window(stub *self, int role) {
  tf_message message = {.type = TF_MESSAGE_WINDOW};
  message.u.window = (tf_window){
      .epoch = ++self->epoch, .jobs_max = self->slots, .kv_tokens_max = role == LLM ? self->slots * 1024 : 0};
  send_message(self, role, &message);
}

static void answer(stub *self, const tf_job *job) {
  tf_message stage = {.type = TF_MESSAGE_STAGE, .u.stage = {.key = job->key, .stage = TF_STAGE_DECODE}};
  send_message(self, ENCODER, &stage);
  tf_message result = {.type = TF_MESSAGE_RESULT};
  result.u.result = (tf_result){.key = job->key,
                                .caption = "A small brown dog runs over a green meadow towards a red ball.",
                                .vision_tokens = job->vision_tokens,
                                .prompt_tokens = job->vision_tokens + 20,
                                .completion_tokens = 15,
                                .finish_reason = TF_FINISH_STOP,
                                .model = "stub/0",
                                .timing = {.encode_ms = 2.5f, .generate_ms = 3},
                                .encoder_instance = "encoder-stub",
                                .llm_instance = "llm-stub",
                                .warning = ""};
  send_message(self, LLM, &result);
}

static void on_message(stub *self, int role, const tf_message *message) {
  if (message->type == TF_MESSAGE_HELLO) send_window(self, role);
  if (message->type == TF_MESSAGE_JOB) answer(self, &message->u.job);
  if (message->type != TF_MESSAGE_PING) return;
  tf_message pong = {.type = TF_MESSAGE_PONG, .u.pong.sequence = message->u.ping.sequence};
  send_message(self, role, &pong);
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  stub self = {.slots = (uint32_t)atoi(argv[2])};
  void *context = zmq_ctx_new();
  for (int role = 0; role < ROLES; role++) {
    self.sockets[role] = tf_wire_socket(context, ZMQ_DEALER);
    if (!self.sockets[role] || zmq_connect(self.sockets[role], argv[1]) != 0) return 1;
  }
  int64_t hello_ms = 0;
  for (pid_t parent = getppid(); getppid() == parent;) {
    if (tf_now_ms() - hello_ms >= HELLO_MS) {
      hello_ms = tf_now_ms();
      for (int role = 0; role < ROLES; role++) say_hello(&self, role);
    }
    zmq_pollitem_t items[ROLES] = {{.socket = self.sockets[ENCODER], .events = ZMQ_POLLIN},
                                   {.socket = self.sockets[LLM], .events = ZMQ_POLLIN}};
    zmq_poll(items, ROLES, POLL_MS);
    for (int role = 0; role < ROLES; role++) {
      tf_message message;
      tf_error error;
      while (tf_wire_receive(self.sockets[role], false, &message, &error) == TF_OK) {
        on_message(&self, role, &message);
        tf_message_clear(&message);
      }
    }
  }
  return 0;
}

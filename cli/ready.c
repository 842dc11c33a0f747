/* The wait between starting and working. In: a queue. Out: its model, or what is missing.
 * A stack of our own is looked at first each time: a service that can not start says so within the second. */
#include "cli/ready.h"

#include "cli/command.h"
#include "common/clock.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { POLL_US = 50000, CALL_MS = 2000 };

/* Whether a set or hash's fields name one of the stack's processes. */
static bool has(const redisReply *names, const tf_stack *stack, bool (*is_it)(const tf_stack *, const char *)) {
  for (size_t i = 0; names->type == REDIS_REPLY_ARRAY && i < names->elements; i++)
    if (names->element[i]->type == REDIS_REPLY_STRING && is_it(stack, names->element[i]->str)) return true;
  return false;
}

/* *router: the stack's own is in the queue's books; *pair: so are its workers, which that router wrote there. */
static tf_code look_for_own(tf_link *link, const tf_stack *stack, bool *router, bool *pair, tf_error *error) {
  redisReply *reply;
  *router = *pair = false;
  tf_code code = tf_link_ask(link, &reply, error, "ZRANGE", link->routers, "0", "-1", NULL);
  if (code) return code;
  *router = has(reply, stack, tf_stack_is_router);
  freeReplyObject(reply);
  if (!*router) return TF_OK;
  code = tf_link_ask(link, &reply, error, "HKEYS", link->workers, NULL);
  if (code) return code;
  *pair = has(reply, stack, tf_stack_is_encoder) && has(reply, stack, tf_stack_is_llm);
  freeReplyObject(reply);
  return TF_OK;
}

static const char *missing(const tf_queue_model *model, bool own_stack) {
  if (own_stack) return model->routers ? "encoder and LLM are loading the model" : "the router is starting";
  return model->routers ? "a router is there, but no encoder and LLM of the same model"
                        : "no router serves this queue (is the deployment running, is --queue right?)";
}

/* A worker of each tier is wanted, though no job is there yet. A Redis user that may not say so only waits. */
static void call_workers(tf_link *link, int64_t *called_ms) {
  redisReply *reply;
  char kept_ms[16];
  if (*called_ms && tf_now_ms() - *called_ms < CALL_MS) return;
  *called_ms = tf_now_ms();
  snprintf(kept_ms, sizeof kept_ms, "%d", TF_CALLED_MS);
  if (tf_link_ask(link, &reply, NULL, "SET", link->called, "1", "PX", kept_ms, NULL) == TF_OK) freeReplyObject(reply);
}

tf_code tf_ready_wait(tf_link *link, tf_stack *stack, tf_ready_fn tell, void *context, tf_queue_model *out,
                      tf_buffer *report, tf_error *error) {
  int64_t started_ms = tf_now_ms(), called_ms = 0;
  memset(out, 0, sizeof *out);
  for (;;) {
    if (stack && !tf_stack_alive(stack, report))
      return tf_fail(error, TF_ERR_WORKER_LOST, "a process ended while the stack was starting");
    if (tf_interrupt_count() > 0) return tf_fail(error, TF_ERR_CANCELLED, "interrupted");
    tf_code code = tf_link_connect(link, error);
    if (!code) code = tf_queue_read_model(link, out, error);
    bool books_are_old = stack && !tf_stack_owns_redis(stack), own_pair = !books_are_old;
    if (!code && books_are_old) code = look_for_own(link, stack, &out->routers, &own_pair, error);
    if (!code && out->live && own_pair) return TF_OK;
    if (code && !stack) return code;
    const char *note = missing(out, stack != NULL);
    int64_t waited_s = (tf_now_ms() - started_ms) / 1000;
    int64_t patience_s = !stack && out->routers ? TF_READY_WAKE_SECONDS_MAX : TF_READY_SECONDS_MAX;
    if (waited_s >= patience_s)
      return tf_fail(error, TF_ERR_TIMEOUT, "not ready after %lld s: %s", (long long)waited_s, note);
    if (!stack) call_workers(link, &called_ms);
    char text[200];
    snprintf(text, sizeof text, "%s: %s (%lld s)", stack ? "starting" : "waiting", note, (long long)waited_s);
    tell(context, text);
    usleep(POLL_US);
  }
}

/* Waits until a queue can work: a router with an encoder and an LLM of the same model.
 * In: a link to the queue, the stack that was started for it (or none). Out: the model that it serves; `tf:{Q}:called`,
 * by which routers of a deployment that sleeps know that workers are wanted. */
#ifndef TF_CLI_READY_H
#define TF_CLI_READY_H

#include "cli/queue.h"
#include "cli/stack.h"

enum {
  TF_READY_SECONDS_MAX = 120,
  TF_READY_WAKE_SECONDS_MAX =
      600,             /* of a deployment with a router: workers may have to be started first, images pulled */
  TF_CALLED_MS = 10000 /* a call holds for so long */
};

/* What is being waited for at the moment; called some ten times a second. */
typedef void (*tf_ready_fn)(void *context, const char *note);

/* A stack on a Redis that others use too is ready once its own router has written its own encoder and LLM into the
 * queue's books. stack NULL: a deployment; then a Redis that can not be reached is an error at once, and workers are
 * called until they are there.
 * Errors: TF_ERR_CANCELLED (a signal came), TF_ERR_WORKER_LOST (a process of the stack ended; report says which),
 * TF_ERR_REDIS, TF_ERR_TIMEOUT (the text says what is missing). */
tf_code tf_ready_wait(tf_link *link, tf_stack *stack, tf_ready_fn tell, void *context, tf_queue_model *out,
                      tf_buffer *report, tf_error *error);

#endif

/* The whole service on one machine: redis-server, router, encoder and LLM as children of this process.
 * In: what differs between a private stack (`caption`) and a served one (`up`). Out: running processes, the queue's
 * URL. However tokenflex ends, the children end; nothing of them stays. */
#ifndef TF_CLI_STACK_H
#define TF_CLI_STACK_H

#include <stdint.h>

#include "common/buffer.h"
#include "common/error.h"
#include "common/options.h"
#include "proto/curve.h"

typedef struct tf_stack tf_stack;

/* Of a served router: its own default. */
#define TF_STACK_ROUTER_HEALTH "127.0.0.1:9101"

typedef struct tf_stack_config {
  const char *redis_url;                    /* NULL: a redis-server of its own on a unix socket, in memory only */
  const char *queue, *model;                /* model: a folder */
  const char *bind, *tensor_bind;           /* NULL: ipc:// inside the private folder */
  const tf_string_list *allow_dirs;         /* NULL: "/" */
  bool allow_http, allow_private_addresses; /* what the encoder may fetch */
  const char *compute, *cpu;                /* as the workers' options; NULL: not given */
  const char *cache_dir;                    /* likewise; NULL: the user's own */
  int64_t cache_dir_mib;                    /* that weights kept there may take; 0: as the workers have it */
  int64_t threads;                          /* each of encoder and LLM; 0: every core that this process may use */
  int64_t max_pixels;
  int64_t drain_timeout_s; /* how long the services finish what they have when they are stopped */
  const char *log_level;
  bool served;            /* health endpoints at their default addresses, logs on stderr */
  bool health;            /* served only */
  bool insecure;          /* addresses that are not loopback may be bound */
  tf_curve_options curve; /* served only: keys for the sockets */
} tf_stack_config;

/* Starts the processes; they load while this returns. The strings in config stay the caller's, and must stay. Errors
 * are for the user: a program missing, Redis not coming up.
 */
tf_code tf_stack_start(const tf_stack_config *config, tf_stack **out, tf_error *error);
/* The Redis that the queue is on. */
const char *tf_stack_redis_url(const tf_stack *self);
/* Whether that one is its own, which held nothing before. */
bool tf_stack_owns_redis(const tf_stack *self);
/* Whether these are the instances of our router, and of our encoder and LLM: what a queue's Redis tells may be left of
 * an earlier service. */
bool tf_stack_is_router(const tf_stack *self, const char *instance);
bool tf_stack_is_encoder(const tf_stack *self, const char *instance);
bool tf_stack_is_llm(const tf_stack *self, const char *instance);
/* False once any process has ended; report gets which, how, and the last lines of its log. A served stack's encoder or
 * LLM that ends with exit status 0 (`tokenflex drain`) is started again instead. Never blocks. */
bool tf_stack_alive(tf_stack *self, tf_buffer *report);
/* Stops router, then encoder and LLM, then Redis, each with a bound, and removes the folder. */
void tf_stack_stop(tf_stack **self);

#endif

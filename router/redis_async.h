/* An asynchronous Redis connection on our reactor: connects, authenticates, reconnects with backoff, times commands
 * out. In: a URL, commands as argument vectors. Out: replies to callbacks in order, all on the reactor's thread. A
 * command is tried once: where no answer comes (connection lost, time out), its callback gets NULL and may ask again.
 */
#ifndef TF_ROUTER_REDIS_ASYNC_H
#define TF_ROUTER_REDIS_ASYNC_H

#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/reactor.h"
#include "common/redis.h"

typedef struct tf_redis_async tf_redis_async;

enum {
  TF_REDIS_COMMANDS_MAX = 4096,   /* in flight */
  TF_REDIS_TIMEOUT_MS = 5000,     /* of connecting, and of the oldest command in flight */
  TF_REDIS_RECONNECT_MS_MIN = 50, /* doubles up to the maximum */
  TF_REDIS_RECONNECT_MS_MAX = 2000,
};

/* reply: borrowed, valid during the call; NULL: no answer came, the command may have run or not. May be an error reply.
 */
typedef void (*tf_redis_reply_fn)(void *context, const redisReply *reply);

typedef struct tf_redis_events {
  void (*connected)(void *context);               /* authenticated; commands are taken from now on */
  void (*lost)(void *context);                    /* after every command in flight got its NULL */
  void (*latency)(void *context, double seconds); /* of each answered command; may be NULL */
  void *context;
} tf_redis_events;

/* Starts to connect at once; never waits. url is copied. Errors: OUT_OF_MEMORY. */
tf_code tf_redis_async_new(tf_reactor *reactor, const tf_redis_url *url, const tf_redis_events *events,
                           tf_redis_async **out);
/* Commands in flight get NULL. */
void tf_redis_async_free(tf_redis_async **self);
bool tf_redis_async_is_connected(const tf_redis_async *self);
/* Sends one command (arguments are copied). False, and no callback: not connected, or too many in flight. */
bool tf_redis_async_command(tf_redis_async *self, int count, const char **arguments, const size_t *sizes,
                            tf_redis_reply_fn fn, void *context);
/* Gives this connection up and makes a new one (a server that answers, but can not serve us: a replica). */
void tf_redis_async_reconnect(tf_redis_async *self);

#endif

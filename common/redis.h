/* Redis addresses and blocking connections.
 * In: a URL, redis://[user:password@]host[:port][/db] or unix:///path[?db=N] (also unix:/path).
 * Out: its parts; a connected, authenticated hiredis context with timeouts set. */
#ifndef TF_COMMON_REDIS_H
#define TF_COMMON_REDIS_H

#include <hiredis/hiredis.h>
#include <stdint.h>

#include "common/error.h"

typedef struct tf_redis_url {
  char host[256]; /* empty where unix_path is set */
  char unix_path[108];
  int port, database;
  char user[128], password[256];
} tf_redis_url;

tf_code tf_redis_url_parse(const char *text, tf_redis_url *out, tf_error *error);
/* "redis://host:port/db" or "unix:///path[?db=N]", without user and password: fit to be shown, and to tell servers
 * apart. */
void tf_redis_place(const tf_redis_url *url, char *out, size_t out_bytes);
/* Connects, AUTHs, SELECTs. The caller frees with redisFree. The password never appears in an error text. */
tf_code tf_redis_connect(const tf_redis_url *url, int64_t timeout_ms, redisContext **out, tf_error *error);
/* "tf:{queue}:suffix" into out. Queue names: 1..64 of [A-Za-z0-9._-]; others give TF_ERR_INVALID_ARGUMENT. */
tf_code tf_redis_key(const char *queue, const char *suffix, char *out, size_t out_bytes);

#endif

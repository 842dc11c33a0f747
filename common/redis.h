/* Redis addresses and blocking connections.
 * In: a URL, redis://[user[:password]@]host[:port][/db][?password-file=PATH] or
 * unix://[user[:password]@]/path[?db=N][&password-file=PATH] (also unix:/path); parts are percent-encoded as needed.
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
  char password_file[256]; /* empty: none; read anew at every connection, so that a password may change */
} tf_redis_url;

tf_code tf_redis_url_parse(const char *text, tf_redis_url *out, tf_error *error);
/* "redis://host:port/db" or "unix:///path[?db=N]", without user and password: fit to be shown, and to tell servers
 * apart. */
void tf_redis_place(const tf_redis_url *url, char *out, size_t out_bytes);
/* The password to send: the URL's, or the first line of its file; "" for none. IO, INVALID_FORMAT: the file's fault. */
tf_code tf_redis_password(const tf_redis_url *url, char out[256], tf_error *error);
/* Connects, AUTHs, SELECTs. The caller frees with redisFree. The password never appears in an error text. */
tf_code tf_redis_connect(const tf_redis_url *url, int64_t timeout_ms, redisContext **out, tf_error *error);
/* "tf:{queue}:suffix" into out. Queue names: 1..64 of [A-Za-z0-9._-]; others give TF_ERR_INVALID_ARGUMENT. */
tf_code tf_redis_key(const char *queue, const char *suffix, char *out, size_t out_bytes);

#endif

/* Redis addresses and blocking connections.
 * In: a URL as redis.h gives it. Out: its parts; a connected, authenticated hiredis context with timeouts set.
 * Neither the URL nor a password is ever quoted in an error text. */
#include "common/redis.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REDIS_PORT_DEFAULT = 6379, DATABASE_MAX = 1000000, QUEUE_NAME_BYTES_MAX = 64 };

/* Copies text[0..size) undoing %XX. False: too long, a bad escape, or an escaped NUL. */
static bool copy_decoded(const char *text, size_t size, char *out, size_t out_bytes) {
  size_t length = 0;
  for (size_t i = 0; i < size; i++) {
    char byte = text[i];
    if (byte == '%') {
      if (size - i < 3 || !isxdigit((unsigned char)text[i + 1]) || !isxdigit((unsigned char)text[i + 2])) return false;
      char digits[3] = {text[i + 1], text[i + 2], 0};
      byte = (char)strtol(digits, NULL, 16);
      i += 2;
    }
    if (byte == '\0' || length + 1 >= out_bytes) return false;
    out[length++] = byte;
  }
  out[length] = '\0';
  return true;
}

/* A decimal number that is all of text[0..size). */
static bool parse_number(const char *text, size_t size, int minimum, int maximum, int *out) {
  int value = 0;
  if (size == 0 || size > 7) return false;
  for (size_t i = 0; i < size; i++) {
    if (!isdigit((unsigned char)text[i])) return false;
    value = value * 10 + (text[i] - '0');
  }
  *out = value;
  return value >= minimum && value <= maximum;
}

/* [path][?db=N] */
static tf_code parse_unix(const char *text, tf_redis_url *out, tf_error *error) {
  const char *query = strchr(text, '?');
  size_t path_bytes = query ? (size_t)(query - text) : strlen(text);
  if (text[0] != '/' || path_bytes < 2) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "Redis URL: unix:// needs an absolute path, as in unix:///run/redis.sock");
  }
  if (!copy_decoded(text, path_bytes, out->unix_path, sizeof out->unix_path)) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: the socket's path is malformed or longer than %zu bytes",
                   sizeof out->unix_path - 1);
  }
  if (!query) return TF_OK;
  if (strncmp(query, "?db=", 4) != 0 || !parse_number(query + 4, strlen(query + 4), 0, DATABASE_MAX, &out->database)) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: after the socket's path only ?db=NUMBER may follow");
  }
  return TF_OK;
}

/* user:password, :password */
static tf_code parse_credentials(const char *text, size_t size, tf_redis_url *out, tf_error *error) {
  const char *colon = memchr(text, ':', size);
  if (!colon || colon + 1 == text + size) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: before the @ user:password or :password is expected");
  }
  size_t user_bytes = (size_t)(colon - text);
  if (!copy_decoded(text, user_bytes, out->user, sizeof out->user) ||
      !copy_decoded(colon + 1, size - user_bytes - 1, out->password, sizeof out->password)) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: user or password is too long or has a malformed %%XX");
  }
  return TF_OK;
}

/* host, host:port, [v6], [v6]:port */
static tf_code parse_host(const char *text, size_t size, tf_redis_url *out, tf_error *error) {
  const char *end = text + size, *host = text, *host_end, *port;
  if (size > 0 && text[0] == '[') {
    const char *close = memchr(text, ']', size);
    if (!close) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: the ] of the IPv6 address is missing");
    host = text + 1;
    host_end = close;
    port = close + 1;
  } else {
    const char *colon = memchr(text, ':', size);
    host_end = port = colon ? colon : end;
  }
  if (host == host_end || !copy_decoded(host, (size_t)(host_end - host), out->host, sizeof out->host)) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: the host is missing or malformed");
  }
  if (port == end) return TF_OK;
  if (*port != ':' || !parse_number(port + 1, (size_t)(end - port) - 1, 1, 65535, &out->port)) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: the port must be a number from 1 to 65535");
  }
  return TF_OK;
}

static tf_code parse_tcp(const char *text, tf_redis_url *out, tf_error *error) {
  const char *slash = strchr(text, '/');
  const char *end = slash ? slash : text + strlen(text);
  /* The last @, so that a password may hold one. */
  const char *at = memrchr(text, '@', (size_t)(end - text));
  if (at) {
    tf_code code = parse_credentials(text, (size_t)(at - text), out, error);
    if (code != TF_OK) return code;
    text = at + 1;
  }
  tf_code code = parse_host(text, (size_t)(end - text), out, error);
  if (code != TF_OK || !slash || !slash[1]) return code;
  if (!parse_number(slash + 1, strlen(slash + 1), 0, DATABASE_MAX, &out->database)) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: after the host only /DATABASE, a number, may follow");
  }
  return TF_OK;
}

tf_code tf_redis_url_parse(const char *text, tf_redis_url *out, tf_error *error) {
  *out = (tf_redis_url){.port = REDIS_PORT_DEFAULT};
  if (!text) text = "";
  if (strncmp(text, "redis://", 8) == 0) return parse_tcp(text + 8, out, error);
  if (strncmp(text, "unix://", 7) == 0) return parse_unix(text + 7, out, error);
  if (strncmp(text, "unix:", 5) == 0) return parse_unix(text + 5, out, error);
  if (strncmp(text, "rediss://", 9) == 0) {
    return tf_fail(error, TF_ERR_UNSUPPORTED, "Redis URL: rediss:// (TLS) is not supported");
  }
  return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                 "Redis URL: expected redis://[user:password@]host[:port][/db] or unix:///path[?db=N]");
}

void tf_redis_place(const tf_redis_url *url, char *out, size_t out_bytes) {
  if (!url->unix_path[0])
    snprintf(out, out_bytes, "redis://%s:%d/%d", url->host, url->port, url->database);
  else if (url->database)
    snprintf(out, out_bytes, "unix://%s?db=%d", url->unix_path, url->database);
  else
    snprintf(out, out_bytes, "unix://%s", url->unix_path);
}

/* Where the connection goes, for error texts; no credentials. */
static const char *place(const tf_redis_url *url, char *out, size_t out_bytes) {
  if (url->unix_path[0])
    snprintf(out, out_bytes, "%s", url->unix_path);
  else
    snprintf(out, out_bytes, "%s:%d", url->host, url->port);
  return out;
}

/* One command whose reply must not be an error. */
static tf_code expect_ok(redisContext *context, redisReply *reply, const char *what, const tf_redis_url *url,
                         tf_error *error) {
  char where[400];
  tf_code code = TF_OK;
  if (!reply) {
    code = tf_fail(error, TF_ERR_REDIS, "Redis at %s: %s failed: %s", place(url, where, sizeof where), what,
                   context->errstr);
  } else if (reply->type == REDIS_REPLY_ERROR) {
    code = tf_fail(error, TF_ERR_REDIS, "Redis at %s refused %s: %.*s", place(url, where, sizeof where), what,
                   (int)(reply->len < 200 ? reply->len : 200), reply->str);
  }
  if (reply) freeReplyObject(reply);
  return code;
}

static tf_code greet(redisContext *context, const tf_redis_url *url, tf_error *error) {
  tf_code code = TF_OK;
  if (url->password[0]) {
    redisReply *reply = url->user[0] ? redisCommand(context, "AUTH %s %s", url->user, url->password)
                                     : redisCommand(context, "AUTH %s", url->password);
    code = expect_ok(context, reply, "AUTH", url, error);
  }
  if (code == TF_OK && url->database != 0) {
    code = expect_ok(context, redisCommand(context, "SELECT %d", url->database), "SELECT", url, error);
  }
  /* A server that wants a password says so now, not at the first job. */
  if (code == TF_OK) code = expect_ok(context, redisCommand(context, "PING"), "PING", url, error);
  return code;
}

tf_code tf_redis_connect(const tf_redis_url *url, int64_t timeout_ms, redisContext **out, tf_error *error) {
  char where[400];
  *out = NULL;
  if (timeout_ms < 1) timeout_ms = 1;
  struct timeval timeout = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
  redisContext *context = url->unix_path[0] ? redisConnectUnixWithTimeout(url->unix_path, timeout)
                                            : redisConnectWithTimeout(url->host, url->port, timeout);
  if (!context) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "Redis: out of memory");
  tf_code code = TF_OK;
  if (context->err) {
    code = tf_fail(error, TF_ERR_REDIS, "can not connect to Redis at %s: %s", place(url, where, sizeof where),
                   context->errstr);
  } else if (redisSetTimeout(context, timeout) != REDIS_OK) {
    code = tf_fail(error, TF_ERR_REDIS, "Redis at %s: can not set timeouts", place(url, where, sizeof where));
  } else {
    if (!url->unix_path[0]) redisEnableKeepAlive(context); /* helps only; not having it is no error */
    code = greet(context, url, error);
  }
  if (code != TF_OK) {
    redisFree(context);
    return code;
  }
  *out = context;
  return TF_OK;
}

tf_code tf_redis_key(const char *queue, const char *suffix, char *out, size_t out_bytes) {
  static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
  size_t length = strspn(queue, allowed);
  if (length == 0 || length > QUEUE_NAME_BYTES_MAX || queue[length]) return TF_ERR_INVALID_ARGUMENT;
  int written = snprintf(out, out_bytes, "tf:{%s}:%s", queue, suffix);
  return written < 0 || (size_t)written >= out_bytes ? TF_ERR_INVALID_ARGUMENT : TF_OK;
}

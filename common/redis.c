/* Redis addresses and blocking connections.
 * In: a URL as redis.h gives it. Out: its parts; a connected, authenticated hiredis context with timeouts set.
 * Neither the URL nor a password is ever quoted in an error text. */
#include "common/redis.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* db=N&password-file=PATH; with_database: db may be given here. */
static tf_code parse_query(const char *text, bool with_database, tf_redis_url *out, tf_error *error) {
  static const char db[] = "db=", file[] = "password-file=";
  while (*text) {
    size_t size = strcspn(text, "&");
    bool fine = false;
    if (with_database && size > sizeof db - 1 && strncmp(text, db, sizeof db - 1) == 0)
      fine = parse_number(text + sizeof db - 1, size - (sizeof db - 1), 0, DATABASE_MAX, &out->database);
    else if (size > sizeof file - 1 && strncmp(text, file, sizeof file - 1) == 0)
      fine =
          copy_decoded(text + sizeof file - 1, size - (sizeof file - 1), out->password_file, sizeof out->password_file);
    if (!fine)
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: after the ? %spassword-file=PATH is expected",
                     with_database ? "db=NUMBER or " : "");
    text += size;
    if (*text == '&') text++;
  }
  if (out->password_file[0] && out->password[0])
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: both a password and a password-file");
  return TF_OK;
}

/* user:password, :password, user (its password is in the file) */
static tf_code parse_credentials(const char *text, size_t size, tf_redis_url *out, tf_error *error) {
  const char *colon = memchr(text, ':', size);
  size_t user_bytes = colon ? (size_t)(colon - text) : size;
  if (size == 0 || (colon && colon + 1 == text + size)) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "Redis URL: before the @ user:password, :password or, with a password-file, user is expected");
  }
  if (!copy_decoded(text, user_bytes, out->user, sizeof out->user) ||
      (colon && !copy_decoded(colon + 1, size - user_bytes - 1, out->password, sizeof out->password))) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: user or password is too long or has a malformed %%XX");
  }
  return TF_OK;
}

/* A user alone is of no use. */
static tf_code check_credentials(const tf_redis_url *url, tf_error *error) {
  if (!url->user[0] || url->password[0] || url->password_file[0]) return TF_OK;
  return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                 "Redis URL: a user without a password: user:password@, or ?password-file=PATH");
}

/* [credentials@]path[?query] */
static tf_code parse_unix(const char *text, tf_redis_url *out, tf_error *error) {
  size_t size = strcspn(text, "?");
  const char *query = text[size] ? text + size + 1 : "";
  const char *slash = memchr(text, '/', size);
  if (slash && slash > text && slash[-1] == '@') {
    tf_code code = parse_credentials(text, (size_t)(slash - 1 - text), out, error);
    if (code != TF_OK) return code;
    size -= (size_t)(slash - text);
    text = slash;
  }
  if (text[0] != '/' || size < 2) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "Redis URL: unix:// needs an absolute path, as in unix:///run/redis.sock");
  }
  if (!copy_decoded(text, size, out->unix_path, sizeof out->unix_path)) {
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: the socket's path is malformed or longer than %zu bytes",
                   sizeof out->unix_path - 1);
  }
  return parse_query(query, true, out, error);
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
  size_t size = strcspn(text, "?");
  const char *query = text[size] ? text + size + 1 : "", *last = text + size;
  const char *slash = memchr(text, '/', size), *end = slash ? slash : last;
  /* The last @, so that a password may hold one. */
  const char *at = memrchr(text, '@', (size_t)(end - text));
  if (at) {
    tf_code code = parse_credentials(text, (size_t)(at - text), out, error);
    if (code != TF_OK) return code;
    text = at + 1;
  }
  tf_code code = parse_host(text, (size_t)(end - text), out, error);
  if (code != TF_OK) return code;
  if (slash && slash + 1 < last &&
      !parse_number(slash + 1, (size_t)(last - slash - 1), 0, DATABASE_MAX, &out->database))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "Redis URL: after the host only /DATABASE, a number, may follow");
  return parse_query(query, false, out, error);
}

static tf_code parse_any(const char *text, tf_redis_url *out, tf_error *error) {
  if (strncmp(text, "redis://", 8) == 0) return parse_tcp(text + 8, out, error);
  if (strncmp(text, "unix://", 7) == 0) return parse_unix(text + 7, out, error);
  if (strncmp(text, "unix:", 5) == 0) return parse_unix(text + 5, out, error);
  if (strncmp(text, "rediss://", 9) == 0) {
    return tf_fail(error, TF_ERR_UNSUPPORTED,
                   "Redis URL: rediss:// (TLS) is not supported; docs/SECURITY.md shows how stunnel adds it");
  }
  return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                 "Redis URL: expected redis://[user:password@]host[:port][/db] or unix:///path[?db=N]");
}

tf_code tf_redis_url_parse(const char *text, tf_redis_url *out, tf_error *error) {
  *out = (tf_redis_url){.port = REDIS_PORT_DEFAULT};
  tf_code code = parse_any(text ? text : "", out, error);
  return code != TF_OK ? code : check_credentials(out, error);
}

tf_code tf_redis_password(const tf_redis_url *url, char out[256], tf_error *error) {
  memcpy(out, url->password, sizeof url->password);
  if (!url->password_file[0]) return TF_OK;
  int fd = open(url->password_file, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  ssize_t size = fd < 0 ? -1 : read(fd, out, sizeof url->password);
  int reason = errno;
  if (fd >= 0) close(fd);
  if (size < 0)
    return tf_fail(error, TF_ERR_IO, "Redis's password file %.200s: %s", url->password_file, strerror(reason));
  size_t length = 0;
  while (length < (size_t)size && out[length] != '\n' && out[length] != '\r' && out[length] != '\0') length++;
  bool fits = length > 0 && length < sizeof url->password;
  out[fits ? length : 0] = '\0';
  if (fits) return TF_OK;
  return tf_fail(error, TF_ERR_INVALID_FORMAT, "Redis's password file %.200s: one line of 1 to %zu bytes is expected",
                 url->password_file, sizeof url->password - 1);
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
  char password[256];
  tf_code code = tf_redis_password(url, password, error);
  if (code == TF_OK && password[0]) {
    redisReply *reply = url->user[0] ? redisCommand(context, "AUTH %s %s", url->user, password)
                                     : redisCommand(context, "AUTH %s", password);
    code = expect_ok(context, reply, "AUTH", url, error);
  }
  explicit_bzero(password, sizeof password);
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

/* Tests of common/redis.c without a server: URLs and keys.
 * In: texts. Out: their parts, or an error that never shows a password. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/redis.h"

static tf_redis_url parsed;
static tf_error problem;

static tf_code parse(const char *text) {
  problem.text[0] = '\0';
  return tf_redis_url_parse(text, &parsed, &problem);
}

Test(redis_url, tcp_forms) {
  cr_assert_eq(parse("redis://127.0.0.1:6379"), TF_OK);
  cr_assert_str_eq(parsed.host, "127.0.0.1");
  cr_assert_eq(parsed.port, 6379);
  cr_assert_eq(parsed.database, 0);
  cr_assert_str_eq(parsed.unix_path, "");
  cr_assert_eq(parse("redis://cache"), TF_OK);
  cr_assert_str_eq(parsed.host, "cache");
  cr_assert_eq(parsed.port, 6379);
  cr_assert_eq(parse("redis://cache:7000/"), TF_OK);
  cr_assert_eq(parse("redis://[::1]:7000/3"), TF_OK);
  cr_assert_str_eq(parsed.host, "::1");
  cr_assert_eq(parsed.port, 7000);
  cr_assert_eq(parsed.database, 3);
  cr_assert_eq(parse("redis://[fe80::2]"), TF_OK);
  cr_assert_eq(parsed.port, 6379);
}

Test(redis_url, credentials) {
  cr_assert_eq(parse("redis://u%40x:p%3a@%2F@host:1/2"), TF_OK);
  cr_assert_str_eq(parsed.user, "u@x");
  cr_assert_str_eq(parsed.password, "p:@/");
  cr_assert_str_eq(parsed.host, "host");
  cr_assert_eq(parsed.database, 2);
  cr_assert_eq(parse("redis://:secret@host"), TF_OK);
  cr_assert_str_eq(parsed.user, "");
  cr_assert_str_eq(parsed.password, "secret");
}

Test(redis_url, unix_forms) {
  cr_assert_eq(parse("unix:///run/redis.sock"), TF_OK);
  cr_assert_str_eq(parsed.unix_path, "/run/redis.sock");
  cr_assert_str_eq(parsed.host, "");
  cr_assert_eq(parse("unix:/run/a%20b.sock?db=12"), TF_OK);
  cr_assert_str_eq(parsed.unix_path, "/run/a b.sock");
  cr_assert_eq(parsed.database, 12);
}

Test(redis_url, credentials_of_unix_sockets) {
  cr_assert_eq(parse("unix://u:p@/run/a@b.sock?db=3"), TF_OK, "%s", problem.text);
  cr_assert_str_eq(parsed.user, "u");
  cr_assert_str_eq(parsed.password, "p");
  cr_assert_str_eq(parsed.unix_path, "/run/a@b.sock");
  cr_assert_eq(parsed.database, 3);
}

Test(redis_url, a_password_may_come_from_a_file) {
  char path[] = "/tmp/tf-password-XXXXXX", text[128], password[256];
  int fd = mkstemp(path);
  cr_assert_geq(fd, 0);
  cr_assert_eq(write(fd, "s3cret word\r\nmore\n", 19), 19);
  snprintf(text, sizeof text, "redis://u@host:7000/3?password-file=%s", path);
  cr_assert_eq(parse(text), TF_OK, "%s", problem.text);
  cr_assert_str_eq(parsed.user, "u");
  cr_assert_eq(parsed.database, 3);
  cr_assert_eq(tf_redis_password(&parsed, password, &problem), TF_OK, "%s", problem.text);
  cr_assert_str_eq(password, "s3cret word");
  snprintf(text, sizeof text, "unix:///s?password-file=%s&db=2", path);
  cr_assert_eq(parse(text), TF_OK, "%s", problem.text);
  cr_assert_eq(parsed.database, 2);
  cr_assert_eq(ftruncate(fd, 0), 0);
  cr_assert_eq(tf_redis_password(&parsed, password, &problem), TF_ERR_INVALID_FORMAT);
  cr_assert_eq(ftruncate(fd, 300), 0);
  cr_assert_eq(tf_redis_password(&parsed, password, &problem), TF_ERR_INVALID_FORMAT);
  unlink(path);
  close(fd);
  cr_assert_eq(tf_redis_password(&parsed, password, &problem), TF_ERR_IO);
  cr_assert_not_null(strstr(problem.text, path));
}

Test(redis_url, malformed_ones_are_refused) {
  const char *const wrong[] = {"",
                               "localhost:6379",
                               "http://x",
                               "redis://",
                               "redis://:6379",
                               "redis://host:",
                               "redis://host:0",
                               "redis://host:65536",
                               "redis://host:12x",
                               "redis://host/x",
                               "redis://host/99999999999",
                               "redis://[::1",
                               "redis://[::1]x",
                               "redis://user@host",
                               "redis://user:@host",
                               "redis://:p%zz@host",
                               "redis://:p%00@host",
                               "redis://ho%00st",
                               "unix://relative",
                               "unix://",
                               "unix:///",
                               "unix:///a?x=1",
                               "unix:///a?db=",
                               "unix:///a?db=-1",
                               "unix://user@/a",
                               "unix://:@/a",
                               "redis://@host",
                               "redis://host?db=1",
                               "redis://host?password-file=",
                               "redis://host/1?password-file=%zz",
                               "redis://u:p@host?password-file=/x"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    cr_assert_eq(parse(wrong[i]), TF_ERR_INVALID_ARGUMENT, "%s", wrong[i]);
    cr_assert(problem.text[0] != '\0');
  }
  cr_assert_eq(parse(NULL), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(parse("rediss://host"), TF_ERR_UNSUPPORTED);
}

Test(redis_url, too_long_parts_are_refused) {
  char text[1024] = "unix:///";
  memset(text + 8, 'a', 200);
  cr_assert_eq(parse(text), TF_ERR_INVALID_ARGUMENT);
  memset(text, 0, sizeof text);
  strcpy(text, "redis://");
  memset(text + 8, 'a', 300);
  cr_assert_eq(parse(text), TF_ERR_INVALID_ARGUMENT);
}

Test(redis_url, passwords_stay_out_of_errors) {
  const char *const wrong[] = {"redis://u:hunter2@host:x", "redis://u:hunter2@",      "redis://u:hunter2@host/x",
                               "rediss://u:hunter2@host",  "redis://u:hunter2%@host", "redis:u:hunter2@host"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    cr_assert_neq(parse(wrong[i]), TF_OK, "%s", wrong[i]);
    cr_assert_null(strstr(problem.text, "hunter2"), "%s", problem.text);
  }
}

Test(redis_url, nobody_there_is_an_error) {
  redisContext *context = (redisContext *)&parsed;
  cr_assert_eq(parse("unix:///nonexistent/redis.sock"), TF_OK);
  cr_assert_eq(tf_redis_connect(&parsed, 200, &context, &problem), TF_ERR_REDIS);
  cr_assert_null(context);
  cr_assert_not_null(strstr(problem.text, "/nonexistent/redis.sock"), "%s", problem.text);
}

Test(redis_url, keys) {
  char key[64];
  cr_assert_eq(tf_redis_key("default", "jobs:1", key, sizeof key), TF_OK);
  cr_assert_str_eq(key, "tf:{default}:jobs:1");
  cr_assert_eq(tf_redis_key("A.b_c-9", "x", key, sizeof key), TF_OK);
  cr_assert_eq(tf_redis_key("", "x", key, sizeof key), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(tf_redis_key("a}b", "x", key, sizeof key), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(tf_redis_key("a b", "x", key, sizeof key), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(tf_redis_key("default", "jobs:1", key, 19), TF_ERR_INVALID_ARGUMENT);
  char name[66];
  memset(name, 'q', sizeof name);
  name[65] = '\0';
  char roomy[128];
  cr_assert_eq(tf_redis_key(name, "x", roomy, sizeof roomy), TF_ERR_INVALID_ARGUMENT);
  name[64] = '\0';
  cr_assert_eq(tf_redis_key(name, "x", roomy, sizeof roomy), TF_OK);
}

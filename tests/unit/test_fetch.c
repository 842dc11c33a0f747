/* Fetching: folders, symbolic links, odd files, and http against a small server of our own on the loopback.
 * In: a temporary folder, canned HTTP answers. Out: pass or fail. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "encoder-svc/fetch.h"

enum { BYTES_MAX = 4096 };

static char root[PATH_MAX], allowed[PATH_MAX + 16], outside[PATH_MAX + 16];

static void write_file(const char *dir, const char *name, size_t size) {
  char path[PATH_MAX + 64];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  FILE *file = fopen(path, "w");
  cr_assert_not_null(file);
  for (size_t i = 0; i < size; i++) fputc('x', file);
  fclose(file);
}

static void link_file(const char *target, const char *name) {
  char path[PATH_MAX + 64];
  snprintf(path, sizeof path, "%s/%s", allowed, name);
  cr_assert_eq(symlink(target, path), 0);
}

static void make_folders(void) {
  char target[PATH_MAX + 64];
  snprintf(root, sizeof root, "/tmp/tokenflex-fetch-XXXXXX");
  cr_assert_not_null(mkdtemp(root));
  snprintf(allowed, sizeof allowed, "%s/in", root);
  snprintf(outside, sizeof outside, "%s/in-not", root); /* a prefix of the name is no folder */
  cr_assert_eq(mkdir(allowed, 0700), 0);
  cr_assert_eq(mkdir(outside, 0700), 0);
  write_file(allowed, "a b.jpg", 100);
  write_file(allowed, "empty", 0);
  write_file(allowed, "limit", BYTES_MAX);
  write_file(allowed, "over", BYTES_MAX + 1);
  write_file(outside, "secret", 10);
  link_file("a b.jpg", "inside");
  snprintf(target, sizeof target, "%s/a b.jpg", allowed);
  link_file(target, "inside-absolute");
  link_file("../in-not/secret", "leaving");
  link_file("../in-not", "leaving-dir");
  link_file("nowhere", "dangling");
  link_file("loop", "loop");
  snprintf(target, sizeof target, "%s/fifo", allowed);
  cr_assert_eq(mkfifo(target, 0600), 0);
}

static void remove_folders(void) {
  char command[PATH_MAX + 32];
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  cr_expect_eq(system(command), 0);
}

static tf_fetcher *fetcher_of(const tf_fetch_config *config) {
  tf_fetcher *self = NULL;
  tf_error error = {.text = ""};
  cr_assert_eq(tf_fetcher_new(config, &self, &error), TF_OK, "%s", error.text);
  return self;
}

static tf_code fetch(const tf_fetcher *self, const char *uri, size_t *size, tf_error *error) {
  uint8_t *data = NULL;
  tf_code code = tf_fetch(self, uri, NULL, &data, size, error);
  cr_expect_eq(code == TF_OK, data != NULL);
  free(data);
  return code;
}

typedef struct file_case {
  const char *path;
  tf_code code;
  size_t size;
} file_case;

Test(fetch, files, .init = make_folders, .fini = remove_folders, .timeout = 20) {
  static const file_case cases[] = {
      {"in/a%20b.jpg", TF_OK, 100},
      {"in/limit", TF_OK, BYTES_MAX},
      {"in/inside", TF_OK, 100},
      {"in/inside-absolute", TF_OK, 100},
      {"in/../in/limit", TF_OK, BYTES_MAX},
      {"in/over", TF_ERR_IMAGE_TOO_LARGE, 0},
      {"in/empty", TF_ERR_IMAGE_EMPTY, 0},
      {"in/missing", TF_ERR_IMAGE_MISSING, 0},
      {"in/limit/below-a-file", TF_ERR_IMAGE_MISSING, 0},
      {"in/dangling", TF_ERR_IMAGE_MISSING, 0},
      {"in/loop", TF_ERR_IMAGE_MISSING, 0},
      {"in/fifo", TF_ERR_IMAGE_UNSUPPORTED, 0}, /* and it does not hang */
      {"in", TF_ERR_IMAGE_UNSUPPORTED, 0},
      {"in/leaving", TF_ERR_URI_FORBIDDEN, 0},
      {"in/leaving-dir/secret", TF_ERR_URI_FORBIDDEN, 0},
      {"in-not/secret", TF_ERR_URI_FORBIDDEN, 0},
      {"in/../in-not/secret", TF_ERR_URI_FORBIDDEN, 0},
      {"in/%2e%2e/in-not/secret", TF_ERR_URI_FORBIDDEN, 0},
      {"in-not/missing", TF_ERR_URI_FORBIDDEN, 0}, /* what is outside is not even looked at */
  };
  tf_fetch_config config = {.allow_dirs = {.count = 1, .items = {allowed}}, .bytes_max = BYTES_MAX};
  tf_fetcher *self = fetcher_of(&config);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char uri[PATH_MAX + 64], *last = strrchr(cases[i].path, '/');
    size_t size = 0;
    tf_error error = {.text = ""};
    snprintf(uri, sizeof uri, "file://%s/%s", root, cases[i].path);
    tf_code code = fetch(self, uri, &size, &error);
    cr_expect_eq(code, cases[i].code, "%s gave %s: %s", cases[i].path, tf_code_name(code), error.text);
    if (code == TF_OK) cr_expect_eq(size, cases[i].size, "%s", cases[i].path);
    if (code == TF_ERR_IMAGE_MISSING)
      cr_expect_not_null(strstr(error.text, last), "the path is not named: %s", error.text);
  }
  tf_fetcher_free(&self);
  cr_assert_null(self);
}

Test(fetch, allowed_folder_that_is_a_link, .init = make_folders, .fini = remove_folders) {
  char link[PATH_MAX + 64], uri[PATH_MAX + 128];
  snprintf(link, sizeof link, "%s/alias", root);
  cr_assert_eq(symlink(allowed, link), 0);
  tf_fetch_config config = {.allow_dirs = {.count = 1, .items = {link}}, .bytes_max = BYTES_MAX};
  tf_fetcher *self = fetcher_of(&config);
  size_t size;
  tf_error error;
  snprintf(uri, sizeof uri, "file://%s/limit", link);
  cr_expect_eq(fetch(self, uri, &size, &error), TF_OK);
  snprintf(uri, sizeof uri, "file://%s/limit", allowed);
  cr_expect_eq(fetch(self, uri, &size, &error), TF_OK);
  tf_fetcher_free(&self);
}

Test(fetch, nothing_allowed) {
  tf_fetch_config config = {.bytes_max = BYTES_MAX, .timeout_ms = 1000};
  tf_fetcher *self = fetcher_of(&config);
  size_t size;
  tf_error error;
  cr_expect_eq(fetch(self, "file:///etc/hostname", &size, &error), TF_ERR_URI_FORBIDDEN);
  cr_expect_eq(fetch(self, "http://127.0.0.1/", &size, &error), TF_ERR_URI_FORBIDDEN);
  cr_expect_eq(fetch(self, "photo.jpg", &size, &error), TF_ERR_URI_INVALID);
  cr_expect_not_null(strstr(error.text, "photo.jpg"));
  tf_fetcher_free(&self);
}

Test(fetch, an_allowed_folder_must_exist) {
  tf_fetch_config config = {.allow_dirs = {.count = 1, .items = {"/nonexistent/folder"}}, .bytes_max = BYTES_MAX};
  tf_fetcher *self = NULL;
  tf_error error;
  cr_assert_eq(tf_fetcher_new(&config, &self, &error), TF_ERR_INVALID_ARGUMENT);
  cr_assert_not_null(strstr(error.text, "/nonexistent/folder"));
  cr_assert_null(self);
}

/* ---- addresses ---- */

static bool is_public(const char *text) {
  struct sockaddr_in v4 = {.sin_family = AF_INET};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
  if (inet_pton(AF_INET, text, &v4.sin_addr) == 1) return tf_address_is_public((struct sockaddr *)&v4);
  cr_assert_eq(inet_pton(AF_INET6, text, &v6.sin6_addr), 1, "%s", text);
  return tf_address_is_public((struct sockaddr *)&v6);
}

Test(fetch, private_addresses) {
  static const char *const not_public[] = {"0.0.0.0",
                                           "0.1.2.3",
                                           "10.0.0.1",
                                           "10.255.255.255",
                                           "100.64.0.1",
                                           "100.127.255.255",
                                           "127.0.0.1",
                                           "127.255.0.1",
                                           "169.254.169.254",
                                           "172.16.0.1",
                                           "172.31.255.255",
                                           "192.0.0.1",
                                           "192.168.1.1",
                                           "198.18.0.1",
                                           "198.19.255.255",
                                           "198.51.100.1",
                                           "203.0.113.9",
                                           "224.0.0.1",
                                           "239.255.255.255",
                                           "240.0.0.1",
                                           "255.255.255.255",
                                           "::",
                                           "::1",
                                           "::ffff:127.0.0.1",
                                           "::ffff:8.8.8.8",
                                           "::127.0.0.1",
                                           "64:ff9b::7f00:1",
                                           "fc00::1",
                                           "fd12::1",
                                           "fe80::1",
                                           "fec0::1",
                                           "ff02::1",
                                           "2001::1",
                                           "2001:db8::1",
                                           "2002:7f00:1::1",
                                           "3fff::1",
                                           "5f00::1"};
  static const char *const public[] = {
      "8.8.8.8",       "1.1.1.1",     "100.63.255.255", "100.128.0.0",          "172.15.0.1",
      "172.32.0.1",    "169.253.0.1", "198.17.0.1",     "198.20.0.1",           "192.0.1.1",
      "223.255.255.1", "11.0.0.1",    "2606:4700::1",   "2a00:1450:4001::200e", "2001:4860::8888"};
  for (size_t i = 0; i < sizeof not_public / sizeof *not_public; i++)
    cr_expect_not(is_public(not_public[i]), "%s", not_public[i]);
  for (size_t i = 0; i < sizeof public / sizeof *public; i++) cr_expect(is_public(public[i]), "%s", public[i]);
  struct sockaddr local = {.sa_family = AF_UNIX};
  cr_expect_not(tf_address_is_public(&local));
}

/* ---- http ---- */

typedef struct server {
  int fd, port;
  pthread_t thread;
} server;

static void reply(int client, const char *path, int port) {
  char text[512] = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
  int status = 0, hops = 0;
  if (sscanf(path, "/status/%d", &status) == 1) {
    snprintf(text, sizeof text, "HTTP/1.1 %d X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", status);
  } else if (sscanf(path, "/hop/%d", &hops) == 1 && hops > 0) {
    snprintf(text, sizeof text,
             "HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:%d/hop/%d\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
             port, hops - 1);
  } else if (strcmp(path, "/to-file") == 0) {
    snprintf(text, sizeof text,
             "HTTP/1.1 302 X\r\nLocation: file:///etc/hostname\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
  } else if (strcmp(path, "/ok") == 0 || strcmp(path, "/hop/0") == 0) {
    snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nimage");
  } else if (strcmp(path, "/empty") == 0) {
    snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
  } else if (strcmp(path, "/announced") == 0) {
    snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\nConnection: close\r\n\r\n");
  } else if (strcmp(path, "/cut") == 0) {
    snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: 50\r\nConnection: close\r\n\r\nimage");
  } else if (strcmp(path, "/endless") == 0) {
    snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
  }
  (void)!send(client, text, strlen(text), MSG_NOSIGNAL);
  memset(text, 'x', sizeof text);
  bool endless = strcmp(path, "/endless") == 0;
  while (endless && send(client, text, sizeof text, MSG_NOSIGNAL) > 0) {
  }
}

/* One connection at a time, until the listening socket is shut down. */
static void *serve(void *context) {
  server *self = context;
  int client;
  while ((client = accept(self->fd, NULL, NULL)) >= 0) {
    char request[2048] = "", path[256] = "";
    if (recv(client, request, sizeof request - 1, 0) > 0) sscanf(request, "GET %255s", path);
    if (strcmp(path, "/slow") == 0) {
      (void)!recv(client, request, sizeof request - 1, 0); /* answers nothing; returns when the client gives up */
    } else {
      reply(client, path, self->port);
    }
    close(client);
  }
  return NULL;
}

static void server_start(server *self) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof at;
  self->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  cr_assert_eq(bind(self->fd, (struct sockaddr *)&at, sizeof at), 0);
  cr_assert_eq(listen(self->fd, 8), 0);
  cr_assert_eq(getsockname(self->fd, (struct sockaddr *)&at, &size), 0);
  self->port = ntohs(at.sin_port);
  cr_assert_eq(pthread_create(&self->thread, NULL, serve, self), 0);
}

static void server_stop(server *self) {
  shutdown(self->fd, SHUT_RDWR);
  pthread_join(self->thread, NULL);
  close(self->fd);
}

static tf_code get(const tf_fetcher *self, const server *from, const char *path, size_t *size, tf_error *error) {
  char uri[256];
  snprintf(uri, sizeof uri, "http://127.0.0.1:%d%s", from->port, path);
  return fetch(self, uri, size, error);
}

Test(fetch, http, .timeout = 30) {
  static const file_case cases[] = {
      {"/ok", TF_OK, 5},
      {"/hop/3", TF_OK, 5},
      {"/hop/4", TF_ERR_FETCH_FAILED, 0},
      {"/to-file", TF_ERR_URI_FORBIDDEN, 0},
      {"/missing", TF_ERR_FETCH_FAILED, 0},
      {"/status/403", TF_ERR_FETCH_FAILED, 0},
      {"/status/429", TF_ERR_FETCH_UNAVAILABLE, 0},
      {"/status/500", TF_ERR_FETCH_UNAVAILABLE, 0},
      {"/status/503", TF_ERR_FETCH_UNAVAILABLE, 0},
      {"/empty", TF_ERR_IMAGE_EMPTY, 0},
      {"/announced", TF_ERR_IMAGE_TOO_LARGE, 0},
      {"/endless", TF_ERR_IMAGE_TOO_LARGE, 0},
      {"/cut", TF_ERR_FETCH_UNAVAILABLE, 0},
      {"/slow", TF_ERR_TIMEOUT, 0},
  };
  /* A proxy from the environment would see every image: it is not used. */
  setenv("http_proxy", "http://127.0.0.1:9", 1);
  server from;
  server_start(&from);
  tf_fetch_config config = {
      .allow_http = true, .allow_private_addresses = true, .timeout_ms = 700, .bytes_max = BYTES_MAX};
  tf_fetcher *self = fetcher_of(&config);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    size_t size = 0;
    tf_error error = {.text = ""};
    tf_code code = get(self, &from, cases[i].path, &size, &error);
    cr_expect_eq(code, cases[i].code, "%s gave %s: %s", cases[i].path, tf_code_name(code), error.text);
    cr_expect_eq(size, cases[i].size, "%s", cases[i].path);
  }
  server_stop(&from);
  size_t size;
  tf_error error;
  cr_expect_eq(get(self, &from, "/ok", &size, &error), TF_ERR_FETCH_UNAVAILABLE, "nobody listens");
  tf_fetcher_free(&self);
}

Test(fetch, http_private_addresses_are_refused, .timeout = 20) {
  server from;
  server_start(&from);
  tf_fetch_config config = {.allow_http = true, .timeout_ms = 2000, .bytes_max = BYTES_MAX};
  tf_fetcher *self = fetcher_of(&config);
  static const char *const hosts[] = {"127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"};
  for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
    char uri[128];
    size_t size;
    tf_error error = {.text = ""};
    snprintf(uri, sizeof uri, "http://%s:%d/ok", hosts[i], from.port);
    cr_expect_eq(fetch(self, uri, &size, &error), TF_ERR_URI_FORBIDDEN, "%s: %s", hosts[i], error.text);
  }
  server_stop(&from);
  tf_fetcher_free(&self);
}

Test(fetch, a_cancelled_transfer_ends, .timeout = 20) {
  server from;
  server_start(&from);
  tf_fetch_config config = {
      .allow_http = true, .allow_private_addresses = true, .timeout_ms = 15000, .bytes_max = BYTES_MAX};
  tf_fetcher *self = fetcher_of(&config);
  atomic_bool cancelled = true;
  char uri[128];
  uint8_t *data;
  size_t size;
  tf_error error;
  snprintf(uri, sizeof uri, "http://127.0.0.1:%d/slow", from.port);
  int64_t begin_ms = tf_now_ms();
  cr_expect_eq(tf_fetch(self, uri, &cancelled, &data, &size, &error), TF_ERR_CANCELLED);
  cr_expect_lt(tf_now_ms() - begin_ms, 5000);
  server_stop(&from);
  tf_fetcher_free(&self);
}

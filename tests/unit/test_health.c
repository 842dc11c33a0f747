/* Tests of common/health.c over loopback TCP, with a client of a few lines.
 * In: requests, well-formed and not. Out: status codes and bodies.
 * The endpoint must answer with any number of silent clients connected. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/health.h"

static tf_metrics *metrics;
static tf_health *health;
static tf_error problem;

static void start(void) {
  metrics = tf_metrics_new();
  cr_assert_eq(tf_health_start("127.0.0.1:0", metrics, &health, &problem), TF_OK, "%s", problem.text);
  cr_assert_gt(tf_health_port(health), 0);
}

static void stop(void) {
  tf_health_stop(&health);
  cr_assert_null(health);
  tf_metrics_free(&metrics);
}

static in_addr_t from = INADDR_LOOPBACK; /* of the client */
static int connect_to_it(void) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(from)};
  cr_assert_eq(bind(fd, (struct sockaddr *)&own, sizeof own), 0);
  struct sockaddr_in where = {.sin_family = AF_INET,
                              .sin_port = htons((uint16_t)tf_health_port(health)),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct timeval timeout = {.tv_sec = 10};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  cr_assert_eq(connect(fd, (struct sockaddr *)&where, sizeof where), 0);
  return fd;
}

/* The status code; the whole answer is in `answer`. */
static char answer[65536];
static int request(const char *method, const char *path) {
  char head[256];
  int fd = connect_to_it(),
      size = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path);
  cr_assert_eq(send(fd, head, (size_t)size, MSG_NOSIGNAL), size);
  size_t length = 0;
  for (ssize_t got; (got = recv(fd, answer + length, sizeof answer - 1 - length, 0)) > 0;) length += (size_t)got;
  answer[length] = '\0';
  close(fd);
  int status = 0;
  cr_assert_eq(sscanf(answer, "HTTP/1.1 %d", &status), 1, "%s", answer);
  return status;
}

Test(health, a_text_of_the_service, .init = start, .fini = stop) {
  cr_assert_eq(request("GET", "/wanted"), 404);
  tf_health_publish(health, "/wanted", "application/json", NULL);
  cr_assert_eq(request("GET", "/wanted"), 503);
  tf_health_publish(health, "/wanted", "application/json", "{\"llm\":3}\n");
  cr_assert_eq(request("GET", "/wanted"), 200);
  cr_assert_not_null(strstr(answer, "application/json"));
  cr_assert_not_null(strstr(answer, "\r\n\r\n{\"llm\":3}\n"));
  cr_assert_eq(request("HEAD", "/wanted"), 200);
  cr_assert_eq(request("POST", "/wanted"), 405);
  cr_assert_eq(request("GET", "/wanted/"), 404);
  char longer[2 * TF_HEALTH_TEXT_BYTES_MAX];
  memset(longer, 'x', sizeof longer - 1);
  longer[sizeof longer - 1] = '\0';
  tf_health_publish(health, "/wanted", "text/plain", longer);
  cr_assert_eq(request("GET", "/wanted"), 200);
  cr_assert_eq(strlen(strstr(answer, "\r\n\r\n") + 4), TF_HEALTH_TEXT_BYTES_MAX);
  tf_health_publish(health, "/wanted", "application/json", NULL);
  cr_assert_eq(request("GET", "/wanted"), 503);
  tf_health_publish(NULL, "/wanted", "application/json", "1");
}

Test(health, paths, .init = start, .fini = stop) {
  cr_assert_eq(request("GET", "/healthz"), 200);
  cr_assert_not_null(strstr(answer, "\r\n\r\nok\n"));
  cr_assert_eq(request("HEAD", "/healthz"), 200);
  cr_assert_null(strstr(answer, "ok\n"));
  cr_assert_eq(request("GET", "/nothing"), 404);
  cr_assert_eq(request("POST", "/healthz"), 405);
  cr_assert_eq(request("GET", "/healthz?verbose=1"), 200);
}

Test(health, readiness_has_a_reason, .init = start, .fini = stop) {
  cr_assert_eq(request("GET", "/readyz"), 503);
  cr_assert_not_null(strstr(answer, "starting\n"));
  tf_health_set_ready(health, false, "no LLM worker");
  cr_assert_eq(request("GET", "/readyz"), 503);
  cr_assert_not_null(strstr(answer, "no LLM worker\n"));
  tf_health_set_ready(health, true, NULL);
  cr_assert_eq(request("GET", "/readyz"), 200);
  char longer[1000];
  memset(longer, 'r', sizeof longer);
  longer[sizeof longer - 1] = '\0';
  tf_health_set_ready(health, false, longer);
  cr_assert_eq(request("GET", "/readyz"), 503);
}

Test(health, late_threads_are_seen, .init = start, .fini = stop) {
  tf_health_beat(health, 0, 60000);
  tf_health_beat(health, 3, 20);
  usleep(60000);
  cr_assert_eq(request("GET", "/healthz"), 503);
  cr_assert_not_null(strstr(answer, "thread 3 is late"));
  tf_health_beat(health, 3, 0); /* idle on purpose */
  cr_assert_eq(request("GET", "/healthz"), 200);
  tf_health_beat(health, 8, 1); /* no such slot */
  tf_health_beat(health, -1, 1);
  usleep(5000);
  cr_assert_eq(request("GET", "/healthz"), 200);
}

Test(health, metrics_page, .init = start, .fini = stop) {
  cr_assert_eq(request("GET", "/metrics"), 200);
  tf_metric_add(tf_metrics_counter(metrics, "jobs_total", "", "Jobs"), 3);
  cr_assert_eq(request("GET", "/metrics"), 200);
  cr_assert_not_null(strstr(answer, "text/plain; version=0.0.4"));
  cr_assert_not_null(strstr(answer, "\njobs_total 3\n"));
}

Test(health, garbage_and_silence_do_not_stop_it, .init = start, .fini = stop) {
  int silent[8];
  for (int i = 0; i < 8; i++) {
    silent[i] = connect_to_it();
    if (i % 2) cr_assert_gt(send(silent[i], "\x16\x03\x01 garbage\r\n\r\n", 15, MSG_NOSIGNAL), 0);
  }
  cr_assert_eq(request("GET", "/healthz"), 200);
  for (int i = 0; i < 8; i++) close(silent[i]);
  cr_assert_eq(request("GET", "/healthz"), 200);
}

Test(health, one_address_can_not_have_all_connections, .init = start, .fini = stop) {
  int slow[40];
  for (size_t i = 0; i < sizeof slow / sizeof slow[0]; i++) {
    slow[i] = connect_to_it();
    send(slow[i], "GET /healthz HTTP/1.1\r\nX: ", 27, MSG_NOSIGNAL); /* and never more */
  }
  from = INADDR_LOOPBACK + 1;
  cr_assert_eq(request("GET", "/healthz"), 200);
  for (size_t i = 0; i < sizeof slow / sizeof slow[0]; i++) close(slow[i]);
}

Test(health, off_still_takes_calls) {
  const char *const offs[] = {NULL, "off", ""};
  for (int i = 0; i < 3; i++) {
    cr_assert_eq(tf_health_start(offs[i], NULL, &health, &problem), TF_OK);
    cr_assert_eq(tf_health_port(health), 0);
    tf_health_set_ready(health, true, "x");
    tf_health_beat(health, 1, 5);
    tf_health_stop(&health);
  }
  tf_health_stop(&health);
  cr_assert_null(health);
}

/* ---- what a handler adds ---- */

static char seen[256];

static void handle(void *context, const tf_health_request *got, tf_health_answer *out) {
  const char *since = tf_health_argument(got, "since"), *host = tf_health_header(got, "HOST");
  snprintf(seen, sizeof seen, "%s %s %d %s %s", got->method, got->path, got->loopback, since ? since : "none",
           host ? host : "none");
  if (strcmp(got->path, "/page") != 0) return;
  *out = (tf_health_answer){.status = 202, .type = "text/x-test", .body = strdup(context), .owned = true};
  out->size = strlen(out->body);
}

Test(health, a_handler_has_what_is_left, .init = start, .fini = stop) {
  char words[] = "hello";
  cr_assert_eq(request("GET", "/page"), 404);
  tf_health_serve(health, handle, words);
  cr_assert_eq(request("GET", "/page?since=7&x"), 202);
  cr_assert_str_eq(seen, "GET /page 1 7 x");
  cr_assert_not_null(strstr(answer, "\r\n\r\nhello"));
  const char *const headers[] = {"text/x-test", "Cache-Control: no-store", "X-Content-Type-Options: nosniff",
                                 "Content-Security-Policy: default-src 'none'", "Referrer-Policy: no-referrer"};
  for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) cr_assert_not_null(strstr(answer, headers[i]));
  cr_assert_null(strstr(answer, "Access-Control"));
  cr_assert_eq(request("HEAD", "/page"), 202);
  cr_assert_null(strstr(answer, "hello"));
  cr_assert_eq(request("POST", "/page"), 202);
  cr_assert_str_eq(seen, "POST /page 1 none x");
  cr_assert_eq(request("DELETE", "/nothing"), 405);
  cr_assert_eq(request("GET", "/nothing"), 404);
  seen[0] = '\0';
  cr_assert_eq(request("GET", "/healthz"), 200); /* not the handler's */
  cr_assert_str_eq(seen, "");
  tf_health_serve(health, NULL, NULL);
  cr_assert_eq(request("GET", "/page"), 404);
  cr_assert_str_eq(seen, "");
}

Test(health, a_body_is_not_read, .init = start, .fini = stop) {
  char words[] = "hello", block[65536];
  memset(block, 'b', sizeof block);
  tf_health_serve(health, handle, words);
  int fd = connect_to_it();
  static const char head[] = "POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n";
  cr_assert_eq(send(fd, head, sizeof head - 1, MSG_NOSIGNAL), (ssize_t)sizeof head - 1);
  for (int i = 0; i < 64 && send(fd, block, sizeof block, MSG_NOSIGNAL | MSG_DONTWAIT) > 0; i++) continue;
  cr_assert_gt(recv(fd, answer, sizeof answer - 1, 0), 0);
  cr_assert_eq(strncmp(answer, "HTTP/1.1 202", 12), 0);
  close(fd);
  cr_assert_eq(request("GET", "/healthz"), 200);
}

Test(health, addresses_of_this_machine) {
  struct sockaddr_in v4 = {.sin_family = AF_INET};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
  const struct {
    const char *text;
    bool loopback;
  } cases[] = {{"127.0.0.1", true}, {"127.9.8.7", true}, {"128.0.0.1", false},       {"10.0.0.1", false},
               {"0.0.0.0", false},  {"::1", true},       {"::ffff:127.0.0.1", true}, {"::ffff:10.0.0.1", false},
               {"::2", false},      {"::", false},       {"fe80::1", false},         {"7f00::1", false}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    bool is_v4 = inet_pton(AF_INET, cases[i].text, &v4.sin_addr) == 1;
    if (!is_v4) cr_assert_eq(inet_pton(AF_INET6, cases[i].text, &v6.sin6_addr), 1);
    const void *address = is_v4 ? (const void *)&v4 : (const void *)&v6;
    cr_assert_eq(tf_address_is_loopback(address), cases[i].loopback, "%s", cases[i].text);
  }
  struct sockaddr local = {.sa_family = AF_UNIX};
  cr_assert_not(tf_address_is_loopback(&local));
  cr_assert_not(tf_address_is_loopback(NULL));
}

Test(health, bad_addresses_are_refused) {
  const char *const wrong[] = {"localhost", "127.0.0.1", "127.0.0.1:", ":http-no", "127.0.0.1:port", "1.2.3.4.5:80"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    problem.text[0] = '\0';
    cr_assert_eq(tf_health_start(wrong[i], NULL, &health, &problem), TF_ERR_INVALID_ARGUMENT, "%s", wrong[i]);
    cr_assert_null(health);
    cr_assert_not_null(strstr(problem.text, "health address"), "%s", problem.text);
  }
}

Test(health, taken_port_is_an_error) {
  start();
  char address[32];
  snprintf(address, sizeof address, "127.0.0.1:%d", tf_health_port(health));
  tf_health *second;
  cr_assert_eq(tf_health_start(address, NULL, &second, &problem), TF_ERR_IO);
  cr_assert_null(second);
  cr_assert_not_null(strstr(problem.text, address));
  stop();
}

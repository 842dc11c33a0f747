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

static int connect_to_it(void) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
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

/* Tests of common/log.c.
 * In: events with fields; stderr is a pipe. Out: the lines that came through it.
 * A value can neither end its line nor steer a terminal. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"

static int read_end, stderr_copy;
static char captured[1 << 20];

static void begin(void) {
  int ends[2];
  cr_assert_eq(pipe(ends), 0);
  fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  read_end = ends[0];
  stderr_copy = dup(STDERR_FILENO);
  dup2(ends[1], STDERR_FILENO);
  close(ends[1]);
}

static const char *end(void) {
  size_t size = 0;
  for (ssize_t got; (got = read(read_end, captured + size, sizeof captured - 1 - size)) > 0;) size += (size_t)got;
  captured[size] = '\0';
  dup2(stderr_copy, STDERR_FILENO);
  close(stderr_copy);
  close(read_end);
  return captured;
}

/* The one line after its time field. */
static const char *line_after_time(void) {
  const char *text = end();
  cr_assert_eq(strncmp(text, "time=20", 7), 0, "%s", text);
  cr_assert_eq(text[28], 'Z', "%s", text); /* time=2024-01-02T03:04:05.678Z */
  return text + 30;
}

Test(log, fields_of_every_kind) {
  begin();
  tf_log_setup("router", "info");
  tf_log_info("job_done", TF_STR("id", "a1"), TF_INT("attempt", 2), TF_REAL("ms", 1.5), TF_STR("none", NULL));
  cr_assert_str_eq(line_after_time(), "level=info program=router event=job_done id=a1 attempt=2 ms=1.5 none=\"\"\n");
}

Test(log, levels_are_filtered) {
  begin();
  tf_log_setup("llm", "warn");
  tf_log_debug("no", TF_INT("a", 1));
  tf_log_info("no", TF_INT("a", 1));
  tf_log_warn("yes", TF_INT("a", 1));
  tf_log_setup("llm", "unheard-of"); /* means info */
  tf_log_debug("no", TF_INT("a", 1));
  tf_log_info("yes", TF_INT("a", 1));
  const char *text = end();
  cr_assert_null(strstr(text, "event=no"));
  cr_assert_not_null(strstr(text, "level=warn program=llm event=yes"));
  cr_assert_not_null(strstr(text, "level=info program=llm event=yes"));
}

Test(log, values_are_quoted_and_escaped) {
  begin();
  tf_log_setup("x", "info");
  tf_log_info("e", TF_STR("a", "two words"), TF_STR("b", "q\"\\"), TF_STR("c", "l1\nl2\t\r\x1b[2J\x7f"),
              TF_STR("d", "caf\xc3\xa9"), TF_STR("e", "bad\xff\xc3"), TF_STR("f", "\xc2\x9b"), TF_STR("g", "k=v"));
  cr_assert_str_eq(line_after_time(), "level=info program=x event=e a=\"two words\" b=\"q\\\"\\\\\" "
                                      "c=\"l1\\nl2\\t\\r\\x1b[2J\\x7f\" d=\"caf\xc3\xa9\" e=\"bad\\xff\\xc3\" "
                                      "f=\"\\u009b\" g=\"k=v\"\n");
}

Test(log, odd_numbers) {
  begin();
  tf_log_setup("x", "info");
  tf_log_info("e", TF_INT("min", INT64_MIN), TF_REAL("nan", (double)NAN), TF_REAL("inf", (double)INFINITY));
  const char *text = line_after_time();
  cr_assert_not_null(strstr(text, "min=-9223372036854775808 "), "%s", text);
  cr_assert_not_null(strstr(text, "inf=inf\n"), "%s", text);
}

Test(log, long_values_are_cut_and_lines_stay_whole) {
  char longer[20000];
  memset(longer, 'y', sizeof longer);
  longer[sizeof longer - 1] = '\0';
  begin();
  tf_log_setup("x", "info");
  tf_log_info("e", TF_STR("a", longer), TF_STR("b", longer), TF_STR("c", longer), TF_STR("d", longer),
              TF_STR("e", longer));
  const char *text = end();
  cr_assert_leq(strlen(text), 8192);
  cr_assert_eq(text[strlen(text) - 1], '\n');
  cr_assert_not_null(strstr(text, "yyy...\" b="));
}

Test(log, a_closed_standard_descriptor_does_not_become_a_file) {
  int kept = dup(STDOUT_FILENO);
  close(STDOUT_FILENO);
  tf_log_setup("x", "info");
  int file = open("/dev/null", O_WRONLY);
  ssize_t written = write(STDOUT_FILENO, "lost", 4);
  dup2(kept, STDOUT_FILENO);
  cr_assert_gt(file, STDERR_FILENO);
  cr_assert_eq(written, -1);
}

static void *write_lines(void *context) {
  for (int i = 0; i < 100; i++) tf_log_info("thread", TF_STR("who", context), TF_INT("i", i));
  return NULL;
}

Test(log, threads_do_not_mix_their_lines) {
  begin();
  tf_log_setup("x", "info");
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, write_lines, "somebody");
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  int lines = 0;
  for (char *rest = (char *)end(), *line; (line = strsep(&rest, "\n")) && *line; lines++) {
    cr_assert_eq(strncmp(line, "time=", 5), 0, "%s", line);
    cr_assert_not_null(strstr(line, " event=thread who=somebody i="), "%s", line);
  }
  cr_assert_eq(lines, 400);
}

/* Tests of router/page_access.c. In: token files, Host and Authorization headers. Out: who may read and who may act. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "router/page_access.h"

static tf_error problem;

/* A file of this text and mode; gone once it was read. */
static tf_code read_token(const char *text, mode_t mode, tf_page_token *out) {
  char path[] = "/tmp/tf-token-XXXXXX";
  int fd = mkstemp(path);
  cr_assert_geq(fd, 0);
  cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
  cr_assert_eq(fchmod(fd, mode), 0);
  close(fd);
  tf_code code = tf_page_token_read(path, out, &problem);
  unlink(path);
  return code;
}

static tf_page_token make(const char *text) {
  tf_page_token token = {.size = strlen(text)};
  memcpy(token.text, text, token.size);
  return token;
}

Test(page_access, a_token_is_the_first_line) {
  tf_page_token token;
  cr_assert_eq(read_token("0123456789abcdef", 0600, &token), TF_OK, "%s", problem.text);
  cr_assert_str_eq(token.text, "0123456789abcdef");
  cr_assert_eq(read_token("0123456789abcdef!~\r\nsecond", 0640, &token), TF_OK, "%s", problem.text);
  cr_assert_str_eq(token.text, "0123456789abcdef!~");
  cr_assert_eq(token.size, 18);
  cr_assert_eq(tf_page_token_read(NULL, &token, &problem), TF_OK);
  cr_assert_eq(token.size, 0);
}

Test(page_access, unfit_files_are_refused) {
  tf_page_token token;
  char longest[TF_PAGE_TOKEN_BYTES_MAX + 2];
  memset(longest, 'x', sizeof longest);
  longest[sizeof longest - 1] = '\0';
  const char *const wrong[] = {"",
                               "\n0123456789abcdef",
                               "0123456789abcde",
                               "0123456789 abcdef",
                               "0123456789abcdef\t",
                               "0123456789abcd\xc3\xa9",
                               longest};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    cr_assert_eq(read_token(wrong[i], 0600, &token), TF_ERR_INVALID_ARGUMENT, "%zu", i);
    cr_assert_eq(token.size, 0);
  }
  longest[TF_PAGE_TOKEN_BYTES_MAX] = '\0';
  cr_assert_eq(read_token(longest, 0600, &token), TF_OK);
  cr_assert_eq(token.size, TF_PAGE_TOKEN_BYTES_MAX);
  cr_assert_eq(read_token("0123456789abcdef", 0604, &token), TF_ERR_INVALID_ARGUMENT);
  cr_assert_not_null(strstr(problem.text, "everyone may read it"), "%s", problem.text);
  cr_assert_eq(tf_page_token_read("/nowhere/token", &token, &problem), TF_ERR_INVALID_ARGUMENT);
  cr_assert_not_null(strstr(problem.text, "/nowhere/token"), "%s", problem.text);
  cr_assert_eq(tf_page_token_read("/tmp", &token, &problem), TF_ERR_INVALID_ARGUMENT);
}

Test(page_access, only_the_whole_token_fits) {
  tf_page_token token = make("0123456789abcdef"), none = {.size = 0};
  char with_more[TF_PAGE_TOKEN_BYTES_MAX * 3];
  memset(with_more, 'x', sizeof with_more);
  memcpy(with_more, "Bearer 0123456789abcdef", 23);
  with_more[sizeof with_more - 1] = '\0';
  cr_assert(tf_page_token_fits(&token, "Bearer 0123456789abcdef"));
  cr_assert(tf_page_token_fits(&token, "bearer 0123456789abcdef"));
  const char *const wrong[] = {NULL,
                               "",
                               "Bearer",
                               "Bearer ",
                               "Bearer 0123456789abcde",
                               "Bearer 0123456789abcdeF",
                               "Bearer 0123456789abcdefg",
                               "Bearer  0123456789abcdef",
                               "Bearer 0123456789abcdef ",
                               "Basic 0123456789abcdef",
                               "0123456789abcdef",
                               with_more};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
    cr_assert_not(tf_page_token_fits(&token, wrong[i]), "%zu", i);
  cr_assert_not(tf_page_token_fits(&none, "Bearer "));
  cr_assert_not(tf_page_token_fits(&none, NULL));
}

Test(page_access, names_of_this_machine) {
  const char *const local[] = {"localhost",       "localhost:9101", "LocalHost:1", "127.0.0.1",
                               "127.0.0.1:65535", "[::1]",          "[::1]:9101"};
  const char *const foreign[] = {NULL,
                                 "",
                                 "evil.example",
                                 "localhost.evil.example",
                                 "localhost:",
                                 "localhost:9101x",
                                 "127.0.0.1.evil.example",
                                 "127.0.0.1:9101@evil.example",
                                 "::1",
                                 "[::1",
                                 "127.0.0.2",
                                 "xlocalhost",
                                 "localhost:123456",
                                 "0.0.0.0:9101"};
  for (size_t i = 0; i < sizeof local / sizeof *local; i++) cr_assert(tf_page_host_is_local(local[i]), "%s", local[i]);
  for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
    cr_assert_not(tf_page_host_is_local(foreign[i]), "%zu", i);
}

Test(page_access, verdicts) {
  tf_page_token token = make("0123456789abcdef"), none = {.size = 0};
  const char *good = "Bearer 0123456789abcdef", *bad = "Bearer fedcba9876543210";
  cr_assert_eq(tf_page_may_read(&none, true, "localhost:9101", NULL), TF_PAGE_ALLOWED);
  cr_assert_eq(tf_page_may_read(&token, true, "localhost:9101", bad), TF_PAGE_ALLOWED); /* reading needs none */
  cr_assert_eq(tf_page_may_read(&token, true, "evil.example", NULL), TF_PAGE_HOST);
  cr_assert_eq(tf_page_may_read(&token, true, "evil.example", good), TF_PAGE_ALLOWED);
  cr_assert_eq(tf_page_may_read(&none, false, "localhost:9101", NULL), TF_PAGE_PEER); /* a Host is said easily */
  cr_assert_eq(tf_page_may_read(&token, false, "router:9101", bad), TF_PAGE_PEER);
  cr_assert_eq(tf_page_may_read(&token, false, "router:9101", good), TF_PAGE_ALLOWED);
  cr_assert_eq(tf_page_may_read(&none, false, "router:9101", good), TF_PAGE_PEER);
  cr_assert_eq(tf_page_may_act(&none, good), TF_PAGE_NO_TOKEN);
  cr_assert_eq(tf_page_may_act(&token, NULL), TF_PAGE_TOKEN);
  cr_assert_eq(tf_page_may_act(&token, bad), TF_PAGE_TOKEN);
  cr_assert_eq(tf_page_may_act(&token, good), TF_PAGE_ALLOWED);
  for (int verdict = TF_PAGE_PEER; verdict <= TF_PAGE_TOKEN; verdict++)
    cr_assert_gt(strlen(tf_page_verdict_text((tf_page_verdict)verdict)), 30);
}

/* Tests of cli/progress.c: durations, counts, rates and the width of every line.
 * In: numbers of a run. Out: text that fits its terminal. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"

static tf_buffer text;
static void open_text(void) {
  tf_buffer_init(&text, 65536);
}
static void close_text(void) {
  tf_buffer_free(&text);
}
TestSuite(progress, .init = open_text, .fini = close_text);

static const char *duration(double seconds) {
  static char out[32];
  tf_duration_text(seconds, out, sizeof out);
  return out;
}

Test(progress, durations) {
  cr_assert_str_eq(duration(0), "0s");
  cr_assert_str_eq(duration(-3), "0s");
  cr_assert_str_eq(duration(59.4), "59s");
  cr_assert_str_eq(duration(59.6), "1m 00s");
  cr_assert_str_eq(duration(3725), "1h 02m");
  cr_assert_str_eq(duration(2 * 86400 + 3 * 3600), "2d 03h");
  cr_assert_str_eq(duration(1e300), "over 99d");
  cr_assert_str_eq(duration(0.0 / 0.0), "over 99d");
}

static const char *count(uint64_t value) {
  static char out[32];
  tf_count_text(value, out, sizeof out);
  return out;
}

Test(progress, counts) {
  cr_assert_str_eq(count(0), "0");
  cr_assert_str_eq(count(999), "999");
  cr_assert_str_eq(count(1000), "1,000");
  cr_assert_str_eq(count(123456), "123,456");
  cr_assert_str_eq(count(UINT64_MAX), "18,446,744,073,709,551,615");
}

static tf_progress_view busy(void) {
  return (tf_progress_view){.done = 14207,
                            .failed = 12,
                            .total = 100000,
                            .total_known = true,
                            .per_second = 11.73,
                            .mean_tokens = 256,
                            .depth_known = true,
                            .waiting = 240,
                            .encoding = 8,
                            .decoding = 8};
}

/* Columns of the widest line; escape sequences take none, a UTF-8 character takes one. */
static int widest(const char *lines) {
  int wide = 0, now = 0;
  for (const char *at = lines; *at; at++) {
    if (*at == '\033') {
      at = strchr(at, 'm');
      cr_assert_not_null(at);
    } else if (*at == '\n') {
      now = 0;
    } else if ((*at & 0xc0) != 0x80) {
      now++;
    }
    if (now > wide) wide = now;
  }
  return wide;
}

Test(progress, bar_at_80_columns) {
  tf_progress_view view = busy();
  tf_progress_style style = {.columns = 80};
  tf_progress_bar(&view, &style, &text);
  char *second = strchr(text.data, '\n');
  cr_assert_not_null(second);
  cr_assert_str_eq(second + 1, " 14,207 of 100,000  12 failed  11.7/s  256 tokens  wait 240  enc 8  llm 8");
  cr_assert_not_null(strstr(text.data, "   14%  2h 01m left\n"));
  cr_assert_eq(widest(text.data), 79, "got %d: %s", widest(text.data), text.data);
}

Test(progress, nothing_ever_wraps) {
  tf_progress_view views[] = {
      busy(), busy(), busy(), {0}, {.note = "starting: encoder and LLM are loading the model (12 s)"}};
  views[1].total_known = false;
  views[2].waiting = views[2].encoding = views[2].decoding = 1234567890;
  views[2].total = views[2].done = 123456789012;
  views[2].per_second = 0.01;
  for (size_t v = 0; v < sizeof views / sizeof views[0]; v++)
    for (int columns = 1; columns <= 300; columns++)
      for (int look = 0; look < 4; look++) {
        tf_progress_style style = {.columns = columns, .color = look & 1, .utf8 = look & 2};
        tf_buffer_clear(&text);
        tf_progress_bar(&views[v], &style, &text);
        cr_assert_not(text.overflow);
        cr_assert_leq(widest(text.data), columns - 1, "%d columns, view %zu: %s", columns, v, text.data);
        cr_assert_eq(strchr(text.data, '\n'), strrchr(text.data, '\n'));
        if (!style.color) cr_assert_null(strchr(text.data, '\033'));
      }
}

Test(progress, plain_line) {
  tf_progress_view view = busy();
  tf_progress_line(&view, &text);
  cr_assert_str_eq(text.data, "14,207 of 100,000 done, 12 failed, 11.7/s, 2h 01m left, mean 256 tokens, waiting 240, "
                              "encoder 8, llm 8");
  tf_buffer_clear(&text);
  tf_progress_view young = {.total = 300};
  tf_progress_line(&young, &text);
  cr_assert_str_eq(text.data, "0 of 300+ done, 0 failed, -/s");
}

Test(progress, rate_is_of_the_last_half_minute) {
  tf_rate rate = {0};
  cr_assert_float_eq(tf_rate_per_second(&rate, 1000, 5), 0, 1e-9);
  for (int64_t ms = 0; ms <= 10000; ms += 100) tf_rate_add(&rate, ms, (uint64_t)ms / 500);
  cr_assert_float_eq(tf_rate_per_second(&rate, 10000, 20), 2, 0.1);
  /* A long run that has become ten times slower tells the new rate after half a minute. */
  for (int64_t ms = 10000; ms <= 60000; ms += 100) tf_rate_add(&rate, ms, 20 + (uint64_t)(ms - 10000) / 5000);
  cr_assert_float_eq(tf_rate_per_second(&rate, 60000, 30), 0.2, 0.04);
  cr_assert_float_eq(tf_rate_per_second(&rate, 60000, 0), 0, 1e-9);
}

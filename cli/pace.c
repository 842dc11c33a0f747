/* Deadlines of runs. In: words, the queue's load. Out: a plan that follows the count of names.
 * The deadline travels as Redis's time: this machine's clock and that one's need not agree.
 * Local time is the user's: 06:00 is the next one on the wall. */
#include "cli/pace.h"

#include "cli/progress.h"
#include "cli/queue.h"
#include "common/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { EXPIRE_S = 60, WITHIN_DAYS_MAX = 366 };

/* -- words ------------------------------------------------------------------------------------------------------ */

static bool parse_within(const char *text, int64_t *seconds) {
  *seconds = 0;
  while (*text) {
    char *end;
    if (*text < '0' || *text > '9') return false;
    unsigned long value = strtoul(text, &end, 10);
    int64_t unit = *end == 'd' ? 86400 : *end == 'h' ? 3600 : *end == 'm' ? 60 : *end == 's' ? 1 : 0;
    if (unit == 0 || value > (unsigned long)WITHIN_DAYS_MAX * 86400) return false;
    *seconds += (int64_t)value * unit;
    text = end + 1;
  }
  return *seconds > 0 && *seconds <= (int64_t)WITHIN_DAYS_MAX * 86400;
}

static bool parse_clock(const char *text, int64_t now_unix_ms, int64_t *finish_unix_ms) {
  int year, month, day, hour, minute, used = 0;
  time_t now = (time_t)(now_unix_ms / 1000);
  struct tm parts;
  if (!localtime_r(&now, &parts)) return false;
  bool dated = (sscanf(text, "%4d-%2d-%2d %2d:%2d%n", &year, &month, &day, &hour, &minute, &used) == 5 ||
                sscanf(text, "%4d-%2d-%2dT%2d:%2d%n", &year, &month, &day, &hour, &minute, &used) == 5) &&
               text[used] == '\0';
  if (!dated && (sscanf(text, "%2d:%2d%n", &hour, &minute, &used) != 2 || text[used] != '\0')) return false;
  if (hour < 0 || hour > 23 || minute < 0 || minute > 59) return false;
  if (dated && (month < 1 || month > 12 || day < 1 || day > 31)) return false;
  if (dated) {
    parts.tm_year = year - 1900;
    parts.tm_mon = month - 1;
    parts.tm_mday = day;
  }
  parts.tm_hour = hour;
  parts.tm_min = minute;
  parts.tm_sec = 0;
  parts.tm_isdst = -1;
  struct tm tomorrow = parts;
  time_t at = mktime(&parts);
  if (!dated && at != -1 && (int64_t)at * 1000 <= now_unix_ms) {
    tomorrow.tm_mday++;
    at = mktime(&tomorrow);
  }
  *finish_unix_ms = (int64_t)at * 1000;
  return at != -1;
}

tf_code tf_pace_parse(const char *within, const char *finish_by, int64_t now_unix_ms, int64_t *finish_unix_ms,
                      tf_error *error) {
  int64_t seconds;
  *finish_unix_ms = 0;
  if (within && finish_by)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--within and --finish-by say the same thing: give one of them");
  if (within && !parse_within(within, &seconds))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--within %.60s: give a time as 3h, 90m, 1h30m or 2d", within);
  if (within) *finish_unix_ms = now_unix_ms + seconds * 1000;
  if (finish_by && !parse_clock(finish_by, now_unix_ms, finish_unix_ms))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "--finish-by %.60s: give a time as 06:00 or 2025-01-31T06:00 (local time)", finish_by);
  if (finish_by && *finish_unix_ms <= now_unix_ms)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--finish-by %.60s: that time is over", finish_by);
  return TF_OK;
}

/* -- the queue -------------------------------------------------------------------------------------------------- */

static bool text_at(const redisReply *reply, size_t i, char *out, size_t out_bytes) {
  if (reply->type != REDIS_REPLY_ARRAY || i >= reply->elements) return false;
  const redisReply *item = reply->element[i];
  if (item->type != REDIS_REPLY_STRING || item->len == 0) return false;
  snprintf(out, out_bytes, "%s", item->str);
  return true;
}

/* "5.6,3.8,2.5" */
static void parse_rates(const char *text, tf_pace *self, double share) {
  for (uint32_t i = 0; i < self->count_count && *text; i++) {
    char *end;
    double value = strtod(text, &end);
    if (end == text) return;
    /* Another server's rates are taken to be like this one's: it has its share of the pictures, too. */
    self->per_second[i] = value > 0 && share > 0 ? value / share : 0;
    text = *end == ',' ? end + 1 : end;
  }
}

static void read_load(tf_pace *self, tf_link *link, double share) {
  redisReply *reply;
  char counts[256], rates[512];
  if (tf_link_ask(link, &reply, NULL, "HMGET", link->load, "counts", "capacity_per_s", NULL)) return;
  if (text_at(reply, 0, counts, sizeof counts) && text_at(reply, 1, rates, sizeof rates)) {
    self->count_count = tf_queue_parse_counts(counts, self->counts, TF_PACE_COUNTS_MAX);
    parse_rates(rates, self, share);
  }
  freeReplyObject(reply);
}

static bool redis_now(tf_link *link, int64_t *now_ms) {
  redisReply *reply;
  char seconds[32], micros[32];
  if (tf_link_ask(link, &reply, NULL, "TIME", NULL)) return false;
  bool fine = text_at(reply, 0, seconds, sizeof seconds) && text_at(reply, 1, micros, sizeof micros);
  freeReplyObject(reply);
  if (fine) *now_ms = strtoll(seconds, NULL, 10) * 1000 + strtoll(micros, NULL, 10) / 1000;
  return fine;
}

void tf_pace_refresh(tf_pace *self, tf_link *link, uint64_t remaining, double share) {
  int64_t redis_ms;
  if (!link->context || !redis_now(link, &redis_ms)) return;
  char left[32], finish[32], expire[16], budget[64];
  redisReply *reply;
  snprintf(left, sizeof left, "%.0f", (double)remaining * share);
  snprintf(finish, sizeof finish, "%lld", (long long)(redis_ms + self->finish_unix_ms - tf_unix_ms()));
  snprintf(expire, sizeof expire, "%d", EXPIRE_S);
  if (tf_link_ask(link, &reply, NULL, "HSET", link->pace, "remaining", left, "finish_ms", finish, NULL)) return;
  freeReplyObject(reply);
  if (tf_link_ask(link, &reply, NULL, "EXPIRE", link->pace, expire, NULL)) return;
  freeReplyObject(reply);
  if (tf_link_ask(link, &reply, NULL, "HMGET", link->pace, "budget", NULL)) return;
  if (text_at(reply, 0, budget, sizeof budget)) self->budget = strtod(budget, NULL);
  freeReplyObject(reply);
  read_load(self, link, share);
}

void tf_pace_end(tf_link *link) {
  redisReply *reply;
  if (tf_link_ask(link, &reply, NULL, "DEL", link->pace, NULL) == TF_OK) freeReplyObject(reply);
}

/* -- texts ------------------------------------------------------------------------------------------------------ */

void tf_pace_time_text(int64_t unix_ms, int64_t now_unix_ms, char *out, size_t out_bytes) {
  time_t at = (time_t)(unix_ms / 1000);
  struct tm parts;
  bool near = unix_ms - now_unix_ms < 86400 * 1000LL;
  if (!localtime_r(&at, &parts) || strftime(out, out_bytes, near ? "%H:%M" : "%Y-%m-%d %H:%M", &parts) == 0)
    snprintf(out, out_bytes, "-");
}

void tf_pace_forecast(const tf_pace *self, uint64_t remaining, int64_t most, tf_buffer *out) {
  char duration[32], when[32];
  int last = -1;
  for (uint32_t i = 0; i < self->count_count; i++)
    if (self->per_second[i] > 0 && (most <= 0 || self->counts[i] <= most)) last = (int)i;
  if (last < 0) return;
  tf_duration_text((double)remaining / self->per_second[last], duration, sizeof duration);
  tf_buffer_printf(out, "at %u tokens: %s", self->counts[last], duration);
  if (last > 0 && self->per_second[0] > 0) {
    tf_duration_text((double)remaining / self->per_second[0], duration, sizeof duration);
    tf_buffer_printf(out, ", at %u: %s", self->counts[0], duration);
  }
  if (self->budget > 0) tf_buffer_printf(out, "; planned mean %.0f tokens", self->budget);
  tf_pace_time_text(self->finish_unix_ms, tf_unix_ms(), when, sizeof when);
  tf_buffer_printf(out, "; to be done by %s", when);
}

/* The whole service under the clock: photos onto a queue, captions back.
 * In: jobs REDIS-URL QUEUE TOKENS NEW-TOKENS COUNT OUTSTANDING FILE... (files are taken in turn). Out: one JSON line
 * with seconds from the first submission to the last result, and captions a second. A client like any other: raw XADD
 * and a reply stream, docs/REDIS.md; OUTSTANDING jobs are under way at once. */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "common/clock.h"
#include "common/redis.h"

enum { CONNECT_MS = 5000, BLOCK_MS = 1000, SILENCE_MS_MAX = 120000, READ_MAX = 1000 };

typedef struct client {
  redisContext *redis;
  char jobs_key[160], reply_key[160], reply[64], last[64];
  const char *tokens, *new_tokens;
  char *const *files;
  int file_count, sent, done, failed;
} client;

/* Asked for and not yet read: the answer of an XADD comes with its batch. */
static void send_job(client *self) {
  char id[96], uri[4200];
  snprintf(id, sizeof id, "%s-%d", self->reply, self->sent);
  snprintf(uri, sizeof uri, "file://%s", self->files[self->sent % self->file_count]);
  redisAppendCommand(self->redis,
                     "XADD %s * id %s uri %s min_vision_tokens %s max_vision_tokens %s max_new_tokens %s ignore_end 1 "
                     "reply %s",
                     self->jobs_key, id, uri, self->tokens, self->tokens, self->new_tokens, self->reply);
  self->sent++;
}

static void send_jobs(client *self, int count) {
  for (int i = 0; i < count; i++) send_job(self);
  for (int i = 0; i < count; i++) {
    redisReply *answer = NULL;
    if (redisGetReply(self->redis, (void **)&answer) != REDIS_OK || answer->type == REDIS_REPLY_ERROR)
      bench_die("XADD", answer != NULL ? answer->str : self->redis->errstr);
    freeReplyObject(answer);
  }
}

/* Reads what has come; how many results. */
static int read_results(client *self) {
  redisReply *answer = redisCommand(self->redis, "XREAD COUNT %d BLOCK %d STREAMS %s %s", READ_MAX, BLOCK_MS,
                                    self->reply_key, self->last);
  if (answer == NULL || answer->type == REDIS_REPLY_ERROR) bench_die("XREAD", "no answer");
  int count = 0;
  if (answer->type == REDIS_REPLY_ARRAY) {
    const redisReply *entries = answer->element[0]->element[1];
    count = (int)entries->elements;
    for (size_t i = 0; i < entries->elements; i++) {
      const redisReply *entry = entries->element[i];
      snprintf(self->last, sizeof self->last, "%s", entry->element[0]->str);
      for (size_t f = 0; f + 1 < entry->element[1]->elements; f += 2)
        if (strcmp(entry->element[1]->element[f]->str, "error_code") == 0) {
          if (self->failed == 0) fprintf(stderr, "bench: a job failed: %s\n", entry->element[1]->element[f + 1]->str);
          self->failed++;
        }
    }
  }
  freeReplyObject(answer);
  return count;
}

static redisContext *connect_to(const char *text) {
  tf_redis_url url;
  tf_error error;
  redisContext *redis;
  if (tf_redis_url_parse(text, &url, &error) != TF_OK) bench_die(text, error.text);
  if (tf_redis_connect(&url, CONNECT_MS, &redis, &error) != TF_OK) bench_die(text, error.text);
  redisSetTimeout(redis, (struct timeval){.tv_sec = 10});
  return redis;
}

static void print_rate(int count, int64_t start_us) {
  double seconds = (double)(tf_now_us() - start_us) / 1e6;
  printf("{\"jobs\": %d, \"seconds\": %.4f, \"per_s\": %.4f}\n", count, seconds, count / seconds);
}

static int run_jobs(int argc, char **argv) {
  client self = {.tokens = argv[2], .new_tokens = argv[3], .files = argv + 6, .file_count = argc - 6, .last = "0"};
  int count = atoi(argv[4]), outstanding = atoi(argv[5]);
  char suffix[96];
  self.redis = connect_to(argv[0]);
  snprintf(self.reply, sizeof self.reply, "bench-%d-%lld", (int)getpid(), (long long)tf_unix_ms());
  snprintf(suffix, sizeof suffix, "reply:%s", self.reply);
  if (tf_redis_key(argv[1], "jobs:1", self.jobs_key, sizeof self.jobs_key) != TF_OK ||
      tf_redis_key(argv[1], suffix, self.reply_key, sizeof self.reply_key) != TF_OK)
    bench_die(argv[1], "no name for a queue");
  int64_t start_us = tf_now_us(), heard_ms = tf_now_ms();
  send_jobs(&self, count < outstanding ? count : outstanding);
  while (self.done < count) {
    int came = read_results(&self);
    if (came > 0) heard_ms = tf_now_ms();
    if (tf_now_ms() - heard_ms > SILENCE_MS_MAX) bench_die("jobs", "no result for two minutes");
    self.done += came;
    int room = outstanding - (self.sent - self.done), left = count - self.sent;
    send_jobs(&self, room < left ? room : left);
  }
  redisFree(self.redis);
  if (self.failed > 0) bench_die("jobs", "some failed");
  print_rate(count, start_us);
  return 0;
}

/* The least that any queue on streams does to an entry, a batch at a time: added, read by a group, its result added,
 * acknowledged, deleted. */
static void stream_batch(redisContext *redis, int first, int count) {
  redisReply *answer;
  for (int i = 0; i < count; i++)
    redisAppendCommand(redis, "XADD bench:jobs %d-1 id job-%d uri file:///nothing.jpg", first + i + 1, first + i);
  redisAppendCommand(redis, "XREADGROUP GROUP g c COUNT %d STREAMS bench:jobs >", count);
  for (int i = 0; i < count; i++) {
    redisAppendCommand(redis, "XADD bench:results * id job-%d caption a-caption-of-some-length-for-a-photo", first + i);
    redisAppendCommand(redis, "XACK bench:jobs g %d-1", first + i + 1);
    redisAppendCommand(redis, "XDEL bench:jobs %d-1", first + i + 1);
  }
  for (int i = 0; i < 4 * count + 1; i++) {
    if (redisGetReply(redis, (void **)&answer) != REDIS_OK || answer->type == REDIS_REPLY_ERROR)
      bench_die("streams", redis->errstr);
    freeReplyObject(answer);
  }
}

static int run_streams(char **argv) {
  enum { BATCH = 100 };
  redisContext *redis = connect_to(argv[0]);
  int count = atoi(argv[1]);
  freeReplyObject(redisCommand(redis, "DEL bench:jobs bench:results"));
  freeReplyObject(redisCommand(redis, "XGROUP CREATE bench:jobs g 0 MKSTREAM"));
  int64_t start_us = tf_now_us();
  for (int done = 0; done < count; done += BATCH)
    stream_batch(redis, done, count - done < BATCH ? count - done : BATCH);
  print_rate(count, start_us);
  redisFree(redis);
  return 0;
}

int main(int argc, char **argv) {
  if (argc >= 9 && strcmp(argv[1], "jobs") == 0) return run_jobs(argc - 2, argv + 2);
  if (argc == 4 && strcmp(argv[1], "streams") == 0) return run_streams(argv + 2);
  bench_die("usage",
            "jobs jobs REDIS-URL QUEUE TOKENS NEW-TOKENS COUNT OUTSTANDING FILE..., or: jobs streams REDIS-URL COUNT");
}

_Noreturn void bench_die(const char *what, const char *why) {
  fprintf(stderr, "bench: %s: %s\n", what, why);
  exit(1);
}

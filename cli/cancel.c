/* `tokenflex cancel`: asks the routers to stop jobs.
 * In: ids. Out: an entry on `tf:{Q}:cancel` for each; with --wait how each of them ended.
 * Streams can not be searched by id: where jobs are unfinished, one that has not ended may be any of them.
 * A job that waits ends when a router claims it, one that runs within a step of its worker. */
#include "cli/command.h"
#include "cli/deployment.h"
#include "common/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { POLL_US = 100000 };

typedef struct cancel_config {
  tf_deployment_options where;
  int64_t timeout_s;
  bool wait;
} cancel_config;

static const tf_option options[] = {
    TF_DEPLOYMENT_ROWS(cancel_config, where),
    {"wait", 'w', TF_OPTION_FLAG, offsetof(cancel_config, wait), 0, 0, NULL, NULL, "Until each of them has ended"},
    {"timeout-s", 0, TF_OPTION_INT, offsetof(cancel_config, timeout_s), 1, 86400, "60", "s", "Longest --wait"},
};
static const tf_program program = {
    .name = "tokenflex cancel",
    .synopsis = "[options] ID...",
    .summary = "Stops jobs that wait or run: they end as dead letters with the code `cancelled`. Status 3: some had "
               "ended before, are not known, or (--wait) have not ended in time.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

/* out: "r ...", "y ..." (it has a result), "d ..." (it is dead), "" (no end is known). */
static tf_code read_end(const tf_deployment *where, tf_link *link, const char *id, char *out, size_t out_bytes,
                        tf_error *error) {
  char prefix[TF_LINK_KEY_BYTES], key[2 * TF_LINK_KEY_BYTES];
  redisReply *reply;
  tf_deployment_key(where, "done:", prefix);
  snprintf(key, sizeof key, "%s%s", prefix, id);
  out[0] = '\0';
  tf_code code = tf_link_ask(link, &reply, error, "GET", key, NULL);
  if (code) return code;
  if (reply->type == REDIS_REPLY_STRING) snprintf(out, out_bytes, "%s", reply->str);
  freeReplyObject(reply);
  return TF_OK;
}

static tf_code ask(tf_link *link, const char *id, tf_error *error) {
  redisReply *reply;
  tf_code code = tf_link_ask(link, &reply, error, "XADD", link->cancel, "*", "id", id, NULL);
  if (!code) freeReplyObject(reply);
  return code;
}

static tf_code wait_end(const tf_deployment *where, tf_link *link, const char *id, int64_t until_ms, char *out,
                        size_t out_bytes, tf_error *error) {
  for (;;) {
    tf_code code = read_end(where, link, id, out, out_bytes, error);
    if (code || out[0] || tf_now_ms() >= until_ms) return code;
    if (tf_interrupt_count() > 0) return tf_fail(error, TF_ERR_CANCELLED, "interrupted");
    usleep(POLL_US);
  }
}

/* Asks for every id before the first is waited for. ended: which had ended before. */
static tf_code ask_all(const tf_deployment *where, const char **ids, size_t count, bool *ended, tf_error *error) {
  tf_code code = TF_OK;
  for (size_t i = 0; !code && i < count; i++) {
    char end[256];
    tf_link *link = tf_deployment_link(where, ids[i]);
    code = read_end(where, link, ids[i], end, sizeof end, error);
    ended[i] = end[0] != '\0';
    if (!code && !ended[i]) code = ask(link, ids[i], error);
  }
  return code;
}

/* Jobs of that server that have not ended: one that is not known to have ended is among them, or nowhere. */
static tf_code count_unfinished(tf_link *link, int64_t *out, tf_error *error) {
  *out = 0;
  for (size_t i = 0; i < 2; i++) {
    int64_t length;
    tf_code code = tf_link_ask_number(link, &length, error, "XLEN", link->jobs[i], NULL, NULL);
    if (code) return code;
    *out += length;
  }
  return TF_OK;
}

/* Prints what became of one id. *fine false: not what was asked for. */
static tf_code tell_one(const cancel_config *config, const tf_deployment *where, const char *id, bool before,
                        int64_t until_ms, bool *fine, tf_error *error) {
  char end[256];
  int64_t unfinished = 0;
  tf_link *link = tf_deployment_link(where, id);
  tf_code code = count_unfinished(link, &unfinished, error); /* first: a job that ends meanwhile has its end noted */
  if (!code) code = wait_end(where, link, id, config->wait && unfinished > 0 ? until_ms : 0, end, sizeof end, error);
  if (code) return code;
  bool nowhere = !end[0] && unfinished == 0;
  bool dead = end[0] == 'd';
  const char *what = before    ? (dead ? "is dead already" : "has its result already")
                     : dead    ? "cancelled"
                     : end[0]  ? "ended with a result first"
                     : nowhere ? "no job with that id is known; one that comes within the dedupe window is cancelled"
                     : config->wait ? "has not ended yet: it may wait for a worker, or not be on this queue"
                                    : "asked to stop, if it is among the unfinished jobs or comes later";
  *fine = !before && (dead || (!config->wait && !end[0] && !nowhere));
  printf("%s\t%s\n", id, what);
  return TF_OK;
}

static int cancel_all(const cancel_config *config, const char **ids, size_t count) {
  tf_deployment where;
  tf_error error;
  if (count == 0) {
    tf_say("an ID is expected: tokenflex cancel ID...");
    return TF_EXIT_USAGE;
  }
  for (size_t i = 0; i < count; i++) {
    if (ids[i][0]) continue;
    tf_say("an ID is empty");
    return TF_EXIT_USAGE;
  }
  bool *ended = calloc(count, sizeof *ended);
  if (!ended) {
    tf_say("out of memory");
    return TF_EXIT_FAILED;
  }
  tf_code code = tf_deployment_init(&where, &config->where, NULL, &error);
  int status = code ? TF_EXIT_USAGE : TF_EXIT_OK;
  if (!code) code = tf_deployment_connect(&where, &error);
  if (!code) code = ask_all(&where, ids, count, ended, &error);
  int64_t until_ms = tf_now_ms() + config->timeout_s * 1000;
  for (size_t i = 0; !code && i < count; i++) {
    bool fine = true;
    code = tell_one(config, &where, ids[i], ended[i], until_ms, &fine, &error);
    if (!fine) status = TF_EXIT_PARTIAL;
  }
  if (code) tf_say("%s", error.text);
  if (code && status != TF_EXIT_USAGE) status = TF_EXIT_FAILED;
  tf_deployment_free(&where);
  free(ended);
  return status;
}

int tf_cancel_main(int argc, char **argv) {
  static cancel_config config;
  const char **ids;
  size_t count;
  int status;
  if (!tf_command_parse(&program, argc, argv, &config, &ids, &count, &status)) return status;
  tf_interrupt_setup();
  status = cancel_all(&config, ids, count);
  free(ids);
  return status;
}

/* `tokenflex drain`: a worker finishes what it has, takes nothing more, and ends.
 * In: a worker's instance, or enough of it. Out: an entry on `tf:{Q}:control` of every server that knows the worker.
 * Waits until no router knows it any more. */
#include "cli/command.h"
#include "cli/status_read.h"
#include "cli/text.h"
#include "common/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A worker is written anew each second by every router that has it: only one that stays away longer has gone. */
enum { POLL_US = 200000, TOLD_EVERY_MS = 5000, AWAY_MS = 1500 };

typedef struct drain_config {
  tf_deployment_options where;
  int64_t timeout_s;
  bool no_wait;
} drain_config;

static const tf_option options[] = {
    TF_DEPLOYMENT_ROWS(drain_config, where),
    {"timeout-s", 0, TF_OPTION_INT, offsetof(drain_config, timeout_s), 1, 86400, "120", "s",
     "Longest wait until the worker has gone"},
    {"no-wait", 0, TF_OPTION_FLAG, offsetof(drain_config, no_wait), 0, 0, NULL, NULL, "Ask, and wait for nothing"},
};
static const tf_program program = {
    .name = "tokenflex drain",
    .synopsis = "[options] WORKER",
    .summary =
        "Lets a worker (`tokenflex status` shows them; a unique part of the name will do) finish its jobs and end.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

/* The workers of all servers, each server's in its own status. */
static tf_code look(tf_deployment *where, tf_status *statuses, tf_error *error) {
  tf_code code = TF_OK;
  for (size_t i = 0; !code && i < where->count; i++) {
    tf_status_free(&statuses[i]);
    code = tf_status_read(where, &where->links[i], &statuses[i], error);
  }
  return code;
}

static const tf_status_worker *find(const tf_status *status, const char *instance) {
  for (size_t i = 0; i < status->worker_count; i++)
    if (strcmp(status->workers[i].instance, instance) == 0) return &status->workers[i];
  return NULL;
}

typedef char worker_name[sizeof((tf_status_worker *)0)->instance];

/* The one worker whose name has this part, or is this; instance "": none. gone: only those that nobody hears, else only
 * the others. */
static tf_code choose_of(const tf_deployment *where, const tf_status *statuses, const char *part, bool gone,
                         worker_name instance, tf_error *error) {
  instance[0] = '\0';
  for (size_t s = 0; s < where->count; s++) {
    for (size_t i = 0; i < statuses[s].worker_count; i++) {
      const char *name = statuses[s].workers[i].instance;
      if (tf_status_worker_is_gone(&statuses[s].workers[i]) != gone) continue;
      if (!strstr(name, part) || strcmp(instance, part) == 0 || strcmp(instance, name) == 0) continue;
      if (instance[0] && strcmp(name, part) != 0)
        return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%.100s is part of several names: %.120s, %.120s", part,
                       instance, name);
      snprintf(instance, sizeof(worker_name), "%s", name);
    }
  }
  return TF_OK;
}

static tf_code choose(const tf_deployment *where, const tf_status *statuses, const char *part, worker_name instance,
                      tf_error *error) {
  size_t all = 0;
  tf_code code = choose_of(where, statuses, part, false, instance, error);
  if (!code && !instance[0]) code = choose_of(where, statuses, part, true, instance, error);
  if (code || instance[0]) return code;
  for (size_t s = 0; s < where->count; s++) all += statuses[s].worker_count;
  return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                 "no worker is called %.100s; `tokenflex status` shows the %zu there are", part, all);
}

static tf_code ask(const tf_deployment *where, tf_link *link, const char *instance, tf_error *error) {
  char key[TF_LINK_KEY_BYTES];
  redisReply *reply;
  tf_deployment_key(where, "control", key);
  tf_code code = tf_link_ask(link, &reply, error, "XADD", key, "*", "drain", instance, NULL);
  if (!code) freeReplyObject(reply);
  return code;
}

/* What is known of the worker is old, and nothing newer will come. */
static tf_code fail_unseen(const tf_status_worker *worker, int64_t routers, tf_error *error) {
  return tf_fail(error, TF_ERR_WORKER_LOST, "%s was last heard of %.0f s ago, with %lld jobs: %s", worker->instance,
                 (double)worker->silent_ms / 1000, (long long)worker->jobs_out,
                 routers == 0 ? "no router is alive that could tell it to drain, or what became of it"
                              : "it seems to be gone already");
}

static tf_code wait_gone(const drain_config *config, tf_deployment *where, tf_status *statuses, const char *instance,
                         tf_error *error) {
  int64_t until_ms = tf_now_ms() + config->timeout_s * 1000, told_ms = tf_now_ms(), away_ms = 0;
  for (;;) {
    usleep(POLL_US);
    tf_code code = look(where, statuses, error);
    if (code) return code;
    const tf_status_worker *worker = NULL;
    int64_t routers = 0;
    for (size_t i = 0; i < where->count; i++) {
      const tf_status_worker *seen = find(&statuses[i], instance);
      if (seen) routers += statuses[i].routers;
      if (!worker || (seen && seen->silent_ms < worker->silent_ms)) worker = seen ? seen : worker;
    }
    if (!worker && away_ms == 0) away_ms = tf_now_ms();
    if (!worker && tf_now_ms() - away_ms >= AWAY_MS) return TF_OK;
    if (!worker) continue;
    away_ms = 0;
    if (routers == 0 || tf_status_worker_is_gone(worker)) return fail_unseen(worker, routers, error);
    if (tf_interrupt_count() > 0)
      return tf_fail(error, TF_ERR_CANCELLED, "interrupted; the worker drains all the same");
    int64_t now_ms = tf_now_ms();
    if (now_ms >= until_ms)
      return tf_fail(error, TF_ERR_TIMEOUT, "%s is still there after %lld s, %s, with %lld jobs", instance,
                     (long long)config->timeout_s, worker->draining ? "draining" : "and does not drain",
                     (long long)worker->jobs_out);
    if (now_ms - told_ms < TOLD_EVERY_MS) continue;
    told_ms = now_ms;
    tf_say("%s: %s, %lld jobs left", instance, worker->draining ? "drains" : "has not answered yet",
           (long long)worker->jobs_out);
  }
}

static tf_code drain(const drain_config *config, tf_deployment *where, tf_status *statuses, const char *part,
                     tf_error *error) {
  worker_name instance;
  tf_code code = look(where, statuses, error);
  if (!code) code = choose(where, statuses, part, instance, error);
  size_t told = 0;
  for (size_t i = 0; !code && i < where->count; i++) {
    if (!find(&statuses[i], instance)) continue;
    code = ask(where, &where->links[i], instance, error);
    if (!code && statuses[i].routers == 0 && where->count > 1)
      tf_say("no router of %s is alive to tell the worker", where->places[i]);
    told += !code && statuses[i].routers > 0;
  }
  if (!code && told == 0)
    code = tf_fail(error, TF_ERR_WORKER_LOST,
                   "%s was not told: nobody serves this queue (a router that comes within 10 minutes will tell it)",
                   instance);
  if (!code && !config->no_wait) code = wait_gone(config, where, statuses, instance, error);
  if (!code) printf("%s\t%s\n", instance, config->no_wait ? "asked to drain" : "has gone");
  return code;
}

static int drain_main(const drain_config *config, const char *part) {
  tf_deployment where;
  tf_error error;
  tf_code code = tf_deployment_init(&where, &config->where, NULL, &error);
  tf_status *statuses = calloc(where.count > 0 ? where.count : 1, sizeof *statuses);
  int status = TF_EXIT_FAILED;
  if (!statuses) {
    tf_say("out of memory");
  } else {
    if (!code) code = drain(config, &where, statuses, part, &error);
    if (code) tf_say("%s", error.text);
    for (size_t i = 0; i < where.count; i++) tf_status_free(&statuses[i]);
    status = code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : code ? TF_EXIT_FAILED : TF_EXIT_OK;
  }
  free(statuses);
  tf_deployment_free(&where);
  return status;
}

int tf_drain_main(int argc, char **argv) {
  static drain_config config;
  const char **words;
  size_t count;
  int status;
  if (!tf_command_parse(&program, argc, argv, &config, &words, &count, &status)) return status;
  tf_interrupt_setup();
  if (count == 1 && words[0][0]) {
    status = drain_main(&config, words[0]);
  } else {
    tf_say("one worker is expected: tokenflex drain WORKER");
    status = TF_EXIT_USAGE;
  }
  free(words);
  return status;
}

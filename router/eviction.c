/* Reads maxmemory-policy. In: INFO memory, else CONFIG GET. Out: log lines.
 * Either may be forbidden by an ACL or have another name: a refusal is an answer here, not an error. */
#include "router/eviction.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

struct tf_eviction {
  tf_reactor *reactor;
  tf_scripts *scripts;
  int timer;
  char policy[TF_EVICTION_POLICY_BYTES], told[TF_EVICTION_POLICY_BYTES];
};

/* What a policy may take away (docs/REDIS.md): keys with a lifetime are ids that have ended, replies and paces. */
static const char *losses(const char *policy) {
  return strncmp(policy, "volatile-", 9) == 0
             ? "a full Redis drops answers that wait for their client, and forgets which ids have ended: those are "
               "captioned twice"
             : "a full Redis drops waiting jobs, results and dead letters without a word";
}

/* policy "": not known. */
static void note(tf_eviction *self, const char *policy, size_t size) {
  snprintf(self->policy, sizeof self->policy, "%.*s",
           (int)(size < sizeof self->policy ? size : sizeof self->policy - 1), policy);
  if (!self->policy[0] || strcmp(self->policy, self->told) == 0) return;
  if (strcmp(self->policy, "noeviction") != 0)
    tf_log_warn("redis_evicts", TF_STR("maxmemory_policy", self->policy), TF_STR("danger", losses(self->policy)),
                TF_STR("remedy", "set maxmemory-policy noeviction: CONFIG SET, and in redis.conf"));
  else if (self->told[0])
    tf_log_info("redis_evicts_no_more", TF_STR("maxmemory_policy", self->policy));
  snprintf(self->told, sizeof self->told, "%s", self->policy);
}

static void on_config(void *context, const redisReply *reply) {
  tf_eviction *self = context;
  bool told = reply && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
              reply->element[1]->type == REDIS_REPLY_STRING;
  note(self, told ? reply->element[1]->str : "", told ? reply->element[1]->len : 0);
}

static void on_info(void *context, const redisReply *reply) {
  static const char field[] = "\nmaxmemory_policy:";
  tf_eviction *self = context;
  if (!reply) return; /* the connection went */
  const char *at = reply->type == REDIS_REPLY_STRING ? strstr(reply->str, field) : NULL;
  if (at) {
    at += sizeof field - 1;
    note(self, at, strcspn(at, "\r\n"));
    return;
  }
  const char *words[] = {"CONFIG", "GET", "maxmemory-policy"};
  tf_scripts_try(self->scripts, sizeof words / sizeof *words, words, on_config, self);
}

void tf_eviction_ask(tf_eviction *self) {
  const char *words[] = {"INFO", "memory"};
  tf_scripts_try(self->scripts, sizeof words / sizeof *words, words, on_info, self);
}

/* Only where it was answered: an ACL would note every refusal. */
static void on_timer(void *context) {
  tf_eviction *self = context;
  if (self->policy[0]) tf_eviction_ask(self);
}

const char *tf_eviction_policy(const tf_eviction *self) {
  return self->policy;
}

tf_code tf_eviction_new(tf_reactor *reactor, tf_scripts *scripts, tf_eviction **out) {
  tf_eviction *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->reactor = reactor;
  self->scripts = scripts;
  self->timer = tf_reactor_add_timer(reactor, TF_EVICTION_ASK_MS, true, on_timer, self);
  if (self->timer < 0) {
    free(self);
    return TF_ERR_OUT_OF_MEMORY;
  }
  *out = self;
  return TF_OK;
}

void tf_eviction_free(tf_eviction **self) {
  if (!self || !*self) return;
  tf_reactor_remove_timer((*self)->reactor, (*self)->timer);
  free(*self);
  *self = NULL;
}

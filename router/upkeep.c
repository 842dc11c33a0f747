/* A router's place on the queue. In: held jobs, timers. Out: renew, beat, cancel, sweep and release scripts.
 * Leases are renewed at a third of their length. What Redis says is no longer ours is forgotten: another router has it.
 * None of these calls is owed an answer: each is made again at the next turn. */
#include "router/upkeep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

enum {
  RENEW_BATCH = 500,
  SWEEP_COUNT = 200,
  CANCELS_PER_READ = 100,
  SWEEP_MS_MIN = 1000,
  TIMERS = 4,
  CURSOR_BYTES = 48,
  CANCEL_OUTDATED = 2 /* cancel.lua: the job was put back on the queue after the request */
};

struct tf_upkeep {
  tf_upkeep_parts parts;
  int timers[TIMERS];
  bool reading_cancels;
  bool nobody_has_a_pair; /* by the last beat's answer; false before the first */
  char cancel_cursor[CURSOR_BYTES], sweep_cursors[2][CURSOR_BYTES];
  void (*left)(void *context);
  void *left_context;
  tf_arguments arguments;
};

static void begin(tf_upkeep *self) {
  tf_arguments_clear(&self->arguments);
  tf_arguments_add(&self->arguments, self->parts.instance);
}

/* --- Leases --- */

static void on_renewed(void *context, const redisReply *reply) {
  tf_upkeep *self = context;
  if (!reply || reply->type != REDIS_REPLY_ARRAY || reply->elements < 1) return;
  tf_redis_clock_set(self->parts.clock, reply->element[0]->integer);
  for (size_t i = 1; i < reply->elements; i++) {
    tf_router_job *job =
        reply->element[i]->type == REDIS_REPLY_STRING ? tf_jobs_find(self->parts.jobs, reply->element[i]->str) : NULL;
    if (!job || job->state == TF_JOB_SETTLING) continue; /* an ending may still be the first */
    tf_metric_add(self->parts.stats->leases_lost, 1);
    tf_log_info("lease_lost", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace));
    tf_dispatch_forget(self->parts.dispatch, job);
  }
}

static void renew(void *context) {
  tf_upkeep *self = context;
  if (!tf_scripts_is_ready(self->parts.scripts)) return;
  tf_router_job *job = tf_jobs_first(self->parts.jobs);
  while (job) {
    size_t count = 0;
    begin(self);
    tf_arguments_add_int(&self->arguments, self->parts.config->lease_ms);
    for (; job && count < RENEW_BATCH; job = job->next) {
      bool foreign = job->state == TF_JOB_SETTLING && job->settlement->needs_hash;
      if (foreign) continue;
      tf_arguments_add(&self->arguments, job->entry);
      count++;
    }
    if (count == 0) return;
    if (!tf_scripts_call(self->parts.scripts, TF_SCRIPT_RENEW, &self->arguments, on_renewed, self)) return;
  }
}

/* --- Being there --- */

static void on_beaten(void *context, const redisReply *reply) {
  tf_upkeep *self = context;
  bool understood = reply && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
                    reply->element[0]->type == REDIS_REPLY_INTEGER && reply->element[1]->type == REDIS_REPLY_INTEGER;
  if (!understood) return;
  tf_redis_clock_set(self->parts.clock, reply->element[0]->integer);
  self->nobody_has_a_pair = reply->element[1]->integer < 0 || reply->element[1]->integer > TF_PAIR_FRESH_MS;
}

bool tf_upkeep_nobody_has_a_pair(const tf_upkeep *self) {
  return self->nobody_has_a_pair;
}

void tf_upkeep_beat(tf_upkeep *self) {
  const tf_worker *pair = tf_workers_main_pair(self->parts.workers);
  char counts[TF_HELLO_COUNTS_MAX * 12] = "";
  size_t used = 0;
  for (uint32_t i = 0; pair && i < pair->token_count_count; i++)
    used += (size_t)snprintf(counts + used, sizeof counts - used, "%s%u", i ? "," : "", pair->token_counts[i]);
  begin(self);
  tf_arguments_add_int(&self->arguments, TF_ALIVE_MS);
  tf_arguments_add_int(&self->arguments, TF_CANCEL_KEPT_MS);
  tf_arguments_add(&self->arguments, pair ? pair->pair_hash : "");
  tf_arguments_add(&self->arguments, pair ? pair->model : "");
  tf_arguments_add(&self->arguments, counts);
  tf_arguments_add_int(&self->arguments, self->parts.config->max_waiting);
  tf_arguments_add_int(&self->arguments, self->parts.config->max_waiting_bytes);
  tf_scripts_call(self->parts.scripts, TF_SCRIPT_BEAT, &self->arguments, on_beaten, self);
}

static void ignore_reply(void *context, const redisReply *reply) {
  (void)context;
  (void)reply;
}

/* Jobs to hand back: all that are pending and were claimed before `claimed_before_ms` (those that keep workers from
 * taking others: earlier still). */
static void release(tf_upkeep *self, int64_t claimed_before_ms, int64_t keeping_before_ms, int64_t delay_ms) {
  if (!tf_scripts_is_ready(self->parts.scripts)) return;
  tf_router_job *job = tf_jobs_first(self->parts.jobs), *next;
  while (job) {
    tf_router_job *batch[RENEW_BATCH];
    size_t count = 0;
    begin(self);
    tf_arguments_add_int(&self->arguments, delay_ms);
    tf_arguments_add(&self->arguments, "stay");
    for (; job && count < RENEW_BATCH; job = next) {
      next = job->next;
      int64_t limit = job->suspect || job->kept_llm ? keeping_before_ms : claimed_before_ms;
      if (job->state != TF_JOB_PENDING || job->claimed_ms > limit) continue;
      tf_arguments_add(&self->arguments, job->entry);
      batch[count++] = job;
    }
    if (count == 0 || !tf_scripts_call(self->parts.scripts, TF_SCRIPT_RELEASE, &self->arguments, ignore_reply, self))
      return;
    for (size_t i = 0; i < count; i++) tf_dispatch_forget(self->parts.dispatch, batch[i]);
  }
}

void tf_upkeep_release_pending(tf_upkeep *self) {
  release(self, INT64_MAX, INT64_MAX, 0);
}

static void on_beat_timer(void *context) {
  tf_upkeep *self = context;
  if (!tf_scripts_is_ready(self->parts.scripts)) return;
  tf_upkeep_beat(self);
  /* A job that found no workers for a whole lease is better off with any router that has some. */
  int64_t now_ms = tf_now_ms(), lease_ms = self->parts.config->lease_ms;
  release(self, now_ms - lease_ms, now_ms - TF_SUSPECT_PATIENCE * lease_ms, 500);
}

/* --- Cancellations --- */

/* After cancel.lua ran: what was claimed before it is in our table by now, what comes after is ended by the claim. */
typedef struct cancellation {
  tf_upkeep *owner;
  char cursor[CURSOR_BYTES]; /* where to read on, once these are marked */
  size_t count;
  struct {
    char id[TF_ID_BYTES_MAX];
    size_t size;
    char asked[CURSOR_BYTES]; /* stream id of the request */
  } ids[CANCELS_PER_READ];
} cancellation;

static void on_marked(void *context, const redisReply *reply) {
  cancellation *done = context;
  tf_upkeep *self = done->owner;
  self->reading_cancels = false;
  if (reply) memcpy(self->cancel_cursor, done->cursor, sizeof self->cancel_cursor); /* else: read again */
  for (size_t i = 0; reply && i < done->count; i++) {
    const redisReply *mark = reply->type == REDIS_REPLY_ARRAY && i < reply->elements ? reply->element[i] : NULL;
    if (mark && mark->type == REDIS_REPLY_INTEGER && mark->integer == CANCEL_OUTDATED) continue;
    tf_dispatch_cancel(self->parts.dispatch, done->ids[i].id, done->ids[i].size);
  }
  free(done);
}

static void add_cancel(cancellation *made, const char *asked, const redisReply *fields) {
  for (size_t i = 0; fields->type == REDIS_REPLY_ARRAY && i + 1 < fields->elements; i += 2) {
    const redisReply *name = fields->element[i], *id = fields->element[i + 1];
    if (name->len != 2 || memcmp(name->str, "id", 2) != 0 || id->len == 0 || id->len > TF_ID_BYTES_MAX) continue;
    memcpy(made->ids[made->count].id, id->str, id->len);
    snprintf(made->ids[made->count].asked, sizeof made->ids[made->count].asked, "%s", asked);
    made->ids[made->count++].size = id->len;
    return;
  }
}

static void on_cancels_read(void *context, const redisReply *reply) {
  tf_upkeep *self = context;
  self->reading_cancels = false;
  const redisReply *entries = tf_scripts_entries(reply);
  cancellation *made = entries ? calloc(1, sizeof *made) : NULL;
  if (!made) return; /* nothing, or no memory: read again */
  made->owner = self;
  begin(self);
  self->arguments.count = 0; /* cancel.lua takes no instance */
  tf_arguments_add_int(&self->arguments, self->parts.config->dedupe_window_s * 1000);
  memcpy(made->cursor, self->cancel_cursor, sizeof made->cursor);
  for (size_t i = 0; i < entries->elements && made->count < CANCELS_PER_READ; i++) {
    const redisReply *entry = entries->element[i];
    if (entry->elements != 2 || entry->element[0]->len >= sizeof made->cursor) continue;
    add_cancel(made, entry->element[0]->str, entry->element[1]);
    snprintf(made->cursor, sizeof made->cursor, "%s", entry->element[0]->str);
  }
  for (size_t i = 0; i < made->count; i++) {
    tf_arguments_add_bytes(&self->arguments, made->ids[i].id, made->ids[i].size);
    tf_arguments_add(&self->arguments, made->ids[i].asked);
  }
  if (made->count > 0) {
    self->reading_cancels = tf_scripts_call(self->parts.scripts, TF_SCRIPT_CANCEL, &self->arguments, on_marked, made);
    if (!self->reading_cancels) free(made); /* the cursor stays: read again */
    return;
  }
  memcpy(self->cancel_cursor, made->cursor, sizeof self->cancel_cursor); /* entries without an id are skipped */
  free(made);
}

static void read_cancels(void *context) {
  tf_upkeep *self = context;
  if (self->reading_cancels) return;
  self->reading_cancels =
      tf_scripts_read(self->parts.scripts, "cancel", CANCELS_PER_READ, self->cancel_cursor, on_cancels_read, self);
}

/* --- Sweeping --- */

static void on_swept(void *context, const redisReply *reply) {
  tf_upkeep *self = context;
  if (!reply || reply->type != REDIS_REPLY_ARRAY || reply->elements != 4) return;
  if (reply->element[0]->integer > 0) {
    tf_metric_add(self->parts.stats->sweeps_recovered, (double)reply->element[0]->integer);
    tf_log_warn("sweep_recovered", TF_INT("jobs", reply->element[0]->integer));
  }
  for (int lane = 0; lane < 2; lane++) {
    const redisReply *cursor = reply->element[1 + lane];
    if (cursor->type == REDIS_REPLY_STRING && cursor->len < sizeof self->sweep_cursors[lane])
      snprintf(self->sweep_cursors[lane], sizeof self->sweep_cursors[lane], "%s", cursor->str);
  }
  int64_t dropped = reply->element[3]->integer;
  if (dropped <= 0) return;
  tf_metric_add(self->parts.stats->dead_dropped, (double)dropped);
  tf_log_warn("dead_letters_dropped", TF_INT("letters", dropped), TF_INT("dead_max", self->parts.config->dead_max));
}

static void sweep(void *context) {
  tf_upkeep *self = context;
  begin(self);
  tf_arguments_add_int(&self->arguments, self->parts.config->lease_ms);
  tf_arguments_add_int(&self->arguments, SWEEP_COUNT);
  tf_arguments_add(&self->arguments, self->sweep_cursors[0]);
  tf_arguments_add(&self->arguments, self->sweep_cursors[1]);
  tf_arguments_add_int(&self->arguments, self->parts.config->results_keep_s * 1000);
  tf_arguments_add_int(&self->arguments, self->parts.config->results_max);
  tf_arguments_add_int(&self->arguments, self->parts.config->dead_max);
  tf_scripts_call(self->parts.scripts, TF_SCRIPT_SWEEP, &self->arguments, on_swept, self);
}

/* --- Coming and going --- */

tf_code tf_upkeep_new(const tf_upkeep_parts *parts, tf_upkeep **out) {
  tf_upkeep *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->parts = *parts;
  snprintf(self->cancel_cursor, sizeof self->cancel_cursor, "0-0");
  for (int lane = 0; lane < 2; lane++) snprintf(self->sweep_cursors[lane], sizeof self->sweep_cursors[lane], "-");
  int64_t lease_ms = parts->config->lease_ms;
  const struct {
    int64_t interval_ms;
    tf_reactor_timer_fn fn;
  } wanted[TIMERS] = {{lease_ms / 3, renew},
                      {TF_BEAT_MS, on_beat_timer},
                      {TF_CANCEL_POLL_MS, read_cancels},
                      {lease_ms > SWEEP_MS_MIN ? lease_ms : SWEEP_MS_MIN, sweep}};
  bool complete = true;
  for (int i = 0; i < TIMERS; i++) {
    self->timers[i] = tf_reactor_add_timer(parts->reactor, wanted[i].interval_ms, true, wanted[i].fn, self);
    complete = complete && self->timers[i] >= 0;
  }
  if (!complete) {
    tf_upkeep_free(&self);
    return TF_ERR_OUT_OF_MEMORY;
  }
  *out = self;
  return TF_OK;
}

void tf_upkeep_free(tf_upkeep **self) {
  if (!self || !*self) return;
  for (int i = 0; i < TIMERS; i++)
    if ((*self)->timers[i] >= 0) tf_reactor_remove_timer((*self)->parts.reactor, (*self)->timers[i]);
  free(*self);
  *self = NULL;
}

void tf_upkeep_kick(tf_upkeep *self) {
  renew(self);
  tf_upkeep_beat(self);
}

static void on_left(void *context, const redisReply *reply) {
  tf_upkeep *self = context;
  (void)reply; /* without an answer the leases run out */
  self->left(self->left_context);
}

void tf_upkeep_leave(tf_upkeep *self, void (*left)(void *context), void *context) {
  self->left = left;
  self->left_context = context;
  tf_router_job *job = tf_jobs_first(self->parts.jobs);
  bool sent;
  do {
    size_t count = 0;
    begin(self);
    tf_arguments_add_int(&self->arguments, 0);
    size_t mode_at = (size_t)self->arguments.count;
    tf_arguments_add(&self->arguments, "leave");
    for (; job && count < RENEW_BATCH; job = job->next, count++) tf_arguments_add(&self->arguments, job->entry);
    if (job) {
      self->arguments.items[mode_at] = "stay";
      self->arguments.sizes[mode_at] = 4;
    }
    sent =
        tf_scripts_call(self->parts.scripts, TF_SCRIPT_RELEASE, &self->arguments, job ? ignore_reply : on_left, self);
  } while (sent && job);
  if (!sent) left(context);
}

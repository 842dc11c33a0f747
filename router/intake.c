/* Claims jobs from Redis. In: room at the workers, answers of claim.lua. Out: pending records, refusals, the load.
 * One claim is in flight at a time; a full answer is followed by the next claim at once.
 * Without room the script still runs now and then, for the load alone. */
#include "router/intake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/fail_point.h"
#include "common/log.h"

enum { POLL_MS_MIN = 5, POLL_MS_MAX = 20, LOAD_ONLY_MS = 100, NUMBERS = 11, ANSWER_ELEMENTS = 5, CLAIMED_ELEMENTS = 7 };

struct tf_intake {
  tf_intake_parts parts;
  int timer; /* -1: a claim is in flight or the intake has stopped */
  int64_t poll_ms;
  long long turn; /* whose turn it is between the lanes */
  bool in_flight, stopped, results_full;
  bool asked_state; /* the claim in flight brings the shared policy state */
  uint32_t asked;
  int64_t asked_ms; /* when the last claim was made */
  int64_t waiting;
  tf_arguments arguments;
};

static void on_timer(void *context);

static void schedule(tf_intake *self, int64_t wait_ms) {
  if (self->timer >= 0) tf_reactor_remove_timer(self->parts.reactor, self->timer);
  self->timer = tf_reactor_add_timer(self->parts.reactor, wait_ms, false, on_timer, self);
  if (self->timer < 0) tf_log_error("reactor_full", TF_STR("source", "intake"));
}

tf_code tf_intake_new(const tf_intake_parts *parts, tf_intake **out) {
  tf_intake *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->parts = *parts;
  self->timer = -1;
  self->poll_ms = POLL_MS_MIN;
  schedule(self, POLL_MS_MIN);
  *out = self;
  return TF_OK;
}

void tf_intake_free(tf_intake **self) {
  if (!self || !*self) return;
  if ((*self)->timer >= 0) tf_reactor_remove_timer((*self)->parts.reactor, (*self)->timer);
  free(*self);
  *self = NULL;
}

void tf_intake_stop(tf_intake *self) {
  self->stopped = true;
}
bool tf_intake_results_full(const tf_intake *self) {
  return self->results_full;
}
int64_t tf_intake_waiting(const tf_intake *self) {
  return self->waiting;
}

/* --- One claimed entry --- */

static tf_bytes bytes_of(const redisReply *reply) {
  return reply->type == REDIS_REPLY_STRING ? (tf_bytes){reply->str, reply->len} : (tf_bytes){"", 0};
}

/* The pairs of a reply; returns how many there are, of which at most TF_JOB_FIELDS_MAX are read. */
static size_t read_pairs(const redisReply *reply, tf_job_field out[TF_JOB_FIELDS_MAX]) {
  size_t count = reply->elements / 2;
  for (size_t i = 0; i < count && i < TF_JOB_FIELDS_MAX; i++)
    out[i] = (tf_job_field){bytes_of(reply->element[2 * i]), bytes_of(reply->element[2 * i + 1])};
  return count;
}

/* The record for a claimed entry: a new one. What we had of it under an older lease is over (another router may have
 * tried it since), but for an ending on its way. NULL: not to be taken. */
static tf_router_job *record_for(tf_intake *self, const char *entry) {
  tf_router_job *held = tf_jobs_find(self->parts.jobs, entry);
  if (held && held->state == TF_JOB_SETTLING) return NULL;
  if (held) {
    tf_metric_add(self->parts.stats->leases_lost, 1);
    tf_dispatch_forget(self->parts.dispatch, held);
  }
  tf_router_job *job = tf_jobs_add(self->parts.jobs, entry);
  if (!job) tf_log_error("claim_dropped", TF_STR("entry", entry)); /* its lease runs out */
  return job;
}

static void set_id(tf_router_job *job, const tf_job_fields *fields) {
  if (fields->id.size > 0)
    snprintf(job->id, sizeof job->id, "%.*s", (int)fields->id.size, fields->id.data);
  else
    snprintf(job->id, sizeof job->id, "%s", job->entry + 2);
}

/* claimed: {entry, attempt, failures, n, reason, suspect, {field, value...}}. */
static void take(tf_intake *self, const redisReply *claimed) {
  if (claimed->type != REDIS_REPLY_ARRAY || claimed->elements != CLAIMED_ELEMENTS) return;
  const redisReply *const *element = (const redisReply *const *)claimed->element;
  if (element[0]->type != REDIS_REPLY_STRING || element[6]->type != REDIS_REPLY_ARRAY) return;
  tf_router_job *job = record_for(self, element[0]->str);
  if (!job) return;
  job->claimed_ms = tf_now_ms();
  job->attempt = (uint32_t)element[1]->integer;
  job->failures = (uint32_t)element[2]->integer;
  job->vision_tokens = (uint32_t)element[3]->integer;
  tf_bytes reason = bytes_of(element[4]);
  job->reason = tf_reason_from_name(reason.data, reason.size);
  job->suspect = element[5]->integer != 0;
  TF_FAIL_POINT("router-claimed", element[0]->str);
  tf_job_field pairs[TF_JOB_FIELDS_MAX];
  size_t count = read_pairs(element[6], pairs);
  tf_job_fields fields;
  tf_error error;
  tf_code code = tf_job_fields_parse(pairs, count, &fields, &error);
  set_id(job, &fields);
  if (code != TF_OK && fields.trace.size > 0) job->trace = strndup(fields.trace.data, fields.trace.size);
  if (code == TF_OK && tf_jobs_fill(self->parts.jobs, job, &fields) != TF_OK) {
    tf_log_error("out_of_memory", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace));
    tf_jobs_remove(self->parts.jobs, job); /* its lease runs out */
  } else if (code != TF_OK) {
    tf_results_fail(self->parts.results, job, TF_FAIL_REFUSE, code, error.text);
  } else {
    tf_log_debug("job_claimed", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace),
                 TF_INT("attempts_before", job->attempt));
  }
}

/* --- Claims --- */

/* One paced run among the claimed jobs: {name, remaining, finish_ms}. */
static void take_pace(tf_intake *self, const redisReply *pace) {
  if (pace->type != REDIS_REPLY_ARRAY || pace->elements != 3) return;
  int64_t numbers[2];
  bool known = true;
  for (int i = 0; i < 2; i++) {
    const redisReply *text = pace->element[1 + i];
    char *end = NULL;
    numbers[i] = text->type == REDIS_REPLY_STRING ? strtoll(text->str, &end, 10) : 0;
    known = known && end && end != text->str && *end == 0 && numbers[i] >= 0;
  }
  tf_bytes name = bytes_of(pace->element[0]);
  tf_load_pace(self->parts.load, name.data, name.size, known, numbers[0], numbers[1]);
}

/* numbers: XLEN 0, XLEN 1, live leases encode, decode, XLEN results, retries, ended as duplicates, as dead letters,
 * turn, arrived, whether a client waits for workers. state: the shared policy state. */
static void take_load(tf_intake *self, int64_t now_us, const redisReply *numbers, const redisReply *state) {
  long long n[NUMBERS];
  for (size_t i = 0; i < NUMBERS; i++) n[i] = numbers->element[i]->integer;
  bool has_state = self->asked_state && state->type == REDIS_REPLY_STRING;
  tf_load_reading reading = {.now_ms = now_us / 1000,
                             .unfinished = n[0] + n[1],
                             .in_encode = n[2],
                             .in_decode = n[3],
                             .arrived = n[9],
                             .called = n[10] > 0,
                             .state = has_state ? state->str : NULL,
                             .state_size = has_state ? state->len : 0};
  tf_load_take(self->parts.load, &reading);
  const tf_policy_load *load = tf_load_now(self->parts.load);
  self->waiting = load->waiting;
  self->turn = n[8];
  tf_router_stats *stats = self->parts.stats;
  tf_metric_add(stats->outcomes[TF_OUTCOME_DUPLICATE], (double)n[6]);
  tf_metric_add(stats->outcomes[TF_OUTCOME_DEAD], (double)n[7]);
  tf_metric_set(stats->unfinished, (double)load->unfinished);
  tf_metric_set(stats->waiting, (double)load->waiting);
  tf_metric_set(stats->in_encode, (double)load->in_encode);
  tf_metric_set(stats->in_decode, (double)load->in_decode);
  tf_metric_set(stats->results_length, (double)n[4]);
  bool full = n[4] >= self->parts.config->results_max;
  if (full && !self->results_full)
    tf_log_warn("intake_stopped", TF_STR("reason", "results are full"), TF_INT("results", n[4]),
                TF_INT("results_max", self->parts.config->results_max));
  if (!full && self->results_full) tf_log_info("intake_resumed", TF_INT("results", n[4]));
  self->results_full = full;
}

static void on_claimed(void *context, const redisReply *reply) {
  tf_intake *self = context;
  self->in_flight = false;
  size_t taken = 0;
  bool understood = reply && reply->type == REDIS_REPLY_ARRAY && reply->elements == ANSWER_ELEMENTS &&
                    reply->element[1]->type == REDIS_REPLY_ARRAY && reply->element[1]->elements == NUMBERS &&
                    reply->element[2]->type == REDIS_REPLY_ARRAY && reply->element[4]->type == REDIS_REPLY_ARRAY;
  if (understood) {
    tf_redis_clock_set(self->parts.clock, reply->element[0]->integer);
    take_load(self, reply->element[0]->integer, reply->element[1], reply->element[3]);
    for (size_t i = 0; i < reply->element[4]->elements; i++) take_pace(self, reply->element[4]->element[i]);
    taken = reply->element[2]->elements;
    for (size_t i = 0; i < taken; i++) take(self, reply->element[2]->element[i]);
    tf_metric_add(self->parts.stats->claimed, (double)taken);
    tf_dispatch_place(self->parts.dispatch);
  }
  if (taken > 0)
    self->poll_ms = POLL_MS_MIN;
  else
    self->poll_ms = self->poll_ms * 2 < POLL_MS_MAX ? self->poll_ms * 2 : POLL_MS_MAX;
  bool more = taken > 0 && taken >= self->asked;
  schedule(self, !understood ? LOAD_ONLY_MS : more ? 0 : self->poll_ms);
}

static bool claim(tf_intake *self, uint32_t count) {
  tf_arguments *arguments = &self->arguments;
  const tf_router_config *config = self->parts.config;
  tf_arguments_clear(arguments);
  tf_arguments_add(arguments, self->parts.instance);
  tf_arguments_add_int(arguments, count);
  tf_arguments_add_int(arguments, config->lease_ms);
  tf_arguments_add_int(arguments, TF_CLAIM_BYTES_MAX);
  tf_arguments_add_int(arguments, self->turn);
  tf_arguments_add_int(arguments, TF_LANE_WEIGHT);
  tf_arguments_add_int(arguments, config->results_max);
  tf_arguments_add_int(arguments, config->dedupe_window_s * 1000);
  tf_arguments_add_int(arguments, TF_TAKEOVERS_MAX);
  tf_arguments_add_int(arguments, TF_CLAIM_ENDED_MAX);
  self->asked_state = tf_load_wants_state(self->parts.load);
  tf_arguments_add(arguments, self->asked_state ? "1" : "0");
  tf_arguments_add_int(arguments, config->dead_image_bytes_max);
  tf_arguments_add_int(arguments, config->dead_max);
  self->asked = count;
  tf_metric_add(self->parts.stats->claims, 1);
  return tf_scripts_call(self->parts.scripts, TF_SCRIPT_CLAIM, arguments, on_claimed, self);
}

static void on_timer(void *context) {
  tf_intake *self = context;
  self->timer = -1;
  if (self->in_flight) return; /* its answer schedules */
  tf_dispatch_place(self->parts.dispatch);
  uint32_t room = self->stopped ? 0 : tf_dispatch_room(self->parts.dispatch);
  if (room > TF_CLAIM_JOBS_MAX) room = TF_CLAIM_JOBS_MAX;
  if ((int64_t)tf_jobs_image_bytes(self->parts.jobs) >= TF_HELD_IMAGE_BYTES_MAX) room = 0;
  int64_t now_ms = tf_now_ms();
  if (room == 0 && now_ms - self->asked_ms < LOAD_ONLY_MS) {
    /* The load is fresh enough; looked again soon where jobs are under way, as each that ends makes room. */
    schedule(self, tf_jobs_count(self->parts.jobs) > 0 ? POLL_MS_MIN : POLL_MS_MAX);
    return;
  }
  self->asked_ms = now_ms;
  self->in_flight = true;
  if (claim(self, room)) return;
  self->in_flight = false;
  schedule(self, LOAD_ONLY_MS);
}

/* How jobs end. In: records with a result or a failure. Out: commit.lua and fail.lua calls, asked again until answered.
 * Both scripts may run twice for one ending: commit finds the id done, fail finds the attempt no longer current.
 * Callbacks keep entry and serial; a record that was replaced meanwhile is not theirs. */
#include "router/results.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/fail_point.h"
#include "common/log.h"

enum { TICK_MS = 50, RETRY_MS_MIN = 100, RETRY_MS_MAX = 3000, HASH_FIELDS = 6 };

struct tf_results {
  tf_results_parts parts;
  int timer;
  size_t foreign; /* records of jobs that this router doesn't hold */
  uint64_t settlement_number;
  uint64_t random;
  tf_arguments arguments;
};

/* Whose answer this is. */
typedef struct ticket {
  tf_results *owner;
  uint64_t serial, settlement; /* numbers of the record and of its settlement: either may be replaced meanwhile */
  char entry[TF_ENTRY_BYTES_MAX];
} ticket;

static void on_tick(void *context);
static void issue(tf_results *self, tf_router_job *job);

tf_code tf_results_new(const tf_results_parts *parts, tf_results **out) {
  tf_results *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->parts = *parts;
  self->random = (uint64_t)tf_unix_us() | 1;
  self->timer = tf_reactor_add_timer(parts->reactor, TICK_MS, true, on_tick, self);
  if (self->timer < 0) {
    free(self);
    return TF_ERR_OUT_OF_MEMORY;
  }
  *out = self;
  return TF_OK;
}

void tf_results_free(tf_results **self) {
  if (!self || !*self) return;
  tf_reactor_remove_timer((*self)->parts.reactor, (*self)->timer);
  free(*self);
  *self = NULL;
}

/* xorshift64: 0.5 to 1, so that jobs that failed together do not come back together. */
static double jitter(tf_results *self) {
  self->random ^= self->random << 13;
  self->random ^= self->random >> 7;
  self->random ^= self->random << 17;
  return 0.5 + (double)(self->random >> 11) / 9007199254740992.0 / 2;
}

tf_fail_mode tf_failure_mode(tf_code code, bool no_attempt) {
  if (no_attempt) return TF_FAIL_FREE;
  return tf_code_is_transient(code) ? TF_FAIL_COUNT : TF_FAIL_LAST;
}

/* Rounded to 0.01 ms; what is no number is 0. */
static json_t *milliseconds(double value) {
  if (!isfinite(value) || value < 0) value = 0;
  return json_real(round(value * 100) / 100);
}

static json_t *timing_object(const tf_timing *timing, double total_ms) {
  json_t *out = json_object();
  json_object_set_new(out, "queue", milliseconds(timing->queue_ms));
  json_object_set_new(out, "fetch", milliseconds(timing->fetch_ms));
  json_object_set_new(out, "decode", milliseconds(timing->decode_ms));
  json_object_set_new(out, "encode", milliseconds(timing->encode_ms));
  json_object_set_new(out, "transfer", milliseconds(timing->transfer_ms));
  json_object_set_new(out, "wait", milliseconds(timing->wait_ms));
  json_object_set_new(out, "prefill", milliseconds(timing->prefill_ms));
  json_object_set_new(out, "generate", milliseconds(timing->generate_ms));
  json_object_set_new(out, "total", milliseconds(total_ms));
  return out;
}

static json_t *requested_value(const char *requested) {
  char *end = NULL;
  long number = strtol(requested, &end, 10);
  return number > 0 && *end == 0 ? json_integer(number) : json_string("auto");
}

char *tf_result_json(const tf_router_job *job, const tf_settlement *settlement, double total_ms) {
  json_t *root = json_object(), *tokens = json_object(), *usage = json_object();
  json_object_set_new(root, "id", json_string(job->id));
  json_object_set_new(root, "image", job->uri ? json_string(job->uri) : json_null());
  json_object_set_new(root, "caption", json_string(settlement->caption));
  json_object_set_new(tokens, "requested", requested_value(job->requested));
  json_object_set_new(tokens, "assigned", json_integer(settlement->vision_tokens));
  json_object_set_new(tokens, "reason", json_string(tf_reason_name(job->reason)));
  json_object_set_new(root, "vision_tokens", tokens);
  json_t *load = job->load[0] ? json_loads(job->load, 0, NULL) : NULL;
  json_object_set_new(root, "load", load ? load : json_null());
  json_object_set_new(usage, "prompt_tokens", json_integer(settlement->prompt_tokens));
  json_object_set_new(usage, "completion_tokens", json_integer(settlement->completion_tokens));
  json_object_set_new(usage, "finish_reason",
                      json_string(settlement->finish_reason == TF_FINISH_LENGTH ? "length" : "stop"));
  json_object_set_new(root, "usage", usage);
  json_object_set_new(root, "timing_ms", timing_object(&settlement->timing, total_ms));
  json_object_set_new(root, "attempt", json_integer((json_int_t)job->failures + 1));
  json_object_set_new(root, "model", json_string(settlement->model));
  if (settlement->warning && settlement->warning[0])
    json_object_set_new(root, "warning", json_string(settlement->warning));
  if (job->trace && job->trace[0]) json_object_set_new(root, "trace", json_string(job->trace));
  char *text = json_dumps(root, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(15));
  json_decref(root);
  return text;
}

static void finish(tf_results *self, tf_router_job *job) {
  if (job->settlement->needs_hash) self->foreign--;
  tf_jobs_remove(self->parts.jobs, job);
}

static void count(tf_results *self, tf_job_outcome outcome) {
  tf_metric_add(self->parts.stats->outcomes[outcome], 1);
}

/* Redis did not do it (yet): again a little later. */
static void ask_again(tf_results *self, tf_router_job *job) {
  tf_settlement *settlement = job->settlement;
  int64_t wait_ms = RETRY_MS_MIN << (settlement->tries < 6 ? settlement->tries : 6);
  settlement->tries++;
  settlement->in_flight = false;
  settlement->retry_ms = tf_now_ms() + (wait_ms < RETRY_MS_MAX ? wait_ms : RETRY_MS_MAX);
  if (settlement->is_result) tf_metric_add(self->parts.stats->commit_errors, 1);
}

/* The job that a ticket names, where it still waits for this answer. Frees the ticket. */
static tf_router_job *redeem(ticket *self) {
  tf_router_job *job = tf_jobs_find_serial(self->owner->parts.jobs, self->entry, self->serial);
  if (job && (job->state != TF_JOB_SETTLING || job->settlement->number != self->settlement)) job = NULL;
  free(self);
  return job;
}

static bool says(const redisReply *reply, const char *word) {
  return (reply->type == REDIS_REPLY_STRING || reply->type == REDIS_REPLY_STATUS) && !strcmp(reply->str, word);
}

static double since_entry_ms(const tf_results *self, const tf_router_job *job) {
  return (double)tf_redis_clock_us(self->parts.clock) / 1000 - (double)job->entry_ms;
}

static void tell_board(tf_results *self, const tf_router_job *job) {
  const tf_settlement *settlement = job->settlement;
  tf_board_caption_text text = {
      .id = job->id, .caption = settlement->caption, .vision_tokens = settlement->vision_tokens, .reason = job->reason};
  tf_board_caption_done(self->parts.board, &text, tf_redis_clock_us(self->parts.clock) / 1000,
                        since_entry_ms(self, job), settlement->timing.queue_ms);
}

static void on_committed(void *context, const redisReply *reply) {
  tf_results *self = ((ticket *)context)->owner;
  tf_router_job *job = redeem(context);
  if (!job) return;
  if (!reply) {
    ask_again(self, job);
    return;
  }
  TF_FAIL_POINT("router-committed", job->id);
  if (says(reply, "committed")) {
    count(self, TF_OUTCOME_RESULT);
    tell_board(self, job);
    tf_log_debug("job_done", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace),
                 TF_INT("vision_tokens", job->settlement->vision_tokens), TF_INT("attempt", job->settlement->attempt));
  } else {
    count(self, says(reply, "duplicate") ? TF_OUTCOME_DUPLICATE : TF_OUTCOME_UNKNOWN);
    tf_log_info("result_dropped", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace),
                TF_STR("reason", says(reply, "duplicate") ? "the id has ended already" : "no such job"));
  }
  finish(self, job);
}

static void on_failed(void *context, const redisReply *reply) {
  tf_results *self = ((ticket *)context)->owner;
  tf_router_job *job = redeem(context);
  if (!job) return;
  if (!reply) {
    ask_again(self, job);
    return;
  }
  const tf_settlement *settlement = job->settlement;
  const char *event = "failure_dropped";
  if (says(reply, "dead")) {
    event = "job_dead";
    count(self, TF_OUTCOME_DEAD);
    tf_router_stats_dead(self->parts.stats, tf_code_name(settlement->code));
  } else if (says(reply, "retry")) {
    event = "job_retry";
    count(self, TF_OUTCOME_RETRY);
  } else {
    count(self, TF_OUTCOME_STALE);
  }
  tf_log_info(event, TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace),
              TF_STR("code", tf_code_name(settlement->code)), TF_STR("message", settlement->message),
              TF_INT("attempt", settlement->attempt));
  finish(self, job);
}

static bool send(tf_results *self, tf_router_job *job, tf_script script, tf_redis_reply_fn fn) {
  ticket *made = calloc(1, sizeof *made);
  if (!made) return false;
  made->owner = self;
  made->serial = job->serial;
  made->settlement = job->settlement->number;
  memcpy(made->entry, job->entry, sizeof made->entry);
  bool sent = script == TF_SCRIPT_COUNT ? tf_scripts_command(self->parts.scripts, &self->arguments, fn, made)
                                        : tf_scripts_call(self->parts.scripts, script, &self->arguments, fn, made);
  if (!sent) free(made);
  return sent;
}

static bool issue_commit(tf_results *self, tf_router_job *job) {
  char *json = tf_result_json(job, job->settlement, since_entry_ms(self, job));
  if (!json) return false;
  TF_FAIL_POINT("router-result", job->id);
  tf_arguments *arguments = &self->arguments;
  tf_arguments_clear(arguments);
  tf_arguments_add_int(arguments, self->parts.config->dedupe_window_s * 1000);
  tf_arguments_add(arguments, job->entry);
  tf_arguments_add(arguments, job->settlement->caption);
  tf_arguments_add_int(arguments, job->settlement->vision_tokens);
  tf_arguments_add(arguments, json);
  bool sent = send(self, job, TF_SCRIPT_COMMIT, on_committed);
  TF_FAIL_POINT("router-committing", job->id);
  free(json);
  return sent;
}

/* fail.lua's arguments; `jitter_text` is borrowed until the call. */
static void fail_arguments(tf_results *self, const char *entry, uint32_t attempt, tf_fail_mode mode, const char *code,
                           const char *message, char jitter_text[16]) {
  static const char *const modes[] = {[TF_FAIL_COUNT] = "count",
                                      [TF_FAIL_LAST] = "last",
                                      [TF_FAIL_FREE] = "free",
                                      [TF_FAIL_SUSPECT] = "suspect",
                                      [TF_FAIL_REFUSE] = "refuse"};
  tf_arguments *arguments = &self->arguments;
  tf_arguments_clear(arguments);
  tf_arguments_add_int(arguments, self->parts.config->dedupe_window_s * 1000);
  tf_arguments_add(arguments, self->parts.instance);
  tf_arguments_add(arguments, entry);
  tf_arguments_add_int(arguments, attempt);
  tf_arguments_add(arguments, modes[mode]);
  tf_arguments_add(arguments, code);
  tf_arguments_add(arguments, message);
  tf_arguments_add_int(arguments, self->parts.config->max_attempts);
  tf_arguments_add_int(arguments, TF_BACKOFF_MS);
  tf_arguments_add_int(arguments, TF_BACKOFF_MS_MAX);
  snprintf(jitter_text, 16, "%.4f", jitter(self));
  tf_arguments_add(arguments, jitter_text);
  tf_arguments_add_int(arguments, self->parts.config->dead_image_bytes_max);
  tf_arguments_add_int(arguments, self->parts.config->dead_max);
}

static bool issue_fail(tf_results *self, tf_router_job *job) {
  const tf_settlement *settlement = job->settlement;
  char jitter_text[16];
  fail_arguments(self, job->entry, settlement->attempt, settlement->mode, tf_code_name(settlement->code),
                 settlement->message, jitter_text);
  return send(self, job, TF_SCRIPT_FAIL, on_failed);
}

/* The hash of a job that another router held, in the order asked for; absent fields are nil. */
static void on_hash(void *context, const redisReply *reply) {
  tf_results *self = ((ticket *)context)->owner;
  tf_router_job *job = redeem(context);
  if (!job) return;
  if (!reply || reply->type != REDIS_REPLY_ARRAY || reply->elements != HASH_FIELDS) {
    ask_again(self, job);
    return;
  }
  const redisReply *const *field = (const redisReply *const *)reply->element;
  bool has[HASH_FIELDS];
  for (int i = 0; i < HASH_FIELDS; i++) has[i] = field[i]->type == REDIS_REPLY_STRING && field[i]->len > 0;
  if (has[0] && field[0]->len <= TF_ID_BYTES_MAX) snprintf(job->id, sizeof job->id, "%s", field[0]->str);
  if (has[1] && !job->uri) job->uri = strdup(field[1]->str);
  if (has[2]) snprintf(job->requested, sizeof job->requested, "%.*s", TF_REQUESTED_BYTES_MAX - 1, field[2]->str);
  if (has[3]) job->reason = tf_reason_from_name(field[3]->str, field[3]->len);
  if (has[4]) job->failures = (uint32_t)strtoul(field[4]->str, NULL, 10);
  if (has[5] && field[5]->len < sizeof job->load) memcpy(job->load, field[5]->str, field[5]->len + 1);
  job->settlement->in_flight = issue_commit(self, job);
  if (!job->settlement->in_flight) ask_again(self, job);
}

static bool issue_hash(tf_results *self, tf_router_job *job) {
  char suffix[TF_ENTRY_BYTES_MAX + 8], key[TF_REDIS_KEY_BYTES_MAX];
  snprintf(suffix, sizeof suffix, "job:%s", job->entry);
  tf_scripts_key(self->parts.scripts, suffix, key);
  static const char *const fields[] = {"id", "uri", "requested", "reason", "failures", "load"};
  _Static_assert(sizeof fields / sizeof *fields == HASH_FIELDS, "on_hash reads as many");
  tf_arguments *words = &self->arguments;
  tf_arguments_clear(words);
  tf_arguments_add(words, "HMGET");
  tf_arguments_add(words, key);
  for (int i = 0; i < HASH_FIELDS; i++) tf_arguments_add(words, fields[i]);
  return send(self, job, TF_SCRIPT_COUNT, on_hash);
}

static void issue(tf_results *self, tf_router_job *job) {
  tf_settlement *settlement = job->settlement;
  if (!tf_scripts_is_ready(self->parts.scripts)) return; /* tf_results_kick follows */
  settlement->in_flight = settlement->needs_hash  ? issue_hash(self, job)
                          : settlement->is_result ? issue_commit(self, job)
                                                  : issue_fail(self, job);
  if (!settlement->in_flight) ask_again(self, job);
}

static void on_tick(void *context) {
  tf_results *self = context;
  size_t left = tf_jobs_count_state(self->parts.jobs, TF_JOB_SETTLING);
  if (left == 0 || !tf_scripts_is_ready(self->parts.scripts)) return;
  int64_t now_ms = tf_now_ms();
  for (tf_router_job *job = tf_jobs_first(self->parts.jobs); job && left > 0; job = job->next) {
    if (job->state != TF_JOB_SETTLING) continue;
    left--;
    if (!job->settlement->in_flight && job->settlement->retry_ms <= now_ms) issue(self, job);
  }
}

void tf_results_kick(tf_results *self) {
  for (tf_router_job *job = tf_jobs_first(self->parts.jobs); job; job = job->next)
    if (job->state == TF_JOB_SETTLING) job->settlement->retry_ms = 0;
  on_tick(self);
}

/* A settlement of a result; NULL: out of memory. */
static tf_settlement *make_result(const tf_result *result) {
  tf_settlement *made = calloc(1, sizeof *made);
  if (!made) return NULL;
  made->is_result = true;
  made->attempt = result->key.attempt;
  made->caption = strdup(result->caption);
  made->model = strdup(result->model);
  made->warning = strdup(result->warning);
  made->vision_tokens = result->vision_tokens;
  made->prompt_tokens = result->prompt_tokens;
  made->completion_tokens = result->completion_tokens;
  made->finish_reason = result->finish_reason;
  made->timing = result->timing;
  if (!made->caption || !made->model || !made->warning) tf_settlement_free(&made);
  return made;
}

static void settle(tf_results *self, tf_router_job *job, tf_settlement *settlement) {
  tf_settlement_free(&job->settlement);
  job->settlement = settlement;
  settlement->number = ++self->settlement_number;
  tf_jobs_set_state(self->parts.jobs, job, TF_JOB_SETTLING);
  issue(self, job);
}

void tf_results_commit(tf_results *self, tf_router_job *job, const tf_result *result) {
  if (job->state == TF_JOB_SETTLING && job->settlement->is_result) return; /* the first one is on its way */
  tf_settlement *made = make_result(result);
  if (made) {
    /* A failure that is on its way meanwhile changes nothing: commit takes the job from wherever it is. */
    settle(self, job, made);
    return;
  }
  tf_log_error("out_of_memory", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace));
  if (job->state != TF_JOB_SETTLING) tf_results_fail(self, job, TF_FAIL_FREE, TF_ERR_OUT_OF_MEMORY, "router");
}

void tf_results_fail(tf_results *self, tf_router_job *job, tf_fail_mode mode, tf_code code, const char *message) {
  if (job->state == TF_JOB_SETTLING) return;
  tf_settlement *made = calloc(1, sizeof *made);
  char *text = strdup(message && message[0] ? message : tf_code_text(code));
  if (!made || !text) {
    free(made);
    free(text);
    tf_log_error("out_of_memory", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace));
    tf_jobs_remove(self->parts.jobs, job); /* its lease runs out, and it is tried again */
    return;
  }
  *made = (tf_settlement){.mode = mode, .code = code, .attempt = job->attempt, .message = text};
  settle(self, job, made);
}

void tf_results_commit_foreign(tf_results *self, const tf_result *result) {
  tf_settlement *made = self->foreign < TF_FOREIGN_RESULTS_MAX ? make_result(result) : NULL;
  tf_router_job *job = made ? tf_jobs_add(self->parts.jobs, result->key.entry) : NULL;
  if (!job) {
    tf_settlement_free(&made);
    tf_router_stats_protocol_error(self->parts.stats, "foreign");
    return;
  }
  snprintf(job->id, sizeof job->id, "%s", result->key.id);
  job->trace = result->key.trace[0] ? strdup(result->key.trace) : NULL;
  made->needs_hash = true;
  self->foreign++;
  settle(self, job, made);
}

static void on_foreign_failed(void *context, const redisReply *reply) {
  tf_results *self = context;
  if (!reply) return; /* its job's lease runs out: then it is tried again */
  count(self, says(reply, "dead") ? TF_OUTCOME_DEAD : says(reply, "retry") ? TF_OUTCOME_RETRY : TF_OUTCOME_STALE);
}

void tf_results_fail_foreign(tf_results *self, const tf_failure *failure) {
  int64_t entry_ms = 0;
  if (!tf_entry_time(failure->key.entry, &entry_ms)) {
    tf_router_stats_protocol_error(self->parts.stats, "foreign");
    return;
  }
  char jitter_text[16];
  tf_code code = tf_code_from_name(failure->error_code);
  tf_log_debug("failure_of_another_router", TF_STR("job", failure->key.id), TF_STR("entry", failure->key.entry),
               TF_STR("trace", failure->key.trace), TF_STR("code", tf_code_name(code)),
               TF_INT("attempt", failure->key.attempt));
  fail_arguments(self, failure->key.entry, failure->key.attempt, tf_failure_mode(code, failure->no_attempt),
                 tf_code_name(code), failure->error_message, jitter_text);
  tf_scripts_call(self->parts.scripts, TF_SCRIPT_FAIL, &self->arguments, on_foreign_failed, self);
}

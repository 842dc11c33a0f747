/* Jobs on their way through the workers. In: pending jobs, messages, gone workers. Out: JOB, CANCEL, scripts, endings.
 * A job holds a slot of its encoder from placement until STAGE(decode), and one of its LLM (with KV tokens) until it
 * ends. A suspect keeps its two workers free of this router's other jobs; that nobody else's are there the workers see
 * to, and say: only then does their death count against it. A job that needs more KV tokens than are ever free at once
 * while smaller ones come keeps an LLM from taking them, until it fits. */
#include "router/dispatch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/fail_point.h"
#include "common/log.h"

enum {
  ASSIGN_JOBS_MAX = 100,
  STAGE_JOBS_MAX = 256,
  PLACED_PER_ROUND_MAX = 1024,
  LARGE_BESIDE_MAX = 32 /* large jobs that wait and leave the others their room; more of them take it like any other */
};

/* A job that a script call is about. */
typedef struct mention {
  char entry[TF_ENTRY_BYTES_MAX];
  uint64_t serial;
} mention;

/* One assign script on its way. */
typedef struct assignment {
  struct tf_dispatch *owner;
  size_t count;
  mention jobs[ASSIGN_JOBS_MAX];
} assignment;

struct tf_dispatch {
  tf_dispatch_parts parts;
  size_t turn;
  size_t suspects_waiting, large_waiting; /* pending after the last round of placement */
  size_t stage_count;                     /* stage changes that wait for the flush */
  struct {
    char entry[TF_ENTRY_BYTES_MAX];
    uint32_t attempt;
  } stages[STAGE_JOBS_MAX];
  tf_arguments arguments;
};

tf_code tf_dispatch_new(const tf_dispatch_parts *parts, tf_dispatch **out) {
  tf_dispatch *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->parts = *parts;
  *out = self;
  return TF_OK;
}

void tf_dispatch_free(tf_dispatch **self) {
  if (!self || !*self) return;
  free(*self);
  *self = NULL;
}

/* --- Worker slots --- */

static void release_encoder(tf_dispatch *self, tf_router_job *job) {
  tf_worker *encoder = tf_workers_find(self->parts.workers, job->encoder);
  if (encoder && encoder->held_for == job->serial) encoder->held_for = 0;
  tf_workers_release(self->parts.workers, job->encoder, 0);
  job->encoder = 0;
}

static void let_go_of_kept(tf_dispatch *self, tf_router_job *job) {
  if (job->kept_llm) tf_workers_unhold(self->parts.workers, job->serial);
  job->kept_llm = 0;
}

static void release_all(tf_dispatch *self, tf_router_job *job) {
  release_encoder(self, job);
  tf_workers_release(self->parts.workers, job->llm, job->kv_tokens);
  job->llm = 0;
  job->kv_tokens = 0;
  if (job->suspect) tf_workers_unhold(self->parts.workers, job->serial);
  let_go_of_kept(self, job);
}

void tf_dispatch_forget(tf_dispatch *self, tf_router_job *job) {
  release_all(self, job);
  tf_jobs_remove(self->parts.jobs, job);
}

static void fail(tf_dispatch *self, tf_router_job *job, tf_fail_mode mode, tf_code code, const char *message) {
  release_all(self, job);
  tf_results_fail(self->parts.results, job, mode, code, message);
}

/* --- Messages to workers --- */

static tf_job_key key_of(const tf_dispatch *self, const tf_router_job *job) {
  return (tf_job_key){.queue = self->parts.config->wire_queue,
                      .entry = job->entry,
                      .id = job->id,
                      .attempt = job->attempt,
                      .router = self->parts.instance,
                      .trace = job->trace};
}

static void send_cancel(tf_dispatch *self, const tf_router_job *job, uint64_t to, tf_code code) {
  tf_worker *worker = tf_workers_find(self->parts.workers, to);
  if (!worker) return;
  tf_message message = {.type = TF_MESSAGE_CANCEL};
  message.u.cancel = (tf_cancel){.key = key_of(self, job), .reason = tf_code_name(code)};
  tf_wire_send(self->parts.socket, worker->peer, worker->peer_size, &message, NULL, NULL);
}

/* Stops whatever the job's workers do for it; no reply is owed. */
static void stop_workers(tf_dispatch *self, const tf_router_job *job, tf_code code) {
  if (job->state != TF_JOB_ENCODING && job->state != TF_JOB_DECODING) return;
  send_cancel(self, job, job->encoder, code);
  send_cancel(self, job, job->llm, code);
}

static void free_image(void *data, void *hint) {
  (void)hint;
  free(data);
}

/* Sends an assigned job. What can't be sent goes back to the queue, untried. */
static void send_job(tf_dispatch *self, tf_router_job *job) {
  tf_worker *encoder = tf_workers_find(self->parts.workers, job->encoder);
  const tf_worker *llm = tf_workers_find(self->parts.workers, job->llm);
  if (!encoder || !llm || llm->draining) {
    fail(self, job, TF_FAIL_FREE, TF_ERR_WORKER_LOST, "the worker went before the job was sent");
    return;
  }
  tf_message message = {.type = TF_MESSAGE_JOB};
  double queue_ms = (double)tf_redis_clock_us(self->parts.clock) / 1000 - (double)job->entry_ms;
  message.u.job = (tf_job){.key = key_of(self, job),
                           .vision_tokens = job->vision_tokens,
                           .uri = job->uri,
                           .prompt = job->prompt,
                           .sampling = job->sampling,
                           .deadline_unix_ms = job->deadline_ms ? job->entry_ms + job->deadline_ms : 0,
                           .llm_instance = llm->instance,
                           .llm_endpoint = llm->tensor_endpoint,
                           .pair_hash = encoder->pair_hash,
                           .alone = job->suspect,
                           .timing.queue_ms = queue_ms > 0 ? (float)queue_ms : 0};
  tf_log_debug("job_assigned", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace),
               TF_INT("attempt", job->attempt), TF_INT("vision_tokens", job->vision_tokens),
               TF_STR("reason", tf_reason_name(job->reason)), TF_STR("encoder", encoder->instance),
               TF_STR("llm", llm->instance));
  zmq_msg_t payload;
  bool inline_image = job->image != NULL;
  if (inline_image) {
    char *image;
    size_t size;
    tf_jobs_take_image(self->parts.jobs, job, &image, &size);
    if (zmq_msg_init_data(&payload, image, size, free_image, NULL) != 0) {
      free(image);
      fail(self, job, TF_FAIL_FREE, TF_ERR_OUT_OF_MEMORY, "router");
      return;
    }
  }
  tf_error error;
  tf_code code = tf_wire_send(self->parts.socket, encoder->peer, encoder->peer_size, &message,
                              inline_image ? &payload : NULL, &error);
  if (code == TF_OK) {
    TF_FAIL_POINT("router-sent", job->id);
    tf_jobs_set_state(self->parts.jobs, job, TF_JOB_ENCODING);
    job->assigned_ms = tf_now_ms();
    tf_router_stats_assigned(self->parts.stats, job->vision_tokens, tf_reason_name(job->reason));
    return;
  }
  if (inline_image) zmq_msg_close(&payload);
  if (code == TF_ERR_WORKER_UNREACHABLE) encoder->reachable = false;
  bool untried = code == TF_ERR_WORKER_UNREACHABLE || code == TF_ERR_WORKER_FULL;
  fail(self, job, untried ? TF_FAIL_FREE : TF_FAIL_COUNT, untried ? code : TF_ERR_INTERNAL, error.text);
}

/* --- Assignment --- */

static void on_assigned(void *context, const redisReply *reply) {
  assignment *done = context;
  tf_dispatch *self = done->owner;
  bool answered = reply && reply->type == REDIS_REPLY_ARRAY && reply->elements == done->count + 1;
  for (size_t i = 0; i < done->count; i++) {
    tf_router_job *job = tf_jobs_find_serial(self->parts.jobs, done->jobs[i].entry, done->jobs[i].serial);
    if (!job || job->state != TF_JOB_ASSIGNING) continue;
    long long attempt = answered ? reply->element[i + 1]->integer : 0;
    if (!answered) {
      /* It may have run or not; assigning again costs nothing but a number. */
      release_all(self, job);
      tf_jobs_set_state(self->parts.jobs, job, TF_JOB_PENDING);
    } else if (attempt < 1) {
      tf_metric_add(self->parts.stats->leases_lost, 1);
      tf_dispatch_forget(self, job);
    } else {
      job->attempt = (uint32_t)attempt;
      TF_FAIL_POINT("router-assigned", job->id);
      send_job(self, job);
    }
  }
  free(done);
}

static void add_assignment(tf_dispatch *self, const tf_router_job *job) {
  tf_arguments *arguments = &self->arguments;
  const tf_worker *encoder = tf_workers_find(self->parts.workers, job->encoder);
  const tf_worker *llm = tf_workers_find(self->parts.workers, job->llm);
  tf_arguments_add(arguments, job->entry);
  tf_arguments_add_int(arguments, job->vision_tokens);
  tf_arguments_add(arguments, tf_reason_name(job->reason));
  tf_arguments_add(arguments, job->requested);
  tf_arguments_add(arguments, job->uri);
  tf_arguments_add(arguments, job->reply);
  tf_arguments_add(arguments, job->trace);
  tf_arguments_add(arguments, encoder ? encoder->instance : "");
  tf_arguments_add(arguments, llm ? llm->instance : "");
}

/* Records the placed jobs in Redis; they are sent when it has answered. Takes *batch. */
static void assign(tf_dispatch *self, assignment **batch) {
  assignment *sent = *batch;
  *batch = NULL;
  if (!sent || sent->count == 0) {
    free(sent);
    return;
  }
  tf_arguments_clear(&self->arguments);
  tf_arguments_add(&self->arguments, self->parts.instance);
  tf_arguments_add_int(&self->arguments, self->parts.config->lease_ms);
  char load[TF_LOAD_TEXT_BYTES_MAX];
  tf_load_text(self->parts.load, load); /* nothing was read between the choices and here */
  tf_arguments_add(&self->arguments, load);
  for (size_t i = 0; i < sent->count; i++) {
    tf_router_job *job = tf_jobs_find_serial(self->parts.jobs, sent->jobs[i].entry, sent->jobs[i].serial);
    add_assignment(self, job);
    tf_jobs_set_state(self->parts.jobs, job, TF_JOB_ASSIGNING);
  }
  if (!tf_scripts_call(self->parts.scripts, TF_SCRIPT_ASSIGN, &self->arguments, on_assigned, sent))
    on_assigned(sent, NULL);
}

/* --- Placement --- */

/* The most KV tokens that the job may take: its N is chosen later, so the largest it can get. */
static uint32_t kv_tokens_most(tf_dispatch *self, const tf_router_job *job) {
  uint32_t counts[TF_HELLO_COUNTS_MAX * 4];
  size_t count = tf_workers_all_counts(self->parts.workers, counts, sizeof counts / sizeof *counts);
  uint32_t n = count ? counts[count - 1] : 0;
  if (job && job->vision_tokens_max && job->vision_tokens_max < n) n = job->vision_tokens_max;
  size_t prompt = job && job->prompt ? strlen(job->prompt) : 0;
  uint32_t new_tokens = job ? job->sampling.max_new_tokens : TF_NEW_TOKENS_DEFAULT;
  return n + (uint32_t)prompt + TF_KV_TOKENS_BESIDE + new_tokens;
}

uint32_t tf_dispatch_room(tf_dispatch *self) {
  const tf_slot *encoders, *llms;
  const uint64_t *ignored;
  size_t encoder_count = tf_workers_slots(self->parts.workers, TF_ROLE_ENCODER, &encoders, &ignored);
  size_t llm_count = tf_workers_slots(self->parts.workers, TF_ROLE_LLM, &llms, &ignored);
  uint32_t room = tf_place_room(encoders, encoder_count, llms, llm_count, kv_tokens_most(self, NULL));
  size_t pending = tf_jobs_count_state(self->parts.jobs, TF_JOB_PENDING);
  /* Suspects wait for a pair of their own, large jobs for an LLM: they take half of the others' room at most. */
  size_t waiting =
      self->suspects_waiting + (self->large_waiting < LARGE_BESIDE_MAX ? self->large_waiting : LARGE_BESIDE_MAX);
  if (waiting > pending) waiting = pending;
  pending -= waiting - (waiting < room / 2 ? waiting : room / 2);
  return room > pending ? room - (uint32_t)pending : 0;
}

/* INT64_MAX: the job has no deadline. */
static int64_t deadline_left_ms(const tf_dispatch *self, const tf_router_job *job) {
  if (!job->deadline_ms) return INT64_MAX;
  return job->entry_ms + job->deadline_ms - tf_redis_clock_us(self->parts.clock) / 1000;
}

static bool past_deadline(const tf_dispatch *self, const tf_router_job *job) {
  return deadline_left_ms(self, job) <= 0;
}

/* A job that needs more KV tokens than others do, and has found no room for a while. An ordinary one is never overtaken
 * for long: no other is claimed before there is room for both. */
static bool is_overtaken(tf_dispatch *self, const tf_router_job *job) {
  int64_t lease_ms = self->parts.config->lease_ms;
  int64_t patience_ms = lease_ms / 4 < TF_ROOM_PATIENCE_MS_MAX ? lease_ms / 4 : TF_ROOM_PATIENCE_MS_MAX;
  if (job->suspect || job->claimed_ms > tf_now_ms() - patience_ms) return false;
  return kv_tokens_most(self, job) > kv_tokens_most(self, NULL);
}

/* Keeps an LLM for a job that is overtaken; the same one until it fits. */
static void reserve_room(tf_dispatch *self, tf_router_job *job, const tf_place_request *request) {
  const tf_slot *llms;
  const uint64_t *serials;
  size_t count = tf_workers_slots(self->parts.workers, TF_ROLE_LLM, &llms, &serials), at = 0;
  while (at < count && !(serials[at] == job->kept_llm && tf_place_may_take(&llms[at], request))) at++;
  bool found = at < count || tf_place_reserve(llms, count, request, &at);
  if (found && serials[at] != job->kept_llm)
    tf_log_debug("room_kept", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace),
                 TF_INT("kv_tokens", request->kv_tokens));
  job->kept_llm = found ? serials[at] : 0;
  tf_workers_hold(self->parts.workers, 0, job->kept_llm, job->serial);
}

/* Chooses the pair. False: no room now. */
static bool choose_workers(tf_dispatch *self, tf_router_job *job, uint64_t pairs, uint64_t *encoder, uint64_t *llm) {
  const tf_slot *encoders, *llms;
  const uint64_t *encoder_serials, *llm_serials;
  if (job->suspect || job->kept_llm) tf_workers_unhold(self->parts.workers, job->serial);
  size_t encoder_count = tf_workers_slots(self->parts.workers, TF_ROLE_ENCODER, &encoders, &encoder_serials);
  size_t llm_count = tf_workers_slots(self->parts.workers, TF_ROLE_LLM, &llms, &llm_serials);
  tf_place_request request = {
      .kv_tokens = kv_tokens_most(self, job), .pairs = pairs, .alone = job->suspect, .turn = self->turn++};
  tf_placement placed = tf_place(encoders, encoder_count, llms, llm_count, &request);
  bool now = placed.found;
  if (!now && job->suspect) {
    request.turn = 0; /* the same pair each time, until it is idle */
    placed = tf_place_hold(encoders, encoder_count, llms, llm_count, &request);
  }
  if (!placed.found && is_overtaken(self, job)) reserve_room(self, job, &request);
  if (!placed.found) return false;
  job->kept_llm = 0;
  *encoder = encoder_serials[placed.encoder];
  *llm = llm_serials[placed.llm];
  if (job->suspect) tf_workers_hold(self->parts.workers, *encoder, *llm, job->serial);
  return now;
}

typedef enum placed { PLACED, NO_ROOM, ENDED } placed;

/* Ends a job that can't make its deadline any more, before anybody works on it. */
static placed end_too_late(tf_dispatch *self, tf_router_job *job) {
  char text[96];
  snprintf(text, sizeof text, "%lld ms are left, too few even for the smallest count of tokens",
           (long long)deadline_left_ms(self, job));
  fail(self, job, TF_FAIL_REFUSE, TF_ERR_DEADLINE, text);
  return ENDED;
}

/* Chooses N for the pair of `llm`, and takes both workers' slots. NO_ROOM: the pair has no N for this job. */
static placed take_workers(tf_dispatch *self, tf_router_job *job, uint64_t encoder, uint64_t llm) {
  const tf_worker *worker = tf_workers_find(self->parts.workers, llm);
  tf_policy_job terms = {.minimum = job->vision_tokens_min,
                         .maximum = job->vision_tokens_max,
                         .previous = job->vision_tokens,
                         .previous_reason = job->reason,
                         .deadline_left_ms = deadline_left_ms(self, job)};
  terms.count_count = tf_workers_pair_counts(self->parts.workers, worker->pair, &terms.counts);
  tf_policy_choice choice = tf_load_choose(self->parts.load, job->pace, &terms);
  if (choice.too_late) return end_too_late(self, job);
  if (choice.vision_tokens == 0) return NO_ROOM;
  job->vision_tokens = choice.vision_tokens;
  job->reason = choice.reason;
  job->encoder = encoder;
  job->llm = llm;
  tf_load_text(self->parts.load, job->load);
  job->alone_at_encoder = job->alone_at_llm = false;
  job->kv_tokens = choice.vision_tokens + (uint32_t)(job->prompt ? strlen(job->prompt) : 0) + TF_KV_TOKENS_BESIDE +
                   job->sampling.max_new_tokens;
  tf_workers_reserve(self->parts.workers, encoder, 0);
  tf_workers_reserve(self->parts.workers, llm, job->kv_tokens);
  return PLACED;
}

static placed place_one(tf_dispatch *self, tf_router_job *job) {
  if (past_deadline(self, job)) {
    fail(self, job, TF_FAIL_REFUSE, TF_ERR_DEADLINE, "the deadline passed before the job was assigned");
    return ENDED;
  }
  uint64_t pairs = tf_workers_pairs_for(self->parts.workers, job->vision_tokens_min, job->vision_tokens_max);
  if (!pairs) {
    let_go_of_kept(self, job); /* it goes back after a lease, like the others */
    uint32_t counts[TF_HELLO_COUNTS_MAX * 4];
    size_t count = tf_workers_all_counts(self->parts.workers, counts, sizeof counts / sizeof *counts);
    if (count == 0) return NO_ROOM; /* no pair is alive: nobody can tell */
    if (tf_workers_pair_may_return(self->parts.workers, job->vision_tokens_min, job->vision_tokens_max)) {
      job->claimed_ms = INT64_MIN; /* handed back at the next beat: it keeps no room from the live pairs' jobs */
      return NO_ROOM;
    }
    tf_error error = {.text = "no count lies within the job's limits"};
    tf_job_fields limits = {.vision_tokens_min = job->vision_tokens_min, .vision_tokens_max = job->vision_tokens_max};
    tf_job_fields_check_counts(&limits, counts, count, &error);
    fail(self, job, TF_FAIL_REFUSE, TF_ERR_VISION_TOKENS_UNSUPPORTED, error.text);
    return ENDED;
  }
  uint64_t encoder, llm;
  if (!choose_workers(self, job, pairs, &encoder, &llm)) return NO_ROOM;
  return take_workers(self, job, encoder, llm);
}

void tf_dispatch_place(tf_dispatch *self) {
  if (!tf_scripts_is_ready(self->parts.scripts)) return;
  size_t left = tf_jobs_count_state(self->parts.jobs, TF_JOB_PENDING), done = 0;
  assignment *batch = NULL;
  self->suspects_waiting = self->large_waiting = 0;
  tf_router_job *next;
  for (tf_router_job *job = tf_jobs_first(self->parts.jobs); job && left > 0 && done < PLACED_PER_ROUND_MAX;
       job = next) {
    next = job->next;
    if (job->state != TF_JOB_PENDING) continue;
    left--;
    done++;
    if (!batch) batch = calloc(1, sizeof *batch);
    if (!batch) return;
    batch->owner = self;
    placed outcome = place_one(self, job);
    if (outcome == NO_ROOM) {
      self->suspects_waiting += job->suspect;
      self->large_waiting += is_overtaken(self, job);
    }
    if (outcome != PLACED) continue;
    mention *added = &batch->jobs[batch->count++];
    memcpy(added->entry, job->entry, sizeof added->entry);
    added->serial = job->serial;
    if (batch->count == ASSIGN_JOBS_MAX) assign(self, &batch);
  }
  assign(self, &batch);
}

/* --- Messages from workers --- */

static void on_stages_recorded(void *context, const redisReply *reply) {
  (void)context;
  (void)reply; /* a lease that is lost shows at the next renewal; one not moved yet moves then or ends */
}

void tf_dispatch_flush(tf_dispatch *self) {
  if (self->stage_count == 0) return;
  tf_arguments_clear(&self->arguments);
  tf_arguments_add(&self->arguments, self->parts.instance);
  tf_arguments_add_int(&self->arguments, self->parts.config->lease_ms);
  for (size_t i = 0; i < self->stage_count; i++) {
    tf_arguments_add(&self->arguments, self->stages[i].entry);
    tf_arguments_add_int(&self->arguments, self->stages[i].attempt);
  }
  self->stage_count = 0;
  tf_scripts_call(self->parts.scripts, TF_SCRIPT_STAGE, &self->arguments, on_stages_recorded, self);
}

/* A worker begins with a job that it holds alone. */
static void on_alone(tf_dispatch *self, const tf_worker *from, tf_router_job *job) {
  if (from && from->serial == job->encoder)
    job->alone_at_encoder = true;
  else if (from && from->serial == job->llm)
    job->alone_at_llm = true;
  else
    tf_router_stats_protocol_error(self->parts.stats, "stale_stage");
}

static void on_stage(tf_dispatch *self, const tf_worker *from, const tf_stage *stage) {
  tf_router_job *job = tf_jobs_find(self->parts.jobs, stage->key.entry);
  bool under_way = job && (job->state == TF_JOB_ENCODING || job->state == TF_JOB_DECODING);
  if (stage->alone && under_way && job->attempt == stage->key.attempt) {
    on_alone(self, from, job);
    return;
  }
  if (!job || job->attempt != stage->key.attempt || job->state != TF_JOB_ENCODING || !from ||
      job->encoder != from->serial) {
    tf_router_stats_protocol_error(self->parts.stats, "stale_stage");
    return;
  }
  if (stage->stage != TF_STAGE_DECODE) return;
  release_encoder(self, job);
  tf_jobs_set_state(self->parts.jobs, job, TF_JOB_DECODING);
  tf_log_debug("job_decoding", TF_STR("job", job->id), TF_STR("entry", job->entry), TF_STR("trace", job->trace),
               TF_INT("attempt", job->attempt));
  if (self->stage_count == STAGE_JOBS_MAX) tf_dispatch_flush(self);
  memcpy(self->stages[self->stage_count].entry, job->entry, sizeof job->entry);
  self->stages[self->stage_count++].attempt = job->attempt;
}

/* Any attempt's result may commit; where a newer attempt is under way, it is stopped. */
static void on_result(tf_dispatch *self, const tf_result *result) {
  tf_router_job *job = tf_jobs_find(self->parts.jobs, result->key.entry);
  if (!job) {
    tf_results_commit_foreign(self->parts.results, result);
    return;
  }
  if (result->key.attempt != job->attempt) stop_workers(self, job, TF_ERR_CANCELLED);
  release_all(self, job);
  tf_results_commit(self->parts.results, job, result);
}

/* Only the current attempt's failure counts, and only from a worker that has the job. */
static void on_failure(tf_dispatch *self, const tf_worker *from, const tf_failure *failure) {
  tf_router_job *job = tf_jobs_find(self->parts.jobs, failure->key.entry);
  if (!job) {
    tf_results_fail_foreign(self->parts.results, failure);
    return;
  }
  bool under_way = job->state == TF_JOB_ENCODING || job->state == TF_JOB_DECODING;
  bool from_its_worker = from && (from->serial == job->encoder || from->serial == job->llm);
  if (!under_way || job->attempt != failure->key.attempt || !from_its_worker) {
    tf_router_stats_protocol_error(self->parts.stats, "stale_failure");
    return;
  }
  tf_code code = tf_code_from_name(failure->error_code);
  tf_fail_mode mode = tf_failure_mode(code, failure->no_attempt);
  if (job->state == TF_JOB_ENCODING && from->serial == job->encoder) {
    /* An encoder that gives up may have reached the LLM all the same: what it computes there is of no use now. */
    send_cancel(self, job, job->llm, code);
    tf_worker *llm = tf_workers_find(self->parts.workers, job->llm);
    /* Another instance answered at its endpoint: no more jobs for this one, unless it speaks again. */
    if (llm && code == TF_ERR_WORKER_LOST) llm->reachable = false;
  }
  fail(self, job, mode, code, failure->error_message);
}

void tf_dispatch_message(tf_dispatch *self, const tf_worker *from, const tf_message *message) {
  const tf_job_key *key = message->type == TF_MESSAGE_STAGE    ? &message->u.stage.key
                          : message->type == TF_MESSAGE_RESULT ? &message->u.result.key
                                                               : &message->u.failure.key;
  if (strcmp(key->queue, self->parts.config->wire_queue) != 0) {
    tf_router_stats_protocol_error(self->parts.stats, "wrong_queue");
    return;
  }
  if (message->type == TF_MESSAGE_STAGE)
    on_stage(self, from, &message->u.stage);
  else if (message->type == TF_MESSAGE_RESULT)
    on_result(self, &message->u.result);
  else
    on_failure(self, from, &message->u.failure);
}

/* --- Workers that go --- */

static bool is_at(const tf_router_job *job, const tf_worker *worker) {
  bool under_way = job->state == TF_JOB_ENCODING || job->state == TF_JOB_DECODING;
  return under_way && (job->encoder == worker->serial || job->llm == worker->serial);
}

/* A job that the worker held alone may be what killed it. Of others nobody knows, as other routers may have had jobs
 * there too: they are tried alone. A worker that had said that it would go was killed by none of them. */
static tf_fail_mode mode_of_loss(const tf_router_job *job, const tf_worker *worker) {
  bool alone =
      (job->encoder == worker->serial && job->alone_at_encoder) || (job->llm == worker->serial && job->alone_at_llm);
  return alone ? TF_FAIL_COUNT : worker->draining ? TF_FAIL_FREE : TF_FAIL_SUSPECT;
}

static void give_back_jobs(tf_dispatch *self, const tf_worker *worker, bool lost, const char *what) {
  char message[TF_INSTANCE_BYTES_MAX + 64];
  snprintf(message, sizeof message, "%s %s %s", worker->role == TF_ROLE_LLM ? "LLM" : "encoder", worker->instance,
           what);
  tf_router_job *next;
  for (tf_router_job *job = tf_jobs_first(self->parts.jobs); job; job = next) {
    next = job->next;
    if (!is_at(job, worker)) continue;
    /* The encoder need not wait for an LLM that is gone. */
    if (job->llm == worker->serial) send_cancel(self, job, job->encoder, TF_ERR_WORKER_LOST);
    fail(self, job, lost ? mode_of_loss(job, worker) : TF_FAIL_FREE, TF_ERR_WORKER_LOST, message);
  }
}

void tf_dispatch_worker_lost(tf_dispatch *self, const tf_worker *worker) {
  size_t in_hand = 0;
  for (const tf_router_job *job = tf_jobs_first(self->parts.jobs); job; job = job->next)
    if (is_at(job, worker)) in_hand++;
  const char *role = worker->role == TF_ROLE_LLM ? "llm" : "encoder";
  if (worker->draining && in_hand == 0) { /* it said that it would go */
    tf_log_info("worker_left", TF_STR("role", role), TF_STR("instance", worker->instance));
    return;
  }
  tf_metric_add(self->parts.stats->workers_lost, 1);
  tf_log_warn("worker_lost", TF_STR("role", role), TF_STR("instance", worker->instance), TF_INT("jobs", in_hand));
  give_back_jobs(self, worker, true, "died or was cut off");
}

void tf_dispatch_llm_drains(tf_dispatch *self, const tf_worker *llm) {
  tf_router_job *next;
  for (tf_router_job *job = tf_jobs_first(self->parts.jobs); job; job = next) {
    next = job->next;
    if (job->state != TF_JOB_ENCODING || job->llm != llm->serial) continue;
    stop_workers(self, job, TF_ERR_WORKER_DRAINING);
    fail(self, job, TF_FAIL_FREE, TF_ERR_WORKER_DRAINING, "the LLM is shutting down");
  }
}

void tf_dispatch_worker_moved(tf_dispatch *self, const tf_worker *worker) {
  tf_log_info("worker_moved", TF_STR("instance", worker->instance));
  give_back_jobs(self, worker, false, "was cut off and came back");
}

/* --- Endings from outside --- */

void tf_dispatch_cancel(tf_dispatch *self, const char *id, size_t id_size) {
  tf_router_job *next;
  for (tf_router_job *job = tf_jobs_first(self->parts.jobs); job; job = next) {
    next = job->next;
    if (job->state == TF_JOB_SETTLING || strlen(job->id) != id_size || memcmp(job->id, id, id_size) != 0) continue;
    stop_workers(self, job, TF_ERR_CANCELLED);
    fail(self, job, TF_FAIL_REFUSE, TF_ERR_CANCELLED, NULL);
  }
}

void tf_dispatch_expire(tf_dispatch *self) {
  int64_t now_ms = tf_now_ms();
  tf_router_job *next;
  for (tf_router_job *job = tf_jobs_first(self->parts.jobs); job; job = next) {
    next = job->next;
    bool under_way = job->state == TF_JOB_ENCODING || job->state == TF_JOB_DECODING;
    if (job->state != TF_JOB_PENDING && !under_way) continue;
    if (past_deadline(self, job)) {
      stop_workers(self, job, TF_ERR_DEADLINE);
      fail(self, job, TF_FAIL_REFUSE, TF_ERR_DEADLINE, "the deadline passed on the way");
    } else if (under_way && now_ms - job->assigned_ms >= self->parts.config->job_timeout_ms) {
      stop_workers(self, job, TF_ERR_TIMEOUT);
      fail(self, job, TF_FAIL_COUNT, TF_ERR_TIMEOUT, "no worker answered for this job in time");
    }
  }
}

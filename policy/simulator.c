/* A discrete-event simulation of the whole service around the very same policy code.
 * In: arrivals, workers, service times, the rule that chooses N. Out: waits, throughput, tokens, a series over time.
 * Four sources of events: the next arrival, the next end in either tier (each a heap), and a list of timed changes
 * (readings of the load, workers that die or join, looks at the demand). */
#include "policy/simulator.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "policy/histogram.h"
#include "policy/sim_queue.h"
#include "policy/sim_tier.h"

enum { WAIT_BINS = 2500, SERIES_STEPS = 240, STARTS_MAX = 4096, DEAD_MAX = 4096, DEMANDS_MAX = 4096 };
#define RUN_TIMES_MAX 4.0 /* durations until the simulation gives up on an endless queue */

/* Something that is due later: a worker that starts, or a dead one that is noticed. */
typedef struct later {
  double at_s;
  bool encode;
  uint32_t worker; /* dead; TF_SIM_NONE: one that starts */
} later;

typedef struct sim {
  const tf_simulation *config;
  tf_sim_result *out;
  tf_arrivals arrivals;
  tf_random random;
  double now_s, next_arrival_s, next_observe_s, next_scale_s, end_s;
  size_t next_event;
  tf_sim_tier encode, decode;
  tf_sim_queue queue;
  tf_policy_state state;
  tf_policy_state asked; /* what allocation is told: the rule's budget */
  tf_policy_mix mix;
  tf_policy_load load;
  tf_rule rule;
  double sigma; /* of the logarithm of a caption's length */
  double work_encode[TF_POLICY_COUNTS_MAX], work_decode[TF_POLICY_COUNTS_MAX]; /* s in a full batch, by count */
  double wait_sum_s, tokens_sum;
  uint32_t *waits, *totals; /* [WAIT_BINS] */
  later *laters;            /* unordered; few */
  size_t later_count, later_capacity;
  double *demands; /* pairs encode, decode of the last scale_down_s: a ring */
  size_t demand_count, starting_encode, starting_decode;
} sim;

/* --- Series --- */

static tf_sim_moment *moment_at(sim *self) {
  size_t at = (size_t)(self->now_s / self->out->step_s);
  if (at >= TF_SIM_SERIES_MAX) at = TF_SIM_SERIES_MAX - 1;
  if (at >= self->out->moment_count) self->out->moment_count = at + 1;
  return &self->out->moments[at];
}

double tf_sim_moment_wait_s(const tf_sim_moment *moment, double share) {
  return tf_histogram_quantile(moment->waits, TF_SIM_WAIT_BINS, share);
}

/* --- Jobs --- */

static size_t count_index(const sim *self, uint32_t tokens) {
  size_t i = 0;
  while (i + 1 < self->config->count_count && self->config->counts[i] != tokens) i++;
  return i;
}

static double encode_work(const void *context, const tf_sim_job *job) {
  const sim *self = context;
  return self->work_encode[count_index(self, job->tokens)];
}

static double decode_work(const void *context, const tf_sim_job *job) {
  const sim *self = context;
  return self->work_decode[count_index(self, job->tokens)] * job->factor;
}

/* N for a job; one that was assigned before keeps its own. */
static void assign(sim *self, tf_sim_job *job) {
  if (job->tokens != 0) return;
  tf_policy_job terms = {
      .counts = self->config->counts, .count_count = self->config->count_count, .deadline_left_ms = INT64_MAX};
  job->tokens = tf_policy_choose(&self->asked, &self->config->policy, &self->load, &self->mix, &terms).vision_tokens;
  tf_sim_moment *moment = moment_at(self);
  moment->assigned++;
  moment->tokens += job->tokens;
}

/* Jobs from the queue to workers, while both tiers have room. False: out of memory. */
static bool place(sim *self) {
  while (!tf_sim_queue_is_empty(&self->queue)) {
    uint32_t encoder = tf_sim_tier_pick(&self->encode), llm = tf_sim_tier_pick(&self->decode);
    if (encoder == TF_SIM_NONE || llm == TF_SIM_NONE) return true;
    uint32_t at = tf_sim_queue_take(&self->queue);
    if (at == TF_SIM_NONE) return false;
    tf_sim_job *job = &self->queue.jobs[at];
    if (job->factor <= 0) job->factor = (float)tf_random_factor(&self->random, self->sigma);
    assign(self, job);
    job->wait_s = (float)(self->now_s - job->arrived_s + self->config->overhead_s);
    job->encoder = encoder;
    job->llm = llm;
    job->llm_epoch = self->decode.workers[llm].epoch;
    tf_sim_tier_reserve(&self->encode, encoder);
    tf_sim_tier_reserve(&self->decode, llm);
    tf_sim_tier_enter(&self->encode, self->queue.jobs, encoder, at, encode_work(self, job), self->now_s);
  }
  return true;
}

static bool arrive(sim *self) {
  self->now_s = self->next_arrival_s;
  if (self->out->arrived++ == 0) self->out->first_s = self->now_s;
  moment_at(self)->arrived++;
  self->next_arrival_s = tf_arrivals_next(&self->arrivals);
  if (tf_sim_queue_waiting(&self->queue) >= self->config->waiting_max) {
    self->out->refused++;
    return true;
  }
  return tf_sim_queue_add(&self->queue, self->now_s) && place(self);
}

static void retry(sim *self, uint32_t job) {
  self->out->retried++;
  tf_sim_queue_return(&self->queue, job);
}

static void encoded(sim *self) {
  self->now_s = tf_sim_tier_next_s(&self->encode);
  uint32_t at = tf_sim_tier_end(&self->encode, self->queue.jobs, encode_work, self);
  tf_sim_job *job = &self->queue.jobs[at];
  tf_sim_tier_release(&self->encode, job->encoder);
  const tf_sim_worker *llm = &self->decode.workers[job->llm];
  if (llm->epoch != job->llm_epoch)
    retry(self, at); /* it has died meanwhile */
  else
    tf_sim_tier_enter(&self->decode, self->queue.jobs, job->llm, at, decode_work(self, job), self->now_s);
}

static void finished(sim *self) {
  self->now_s = tf_sim_tier_next_s(&self->decode);
  uint32_t at = tf_sim_tier_end(&self->decode, self->queue.jobs, decode_work, self);
  const tf_sim_job *job = &self->queue.jobs[at];
  tf_sim_tier_release(&self->decode, job->llm);
  tf_sim_result *out = self->out;
  out->finished++;
  out->last_s = self->now_s;
  out->shares[count_index(self, job->tokens)]++;
  self->tokens_sum += job->tokens;
  self->wait_sum_s += job->wait_s;
  self->waits[tf_histogram_bin(WAIT_BINS, job->wait_s)]++;
  self->totals[tf_histogram_bin(WAIT_BINS, self->now_s - job->arrived_s)]++;
  tf_sim_moment *moment = moment_at(self);
  moment->finished++;
  moment->waits[tf_histogram_bin(TF_SIM_WAIT_BINS, job->wait_s)]++;
  tf_sim_queue_free(&self->queue, at);
}

/* --- Workers that come and go --- */

static tf_sim_tier *tier(sim *self, bool encode) {
  return encode ? &self->encode : &self->decode;
}

static bool add_later(sim *self, later one) {
  if (self->later_count == self->later_capacity) {
    size_t capacity = self->later_capacity ? 2 * self->later_capacity : 64;
    later *grown = realloc(self->laters, capacity * sizeof *grown);
    if (!grown) return false;
    self->laters = grown;
    self->later_capacity = capacity;
  }
  self->laters[self->later_count++] = one;
  return true;
}

static bool change_workers(sim *self, bool encode, int change) {
  for (; change > 0; change--) tf_sim_tier_join(tier(self, encode), self->now_s);
  for (; change < 0; change++) {
    uint32_t dead = tf_sim_tier_kill(tier(self, encode), self->now_s);
    if (dead == TF_SIM_NONE) return true;
    if (!add_later(self, (later){self->now_s + self->config->lost_s, encode, dead})) return false;
  }
  return true;
}

/* Everything of `laters` that is due. */
static void run_laters(sim *self) {
  for (size_t i = 0; i < self->later_count;) {
    later one = self->laters[i];
    if (one.at_s > self->now_s) {
      i++;
      continue;
    }
    self->laters[i] = self->laters[--self->later_count];
    if (one.worker == TF_SIM_NONE) {
      *(one.encode ? &self->starting_encode : &self->starting_decode) -= 1;
      tf_sim_tier_join(tier(self, one.encode), self->now_s);
      continue;
    }
    uint32_t job;
    while ((job = tf_sim_tier_forget(tier(self, one.encode), one.worker)) != TF_SIM_NONE) {
      const tf_sim_job *lost = &self->queue.jobs[job];
      bool llm_stands = self->decode.workers[lost->llm].epoch == lost->llm_epoch;
      if (one.encode && llm_stands) tf_sim_tier_release(&self->decode, lost->llm);
      retry(self, job);
    }
  }
}

/* --- The policy's view --- */

static void fill_tier(const tf_sim_tier *from, const tf_sim_tier_config *config, double factor, size_t counts,
                      tf_policy_tier *out) {
  out->workers = from->live;
  out->slots = config->slots;
  double mean_active = from->live ? (double)from->active / from->live : 0;
  size_t active = mean_active < 1 ? 1 : mean_active > config->slots ? config->slots : (size_t)mean_active;
  for (size_t i = 0; i < counts; i++) {
    out->service_ms[i] = config->service_ms[i] * factor;
    out->latency_ms[i] = config->service_ms[i] * config->slots * from->slowness[active] * factor;
  }
}

static void observe(sim *self) {
  const tf_simulation *config = self->config;
  tf_policy_load *load = &self->load;
  load->now_ms = (int64_t)llround(self->now_s * 1000) + 1; /* 0 means never */
  load->arrived = (int64_t)(self->out->arrived - self->out->refused);
  load->in_encode = self->encode.jobs;
  load->in_decode = self->decode.jobs;
  load->waiting = (int64_t)tf_sim_queue_waiting(&self->queue);
  load->unfinished = load->waiting + load->in_encode + load->in_decode;
  fill_tier(&self->encode, &config->encode, config->believed_factor, load->count_count, &load->encode);
  fill_tier(&self->decode, &config->decode, config->believed_factor, load->count_count, &load->decode);
  tf_policy_observe(&self->state, &config->policy, load);
  self->asked = self->state;
  self->asked.budget = tf_rule_observe(&self->rule, &self->state, &config->policy, load);
  tf_sim_moment *moment = moment_at(self);
  moment->seen = true;
  moment->budget = self->asked.budget;
  moment->unfinished = (double)load->unfinished;
  moment->waiting = (double)load->waiting;
  moment->encoders = self->encode.live;
  moment->llms = self->decode.live;
  double seconds = TF_SIM_OBSERVE_MS / 1000.0;
  self->out->worker_s_encode += seconds * (self->encode.live + (double)self->starting_encode);
  self->out->worker_s_decode += seconds * (self->decode.live + (double)self->starting_decode);
  tf_policy_demand(&config->policy, &self->state, load, &moment->wanted_encoders, &moment->wanted_llms);
}

/* --- Autoscaling --- */

static bool scale_tier(sim *self, bool encode, double wanted_now, double wanted_most) {
  const tf_sim_tier_config *config = encode ? &self->config->encode : &self->config->decode;
  size_t *starting = encode ? &self->starting_encode : &self->starting_decode;
  bool to_zero = self->config->scaling.to_zero;
  double least = to_zero ? 0 : config->workers, most = config->workers_max;
  long up = lround(fmin(fmax(ceil(wanted_now), least), most));
  long keep = lround(fmin(fmax(ceil(wanted_most), least), most));
  long have = (long)tier(self, encode)->live + (long)*starting;
  for (; have < up; have++) {
    if (!add_later(self, (later){self->now_s + self->config->scaling.start_s, encode, TF_SIM_NONE})) return false;
    ++*starting;
  }
  for (; have > keep && tier(self, encode)->live > (to_zero ? 0 : 1); have--) tf_sim_tier_drain(tier(self, encode));
  return true;
}

static bool scale(sim *self) {
  const tf_sim_scaling *scaling = &self->config->scaling;
  double now[2], most[2] = {0, 0};
  tf_policy_demand(&self->config->policy, &self->state, &self->load, &now[0], &now[1]);
  size_t keep = (size_t)fmin(scaling->scale_down_s / scaling->period_s + 1, DEMANDS_MAX);
  double *slot = &self->demands[2 * (self->demand_count++ % keep)];
  slot[0] = now[0];
  slot[1] = now[1];
  for (size_t i = 0; i < keep && i < self->demand_count; i++)
    for (size_t k = 0; k < 2; k++) most[k] = fmax(most[k], self->demands[2 * i + k]);
  return scale_tier(self, true, now[0], most[0]) && scale_tier(self, false, now[1], most[1]);
}

/* --- The run --- */

/* What is due at a fixed time; the load is read last, so that it is of this moment. */
static bool tick(sim *self) {
  const tf_simulation *config = self->config;
  self->now_s = self->next_observe_s;
  self->next_observe_s += TF_SIM_OBSERVE_MS / 1000.0;
  while (self->next_event < config->event_count && config->events[self->next_event].at_s <= self->now_s) {
    const tf_sim_event *event = &config->events[self->next_event++];
    if (!change_workers(self, event->encode, event->change)) return false;
  }
  run_laters(self);
  if (config->scaling.on && self->now_s >= self->next_scale_s) {
    self->next_scale_s += config->scaling.period_s;
    if (!scale(self)) return false;
  }
  observe(self);
  return place(self);
}

static bool run(sim *self) {
  for (;;) {
    double encode_s = tf_sim_tier_next_s(&self->encode), decode_s = tf_sim_tier_next_s(&self->decode);
    double next_s = fmin(fmin(encode_s, decode_s), fmin(self->next_arrival_s, self->next_observe_s));
    bool left = isfinite(self->next_arrival_s) || !tf_sim_queue_is_empty(&self->queue) || self->encode.jobs > 0 ||
                self->decode.jobs > 0 || self->now_s < self->config->arrivals.duration_s;
    if (!left || next_s > self->end_s) return true;
    bool well = true;
    if (next_s == self->next_observe_s) {
      well = tick(self);
    } else if (next_s == self->next_arrival_s) {
      well = arrive(self);
    } else {
      if (next_s == decode_s)
        finished(self);
      else
        encoded(self);
      well = place(self);
    }
    if (!well) return false;
  }
}

static double alone_share(const tf_sim_tier_config *config, size_t counts) {
  double sum = 0;
  for (size_t i = 0; i < counts; i++) sum += config->alone_ms[i] / (config->service_ms[i] * config->slots);
  return fmin(fmax(sum / (double)counts, 1e-3), 1);
}

static bool open_tier(sim *self, bool encode) {
  const tf_sim_tier_config *config = encode ? &self->config->encode : &self->config->decode;
  uint64_t capacity = (uint64_t)config->workers + (self->config->scaling.on ? config->workers_max : 0) + 1;
  for (size_t i = 0; i < self->config->event_count; i++)
    if (self->config->events[i].encode == encode && self->config->events[i].change > 0)
      capacity += (uint64_t)self->config->events[i].change;
  if (capacity > TF_SIM_WORKERS_MAX) capacity = TF_SIM_WORKERS_MAX;
  double share = alone_share(config, self->config->count_count);
  if (!tf_sim_tier_open(tier(self, encode), (uint32_t)capacity, config->slots, config->window, share)) return false;
  for (uint32_t i = 0; i < config->workers; i++) tf_sim_tier_join(tier(self, encode), 0);
  for (size_t i = 0; i < self->config->count_count; i++)
    (encode ? self->work_encode : self->work_decode)[i] = config->service_ms[i] * config->slots / 1000;
  return true;
}

static bool open_all(sim *self) {
  const tf_simulation *config = self->config;
  self->out = calloc(1, sizeof *self->out);
  self->waits = calloc(WAIT_BINS, sizeof *self->waits);
  self->totals = calloc(WAIT_BINS, sizeof *self->totals);
  self->demands = calloc(2 * (size_t)DEMANDS_MAX, sizeof *self->demands);
  if (!self->out || !self->waits || !self->totals || !self->demands) return false;
  if (!tf_sim_queue_open(&self->queue) || !open_tier(self, true) || !open_tier(self, false)) return false;
  memcpy(self->load.counts, config->counts, sizeof config->counts);
  self->load.count_count = config->count_count;
  self->rule = config->rule;
  self->random.state = config->seed ^ UINT64_C(0xa5a5a5a5a5a5a5a5);
  self->sigma = sqrt(log1p(config->service_spread * config->service_spread));
  self->out->step_s = config->arrivals.duration_s / SERIES_STEPS;
  self->end_s = config->arrivals.duration_s * RUN_TIMES_MAX;
  tf_arrivals_start(&self->arrivals, &config->arrivals, config->seed);
  self->next_arrival_s = tf_arrivals_next(&self->arrivals);
  return true;
}

static void close_all(sim *self) {
  tf_sim_tier_close(&self->encode);
  tf_sim_tier_close(&self->decode);
  tf_sim_queue_close(&self->queue);
  free(self->waits);
  free(self->totals);
  free(self->laters);
  free(self->demands);
}

static void sum_up(sim *self) {
  tf_sim_result *out = self->out;
  double finished_jobs = out->finished ? (double)out->finished : 1;
  out->unfinished = tf_sim_queue_waiting(&self->queue) + self->encode.jobs + self->decode.jobs;
  out->wait_mean_s = self->wait_sum_s / finished_jobs;
  out->wait_p50_s = tf_histogram_quantile(self->waits, WAIT_BINS, 0.5);
  out->wait_p95_s = tf_histogram_quantile(self->waits, WAIT_BINS, 0.95);
  out->wait_p99_s = tf_histogram_quantile(self->waits, WAIT_BINS, 0.99);
  out->total_p50_s = tf_histogram_quantile(self->totals, WAIT_BINS, 0.5);
  out->total_p95_s = tf_histogram_quantile(self->totals, WAIT_BINS, 0.95);
  out->mean_tokens = self->tokens_sum / finished_jobs;
  out->encode_busy_s = self->encode.busy_s;
  out->decode_busy_s = self->decode.busy_s;
}

static bool tier_is_sane(const tf_sim_tier_config *config, size_t counts) {
  bool sane = config->slots >= 1 && config->slots <= TF_SIM_SLOTS_MAX && config->window >= config->slots &&
              config->window <= TF_SIM_WINDOW_MAX && config->workers < TF_SIM_WORKERS_MAX &&
              config->workers_max < TF_SIM_WORKERS_MAX;
  for (size_t i = 0; i < counts; i++)
    sane = sane && isfinite(config->service_ms[i]) && config->service_ms[i] > 0 && isfinite(config->alone_ms[i]) &&
           config->alone_ms[i] > 0;
  return sane;
}

static tf_code check(const tf_simulation *config, tf_error *error) {
  if (config->count_count < 1 || config->count_count > TF_POLICY_COUNTS_MAX)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "1 to %d token counts are possible", TF_POLICY_COUNTS_MAX);
  for (uint32_t i = 0; i < config->count_count; i++)
    if (config->counts[i] == 0 || (i > 0 && config->counts[i] <= config->counts[i - 1]))
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "token counts must be above 0 and ascend");
  if (!tier_is_sane(&config->encode, config->count_count) || !tier_is_sane(&config->decode, config->count_count))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "each tier needs service times above 0, 1 to %d slots, a window of at least as many and at most %d, "
                   "and fewer than %d workers",
                   TF_SIM_SLOTS_MAX, TF_SIM_WINDOW_MAX, TF_SIM_WORKERS_MAX);
  if (!(config->arrivals.duration_s > 0) || !isfinite(config->arrivals.duration_s))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "the duration must be above 0");
  if (config->rule.kind == TF_RULE_FIXED) {
    bool offered = false;
    for (uint32_t i = 0; i < config->count_count; i++) offered |= config->counts[i] == config->rule.tokens;
    if (!offered)
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "fixed:%u is none of the token counts", config->rule.tokens);
  }
  return TF_OK;
}

tf_code tf_simulate(const tf_simulation *config, tf_sim_result **out, tf_error *error) {
  *out = NULL;
  tf_code code = check(config, error);
  if (code != TF_OK) return code;
  sim *self = calloc(1, sizeof *self);
  if (!self) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the simulation");
  self->config = config;
  bool well = open_all(self) && run(self);
  if (well) sum_up(self);
  close_all(self);
  *out = self->out;
  free(self);
  if (well) return TF_OK;
  tf_sim_result_free(out);
  return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for so many waiting jobs");
}

void tf_sim_result_free(tf_sim_result **self) {
  if (!self) return;
  free(*self);
  *self = NULL;
}

/* Load, shared budget, choices. In: readings, workers. Out: choices, the policy state written back to Redis.
 * Each router reads the state about ten times a second; the first to find it a tenth of a second old moves it on and
 * writes it, where nobody else has meanwhile. At idle that happens once a second, so that an idle queue costs next to
 * nothing. Every router decides from the state that it read last, or has just made itself. */
#include "router/load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double NUMBER_MAX = 1e9; /* of what Redis says that a job costs, ms */

typedef struct pace {
  char name[TF_REPLY_NAME_BYTES_MAX + 1]; /* "": free */
  bool known;
  double budget;
  tf_policy_mix mix;
  int64_t seen_ms; /* our clock */
} pace;

struct tf_load {
  tf_load_parts parts;
  tf_policy_load load;
  tf_policy_state state;
  tf_policy_mix mix;
  char text[TF_POLICY_STATE_TEXT_BYTES_MAX]; /* the state as Redis had it when it was read */
  size_t text_size;
  bool was_read, writing;
  bool encode_measured, decode_measured; /* by workers that are here */
  int64_t taken_ms;                      /* when the last reading came, by our clock; 0: none holds */
  int64_t read_ms, tiers_ms;             /* our clock */
  pace paces[TF_PACES_MAX];
  tf_arguments arguments;
};

tf_code tf_load_new(const tf_load_parts *parts, tf_load **out) {
  tf_load *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->parts = *parts;
  *out = self;
  return TF_OK;
}

void tf_load_free(tf_load **self) {
  if (!self || !*self) return;
  free(*self);
  *self = NULL;
}

const tf_policy_load *tf_load_now(const tf_load *self) {
  return &self->load;
}
const tf_policy_state *tf_load_state(const tf_load *self) {
  return &self->state;
}
tf_policy_config tf_load_config(const tf_load *self) {
  return (tf_policy_config){.target_wait_ms = self->parts.config->target_wait_ms};
}
void tf_load_lost(tf_load *self) {
  self->taken_ms = 0;
}
bool tf_load_is_fresh(const tf_load *self) {
  return self->taken_ms > 0 && tf_now_ms() - self->taken_ms < TF_LOAD_FRESH_MS;
}
bool tf_load_is_unmeasured(const tf_load *self) {
  return !self->encode_measured || !self->decode_measured;
}
bool tf_load_wants_state(const tf_load *self) {
  return !self->was_read || tf_now_ms() - self->read_ms >= TF_LOAD_OBSERVE_MS;
}

/* --- The budget --- */

/* While nobody of a tier has measured (none is there, or all have just come), what was last known holds, so that the
 * first jobs after a pause ask for as many workers as they need. True: somebody has. */
static bool read_tier(tf_load *self, tf_role role, const uint32_t *counts, size_t count, bool same,
                      tf_policy_tier *out) {
  tf_policy_tier before = *out;
  tf_workers_tier(self->parts.workers, role, counts, count, out);
  bool measured = false;
  for (size_t i = 0; i < count; i++) measured = measured || out->service_ms[i] > 0;
  if (same && !measured) memcpy(out->service_ms, before.service_ms, sizeof out->service_ms);
  return measured;
}

/* Workers come and go, and measure: looked at as often as the budget moves. */
static void read_workers(tf_load *self) {
  int64_t now_ms = tf_now_ms();
  if (self->tiers_ms && now_ms - self->tiers_ms < TF_LOAD_OBSERVE_MS) return;
  self->tiers_ms = now_ms;
  const tf_worker *pair = tf_workers_main_pair(self->parts.workers);
  /* With no pair alive the counts stay: the queue goes on growing, and its routers' budget with it. */
  bool same = !pair || (pair->token_count_count == self->load.count_count &&
                        memcmp(pair->token_counts, self->load.counts, sizeof self->load.counts) == 0);
  if (pair) {
    self->load.count_count = pair->token_count_count;
    memcpy(self->load.counts, pair->token_counts, sizeof self->load.counts);
  }
  const uint32_t *counts = self->load.counts;
  size_t count = self->load.count_count;
  self->encode_measured = read_tier(self, TF_ROLE_ENCODER, counts, count, same, &self->load.encode);
  self->decode_measured = read_tier(self, TF_ROLE_LLM, counts, count, same, &self->load.decode);
}

/* "92.1,93,94.7" -> numbers of 0 to NUMBER_MAX; how many, 0 where the text is none of that. */
static size_t parse_numbers(const char *text, double out[TF_POLICY_COUNTS_MAX]) {
  size_t count = 0;
  while (*text) {
    char *end;
    double number = strtod(text, &end);
    if (end == text || !(number >= 0 && number <= NUMBER_MAX) || (*end && *end != ',')) return 0;
    if (count == TF_POLICY_COUNTS_MAX) return 0;
    out[count++] = number;
    if (*end && !end[1]) return 0;
    text = *end ? end + 1 : end;
  }
  return count;
}

/* Counts as a model has them; 0: the text is none of that. */
static size_t parse_counts(const char *text, uint32_t out[TF_POLICY_COUNTS_MAX]) {
  double numbers[TF_POLICY_COUNTS_MAX];
  size_t count = parse_numbers(text, numbers);
  for (size_t i = 0; i < count; i++) {
    if (numbers[i] < 1 || numbers[i] > TF_VISION_TOKENS_MAX || (i > 0 && numbers[i] <= out[i - 1])) return 0;
    out[i] = (uint32_t)numbers[i];
  }
  return count;
}

static void recall_tier(const char *text, size_t count, bool measured, tf_policy_tier *tier) {
  double service_ms[TF_POLICY_COUNTS_MAX];
  if (!measured && parse_numbers(text, service_ms) == count)
    memcpy(tier->service_ms, service_ms, count * sizeof *service_ms);
}

void tf_load_recall(tf_load *self, const char *counts_text, const char *encode_service_ms,
                    const char *decode_service_ms) {
  tf_policy_load *load = &self->load;
  uint32_t counts[TF_POLICY_COUNTS_MAX] = {0};
  size_t count = parse_counts(counts_text, counts);
  if (count == 0) return;
  bool same = load->count_count == count && memcmp(load->counts, counts, sizeof counts) == 0;
  if (!same && tf_workers_main_pair(self->parts.workers)) return;
  if (!same) { /* routers that have workers go by another model than our last one */
    memcpy(load->counts, counts, sizeof counts);
    load->count_count = (uint32_t)count;
    memset(load->encode.service_ms, 0, sizeof load->encode.service_ms);
    memset(load->decode.service_ms, 0, sizeof load->decode.service_ms);
  }
  recall_tier(encode_service_ms, count, self->encode_measured, &load->encode);
  recall_tier(decode_service_ms, count, self->decode_measured, &load->decode);
}

_Static_assert((int)TF_POLICY_COUNTS_MAX == (int)TF_HELLO_COUNTS_MAX, "the policy knows every count of a HELLO");

static void on_written(void *context, const redisReply *reply) {
  tf_load *self = context;
  (void)reply; /* another was first: the next reading brings its state */
  self->writing = false;
}

static bool is_due(const tf_load *self, const tf_policy_state *state) {
  const tf_policy_load *load = &self->load;
  int64_t since_ms = load->now_ms - state->observed_ms;
  if (state->budget <= 0 || since_ms < 0) return true; /* the start, or a clock that was set back */
  bool idle = load->unfinished == 0 && load->arrived == state->arrived;
  return since_ms >= (idle ? TF_LOAD_OBSERVE_IDLE_MS : TF_LOAD_OBSERVE_MS);
}

/* Moves the state on, and writes it in place of the one that it was made from. */
static void move_on(tf_load *self) {
  tf_policy_config config = tf_load_config(self);
  char next[TF_POLICY_STATE_TEXT_BYTES_MAX];
  tf_policy_observe(&self->state, &config, &self->load);
  if (!tf_policy_state_write(&self->state, next, sizeof next)) return;
  tf_arguments_clear(&self->arguments);
  tf_arguments_add_bytes(&self->arguments, self->text, self->text_size);
  tf_arguments_add(&self->arguments, next);
  self->writing = tf_scripts_call(self->parts.scripts, TF_SCRIPT_POLICY, &self->arguments, on_written, self);
}

void tf_load_take(tf_load *self, const tf_load_reading *reading) {
  tf_policy_load *load = &self->load;
  load->now_ms = reading->now_ms;
  load->unfinished = reading->unfinished;
  load->in_encode = reading->in_encode;
  load->in_decode = reading->in_decode;
  load->waiting = reading->unfinished - reading->in_encode - reading->in_decode;
  if (load->waiting < 0) load->waiting = 0;
  load->arrived = reading->arrived;
  load->called = reading->called;
  self->taken_ms = tf_now_ms();
  read_workers(self);
  if (!reading->state || self->writing) return;
  self->was_read = true;
  self->read_ms = tf_now_ms();
  self->text_size = reading->state_size < sizeof self->text ? reading->state_size : 0;
  memcpy(self->text, reading->state, self->text_size);
  tf_policy_state_read(self->text, self->text_size, &self->state);
  if (load->count_count > 0 && is_due(self, &self->state)) move_on(self);
}

/* --- Paced runs --- */

static pace *find_pace(tf_load *self, const char *name) {
  for (size_t i = 0; i < TF_PACES_MAX; i++)
    if (self->paces[i].name[0] && !strcmp(self->paces[i].name, name)) return &self->paces[i];
  return NULL;
}

/* A slot for a new run: a free one, or that of a run whose jobs have stopped coming. NULL: all are in use. */
static pace *take_pace(tf_load *self, int64_t now_ms) {
  for (size_t i = 0; i < TF_PACES_MAX; i++) {
    pace *one = &self->paces[i];
    if (one->name[0] && now_ms - one->seen_ms < TF_PACE_KEPT_MS) continue;
    *one = (pace){.known = false};
    return one;
  }
  return NULL;
}

void tf_load_pace(tf_load *self, const char *name, size_t size, bool known, int64_t remaining, int64_t finish_ms) {
  char text[TF_REPLY_NAME_BYTES_MAX + 1];
  if (size == 0 || size >= sizeof text) return;
  memcpy(text, name, size);
  text[size] = 0;
  int64_t now_ms = tf_now_ms();
  pace *one = find_pace(self, text);
  if (!one) one = take_pace(self, now_ms);
  if (!one) return;
  memcpy(one->name, text, size + 1);
  one->seen_ms = now_ms;
  one->known = known;
  int64_t left_ms = finish_ms > self->load.now_ms ? finish_ms - self->load.now_ms : 0;
  one->budget = known ? tf_policy_pace_budget(&self->load, remaining, left_ms) : 0;
}

const char *tf_load_pace_at(const tf_load *self, size_t index, double *budget) {
  int64_t now_ms = tf_now_ms();
  for (size_t i = 0; i < TF_PACES_MAX; i++) {
    const pace *one = &self->paces[i];
    if (!one->name[0] || !one->known || one->budget <= 0 || now_ms - one->seen_ms >= TF_PACE_KEPT_MS) continue;
    if (index-- > 0) continue;
    *budget = one->budget;
    return one->name;
  }
  return NULL;
}

/* --- Choices --- */

tf_policy_choice tf_load_choose(tf_load *self, const char *name, tf_policy_job *job) {
  tf_policy_config config = tf_load_config(self);
  pace *one = name ? find_pace(self, name) : NULL;
  bool paced = one && one->known && one->budget > 0;
  job->budget = paced ? one->budget : 0;
  return tf_policy_choose(&self->state, &config, &self->load, paced ? &one->mix : &self->mix, job);
}

void tf_load_text(const tf_load *self, char out[TF_LOAD_TEXT_BYTES_MAX]) {
  const tf_policy_load *load = &self->load;
  double arrivals = isfinite(self->state.rate.per_s) ? self->state.rate.per_s : 0;
  snprintf(out, TF_LOAD_TEXT_BYTES_MAX,
           "{\"unfinished\":%lld,\"waiting\":%lld,\"arrivals_per_s\":%.3f,\"budget\":%.1f}",
           (long long)load->unfinished, (long long)load->waiting, arrivals, self->state.budget);
}

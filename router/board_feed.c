/* Feeds the board. In: replies of Redis, actions. Out: readings, a sample every step, verdicts.
 * While nobody watches two small commands every two seconds are all that it costs. Whatever does not answer leaves a
 * gap in the plots; nothing here is waited for. */
#include "router/board_feed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mailbox.h"

struct tf_board_feed {
  tf_board_feed_parts parts;
  tf_mailbox *mailbox; /* of action */
  int timer;
  bool odd; /* every other tick makes a sample */
  bool load_asked, sample_due;
  tf_board_load load;
  bool load_known;
  double ended; /* jobs that ever ended, at the last sample; below 0: not known */
  int64_t ended_ms;
  bool watched, workers_asked;
  struct {
    bool busy, stale;
    int64_t length; /* of `dead` when they were read; -1: not read */
    int64_t read_ms;
    char to[TF_LETTER_SID_BYTES + 1]; /* where the next page ends */
    size_t count;
  } letters;
  tf_arguments arguments;
};

typedef struct action {
  tf_board_feed *owner;
  uint64_t request;
  char sids[1][TF_LETTER_SID_BYTES];
  bool retry;
} action;

static bool command(tf_board_feed *self, const char *name, const char *suffix, tf_redis_reply_fn fn) {
  char key[TF_REDIS_KEY_BYTES_MAX];
  tf_scripts_key(self->parts.scripts, suffix, key);
  tf_arguments_clear(&self->arguments);
  tf_arguments_add(&self->arguments, name);
  tf_arguments_add(&self->arguments, key);
  return tf_scripts_command(self->parts.scripts, &self->arguments, fn, self);
}

/* ---- load ---- */

static uint32_t read_list(const char *text, double out[TF_POLICY_COUNTS_MAX]) {
  uint32_t count = 0;
  char *end;
  for (const char *at = text; *at && count < TF_POLICY_COUNTS_MAX; at = *end == ',' ? end + 1 : end) {
    out[count] = strtod(at, &end);
    if (end == at) break;
    count++;
  }
  return count;
}

bool tf_board_load_of(const redisReply *reply, tf_board_load *out) {
  memset(out, 0, sizeof *out);
  const struct {
    const char *name;
    double *number, *list;
  } fields[] = {{"unfinished", &out->unfinished, NULL},
                {"waiting", &out->waiting, NULL},
                {"encode", &out->encode, NULL},
                {"decode", &out->decode, NULL},
                {"arrivals_per_s", &out->arrivals_per_s, NULL},
                {"budget", &out->budget, NULL},
                {"target_wait_ms", &out->target_wait_ms, NULL},
                {"dead", &out->dead, NULL},
                {"results", &out->results, NULL},
                {"encode_workers", &out->encoders.workers, NULL},
                {"encode_wanted", &out->encoders.wanted, NULL},
                {"decode_workers", &out->llms.workers, NULL},
                {"decode_wanted", &out->llms.wanted, NULL},
                {"mix", NULL, out->mix},
                {"capacity_per_s", NULL, out->capacity_per_s},
                {"encode_service_ms", NULL, out->encoders.service_ms},
                {"decode_service_ms", NULL, out->llms.service_ms}};
  for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i + 1 < reply->elements; i += 2) {
    const redisReply *name = reply->element[i], *value = reply->element[i + 1];
    if (name->type != REDIS_REPLY_STRING || value->type != REDIS_REPLY_STRING) continue;
    if (!strcmp(name->str, "updated_ms")) out->updated_ms = strtoll(value->str, NULL, 10);
    if (!strcmp(name->str, "counts")) out->count_count = read_list(value->str, out->counts);
    for (size_t k = 0; k < sizeof fields / sizeof *fields; k++) {
      if (strcmp(name->str, fields[k].name) != 0) continue;
      if (fields[k].number) *fields[k].number = strtod(value->str, NULL);
      if (fields[k].list) read_list(value->str, fields[k].list);
    }
  }
  return out->updated_ms > 0;
}

/* Mean tokens of the assignments of the last minute; NAN where there were none. */
static float mean_assigned(const tf_board_load *load) {
  double tokens = 0, shares = 0;
  for (uint32_t i = 0; i < load->count_count; i++) {
    tokens += load->mix[i] * load->counts[i];
    shares += load->mix[i];
  }
  return shares > 0.5 ? (float)(tokens / shares) : NAN;
}

/* ended: jobs that ever ended; below 0: Redis did not answer. */
static void add_sample(tf_board_feed *self, double ended) {
  int64_t now_ms = tf_redis_clock_us(self->parts.clock) / 1000;
  tf_sample sample = {.at_ms = now_ms, .finished_per_s = NAN};
  bool known = ended >= 0 && self->load_known;
  const tf_board_load *load = &self->load;
  if (ended >= 0 && self->ended >= 0 && ended >= self->ended && now_ms > self->ended_ms)
    sample.finished_per_s = (float)((ended - self->ended) * 1000 / (double)(now_ms - self->ended_ms));
  self->ended = ended;
  self->ended_ms = now_ms;
  sample.arrivals_per_s = known ? (float)load->arrivals_per_s : NAN;
  sample.waiting = known ? (float)load->waiting : NAN;
  sample.encode = known ? (float)load->encode : NAN;
  sample.decode = known ? (float)load->decode : NAN;
  sample.budget = known && load->budget > 0 ? (float)load->budget : NAN;
  sample.assigned = known ? mean_assigned(load) : NAN;
  sample.encoders = known ? (float)load->encoders.workers : NAN;
  sample.encoders_wanted = known ? (float)load->encoders.wanted : NAN;
  sample.llms = known ? (float)load->llms.workers : NAN;
  sample.llms_wanted = known ? (float)load->llms.wanted : NAN;
  tf_board_sample(self->parts.board, &sample);
}

static void on_load(void *context, const redisReply *reply) {
  tf_board_feed *self = context;
  tf_board_load load;
  self->load_asked = false;
  if (!reply || !tf_board_load_of(reply, &load)) return;
  self->load = load;
  self->load_known = true;
  tf_board_load_read(self->parts.board, &load);
}

/* Asked for after the load, and so answered after it. */
static void on_ended(void *context, const redisReply *reply) {
  tf_board_feed *self = context;
  if (!self->sample_due) return; /* it came too late: a gap stands for it already */
  self->sample_due = false;
  bool there = reply && reply->type == REDIS_REPLY_STRING, none = reply && reply->type == REDIS_REPLY_NIL;
  add_sample(self, there ? strtod(reply->str, NULL) : none ? 0 : -1);
}

static void read_load(tf_board_feed *self, bool for_sample) {
  if (for_sample && self->sample_due) {
    self->sample_due = false;
    add_sample(self, -1);
  }
  if (self->load_asked) return;
  self->load_asked = command(self, "HGETALL", "load", on_load);
  if (!for_sample) return;
  self->sample_due = self->load_asked && command(self, "GET", "ended", on_ended);
  if (!self->sample_due) add_sample(self, -1);
}

/* ---- workers ---- */

static bool is_worker(const redisReply *name, const redisReply *value) {
  bool strings = name->type == REDIS_REPLY_STRING && value->type == REDIS_REPLY_STRING;
  return strings && name->len < TF_BOARD_ID_BYTES && value->len < TF_BOARD_WORKER_BYTES_MAX &&
         !memchr(name->str, 0, name->len) && !memchr(value->str, 0, value->len);
}

static void on_workers(void *context, const redisReply *reply) {
  tf_board_feed *self = context;
  self->workers_asked = false;
  if (!reply || reply->type != REDIS_REPLY_ARRAY) return;
  size_t bytes = 0, count = 0;
  for (size_t i = 0; i + 1 < reply->elements && count < TF_BOARD_WORKERS_MAX; i += 2) {
    const redisReply *name = reply->element[i], *value = reply->element[i + 1];
    if (!is_worker(name, value)) continue;
    bytes += name->len + value->len + 2;
    count++;
  }
  char *all = malloc(bytes + 1), *at = all;
  if (!all) return;
  for (size_t i = 0, left = count; left > 0; i += 2) {
    const redisReply *name = reply->element[i], *value = reply->element[i + 1];
    if (!is_worker(name, value)) continue;
    memcpy(at, name->str, name->len + 1);
    memcpy(at + name->len + 1, value->str, value->len + 1);
    at += name->len + value->len + 2;
    left--;
  }
  tf_board_workers(self->parts.board, &all, bytes, count, reply->elements / 2);
}

/* ---- letters ---- */

static void on_letters(void *context, const redisReply *reply);

static void ask_letters(tf_board_feed *self) {
  char key[TF_REDIS_KEY_BYTES_MAX], count[12];
  const char *words[TF_LETTERS_READ_WORDS];
  const tf_letters_range range = {.first = "-", .last = self->letters.to, .newest_first = true};
  tf_scripts_key(self->parts.scripts, "dead", key);
  snprintf(count, sizeof count, "%d", TF_BOARD_LETTERS_A_CALL);
  size_t used = tf_letters_read_words(key, &range, count, words);
  tf_arguments_clear(&self->arguments);
  for (size_t i = 0; i < used; i++) tf_arguments_add(&self->arguments, words[i]);
  self->letters.busy = tf_scripts_command(self->parts.scripts, &self->arguments, on_letters, self);
}

static void on_letters(void *context, const redisReply *reply) {
  tf_board_feed *self = context;
  const char *last = "";
  self->letters.busy = false;
  if (!self->watched) return; /* forgotten meanwhile */
  const redisReply *letters = reply ? tf_letters_of(reply, &last) : NULL;
  if (!letters) {
    self->letters.length = -1;
    return;
  }
  tf_letter letter;
  for (size_t i = 0; i < letters->elements && self->letters.count < TF_BOARD_LETTERS; i++) {
    if (!tf_letter_read(letters->element[i], &letter)) continue;
    tf_board_letters_add(self->parts.board, &letter);
    self->letters.count++;
  }
  if (last[0] && self->letters.count < TF_BOARD_LETTERS) {
    snprintf(self->letters.to, sizeof self->letters.to, "(%s", last);
    ask_letters(self);
  } else {
    tf_board_letters_end(self->parts.board);
  }
}

static void on_length(void *context, const redisReply *reply) {
  tf_board_feed *self = context;
  self->letters.busy = false;
  if (!reply || reply->type != REDIS_REPLY_INTEGER) return;
  int64_t now_ms = tf_now_ms(), age_ms = now_ms - self->letters.read_ms;
  bool first = self->letters.length < 0, others = reply->integer != self->letters.length;
  bool due =
      first || self->letters.stale || (others && age_ms >= TF_BOARD_LETTERS_MS) || age_ms >= TF_BOARD_LETTERS_KEPT_MS;
  if (!due) return;
  self->letters.stale = false;
  self->letters.length = reply->integer;
  self->letters.read_ms = now_ms;
  self->letters.count = 0;
  snprintf(self->letters.to, sizeof self->letters.to, "+");
  tf_board_letters_begin(self->parts.board);
  ask_letters(self);
}

/* ---- actions ---- */

/* Takes the action. */
static void settle(action *done, const char *verdict) {
  tf_board_feed *self = done->owner;
  self->letters.stale = true;
  tf_board_settled(self->parts.board, done->request, verdict);
  tf_log_info(done->retry ? "letter_retry" : "letter_drop", TF_STR("letter", done->sids[0]), TF_STR("by", "page"),
              TF_STR("verdict", verdict));
  free(done);
}

static void on_settled(void *context, const redisReply *reply) {
  bool fine = reply && tf_letters_are_verdicts(reply, 1);
  settle(context, fine ? reply->element[0]->str : "unreachable");
}

static void act(tf_board_feed *self, action *item) {
  char keys[3][TF_REDIS_KEY_BYTES_MAX], prefix[TF_REDIS_KEY_BYTES_MAX];
  static const char *const suffixes[] = {"dead", "jobs:0", "jobs:1"};
  const char *words[TF_LETTERS_SETTLE_WORDS], *const names[] = {keys[0], keys[1], keys[2]};
  for (int i = 0; i < 3; i++) tf_scripts_key(self->parts.scripts, suffixes[i], keys[i]);
  tf_scripts_key(self->parts.scripts, "", prefix);
  size_t used = tf_letters_settle_words(names, prefix, item->retry ? "own" : "drop",
                                        (const char(*)[TF_LETTER_SID_BYTES])item->sids, 1, words);
  tf_arguments_clear(&self->arguments);
  for (size_t i = 0; i < used; i++) tf_arguments_add(&self->arguments, words[i]);
  if (!tf_scripts_command(self->parts.scripts, &self->arguments, on_settled, item)) settle(item, "unreachable");
}

static void on_mail(void *context, int fd, int events) {
  (void)fd, (void)events;
  tf_board_feed *self = context;
  action *item;
  for (int i = 0; i < TF_BOARD_ACTIONS_WAITING_MAX && (item = tf_mailbox_try_pop(self->mailbox)) != NULL; i++)
    act(self, item);
}

bool tf_board_feed_act(tf_board_feed *self, const char *sid, bool retry, uint64_t *request) {
  action *item = calloc(1, sizeof *item);
  if (!item) return false;
  item->owner = self;
  item->retry = retry;
  snprintf(item->sids[0], TF_LETTER_SID_BYTES, "%s", sid);
  *request = item->request = tf_board_action_asked(self->parts.board, sid, retry);
  if (tf_mailbox_push(self->mailbox, item)) return true;
  free(item);
  tf_board_settled(self->parts.board, *request, "busy");
  return false;
}

/* ---- once a second ---- */

static void on_timer(void *context) {
  tf_board_feed *self = context;
  bool watched = tf_board_is_watched(self->parts.board);
  self->odd = !self->odd;
  if (watched || self->odd) read_load(self, self->odd);
  if (!watched && self->watched) { /* what is shown next is not to be of now */
    tf_board_workers(self->parts.board, NULL, 0, 0, 0);
    tf_board_letters_forget(self->parts.board);
    self->letters.length = -1;
  }
  self->watched = watched;
  if (!watched) return;
  if (!self->workers_asked) self->workers_asked = command(self, "HGETALL", "workers", on_workers);
  if (!self->letters.busy) self->letters.busy = command(self, "XLEN", "dead", on_length);
}

_Static_assert(TF_HISTORY_STEP_MS == 2 * TF_BOARD_FEED_MS, "every other tick makes a sample");

tf_code tf_board_feed_new(const tf_board_feed_parts *parts, tf_board_feed **out) {
  tf_board_feed *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->parts = *parts;
  self->ended = -1;
  self->letters.length = -1;
  self->mailbox = tf_mailbox_new(TF_BOARD_ACTIONS_WAITING_MAX);
  self->timer = tf_reactor_add_timer(parts->reactor, TF_BOARD_FEED_MS, true, on_timer, self);
  tf_code code = self->mailbox && self->timer >= 0
                     ? tf_reactor_set_fd(parts->reactor, tf_mailbox_fd(self->mailbox), TF_READABLE, on_mail, self)
                     : TF_ERR_OUT_OF_MEMORY;
  *out = self;
  if (code != TF_OK) tf_board_feed_free(out);
  return code;
}

void tf_board_feed_free(tf_board_feed **self) {
  if (!self || !*self) return;
  tf_board_feed *freed = *self;
  *self = NULL;
  if (freed->timer >= 0) tf_reactor_remove_timer(freed->parts.reactor, freed->timer);
  if (freed->mailbox) {
    tf_reactor_remove_fd(freed->parts.reactor, tf_mailbox_fd(freed->mailbox));
    tf_mailbox_free(&freed->mailbox, free);
  }
  free(freed);
}

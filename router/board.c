/* What the status page shows. In: the router's thread. Out: copies for the endpoint's thread.
 * One lock, held for copying alone: a page that is rendered holds nobody up. */
#include "router/board.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/utf8.h"

struct tf_board {
  pthread_mutex_t mutex;
  tf_board_view view;
  int64_t clock_offset_ms; /* Redis time less our monotonic clock */
  tf_waits waits;
  int64_t sampled_ms; /* our clock */
  uint64_t sampled_captions;
  tf_board_letter gathered[TF_BOARD_LETTERS];
  size_t gathered_count;
  _Atomic int64_t asked_ms; /* our clock; 0: never */
};

tf_board *tf_board_new(void) {
  tf_board *self = calloc(1, sizeof *self);
  if (!self || pthread_mutex_init(&self->mutex, NULL) != 0) {
    free(self);
    return NULL;
  }
  return self;
}

void tf_board_free(tf_board **self) {
  if (!self || !*self) return;
  free((*self)->view.workers);
  pthread_mutex_destroy(&(*self)->mutex);
  free(*self);
  *self = NULL;
}

void tf_board_text(char *out, size_t out_bytes, const char *text) {
  static const char replacement[] = "\xef\xbf\xbd", ellipsis[] = "\xe2\x80\xa6";
  size_t size = strlen(text), used = 0, cut_at = 0;
  for (size_t at = 0; at < size;) {
    size_t length = tf_utf8_character_bytes(text + at, size - at);
    const char *from = length ? text + at : replacement;
    size_t bytes = length ? length : sizeof replacement - 1;
    if (bytes >= out_bytes - used) { /* room for the NUL too */
      memcpy(out + cut_at, ellipsis, sizeof ellipsis);
      return;
    }
    memcpy(out + used, from, bytes);
    used += bytes;
    if (out_bytes - used >= sizeof ellipsis) cut_at = used;
    at += length ? length : 1;
  }
  out[used] = '\0';
}

/* ---- the router's thread ---- */

void tf_board_state(tf_board *self, int64_t redis_now_ms, bool redis, const char *not_ready) {
  pthread_mutex_lock(&self->mutex);
  self->clock_offset_ms = redis_now_ms - tf_now_ms();
  if (self->view.redis != redis || self->view.redis_ms == 0) self->view.redis_ms = redis_now_ms;
  self->view.redis = redis;
  snprintf(self->view.not_ready, sizeof self->view.not_ready, "%s", not_ready ? not_ready : "");
  pthread_mutex_unlock(&self->mutex);
}

void tf_board_load_read(tf_board *self, const tf_board_load *load) {
  pthread_mutex_lock(&self->mutex);
  self->view.load = *load;
  self->view.load_known = true;
  pthread_mutex_unlock(&self->mutex);
}

void tf_board_caption_done(tf_board *self, const tf_board_caption_text *text, int64_t done_ms, double total_ms,
                           double wait_ms) {
  pthread_mutex_lock(&self->mutex);
  tf_board_caption *item = &self->view.captions[self->view.caption_count++ % TF_BOARD_CAPTIONS];
  item->done_ms = done_ms;
  item->vision_tokens = text->vision_tokens;
  item->reason = text->reason;
  item->total_ms = total_ms;
  tf_board_text(item->id, sizeof item->id, text->id);
  tf_board_text(item->caption, sizeof item->caption, text->caption);
  tf_waits_add(&self->waits, tf_now_ms(), wait_ms);
  pthread_mutex_unlock(&self->mutex);
}

void tf_board_sample(tf_board *self, const tf_sample *sample) {
  tf_sample whole = *sample;
  int64_t now_ms = tf_now_ms(), since_ms = now_ms - self->sampled_ms;
  pthread_mutex_lock(&self->mutex);
  uint64_t captions = self->view.caption_count - self->sampled_captions;
  whole.captions_per_s =
      self->sampled_ms > 0 && since_ms > 0 ? (float)(1000.0 * (double)captions / (double)since_ms) : NAN;
  self->sampled_ms = now_ms;
  self->sampled_captions = self->view.caption_count;
  self->view.wait_jobs =
      tf_waits_percentiles(&self->waits, now_ms, TF_BOARD_WAITS_SPAN_MS, &whole.wait_p50_ms, &whole.wait_p95_ms);
  tf_history_add(&self->view.history, &whole);
  pthread_mutex_unlock(&self->mutex);
}

void tf_board_workers(tf_board *self, char **workers, size_t bytes, size_t count, size_t all) {
  pthread_mutex_lock(&self->mutex);
  char *old = self->view.workers;
  self->view.workers = workers ? *workers : NULL;
  self->view.workers_known = workers != NULL;
  self->view.workers_bytes = bytes;
  self->view.worker_count = count;
  self->view.workers_all = all;
  pthread_mutex_unlock(&self->mutex);
  if (workers) *workers = NULL;
  free(old);
}

void tf_board_letters_begin(tf_board *self) {
  self->gathered_count = 0;
}

void tf_board_letters_add(tf_board *self, const tf_letter *letter) {
  if (self->gathered_count == TF_BOARD_LETTERS) return;
  tf_board_letter *item = &self->gathered[self->gathered_count++];
  tf_board_text(item->sid, sizeof item->sid, letter->sid);
  tf_board_text(item->id, sizeof item->id, letter->id);
  tf_board_text(item->code, sizeof item->code, letter->code);
  tf_board_text(item->message, sizeof item->message, letter->message);
  tf_board_text(item->attempts, sizeof item->attempts, letter->attempts);
  item->image_dropped = letter->image_dropped;
}

void tf_board_letters_end(tf_board *self) {
  pthread_mutex_lock(&self->mutex);
  memcpy(self->view.letters, self->gathered, self->gathered_count * sizeof *self->gathered);
  self->view.letter_count = self->gathered_count;
  self->view.letters_known = true;
  pthread_mutex_unlock(&self->mutex);
}

void tf_board_letters_forget(tf_board *self) {
  pthread_mutex_lock(&self->mutex);
  self->view.letters_known = false;
  self->view.letter_count = 0;
  pthread_mutex_unlock(&self->mutex);
}

static tf_board_action *find_action(tf_board *self, uint64_t request) {
  for (size_t i = 0; i < TF_BOARD_ACTIONS; i++)
    if (self->view.actions[i].request == request) return &self->view.actions[i];
  return NULL;
}

static void remove_letter(tf_board_view *view, const char *sid) {
  for (size_t i = 0; i < view->letter_count; i++) {
    if (strcmp(view->letters[i].sid, sid) != 0) continue;
    view->letter_count--;
    memmove(&view->letters[i], &view->letters[i + 1], (view->letter_count - i) * sizeof *view->letters);
    return;
  }
}

void tf_board_settled(tf_board *self, uint64_t request, const char *verdict) {
  static const char *const gone[] = {"retried", "dropped", "gone"};
  pthread_mutex_lock(&self->mutex);
  tf_board_action *action = find_action(self, request);
  if (action) {
    snprintf(action->verdict, sizeof action->verdict, "%s", verdict);
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++)
      if (strcmp(verdict, gone[i]) == 0) remove_letter(&self->view, action->sid);
  }
  pthread_mutex_unlock(&self->mutex);
}

bool tf_board_is_watched(const tf_board *self) {
  int64_t asked_ms = atomic_load(&self->asked_ms);
  return asked_ms > 0 && tf_now_ms() - asked_ms < TF_BOARD_WATCHED_MS;
}

/* ---- any thread ---- */

uint64_t tf_board_action_asked(tf_board *self, const char *sid, bool retry) {
  pthread_mutex_lock(&self->mutex);
  tf_board_view *view = &self->view;
  tf_board_action *action = &view->actions[view->action_count++ % TF_BOARD_ACTIONS];
  *action = (tf_board_action){.request = view->action_count, .retry = retry};
  snprintf(action->sid, sizeof action->sid, "%s", sid);
  for (size_t i = 0; i < view->letter_count; i++)
    if (strcmp(view->letters[i].sid, sid) == 0) memcpy(action->id, view->letters[i].id, sizeof action->id);
  uint64_t request = action->request;
  pthread_mutex_unlock(&self->mutex);
  return request;
}

tf_board_view *tf_board_look(tf_board *self) {
  atomic_store(&self->asked_ms, tf_now_ms());
  tf_board_view *out = malloc(sizeof *out);
  if (!out) return NULL;
  pthread_mutex_lock(&self->mutex);
  *out = self->view;
  out->now_ms = tf_now_ms() + self->clock_offset_ms;
  out->workers = NULL;
  if (self->view.workers && (out->workers = malloc(self->view.workers_bytes)) != NULL)
    memcpy(out->workers, self->view.workers, self->view.workers_bytes);
  pthread_mutex_unlock(&self->mutex);
  if (!out->workers) out->worker_count = 0;
  return out;
}

void tf_board_view_free(tf_board_view **self) {
  if (!self || !*self) return;
  free((*self)->workers);
  free(*self);
  *self = NULL;
}

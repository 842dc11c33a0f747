/* Who is in the running batch, and which token rows make up the next step. Pure: no clock, no I/O, no tensors.
 * In: requests as numbers of tokens, their end. Out: a plan: for each sequence the positions to compute now.
 * Two doubly linked lists through one array of requests: waiting in order of arrival, running in order of admission. */
#include "llm-svc/scheduler.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

enum { NONE = -1 };

typedef enum request_state { STATE_FREE, STATE_WAITING, STATE_PREFILL, STATE_DECODE } request_state;

typedef struct request {
  request_state state;
  uint32_t prompt_tokens, tokens_max; /* tokens_max: prompt and everything it may generate */
  uint32_t blocks;
  uint32_t position; /* the next to compute */
  bool fresh;        /* admitted, not in a plan yet */
  int32_t previous, next;
} request;

typedef struct request_list {
  int32_t head, tail;
  uint32_t count;
} request_list;

struct tf_scheduler {
  tf_scheduler_config config;
  uint32_t capacity, blocks_used;
  request *requests; /* [capacity] */
  request_list free;
  request_list waiting, running;
  tf_scheduled *items; /* [sequences_max] */
};

static void list_append(tf_scheduler *self, request_list *list, int32_t at) {
  self->requests[at].previous = list->tail;
  self->requests[at].next = NONE;
  if (list->tail == NONE)
    list->head = at;
  else
    self->requests[list->tail].next = at;
  list->tail = at;
  list->count++;
}

static void list_remove(tf_scheduler *self, request_list *list, int32_t at) {
  request *item = &self->requests[at];
  if (item->previous == NONE)
    list->head = item->next;
  else
    self->requests[item->previous].next = item->next;
  if (item->next == NONE)
    list->tail = item->previous;
  else
    self->requests[item->next].previous = item->previous;
  list->count--;
}

tf_code tf_scheduler_new(const tf_scheduler_config *config, tf_scheduler **out, tf_error *error) {
  if (config->sequences_max == 0 || config->rows_max < config->sequences_max ||
      config->rows_max > TF_SCHEDULER_ROWS_MAX || config->waiting_max > TF_SCHEDULER_REQUESTS_MAX ||
      config->blocks_max == 0 || config->block_tokens == 0)
    return tf_fail(
        error, TF_ERR_INVALID_ARGUMENT,
        "a batch of %u rows for %u sequences with %u waiting and %u blocks: at least one sequence and block, "
        "and between one row a sequence and %d rows are needed",
        config->rows_max, config->sequences_max, config->waiting_max, config->blocks_max, TF_SCHEDULER_ROWS_MAX);
  tf_scheduler *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the scheduler");
  self->config = *config;
  self->capacity = config->sequences_max + config->waiting_max;
  self->requests = calloc(self->capacity, sizeof *self->requests);
  self->items = calloc(config->sequences_max, sizeof *self->items);
  if (self->requests == NULL || self->items == NULL) {
    tf_scheduler_free(&self);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the scheduler");
  }
  self->free = self->waiting = self->running = (request_list){NONE, NONE, 0};
  for (uint32_t i = 0; i < self->capacity; i++) list_append(self, &self->free, (int32_t)i);
  *out = self;
  return TF_OK;
}

void tf_scheduler_free(tf_scheduler **self) {
  if (*self == NULL) return;
  free((*self)->requests);
  free((*self)->items);
  free(*self);
  *self = NULL;
}

tf_code tf_scheduler_add(tf_scheduler *self, uint32_t prompt_tokens, uint32_t new_tokens_max, uint32_t *id,
                         tf_error *error) {
  assert(prompt_tokens > self->config.head_tokens && new_tokens_max > 0);
  uint64_t tokens = (uint64_t)prompt_tokens + new_tokens_max, block_tokens = self->config.block_tokens;
  uint64_t blocks = (tokens + block_tokens - 1) / block_tokens;
  if (tokens > UINT32_MAX || blocks > self->config.blocks_max)
    return tf_fail(error, TF_ERR_PROMPT_TOO_LONG, "%u prompt and %u new tokens are more than the KV cache's %" PRIu64,
                   prompt_tokens, new_tokens_max, self->config.blocks_max * block_tokens);
  int32_t at = self->free.head;
  if (at == NONE)
    return tf_fail(error, TF_ERR_WORKER_FULL, "%u requests are running and %u are waiting", self->running.count,
                   self->waiting.count);
  list_remove(self, &self->free, at);
  self->requests[at] = (request){.state = STATE_WAITING,
                                 .prompt_tokens = prompt_tokens,
                                 .tokens_max = (uint32_t)tokens,
                                 .blocks = (uint32_t)blocks,
                                 .position = self->config.head_tokens};
  list_append(self, &self->waiting, at);
  *id = (uint32_t)at;
  return TF_OK;
}

void tf_scheduler_remove(tf_scheduler *self, uint32_t id) {
  assert(id < self->capacity && self->requests[id].state != STATE_FREE);
  request *item = &self->requests[id];
  if (item->state == STATE_WAITING) {
    list_remove(self, &self->waiting, (int32_t)id);
  } else {
    list_remove(self, &self->running, (int32_t)id);
    self->blocks_used -= item->blocks;
  }
  item->state = STATE_FREE;
  list_append(self, &self->free, (int32_t)id);
}

/* In order of arrival, until one does not fit: a big request waits for room, and nobody behind it takes that room. */
static void admit(tf_scheduler *self) {
  while (self->waiting.head != NONE && self->running.count < self->config.sequences_max) {
    int32_t at = self->waiting.head;
    request *item = &self->requests[at];
    if (item->blocks > self->config.blocks_max - self->blocks_used) return;
    list_remove(self, &self->waiting, at);
    list_append(self, &self->running, at);
    self->blocks_used += item->blocks;
    item->state = STATE_PREFILL;
    item->fresh = true;
  }
}

static void plan_rows(tf_scheduler *self, int32_t at, uint32_t rows, tf_scheduled *out) {
  request *item = &self->requests[at];
  *out = (tf_scheduled){.id = (uint32_t)at, .first = item->position, .count = rows, .admitted = item->fresh};
  item->fresh = false;
  item->position += rows;
  assert(item->position < item->tokens_max); /* the last token is never fed back */
  if (item->position < item->prompt_tokens) return;
  out->samples = true;
  item->state = STATE_DECODE;
}

uint32_t tf_scheduler_plan(tf_scheduler *self, const tf_scheduled **items, size_t *count) {
  admit(self);
  uint32_t rows = 0;
  size_t planned = 0;
  for (int32_t at = self->running.head; at != NONE; at = self->requests[at].next) {
    if (self->requests[at].state != STATE_DECODE) continue;
    plan_rows(self, at, 1, &self->items[planned++]);
    rows++;
  }
  size_t decoding = planned;
  for (int32_t at = self->running.head; at != NONE && rows < self->config.rows_max; at = self->requests[at].next) {
    request *item = &self->requests[at];
    if (item->state != STATE_PREFILL) continue;
    uint32_t left = item->prompt_tokens - item->position, room = self->config.rows_max - rows;
    uint32_t chunk = left < room ? left : room;
    plan_rows(self, at, chunk, &self->items[planned++]);
    rows += chunk;
  }
  assert(decoding <= planned && planned <= self->config.sequences_max);
  *items = self->items;
  *count = planned;
  return rows;
}

uint32_t tf_scheduler_running(const tf_scheduler *self) {
  return self->running.count;
}
uint32_t tf_scheduler_waiting(const tf_scheduler *self) {
  return self->waiting.count;
}
uint32_t tf_scheduler_blocks_used(const tf_scheduler *self) {
  return self->blocks_used;
}

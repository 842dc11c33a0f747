/* The jobs that this router holds. In: claimed entries. Out: records, found by entry (XXH3, chained), listed by age.
 * Counts by state and image bytes are kept here. Everything is bounded by TF_JOBS_MAX. */
#include "router/jobs.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { BUCKETS = 16384 };

struct tf_jobs {
  tf_router_job *buckets[BUCKETS];
  tf_router_job *first, *last;
  size_t count, by_state[TF_JOB_SETTLING + 1], image_bytes;
  uint64_t serial;
};

tf_jobs *tf_jobs_new(void) {
  return calloc(1, sizeof(tf_jobs));
}

bool tf_entry_time(const char *entry, int64_t *unix_ms) {
  if ((entry[0] != '0' && entry[0] != '1') || entry[1] != ':' || entry[2] < '0' || entry[2] > '9') return false;
  char *end = NULL;
  unsigned long long time_ms = strtoull(entry + 2, &end, 10);
  if (*end != '-' || end[1] < '0' || end[1] > '9' || strspn(end + 1, "0123456789") != strlen(end + 1)) return false;
  /* A client may choose any id; what is past the year 10,000 is no time. */
  *unix_ms = time_ms < 253402300800000ULL ? (int64_t)time_ms : INT64_C(253402300800000);
  return true;
}

static tf_router_job **bucket(const tf_jobs *self, const char *entry) {
  return (tf_router_job **)&self->buckets[XXH3_64bits(entry, strlen(entry)) % BUCKETS];
}

tf_router_job *tf_jobs_find(const tf_jobs *self, const char *entry) {
  tf_router_job *job = *bucket(self, entry);
  while (job && strcmp(job->entry, entry) != 0) job = job->next_in_bucket;
  return job;
}

tf_router_job *tf_jobs_find_serial(const tf_jobs *self, const char *entry, uint64_t serial) {
  tf_router_job *job = tf_jobs_find(self, entry);
  return job && job->serial == serial ? job : NULL;
}

tf_router_job *tf_jobs_add(tf_jobs *self, const char *entry) {
  int64_t entry_ms = 0;
  if (self->count >= TF_JOBS_MAX || strlen(entry) >= TF_ENTRY_BYTES_MAX || !tf_entry_time(entry, &entry_ms) ||
      tf_jobs_find(self, entry))
    return NULL;
  tf_router_job *job = calloc(1, sizeof *job);
  if (!job) return NULL;
  job->serial = ++self->serial;
  memcpy(job->entry, entry, strlen(entry) + 1);
  job->entry_ms = entry_ms;
  snprintf(job->requested, sizeof job->requested, "auto");
  tf_router_job **at = bucket(self, entry);
  job->next_in_bucket = *at;
  *at = job;
  job->previous = self->last;
  if (self->last)
    self->last->next = job;
  else
    self->first = job;
  self->last = job;
  self->count++;
  self->by_state[TF_JOB_PENDING]++;
  return job;
}

void tf_settlement_free(tf_settlement **self) {
  if (!self || !*self) return;
  free((*self)->caption);
  free((*self)->model);
  free((*self)->warning);
  free((*self)->message);
  free(*self);
  *self = NULL;
}

static void free_terms(tf_jobs *self, tf_router_job *job) {
  self->image_bytes -= job->image_size;
  free(job->image);
  free(job->uri);
  free(job->prompt);
  free(job->reply);
  free(job->trace);
  free(job->pace);
  job->image = job->uri = job->prompt = job->reply = job->trace = job->pace = NULL;
  job->image_size = 0;
}

void tf_jobs_remove(tf_jobs *self, tf_router_job *job) {
  tf_router_job **at = bucket(self, job->entry);
  while (*at && *at != job) at = &(*at)->next_in_bucket;
  assert(*at == job);
  *at = job->next_in_bucket;
  if (job->previous)
    job->previous->next = job->next;
  else
    self->first = job->next;
  if (job->next)
    job->next->previous = job->previous;
  else
    self->last = job->previous;
  self->count--;
  self->by_state[job->state]--;
  free_terms(self, job);
  tf_settlement_free(&job->settlement);
  free(job);
}

void tf_jobs_free(tf_jobs **self) {
  if (!self || !*self) return;
  tf_router_job *next;
  for (tf_router_job *job = (*self)->first; job; job = next) {
    next = job->next;
    free_terms(*self, job);
    tf_settlement_free(&job->settlement);
    free(job);
  }
  free(*self);
  *self = NULL;
}

tf_router_job *tf_jobs_first(const tf_jobs *self) {
  return self->first;
}
size_t tf_jobs_count(const tf_jobs *self) {
  return self->count;
}
size_t tf_jobs_count_state(const tf_jobs *self, tf_job_state state) {
  return self->by_state[state];
}
size_t tf_jobs_image_bytes(const tf_jobs *self) {
  return self->image_bytes;
}

void tf_jobs_set_state(tf_jobs *self, tf_router_job *job, tf_job_state state) {
  self->by_state[job->state]--;
  self->by_state[state]++;
  job->state = state;
}

void tf_jobs_take_image(tf_jobs *self, tf_router_job *job, char **image, size_t *size) {
  *image = job->image;
  *size = job->image_size;
  self->image_bytes -= job->image_size;
  job->image = NULL;
  job->image_size = 0;
}

/* A NUL-terminated copy; true with NULL for what is absent. */
static bool copy(tf_bytes from, char **to) {
  *to = NULL;
  if (from.size == 0) return true;
  *to = malloc(from.size + 1);
  if (!*to) return false;
  memcpy(*to, from.data, from.size);
  (*to)[from.size] = 0;
  return true;
}

tf_code tf_jobs_fill(tf_jobs *self, tf_router_job *job, const tf_job_fields *fields) {
  free_terms(self, job);
  if (!copy(fields->uri, &job->uri) || !copy(fields->prompt, &job->prompt) || !copy(fields->reply, &job->reply) ||
      !copy(fields->trace, &job->trace) || !copy(fields->pace, &job->pace) || !copy(fields->image, &job->image))
    return TF_ERR_OUT_OF_MEMORY;
  job->image_size = fields->image.size;
  self->image_bytes += job->image_size;
  job->vision_tokens_min = fields->vision_tokens_min;
  job->vision_tokens_max = fields->vision_tokens_max;
  job->sampling = fields->sampling;
  job->deadline_ms = fields->deadline_ms;
  if (job->vision_tokens_min && job->vision_tokens_min == job->vision_tokens_max)
    snprintf(job->requested, sizeof job->requested, "%u", job->vision_tokens_min);
  return TF_OK;
}

/* Jobs of a simulation: a ring of those that wait, records of those that workers have.
 * In: arrival times, jobs that come back. Out: the next job's record.
 * Jobs that come back go first: they have waited longest. */
#include "policy/sim_queue.h"

#include <stdlib.h>
#include <string.h>

enum { RING_START = 1024, JOBS_START = 1024 };

bool tf_sim_queue_open(tf_sim_queue *self) {
  *self = (tf_sim_queue){.ring_capacity = RING_START,
                         .job_capacity = JOBS_START,
                         .free_first = TF_SIM_NONE,
                         .back_first = TF_SIM_NONE,
                         .back_last = TF_SIM_NONE};
  self->ring = malloc(RING_START * sizeof *self->ring);
  self->jobs = malloc(JOBS_START * sizeof *self->jobs);
  return self->ring && self->jobs;
}

void tf_sim_queue_close(tf_sim_queue *self) {
  free(self->ring);
  free(self->jobs);
  *self = (tf_sim_queue){0};
}

static bool grow_ring(tf_sim_queue *self) {
  size_t capacity = self->ring_capacity * 2;
  if (capacity > TF_SIM_WAITING_MAX) return false;
  double *grown = malloc(capacity * sizeof *grown);
  if (!grown) return false;
  for (size_t i = 0; i < self->count; i++) grown[i] = self->ring[(self->first + i) & (self->ring_capacity - 1)];
  free(self->ring);
  self->ring = grown;
  self->ring_capacity = capacity;
  self->first = 0;
  return true;
}

bool tf_sim_queue_add(tf_sim_queue *self, double arrived_s) {
  if (self->count == self->ring_capacity && !grow_ring(self)) return false;
  self->ring[(self->first + self->count++) & (self->ring_capacity - 1)] = arrived_s;
  return true;
}

bool tf_sim_queue_is_empty(const tf_sim_queue *self) {
  return self->count == 0 && self->back_count == 0;
}

size_t tf_sim_queue_waiting(const tf_sim_queue *self) {
  return self->count + self->back_count;
}

static uint32_t new_job(tf_sim_queue *self) {
  uint32_t at = self->free_first;
  if (at != TF_SIM_NONE) {
    self->free_first = self->jobs[at].next;
    return at;
  }
  if (self->job_count == self->job_capacity) {
    size_t capacity = self->job_capacity * 2;
    tf_sim_job *grown = capacity > TF_SIM_JOBS_MAX ? NULL : realloc(self->jobs, capacity * sizeof *grown);
    if (!grown) return TF_SIM_NONE;
    self->jobs = grown;
    self->job_capacity = capacity;
  }
  return (uint32_t)self->job_count++;
}

uint32_t tf_sim_queue_take(tf_sim_queue *self) {
  if (self->back_count > 0) {
    uint32_t job = self->back_first;
    self->back_first = self->jobs[job].next;
    if (--self->back_count == 0) self->back_last = TF_SIM_NONE;
    return job;
  }
  uint32_t job = new_job(self);
  if (job == TF_SIM_NONE) return job;
  self->jobs[job] = (tf_sim_job){.arrived_s = self->ring[self->first]};
  self->first = (self->first + 1) & (self->ring_capacity - 1);
  self->count--;
  return job;
}

void tf_sim_queue_return(tf_sim_queue *self, uint32_t job) {
  self->jobs[job].next = TF_SIM_NONE;
  if (self->back_last == TF_SIM_NONE)
    self->back_first = job;
  else
    self->jobs[self->back_last].next = job;
  self->back_last = job;
  self->back_count++;
}

void tf_sim_queue_free(tf_sim_queue *self, uint32_t job) {
  self->jobs[job].next = self->free_first;
  self->free_first = job;
}

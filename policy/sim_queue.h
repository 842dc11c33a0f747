/* Jobs of a simulation: a ring of those that wait, records of those that workers have.
 * In: arrival times, jobs that come back. Out: the next job's record. What waits is a time alone, so that millions fit.
 * Both grow by doubling, up to a maximum. */
#ifndef TF_POLICY_SIM_QUEUE_H
#define TF_POLICY_SIM_QUEUE_H

#include "policy/sim_tier.h"

enum { TF_SIM_WAITING_MAX = 1 << 26, TF_SIM_JOBS_MAX = 1 << 26 };

typedef struct tf_sim_queue {
  double *ring; /* arrival times, oldest first */
  size_t ring_capacity, first, count;
  tf_sim_job *jobs; /* records; references are indices, as the array moves */
  size_t job_capacity, job_count;
  uint32_t free_first;            /* list of unused records */
  uint32_t back_first, back_last; /* jobs that came back: before the ring */
  size_t back_count;
} tf_sim_queue;

bool tf_sim_queue_open(tf_sim_queue *self); /* false: out of memory */
void tf_sim_queue_close(tf_sim_queue *self);
bool tf_sim_queue_add(tf_sim_queue *self, double arrived_s); /* false: full, or out of memory */
bool tf_sim_queue_is_empty(const tf_sim_queue *self);
size_t tf_sim_queue_waiting(const tf_sim_queue *self);
/* The next job's record: a new one has tokens and factor 0. TF_SIM_NONE: out of memory. */
uint32_t tf_sim_queue_take(tf_sim_queue *self);
void tf_sim_queue_return(tf_sim_queue *self, uint32_t job);
void tf_sim_queue_free(tf_sim_queue *self, uint32_t job);

#endif

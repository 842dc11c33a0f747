/* One tier of simulated workers: windows, slots, a batch that slows down as it fills; deaths and draining.
 * In: jobs that enter, the time. Out: who takes the next job, who ends next and when. All operations O(log n) or
 * better. A worker's slots share its speed: a job's work is what it takes in a full batch; with fewer beside it, it
 * goes faster, down to alone_share of that time when alone. So a full worker's throughput is exactly 1000 / service_ms.
 */
#ifndef TF_POLICY_SIM_TIER_H
#define TF_POLICY_SIM_TIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TF_SIM_SLOTS_MAX = 256, TF_SIM_WINDOW_MAX = 1024, TF_SIM_WORKERS_MAX = 200000 };
#define TF_SIM_NONE UINT32_MAX

typedef struct tf_sim_job {
  double arrived_s, ready_s; /* ready: since when it has waited for a slot here */
  float wait_s;              /* so far */
  float factor;              /* its share of random length, mean 1 */
  uint32_t tokens;
  uint32_t encoder, llm, llm_epoch;
  uint32_t next; /* in a list of the owner */
} tf_sim_job;

typedef struct tf_sim_slot {
  double end; /* in the worker's virtual time */
  uint32_t job;
} tf_sim_slot;

typedef enum tf_sim_worker_state { TF_SIM_ABSENT, TF_SIM_LIVE, TF_SIM_DRAINING, TF_SIM_DEAD } tf_sim_worker_state;

typedef struct tf_sim_worker {
  double virtual_s, updated_s; /* virtual time as it was at updated_s */
  double next_end_s;           /* of the job that ends first; INFINITY: none */
  uint32_t active, waiting, waiting_first;
  uint32_t outstanding; /* places of its window in use; those of jobs on their way here too */
  uint32_t left, right; /* others with as many outstanding */
  uint32_t epoch;       /* differs between those who had this number one after the other */
  uint32_t heap_at;     /* position among all workers by next_end_s */
  tf_sim_worker_state state;
} tf_sim_worker;

typedef struct tf_sim_tier {
  uint32_t slots, window, capacity; /* workers that there may ever be */
  uint32_t live, jobs, active;
  double busy_s;                                  /* worker-seconds with at least one job */
  double slowness[TF_SIM_SLOTS_MAX + 1];          /* by active jobs; 1 when full */
  tf_sim_worker *workers;                         /* [capacity] */
  tf_sim_slot *slot;                              /* [capacity][slots], a heap by end */
  uint32_t *wait;                                 /* [capacity][window], a ring */
  uint32_t *heap;                                 /* [capacity] */
  uint32_t by_outstanding[TF_SIM_WINDOW_MAX + 1]; /* first worker of each list */
  uint32_t lowest;                                /* no list below this has anyone */
  uint32_t *absent;                               /* [capacity], a stack */
  uint32_t absent_count;
} tf_sim_tier;

/* False: out of memory, or a size out of bounds. */
bool tf_sim_tier_open(tf_sim_tier *self, uint32_t capacity, uint32_t slots, uint32_t window, double alone_share);
void tf_sim_tier_close(tf_sim_tier *self);

/* A worker joins; TF_SIM_NONE: capacity reached. */
uint32_t tf_sim_tier_join(tf_sim_tier *self, double now_s);
/* The live worker with the fewest outstanding takes no more and leaves when it is empty. */
void tf_sim_tier_drain(tf_sim_tier *self);
/* The live worker with the most outstanding stops at once; its jobs stay until it is forgotten. */
uint32_t tf_sim_tier_kill(tf_sim_tier *self, double now_s);
/* A dead worker's jobs, one at a time; TF_SIM_NONE: no more, and the worker's record is free again. */
uint32_t tf_sim_tier_forget(tf_sim_tier *self, uint32_t worker);

/* The least loaded worker with room in its window; TF_SIM_NONE: none. */
uint32_t tf_sim_tier_pick(tf_sim_tier *self);
void tf_sim_tier_reserve(tf_sim_tier *self, uint32_t worker);
void tf_sim_tier_release(tf_sim_tier *self, uint32_t worker);
/* A job with a reservation is there, to be served work_s seconds in a full batch. jobs: the owner's records. */
void tf_sim_tier_enter(tf_sim_tier *self, tf_sim_job *jobs, uint32_t worker, uint32_t job, double work_s, double now_s);
/* When the next job ends; INFINITY: nobody works. */
double tf_sim_tier_next_s(const tf_sim_tier *self);
/* Ends that job and starts the next that waits there, whose work_s is asked for. */
typedef double (*tf_sim_work)(const void *context, const tf_sim_job *job);
uint32_t tf_sim_tier_end(tf_sim_tier *self, tf_sim_job *jobs, tf_sim_work work, const void *context);

#endif

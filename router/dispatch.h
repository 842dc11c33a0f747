/* Jobs on their way through the workers: placed, assigned, sent; then STAGE, RESULT and FAILURE taken in.
 * In: pending jobs, windows, messages, workers that have gone. Out: JOB and CANCEL messages, assign and stage scripts,
 * endings handed to results.c. Every job holds its worker slots exactly from placement until it leaves that worker. */
#ifndef TF_ROUTER_DISPATCH_H
#define TF_ROUTER_DISPATCH_H

#include "router/load.h"
#include "router/results.h"
#include "router/workers.h"

typedef struct tf_dispatch tf_dispatch;

typedef struct tf_dispatch_parts { /* all borrowed */
  void *socket;                    /* the ROUTER socket */
  tf_scripts *scripts;
  tf_jobs *jobs;
  tf_workers *workers;
  tf_results *results;
  tf_load *load;
  const tf_router_config *config;
  const tf_redis_clock *clock;
  tf_router_stats *stats;
  const char *instance;
} tf_dispatch_parts;

enum {
  TF_KV_TOKENS_BESIDE = 24,      /* template and margin, counted for every job */
  TF_ROOM_PATIENCE_MS_MAX = 2000 /* a job that no LLM has room for is overtaken no longer: an LLM is kept for it */
};

tf_code tf_dispatch_new(const tf_dispatch_parts *parts, tf_dispatch **out);
void tf_dispatch_free(tf_dispatch **self);

/* Jobs that the workers have room for and that are not claimed yet. */
uint32_t tf_dispatch_room(tf_dispatch *self);
/* Gives pending jobs to workers while there is room. */
void tf_dispatch_place(tf_dispatch *self);
/* STAGE, RESULT, FAILURE of a known worker (NULL: of a peer without HELLO; only its results count). */
void tf_dispatch_message(tf_dispatch *self, const tf_worker *from, const tf_message *message);
/* Sends the stage changes of the messages taken in since the last call: once after each batch. */
void tf_dispatch_flush(tf_dispatch *self);
/* The worker is gone: its jobs are tried again, alone, or at no cost where it had said that it would go; it counts
 * against one that it held alone. The caller removes the record after. */
void tf_dispatch_worker_lost(tf_dispatch *self, const tf_worker *worker);
/* The LLM has said that it goes: jobs whose tensors it does not have yet go back at no cost; it ends the others. */
void tf_dispatch_llm_drains(tf_dispatch *self, const tf_worker *llm);
/* The worker has a new connection: messages may have been lost, its jobs go back at no cost. */
void tf_dispatch_worker_moved(tf_dispatch *self, const tf_worker *worker);
/* Ends every job with this id as cancelled, at the workers too. */
void tf_dispatch_cancel(tf_dispatch *self, const char *id, size_t id_size);
/* The job is another router's now: its workers' slots are free, its record goes. */
void tf_dispatch_forget(tf_dispatch *self, tf_router_job *job);
/* Once in a while: ends what is past its deadline, or longer under way than job_timeout_ms. */
void tf_dispatch_expire(tf_dispatch *self);

#endif

/* The jobs that this router holds, by entry. In: claimed entries. Out: records that the other stages share.
 * A record lives from the claim to the answer of its commit; whoever waits for Redis keeps entry and serial, never a
 * pointer. Pure memory: no I/O, no clock. */
#ifndef TF_ROUTER_JOBS_H
#define TF_ROUTER_JOBS_H

#include "policy/policy.h"
#include "router/job_fields.h"

enum { TF_JOBS_MAX = 65536, TF_REQUESTED_BYTES_MAX = 16, TF_JOB_LOAD_BYTES_MAX = 160 };

typedef enum tf_job_state {
  TF_JOB_PENDING,   /* claimed, no worker yet */
  TF_JOB_ASSIGNING, /* workers chosen, the assign script runs */
  TF_JOB_ENCODING,  /* sent to the encoder */
  TF_JOB_DECODING,  /* the LLM has its tensor */
  TF_JOB_SETTLING   /* result or failure known, on its way to Redis; holds no worker */
} tf_job_state;

/* How a failed attempt is counted; the names are fail.lua's modes. */
typedef enum tf_fail_mode { TF_FAIL_COUNT, TF_FAIL_LAST, TF_FAIL_FREE, TF_FAIL_SUSPECT, TF_FAIL_REFUSE } tf_fail_mode;

/* What is on its way to Redis. */
typedef struct tf_settlement {
  uint64_t number; /* unique in this process */
  bool is_result;
  bool needs_hash; /* a result for a job that this router doesn't hold: uri, reason... are in Redis */
  bool in_flight;
  int64_t retry_ms; /* when to ask Redis again (our clock) */
  uint32_t tries;
  uint32_t attempt; /* the one that ended */
  /* A result. Strings are owned. */
  char *caption, *model, *warning;
  uint32_t vision_tokens, prompt_tokens, completion_tokens;
  tf_finish_reason finish_reason;
  tf_timing timing;
  /* A failure. */
  tf_fail_mode mode;
  tf_code code;
  char *message;
} tf_settlement;

typedef struct tf_router_job {
  uint64_t serial; /* unique in this process */
  char entry[TF_ENTRY_BYTES_MAX];
  char id[TF_ID_BYTES_MAX + 1];
  int64_t entry_ms; /* the entry's own time (Redis) */
  /* The job's terms. Strings are owned; NULL: absent. */
  char *uri, *prompt, *reply, *trace, *pace;
  char *image; /* taken away when the job is sent */
  size_t image_size;
  uint32_t vision_tokens_min, vision_tokens_max;
  tf_sampling sampling;
  int64_t deadline_ms;
  char requested[TF_REQUESTED_BYTES_MAX]; /* "144" or "auto" */
  /* Where it stands. */
  tf_job_state state;
  uint32_t attempt, failures;
  uint32_t vision_tokens; /* of this attempt, or the attempt before while it is pending; 0: none yet */
  tf_reason reason;
  char load[TF_JOB_LOAD_BYTES_MAX]; /* that decided, as JSON; "": not assigned by this router */
  bool suspect;
  bool alone_at_encoder, alone_at_llm; /* the worker has said that it holds this job and nothing else */
  uint64_t encoder, llm;               /* workers' serials; 0: none. encoder is 0 again from decode on */
  uint64_t kept_llm;                   /* PENDING: the worker that takes no others until this job fits; 0: none */
  uint32_t kv_tokens;                  /* counted against the LLM */
  int64_t claimed_ms, assigned_ms;     /* our clock */
  tf_settlement *settlement;           /* SETTLING */
  struct tf_router_job *next_in_bucket;
  struct tf_router_job *previous, *next; /* all jobs, oldest first */
} tf_router_job;

typedef struct tf_jobs tf_jobs;

tf_jobs *tf_jobs_new(void); /* NULL: out of memory */
void tf_jobs_free(tf_jobs **self);
/* A new record in state PENDING. NULL: TF_JOBS_MAX reached, out of memory, the entry is malformed or there already. */
tf_router_job *tf_jobs_add(tf_jobs *self, const char *entry);
tf_router_job *tf_jobs_find(const tf_jobs *self, const char *entry);
/* The record only where it is still the same one. */
tf_router_job *tf_jobs_find_serial(const tf_jobs *self, const char *entry, uint64_t serial);
void tf_jobs_remove(tf_jobs *self, tf_router_job *job); /* frees it */
tf_router_job *tf_jobs_first(const tf_jobs *self);      /* then ->next */
size_t tf_jobs_count(const tf_jobs *self);
size_t tf_jobs_count_state(const tf_jobs *self, tf_job_state state);
size_t tf_jobs_image_bytes(const tf_jobs *self); /* held in memory by all of them */
/* States are changed here alone, so that the counts hold. */
void tf_jobs_set_state(tf_jobs *self, tf_router_job *job, tf_job_state state);
void tf_jobs_take_image(tf_jobs *self, tf_router_job *job, char **image, size_t *size); /* the caller frees */

/* Copies checked fields in. OUT_OF_MEMORY otherwise. */
tf_code tf_jobs_fill(tf_jobs *self, tf_router_job *job, const tf_job_fields *fields);
/* "1:1712345678901-0" -> 1712345678901; false: not an entry's name. */
bool tf_entry_time(const char *entry, int64_t *unix_ms);
void tf_settlement_free(tf_settlement **self);

#endif

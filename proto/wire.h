/* The messages of proto/tokenflex.proto as plain structs, and their way over ZeroMQ.
 * In: a struct to send, or frames from a socket. Out: frames, or a checked struct whose strings live in it.
 * Only wire.c knows the generated code. Every length is bounded, every string is NUL-terminated valid UTF-8 without
 * NULs inside, every enum is in range; what is not is TF_ERR_PROTOCOL and is dropped and counted by the caller. Unknown
 * fields pass. */
#ifndef TF_PROTO_WIRE_H
#define TF_PROTO_WIRE_H

#include <stdbool.h>
#include <stdint.h>
#include <zmq.h>

#include "common/error.h"

enum {
  TF_PROTOCOL_VERSION = 1,
  TF_ID_BYTES_MAX = 256,
  TF_QUEUE_BYTES_MAX = 80, /* NAME@PLACE: router/router.h */
  TF_ENTRY_BYTES_MAX = 64,
  TF_INSTANCE_BYTES_MAX = 128,
  TF_TRACE_BYTES_MAX = 128,
  TF_URI_BYTES_MAX = 8192,
  TF_PROMPT_BYTES_MAX = 16384,
  TF_CAPTION_BYTES_MAX = 65536,
  TF_ENDPOINT_BYTES_MAX = 512,
  TF_MODEL_BYTES_MAX = 256,
  TF_MESSAGE_BYTES_MAX = 131072,          /* one header frame */
  TF_IMAGE_BYTES_MAX = 64 * 1024 * 1024,  /* one JOB payload */
  TF_TENSOR_BYTES_MAX = 64 * 1024 * 1024, /* one TENSOR payload */
  TF_VISION_TOKENS_MAX = 4096,
  TF_NEW_TOKENS_MAX = 4096,
  TF_HELLO_COUNTS_MAX = 16,
  TF_TIMES_MS_MAX = 3600000 /* of one job at one worker */
};

typedef enum tf_message_type { /* numbers of Envelope.body */
                               TF_MESSAGE_HELLO = 2,
                               TF_MESSAGE_WINDOW,
                               TF_MESSAGE_JOB,
                               TF_MESSAGE_STAGE,
                               TF_MESSAGE_CANCEL,
                               TF_MESSAGE_PING,
                               TF_MESSAGE_PONG,
                               TF_MESSAGE_TENSOR,
                               TF_MESSAGE_TENSOR_ACK,
                               TF_MESSAGE_TENSOR_REFUSED,
                               TF_MESSAGE_DELTA,
                               TF_MESSAGE_RESULT,
                               TF_MESSAGE_FAILURE,
                               TF_MESSAGE_DRAIN
} tf_message_type;

typedef enum tf_role { TF_ROLE_ROUTER = 1, TF_ROLE_ENCODER, TF_ROLE_LLM } tf_role;
typedef enum tf_job_stage { TF_STAGE_ENCODE = 1, TF_STAGE_DECODE } tf_job_stage;
typedef enum tf_tensor_dtype { TF_TENSOR_F32 = 1, TF_TENSOR_F16 } tf_tensor_dtype;
typedef enum tf_finish_reason { TF_FINISH_STOP = 1, TF_FINISH_LENGTH } tf_finish_reason;

/* Sending: strings are borrowed; NULL is sent as "". Receiving: never NULL, valid until tf_message_clear. */
typedef struct tf_job_key {
  const char *queue, *entry, *id;
  uint32_t attempt;
  const char *router, *trace;
} tf_job_key;

typedef struct tf_sampling {
  uint32_t max_new_tokens;
  float temperature;
  uint32_t top_k;
  float top_p;
  uint64_t seed;
  bool ignore_end;
} tf_sampling;

typedef struct tf_timing {
  float queue_ms, fetch_ms, decode_ms, encode_ms, transfer_ms, wait_ms, prefill_ms, generate_ms;
} tf_timing;

typedef struct tf_hello {
  tf_role role;
  const char *instance, *pair_hash, *model, *tensor_endpoint, *queue, *version;
  uint32_t token_counts[TF_HELLO_COUNTS_MAX], token_count_count, context_tokens_max;
  int64_t started_unix_ms; /* 0: not said */
} tf_hello;
typedef struct tf_window {
  uint64_t epoch;
  uint32_t jobs_max, kv_tokens_max;
  bool draining;
} tf_window;
typedef struct tf_job {
  tf_job_key key;
  uint32_t vision_tokens;
  const char *uri, *prompt;
  tf_sampling sampling;
  int64_t deadline_unix_ms;
  const char *llm_instance, *llm_endpoint, *pair_hash;
  tf_timing timing;
  bool stream;
  bool alone; /* worked on only while the worker holds nothing else */
} tf_job;
typedef struct tf_stage {
  tf_job_key key;
  tf_job_stage stage;
  tf_timing timing;
  bool alone; /* the sender holds this job and nothing else, and is about to begin */
} tf_stage;
typedef struct tf_cancel {
  tf_job_key key;
  const char *reason;
} tf_cancel;
typedef struct tf_ping {
  uint64_t sequence;
  uint32_t demand_jobs;
} tf_ping;
/* Milliseconds, parallel to the token counts of the worker's HELLO; count 0: not measured yet. */
typedef struct tf_times {
  uint32_t count;
  float ms[TF_HELLO_COUNTS_MAX];
} tf_times;
typedef struct tf_pong {
  uint64_t sequence;
  tf_times service, latency;
  uint32_t jobs, jobs_max, kv_tokens, kv_tokens_max, batch_max;
} tf_pong;
typedef struct tf_drain {
  const char *instance; /* the worker meant */
} tf_drain;
typedef struct tf_tensor_header {
  tf_job_key key;
  const char *llm_instance, *encoder_instance;
  uint32_t vision_tokens, width, grid;
  tf_tensor_dtype dtype;
  const char *pair_hash, *prompt, *warning;
  tf_sampling sampling;
  int64_t deadline_unix_ms;
  uint64_t byte_length;
  tf_timing timing;
  int64_t sent_unix_us;
  bool stream, alone;
} tf_tensor_header;
typedef struct tf_tensor_ack {
  tf_job_key key;
} tf_tensor_ack;
typedef struct tf_tensor_refused {
  tf_job_key key;
  const char *error_code, *error_message;
} tf_tensor_refused;
typedef struct tf_delta {
  tf_job_key key;
  uint32_t sequence;
  const char *text;
} tf_delta;
typedef struct tf_result {
  tf_job_key key;
  const char *caption;
  uint32_t vision_tokens, prompt_tokens, completion_tokens;
  tf_finish_reason finish_reason;
  const char *model;
  tf_timing timing;
  const char *encoder_instance, *llm_instance, *warning;
} tf_result;
typedef struct tf_failure {
  tf_job_key key;
  const char *error_code, *error_message;
  bool no_attempt;
} tf_failure;

typedef struct tf_message {
  tf_message_type type;
  union {
    tf_hello hello;
    tf_window window;
    tf_job job;
    tf_stage stage;
    tf_cancel cancel;
    tf_ping ping;
    tf_pong pong;
    tf_tensor_header tensor;
    tf_tensor_ack tensor_ack;
    tf_tensor_refused tensor_refused;
    tf_delta delta;
    tf_result result;
    tf_failure failure;
    tf_drain drain;
  } u;
  /* Received messages only. */
  zmq_msg_t payload; /* second frame of JOB and TENSOR; size 0 where there is none */
  bool has_payload;
  char peer[256]; /* routing id of the sender (ROUTER sockets), raw bytes */
  size_t peer_size;
  void *unpacked; /* owned by wire.c */
} tf_message;

/* Bytes of the header frame, for tests and fuzzing. *out is malloc'ed, the caller frees.
 * Sending checks the same bounds as receiving (key.entry and hello.instance must not be empty), with two exceptions, so
 * that a report can not itself fail: error messages and warnings are cut and their malformed UTF-8 replaced, and
 * timings that are negative or not finite are sent as 0, too long ones as an hour (TF_TIMES_MS_MAX). */
tf_code tf_wire_encode(const tf_message *message, uint8_t **out, size_t *size, tf_error *error);
/* Checks and unpacks one header frame into *out (tf_message_clear frees, also after an error). */
tf_code tf_wire_decode(const uint8_t *data, size_t size, tf_message *out, tf_error *error);
void tf_message_clear(tf_message *self);

/* Sends header and optional payload without waiting (ZMQ_DONTWAIT). peer: routing id for ROUTER sockets, else NULL.
 * payload is moved on success (zero copy: build it with zmq_msg_init_data) and left alone on failure; NULL: none.
 * Errors: TF_ERR_WORKER_FULL (would block), TF_ERR_WORKER_UNREACHABLE (ROUTER socket, peer is gone), TF_ERR_PROTOCOL
 * (over a bound). */
tf_code tf_wire_send(void *socket, const void *peer, size_t peer_size, const tf_message *message, zmq_msg_t *payload,
                     tf_error *error);
/* Receives one whole message without waiting. router_socket: a routing-id frame comes first.
 * TF_ERR_TIMEOUT: nothing there. TF_ERR_PROTOCOL: something malformed was read and dropped whole, out->peer says whose.
 * On TF_OK the caller clears *out. */
tf_code tf_wire_receive(void *socket, bool router_socket, tf_message *out, tf_error *error);

/* Socket with the settings that every one of ours has: linger 0, bounded high-water marks, ZMQ_MAXMSGSIZE, heartbeats,
 * ROUTER_MANDATORY and ROUTER_HANDOVER on ROUTER sockets, reconnect from 50 ms to 2 s. type: ZMQ_ROUTER or ZMQ_DEALER.
 * NULL: failed. */
void *tf_wire_socket(void *zmq_context, int type);
/* TF_OK for tcp://HOST:PORT, ipc://PATH and inproc://NAME; else TF_ERR_INVALID_ARGUMENT with a text that quotes it.
 * binds: the port may also be * (one that is free). ZeroMQ itself takes ports past 65535, and uses others. */
tf_code tf_wire_endpoint_check(const char *endpoint, bool binds, tf_error *error);
/* True for ipc://, inproc:// and tcp:// on a loopback address; others need CURVE or --insecure. */
bool tf_wire_endpoint_is_local(const char *endpoint);

#endif

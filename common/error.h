/* Error codes of tokenflex: one table gives number, wire name, retry rule and text.
 * In: nothing. Out: enum tf_code, tf_code_name(), tf_code_text(), tf_code_is_transient(), struct tf_error.
 * A function that can fail returns tf_code and, where it has more to say, fills a tf_error owned by the caller. */
#ifndef TF_COMMON_ERROR_H
#define TF_COMMON_ERROR_H

#include <stdbool.h>
#include <stddef.h>

/* X(NAME, "wire_name", transient, "text")
 * transient: a job that failed so may be tried again; the others can never succeed. */
#define TF_ERRORS(X)                                                                                                   \
  X(OK, "ok", false, "no error")                                                                                       \
  X(INTERNAL, "internal", true, "internal error")                                                                      \
  X(OUT_OF_MEMORY, "out_of_memory", true, "out of memory")                                                             \
  X(IO, "io", true, "input or output failed")                                                                          \
  X(TIMEOUT, "timeout", true, "timed out")                                                                             \
  X(INVALID_ARGUMENT, "invalid_argument", false, "invalid argument")                                                   \
  X(INVALID_FORMAT, "invalid_format", false, "malformed data")                                                         \
  X(UNSUPPORTED, "unsupported", false, "not supported")                                                                \
  X(MODEL_INVALID, "model_invalid", false, "the model files are missing or do not fit together")                       \
  X(FIELD_UNKNOWN, "field_unknown", false, "unknown job field")                                                        \
  X(FIELD_INVALID, "field_invalid", false, "invalid value of a job field")                                             \
  X(VISION_TOKENS_UNSUPPORTED, "vision_tokens_unsupported", false, "unsupported number of vision tokens")              \
  X(IMAGE_MISSING, "image_missing", false, "no such image")                                                            \
  X(IMAGE_EMPTY, "image_empty", false, "the image is empty")                                                           \
  X(IMAGE_UNSUPPORTED, "image_unsupported", false, "not an image format that is supported")                            \
  X(IMAGE_CORRUPT, "image_corrupt", false, "the image data are damaged")                                               \
  X(IMAGE_TRUNCATED, "image_truncated", false, "the image data end early")                                             \
  X(IMAGE_TOO_LARGE, "image_too_large", false, "the image has too many pixels or bytes")                               \
  X(URI_INVALID, "uri_invalid", false, "malformed URI")                                                                \
  X(URI_FORBIDDEN, "uri_forbidden", false, "this URI is not allowed here")                                             \
  X(FETCH_FAILED, "fetch_failed", false, "fetching the image failed for good")                                         \
  X(FETCH_UNAVAILABLE, "fetch_unavailable", true, "the image's server is unavailable at the moment")                   \
  X(PROMPT_TOO_LONG, "prompt_too_long", false, "the prompt does not fit the context")                                  \
  X(DEADLINE, "deadline", false, "the deadline can not be or was not met")                                             \
  X(CANCELLED, "cancelled", false, "cancelled by request")                                                             \
  X(ENTRY_LOST, "entry_lost", false, "the queue entry vanished")                                                       \
  X(WORKER_LOST, "worker_lost", true, "the worker died or was cut off")                                                \
  X(WORKER_FULL, "worker_full", true, "the worker had no room")                                                        \
  X(WORKER_UNREACHABLE, "worker_unreachable", true, "the tensor could not be delivered")                               \
  X(WORKER_DRAINING, "worker_draining", true, "the worker is shutting down")                                           \
  X(PAIR_MISMATCH, "pair_mismatch", true, "encoder and LLM are of different models")                                   \
  X(TENSOR_INVALID, "tensor_invalid", true, "the tensor failed its checks")                                            \
  X(QUEUE_FULL, "queue_full", true, "the queue is full")                                                               \
  X(REDIS, "redis", true, "Redis failed or is out of reach")                                                           \
  X(PROTOCOL, "protocol", true, "malformed or unknown message")

typedef enum tf_code {
#define TF_ERROR_ENUM(name, wire, transient, text) TF_ERR_##name,
  TF_ERRORS(TF_ERROR_ENUM)
#undef TF_ERROR_ENUM
      TF_ERR_COUNT
} tf_code;
#define TF_OK TF_ERR_OK

enum { TF_ERROR_TEXT_BYTES_MAX = 512 };

/* What went wrong, for a person: text names the input and what to do. Always NUL-terminated. */
typedef struct tf_error {
  tf_code code;
  char text[TF_ERROR_TEXT_BYTES_MAX];
} tf_error;

/* The name that travels in messages and results, e.g. "image_truncated". Never NULL. */
const char *tf_code_name(tf_code code);
/* One short sentence for a person. Never NULL. */
const char *tf_code_text(tf_code code);
/* True where another try may succeed. */
bool tf_code_is_transient(tf_code code);
/* The code of a wire name; TF_ERR_INTERNAL for a name that is not in the table. */
tf_code tf_code_from_name(const char *name);

/* Fills *error (may be NULL) and returns code, so that a failure is one line: return tf_fail(error, ...). */
tf_code tf_fail(tf_error *error, tf_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif

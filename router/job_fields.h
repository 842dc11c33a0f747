/* The fields of a queue entry, checked. Pure: no I/O, no clock, no allocation.
 * In: field and value pairs as Redis hands them out. Out: a struct that points into them, or an error code and text.
 * docs/REDIS.md lists the fields; what is not listed there is refused. */
#ifndef TF_ROUTER_JOB_FIELDS_H
#define TF_ROUTER_JOB_FIELDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "proto/wire.h"

enum {
  TF_REPLY_NAME_BYTES_MAX = 128,
  TF_NEW_TOKENS_DEFAULT = 40,
  TF_TOP_K_MAX = 1000000,
  TF_JOB_FIELDS_MAX = 64 /* pairs in one entry */
};
#define TF_DEADLINE_MS_MAX INT64_C(31536000000) /* a year */

/* Bytes of the entry; data is not NUL-terminated. */
typedef struct tf_bytes {
  const char *data;
  size_t size;
} tf_bytes;

typedef struct tf_job_field {
  tf_bytes name, value;
} tf_job_field;

typedef struct tf_job_fields {
  tf_bytes id;                                   /* size 0: absent, the entry's own id serves */
  tf_bytes image, uri;                           /* exactly one has size > 0 */
  tf_bytes prompt, reply, trace, pace;           /* size 0: absent */
  uint32_t vision_tokens_min, vision_tokens_max; /* 0: no limit */
  tf_sampling sampling;
  int64_t deadline_ms; /* from the entry's time; 0: none */
} tf_job_fields;

/* Checks everything that needs no model. Errors: FIELD_UNKNOWN, FIELD_INVALID, IMAGE_TOO_LARGE, PROMPT_TOO_LONG,
 * URI_INVALID; the text names the field and what is accepted. *out holds what could be read either way. */
tf_code tf_job_fields_parse(const tf_job_field *fields, size_t count, tf_job_fields *out, tf_error *error);

/* Checks the limits against the counts that the model offers (ascending). VISION_TOKENS_UNSUPPORTED names them. */
tf_code tf_job_fields_check_counts(const tf_job_fields *self, const uint32_t *counts, size_t count, tf_error *error);

#endif

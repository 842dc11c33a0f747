/* The fields of a queue entry, checked. In: field and value pairs. Out: a struct that points into them, or an error.
 * One row a field: its name and the function that reads it.
 * Values come from anybody: every length, number and character is checked here, once. */
#include "router/job_fields.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

typedef tf_code (*reader)(tf_bytes value, tf_job_fields *out, tf_error *error);

/* A number's text, NUL-terminated; false where it is too long or empty. */
static bool number_text(tf_bytes value, char out[40]) {
  if (value.size == 0 || value.size >= 40) return false;
  memcpy(out, value.data, value.size);
  out[value.size] = 0;
  return strlen(out) == value.size;
}

static tf_code read_integer(const char *name, tf_bytes value, uint64_t minimum, uint64_t maximum, uint64_t *out,
                            tf_error *error) {
  char text[40], *end = NULL;
  if (number_text(value, text) && text[0] >= '0' && text[0] <= '9') {
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (!errno && *end == 0 && number >= minimum && number <= maximum) {
      *out = number;
      return TF_OK;
    }
  }
  return tf_fail(error, TF_ERR_FIELD_INVALID, "%s must be a whole number from %llu to %llu", name,
                 (unsigned long long)minimum, (unsigned long long)maximum);
}

static tf_code read_real(const char *name, tf_bytes value, double minimum, double maximum, float *out,
                         tf_error *error) {
  char text[40], *end = NULL;
  if (number_text(value, text) && strspn(text, "0123456789.eE+-") == value.size) {
    errno = 0;
    double number = strtod(text, &end);
    if (!errno && *end == 0 && isfinite(number) && number >= minimum && number <= maximum) {
      *out = (float)number;
      return TF_OK;
    }
  }
  return tf_fail(error, TF_ERR_FIELD_INVALID, "%s must be a number from %g to %g", name, minimum, maximum);
}

static tf_code read_uint32(const char *name, tf_bytes value, uint32_t minimum, uint32_t maximum, uint32_t *out,
                           tf_error *error) {
  uint64_t number = 0;
  tf_code code = read_integer(name, value, minimum, maximum, &number, error);
  if (code == TF_OK) *out = (uint32_t)number;
  return code;
}

static bool has_control_characters(tf_bytes value) {
  for (size_t i = 0; i < value.size; i++) {
    unsigned char c = (unsigned char)value.data[i];
    if (c < 0x20 || c == 0x7f) return true;
  }
  return false;
}

/* Text of 1 to `maximum` bytes, valid UTF-8 without NULs (and without control characters where `plain`). */
static tf_code read_text(const char *name, tf_bytes value, size_t maximum, bool plain, tf_code too_long, tf_bytes *out,
                         tf_error *error) {
  if (value.size == 0) return tf_fail(error, TF_ERR_FIELD_INVALID, "%s is empty: leave it out instead", name);
  if (value.size > maximum)
    return tf_fail(error, too_long, "%s has %zu bytes, at most %zu are accepted", name, value.size, maximum);
  if (memchr(value.data, 0, value.size) || !tf_utf8_is_valid(value.data, value.size))
    return tf_fail(error, TF_ERR_FIELD_INVALID, "%s must be UTF-8 without NULs", name);
  if (plain && has_control_characters(value))
    return tf_fail(error, TF_ERR_FIELD_INVALID, "%s must not hold control characters", name);
  *out = value;
  return TF_OK;
}

static tf_code read_id(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_text("id", value, TF_ID_BYTES_MAX, true, TF_ERR_FIELD_INVALID, &out->id, error);
}
static tf_code read_image(tf_bytes value, tf_job_fields *out, tf_error *error) {
  if (value.size == 0) return tf_fail(error, TF_ERR_IMAGE_EMPTY, "image is empty");
  if (value.size > TF_IMAGE_BYTES_MAX)
    return tf_fail(error, TF_ERR_IMAGE_TOO_LARGE, "image has %zu bytes, at most %d are accepted", value.size,
                   TF_IMAGE_BYTES_MAX);
  out->image = value;
  return TF_OK;
}
static tf_code read_uri(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_text("uri", value, TF_URI_BYTES_MAX, true, TF_ERR_URI_INVALID, &out->uri, error);
}
static tf_code read_prompt(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_text("prompt", value, TF_PROMPT_BYTES_MAX, false, TF_ERR_PROMPT_TOO_LONG, &out->prompt, error);
}
/* W3C Trace Context: "00-TRACE ID-PARENT ID-FLAGS" in lower-case hex; of it the 32 digits of the trace id, which are
 * what all services of a request have in common. Anything else stays as it is. */
static tf_bytes trace_id_of(tf_bytes value) {
  enum { TRACEPARENT_BYTES = 55, ID_AT = 3, ID_BYTES = 32 };
  static const char pattern[] = "xx-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xx";
  _Static_assert(sizeof pattern == TRACEPARENT_BYTES + 1, "as the specification has it");
  if (value.size != TRACEPARENT_BYTES) return value;
  for (size_t i = 0; i < value.size; i++) {
    bool digit = value.data[i] && strchr("0123456789abcdef", value.data[i]);
    if (pattern[i] == 'x' ? !digit : value.data[i] != '-') return value;
  }
  return (tf_bytes){value.data + ID_AT, ID_BYTES};
}

static tf_code read_trace(tf_bytes value, tf_job_fields *out, tf_error *error) {
  tf_code code = read_text("trace", value, TF_TRACE_BYTES_MAX, true, TF_ERR_FIELD_INVALID, &out->trace, error);
  if (code == TF_OK) out->trace = trace_id_of(out->trace);
  return code;
}
/* A name that becomes part of a key. */
static tf_code read_name(const char *field, tf_bytes value, tf_bytes *out, tf_error *error) {
  static const char accepted[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-";
  bool good = value.size > 0 && value.size <= TF_REPLY_NAME_BYTES_MAX;
  for (size_t i = 0; good && i < value.size; i++) good = value.data[i] && strchr(accepted, value.data[i]);
  if (!good)
    return tf_fail(error, TF_ERR_FIELD_INVALID, "%s must be 1 to %d of A-Z a-z 0-9 . _ : -", field,
                   TF_REPLY_NAME_BYTES_MAX);
  *out = value;
  return TF_OK;
}
static tf_code read_reply(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_name("reply", value, &out->reply, error);
}
static tf_code read_pace(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_name("pace", value, &out->pace, error);
}
static tf_code read_min(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_uint32("min_vision_tokens", value, 1, TF_VISION_TOKENS_MAX, &out->vision_tokens_min, error);
}
static tf_code read_max(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_uint32("max_vision_tokens", value, 1, TF_VISION_TOKENS_MAX, &out->vision_tokens_max, error);
}
static tf_code read_new_tokens(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_uint32("max_new_tokens", value, 1, TF_NEW_TOKENS_MAX, &out->sampling.max_new_tokens, error);
}
static tf_code read_temperature(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_real("temperature", value, 0, 100, &out->sampling.temperature, error);
}
static tf_code read_top_k(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_uint32("top_k", value, 0, TF_TOP_K_MAX, &out->sampling.top_k, error);
}
static tf_code read_top_p(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_real("top_p", value, 0, 1, &out->sampling.top_p, error);
}
static tf_code read_seed(tf_bytes value, tf_job_fields *out, tf_error *error) {
  return read_integer("seed", value, 0, UINT64_MAX, &out->sampling.seed, error);
}
static tf_code read_ignore_end(tf_bytes value, tf_job_fields *out, tf_error *error) {
  uint32_t number = 0;
  tf_code code = read_uint32("ignore_end", value, 0, 1, &number, error);
  out->sampling.ignore_end = number == 1;
  return code;
}
static tf_code read_deadline(tf_bytes value, tf_job_fields *out, tf_error *error) {
  uint64_t number = 0;
  tf_code code = read_integer("deadline_ms", value, 1, (uint64_t)TF_DEADLINE_MS_MAX, &number, error);
  if (code == TF_OK) out->deadline_ms = (int64_t)number;
  return code;
}

static const struct {
  const char *name;
  reader read;
} readers[] = {
    {"id", read_id},
    {"image", read_image},
    {"uri", read_uri},
    {"prompt", read_prompt},
    {"min_vision_tokens", read_min},
    {"max_vision_tokens", read_max},
    {"max_new_tokens", read_new_tokens},
    {"temperature", read_temperature},
    {"top_k", read_top_k},
    {"top_p", read_top_p},
    {"seed", read_seed},
    {"ignore_end", read_ignore_end},
    {"deadline_ms", read_deadline},
    {"reply", read_reply},
    {"pace", read_pace},
    {"trace", read_trace},
};
enum { READER_COUNT = sizeof readers / sizeof *readers };

static int find_reader(tf_bytes name) {
  for (int i = 0; i < READER_COUNT; i++)
    if (strlen(readers[i].name) == name.size && !memcmp(readers[i].name, name.data, name.size)) return i;
  return -1;
}

/* An unknown name in a form that fits an error text: printable ASCII, cut. */
static void printable(tf_bytes name, char out[65]) {
  size_t size = name.size < 64 ? name.size : 64;
  for (size_t i = 0; i < size; i++) out[i] = name.data[i] > 0x20 && name.data[i] < 0x7f ? name.data[i] : '?';
  out[size] = 0;
}

static tf_code check_together(const tf_job_fields *self, tf_error *error) {
  if (self->image.size == 0 && self->uri.size == 0)
    return tf_fail(error, TF_ERR_FIELD_INVALID, "a job needs image or uri, this one has neither");
  if (self->image.size > 0 && self->uri.size > 0)
    return tf_fail(error, TF_ERR_FIELD_INVALID, "a job takes image or uri, this one has both");
  if (self->vision_tokens_min && self->vision_tokens_max && self->vision_tokens_min > self->vision_tokens_max)
    return tf_fail(error, TF_ERR_FIELD_INVALID, "min_vision_tokens %u is above max_vision_tokens %u",
                   self->vision_tokens_min, self->vision_tokens_max);
  return TF_OK;
}

/* Reads every field, so that *out (the reply name above all) is as full as can be; the first error is the one told. */
tf_code tf_job_fields_parse(const tf_job_field *fields, size_t count, tf_job_fields *out, tf_error *error) {
  *out = (tf_job_fields){.sampling.max_new_tokens = TF_NEW_TOKENS_DEFAULT};
  bool seen[READER_COUNT] = {false};
  tf_code first = TF_OK;
  if (count > TF_JOB_FIELDS_MAX) {
    first = tf_fail(error, TF_ERR_FIELD_INVALID, "the entry has %zu fields, at most %d are accepted", count,
                    TF_JOB_FIELDS_MAX);
    count = TF_JOB_FIELDS_MAX;
  }
  for (size_t i = 0; i < count; i++) {
    int at = find_reader(fields[i].name);
    tf_error told;
    tf_code code = TF_OK;
    if (at < 0) {
      char name[65];
      printable(fields[i].name, name);
      code = tf_fail(&told, TF_ERR_FIELD_UNKNOWN, "unknown field '%s'", name);
    } else if (seen[at]) {
      code = tf_fail(&told, TF_ERR_FIELD_INVALID, "the field %s is given twice", readers[at].name);
    } else {
      seen[at] = true;
      code = readers[at].read(fields[i].value, out, &told);
    }
    if (code == TF_OK || first != TF_OK) continue;
    first = code;
    if (error) *error = told;
  }
  return first != TF_OK ? first : check_together(out, error);
}

tf_code tf_job_fields_check_counts(const tf_job_fields *self, const uint32_t *counts, size_t count, tf_error *error) {
  const struct {
    const char *name;
    uint32_t value;
  } limits[2] = {{"min_vision_tokens", self->vision_tokens_min}, {"max_vision_tokens", self->vision_tokens_max}};
  for (int i = 0; i < 2; i++) {
    bool found = limits[i].value == 0;
    for (size_t j = 0; !found && j < count; j++) found = counts[j] == limits[i].value;
    if (found) continue;
    char offered[128] = "";
    size_t used = 0;
    for (size_t j = 0; j < count && used < sizeof offered; j++)
      used += (size_t)snprintf(offered + used, sizeof offered - used, "%s%u", j ? ", " : "", counts[j]);
    return tf_fail(error, TF_ERR_VISION_TOKENS_UNSUPPORTED, "%s %u is not supported; this model has %s", limits[i].name,
                   limits[i].value, offered);
  }
  return TF_OK;
}

/* The messages of tokenflex.proto as plain structs (their way over ZeroMQ is in wire_socket.c).
 * In: a struct to pack, or the bytes of a header frame. Out: bytes, or a checked struct whose strings live in it.
 * One table a message maps fields by number, with their bounds; the generated descriptors give types and names, so that
 * packing, unpacking and checking are one loop each. Received bytes are walked before they are unpacked: what the
 * unpacker would hide (NULs inside strings, a field or a body given twice) is refused there. */
#include "proto/wire.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "proto/tokenflex.pb-c.h"

enum {
  CODE_BYTES_MAX = 64,   /* wire names of error codes */
  TEXT_BYTES_MAX = 1024, /* error messages, warnings */
  VERSION_BYTES_MAX = 64,
  WIDTH_MAX = 65536,
  GRID_MAX = 64,
  CONTEXT_TOKENS_MAX = 1 << 24,
  TEMPERATURE_MAX = 100,
  UNKNOWN_FIELDS_MAX = 256, /* in one frame: each costs memory when unpacked */
  NESTING_MAX = 4
};

/* ---- Tables: plain struct <-> generated struct ---- */

typedef enum field_kind {
  KIND_STRING,
  KIND_NAME, /* a string that must not be empty */
  KIND_TEXT, /* for people: repaired and cut when sent, so that a report of a failure can not itself fail */
  KIND_UINT32,
  KIND_UINT64,
  KIND_INT64, /* not negative */
  KIND_BOOL,
  KIND_ENUM,    /* 1 .. maximum */
  KIND_MS,      /* float, finite, not negative; sent as 0 where two clocks disagreed */
  KIND_REAL,    /* float, 0 .. maximum */
  KIND_COUNTS,  /* the repeated token counts of HELLO */
  KIND_TIMES,   /* repeated floats, each finite, not negative, at most maximum; mended when sent */
  KIND_MESSAGE, /* absent: all zero */
  KIND_REQUIRED /* a message that must be there */
} field_kind;

typedef struct field {
  uint8_t number; /* in the .proto */
  uint8_t kind;
  uint16_t offset;  /* in the plain struct */
  uint64_t maximum; /* bytes, or value */
  const struct layout *layout;
} field;

typedef struct layout {
  const ProtobufCMessageDescriptor *descriptor;
  size_t storage; /* where in `outgoing` the generated struct is built */
  const field *fields;
  size_t count;
} layout;

/* One message on its way out: the generated structs, which borrow the strings of the plain one. */
typedef struct outgoing {
  Tokenflex__Envelope envelope;
  union {
    ProtobufCMessage base;
    Tokenflex__Hello hello;
    Tokenflex__Window window;
    Tokenflex__Job job;
    Tokenflex__Stage stage;
    Tokenflex__Cancel cancel;
    Tokenflex__Ping ping;
    Tokenflex__Pong pong;
    Tokenflex__Tensor tensor;
    Tokenflex__TensorAck tensor_ack;
    Tokenflex__TensorRefused tensor_refused;
    Tokenflex__Delta delta;
    Tokenflex__Result result;
    Tokenflex__Failure failure;
    Tokenflex__Drain drain;
  } body;
  Tokenflex__JobKey key;
  Tokenflex__Sampling sampling;
  Tokenflex__Timing timing;
  uint32_t counts[TF_HELLO_COUNTS_MAX];
  tf_times times[2]; /* no message has three KIND_TIMES fields */
  size_t times_used;
  char text[TEXT_BYTES_MAX + 1]; /* no message has two KIND_TEXT fields */
} outgoing;

_Static_assert(sizeof(tf_role) == sizeof(uint32_t) && sizeof(tf_finish_reason) == sizeof(uint32_t) &&
                   sizeof(tf_job_stage) == sizeof(uint32_t) && sizeof(tf_tensor_dtype) == sizeof(uint32_t),
               "enums are copied as 32-bit numbers");

#define FIELD(number, kind, type, member, maximum)                                                                     \
  { number, KIND_##kind, offsetof(type, member), maximum, NULL }
#define NESTED(number, kind, type, member, layout)                                                                     \
  { number, KIND_##kind, offsetof(type, member), 0, &(layout) }
#define LAYOUT(name, generated, where)                                                                                 \
  static const layout name##_layout = {&tokenflex__##generated##__descriptor, offsetof(outgoing, where),               \
                                       name##_fields, sizeof name##_fields / sizeof name##_fields[0]}

static const field key_fields[] = {
    FIELD(1, STRING, tf_job_key, queue, TF_QUEUE_BYTES_MAX),
    FIELD(2, NAME, tf_job_key, entry, TF_ENTRY_BYTES_MAX),
    FIELD(3, STRING, tf_job_key, id, TF_ID_BYTES_MAX),
    FIELD(4, UINT32, tf_job_key, attempt, UINT32_MAX),
    FIELD(5, STRING, tf_job_key, router, TF_INSTANCE_BYTES_MAX),
    FIELD(6, STRING, tf_job_key, trace, TF_TRACE_BYTES_MAX),
};
LAYOUT(key, job_key, key);

static const field sampling_fields[] = {
    FIELD(1, UINT32, tf_sampling, max_new_tokens, TF_NEW_TOKENS_MAX),
    FIELD(2, REAL, tf_sampling, temperature, TEMPERATURE_MAX),
    FIELD(3, UINT32, tf_sampling, top_k, UINT32_MAX),
    FIELD(4, REAL, tf_sampling, top_p, 1),
    FIELD(5, UINT64, tf_sampling, seed, UINT64_MAX),
    FIELD(6, BOOL, tf_sampling, ignore_end, 1),
};
LAYOUT(sampling, sampling, sampling);

static const field timing_fields[] = {
    FIELD(1, MS, tf_timing, queue_ms, 0),    FIELD(2, MS, tf_timing, fetch_ms, 0),
    FIELD(3, MS, tf_timing, decode_ms, 0),   FIELD(4, MS, tf_timing, encode_ms, 0),
    FIELD(5, MS, tf_timing, transfer_ms, 0), FIELD(6, MS, tf_timing, wait_ms, 0),
    FIELD(7, MS, tf_timing, prefill_ms, 0),  FIELD(8, MS, tf_timing, generate_ms, 0),
};
LAYOUT(timing, timing, timing);

static const field hello_fields[] = {
    FIELD(1, ENUM, tf_hello, role, TF_ROLE_LLM),
    FIELD(2, NAME, tf_hello, instance, TF_INSTANCE_BYTES_MAX),
    FIELD(3, STRING, tf_hello, pair_hash, TF_MODEL_BYTES_MAX),
    FIELD(4, STRING, tf_hello, model, TF_MODEL_BYTES_MAX),
    FIELD(5, COUNTS, tf_hello, token_counts, TF_VISION_TOKENS_MAX),
    FIELD(6, STRING, tf_hello, tensor_endpoint, TF_ENDPOINT_BYTES_MAX),
    FIELD(7, STRING, tf_hello, queue, TF_QUEUE_BYTES_MAX),
    FIELD(8, UINT32, tf_hello, context_tokens_max, CONTEXT_TOKENS_MAX),
    FIELD(9, STRING, tf_hello, version, VERSION_BYTES_MAX),
    FIELD(10, INT64, tf_hello, started_unix_ms, INT64_MAX),
};
LAYOUT(hello, hello, body);

static const field window_fields[] = {
    FIELD(1, UINT64, tf_window, epoch, UINT64_MAX),
    FIELD(2, UINT32, tf_window, jobs_max, UINT32_MAX),
    FIELD(3, UINT32, tf_window, kv_tokens_max, UINT32_MAX),
    FIELD(4, BOOL, tf_window, draining, 1),
};
LAYOUT(window, window, body);

static const field job_fields[] = {
    NESTED(1, REQUIRED, tf_job, key, key_layout),
    FIELD(2, UINT32, tf_job, vision_tokens, TF_VISION_TOKENS_MAX),
    FIELD(3, STRING, tf_job, uri, TF_URI_BYTES_MAX),
    FIELD(4, STRING, tf_job, prompt, TF_PROMPT_BYTES_MAX),
    NESTED(5, REQUIRED, tf_job, sampling, sampling_layout),
    FIELD(6, INT64, tf_job, deadline_unix_ms, INT64_MAX),
    FIELD(7, STRING, tf_job, llm_instance, TF_INSTANCE_BYTES_MAX),
    FIELD(8, STRING, tf_job, llm_endpoint, TF_ENDPOINT_BYTES_MAX),
    FIELD(9, STRING, tf_job, pair_hash, TF_MODEL_BYTES_MAX),
    NESTED(10, MESSAGE, tf_job, timing, timing_layout),
    FIELD(11, BOOL, tf_job, stream, 1),
    FIELD(12, BOOL, tf_job, alone, 1),
};
LAYOUT(job, job, body);

static const field stage_fields[] = {
    NESTED(1, REQUIRED, tf_stage, key, key_layout),
    FIELD(2, ENUM, tf_stage, stage, TF_STAGE_DECODE),
    NESTED(3, MESSAGE, tf_stage, timing, timing_layout),
    FIELD(4, BOOL, tf_stage, alone, 1),
};
LAYOUT(stage, stage, body);

static const field cancel_fields[] = {
    NESTED(1, REQUIRED, tf_cancel, key, key_layout),
    FIELD(2, STRING, tf_cancel, reason, CODE_BYTES_MAX),
};
LAYOUT(cancel, cancel, body);

static const field ping_fields[] = {
    FIELD(1, UINT64, tf_ping, sequence, UINT64_MAX),
    FIELD(2, UINT32, tf_ping, demand_jobs, UINT32_MAX),
};
LAYOUT(ping, ping, body);

static const field pong_fields[] = {
    FIELD(1, UINT64, tf_pong, sequence, UINT64_MAX),      FIELD(2, TIMES, tf_pong, service, TF_TIMES_MS_MAX),
    FIELD(3, TIMES, tf_pong, latency, TF_TIMES_MS_MAX),   FIELD(4, UINT32, tf_pong, jobs, UINT32_MAX),
    FIELD(5, UINT32, tf_pong, jobs_max, UINT32_MAX),      FIELD(6, UINT32, tf_pong, kv_tokens, UINT32_MAX),
    FIELD(7, UINT32, tf_pong, kv_tokens_max, UINT32_MAX), FIELD(8, UINT32, tf_pong, batch_max, UINT32_MAX),
};
LAYOUT(pong, pong, body);

static const field drain_fields[] = {FIELD(1, NAME, tf_drain, instance, TF_INSTANCE_BYTES_MAX)};
LAYOUT(drain, drain, body);

static const field tensor_fields[] = {
    NESTED(1, REQUIRED, tf_tensor_header, key, key_layout),
    FIELD(2, STRING, tf_tensor_header, llm_instance, TF_INSTANCE_BYTES_MAX),
    FIELD(3, STRING, tf_tensor_header, encoder_instance, TF_INSTANCE_BYTES_MAX),
    FIELD(4, UINT32, tf_tensor_header, vision_tokens, TF_VISION_TOKENS_MAX),
    FIELD(5, UINT32, tf_tensor_header, width, WIDTH_MAX),
    FIELD(6, ENUM, tf_tensor_header, dtype, TF_TENSOR_F16),
    FIELD(7, UINT32, tf_tensor_header, grid, GRID_MAX),
    FIELD(8, STRING, tf_tensor_header, pair_hash, TF_MODEL_BYTES_MAX),
    FIELD(9, STRING, tf_tensor_header, prompt, TF_PROMPT_BYTES_MAX),
    NESTED(10, REQUIRED, tf_tensor_header, sampling, sampling_layout),
    FIELD(11, INT64, tf_tensor_header, deadline_unix_ms, INT64_MAX),
    FIELD(12, UINT64, tf_tensor_header, byte_length, TF_TENSOR_BYTES_MAX),
    NESTED(13, MESSAGE, tf_tensor_header, timing, timing_layout),
    FIELD(14, INT64, tf_tensor_header, sent_unix_us, INT64_MAX),
    FIELD(15, BOOL, tf_tensor_header, stream, 1),
    FIELD(16, TEXT, tf_tensor_header, warning, TEXT_BYTES_MAX),
    FIELD(17, BOOL, tf_tensor_header, alone, 1),
};
LAYOUT(tensor, tensor, body);

static const field tensor_ack_fields[] = {NESTED(1, REQUIRED, tf_tensor_ack, key, key_layout)};
LAYOUT(tensor_ack, tensor_ack, body);

static const field tensor_refused_fields[] = {
    NESTED(1, REQUIRED, tf_tensor_refused, key, key_layout),
    FIELD(2, STRING, tf_tensor_refused, error_code, CODE_BYTES_MAX),
    FIELD(3, TEXT, tf_tensor_refused, error_message, TEXT_BYTES_MAX),
};
LAYOUT(tensor_refused, tensor_refused, body);

static const field delta_fields[] = {
    NESTED(1, REQUIRED, tf_delta, key, key_layout),
    FIELD(2, UINT32, tf_delta, sequence, UINT32_MAX),
    FIELD(3, STRING, tf_delta, text, TF_CAPTION_BYTES_MAX),
};
LAYOUT(delta, delta, body);

static const field result_fields[] = {
    NESTED(1, REQUIRED, tf_result, key, key_layout),
    FIELD(2, STRING, tf_result, caption, TF_CAPTION_BYTES_MAX),
    FIELD(3, UINT32, tf_result, vision_tokens, TF_VISION_TOKENS_MAX),
    FIELD(4, UINT32, tf_result, prompt_tokens, CONTEXT_TOKENS_MAX),
    FIELD(5, UINT32, tf_result, completion_tokens, TF_NEW_TOKENS_MAX),
    FIELD(6, ENUM, tf_result, finish_reason, TF_FINISH_LENGTH),
    FIELD(7, STRING, tf_result, model, TF_MODEL_BYTES_MAX),
    NESTED(8, MESSAGE, tf_result, timing, timing_layout),
    FIELD(9, STRING, tf_result, encoder_instance, TF_INSTANCE_BYTES_MAX),
    FIELD(10, STRING, tf_result, llm_instance, TF_INSTANCE_BYTES_MAX),
    FIELD(11, TEXT, tf_result, warning, TEXT_BYTES_MAX),
};
LAYOUT(result, result, body);

static const field failure_fields[] = {
    NESTED(1, REQUIRED, tf_failure, key, key_layout),
    FIELD(2, STRING, tf_failure, error_code, CODE_BYTES_MAX),
    FIELD(3, TEXT, tf_failure, error_message, TEXT_BYTES_MAX),
    FIELD(4, BOOL, tf_failure, no_attempt, 1),
};
LAYOUT(failure, failure, body);

/* NULL for a type that does not exist. */
static const layout *layout_of(unsigned type) {
  static const layout *const layouts[] = {
      [TF_MESSAGE_HELLO] = &hello_layout,
      [TF_MESSAGE_WINDOW] = &window_layout,
      [TF_MESSAGE_JOB] = &job_layout,
      [TF_MESSAGE_STAGE] = &stage_layout,
      [TF_MESSAGE_CANCEL] = &cancel_layout,
      [TF_MESSAGE_PING] = &ping_layout,
      [TF_MESSAGE_PONG] = &pong_layout,
      [TF_MESSAGE_TENSOR] = &tensor_layout,
      [TF_MESSAGE_TENSOR_ACK] = &tensor_ack_layout,
      [TF_MESSAGE_TENSOR_REFUSED] = &tensor_refused_layout,
      [TF_MESSAGE_DELTA] = &delta_layout,
      [TF_MESSAGE_RESULT] = &result_layout,
      [TF_MESSAGE_FAILURE] = &failure_layout,
      [TF_MESSAGE_DRAIN] = &drain_layout,
  };
  return type < sizeof layouts / sizeof layouts[0] ? layouts[type] : NULL;
}

static const ProtobufCFieldDescriptor *describe(const layout *of, const field *one) {
  return protobuf_c_message_descriptor_get_field(of->descriptor, one->number);
}

/* ---- Bounds, the same both ways ---- */

static const char *fault_of_string(const field *one, const char *text, bool sending) {
  if (!text) text = "";
  if (one->kind == KIND_NAME && !*text) return "is empty";
  if (one->kind == KIND_TEXT && sending) return NULL; /* repaired on the way out */
  size_t size = strnlen(text, one->maximum + 1);
  if (size > one->maximum) return "is too long";
  return tf_utf8_is_valid(text, size) ? NULL : "is not valid UTF-8";
}

static const char *fault_of_counts(const field *one, const tf_hello *hello) {
  if (hello->token_count_count > TF_HELLO_COUNTS_MAX) return "has too many values";
  for (uint32_t i = 0; i < hello->token_count_count; i++) {
    if (hello->token_counts[i] == 0 || hello->token_counts[i] > one->maximum) return "is out of range";
  }
  return NULL;
}

static const char *fault_of_times(const field *one, const tf_times *times, bool sending) {
  if (times->count > TF_HELLO_COUNTS_MAX) return "has too many values";
  for (uint32_t i = 0; !sending && i < times->count; i++)
    if (!(times->ms[i] >= 0 && times->ms[i] <= (float)one->maximum)) return "is out of range"; /* NaN too */
  return NULL;
}

/* What is wrong with one field of a plain struct, or NULL. */
static const char *fault_of(const field *one, const void *plain, bool sending) {
  const void *at = (const char *)plain + one->offset;
  bool ok = true;
  switch ((field_kind)one->kind) {
  case KIND_STRING:
  case KIND_NAME:
  case KIND_TEXT:
    return fault_of_string(one, *(const char *const *)at, sending);
  case KIND_COUNTS:
    return fault_of_counts(one, plain);
  case KIND_TIMES:
    return fault_of_times(one, at, sending);
  case KIND_UINT32:
    ok = *(const uint32_t *)at <= one->maximum;
    break;
  case KIND_UINT64:
    ok = *(const uint64_t *)at <= one->maximum;
    break;
  case KIND_INT64:
    ok = *(const int64_t *)at >= 0;
    break;
  case KIND_ENUM:
    ok = *(const uint32_t *)at >= 1 && *(const uint32_t *)at <= one->maximum;
    break;
  case KIND_MS:
    ok = sending || (isfinite(*(const float *)at) && *(const float *)at >= 0);
    break;
  case KIND_REAL: /* false for NaN too */
    ok = *(const float *)at >= 0 && *(const float *)at <= (float)one->maximum;
    break;
  case KIND_BOOL:
  case KIND_MESSAGE:
  case KIND_REQUIRED:
    break;
  }
  return ok ? NULL : "is out of range";
}

static tf_code check(const layout *of, const void *plain, bool sending, tf_error *error) {
  for (size_t i = 0; i < of->count; i++) {
    const field *one = &of->fields[i];
    if (one->layout) {
      tf_code code = check(one->layout, (const char *)plain + one->offset, sending, error);
      if (code != TF_OK) return code;
      continue;
    }
    const char *fault = fault_of(one, plain, sending);
    if (fault) {
      return tf_fail(error, TF_ERR_PROTOCOL, "message %s: %s %s", of->descriptor->short_name, describe(of, one)->name,
                     fault);
    }
  }
  return TF_OK;
}

/* ---- Plain to generated ---- */

/* text cut at a whole character, each malformed byte replaced by '?'. */
static char *repair(const char *text, char *out, size_t bytes_max) {
  size_t size = strlen(text), length = 0;
  for (size_t at = 0; at < size;) {
    size_t step = tf_utf8_character_bytes(text + at, size - at);
    size_t width = step ? step : 1;
    if (width > bytes_max - length) break;
    if (step)
      memcpy(out + length, text + at, step);
    else
      out[length] = '?';
    length += width;
    at += width;
  }
  out[length] = '\0';
  return out;
}

/* Times on their way out: a clock that went wrong must not silence a worker. */
static void export_times(const field *one, const tf_times *from, float **values, size_t *count, outgoing *out) {
  assert(out->times_used < sizeof out->times / sizeof *out->times);
  tf_times *mended = &out->times[out->times_used++];
  for (uint32_t i = 0; i < from->count; i++) {
    float ms = isfinite(from->ms[i]) && from->ms[i] > 0 ? from->ms[i] : 0;
    mended->ms[i] = ms < (float)one->maximum ? ms : (float)one->maximum;
  }
  *values = mended->ms;
  *count = from->count;
}

static ProtobufCMessage *export_message(const layout *of, const void *plain, outgoing *out);

static void export_field(const field *one, const ProtobufCFieldDescriptor *as, const void *plain, char *generated,
                         outgoing *out) {
  const void *from = (const char *)plain + one->offset;
  void *to = generated + as->offset;
  switch ((field_kind)one->kind) {
  case KIND_STRING:
  case KIND_NAME:
    /* Borrowed: packing only reads it. */
    if (*(const char *const *)from) memcpy(to, from, sizeof(char *));
    break;
  case KIND_TEXT:
    if (*(const char *const *)from) *(char **)to = repair(*(const char *const *)from, out->text, TEXT_BYTES_MAX);
    break;
  case KIND_UINT32:
  case KIND_ENUM:
    *(uint32_t *)to = *(const uint32_t *)from;
    break;
  case KIND_UINT64:
    *(uint64_t *)to = *(const uint64_t *)from;
    break;
  case KIND_INT64:
    *(int64_t *)to = *(const int64_t *)from;
    break;
  case KIND_BOOL:
    *(protobuf_c_boolean *)to = *(const bool *)from;
    break;
  case KIND_MS: {
    float ms = *(const float *)from;
    *(float *)to = isfinite(ms) && ms > 0 ? ms : 0;
    break;
  }
  case KIND_REAL:
    *(float *)to = *(const float *)from;
    break;
  case KIND_COUNTS:
    memcpy(out->counts, from, sizeof out->counts);
    *(uint32_t **)to = out->counts;
    *(size_t *)(generated + as->quantifier_offset) = ((const tf_hello *)plain)->token_count_count;
    break;
  case KIND_TIMES:
    export_times(one, from, (float **)to, (size_t *)(generated + as->quantifier_offset), out);
    break;
  case KIND_MESSAGE:
  case KIND_REQUIRED:
    *(ProtobufCMessage **)to = export_message(one->layout, from, out);
    break;
  }
}

static ProtobufCMessage *export_message(const layout *of, const void *plain, outgoing *out) {
  ProtobufCMessage *generated = (ProtobufCMessage *)((char *)out + of->storage);
  of->descriptor->message_init(generated);
  for (size_t i = 0; i < of->count; i++) {
    export_field(&of->fields[i], describe(of, &of->fields[i]), plain, (char *)generated, out);
  }
  return generated;
}

/* Checks and builds; *size is what packing out->envelope will take. */
static tf_code prepare(const tf_message *message, outgoing *out, size_t *size, tf_error *error) {
  const layout *body = layout_of((unsigned)message->type);
  if (!body) return tf_fail(error, TF_ERR_PROTOCOL, "message of unknown type %d", (int)message->type);
  tf_code code = check(body, &message->u, true, error);
  if (code != TF_OK) return code;
  tokenflex__envelope__init(&out->envelope);
  out->times_used = 0;
  out->envelope.protocol = TF_PROTOCOL_VERSION;
  out->envelope.body_case = (Tokenflex__Envelope__BodyCase)message->type;
  /* Every member of the union is a pointer to a message. */
  out->envelope.hello = (Tokenflex__Hello *)export_message(body, &message->u, out);
  *size = tokenflex__envelope__get_packed_size(&out->envelope);
  if (*size > TF_MESSAGE_BYTES_MAX) {
    return tf_fail(error, TF_ERR_PROTOCOL, "message %s: %zu bytes are too long", body->descriptor->short_name, *size);
  }
  return TF_OK;
}

tf_code tf_wire_encode(const tf_message *message, uint8_t **out, size_t *size, tf_error *error) {
  outgoing built;
  *out = NULL;
  tf_code code = prepare(message, &built, size, error);
  if (code != TF_OK) return code;
  *out = malloc(*size);
  if (!*out) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "message: out of memory");
  tokenflex__envelope__pack(&built.envelope, *out);
  return TF_OK;
}

/* ---- Generated to plain ---- */

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *out) {
  *out = 0;
  for (int shift = 0; shift < 70 && *at < end; shift += 7) {
    uint8_t byte = *(*at)++;
    if (shift < 64) *out |= (uint64_t)(byte & 0x7f) << shift;
    if (!(byte & 0x80)) return true;
  }
  return false;
}

/* Wire types of protobuf. */
enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

static bool fits_wire_type(const ProtobufCFieldDescriptor *known, unsigned wire_type) {
  if (known->label == PROTOBUF_C_LABEL_REPEATED && wire_type == WIRE_BYTES) return true; /* packed */
  switch (known->type) {
  case PROTOBUF_C_TYPE_STRING:
  case PROTOBUF_C_TYPE_MESSAGE:
    return wire_type == WIRE_BYTES;
  case PROTOBUF_C_TYPE_FLOAT:
    return wire_type == WIRE_FIXED32;
  default:
    return wire_type == WIRE_VARINT;
  }
}

/* One value of the given wire type: *at is moved past it. *size: its bytes where it is WIRE_BYTES (then *at - *size).
 */
static bool skip_value(const uint8_t **at, const uint8_t *end, unsigned wire_type, size_t *size) {
  uint64_t number;
  *size = 0;
  if (wire_type == WIRE_VARINT) return read_varint(at, end, &number);
  if (wire_type == WIRE_BYTES) {
    if (!read_varint(at, end, &number)) return false;
  } else if (wire_type == WIRE_FIXED32 || wire_type == WIRE_FIXED64) {
    number = wire_type == WIRE_FIXED32 ? 4 : 8;
  } else {
    return false; /* groups */
  }
  if (number > (size_t)(end - *at)) return false;
  *size = (size_t)number;
  *at += number;
  return true;
}

/* What is wrong with the bytes of a message, or NULL. A singular field may come once, and one body alone: nothing is
 * ever merged. unknown_left counts down over all nested messages. */
static const char *fault_in_bytes(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t size,
                                  int nesting, unsigned *unknown_left) {
  const uint8_t *at = data, *end = data + size;
  uint32_t seen = 0; /* bit: field number; bit 0: a member of the oneof */
  if (nesting > NESTING_MAX) return "nests too deep";
  while (at < end) {
    uint64_t tag;
    size_t bytes;
    if (!read_varint(&at, end, &tag) || tag > UINT32_MAX || tag >> 3 == 0) return "has a malformed tag";
    unsigned wire_type = (unsigned)(tag & 7), number = (unsigned)(tag >> 3);
    if (!skip_value(&at, end, wire_type, &bytes)) return "ends early";
    const ProtobufCFieldDescriptor *known = protobuf_c_message_descriptor_get_field(descriptor, number);
    if (!known) {
      if (*unknown_left == 0) return "has too many unknown fields";
      (*unknown_left)--;
      continue;
    }
    assert(number < 32);
    if (!fits_wire_type(known, wire_type)) return "has a field of the wrong type";
    if (known->label == PROTOBUF_C_LABEL_REPEATED) continue;
    uint32_t bit = UINT32_C(1) << (known->flags & PROTOBUF_C_FIELD_FLAG_ONEOF ? 0 : number);
    if (seen & bit) return "has a field twice";
    seen |= bit;
    if (known->type == PROTOBUF_C_TYPE_STRING && memchr(at - bytes, 0, bytes)) return "has a NUL inside a string";
    if (known->type == PROTOBUF_C_TYPE_MESSAGE) {
      const char *fault = fault_in_bytes(known->descriptor, at - bytes, bytes, nesting + 1, unknown_left);
      if (fault) return fault;
    }
  }
  return NULL;
}

static const char *import_message(const layout *of, const ProtobufCMessage *generated, void *plain);

/* Copies one field; what is wrong with it beyond its bounds, or NULL. */
static const char *import_field(const field *one, const ProtobufCFieldDescriptor *as, const char *generated,
                                void *plain) {
  const void *from = generated + as->offset;
  void *to = (char *)plain + one->offset;
  switch ((field_kind)one->kind) {
  case KIND_STRING:
  case KIND_NAME:
  case KIND_TEXT:
    *(const char **)to = *(char *const *)from;
    break;
  case KIND_UINT32:
  case KIND_ENUM:
    *(uint32_t *)to = *(const uint32_t *)from;
    break;
  case KIND_UINT64:
    *(uint64_t *)to = *(const uint64_t *)from;
    break;
  case KIND_INT64:
    *(int64_t *)to = *(const int64_t *)from;
    break;
  case KIND_BOOL:
    *(bool *)to = *(const protobuf_c_boolean *)from != 0;
    break;
  case KIND_MS:
  case KIND_REAL:
    *(float *)to = *(const float *)from;
    break;
  case KIND_COUNTS: {
    size_t count = *(const size_t *)(generated + as->quantifier_offset);
    if (count > TF_HELLO_COUNTS_MAX) return "too many values";
    if (count > 0) memcpy(to, *(uint32_t *const *)from, count * sizeof(uint32_t));
    ((tf_hello *)plain)->token_count_count = (uint32_t)count;
    break;
  }
  case KIND_TIMES: {
    size_t count = *(const size_t *)(generated + as->quantifier_offset);
    if (count > TF_HELLO_COUNTS_MAX) return "too many values";
    tf_times *times = to;
    if (count > 0) memcpy(times->ms, *(float *const *)from, count * sizeof(float));
    times->count = (uint32_t)count;
    break;
  }
  case KIND_MESSAGE:
  case KIND_REQUIRED: {
    const ProtobufCMessage *nested = *(ProtobufCMessage *const *)from;
    if (nested) return import_message(one->layout, nested, to);
    /* The plain struct was zeroed; messages with strings are all KIND_REQUIRED. */
    return one->kind == KIND_REQUIRED ? as->name : NULL;
  }
  }
  return NULL;
}

static const char *import_message(const layout *of, const ProtobufCMessage *generated, void *plain) {
  for (size_t i = 0; i < of->count; i++) {
    const char *missing = import_field(&of->fields[i], describe(of, &of->fields[i]), (const char *)generated, plain);
    if (missing) return missing;
  }
  return NULL;
}

static tf_code unpack(const uint8_t *data, size_t size, tf_message *out, tf_error *error) {
  if (size > TF_MESSAGE_BYTES_MAX) return tf_fail(error, TF_ERR_PROTOCOL, "message of %zu bytes is too long", size);
  unsigned unknown_left = UNKNOWN_FIELDS_MAX;
  const char *fault = fault_in_bytes(&tokenflex__envelope__descriptor, data, size, 0, &unknown_left);
  if (fault) return tf_fail(error, TF_ERR_PROTOCOL, "message %s", fault);
  Tokenflex__Envelope *envelope = tokenflex__envelope__unpack(NULL, size, data);
  if (!envelope) return tf_fail(error, TF_ERR_PROTOCOL, "message can not be unpacked");
  out->unpacked = envelope;
  if (envelope->protocol != TF_PROTOCOL_VERSION) {
    return tf_fail(error, TF_ERR_PROTOCOL, "message of protocol %u; this is %d", envelope->protocol,
                   TF_PROTOCOL_VERSION);
  }
  const layout *body = layout_of((unsigned)envelope->body_case);
  if (!body || !envelope->hello) return tf_fail(error, TF_ERR_PROTOCOL, "message of an unknown type");
  out->type = (tf_message_type)envelope->body_case;
  const char *missing = import_message(body, (const ProtobufCMessage *)envelope->hello, &out->u);
  if (missing) {
    return tf_fail(error, TF_ERR_PROTOCOL, "message %s: missing or wrong: %s", body->descriptor->short_name, missing);
  }
  return check(body, &out->u, false, error);
}

tf_code tf_wire_decode(const uint8_t *data, size_t size, tf_message *out, tf_error *error) {
  memset(out, 0, sizeof *out);
  zmq_msg_init(&out->payload);
  return unpack(data, size, out, error);
}

void tf_message_clear(tf_message *self) {
  if (self->unpacked) tokenflex__envelope__free_unpacked(self->unpacked, NULL);
  /* Fails, harmlessly, on a message that was never received: its payload is all zero. */
  zmq_msg_close(&self->payload);
  memset(self, 0, sizeof *self);
}

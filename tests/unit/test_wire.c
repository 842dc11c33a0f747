/* Tests of proto/wire.c and proto/wire_socket.c.
 * In: one full message of every type, then damaged ones: by hand, and by thousands of seeded random mutations.
 * Out: equal structs after the way through bytes or sockets; TF_ERR_PROTOCOL, and nothing worse, for the damaged ones.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "proto/wire.h"

static tf_error problem;
static const tf_job_key sample_key = {"default", "1:1712345678901-0", "photo-\xc3\xa9", 2, "router-1", "trace-7"};
static const tf_sampling sample_sampling = {40, 0.5f, 50, 0.25f, UINT64_MAX, true};
static const tf_timing sample_timing = {1, 2, 3, 4, 5, 6, 7.5f, 8};

static tf_message make_job(void) {
  return (tf_message){.type = TF_MESSAGE_JOB,
                      .u.job = {sample_key, 144, "file:///a.jpg", "What is it?", sample_sampling, 1712345679000,
                                "llm-1", "tcp://10.0.0.1:7", "abc", sample_timing, true, true}};
}

static tf_message make_tensor(void) {
  return (tf_message){.type = TF_MESSAGE_TENSOR,
                      .u.tensor = {.key = sample_key,
                                   .llm_instance = "llm-1",
                                   .encoder_instance = "enc-1",
                                   .vision_tokens = 144,
                                   .width = 576,
                                   .grid = 12,
                                   .dtype = TF_TENSOR_F16,
                                   .pair_hash = "abc",
                                   .prompt = "Describe",
                                   .warning = "no EOI",
                                   .sampling = sample_sampling,
                                   .deadline_unix_ms = 5,
                                   .byte_length = 165888,
                                   .timing = sample_timing,
                                   .sent_unix_us = 1712345678901234,
                                   .stream = true,
                                   .alone = true}};
}

static tf_message make_hello(void) {
  return (tf_message){.type = TF_MESSAGE_HELLO,
                      .u.hello = {TF_ROLE_LLM,
                                  "llm-1",
                                  "abc",
                                  "small",
                                  "tcp://10.0.0.1:7",
                                  "default",
                                  "0.1.0",
                                  {64, 144, 256},
                                  3,
                                  2048,
                                  1712345678901}};
}

static tf_message make_result(void) {
  return (tf_message){.type = TF_MESSAGE_RESULT,
                      .u.result = {sample_key, "A dog.", 144, 160, 4, TF_FINISH_LENGTH, "small", sample_timing, "enc-1",
                                   "llm-1", "a warning"}};
}

static tf_message make_failure(void) {
  return (tf_message){.type = TF_MESSAGE_FAILURE, .u.failure = {sample_key, "image_corrupt", "a.jpg: bad", true}};
}

static tf_message make_pong(void) {
  return (tf_message){.type = TF_MESSAGE_PONG,
                      .u.pong = {1234567890123, {3, {92.5f, 93.25f, 0}}, {2, {1.5f, 3600000}}, 5, 32, 900, 16384, 16}};
}

enum { SAMPLES = 14 };
static tf_message make_sample(int index) {
  switch (index) {
  case 0:
    return make_hello();
  case 1:
    return (tf_message){.type = TF_MESSAGE_WINDOW, .u.window = {7, 16, 32768, true}};
  case 2:
    return make_job();
  case 3:
    return (tf_message){.type = TF_MESSAGE_STAGE, .u.stage = {sample_key, TF_STAGE_DECODE, sample_timing, true}};
  case 4:
    return (tf_message){.type = TF_MESSAGE_CANCEL, .u.cancel = {sample_key, "cancelled"}};
  case 5:
    return (tf_message){.type = TF_MESSAGE_PING, .u.ping = {1234567890123, 9}};
  case 6:
    return make_pong();
  case 7:
    return make_tensor();
  case 8:
    return (tf_message){.type = TF_MESSAGE_TENSOR_ACK, .u.tensor_ack = {sample_key}};
  case 9:
    return (tf_message){.type = TF_MESSAGE_TENSOR_REFUSED, .u.tensor_refused = {sample_key, "worker_full", "no room"}};
  case 10:
    return (tf_message){.type = TF_MESSAGE_DELTA, .u.delta = {sample_key, 3, " dog"}};
  case 11:
    return make_result();
  case 12:
    return (tf_message){.type = TF_MESSAGE_DRAIN, .u.drain = {"encoder-host-7"}};
  default:
    return make_failure();
  }
}

/* Bytes of a message that must be fine. */
static uint8_t *encode(const tf_message *message, size_t *size) {
  uint8_t *bytes;
  cr_assert_eq(tf_wire_encode(message, &bytes, size, &problem), TF_OK, "%s", problem.text);
  return bytes;
}

static tf_code round_trip(const tf_message *message, tf_message *out) {
  size_t size;
  uint8_t *bytes = encode(message, &size);
  tf_code code = tf_wire_decode(bytes, size, out, &problem);
  free(bytes);
  return code;
}

static void expect_equal_keys(const tf_job_key *got) {
  cr_assert_str_eq(got->queue, sample_key.queue);
  cr_assert_str_eq(got->entry, sample_key.entry);
  cr_assert_str_eq(got->id, sample_key.id);
  cr_assert_eq(got->attempt, sample_key.attempt);
  cr_assert_str_eq(got->router, sample_key.router);
  cr_assert_str_eq(got->trace, sample_key.trace);
}

/* No padding inside: all members are floats, or compared one by one. */
static void expect_equal_timing(const tf_timing *got) {
  cr_assert_eq(memcmp(got, &sample_timing, sizeof sample_timing), 0);
}

static void expect_equal_sampling(const tf_sampling *got) {
  cr_assert_eq(got->max_new_tokens, 40);
  cr_assert_eq(got->temperature, 0.5f);
  cr_assert_eq(got->top_k, 50);
  cr_assert_eq(got->top_p, 0.25f);
  cr_assert_eq(got->seed, UINT64_MAX);
  cr_assert(got->ignore_end);
}

Test(wire, bytes_are_the_same_after_a_round_trip_of_every_type) {
  for (int i = 0; i < SAMPLES; i++) {
    tf_message sample = make_sample(i), got;
    cr_assert_eq(round_trip(&sample, &got), TF_OK, "type %d: %s", (int)sample.type, problem.text);
    cr_assert_eq(got.type, sample.type);
    cr_assert_not(got.has_payload);
    size_t size, again_size;
    uint8_t *bytes = encode(&sample, &size), *again = encode(&got, &again_size);
    cr_assert_eq(size, again_size);
    cr_assert_eq(memcmp(bytes, again, size), 0);
    free(bytes);
    free(again);
    tf_message_clear(&got);
    tf_message_clear(&got); /* harmless */
  }
}

Test(wire, every_field_of_hello_and_window) {
  tf_message sample = make_sample(0), got;
  cr_assert_eq(round_trip(&sample, &got), TF_OK);
  const tf_hello *hello = &got.u.hello;
  cr_assert_eq(hello->role, TF_ROLE_LLM);
  cr_assert_str_eq(hello->instance, "llm-1");
  cr_assert_str_eq(hello->pair_hash, "abc");
  cr_assert_str_eq(hello->model, "small");
  cr_assert_str_eq(hello->tensor_endpoint, "tcp://10.0.0.1:7");
  cr_assert_str_eq(hello->queue, "default");
  cr_assert_str_eq(hello->version, "0.1.0");
  cr_assert_eq(hello->token_count_count, 3);
  cr_assert_eq(hello->token_counts[0], 64);
  cr_assert_eq(hello->token_counts[2], 256);
  cr_assert_eq(hello->context_tokens_max, 2048);
  cr_assert_eq(hello->started_unix_ms, 1712345678901);
  tf_message_clear(&got);
  sample = make_sample(1);
  cr_assert_eq(round_trip(&sample, &got), TF_OK);
  cr_assert_eq(got.u.window.epoch, 7);
  cr_assert_eq(got.u.window.jobs_max, 16);
  cr_assert_eq(got.u.window.kv_tokens_max, 32768);
  cr_assert(got.u.window.draining);
  tf_message_clear(&got);
}

Test(wire, every_field_of_job_and_tensor) {
  tf_message sample = make_job(), got;
  cr_assert_eq(round_trip(&sample, &got), TF_OK);
  const tf_job *job = &got.u.job;
  expect_equal_keys(&job->key);
  expect_equal_sampling(&job->sampling);
  expect_equal_timing(&job->timing);
  cr_assert_eq(job->vision_tokens, 144);
  cr_assert_str_eq(job->uri, "file:///a.jpg");
  cr_assert_str_eq(job->prompt, "What is it?");
  cr_assert_eq(job->deadline_unix_ms, 1712345679000);
  cr_assert_str_eq(job->llm_instance, "llm-1");
  cr_assert_str_eq(job->llm_endpoint, "tcp://10.0.0.1:7");
  cr_assert_str_eq(job->pair_hash, "abc");
  cr_assert(job->stream);
  cr_assert(job->alone);
  tf_message_clear(&got);
  sample = make_tensor();
  cr_assert_eq(round_trip(&sample, &got), TF_OK);
  const tf_tensor_header *tensor = &got.u.tensor;
  expect_equal_keys(&tensor->key);
  expect_equal_sampling(&tensor->sampling);
  expect_equal_timing(&tensor->timing);
  cr_assert_str_eq(tensor->llm_instance, "llm-1");
  cr_assert_str_eq(tensor->encoder_instance, "enc-1");
  cr_assert(tensor->vision_tokens == 144 && tensor->width == 576 && tensor->grid == 12);
  cr_assert_eq(tensor->dtype, TF_TENSOR_F16);
  cr_assert_str_eq(tensor->pair_hash, "abc");
  cr_assert_str_eq(tensor->prompt, "Describe");
  cr_assert_str_eq(tensor->warning, "no EOI");
  cr_assert_eq(tensor->deadline_unix_ms, 5);
  cr_assert_eq(tensor->byte_length, 165888);
  cr_assert_eq(tensor->sent_unix_us, 1712345678901234);
  cr_assert(tensor->stream);
  cr_assert(tensor->alone);
  tf_message_clear(&got);
}

Test(wire, every_field_of_the_answers) {
  tf_message sample = make_result(), got;
  cr_assert_eq(round_trip(&sample, &got), TF_OK);
  const tf_result *result = &got.u.result;
  expect_equal_keys(&result->key);
  expect_equal_timing(&result->timing);
  cr_assert_str_eq(result->caption, "A dog.");
  cr_assert(result->vision_tokens == 144 && result->prompt_tokens == 160 && result->completion_tokens == 4);
  cr_assert_eq(result->finish_reason, TF_FINISH_LENGTH);
  cr_assert_str_eq(result->model, "small");
  cr_assert_str_eq(result->encoder_instance, "enc-1");
  cr_assert_str_eq(result->llm_instance, "llm-1");
  cr_assert_str_eq(result->warning, "a warning");
  tf_message_clear(&got);
  sample = make_failure();
  cr_assert_eq(round_trip(&sample, &got), TF_OK);
  expect_equal_keys(&got.u.failure.key);
  cr_assert_str_eq(got.u.failure.error_code, "image_corrupt");
  cr_assert_str_eq(got.u.failure.error_message, "a.jpg: bad");
  cr_assert(got.u.failure.no_attempt);
  tf_message_clear(&got);
  sample = make_sample(3);
  cr_assert_eq(round_trip(&sample, &got), TF_OK);
  cr_assert_eq(got.u.stage.stage, TF_STAGE_DECODE);
  cr_assert(got.u.stage.alone);
  expect_equal_timing(&got.u.stage.timing);
  tf_message_clear(&got);
  sample = make_sample(10);
  cr_assert_eq(round_trip(&sample, &got), TF_OK);
  cr_assert_eq(got.u.delta.sequence, 3);
  cr_assert_str_eq(got.u.delta.text, " dog");
  tf_message_clear(&got);
}

Test(wire, every_field_of_pong_and_drain) {
  tf_message sample = make_sample(6), got;
  cr_assert_eq(round_trip(&sample, &got), TF_OK, "%s", problem.text);
  const tf_pong *pong = &got.u.pong;
  cr_assert_eq(pong->sequence, 1234567890123);
  cr_assert(pong->service.count == 3 && pong->service.ms[0] == 92.5f && pong->service.ms[1] == 93.25f);
  cr_assert(pong->latency.count == 2 && pong->latency.ms[1] == TF_TIMES_MS_MAX);
  cr_assert(pong->jobs == 5 && pong->jobs_max == 32 && pong->kv_tokens == 900 && pong->kv_tokens_max == 16384 &&
            pong->batch_max == 16);
  tf_message_clear(&got);
  sample.u.pong.service = (tf_times){3, {NAN, -1, INFINITY}}; /* a clock that went wrong must not silence a worker */
  sample.u.pong.latency = (tf_times){1, {1e30f}};
  cr_assert_eq(round_trip(&sample, &got), TF_OK, "%s", problem.text);
  cr_assert(pong->service.ms[0] == 0 && pong->service.ms[1] == 0 && pong->service.ms[2] == 0);
  cr_assert_eq(pong->latency.ms[0], TF_TIMES_MS_MAX);
  tf_message_clear(&got);
  sample = make_sample(12);
  cr_assert_eq(round_trip(&sample, &got), TF_OK, "%s", problem.text);
  cr_assert_str_eq(got.u.drain.instance, "encoder-host-7");
  tf_message_clear(&got);
}

Test(wire, null_strings_arrive_empty) {
  tf_message sample = {.type = TF_MESSAGE_FAILURE, .u.failure.key.entry = "1:1-0"}, got;
  cr_assert_eq(round_trip(&sample, &got), TF_OK);
  cr_assert_str_eq(got.u.failure.error_message, "");
  cr_assert_str_eq(got.u.failure.key.queue, "");
  tf_message_clear(&got);
}

/* Sending refuses what receiving would. */
#define REFUSED(make, statement)                                                                                       \
  do {                                                                                                                 \
    tf_message message = make();                                                                                       \
    uint8_t *bytes = NULL;                                                                                             \
    size_t size;                                                                                                       \
    statement;                                                                                                         \
    cr_assert_eq(tf_wire_encode(&message, &bytes, &size, &problem), TF_ERR_PROTOCOL, #statement);                      \
    cr_assert_null(bytes);                                                                                             \
  } while (0)

Test(wire, sending_checks_bounds) {
  static char longer[TF_CAPTION_BYTES_MAX + 2];
  memset(longer, 'a', sizeof longer - 1);
  REFUSED(make_job, message.type = (tf_message_type)1);
  REFUSED(make_job, message.type = (tf_message_type)16);
  REFUSED(make_job, message.u.job.vision_tokens = TF_VISION_TOKENS_MAX + 1);
  REFUSED(make_job, message.u.job.uri = longer);
  REFUSED(make_job, message.u.job.prompt = longer);
  REFUSED(make_job, message.u.job.prompt = "\xff");
  REFUSED(make_job, message.u.job.prompt = "\xed\xa0\x80"); /* a surrogate */
  REFUSED(make_job, message.u.job.key.entry = NULL);
  REFUSED(make_job, message.u.job.key.id = longer);
  REFUSED(make_job, message.u.job.deadline_unix_ms = -1);
  REFUSED(make_job, message.u.job.sampling.max_new_tokens = TF_NEW_TOKENS_MAX + 1);
  REFUSED(make_job, message.u.job.sampling.temperature = -1);
  REFUSED(make_job, message.u.job.sampling.temperature = NAN);
  REFUSED(make_job, message.u.job.sampling.top_p = 1.5f);
  REFUSED(make_tensor, message.u.tensor.dtype = 0);
  REFUSED(make_tensor, message.u.tensor.dtype = (tf_tensor_dtype)3);
  REFUSED(make_tensor, message.u.tensor.byte_length = (uint64_t)TF_TENSOR_BYTES_MAX + 1);
  REFUSED(make_tensor, message.u.tensor.grid = 65);
  REFUSED(make_hello, message.u.hello.role = 0);
  REFUSED(make_hello, message.u.hello.instance = "");
  REFUSED(make_hello, message.u.hello.token_count_count = TF_HELLO_COUNTS_MAX + 1);
  REFUSED(make_hello, message.u.hello.token_counts[1] = 0);
  REFUSED(make_result, message.u.result.caption = longer);
  REFUSED(make_pong, message.u.pong.service.count = TF_HELLO_COUNTS_MAX + 1);
  REFUSED(make_pong, (message.type = TF_MESSAGE_DRAIN, message.u.drain.instance = ""));
  REFUSED(make_result, message.u.result.finish_reason = (tf_finish_reason)3);
}

Test(wire, limits_themselves_pass) {
  static char caption[TF_CAPTION_BYTES_MAX + 1];
  memset(caption, 'c', TF_CAPTION_BYTES_MAX);
  tf_message sample = make_result(), got;
  sample.u.result.caption = caption;
  cr_assert_eq(round_trip(&sample, &got), TF_OK, "%s", problem.text);
  cr_assert_str_eq(got.u.result.caption, caption);
  tf_message_clear(&got);
}

Test(wire, reports_are_repaired_not_refused) {
  char longer[3000];
  memset(longer, 'm', sizeof longer);
  memcpy(longer + 1023, "\xe2\x82\xac", 3); /* a character across the limit of 1024 bytes */
  longer[sizeof longer - 1] = '\0';
  tf_message sample = make_failure(), got;
  sample.u.failure.error_message = longer;
  cr_assert_eq(round_trip(&sample, &got), TF_OK, "%s", problem.text);
  cr_assert_eq(strlen(got.u.failure.error_message), 1023);
  tf_message_clear(&got);
  sample.u.failure.error_message = "caf\xe9.jpg: \xc3\xa9 bad\xff";
  cr_assert_eq(round_trip(&sample, &got), TF_OK, "%s", problem.text);
  cr_assert_str_eq(got.u.failure.error_message, "caf?.jpg: \xc3\xa9 bad?");
  tf_message_clear(&got);
}

Test(wire, timings_of_disagreeing_clocks_become_zero) {
  tf_message sample = make_result(), got;
  sample.u.result.timing.queue_ms = -3;
  sample.u.result.timing.wait_ms = NAN;
  sample.u.result.timing.transfer_ms = INFINITY;
  cr_assert_eq(round_trip(&sample, &got), TF_OK, "%s", problem.text);
  cr_assert_eq(got.u.result.timing.queue_ms, 0);
  cr_assert_eq(got.u.result.timing.wait_ms, 0);
  cr_assert_eq(got.u.result.timing.transfer_ms, 0);
  cr_assert_eq(got.u.result.timing.fetch_ms, 2);
  tf_message_clear(&got);
}

/* ---- Frames written by hand ---- */

static tf_code decode_literal(const char *bytes, size_t size) {
  tf_message got;
  tf_code code = tf_wire_decode((const uint8_t *)bytes, size, &got, &problem);
  tf_message_clear(&got);
  return code;
}
#define DECODE(literal) decode_literal(literal, sizeof(literal) - 1)

/* Envelope: protocol 1 is "\x08\x01"; a PONG is field 7... body tags: (number << 3) | 2. */
Test(wire, hand_made_frames) {
  cr_assert_eq(DECODE("\x08\x01\x42\x02\x08\x05"), TF_OK, "%s", problem.text); /* PONG 5 */
  cr_assert_eq(DECODE("\x08\x01\x42\x00"), TF_OK);                             /* PONG 0 */
  const struct {
    const char *bytes;
    size_t size;
    const char *what;
  } wrong[] = {
#define ROW(literal, what) {literal, sizeof(literal) - 1, what}
      ROW("", "nothing"),
      ROW("\x08\x01", "no body"),
      ROW("\x42\x02\x08\x05", "no protocol"),
      ROW("\x08\x02\x42\x02\x08\x05", "another protocol"),
      ROW("\x08\x01\x82\x01\x02\x08\x05", "a message that is not known (16)"),
      ROW("\x08\x01\x42\x02\x08", "cut off"),
      ROW("\x08\x01\x42\x03\x08\x05", "length past the end"),
      ROW("\x08\x01\x42\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x08", "huge length"),
      ROW("\x08\x01\x42\xff\xff\xff\xff\x0f\x08", "length of 4 GiB"),
      ROW("\x08\x01\x42\x02\x08\x05\x42\x02\x08\x05", "body twice"),
      ROW("\x08\x01\x42\x02\x08\x05\x3a\x02\x08\x05", "two bodies"),
      ROW("\x08\x01\x08\x01\x42\x02\x08\x05", "protocol twice"),
      ROW("\x08\x01\x42\x04\x08\x05\x08\x06", "field twice"),
      ROW("\x08\x01\x40\x05", "body of the wrong wire type"),
      ROW("\x08\x01\x43\x44", "a group"),
      ROW("\x08\x01\x00\x00", "field number 0"),
      ROW("\x08\x01\x42\x02\x0a\x00", "sequence as bytes"),
      ROW("\x08\x01\x42\x0c\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "varint too long"),
      ROW("\x08\x01\x42\x06\x12\x04\x00\x00\x80\xbf", "a time that is negative"),
      ROW("\x08\x01\x42\x06\x12\x04\x00\x00\xc0\x7f", "a time that is no number"),
      ROW("\x08\x01\x42\x06\x12\x04\x00\x00\x80\x7f", "a time without end"),
      ROW("\x08\x01\x42\x05\x12\x03\x00\x00\x80", "a time cut off"),
      ROW("\x08\x01\x7a\x00", "DRAIN that names nobody"),
      ROW("\x08\x01\x32\x00", "CANCEL without its key"),
      ROW("\x08\x01\x32\x02\x0a\x00", "key without its entry"),
      ROW("\x08\x01\x32\x07\x0a\x05\x12\x03"
          "a\0b",
          "NUL inside a string"),
      ROW("\x08\x01\x32\x06\x0a\x04\x12\x02\xc3\x28", "malformed UTF-8"),
      ROW("\x08\x01\x2a\x07\x0a\x03\x12\x01x\x10\x00", "stage unknown (0)"),
      ROW("\x08\x01\x2a\x07\x0a\x03\x12\x01x\x10\x09", "stage out of range"),
      ROW("\x08\x01\x2a\x10\x0a\x03\x12\x01x\x10\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", "stage negative"),
      ROW("\x08\x01\x2a\x0e\x0a\x03\x12\x01x\x10\x02\x1a\x05\x0d\x00\x00\x80\xbf", "timing negative"),
      ROW("\x08\x01\x2a\x0e\x0a\x03\x12\x01x\x10\x02\x1a\x05\x0d\x00\x00\xc0\x7f", "timing not a number"),
      ROW("\x08\x01\x2a\x0e\x0a\x03\x12\x01x\x10\x02\x1a\x05\x0d\x00\x00\x80\x7f", "timing infinite"),
#undef ROW
  };
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    problem.text[0] = '\0';
    cr_assert_eq(decode_literal(wrong[i].bytes, wrong[i].size), TF_ERR_PROTOCOL, "%s", wrong[i].what);
    cr_assert(problem.text[0] != '\0', "%s", wrong[i].what);
  }
  char times[8 + 17 * 4] = "\x08\x01\x42\x46\x12\x44"; /* one more than may be; packed, all zero */
  cr_assert_eq(decode_literal(times, 6 + 17 * 4), TF_ERR_PROTOCOL);
  times[3] = 0x42, times[5] = 0x40;
  cr_assert_eq(decode_literal(times, 6 + 16 * 4), TF_OK, "%s", problem.text);
  /* The same STAGE, right. */
  cr_assert_eq(DECODE("\x08\x01\x2a\x0e\x0a\x03\x12\x01x\x10\x02\x1a\x05\x0d\x00\x00\x80\x3f"), TF_OK, "%s",
               problem.text);
}

Test(wire, unknown_fields_pass_in_bounds) {
  cr_assert_eq(DECODE("\x08\x01\x42\x09\x08\x05\xf8\x07\x01\xf2\x07\x01z\xa0\x06\x01"), TF_OK, "%s", problem.text);
  cr_assert_eq(DECODE("\x08\x01\x42\x09\x08\x05\xf8\x07\x01\xf2\x07\x02z"), TF_ERR_PROTOCOL); /* past its message */
  cr_assert_eq(DECODE("\x08\x01\x42\x09\x08\x05\xf8\x07\x01\xf2\x07\x01z"), TF_OK, "%s", problem.text);
  cr_assert_eq(DECODE("\x08\x01\xf8\x07\x01\x42\x00\xf2\x07\x01\x00"), TF_OK, "%s", problem.text);
  char many[4 + 3 * 300] = "\x08\x01\x42";
  memcpy(many + 2, "\x42\x00", 2);
  for (int i = 0; i < 300; i++) memcpy(many + 4 + 3 * i, "\xf8\x07\x01", 3);
  cr_assert_eq(decode_literal(many, 4 + 3 * 256), TF_OK, "%s", problem.text);
  cr_assert_eq(decode_literal(many, 4 + 3 * 257), TF_ERR_PROTOCOL);
}

Test(wire, frames_over_the_maximum_are_refused) {
  char *big = calloc(1, TF_MESSAGE_BYTES_MAX + 1);
  cr_assert_eq(decode_literal(big, TF_MESSAGE_BYTES_MAX + 1), TF_ERR_PROTOCOL);
  cr_assert_not_null(strstr(problem.text, "too long"));
  free(big);
}

Test(wire, every_cut_of_every_message_is_refused_or_valid) {
  for (int i = 0; i < SAMPLES; i++) {
    tf_message sample = make_sample(i), got;
    size_t size;
    uint8_t *bytes = encode(&sample, &size);
    for (size_t cut = 0; cut < size; cut++) {
      uint8_t *exact = malloc(cut ? cut : 1); /* so that reading past the end is seen */
      memcpy(exact, bytes, cut);
      tf_code code = tf_wire_decode(exact, cut, &got, &problem);
      cr_assert_eq(code, TF_ERR_PROTOCOL, "type %d cut to %zu of %zu", (int)sample.type, cut, size);
      tf_message_clear(&got);
      free(exact);
    }
    free(bytes);
  }
}

static uint64_t random_state = 88172645463325252u;
static uint64_t next_random(void) { /* xorshift64: the same mutations in every run */
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

/* Flips, overwrites, inserts or removes a few bytes; returns the new size. bytes holds size + 16. */
static size_t mutate(uint8_t *bytes, size_t size) {
  static const uint8_t interesting[] = {0x00, 0x01, 0x7f, 0x80, 0xff, 0x08, 0x0a, 0x0d, 0x12, 0xfe};
  for (uint64_t count = 1 + next_random() % 4; count > 0 && size > 0; count--) {
    size_t at = next_random() % size;
    switch (next_random() % 5) {
    case 0:
      bytes[at] ^= (uint8_t)(1u << next_random() % 8);
      break;
    case 1:
      bytes[at] = (uint8_t)next_random();
      break;
    case 2:
      bytes[at] = interesting[next_random() % sizeof interesting];
      break;
    case 3:
      memmove(bytes + at + 1, bytes + at, size - at);
      bytes[at] = interesting[next_random() % sizeof interesting];
      size++;
      break;
    default:
      memmove(bytes + at, bytes + at + 1, size - at - 1);
      size--;
    }
  }
  return size;
}

Test(wire, mutations_are_refused_or_valid) {
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20000; round++) {
    tf_message sample = make_sample(round % SAMPLES), got;
    size_t size;
    uint8_t *bytes = encode(&sample, &size);
    uint8_t *mutated = malloc(size + 16);
    memcpy(mutated, bytes, size);
    size = mutate(mutated, size);
    uint8_t *exact = malloc(size + 1);
    memcpy(exact, mutated, size);
    exact = realloc(exact, size ? size : 1);
    if (tf_wire_decode(exact, size, &got, &problem) == TF_OK) {
      /* What was accepted keeps every promise, so it can be sent on. */
      uint8_t *again = encode(&got, &size);
      free(again);
      accepted++;
    } else {
      refused++;
    }
    tf_message_clear(&got);
    free(exact);
    free(mutated);
    free(bytes);
  }
  cr_assert_gt(accepted, 1000);
  cr_assert_gt(refused, 1000);
}

/* ---- Sockets ---- */

static void *zmq, *server, *client;

static void open_sockets(void) {
  char endpoint[128];
  size_t size = sizeof endpoint;
  zmq = zmq_ctx_new();
  server = tf_wire_socket(zmq, ZMQ_ROUTER);
  client = tf_wire_socket(zmq, ZMQ_DEALER);
  cr_assert(server && client);
  cr_assert_eq(zmq_bind(server, "tcp://127.0.0.1:*"), 0);
  zmq_getsockopt(server, ZMQ_LAST_ENDPOINT, endpoint, &size);
  zmq_setsockopt(client, ZMQ_ROUTING_ID, "me", 2);
  cr_assert_eq(zmq_connect(client, endpoint), 0);
}

static void close_sockets(void) {
  zmq_close(client);
  zmq_close(server);
  zmq_ctx_term(zmq);
}

static tf_code receive_within(void *socket, bool is_router, tf_message *out, int64_t timeout_ms) {
  zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};
  zmq_poll(&item, 1, timeout_ms);
  return tf_wire_receive(socket, is_router, out, &problem);
}

static zmq_msg_t make_payload(size_t size) {
  zmq_msg_t payload;
  cr_assert_eq(zmq_msg_init_size(&payload, size), 0);
  memset(zmq_msg_data(&payload), 'p', size);
  return payload;
}

Test(wire, socket_both_ways_with_and_without_payload, .init = open_sockets, .fini = close_sockets) {
  tf_message got, hello = make_hello(), tensor = make_tensor(), pong = make_sample(6);
  cr_assert_eq(tf_wire_receive(server, true, &got, &problem), TF_ERR_TIMEOUT);
  cr_assert_eq(tf_wire_send(client, NULL, 0, &hello, NULL, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(receive_within(server, true, &got, 5000), TF_OK, "%s", problem.text);
  cr_assert_eq(got.type, TF_MESSAGE_HELLO);
  cr_assert(got.peer_size == 2 && memcmp(got.peer, "me", 2) == 0);
  cr_assert_not(got.has_payload);
  tf_message_clear(&got);
  zmq_msg_t payload = make_payload(100000);
  const void *data = zmq_msg_data(&payload);
  cr_assert_eq(tf_wire_send(server, "me", 2, &tensor, &payload, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(zmq_msg_size(&payload), 0, "moved");
  cr_assert_not_null(data);
  cr_assert_eq(receive_within(client, false, &got, 5000), TF_OK, "%s", problem.text);
  cr_assert_eq(got.type, TF_MESSAGE_TENSOR);
  cr_assert(got.has_payload);
  cr_assert_eq(zmq_msg_size(&got.payload), 100000);
  cr_assert_eq(((char *)zmq_msg_data(&got.payload))[99999], 'p');
  cr_assert_eq(got.peer_size, 0);
  tf_message_clear(&got);
  cr_assert_eq(tf_wire_send(server, "me", 2, &pong, NULL, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(receive_within(client, false, &got, 5000), TF_OK, "%s", problem.text);
  cr_assert_eq(got.u.pong.sequence, 1234567890123);
  tf_message_clear(&got);
}

Test(wire, socket_empty_payload_is_a_payload, .init = open_sockets, .fini = close_sockets) {
  tf_message got, job = make_job();
  job.u.job.uri = NULL;
  zmq_msg_t payload = make_payload(0);
  cr_assert_eq(tf_wire_send(client, NULL, 0, &job, &payload, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(receive_within(server, true, &got, 5000), TF_OK, "%s", problem.text);
  cr_assert(got.has_payload);
  cr_assert_eq(zmq_msg_size(&got.payload), 0);
  tf_message_clear(&got);
}

Test(wire, socket_wrong_payloads_are_not_sent, .init = open_sockets, .fini = close_sockets) {
  tf_message job = make_job(), tensor = make_tensor(), hello = make_hello();
  zmq_msg_t payload = make_payload(10);
  cr_assert_eq(tf_wire_send(client, NULL, 0, &job, &payload, &problem), TF_ERR_PROTOCOL); /* it has a URI */
  cr_assert_eq(tf_wire_send(client, NULL, 0, &hello, &payload, &problem), TF_ERR_PROTOCOL);
  cr_assert_eq(tf_wire_send(client, NULL, 0, &tensor, NULL, &problem), TF_ERR_PROTOCOL);
  job.u.job.uri = "";
  cr_assert_eq(tf_wire_send(client, NULL, 0, &job, NULL, &problem), TF_ERR_PROTOCOL);
  cr_assert_eq(zmq_msg_size(&payload), 10, "left alone");
  zmq_msg_close(&payload);
}

Test(wire, socket_unknown_peer_is_unreachable, .init = open_sockets, .fini = close_sockets) {
  tf_message got, tensor = make_tensor(), hello = make_hello();
  zmq_msg_t payload = make_payload(10);
  cr_assert_eq(tf_wire_send(server, "nobody", 6, &tensor, &payload, &problem), TF_ERR_WORKER_UNREACHABLE);
  cr_assert_eq(zmq_msg_size(&payload), 10, "left alone");
  zmq_msg_close(&payload);
  /* The socket is not left in the middle of a message. */
  cr_assert_eq(tf_wire_send(client, NULL, 0, &hello, NULL, &problem), TF_OK);
  cr_assert_eq(receive_within(server, true, &got, 5000), TF_OK);
  tf_message_clear(&got);
  cr_assert_eq(tf_wire_send(server, "me", 2, &hello, NULL, &problem), TF_OK);
  cr_assert_eq(receive_within(client, false, &got, 5000), TF_OK);
  cr_assert_eq(got.type, TF_MESSAGE_HELLO);
  tf_message_clear(&got);
}

/* A client that never reads: the queue fills up, says so, and holds whole messages only. */
Test(wire, socket_full_queue_refuses_whole_messages, .init = open_sockets, .fini = close_sockets) {
  tf_message got, ping = make_sample(5), tensor = make_tensor();
  cr_assert_eq(tf_wire_send(client, NULL, 0, &ping, NULL, &problem), TF_OK);
  cr_assert_eq(receive_within(server, true, &got, 5000), TF_OK);
  tf_message_clear(&got);
  int sent = 0;
  tf_code code = TF_OK;
  for (int tries = 0; tries < 100; tries++) {
    zmq_msg_t payload = make_payload(20000);
    while ((code = tf_wire_send(server, "me", 2, &tensor, &payload, &problem)) == TF_OK) {
      payload = make_payload(20000);
      cr_assert_lt(++sent, 100000);
    }
    cr_assert_eq(code, TF_ERR_WORKER_FULL, "%s", problem.text);
    cr_assert_eq(zmq_msg_size(&payload), 20000);
    zmq_msg_close(&payload);
  }
  int received = 0;
  while (received < sent && receive_within(client, false, &got, 5000) == TF_OK) {
    cr_assert_eq(got.type, TF_MESSAGE_TENSOR);
    cr_assert_eq(zmq_msg_size(&got.payload), 20000);
    tf_message_clear(&got);
    received++;
  }
  cr_assert_eq(received, sent);
}

Test(wire, socket_dealer_without_a_peer_fills_up) {
  zmq = zmq_ctx_new();
  client = tf_wire_socket(zmq, ZMQ_DEALER);
  tf_message tensor = make_tensor();
  zmq_msg_t payload = make_payload(10);
  cr_assert_eq(tf_wire_send(client, NULL, 0, &tensor, &payload, &problem), TF_ERR_WORKER_FULL);
  cr_assert_eq(zmq_msg_size(&payload), 10);
  zmq_msg_close(&payload);
  zmq_close(client);
  zmq_ctx_term(zmq);
}

/* One raw message of `count` frames, each of the given bytes. */
static void send_raw(const char *const *frames, const size_t *sizes, int count) {
  for (int i = 0; i < count; i++) {
    cr_assert_eq(zmq_send(client, frames[i], sizes[i], i + 1 < count ? ZMQ_SNDMORE : 0), (int)sizes[i]);
  }
}

Test(wire, socket_malformed_messages_are_dropped_whole, .init = open_sockets, .fini = close_sockets) {
  tf_message got, tensor = make_tensor(), hello = make_hello();
  size_t tensor_size, hello_size;
  uint8_t *tensor_bytes = encode(&tensor, &tensor_size), *hello_bytes = encode(&hello, &hello_size);
  const char *const t = (const char *)tensor_bytes, *const h = (const char *)hello_bytes;
  const struct {
    const char *frames[6];
    size_t sizes[6];
    int count;
  } wrong[] = {
      {{""}, {0}, 1},
      {{"garbage"}, {7}, 1},
      {{t}, {tensor_size}, 1},                 /* payload missing */
      {{h, "x"}, {hello_size, 1}, 2},          /* payload where none belongs */
      {{t, "x", "y"}, {tensor_size, 1, 1}, 3}, /* a frame too many */
      {{t, "x", h, h, h, h}, {tensor_size, 1, hello_size, hello_size, hello_size, hello_size}, 6},
      {{"", h}, {0, hello_size}, 2},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    send_raw(wrong[i].frames, wrong[i].sizes, wrong[i].count);
    send_raw((const char *[]){h}, &hello_size, 1);
    cr_assert_eq(receive_within(server, true, &got, 5000), TF_ERR_PROTOCOL, "case %zu", i);
    cr_assert(got.peer_size == 2 && memcmp(got.peer, "me", 2) == 0);
    cr_assert_null(got.unpacked);
    cr_assert_eq(receive_within(server, true, &got, 5000), TF_OK, "after case %zu: %s", i, problem.text);
    cr_assert_eq(got.type, TF_MESSAGE_HELLO);
    tf_message_clear(&got);
    cr_assert_eq(tf_wire_receive(server, true, &got, &problem), TF_ERR_TIMEOUT);
  }
  free(tensor_bytes);
  free(hello_bytes);
}

Test(wire, socket_has_its_settings) {
  zmq = zmq_ctx_new();
  void *socket = tf_wire_socket(zmq, ZMQ_ROUTER);
  int value, linger;
  int64_t frame_bytes_max;
  size_t size = sizeof value;
  zmq_getsockopt(socket, ZMQ_SNDHWM, &value, &size);
  cr_assert(value > 0 && value <= 4096);
  zmq_getsockopt(socket, ZMQ_LINGER, &linger, &size);
  cr_assert_eq(linger, 0);
  size = sizeof frame_bytes_max;
  zmq_getsockopt(socket, ZMQ_MAXMSGSIZE, &frame_bytes_max, &size);
  cr_assert_eq(frame_bytes_max, TF_TENSOR_BYTES_MAX);
  zmq_close(socket);
  cr_assert_null(tf_wire_socket(zmq, 12345));
  zmq_ctx_term(zmq);
}

Test(wire, socket_local_endpoints) {
  const char *const local[] = {"ipc:///run/x.sock", "inproc://x",           "tcp://127.0.0.1:7701",
                               "tcp://127.9.9.9:*", "tcp://localhost:7701", "tcp://[::1]:7701",
                               "tcp://lo:1"};
  const char *const open[] = {"tcp://*:7701",
                              "tcp://0.0.0.0:7701",
                              "tcp://10.0.0.1:7701",
                              "tcp://[::]:7701",
                              "tcp://eth0:7701",
                              "tcp://127.0.0.1.example.org:1",
                              "tcp://127.0.0.1",
                              "tcp://",
                              "tcp://localhost",
                              "udp://127.0.0.1:1",
                              "",
                              "127.0.0.1:7701",
                              "tcp://[127.0.0.1]:1",
                              "tcp://10.0.0.1;127.0.0.1:1"};
  for (size_t i = 0; i < sizeof local / sizeof local[0]; i++)
    cr_assert(tf_wire_endpoint_is_local(local[i]), "%s", local[i]);
  for (size_t i = 0; i < sizeof open / sizeof open[0]; i++)
    cr_assert_not(tf_wire_endpoint_is_local(open[i]), "%s", open[i]);
  cr_assert_not(tf_wire_endpoint_is_local(NULL));
}

Test(wire_socket, endpoints_are_checked) {
  tf_error error;
  const char *good[] = {"tcp://127.0.0.1:1", "tcp://host.example:65535", "tcp://[::1]:7701", "ipc:///tmp/a",
                        "inproc://a"};
  const char *bad[] = {"",
                       "foo",
                       "foo:1",
                       "tcp://127.0.0.1",
                       "tcp://:7701",
                       "tcp://",
                       "ipc://",
                       "inproc://",
                       "tcp://127.0.0.1:",
                       "tcp://127.0.0.1:0",
                       "tcp://a:-1",
                       "tcp://a:7701x",
                       "tcp://a:0x1d",
                       "tcp://a:70000",
                       "tcp://a: 1",
                       "tcp://a:*",
                       "udp://a:1",
                       "tcp://a:4294967297"};
  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
    cr_assert_eq(tf_wire_endpoint_check(good[i], false, &error), TF_OK, "%s", good[i]);
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    cr_assert_eq(tf_wire_endpoint_check(bad[i], false, &error), TF_ERR_INVALID_ARGUMENT, "%s", bad[i]);
    cr_assert_not_null(strstr(error.text, bad[i]), "%s", error.text);
  }
  cr_assert_eq(tf_wire_endpoint_check("tcp://127.0.0.1:*", true, &error), TF_OK);
}

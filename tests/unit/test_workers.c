/* Encoder and LLM service with a tiny random model, on threads of this process, and a router and an encoder that the
 * test plays. In: jobs over real sockets, good and bad. Out: one answer a job, the right one. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <jpeglib.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "encoder-svc/service.h"
#include "llm-svc/service.h"
#include "llm-svc/tensor_check.h"
#include "tests/unit/fake_router.h"

static const char model_path[] = "tests/golden/data/tiny";
enum { ANSWER_MS = 20000, ACK_TIMEOUT_MS = 1500 };

/* ---- the two services ---- */

typedef struct pair {
  char folder[64], photo[128], photo_uri[160], router_endpoint[128];
  tf_model_dir model;
  void *zmq;
  tf_metrics *metrics;
  tf_reactor *encoder_reactor, *llm_reactor;
  tf_pool *encoder_pool, *llm_pool;
  tf_encoder *encoder;
  tf_fetcher *fetcher;
  tf_engine *engine;
  tf_encoder_service *encoder_service;
  tf_llm_service *llm_service;
  pthread_t encoder_thread, llm_thread;
  fake_router router;
  fake_peer encoder_peer, llm_peer;
  uint8_t *jpeg;
  size_t jpeg_bytes;
  bool allow_http;
} pair;

static void make_jpeg(uint8_t **out, size_t *size, int seed) {
  enum { SIDE = 80 };
  struct jpeg_compress_struct info;
  struct jpeg_error_mgr errors;
  unsigned char *data = NULL;
  unsigned long bytes = 0;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  jpeg_mem_dest(&info, &data, &bytes);
  info.image_width = info.image_height = SIDE;
  info.input_components = 3;
  info.in_color_space = JCS_RGB;
  jpeg_set_defaults(&info);
  jpeg_start_compress(&info, TRUE);
  for (int y = 0; y < SIDE; y++) {
    JSAMPLE row[SIDE * 3];
    for (int x = 0; x < SIDE * 3; x++) row[x] = (JSAMPLE)((x * 3 + y * 5 + seed * 31) & 0xFF);
    JSAMPROW rows[1] = {row};
    jpeg_write_scanlines(&info, rows, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  *out = malloc(bytes);
  memcpy(*out, data, bytes);
  *size = bytes;
  free(data);
}

static void *run_reactor(void *context) {
  tf_error error = {.text = ""};
  tf_code code = tf_reactor_run(context, &error);
  return code == TF_OK ? NULL : context;
}

static void start_llm(pair *self) {
  tf_error error = {.text = ""};
  tf_engine_config engine = {.batch_rows_max = 64, .sequences_max = 4, .waiting_max = 128, .kv_tokens_max = 1024};
  self->llm_reactor = tf_reactor_new();
  self->llm_pool = tf_pool_new(1);
  cr_assert_eq(tf_engine_load(&self->model, &engine, self->llm_pool, &self->engine, &error), TF_OK, "%s", error.text);
  static char bind[128];
  snprintf(bind, sizeof bind, "ipc://%s/llm.sock", self->folder);
  tf_llm_service_config config = {.zmq_context = self->zmq,
                                  .reactor = self->llm_reactor,
                                  .instance = "llm-1",
                                  .model = &self->model,
                                  .engine = self->engine,
                                  .routers = {.count = 1, .items = {self->router_endpoint}},
                                  .tensor_bind = bind,
                                  .jobs_max = 8,
                                  .kv_tokens_max = 1536,
                                  .peer_timeout_ms = 60000,
                                  .drain_timeout_ms = 10000,
                                  .metrics = self->metrics};
  cr_assert_eq(tf_llm_service_new(&config, &self->llm_service, &error), TF_OK, "%s", error.text);
  cr_assert_eq(pthread_create(&self->llm_thread, NULL, run_reactor, self->llm_reactor), 0);
}

static void start_encoder(pair *self, tf_tensor_dtype dtype) {
  tf_error error = {.text = ""};
  tf_fetch_config fetch = {.allow_dirs = {.count = 1, .items = {self->folder}},
                           .allow_http = self->allow_http,
                           .allow_private_addresses = true,
                           .timeout_ms = 1000,
                           .bytes_max = 1 << 20};
  self->encoder_reactor = tf_reactor_new();
  self->encoder_pool = tf_pool_new(1);
  cr_assert_eq(tf_encoder_load(&self->model, NULL, &self->encoder, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_fetcher_new(&fetch, &self->fetcher, &error), TF_OK, "%s", error.text);
  tf_encoder_service_config config = {.zmq_context = self->zmq,
                                      .reactor = self->encoder_reactor,
                                      .instance = "encoder-1",
                                      .model = &self->model,
                                      .routers = {.count = 1, .items = {self->router_endpoint}},
                                      .peer_timeout_ms = 60000,
                                      .ack_timeout_ms = ACK_TIMEOUT_MS,
                                      .drain_timeout_ms = 10000,
                                      .pipeline = {.encoder = self->encoder,
                                                   .pool = self->encoder_pool,
                                                   .fetcher = self->fetcher,
                                                   .allow_http = self->allow_http,
                                                   .decode_threads = 2,
                                                   .batch_max = 3,
                                                   .pixels_max = 1000000,
                                                   .dtype = dtype},
                                      .metrics = self->metrics};
  cr_assert_eq(tf_encoder_service_new(&config, &self->encoder_service, &error), TF_OK, "%s", error.text);
  cr_assert_eq(pthread_create(&self->encoder_thread, NULL, run_reactor, self->encoder_reactor), 0);
}

/* Answers both HELLOs. */
static void meet_both(pair *self) {
  for (int met = 0; met < 2; met++) {
    fake_peer peer;
    tf_message hello, window;
    fake_meet(&self->router, &peer, &hello, &window);
    cr_expect_str_eq(hello.u.hello.pair_hash, self->model.pair_hash);
    if (hello.u.hello.role == TF_ROLE_ENCODER) {
      self->encoder_peer = peer;
    } else {
      self->llm_peer = peer;
      cr_expect_neq(hello.u.hello.tensor_endpoint[0], '\0');
      cr_expect_gt(hello.u.hello.context_tokens_max, 0u);
    }
    tf_message_clear(&hello);
    tf_message_clear(&window);
  }
  cr_assert(self->encoder_peer.size > 0 && self->llm_peer.size > 0, "one of each");
}

static void pair_start_with(pair *self, tf_tensor_dtype dtype, bool allow_http) {
  memset(self, 0, sizeof *self);
  self->allow_http = allow_http;
  tf_error error = {.text = ""};
  snprintf(self->folder, sizeof self->folder, "/tmp/tokenflex-workers-XXXXXX");
  cr_assert_not_null(mkdtemp(self->folder));
  snprintf(self->photo, sizeof self->photo, "%s/a photo.jpg", self->folder);
  snprintf(self->photo_uri, sizeof self->photo_uri, "file://%s/a%%20photo.jpg", self->folder);
  snprintf(self->router_endpoint, sizeof self->router_endpoint, "ipc://%s/router.sock", self->folder);
  make_jpeg(&self->jpeg, &self->jpeg_bytes, 1);
  FILE *file = fopen(self->photo, "w");
  cr_assert_eq(fwrite(self->jpeg, 1, self->jpeg_bytes, file), self->jpeg_bytes);
  fclose(file);
  cr_assert_eq(tf_model_dir_open(model_path, &self->model, &error), TF_OK, "%s", error.text);
  self->zmq = zmq_ctx_new();
  self->metrics = tf_metrics_new();
  fake_open(&self->router, self->zmq, self->router_endpoint, "router-1", "q");
  start_llm(self);
  start_encoder(self, dtype);
  meet_both(self);
}

static void pair_start(pair *self, tf_tensor_dtype dtype) {
  pair_start_with(self, dtype, false);
}

static void pair_stop(pair *self) {
  tf_reactor_stop(self->encoder_reactor);
  tf_reactor_stop(self->llm_reactor);
  pthread_join(self->encoder_thread, NULL);
  pthread_join(self->llm_thread, NULL);
  tf_encoder_service_free(&self->encoder_service);
  tf_llm_service_free(&self->llm_service);
  fake_close(&self->router);
  zmq_ctx_term(self->zmq);
  tf_fetcher_free(&self->fetcher);
  tf_encoder_free(&self->encoder);
  tf_engine_free(&self->engine);
  tf_pool_free(&self->encoder_pool);
  tf_pool_free(&self->llm_pool);
  tf_reactor_free(&self->encoder_reactor);
  tf_reactor_free(&self->llm_reactor);
  tf_metrics_free(&self->metrics);
  free(self->jpeg);
  char command[160];
  snprintf(command, sizeof command, "rm -rf '%s'", self->folder);
  cr_expect_eq(system(command), 0);
}

/* ---- jobs ---- */

/* A good job; tests change what they are about. id serves as the entry too. */
static tf_message job_of(const pair *self, const char *id, uint32_t vision_tokens) {
  return (tf_message){
      .type = TF_MESSAGE_JOB,
      .u.job = {.key = {.queue = "q", .entry = id, .id = id, .attempt = 1, .router = "router-1", .trace = "t"},
                .vision_tokens = vision_tokens,
                .uri = self->photo_uri,
                .sampling = {.max_new_tokens = 6, .ignore_end = true},
                .llm_instance = "llm-1",
                .llm_endpoint = tf_llm_service_endpoint(self->llm_service),
                .pair_hash = self->model.pair_hash,
                .timing = {.queue_ms = 12}}};
}

static void send_job(pair *self, const tf_message *job, const void *image, size_t image_bytes) {
  zmq_msg_t payload;
  if (image != NULL) {
    zmq_msg_init_size(&payload, image_bytes);
    memcpy(zmq_msg_data(&payload), image, image_bytes);
  }
  fake_send(&self->router, &self->encoder_peer, job, image != NULL ? &payload : NULL);
}

static void check_result(const pair *self, const tf_result *result, const char *id) {
  cr_expect_str_eq(result->key.id, id);
  cr_expect_eq(result->completion_tokens, 6u);
  cr_expect_eq(result->finish_reason, TF_FINISH_LENGTH);
  cr_expect_gt(result->prompt_tokens, result->vision_tokens);
  cr_expect_str_eq(result->encoder_instance, "encoder-1");
  cr_expect_str_eq(result->llm_instance, "llm-1");
  cr_expect_str_eq(result->model, self->model.name);
  cr_expect_float_eq(result->timing.queue_ms, 12, 1e-6);
  cr_expect(result->timing.decode_ms > 0 && result->timing.encode_ms > 0 && result->timing.prefill_ms > 0 &&
            result->timing.generate_ms > 0 && result->timing.wait_ms > 0);
}

/* Takes one STAGE and one RESULT, in either order: they come from two workers. */
static void expect_result(pair *self, const char *id, char *caption, size_t caption_bytes) {
  tf_message got;
  int stages = 0, results = 0;
  while (stages + results < 2) {
    cr_assert(fake_receive(&self->router, ANSWER_MS, &got), "%s: %d STAGE and %d RESULT came", id, stages, results);
    if (got.type == TF_MESSAGE_STAGE && strcmp(got.u.stage.key.id, id) == 0) { /* one of a failed job may be late */
      stages++;
      cr_expect_eq(got.u.stage.stage, TF_STAGE_DECODE);
      cr_expect_gt(got.u.stage.timing.encode_ms, 0);
    }
    if (got.type == TF_MESSAGE_RESULT) {
      results++;
      check_result(self, &got.u.result, id);
      if (caption != NULL) snprintf(caption, caption_bytes, "%s", got.u.result.caption);
    }
    tf_message_clear(&got);
  }
  cr_expect(stages == 1 && results == 1, "%s: %d STAGE, %d RESULT", id, stages, results);
}

static void expect_failure(pair *self, const tf_message *job, const void *image, size_t image_bytes, tf_code code,
                           bool no_attempt, const char *mentions) {
  tf_message got;
  send_job(self, job, image, image_bytes);
  cr_assert(fake_wait(&self->router, TF_MESSAGE_FAILURE, ANSWER_MS, &got), "no FAILURE for %s", job->u.job.key.id);
  const tf_failure *failure = &got.u.failure;
  cr_expect_str_eq(failure->key.id, job->u.job.key.id);
  cr_expect_str_eq(failure->error_code, tf_code_name(code), "%s: %s", job->u.job.key.id, failure->error_message);
  cr_expect_eq(failure->no_attempt, no_attempt, "%s", job->u.job.key.id);
  cr_expect_not_null(strstr(failure->error_message, mentions), "%s: %s", job->u.job.key.id, failure->error_message);
  tf_message_clear(&got);
}

/* ---- tests ---- */

Test(workers, a_photo_becomes_a_caption, .timeout = 120) {
  pair self;
  char by_file[256], inlined[256];
  pair_start(&self, TF_TENSOR_F32);
  tf_message job = job_of(&self, "by-file", 16);
  send_job(&self, &job, NULL, 0);
  expect_result(&self, "by-file", by_file, sizeof by_file);
  job = job_of(&self, "inline", 16);
  job.u.job.uri = "";
  send_job(&self, &job, self.jpeg, self.jpeg_bytes);
  expect_result(&self, "inline", inlined, sizeof inlined);
  cr_expect_str_eq(by_file, inlined);
  pair_stop(&self);
}

/* The next PONG of a worker that carries times; false where none does in ten seconds. The caller clears *out. */
static bool wait_times(pair *self, const fake_peer *from, tf_message *out) {
  for (int i = 0; i < 100; i++) {
    fake_ping(&self->router, from, 0);
    while (fake_wait(&self->router, TF_MESSAGE_PONG, 100, out)) {
      bool right = out->peer_size == from->size && !memcmp(out->peer, from->id, from->size);
      if (right && out->u.pong.service.count > 0) return true;
      tf_message_clear(out);
    }
  }
  return false;
}

static void expect_times(pair *self, const fake_peer *from) {
  tf_message got;
  cr_assert(wait_times(self, from, &got), "no times in the PONGs");
  const tf_pong *pong = &got.u.pong;
  cr_expect_eq(pong->service.count, self->model.token_count_count);
  cr_expect_eq(pong->latency.count, self->model.token_count_count);
  for (uint32_t i = 0; i < pong->service.count; i++) {
    cr_expect(pong->service.ms[i] > 0 && pong->service.ms[i] < 60000, "%g", (double)pong->service.ms[i]);
    cr_expect(pong->latency.ms[i] > 0 && pong->latency.ms[i] < 60000, "%g", (double)pong->latency.ms[i]);
  }
  cr_expect(pong->jobs_max > 0 && pong->batch_max > 0);
  cr_expect_eq(pong->kv_tokens_max, from == &self->llm_peer ? 1024u : 0u, "the cache, not the wider window");
  tf_message_clear(&got);
}

Test(workers, pongs_tell_what_jobs_cost, .timeout = 120) {
  pair self;
  tf_message got;
  pair_start(&self, TF_TENSOR_F32);
  fake_ping(&self.router, &self.llm_peer, 0);
  cr_assert(fake_wait(&self.router, TF_MESSAGE_PONG, ANSWER_MS, &got));
  cr_expect_eq(got.u.pong.service.count, 0u, "nothing is made up before the first job");
  tf_message_clear(&got);
  for (int i = 0; i < 4; i++) {
    char id[32];
    snprintf(id, sizeof id, "cost-%d", i);
    tf_message job = job_of(&self, id, i % 2 ? 9 : 16);
    send_job(&self, &job, NULL, 0);
    expect_result(&self, id, NULL, 0);
  }
  expect_times(&self, &self.encoder_peer);
  expect_times(&self, &self.llm_peer);
  pair_stop(&self);
}

Test(workers, f16_tensors, .timeout = 120) {
  pair self;
  pair_start(&self, TF_TENSOR_F16);
  tf_message job = job_of(&self, "half", 9);
  send_job(&self, &job, NULL, 0);
  expect_result(&self, "half", NULL, 0);
  pair_stop(&self);
}

Test(workers, many_jobs_of_mixed_size_are_answered_once, .timeout = 240) {
  enum { JOBS = 60, AT_ONCE = 12 };
  static const uint32_t counts[] = {4, 9, 16};
  char ids[JOBS][32];
  int answered[JOBS] = {0}, sent = 0, done = 0;
  pair self;
  pair_start(&self, TF_TENSOR_F32);
  while (done < JOBS) {
    for (; sent < JOBS && sent - done < AT_ONCE; sent++) {
      snprintf(ids[sent], sizeof ids[sent], "job-%d", sent);
      tf_message job = job_of(&self, ids[sent], counts[sent % 3]);
      send_job(&self, &job, NULL, 0);
      if (sent % 5 == 0) send_job(&self, &job, NULL, 0); /* the same attempt twice */
    }
    tf_message got;
    cr_assert(fake_wait(&self.router, TF_MESSAGE_RESULT, ANSWER_MS, &got), "after %d results", done);
    int number = atoi(got.u.result.key.id + 4);
    cr_assert(number >= 0 && number < JOBS);
    cr_expect_eq(got.u.result.vision_tokens, counts[number % 3]);
    cr_expect_eq(++answered[number], 1);
    tf_message_clear(&got);
    done++;
  }
  tf_message extra;
  cr_expect_not(fake_wait(&self.router, TF_MESSAGE_RESULT, 300, &extra), "an answer too many");
  pair_stop(&self);
}

Test(workers, bad_images_and_bad_jobs_fail_with_their_reason, .timeout = 120) {
  pair self;
  pair_start(&self, TF_TENSOR_F32);
  char uri[256];
  tf_message job = job_of(&self, "broken", 4);
  job.u.job.uri = "";
  uint8_t *broken = malloc(self.jpeg_bytes);
  memcpy(broken, self.jpeg, self.jpeg_bytes);
  expect_failure(&self, &job, broken, 30, TF_ERR_IMAGE_TRUNCATED, false, "inline image");
  job.u.job.key.entry = job.u.job.key.id = "text";
  expect_failure(&self, &job, "no image at all, just text", 26, TF_ERR_IMAGE_UNSUPPORTED, false, "inline image");
  job.u.job.key.entry = job.u.job.key.id = "nothing";
  expect_failure(&self, &job, "", 0, TF_ERR_IMAGE_EMPTY, false, "inline image");
  free(broken);
  job = job_of(&self, "missing", 4);
  snprintf(uri, sizeof uri, "file://%s/missing.jpg", self.folder);
  job.u.job.uri = uri;
  expect_failure(&self, &job, NULL, 0, TF_ERR_IMAGE_MISSING, false, "/missing.jpg");
  job = job_of(&self, "outside", 4);
  job.u.job.uri = "file:///etc/hostname";
  expect_failure(&self, &job, NULL, 0, TF_ERR_URI_FORBIDDEN, false, "/etc/hostname");
  job.u.job.key.entry = job.u.job.key.id = "http";
  job.u.job.uri = "http://example.org/a.jpg";
  expect_failure(&self, &job, NULL, 0, TF_ERR_URI_FORBIDDEN, false, "http://example.org/a.jpg");
  job = job_of(&self, "late", 4);
  job.u.job.deadline_unix_ms = tf_unix_ms() - 10;
  expect_failure(&self, &job, NULL, 0, TF_ERR_DEADLINE, false, "deadline");
  job = job_of(&self, "count", 25);
  expect_failure(&self, &job, NULL, 0, TF_ERR_PAIR_MISMATCH, true, "25");
  job = job_of(&self, "pair", 4);
  job.u.job.pair_hash = "0123";
  expect_failure(&self, &job, NULL, 0, TF_ERR_PAIR_MISMATCH, true, "0123");
  job = job_of(&self, "old-llm", 4);
  job.u.job.llm_instance = "llm-0";
  expect_failure(&self, &job, NULL, 0, TF_ERR_WORKER_LOST, true, "llm-0");
  job = job_of(&self, "no-endpoint", 4);
  job.u.job.llm_endpoint = "nonsense";
  expect_failure(&self, &job, NULL, 0, TF_ERR_WORKER_UNREACHABLE, true, "nonsense");
  char nobody[160];
  snprintf(nobody, sizeof nobody, "ipc://%s/nobody.sock", self.folder);
  job = job_of(&self, "no-llm", 4);
  job.u.job.llm_endpoint = nobody;
  expect_failure(&self, &job, NULL, 0, TF_ERR_WORKER_UNREACHABLE, true, "nobody.sock");
  job = job_of(&self, "too-long", 4);
  job.u.job.sampling.max_new_tokens = 4096; /* more than the tiny model's context */
  expect_failure(&self, &job, NULL, 0, TF_ERR_PROMPT_TOO_LONG, false, "");
  job = job_of(&self, "good", 4); /* and after all that it still works */
  send_job(&self, &job, NULL, 0);
  expect_result(&self, "good", NULL, 0);
  pair_stop(&self);
}

/* A port that takes connections and never answers keeps all the http threads busy; files go past them. */
Test(workers, http_never_keeps_files_waiting, .timeout = 120) {
  enum { SLOW = TF_PIPELINE_FETCH_THREADS + 2 };
  pair self;
  char uri[64], ids[SLOW][32];
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof at;
  int silent = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  cr_assert(bind(silent, (struct sockaddr *)&at, sizeof at) == 0 && listen(silent, 32) == 0 &&
            getsockname(silent, (struct sockaddr *)&at, &size) == 0);
  snprintf(uri, sizeof uri, "http://127.0.0.1:%d/a.jpg", ntohs(at.sin_port));
  pair_start_with(&self, TF_TENSOR_F32, true);
  for (int i = 0; i < SLOW; i++) {
    snprintf(ids[i], sizeof ids[i], "slow-%d", i);
    tf_message slow = job_of(&self, ids[i], 4);
    slow.u.job.uri = uri;
    send_job(&self, &slow, NULL, 0);
  }
  tf_message job = job_of(&self, "file", 4), got;
  send_job(&self, &job, NULL, 0);
  bool file_done = false;
  for (int failures = 0; failures < SLOW;) {
    cr_assert(fake_receive(&self.router, ANSWER_MS, &got), "after %d failures", failures);
    if (got.type == TF_MESSAGE_RESULT) file_done = true;
    if (got.type == TF_MESSAGE_FAILURE) {
      failures++;
      cr_expect(file_done, "the file waited for http");
      cr_expect_str_eq(got.u.failure.error_code, "timeout", "%s", got.u.failure.error_message);
      cr_expect_not_null(strstr(got.u.failure.error_message, uri));
    }
    tf_message_clear(&got);
  }
  pair_stop(&self);
  close(silent);
}

/* Cancels a job that the LLM has; true where no answer about it came. Never may a failure come, or anything later than
 * the answer to a job behind it. */
static bool running_job_is_silent(pair *self, int round) {
  char running[32], wanted[32];
  snprintf(running, sizeof running, "running-%d", round);
  snprintf(wanted, sizeof wanted, "wanted-%d", round);
  tf_message job = job_of(self, running, 16), got;
  job.u.job.sampling.max_new_tokens = 400;
  tf_message cancel = {.type = TF_MESSAGE_CANCEL, .u.cancel = {.key = job.u.job.key, .reason = "cancelled"}};
  send_job(self, &job, NULL, 0);
  bool silent = true, over = false;
  while (!over) { /* its stage, unless it ends first */
    cr_assert(fake_receive(&self->router, ANSWER_MS, &got));
    cr_expect(got.type != TF_MESSAGE_RESULT || strcmp(got.u.result.key.id, running) == 0);
    if (got.type == TF_MESSAGE_RESULT) silent = false;
    over = !silent || (got.type == TF_MESSAGE_STAGE && strcmp(got.u.stage.key.id, running) == 0);
    tf_message_clear(&got);
  }
  fake_send(&self->router, &self->llm_peer, &cancel, NULL);
  job = job_of(self, wanted, 4);
  send_job(self, &job, NULL, 0);
  for (over = false; !over;) {
    cr_assert(fake_receive(&self->router, ANSWER_MS, &got));
    cr_expect_neq(got.type, TF_MESSAGE_FAILURE);
    cr_expect(got.type != TF_MESSAGE_RESULT || strcmp(got.u.result.key.id, "unwanted") != 0);
    if (got.type == TF_MESSAGE_RESULT && strcmp(got.u.result.key.id, running) == 0) silent = false;
    over = got.type == TF_MESSAGE_RESULT && strcmp(got.u.result.key.id, wanted) == 0;
    tf_message_clear(&got);
  }
  while (fake_receive(&self->router, 200, &got)) {
    cr_expect(got.type != TF_MESSAGE_RESULT && got.type != TF_MESSAGE_FAILURE, "type %d", (int)got.type);
    tf_message_clear(&got);
  }
  return silent;
}

Test(workers, cancelled_jobs_are_silent, .timeout = 120) {
  pair self;
  pair_start(&self, TF_TENSOR_F32);
  tf_message job = job_of(&self, "unwanted", 16);
  job.u.job.sampling.max_new_tokens = 400;
  tf_message cancel = {.type = TF_MESSAGE_CANCEL, .u.cancel = {.key = job.u.job.key, .reason = "cancelled"}};
  send_job(&self, &job, NULL, 0);
  fake_send(&self.router, &self.encoder_peer, &cancel, NULL);
  fake_send(&self.router, &self.llm_peer, &cancel, NULL); /* maybe before its tensor comes */
  /* The tiny model may have finished a caption before its cancellation comes: then there was nothing to cancel. */
  bool silent = false;
  for (int round = 0; round < 20 && !silent; round++) silent = running_job_is_silent(&self, round);
  cr_expect(silent, "not one job was stopped in 20 rounds");
  pair_stop(&self);
}

static void drain_encoder(void *context) {
  tf_encoder_service_drain(((pair *)context)->encoder_service);
}
static void drain_llm(void *context) {
  tf_llm_service_drain(((pair *)context)->llm_service);
}

Test(workers, draining_finishes_what_is_there, .timeout = 120) {
  pair self;
  pair_start(&self, TF_TENSOR_F32);
  tf_message jobs[3] = {job_of(&self, "a", 16), job_of(&self, "b", 9), job_of(&self, "c", 4)}, got;
  for (int i = 0; i < 3; i++) send_job(&self, &jobs[i], NULL, 0);
  int results = 0, refusals = 0;
  for (bool arrived = false; !arrived;) { /* all three have, once the first is encoded */
    cr_assert(fake_receive(&self.router, ANSWER_MS, &got));
    arrived = got.type == TF_MESSAGE_STAGE;
    if (got.type == TF_MESSAGE_RESULT) results++;
    tf_message_clear(&got);
  }
  /* Timers are not thread-safe to add, so the drain is asked for the way a signal would: between two turns of the loop.
   */
  tf_reactor_stop(self.encoder_reactor);
  tf_reactor_stop(self.llm_reactor);
  pthread_join(self.encoder_thread, NULL);
  pthread_join(self.llm_thread, NULL);
  drain_encoder(&self);
  drain_llm(&self);
  cr_assert_eq(pthread_create(&self.encoder_thread, NULL, run_reactor, self.encoder_reactor), 0);
  cr_assert_eq(pthread_create(&self.llm_thread, NULL, run_reactor, self.llm_reactor), 0);
  tf_message late = job_of(&self, "late", 4);
  send_job(&self, &late, NULL, 0);
  while (results + refusals < 4) {
    cr_assert(fake_receive(&self.router, ANSWER_MS, &got), "%d results and %d refusals came", results, refusals);
    if (got.type == TF_MESSAGE_RESULT) results++;
    if (got.type == TF_MESSAGE_FAILURE) {
      cr_expect_str_eq(got.u.failure.key.id, "late");
      cr_expect_str_eq(got.u.failure.error_code, "worker_draining");
      cr_expect(got.u.failure.no_attempt);
      refusals++;
    }
    tf_message_clear(&got);
  }
  cr_expect(results == 3 && refusals == 1);
  pair_stop(&self); /* both loops end by themselves; stopping again does no harm */
}

/* ---- tensors ---- */

static tf_message tensor_of(const pair *self, const char *id) {
  return (tf_message){.type = TF_MESSAGE_TENSOR,
                      .u.tensor = {.key = {.queue = "q", .entry = id, .id = id, .attempt = 1, .router = "router-1"},
                                   .llm_instance = "llm-1",
                                   .encoder_instance = "encoder-2",
                                   .vision_tokens = 4,
                                   .width = tf_engine_width(self->engine),
                                   .grid = 2,
                                   .dtype = TF_TENSOR_F32,
                                   .pair_hash = self->model.pair_hash,
                                   .sampling = {.max_new_tokens = 3, .ignore_end = true},
                                   .byte_length = 4 * 4 * (uint64_t)tf_engine_width(self->engine)}};
}

/* Sends a tensor of `bytes` payload bytes whose first value is `first` and returns the type of the answer. */
static tf_message_type answer_to(void *dealer, const tf_message *tensor, size_t bytes, float first, tf_code *code) {
  zmq_msg_t payload;
  tf_error error = {.text = ""};
  zmq_msg_init_size(&payload, bytes);
  memset(zmq_msg_data(&payload), 0, bytes);
  if (bytes >= sizeof first) memcpy(zmq_msg_data(&payload), &first, sizeof first);
  cr_assert_eq(tf_wire_send(dealer, NULL, 0, tensor, &payload, &error), TF_OK, "%s", error.text);
  tf_message got = {.type = 0};
  for (int i = 0; i < 500; i++) {
    zmq_pollitem_t item = {.socket = dealer, .events = ZMQ_POLLIN};
    zmq_poll(&item, 1, 20);
    if (tf_wire_receive(dealer, false, &got, &error) != TF_OK) continue;
    tf_message_type type = got.type;
    *code = TF_OK;
    if (type == TF_MESSAGE_TENSOR_REFUSED) *code = tf_code_from_name(got.u.tensor_refused.error_code);
    tf_message_clear(&got);
    return type;
  }
  cr_assert_fail("no answer to the tensor %s", tensor->u.tensor.key.id);
  return 0;
}

Test(workers, tensors_are_checked, .timeout = 120) {
  pair self;
  pair_start(&self, TF_TENSOR_F32);
  void *dealer = tf_wire_socket(self.zmq, ZMQ_DEALER);
  cr_assert_eq(zmq_connect(dealer, tf_llm_service_endpoint(self.llm_service)), 0);
  size_t right = 4 * 4 * (size_t)tf_engine_width(self.engine);
  tf_code code;
  struct {
    const char *id;
    tf_code code;
    size_t bytes;
    float first;
  } cases[] = {{"short", TF_ERR_TENSOR_INVALID, right - 1, 0},
               {"long", TF_ERR_TENSOR_INVALID, right + 4, 0},
               {"empty", TF_ERR_TENSOR_INVALID, 0, 0},
               {"nan", TF_ERR_TENSOR_INVALID, right, NAN},
               {"infinite", TF_ERR_TENSOR_INVALID, right, INFINITY}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tf_message tensor = tensor_of(&self, cases[i].id);
    cr_expect_eq(answer_to(dealer, &tensor, cases[i].bytes, cases[i].first, &code), TF_MESSAGE_TENSOR_REFUSED, "%s",
                 cases[i].id);
    cr_expect_eq(code, cases[i].code, "%s: %s", cases[i].id, tf_code_name(code));
  }
  tf_message tensor = tensor_of(&self, "twice"), got;
  cr_expect_eq(answer_to(dealer, &tensor, right, 1, &code), TF_MESSAGE_TENSOR_ACK);
  cr_assert(fake_wait(&self.router, TF_MESSAGE_RESULT, ANSWER_MS, &got));
  cr_expect_str_eq(got.u.result.key.id, "twice");
  tf_message_clear(&got);
  cr_expect_eq(answer_to(dealer, &tensor, right, 1, &code), TF_MESSAGE_TENSOR_ACK, "acknowledged again");
  cr_expect_not(fake_wait(&self.router, TF_MESSAGE_RESULT, 500, &got), "but not computed again");
  tf_message cancel = {.type = TF_MESSAGE_CANCEL};
  tensor = tensor_of(&self, "cancelled-first");
  cancel.u.cancel.key = tensor.u.tensor.key;
  fake_send(&self.router, &self.llm_peer, &cancel, NULL);
  usleep(200000);
  cr_expect_eq(answer_to(dealer, &tensor, right, 1, &code), TF_MESSAGE_TENSOR_ACK);
  cr_expect_not(fake_wait(&self.router, TF_MESSAGE_RESULT, 500, &got), "what was cancelled is not computed");
  zmq_close(dealer);
  pair_stop(&self);
}

Test(workers, streaming_pieces_make_the_caption, .timeout = 120) {
  pair self;
  char text[4096] = "";
  uint32_t next = 0;
  pair_start(&self, TF_TENSOR_F32);
  tf_message job = job_of(&self, "stream", 4), got = {.type = 0};
  job.u.job.stream = true;
  job.u.job.sampling.max_new_tokens = 30;
  send_job(&self, &job, NULL, 0);
  for (bool ended = false; !ended;) {
    cr_assert(fake_receive(&self.router, ANSWER_MS, &got), "no end");
    if (got.type == TF_MESSAGE_DELTA) {
      cr_expect_eq(got.u.delta.sequence, next++);
      strncat(text, got.u.delta.text, sizeof text - strlen(text) - 1);
    }
    if (got.type == TF_MESSAGE_RESULT) {
      ended = true;
      const char *caption = got.u.result.caption;
      cr_expect_not_null(strstr(text, caption), "pieces '%s', caption '%s'", text, caption);
    }
    tf_message_clear(&got);
  }
  cr_expect_gt(next, 0u);
  pair_stop(&self);
}

Test(workers, tensor_headers_are_checked_field_by_field) {
  static const tf_model_dir model = {.pair_hash = "abc", .token_counts = {4, 9}, .token_count_count = 2};
  const tf_tensor_header good = {.llm_instance = "me",
                                 .pair_hash = "abc",
                                 .vision_tokens = 9,
                                 .width = 10,
                                 .grid = 3,
                                 .dtype = TF_TENSOR_F16,
                                 .byte_length = 180};
  tf_error error;
  cr_expect_eq(tf_tensor_header_check(&good, 180, "me", &model, 10, 1000, &error), TF_OK);
  tf_tensor_header bad[9];
  for (int i = 0; i < 9; i++) bad[i] = good;
  bad[0].vision_tokens = 16;
  bad[1].vision_tokens = 0;
  bad[2].grid = 2;
  bad[3].grid = UINT32_MAX;
  bad[4].width = 11;
  bad[5].dtype = TF_TENSOR_F32;
  bad[6].dtype = (tf_tensor_dtype)9;
  bad[7].byte_length = UINT64_MAX;
  bad[8].vision_tokens = UINT32_MAX;
  for (int i = 0; i < 9; i++) {
    cr_expect_eq(tf_tensor_header_check(&bad[i], 180, "me", &model, 10, 1000, &error), TF_ERR_TENSOR_INVALID, "%d", i);
  }
  cr_expect_eq(tf_tensor_header_check(&good, 179, "me", &model, 10, 1000, &error), TF_ERR_TENSOR_INVALID);
  cr_expect_eq(tf_tensor_header_check(&good, 180, "you", &model, 10, 1000, &error), TF_ERR_WORKER_LOST);
  tf_tensor_header other = good;
  other.pair_hash = "abd";
  cr_expect_eq(tf_tensor_header_check(&other, 180, "me", &model, 10, 1000, &error), TF_ERR_PAIR_MISMATCH);
  other = good;
  other.deadline_unix_ms = 999;
  cr_expect_eq(tf_tensor_header_check(&other, 180, "me", &model, 10, 1000, &error), TF_ERR_DEADLINE);
}

/* What routers last knew of a queue, taken up by one that has measured nothing. In: fields of `tf:{Q}:load`, good and
 * bad, workers that measure. Out: Criterion verdicts: it holds until somebody measures, and malformed texts change
 * nothing. */
#include <criterion/criterion.h>
#include <unistd.h>

#include "router/load.h"

typedef struct setting {
  tf_router_config config;
  tf_workers *workers;
  tf_load *load;
} setting;

static setting begin(void) {
  setting made = {.config = {.target_wait_ms = 2000}, .workers = tf_workers_new()};
  cr_assert_not_null(made.workers);
  tf_load_parts parts = {.workers = made.workers, .config = &made.config};
  cr_assert_eq(tf_load_new(&parts, &made.load), TF_OK);
  return made;
}

static void end(setting *self) {
  tf_load_free(&self->load);
  tf_workers_free(&self->workers);
}

/* A worker of a model with two counts that says what a job costs it. */
static void join(setting *self, tf_role role, const uint32_t counts[2], float service_ms) {
  tf_hello hello = {.role = role, .pair_hash = "pair", .token_count_count = 2, .tensor_endpoint = "ipc:///nowhere"};
  tf_worker *worker;
  char *instance = role == TF_ROLE_LLM ? "llm" : "encoder";
  hello.instance = instance;
  memcpy(hello.token_counts, counts, 2 * sizeof *counts);
  cr_assert_eq(tf_workers_hello(self->workers, &hello, instance, strlen(instance), 0, &worker), TF_HELLO_NEW);
  tf_workers_window(worker, &(tf_window){.epoch = 1, .jobs_max = 4, .kv_tokens_max = 4096});
  tf_workers_pong(worker, &(tf_pong){.service = {.count = 2, .ms = {service_ms, service_ms}}});
}

static void read_queue(setting *self) {
  tf_load_take(self->load, &(tf_load_reading){.now_ms = 1});
}

static void knows(const setting *self, uint32_t count, double encode_ms, double decode_ms) {
  const tf_policy_load *load = tf_load_now(self->load);
  cr_expect_eq(load->count_count, count);
  cr_expect_float_eq(load->encode.service_ms[0], encode_ms, 1e-6);
  cr_expect_float_eq(load->decode.service_ms[0], decode_ms, 1e-6);
}

Test(router_load, a_reading_is_fresh_until_redis_is_lost) {
  setting self = begin();
  cr_expect_not(tf_load_is_fresh(self.load));
  read_queue(&self);
  cr_expect(tf_load_is_fresh(self.load));
  tf_load_lost(self.load);
  cr_expect_not(tf_load_is_fresh(self.load));
  end(&self);
}

Test(router_load, what_was_known_holds_until_somebody_measures) {
  setting self = begin();
  read_queue(&self);
  cr_expect(tf_load_is_unmeasured(self.load));
  tf_load_recall(self.load, "64,256", "8,8", "10,40");
  knows(&self, 2, 8, 10);
  usleep((TF_LOAD_OBSERVE_MS + 20) * 1000); /* workers are looked at that often */
  join(&self, TF_ROLE_ENCODER, (uint32_t[]){64, 256}, 0);
  join(&self, TF_ROLE_LLM, (uint32_t[]){64, 256}, 25);
  read_queue(&self);
  knows(&self, 2, 8, 25);
  cr_expect(tf_load_is_unmeasured(self.load));
  tf_load_recall(self.load, "64,256", "9,9", "11,41");
  knows(&self, 2, 9, 25);
  tf_load_recall(self.load, "64,144,256", "1,1,1", "2,2,2"); /* another model than that of the workers that are here */
  knows(&self, 2, 9, 25);
  end(&self);
}

Test(router_load, another_model_of_other_routers_replaces_the_last_one) {
  setting self = begin();
  read_queue(&self);
  tf_load_recall(self.load, "64,256", "8,8", "10,40");
  tf_load_recall(self.load, "64,144,256", "", "20,30,50");
  knows(&self, 3, 0, 20);
  end(&self);
}

Test(router_load, malformed_texts_change_nothing) {
  setting self = begin();
  read_queue(&self);
  tf_load_recall(self.load, "64,256", "8,8", "10,40");
  const char *counts[] = {"",       "x",      "64,",     ",64",
                          "256,64", "64,64",  "0,64",    "64,5000",
                          "64;256", "64,nan", "-64,256", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"};
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) tf_load_recall(self.load, counts[i], "1,1", "2,2");
  knows(&self, 2, 8, 10);
  const char *times[] = {"", "1", "1,1,1", "1,", "inf,1", "nan,1", "-1,1", "1e300,1", "1,x", "1 1"};
  for (size_t i = 0; i < sizeof times / sizeof *times; i++) tf_load_recall(self.load, "64,256", times[i], times[i]);
  knows(&self, 2, 8, 10);
  end(&self);
}

/* Placement, the table of workers, the table of jobs. In: windows and HELLOs. Out: Criterion verdicts on who gets what.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "router/jobs.h"
#include "router/workers.h"

#define ENCODER(p, max, out)                                                                                           \
  { .pair = (p), .jobs_max = (max), .jobs_out = (out), .usable = true }
#define LLM(p, max, out, kv, kv_o)                                                                                     \
  { .pair = (p), .jobs_max = (max), .jobs_out = (out), .kv_max = (kv), .kv_out = (kv_o), .usable = true }
static const tf_place_request any = {.kv_tokens = 300, .pairs = UINT64_MAX};

Test(placement, takes_the_least_loaded_of_each_tier) {
  const tf_slot encoders[] = {ENCODER(0, 8, 4), ENCODER(0, 4, 1), ENCODER(0, 2, 2)};
  const tf_slot llms[] = {LLM(0, 16, 8, 8000, 1000), LLM(0, 16, 2, 8000, 7000), LLM(0, 16, 6, 8000, 2000)};
  tf_placement placed = tf_place(encoders, 3, llms, 3, &any);
  cr_assert(placed.found);
  cr_assert_eq(placed.encoder, 1u);
  cr_assert_eq(placed.llm, 2u);
}

Test(placement, pairs_only_equal_hashes) {
  const tf_slot encoders[] = {ENCODER(1, 8, 0), ENCODER(2, 8, 7)};
  const tf_slot llms[] = {LLM(0, 8, 0, 9000, 0), LLM(2, 8, 7, 9000, 0)};
  tf_placement placed = tf_place(encoders, 2, llms, 2, &any);
  cr_assert(placed.found);
  cr_assert_eq(placed.encoder, 1u);
  cr_assert_eq(placed.llm, 1u);
  tf_place_request other = any;
  other.pairs = 1u << 1;
  cr_assert_not(tf_place(encoders, 2, llms, 2, &other).found);
}

Test(placement, full_draining_held_and_foreign_workers_get_nothing) {
  const tf_slot good_encoder[] = {ENCODER(0, 1, 0)};
  const tf_slot good_llm[] = {LLM(0, 2, 1, 1000, 500)};
  cr_assert(tf_place(good_encoder, 1, good_llm, 1, &any).found);
  tf_slot encoder[] = {ENCODER(0, 1, 1)}, llm[] = {LLM(0, 2, 1, 1000, 900)};
  cr_assert_not(tf_place(encoder, 1, good_llm, 1, &any).found, "no slot at the encoder");
  cr_assert_not(tf_place(good_encoder, 1, llm, 1, &any).found, "no KV tokens at the LLM");
  encoder[0] = good_encoder[0];
  encoder[0].usable = false;
  cr_assert_not(tf_place(encoder, 1, good_llm, 1, &any).found);
  encoder[0] = good_encoder[0];
  encoder[0].held = true;
  cr_assert_not(tf_place(encoder, 1, good_llm, 1, &any).found);
  cr_assert_not(tf_place(NULL, 0, good_llm, 1, &any).found);
  cr_assert_not(tf_place(good_encoder, 1, NULL, 0, &any).found);
}

Test(placement, room_is_kept_at_the_llm_that_has_the_most) {
  tf_slot llms[] = {LLM(0, 8, 4, 1000, 800), LLM(0, 8, 6, 1000, 750), LLM(1, 8, 1, 1000, 900), LLM(0, 8, 1, 1000, 990)};
  size_t at = 9;
  cr_assert(tf_place_reserve(llms, 4, &any, &at));
  cr_assert_eq(at, 1u);
  llms[1].held = true; /* for another */
  cr_assert(tf_place_reserve(llms, 4, &any, &at));
  cr_assert_eq(at, 0u);
  llms[0].held = true;
  cr_assert_not(tf_place_reserve(llms, 4, &any, &at), "two of four are kept");
  llms[0].held = llms[1].held = false;
  tf_place_request other = any;
  other.pairs = 1u << 1;
  cr_assert(tf_place_reserve(llms, 4, &other, &at));
  cr_assert_eq(at, 2u);
  llms[3].jobs_out = 0; /* takes a job of any size: it is the encoders that have no room */
  cr_assert_not(tf_place_reserve(llms, 4, &any, &at));
  llms[3].usable = false;
  cr_assert(tf_place_reserve(llms, 4, &any, &at));
  cr_assert(tf_place_reserve(llms, 1, &any, &at), "the only one may be kept");
  cr_assert_not(tf_place_reserve(NULL, 0, &any, &at));
}

Test(placement, room_is_kept_where_the_job_fits_at_all) {
  tf_slot llms[] = {LLM(0, 8, 1, 500, 100), LLM(0, 8, 6, 2000, 1900), LLM(0, 8, 1, 900, 100), LLM(0, 8, 7, 2000, 1950)};
  tf_place_request large = any;
  size_t at = 9;
  large.kv_tokens = 1500;
  cr_assert(tf_place_reserve(llms, 4, &large, &at));
  cr_assert_eq(at, 1u, "the smaller ones have more free, and would refuse it once empty");
  large.kv_tokens = 850;
  cr_assert(tf_place_reserve(llms, 4, &large, &at));
  cr_assert_eq(at, 2u);
  large.kv_tokens = 5000;
  cr_assert(tf_place_reserve(llms, 4, &large, &at));
  cr_assert_eq(at, 1u, "none is large enough: the largest says so");
  llms[3].usable = false;
  llms[1].held = true;
  large.kv_tokens = 1500;
  cr_assert_not(tf_place_reserve(llms, 4, &large, &at), "it waits for the one where it fits");
}

Test(placement, no_room_is_kept_where_job_slots_are_short) {
  const tf_slot llms[] = {LLM(0, 8, 8, 9000, 2400), LLM(0, 8, 8, 2400, 2390)};
  size_t at = 9;
  cr_assert_not(tf_place_reserve(llms, 2, &any, &at), "the next job that ends makes room");
  cr_assert(tf_place_reserve(llms + 1, 1, &any, &at));
}

Test(placement, who_may_take_a_job_at_all) {
  tf_slot full = LLM(3, 8, 8, 1000, 1000), other = full;
  tf_place_request of_pair = any;
  of_pair.pairs = 1u << 3;
  full.held = true;
  cr_assert(tf_place_may_take(&full, &of_pair), "full and held: still");
  other.pair = 2;
  cr_assert_not(tf_place_may_take(&other, &of_pair), "of a pair that does not offer what is asked for");
  other = full;
  other.jobs_max = 0;
  cr_assert_not(tf_place_may_take(&other, &of_pair));
  other = full;
  other.usable = false;
  cr_assert_not(tf_place_may_take(&other, &of_pair));
}

Test(placement, an_idle_llm_takes_a_job_of_any_size) {
  const tf_slot encoders[] = {ENCODER(0, 1, 0)};
  const tf_slot llms[] = {LLM(0, 2, 0, 100, 0)};
  tf_place_request huge = any;
  huge.kv_tokens = 1000000;
  cr_assert(tf_place(encoders, 1, llms, 1, &huge).found);
}

Test(placement, a_suspect_goes_only_where_nothing_is) {
  tf_slot encoders[] = {ENCODER(0, 8, 1), ENCODER(0, 8, 0)};
  tf_slot llms[] = {LLM(0, 8, 1, 9000, 300), LLM(0, 8, 2, 9000, 300)};
  tf_place_request alone = any;
  alone.alone = true;
  cr_assert_not(tf_place(encoders, 2, llms, 2, &alone).found);
  tf_placement hold = tf_place_hold(encoders, 2, llms, 2, &alone);
  cr_assert(hold.found);
  cr_assert_eq(hold.encoder, 1u);
  cr_assert_eq(hold.llm, 0u);
  llms[0].jobs_out = 0;
  tf_placement placed = tf_place(encoders, 2, llms, 2, &alone);
  cr_assert(placed.found);
  cr_assert_eq(placed.encoder, 1u);
  cr_assert_eq(placed.llm, 0u);
}

Test(placement, a_suspect_does_not_take_what_is_kept_for_another) {
  tf_slot encoders[] = {ENCODER(0, 8, 1), ENCODER(0, 8, 4), ENCODER(0, 8, 5)};
  tf_slot llms[] = {LLM(0, 8, 1, 9000, 300), LLM(0, 8, 4, 9000, 1200), LLM(0, 8, 5, 9000, 1500)};
  tf_place_request alone = any;
  alone.alone = true;
  encoders[0].held = llms[0].held = true; /* for another suspect; nearer to idle than the rest */
  tf_placement hold = tf_place_hold(encoders, 3, llms, 3, &alone);
  cr_assert(hold.found);
  cr_assert_eq(hold.encoder, 1u);
  cr_assert_eq(hold.llm, 1u);
  encoders[0].jobs_out = llms[0].jobs_out = llms[0].kv_out = 0; /* idle at last: still the other's */
  cr_assert_not(tf_place(encoders, 3, llms, 3, &alone).found);
  cr_assert_eq(tf_place_hold(encoders, 3, llms, 3, &alone).encoder, 1u);
}

Test(placement, suspects_keep_half_of_a_tier_at_most) {
  tf_slot encoders[] = {ENCODER(0, 8, 0), ENCODER(0, 8, 0), ENCODER(0, 8, 0)};
  tf_slot llms[] = {LLM(0, 8, 0, 9000, 0), LLM(0, 8, 0, 9000, 0)};
  tf_place_request alone = any;
  alone.alone = true;
  cr_assert(tf_place(encoders, 3, llms, 2, &alone).found);
  encoders[0].held = llms[0].held = true;
  cr_assert_not(tf_place(encoders, 3, llms, 2, &alone).found, "one LLM is left to the others");
  cr_assert_not(tf_place_hold(encoders, 3, llms, 2, &alone).found);
  cr_assert(tf_place(encoders, 3, llms, 2, &any).found, "who use it");
  encoders[1].usable = encoders[2].usable = llms[1].usable = false;
  encoders[0].held = llms[0].held = false;
  cr_assert(tf_place(encoders, 3, llms, 2, &alone).found, "of one worker: that one");
}

Test(placement, two_suspects_and_one_pair_both_get_their_turn) {
  tf_slot encoder = ENCODER(0, 8, 2), llm = LLM(0, 8, 2, 9000, 600);
  tf_place_request alone = any;
  alone.alone = true;
  int turns[2] = {0}, holder = -1, running = -1;
  for (int round = 0; round < 20; round++) {
    for (int suspect = 0; suspect < 2; suspect++) { /* as the router asks: its own hold is let go first */
      if (turns[suspect] || running == suspect) continue;
      encoder.held = llm.held = holder >= 0 && holder != suspect;
      tf_placement placed = tf_place(&encoder, 1, &llm, 1, &alone);
      tf_placement hold = tf_place_hold(&encoder, 1, &llm, 1, &alone);
      if (placed.found) running = suspect;
      if (placed.found || hold.found) holder = suspect;
      if (placed.found) encoder.jobs_out = llm.jobs_out = 1;
    }
    /* Every round ends one job: those from before, then the suspect's. */
    if (llm.jobs_out > 0) encoder.jobs_out = --llm.jobs_out;
    if (llm.jobs_out == 0 && running >= 0) {
      turns[running]++;
      running = holder = -1;
    }
  }
  cr_assert_eq(turns[0], 1);
  cr_assert_eq(turns[1], 1);
}

Test(placement, equals_take_turns) {
  const tf_slot encoders[] = {ENCODER(0, 8, 0), ENCODER(0, 8, 0)};
  const tf_slot llms[] = {LLM(0, 8, 0, 9000, 0), LLM(0, 8, 0, 9000, 0)};
  tf_place_request first = any, second = any;
  second.turn = 1;
  cr_assert_neq(tf_place(encoders, 2, llms, 2, &first).encoder, tf_place(encoders, 2, llms, 2, &second).encoder);
}

Test(placement, room_is_what_both_tiers_have) {
  const tf_slot encoders[] = {ENCODER(0, 8, 3), ENCODER(1, 4, 0), ENCODER(2, 9, 0)};
  const tf_slot llms[] = {LLM(0, 16, 0, 9000, 0), LLM(1, 16, 1, 1000, 300), LLM(3, 9, 0, 9000, 0)};
  cr_assert_eq(tf_place_room(encoders, 3, llms, 3, 300), 5u + 2u);
  const tf_slot wide_encoders[] = {ENCODER(0, UINT32_MAX, 0), ENCODER(0, UINT32_MAX, 0)};
  const tf_slot wide_llms[] = {LLM(0, UINT32_MAX, 0, 0, 0)};
  cr_assert_eq(tf_place_room(wide_encoders, 2, wide_llms, 1, 300), UINT32_MAX);
}

/* --- The table of workers --- */

static tf_hello hello_of(tf_role role, const char *instance, const char *hash) {
  return (tf_hello){.role = role,
                    .instance = instance,
                    .pair_hash = hash,
                    .model = "m",
                    .tensor_endpoint = role == TF_ROLE_LLM ? "ipc://x" : "",
                    .version = "1",
                    .token_counts = {256, 64, 144},
                    .token_count_count = 3};
}

static tf_worker *join(tf_workers *table, tf_role role, const char *instance, const char *peer, const char *hash) {
  tf_hello hello = hello_of(role, instance, hash);
  tf_worker *worker = NULL;
  cr_assert_eq(tf_workers_hello(table, &hello, peer, strlen(peer), 1, &worker), TF_HELLO_NEW);
  tf_window window = {.epoch = 1, .jobs_max = 4, .kv_tokens_max = role == TF_ROLE_LLM ? 4000 : 0};
  tf_workers_window(worker, &window);
  return worker;
}

Test(workers, hello_tells_apart_known_moved_and_replaced) {
  tf_workers *table = tf_workers_new();
  tf_worker *first = join(table, TF_ROLE_ENCODER, "e1", "peer1", "hash"), *out = NULL;
  tf_hello same = hello_of(TF_ROLE_ENCODER, "e1", "hash"), other = hello_of(TF_ROLE_ENCODER, "e2", "hash");
  cr_assert_eq(tf_workers_hello(table, &same, "peer1", 5, 2, &out), TF_HELLO_KNOWN);
  cr_assert_eq(out, first);
  cr_assert_eq(tf_workers_hello(table, &same, "peer2", 5, 3, &out), TF_HELLO_MOVED);
  cr_assert_eq(out, first);
  cr_assert_null(tf_workers_find_peer(table, "peer1", 5));
  cr_assert_eq(tf_workers_hello(table, &other, "peer2", 5, 4, &out), TF_HELLO_REPLACED);
  cr_assert_eq(out, first);
  tf_workers_remove(table, out);
  cr_assert_eq(tf_workers_hello(table, &other, "peer2", 5, 5, &out), TF_HELLO_NEW);
  cr_assert_eq(tf_workers_count(table, TF_ROLE_ENCODER), 1u);
  tf_hello router = hello_of(TF_ROLE_ROUTER, "r", "hash"), nameless = hello_of(TF_ROLE_LLM, "", "hash");
  cr_assert_eq(tf_workers_hello(table, &router, "peer3", 5, 6, &out), TF_HELLO_REFUSED);
  cr_assert_eq(tf_workers_hello(table, &nameless, "peer3", 5, 6, &out), TF_HELLO_REFUSED);
  tf_workers_free(&table);
}

Test(workers, an_old_window_changes_nothing) {
  tf_workers *table = tf_workers_new();
  tf_worker *worker = join(table, TF_ROLE_ENCODER, "e1", "peer1", "hash");
  tf_window newer = {.epoch = 9, .jobs_max = 7}, older = {.epoch = 8, .jobs_max = 1, .draining = true};
  tf_workers_window(worker, &newer);
  tf_workers_window(worker, &older);
  cr_assert_eq(worker->jobs_max, 7u);
  cr_assert_not(worker->draining);
  tf_workers_free(&table);
}

Test(workers, a_tier_is_what_its_workers_measured) {
  static const uint32_t counts[3] = {64, 144, 256};
  tf_workers *table = tf_workers_new();
  tf_policy_tier tier;
  tf_workers_tier(table, TF_ROLE_LLM, counts, 3, &tier);
  cr_assert(tier.workers == 0 && tier.slots == 0 && tier.service_ms[0] == 0);
  tf_worker *fast = join(table, TF_ROLE_LLM, "l1", "peer1", "hash"),
            *slow = join(table, TF_ROLE_LLM, "l2", "peer2", "hash"),
            *fresh = join(table, TF_ROLE_LLM, "l3", "peer3", "hash");
  join(table, TF_ROLE_ENCODER, "e1", "peer4", "hash");
  tf_pong pong = {.service = {3, {40, 10, 20}}, .latency = {3, {400, 100, 200}}, .jobs = 5, .jobs_max = 32};
  pong.kv_tokens = 700, pong.kv_tokens_max = 9000, pong.batch_max = 16;
  tf_workers_pong(fast, &pong); /* parallel to its HELLO: 256, 64, 144 */
  cr_assert(fast->service_ms[0] == 10 && fast->service_ms[1] == 20 && fast->service_ms[2] == 40);
  cr_assert(fast->jobs_all == 5 && fast->jobs_all_max == 32 && fast->kv_all == 700 && fast->kv_all_max == 9000);
  pong = (tf_pong){.service = {3, {120, 30, 60}}, .latency = {3, {800, 300, 400}}, .batch_max = 8};
  tf_workers_pong(slow, &pong);
  tf_workers_tier(table, TF_ROLE_LLM, counts, 3, &tier);
  cr_assert_eq(tier.workers, 3u);
  /* 100 and 33.3 jobs/s at 64 tokens: 15 ms each on average; the fresh one counts as one of them. */
  cr_assert_float_eq(tier.service_ms[0], 15, 1e-9);
  cr_assert_float_eq(tier.service_ms[2], 60, 1e-9);
  cr_assert_float_eq(tier.latency_ms[1], 300, 1e-9);
  cr_assert_float_eq(tier.slots, 12, 1e-9);
  pong = (tf_pong){.service = {2, {90, 20}}}; /* less than it said HELLO with: the rest is not known */
  tf_workers_pong(fresh, &pong);
  cr_assert(fresh->service_ms[0] == 20 && fresh->service_ms[1] == 0 && fresh->service_ms[2] == 90);
  tf_window drains = {.epoch = 9, .draining = true};
  tf_workers_window(slow, &drains);
  tf_workers_tier(table, TF_ROLE_LLM, counts, 2, &tier);
  cr_assert_eq(tier.workers, 2u, "a draining worker is none");
  cr_assert_float_eq(tier.service_ms[1], 20, 1e-9);
  cr_assert_eq(tier.service_ms[2], 0);
  tf_workers_free(&table);
}

Test(workers, outstanding_work_never_goes_below_zero) {
  tf_workers *table = tf_workers_new();
  tf_worker *llm = join(table, TF_ROLE_LLM, "l1", "peer1", "hash");
  tf_workers_reserve(table, llm->serial, 300);
  tf_workers_release(table, llm->serial, 300);
  tf_workers_release(table, llm->serial, 300);
  cr_assert_eq(llm->jobs_out, 0u);
  cr_assert_eq(llm->kv_out, 0u);
  tf_workers_release(table, 12345, 1); /* a worker that has gone */
  tf_workers_release(table, 0, 1);
  tf_workers_free(&table);
}

Test(workers, pairs_counts_and_the_main_pair) {
  tf_workers *table = tf_workers_new();
  cr_assert_null(tf_workers_main_pair(table));
  join(table, TF_ROLE_ENCODER, "e1", "p1", "hash-a");
  cr_assert_null(tf_workers_main_pair(table), "one tier is no pair");
  join(table, TF_ROLE_LLM, "l1", "p2", "hash-b");
  cr_assert_null(tf_workers_main_pair(table), "hashes differ");
  tf_worker *llm = join(table, TF_ROLE_LLM, "l2", "p3", "hash-a");
  cr_assert_eq(tf_workers_main_pair(table), llm);
  uint32_t counts[8];
  cr_assert_eq(tf_workers_all_counts(table, counts, 8), 3u);
  cr_assert(counts[0] == 64 && counts[1] == 144 && counts[2] == 256);
  cr_assert_eq(tf_workers_pairs_for(table, 0, 0), UINT64_C(1) << llm->pair);
  cr_assert_eq(tf_workers_pairs_for(table, 64, 144), UINT64_C(1) << llm->pair);
  cr_assert_eq(tf_workers_pairs_for(table, 100, 0), 0u);
  cr_assert_eq(tf_workers_pairs_for(table, 0, 63), 0u);
  llm->draining = true;
  cr_assert_null(tf_workers_main_pair(table));
  cr_assert_eq(tf_workers_pairs_for(table, 64, 144), 0u);
  cr_assert(tf_workers_pair_may_return(table, 64, 144), "half of it is there");
  cr_assert_not(tf_workers_pair_may_return(table, 100, 0));
  while (tf_workers_first(table)) tf_workers_remove(table, tf_workers_first(table));
  cr_assert_not(tf_workers_pair_may_return(table, 64, 144));
  tf_workers_free(&table);
}

Test(workers, a_full_table_refuses) {
  tf_workers *table = tf_workers_new();
  tf_hello hello;
  tf_worker *out;
  char name[32];
  for (int i = 0; i < TF_WORKERS_MAX; i++) {
    snprintf(name, sizeof name, "worker-%d", i);
    hello = hello_of(TF_ROLE_ENCODER, name, "hash");
    cr_assert_eq(tf_workers_hello(table, &hello, name, strlen(name), 1, &out), TF_HELLO_NEW);
  }
  hello = hello_of(TF_ROLE_ENCODER, "one too many", "hash");
  cr_assert_eq(tf_workers_hello(table, &hello, "px", 2, 1, &out), TF_HELLO_REFUSED);
  tf_workers_free(&table);
}

/* --- The table of jobs --- */

Test(jobs, found_by_entry_and_serial_counted_by_state) {
  tf_jobs *jobs = tf_jobs_new();
  tf_router_job *job = tf_jobs_add(jobs, "1:1712345678901-0");
  cr_assert(job);
  cr_assert_eq(job->entry_ms, 1712345678901);
  cr_assert_null(tf_jobs_add(jobs, "1:1712345678901-0"), "there already");
  cr_assert_eq(tf_jobs_find(jobs, "1:1712345678901-0"), job);
  cr_assert_null(tf_jobs_find(jobs, "0:1712345678901-0"));
  uint64_t serial = job->serial;
  tf_jobs_set_state(jobs, job, TF_JOB_DECODING);
  cr_assert_eq(tf_jobs_count_state(jobs, TF_JOB_DECODING), 1u);
  cr_assert_eq(tf_jobs_count_state(jobs, TF_JOB_PENDING), 0u);
  tf_jobs_remove(jobs, job);
  cr_assert_eq(tf_jobs_count(jobs), 0u);
  job = tf_jobs_add(jobs, "1:1712345678901-0");
  cr_assert_null(tf_jobs_find_serial(jobs, "1:1712345678901-0", serial), "another record of the same entry");
  cr_assert_eq(tf_jobs_find_serial(jobs, "1:1712345678901-0", job->serial), job);
  tf_jobs_free(&jobs);
}

Test(jobs, entries_that_are_none) {
  const char *const bad[] = {
      "",       "1",       "1:",    "2:5-0",
      "1:-0",   "1:5",     "1:5-",  "1:5-0x",
      "1: 5-0", "1:5-0-0", "x:5-0", "1:0123456789012345678901234567890123456789-0123456789012345678901234567890"};
  tf_jobs *jobs = tf_jobs_new();
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) cr_assert_null(tf_jobs_add(jobs, bad[i]), "%s", bad[i]);
  int64_t time_ms;
  cr_assert(tf_entry_time("0:18446744073709551615-18446744073709551615", &time_ms));
  cr_assert_eq(time_ms, 253402300800000);
  tf_jobs_free(&jobs);
}

Test(jobs, fill_copies_and_counts_image_bytes) {
  tf_jobs *jobs = tf_jobs_new();
  tf_router_job *job = tf_jobs_add(jobs, "0:5-0");
  tf_job_fields fields = {.image = {"12345", 5}, .prompt = {"p", 1}, .vision_tokens_min = 64, .vision_tokens_max = 64};
  cr_assert_eq(tf_jobs_fill(jobs, job, &fields), TF_OK);
  cr_assert_str_eq(job->requested, "64");
  cr_assert_str_eq(job->prompt, "p");
  cr_assert_null(job->uri);
  cr_assert_eq(tf_jobs_image_bytes(jobs), 5u);
  cr_assert_eq(tf_jobs_fill(jobs, job, &fields), TF_OK, "twice leaks nothing");
  cr_assert_eq(tf_jobs_image_bytes(jobs), 5u);
  tf_jobs_remove(jobs, job);
  cr_assert_eq(tf_jobs_image_bytes(jobs), 0u);
  tf_jobs_free(&jobs);
}

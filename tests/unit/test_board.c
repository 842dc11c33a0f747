/* Tests of router/board.c and board_json.c. In: what a router tells the board, hostile texts among it. Out: copies, and
 * JSON that parses to what was told. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "router/board_feed.h"
#include "router/board_json.h"

static tf_board *board;
static json_t *root;

static void setup(void) {
  board = tf_board_new();
  cr_assert_not_null(board);
}
static void teardown(void) {
  json_decref(root);
  tf_board_free(&board);
}
TestSuite(board, .init = setup, .fini = teardown);

/* The state as a page would read it. */
static void look(uint64_t since) {
  const tf_board_asker asker = {.queue = "photos", .instance = "router-1", .since = since, .may_ever = true};
  tf_board_view *view = tf_board_look(board);
  char *text = tf_board_json(view, &asker);
  json_error_t why;
  json_decref(root);
  root = json_loads(text, 0, &why);
  cr_assert_not_null(root, "%s: %s", why.text, text);
  free(text);
  tf_board_view_free(&view);
  cr_assert_null(view);
}
static json_t *at(const char *name) {
  return json_object_get(root, name);
}
static const char *text_of(const json_t *object, const char *name) {
  return json_string_value(json_object_get(object, name));
}

static void done(const char *id, const char *caption, double wait_ms) {
  tf_board_caption_text text = {.id = id, .caption = caption, .vision_tokens = 144, .reason = TF_REASON_QUEUE};
  tf_board_caption_done(board, &text, 1000, 12.6, wait_ms);
}

static tf_letter letter_of(const char *sid, const char *id) {
  return (tf_letter){.sid = sid, .id = id, .code = "image_corrupt", .message = "a.jpg: bad", .attempts = "3"};
}

Test(board, texts_are_cut_between_characters) {
  char out[8];
  tf_board_text(out, sizeof out, "1234567");
  cr_assert_str_eq(out, "1234567");
  tf_board_text(out, sizeof out, "12345678");
  cr_assert_str_eq(out, "1234\xe2\x80\xa6");
  tf_board_text(out, sizeof out, "123\xc3\xa9\xc3\xa9\xc3\xa9");
  cr_assert_str_eq(out, "123\xe2\x80\xa6");
  tf_board_text(out, sizeof out,
                "a\xff"
                "b");
  cr_assert_str_eq(out, "a\xef\xbf\xbd"
                        "b");
  tf_board_text(out, sizeof out, "");
  cr_assert_str_eq(out, "");
}

Test(board, any_bytes_become_utf8_that_fits) {
  char out[16], text[64];
  srand(7);
  for (int round = 0; round < 5000; round++) {
    size_t size = (size_t)(rand() % 40);
    for (size_t i = 0; i < size; i++) text[i] = (char)(1 + rand() % 255);
    text[size] = '\0';
    memset(out, 'z', sizeof out);
    tf_board_text(out, sizeof out, text);
    cr_assert_neq(memchr(out, 0, sizeof out), NULL);
    cr_assert(tf_utf8_is_valid(out, strlen(out)));
  }
}

Test(board, an_empty_one_says_that_nothing_is_known) {
  tf_board_state(board, 5000, false, "no encoder");
  look(0);
  cr_assert_str_eq(text_of(root, "queue"), "photos");
  cr_assert_str_eq(text_of(root, "not_ready"), "no encoder");
  cr_assert(json_is_false(json_object_get(at("redis"), "reachable")));
  cr_assert(json_is_null(at("load")) && json_is_null(at("workers")) && json_is_null(at("letters")));
  cr_assert_eq(json_array_size(at("captions")), 0);
  cr_assert_eq(json_array_size(json_object_get(at("history"), "samples")), 0);
  cr_assert(json_is_true(json_object_get(at("actions"), "offered")));
  cr_assert(json_is_false(json_object_get(at("actions"), "allowed")));
  cr_assert_geq(json_integer_value(at("now_ms")), 5000);
}

Test(board, captions_newest_first_and_bounded) {
  char id[32];
  for (int i = 1; i <= TF_BOARD_CAPTIONS + 3; i++) {
    snprintf(id, sizeof id, "photo-%d", i);
    done(id, "A dog.", 5);
  }
  look(0);
  cr_assert_eq(json_array_size(at("captions")), TF_BOARD_CAPTIONS);
  const json_t *newest = json_array_get(at("captions"), 0),
               *last = json_array_get(at("captions"), TF_BOARD_CAPTIONS - 1);
  cr_assert_str_eq(text_of(newest, "id"), "photo-53");
  cr_assert_str_eq(text_of(newest, "caption"), "A dog.");
  cr_assert_str_eq(text_of(newest, "reason"), "queue");
  cr_assert_eq(json_integer_value(json_object_get(newest, "vision_tokens")), 144);
  cr_assert_eq(json_number_value(json_object_get(newest, "total_ms")), 13);
  cr_assert_str_eq(text_of(last, "id"), "photo-4");
}

Test(board, hostile_texts_stay_texts) {
  char longest[3000];
  memset(longest, 'x', sizeof longest - 1);
  longest[sizeof longest - 1] = '\0';
  done("</script><script>alert(1)</script>", "\"},{\"id\":\"\\u0000\xff\xfe\x1b[31m", 5);
  done("\xe2\x80\xaegpj.tac", longest, 5);
  look(0);
  const json_t *first = json_array_get(at("captions"), 0), *second = json_array_get(at("captions"), 1);
  cr_assert_str_eq(text_of(second, "id"), "</script><script>alert(1)</script>");
  cr_assert_str_eq(text_of(second, "caption"), "\"},{\"id\":\"\\u0000\xef\xbf\xbd\xef\xbf\xbd\x1b[31m");
  cr_assert_str_eq(text_of(first, "id"), "\xe2\x80\xaegpj.tac");
  cr_assert_lt(strlen(text_of(first, "caption")), TF_BOARD_TEXT_BYTES);
}

Test(board, samples_have_this_routers_own_in_them) {
  tf_sample sample = {.at_ms = 1000, .finished_per_s = 1.239f, .waiting = NAN, .budget = 187.26f};
  tf_board_sample(board, &sample);
  for (int i = 1; i <= 100; i++) done("a", "b", i);
  sample.at_ms = 3000;
  tf_board_sample(board, &sample);
  look(1);
  const json_t *history = at("history"), *rows = json_object_get(history, "samples"), *row = json_array_get(rows, 0);
  cr_assert_eq(json_array_size(rows), 1);
  cr_assert_eq(json_integer_value(json_object_get(history, "first")), 2);
  cr_assert_eq(json_integer_value(json_object_get(history, "last")), 2);
  cr_assert_eq(json_array_size(row), json_array_size(json_object_get(history, "columns")));
  cr_assert_eq(json_integer_value(json_array_get(row, 0)), 3000);
  cr_assert_float_eq(json_number_value(json_array_get(row, 1)), 1.24, 1e-9);
  cr_assert(json_is_null(json_array_get(row, 4)));
  cr_assert_float_eq(json_number_value(json_array_get(row, 7)), 187.3, 1e-9);
  cr_assert_eq(json_number_value(json_array_get(row, 9)), 50);
  cr_assert_eq(json_number_value(json_array_get(row, 10)), 95);
  cr_assert_eq(json_integer_value(at("wait_jobs")), 100);
}

Test(board, workers_that_make_no_sense_are_left_out) {
  static const char all[] = "llm-1\0{\"role\":\"llm\",\"jobs_out\":3,\"jobs_max\":8,\"draining\":true,\"secret\":1}\0"
                            "broken\0{\"role\":\0"
                            "list\0[1]\0"
                            "odd\0{\"role\":7,\"jobs_max\":\"x\"}";
  char *workers = malloc(sizeof all);
  memcpy(workers, all, sizeof all);
  tf_board_workers(board, &workers, sizeof all, 4, 9);
  cr_assert_null(workers);
  look(0);
  cr_assert_eq(json_array_size(at("workers")), 2);
  cr_assert_eq(json_integer_value(at("workers_all")), 9);
  const json_t *llm = json_array_get(at("workers"), 0), *odd = json_array_get(at("workers"), 1);
  cr_assert_str_eq(text_of(llm, "instance"), "llm-1");
  cr_assert_eq(json_integer_value(json_object_get(llm, "jobs_max")), 8);
  cr_assert(json_is_true(json_object_get(llm, "draining")));
  cr_assert_null(json_object_get(llm, "secret"));
  cr_assert_str_eq(text_of(odd, "role"), "");
  cr_assert_eq(json_integer_value(json_object_get(odd, "jobs_max")), 0);
  tf_board_workers(board, NULL, 0, 0, 0);
  look(0);
  cr_assert(json_is_null(at("workers")));
}

Test(board, letters_are_shown_once_all_are_there) {
  tf_letter first = letter_of("1700000000002-0", "b"), second = letter_of("1700000000001-0", "a\xff");
  tf_board_letters_begin(board);
  tf_board_letters_add(board, &first);
  look(0);
  cr_assert(json_is_null(at("letters")));
  tf_board_letters_add(board, &second);
  tf_board_letters_end(board);
  look(0);
  cr_assert_eq(json_array_size(at("letters")), 2);
  const json_t *letter = json_array_get(at("letters"), 1);
  cr_assert_str_eq(text_of(letter, "letter"), "1700000000001-0");
  cr_assert_str_eq(text_of(letter, "id"), "a\xef\xbf\xbd");
  cr_assert_eq(json_integer_value(json_object_get(letter, "died_ms")), 1700000000001);
  cr_assert_eq(json_integer_value(json_object_get(letter, "attempts")), 3);
  tf_board_letters_begin(board);
  for (int i = 0; i < TF_BOARD_LETTERS + 5; i++) tf_board_letters_add(board, &first);
  tf_board_letters_end(board);
  look(0);
  cr_assert_eq(json_array_size(at("letters")), TF_BOARD_LETTERS);
}

Test(board, verdicts_take_letters_away_or_leave_them) {
  tf_letter first = letter_of("1700000000002-0", "b"), second = letter_of("1700000000001-0", "a");
  tf_board_letters_begin(board);
  tf_board_letters_add(board, &first);
  tf_board_letters_add(board, &second);
  tf_board_letters_end(board);
  uint64_t retry = tf_board_action_asked(board, "1700000000002-0", true),
           drop = tf_board_action_asked(board, "1700000000001-0", false);
  look(0);
  const json_t *list = json_object_get(at("actions"), "done");
  cr_assert_eq(json_array_size(list), 2);
  cr_assert_str_eq(text_of(json_array_get(list, 1), "action"), "retry");
  cr_assert_str_eq(text_of(json_array_get(list, 1), "id"), "b");
  cr_assert(json_is_null(json_object_get(json_array_get(list, 1), "verdict")));
  tf_board_settled(board, retry, "no_image");
  tf_board_settled(board, drop, "dropped");
  tf_board_settled(board, 99, "dropped"); /* nobody's */
  look(0);
  list = json_object_get(at("actions"), "done");
  cr_assert_str_eq(text_of(json_array_get(list, 0), "verdict"), "dropped");
  cr_assert_str_eq(text_of(json_array_get(list, 1), "verdict"), "no_image");
  cr_assert_eq(json_array_size(at("letters")), 1);
  cr_assert_str_eq(text_of(json_array_get(at("letters"), 0), "id"), "b");
}

Test(board, watched_from_the_first_look_on) {
  cr_assert_not(tf_board_is_watched(board));
  look(0);
  cr_assert(tf_board_is_watched(board));
}

/* HGETALL's answer, built by hand. */
static redisReply *reply_of(const char *const *words, size_t count) {
  redisReply *reply = calloc(1, sizeof *reply);
  reply->type = REDIS_REPLY_ARRAY;
  reply->elements = count;
  reply->element = calloc(count, sizeof *reply->element);
  for (size_t i = 0; i < count; i++) {
    reply->element[i] = calloc(1, sizeof **reply->element);
    reply->element[i]->type = REDIS_REPLY_STRING;
    reply->element[i]->str = strdup(words[i]);
    reply->element[i]->len = strlen(words[i]);
  }
  return reply;
}
static void free_reply(redisReply *reply) {
  for (size_t i = 0; i < reply->elements; i++) {
    free(reply->element[i]->str);
    free(reply->element[i]);
  }
  free(reply->element);
  free(reply);
}

Test(board, the_shared_load_is_read) {
  const char *const words[] = {"updated_ms",
                               "1234",
                               "counts",
                               "64,144,256",
                               "mix",
                               "0.25,0.50,0.25",
                               "waiting",
                               "7",
                               "encode_workers",
                               "2",
                               "decode_wanted",
                               "5",
                               "decode_service_ms",
                               "10,20.5,40",
                               "encode_service_ms",
                               "",
                               "unheard",
                               "of",
                               "budget",
                               "187.5",
                               "odd"};
  redisReply *reply = reply_of(words, sizeof words / sizeof *words);
  tf_board_load load;
  cr_assert(tf_board_load_of(reply, &load));
  free_reply(reply);
  cr_assert_eq(load.count_count, 3);
  cr_assert(load.counts[0] == 64 && load.counts[2] == 256 && load.mix[1] == 0.5);
  cr_assert(load.llms.service_ms[1] == 20.5 && load.encoders.service_ms[0] == 0);
  cr_assert(load.waiting == 7 && load.encoders.workers == 2 && load.llms.wanted == 5 && load.budget == 187.5);
  tf_board_load_read(board, &load);
  look(0);
  const json_t *tier = json_object_get(json_object_get(at("load"), "tiers"), "llm");
  cr_assert_eq(json_number_value(json_object_get(tier, "wanted")), 5);
  cr_assert_eq(json_array_size(json_object_get(tier, "service_ms")), 3);
}

Test(board, a_load_that_makes_no_sense_is_harmless) {
  const char *const words[] = {"updated_ms", "1",   "counts", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19",
                               "mix",        ",,x", "budget", "nan"};
  redisReply *reply = reply_of(words, sizeof words / sizeof *words), *empty = reply_of(words, 0);
  tf_board_load load;
  cr_assert(tf_board_load_of(reply, &load));
  cr_assert_eq(load.count_count, TF_POLICY_COUNTS_MAX);
  tf_board_load_read(board, &load);
  look(0);
  cr_assert(json_is_null(json_object_get(at("load"), "budget")));
  cr_assert_not(tf_board_load_of(empty, &load));
  free_reply(reply);
  free_reply(empty);
}

Test(letters, stream_ids) {
  const char *const wrong[] = {"",     "-",     "1",    "1-",
                               "-1",   "1-2-3", "1-x",  " 1-2",
                               "1-2 ", "+",     "(1-2", "111111111111111111111111-1111111111111111111111111"};
  cr_assert(tf_letter_is_sid("1700000000001-0"));
  cr_assert(tf_letter_is_sid("0-1"));
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) cr_assert_not(tf_letter_is_sid(wrong[i]), "%s", wrong[i]);
}

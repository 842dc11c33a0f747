/* Tests of the pure parts of the operator's commands: where ids go, what a line of a list means, how a status is read
 * and shown, what of foreign text reaches a terminal. In: texts and structs. Out: theirs. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/deployment.h"
#include "cli/status_view.h"
#include "cli/submit_command.h"
#include "cli/text.h"
#include "common/utf8.h"

/* ---- where ids go ---- */

enum { IDS = 20000 };
static char places[5][TF_DEPLOYMENT_PLACE_BYTES];
#define PLACES ((const char(*)[TF_DEPLOYMENT_PLACE_BYTES])places)

static void make_places(void) {
  for (int i = 0; i < 5; i++) snprintf(places[i], sizeof places[i], "redis://cache-%d:6379/0", i);
}

static const char *place_of(int number, size_t count) {
  char id[32];
  snprintf(id, sizeof id, "photo-%d", number);
  return places[tf_spread(id, PLACES, count)];
}

Test(spread, every_server_has_its_share) {
  make_places();
  int shares[4] = {0};
  for (int i = 0; i < IDS; i++) {
    char id[32];
    snprintf(id, sizeof id, "photo-%d", i);
    shares[tf_spread(id, PLACES, 4)]++;
  }
  for (int i = 0; i < 4; i++) {
    cr_assert_gt(shares[i], IDS / 4 * 9 / 10);
    cr_assert_lt(shares[i], IDS / 4 * 11 / 10);
  }
}

Test(spread, a_server_more_moves_only_its_own_share) {
  make_places();
  int moved = 0;
  for (int i = 0; i < IDS; i++) {
    const char *before = place_of(i, 4), *after = place_of(i, 5);
    if (strcmp(before, after) == 0) continue;
    cr_assert_str_eq(after, places[4], "an id moved between servers that were there before");
    moved++;
  }
  cr_assert_gt(moved, IDS / 5 * 9 / 10);
  cr_assert_lt(moved, IDS / 5 * 11 / 10);
}

Test(spread, the_order_of_the_list_is_of_no_account) {
  make_places();
  char before[200][TF_DEPLOYMENT_PLACE_BYTES], spare[TF_DEPLOYMENT_PLACE_BYTES];
  for (int i = 0; i < 200; i++) memcpy(before[i], place_of(i, 5), TF_DEPLOYMENT_PLACE_BYTES);
  memcpy(spare, places[0], sizeof spare);
  memcpy(places[0], places[3], sizeof spare);
  memcpy(places[3], spare, sizeof spare);
  for (int i = 0; i < 200; i++) cr_assert_str_eq(place_of(i, 5), before[i]);
}

/* Jobs that are out there were spread so: this may not change from one version to the next. */
Test(spread, ids_go_where_they_always_went) {
  make_places();
  static const size_t wanted[] = {0, 1, 1, 4, 0, 1, 4, 0};
  for (int i = 0; i < 8; i++) cr_assert_str_eq(place_of(i, 5), places[wanted[i]], "photo-%d", i);
}

/* ---- lists ---- */

Test(submit_list, lines) {
  static const struct {
    const char *line, *id, *input;
    bool fine;
  } cases[] = {
      {"a.jpg\n", NULL, "a.jpg", true},
      {"one\ta b.jpg\r\n", "one", "a b.jpg", true},
      {"\n", NULL, NULL, true},
      {"", NULL, NULL, true},
      {"x\ty\tz", "x", "y\tz", true},
      {"\ta.jpg", "", "a.jpg", false},
      {"x\t\n", "x", "", false},
      {"b\xff\ta.jpg", "b\xff", "a.jpg", false},
      {"b\x01\ta.jpg", "b\x01", "a.jpg", false},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char line[64];
    const char *id, *input;
    tf_error error;
    snprintf(line, sizeof line, "%s", cases[i].line);
    cr_assert_eq(tf_submit_parse_line(line, &id, &input, &error) == TF_OK, cases[i].fine, "%zu", i);
    cr_assert_eq(id == NULL, cases[i].id == NULL);
    cr_assert_eq(input == NULL, cases[i].input == NULL);
    if (id) cr_assert_str_eq(id, cases[i].id);
    if (input) cr_assert_str_eq(input, cases[i].input);
  }
}

Test(submit_list, ids_and_uris) {
  char id[300];
  memset(id, 'x', sizeof id);
  id[256] = '\0';
  cr_assert(tf_submit_id_is_valid(id));
  id[256] = 'x';
  id[257] = '\0';
  cr_assert_not(tf_submit_id_is_valid(id));
  cr_assert(tf_submit_id_is_valid("caf\xc3\xa9 1"));
  cr_assert_not(tf_submit_id_is_valid("a\x7f"));
  static const char *const uris[] = {"file:///a", "http://a", "https://a"}, *const files[] = {"file:a", "ftp://a", "a",
                                                                                              ""};
  for (size_t i = 0; i < 3; i++) cr_assert(tf_submit_is_uri(uris[i]));
  for (size_t i = 0; i < 4; i++) cr_assert_not(tf_submit_is_uri(files[i]));
}

/* ---- status: reading ---- */

Test(status, numbers_of_a_hash) {
  double out[4];
  tf_status_parse_reals("0.10,0.2,3e2,4", out, 4);
  cr_assert_float_eq(out[0], 0.1, 1e-9);
  cr_assert_float_eq(out[2], 300, 1e-9);
  cr_assert_float_eq(out[3], 4, 1e-9);
  static const char *const odd[] = {"", ",", ",,,", "x", "1x,2", "nan,inf", "1,,3"};
  for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
    tf_status_parse_reals(odd[i], out, 4);
    for (int k = 0; k < 4; k++) cr_assert(out[k] >= 0 && out[k] <= 3, "%s", odd[i]);
  }
}

Test(status, a_worker_of_a_hash) {
  tf_status_worker worker;
  static const char good[] =
      "{\"role\":\"llm\",\"model\":\"m\",\"jobs_out\":3,\"jobs_max\":32,\"kv_out\":10,\"kv_max\":"
      "100,\"draining\":true,\"service_ms\":[1.5,2.5],\"heard_ms\":900}";
  cr_assert(tf_status_parse_worker("llm-1", good, strlen(good), 1000, &worker));
  cr_assert_str_eq(worker.instance, "llm-1");
  cr_assert_eq(worker.jobs_out, 3);
  cr_assert_eq(worker.silent_ms, 100);
  cr_assert_not(tf_status_worker_is_gone(&worker));
  cr_assert_float_eq(worker.service_ms, 2.5, 1e-9);
  cr_assert(worker.draining);
  cr_assert(tf_status_parse_worker("llm-1", good, strlen(good), 1000 + TF_STATUS_GONE_MS, &worker));
  cr_assert(tf_status_worker_is_gone(&worker), "what was heard of it is old");
  static const char *const bad[] = {"", "[]", "{", "7", "\"x\""};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    cr_assert_not(tf_status_parse_worker("x", bad[i], strlen(bad[i]), 0, &worker));
  static const char odd[] = "{\"role\":7,\"jobs_out\":\"many\",\"service_ms\":{},\"heard_ms\":5000}";
  cr_assert(tf_status_parse_worker("x", odd, strlen(odd), 1000, &worker));
  cr_assert_str_eq(worker.role, "");
  cr_assert_eq(worker.silent_ms, 0, "a clock that is ahead is no age below 0");
}

Test(status, errors_most_often_first) {
  tf_status_error out[3];
  cr_assert_eq(tf_status_parse_errors("{\"a\":1,\"b\":5,\"c\":0,\"d\":\"x\",\"e\":2}", out, 3), 3);
  cr_assert_str_eq(out[0].code, "b");
  cr_assert_str_eq(out[2].code, "a");
  cr_assert_eq(tf_status_parse_errors("not json", out, 3), 0);
  cr_assert_eq(tf_status_parse_errors("", out, 3), 0);
}

/* ---- status: showing ---- */

static tf_status_worker workers[40];

static void make_status(tf_status *out) {
  memset(out, 0, sizeof *out);
  out->reachable = out->load_known = out->model.live = true;
  snprintf(out->model.name, sizeof out->model.name, "a model with a name that is rather long, as names of models are");
  out->count_count = out->model.token_count_count = 3;
  for (uint32_t i = 0; i < 3; i++) {
    static const uint32_t counts[] = {64, 144, 256};
    out->counts[i] = out->model.token_counts[i] = counts[i];
    out->mix[i] = 0.25 * (i + 1) - 0.15;
    out->capacity_per_s[i] = 12345.6 / (i + 1);
  }
  out->depth = (tf_queue_depth){123456789, 4321, 987654};
  out->dead = 12;
  out->routers = 2;
  out->budget = 123.4;
  out->arrivals_per_s = 1234.5;
  for (int i = 0; i < 40; i++) {
    out->errors[i] = (tf_status_error){.count = 40 - i};
    snprintf(out->errors[i].code, sizeof out->errors[i].code, "some_error_code_%d", i);
    workers[i] = (tf_status_worker){.jobs_out = i, .jobs_max = 32, .kv_out = 5, .kv_max = 10, .service_ms = 12.3};
    snprintf(workers[i].instance, sizeof workers[i].instance, "llm-%d-on-a-host-with-a-long-name\033[31m-%d", i, i);
    snprintf(workers[i].role, sizeof workers[i].role, "llm");
  }
  out->error_count = 40;
  out->workers = workers;
  out->worker_count = 40;
}

/* Columns of the widest line, escapes of our own left out; -1: something else that a terminal obeys. */
static int widest(const char *text, int *lines) {
  int width = 0, widest_yet = 0;
  *lines = 0;
  for (const char *at = text; *at; at++) {
    if (*at == '\033') {
      if (at[1] != '[') return -1;
      for (at += 2; *at && *at != 'm'; at++)
        if (*at < '0' || *at > ';') return -1;
    } else if (*at == '\n') {
      (*lines)++;
      widest_yet = width > widest_yet ? width : widest_yet;
      width = 0;
    } else {
      if ((unsigned char)*at < 0x20) return -1;
      width += ((unsigned char)*at & 0xC0) != 0x80;
    }
  }
  return widest_yet;
}

Test(status, fits_every_terminal) {
  tf_status status, away = {.problem = "can not connect"};
  make_status(&status);
  tf_status_server servers[] = {{"redis://a:6379/0", &status, 3.2}, {"redis://b:6379/0", &away, -1}};
  for (int columns = 40; columns <= 200; columns += 20) {
    for (int flags = 0; flags < 8; flags++) {
      tf_status_style style = {columns, flags & 4 ? 24 : 0, flags & 1, flags & 2};
      for (size_t count = 1; count <= 2; count++) {
        tf_buffer text;
        int lines;
        tf_buffer_init(&text, 1 << 20);
        tf_status_text("default", servers, count, &style, &text);
        cr_assert_leq(widest(text.data, &lines), columns - 1, "%d columns: %s", columns, text.data);
        cr_assert_geq(widest(text.data, &lines), 20);
        if (style.rows) cr_assert_leq(lines, style.rows);
        if (!style.color) cr_assert_null(strchr(text.data, '\033'));
        cr_assert(tf_utf8_is_valid(text.data, text.size));
        tf_buffer_free(&text);
      }
    }
  }
}

Test(status, what_is_shown) {
  tf_status status;
  make_status(&status);
  tf_status_server server = {"redis://a:6379/0", &status, 3.2};
  tf_status_style style = {100, 0, false, true};
  tf_buffer text;
  tf_buffer_init(&text, 1 << 20);
  tf_status_text("default", &server, 1, &style, &text);
  static const char *const parts[] = {"queue default on redis://a:6379/0",
                                      "123,456,789",
                                      "64, 144, 256",
                                      "123 tokens a photo",
                                      "ended 3.20/s",
                                      "some_error_code_0 40",
                                      "llm-39-on-a-host"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    cr_assert_not_null(strstr(text.data, parts[i]), "%s", parts[i]);
  tf_buffer_clear(&text);
  style.rows = 22;
  tf_status_text("default", &server, 1, &style, &text);
  cr_assert_not_null(strstr(text.data, "more workers"));
  tf_buffer_free(&text);
}

Test(status, json_of_anything_is_json) {
  tf_status status, away = {.problem = "can not \"connect\"\n\xff"};
  make_status(&status);
  tf_status_server servers[] = {{"redis://a:6379/0", &status, 3.2}, {"redis://b:6379/0", &away, -1}};
  tf_buffer text;
  tf_buffer_init(&text, 1 << 20);
  cr_assert(tf_status_json("default", servers, 2, &text));
  json_t *root = json_loads(text.data, 0, NULL);
  cr_assert_not_null(root);
  json_t *list = json_object_get(root, "servers");
  cr_assert_eq(json_array_size(list), 2);
  cr_assert_eq(json_integer_value(json_object_get(json_array_get(list, 0), "waiting")), 123456789);
  cr_assert_eq(json_array_size(json_object_get(json_array_get(list, 0), "workers")), 40);
  cr_assert(json_is_false(json_object_get(json_array_get(list, 1), "reachable")));
  json_decref(root);
  tf_buffer_free(&text);
}

/* ---- foreign text ---- */

Test(text, nothing_steers_a_terminal) {
  tf_buffer out;
  tf_buffer_init(&out, 1024);
  tf_text_clean_append("a\033[31m\nb\xff\xc2\x9b"
                       "c\xc3\xa9",
                       &out);
  cr_assert_str_eq(out.data, "a?[31m?b??c\xc3\xa9");
  tf_buffer_clear(&out);
  tf_text_cell("ab", 4, &out);
  tf_text_cell("caf\xc3\xa9s", 5, &out);
  tf_text_cell("abcdef", 3, &out);
  cr_assert_str_eq(out.data, "ab  caf\xc3\xa9s"
                             "ab~");
  tf_buffer_free(&out);
}

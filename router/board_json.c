/* The status page's state as JSON. In: a copy of the board. Out: one object, numbers rounded to what is shown.
 * What workers say of themselves comes from Redis as JSON: it is parsed here, and of it only known fields go on. */
#include "router/board_json.h"

#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "common/options.h"

static json_t *number(double value, double unit) {
  return isfinite(value) ? json_real(round(value / unit) * unit) : json_null();
}

static json_t *numbers(const double *values, uint32_t count) {
  json_t *out = json_array();
  for (uint32_t i = 0; i < count; i++) json_array_append_new(out, number(values[i], 0.001));
  return out;
}

/* ---- load ---- */

static json_t *load_object(const tf_board_load *load) {
  json_t *out = json_object();
  const struct {
    const char *name;
    double value;
  } plain[] = {{"unfinished", load->unfinished},
               {"waiting", load->waiting},
               {"encode", load->encode},
               {"decode", load->decode},
               {"arrivals_per_s", load->arrivals_per_s},
               {"budget", load->budget},
               {"target_wait_ms", load->target_wait_ms},
               {"dead", load->dead},
               {"results", load->results}};
  json_object_set_new(out, "updated_ms", json_integer(load->updated_ms));
  for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
    json_object_set_new(out, plain[i].name, number(plain[i].value, 0.001));
  json_object_set_new(out, "counts", numbers(load->counts, load->count_count));
  json_object_set_new(out, "mix", numbers(load->mix, load->count_count));
  json_object_set_new(out, "capacity_per_s", numbers(load->capacity_per_s, load->count_count));
  json_t *tiers = json_object();
  for (int i = 0; i < 2; i++) {
    json_t *tier = json_object();
    json_object_set_new(tier, "workers", number(i ? load->llms.workers : load->encoders.workers, 1));
    json_object_set_new(tier, "wanted", number(i ? load->llms.wanted : load->encoders.wanted, 1));
    json_object_set_new(tier, "service_ms",
                        numbers(i ? load->llms.service_ms : load->encoders.service_ms, load->count_count));
    json_object_set_new(tiers, i ? "llm" : "encoder", tier);
  }
  json_object_set_new(out, "tiers", tiers);
  return out;
}

/* ---- lists ---- */

static json_t *worker_object(const char *instance, const char *text) {
  static const char *const strings[] = {"role", "model", "version", "router"};
  static const char *const integers[] = {"jobs_out", "jobs_max", "kv_out", "kv_max", "started_ms", "heard_ms"};
  char clean[TF_BOARD_ID_BYTES];
  json_t *said = json_loads(text, 0, NULL), *out = json_is_object(said) ? json_object() : NULL;
  if (out) {
    tf_board_text(clean, sizeof clean, instance);
    json_object_set_new(out, "instance", json_string(clean));
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
      const char *value = json_string_value(json_object_get(said, strings[i]));
      json_object_set_new(out, strings[i], json_string(value ? value : ""));
    }
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
      json_object_set_new(out, integers[i], json_integer(json_integer_value(json_object_get(said, integers[i]))));
    json_object_set_new(out, "draining", json_boolean(json_is_true(json_object_get(said, "draining"))));
  }
  json_decref(said);
  return out;
}

static json_t *worker_list(const tf_board_view *view) {
  json_t *out = json_array();
  const char *at = view->workers;
  for (size_t i = 0; i < view->worker_count; i++) {
    const char *instance = at, *text = at + strlen(at) + 1;
    json_t *worker = worker_object(instance, text);
    if (worker) json_array_append_new(out, worker);
    at = text + strlen(text) + 1;
  }
  return out;
}

static json_t *caption_list(const tf_board_view *view) {
  json_t *out = json_array();
  for (uint64_t i = 0; i < TF_BOARD_CAPTIONS && i < view->caption_count; i++) {
    const tf_board_caption *item = &view->captions[(view->caption_count - 1 - i) % TF_BOARD_CAPTIONS];
    json_t *one = json_object();
    json_object_set_new(one, "number", json_integer((json_int_t)(view->caption_count - i)));
    json_object_set_new(one, "done_ms", json_integer(item->done_ms));
    json_object_set_new(one, "id", json_string(item->id));
    json_object_set_new(one, "caption", json_string(item->caption));
    json_object_set_new(one, "vision_tokens", json_integer(item->vision_tokens));
    json_object_set_new(one, "reason", json_string(tf_reason_name(item->reason)));
    json_object_set_new(one, "total_ms", number(item->total_ms, 1));
    json_array_append_new(out, one);
  }
  return out;
}

static json_t *letter_list(const tf_board_view *view) {
  json_t *out = json_array();
  for (size_t i = 0; i < view->letter_count; i++) {
    const tf_board_letter *item = &view->letters[i];
    json_t *one = json_object();
    json_object_set_new(one, "letter", json_string(item->sid));
    json_object_set_new(one, "died_ms", json_integer(strtoll(item->sid, NULL, 10)));
    json_object_set_new(one, "id", json_string(item->id));
    json_object_set_new(one, "code", json_string(item->code));
    json_object_set_new(one, "message", json_string(item->message));
    json_object_set_new(one, "attempts", json_integer(strtoll(item->attempts, NULL, 10)));
    json_object_set_new(one, "image_dropped", json_boolean(item->image_dropped));
    json_array_append_new(out, one);
  }
  return out;
}

static json_t *action_list(const tf_board_view *view) {
  json_t *out = json_array();
  for (uint64_t i = 0; i < TF_BOARD_ACTIONS && i < view->action_count; i++) {
    const tf_board_action *item = &view->actions[(view->action_count - 1 - i) % TF_BOARD_ACTIONS];
    json_t *one = json_object();
    json_object_set_new(one, "request", json_integer((json_int_t)item->request));
    json_object_set_new(one, "letter", json_string(item->sid));
    json_object_set_new(one, "id", json_string(item->id));
    json_object_set_new(one, "action", json_string(item->retry ? "retry" : "drop"));
    json_object_set_new(one, "verdict", item->verdict[0] ? json_string(item->verdict) : json_null());
    json_array_append_new(out, one);
  }
  return out;
}

/* ---- history ---- */

/* What follows at_ms in a row. */
static const struct {
  const char *name;
  size_t at; /* a float of tf_sample */
  double unit;
} columns[] = {{"finished_per_s", offsetof(tf_sample, finished_per_s), 0.01},
               {"arrivals_per_s", offsetof(tf_sample, arrivals_per_s), 0.01},
               {"captions_per_s", offsetof(tf_sample, captions_per_s), 0.01},
               {"waiting", offsetof(tf_sample, waiting), 1},
               {"encode", offsetof(tf_sample, encode), 1},
               {"decode", offsetof(tf_sample, decode), 1},
               {"budget", offsetof(tf_sample, budget), 0.1},
               {"assigned", offsetof(tf_sample, assigned), 0.1},
               {"wait_p50_ms", offsetof(tf_sample, wait_p50_ms), 1},
               {"wait_p95_ms", offsetof(tf_sample, wait_p95_ms), 1},
               {"encoders", offsetof(tf_sample, encoders), 1},
               {"encoders_wanted", offsetof(tf_sample, encoders_wanted), 1},
               {"llms", offsetof(tf_sample, llms), 1},
               {"llms_wanted", offsetof(tf_sample, llms_wanted), 1}};
enum { COLUMNS = sizeof columns / sizeof *columns };

static json_t *column_names(void) {
  json_t *out = json_array();
  json_array_append_new(out, json_string("at_ms"));
  for (size_t i = 0; i < COLUMNS; i++) json_array_append_new(out, json_string(columns[i].name));
  return out;
}

static json_t *sample_row(const tf_sample *sample) {
  json_t *row = json_array();
  json_array_append_new(row, json_integer(sample->at_ms));
  for (size_t i = 0; i < COLUMNS; i++) {
    float value;
    memcpy(&value, (const char *)sample + columns[i].at, sizeof value);
    json_array_append_new(row, number(value, columns[i].unit));
  }
  return row;
}

static json_t *history_object(const tf_history *history, uint64_t since) {
  json_t *out = json_object(), *rows = json_array();
  uint64_t first = tf_history_first(history, since);
  for (uint64_t at = first; at <= history->count; at++)
    json_array_append_new(rows, sample_row(tf_history_at(history, at)));
  json_object_set_new(out, "step_ms", json_integer(TF_HISTORY_STEP_MS));
  json_object_set_new(out, "steps_max", json_integer(TF_HISTORY_STEPS));
  json_object_set_new(out, "first", json_integer((json_int_t)first));
  json_object_set_new(out, "last", json_integer((json_int_t)history->count));
  json_object_set_new(out, "columns", column_names());
  json_object_set_new(out, "samples", rows);
  return out;
}

char *tf_board_json(const tf_board_view *view, const tf_board_asker *asker) {
  json_t *root = json_object(), *redis = json_object(), *acting = json_object();
  json_object_set_new(root, "queue", json_string(asker->queue));
  json_object_set_new(root, "router", json_string(asker->instance));
  json_object_set_new(root, "version", json_string(TF_VERSION));
  json_object_set_new(root, "now_ms", json_integer(view->now_ms));
  json_object_set_new(root, "not_ready", view->not_ready[0] ? json_string(view->not_ready) : json_null());
  json_object_set_new(redis, "reachable", json_boolean(view->redis));
  json_object_set_new(redis, "since_ms", json_integer(view->redis_ms));
  json_object_set_new(root, "redis", redis);
  json_object_set_new(acting, "offered", json_boolean(asker->may_ever));
  json_object_set_new(acting, "allowed", json_boolean(asker->may_act));
  json_object_set_new(acting, "done", action_list(view));
  json_object_set_new(root, "actions", acting);
  json_object_set_new(root, "load", view->load_known ? load_object(&view->load) : json_null());
  json_object_set_new(root, "wait_jobs", json_integer((json_int_t)view->wait_jobs));
  json_object_set_new(root, "workers", view->workers_known ? worker_list(view) : json_null());
  json_object_set_new(root, "workers_all", json_integer((json_int_t)view->workers_all));
  json_object_set_new(root, "letters", view->letters_known ? letter_list(view) : json_null());
  json_object_set_new(root, "captions", caption_list(view));
  json_object_set_new(root, "history", history_object(&view->history, asker->since));
  char *text = json_dumps(root, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(12));
  json_decref(root);
  return text;
}

/* Writes a queue's state as text or JSON. In: tf_status of every server. Out: lines, an object.
 * Text from Redis is cleaned: workers' names and error codes come over the network. */
#include "cli/status_view.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"
#include "cli/text.h"

enum { LABEL_COLUMNS = 10, BAR_COLUMNS = 20, NAME_COLUMNS = 34, LINE_BYTES_MAX = 4096, TEXT_BYTES = 40 };

typedef struct page {
  const tf_status_style *style;
  tf_buffer *out;
  tf_buffer line;
  int lines;
} page;

typedef enum ink { PLAIN, DIM, BOLD, RED, GREEN, YELLOW } ink;

static const char *escape(ink tone) {
  static const char *const codes[] = {"", "\033[2m", "\033[1m", "\033[31m", "\033[32m", "\033[33m"};
  return codes[tone];
}

/* Ends the line that was gathered, cut to the page's width. Tones stand around whole lines or their labels only, so
 * that cutting never cuts an escape. */
static void end_line(page *self, const char *label, ink tone) {
  tf_buffer shown;
  tf_buffer_init(&shown, LINE_BYTES_MAX);
  int room = self->style->columns - 1 - (label ? LABEL_COLUMNS : 0);
  const char *text = self->line.data ? self->line.data : "";
  bool fits = true;
  size_t columns = 0;
  for (const char *at = text; *at; at++) columns += ((unsigned char)*at & 0xC0) != 0x80;
  if (room > 0 && columns > (size_t)room) fits = false;
  if (fits)
    tf_text_clean_append(text, &shown);
  else if (room > 0)
    tf_text_cell(text, (size_t)room, &shown);
  bool color = self->style->color;
  if (self->style->rows == 0 || self->lines < self->style->rows) {
    if (label) {
      tf_buffer_printf(self->out, "%s", color ? escape(DIM) : "");
      tf_text_cell(label, LABEL_COLUMNS - 1, self->out);
      tf_buffer_printf(self->out, "%s ", color ? "\033[0m" : "");
    }
    tf_buffer_printf(self->out, "%s%s%s\n", color ? escape(tone) : "", shown.data ? shown.data : "",
                     color && tone ? "\033[0m" : "");
    self->lines++;
  }
  tf_buffer_free(&shown);
  tf_buffer_clear(&self->line);
}

static void put(page *self, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(page *self, const char *format, ...) {
  char text[LINE_BYTES_MAX];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  tf_buffer_append(&self->line, text, strlen(text));
}

/* -- numbers ------------------------------------------------------------------------------------------------------ */

typedef struct short_text {
  char is[TEXT_BYTES];
} short_text;

static short_text count_of(int64_t value) {
  short_text out;
  tf_count_text(value > 0 ? (uint64_t)value : 0, out.is, sizeof out.is);
  return out;
}

static short_text rate_of(double per_s) {
  short_text out;
  snprintf(out.is, sizeof out.is, per_s < 10 ? "%.2f/s" : per_s < 100 ? "%.1f/s" : "%.0f/s", per_s);
  return out;
}

/* "██████░░░░"; "######...." where the terminal has no UTF-8. */
static void put_bar(page *self, double share, int columns) {
  int full = (int)(share * columns + 0.5);
  for (int i = 0; i < columns; i++)
    put(self, "%s", self->style->utf8 ? (i < full ? "█" : "░") : (i < full ? "#" : "."));
}

/* -- parts -------------------------------------------------------------------------------------------------------- */

/* What the servers of a queue add up to. */
typedef struct sums {
  tf_status all;
  double ended_per_s;
  bool ended_known;
  size_t reachable;
  const tf_status *first; /* the first that is reachable; NULL: none */
} sums;

static sums add_up(const tf_status_server *servers, size_t count) {
  sums out = {.ended_known = true, .all.load_age_ms = -1};
  double shares[TF_QUEUE_COUNTS_MAX] = {0}, weight = 0, budget = 0;
  for (size_t i = 0; i < count; i++) {
    const tf_status *from = servers[i].status;
    tf_status *all = &out.all;
    if (!from->reachable) continue;
    if (!out.first) out.first = from;
    out.reachable++;
    all->depth.waiting += from->depth.waiting;
    all->depth.encoding += from->depth.encoding;
    all->depth.decoding += from->depth.decoding;
    all->interactive += from->interactive;
    all->batch += from->batch;
    all->retrying += from->retrying;
    all->results += from->results;
    all->dead += from->dead;
    all->routers += from->routers;
    if (from->load_age_ms >= 0 && (all->load_age_ms < 0 || from->load_age_ms < all->load_age_ms))
      all->load_age_ms = from->load_age_ms;
    out.ended_known = out.ended_known && servers[i].ended_per_s >= 0;
    out.ended_per_s += servers[i].ended_per_s;
    if (!from->load_known) continue;
    double jobs = from->arrivals_per_s + 0.001; /* an idle server still has a budget to show */
    all->load_known = true;
    all->arrivals_per_s += from->arrivals_per_s;
    all->target_wait_ms = from->target_wait_ms;
    budget += from->budget * jobs;
    weight += jobs;
    if (all->count_count == 0) {
      all->count_count = from->count_count;
      memcpy(all->counts, from->counts, sizeof all->counts);
    }
    for (uint32_t k = 0; k < all->count_count && k < from->count_count; k++) {
      shares[k] += from->mix[k] * jobs;
      /* The workers are the same for all servers: what they carry is not more because there are more queues. */
      if (from->capacity_per_s[k] > all->capacity_per_s[k]) all->capacity_per_s[k] = from->capacity_per_s[k];
    }
    all->encode_wanted += from->encode_wanted;
    all->decode_wanted += from->decode_wanted;
    if (from->encode_workers > all->encode_workers) all->encode_workers = from->encode_workers;
    if (from->decode_workers > all->decode_workers) all->decode_workers = from->decode_workers;
  }
  if (weight > 0) out.all.budget = budget / weight;
  for (uint32_t k = 0; weight > 0 && k < out.all.count_count; k++) out.all.mix[k] = shares[k] / weight;
  return out;
}

static void put_head(page *self, const char *queue, const tf_status_server *servers, size_t count, const sums *sum) {
  put(self, "queue %s on ", queue);
  if (count == 1)
    put(self, "%s", servers[0].place);
  else
    put(self, "%zu servers, %zu of them reachable", count, sum->reachable);
  end_line(self, NULL, BOLD);
  if (!sum->first) return;
  char counts[128];
  const tf_queue_model *model = &sum->first->model;
  tf_queue_counts_text(model->token_counts, model->token_count_count, counts, sizeof counts);
  if (model->live)
    put(self, "%s; %s vision tokens", model->name, counts);
  else
    put(self, "no pair of workers%s", model->name[0] ? " at the moment" : " has been here yet");
  end_line(self, "model", model->live ? PLAIN : YELLOW);
  put(self, "%s%s", count_of(sum->all.routers).is, sum->all.routers ? "" : ": nobody takes jobs from this queue");
  end_line(self, "routers", sum->all.routers ? PLAIN : YELLOW);
}

static void put_depth(page *self, const sums *sum) {
  const tf_status *all = &sum->all;
  put(self, "%s", count_of(all->depth.waiting).is);
  if (all->depth.waiting > 0 || all->retrying > 0)
    put(self, "   of %s interactive, %s batch unfinished; %s to be tried again", count_of(all->interactive).is,
        count_of(all->batch).is, count_of(all->retrying).is);
  end_line(self, "waiting", all->depth.waiting > 0 ? BOLD : PLAIN);
  struct {
    const char *label, *tier;
    int64_t jobs, workers, wanted;
  } tiers[] = {{"encoding", "encoder", all->depth.encoding, all->encode_workers, all->encode_wanted},
               {"decoding", "LLM", all->depth.decoding, all->decode_workers, all->decode_wanted}};
  for (size_t i = 0; i < 2; i++) {
    put(self, "%-9s", count_of(tiers[i].jobs).is);
    if (all->load_known)
      put(self, " on %s %s%s, %s wanted", count_of(tiers[i].workers).is, tiers[i].tier,
          tiers[i].workers == 1 ? "" : "s", count_of(tiers[i].wanted).is);
    end_line(self, tiers[i].label, all->load_known && tiers[i].wanted > tiers[i].workers ? YELLOW : PLAIN);
  }
}

/* "42 s", "3 min", "5 h", "9 days". */
static short_text age_of(int64_t age_ms) {
  static const struct {
    int64_t ms;
    const char *unit;
  } units[] = {{1000, "s"}, {60000, "min"}, {3600000, "h"}, {86400000, "days"}};
  size_t unit = 0;
  while (unit + 1 < sizeof units / sizeof units[0] && age_ms >= 2 * units[unit + 1].ms) unit++;
  short_text out;
  snprintf(out.is, sizeof out.is, "%lld %s", (long long)(age_ms / units[unit].ms), units[unit].unit);
  return out;
}

static void put_load(page *self, const sums *sum) {
  const tf_status *all = &sum->all;
  if (!all->load_known) {
    if (all->load_age_ms < 0) return;
    put(self, "not known: %s; the last numbers are %s old",
        all->routers ? "no router tells it" : "nobody serves this queue", age_of(all->load_age_ms).is);
    end_line(self, "load", YELLOW);
    return;
  }
  put(self, "%s", rate_of(all->arrivals_per_s).is);
  if (sum->ended_known) put(self, "   ended %s", rate_of(sum->ended_per_s).is);
  bool known = all->count_count > 0 && all->capacity_per_s[0] > 0;
  for (uint32_t i = 0; known && i < all->count_count; i++)
    put(self, "%s%s at %u", i == 0 ? "   capacity " : ", ", rate_of(all->capacity_per_s[i]).is, all->counts[i]);
  end_line(self, "arrivals", PLAIN);
  put(self, "%.0f tokens a photo; target wait %.1f s", all->budget, all->target_wait_ms / 1000);
  end_line(self, "budget", PLAIN);
  double shares = 0;
  for (uint32_t i = 0; i < all->count_count; i++) shares += all->mix[i];
  if (shares <= 0) return;
  for (uint32_t i = 0; i < all->count_count; i++) {
    put(self, "%5u ", all->counts[i]);
    put_bar(self, all->mix[i], BAR_COLUMNS);
    put(self, " %3.0f%%", all->mix[i] * 100);
    end_line(self, i == 0 ? "mix" : "", PLAIN);
  }
}

static bool evicts(const tf_status *from) {
  return from->maxmemory_policy[0] && strcmp(from->maxmemory_policy, "noeviction") != 0;
}

static void put_ends(page *self, const tf_status_server *servers, size_t count, const sums *sum) {
  put(self, "%s kept", count_of(sum->all.results).is);
  end_line(self, "results", PLAIN);
  put(self, "%s", count_of(sum->all.dead).is);
  if (sum->all.dead > 0) put(self, "   (tokenflex dead list)");
  end_line(self, "dead", sum->all.dead > 0 ? RED : PLAIN);
  for (size_t s = 0; s < count; s++) {
    const tf_status *from = servers[s].status;
    for (size_t i = 0; i < from->error_count; i++)
      put(self, "%s%s %s", i == 0 ? "" : ", ", from->errors[i].code, count_of(from->errors[i].count).is);
    if (from->error_count > 0) end_line(self, "errors", PLAIN);
    if (!evicts(from)) continue;
    put(self, "its maxmemory-policy is %s, so that it drops jobs and answers once it is full: set noeviction",
        from->maxmemory_policy);
    end_line(self, "Redis", RED);
  }
}

static void put_servers(page *self, const tf_status_server *servers, size_t count) {
  put(self, "%-40s %9s %9s %9s %7s", "SERVER", "WAITING", "ENCODING", "DECODING", "DEAD");
  end_line(self, NULL, DIM);
  for (size_t i = 0; i < count; i++) {
    const tf_status *from = servers[i].status;
    tf_text_cell(servers[i].place, 40, &self->line);
    if (from->reachable)
      put(self, " %9s %9s %9s %7s", count_of(from->depth.waiting).is, count_of(from->depth.encoding).is,
          count_of(from->depth.decoding).is, count_of(from->dead).is);
    else
      put(self, " not reachable: %s", from->problem);
    end_line(self, NULL, from->reachable ? PLAIN : RED);
  }
}

static bool shown_before(const tf_status_server *servers, size_t server, const char *instance) {
  for (size_t s = 0; s < server; s++)
    for (size_t i = 0; i < servers[s].status->worker_count; i++)
      if (strcmp(servers[s].status->workers[i].instance, instance) == 0) return true;
  return false;
}

static void put_worker(page *self, const tf_status_worker *worker) {
  char jobs[TEXT_BYTES], kv[TEXT_BYTES] = "-", service[TEXT_BYTES] = "-";
  snprintf(jobs, sizeof jobs, "%lld/%lld", (long long)worker->jobs_out, (long long)worker->jobs_max);
  if (worker->kv_max > 0) snprintf(kv, sizeof kv, "%.0f%%", 100.0 * (double)worker->kv_out / (double)worker->kv_max);
  if (worker->service_ms > 0)
    snprintf(service, sizeof service, worker->service_ms < 10 ? "%.1f" : "%.0f", worker->service_ms);
  tf_text_cell(worker->instance, NAME_COLUMNS, &self->line);
  put(self, " %-8s %9s %5s %7s  ", worker->role, jobs, kv, service);
  bool gone = tf_status_worker_is_gone(worker);
  if (gone)
    put(self, "gone");
  else if (worker->draining)
    put(self, "draining");
  else
    put(self, "%.1f s", (double)worker->silent_ms / 1000);
  end_line(self, NULL, gone ? DIM : worker->draining ? YELLOW : PLAIN);
}

static void put_workers(page *self, const tf_status_server *servers, size_t count) {
  size_t all = 0, told = 0;
  for (size_t s = 0; s < count; s++)
    for (size_t i = 0; i < servers[s].status->worker_count; i++)
      all += !shown_before(servers, s, servers[s].status->workers[i].instance);
  if (all == 0) return;
  end_line(self, NULL, PLAIN);
  put(self, "%-*s %-8s %9s %5s %7s  %s", NAME_COLUMNS, "WORKER", "TIER", "JOBS", "KV", "MS/JOB", "HEARD");
  end_line(self, NULL, DIM);
  for (size_t s = 0; s < count; s++) {
    for (size_t i = 0; i < servers[s].status->worker_count; i++) {
      const tf_status_worker *worker = &servers[s].status->workers[i];
      if (shown_before(servers, s, worker->instance)) continue;
      bool last_line = self->style->rows > 0 && self->lines >= self->style->rows - 1;
      if (last_line && told + 1 < all) {
        put(self, "... and %zu more workers", all - told);
        end_line(self, NULL, DIM);
        return;
      }
      put_worker(self, worker);
      told++;
    }
  }
}

void tf_status_text(const char *queue, const tf_status_server *servers, size_t count, const tf_status_style *style,
                    tf_buffer *out) {
  page view = {.style = style, .out = out};
  tf_buffer_init(&view.line, LINE_BYTES_MAX);
  sums sum = add_up(servers, count);
  put_head(&view, queue, servers, count, &sum);
  if (sum.first) {
    put_depth(&view, &sum);
    put_load(&view, &sum);
    put_ends(&view, servers, count, &sum);
  }
  if (count > 1) {
    end_line(&view, NULL, PLAIN);
    put_servers(&view, servers, count);
  } else if (!sum.first) {
    put(&view, "%s", servers[0].status->problem);
    end_line(&view, NULL, RED);
  }
  put_workers(&view, servers, count);
  tf_buffer_free(&view.line);
}

/* -- JSON --------------------------------------------------------------------------------------------------------- */

static json_t *clean_string(const char *text) {
  tf_buffer clean;
  tf_buffer_init(&clean, LINE_BYTES_MAX);
  tf_text_utf8(text, &clean);
  json_t *string = json_string(clean.data ? clean.data : "");
  tf_buffer_free(&clean);
  return string;
}

static json_t *numbers_of(const double *values, uint32_t count) {
  json_t *out = json_array();
  for (uint32_t i = 0; i < count; i++) json_array_append_new(out, json_real(values[i]));
  return out;
}

static json_t *counts_of(const uint32_t *values, uint32_t count) {
  json_t *out = json_array();
  for (uint32_t i = 0; i < count; i++) json_array_append_new(out, json_integer(values[i]));
  return out;
}

static json_t *load_json(const tf_status *from) {
  if (!from->load_known) return json_null();
  json_t *out = json_object();
  json_object_set_new(out, "arrivals_per_s", json_real(from->arrivals_per_s));
  json_object_set_new(out, "budget", json_real(from->budget));
  json_object_set_new(out, "target_wait_ms", json_real(from->target_wait_ms));
  json_object_set_new(out, "counts", counts_of(from->counts, from->count_count));
  json_object_set_new(out, "mix", numbers_of(from->mix, from->count_count));
  json_object_set_new(out, "capacity_per_s", numbers_of(from->capacity_per_s, from->count_count));
  json_object_set_new(out, "encode_workers", json_integer(from->encode_workers));
  json_object_set_new(out, "decode_workers", json_integer(from->decode_workers));
  json_object_set_new(out, "encode_wanted", json_integer(from->encode_wanted));
  json_object_set_new(out, "decode_wanted", json_integer(from->decode_wanted));
  return out;
}

static json_t *workers_json(const tf_status *from) {
  json_t *out = json_array();
  for (size_t i = 0; i < from->worker_count; i++) {
    const tf_status_worker *worker = &from->workers[i];
    json_t *one = json_object();
    json_object_set_new(one, "instance", clean_string(worker->instance));
    json_object_set_new(one, "role", clean_string(worker->role));
    json_object_set_new(one, "model", clean_string(worker->model));
    json_object_set_new(one, "pair_hash", clean_string(worker->pair_hash));
    json_object_set_new(one, "version", clean_string(worker->version));
    json_object_set_new(one, "jobs_out", json_integer(worker->jobs_out));
    json_object_set_new(one, "jobs_max", json_integer(worker->jobs_max));
    json_object_set_new(one, "kv_out", json_integer(worker->kv_out));
    json_object_set_new(one, "kv_max", json_integer(worker->kv_max));
    json_object_set_new(one, "service_ms", worker->service_ms > 0 ? json_real(worker->service_ms) : json_null());
    json_object_set_new(one, "silent_ms", json_integer(worker->silent_ms));
    json_object_set_new(one, "gone", json_boolean(tf_status_worker_is_gone(worker)));
    json_object_set_new(one, "draining", json_boolean(worker->draining));
    json_array_append_new(out, one);
  }
  return out;
}

static json_t *server_json(const tf_status_server *server) {
  const tf_status *from = server->status;
  json_t *out = json_object(), *errors = json_object();
  json_object_set_new(out, "redis", clean_string(server->place));
  json_object_set_new(out, "reachable", json_boolean(from->reachable));
  if (!from->reachable) {
    json_object_set_new(out, "problem", clean_string(from->problem));
    json_decref(errors);
    return out;
  }
  const tf_queue_model *model = &from->model;
  json_object_set_new(out, "model", model->live ? clean_string(model->name) : json_null());
  json_object_set_new(out, "token_counts", counts_of(model->token_counts, model->token_count_count));
  const struct {
    const char *name;
    int64_t value;
  } numbers[] = {{"routers", from->routers},
                 {"waiting", from->depth.waiting},
                 {"encoding", from->depth.encoding},
                 {"decoding", from->depth.decoding},
                 {"interactive", from->interactive},
                 {"batch", from->batch},
                 {"retrying", from->retrying},
                 {"results", from->results},
                 {"dead", from->dead},
                 {"ended", from->ended}};
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
    json_object_set_new(out, numbers[i].name, json_integer(numbers[i].value));
  for (size_t i = 0; i < from->error_count; i++) {
    json_t *code = clean_string(from->errors[i].code);
    json_object_set_new(errors, json_string_value(code), json_integer(from->errors[i].count));
    json_decref(code);
  }
  json_object_set_new(out, "errors", errors);
  const char *policy = from->maxmemory_policy;
  json_object_set_new(out, "maxmemory_policy", policy[0] ? clean_string(policy) : json_null());
  json_object_set_new(out, "load", load_json(from));
  json_object_set_new(out, "workers", workers_json(from));
  return out;
}

bool tf_status_json(const char *queue, const tf_status_server *servers, size_t count, tf_buffer *out) {
  json_t *root = json_object(), *list = json_array();
  json_object_set_new(root, "queue", json_string(queue));
  for (size_t i = 0; i < count; i++) json_array_append_new(list, server_json(&servers[i]));
  json_object_set_new(root, "servers", list);
  char *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(10));
  json_decref(root);
  if (!text) return false;
  tf_buffer_append(out, text, strlen(text));
  tf_buffer_append(out, "\n", 1);
  free(text);
  return !out->overflow;
}

/* The status page over HTTP. In: requests, on the endpoint's thread. Out: answers that wait for nobody.
 * Who may is page_access.c's to say; what is shown comes as a copy of the board; what is asked for goes to the feed. */
#include "router/page.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/board_json.h"
#include "status_html.h"

struct tf_page {
  tf_page_parts parts;
  tf_metric *refused, *asked;
};

static void answer_text(tf_health_answer *answer, unsigned status, const char *text) {
  answer->status = status;
  answer->body = text;
  answer->size = strlen(text);
}

static void refuse(tf_page *self, tf_health_answer *answer, tf_page_verdict verdict) {
  tf_metric_add(self->refused, 1);
  answer_text(answer, 403, tf_page_verdict_text(verdict));
}

static void answer_page(tf_health_answer *answer) {
  answer_text(answer, 200, tf_status_page);
  answer->type = "text/html; charset=utf-8";
  answer->policy = tf_status_policy;
}

static void answer_state(tf_page *self, const tf_health_request *request, tf_health_answer *answer) {
  const char *since = tf_health_argument(request, "since");
  tf_board_asker asker = {.queue = self->parts.queue,
                          .instance = self->parts.instance,
                          .since = since ? strtoull(since, NULL, 10) : 0,
                          .may_ever = self->parts.token->size > 0,
                          .may_act = tf_page_may_act(self->parts.token, tf_health_header(request, "Authorization")) ==
                                     TF_PAGE_ALLOWED};
  tf_board_view *view = tf_board_look(self->parts.board);
  char *text = view ? tf_board_json(view, &asker) : NULL;
  tf_board_view_free(&view);
  if (!text) {
    answer_text(answer, 500, "out of memory\n");
    return;
  }
  answer_text(answer, 200, text);
  answer->type = "application/json";
  answer->owned = true;
}

/* "/letters/1712345678901-0/retry". False: not such a path. */
static bool read_action(const char *path, char sid[TF_LETTER_SID_BYTES], bool *retry) {
  static const char start[] = "/letters/";
  if (strncmp(path, start, sizeof start - 1) != 0) return false;
  const char *from = path + sizeof start - 1, *end = strchr(from, '/');
  if (!end || end - from >= TF_LETTER_SID_BYTES) return false;
  memcpy(sid, from, (size_t)(end - from));
  sid[end - from] = '\0';
  *retry = strcmp(end, "/retry") == 0;
  return (*retry || strcmp(end, "/drop") == 0) && tf_letter_is_sid(sid);
}

static void answer_action(tf_page *self, const tf_health_request *request, const char *sid, bool retry,
                          tf_health_answer *answer) {
  tf_page_verdict verdict = tf_page_may_act(self->parts.token, tf_health_header(request, "Authorization"));
  uint64_t number;
  char *text = NULL;
  if (strcmp(request->method, "POST") != 0) {
    answer_text(answer, 405, "only POST\n");
    answer->allow = "POST";
  } else if (verdict != TF_PAGE_ALLOWED) {
    refuse(self, answer, verdict);
  } else if (!tf_board_feed_act(self->parts.feed, sid, retry, &number)) {
    answer_text(answer, 503, "too much waits to be done, try again\n");
  } else if (asprintf(&text, "{\"request\":%llu}\n", (unsigned long long)number) < 0) {
    answer_text(answer, 500, "out of memory\n");
  } else {
    tf_metric_add(self->asked, 1);
    answer_text(answer, 202, text);
    answer->type = "application/json";
    answer->owned = true;
  }
}

static void on_request(void *context, const tf_health_request *request, tf_health_answer *answer) {
  tf_page *self = context;
  char sid[TF_LETTER_SID_BYTES];
  bool retry, page = strcmp(request->path, "/") == 0, state = strcmp(request->path, "/state.json") == 0;
  if (read_action(request->path, sid, &retry)) {
    answer_action(self, request, sid, retry, answer);
    return;
  }
  if (!page && !state) return;
  tf_page_verdict verdict = tf_page_may_read(self->parts.token, request->loopback, tf_health_header(request, "Host"),
                                             tf_health_header(request, "Authorization"));
  if (strcmp(request->method, "GET") != 0) {
    answer_text(answer, 405, "only GET and HEAD\n");
    answer->allow = "GET, HEAD";
  } else if (verdict != TF_PAGE_ALLOWED) {
    refuse(self, answer, verdict);
  } else if (page) {
    answer_page(answer);
  } else {
    answer_state(self, request, answer);
  }
}

tf_code tf_page_new(const tf_page_parts *parts, tf_page **out) {
  tf_page *self = calloc(1, sizeof *self);
  if (!self) return TF_ERR_OUT_OF_MEMORY;
  self->parts = *parts;
  self->refused = tf_metrics_counter(parts->metrics, "tokenflex_page_refused_total", "",
                                     "Requests for the status page, or through it, that were refused");
  self->asked = tf_metrics_counter(parts->metrics, "tokenflex_page_actions_total", "",
                                   "Dead letters that were to be put back or dropped through the status page");
  tf_health_serve(parts->health, on_request, self);
  *out = self;
  return TF_OK;
}

void tf_page_free(tf_page **self) {
  if (!self || !*self) return;
  tf_health_serve((*self)->parts.health, NULL, NULL);
  free(*self);
  *self = NULL;
}

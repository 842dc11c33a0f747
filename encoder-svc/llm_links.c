/* An encoder's connections to LLM workers. In: endpoints that jobs name. Out: one DEALER each, counted users.
 * A tensor for a worker that is not there waits in its socket; tf_llm_links_suspect throws it away when the
 * acknowledgement is overdue, so that memory does not wait for a dead worker. */
#include "encoder-svc/llm_links.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/wire_watch.h"

typedef struct llm_link {
  char *endpoint; /* NULL: free slot */
  void *socket;   /* NULL for a moment where connecting anew failed */
  tf_wire_watch *watch;
  size_t users;
  int64_t used_ms, heard_ms;
} llm_link;

struct tf_llm_links {
  tf_llm_links_config config;
  llm_link items[TF_LLM_LINKS_MAX];
};

tf_llm_links *tf_llm_links_new(const tf_llm_links_config *config) {
  tf_llm_links *self = calloc(1, sizeof *self);
  if (self == NULL) return NULL;
  self->config = *config;
  return self;
}

static void close_socket(tf_llm_links *self, llm_link *link) {
  if (link->socket == NULL) return;
  tf_wire_watch_free(&link->watch);
  tf_reactor_remove_socket(self->config.reactor, link->socket);
  zmq_close(link->socket); /* linger 0: what is queued goes with it */
  link->socket = NULL;
}

static void close_link(tf_llm_links *self, llm_link *link) {
  close_socket(self, link);
  free(link->endpoint);
  *link = (llm_link){.endpoint = NULL};
}

void tf_llm_links_free(tf_llm_links **self) {
  if (*self == NULL) return;
  for (size_t i = 0; i < TF_LLM_LINKS_MAX; i++) close_link(*self, &(*self)->items[i]);
  free(*self);
  *self = NULL;
}

static llm_link *find(tf_llm_links *self, const char *endpoint) {
  for (size_t i = 0; i < TF_LLM_LINKS_MAX; i++) {
    llm_link *link = &self->items[i];
    if (link->endpoint != NULL && strcmp(link->endpoint, endpoint) == 0) return link;
  }
  return NULL;
}

static tf_code open_socket(tf_llm_links *self, llm_link *link, tf_error *error) {
  const tf_llm_links_config *config = &self->config;
  void *socket = tf_wire_socket(config->zmq_context, ZMQ_DEALER);
  if (socket == NULL) return tf_fail(error, TF_ERR_WORKER_UNREACHABLE, "no socket left for an LLM worker");
  if (tf_curve_connect(config->curve, socket, error) != TF_OK) {
    zmq_close(socket);
    return TF_ERR_WORKER_UNREACHABLE;
  }
  link->watch = tf_wire_watch_new(config->zmq_context, config->reactor, config->metrics, socket, link->endpoint, false,
                                  config->curve != NULL);
  if (zmq_connect(socket, link->endpoint) != 0 ||
      tf_reactor_add_socket(config->reactor, socket, config->on_socket, config->context) != TF_OK) {
    int reason = zmq_errno();
    tf_wire_watch_free(&link->watch);
    zmq_close(socket);
    return tf_fail(error, TF_ERR_WORKER_UNREACHABLE, "LLM worker %.300s: %s", link->endpoint, zmq_strerror(reason));
  }
  link->socket = socket;
  return TF_OK;
}

/* A free slot, or that of the link that nobody has used for the longest time; NULL: all are in use. */
static llm_link *take_slot(tf_llm_links *self) {
  llm_link *oldest = NULL;
  for (size_t i = 0; i < TF_LLM_LINKS_MAX; i++) {
    llm_link *link = &self->items[i];
    if (link->endpoint == NULL) return link;
    if (link->users == 0 && (oldest == NULL || link->used_ms < oldest->used_ms)) oldest = link;
  }
  if (oldest != NULL) close_link(self, oldest);
  return oldest;
}

tf_code tf_llm_links_acquire(tf_llm_links *self, const char *endpoint, tf_error *error) {
  llm_link *link = find(self, endpoint);
  if (link == NULL) {
    link = take_slot(self);
    if (link == NULL)
      return tf_fail(error, TF_ERR_WORKER_UNREACHABLE, "all %d links to LLM workers are in use", TF_LLM_LINKS_MAX);
    link->endpoint = strdup(endpoint);
    if (link->endpoint == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a link");
  }
  if (link->socket == NULL) {
    tf_code code = open_socket(self, link, error);
    if (code != TF_OK) {
      if (link->users == 0) close_link(self, link);
      return code;
    }
  }
  link->users++;
  link->used_ms = tf_now_ms();
  return TF_OK;
}

void tf_llm_links_release(tf_llm_links *self, const char *endpoint) {
  llm_link *link = find(self, endpoint);
  if (link == NULL || link->users == 0) return;
  link->users--;
  link->used_ms = tf_now_ms();
}

tf_code tf_llm_links_send(tf_llm_links *self, const char *endpoint, const tf_message *message, zmq_msg_t *payload,
                          tf_error *error) {
  llm_link *link = find(self, endpoint);
  if (link == NULL || link->socket == NULL) {
    return tf_fail(error, TF_ERR_WORKER_UNREACHABLE, "no link to LLM worker %.300s", endpoint);
  }
  return tf_wire_send(link->socket, NULL, 0, message, payload, error);
}

void tf_llm_links_suspect(tf_llm_links *self, const char *endpoint, int64_t since_ms) {
  llm_link *link = find(self, endpoint);
  if (link == NULL || link->heard_ms >= since_ms) return;
  tf_error error = {.text = ""};
  close_socket(self, link);
  tf_code code = open_socket(self, link, &error);
  tf_log_warn("llm_silent", TF_STR("endpoint", endpoint), TF_STR("reconnect", tf_code_name(code)));
}

void tf_llm_links_heard(tf_llm_links *self, const void *socket) {
  for (size_t i = 0; i < TF_LLM_LINKS_MAX; i++) {
    if (self->items[i].endpoint != NULL && self->items[i].socket == socket) self->items[i].heard_ms = tf_now_ms();
  }
}

void tf_llm_links_expire(tf_llm_links *self) {
  int64_t now_ms = tf_now_ms();
  for (size_t i = 0; i < TF_LLM_LINKS_MAX; i++) {
    llm_link *link = &self->items[i];
    if (link->endpoint != NULL && link->users == 0 && now_ms - link->used_ms > TF_LLM_LINK_IDLE_MS) {
      close_link(self, link);
    }
  }
}

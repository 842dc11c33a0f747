/* CURVE: keys onto sockets, and the thread that decides whose keys are welcome.
 * In: key files; ZAP requests of libzmq (RFC 27) over inproc. Out: 200 or 400 for each, a log line for refusals.
 * Without an answering ZAP thread libzmq lets every key in: it is there before the first bind, and ends with the
 * context. */
#include "proto/curve.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/wire.h"

enum {
  ZAP_FRAMES = 7, /* version, request id, domain, address, identity, mechanism, public key */
  ZAP_TEXT_BYTES = 256,
  ZAP_WAIT_MS = 1000,
  REFUSALS_EVERY_MS = 1000, /* a line about refusals; those between are counted */
  ALLOW_LOOK_MS = 500       /* how often the file of allowed keys is looked at */
};
static const char zap_domain[] = "tokenflex";

struct tf_curve {
  tf_curve_pair pair;
  char server_key[TF_CURVE_KEY_TEXT_BYTES];
  char *allow_path; /* NULL: our own key alone */
  void *zap;        /* REP socket; the thread's own once it runs */
  pthread_t thread;
  bool running;
  tf_metric *refused;
  /* The thread's own. */
  uint8_t own_key[TF_CURVE_KEY_BYTES], (*allowed)[TF_CURVE_KEY_BYTES];
  size_t allowed_count;
  struct timespec allow_changed;
  off_t allow_size;
  ino_t allow_inode;
  int64_t allow_looked_ms, refusal_told_ms;
  uint64_t refusals_untold;
};

/* ---- who may connect ---- */

/* Remembers which version of the file it is; false where that was known already. */
static bool allow_is_new(tf_curve *self) {
  struct stat status;
  if (stat(self->allow_path, &status) != 0) return false; /* while it is being replaced the old list stays */
  bool same = status.st_mtim.tv_sec == self->allow_changed.tv_sec &&
              status.st_mtim.tv_nsec == self->allow_changed.tv_nsec && status.st_size == self->allow_size &&
              status.st_ino == self->allow_inode;
  self->allow_changed = status.st_mtim;
  self->allow_size = status.st_size;
  self->allow_inode = status.st_ino;
  return !same;
}

static tf_code load_allowed(tf_curve *self, tf_error *error) {
  uint8_t(*keys)[TF_CURVE_KEY_BYTES];
  size_t count;
  (void)allow_is_new(self);
  tf_code code = tf_curve_allowed_read(self->allow_path, &keys, &count, error);
  if (code != TF_OK) return code;
  free(self->allowed);
  self->allowed = keys;
  self->allowed_count = count;
  return TF_OK;
}

static void refresh_allowed(tf_curve *self) {
  int64_t now_ms = tf_now_ms();
  if (!self->allow_path || now_ms - self->allow_looked_ms < ALLOW_LOOK_MS) return;
  self->allow_looked_ms = now_ms;
  if (!allow_is_new(self)) return;
  tf_error error;
  if (load_allowed(self, &error) == TF_OK)
    tf_log_info("curve_allow_read", TF_STR("file", self->allow_path), TF_INT("keys", self->allowed_count));
  else
    tf_log_error("curve_allow_kept", TF_STR("reason", error.text), TF_INT("keys", self->allowed_count));
}

/* key: public, so that comparing it needs no constant time. */
static bool is_allowed(const tf_curve *self, const uint8_t *key) {
  if (memcmp(key, self->own_key, TF_CURVE_KEY_BYTES) == 0) return true;
  for (size_t i = 0; i < self->allowed_count; i++)
    if (memcmp(key, self->allowed[i], TF_CURVE_KEY_BYTES) == 0) return true;
  return false;
}

/* ---- ZAP ---- */

typedef struct zap_request {
  size_t count; /* frames, also those past the last one below */
  char text[ZAP_FRAMES][ZAP_TEXT_BYTES];
  size_t sizes[ZAP_FRAMES]; /* a frame that is longer than its place keeps its true size */
} zap_request;

static bool read_request(void *socket, zap_request *out) {
  memset(out, 0, sizeof *out);
  int more = 1;
  while (more) {
    char spare[ZAP_TEXT_BYTES];
    char *place = out->count < ZAP_FRAMES ? out->text[out->count] : spare;
    int size = zmq_recv(socket, place, ZAP_TEXT_BYTES - 1, 0);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return false;
    if (out->count < ZAP_FRAMES) out->sizes[out->count] = (size_t)size;
    out->count++;
    size_t more_bytes = sizeof more;
    if (zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &more_bytes) != 0) return false;
  }
  return true;
}

static void answer(void *socket, const zap_request *request, bool welcome) {
  const char *parts[] = {"1.0", request->text[1], welcome ? "200" : "400", welcome ? "OK" : "key not allowed", "", ""};
  size_t sizes[] = {3, request->sizes[1], 3, welcome ? 2 : 15, 0, 0};
  if (sizes[1] > ZAP_TEXT_BYTES - 1) sizes[1] = 0;
  for (size_t i = 0; i < 6; i++) (void)zmq_send(socket, parts[i], sizes[i], i < 5 ? ZMQ_SNDMORE : 0);
}

static void tell_refusal(tf_curve *self, const zap_request *request, const char *key) {
  tf_metric_add(self->refused, 1);
  int64_t now_ms = tf_now_ms();
  if (self->refusal_told_ms != 0 && now_ms - self->refusal_told_ms < REFUSALS_EVERY_MS) {
    self->refusals_untold++;
    return;
  }
  self->refusal_told_ms = now_ms;
  tf_log_warn("curve_refused", TF_STR("address", request->text[3]), TF_STR("key", key),
              TF_STR("reason", "this public key is not in --curve-allow"), TF_INT("untold", self->refusals_untold));
  self->refusals_untold = 0;
}

static void judge(tf_curve *self, const zap_request *request) {
  bool whole = request->count == ZAP_FRAMES && strcmp(request->text[0], "1.0") == 0 &&
               strcmp(request->text[5], "CURVE") == 0 && request->sizes[6] == TF_CURVE_KEY_BYTES;
  refresh_allowed(self);
  const uint8_t *key = (const uint8_t *)request->text[6];
  bool welcome = whole && is_allowed(self, key);
  char text[TF_CURVE_KEY_TEXT_BYTES] = "";
  if (!welcome && whole) zmq_z85_encode(text, key, TF_CURVE_KEY_BYTES);
  answer(self->zap, request, welcome);
  if (!welcome) tell_refusal(self, request, text);
}

/* Until the context is shut down. */
static void *zap_main(void *context) {
  tf_curve *self = context;
  for (;;) {
    zap_request request;
    if (read_request(self->zap, &request))
      judge(self, &request);
    else if (zmq_errno() == ETERM)
      break;
  }
  zmq_close(self->zap);
  return NULL;
}

tf_code tf_curve_guard(tf_curve *self, void *zmq_context, tf_metrics *metrics, tf_error *error) {
  if (!self || self->running) return TF_OK;
  self->refused = tf_metrics_counter(metrics, "tokenflex_curve_refused_total", "",
                                     "Connections refused: their public key is not allowed");
  int linger_ms = 0, wait_ms = ZAP_WAIT_MS;
  self->zap = zmq_socket(zmq_context, ZMQ_REP);
  if (!self->zap || zmq_setsockopt(self->zap, ZMQ_LINGER, &linger_ms, sizeof linger_ms) != 0 ||
      zmq_setsockopt(self->zap, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms) != 0 ||
      zmq_setsockopt(self->zap, ZMQ_SNDTIMEO, &wait_ms, sizeof wait_ms) != 0 ||
      zmq_bind(self->zap, "inproc://zeromq.zap.01") != 0 || pthread_create(&self->thread, NULL, zap_main, self) != 0) {
    if (self->zap) zmq_close(self->zap);
    self->zap = NULL;
    return tf_fail(error, TF_ERR_INTERNAL, "can not start the thread that checks CURVE keys");
  }
  self->running = true;
  return TF_OK;
}

/* ---- keys onto sockets ---- */

static tf_code read_keys(tf_curve *self, const tf_curve_options *options, tf_error *error) {
  tf_error why;
  if (tf_curve_pair_read(options->key, &self->pair, &why) != TF_OK)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--curve-key: %s", why.text);
  zmq_z85_decode(self->own_key, self->pair.public_key);
  memcpy(self->server_key, self->pair.public_key, sizeof self->server_key);
  if (options->server && tf_curve_public_read(options->server, self->server_key, &why) != TF_OK)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--curve-server: %s", why.text);
  if (!options->allow) return TF_OK;
  self->allow_path = strdup(options->allow);
  if (!self->allow_path) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for keys");
  if (load_allowed(self, &why) != TF_OK) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--curve-allow: %s", why.text);
  return TF_OK;
}

tf_code tf_curve_new(const tf_curve_options *options, tf_curve **out, tf_error *error) {
  *out = NULL;
  if (!options->key) {
    if (!options->server && !options->allow) return TF_OK;
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--%s needs --curve-key, the file with this process's own keys",
                   options->server ? "curve-server" : "curve-allow");
  }
  if (!zmq_has("curve")) return tf_fail(error, TF_ERR_UNSUPPORTED, "--curve-key: this ZeroMQ library has no CURVE");
  tf_curve *self = calloc(1, sizeof *self);
  if (!self) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for keys");
  tf_code code = read_keys(self, options, error);
  if (code == TF_OK)
    *out = self;
  else
    tf_curve_free(&self);
  return code;
}

void tf_curve_free(tf_curve **self_in) {
  tf_curve *self = *self_in;
  *self_in = NULL;
  if (!self) return;
  if (self->running) pthread_join(self->thread, NULL);
  free(self->allowed);
  free(self->allow_path);
  explicit_bzero(self, sizeof *self);
  free(self);
}

static bool set_text(void *socket, int option, const char *text) {
  return zmq_setsockopt(socket, option, text, strlen(text)) == 0;
}

tf_code tf_curve_bind(const tf_curve *self, void *socket, tf_error *error) {
  if (!self) return TF_OK;
  int on = 1;
  if (self->running && zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &on, sizeof on) == 0 &&
      set_text(socket, ZMQ_CURVE_SECRETKEY, self->pair.secret_key) && set_text(socket, ZMQ_ZAP_DOMAIN, zap_domain))
    return TF_OK;
  return tf_fail(error, TF_ERR_INTERNAL, "can not put CURVE keys on a socket: %s", zmq_strerror(zmq_errno()));
}

tf_code tf_curve_connect(const tf_curve *self, void *socket, tf_error *error) {
  if (!self) return TF_OK;
  if (set_text(socket, ZMQ_CURVE_SERVERKEY, self->server_key) &&
      set_text(socket, ZMQ_CURVE_PUBLICKEY, self->pair.public_key) &&
      set_text(socket, ZMQ_CURVE_SECRETKEY, self->pair.secret_key))
    return TF_OK;
  return tf_fail(error, TF_ERR_INTERNAL, "can not put CURVE keys on a socket: %s", zmq_strerror(zmq_errno()));
}

tf_code tf_curve_check_bind(const tf_curve_options *options, const char *option, const char *endpoint, bool insecure,
                            tf_error *error) {
  tf_error why;
  if (tf_wire_endpoint_check(endpoint, true, &why) != TF_OK)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--%s: %s", option, why.text);
  if (options->key || insecure || tf_wire_endpoint_is_local(endpoint)) return TF_OK;
  return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                 "--%s %.200s: other machines reach this address; that needs --curve-key (`tokenflex keygen` makes "
                 "one), or --insecure where the network itself is trusted",
                 option, endpoint);
}

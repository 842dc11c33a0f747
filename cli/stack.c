/* Starts and stops the stack. In: a configuration. Out: four (or, with a Redis of the user's, three) processes.
 * Encoder and LLM take the longest to load, so that they are started before Redis is waited for.
 * Stopping goes the other way of a job: the router claims no more and hands back, the workers finish, Redis goes last.
 */
#include "cli/stack.h"

#include "cli/child.h"
#include "cli/command.h"
#include "cli/jsonl.h"
#include "cli/rundir.h"
#include "common/clock.h"
#include "common/redis.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
  REDIS_START_MS_MAX = 10000,
  STOP_MARGIN_MS = 2000,
  REDIS_STOP_MS_MAX = 2000,
  MEMORY_MIB_MAX = 1024,
  CLIENTS_MAX = 10000,
  FILES_MIN = 64,
  REDIS_FILES = 32, /* that Redis keeps for itself, besides a file for each client */
  DEDUPE_WINDOW_S = 600,
  RESTART_MS_MIN = 5000 /* between two starts of a worker that ends in order */
};
enum { ROUTER, ENCODER, LLM, REDIS, CHILD_COUNT };

struct tf_stack {
  tf_rundir folder;
  tf_stack_config config;         /* what it names is the caller's */
  tf_child children[CHILD_COUNT]; /* pid 0: not one of ours */
  int64_t started_ms[CHILD_COUNT];
  bool told[CHILD_COUNT]; /* that its end was an orderly one */
  char redis_url[1024];
  char endpoint[TF_RUNDIR_BYTES_MAX + 32];
};

/* -- argument vectors ------------------------------------------------------------------------------------------- */

typedef struct arguments {
  char *items[TF_CHILD_ARGUMENTS_MAX + 1];
  size_t count;
  bool overflow;
} arguments;

static void add(arguments *self, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(arguments *self, const char *format, ...) {
  va_list values;
  va_start(values, format);
  char *text = NULL;
  if (self->count == TF_CHILD_ARGUMENTS_MAX || vasprintf(&text, format, values) < 0)
    self->overflow = true;
  else
    self->items[self->count++] = text;
  va_end(values);
}

static void add_option(arguments *self, const char *name, const char *value) {
  add(self, "--%s", name);
  add(self, "%s", value);
}

static void free_arguments(arguments *self) {
  for (size_t i = 0; i < self->count; i++) free(self->items[i]);
  memset(self, 0, sizeof *self);
}

static tf_code start_program(tf_stack *self, int which, const char *name, arguments *argv, tf_error *error) {
  char log_path[TF_RUNDIR_BYTES_MAX + 32];
  snprintf(log_path, sizeof log_path, "%s/%s.log", self->folder.path, name);
  bool to_file = !self->config.served || which == REDIS;
  tf_code code = argv->overflow
                     ? tf_fail(error, TF_ERR_OUT_OF_MEMORY, "too many arguments for the %s", name)
                     : tf_child_start(&self->children[which], name, argv->items, to_file ? log_path : NULL, error);
  self->started_ms[which] = tf_now_ms();
  self->told[which] = false;
  free_arguments(argv);
  return code;
}

static tf_code begin_arguments(arguments *argv, const char *program, tf_error *error) {
  char path[PATH_MAX];
  memset(argv, 0, sizeof *argv);
  tf_code code = tf_child_find(program, path, sizeof path, error);
  if (!code) add(argv, "%s", path);
  return code;
}

/* -- the four --------------------------------------------------------------------------------------------------- */

/* As many as the limit of open files allows: Redis asks for more than it needs where it is not told. */
static tf_code clients_max(int *out, tf_error *error) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files)) return tf_fail(error, TF_ERR_IO, "getrlimit: %s", strerror(errno));
  if (files.rlim_max < FILES_MIN)
    return tf_fail(error, TF_ERR_IO, "a process may have %llu files open here (ulimit -n); %d are needed",
                   (unsigned long long)files.rlim_max, FILES_MIN);
  bool enough = files.rlim_max == RLIM_INFINITY || files.rlim_max >= CLIENTS_MAX + REDIS_FILES;
  *out = enough ? CLIENTS_MAX : (int)files.rlim_max - REDIS_FILES;
  return TF_OK;
}

static tf_code start_redis(tf_stack *self, tf_error *error) {
  arguments argv;
  int clients = 0;
  tf_code code = clients_max(&clients, error);
  if (code) return code;
  if (begin_arguments(&argv, "redis-server", error))
    return tf_fail(error, TF_ERR_IO, "redis-server is not installed (Debian: apt install redis-server)");
  add_option(&argv, "port", "0");
  add(&argv, "--unixsocket");
  add(&argv, "%s/redis.sock", self->folder.path);
  add_option(&argv, "unixsocketperm", "700");
  add_option(&argv, "dir", self->folder.path);
  add_option(&argv, "save", "");
  add_option(&argv, "appendonly", "no");
  add_option(&argv, "maxmemory-policy", "noeviction");
  add(&argv, "--maxmemory");
  add(&argv, "%dmb", MEMORY_MIB_MAX);
  add(&argv, "--maxclients");
  add(&argv, "%d", clients);
  add_option(&argv, "daemonize", "no");
  add_option(&argv, "loglevel", "warning");
  add_option(&argv, "set-proc-title", "no");
  return start_program(self, REDIS, "redis-server", &argv, error);
}

static void add_common(const tf_stack_config *config, arguments *argv) {
  add_option(argv, "log-level", config->log_level);
  if (!config->served || !config->health) add_option(argv, "health", "off");
  add(argv, "--drain-timeout-s");
  add(argv, "%lld", (long long)config->drain_timeout_s);
}

/* connects, binds: which of the two options the program knows. */
static void add_keys(const tf_stack_config *config, arguments *argv, bool connects, bool binds) {
  if (config->curve.key) add_option(argv, "curve-key", config->curve.key);
  if (config->curve.server && connects) add_option(argv, "curve-server", config->curve.server);
  if (config->curve.allow && binds) add_option(argv, "curve-allow", config->curve.allow);
}

/* Packed weights lie where a user's caches do, and nowhere where that is not known. */
static void add_cache_dir(const tf_stack_config *config, arguments *argv) {
  const char *cache_home = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  add(argv, "--cache-dir");
  if (config->cache_dir)
    add(argv, "%s", config->cache_dir);
  else if (cache_home && cache_home[0] == '/')
    add(argv, "%s/tokenflex", cache_home);
  else if (home && home[0] == '/')
    add(argv, "%s/.cache/tokenflex", home);
  else
    add(argv, "off");
  if (config->cache_dir_mib > 0) {
    add(argv, "--cache-dir-mib");
    add(argv, "%lld", (long long)config->cache_dir_mib);
  }
}

static void add_worker(const tf_stack *self, const tf_stack_config *config, arguments *argv) {
  add_option(argv, "model", config->model);
  add_cache_dir(config, argv);
  add_option(argv, "routers", self->endpoint);
  if (config->compute) add_option(argv, "compute", config->compute);
  if (config->cpu) add_option(argv, "cpu", config->cpu);
  add(argv, "--threads");
  add(argv, "%lld", (long long)config->threads);
}

static tf_code start_encoder(tf_stack *self, const tf_stack_config *config, tf_error *error) {
  arguments argv;
  tf_code code = begin_arguments(&argv, "tokenflex-encoder", error);
  if (code) return code;
  add_common(config, &argv);
  add_worker(self, config, &argv);
  add(&argv, "--max-pixels");
  add(&argv, "%lld", (long long)config->max_pixels);
  add_keys(config, &argv, true, false);
  if (!config->served) add_option(&argv, "feature-cache-mib", "0"); /* a run finds its duplicates itself */
  if (!config->allow_dirs) add_option(&argv, "allow-dir", "/");
  for (size_t i = 0; config->allow_dirs && i < config->allow_dirs->count; i++)
    add_option(&argv, "allow-dir", config->allow_dirs->items[i]);
  if (config->allow_http) add(&argv, "--allow-http");
  if (config->allow_private_addresses) add(&argv, "--allow-private-addresses");
  return start_program(self, ENCODER, "encoder", &argv, error);
}

static tf_code start_llm(tf_stack *self, const tf_stack_config *config, tf_error *error) {
  arguments argv;
  tf_code code = begin_arguments(&argv, "tokenflex-llm", error);
  if (code) return code;
  add_common(config, &argv);
  add_worker(self, config, &argv);
  add_keys(config, &argv, true, true);
  add(&argv, "--tensor-bind");
  if (config->tensor_bind)
    add(&argv, "%s", config->tensor_bind);
  else
    add(&argv, "ipc://%s/llm.sock", self->folder.path);
  if (config->insecure) add(&argv, "--insecure");
  return start_program(self, LLM, "LLM", &argv, error);
}

static tf_code start_router(tf_stack *self, const tf_stack_config *config, tf_error *error) {
  arguments argv;
  tf_code code = begin_arguments(&argv, "tokenflex-router", error);
  if (code) return code;
  add_common(config, &argv);
  /* By the environment: an argument vector can be read by everyone, and a URL may hold a password. */
  if (setenv("TOKENFLEX_REDIS", self->redis_url, 1)) argv.overflow = true;
  add_option(&argv, "queue", config->queue);
  add_keys(config, &argv, false, true);
  add(&argv, "--bind");
  if (config->bind)
    add(&argv, "%s", config->bind);
  else
    add(&argv, "ipc://%s/router.sock", self->folder.path);
  if (config->insecure) add(&argv, "--insecure");
  if (!config->served) { /* a run names each id once: what it would remember for days would only grow */
    add(&argv, "--dedupe-window-s");
    add(&argv, "%d", DEDUPE_WINDOW_S);
  }
  return start_program(self, ROUTER, "router", &argv, error);
}

static tf_code wait_for_redis(tf_stack *self, tf_error *error) {
  int64_t deadline_ms = tf_now_ms() + REDIS_START_MS_MAX;
  tf_redis_url url;
  tf_code code = tf_redis_url_parse(self->redis_url, &url, error);
  if (code) return code;
  for (bool told = self->children[REDIS].pid > 0;; told = true) {
    redisContext *context = NULL;
    code = tf_redis_connect(&url, 1000, &context, error);
    if (context) redisFree(context);
    if (code && !told) tf_say("%s; trying for %d s", error->text, REDIS_START_MS_MAX / 1000);
    if (!code || tf_now_ms() > deadline_ms || !tf_stack_alive(self, NULL) || tf_interrupt_count() > 0) return code;
    usleep(10000);
  }
}

/* Where workers on this machine reach the router: a wildcard address is no address to connect to. */
static tf_code choose_endpoint(tf_stack *self, const char *bind, tf_error *error) {
  if (!bind) {
    snprintf(self->endpoint, sizeof self->endpoint, "ipc://%s/router.sock", self->folder.path);
    return TF_OK;
  }
  const char *port = strrchr(bind, ':');
  bool wildcard = strncmp(bind, "tcp://*:", 8) == 0 || strncmp(bind, "tcp://0.0.0.0:", 14) == 0;
  if (!port || strcmp(port, ":*") == 0 || strcmp(port, ":0") == 0)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--bind %s: name a port, e.g. tcp://127.0.0.1:7701", bind);
  int length = wildcard ? snprintf(self->endpoint, sizeof self->endpoint, "tcp://127.0.0.1%s", port)
                        : snprintf(self->endpoint, sizeof self->endpoint, "%s", bind);
  if (length < 0 || (size_t)length >= sizeof self->endpoint)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--bind %s: too long", bind);
  return TF_OK;
}

/* A URL's path is percent-encoded; a folder's name may hold anything. */
static tf_code own_redis_url(tf_stack *self, tf_error *error) {
  tf_buffer url;
  tf_buffer_init(&url, sizeof self->redis_url - 1);
  tf_buffer_printf(&url, "unix://");
  tf_uri_escape(self->folder.path, &url);
  tf_buffer_printf(&url, "/redis.sock");
  if (!url.overflow) memcpy(self->redis_url, url.data, url.size + 1);
  tf_code code = url.overflow ? tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory") : TF_OK;
  tf_buffer_free(&url);
  return code;
}

tf_code tf_stack_start(const tf_stack_config *config, tf_stack **out, tf_error *error) {
  *out = NULL;
  tf_stack *self = calloc(1, sizeof *self);
  if (!self) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  for (int i = 0; i < CHILD_COUNT; i++) self->children[i].log_fd = -1;
  self->config = *config;
  unsetenv("TOKENFLEX_CONFIG"); /* a file for tokenflex is not one for the services */
  unsetenv("TOKENFLEX_HEALTH"); /* on or off here, an address there */
  if (!config->tensor_bind) unsetenv("TOKENFLEX_TENSOR_ADVERTISE"); /* no other machine's encoder comes to this LLM */
  if (!config->served) unsetenv("TOKENFLEX_PAGE");                  /* a file for `report`, on or off for a router */
  unsetenv("TOKENFLEX_CURVE_KEY");                                  /* keys come by --curve-..., or not at all */
  unsetenv("TOKENFLEX_CURVE_SERVER");
  unsetenv("TOKENFLEX_CURVE_ALLOW");
  tf_code code = tf_rundir_make(&self->folder, error);
  if (!code) code = choose_endpoint(self, config->bind, error);
  if (!code && config->redis_url)
    snprintf(self->redis_url, sizeof self->redis_url, "%s", config->redis_url);
  else if (!code)
    code = own_redis_url(self, error);
  if (!code && !config->redis_url) code = start_redis(self, error);
  if (!code) code = start_encoder(self, config, error);
  if (!code) code = start_llm(self, config, error);
  if (!code) code = wait_for_redis(self, error);
  if (!code) code = start_router(self, config, error);
  *out = self; /* for tf_stack_alive's report, also after an error */
  return code;
}

const char *tf_stack_redis_url(const tf_stack *self) {
  return self->redis_url;
}

bool tf_stack_owns_redis(const tf_stack *self) {
  return self->children[REDIS].pid > 0;
}

/* Instances are ROLE-HOST-PID-RANDOM. */
static bool is_of(const tf_child *child, const char *role, const char *instance) {
  char pid[32];
  size_t role_bytes = strlen(role);
  const char *end = strrchr(instance, '-');
  int size = snprintf(pid, sizeof pid, "-%ld", (long)child->pid);
  return end && size > 0 && strncmp(instance, role, role_bytes) == 0 &&
         (size_t)(end - instance) >= role_bytes + (size_t)size && strncmp(end - size, pid, (size_t)size) == 0;
}

bool tf_stack_is_router(const tf_stack *self, const char *instance) {
  return is_of(&self->children[ROUTER], "router-", instance);
}

bool tf_stack_is_encoder(const tf_stack *self, const char *instance) {
  return is_of(&self->children[ENCODER], "encoder-", instance);
}

bool tf_stack_is_llm(const tf_stack *self, const char *instance) {
  return is_of(&self->children[LLM], "llm-", instance);
}

/* A worker of a service that ended in order was drained: that says "finish", not "end the service". True where it is
 * started again, or will be once its time has come; false with a text in report where it can not. */
static bool replace_worker(tf_stack *self, int which, tf_buffer *report) {
  tf_error error;
  if (!self->told[which])
    tf_say("the %s has ended in order (drained?); it is started again", self->children[which].name);
  self->told[which] = true;
  if (tf_now_ms() - self->started_ms[which] < RESTART_MS_MIN) return true;
  tf_code code = which == LLM ? start_llm(self, &self->config, &error) : start_encoder(self, &self->config, &error);
  if (code && report) tf_buffer_printf(report, "%s\n", error.text);
  return !code;
}

bool tf_stack_alive(tf_stack *self, tf_buffer *report) {
  for (int i = 0; i < CHILD_COUNT; i++) {
    tf_child *child = &self->children[i];
    if (child->pid == 0 || tf_child_running(child)) continue;
    bool worker = i == ENCODER || i == LLM;
    if (self->config.served && worker && tf_child_ended_in_order(child)) {
      if (replace_worker(self, i, report)) continue;
      return false;
    }
    if (report) {
      tf_child_obituary(child, report);
      tf_child_last_words(child, report);
    }
    return false;
  }
  return true;
}

void tf_stack_stop(tf_stack **self_in) {
  tf_stack *self = *self_in;
  if (!self) return;
  long wait_ms = (long)self->config.drain_timeout_s * 1000 + STOP_MARGIN_MS;
  tf_child_signal(&self->children[ROUTER], SIGTERM);
  tf_child_end(&self->children[ROUTER], wait_ms);
  tf_child_signal(&self->children[ENCODER], SIGTERM);
  tf_child_signal(&self->children[LLM], SIGTERM);
  tf_child_end(&self->children[ENCODER], wait_ms);
  tf_child_end(&self->children[LLM], wait_ms);
  tf_child_signal(&self->children[REDIS], SIGTERM);
  tf_child_end(&self->children[REDIS], REDIS_STOP_MS_MAX);
  for (int i = 0; i < CHILD_COUNT; i++) tf_child_close(&self->children[i]);
  tf_rundir_remove(&self->folder);
  free(self);
  *self_in = NULL;
}

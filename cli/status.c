/* `tokenflex status`: a queue, its workers and its load, once or until Ctrl-C.
 * In: Redis. Out: text, JSON, or a screen that is drawn anew every second.
 * A server that can not be reached is shown as that, and the others go on. Status 1: none could be reached. */
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/status_view.h"
#include "common/clock.h"

#include <errno.h>
#include <langinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { POLL_US = 50000, TEXT_BYTES_MAX = 8 << 20, COLUMNS_DEFAULT = 80, COLUMNS_MIN = 40 };

typedef struct status_config {
  tf_deployment_options where;
  int64_t interval_ms;
  bool watch, json;
} status_config;

#define FIELD(name) offsetof(status_config, name)
static const tf_option options[] = {
    TF_DEPLOYMENT_ROWS(status_config, where),
    {"watch", 'w', TF_OPTION_FLAG, FIELD(watch), 0, 0, NULL, NULL, "Again and again, until Ctrl-C"},
    {"interval-ms", 'i', TF_OPTION_INT, FIELD(interval_ms), 100, 3600000, "1000", "ms", "Between two looks of --watch"},
    {"json", 0, TF_OPTION_FLAG, FIELD(json), 0, 0, NULL, NULL, "One JSON object a look"},
};
static const tf_program program = {
    .name = "tokenflex status",
    .synopsis = "[options]",
    .summary = "Shows a queue: its depth by tier, load, mix of token counts, ends, and workers.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

typedef struct watcher {
  const status_config *config;
  tf_deployment deployment;
  tf_status *statuses;
  tf_status_server *servers;
  tf_rate *rates; /* of ended jobs */
  tf_status_style style;
  bool screen; /* the terminal's other screen is shown */
} watcher;

static void look_at_terminal(watcher *self) {
  struct winsize size = {0};
  const char *term = getenv("TERM"), *columns = getenv("COLUMNS"), *no_color = getenv("NO_COLOR");
  bool terminal = isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") != 0;
  self->style = (tf_status_style){.columns = COLUMNS_DEFAULT,
                                  .color = terminal && !(no_color && *no_color),
                                  .utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0};
  if (terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    self->style.columns = size.ws_col;
    self->style.rows = self->screen ? size.ws_row - 2 : 0;
  } else if (columns && atoi(columns) > 0) {
    self->style.columns = atoi(columns);
  }
  if (self->style.columns < COLUMNS_MIN) self->style.columns = COLUMNS_MIN;
  if (self->screen && self->style.rows < 1) self->style.rows = 1;
}

/* How many servers could be reached. */
static size_t look(watcher *self, tf_error *error) {
  size_t reached = 0;
  for (size_t i = 0; i < self->deployment.count; i++) {
    tf_status *status = &self->statuses[i];
    tf_status_free(status);
    tf_code code = tf_status_read(&self->deployment, &self->deployment.links[i], status, error);
    reached += code == TF_OK;
    int64_t now_ms = tf_now_ms();
    double per_s = -1;
    if (code == TF_OK && self->config->watch) {
      per_s = tf_rate_per_second(&self->rates[i], now_ms, (uint64_t)status->ended);
      tf_rate_add(&self->rates[i], now_ms, (uint64_t)status->ended);
    }
    self->servers[i] = (tf_status_server){self->deployment.places[i], status, per_s};
  }
  return reached;
}

static bool show(watcher *self) {
  tf_buffer text;
  tf_buffer_init(&text, TEXT_BYTES_MAX);
  size_t count = self->deployment.count;
  bool fine = true;
  look_at_terminal(self);
  if (self->config->json)
    fine = tf_status_json(self->config->where.queue, self->servers, count, &text);
  else
    tf_status_text(self->config->where.queue, self->servers, count, &self->style, &text);
  if (self->screen) {
    /* Every line wipes what was behind it, so that nothing flickers. */
    printf("\033[H");
    for (const char *at = text.data ? text.data : ""; *at;) {
      const char *end = strchr(at, '\n');
      printf("%.*s\033[K\n", (int)(end - at), at);
      at = end + 1;
    }
    printf("\033[J\033[2mevery %.1f s; Ctrl-C ends\033[0m\033[K", (double)self->config->interval_ms / 1000);
  } else {
    fwrite(text.data ? text.data : "", 1, text.size, stdout);
    if (self->config->watch && !self->config->json) putchar('\n');
  }
  fine = fine && fflush(stdout) == 0;
  if (!fine) tf_say("standard output: %s", strerror(errno));
  tf_buffer_free(&text);
  return fine;
}

static void pause_until(int64_t until_ms) {
  while (tf_now_ms() < until_ms && tf_interrupt_count() == 0) usleep(POLL_US);
}

static int run(watcher *self) {
  tf_error error = {.text = ""};
  const char *term = getenv("TERM");
  self->screen =
      self->config->watch && !self->config->json && isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") != 0;
  if (self->screen) printf("\033[?1049h\033[?25l");
  size_t reached = 0;
  bool shown = true;
  do {
    int64_t begin_ms = tf_now_ms();
    reached = look(self, &error);
    if (tf_interrupt_count() > 0 && self->config->watch) break;
    shown = show(self);
    if (self->config->watch && shown) pause_until(begin_ms + self->config->interval_ms);
  } while (shown && self->config->watch && tf_interrupt_count() == 0);
  if (self->screen) printf("\033[?25h\033[?1049l");
  fflush(stdout);
  if (!shown) return TF_EXIT_FAILED;
  return reached > 0 || (self->config->watch && tf_interrupt_count() > 0) ? TF_EXIT_OK : TF_EXIT_FAILED;
}

static int status_main(const status_config *config) {
  watcher self = {.config = config};
  tf_error error;
  int status = TF_EXIT_USAGE;
  tf_code code = tf_deployment_init(&self.deployment, &config->where, NULL, &error);
  size_t count = self.deployment.count;
  self.statuses = calloc(count, sizeof *self.statuses);
  self.servers = calloc(count, sizeof *self.servers);
  self.rates = calloc(count, sizeof *self.rates);
  if (!self.statuses || !self.servers || !self.rates) {
    tf_say("out of memory");
    status = TF_EXIT_FAILED;
  } else if (code) {
    tf_say("%s", error.text);
  } else {
    status = run(&self);
  }
  for (size_t i = 0; self.statuses && i < count; i++) tf_status_free(&self.statuses[i]);
  free(self.statuses);
  free(self.servers);
  free(self.rates);
  tf_deployment_free(&self.deployment);
  return status;
}

int tf_status_main(int argc, char **argv) {
  static status_config config;
  const char **words;
  size_t count;
  int status;
  if (!tf_command_parse(&program, argc, argv, &config, &words, &count, &status)) return status;
  tf_interrupt_setup();
  if (count == 0) {
    status = status_main(&config);
  } else {
    tf_say("status takes no arguments but options (%.100s)", words[0]);
    status = TF_EXIT_USAGE;
  }
  free(words);
  return status;
}

/* Messages and signals of the commands.
 * In: printf formats; SIGINT, SIGTERM, SIGHUP. Out: lines on stderr; a count.
 * The handlers only count: what is to be done on an interruption belongs to each command's loop. */
#include "cli/command.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t interrupts;

static void on_signal(int number) {
  (void)number;
  if (interrupts < 100) interrupts = interrupts + 1;
}

void tf_say(const char *format, ...) {
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fprintf(stderr, "tokenflex: %s\n", text);
}

bool tf_command_parse(const tf_program *program, int argc, char **argv, void *config, const char ***words,
                      size_t *count, int *status) {
  tf_error error;
  tf_options_outcome outcome = TF_OPTIONS_RUN;
  *count = 0;
  *words = calloc((size_t)argc + 1, sizeof **words);
  tf_code code = *words ? tf_options_parse(program, argc, argv, config, *words, count, &outcome, &error)
                        : tf_fail(&error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  if (code != TF_OK) tf_say("%s", error.text);
  if (code == TF_OK && outcome == TF_OPTIONS_RUN) return true;
  *status = code == TF_OK ? TF_EXIT_OK : code == TF_ERR_OUT_OF_MEMORY ? TF_EXIT_FAILED : TF_EXIT_USAGE;
  free(*words);
  *words = NULL;
  return false;
}

void tf_interrupt_setup(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  sigemptyset(&action.sa_mask);
  action.sa_handler = on_signal; /* no SA_RESTART: waits end early */
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  struct sigaction hangup;
  if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) /* nohup is respected */
    sigaction(SIGHUP, &action, NULL);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, NULL);
  sigaction(SIGXFSZ, &action, NULL); /* a file past its limit is a failed write */
}

int tf_interrupt_count(void) {
  return interrupts;
}

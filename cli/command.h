/* What every command of `tokenflex` shares: exit statuses, the signature of a command, messages to the person at the
 * terminal. In: argv of one command (argv[0] is "tokenflex NAME"). Out: an exit status. A new command is a file of its
 * own and one row in main.c's table. */
#ifndef TF_CLI_COMMAND_H
#define TF_CLI_COMMAND_H

#include <signal.h>

enum tf_exit { TF_EXIT_OK = 0, TF_EXIT_FAILED = 1, TF_EXIT_USAGE = 2, TF_EXIT_PARTIAL = 3 };

typedef struct tf_command {
  const char *name;
  const char *summary; /* one line of `tokenflex --help` */
  int (*run)(int argc, char **argv);
} tf_command;

int tf_caption_main(int argc, char **argv);
int tf_up_main(int argc, char **argv);
int tf_simulate_main(int argc, char **argv);
int tf_loadtest_main(int argc, char **argv);

/* One line "tokenflex: ..." on stderr. */
void tf_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* From here on SIGINT, SIGTERM and SIGHUP are counted instead of ending the process, and SIGPIPE is ignored. */
void tf_interrupt_setup(void);
/* How many of them came; the loops of a command look at it at least every 100 ms. */
int tf_interrupt_count(void);

#endif

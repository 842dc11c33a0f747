/* tokenflex: the command line. In: a command and its arguments. Out: the command's exit status.
 * 0: done; 1: could not run; 2: wrong usage; 3: some images failed.
 * The table below is all that knows the commands. */
#include "cli/command.h"
#include "common/log.h"
#include "common/options.h"

#include <locale.h>
#include <stdio.h>
#include <string.h>

static const tf_command commands[] = {
    {"caption", "write a caption for every photo in files and folders", tf_caption_main},
    {"up", "run the whole service on this machine until it is stopped", tf_up_main},
    {"simulate", "compute waits and token counts of a deployment under a load", tf_simulate_main},
    {"loadtest", "put a load on a deployment and measure waits and token counts", tf_loadtest_main},
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static void print_usage(FILE *out) {
  fprintf(out, "Usage: tokenflex COMMAND [options] ...\n\nCommands:\n");
  for (size_t i = 0; i < COMMAND_COUNT; i++) fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
  fprintf(out, "\n`tokenflex COMMAND --help` shows a command's options.\n"
               "Try: tokenflex caption ~/Pictures -o captions.jsonl\n");
}

static const tf_command *find_command(const char *name) {
  for (size_t i = 0; i < COMMAND_COUNT; i++)
    if (strcmp(commands[i].name, name) == 0) return &commands[i];
  return NULL;
}

static int run_command(const tf_command *command, int argc, char **argv) {
  char name[64];
  snprintf(name, sizeof name, "tokenflex %s", command->name);
  argv[0] = name;
  return command->run(argc, argv);
}

int main(int argc, char **argv) {
  setlocale(LC_CTYPE, ""); /* UTF-8 or not, for the progress bar; numbers stay as in C */
  tf_log_setup("tokenflex", "warn");
  if (argc < 2) {
    print_usage(stderr);
    return TF_EXIT_USAGE;
  }
  const char *word = argv[1];
  if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0 || strcmp(word, "version") == 0) {
    printf("tokenflex %s\n", TF_VERSION);
    return TF_EXIT_OK;
  }
  if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || (strcmp(word, "help") == 0 && argc == 2)) {
    print_usage(stdout);
    return TF_EXIT_OK;
  }
  char help[] = "--help";
  char *help_arguments[] = {argv[0], help, NULL};
  if (strcmp(word, "help") == 0) {
    const tf_command *asked = find_command(argv[2]);
    if (asked) return run_command(asked, 2, help_arguments);
    word = argv[2];
  }
  const tf_command *command = find_command(word);
  if (!command) {
    tf_say("there is no command \"%s\"; `tokenflex --help` lists them", word);
    return TF_EXIT_USAGE;
  }
  return run_command(command, argc - 1, argv + 1);
}

/* `tokenflex keygen`: makes a CURVE key pair for a deployment, or for one process of it.
 * In: a folder, a name. Out: DIR/NAME.key (mode 0600: public and secret key) and DIR/NAME.pub (the public key alone).
 * Nothing is ever overwritten: whoever loses a key that is in use locks a deployment out. */
#include "cli/command.h"
#include "common/options.h"
#include "proto/curve_keys.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct keygen_config {
  const char *name;
} keygen_config;

static const tf_option options[] = {
    {"name", 'n', TF_OPTION_STRING, offsetof(keygen_config, name), 0, 0, "deployment", "NAME",
     "of the files: NAME.key and NAME.pub"},
};
static const tf_program program = {
    .name = "tokenflex keygen",
    .synopsis = "[options] DIR",
    .summary =
        "Makes a key pair for --curve-key of router, encoder and LLM, in DIR. One pair serves a whole deployment; "
        "docs/SECURITY.md tells how to give processes pairs of their own.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

static bool is_file_name(const char *name) {
  static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
  size_t length = strspn(name, allowed);
  return length > 0 && length <= 64 && !name[length] && name[0] != '.' && name[0] != '-';
}

static int make_keys(const char *folder, const char *name) {
  char secret_path[PATH_MAX], public_path[PATH_MAX];
  if (!is_file_name(name)) {
    tf_say("--name %.80s: a name is 1 to 64 of A-Z a-z 0-9 . _ - and begins with neither . nor -", name);
    return TF_EXIT_USAGE;
  }
  int length = snprintf(secret_path, sizeof secret_path, "%s/%s.key", folder, name);
  snprintf(public_path, sizeof public_path, "%s/%s.pub", folder, name);
  if (length < 0 || (size_t)length >= sizeof secret_path) {
    tf_say("%.200s...: the folder's name is too long", folder);
    return TF_EXIT_USAGE;
  }
  if (mkdir(folder, S_IRWXU) != 0 && errno != EEXIST) {
    tf_say("%s: %s", folder, strerror(errno));
    return TF_EXIT_FAILED;
  }
  tf_error error;
  tf_code code = tf_curve_pair_create(secret_path, public_path, &error);
  if (code != TF_OK) {
    tf_say("%s", error.text);
    return code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
  }
  printf("%s\n%s\n", secret_path, public_path);
  fprintf(stderr, "tokenflex: give every router, encoder and LLM of the deployment --curve-key %s\n", secret_path);
  return TF_EXIT_OK;
}

int tf_keygen_main(int argc, char **argv) {
  keygen_config config;
  const char **folders;
  size_t count;
  int status;
  if (!tf_command_parse(&program, argc, argv, &config, &folders, &count, &status)) return status;
  if (count == 1) {
    status = make_keys(folders[0], config.name);
  } else {
    tf_say("one folder is expected: tokenflex keygen DIR");
    status = TF_EXIT_USAGE;
  }
  free(folders);
  return status;
}

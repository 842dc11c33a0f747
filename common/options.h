/* Option tables: name, type, bounds, default and help of every option in one row.
 * In: argv, the environment (TOKENFLEX_NAME), a file of `name = value` lines (--config FILE).
 * Out: a filled configuration struct; flag wins over environment over file over default. */
#ifndef TF_COMMON_OPTIONS_H
#define TF_COMMON_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

typedef enum tf_option_type {
  TF_OPTION_FLAG,   /* bool; given without a value, or --name=true|false */
  TF_OPTION_INT,    /* int64_t, minimum <= value <= maximum */
  TF_OPTION_REAL,   /* double, likewise */
  TF_OPTION_STRING, /* const char *; points into argv, environment or memory of the table's owner */
  TF_OPTION_LIST,   /* tf_string_list; repeated flags, or one value with commas */
  TF_OPTION_CHOICE  /* const char *; one of the words in unit, as "on|off" */
} tf_option_type;

enum { TF_STRING_LIST_ITEMS_MAX = 64 };
typedef struct tf_string_list {
  size_t count;
  const char *items[TF_STRING_LIST_ITEMS_MAX];
} tf_string_list;

typedef struct tf_option {
  const char *name; /* long name without dashes, e.g. "max-new-tokens" */
  char letter;      /* short form or 0 */
  tf_option_type type;
  size_t offset; /* of the field in the configuration struct */
  double minimum, maximum;
  const char *fallback; /* default as text; NULL: unset (NULL string, empty list, false) */
  const char *unit;     /* shown in --help: "ms", "bytes", "URL"; may be NULL */
  const char *help;     /* one line */
} tf_option;

/* What a program is, for --help. */
typedef struct tf_program {
  const char *name;     /* "tokenflex-router" */
  const char *synopsis; /* "[options]", "caption [options] FILE|DIR..." */
  const char *summary;  /* one or two lines */
  const tf_option *options;
  size_t option_count;
} tf_program;

typedef enum tf_options_outcome { TF_OPTIONS_RUN, TF_OPTIONS_HELP, TF_OPTIONS_VERSION } tf_options_outcome;

/* Parses into config (zeroed by this call up to each option's field). Positional arguments are moved, in order,
 * to positionals (capacity argc) and counted; `--` ends the options.
 * --help and --version are known to every program: they are printed here, the caller exits 0.
 * Errors: TF_ERR_INVALID_ARGUMENT with a text that names the option, the value and what is accepted. */
tf_code tf_options_parse(const tf_program *program, int argc, char **argv, void *config, const char **positionals,
                         size_t *positional_count, tf_options_outcome *outcome, tf_error *error);

/* The environment variable of an option: "max-pixels" -> "TOKENFLEX_MAX_PIXELS". */
void tf_option_environment_name(const char *option_name, char *out, size_t out_bytes);

#define TF_VERSION "0.2.0"

#endif

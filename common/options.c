/* Option tables: one row an option; the same row parses, bounds, documents and names it in the environment.
 * In: argv, the environment (TOKENFLEX_NAME), a file of `name = value` lines (--config FILE).
 * Out: a filled configuration struct; flag wins over environment over file over default.
 * Every source goes through set_value(), from the weakest to the strongest; a stronger source starts a list anew.
 * A minimum and maximum of both 0 mean: no bounds. */
#include "common/options.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/buffer.h"

enum {
  OPTIONS_MAX = 128,
  NAME_BYTES_MAX = 64,
  CONFIG_BYTES_MAX = 1024 * 1024,
  HELP_BYTES_MAX = 256 * 1024,
  HELP_WIDTH = 96,
  HELP_INDENT = 30
};

/* Known to every program, beside its table. */
static const tf_option builtin_options[] = {
    {.name = "config", .type = TF_OPTION_STRING, .unit = "FILE", .help = "File of `name = value` lines"},
    {.name = "help", .letter = 'h', .type = TF_OPTION_FLAG, .help = "Print this help and exit"},
    {.name = "version", .type = TF_OPTION_FLAG, .help = "Print the version and exit"},
};
enum { BUILTIN_CONFIG, BUILTIN_HELP, BUILTIN_VERSION, BUILTIN_COUNT };

/* Strings that are neither in argv nor in the environment (file lines, pieces of lists). The option table is
 * process-global by design, so they stay to the end of the process. */
typedef struct kept_string {
  struct kept_string *next;
  char text[];
} kept_string;
static kept_string *kept_strings;

static char *keep(const char *text, size_t size) {
  kept_string *kept = malloc(sizeof *kept + size + 1);
  if (!kept) return NULL;
  memcpy(kept->text, text, size);
  kept->text[size] = '\0';
  kept->next = kept_strings;
  kept_strings = kept;
  return kept->text;
}

/* Where a value comes from; also what an error text calls it. */
typedef enum source { FROM_DEFAULT, FROM_FILE, FROM_ENVIRONMENT, FROM_FLAG } source;

typedef struct given {
  int option;        /* index into the table */
  const char *value; /* NULL: a flag without a value */
} given;

typedef struct parse {
  const tf_program *program;
  char *config;                  /* the caller's struct */
  source list_from[OPTIONS_MAX]; /* who wrote the list last */
  const char *config_path;
  given *flags; /* in the order of argv */
  size_t flag_count;
  char where[NAME_BYTES_MAX * 2]; /* "--batch", "TOKENFLEX_BATCH", "tokenflex.conf:3: batch" */
  tf_error *error;
} parse;

void tf_option_environment_name(const char *option_name, char *out, size_t out_bytes) {
  snprintf(out, out_bytes, "TOKENFLEX_%s", option_name);
  for (char *at = out; *at; at++) *at = *at == '-' ? '_' : (char)toupper((unsigned char)*at);
}

static bool has_bounds(const tf_option *option) {
  return option->minimum != 0 || option->maximum != 0;
}

/* "1 to 64", "at least 1", ... into out; numbers up to 2^53 are exact. */
static void describe_bounds(const tf_option *option, char *out, size_t out_bytes) {
  const char *unit = option->unit ? option->unit : "";
  const char *space = option->unit ? " " : "";
  bool low = option->minimum > -1e15, high = option->maximum < 1e15;
  if (!has_bounds(option) || (!low && !high))
    snprintf(out, out_bytes, "any number%s%s", space, unit);
  else if (!high)
    snprintf(out, out_bytes, "at least %.16g%s%s", option->minimum, space, unit);
  else if (!low)
    snprintf(out, out_bytes, "at most %.16g%s%s", option->maximum, space, unit);
  else
    snprintf(out, out_bytes, "%.16g to %.16g%s%s", option->minimum, option->maximum, space, unit);
}

static tf_code refuse(parse *self, const char *value, const char *accepted) {
  return tf_fail(self->error, TF_ERR_INVALID_ARGUMENT, "%s: \"%.100s\" is not accepted; expected %s", self->where,
                 value, accepted);
}

/* Digits with an optional K, M, G (powers of 1000) or Ki, Mi, Gi (of 1024), with or without a final B. */
static bool parse_integer(const char *text, int64_t *out) {
  char *end;
  if (!isdigit((unsigned char)text[0]) && !((text[0] == '-' || text[0] == '+') && isdigit((unsigned char)text[1]))) {
    return false;
  }
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (errno == ERANGE) return false;
  const char *const prefixes = "KMG";
  const char *prefix = *end ? strchr(prefixes, *end == 'k' ? 'K' : *end) : NULL;
  if (prefix) {
    int64_t step = end[1] == 'i' ? 1024 : 1000, factor = 1;
    for (const char *at = prefixes; at <= prefix; at++) factor *= step;
    if (value > INT64_MAX / factor || value < INT64_MIN / factor) return false;
    value *= factor;
    end += step == 1024 ? 2 : 1;
    if (*end == 'B') end++;
  }
  *out = value;
  return *end == '\0';
}

static tf_code set_number(parse *self, const tf_option *option, const char *value) {
  char accepted[160];
  describe_bounds(option, accepted, sizeof accepted);
  void *field = self->config + option->offset;
  double number;
  int64_t integer = 0;
  if (option->type == TF_OPTION_INT) {
    if (!parse_integer(value, &integer)) return refuse(self, value, accepted);
    number = (double)integer;
  } else {
    char *end;
    number = strtod(value, &end);
    if (end == value || *end || !isfinite(number)) return refuse(self, value, accepted);
  }
  if (has_bounds(option) && (number < option->minimum || number > option->maximum)) {
    return refuse(self, value, accepted);
  }
  if (option->type == TF_OPTION_INT)
    *(int64_t *)field = integer;
  else
    *(double *)field = number;
  return TF_OK;
}

static tf_code set_flag(parse *self, const tf_option *option, const char *value) {
  static const char *const yes[] = {"true", "yes", "on", "1"}, *const no[] = {"false", "no", "off", "0"};
  bool *field = (bool *)(self->config + option->offset);
  for (int i = 0; i < 4; i++) {
    if (!value || strcmp(value, yes[i]) == 0) return *field = true, TF_OK;
    if (strcmp(value, no[i]) == 0) return *field = false, TF_OK;
  }
  return refuse(self, value, "true or false");
}

/* Pieces between commas, blanks around them cut, empty ones left out. */
static tf_code add_to_list(parse *self, int index, const char *value, source from) {
  tf_string_list *list = (tf_string_list *)(self->config + self->program->options[index].offset);
  if (self->list_from[index] != from) list->count = 0;
  self->list_from[index] = from;
  while (*value) {
    size_t size = strcspn(value, ",");
    const char *next = value + size + (value[size] ? 1 : 0);
    while (size > 0 && isspace((unsigned char)value[0])) value++, size--;
    while (size > 0 && isspace((unsigned char)value[size - 1])) size--;
    if (size > 0) {
      if (list->count == TF_STRING_LIST_ITEMS_MAX) {
        return tf_fail(self->error, TF_ERR_INVALID_ARGUMENT, "%s: more than %d values", self->where,
                       TF_STRING_LIST_ITEMS_MAX);
      }
      const char *item = keep(value, size);
      if (!item) return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "%s: out of memory", self->where);
      list->items[list->count++] = item;
    }
    value = next;
  }
  return TF_OK;
}

static tf_code set_choice(parse *self, const tf_option *option, const char *value) {
  size_t size = strlen(value);
  for (const char *word = option->unit; *word;) {
    size_t length = strcspn(word, "|");
    if (length == size && memcmp(word, value, size) == 0) {
      *(const char **)(self->config + option->offset) = value;
      return TF_OK;
    }
    word += length + (word[length] ? 1 : 0);
  }
  return refuse(self, value, option->unit);
}

/* value lives as long as the process. */
static tf_code set_value(parse *self, int index, const char *value, source from) {
  const tf_option *option = &self->program->options[index];
  switch (option->type) {
  case TF_OPTION_FLAG:
    return set_flag(self, option, value);
  case TF_OPTION_INT:
  case TF_OPTION_REAL:
    return set_number(self, option, value);
  case TF_OPTION_STRING:
    *(const char **)(self->config + option->offset) = value;
    return TF_OK;
  case TF_OPTION_LIST:
    return add_to_list(self, index, value, from);
  case TF_OPTION_CHOICE:
    return set_choice(self, option, value);
  }
  return TF_ERR_INTERNAL;
}

static void zero_field(parse *self, const tf_option *option) {
  static const size_t sizes[] = {sizeof(bool),   sizeof(int64_t),        sizeof(double),
                                 sizeof(char *), sizeof(tf_string_list), sizeof(char *)};
  memset(self->config + option->offset, 0, sizes[option->type]);
}

/* ---- Names ---- */

static int find_option(const tf_program *program, const char *name, size_t size) {
  for (size_t i = 0; i < program->option_count; i++) {
    const char *known = program->options[i].name;
    if (strlen(known) == size && memcmp(known, name, size) == 0) return (int)i;
  }
  return -1;
}

static int find_builtin(const char *name, size_t size) {
  for (int i = 0; i < BUILTIN_COUNT; i++) {
    if (strlen(builtin_options[i].name) == size && memcmp(builtin_options[i].name, name, size) == 0) return i;
  }
  return -1;
}

/* Levenshtein distance of a[0..a_size) and b; names past NAME_BYTES_MAX are far from everything. */
static size_t edit_distance(const char *a, size_t a_size, const char *b) {
  size_t b_size = strlen(b), row[NAME_BYTES_MAX + 1];
  if (a_size > NAME_BYTES_MAX || b_size > NAME_BYTES_MAX) return NAME_BYTES_MAX;
  for (size_t j = 0; j <= b_size; j++) row[j] = j;
  for (size_t i = 1; i <= a_size; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b_size; j++) {
      size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      size_t best = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
      diagonal = row[j];
      row[j] = replaced < best ? replaced : best;
    }
  }
  return row[b_size];
}

/* The known name that was probably meant, or NULL. */
static const char *closest_name(const tf_program *program, const char *name, size_t size) {
  const char *best = NULL;
  size_t best_distance = size / 3 < 2 ? 3 : size / 3 + 1; /* accepted: less than this */
  for (size_t i = 0; i < program->option_count + BUILTIN_COUNT; i++) {
    const char *known =
        i < program->option_count ? program->options[i].name : builtin_options[i - program->option_count].name;
    size_t distance = edit_distance(name, size, known);
    /* The beginning of a name is a likely shortcut. */
    if (size >= 3 && strncmp(known, name, size) == 0) distance = 1;
    if (distance < best_distance) {
      best_distance = distance;
      best = known;
    }
  }
  return best;
}

static tf_code unknown_name(parse *self, const char *where, const char *dashes, const char *name, size_t size) {
  const char *closest = closest_name(self->program, name, size);
  int shown = size < 100 ? (int)size : 100;
  if (closest) {
    return tf_fail(self->error, TF_ERR_INVALID_ARGUMENT, "%sunknown option %s%.*s; did you mean %s%s?", where, dashes,
                   shown, name, dashes, closest);
  }
  return tf_fail(self->error, TF_ERR_INVALID_ARGUMENT, "%sunknown option %s%.*s; --help lists all", where, dashes,
                 shown, name);
}

/* ---- argv ---- */

/* One argument that begins with a dash, and the value after it where it takes one. *at is moved past both.
 * *builtin is -1, or the index in builtin_options. */
static tf_code scan_flag(parse *self, int argc, char **argv, int *at, int *builtin) {
  const char *argument = argv[*at];
  bool is_long = argument[1] == '-';
  const char *name = argument + (is_long ? 2 : 1), *equals = strchr(name, '=');
  size_t size = equals ? (size_t)(equals - name) : strlen(name);
  int index = -1;
  *builtin = -1;
  if (is_long) {
    index = find_option(self->program, name, size);
    if (index < 0) *builtin = find_builtin(name, size);
  } else if (size == 1) {
    for (size_t i = 0; i < self->program->option_count && index < 0; i++) {
      if (self->program->options[i].letter == name[0]) index = (int)i;
    }
    if (index < 0 && name[0] == 'h') *builtin = BUILTIN_HELP;
  }
  if (index < 0 && *builtin < 0) return unknown_name(self, "", is_long ? "--" : "-", name, size);
  const tf_option *option = index >= 0 ? &self->program->options[index] : &builtin_options[*builtin];
  const char *value = equals ? equals + 1 : NULL;
  (*at)++;
  if (!value && option->type != TF_OPTION_FLAG) {
    bool missing = *at >= argc || (strncmp(argv[*at], "--", 2) == 0 && argv[*at][2]);
    if (missing) {
      return tf_fail(self->error, TF_ERR_INVALID_ARGUMENT,
                     "--%s needs a value%s%s (a value that begins with -- is written --%s=VALUE)", option->name,
                     option->unit ? ": " : "", option->unit ? option->unit : "", option->name);
    }
    value = argv[(*at)++];
  }
  bool is_config = *builtin == BUILTIN_CONFIG || (index >= 0 && strcmp(option->name, "config") == 0);
  if (is_config) self->config_path = value;
  if (index >= 0) self->flags[self->flag_count++] = (given){.option = index, .value = value};
  return TF_OK;
}

static tf_code scan_arguments(parse *self, int argc, char **argv, const char **positionals, size_t *positional_count,
                              tf_options_outcome *outcome) {
  bool only_positionals = false;
  for (int at = 1; at < argc;) {
    const char *argument = argv[at];
    if (!only_positionals && strcmp(argument, "--") == 0) {
      only_positionals = true;
      at++;
    } else if (only_positionals || argument[0] != '-' || argument[1] == '\0') {
      if (!positionals) {
        return tf_fail(self->error, TF_ERR_INVALID_ARGUMENT, "%.200s: this program takes options only", argument);
      }
      positionals[(*positional_count)++] = argument;
      at++;
    } else {
      int builtin;
      tf_code code = scan_flag(self, argc, argv, &at, &builtin);
      if (code != TF_OK) return code;
      if (builtin == BUILTIN_HELP || builtin == BUILTIN_VERSION) {
        *outcome = builtin == BUILTIN_HELP ? TF_OPTIONS_HELP : TF_OPTIONS_VERSION;
        return TF_OK;
      }
    }
  }
  return TF_OK;
}

/* ---- File and environment ---- */

/* One line: blank, # comment, or name = value; blanks around both are cut. line is overwritten. */
static tf_code read_line(parse *self, char *line, int number) {
  char where[NAME_BYTES_MAX + 32];
  snprintf(where, sizeof where, "%.60s:%d: ", self->config_path, number);
  while (isspace((unsigned char)*line)) line++;
  size_t size = strlen(line);
  while (size > 0 && isspace((unsigned char)line[size - 1])) line[--size] = '\0';
  if (!*line || *line == '#') return TF_OK;
  char *equals = strchr(line, '=');
  if (!equals) {
    return tf_fail(self->error, TF_ERR_INVALID_ARGUMENT, "%s\"%.100s\" is not of the form name = value", where, line);
  }
  size_t name_size = (size_t)(equals - line);
  while (name_size > 0 && isspace((unsigned char)line[name_size - 1])) name_size--;
  const char *value = equals + 1;
  while (isspace((unsigned char)*value)) value++;
  int index = find_option(self->program, line, name_size);
  if (index < 0) return unknown_name(self, where, "", line, name_size);
  snprintf(self->where, sizeof self->where, "%s%.*s", where, NAME_BYTES_MAX - 33, self->program->options[index].name);
  const char *kept = keep(value, strlen(value));
  if (!kept) return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "%s: out of memory", self->where);
  return set_value(self, index, kept, FROM_FILE);
}

static tf_code read_config_file(parse *self) {
  FILE *file = fopen(self->config_path, "re");
  if (!file) {
    return tf_fail(self->error, TF_ERR_INVALID_ARGUMENT, "can not read the configuration file %.200s: %s",
                   self->config_path, strerror(errno));
  }
  char *text = malloc(CONFIG_BYTES_MAX + 1);
  size_t size = text ? fread(text, 1, CONFIG_BYTES_MAX + 1, file) : 0;
  bool failed = ferror(file) != 0;
  fclose(file);
  tf_code code = TF_OK;
  if (!text) {
    code = tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "configuration file: out of memory");
  } else if (failed || size > CONFIG_BYTES_MAX || memchr(text, '\0', size)) {
    code = tf_fail(self->error, TF_ERR_INVALID_ARGUMENT, "configuration file %.200s: %s", self->config_path,
                   failed                    ? "reading failed"
                   : size > CONFIG_BYTES_MAX ? "longer than 1 MiB"
                                             : "not a text file");
  } else {
    text[size] = '\0';
    int number = 1;
    for (char *line = text, *next; line && code == TF_OK; line = next, number++) {
      next = strchr(line, '\n');
      if (next) *next++ = '\0';
      code = read_line(self, line, number);
    }
  }
  free(text);
  return code;
}

static tf_code read_defaults(parse *self) {
  for (size_t i = 0; i < self->program->option_count; i++) {
    const tf_option *option = &self->program->options[i];
    zero_field(self, option);
    if (!option->fallback) continue;
    tf_code code = set_value(self, (int)i, option->fallback, FROM_DEFAULT);
    assert(code != TF_ERR_INVALID_ARGUMENT && "an option's default is outside of its own bounds");
    if (code != TF_OK) return code;
  }
  return TF_OK;
}

/* An empty variable counts as unset: that is how shells and manifests unset one. */
static tf_code read_environment(parse *self) {
  for (size_t i = 0; i < self->program->option_count; i++) {
    tf_option_environment_name(self->program->options[i].name, self->where, sizeof self->where);
    const char *value = getenv(self->where);
    if (!value || !*value) continue;
    tf_code code = set_value(self, (int)i, value, FROM_ENVIRONMENT);
    if (code != TF_OK) return code;
  }
  return TF_OK;
}

static tf_code read_flags(parse *self) {
  for (size_t i = 0; i < self->flag_count; i++) {
    int index = self->flags[i].option;
    snprintf(self->where, sizeof self->where, "--%.*s", NAME_BYTES_MAX, self->program->options[index].name);
    tf_code code = set_value(self, index, self->flags[i].value, FROM_FLAG);
    if (code != TF_OK) return code;
  }
  return TF_OK;
}

/* ---- Help ---- */

/* Words of text from *column on, broken before HELP_WIDTH, continued at HELP_INDENT. A newline breaks too. */
static void write_wrapped(tf_buffer *out, const char *text, size_t indent, size_t *column) {
  while (*text) {
    if (*text == ' ' || *text == '\n') {
      if (*text == '\n') {
        tf_buffer_printf(out, "\n%*s", (int)indent, "");
        *column = indent;
      }
      text++;
      continue;
    }
    size_t size = strcspn(text, " \n");
    bool first = *column == indent;
    if (!first && *column + 1 + size > HELP_WIDTH) {
      tf_buffer_printf(out, "\n%*s", (int)indent, "");
      *column = indent;
      first = true;
    }
    tf_buffer_printf(out, "%s%.*s", first ? "" : " ", (int)size, text);
    *column += size + (first ? 0 : 1);
    text += size;
  }
}

/* "Default 4 images, 1 to 64. TOKENFLEX_BATCH" */
static void write_details(tf_buffer *out, const tf_option *option, size_t *column) {
  char bounds[160] = "", details[480], environment[NAME_BYTES_MAX * 2];
  tf_option_environment_name(option->name, environment, sizeof environment);
  bool is_number = option->type == TF_OPTION_INT || option->type == TF_OPTION_REAL;
  const char *unit = is_number && option->unit ? option->unit : "";
  if (is_number && has_bounds(option)) {
    char inner[150];
    tf_option bare = *option;
    bare.unit = NULL;
    describe_bounds(&bare, inner, sizeof inner);
    snprintf(bounds, sizeof bounds, "; %s", inner);
  }
  const char *fallback = option->fallback;
  if (!fallback) fallback = option->type == TF_OPTION_FLAG ? "false" : is_number ? "0" : "none";
  if (!*fallback) fallback = "empty";
  snprintf(details, sizeof details, "(default %.120s%s%s%s; %s)", fallback, *unit ? " " : "", unit, bounds,
           environment);
  write_wrapped(out, details, HELP_INDENT, column);
}

static void write_option(tf_buffer *out, const tf_option *option, bool in_environment) {
  static const char *const kinds[] = {"", "N", "X", "TEXT", "LIST", "WORD"};
  char left[NAME_BYTES_MAX * 2], letter[8] = "    ";
  const char *value = option->unit && option->type != TF_OPTION_FLAG ? option->unit : kinds[option->type];
  if (option->letter) snprintf(letter, sizeof letter, "-%c, ", option->letter);
  int length = snprintf(left, sizeof left, "  %s--%s%s%.50s", letter, option->name, *value ? " " : "", value);
  tf_buffer_printf(out, "%s", left);
  if (length + 2 > HELP_INDENT)
    tf_buffer_printf(out, "\n%*s", HELP_INDENT, "");
  else
    tf_buffer_printf(out, "%*s", HELP_INDENT - length, "");
  size_t column = HELP_INDENT;
  write_wrapped(out, option->help ? option->help : "", HELP_INDENT, &column);
  if (in_environment) write_details(out, option, &column);
  tf_buffer_printf(out, "\n");
}

static void print_help(const tf_program *program) {
  tf_buffer out;
  tf_buffer_init(&out, HELP_BYTES_MAX);
  tf_buffer_printf(&out, "Usage: %s %s\n\n", program->name, program->synopsis ? program->synopsis : "[options]");
  size_t column = 0;
  if (program->summary) {
    write_wrapped(&out, program->summary, 0, &column);
    tf_buffer_printf(&out, "\n\n");
  }
  tf_buffer_printf(&out, "Options:\n");
  for (size_t i = 0; i < program->option_count; i++) write_option(&out, &program->options[i], true);
  for (int i = 0; i < BUILTIN_COUNT; i++) {
    const char *name = builtin_options[i].name;
    if (find_option(program, name, strlen(name)) < 0) write_option(&out, &builtin_options[i], i == BUILTIN_CONFIG);
  }
  tf_buffer_printf(&out, "\nAn option wins over its environment variable, that over the file, that over the default.\n"
                         "Numbers take K, M, G (1000) and Ki, Mi, Gi (1024).\n"
                         "Lists are separated by commas, or the option is given repeatedly.\n");
  if (out.data) fputs(out.data, stdout);
  fflush(stdout);
  tf_buffer_free(&out);
}

static tf_code run_parse(parse *self) {
  tf_code code = read_defaults(self);
  if (code == TF_OK && !self->config_path) {
    const char *path = getenv("TOKENFLEX_CONFIG");
    self->config_path = path && *path ? path : NULL;
  }
  if (code == TF_OK && self->config_path) code = read_config_file(self);
  if (code == TF_OK) code = read_environment(self);
  if (code == TF_OK) code = read_flags(self);
  return code;
}

tf_code tf_options_parse(const tf_program *program, int argc, char **argv, void *config, const char **positionals,
                         size_t *positional_count, tf_options_outcome *outcome, tf_error *error) {
  assert(program->option_count <= OPTIONS_MAX);
  size_t ignored;
  if (!positional_count) positional_count = &ignored;
  *positional_count = 0;
  *outcome = TF_OPTIONS_RUN;
  parse self = {.program = program, .config = config, .error = error};
  self.flags = calloc((size_t)(argc > 0 ? argc : 1), sizeof *self.flags);
  if (!self.flags) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "options: out of memory");
  tf_code code = scan_arguments(&self, argc, argv, positionals, positional_count, outcome);
  if (code == TF_OK && *outcome == TF_OPTIONS_HELP) print_help(program);
  if (code == TF_OK && *outcome == TF_OPTIONS_VERSION) {
    printf("%s %s\n", program->name, TF_VERSION);
    fflush(stdout);
  }
  if (code == TF_OK && *outcome == TF_OPTIONS_RUN) code = run_parse(&self);
  free(self.flags);
  return code;
}

/* `tokenflex dead`: the jobs that were given up.
 * In: list, show, retry or drop; ids, an error code, or all. Out: letters; jobs back on the queue, or gone for good.
 * An id is looked for on every server: letters may be older than a list of servers. */
#include "cli/command.h"
#include "cli/letters.h"
#include "cli/progress.h"
#include "cli/text.h"
#include "common/clock.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct dead_config {
  tf_deployment_options where;
  const char *code, *lane;
  int64_t limit;
  bool all, json;
} dead_config;

#define FIELD(name) offsetof(dead_config, name)
static const tf_option options[] = {
    TF_DEPLOYMENT_ROWS(dead_config, where),
    {"code", 'c', TF_OPTION_STRING, FIELD(code), 0, 0, NULL, "CODE", "Only letters with this error code"},
    {"all", 'a', TF_OPTION_FLAG, FIELD(all), 0, 0, NULL, NULL, "retry, drop: every letter that is there now"},
    {"limit", 'n', TF_OPTION_INT, FIELD(limit), 1, 1e9, "100", "letters", "list: so many at most, the oldest first"},
    {"lane", 0, TF_OPTION_CHOICE, FIELD(lane), 0, 0, "own", "own|interactive|batch",
     "retry: where the jobs go; own: where each came from"},
    {"json", 0, TF_OPTION_FLAG, FIELD(json), 0, 0, NULL, NULL, "list, show: one JSON object a letter"},
};
static const tf_program program = {
    .name = "tokenflex dead",
    .synopsis = "list | show ID... | retry ID...|--all|--code CODE | drop ID...|--all|--code CODE",
    .summary =
        "The jobs that were given up. retry puts them back on the queue with their id and fields, as if they had "
        "never been tried; drop removes them for good. Status 3: some could not be.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

typedef struct dead_command {
  const dead_config *config;
  tf_deployment deployment;
  tf_link *link;      /* at work */
  const char *action; /* retry, drop: of tf_letters_settle */
  char sids[TF_LETTERS_A_CALL][TF_LETTER_SID_BYTES];
  size_t sid_count;
  uint64_t seen, done, refused;
  uint64_t no_image, ended, gone;
} dead_command;

/* -- list and show ------------------------------------------------------------------------------------------------ */

static json_t *json_text(const char *text) {
  tf_buffer clean;
  tf_buffer_init(&clean, 1 << 20);
  tf_text_utf8(text, &clean);
  json_t *string = json_string(clean.data ? clean.data : "");
  tf_buffer_free(&clean);
  return string;
}

static void print_json(const dead_command *self, const tf_letter *letter) {
  static const char *const lanes[] = {"interactive", "batch"};
  json_t *root = json_object(), *fields = json_object();
  json_object_set_new(root, "id", json_text(letter->id));
  json_object_set_new(root, "code", json_text(letter->code));
  json_object_set_new(root, "message", json_text(letter->message));
  json_object_set_new(root, "lane", letter->lane < 0 ? json_null() : json_string(lanes[letter->lane]));
  json_object_set_new(root, "attempts", json_integer(strtoll(letter->attempts, NULL, 10)));
  json_object_set_new(root, "died_ms", json_integer(strtoll(letter->sid, NULL, 10)));
  json_object_set_new(root, "letter", json_text(letter->sid));
  json_object_set_new(root, "image_bytes", letter->image_bytes < 0 ? json_null() : json_integer(letter->image_bytes));
  for (size_t i = 0; letter->fields && i + 1 < letter->fields->elements; i += 2) {
    const char *name = letter->fields->element[i]->str;
    static const char *const own[] = {"id", "lane", "error_code", "error_message", "attempts"};
    bool shown = false;
    for (size_t k = 0; k < sizeof own / sizeof own[0]; k++) shown = shown || strcmp(name, own[k]) == 0;
    if (shown) continue;
    tf_buffer clean;
    tf_buffer_init(&clean, 4096);
    tf_text_utf8(name, &clean);
    json_object_set_new(fields, clean.data ? clean.data : "", json_text(letter->fields->element[i + 1]->str));
    tf_buffer_free(&clean);
  }
  json_object_set_new(root, "fields", fields);
  if (self->deployment.count > 1)
    json_object_set_new(root, "redis", json_string(self->deployment.places[self->link - self->deployment.links]));
  char *text = json_dumps(root, JSON_COMPACT);
  if (text) puts(text);
  free(text);
  json_decref(root);
}

/* What the job was about, in a few words. */
static void describe(const tf_letter *letter, char *out, size_t out_bytes) {
  snprintf(out, out_bytes, "%s", letter->image_dropped ? "(its image was not kept)" : "");
  if (letter->image_bytes >= 0) snprintf(out, out_bytes, "(%lld bytes)", (long long)letter->image_bytes);
  for (size_t i = 0; letter->fields && i + 1 < letter->fields->elements; i += 2)
    if (strcmp(letter->fields->element[i]->str, "uri") == 0)
      snprintf(out, out_bytes, "%s", letter->fields->element[i + 1]->str);
}

static tf_code list_letter(void *context, const tf_letter *letter) {
  dead_command *self = context;
  if (self->seen++ >= (uint64_t)self->config->limit) return TF_ERR_CANCELLED;
  if (self->config->json) {
    print_json(self, letter);
    return TF_OK;
  }
  char age[32], what[512];
  tf_duration_text((double)(tf_unix_ms() - strtoll(letter->sid, NULL, 10)) / 1000, age, sizeof age);
  describe(letter, what, sizeof what);
  tf_buffer line;
  tf_buffer_init(&line, 8192);
  tf_text_cell(letter->id, 24, &line);
  tf_buffer_printf(&line, "  ");
  tf_text_cell(letter->code, 20, &line);
  tf_buffer_printf(&line, " %5s  %8s  ", letter->attempts, age);
  tf_text_clean_append(what, &line);
  tf_text_print_line(&line);
  tf_buffer_clear(&line);
  tf_buffer_printf(&line, "    ");
  tf_text_clean_append(letter->message, &line);
  tf_text_print_line(&line);
  tf_buffer_free(&line);
  return TF_OK;
}

static tf_code show_letter(void *context, const tf_letter *letter) {
  dead_command *self = context;
  self->seen++;
  if (self->config->json) {
    print_json(self, letter);
    return TF_OK;
  }
  char age[32];
  tf_duration_text((double)(tf_unix_ms() - strtoll(letter->sid, NULL, 10)) / 1000, age, sizeof age);
  tf_buffer text;
  tf_buffer_init(&text, 4 << 20);
  for (size_t i = 0; letter->fields && i + 1 < letter->fields->elements; i += 2) {
    tf_text_cell(letter->fields->element[i]->str, 18, &text);
    tf_buffer_printf(&text, " ");
    tf_text_clean_append(letter->fields->element[i + 1]->str, &text);
    tf_buffer_printf(&text, "\n");
  }
  if (letter->image_bytes >= 0) tf_buffer_printf(&text, "%-18s %lld bytes\n", "image", (long long)letter->image_bytes);
  tf_buffer_printf(&text, "%-18s %s ago (letter %s)\n", "died", age, letter->sid);
  if (self->deployment.count > 1)
    tf_buffer_printf(&text, "%-18s %s\n", "redis", self->deployment.places[self->link - self->deployment.links]);
  fwrite(text.data, 1, text.size, stdout);
  putchar('\n');
  tf_buffer_free(&text);
  return TF_OK;
}

/* -- retry and drop ----------------------------------------------------------------------------------------------- */

static tf_code settle(dead_command *self, tf_error *error) {
  redisReply *reply;
  if (self->sid_count == 0) return TF_OK;
  tf_code code = tf_letters_settle(&self->deployment, self->link, self->action,
                                   (const char(*)[TF_LETTER_SID_BYTES])self->sids, self->sid_count, &reply, error);
  if (code) return code;
  for (size_t i = 0; i < self->sid_count; i++) {
    const char *verdict = reply->element[i]->str;
    bool done = strcmp(verdict, "retried") == 0 || strcmp(verdict, "dropped") == 0;
    self->done += done;
    self->refused += !done;
    self->no_image += strcmp(verdict, "no_image") == 0;
    self->ended += strcmp(verdict, "ended") == 0;
    self->gone += strcmp(verdict, "gone") == 0;
  }
  freeReplyObject(reply);
  self->sid_count = 0;
  return TF_OK;
}

typedef struct gathering {
  dead_command *command;
  tf_error *error;
} gathering;

static tf_code settle_letter(void *context, const tf_letter *letter) {
  gathering *self = context;
  dead_command *command = self->command;
  if (tf_interrupt_count() > 0) return tf_fail(self->error, TF_ERR_CANCELLED, "interrupted");
  command->seen++;
  snprintf(command->sids[command->sid_count++], TF_LETTER_SID_BYTES, "%s", letter->sid);
  return command->sid_count == TF_LETTERS_A_CALL ? settle(command, self->error) : TF_OK;
}

/* -- which letters ------------------------------------------------------------------------------------------------ */

static tf_code each_server(dead_command *self, const char *id, tf_letter_fn fn, void *context, tf_error *error) {
  tf_code code = TF_OK;
  for (size_t i = 0; !code && i < self->deployment.count; i++) {
    self->link = &self->deployment.links[i];
    code = tf_letters_each(&self->deployment, self->link, self->config->code, id, fn, context, error);
    if (!code && self->action) code = settle(self, error);
  }
  return code;
}

/* One id: by the note of its end where it is kept, which is quick, else by looking through all letters. */
static tf_code one_id(dead_command *self, const char *id, tf_letter_fn fn, void *context, tf_error *error) {
  uint64_t before = self->seen;
  tf_code code = TF_OK;
  char sid[TF_LETTER_SID_BYTES];
  for (size_t i = 0; self->action && !code && i < self->deployment.count; i++) {
    self->link = &self->deployment.links[i];
    code = tf_letters_find(&self->deployment, self->link, id, sid, error);
    if (code || !sid[0]) continue;
    tf_letter letter = {.sid = sid};
    code = fn(context, &letter);
    return code ? code : settle(self, error);
  }
  if (!code) code = each_server(self, id, fn, context, error);
  if (!code && self->seen == before) {
    tf_say("no dead letter has the id %.200s", id);
    self->refused++;
  }
  return code;
}

/* -- the command -------------------------------------------------------------------------------------------------- */

typedef enum verb { LIST, SHOW, RETRY, DROP, NO_VERB } verb;

static verb verb_of(const char *word) {
  static const char *const words[] = {"list", "show", "retry", "drop"};
  for (int i = 0; i < NO_VERB; i++)
    if (strcmp(words[i], word) == 0) return (verb)i;
  return NO_VERB;
}

static tf_code check(const dead_config *config, const char **words, size_t count, verb *out, tf_error *error) {
  *out = count > 0 ? verb_of(words[0]) : NO_VERB;
  if (*out == NO_VERB)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "dead%s%.100s: list, show, retry or drop is expected",
                   count > 0 ? " " : "", count > 0 ? words[0] : "");
  size_t ids = count - 1;
  if (*out == LIST && ids > 0) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "dead list takes no ids; dead show does");
  if (*out == SHOW && ids == 0) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "dead show needs an ID");
  bool many = *out == RETRY || *out == DROP;
  if (many && ids == 0 && !config->all && !config->code)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "dead %s needs IDs, --code CODE or --all", words[0]);
  if (many && ids > 0 && (config->all || config->code))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "dead %s: either IDs, or --code CODE or --all", words[0]);
  /* Nothing is how "any" is said to letters.lua: a script's variable that is not set must not mean every letter. */
  if (config->code && !config->code[0]) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--code is empty");
  for (size_t i = 1; i < count; i++)
    if (!words[i][0]) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "dead %s: an ID is empty", words[0]);
  return TF_OK;
}

static void tell_end(const dead_command *self, verb what) {
  if (what == RETRY || what == DROP) {
    printf("%llu %s\n", (unsigned long long)self->done, what == RETRY ? "put back on the queue" : "dropped");
    if (self->no_image)
      tf_say("%llu can not be tried again: their image was not kept, or there never was one",
             (unsigned long long)self->no_image);
    if (self->ended)
      tf_say("%llu are left as they are: their id has ended again meanwhile", (unsigned long long)self->ended);
    if (self->gone) tf_say("%llu were gone already", (unsigned long long)self->gone);
  } else if (what == LIST && self->seen > (uint64_t)self->config->limit) {
    tf_say("only the first %lld are shown (--limit)", (long long)self->config->limit);
  }
}

static tf_code work(dead_command *self, verb what, const char **ids, size_t count, tf_error *error) {
  gathering gathered = {.command = self, .error = error};
  tf_letter_fn fn = what == LIST ? list_letter : what == SHOW ? show_letter : settle_letter;
  void *context = what == LIST || what == SHOW ? (void *)self : &gathered;
  const char *lane = self->config->lane;
  if (what == RETRY) self->action = strcmp(lane, "own") == 0 ? lane : strcmp(lane, "interactive") == 0 ? "0" : "1";
  if (what == DROP) self->action = "drop";
  tf_code code = tf_deployment_connect(&self->deployment, error);
  if (!code && count == 0) code = each_server(self, NULL, fn, context, error);
  for (size_t i = 0; !code && i < count; i++) code = one_id(self, ids[i], fn, context, error);
  if (what == LIST && code == TF_ERR_CANCELLED && tf_interrupt_count() == 0) code = TF_OK; /* --limit */
  return code;
}

int tf_dead_main(int argc, char **argv) {
  static dead_config config;
  dead_command self = {.config = &config};
  const char **words;
  size_t count;
  int status;
  verb what;
  tf_error error;
  if (!tf_command_parse(&program, argc, argv, &config, &words, &count, &status)) return status;
  tf_interrupt_setup();
  tf_code code = check(&config, words, count, &what, &error);
  if (!code) code = tf_deployment_init(&self.deployment, &config.where, NULL, &error);
  status = code ? TF_EXIT_USAGE : TF_EXIT_FAILED;
  if (!code) code = work(&self, what, words + 1, count - 1, &error);
  if (code) tf_say("%s", error.text);
  if (!code || self.done > 0) tell_end(&self, what);
  bool written = fflush(stdout) == 0 && !ferror(stdout);
  tf_deployment_free(&self.deployment);
  free(words);
  if (code || !written) return status;
  return self.refused > 0 ? TF_EXIT_PARTIAL : TF_EXIT_OK;
}

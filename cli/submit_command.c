/* `tokenflex submit`: puts jobs on a deployment's queue, and collects what becomes of them where asked to.
 * In: files, URIs, a list on standard input. Out: a line `ID<TAB>INPUT` for every job; with --wait instead a JSON line
 * for every caption and failure. One thread; at most WAITING_MAX jobs are out at a time while somebody waits. */
#include "cli/submit_command.h"

#include "cli/collect.h"
#include "cli/command.h"
#include "cli/deployment.h"
#include "cli/jsonl.h"
#include "cli/queue.h"
#include "cli/submit.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/utf8.h"
#include "proto/wire.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { WAITING_MAX = 1024, PAUSE_US = 100000, BLOCK_MS = 100, RUN_BYTES = 24, NUMBER_BYTES = 24 };
enum { KEPT_MAX = 10000 }; /* answers of a run to ids that the user named, left in Redis for whoever asks again */

typedef struct submit_config {
  tf_deployment_options where;
  const char *id, *prompt, *lane, *reply, *trace, *log_level;
  int64_t tokens_min, tokens_max, tokens, new_tokens, deadline_ms, timeout_s;
  bool wait, by_reference;
} submit_config;

#define FIELD(name) offsetof(submit_config, name)
static const tf_option options[] = {
    TF_DEPLOYMENT_ROWS(submit_config, where),
    {"wait", 'w', TF_OPTION_FLAG, FIELD(wait), 0, 0, NULL, NULL, "Wait for every job and print a JSON line for each"},
    {"by-reference", 0, TF_OPTION_FLAG, FIELD(by_reference), 0, 0, NULL, NULL,
     "Send the place of a FILE (file://), which encoders must see too; else its bytes"},
    {"id", 0, TF_OPTION_STRING, FIELD(id), 0, 0, NULL, "ID",
     "Of the job, where it is one; an id that has ended adds none"},
    {"prompt", 'p', TF_OPTION_STRING, FIELD(prompt), 0, 0, NULL, "TEXT",
     "Question or instruction; else the model's own"},
    {"vision-tokens", 0, TF_OPTION_INT, FIELD(tokens), 0, TF_VISION_TOKENS_MAX, "0", "tokens",
     "Exactly so many; 0: the queue decides"},
    {"min-vision-tokens", 0, TF_OPTION_INT, FIELD(tokens_min), 0, TF_VISION_TOKENS_MAX, "0", "tokens",
     "At least; 0: no limit"},
    {"max-vision-tokens", 0, TF_OPTION_INT, FIELD(tokens_max), 0, TF_VISION_TOKENS_MAX, "0", "tokens",
     "At most; 0: no limit"},
    {"max-new-tokens", 0, TF_OPTION_INT, FIELD(new_tokens), 0, 4096, "0", "tokens",
     "Longest caption; 0: the service's 40"},
    {"deadline-ms", 0, TF_OPTION_INT, FIELD(deadline_ms), 0, 31536e6, "0", "ms", "From now; later it is dead; 0: none"},
    {"lane", 0, TF_OPTION_CHOICE, FIELD(lane), 0, 0, "batch", "interactive|batch",
     "Interactive jobs are taken first, 4 to 1"},
    {"reply", 0, TF_OPTION_STRING, FIELD(reply), 0, 0, NULL, "NAME",
     "Results go to the stream tf:{Q}:reply:NAME, kept a day; --wait reads it"},
    {"trace", 0, TF_OPTION_STRING, FIELD(trace), 0, 0, NULL, "TEXT",
     "Appears in the services' logs: a text, or a W3C traceparent"},
    {"log-level", 0, TF_OPTION_CHOICE, FIELD(log_level), 0, 0, "warn", "debug|info|warn|error",
     "Lines below this are not logged"},
    {"timeout-s", 0, TF_OPTION_INT, FIELD(timeout_s), 1, 31536000, "600", "s",
     "Longest wait for a place on the queue, for Redis, or for the next result"},
};
static const tf_program program = {
    .name = "tokenflex submit",
    .synopsis = "[options] FILE|URI... (or - for a list on standard input)",
    .summary = "Puts jobs on a queue. Prints `ID<TAB>INPUT` for each; with --wait a JSON line for each that ends. "
               "A line of the list is an input, or ID<TAB>INPUT. Status 3: some failed.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

/* A job that somebody waits for. */
typedef struct waiting_job {
  char *id, *input; /* id NULL: a free place */
} waiting_job;

typedef struct submission {
  const submit_config *config;
  tf_deployment deployment;
  tf_collector *collectors; /* one a server */
  char run[RUN_BYTES];      /* what ids and the reply stream are called where the user names neither */
  uint64_t number, submitted, failed, answered;
  uint64_t named; /* jobs whose ids are the user's, who may submit them again */
  waiting_job waiting[WAITING_MAX];
  size_t waiting_count;
  int64_t progress_ms; /* when something last went on */
  bool output_broken;
} submission;

/* -- inputs ------------------------------------------------------------------------------------------------------- */

bool tf_submit_is_uri(const char *input) {
  return strncmp(input, "file://", 7) == 0 || strncmp(input, "http://", 7) == 0 || strncmp(input, "https://", 8) == 0;
}

/* UTF-8 without control characters. */
static bool is_plain(const char *text, size_t bytes_max) {
  size_t size = strlen(text);
  if (size > bytes_max || !tf_utf8_is_valid(text, size)) return false;
  for (size_t i = 0; i < size; i++)
    if ((unsigned char)text[i] < 0x20 || text[i] == 0x7F) return false;
  return true;
}

bool tf_submit_id_is_valid(const char *id) {
  return id[0] && is_plain(id, TF_SUBMIT_ID_BYTES_MAX);
}

tf_code tf_submit_parse_line(char *line, const char **id, const char **input, tf_error *error) {
  size_t size = strlen(line);
  while (size > 0 && (line[size - 1] == '\n' || line[size - 1] == '\r')) line[--size] = '\0';
  char *tab = strchr(line, '\t');
  *id = NULL;
  *input = size > 0 ? line : NULL;
  if (!tab) return TF_OK;
  *tab = '\0';
  *id = line;
  *input = tab + 1;
  if (!tf_submit_id_is_valid(line))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "an id is 1 to %d bytes of UTF-8 without control characters",
                   TF_SUBMIT_ID_BYTES_MAX);
  if (!**input) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "after the id and the tab an input is expected");
  return TF_OK;
}

/* -- output ------------------------------------------------------------------------------------------------------- */

static void put_line(submission *self, const char *data, size_t size) {
  if (self->output_broken) return;
  if (fwrite(data, 1, size, stdout) == size && fflush(stdout) == 0) return;
  self->output_broken = true;
  tf_say("standard output: %s", strerror(errno));
}

/* A failure, found here or by the service. */
static void put_failure(submission *self, const char *id, const char *input, const char *code, const char *message,
                        int64_t attempts) {
  self->failed++;
  tf_buffer shown;
  tf_buffer_init(&shown, TF_JSONL_LINE_BYTES_MAX);
  tf_jsonl_name(input, &shown);
  for (size_t i = 0; i < shown.size; i++)
    if ((unsigned char)shown.data[i] < 0x20 || shown.data[i] == 0x7F) shown.data[i] = '?';
  tf_say("failed: %s: %s: %.300s", shown.data ? shown.data : "", code, message);
  tf_buffer_free(&shown);
  if (!self->config->wait) return;
  tf_buffer line;
  tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
  if (tf_jsonl_error(id, input, code, message, attempts, &line, NULL) == TF_OK) put_line(self, line.data, line.size);
  tf_buffer_free(&line);
}

/* -- answers ------------------------------------------------------------------------------------------------------ */

static waiting_job *find_waiting(submission *self, const char *id) {
  for (size_t i = 0; i < WAITING_MAX; i++)
    if (self->waiting[i].id && strcmp(self->waiting[i].id, id) == 0) return &self->waiting[i];
  return NULL;
}

static void forget_waiting(submission *self, waiting_job *job) {
  free(job->id);
  free(job->input);
  *job = (waiting_job){.id = NULL};
  self->waiting_count--;
}

static tf_code keep_waiting(submission *self, const char *id, const char *input) {
  for (size_t i = 0; i < WAITING_MAX; i++) {
    if (self->waiting[i].id) continue;
    self->waiting[i] = (waiting_job){.id = strdup(id), .input = strdup(input)};
    if (!self->waiting[i].id || !self->waiting[i].input) break;
    self->waiting_count++;
    return TF_OK;
  }
  return TF_ERR_OUT_OF_MEMORY;
}

static tf_code on_answer(void *context, const tf_answer *answer) {
  submission *self = context;
  waiting_job *job = find_waiting(self, answer->id);
  if (!job) return TF_OK; /* of another run with this reply name, or the second copy of one */
  self->progress_ms = tf_now_ms();
  tf_log_debug("answer_read", TF_STR("job", answer->id), TF_STR("trace", self->config->trace),
               TF_STR("code", answer->json ? "ok" : answer->error_code));
  if (!answer->json) {
    put_failure(self, answer->id, job->input, answer->error_code ? answer->error_code : "internal",
                answer->error_message ? answer->error_message : "", answer->attempts);
  } else {
    tf_buffer line;
    tf_caption_facts facts;
    tf_error why;
    tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
    if (tf_jsonl_caption(answer->json, answer->json_bytes, answer->id, job->input, &line, &facts, &why) == TF_OK)
      put_line(self, line.data, line.size);
    else
      put_failure(self, answer->id, job->input, "protocol", why.text, answer->attempts);
    tf_buffer_free(&line);
  }
  self->answered++;
  forget_waiting(self, job);
  return TF_OK;
}

/* -- waiting ------------------------------------------------------------------------------------------------------ */

/* After a fault that may pass: false once it has lasted too long, or somebody wants us to stop. */
static bool go_on(submission *self, tf_error *error) {
  if (tf_interrupt_count() > 0) {
    tf_fail(error, TF_ERR_CANCELLED, "interrupted");
    return false;
  }
  return tf_now_ms() - self->progress_ms < self->config->timeout_s * 1000;
}

/* One look at every server. TF_OK also where a connection was lost: the next look makes it again. */
static tf_code collect_once(submission *self, int block_ms, tf_error *error) {
  bool any_connected = false;
  for (size_t i = 0; i < self->deployment.count; i++) {
    tf_link *link = &self->deployment.links[i];
    tf_code code = tf_link_connect(link, error);
    if (!code) code = tf_collect(link, &self->collectors[i], block_ms, on_answer, self, error);
    if (code && link->context) return code; /* Redis answers, and refuses */
    any_connected = any_connected || !code;
  }
  if (!any_connected || block_ms == 0) usleep(PAUSE_US);
  return TF_OK;
}

/* Until at most count jobs are out. */
static tf_code wait_for(submission *self, size_t count, tf_error *error) {
  int block_ms = self->deployment.count == 1 ? BLOCK_MS : 0;
  while (self->waiting_count > count && !self->output_broken) {
    tf_error why = {.text = ""};
    tf_code code = collect_once(self, block_ms, &why);
    if (code) return tf_fail(error, code, "%s", why.text);
    if (!go_on(self, error)) {
      if (tf_interrupt_count() > 0) return TF_ERR_CANCELLED;
      return tf_fail(error, TF_ERR_TIMEOUT, "no result came for %lld s%s%s; `tokenflex status` shows the queue",
                     (long long)self->config->timeout_s, why.text[0] ? ": " : "", why.text);
    }
  }
  return self->output_broken ? tf_fail(error, TF_ERR_IO, "standard output can not be written") : TF_OK;
}

/* -- jobs --------------------------------------------------------------------------------------------------------- */

typedef struct job_fields {
  tf_submit_field items[TF_SUBMIT_FIELDS_MAX];
  char numbers[4][NUMBER_BYTES];
  size_t count;
} job_fields;

static void add_text(job_fields *self, const char *name, const char *text) {
  if (text && *text) self->items[self->count++] = (tf_submit_field){name, text, strlen(text)};
}

static void add_number(job_fields *self, size_t place, const char *name, int64_t value) {
  if (value == 0) return;
  snprintf(self->numbers[place], NUMBER_BYTES, "%lld", (long long)value);
  add_text(self, name, self->numbers[place]);
}

/* Everything but the image. */
static void add_terms(const submit_config *config, const char *reply, job_fields *out) {
  add_text(out, "prompt", config->prompt);
  add_number(out, 0, "min_vision_tokens", config->tokens ? config->tokens : config->tokens_min);
  add_number(out, 1, "max_vision_tokens", config->tokens ? config->tokens : config->tokens_max);
  add_number(out, 2, "max_new_tokens", config->new_tokens);
  add_number(out, 3, "deadline_ms", config->deadline_ms);
  add_text(out, "reply", reply);
  add_text(out, "trace", config->trace);
}

/* Adds `uri` or `image`. *uri or *data is to be freed. */
static tf_code add_image(const submit_config *config, const char *input, job_fields *out, tf_buffer *uri, char **data,
                         tf_error *error) {
  size_t size;
  if (tf_submit_is_uri(input)) {
    if (strlen(input) > TF_SUBMIT_URI_BYTES_MAX)
      return tf_fail(error, TF_ERR_URI_INVALID, "the URI is longer than %d bytes", TF_SUBMIT_URI_BYTES_MAX);
    add_text(out, "uri", input);
    return TF_OK;
  }
  if (config->by_reference) {
    char *path = realpath(input, NULL);
    if (!path) return tf_fail(error, errno == ENOENT ? TF_ERR_IMAGE_MISSING : TF_ERR_IO, "%s", strerror(errno));
    tf_buffer_printf(uri, "file://");
    tf_uri_escape(path, uri);
    free(path);
    if (uri->overflow) return tf_fail(error, TF_ERR_URI_INVALID, "the path is too long for a URI");
    add_text(out, "uri", uri->data);
    return TF_OK;
  }
  tf_code code = tf_submit_read_image(input, data, &size, error);
  if (!code) out->items[out->count++] = (tf_submit_field){"image", *data, size};
  return code;
}

/* Adds the job; waits while the queue is full or Redis is away. Meanwhile what is answered is taken, this job's answer
 * among it: where a connection broke, the job may have been added although nobody said so. */
static tf_code send(submission *self, const char *id, const job_fields *fields, tf_error *error) {
  int lane = strcmp(self->config->lane, "interactive") == 0 ? 0 : 1;
  tf_link *link = tf_deployment_link(&self->deployment, id);
  bool told = false;
  self->progress_ms = tf_now_ms();
  for (;;) {
    tf_error why;
    tf_code code = tf_link_connect(link, &why);
    if (!code) code = tf_submit_fields(link, lane, fields->items, fields->count, &why);
    if (!code) return TF_OK;
    bool passes = code == TF_ERR_QUEUE_FULL || !link->context;
    if (!passes) return tf_fail(error, code, "%s", why.text);
    if (!told) tf_say("%s; waiting up to %lld s", why.text, (long long)self->config->timeout_s);
    told = true;
    tf_error ignored; /* a refusal that lasts is told by the next try */
    if (self->waiting_count == 0 || collect_once(self, 0, &ignored)) usleep(PAUSE_US);
    if (self->config->wait && !find_waiting(self, id)) return TF_OK;
    if (!go_on(self, &why)) return tf_fail(error, tf_interrupt_count() > 0 ? TF_ERR_CANCELLED : code, "%s", why.text);
  }
}

static void put_submitted(submission *self, const char *id, const char *input) {
  tf_buffer line;
  tf_buffer_init(&line, TF_JSONL_LINE_BYTES_MAX);
  tf_buffer_printf(&line, "%s\t", id);
  tf_jsonl_name(input, &line);
  tf_buffer_append(&line, "\n", 1);
  put_line(self, line.data, line.size);
  tf_buffer_free(&line);
}

/* Whoever waits does so before the job is sent: its answer may come sooner than the news that it was added. */
static tf_code submit_fields(submission *self, const char *id, const char *input, const job_fields *fields,
                             tf_error *error) {
  bool wait = self->config->wait;
  if (wait && keep_waiting(self, id, input)) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  tf_code code = send(self, id, fields, error);
  waiting_job *job = code && wait ? find_waiting(self, id) : NULL;
  if (job) forget_waiting(self, job);
  if (code) return code;
  self->submitted++;
  if (!wait) put_submitted(self, id, input);
  return TF_OK;
}

/* A note of an id that has ended already; without one there is none, and Redis's faults are the sending's to tell. */
static void tell_ended_before(const submission *self, const char *id) {
  char prefix[TF_LINK_KEY_BYTES], key[TF_LINK_KEY_BYTES + TF_SUBMIT_ID_BYTES_MAX];
  tf_link *link = tf_deployment_link(&self->deployment, id);
  redisReply *reply;
  tf_deployment_key(&self->deployment, "done:", prefix);
  snprintf(key, sizeof key, "%s%s", prefix, id);
  if (tf_link_connect(link, NULL) || tf_link_ask(link, &reply, NULL, "GET", key, NULL)) return;
  if (reply->type == REDIS_REPLY_STRING)
    tf_say("id %.256s has ended before; nothing was added to do%s", id,
           self->config->reply ? ", its end is answered once more" : "");
  freeReplyObject(reply);
}

/* An id of the user's may come again, after a fault: its answer is kept in our reply stream, which is where the routers
 * find it then, until that expires. A very long list is not kept. */
static void note_named(submission *self, const char *id) {
  self->named++;
  if (!self->config->wait && self->config->id) tell_ended_before(self, id);
  for (size_t i = 0; !self->config->reply && i < self->deployment.count; i++)
    self->collectors[i].keep = self->named <= KEPT_MAX;
}

/* TF_OK also where this input can not be a job: that is told, and counted. */
static tf_code submit_one(submission *self, const char *id, const char *input, tf_error *error) {
  char made[RUN_BYTES + NUMBER_BYTES];
  snprintf(made, sizeof made, "%s-%llu", self->run, (unsigned long long)++self->number);
  if (id)
    note_named(self, id);
  else
    id = made;
  job_fields fields = {.count = 0};
  tf_buffer uri;
  char *data = NULL;
  tf_error why = {.text = ""};
  tf_buffer_init(&uri, TF_SUBMIT_URI_BYTES_MAX);
  add_text(&fields, "id", id);
  const char *reply = self->config->reply ? self->config->reply : self->config->wait ? self->run : NULL;
  add_terms(self->config, reply, &fields);
  tf_code own = add_image(self->config, input, &fields, &uri, &data, &why);
  if (!own && self->config->wait && find_waiting(self, id))
    own = tf_fail(&why, TF_ERR_INVALID_ARGUMENT, "this id is under way already");
  tf_code code = own ? TF_OK : submit_fields(self, id, input, &fields, error);
  if (own) put_failure(self, id, input, tf_code_name(own), why.text, 0);
  free(data);
  tf_buffer_free(&uri);
  if (!code && self->config->wait && self->waiting_count == WAITING_MAX) code = wait_for(self, WAITING_MAX - 1, error);
  if (!code && self->output_broken) code = tf_fail(error, TF_ERR_IO, "standard output can not be written");
  return code;
}

/* The next line of standard input, without its newline, and of the first one without a byte order mark. *found false:
 * there is none. */
static tf_code read_line(uint64_t number, char out[TF_SUBMIT_LINE_BYTES_MAX + 1], bool *found, tf_error *error) {
  size_t size = 0;
  int byte;
  out[0] = '\0';
  while ((byte = getc_unlocked(stdin)) != EOF && byte != '\n') {
    if (byte == '\0')
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "standard input, line %llu: holds a NUL; a list is lines of UTF-8",
                     (unsigned long long)number);
    if (size == TF_SUBMIT_LINE_BYTES_MAX)
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "standard input, line %llu: longer than %d bytes",
                     (unsigned long long)number, TF_SUBMIT_LINE_BYTES_MAX);
    out[size++] = (char)byte;
  }
  out[size] = '\0';
  if (number == 1 && strncmp(out, "\xEF\xBB\xBF", 3) == 0) memmove(out, out + 3, size - 2);
  *found = byte != EOF || (size > 0 && !ferror(stdin));
  return TF_OK;
}

static tf_code submit_list(submission *self, tf_error *error) {
  char line[TF_SUBMIT_LINE_BYTES_MAX + 1];
  bool found = true;
  tf_code code = TF_OK;
  for (uint64_t number = 1; !code; number++) {
    const char *id, *input;
    tf_error why;
    code = read_line(number, line, &found, error);
    if (code || !found) break;
    if (tf_interrupt_count() > 0) return tf_fail(error, TF_ERR_CANCELLED, "interrupted");
    if (tf_submit_parse_line(line, &id, &input, &why))
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "standard input, line %llu: %s", (unsigned long long)number,
                     why.text);
    if (input) code = submit_one(self, id, input, error);
  }
  if (!code && ferror(stdin)) {
    code = tf_interrupt_count() > 0 ? tf_fail(error, TF_ERR_CANCELLED, "interrupted")
                                    : tf_fail(error, TF_ERR_IO, "standard input: %s", strerror(errno));
  }
  return code;
}

/* -- the command -------------------------------------------------------------------------------------------------- */

static bool is_reply_name(const char *name) {
  static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-";
  size_t length = strspn(name, allowed);
  return length > 0 && length <= 128 && !name[length];
}

static tf_code check(const submit_config *config, const char **inputs, size_t count, tf_error *error) {
  if (count == 0) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "name a FILE or a URI, or - for a list");
  if (config->id && (count != 1 || strcmp(inputs[0], "-") == 0))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "--id is for one job; in a list each line may begin with its id and a tab");
  if (config->id && !tf_submit_id_is_valid(config->id))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--id: 1 to %d bytes of UTF-8 without control characters",
                   TF_SUBMIT_ID_BYTES_MAX);
  if (config->reply && !is_reply_name(config->reply))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--reply %.150s: a name is 1 to 128 of A-Z a-z 0-9 . _ : -",
                   config->reply);
  if (config->trace && !is_plain(config->trace, TF_TRACE_BYTES_MAX))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--trace: at most %d bytes of UTF-8 without control characters",
                   TF_TRACE_BYTES_MAX);
  if (config->prompt &&
      (strlen(config->prompt) > TF_PROMPT_BYTES_MAX || !tf_utf8_is_valid(config->prompt, strlen(config->prompt))))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--prompt: at most %d bytes of UTF-8", TF_PROMPT_BYTES_MAX);
  if (config->tokens && (config->tokens_min || config->tokens_max))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--vision-tokens sets both limits: leave --min- and --max- out");
  if (config->tokens_min && config->tokens_max && config->tokens_min > config->tokens_max)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--min-vision-tokens is above --max-vision-tokens");
  for (size_t i = 0, lists = 0; i < count; i++)
    if (strcmp(inputs[i], "-") == 0 && ++lists > 1) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "- is given twice");
  return TF_OK;
}

/* Counts that the model does not have are found here where a router tells which it has. */
static tf_code check_counts(submission *self, tf_error *error) {
  const submit_config *config = self->config;
  const int64_t asked[] = {config->tokens, config->tokens_min, config->tokens_max};
  tf_queue_model model;
  tf_code code = tf_queue_read_model(&self->deployment.links[0], &model, error);
  if (code || !model.live) return code;
  for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
    bool known = asked[i] == 0;
    for (uint32_t k = 0; k < model.token_count_count; k++) known = known || asked[i] == model.token_counts[k];
    char counts[128];
    tf_queue_counts_text(model.token_counts, model.token_count_count, counts, sizeof counts);
    if (!known)
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%lld vision tokens: this queue's model takes %s",
                     (long long)asked[i], counts);
  }
  return TF_OK;
}

static tf_code prepare(submission *self, tf_error *error) {
  uint64_t noise = 0;
  if (getrandom(&noise, sizeof noise, GRND_NONBLOCK) != sizeof noise)
    noise = (uint64_t)tf_unix_us() ^ (uint64_t)getpid() << 40;
  snprintf(self->run, sizeof self->run, "s%016llx", (unsigned long long)noise);
  const char *reply = self->config->reply ? self->config->reply : self->run;
  tf_code code = tf_deployment_init(&self->deployment, &self->config->where, reply, error);
  if (code) return code;
  self->collectors = calloc(self->deployment.count, sizeof *self->collectors);
  if (!self->collectors) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  code = tf_deployment_connect(&self->deployment, error);
  for (size_t i = 0; !code && self->config->reply && i < self->deployment.count; i++)
    code = tf_collect_shared(&self->deployment.links[i], &self->collectors[i], error);
  return code ? code : check_counts(self, error);
}

static void finish(submission *self, bool all_answered) {
  bool kept = self->config->reply || (self->named > 0 && self->named <= KEPT_MAX);
  for (size_t i = 0; i < self->deployment.count && self->deployment.links; i++) {
    tf_link *link = &self->deployment.links[i];
    if (all_answered && self->config->wait && !kept && link->context) tf_collect_end(link);
  }
  for (size_t i = 0; i < WAITING_MAX; i++) {
    free(self->waiting[i].id);
    free(self->waiting[i].input);
  }
  tf_deployment_free(&self->deployment);
  free(self->collectors);
}

static int submit_all(submission *self, const char **inputs, size_t count) {
  tf_error error = {.text = ""};
  tf_code code = check(self->config, inputs, count, &error);
  if (!code) code = prepare(self, &error);
  int usage = code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : TF_EXIT_FAILED;
  self->progress_ms = tf_now_ms();
  for (size_t i = 0; !code && i < count; i++) {
    code =
        strcmp(inputs[i], "-") == 0 ? submit_list(self, &error) : submit_one(self, self->config->id, inputs[i], &error);
    if (!code && tf_interrupt_count() > 0) code = tf_fail(&error, TF_ERR_CANCELLED, "interrupted");
  }
  self->progress_ms = tf_now_ms();
  if (!code && self->config->wait) code = wait_for(self, 0, &error);
  if (code && !self->output_broken) tf_say("%s", error.text);
  if (code && self->submitted > self->answered)
    tf_say(self->submitted - self->answered == 1 ? "%llu job was put on the queue and goes on%s%s"
                                                 : "%llu jobs were put on the queue and go on%s%s",
           (unsigned long long)(self->submitted - self->answered),
           self->config->wait ? "; what comes of it is kept a day in tf:{Q}:reply:" : "",
           !self->config->wait   ? ""
           : self->config->reply ? self->config->reply
                                 : self->run);
  bool before_any = self->submitted == 0 && self->failed == 0;
  uint64_t failed = self->failed;
  finish(self, !code);
  return code ? (before_any ? usage : TF_EXIT_FAILED) : failed > 0 ? TF_EXIT_PARTIAL : TF_EXIT_OK;
}

int tf_submit_main(int argc, char **argv) {
  static submit_config config;
  const char **inputs;
  size_t count;
  int status;
  if (!tf_command_parse(&program, argc, argv, &config, &inputs, &count, &status)) return status;
  tf_log_setup("tokenflex", config.log_level);
  submission *self = calloc(1, sizeof *self);
  tf_interrupt_setup();
  if (self) {
    self->config = &config;
    status = submit_all(self, inputs, count);
  } else {
    tf_say("out of memory");
    status = TF_EXIT_FAILED;
  }
  free(self);
  free(inputs);
  return status;
}

/* Adds jobs with router/lua/submit.lua. In: paths. Out: entries with id, image or uri, prompt, limits, reply.
 * The script is loaded once a connection and called by its hash.
 * A path whose URI would be too long for a job goes as bytes, wherever it goes. */
#include "cli/submit.h"

#include "cli/jsonl.h"
#include "common/buffer.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lua_scripts.h"

enum { PARTS_MAX = 40, ENTRY_BYTES = 48 };

/* *data is malloc'ed. */
static tf_code read_fd(int fd, char **data, size_t *size, tf_error *error) {
  struct stat status;
  if (fstat(fd, &status)) return tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
  if (!S_ISREG(status.st_mode)) return tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED, "not a file");
  if (status.st_size == 0) return tf_fail(error, TF_ERR_IMAGE_EMPTY, "%s", tf_code_text(TF_ERR_IMAGE_EMPTY));
  if (status.st_size > TF_SUBMIT_IMAGE_BYTES_MAX)
    return tf_fail(error, TF_ERR_IMAGE_TOO_LARGE, "the file has %lld bytes; a job carries at most %d",
                   (long long)status.st_size, TF_SUBMIT_IMAGE_BYTES_MAX);
  *data = malloc((size_t)status.st_size);
  if (!*data) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  for (*size = 0; *size < (size_t)status.st_size;) {
    ssize_t got = read(fd, *data + *size, (size_t)status.st_size - *size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
    if (got == 0) break; /* it shrank meanwhile */
    *size += (size_t)got;
  }
  return TF_OK;
}

tf_code tf_submit_read_image(const char *path, char **data, size_t *size, tf_error *error) {
  *data = NULL;
  *size = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return tf_fail(error, errno == ENOENT ? TF_ERR_IMAGE_MISSING : TF_ERR_IO, "%s", strerror(errno));
  tf_code code = read_fd(fd, data, size, error);
  close(fd);
  return code;
}

static tf_code load_script(tf_link *link, tf_error *error) {
  redisReply *reply;
  tf_code code = tf_link_ask(link, &reply, error, "SCRIPT", "LOAD", tf_lua_submit, NULL);
  if (code) return code;
  if (reply->type == REDIS_REPLY_STRING && reply->len == 40)
    memcpy(link->submit_sha, reply->str, 41);
  else
    code = tf_fail(error, TF_ERR_REDIS, "Redis gave no hash for a script");
  freeReplyObject(reply);
  return code;
}

static bool starts_with(const char *text, const char *start) {
  return strncmp(text, start, strlen(start)) == 0;
}

/* An error reply to the script. *again: the script is unknown there, load it and call again. */
static tf_code judge(tf_link *link, const redisReply *reply, bool *again, tf_error *error) {
  *again = false;
  if (reply->type != REDIS_REPLY_ERROR) return TF_OK;
  if (starts_with(reply->str, "NOSCRIPT")) {
    *again = true;
    link->submit_sha[0] = '\0';
    return TF_ERR_REDIS;
  }
  if (starts_with(reply->str, "OOM"))
    return tf_fail(
        error, TF_ERR_QUEUE_FULL,
        "Redis is full (at its maxmemory); nothing is lost, and jobs that end make room. If it stays so: read "
        "and acknowledge the results, see that workers run, or raise maxmemory");
  if (starts_with(reply->str, "queue_full") || starts_with(reply->str, "ERR queue_full"))
    return tf_fail(error, TF_ERR_QUEUE_FULL, "%.300s", reply->str);
  static const char *const passing[] = {"LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN", "READONLY", "CLUSTERDOWN"};
  for (size_t i = 0; i < sizeof passing / sizeof passing[0]; i++)
    if (starts_with(reply->str, passing[i])) tf_link_close(link); /* as if lost: it is tried again */
  return tf_fail(error, TF_ERR_REDIS, "Redis refused a job: %.300s", reply->str);
}

/* entry: the new job's stream id. */
static tf_code call_script(tf_link *link, const char **parts, size_t *sizes, size_t count, char entry[ENTRY_BYTES],
                           tf_error *error) {
  for (int tries = 0;; tries++) {
    tf_code code = link->submit_sha[0] ? TF_OK : load_script(link, error);
    if (code) return code;
    parts[1] = link->submit_sha;
    sizes[1] = strlen(link->submit_sha);
    redisReply *reply;
    code = tf_link_command(link, count, parts, sizes, &reply, error);
    if (code) return code;
    bool again;
    code = judge(link, reply, &again, error);
    snprintf(entry, ENTRY_BYTES, "%s", reply->type == REDIS_REPLY_STRING ? reply->str : "");
    freeReplyObject(reply);
    if (!again) return code;
    if (tries == 1) return tf_fail(error, TF_ERR_REDIS, "Redis forgets scripts");
  }
}

typedef struct command {
  const char *parts[PARTS_MAX];
  size_t sizes[PARTS_MAX], count;
} command;

static void add_bytes(command *self, const char *data, size_t size) {
  self->parts[self->count] = data;
  self->sizes[self->count++] = size;
}
static void add_text(command *self, const char *text) {
  add_bytes(self, text, strlen(text));
}

/* The first line of a job's way through the logs. */
static void tell_submitted(const tf_submit_field *fields, size_t count, int lane, const char *sid) {
  const char *id = "", *trace = "";
  char entry[ENTRY_BYTES + 4];
  for (size_t i = 0; i < count; i++) {
    if (strcmp(fields[i].name, "id") == 0) id = fields[i].data;
    if (strcmp(fields[i].name, "trace") == 0) trace = fields[i].data;
  }
  snprintf(entry, sizeof entry, "%d:%s", lane, sid);
  tf_log_debug("job_submitted", TF_STR("job", id), TF_STR("entry", entry), TF_STR("trace", trace));
}

tf_code tf_submit_fields(tf_link *link, int lane, const tf_submit_field *fields, size_t count, tf_error *error) {
  command job = {.count = 0};
  const char *const lane_text = lane == 0 ? "0" : "1";
  const char *head[] = {"EVALSHA", "",  "5", link->jobs[0], link->jobs[1], link->encode, link->decode, link->model,
                        lane_text, "0", "0"};
  for (size_t i = 0; i < sizeof head / sizeof head[0]; i++) add_text(&job, head[i]);
  if (count > TF_SUBMIT_FIELDS_MAX) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "a job of %zu fields", count);
  for (size_t i = 0; i < count; i++) {
    add_text(&job, fields[i].name);
    add_bytes(&job, fields[i].data, fields[i].size);
  }
  char entry[ENTRY_BYTES];
  tf_code code = call_script(link, job.parts, job.sizes, job.count, entry, error);
  if (code == TF_OK) tell_submitted(fields, count, lane, entry);
  return code;
}

static tf_code send_job(tf_link *link, const tf_submit_settings *settings, const char *id, const char *uri,
                        const char *data, size_t size, tf_error *error) {
  char tokens[24], new_tokens[24];
  snprintf(tokens, sizeof tokens, "%lld", (long long)settings->vision_tokens);
  snprintf(new_tokens, sizeof new_tokens, "%lld", (long long)settings->max_new_tokens);
  const char *texts[][2] = {{"id", id},
                            {"uri", data ? NULL : uri},
                            {"prompt", settings->prompt},
                            {"min_vision_tokens", settings->vision_tokens && !settings->pace ? tokens : NULL},
                            {"max_vision_tokens", settings->vision_tokens ? tokens : NULL},
                            {"max_new_tokens", new_tokens},
                            {"pace", settings->pace},
                            {"reply", link->reply_name}};
  tf_submit_field fields[TF_SUBMIT_FIELDS_MAX];
  size_t count = 0;
  if (data) fields[count++] = (tf_submit_field){"image", data, size};
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
    if (texts[i][1]) fields[count++] = (tf_submit_field){texts[i][0], texts[i][1], strlen(texts[i][1])};
  return tf_submit_fields(link, 1, fields, count, error);
}

tf_code tf_submit(tf_link *link, const tf_submit_settings *settings, const char *id, const char *path,
                  size_t *bytes_out, tf_error *error) {
  *bytes_out = 0;
  if (!settings->by_bytes) {
    tf_buffer uri;
    tf_buffer_init(&uri, TF_SUBMIT_URI_BYTES_MAX);
    tf_buffer_printf(&uri, "file://");
    tf_uri_escape(path, &uri);
    bool fits = !uri.overflow;
    tf_code code = fits ? send_job(link, settings, id, uri.data, NULL, 0, error) : TF_OK;
    tf_buffer_free(&uri);
    if (fits) return code;
  }
  char *data;
  size_t size;
  tf_code code = tf_submit_read_image(path, &data, &size, error);
  if (!code) code = send_job(link, settings, id, NULL, data, size, error);
  free(data);
  if (!code) *bytes_out = size;
  return code;
}

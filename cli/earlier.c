/* The settings of the run that made an output, and whether they still hold.
 * In: FILE.run.json, this run's settings. Out: nothing, or a text that says what differs.
 * Compared is what changes a caption: model, prompt, length, arithmetic, vision tokens; and the format, which must not
 * be mixed. */
#include "cli/past.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEXT_BYTES_MAX = 300 };

static char *copy_of(json_t *value) {
  const char *text = json_string_value(value);
  return text ? strdup(text) : NULL;
}

tf_code tf_earlier_read(const char *run_path, tf_earlier *out, tf_error *error) {
  memset(out, 0, sizeof *out);
  json_error_t why;
  if (access(run_path, F_OK) && errno == ENOENT) return TF_OK;
  json_t *top = json_load_file(run_path, 0, &why);
  json_t *settings = json_object_get(top, "settings"), *tokens = json_object_get(settings, "vision_tokens");
  if (!json_is_object(settings)) {
    json_decref(top);
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "%s can not be read (%.100s): name another output, or move it away and give --overwrite", run_path,
                   top ? "no settings" : why.text);
  }
  out->found = true;
  out->run = copy_of(json_object_get(top, "run"));
  out->prompt = copy_of(json_object_get(settings, "prompt"));
  out->folder = copy_of(json_object_get(settings, "folder"));
  out->pair_hash = copy_of(json_object_get(json_object_get(top, "model"), "pair_hash"));
  out->compute = copy_of(json_object_get(settings, "compute"));
  out->vision_tokens = json_integer_value(tokens);
  out->max_new_tokens = json_integer_value(json_object_get(settings, "max_new_tokens"));
  const char *format = json_string_value(json_object_get(settings, "format"));
  out->format = format && strcmp(format, "csv") == 0 ? TF_FORMAT_CSV : TF_FORMAT_JSONL;
  json_t *seed = json_object_get(settings, "shuffle_seed");
  out->has_seed = json_is_integer(seed);
  out->seed = (uint64_t)json_integer_value(seed);
  json_decref(top);
  return TF_OK;
}

void tf_earlier_free(tf_earlier *self) {
  free(self->run);
  free(self->prompt);
  free(self->pair_hash);
  free(self->compute);
  free(self->folder);
  memset(self, 0, sizeof *self);
}

static bool same_text(const char *left, const char *right) {
  return left && right ? strcmp(left, right) == 0 : !left && !right;
}

static void tokens_text(int64_t tokens, tf_buffer *out) {
  if (tokens)
    tf_buffer_printf(out, "%lld", (long long)tokens);
  else
    tf_buffer_printf(out, "auto");
}

static void prompt_text(const char *prompt, tf_buffer *out) {
  if (prompt)
    tf_buffer_printf(out, "\"%.60s%s\"", prompt, strlen(prompt) > 60 ? "..." : "");
  else
    tf_buffer_printf(out, "the model's own prompt");
}

/* Appends what differs, "prompt (then "a", now "b")", one after the other. */
static void differences(const tf_earlier *self, const tf_submit_settings *settings, const char *pair_hash,
                        const char *compute, tf_format format, bool upgrade, tf_buffer *out) {
  if (pair_hash && self->pair_hash && self->pair_hash[0] && strcmp(pair_hash, self->pair_hash) != 0)
    tf_buffer_printf(out, ", the model (then %.8s, now %.8s)", self->pair_hash, pair_hash);
  if (!same_text(self->prompt, settings->prompt)) {
    tf_buffer_printf(out, ", --prompt (then ");
    prompt_text(self->prompt, out);
    tf_buffer_printf(out, ", now ");
    prompt_text(settings->prompt, out);
    tf_buffer_printf(out, ")");
  }
  if (self->max_new_tokens != settings->max_new_tokens)
    tf_buffer_printf(out, ", --max-new-tokens (then %lld, now %lld)", (long long)self->max_new_tokens,
                     (long long)settings->max_new_tokens);
  if (compute && self->compute && strcmp(compute, self->compute) != 0)
    tf_buffer_printf(out, ", --compute (then %.20s, now %.20s)", self->compute, compute);
  bool more = upgrade && settings->vision_tokens >= self->vision_tokens;
  if (settings->vision_tokens >= 0 && self->vision_tokens != settings->vision_tokens && !more) {
    tf_buffer_printf(out, ", --vision-tokens (then ");
    tokens_text(self->vision_tokens, out);
    tf_buffer_printf(out, ", now ");
    tokens_text(settings->vision_tokens, out);
    tf_buffer_printf(out, ")");
  }
  if (self->format != format)
    tf_buffer_printf(out, ", --format (then %s, now %s)", self->format == TF_FORMAT_CSV ? "csv" : "jsonl",
                     format == TF_FORMAT_CSV ? "csv" : "jsonl");
}

tf_code tf_earlier_compare(const tf_earlier *self, const char *output, const tf_submit_settings *settings,
                           const char *pair_hash, const char *compute, tf_format format, bool upgrade,
                           tf_error *error) {
  if (!self->found)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "%.200s exists, but %.200s.run.json, which would tell how it was made, does not: name another "
                   "output, or give --overwrite",
                   output, output);
  tf_buffer text;
  tf_buffer_init(&text, TEXT_BYTES_MAX);
  differences(self, settings, pair_hash, compute, format, upgrade, &text);
  tf_code code = TF_OK;
  if (text.size > 0)
    code =
        tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                "%.100s was made with other settings: %s; go back to those, name another output, or give --overwrite",
                output, text.data + 2);
  tf_buffer_free(&text);
  return code;
}

/* Builds the lines of the output with jansson.
 * In: the queue's JSON, names of images as bytes. Out: JSON Lines, UTF-8, one write's worth each.
 * The queue's object is taken apart and put together again: its key order is not relied on, `image` becomes the user's
 * name. */
#include "cli/jsonl.h"

#include "common/utf8.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

const char *const tf_jsonl_stages[TF_JSONL_STAGE_COUNT] = {"queue", "fetch",   "decode",   "encode", "transfer",
                                                           "wait",  "prefill", "generate", "total"};

/* -- names ------------------------------------------------------------------------------------------------------ */

bool tf_jsonl_name(const char *name, tf_buffer *out) {
  size_t size = strlen(name);
  if (tf_utf8_is_valid(name, size)) {
    tf_buffer_append(out, name, size);
    return true;
  }
  for (size_t at = 0; at < size;) {
    size_t length = tf_utf8_character_bytes(name + at, size - at);
    if (length == 0)
      tf_buffer_printf(out, "\\x%02X", (unsigned char)name[at]);
    else if (name[at] == '\\')
      tf_buffer_append(out, "\\\\", 2);
    else
      tf_buffer_append(out, name + at, length);
    at += length ? length : 1;
  }
  return false;
}

void tf_uri_escape(const char *path, tf_buffer *out) {
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
  while (*path) {
    size_t run = strspn(path, plain);
    if (run > 0) tf_buffer_append(out, path, run);
    path += run;
    if (*path) tf_buffer_printf(out, "%%%02X", (unsigned char)*path++);
  }
}

/* Sets `image`, and `image_uri` where the name is not UTF-8. The URI of a relative name is relative, too. */
static bool set_image(json_t *object, const char *image) {
  tf_buffer text;
  tf_buffer_init(&text, TF_JSONL_LINE_BYTES_MAX);
  bool plain = tf_jsonl_name(image, &text);
  bool done = !text.overflow && json_object_set_new(object, "image", json_string(text.data ? text.data : "")) == 0;
  if (done && !plain) {
    tf_buffer_clear(&text);
    if (image[0] == '/') tf_buffer_printf(&text, "file://");
    tf_uri_escape(image, &text);
    done = !text.overflow && json_object_set_new(object, "image_uri", json_string(text.data)) == 0;
  }
  tf_buffer_free(&text);
  return done;
}

/* -- lines ------------------------------------------------------------------------------------------------------ */

static int append_bytes(const char *bytes, size_t size, void *buffer) {
  tf_buffer_append(buffer, bytes, size);
  return ((tf_buffer *)buffer)->overflow ? -1 : 0;
}

/* Appends object and '\n', or nothing; takes object. */
static tf_code append_line(json_t *object, tf_buffer *line, tf_error *error) {
  size_t before = line->size;
  int failed = json_dump_callback(object, append_bytes, line, JSON_COMPACT | JSON_REAL_PRECISION(10));
  json_decref(object);
  if (!failed) tf_buffer_append(line, "\n", 1);
  if (!failed && !line->overflow) return TF_OK;
  line->size = before;
  if (line->data) line->data[before] = '\0';
  return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "the line is longer than %d bytes", TF_JSONL_LINE_BYTES_MAX);
}

static void read_facts(json_t *object, tf_caption_facts *facts) {
  memset(facts, 0, sizeof *facts);
  facts->vision_tokens =
      (uint32_t)json_integer_value(json_object_get(json_object_get(object, "vision_tokens"), "assigned"));
  json_t *timing = json_object_get(object, "timing_ms");
  for (size_t i = 0; i < TF_JSONL_STAGE_COUNT; i++)
    facts->timing_ms[i] = json_number_value(json_object_get(timing, tf_jsonl_stages[i]));
}

static const char *fault_of(json_t *object, const char *id) {
  if (!json_is_object(object)) return "is no JSON object";
  const char *its_id = json_string_value(json_object_get(object, "id"));
  if (!its_id || strcmp(its_id, id) != 0) return "carries another id";
  if (!json_is_string(json_object_get(object, "caption"))) return "has no caption";
  json_int_t assigned = json_integer_value(json_object_get(json_object_get(object, "vision_tokens"), "assigned"));
  if (assigned < 1 || assigned > UINT32_MAX) return "has no vision_tokens.assigned";
  return NULL;
}

tf_code tf_jsonl_caption(const char *json, size_t json_bytes, const char *id, const char *image, tf_buffer *line,
                         tf_caption_facts *facts, tf_error *error) {
  static const char *const order[] = {"id",    "image",     "caption", "vision_tokens",
                                      "usage", "timing_ms", "attempt", "model"};
  json_t *came = json_loadb(json, json_bytes, JSON_REJECT_DUPLICATES, NULL);
  const char *fault = fault_of(came, id);
  if (fault) {
    json_decref(came);
    return tf_fail(error, TF_ERR_PROTOCOL, "the result %s", fault);
  }
  read_facts(came, facts);
  json_t *object = json_object();
  bool fine = object != NULL;
  for (size_t i = 0; fine && i < sizeof order / sizeof order[0]; i++) {
    json_t *value = json_object_get(came, order[i]);
    if (strcmp(order[i], "image") == 0)
      fine = set_image(object, image);
    else
      fine = json_object_set(object, order[i], value ? value : json_null()) == 0;
  }
  const char *key;
  json_t *value;
  json_object_foreach(came, key, value) {
    if (fine && !json_object_get(object, key)) fine = json_object_set(object, key, value) == 0;
  }
  json_decref(came);
  if (fine) return append_line(object, line, error);
  json_decref(object);
  return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
}

tf_code tf_jsonl_duplicate(const char *first, size_t bytes, const char *id, const char *image, tf_buffer *line,
                           tf_caption_facts *facts, tf_error *error) {
  json_t *object = json_loadb(first, bytes, 0, NULL);
  json_t *name = json_incref(json_object_get(object, "image"));
  if (object) read_facts(object, facts);
  json_object_del(object, "image_uri");
  bool fine = name && json_object_set_new(object, "id", json_string(id)) == 0 && set_image(object, image) &&
              json_object_set(object, "duplicate_of", name) == 0;
  json_decref(name);
  if (fine) return append_line(object, line, error);
  json_decref(object);
  return tf_fail(error, TF_ERR_INTERNAL, "the line of a picture of the same bytes can not be read");
}

tf_code tf_jsonl_text(const char *line, size_t bytes, tf_buffer *out, tf_error *error) {
  json_t *object = json_loadb(line, bytes, 0, NULL);
  const char *caption = json_string_value(json_object_get(object, "caption"));
  if (caption) tf_buffer_append(out, caption, strlen(caption) + 1);
  json_decref(object);
  return caption && !out->overflow ? TF_OK : tf_fail(error, TF_ERR_INTERNAL, "a caption's line has no caption");
}

static json_t *text_of(const char *text) {
  tf_buffer clean;
  tf_buffer_init(&clean, TF_JSONL_LINE_BYTES_MAX);
  tf_jsonl_name(text, &clean);
  json_t *string = json_string(clean.data ? clean.data : "");
  tf_buffer_free(&clean);
  return string;
}

tf_code tf_jsonl_error(const char *id, const char *image, const char *code, const char *message, int64_t attempts,
                       tf_buffer *line, tf_error *error) {
  json_t *object = json_object();
  bool fine = object && json_object_set_new(object, "id", json_string(id)) == 0 && set_image(object, image) &&
              json_object_set_new(object, "code", text_of(code)) == 0 &&
              json_object_set_new(object, "message", text_of(message)) == 0 &&
              json_object_set_new(object, "attempts", json_integer(attempts)) == 0;
  if (fine) return append_line(object, line, error);
  json_decref(object);
  return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
}

/* CSV out of JSON, and CSV taken apart again when a run is resumed.
 * In: lines, records. Out: records, fields.
 * Numbers are written as JSON has them; names that are not UTF-8 are shown as in JSON, with image_uri beside them. */
#include "cli/csv.h"

#include "cli/jsonl.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const char *const names[TF_CSV_COUNT] = {
#define NAME(name) #name,
    TF_CSV_COLUMNS(NAME)
#undef NAME
};
/* Where a column comes from: "object.key" of the line. */
static const char *const paths[TF_CSV_COUNT] = {
    [TF_CSV_vision_tokens] = "vision_tokens.assigned",
    [TF_CSV_requested] = "vision_tokens.requested",
    [TF_CSV_reason] = "vision_tokens.reason",
    [TF_CSV_prompt_tokens] = "usage.prompt_tokens",
    [TF_CSV_completion_tokens] = "usage.completion_tokens",
    [TF_CSV_finish_reason] = "usage.finish_reason",
    [TF_CSV_total_ms] = "timing_ms.total",
};

static void put_field(const char *text, tf_buffer *out) {
  if (!text[strcspn(text, ",\"\r\n")]) {
    tf_buffer_printf(out, "%s", text);
    return;
  }
  tf_buffer_append(out, "\"", 1);
  while (*text) {
    size_t plain = strcspn(text, "\"");
    tf_buffer_append(out, text, plain);
    text += plain;
    if (!*text) break;
    tf_buffer_append(out, "\"\"", 2);
    text++;
  }
  tf_buffer_append(out, "\"", 1);
}

void tf_csv_join(const char *const fields[TF_CSV_COUNT], tf_buffer *out) {
  for (size_t i = 0; i < TF_CSV_COUNT; i++) {
    if (i > 0) tf_buffer_append(out, ",", 1);
    put_field(fields[i], out);
  }
  tf_buffer_append(out, "\n", 1);
}

void tf_csv_header(tf_buffer *out) {
  tf_csv_join(names, out);
}

static json_t *find(json_t *object, const char *path) {
  char first[32];
  const char *dot = strchr(path, '.');
  if (!dot) return json_object_get(object, path);
  snprintf(first, sizeof first, "%.*s", (int)(dot - path), path);
  return json_object_get(json_object_get(object, first), dot + 1);
}

/* A scalar as text; numbers go to scratch. */
static const char *text_of(json_t *value, char scratch[32]) {
  scratch[0] = '\0';
  if (json_is_string(value)) return json_string_value(value);
  if (json_is_integer(value)) snprintf(scratch, 32, "%lld", (long long)json_integer_value(value));
  if (json_is_real(value)) snprintf(scratch, 32, "%.10g", json_real_value(value));
  return scratch;
}

tf_code tf_csv_caption(const char *line, size_t bytes, tf_buffer *out, tf_error *error) {
  const char *fields[TF_CSV_COUNT];
  char scratch[TF_CSV_COUNT][32];
  json_t *object = json_loadb(line, bytes, 0, NULL);
  if (!object) return tf_fail(error, TF_ERR_INTERNAL, "a caption's line is no JSON");
  for (size_t i = 0; i < TF_CSV_COUNT; i++)
    fields[i] = text_of(find(object, paths[i] ? paths[i] : names[i]), scratch[i]);
  size_t before = out->size;
  tf_csv_join(fields, out);
  json_decref(object);
  if (!out->overflow) return TF_OK;
  out->size = before;
  if (out->data) out->data[before] = '\0';
  return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "the record is longer than %d bytes", TF_JSONL_LINE_BYTES_MAX);
}

size_t tf_csv_record_bytes(const char *text, size_t size) {
  bool quoted = false;
  for (size_t i = 0; i < size; i++) {
    if (text[i] == '"') quoted = !quoted;
    if (text[i] == '\n' && !quoted) return i + 1;
  }
  return 0;
}

bool tf_csv_split(const char *record, size_t bytes, tf_buffer *space, const char *fields[TF_CSV_COUNT]) {
  size_t starts[TF_CSV_COUNT], count = 0, at = 0;
  tf_buffer_clear(space);
  if (bytes == 0 || record[bytes - 1] != '\n' || memchr(record, '\0', bytes)) return false;
  bytes -= bytes > 1 && record[bytes - 2] == '\r' ? 2 : 1; /* a spreadsheet may have saved it */
  for (bool more = true; more; at++) {
    if (count == TF_CSV_COUNT) return false;
    starts[count++] = space->size;
    if (at < bytes && record[at] == '"') {
      for (at++;; at++) {
        const char *quote = at < bytes ? memchr(record + at, '"', bytes - at) : NULL;
        if (!quote) return false;
        tf_buffer_append(space, record + at, (size_t)(quote - (record + at)));
        at = (size_t)(quote - record) + 1;
        if (at >= bytes || record[at] != '"') break;
        tf_buffer_append(space, "\"", 1);
      }
    } else {
      size_t start = at;
      while (at < bytes && record[at] != ',' && record[at] != '"') at++;
      tf_buffer_append(space, record + start, at - start);
    }
    if (at < bytes && record[at] != ',') return false;
    more = at < bytes;
    tf_buffer_append(space, "", 1);
  }
  if (count != TF_CSV_COUNT || space->overflow) return false;
  for (size_t i = 0; i < count; i++) fields[i] = space->data + starts[i];
  return true;
}

/* A reader of outputs. In: bytes of a file. Out: records.
 * What can not be taken apart is handed out as not good: what to do about it is the caller's to decide.
 * Reads by offset, so that the file's own position stays where its writer has it. */
#include "cli/records.h"

#include "cli/csv.h"
#include "cli/jsonl.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { READ_BYTES = 256 * 1024 };

void tf_records_open(tf_records *self, int fd, tf_format format) {
  memset(self, 0, sizeof *self);
  self->fd = fd;
  self->format = format;
  tf_buffer_init(&self->text, TF_JSONL_LINE_BYTES_MAX + 2 * READ_BYTES);
  tf_buffer_init(&self->name, TF_JSONL_LINE_BYTES_MAX);
  tf_buffer_init(&self->space, TF_JSONL_LINE_BYTES_MAX + TF_CSV_COUNT);
}

void tf_records_close(tf_records *self) {
  json_decref(self->object);
  self->object = NULL;
  tf_buffer_free(&self->text);
  tf_buffer_free(&self->name);
  tf_buffer_free(&self->space);
}

static int digit(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                : -1;
}

void tf_name_bytes(const char *image, const char *image_uri, tf_buffer *out) {
  if (!image_uri || !image_uri[0]) {
    tf_buffer_append(out, image, strlen(image) + 1);
    return;
  }
  const char *at = strncmp(image_uri, "file://", 7) == 0 ? image_uri + 7 : image_uri;
  while (*at) {
    char byte = *at++;
    if (byte == '%' && digit(at[0]) >= 0 && digit(at[1]) >= 0) {
      byte = (char)(digit(at[0]) * 16 + digit(at[1]));
      at += 2;
    }
    tf_buffer_append(out, &byte, 1);
  }
  tf_buffer_append(out, "", 1);
}

/* -- one record ------------------------------------------------------------------------------------------------- */

static bool read_json(tf_records *self, tf_record *out) {
  json_t *object = self->object = json_loadb(out->text, out->bytes, 0, NULL);
  const char *image = json_string_value(json_object_get(object, "image"));
  if (!image) return false;
  tf_name_bytes(image, json_string_value(json_object_get(object, "image_uri")), &self->name);
  json_int_t tokens = json_integer_value(json_object_get(json_object_get(object, "vision_tokens"), "assigned"));
  out->caption = json_string_value(json_object_get(object, "caption"));
  out->vision_tokens = tokens > 0 && tokens <= UINT32_MAX ? (uint32_t)tokens : 0;
  return out->caption ? out->vision_tokens > 0 : json_is_string(json_object_get(object, "code"));
}

static bool read_csv(tf_records *self, tf_record *out) {
  const char *fields[TF_CSV_COUNT];
  if (!tf_csv_split(out->text, out->bytes, &self->space, fields)) return false;
  if (out->offset == 0 && strcmp(fields[TF_CSV_image], "image") == 0 && strcmp(fields[TF_CSV_id], "id") == 0) {
    out->header = true;
    return false;
  }
  tf_name_bytes(fields[TF_CSV_image], fields[TF_CSV_image_uri], &self->name);
  unsigned long tokens = strtoul(fields[TF_CSV_vision_tokens], NULL, 10);
  out->caption = fields[TF_CSV_caption];
  out->vision_tokens = tokens <= UINT32_MAX ? (uint32_t)tokens : 0;
  return out->vision_tokens > 0;
}

static bool begins_alike(const char *text, size_t bytes, const char *start) {
  size_t size = strlen(start);
  return memcmp(text, start, bytes < size ? bytes : size) == 0;
}

/* What a kill, or a power failure (zeros), leaves of a record. A row of a CSV file may begin with anything. */
static bool is_torn(const tf_records *self, const tf_record *record) {
  bool anything = self->format == TF_FORMAT_CSV && record->offset > 0;
  const char *start = self->format == TF_FORMAT_CSV ? "image,caption,vision_tokens," : "{\"id\":\"";
  return anything || begins_alike(record->text, record->bytes, start) || memchr(record->text, '\0', record->bytes);
}

static size_t end_of_record(const tf_records *self) {
  const char *start = self->text.data + self->taken;
  size_t size = self->text.size - self->taken;
  if (size == 0) return 0;
  if (self->format == TF_FORMAT_CSV) return tf_csv_record_bytes(start, size);
  const char *end = memchr(start, '\n', size);
  return end ? (size_t)(end - start) + 1 : 0;
}

/* Drops what was handed out and reads on. */
static tf_code read_on(tf_records *self, tf_error *error) {
  static const size_t step = READ_BYTES;
  tf_buffer *text = &self->text;
  if (self->taken > 0) {
    memmove(text->data, text->data + self->taken, text->size - self->taken);
    text->size -= self->taken;
    self->taken = 0;
  }
  char *bytes = malloc(step);
  if (!bytes) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  ssize_t got;
  do got = pread(self->fd, bytes, step, self->offset + (off_t)text->size);
  while (got < 0 && errno == EINTR);
  if (got > 0) tf_buffer_append(text, bytes, (size_t)got);
  free(bytes);
  if (got < 0) return tf_fail(error, TF_ERR_IO, "%s", strerror(errno));
  self->ended = got == 0 || text->overflow || text->size > TF_JSONL_LINE_BYTES_MAX + step;
  return TF_OK;
}

tf_code tf_records_next(tf_records *self, tf_record *out, bool *found, tf_error *error) {
  memset(out, 0, sizeof *out);
  size_t bytes;
  while ((bytes = end_of_record(self)) == 0 && !self->ended) {
    tf_code code = read_on(self, error);
    if (code) return code;
  }
  json_decref(self->object);
  self->object = NULL;
  tf_buffer_clear(&self->name);
  out->whole = bytes > 0;
  out->bytes = bytes > 0 ? bytes : self->text.size - self->taken;
  *found = out->bytes > 0;
  if (!*found) return TF_OK;
  out->offset = self->offset;
  out->text = self->text.data + self->taken;
  self->taken += out->bytes;
  self->offset += (off_t)out->bytes;
  if (out->whole) out->good = self->format == TF_FORMAT_CSV ? read_csv(self, out) : read_json(self, out);
  out->torn = !out->whole && is_torn(self, out);
  out->image = self->name.data;
  return TF_OK;
}

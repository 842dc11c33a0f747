/* Writes the report's page. In: an output's files, record by record. Out: HTML whose data are JSON inside of it.
 * A batch of records is read, their thumbnails are made on all threads, then the batch is written: no more than that is
 * held. The page's looks and its script are in page.html. */
#include "cli/page.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/command.h"
#include "cli/csv.h"
#include "cli/jsonl.h"
#include "cli/records.h"
#include "cli/replace.h"
#include "cli/target.h"
#include "image/thumbnail.h"
#include "page_html.h"
#include "tensor/parallel.h"

enum {
  PICTURE_BYTES_MAX = 256 * 1024 * 1024,
  THUMBNAIL_BYTES_MAX = 256 * 1024,
  RUN_BYTES_MAX = 1024 * 1024,
  BATCH_TEXT_BYTES_MAX = 8 * 1024 * 1024
};

typedef struct page_row {
  json_t *json; /* what the page shows */
  char *path;   /* of the picture; NULL: no thumbnail */
  tf_buffer thumbnail;
} page_row;

typedef struct page_writer {
  const tf_page_config *config;
  tf_page_counts *counts;
  char *target; /* NULL: standard output */
  tf_replace file;
  tf_pool *pool;
  json_t *run; /* FILE.run.json; NULL: there is none */
  page_row rows[TF_PAGE_BATCH];
  size_t row_count, thumbnail_bytes;
} page_writer;

/* ---- rows ---- */

static void copy_key(json_t *to, const char *short_name, const json_t *from, const char *name) {
  json_t *value = json_object_get(from, name);
  if (value && !json_is_null(value)) json_object_set(to, short_name, value);
}

/* i image, c caption, n tokens, q requested, r reason, o tokens generated, t stages (ms), w warning, d duplicate of. */
static void fill_caption(json_t *row, const json_t *line) {
  const json_t *tokens = json_object_get(line, "vision_tokens"), *timing = json_object_get(line, "timing_ms");
  copy_key(row, "i", line, "image");
  copy_key(row, "c", line, "caption");
  copy_key(row, "n", tokens, "assigned");
  copy_key(row, "q", tokens, "requested");
  copy_key(row, "r", tokens, "reason");
  copy_key(row, "o", json_object_get(line, "usage"), "completion_tokens");
  copy_key(row, "w", line, "warning");
  copy_key(row, "d", line, "duplicate_of");
  json_t *stages = json_array();
  for (size_t i = 0; i < TF_JSONL_STAGE_COUNT; i++) {
    const json_t *value = json_object_get(timing, tf_jsonl_stages[i]);
    json_array_append_new(stages, json_real(json_is_number(value) ? json_number_value(value) : 0));
  }
  json_object_set_new(row, "t", stages);
}

/* e code, m message, a attempts. */
static void fill_failure(json_t *row, const json_t *line) {
  copy_key(row, "i", line, "image");
  copy_key(row, "e", line, "code");
  copy_key(row, "m", line, "message");
  copy_key(row, "a", line, "attempts");
}

/* CSV has the whole time only: it is the last of the stages. */
static void fill_csv(json_t *row, const char *const fields[TF_CSV_COUNT]) {
  json_t *stages = json_array();
  for (size_t i = 0; i + 1 < TF_JSONL_STAGE_COUNT; i++) json_array_append_new(stages, json_real(0));
  json_array_append_new(stages, json_real(strtod(fields[TF_CSV_total_ms], NULL)));
  json_object_set_new(row, "t", stages);
  json_object_set_new(row, "i", json_string(fields[TF_CSV_image]));
  json_object_set_new(row, "c", json_string(fields[TF_CSV_caption]));
  json_object_set_new(row, "n", json_integer(strtol(fields[TF_CSV_vision_tokens], NULL, 10)));
  json_object_set_new(row, "r", json_string(fields[TF_CSV_reason]));
  json_object_set_new(row, "o", json_integer(strtol(fields[TF_CSV_completion_tokens], NULL, 10)));
  if (fields[TF_CSV_warning][0]) json_object_set_new(row, "w", json_string(fields[TF_CSV_warning]));
  if (fields[TF_CSV_duplicate_of][0]) json_object_set_new(row, "d", json_string(fields[TF_CSV_duplicate_of]));
}

/* Relative names begin in the folder that the run was started in. */
static char *picture_path(const page_writer *self, const char *image) {
  const char *folder = json_string_value(json_object_get(json_object_get(self->run, "settings"), "folder"));
  char *path = NULL;
  if (image[0] == '/' || !folder) return strdup(image);
  return asprintf(&path, "%s/%s", folder, image) < 0 ? NULL : path;
}

/* ---- thumbnails ---- */

/* The whole file, malloc'ed; NULL where it cannot be read or is too large. */
static uint8_t *read_picture(const char *path, size_t *size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  struct stat status;
  if (fd < 0) return NULL;
  bool fine =
      fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0 && status.st_size <= PICTURE_BYTES_MAX;
  uint8_t *data = fine ? malloc((size_t)status.st_size) : NULL;
  *size = 0;
  while (data && *size < (size_t)status.st_size) {
    ssize_t got = read(fd, data + *size, (size_t)status.st_size - *size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    *size += (size_t)got;
  }
  close(fd);
  return data;
}

static void make_thumbnails(void *context, int64_t begin, int64_t end, int thread) {
  (void)thread;
  page_writer *self = context;
  for (int64_t i = begin; i < end; i++) {
    page_row *row = &self->rows[i];
    size_t size;
    uint8_t *data = row->path && tf_interrupt_count() == 0 ? read_picture(row->path, &size) : NULL;
    if (data && tf_thumbnail(data, size, self->config->max_pixels, TF_PAGE_THUMBNAIL_SIDE, &row->thumbnail, NULL))
      tf_buffer_clear(&row->thumbnail);
    free(data);
  }
}

static void put_base64(const tf_buffer *bytes, tf_buffer *out) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const uint8_t *data = (const uint8_t *)bytes->data;
  for (size_t i = 0; i < bytes->size; i += 3) {
    size_t rest = bytes->size - i;
    uint32_t word =
        (uint32_t)data[i] << 16 | (rest > 1 ? (uint32_t)data[i + 1] << 8 : 0) | (rest > 2 ? data[i + 2] : 0);
    char four[4] = {digits[word >> 18], digits[word >> 12 & 63], rest > 1 ? digits[word >> 6 & 63] : '=',
                    rest > 2 ? digits[word & 63] : '='};
    tf_buffer_append(out, four, sizeof four);
  }
}

/* ---- writing ---- */

/* JSON that may stand in a script: "<" only occurs in its strings, where <\/script> or <!-- would end it. */
static void put_json(const json_t *json, tf_buffer *out) {
  char *text = json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
  for (const char *at = text; at && *at;) {
    size_t plain = strcspn(at, "<");
    tf_buffer_append(out, at, plain);
    at += plain;
    if (*at == '<') {
      tf_buffer_printf(out, "\\u003c");
      at++;
    }
  }
  free(text);
}

static tf_code put(page_writer *self, const char *text, size_t size, tf_error *error) {
  if (self->target) return tf_replace_write(&self->file, text, size, error);
  if (fwrite(text, 1, size, stdout) == size) return TF_OK;
  return tf_fail(error, TF_ERR_IO, "standard output: %s", strerror(errno));
}

static tf_code write_text(page_writer *self, tf_buffer *text, tf_error *error) {
  if (text->overflow) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "a part of the page is too long");
  return text->size ? put(self, text->data, text->size, error) : TF_OK;
}

static void free_rows(page_writer *self) {
  for (size_t i = 0; i < self->row_count; i++) {
    json_decref(self->rows[i].json);
    free(self->rows[i].path);
    tf_buffer_free(&self->rows[i].thumbnail);
  }
  self->row_count = 0;
}

static tf_code write_batch(page_writer *self, tf_error *error) {
  if (self->row_count == 0) return TF_OK;
  if (tf_interrupt_count() > 0) return tf_fail(error, TF_ERR_CANCELLED, "interrupted");
  tf_parallel(self->pool, (int64_t)self->row_count, 1, make_thumbnails, self);
  tf_code code = TF_OK;
  for (size_t i = 0; !code && i < self->row_count; i++) {
    tf_buffer text;
    tf_buffer_init(&text, BATCH_TEXT_BYTES_MAX);
    page_row *row = &self->rows[i];
    tf_buffer_printf(&text, "<script>R(");
    put_json(row->json, &text);
    if (row->thumbnail.size > 0) {
      tf_buffer_printf(&text, ",\"");
      put_base64(&row->thumbnail, &text);
      tf_buffer_printf(&text, "\"");
      self->thumbnail_bytes += row->thumbnail.size * 4 / 3;
      self->counts->thumbnails++;
    }
    tf_buffer_printf(&text, ")</script>\n");
    code = write_text(self, &text, error);
    tf_buffer_free(&text);
  }
  free_rows(self);
  return code;
}

/* Takes json. */
static tf_code add_row(page_writer *self, json_t *json, const char *image, tf_error *error) {
  page_row *row = &self->rows[self->row_count++];
  bool room = self->thumbnail_bytes < TF_PAGE_THUMBNAILS_BYTES_MAX;
  *row = (page_row){.json = json, .path = room && image ? picture_path(self, image) : NULL};
  tf_buffer_init(&row->thumbnail, THUMBNAIL_BYTES_MAX);
  return self->row_count == TF_PAGE_BATCH ? write_batch(self, error) : TF_OK;
}

static tf_code add_record(page_writer *self, const tf_records *records, const tf_record *record, tf_error *error) {
  json_t *row = json_object();
  if (record->caption && records->format == TF_FORMAT_CSV) {
    const char *fields[TF_CSV_COUNT];
    tf_buffer space;
    tf_buffer_init(&space, 2 * TF_JSONL_LINE_BYTES_MAX);
    if (tf_csv_split(record->text, record->bytes, &space, fields)) fill_csv(row, fields);
    tf_buffer_free(&space);
  } else {
    json_t *line = json_loadb(record->text, record->bytes, 0, NULL);
    record->caption ? fill_caption(row, line) : fill_failure(row, line);
    json_decref(line);
  }
  *(record->caption ? &self->counts->captions : &self->counts->failures) += 1;
  return add_row(self, row, record->caption ? record->image : NULL, error);
}

/* path NULL or not there: nothing to add. */
static tf_code add_file(page_writer *self, const char *path, tf_format format, bool must_exist, tf_error *error) {
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK) : -1; /* a FIFO would have us wait */
  if (fd < 0) return must_exist ? tf_fail(error, TF_ERR_IO, "%s: %s", path ? path : "output", strerror(errno)) : TF_OK;
  struct stat status;
  if (fstat(fd, &status) || !S_ISREG(status.st_mode)) {
    close(fd);
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%s is not a regular file", path);
  }
  tf_records records;
  tf_record record;
  bool found;
  tf_records_open(&records, fd, format);
  tf_code code = tf_records_next(&records, &record, &found, error);
  for (; !code && found; code = tf_records_next(&records, &record, &found, error)) {
    if (record.good)
      code = add_record(self, &records, &record, error);
    else if (!record.torn && !record.header)
      code = tf_fail(error, TF_ERR_INVALID_FORMAT, "%s: not an output of tokenflex caption (byte %lld)", path,
                     (long long)record.offset);
    if (code) break;
  }
  tf_records_close(&records);
  close(fd);
  return code;
}

static json_t *read_run(const char *path) {
  size_t size;
  uint8_t *text = path ? read_picture(path, &size) : NULL;
  json_t *run = text && size <= RUN_BYTES_MAX ? json_loadb((char *)text, size, 0, NULL) : NULL;
  free(text);
  return run;
}

static tf_code write_all(page_writer *self, const char *errors, tf_error *error) {
  const json_t *settings = json_object_get(self->run, "settings");
  const char *format = json_string_value(json_object_get(settings, "format"));
  bool csv = format && strcmp(format, "csv") == 0;
  tf_buffer text;
  tf_buffer_init(&text, BATCH_TEXT_BYTES_MAX);
  tf_buffer_printf(&text, "%s<script>const RUN=", tf_page_head);
  put_json(self->run ? self->run : json_null(), &text);
  tf_buffer_printf(&text, "</script>\n");
  tf_code code = write_text(self, &text, error);
  tf_buffer_free(&text);
  if (!code) code = add_file(self, self->config->output, csv ? TF_FORMAT_CSV : TF_FORMAT_JSONL, true, error);
  if (!code) code = add_file(self, errors, TF_FORMAT_JSONL, false, error);
  if (!code) code = write_batch(self, error);
  if (!code) code = put(self, tf_page_tail, strlen(tf_page_tail), error);
  return code;
}

tf_code tf_page_target(const char *page, const char *output, char **target, tf_error *error) {
  static const tf_file_kind kind = {"a page of tokenflex", "<!doctype html>",
                                    "<meta name=\"generator\" content=\"tokenflex\">"};
  *target = NULL;
  return strcmp(page, "-") == 0 ? TF_OK : tf_target_check(page, &kind, output, target, error);
}

static tf_code write_to_target(page_writer *self, const char *errors, tf_error *error) {
  if (!self->target) {
    tf_code code = write_all(self, errors, error);
    return !code && fflush(stdout) ? tf_fail(error, TF_ERR_IO, "standard output: %s", strerror(errno)) : code;
  }
  tf_code code = tf_replace_begin(&self->file, self->target, error);
  if (!code) code = write_all(self, errors, error);
  if (!code) code = tf_replace_commit(&self->file, NULL, error);
  tf_replace_end(&self->file);
  return code;
}

tf_code tf_page_write(const tf_page_config *config, tf_page_counts *counts, tf_error *error) {
  page_writer *self = calloc(1, sizeof *self);
  char *errors = NULL, *run = NULL;
  memset(counts, 0, sizeof *counts);
  if (!self || asprintf(&errors, "%s.errors.jsonl", config->output) < 0 ||
      asprintf(&run, "%s.run.json", config->output) < 0) {
    free(self);
    free(errors);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  }
  self->config = config;
  self->counts = counts;
  self->run = read_run(run);
  tf_code code = tf_page_target(config->page, config->output, &self->target, error);
  if (!code) self->pool = tf_pool_new(config->threads);
  if (!code && !self->pool) code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory");
  if (!code) code = write_to_target(self, errors, error);
  free_rows(self);
  tf_pool_free(&self->pool);
  json_decref(self->run);
  free(self->target);
  free(self);
  free(errors);
  free(run);
  return code;
}

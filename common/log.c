/* logfmt lines on stderr: time, level, program, event, then the fields.
 * In: an event name and typed fields. Out: one write(2) a line, so that lines of threads and processes never mix.
 * A line is built on the stack and bounded: long values are cut and marked with three dots. */
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/utf8.h"

enum { LINE_BYTES_MAX = 8192, VALUE_BYTES_MAX = 2048, PROGRAM_BYTES_MAX = 32 };

/* Set once at start, before other threads exist; read by all. */
static char program_name[PROGRAM_BYTES_MAX] = "tokenflex";
static atomic_int level_min = TF_LOG_INFO;

static const char *const level_names[] = {"debug", "info", "warn", "error"};

typedef struct line {
  size_t size;
  char text[LINE_BYTES_MAX]; /* the last byte is kept for the newline */
} line;

/* A descriptor 0, 1 or 2 that came closed would be the next file or socket, and get what is printed. It is opened the
 * wrong way round instead, so that its use is the error that it was. */
static void hold_standard_descriptors(void) {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
    if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    int opened = open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY); /* the lowest one free: fd */
    (void)opened;
  }
}

void tf_log_setup(const char *program, const char *level_name) {
  hold_standard_descriptors();
  snprintf(program_name, sizeof program_name, "%s", program ? program : "tokenflex");
  int level = TF_LOG_INFO;
  for (int i = 0; level_name && i < 4; i++) {
    if (strcmp(level_names[i], level_name) == 0) level = i;
  }
  atomic_store(&level_min, level);
}

static void put(line *out, const char *text, size_t size) {
  size_t room = sizeof out->text - 1 - out->size;
  if (size > room) size = room;
  memcpy(out->text + out->size, text, size);
  out->size += size;
}

static void put_text(line *out, const char *text) {
  put(out, text, strlen(text));
}

static bool needs_quotes(const char *value) {
  if (!value[0]) return true;
  for (const char *at = value; *at; at++) {
    unsigned char byte = (unsigned char)*at;
    if (byte <= ' ' || byte == '=' || byte == '"' || byte == '\\' || byte >= 0x7f) return true;
  }
  return false;
}

/* Control characters (C1 included) and malformed UTF-8 are escaped: a log line must not steer a terminal. */
static void put_quoted(line *out, const char *value) {
  size_t size = strnlen(value, VALUE_BYTES_MAX + 1);
  bool cut = size > VALUE_BYTES_MAX;
  if (cut) size = VALUE_BYTES_MAX;
  put(out, "\"", 1);
  for (size_t at = 0; at < size;) {
    unsigned char byte = (unsigned char)value[at];
    size_t length = tf_utf8_character_bytes(value + at, size - at);
    if (length == 0 && cut && size - at < 4) break; /* a character that the cut went through */
    bool c1 = length == 2 && byte == 0xc2 && (unsigned char)value[at + 1] < 0xa0;
    char escape[16] = "";
    if (byte == '"' || byte == '\\')
      snprintf(escape, sizeof escape, "\\%c", byte);
    else if (byte == '\n')
      snprintf(escape, sizeof escape, "\\n");
    else if (byte == '\t')
      snprintf(escape, sizeof escape, "\\t");
    else if (byte == '\r')
      snprintf(escape, sizeof escape, "\\r");
    else if (c1)
      snprintf(escape, sizeof escape, "\\u%04x", (unsigned char)value[at + 1]);
    else if (length == 0 || byte < 0x20 || byte == 0x7f)
      snprintf(escape, sizeof escape, "\\x%02x", byte);
    if (escape[0])
      put_text(out, escape);
    else
      put(out, value + at, length);
    at += length ? length : 1;
  }
  put_text(out, cut ? "...\"" : "\"");
}

static void put_string(line *out, const char *value) {
  if (!value) value = "";
  if (strnlen(value, VALUE_BYTES_MAX + 1) > VALUE_BYTES_MAX || needs_quotes(value))
    put_quoted(out, value);
  else
    put_text(out, value);
}

static void put_field(line *out, const tf_log_field *field) {
  char number[64];
  put(out, " ", 1);
  put_text(out, field->key);
  put(out, "=", 1);
  switch (field->kind) {
  case TF_FIELD_STRING:
    put_string(out, field->value.string);
    break;
  case TF_FIELD_INT:
    snprintf(number, sizeof number, "%lld", (long long)field->value.integer);
    put_text(out, number);
    break;
  case TF_FIELD_FLOAT:
    snprintf(number, sizeof number, isfinite(field->value.real) ? "%.6g" : "%f", field->value.real);
    put_text(out, number);
    break;
  }
}

void tf_log_write(tf_log_level level, const char *event, const tf_log_field *fields, size_t count) {
  if ((int)level < atomic_load_explicit(&level_min, memory_order_relaxed)) return;
  line out;
  out.size = 0;
  int64_t now_ms = tf_unix_ms();
  time_t seconds = (time_t)(now_ms / 1000);
  struct tm utc;
  char when[48] = "";
  if (gmtime_r(&seconds, &utc)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
  char head[96];
  snprintf(head, sizeof head, "time=%s.%03dZ level=", when, (int)(now_ms % 1000));
  put_text(&out, head);
  put_text(&out, level_names[(unsigned)level <= TF_LOG_ERROR ? level : TF_LOG_ERROR]);
  put_text(&out, " program=");
  put_string(&out, program_name);
  put_text(&out, " event=");
  put_string(&out, event);
  for (size_t i = 0; i < count; i++) put_field(&out, &fields[i]);
  out.text[out.size++] = '\n';
  /* A log that can not be written has nowhere to say so. */
  ssize_t written = write(STDERR_FILENO, out.text, out.size);
  (void)written;
}

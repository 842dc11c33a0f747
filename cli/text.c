/* Makes foreign text fit for a terminal. In: bytes. Out: clean UTF-8.
 * Names and messages come from whoever may submit jobs: none of their bytes may steer a terminal. */
#include "cli/text.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/utf8.h"

enum { COLUMNS_MIN = 20 };

static bool is_control(const char *at, size_t length) {
  unsigned char first = (unsigned char)at[0];
  return (length == 1 && (first < 0x20 || first == 0x7F)) ||
         (length == 2 && first == 0xC2 && (unsigned char)at[1] < 0xA0);
}

/* Appends up to columns_max characters; the number that text has. */
static size_t append(const char *text, bool controls, size_t columns_max, tf_buffer *out) {
  size_t size = strlen(text), columns = 0;
  for (size_t at = 0; at < size; columns++) {
    size_t length = tf_utf8_character_bytes(text + at, size - at);
    bool bad = length == 0 || (!controls && is_control(text + at, length));
    if (columns < columns_max) tf_buffer_append(out, bad ? "?" : text + at, bad ? 1 : length);
    at += length ? length : 1;
  }
  return columns;
}

void tf_text_utf8(const char *text, tf_buffer *out) {
  append(text, true, (size_t)-1, out);
}

void tf_text_clean_append(const char *text, tf_buffer *out) {
  append(text, false, (size_t)-1, out);
}

void tf_text_cell(const char *text, size_t columns, tf_buffer *out) {
  tf_buffer nothing;
  tf_buffer_init(&nothing, 0);
  size_t length = append(text, false, 0, &nothing);
  tf_buffer_free(&nothing);
  append(text, false, length > columns ? columns - 1 : columns, out);
  if (length > columns) tf_buffer_append(out, "~", 1);
  for (size_t i = length; i < columns; i++) tf_buffer_append(out, " ", 1);
}

void tf_text_print_line(const tf_buffer *line) {
  const char *text = line->data ? line->data : "";
  struct winsize size = {0};
  size_t columns = (size_t)-1;
  if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= COLUMNS_MIN)
    columns = size.ws_col;
  tf_buffer cut;
  tf_buffer_init(&cut, 1 << 20);
  append(text, false, columns, &cut);
  puts(cut.data ? cut.data : "");
  tf_buffer_free(&cut);
}

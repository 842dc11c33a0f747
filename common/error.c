/* The error table of error.h as look-ups.
 * In: a code or a wire name. Out: name, text, retry rule; a filled tf_error.
 * A code that is out of range (a bug elsewhere, or memory damage) reads as `internal`. */
#include "common/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
  const char *name, *text;
  bool transient;
} error_table[TF_ERR_COUNT] = {
#define TF_ERROR_ROW(name, wire, transient, text) {wire, text, transient},
    TF_ERRORS(TF_ERROR_ROW)
#undef TF_ERROR_ROW
};

static tf_code in_table(tf_code code) {
  return (unsigned)code < (unsigned)TF_ERR_COUNT ? code : TF_ERR_INTERNAL;
}

const char *tf_code_name(tf_code code) {
  return error_table[in_table(code)].name;
}

const char *tf_code_text(tf_code code) {
  return error_table[in_table(code)].text;
}

bool tf_code_is_transient(tf_code code) {
  return error_table[in_table(code)].transient;
}

tf_code tf_code_from_name(const char *name) {
  if (!name) return TF_ERR_INTERNAL;
  for (int code = 0; code < TF_ERR_COUNT; code++) {
    if (strcmp(error_table[code].name, name) == 0) return (tf_code)code;
  }
  return TF_ERR_INTERNAL;
}

tf_code tf_fail(tf_error *error, tf_code code, const char *format, ...) {
  if (!error) return code;
  /* Formatted beside the target: an argument may be error->text itself (adding context to an error). */
  char text[TF_ERROR_TEXT_BYTES_MAX];
  va_list arguments;
  va_start(arguments, format);
  if (vsnprintf(text, sizeof text, format, arguments) < 0) text[0] = '\0';
  va_end(arguments);
  error->code = code;
  memcpy(error->text, text, strlen(text) + 1);
  return code;
}

/* logfmt lines on stderr: time, level, program, event, then the fields.
 * In: an event name and typed fields. Out: one write(2) a line; values are quoted and escaped as needed.
 * Safe from any thread. The program name and the level are set once at start (tf_log_setup). */
#ifndef TF_COMMON_LOG_H
#define TF_COMMON_LOG_H

#include <stddef.h>
#include <stdint.h>

typedef enum tf_log_level { TF_LOG_DEBUG, TF_LOG_INFO, TF_LOG_WARN, TF_LOG_ERROR } tf_log_level;

typedef struct tf_log_field {
  const char *key;
  enum { TF_FIELD_STRING, TF_FIELD_INT, TF_FIELD_FLOAT } kind;
  union {
    const char *string; /* NULL is written as "" */
    int64_t integer;
    double real;
  } value;
} tf_log_field;

#define TF_STR(k, v)  ((tf_log_field){.key = (k), .kind = TF_FIELD_STRING, .value.string = (v)})
#define TF_INT(k, v)  ((tf_log_field){.key = (k), .kind = TF_FIELD_INT, .value.integer = (int64_t)(v)})
#define TF_REAL(k, v) ((tf_log_field){.key = (k), .kind = TF_FIELD_FLOAT, .value.real = (v)})

/* program: e.g. "router"; level_name: debug|info|warn|error (unknown: info). The first call comes before any file is
 * opened: it also sees to it that no file becomes descriptor 0, 1 or 2. */
void tf_log_setup(const char *program, const char *level_name);
void tf_log_write(tf_log_level level, const char *event, const tf_log_field *fields, size_t count);

#define TF_LOG_FIELDS_(...) ((tf_log_field[]){__VA_ARGS__})
#define tf_log(level, event, ...)                                                                                      \
  tf_log_write(level, event, TF_LOG_FIELDS_(__VA_ARGS__), sizeof(TF_LOG_FIELDS_(__VA_ARGS__)) / sizeof(tf_log_field))
#define tf_log_debug(event, ...) tf_log(TF_LOG_DEBUG, event, __VA_ARGS__)
#define tf_log_info(event, ...)  tf_log(TF_LOG_INFO, event, __VA_ARGS__)
#define tf_log_warn(event, ...)  tf_log(TF_LOG_WARN, event, __VA_ARGS__)
#define tf_log_error(event, ...) tf_log(TF_LOG_ERROR, event, __VA_ARGS__)

#endif

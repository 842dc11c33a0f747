/* The output as CSV (RFC 4180): one record a caption, the columns of TF_CSV_COLUMNS, a header first.
 * In: a caption's JSON line. Out: a record ending in '\n'. Pure. What JSON has and no column takes is left out.
 * A field is quoted where it holds a comma, a quote or a line's end. */
#ifndef TF_CLI_CSV_H
#define TF_CLI_CSV_H

#include "common/buffer.h"
#include "common/error.h"

#define TF_CSV_COLUMNS(X)                                                                                              \
  X(image)                                                                                                             \
  X(caption)                                                                                                           \
  X(vision_tokens)                                                                                                     \
  X(requested)                                                                                                         \
  X(reason)                                                                                                            \
  X(prompt_tokens)                                                                                                     \
  X(completion_tokens)                                                                                                 \
  X(finish_reason)                                                                                                     \
  X(total_ms)                                                                                                          \
  X(attempt)                                                                                                           \
  X(model)                                                                                                             \
  X(id)                                                                                                                \
  X(image_uri)                                                                                                         \
  X(duplicate_of)                                                                                                      \
  X(warning)

enum {
#define TF_CSV_ENUM(name) TF_CSV_##name,
  TF_CSV_COLUMNS(TF_CSV_ENUM)
#undef TF_CSV_ENUM
      TF_CSV_COUNT
};

/* Appends the header's record. */
void tf_csv_header(tf_buffer *out);
/* Appends the record of one line of JSON, as tf_jsonl_caption wrote it. */
tf_code tf_csv_caption(const char *line, size_t bytes, tf_buffer *out, tf_error *error);
/* The bytes of the first record in text, its line's end included; 0: it does not end within size. */
size_t tf_csv_record_bytes(const char *text, size_t size);
/* Takes a record apart. The fields, unquoted and NUL-terminated, lie in space one after the other; fields[i] points
 * there. False where it has not TF_CSV_COUNT fields, holds a NUL or does not follow the quoting. */
bool tf_csv_split(const char *record, size_t bytes, tf_buffer *space, const char *fields[TF_CSV_COUNT]);
/* Appends a record of fields. */
void tf_csv_join(const char *const fields[TF_CSV_COUNT], tf_buffer *out);

#endif

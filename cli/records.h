/* Reads what earlier runs wrote: captions (JSON Lines or CSV) and failures, record by record.
 * In: an open file of any size. Out: each record's place, its picture and its tokens, and whether it is whole.
 * Memory: one record and a read's worth of text, whatever the file's size. */
#ifndef TF_CLI_RECORDS_H
#define TF_CLI_RECORDS_H

#include <stdint.h>
#include <sys/types.h>

#include "common/buffer.h"
#include "common/error.h"

typedef enum tf_format { TF_FORMAT_JSONL, TF_FORMAT_CSV } tf_format;

typedef struct tf_record {
  off_t offset;
  const char *text; /* bytes of it, its line's end included; like all strings here it lives until the next call */
  size_t bytes;
  bool whole; /* ends with its line's end */
  bool good;  /* whole, and a caption or failure of a picture; false for the header of a CSV file, too */
  bool header;
  bool torn;              /* not whole, but begins as a record of ours does: a kill has torn it */
  const char *image;      /* its name's own bytes, as typed; good only */
  uint32_t vision_tokens; /* assigned; 0: a failure */
  const char *caption;    /* NULL: a failure */
} tf_record;

typedef struct tf_records {
  int fd;
  tf_format format;
  off_t offset; /* of the first byte in text that was not handed out */
  tf_buffer text, name, space;
  size_t taken; /* of text */
  bool ended;
  void *object; /* of the record before */
} tf_records;

/* From the file's start. fd is borrowed. */
void tf_records_open(tf_records *self, int fd, tf_format format);
void tf_records_close(tf_records *self);
/* *found false: there are no more. A record past TF_JSONL_LINE_BYTES_MAX ends the reading as one that is not whole. */
tf_code tf_records_next(tf_records *self, tf_record *out, bool *found, tf_error *error);

/* The name's bytes, from `image` and, where there is one, `image_uri` (NULL or empty: none). Appends, with a NUL. */
void tf_name_bytes(const char *image, const char *image_uri, tf_buffer *out);

#endif

/* How `tokenflex status` looks. In: what was read. Out: text of at most `columns` columns a line, or one JSON object.
 * Pure. */
#ifndef TF_CLI_STATUS_VIEW_H
#define TF_CLI_STATUS_VIEW_H

#include "cli/status_read.h"
#include "common/buffer.h"

typedef struct tf_status_style {
  int columns, rows; /* rows 0: no limit; else lines past it are left out, workers first */
  bool color, utf8;
} tf_status_style;

typedef struct tf_status_server {
  const char *place;
  const tf_status *status;
  double ended_per_s; /* < 0: not known */
} tf_status_server;

/* One server: all of it. Several: what they have in common, then a line each. Workers that serve several are shown
 * once. */
void tf_status_text(const char *queue, const tf_status_server *servers, size_t count, const tf_status_style *style,
                    tf_buffer *out);
/* {"queue", "servers": [...]} and a newline. False: out of memory. */
bool tf_status_json(const char *queue, const tf_status_server *servers, size_t count, tf_buffer *out);

#endif

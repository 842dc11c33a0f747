/* Puts one image on the queue. In: an image's path, what is asked for. Out: an entry on the batch lane.
 * On this machine's own stack the job names the file (file://...); on a deployment it carries the bytes. */
#ifndef TF_CLI_SUBMIT_H
#define TF_CLI_SUBMIT_H

#include <stdint.h>

#include "cli/link.h"

enum { TF_SUBMIT_IMAGE_BYTES_MAX = 64 * 1024 * 1024, TF_SUBMIT_URI_BYTES_MAX = 8192 };

/* The same for every image of a run. */
typedef struct tf_submit_settings {
  int64_t vision_tokens; /* sets both limits; 0: auto */
  const char *prompt;    /* NULL: the model's own */
  int64_t max_new_tokens;
  bool by_bytes;    /* the image's bytes travel, not its path */
  const char *pace; /* the run's plan decides the count, vision_tokens is its maximum; NULL: none */
} tf_submit_settings;

/* bytes_out: what the entry holds of the image, 0 for a path.
 * TF_ERR_QUEUE_FULL: nothing was added, later it may be. TF_ERR_REDIS: with link->context NULL the connection was lost
 * (it may have been added or not: an id counts once), else Redis refuses for good. IMAGE_*, IO: this image's own error.
 */
tf_code tf_submit(tf_link *link, const tf_submit_settings *settings, const char *id, const char *path,
                  size_t *bytes_out, tf_error *error);

#endif

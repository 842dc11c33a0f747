/* Captions again what an earlier run did with fewer vision tokens; afterwards there is one line a picture as before.
 * In: an output. Out: the pictures to do again; then the output with their new lines in the place of the old.
 * New lines gather in FILE.upgrade. FILE itself is only ever replaced as a whole, by rename, and FILE.upgrade goes
 * after that: a crash at any moment leaves FILE whole, and the next run on it merges what FILE.upgrade holds. */
#ifndef TF_CLI_UPGRADE_H
#define TF_CLI_UPGRADE_H

#include "cli/inputs.h"
#include "cli/past.h"

typedef struct tf_upgrade {
  tf_records records;
  const tf_past *past;
  uint32_t target; /* lines with fewer vision tokens are done again */
  tf_buffer path;
  bool open;
} tf_upgrade;

void tf_upgrade_open(tf_upgrade *self, const tf_output *output, const tf_past *past, uint32_t target);
void tf_upgrade_close(tf_upgrade *self);
/* The next picture; before is the caption that it has. TF_INPUT_IMAGE, TF_INPUT_END, TF_INPUT_ERROR (the output can not
 * be read). Strings live until the next call. */
tf_input_kind tf_upgrade_next(tf_upgrade *self, tf_input *out, const char **before);

/* Puts the lines of FILE.upgrade, where there is one, in their places. *count: how many. After an error both files are
 * as they were. */
tf_code tf_upgrade_merge(tf_output *output, const tf_past *past, uint64_t *count, tf_error *error);

#endif

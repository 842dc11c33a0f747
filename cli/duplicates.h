/* Pictures of the same bytes are computed once in a run.
 * In: files. Out: the place of the line that another file of the same bytes already has.
 * Memory: 18 to 37 bytes a picture (cli/keymap.h). Where the output can not be read back as JSON Lines, lines are kept
 * in an unnamed temporary file of at most TF_DUPLICATES_SPOOL_BYTES_MAX; what comes after that is computed each time.
 */
#ifndef TF_CLI_DUPLICATES_H
#define TF_CLI_DUPLICATES_H

#include <sys/types.h>

#include "cli/keymap.h"
#include "cli/records.h"

enum { TF_DUPLICATES_SPOOL_BYTES_MAX = 256 * 1024 * 1024 };

/* What a file's bytes come down to: 88 bits of XXH3. key 0: not known, it has no duplicates. */
typedef struct tf_content {
  uint64_t key;
  uint32_t check; /* 24 bits */
} tf_content;

typedef struct tf_duplicates {
  tf_keymap places; /* by content: where the line begins, and the check */
  int spool;        /* -1: not needed yet, or not to be had */
  off_t spool_size;
} tf_duplicates;

void tf_duplicates_init(tf_duplicates *self);
void tf_duplicates_free(tf_duplicates *self);
/* Forgets all: the lines are elsewhere from now on. */
void tf_duplicates_clear(tf_duplicates *self);
/* Reads the file. What can not be read, or has more than 64 MiB, is not known: whoever captions it says why. */
tf_content tf_content_of(const char *path);
bool tf_content_is_same(tf_content left, tf_content right);
/* A picture's line, one JSON object, begins at `at` of the output; with output_fd -1 the line itself is kept. */
tf_code tf_duplicates_note(tf_duplicates *self, tf_content content, int output_fd, off_t at, const tf_buffer *line,
                           tf_error *error);
/* Appends the line of the first picture of the same bytes. *found false: there is none. */
tf_code tf_duplicates_line(const tf_duplicates *self, tf_content content, int output_fd, tf_buffer *text, bool *found,
                           tf_error *error);

#endif

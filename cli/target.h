/* Where a file of ours may go: what stands in a report's or a plot's place is lost when that is written.
 * In: a path, a kind of file, the output whose files must stay. Out: the file to replace, or why it must not be.
 * Checked before the work: a refusal after hours helps nobody. */
#ifndef TF_CLI_TARGET_H
#define TF_CLI_TARGET_H

#include <stdbool.h>

#include "common/error.h"

enum { TF_TARGET_HEAD_BYTES = 1024 };

/* A kind of file that this program writes, known by its first bytes and by what its head holds. */
typedef struct tf_file_kind {
  const char *name; /* "a page of tokenflex", for messages */
  const char *begins;
  const char *holds; /* within TF_TARGET_HEAD_BYTES; NULL: nothing more */
} tf_file_kind;

/* The file at path is empty, or of this kind. False, too, where it can not be read. */
bool tf_file_is(const char *path, const tf_file_kind *kind);
/* *target: malloc'ed, what to replace; a link's target, where path is a link. captions (NULL: none): an output of
 * `tokenflex caption`, there already or not. TF_ERR_INVALID_ARGUMENT: what is there is no regular file, not empty and
 * not of this kind, or one of the output's own files; or the folder is missing. The text names it and what to do. */
tf_code tf_target_check(const char *path, const tf_file_kind *kind, const char *captions, char **target,
                        tf_error *error);

#endif

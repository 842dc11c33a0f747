/* Names of pictures from a file or from standard input, one by one.
 * In: text, separated by newlines or by NULs. Out: names. Lazy: what does not come from a regular file is read as it
 * comes, never waited for, and kept in an unlinked temporary file, so that several readers can go through it. */
#ifndef TF_CLI_LIST_H
#define TF_CLI_LIST_H

#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

enum { TF_LIST_NAME_BYTES_MAX = 65536 };
#define TF_LIST_BYTES_MAX ((off_t)4 << 30) /* of what is not a regular file */

typedef struct tf_list tf_list;

/* Where one reader is. Zeroed is the start; freed with tf_list_cursor_free. */
typedef struct tf_list_cursor {
  off_t offset; /* of what lies in block */
  char *block;
  size_t have, taken;
  bool failed; /* its error was told */
} tf_list_cursor;

typedef enum tf_list_kind { TF_LIST_NAME, TF_LIST_WAIT, TF_LIST_END, TF_LIST_ERROR } tf_list_kind;

/* path "-": standard input. separator: '\n' or '\0'. Lines may end with CR LF and begin with a byte order mark. */
tf_code tf_list_open(const char *path, char separator, tf_list **out, tf_error *error);
void tf_list_free(tf_list **self);
/* The next name that is not empty; it lives until the cursor is used again. TF_LIST_WAIT: nothing more has come yet.
 * TF_LIST_ERROR: the list can not be read on, which every reader is told; its later calls give TF_LIST_END. */
tf_list_kind tf_list_next(tf_list *self, tf_list_cursor *cursor, const char **name, tf_error *error);
void tf_list_cursor_free(tf_list_cursor *cursor);

#endif

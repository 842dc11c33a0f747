/* A file written beside another and put in its place at once: a reader, and a run that comes after a crash, sees the
 * old content or the new, never half of either. In: a path, bytes. Out: the file at that path, synced; or, after an
 * error, the old one unharmed. */
#ifndef TF_CLI_REPLACE_H
#define TF_CLI_REPLACE_H

#include "common/buffer.h"
#include "common/error.h"

typedef struct tf_replace {
  char *path, *temporary; /* temporary: beside path, a name that nobody else has */
  int fd;                 /* -1: not open */
  tf_buffer block;        /* not written yet */
} tf_replace;

/* Opens a file beside path, locked (flock); what earlier crashes left there goes. The mode is that of the file at path,
 * where there is one. */
tf_code tf_replace_begin(tf_replace *self, const char *path, tf_error *error);
tf_code tf_replace_write(tf_replace *self, const void *data, size_t size, tf_error *error);
/* Syncs, renames, syncs the folder. fd_out not NULL: the file stays open and locked there, else it is closed. */
tf_code tf_replace_commit(tf_replace *self, int *fd_out, tf_error *error);
/* Removes the file beside path; nothing after a commit. */
void tf_replace_end(tf_replace *self);

/* Makes a new name, or the lack of one, durable: syncs the folder that path is in. Best effort: not every file system
 * can. */
void tf_sync_folder(const char *path);

#endif

/* A name beside a file that nobody else has: what is written there takes the file's place once it is whole.
 * In: the file's path. Out: an open, locked file FOLDER/.NAME.RANDOM.tokenflex; what killed runs left there, removed.
 * The lock tells a file in use from a leftover; a name that is not of this kind is never touched. */
#ifndef TF_CLI_TEMPORARY_H
#define TF_CLI_TEMPORARY_H

#include "common/buffer.h"

/* Makes a file beside path, open for reading and appending. name: its path is appended, with a NUL. The descriptor, or
 * -1 with errno set; then nothing is there. */
int tf_temporary_open(const char *path, tf_buffer *name);
/* Removes what killed runs of this user left in the folder that path is in. Best effort. */
void tf_temporary_sweep(const char *path);

#endif

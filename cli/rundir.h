/* The private folder of a run: sockets and logs of the stack that tokenflex starts for itself.
 * In: XDG_RUNTIME_DIR or /tmp. Out: .../tokenflex-UID/run-XXXXXX, mode 0700, locked for as long as its owner lives.
 * Folders whose owner died are removed by the next run, whatever killed it. */
#ifndef TF_CLI_RUNDIR_H
#define TF_CLI_RUNDIR_H

#include "common/error.h"

/* Unix socket paths end at 107 bytes, and ZeroMQ appends nothing: the longest name inside is "router.sock". */
enum { TF_RUNDIR_BYTES_MAX = 90 };

typedef struct tf_rundir {
  char base[TF_RUNDIR_BYTES_MAX]; /* .../tokenflex-UID */
  char path[TF_RUNDIR_BYTES_MAX]; /* .../tokenflex-UID/run-XXXXXX */
  int lock_fd;                    /* holds the lock; closed on exec; -1: no folder */
} tf_rundir;

/* Makes the folder and removes those left behind by the dead. */
tf_code tf_rundir_make(tf_rundir *out, tf_error *error);
/* Removes the folder, and the one above it where it is empty. */
void tf_rundir_remove(tf_rundir *self);

#endif

/* The folder of packed weights, and how it keeps to its bytes. In: its path, what is about to be written. Out: the
 * right to write, which one process has at a time; room, made of files that nobody uses. Private to tensor/. */
#ifndef TF_TENSOR_PACK_FOLDER_H
#define TF_TENSOR_PACK_FOLDER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

/* Names: ROLE-HASH.weights, ROLE of letters, HASH of so many digits; with .tmp at the end while it is written. */
#define TF_PACK_LETTERS "abcdefghijklmnopqrstuvwxyz"
#define TF_PACK_ENDING  ".weights"
#define TF_PACK_TORN    ".tmp"
enum { TF_PACK_HASH_DIGITS = 32, TF_PACK_FILE_NAME_BYTES = 128, TF_PACK_ENTRIES_MAX = 10000 };

/* Whoever holds the lock (folder/.lock, made where it is not there) is alone in removing and writing files. *lock: a
 * descriptor for the caller to close, which ends it; so does the process's end. stop: looked at while another has it.
 * Errors: TIMEOUT after wait_ms, CANCELLED, IO (it can not be made, or the file system has no locks). */
tf_code tf_pack_folder_lock(const char *folder, int64_t wait_ms, const atomic_bool *stop, int *lock, tf_error *error);

/* Whether all files take bytes_max at most, and none was left half-written. Without the lock; changes nothing. */
bool tf_pack_folder_is_tidy(const char *folder, uint64_t bytes_max);

/* With the lock: removes what ended processes left half-written, and makes room for a file of `bytes`, which takes the
 * place of the one called `own`; 0: none will be written, and `own` stays. Of the files that no process uses those used
 * least lately go, as many as must. Where the new one would find no room, none goes for it: only the files that are
 * there are brought down to bytes_max, as near as those in use allow.
 * Errors: IO (no room, which with bytes 0 is: more than bytes_max; too many entries; not to be listed), OUT_OF_MEMORY.
 */
tf_code tf_pack_folder_make_room(const char *folder, const char *own, uint64_t bytes, uint64_t bytes_max,
                                 tf_error *error);

#endif

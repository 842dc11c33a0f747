/* Where packed weights lie: in a file that an earlier start left, mapped and shared, or on the heap, and then written
 * to that file for the next start. In: a folder, what the weights are of. Out: memory for packed blobs.
 * Nothing here can keep a program from starting: a file that can't be used is packed anew, a folder that can't be
 * written is done without; the log says so. */
#ifndef TF_TENSOR_PACK_STORE_H
#define TF_TENSOR_PACK_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Raised whenever the same weights come to lie otherwise, or are rounded otherwise (tests/unit/test_pack_store.c sees
 * it): files of before are then packed anew. */
enum { TF_PACK_LAYOUT_VERSION = 1 };

/* folder: made where it is not there; NULL, "" or "off": nowhere. bytes_max: that the files of all roles in it take
 * together, those being written too. Before one is written, those that nobody has used for longest go, but for what
 * some process has mapped; where that would not be enough, it is not written. One process writes at a time. */
typedef struct tf_pack_place {
  const char *folder;
  uint64_t bytes_max;
} tf_pack_place;

typedef struct tf_pack_store tf_pack_store;

/* place: NULL as nowhere. role: of this program, lower-case letters. content: names what is packed by its content (the
 * model's pair hash). Both and the processor's level and arithmetic (cpu.h) make the file's name and key. NULL: no
 * store, which all of the functions below take. The caller ends it (tf_pack_store_end), frees the weights, and closes
 * it. */
tf_pack_store *tf_pack_store_open(const tf_pack_place *place, const char *role, const char *content);
void tf_pack_store_close(tf_pack_store **self);

/* Memory for `bytes`, aligned to 64. *filled: it holds the blob, is read only, and the store's until it is closed. Else
 * it is zeroed, to be filled before tf_pack_store_save, and the caller's to free (tf_huge_free), after that. name: of
 * this blob alone; form: how it lies. NULL: out of memory. Any thread. */
void *tf_pack_store_take(tf_pack_store *self, const char *name, const char *form, size_t bytes, bool *filled);
/* Once all is packed, and nothing is taken any more: begins to write the file where anything was not in it, and to
 * bring the folder down to its bound, on a thread of its own: nobody waits for it. */
void tf_pack_store_save(tf_pack_store *self);
/* Before any of the weights are freed: the writing is over, or given up. */
void tf_pack_store_end(tf_pack_store *self);

#endif

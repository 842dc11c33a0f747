/* Large, long-lived memory on huge pages: packed weights. In: sizes. Out: zeroed memory, aligned to 64 bytes.
 * A matrix product walks through more 4-KiB pages than the processor remembers; on pages of 2 MiB it does not.
 * Where the system grants none, this is ordinary memory. */
#ifndef TF_TENSOR_HUGE_H
#define TF_TENSOR_HUGE_H

#include <stddef.h>

/* Zeroed. NULL: out of memory. Safe from several threads. */
void *tf_huge_new(size_t bytes);
/* Memory goes back to the system when all that shares a mapping with it has been freed. NULL: nothing. */
void tf_huge_free(void *memory);

#endif

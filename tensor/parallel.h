/* A pool of compute threads for one caller at a time. In: a range and a function. Out: the function run over all of it.
 * OpenBLAS itself is kept at one thread: work is split here, and one pool serves matrix products and all the rest. */
#ifndef TF_TENSOR_PARALLEL_H
#define TF_TENSOR_PARALLEL_H

#include <stddef.h>
#include <stdint.h>

typedef struct tf_pool tf_pool;

/* threads counts the caller: 1 makes none. 0: one for each core that this process may use. NULL: out of memory. */
tf_pool *tf_pool_new(int threads);
void tf_pool_free(tf_pool **self);
int tf_pool_threads(const tf_pool *self);
/* thread: 0..threads-1, the one that runs this piece; a thread may run several pieces, one after the other. */
typedef void (*tf_parallel_fn)(void *context, int64_t begin, int64_t end, int thread);
/* Splits [0, count) into contiguous pieces whose starts are multiples of `grain` (at most four a thread, so that a
 * thread that the system holds up delays little) and runs them; returns when all are done. Not from inside itself. */
void tf_parallel(tf_pool *self, int64_t count, int64_t grain, tf_parallel_fn fn, void *context);
/* Memory for the pieces that `thread` runs, aligned to 64 bytes; its contents last as long as one piece. */
enum { TF_POOL_SCRATCH_BYTES = 2 << 20 };
void *tf_pool_scratch(tf_pool *self, int thread);
/* Memory for the caller of tf_parallel, aligned likewise; the next tensor/ function that is called may use it too. */
enum { TF_POOL_SHARED_BYTES = 4 << 20 };
void *tf_pool_shared(tf_pool *self);
/* Keeps OpenBLAS to the thread that calls it, from the first call on. tf_pool_new and tf_linear_pack see to it. */
void tf_blas_single_threaded(void);

#endif

/* A pool of compute threads for one caller at a time. In: a range and a function. Out: the function run over all of it.
 * OpenBLAS itself is kept at one thread: work is split here, so that one pool serves matrix products and everything else. */
#ifndef TF_TENSOR_PARALLEL_H
#define TF_TENSOR_PARALLEL_H

#include <stddef.h>
#include <stdint.h>

typedef struct tf_pool tf_pool;

/* threads counts the caller: 1 makes none. 0: one for each core that this process may use. NULL: out of memory. */
tf_pool *tf_pool_new(int threads);
void tf_pool_free(tf_pool **self);
int tf_pool_threads(const tf_pool *self);
typedef void (*tf_parallel_fn)(void *context, int64_t begin, int64_t end, int thread);
/* Splits [0, count) into contiguous pieces whose starts are multiples of `grain` and runs them; returns when all are done. */
void tf_parallel(tf_pool *self, int64_t count, int64_t grain, tf_parallel_fn fn, void *context);

#endif

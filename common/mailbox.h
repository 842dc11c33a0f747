/* A bounded queue of pointers between threads, with a file descriptor that a reactor can poll.
 * In: pointers (ownership moves with them). Out: the same, first in first out.
 * Any number of writers and readers; readers wait on the condition (compute threads) or poll the descriptor. */
#ifndef TF_COMMON_MAILBOX_H
#define TF_COMMON_MAILBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tf_mailbox tf_mailbox;

tf_mailbox *tf_mailbox_new(size_t items_max); /* NULL: out of memory */
/* Frees what is still inside with free_item (may be NULL: the caller has emptied it). */
void tf_mailbox_free(tf_mailbox **self, void (*free_item)(void *item));
/* False: full or closed; the item stays the caller's. Never blocks. */
bool tf_mailbox_push(tf_mailbox *self, void *item);
/* NULL when empty. Never blocks. */
void *tf_mailbox_try_pop(tf_mailbox *self);
/* Waits up to timeout_ms; NULL on timeout or when closed and empty. */
void *tf_mailbox_pop(tf_mailbox *self, int64_t timeout_ms);
size_t tf_mailbox_count(tf_mailbox *self);
/* Readable while items wait (eventfd). */
int tf_mailbox_fd(const tf_mailbox *self);
/* Wakes every waiter; later pushes fail. */
void tf_mailbox_close(tf_mailbox *self);
bool tf_mailbox_is_closed(tf_mailbox *self);

#endif

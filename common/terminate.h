/* SIGTERM and SIGINT reach the reactor whatever thread the kernel picks. In: nothing. Out: two signal handlers.
 * Libraries may start threads before main (OpenBLAS does), with every signal unblocked: one of those would take the
 * signal that the reactor waits for, and the process would end on the spot instead of draining. */
#ifndef TF_COMMON_TERMINATE_H
#define TF_COMMON_TERMINATE_H

#include "common/error.h"

/* tf_reactor_on_terminate calls this, after it has blocked the signals in the calling thread. */
tf_code tf_terminate_redirect(tf_error *error);

#endif

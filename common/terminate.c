/* Hands termination signals back to the process from threads that should not have got them. In: SIGTERM, SIGINT.
 * Out: the same signal, pending for the process, where the reactor's signalfd reads it.
 * The handler only uses what POSIX calls async-signal-safe. */
#include "common/terminate.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

/* Runs on a thread that does not block the signal: from now on it does, and the signal is sent again.
 * It is blocked here while the handler runs, so that it can only come back to another such thread, or stay pending. */
static void pass_on(int signal_number, siginfo_t *info, void *context) {
  (void)info;
  int saved = errno;
  ucontext_t *thread = context;
  sigaddset(&thread->uc_sigmask, signal_number); /* the mask that is put back at the end of the handler */
  kill(getpid(), signal_number);
  errno = saved;
}

tf_code tf_terminate_redirect(tf_error *error) {
  struct sigaction action = {.sa_sigaction = pass_on, .sa_flags = SA_SIGINFO | SA_RESTART};
  sigemptyset(&action.sa_mask);
  if (sigaction(SIGTERM, &action, NULL) != 0 || sigaction(SIGINT, &action, NULL) != 0) {
    return tf_fail(error, TF_ERR_IO, "can not handle signals: %s", strerror(errno));
  }
  return TF_OK;
}

/* Deaths at named steps. In: TF_FAIL_POINT, read once. Out: SIGKILL to this process, at the pass that was asked for.
 * Passes are counted over all threads. */
#include "common/fail_point.h"

#ifdef TF_FAIL_POINTS
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
  char name[64], prefix[128];
  long pass;
} wanted;
static atomic_long passes;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void read_wanted(void) {
  const char *text = getenv("TF_FAIL_POINT");
  if (text == NULL || text[0] == '\0') return;
  if (sscanf(text, "%63[^:]:%ld:%127s", wanted.name, &wanted.pass, wanted.prefix) < 2 || wanted.pass < 1) {
    fprintf(stderr, "TF_FAIL_POINT=%s: NAME:K[:ID-PREFIX] is expected\n", text);
    exit(2);
  }
}

void tf_fail_point(const char *name, const char *id) {
  pthread_once(&once, read_wanted);
  if (strcmp(name, wanted.name) != 0 || strncmp(id, wanted.prefix, strlen(wanted.prefix)) != 0) return;
  if (atomic_fetch_add(&passes, 1) + 1 != wanted.pass) return;
  fprintf(stderr, "fail_point=%s\n", name);
  kill(getpid(), SIGKILL);
}
#else
typedef int tf_fail_point_is_off; /* a file must declare something */
#endif

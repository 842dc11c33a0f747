/* Starts and ends the processes of the stack. In: argument vectors. Out: processes that die with their parent.
 * A child asks the kernel for SIGKILL when its parent dies, before exec, and looks whether the parent died just before
 * that. It has a process group of its own: Ctrl-C reaches tokenflex alone, which stops the stack in order. */
#include "cli/child.h"

#include "cli/command.h"
#include "common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LAST_WORDS_BYTES = 2000, LAST_WORDS_LINES = 10, KILL_WAIT_MS = 5000 };
/* Whoever sends more signals than this does not want to wait for an orderly end (make and shells may send two at once).
 */
enum { IMPATIENT = 2 };

static bool is_program(const char *path) {
  struct stat status;
  return stat(path, &status) == 0 && S_ISREG(status.st_mode) && access(path, X_OK) == 0;
}

tf_code tf_child_find(const char *program, char *out, size_t out_bytes, tf_error *error) {
  char self_path[PATH_MAX];
  ssize_t length = readlink("/proc/self/exe", self_path, sizeof self_path - 1);
  if (length > 0) {
    self_path[length] = '\0';
    char *slash = strrchr(self_path, '/');
    if (slash) *slash = '\0';
    int written = snprintf(out, out_bytes, "%s/%s", self_path, program);
    if (written > 0 && (size_t)written < out_bytes && is_program(out)) return TF_OK;
  }
  const char *at = getenv("PATH");
  if (!at || !at[0]) at = "/usr/local/bin:/usr/bin:/bin";
  while (at) {
    const char *colon = strchr(at, ':');
    int width = colon ? (int)(colon - at) : (int)strlen(at);
    int written = snprintf(out, out_bytes, "%.*s/%s", width, at, program);
    if (width > 0 && written > 0 && (size_t)written < out_bytes && is_program(out)) return TF_OK;
    at = colon ? colon + 1 : NULL;
  }
  return tf_fail(error, TF_ERR_IO, "%s is neither beside tokenflex nor in PATH", program);
}

/* In the child, between fork and exec: async-signal-safe calls only. */
static void become(char *const *argv, pid_t parent, int out_fd, int error_pipe) {
  static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ, SIGCHLD};
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127); /* it died before the line above */
  setpgid(0, 0);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  sigemptyset(&action.sa_mask);
  action.sa_handler = SIG_DFL;
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) sigaction(numbers[i], &action, NULL);
  action.sa_handler = SIG_IGN; /* a background group may write to the terminal */
  sigaction(SIGTTOU, &action, NULL);
  sigprocmask(SIG_SETMASK, &action.sa_mask, NULL);
  int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  bool placed = null_fd >= 0 && dup2(null_fd, STDIN_FILENO) >= 0 && dup2(out_fd, STDOUT_FILENO) >= 0 &&
                dup2(out_fd, STDERR_FILENO) >= 0;
  if (placed) execv(argv[0], argv);
  int number = errno;
  ssize_t written = write(error_pipe, &number, sizeof number);
  (void)written;
  _exit(127);
}

tf_code tf_child_start(tf_child *self, const char *name, char *const *argv, const char *log_path, tf_error *error) {
  memset(self, 0, sizeof *self);
  self->name = name;
  self->log_fd = -1;
  if (log_path) {
    snprintf(self->log_path, sizeof self->log_path, "%s", log_path);
    /* O_APPEND: the log may be cut while the child writes. */
    self->log_fd = open(log_path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (self->log_fd < 0) return tf_fail(error, TF_ERR_IO, "%s: %s", log_path, strerror(errno));
  }
  int error_pipe[2];
  if (pipe2(error_pipe, O_CLOEXEC)) return tf_fail(error, TF_ERR_IO, "pipe: %s", strerror(errno));
  pid_t parent = getpid(), pid = fork();
  if (pid == 0) become(argv, parent, self->log_fd >= 0 ? self->log_fd : STDERR_FILENO, error_pipe[1]);
  int number = pid < 0 ? errno : 0;
  close(error_pipe[1]);
  if (pid > 0) {
    int failed = 0;
    ssize_t got;
    do got = read(error_pipe[0], &failed, sizeof failed); /* ends at exec */
    while (got < 0 && errno == EINTR);
    if (got == sizeof failed) {
      number = failed;
      waitpid(pid, NULL, 0);
    }
  }
  close(error_pipe[0]);
  if (number) return tf_fail(error, TF_ERR_IO, "%s can not be started: %s", argv[0], strerror(number));
  self->pid = pid;
  return TF_OK;
}

bool tf_child_running(tf_child *self) {
  if (self->pid == 0 || self->ended) return false;
  struct stat status;
  if (self->log_fd >= 0 && fstat(self->log_fd, &status) == 0 && status.st_size > TF_CHILD_LOG_BYTES_MAX &&
      ftruncate(self->log_fd, 0))
    return true; /* a log that can not be cut is no reason to stop */
  pid_t got = waitpid(self->pid, &self->wait_status, WNOHANG);
  if (got == 0 || (got < 0 && errno == EINTR)) return true;
  self->ended = true;
  return false;
}

void tf_child_signal(tf_child *self, int number) {
  if (self->pid > 0 && !self->ended) kill(self->pid, number);
}

static bool ends_within(tf_child *self, long wait_ms) {
  int64_t deadline_ms = tf_now_ms() + wait_ms;
  while (tf_child_running(self)) {
    if (tf_now_ms() >= deadline_ms || tf_interrupt_count() > IMPATIENT) return false;
    usleep(2000);
  }
  return true;
}

void tf_child_end(tf_child *self, long wait_ms) {
  if (ends_within(self, wait_ms)) return;
  tf_child_signal(self, SIGKILL);
  for (int i = 0; i < KILL_WAIT_MS && tf_child_running(self); i++) usleep(1000);
}

bool tf_child_ended_in_order(const tf_child *self) {
  return self->ended && WIFEXITED(self->wait_status) && WEXITSTATUS(self->wait_status) == 0;
}

void tf_child_obituary(const tf_child *self, tf_buffer *out) {
  if (WIFSIGNALED(self->wait_status))
    tf_buffer_printf(out, "the %s was ended by signal %d (%s%s)", self->name, WTERMSIG(self->wait_status),
                     strsignal(WTERMSIG(self->wait_status)),
                     WTERMSIG(self->wait_status) == SIGKILL ? "; was memory short?" : "");
  else
    tf_buffer_printf(out, "the %s ended with exit status %d", self->name, WEXITSTATUS(self->wait_status));
}

void tf_child_last_words(const tf_child *self, tf_buffer *out) {
  struct stat status;
  char text[LAST_WORDS_BYTES + 1];
  if (self->log_fd < 0 || fstat(self->log_fd, &status) || status.st_size == 0) {
    tf_buffer_printf(out, "\n");
    return;
  }
  tf_buffer_printf(out, "; its last lines:\n");
  off_t from = status.st_size > LAST_WORDS_BYTES ? status.st_size - LAST_WORDS_BYTES : 0;
  ssize_t size = pread(self->log_fd, text, LAST_WORDS_BYTES, from);
  if (size <= 0) return;
  while (size > 0 && text[size - 1] == '\n') size--;
  text[size] = '\0';
  char *start = text + size;
  int lines = 0;
  while (start > text && lines < LAST_WORDS_LINES)
    if (*--start == '\n' && ++lines == LAST_WORDS_LINES) start++;
  if (start == text && from > 0 && strchr(text, '\n')) start = strchr(text, '\n') + 1; /* not half a line */
  char *rest = NULL;
  for (char *line = strtok_r(start, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
    tf_buffer_printf(out, "  %s\n", line);
}

void tf_child_close(tf_child *self) {
  if (self->log_fd >= 0) close(self->log_fd);
  self->log_fd = -1;
}

/* Preloaded into programs that qemu-user runs: what they start runs under qemu too, where it is built as they are.
 * In: execv and execve; QEMU, the emulator's path. Out: the same program, or the machine's own without the preload.
 * The kernel knows nothing of the emulator unless an administrator told it (binfmt_misc); this needs nobody's help. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WORDS_MAX = 1024 };

/* The preload is only in the environment of what runs under qemu: ld.so would complain of it to all others. */
static char preload[4096];

__attribute__((constructor)) static void take_preload(void) {
  const char *value = getenv("LD_PRELOAD");
  if (!value) return;
  snprintf(preload, sizeof preload, "LD_PRELOAD=%s", value);
  unsetenv("LD_PRELOAD");
}

static bool is_ours(const char *path) {
  Elf64_Ehdr head;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool whole = read(fd, &head, sizeof head) == (ssize_t)sizeof head;
  close(fd);
  return whole && memcmp(head.e_ident, ELFMAG, SELFMAG) == 0 && head.e_machine == EM_AARCH64;
}

/* Behind the `count` words that are there already; false: too many. */
static bool add_all(const char **words, size_t count, char *const *more) {
  while (*more && count < WORDS_MAX - 1) words[count++] = *more++;
  words[count] = NULL;
  return !*more;
}

int execve(const char *path, char *const *argv, char *const *envp) {
  const char *emulator = getenv("QEMU"), *name = argv[0] ? argv[0] : path;
  if (!emulator || !is_ours(path)) return (int)syscall(SYS_execve, path, argv, envp);
  const char *words[WORDS_MAX] = {emulator, "-0", name, path}, *environment[WORDS_MAX] = {preload};
  if (add_all(words, 4, argv[0] ? argv + 1 : argv) && add_all(environment, 1, envp))
    return (int)syscall(SYS_execve, emulator, words, environment);
  errno = E2BIG;
  return -1;
}

int execv(const char *path, char *const *argv) {
  return execve(path, argv, environ);
}

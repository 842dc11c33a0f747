/* Preloaded into programs that qemu-user runs: what they start runs under qemu too, where it is built as they are.
 * In: execv and execve; QEMU, the emulator's path. Out: the same program, or the machine's own without the preload.
 * The kernel knows nothing of the emulator unless an administrator told it (binfmt_misc); this needs nobody's help. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARGUMENTS_MAX = 1024 };

static bool is_ours(const char *path) {
  Elf64_Ehdr head;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool whole = read(fd, &head, sizeof head) == (ssize_t)sizeof head;
  close(fd);
  return whole && memcmp(head.e_ident, ELFMAG, SELFMAG) == 0 && head.e_machine == EM_AARCH64;
}

static size_t count_of(char *const *list) {
  size_t count = 0;
  while (list[count]) count++;
  return count;
}

int execve(const char *path, char *const *argv, char *const *envp) {
  const char *emulator = getenv("QEMU"), *words[ARGUMENTS_MAX];
  size_t count = 0;
  if (count_of(argv) + 5 > ARGUMENTS_MAX || count_of(envp) >= ARGUMENTS_MAX) {
    errno = E2BIG;
    return -1;
  }
  if (emulator && is_ours(path)) {
    words[count++] = emulator;
    words[count++] = "-0";
    words[count++] = argv[0] ? argv[0] : path;
    words[count++] = path;
    for (size_t i = 1; argv[0] && argv[i]; i++) words[count++] = argv[i];
    words[count] = NULL;
    return (int)syscall(SYS_execve, emulator, words, envp);
  }
  for (; *envp; envp++)
    if (strncmp(*envp, "LD_PRELOAD=", 11) != 0) words[count++] = *envp;
  words[count] = NULL;
  return (int)syscall(SYS_execve, path, argv, words);
}

int execv(const char *path, char *const *argv) {
  return execve(path, argv, environ);
}

/* The folder of packed weights and its bound. In: folders of its own, files left there, starts with a blob of zeroes.
 * Out: files go, stay or are not written as the bound, those in use and the file system's locks will have it; the log
 * tells. What a process in use or at work looks like to others, a lock, is held here by the tests themselves. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "tensor/huge.h"
#include "tensor/pack_file.h"
#include "tensor/pack_folder.h"
#include "tensor/pack_store.h"

/* SIZE: of a file with a blob of BLOB bytes, with its header and table. */
enum { BLOB = 1 << 20, NAME_BYTES = 300, WAIT_MS = 20000 };
#define SIZE ((long)tf_pack_file_bytes(&(tf_pack_blob){.bytes = BLOB}, 1))

/* ---- file systems ---- */

static enum { LOCAL, LIKE_NFS, WITHOUT_LOCKS } locks;

/* In the place of libc's: NFS grants no exclusive lock on what is open to be read alone. */
int flock(int fd, int operation) {
  bool exclusive = (operation & LOCK_EX) != 0, reading = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY;
  if (locks == WITHOUT_LOCKS || (locks == LIKE_NFS && exclusive && reading)) {
    errno = locks == LIKE_NFS ? EBADF : ENOLCK;
    return -1;
  }
  return (int)syscall(SYS_flock, fd, operation);
}

/* ---- a folder ---- */

static char folder[64];
static void begin(void) {
  char path[128];
  snprintf(folder, sizeof folder, "/tmp/tokenflex-packs-XXXXXX");
  cr_assert_not_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/log", folder);
  int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  cr_assert(fd >= 0 && dup2(fd, STDERR_FILENO) >= 0);
  close(fd);
  tf_log_setup("tests", "info");
}
static void end(void) {
  char command[128];
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  cr_expect_eq(system(command), 0);
}
TestSuite(pack_folder, .init = begin, .fini = end, .timeout = 120);

/* How many whole files there are; one's name in name (unless NULL). */
static int count_files(char name[NAME_BYTES]) {
  int count = 0;
  DIR *dir = opendir(folder);
  const struct dirent *item;
  while (dir != NULL && (item = readdir(dir)) != NULL) {
    size_t size = strlen(item->d_name);
    if (size <= 8 || strcmp(item->d_name + size - 8, ".weights") != 0) continue;
    count++;
    if (name != NULL) snprintf(name, NAME_BYTES, "%s", item->d_name);
  }
  if (dir != NULL) closedir(dir);
  return count;
}

/* A file of zeroes, used `hours` ago. */
static void leave_file(const char *name, long bytes, int hours) {
  char command[800];
  snprintf(command, sizeof command, "cd '%s' && truncate -s %ld '%s' && touch -d '%d hours ago' '%s'", folder, bytes,
           name, hours, name);
  cr_assert_eq(system(command), 0);
}

static bool is_there(const char *name) {
  char path[600];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return access(path, F_OK) == 0;
}

/* Open as by a process that uses it (LOCK_SH) or writes it (LOCK_EX); closed by the caller. */
static int hold(const char *name, int operation) {
  char path[600];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  cr_assert(fd >= 0 && syscall(SYS_flock, fd, operation | LOCK_NB) == 0, "%s", name);
  return fd;
}

/* How many lines of the log have the word. */
static int logged(const char *word) {
  char path[128], line[4096];
  int count = 0;
  snprintf(path, sizeof path, "%s/log", folder);
  FILE *file = fopen(path, "re");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) count += strstr(line, word) != NULL;
  if (file != NULL) fclose(file);
  return count;
}

static void await_line(const char *word, int before) {
  int64_t until_ms = tf_now_ms() + WAIT_MS;
  while (logged(word) <= before) {
    cr_assert(tf_now_ms() < until_ms, "the log has no new %s", word);
    usleep(1000);
  }
}

/* ---- starts ---- */

typedef struct start {
  tf_pack_store *store;
  void *memory; /* NULL: mapped */
} start;

/* A start to the point where it has taken its weights: a blob of `bytes`. */
static start take(const char *role, const char *content, size_t bytes, long bytes_max) {
  bool filled = false;
  tf_pack_place place = {.folder = folder, .bytes_max = (uint64_t)bytes_max};
  start self = {.store = tf_pack_store_open(&place, role, content)};
  void *memory = tf_pack_store_take(self.store, "a blob", "zeroes", bytes, &filled);
  cr_assert_not_null(memory);
  if (!filled) self.memory = memory;
  return self;
}

static void finish(start *self) {
  tf_pack_store_end(self->store);
  tf_huge_free(self->memory);
  tf_pack_store_close(&self->store);
}

/* A whole start, to the end of what it does behind its back: its log has one more line with the word. */
static void start_within(const char *content, long bytes_max, const char *word) {
  int before = logged(word);
  start self = take("tests", content, BLOB, bytes_max);
  tf_pack_store_save(self.store);
  await_line(word, before);
  finish(&self);
}

/* ---- tests ---- */

static const char OLD[] = "tests-00000000000000000000000000000001.weights",
                  OTHERS[] = "other-00000000000000000000000000000002.weights",
                  YOUNG[] = "tests-00000000000000000000000000000003.weights", NOTES[] = "tests-notes.weights",
                  TORN[] = "tests-00000000000000000000000000000004.weights.0123.tmp",
                  BEGUN[] = "tests-00000000000000000000000000000004.weights.4567.tmp";

static void keep_bytes(void) {
  const long slack = 1024;
  char first[NAME_BYTES];
  start_within("the first", SIZE, "weights_kept");
  cr_assert_eq(count_files(first), 1);
  leave_file(OLD, SIZE, 20);
  leave_file(OTHERS, SIZE, 10);
  leave_file(YOUNG, SIZE, 1);
  leave_file(NOTES, 100 * SIZE, 200); /* a stranger's: it does not count, and stays */
  leave_file(TORN, SIZE, -24);        /* what a killed process began, by a clock that is wrong */
  leave_file(BEGUN, SIZE, 9 * 24);    /* what another writes now: it counts, and stays */
  int begun = hold(BEGUN, LOCK_EX);
  /* Room for the first, YOUNG, BEGUN and this one. */
  start_within("the second", 4 * SIZE + slack, "weights_kept");
  cr_assert(!is_there(OLD) && !is_there(OTHERS) && !is_there(TORN), "those unused for longest go");
  cr_assert(is_there(YOUNG) && is_there(NOTES) && is_there(BEGUN) && is_there(first));
  /* The first is in use now; however long ago that began, it stays, and younger ones go. */
  start user = take("tests", "the first", BLOB, SIZE);
  cr_assert_null(user.memory, "it is mapped");
  leave_file(first, SIZE, 300);
  start_within("the third", 3 * SIZE + slack, "weights_kept");
  cr_assert(!is_there(YOUNG) && is_there(NOTES) && is_there(BEGUN) && is_there(first));
  cr_assert_eq(count_files(NULL), 3, "the first, the third, the notes");
  close(begun);
  finish(&user);
  start_within("the fourth", SIZE, "weights_kept");
  cr_assert(!is_there(BEGUN) && !is_there(first), "nobody writes that any more, nobody uses this");
  cr_assert_eq(count_files(NULL), 2);
}

Test(pack_folder, it_stays_within_its_bytes) {
  keep_bytes();
}

Test(pack_folder, it_stays_within_its_bytes_on_nfs) {
  locks = LIKE_NFS;
  keep_bytes();
}

Test(pack_folder, nothing_is_written_or_removed_where_there_are_no_locks) {
  leave_file(OLD, SIZE, 20);
  locks = WITHOUT_LOCKS;
  start_within("the first", SIZE, "weights_not_kept");
  cr_assert(is_there(OLD) && count_files(NULL) == 1);
}

Test(pack_folder, a_file_that_finds_no_room_costs_no_other) {
  leave_file(OLD, SIZE / 2, 20);
  leave_file(YOUNG, SIZE / 2, 1);
  int used = hold(YOUNG, LOCK_SH);
  start_within("the first", SIZE + SIZE / 4, "weights_not_kept"); /* with what is in use, a quarter too much */
  cr_assert(is_there(OLD) && is_there(YOUNG), "they fit");
  start_within("the first", SIZE - 1, "weights_not_kept"); /* more than all may take: what is there must fit still */
  cr_assert(!is_there(OLD) && is_there(YOUNG));
  close(used);
  start_within("the first", SIZE / 4, "weights_not_kept");
  cr_assert_eq(count_files(NULL), 0);
}

Test(pack_folder, a_start_that_finds_its_file_keeps_the_bound) {
  start_within("the first", 2 * SIZE, "weights_kept");
  leave_file(OLD, SIZE, 20);
  start_within("the first", 2 * SIZE, "weights_mapped");
  cr_assert(is_there(OLD));
  start_within("the first", 2 * SIZE - 1, "weights_removed"); /* the bound is another one now */
  cr_assert(!is_there(OLD) && count_files(NULL) == 1);
  leave_file(OLD, SIZE, 20);
  start_within("the first", SIZE / 2, "weights_not_bounded"); /* its own is more: the rest goes, and it is told */
  cr_assert(!is_there(OLD) && count_files(NULL) == 1);
  leave_file(OLD, SIZE, 20);
  int used = hold(OLD, LOCK_SH);
  start_within("the first", 2 * SIZE - 1, "weights_not_bounded");
  cr_assert(is_there(OLD));
  close(used);
}

Test(pack_folder, what_was_left_half_written_goes_though_there_is_room) {
  leave_file(TORN, SIZE, 0);
  start_within("the first", 10 * SIZE, "weights_kept");
  cr_assert_not(is_there(TORN));
  leave_file(TORN, SIZE, 0);
  start_within("the first", 10 * SIZE, "weights_removed");
  cr_assert(!is_there(TORN) && logged("weights_mapped") == 1);
}

Test(pack_folder, a_file_that_is_replaced_goes_first) {
  char name[NAME_BYTES], path[600];
  start_within("the first", SIZE, "weights_kept");
  cr_assert_eq(count_files(name), 1);
  leave_file(OLD, SIZE / 4, 20);
  snprintf(path, sizeof path, "%s/%s", folder, name);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  cr_assert(fd >= 0 && pwrite(fd, "damage", 6, SIZE - 6) == 6 && close(fd) == 0);
  start_within("the first", SIZE + SIZE / 2, "weights_kept"); /* has it open when it finds that out */
  cr_assert(logged("weights_refused") == 1 && logged("weights_removed") == 1 && is_there(OLD));
  start_within("the first", SIZE + SIZE / 2, "weights_mapped");
}

Test(pack_folder, what_can_not_be_counted_is_not_added_to) {
  char path[600];
  for (int i = 0; i < TF_PACK_ENTRIES_MAX; i++) {
    snprintf(path, sizeof path, "%s/%d", folder, i);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0);
    close(fd);
  }
  start_within("the first", 2 * SIZE, "weights_not_kept");
  cr_assert_eq(count_files(NULL), 0);
}

Test(pack_folder, one_process_writes_at_a_time) {
  tf_error error;
  int lock = -1, second = -1;
  cr_assert_eq(tf_pack_folder_lock(folder, 0, NULL, &lock, &error), TF_OK);
  cr_assert_eq(tf_pack_folder_lock(folder, 50, NULL, &second, &error), TF_ERR_TIMEOUT);
  for (int i = 0; i < 2; i++) {
    start self = take("tests", "the first", BLOB, SIZE);
    tf_pack_store_save(self.store); /* does not wait; what it began does */
    usleep(100000);
    cr_assert_eq(count_files(NULL), 0);
    if (i == 1) {
      close(lock);
      await_line("weights_kept", 0);
    }
    finish(&self); /* the first gives up, and is not kept waiting */
  }
  cr_assert_eq(count_files(NULL), 1);
}

Test(pack_folder, what_another_wrote_meanwhile_is_not_written_again) {
  struct stat before, after;
  char name[NAME_BYTES], path[600];
  start late = take("tests", "the first", BLOB, SIZE);
  start_within("the first", SIZE, "weights_kept");
  cr_assert_eq(count_files(name), 1);
  snprintf(path, sizeof path, "%s/%s", folder, name);
  int used = hold(name, LOCK_SH);
  cr_assert_eq(stat(path, &before), 0);
  tf_pack_store_save(late.store);
  await_line("weights_kept", 1);
  cr_assert(stat(path, &after) == 0 && after.st_ino == before.st_ino);
  close(used);
  finish(&late);
}

/* One of two programs that start at once. */
static void be_one_of_two(const char *role, size_t bytes, int gate) {
  char byte, word[32];
  start self = take(role, "the first", bytes, (long)(bytes + bytes / 2));
  if (read(gate, &byte, 1) != 0) _exit(1); /* until the parent closes it */
  tf_pack_store_save(self.store);
  snprintf(word, sizeof word, "/%s-", role);
  await_line(word, 0);
  _exit(0);
}

Test(pack_folder, two_that_start_at_once_keep_the_bound_together) {
  enum { BYTES = 32 << 20 };
  int gate[2];
  pid_t pids[2];
  cr_assert_eq(pipe(gate), 0);
  for (int i = 0; i < 2; i++) {
    pids[i] = fork();
    if (pids[i] != 0) continue;
    close(gate[1]);
    be_one_of_two(i == 0 ? "encoder" : "llm", BYTES, gate[0]);
  }
  close(gate[0]);
  close(gate[1]);
  for (int i = 0; i < 2; i++) {
    int status = 1;
    waitpid(pids[i], &status, 0);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  cr_assert_eq(logged("weights_kept"), 2, "nobody used the first one's when the second came");
  cr_assert_eq(count_files(NULL), 1, "and there is room for one");
}

Test(pack_folder, files_are_for_their_user_alone) {
  char name[NAME_BYTES], path[600];
  struct stat status;
  umask(0);
  start_within("the first", SIZE, "weights_kept");
  cr_assert_eq(count_files(name), 1);
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, i == 0 ? name : ".lock");
    cr_assert(stat(path, &status) == 0 && (status.st_mode & 0777) == 0600, "%s", path);
  }
}

/* Tests of cli/output.c and cli/rundir.c: what is on the disk during and after a run.
 * In: files and folders in a temporary place. Out: whole lines, nothing lost before a run begins, nothing left behind.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/output.h"
#include "cli/rundir.h"

static char top[64];
static tf_output output;
static tf_error problem;

static void make_top(void) {
  strcpy(top, "/tmp/tf-test-output-XXXXXX");
  cr_assert_not_null(mkdtemp(top));
  cr_assert_eq(chdir(top), 0);
}
static void remove_top(void) {
  char command[128];
  cr_assert_eq(chdir("/"), 0);
  snprintf(command, sizeof command, "rm -rf '%s'", top);
  cr_assert_eq(system(command), 0);
}
TestSuite(output, .init = make_top, .fini = remove_top);

static tf_buffer line_of(const char *content) {
  tf_buffer line;
  tf_buffer_init(&line, 1 << 20);
  tf_buffer_printf(&line, "%s\n", content);
  return line;
}

static const char *content_of(const char *path) {
  static char content[65536];
  FILE *file = fopen(path, "r");
  if (!file) return NULL;
  content[fread(content, 1, sizeof content - 1, file)] = '\0';
  fclose(file);
  return content;
}

Test(output, three_files) {
  tf_buffer one = line_of("{\"a\":1}"), bad = line_of("{\"e\":1}"), run = line_of("{}");
  cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert_eq(tf_output_begin(&output, true, &problem), TF_OK);
  cr_assert_eq(tf_output_settings(&output, &run, &problem), TF_OK);
  cr_assert_eq(tf_output_caption(&output, &one, NULL, &problem), TF_OK);
  cr_assert_eq(access("o.jsonl.errors.jsonl", F_OK), -1, "made at the first failure");
  cr_assert_eq(tf_output_failure(&output, &bad, &problem), TF_OK);
  cr_assert_eq(tf_output_caption(&output, &one, NULL, &problem), TF_OK);
  cr_assert_eq(tf_output_close(&output, &problem), TF_OK);
  cr_assert_str_eq(content_of("o.jsonl"), "{\"a\":1}\n{\"a\":1}\n");
  cr_assert_str_eq(content_of("o.jsonl.errors.jsonl"), "{\"e\":1}\n");
  cr_assert_str_eq(content_of("o.jsonl.run.json"), "{}\n");
  tf_buffer_free(&one);
  tf_buffer_free(&bad);
  tf_buffer_free(&run);
  cr_assert_eq(system("test -z \"$(find . -name '.*.tokenflex')\""), 0, "nothing else is left");
}

static void write_text(const char *path, const char *text) {
  FILE *file = fopen(path, "w");
  cr_assert_not_null(file);
  fputs(text, file);
  fclose(file);
}

Test(output, a_replacement_touches_no_other_file) {
  tf_buffer run = line_of("{}");
  write_text("o.jsonl.run.json.new", "somebody's own\n");
  write_text(".o.jsonl.run.json.tokenflex", "somebody's own, too\n");
  write_text(".o.jsonl.run.json.0123456789abcdeg.tokenflex", "no such number\n");
  write_text(".0123456789abcdef.tokenflex", "no name\n");
  write_text(".p.txt.0123456789abcdef.tokenflex", "a killed run's\n");
  write_text(".o.jsonl.run.json.fedcba9876543210.tokenflex", "another run's, under way\n");
  int other = open(".o.jsonl.run.json.fedcba9876543210.tokenflex", O_RDWR);
  cr_assert_eq(flock(other, LOCK_EX | LOCK_NB), 0);
  cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert_eq(tf_output_settings(&output, &run, &problem), TF_OK);
  cr_assert_eq(tf_output_close(&output, &problem), TF_OK);
  cr_assert_str_eq(content_of("o.jsonl.run.json"), "{}\n");
  cr_assert_str_eq(content_of("o.jsonl.run.json.new"), "somebody's own\n");
  cr_assert_str_eq(content_of(".o.jsonl.run.json.tokenflex"), "somebody's own, too\n");
  cr_assert_str_eq(content_of(".o.jsonl.run.json.0123456789abcdeg.tokenflex"), "no such number\n");
  cr_assert_str_eq(content_of(".0123456789abcdef.tokenflex"), "no name\n");
  cr_assert_str_eq(content_of(".o.jsonl.run.json.fedcba9876543210.tokenflex"), "another run's, under way\n");
  cr_assert_eq(access(".p.txt.0123456789abcdef.tokenflex", F_OK), -1, "what a killed run left goes");
  close(other);
  tf_buffer_free(&run);
}

/* Whether --overwrite, or a new output, may take these names. */
static tf_code may_begin(void) {
  cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
  tf_code code = tf_output_is_ours(&output, &problem);
  tf_error ignored;
  cr_assert_eq(tf_output_close(&output, &ignored), TF_OK);
  return code;
}

Test(output, files_beside_it_that_are_not_ours_are_refused_by_name) {
  static const char *const ours[] = {"", "{\"id\":\"1\",\"image\":\"a.jpg\",\"code\":\"io\"}\n", "{\"id\":\"1\",\"im"};
  static const char *const foreign[] = {"my notes\n", "my notes", "{\"run\": 1}\n"};
  cr_assert_eq(may_begin(), TF_OK);
  for (size_t i = 0; i < 3; i++) {
    write_text("o.jsonl.upgrade", ours[i]);
    cr_assert_eq(may_begin(), TF_OK, "%s", ours[i]);
    write_text("o.jsonl.upgrade", foreign[i]);
    cr_assert_eq(may_begin(), TF_ERR_INVALID_ARGUMENT, "%s", foreign[i]);
    cr_assert_not_null(strstr(problem.text, "o.jsonl.upgrade does not begin as"), "%s", problem.text);
    unlink("o.jsonl.upgrade");
    write_text("o.jsonl.run.json", foreign[i]);
    cr_assert_eq(may_begin(), TF_ERR_INVALID_ARGUMENT, "%s", foreign[i]);
    cr_assert_not_null(strstr(problem.text, "o.jsonl.run.json does not begin as"), "%s", problem.text);
    write_text("o.jsonl.run.json", "{\n  \"run\": \"r\"}\n");
    cr_assert_eq(may_begin(), TF_OK, "%s", problem.text);
  }
}

Test(output, an_existing_file_is_unharmed_until_the_run_begins) {
  write_text("o.jsonl", "old\n");
  cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert(tf_output_has_past(&output));
  cr_assert_eq(tf_output_close(&output, &problem), TF_OK);
  cr_assert_str_eq(content_of("o.jsonl"), "old\n");
  tf_buffer line = line_of("new");
  off_t at = -1;
  cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert_eq(tf_output_begin(&output, false, &problem), TF_OK);
  cr_assert_eq(tf_output_caption(&output, &line, &at, &problem), TF_OK);
  cr_assert_eq(tf_output_close(&output, &problem), TF_OK);
  cr_assert_str_eq(content_of("o.jsonl"), "old\nnew\n");
  cr_assert_eq(at, 4);
  write_text("o.jsonl.errors.jsonl", "old\n");
  cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert_eq(tf_output_begin(&output, true, &problem), TF_OK);
  cr_assert_not(tf_output_has_past(&output));
  cr_assert_eq(tf_output_close(&output, &problem), TF_OK);
  cr_assert_str_eq(content_of("o.jsonl"), "");
  cr_assert_eq(access("o.jsonl.errors.jsonl", F_OK), -1);
  tf_buffer_free(&line);
}

Test(output, one_process_an_output) {
  tf_output second;
  cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert_eq(tf_output_open(&second, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_ERR_IO);
  cr_assert_not_null(strstr(problem.text, "another run"));
  tf_output_close(&second, &problem);
  cr_assert_eq(access("o.jsonl", F_OK), 0, "the first one's file stays");
  tf_output_close(&output, &problem);
}

Test(output, csv_has_its_header_once) {
  tf_buffer line = line_of("{\"id\":\"r-1\",\"image\":\"a, b.jpg\",\"caption\":\"one \\\"two\\\"\",\"vision_tokens\":"
                           "{\"requested\":\"auto\",\"assigned\":64,\"reason\":\"queue\"},\"attempt\":1}");
  for (int i = 0; i < 2; i++) {
    cr_assert_eq(tf_output_open(&output, "o.csv", TF_FORMAT_CSV, &problem), TF_OK);
    cr_assert_eq(tf_output_begin(&output, false, &problem), TF_OK);
    cr_assert_eq(tf_output_caption(&output, &line, NULL, &problem), TF_OK);
    cr_assert_eq(tf_output_close(&output, &problem), TF_OK);
  }
  const char *record = "\"a, b.jpg\",\"one \"\"two\"\"\",64,auto,queue,,,,,1,,r-1,,,\n";
  char wanted[1024];
  snprintf(wanted, sizeof wanted,
           "image,caption,vision_tokens,requested,reason,prompt_tokens,completion_tokens,finish_reason,total_ms,"
           "attempt,model,id,image_uri,duplicate_of,warning\n%s%s",
           record, record);
  cr_assert_str_eq(content_of("o.csv"), wanted);
  tf_buffer_free(&line);
}

Test(output, a_run_that_never_began_leaves_nothing) {
  cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert_eq(access("o.jsonl", F_OK), 0);
  cr_assert_eq(tf_output_close(&output, &problem), TF_OK);
  cr_assert_eq(access("o.jsonl", F_OK), -1);
}

Test(output, places_that_can_not_be_written) {
  cr_assert_eq(tf_output_open(&output, "none/o.jsonl", TF_FORMAT_JSONL, &problem), TF_ERR_IO);
  tf_output_close(&output, &problem);
  cr_assert_eq(tf_output_open(&output, "/dev/null", TF_FORMAT_JSONL, &problem), TF_ERR_INVALID_ARGUMENT);
  tf_output_close(&output, &problem);
}

Test(output, a_full_disk_leaves_whole_lines) {
  tf_buffer line = line_of("0123456789012345678901234567890123456789");
  signal(SIGXFSZ, SIG_IGN); /* a file at its size limit fails as a full disk does: in the middle of a line */
  struct rlimit limit = {100, 100};
  cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert_eq(tf_output_begin(&output, true, &problem), TF_OK);
  cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
  cr_assert_eq(tf_output_caption(&output, &line, NULL, &problem), TF_OK);
  cr_assert_eq(tf_output_caption(&output, &line, NULL, &problem), TF_OK);
  cr_assert_eq(tf_output_caption(&output, &line, NULL, &problem), TF_ERR_IO);
  struct stat status;
  cr_assert_eq(stat("o.jsonl", &status), 0);
  cr_assert_eq(status.st_size, 82);
  tf_output_close(&output, &problem);
  tf_buffer_free(&line);
}

/* Standard output is a file of this test's own here. */
Test(output, full_standard_output_promises_nothing) {
  tf_buffer line = line_of("0123456789012345678901234567890123456789");
  struct rlimit limit = {20, 20};
  signal(SIGXFSZ, SIG_IGN);
  int kept = dup(STDOUT_FILENO), file = open("stdout", O_RDWR | O_CREAT, 0600);
  cr_assert(kept >= 0 && file >= 0);
  cr_assert_eq(tf_output_open(&output, NULL, TF_FORMAT_JSONL, &problem), TF_OK);
  cr_assert_eq(tf_output_begin(&output, true, &problem), TF_OK);
  cr_assert_eq(dup2(file, STDOUT_FILENO), STDOUT_FILENO);
  cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
  tf_code code = tf_output_caption(&output, &line, NULL, &problem);
  dup2(kept, STDOUT_FILENO);
  cr_assert_eq(code, TF_ERR_IO);
  cr_assert_not_null(strstr(problem.text, "standard output: "), "%s", problem.text);
  cr_assert_null(strstr(problem.text, "goes on"), "%s", problem.text);
  cr_assert_not_null(strstr(problem.text, "-o FILE"), "%s", problem.text);
  tf_output_close(&output, &problem);
  tf_buffer_free(&line);
}

Test(output, only_captions_are_begun_anew) {
  static const struct {
    const char *text;
    bool ours;
  } files[] = {{"", true},
               {"{\"id\":\"r-1\",\"image\":\"a.jpg\"}\n", true},
               {"image,caption,vision_tokens,requested\n", true},
               {"\xff\xd8\xff a photo", false},
               {"{\"name\":\"somebody's\"}\n", false}};
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    FILE *file = fopen("o.jsonl", "w");
    cr_assert_not_null(file);
    fputs(files[i].text, file);
    fclose(file);
    cr_assert_eq(tf_output_open(&output, "o.jsonl", TF_FORMAT_JSONL, &problem), TF_OK);
    cr_assert_eq(tf_output_is_ours(&output, &problem) == TF_OK, files[i].ours, "%s", files[i].text);
    tf_output_close(&output, &problem);
  }
}

/* -- private folders -- */

static int entries_in(const char *path) {
  DIR *dir = opendir(path);
  int count = 0;
  if (!dir) return -1;
  for (struct dirent *entry; (entry = readdir(dir));) count += entry->d_name[0] != '.';
  closedir(dir);
  return count;
}

Test(output, private_folder_is_private_and_goes) {
  tf_rundir folder;
  setenv("XDG_RUNTIME_DIR", top, 1);
  cr_assert_eq(tf_rundir_make(&folder, &problem), TF_OK, "%s", problem.text);
  struct stat status;
  cr_assert_eq(stat(folder.path, &status), 0);
  cr_assert_eq(status.st_mode & 07777, 0700);
  cr_assert_eq(strncmp(folder.path, top, strlen(top)), 0);
  char name[128];
  snprintf(name, sizeof name, "%s/some.log", folder.path);
  cr_assert_geq(open(name, O_CREAT | O_WRONLY, 0600), 0);
  tf_rundir_remove(&folder);
  cr_assert_eq(entries_in(top), 0);
}

Test(output, folders_of_the_dead_go_those_of_the_living_stay) {
  tf_rundir living, folder;
  setenv("XDG_RUNTIME_DIR", top, 1);
  cr_assert_eq(tf_rundir_make(&living, &problem), TF_OK);
  int ready[2];
  cr_assert_eq(pipe(ready), 0);
  pid_t pid = fork();
  if (pid == 0) {
    char name[128];
    _exit(tf_rundir_make(&folder, &problem) || !snprintf(name, sizeof name, "%s/redis.sock", folder.path) ||
          open(name, O_CREAT | O_WRONLY, 0600) < 0 || raise(SIGKILL));
  }
  int how;
  cr_assert_eq(waitpid(pid, &how, 0), pid);
  cr_assert(WIFSIGNALED(how));
  cr_assert_eq(entries_in(living.base), 2);
  cr_assert_eq(tf_rundir_make(&folder, &problem), TF_OK);
  cr_assert_eq(entries_in(living.base), 2, "the dead one's is gone");
  cr_assert_eq(access(living.path, F_OK), 0);
  tf_rundir_remove(&folder);
  cr_assert_eq(access(living.path, F_OK), 0);
  tf_rundir_remove(&living);
  cr_assert_eq(entries_in(top), 0);
}

Test(output, a_base_that_others_can_enter_is_refused) {
  tf_rundir folder;
  char base[128];
  setenv("XDG_RUNTIME_DIR", top, 1);
  snprintf(base, sizeof base, "%s/tokenflex-%u", top, (unsigned)geteuid());
  cr_assert_eq(mkdir(base, 0755), 0);
  cr_assert_eq(chmod(base, 0755), 0);
  cr_assert_eq(tf_rundir_make(&folder, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(strncmp(folder.path, "/tmp/tokenflex-", 15), 0, "not in the folder that is open to others");
  tf_rundir_remove(&folder);
  cr_assert_eq(entries_in(base), 0);
}

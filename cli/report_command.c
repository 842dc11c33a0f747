/* `tokenflex report FILE`: the page of an output that is there already.
 * In: options and the output's name. Out: FILE.html; the exit status. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/page.h"
#include "common/options.h"

typedef struct report_config {
  const char *page;
  int64_t threads, max_pixels;
} report_config;

#define FIELD(name) offsetof(report_config, name)
static const tf_option options[] = {
    {"page", 'o', TF_OPTION_STRING, FIELD(page), 0, 0, NULL, "PAGE",
     "The page to write (-: to standard output); else FILE.html"},
    {"threads", 0, TF_OPTION_INT, FIELD(threads), 0, 1024, "0", "threads", "Threads for thumbnails (0: every core)"},
    {"max-pixels", 0, TF_OPTION_INT, FIELD(max_pixels), 1, 4e9, "250000000", "pixels",
     "Larger pictures have no thumbnail"},
};
const tf_program tf_report_program = {
    .name = "tokenflex report",
    .synopsis = "[options] FILE",
    .summary = "Writes one self-contained HTML page of what `tokenflex caption -o FILE` wrote: pictures, captions, "
               "token counts, times and failures.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

static int write_page(const report_config *config, const char *output) {
  char *page = NULL;
  tf_page_counts counts;
  tf_error error;
  if (!config->page && asprintf(&page, "%s.html", output) < 0) {
    tf_say("out of memory");
    return TF_EXIT_FAILED;
  }
  tf_page_config wanted = {.output = output,
                           .page = config->page ? config->page : page,
                           .threads = (int)config->threads,
                           .max_pixels = config->max_pixels};
  tf_code code = tf_page_write(&wanted, &counts, &error);
  if (code)
    tf_say("%s", error.text);
  else
    tf_say("%s: %llu captions, %llu failures", strcmp(wanted.page, "-") == 0 ? "standard output" : wanted.page,
           (unsigned long long)counts.captions, (unsigned long long)counts.failures);
  free(page);
  return code == TF_ERR_INVALID_ARGUMENT ? TF_EXIT_USAGE : code ? TF_EXIT_FAILED : TF_EXIT_OK;
}

int tf_report_main(int argc, char **argv) {
  report_config config;
  tf_options_outcome outcome;
  tf_error error;
  size_t count = 0;
  const char **names = calloc((size_t)argc + 1, sizeof *names);
  int status = TF_EXIT_OK;
  if (!names) return TF_EXIT_FAILED;
  if (tf_options_parse(&tf_report_program, argc, argv, &config, names, &count, &outcome, &error)) {
    tf_say("%s", error.text);
    status = TF_EXIT_USAGE;
  } else if (outcome == TF_OPTIONS_RUN && count != 1) {
    tf_say("name one output: tokenflex report [options] FILE");
    status = TF_EXIT_USAGE;
  } else if (outcome == TF_OPTIONS_RUN) {
    tf_interrupt_setup();
    status = write_page(&config, names[0]);
  }
  free(names);
  return status;
}

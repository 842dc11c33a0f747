/* Words of `tokenflex caption`. In: options. Out: a checked configuration, or what is wrong with it.
 * What the model decides (which counts of vision tokens there are) is checked later, where the model is known. */
#include "cli/caption_options.h"

#include "cli/pace.h"
#include "cli/server.h"
#include "tensor/cpu.h"
#include "common/clock.h"
#include "common/utf8.h"

#include <string.h>

enum { PROMPT_BYTES_MAX = 16384 };

#define FIELD(name) offsetof(tf_caption_config, name)
static const tf_option options[] = {
    {"output", 'o', TF_OPTION_STRING, FIELD(output), 0, 0, NULL, "FILE",
     "Write the lines to FILE, or go on where an earlier run left it; else to standard output"},
    {"format", 0, TF_OPTION_CHOICE, FIELD(format), 0, 0, "jsonl", "jsonl|csv", "JSON Lines, or CSV with a header"},
    {"report", 0, TF_OPTION_STRING, FIELD(report), 0, 0, NULL, "PAGE",
     "At the end, write one HTML page of all that FILE holds, with thumbnails"},
    {"sidecar", 0, TF_OPTION_FLAG, FIELD(sidecar), 0, 0, NULL, NULL,
     "Write photo.txt beside each photo; without --output only that, and photos that have one are done"},
    {"overwrite", 0, TF_OPTION_FLAG, FIELD(overwrite), 0, 0, NULL, NULL,
     "Begin FILE anew where it holds captions; replace sidecars"},
    {"retry-failed", 0, TF_OPTION_FLAG, FIELD(retry_failed), 0, 0, NULL, NULL,
     "Try again what failed in earlier runs on FILE"},
    {"upgrade", 0, TF_OPTION_FLAG, FIELD(upgrade), 0, 0, NULL, NULL,
     "Caption again what earlier runs on FILE did with fewer vision tokens"},
    {"files-from", 0, TF_OPTION_STRING, FIELD(files_from), 0, 0, NULL, "FILE",
     "Names, one a line, of files and folders (\"-\", also as an argument: from standard input)"},
    {"null", '0', TF_OPTION_FLAG, FIELD(null), 0, 0, NULL, NULL, "Those names end with NUL (find -print0)"},
    {"recursive", 'r', TF_OPTION_FLAG, FIELD(recursive), 0, 0, "true", NULL, "Folders inside folders, too"},
    {"no-recursive", 0, TF_OPTION_FLAG, FIELD(no_recursive), 0, 0, NULL, NULL, "Not those inside folders"},
    {"limit", 0, TF_OPTION_INT, FIELD(limit), 0, 1e15, "0", "pictures",
     "The first so many pictures of the names (0: all)"},
    {"shuffle", 0, TF_OPTION_FLAG, FIELD(shuffle), 0, 0, NULL, NULL,
     "In random order (over 65,536 names at a time); with --limit a random sample"},
    {"seed", 0, TF_OPTION_INT, FIELD(seed), 0, 9e15, "0", "number",
     "Of --shuffle: the same order again (0: another each time)"},
    {"vision-tokens", 0, TF_OPTION_STRING, FIELD(vision_tokens), 0, 0, NULL, "N|auto",
     "Tokens that show the LLM the picture; else the model's most; auto: as the load allows"},
    {"within", 0, TF_OPTION_STRING, FIELD(within), 0, 0, NULL, "TIME",
     "Be done in 3h, 90m, 1h30m: fewer vision tokens as far as that needs, no picture dropped"},
    {"finish-by", 0, TF_OPTION_STRING, FIELD(finish_by), 0, 0, NULL, "TIME",
     "The same, by 06:00 (the next one) or 2025-01-31T06:00, local time"},
    {"prompt", 0, TF_OPTION_STRING, FIELD(prompt), 0, 0, NULL, "TEXT",
     "What to ask about the picture; else the model's own"},
    {"max-new-tokens", 0, TF_OPTION_INT, FIELD(max_new_tokens), 1, 4096, "40", "tokens", "Longest caption"},
    {"max-pixels", 0, TF_OPTION_INT, FIELD(max_pixels), 1, 4e9, "250000000", "pixels",
     "Larger pictures are errors (a deployment has a limit of its own)"},
    {"model", 0, TF_OPTION_STRING, FIELD(model), 0, 0, NULL, "DIR", "Model folder; else the installed one"},
    {"threads", 0, TF_OPTION_INT, FIELD(threads), 0, 1024, "0", "threads", "Compute threads (0: every core)"},
    {"compute", 0, TF_OPTION_CHOICE, FIELD(compute), 0, 0, "auto", TF_COMPUTE_CHOICES,
     "Arithmetic (auto: the fastest that keeps the captions' quality)"},
    {"cpu", 0, TF_OPTION_CHOICE, FIELD(cpu), 0, 0, "auto", TF_CPU_CHOICES,
     "Instructions to use (auto: the best that there are)"},
    {"cache-dir", 0, TF_OPTION_STRING, FIELD(cache_dir), 0, 0, NULL, "DIR",
     "Where prepared weights are kept for the next start (off: nowhere); else ~/.cache/tokenflex"},
    {"cache-dir-mib", 0, TF_OPTION_INT, FIELD(cache_dir_mib), 1, 1048576, "2048", "MiB",
     "That they may take; those unused for longest go first"},
    {"redis", 0, TF_OPTION_LIST, FIELD(redis), 0, 0, NULL, "URL,...",
     "Use the deployment on this Redis (several: pictures are spread over them); start nothing"},
    {"queue", 0, TF_OPTION_STRING, FIELD(queue), 0, 0, "default", "NAME", "Queue"},
    {"by-reference", 0, TF_OPTION_FLAG, FIELD(by_reference), 0, 0, NULL, NULL,
     "A deployment reads the photos itself, by their paths (a shared volume); else their bytes travel"},
    {"verbose", 'v', TF_OPTION_FLAG, FIELD(verbose), 0, 0, NULL, NULL, "Print each caption with its path"},
    {"quiet", 'q', TF_OPTION_FLAG, FIELD(quiet), 0, 0, NULL, NULL, "No progress and no summary; failures are told"},
    {"log-level", 0, TF_OPTION_CHOICE, FIELD(log_level), 0, 0, "warn", "debug|info|warn|error",
     "Lines of the services below this are not logged"},
};
const tf_program tf_caption_program = {
    .name = "tokenflex caption",
    .synopsis = "[options] FILE|DIR|PATTERN...",
    .summary = "Writes a caption for every photo in the files and folders named, one JSON object a line.\n"
               "The same command again, with the same --output, goes on where it was stopped.\n"
               "Exit status: 0 all captioned, 3 some failed, 1 could not run or was stopped, 2 wrong usage.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
};

static tf_code check_names(tf_caption_config *config, tf_error *error) {
  size_t kept = 0;
  for (size_t i = 0; i < config->name_count; i++) {
    bool standard = strcmp(config->names[i], "-") == 0;
    if (standard && config->list)
      return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "- and --files-from: give one list of names");
    if (standard)
      config->list = "-";
    else
      config->names[kept++] = config->names[i];
  }
  config->name_count = kept;
  if (kept == 0 && !config->list && !config->upgrade)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "name files or folders: tokenflex caption [options] FILE|DIR|PATTERN...");
  if (config->null && !config->list)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--null is about a list of names: give --files-from or -");
  return TF_OK;
}

/* Options that say nothing together. */
static tf_code check_together(const tf_caption_config *config, tf_error *error) {
  bool deadline = config->within || config->finish_by;
  const struct {
    bool wrong;
    const char *text;
  } rules[] = {
      {config->upgrade && !config->output, "--upgrade: name the --output of the earlier run"},
      {config->upgrade && config->overwrite, "--upgrade goes on with an output, --overwrite begins it anew"},
      {config->upgrade && deadline, "--upgrade is for full detail, --within and --finish-by give it up"},
      {config->upgrade && config->vision_tokens && strcmp(config->vision_tokens, "auto") == 0,
       "--upgrade is for full detail: --vision-tokens auto may give it up"},
      {config->retry_failed && !config->output, "--retry-failed: name the --output of the earlier run"},
      {config->by_reference && config->redis.count == 0, "--by-reference is about a deployment: give --redis"},
      {config->seed > 0 && !config->shuffle, "--seed is about --shuffle"},
      {config->verbose && config->quiet, "--verbose and --quiet: give one of them"},
      {config->redis.count > TF_SERVERS_MAX, "--redis: too many servers"},
  };
  for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++)
    if (rules[i].wrong) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "%s", rules[i].text);
  return TF_OK;
}

tf_code tf_caption_check(tf_caption_config *config, const char **names, size_t name_count, tf_error *error) {
  const char *wish = config->vision_tokens, *prompt = config->prompt;
  config->names = names;
  config->name_count = name_count;
  config->list = config->files_from;
  config->lines = strcmp(config->format, "csv") == 0 ? TF_FORMAT_CSV : TF_FORMAT_JSONL;
  tf_code code = check_names(config, error);
  if (!code) code = check_together(config, error);
  if (!code && config->redis.count == 0) code = tf_cpu_use(config->cpu, config->compute, error);
  if (code) return code;
  if (wish && strcmp(wish, "auto") != 0 && (strspn(wish, "0123456789") != strlen(wish) || !wish[0] || strlen(wish) > 6))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--vision-tokens %.60s: give a number or auto", wish);
  if (prompt && !prompt[0])
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--prompt is empty: leave it out for the model's own");
  if (config->output && !config->output[0])
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--output is empty: name a file, or leave it out");
  if (config->output && strcmp(config->output, "-") == 0)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "--output -: leave it out, and the lines go to standard output (a file of that name is ./-)");
  if (config->report && (!config->report[0] || !config->output))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--report PAGE shows what is in FILE: give --output FILE, too");
  if (prompt && (strlen(prompt) > PROMPT_BYTES_MAX || !tf_utf8_is_valid(prompt, strlen(prompt))))
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--prompt: at most %d bytes of UTF-8", PROMPT_BYTES_MAX);
  return tf_pace_parse(config->within, config->finish_by, tf_unix_ms(), &config->finish_unix_ms, error);
}

/* What earlier runs have left in an output, and what this run adds: the state of every picture by its name.
 * In: FILE, FILE.errors.jsonl, FILE.run.json. Out: settings to compare with, the names that are done or failed.
 * Memory: see cli/keymap.h, values of one byte: 10 to 21 bytes a picture. */
#ifndef TF_CLI_PAST_H
#define TF_CLI_PAST_H

#include "cli/keymap.h"
#include "cli/output.h"
#include "cli/submit.h"

typedef enum tf_name_state {
  TF_NAME_TAKEN = 1, /* of this run, not answered yet */
  TF_NAME_DONE,      /* has its caption */
  TF_NAME_FAILED     /* has its line among the failures */
} tf_name_state;

/* How an output was made; what is not known is NULL or 0. */
typedef struct tf_earlier {
  bool found;
  char *run, *prompt, *pair_hash, *compute,
      *folder;                           /* prompt NULL: the model's own. folder: where relative names begin */
  int64_t vision_tokens, max_new_tokens; /* vision_tokens 0: auto */
  uint64_t seed;                         /* of --shuffle */
  bool has_seed;
  tf_format format;
} tf_earlier;

/* Reads FILE.run.json; found false where there is none. TF_ERR_INVALID_ARGUMENT: it can not be understood. */
tf_code tf_earlier_read(const char *run_path, tf_earlier *out, tf_error *error);
void tf_earlier_free(tf_earlier *self);
/* Whether lines of a run with these settings may join the others. pair_hash NULL: not known yet. compute: the
 * arithmetic in use; NULL: a deployment's own. vision_tokens -1: not
 * known yet. upgrade: more vision tokens than before are what is wanted.
 * TF_ERR_INVALID_ARGUMENT: the text names what differs and what to do. */
tf_code tf_earlier_compare(const tf_earlier *self, const char *output, const tf_submit_settings *settings,
                           const char *pair_hash, const char *compute, tf_format format, bool upgrade, tf_error *error);

typedef struct tf_past {
  tf_keymap names; /* tf_name_state by tf_past_key */
  char *folder;    /* where relative names of the output begin */
  uint64_t captions, failures;
  uint32_t target;     /* set by the caller: */
  uint64_t below;      /* captions of fewer vision tokens than that */
  uint64_t torn_bytes; /* cut off the files' ends */
  bool untidy;         /* a picture may have more than one line, or an outdated one, among the failures */
} tf_past;

/* folder is copied. */
tf_code tf_past_init(tf_past *self, const char *folder, tf_error *error);
void tf_past_free(tf_past *self);
/* The key of a name: it is made absolute, without "//" and "/./"; links and ".." stay as they are. */
uint64_t tf_past_key(const tf_past *self, const char *image);
/* The name as an absolute path. Appends to out, with a NUL. */
void tf_past_path(const tf_past *self, const char *image, tf_buffer *out);
/* Reads both files, cuts off what a killed run left half-written, and tidies the failures.
 * TF_ERR_INVALID_ARGUMENT: something in the middle is no caption of ours. */
tf_code tf_past_read(tf_past *self, tf_output *output, tf_error *error);
/* Leaves one truth a picture: failures of pictures that have a caption now go, of several the last stays. The file is
 * replaced atomically, and only where something is to be dropped; it goes with its last line. Sets `failures`. */
tf_code tf_past_tidy(tf_past *self, tf_output *output, tf_error *error);

#endif

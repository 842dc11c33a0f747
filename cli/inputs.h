/* The images of a run, found one by one: files and folders as named on the command line.
 * In: the arguments. Out: one image (or one argument's error) a call, each folder in byte order of its names.
 * Lazy: a folder is read when the walk reaches it, at most TF_INPUTS_NAMES_MAX names at a time. */
#ifndef TF_CLI_INPUTS_H
#define TF_CLI_INPUTS_H

#include <stddef.h>
#include <stdint.h>

#include "cli/list.h"
#include "common/error.h"

enum {
  TF_INPUTS_NAMES_MAX = 65536,    /* names of one folder that are held and sorted at once */
  TF_INPUTS_DEPTH_MAX = 128,      /* folders inside folders */
  TF_INPUTS_FOLDERS_MAX = 4194304 /* folders that one argument may hold */
};

typedef struct tf_inputs tf_inputs;

typedef enum tf_input_kind {
  TF_INPUT_IMAGE, /* a job */
  TF_INPUT_ERROR, /* an argument or folder that can not be read, a name that leads nowhere */
  TF_INPUT_PAUSE, /* nothing found within the budget; call again */
  TF_INPUT_WAIT,  /* the list has nothing more yet; call again later */
  TF_INPUT_STOP,  /* the list can not be read on: the names are not complete */
  TF_INPUT_END
} tf_input_kind;

/* Strings live until the next call. */
typedef struct tf_input {
  const char *image; /* the argument as typed, joined with the path below it */
  const char *path;  /* absolute; TF_INPUT_IMAGE only */
  tf_error error;    /* TF_INPUT_ERROR and TF_INPUT_STOP only */
} tf_input;

typedef struct tf_inputs_config {
  const char *const *arguments; /* files, folders, patterns that the shell left alone */
  size_t count;
  tf_list *list; /* more names, after the arguments; NULL: none */
  bool flat;     /* folders inside folders are passed over */
} tf_inputs_config;

/* What config points to is borrowed and must outlive the walk. NULL: out of memory. */
tf_inputs *tf_inputs_new(const tf_inputs_config *config);
void tf_inputs_free(tf_inputs **self);

/* The next image. Looks at no more than names_max names (so that a caller's loop stays alive in a huge folder).
 * A file named as an argument is always an image. An argument that is not there and holds * ? or [ is a pattern
 * (cli/glob.h), whose matches are treated as a folder's content. In a folder, regular files with an image's extension,
 * or with the first bytes of a format that is read, are images; hidden names are passed over; the rest is counted as
 * skipped. Links are followed; every folder is visited once an argument, so that loops end. */
tf_input_kind tf_inputs_next(tf_inputs *self, size_t names_max, tf_input *out);

/* Files in folders that are no images, so far. */
uint64_t tf_inputs_skipped(const tf_inputs *self);

/* True for names that end in an image format's extension (any case). */
bool tf_inputs_is_image_name(const char *name);
/* A regular file that begins as an image of a kind that is read; false, too, where it can not be read. */
bool tf_inputs_has_signature(const char *path);

#endif

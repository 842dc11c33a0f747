/* The model folder: vision.gguf, llm.gguf, adapter.gguf, and the hash that says which pair they make.
 * In: a folder, or nothing (then the installed one is looked for). Out: paths, name, pair hash, token counts. */
#ifndef TF_TENSOR_MODEL_DIR_H
#define TF_TENSOR_MODEL_DIR_H

#include "common/error.h"

#include <stdint.h>

enum { TF_TOKEN_COUNTS_MAX = 16, TF_PATH_BYTES_MAX = 4096, TF_PAIR_HASH_BYTES = 33 };

typedef struct tf_model_dir {
  char path[TF_PATH_BYTES_MAX];
  char vision_path[TF_PATH_BYTES_MAX], llm_path[TF_PATH_BYTES_MAX], adapter_path[TF_PATH_BYTES_MAX];
  char name[160];                     /* "<adapter's general.name>/<first 8 of the pair hash>" */
  char pair_hash[TF_PAIR_HASH_BYTES]; /* 32 hex digits over the three files' bytes and the preprocessing version */
  uint32_t token_counts[TF_TOKEN_COUNTS_MAX]; /* ascending squares, from tokenflex.token_counts */
  uint32_t token_count_count;
} tf_model_dir;

/* requested NULL or "": $TOKENFLEX_MODEL where it is set, else the first of these folders that holds any of the files
 * (PROGRAM: the program's own folder, DATA: $XDG_DATA_HOME or ~/.local/share):
 *   PROGRAM/../model, PROGRAM/../share/tokenflex/model, DATA/tokenflex/model, /usr/local/share/tokenflex/model,
 *   /usr/share/tokenflex/model
 * Hashes all three files (XXH3, about 60 ms for 200 MB in cache). Errors name the folder and what is missing. */
tf_code tf_model_dir_open(const char *requested, tf_model_dir *out, tf_error *error);

/* Raised whenever decoding, resizing or normalisation changes what the ViT sees, or the same adapter comes to change
 * other weights (2: the ViT's too): encoders of before then pair with nobody, and their packed weights are nobody's. */
#define TF_PREPROCESSING_VERSION "preprocess-2"

#endif

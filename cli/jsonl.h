/* The lines of the output: one JSON object a caption, one an error. Pure: text in, text out.
 * In: a result's `json` from the queue, the image's name as the user typed it. Out: a line ending in '\n'.
 * Key order is fixed: id, image, caption, vision_tokens, usage, timing_ms, attempt, model, then whatever else came. */
#ifndef TF_CLI_JSONL_H
#define TF_CLI_JSONL_H

#include <stdint.h>

#include "common/buffer.h"
#include "common/error.h"

enum { TF_JSONL_STAGE_COUNT = 9, TF_JSONL_LINE_BYTES_MAX = 1024 * 1024 };
/* queue, fetch, decode, encode, transfer, wait, prefill, generate, total */
extern const char *const tf_jsonl_stages[TF_JSONL_STAGE_COUNT];

/* What the summary wants to know of a caption. */
typedef struct tf_caption_facts {
  uint32_t vision_tokens;
  double timing_ms[TF_JSONL_STAGE_COUNT];
} tf_caption_facts;

/* Appends the line of a result. json: what the router wrote, untrusted; its `id` must be id, `caption` a string and
 * `vision_tokens.assigned` a positive integer, else TF_ERR_PROTOCOL and nothing is appended. */
tf_code tf_jsonl_caption(const char *json, size_t json_bytes, const char *id, const char *image, tf_buffer *line,
                         tf_caption_facts *facts, tf_error *error);

/* Appends the line of another picture of the same bytes: first with id and image in place of its own, and
 * `duplicate_of` with the first one's name. All else, the times too, is the first one's. */
tf_code tf_jsonl_duplicate(const char *first, size_t bytes, const char *id, const char *image, tf_buffer *line,
                           tf_caption_facts *facts, tf_error *error);
/* Appends the caption of a line, with a NUL. */
tf_code tf_jsonl_text(const char *line, size_t bytes, tf_buffer *out, tf_error *error);

/* Appends the line of a failure. */
tf_code tf_jsonl_error(const char *id, const char *image, const char *code, const char *message, int64_t attempts,
                       tf_buffer *line, tf_error *error);

/* The image's name as valid UTF-8. A name that is not (its bytes are anything) is shown with \xNN for each byte that
 * does not fit and `\\` for a backslash, and its line also carries `image_uri`, from which the name's bytes can be had
 * back. True where the name was fine as it is. Appends to out. */
bool tf_jsonl_name(const char *name, tf_buffer *out);

/* Appends every byte outside A-Z a-z 0-9 - . _ ~ / as %NN: file:// plus this of an absolute path is its URI. */
void tf_uri_escape(const char *path, tf_buffer *out);

#endif

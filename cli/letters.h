/* Dead letters, as `tokenflex dead` handles them. In: a link to the queue's Redis. Out: letters without their image's
 * bytes; letters put back on the queue or dropped (router/lua/letters.lua, retry.lua). */
#ifndef TF_CLI_LETTERS_H
#define TF_CLI_LETTERS_H

#include <stdint.h>

#include "cli/deployment.h"

enum { TF_LETTERS_A_CALL = 16, TF_LETTER_SID_BYTES = 48 };

/* Strings live as long as the callback that gets it. */
typedef struct tf_letter {
  const char *sid, *id, *code, *message, *attempts; /* "" where absent */
  int64_t image_bytes;                              /* -1: it holds no image */
  bool image_dropped;
  const redisReply *fields; /* name, value, ...: all but the image */
} tf_letter;

typedef tf_code (*tf_letter_fn)(void *context, const tf_letter *letter);

/* Hands over the letters that have this code and this id (NULL: any), oldest first, that are there at the beginning.
 * Ends with the first code of fn that is not TF_OK. */
tf_code tf_letters_each(const tf_deployment *deployment, tf_link *link, const char *code, const char *id,
                        tf_letter_fn fn, void *context, tf_error *error);
/* Where the letter of an id is, by the note of its end; sid "" where there is none. */
tf_code tf_letters_find(const tf_deployment *deployment, tf_link *link, const char *id, char sid[TF_LETTER_SID_BYTES],
                        tf_error *error);
/* action: "0", "1" (put back on this lane), "drop". verdicts: what the script says of each, borrowed from *reply, which
 * the caller frees. count: at most TF_LETTERS_A_CALL. */
tf_code tf_letters_settle(const tf_deployment *deployment, tf_link *link, const char *action,
                          const char (*sids)[TF_LETTER_SID_BYTES], size_t count, redisReply **reply, tf_error *error);

#endif

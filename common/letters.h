/* Dead letters on the wire of Redis: the words of the calls to letters.lua and retry.lua, and what they answer.
 * In: keys, stream ids, replies. Out: argument vectors, letters, verdicts. Pure: whoever calls owns the connection. */
#ifndef TF_COMMON_LETTERS_H
#define TF_COMMON_LETTERS_H

#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  TF_LETTERS_A_CALL = 16, /* an image that a letter keeps may be large, and a script holds Redis up */
  TF_LETTER_SID_BYTES = 48,
  TF_LETTERS_READ_WORDS = 10,
  TF_LETTERS_SETTLE_WORDS = 8 + TF_LETTERS_A_CALL
};

/* Strings live as long as the reply. */
typedef struct tf_letter {
  const char *sid, *id, *code, *message, *attempts; /* "" where absent */
  int64_t image_bytes;                              /* -1: it holds no image */
  int lane;                                         /* 0 interactive, 1 batch, -1: it does not say */
  bool image_dropped;
  const redisReply *fields; /* name, value, ...: all but the image */
} tf_letter;

/* Which letters: those of the stream ids first to last ("-", "+" and "(SID" as XRANGE takes them). */
typedef struct tf_letters_range {
  const char *first, *last;
  bool newest_first;
  const char *code, *id; /* that letters must have; NULL: any */
} tf_letters_range;

/* "1712345678901-0". */
bool tf_letter_is_sid(const char *text);
/* The words of a call that looks at `count_text` letters (a number); returns how many. All are borrowed. */
size_t tf_letters_read_words(const char *dead_key, const tf_letters_range *range, const char *count_text,
                             const char *out[TF_LETTERS_READ_WORDS]);
/* The list of its reply, for tf_letter_read; *last: the stream id of the last one looked at, "" at the end. NULL: not
 * such a reply. */
const redisReply *tf_letters_of(const redisReply *reply, const char **last);
/* False: no letter. */
bool tf_letter_read(const redisReply *entry, tf_letter *out);
/* The words of a call that puts letters back (action: the lane, "0" or "1", or "own": each on its own) or drops them
 * ("drop"). count: at most TF_LETTERS_A_CALL. keys: dead, jobs:0, jobs:1; prefix: "tf:{Q}:". */
size_t tf_letters_settle_words(const char *const keys[3], const char *prefix, const char *action,
                               const char (*sids)[TF_LETTER_SID_BYTES], size_t count,
                               const char *out[TF_LETTERS_SETTLE_WORDS]);
/* True where the reply holds a verdict (a string) for each of count letters. */
bool tf_letters_are_verdicts(const redisReply *reply, size_t count);

#endif

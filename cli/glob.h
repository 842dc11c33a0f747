/* Patterns of names, for a shell that did not expand them: * ? [...] within a name, ** over any number of folders.
 * In: a pattern, the names on the way down. Out: what of the pattern is left. Pure.
 * A set of positions is a bit mask: bit i says that parts[i] may come next, bit `count` that all has been matched. */
#ifndef TF_CLI_GLOB_H
#define TF_CLI_GLOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TF_GLOB_PARTS_MAX = 30 };

typedef struct tf_glob {
  char *text;                           /* owned; parts and base point into it */
  const char *base;                     /* the folder before the first wildcard, as typed; "" where there is none */
  const char *parts[TF_GLOB_PARTS_MAX]; /* from the first wildcard on */
  size_t count;
} tf_glob;

/* True where text holds a wildcard. */
bool tf_glob_is_pattern(const char *text);
/* False: too many parts, or out of memory. Freed with tf_glob_free. */
bool tf_glob_parse(const char *pattern, tf_glob *out);
void tf_glob_free(tf_glob *self);
/* Where matching begins, in the base folder. */
uint32_t tf_glob_start(const tf_glob *self);
/* The positions after a name, 0: it fits nowhere. */
uint32_t tf_glob_step(const tf_glob *self, uint32_t positions, const char *name);
/* The name that led here has matched the whole pattern. */
bool tf_glob_is_match(const tf_glob *self, uint32_t positions);

#endif

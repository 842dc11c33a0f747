/* Matches paths name by name. In: a pattern's parts, names. Out: positions.
 * A folder is only opened where some position is left, so that the walk goes nowhere in vain.
 * Hidden names fit only parts that begin with a dot, and never **. */
#include "cli/glob.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

bool tf_glob_is_pattern(const char *text) {
  return text[strcspn(text, "*?[")] != '\0';
}

bool tf_glob_parse(const char *pattern, tf_glob *out) {
  memset(out, 0, sizeof *out);
  size_t wild = strcspn(pattern, "*?["), cut = 0;
  for (size_t i = 0; i < wild; i++)
    if (pattern[i] == '/') cut = i + 1;
  size_t bytes = strlen(pattern) + 2;
  out->text = calloc(1, bytes);
  if (!out->text) return false;
  memcpy(out->text, pattern, cut); /* base, a NUL, the rest */
  memcpy(out->text + cut + 1, pattern + cut, bytes - 2 - cut);
  out->base = out->text;
  char *rest = NULL;
  for (char *part = strtok_r(out->text + cut + 1, "/", &rest); part; part = strtok_r(NULL, "/", &rest)) {
    if (strcmp(part, ".") == 0) continue;
    if (out->count == TF_GLOB_PARTS_MAX) {
      tf_glob_free(out);
      return false;
    }
    out->parts[out->count++] = part;
  }
  return true;
}

void tf_glob_free(tf_glob *self) {
  free(self->text);
  memset(self, 0, sizeof *self);
}

static bool is_deep(const tf_glob *self, size_t part) {
  return part < self->count && strcmp(self->parts[part], "**") == 0;
}

/* ** may stand for no folder at all. */
static uint32_t close_over(const tf_glob *self, uint32_t positions) {
  for (size_t i = 0; i < self->count; i++)
    if ((positions >> i & 1) && is_deep(self, i)) positions |= 2u << i;
  return positions;
}

uint32_t tf_glob_start(const tf_glob *self) {
  return close_over(self, 1);
}

uint32_t tf_glob_step(const tf_glob *self, uint32_t positions, const char *name) {
  uint32_t next = 0;
  for (size_t i = 0; i < self->count; i++) {
    if (!(positions >> i & 1)) continue;
    if (is_deep(self, i))
      next |= name[0] == '.' ? 0 : 1u << i;
    else if (fnmatch(self->parts[i], name, FNM_PERIOD) == 0)
      next |= 2u << i;
  }
  return close_over(self, next);
}

bool tf_glob_is_match(const tf_glob *self, uint32_t positions) {
  return positions >> self->count & 1;
}

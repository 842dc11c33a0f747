/* Dead letters on the wire of Redis. In: keys, stream ids, replies. Out: argument vectors, letters, verdicts.
 * What the scripts take and answer is in the heads of router/lua/letters.lua and retry.lua. */
#include "common/letters.h"

#include <ctype.h>
#include <string.h>

#include "lua_scripts.h"

static const char *text_at(const redisReply *reply, size_t index) {
  bool there = index < reply->elements && reply->element[index]->type == REDIS_REPLY_STRING;
  return there ? reply->element[index]->str : "";
}

bool tf_letter_is_sid(const char *text) {
  size_t parts = 0, digits = 0, size = 0;
  for (const char *at = text; *at; at++, size++) {
    if (isdigit((unsigned char)*at)) {
      digits++;
    } else if (*at == '-' && digits > 0 && parts == 0) {
      parts++;
      digits = 0;
    } else {
      return false;
    }
  }
  return parts == 1 && digits > 0 && size < TF_LETTER_SID_BYTES;
}

size_t tf_letters_read_words(const char *dead_key, const tf_letters_range *range, const char *count_text,
                             const char *out[TF_LETTERS_READ_WORDS]) {
  const char *const words[] = {"EVAL",
                               tf_lua_letters,
                               "1",
                               dead_key,
                               range->first,
                               range->last,
                               count_text,
                               range->code ? range->code : "",
                               range->id ? range->id : "",
                               range->newest_first ? "newest" : ""};
  _Static_assert(sizeof words / sizeof *words == TF_LETTERS_READ_WORDS, "as the callers have room for");
  memcpy(out, words, sizeof words);
  return TF_LETTERS_READ_WORDS;
}

const redisReply *tf_letters_of(const redisReply *reply, const char **last) {
  bool fine = reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 && reply->element[1]->type == REDIS_REPLY_ARRAY;
  *last = fine ? text_at(reply, 0) : "";
  return fine ? reply->element[1] : NULL;
}

bool tf_letter_read(const redisReply *entry, tf_letter *out) {
  *out = (tf_letter){.sid = "", .id = "", .code = "", .message = "", .attempts = "", .image_bytes = -1, .lane = -1};
  if (entry->type != REDIS_REPLY_ARRAY) return false;
  out->sid = text_at(entry, 0);
  if (entry->elements < 3 || entry->element[2]->type != REDIS_REPLY_ARRAY) return out->sid[0] != '\0';
  if (entry->element[1]->type == REDIS_REPLY_INTEGER) out->image_bytes = entry->element[1]->integer;
  out->fields = entry->element[2];
  for (size_t i = 0; i + 1 < out->fields->elements; i += 2) {
    const char *name = text_at(out->fields, i), *value = text_at(out->fields, i + 1);
    if (strcmp(name, "id") == 0) out->id = value;
    if (strcmp(name, "error_code") == 0) out->code = value;
    if (strcmp(name, "error_message") == 0) out->message = value;
    if (strcmp(name, "attempts") == 0) out->attempts = value;
    if (strcmp(name, "lane") == 0) out->lane = strcmp(value, "0") == 0 ? 0 : strcmp(value, "1") == 0 ? 1 : -1;
    if (strcmp(name, "image_dropped") == 0) out->image_dropped = true;
  }
  return out->sid[0] != '\0';
}

size_t tf_letters_settle_words(const char *const keys[3], const char *prefix, const char *action,
                               const char (*sids)[TF_LETTER_SID_BYTES], size_t count,
                               const char *out[TF_LETTERS_SETTLE_WORDS]) {
  const char *const words[] = {"EVAL", tf_lua_retry, "3", keys[0], keys[1], keys[2], prefix, action};
  size_t used = sizeof words / sizeof *words;
  memcpy(out, words, sizeof words);
  for (size_t i = 0; i < count && i < TF_LETTERS_A_CALL; i++) out[used++] = sids[i];
  return used;
}

bool tf_letters_are_verdicts(const redisReply *reply, size_t count) {
  bool fine = reply->type == REDIS_REPLY_ARRAY && reply->elements == count;
  for (size_t i = 0; fine && i < count; i++) fine = reply->element[i]->type == REDIS_REPLY_STRING;
  return fine;
}

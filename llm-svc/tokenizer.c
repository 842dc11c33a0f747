/* Byte-level BPE as a GGUF file describes it: split text by the model's pattern, map bytes to symbols, merge.
 * In: UTF-8 text, or token ids. Out: token ids, or bytes.
 * A pre-tokenizer is a row of PRE_TOKENIZERS: patterns that cut the text one after the other. */
#include "llm-svc/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <xxhash.h>

#include "common/utf8.h"
#include "llm-svc/bpe.h"

/* Unicode's White_Space, spelled out: PCRE2's \s also takes U+180E, which the reference tokenizers do not. */
#define SPACES     "\\x{9}-\\x{d} \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define S          "[" SPACES "]"
#define NOT_S      "[^" SPACES "]"
#define SPACE_RUNS S "+(?!" NOT_S ")|" S "+"

#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+|" SPACE_RUNS
#define QWEN2_PATTERN                                                                                                  \
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" SPACES "\\p{L}\\p{N}]+[\\r\\n]*|" S         \
  "*[\\r\\n]+|" SPACE_RUNS

enum { PATTERNS_MAX = 2, MERGE_TEXT_BYTES_MAX = 4096, PIECES_BYTES_MAX = 1 << 28 };
enum { MATCH_STEPS_MAX = 4000000, MATCH_HEAP_KIB_MAX = 16384 };
enum { TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4 }; /* tokenizer.ggml.token_type */

typedef struct pre_tokenizer {
  const char *name;                   /* tokenizer.ggml.pre */
  const char *patterns[PATTERNS_MAX]; /* each cuts what the one before it left; NULL: no more */
} pre_tokenizer;

static const pre_tokenizer PRE_TOKENIZERS[] = {
    {"smollm", {"\\p{N}", GPT2_PATTERN}}, /* every digit alone */
    {"gpt-2", {GPT2_PATTERN, NULL}},
    {"qwen2", {QWEN2_PATTERN, NULL}},
};

struct tf_tokenizer {
  uint32_t vocabulary;
  char *pieces;          /* the bytes of all tokens, one after the other */
  uint32_t *offsets;     /* [vocabulary + 1] into pieces */
  uint8_t *types;        /* [vocabulary], TYPE_* */
  int32_t byte_ids[256]; /* -1: no token for this byte */
  tf_bpe_merges *merges;
  pcre2_code *patterns[PATTERNS_MAX];
  pcre2_match_context *match_context;
};

void tf_token_list_free(tf_token_list *self) {
  free(self->ids);
  *self = (tf_token_list){0};
}

static bool list_reserve(tf_token_list *self, size_t more) {
  if (more <= self->capacity - self->count) return true;
  size_t capacity = self->capacity == 0 ? 64 : self->capacity;
  while (capacity - self->count < more) capacity *= 2;
  int32_t *grown = realloc(self->ids, capacity * sizeof *grown);
  if (grown == NULL) return false;
  self->ids = grown;
  self->capacity = capacity;
  return true;
}

bool tf_token_list_append(tf_token_list *self, int32_t id) {
  if (!list_reserve(self, 1)) return false;
  self->ids[self->count++] = id;
  return true;
}

/* ---- Loading ---- */

/* GPT-2 writes bytes as printable characters: these stand for themselves, the rest follow from U+0100 on. */
static bool stands_for_itself(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

enum { BYTE_CHARACTERS = 324 };
static void byte_characters(uint16_t to_character[256], int16_t to_byte[BYTE_CHARACTERS]) {
  for (int i = 0; i < BYTE_CHARACTERS; i++) to_byte[i] = -1;
  int next = 256;
  for (int byte = 0; byte < 256; byte++) {
    to_character[byte] = (uint16_t)(stands_for_itself(byte) ? byte : next++);
    to_byte[to_character[byte]] = (int16_t)byte;
  }
}

/* Writes the bytes behind a byte-level text; false: it is no such text, and counts as it stands. All of these
 * characters lie below U+0800, so that one or two bytes make each. */
static bool decode_text(const int16_t to_byte[BYTE_CHARACTERS], const char *text, size_t size, char *out,
                        size_t *out_size) {
  const uint8_t *bytes = (const uint8_t *)text;
  size_t written = 0;
  for (size_t i = 0; i < size;) {
    unsigned character = bytes[i++];
    if (character >= 0x80) {
      if ((character & 0xE0) != 0xC0 || i >= size || (bytes[i] & 0xC0) != 0x80) return false;
      character = (character & 0x1F) << 6 | (bytes[i++] & 0x3Fu);
    }
    if (character >= BYTE_CHARACTERS || to_byte[character] < 0) return false;
    out[written++] = (char)to_byte[character];
  }
  *out_size = written;
  return true;
}

/* Texts by hash, while loading: ids in an open-addressed table that is at most half full. */
typedef struct text_table {
  const tf_gguf *file;
  int32_t *ids; /* -1: empty */
  size_t mask;
} text_table;

static int32_t *table_find(const text_table *table, const char *text, size_t size) {
  size_t at = (size_t)XXH3_64bits(text, size) & table->mask;
  for (;; at = (at + 1) & table->mask) {
    int32_t id = table->ids[at];
    const char *other;
    size_t other_size;
    if (id < 0) return &table->ids[at];
    if (!tf_gguf_array_string(table->file, "tokenizer.ggml.tokens", (uint64_t)id, &other, &other_size)) continue;
    if (other_size == size && memcmp(other, text, size) == 0) return &table->ids[at];
  }
}

static tf_code load_texts(tf_tokenizer *self, text_table *table, tf_error *error) {
  const tf_gguf *file = table->file;
  uint16_t to_character[256];
  int16_t to_byte[BYTE_CHARACTERS];
  byte_characters(to_character, to_byte);
  size_t total = 0, at = 0;
  const char *text;
  size_t size;
  for (uint32_t id = 0; id < self->vocabulary; id++) {
    if (!tf_gguf_array_string(file, "tokenizer.ggml.tokens", id, &text, &size) || size > PIECES_BYTES_MAX - total)
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: token %u is no text, or the vocabulary is too large",
                     tf_gguf_path(file), id);
    total += size;
  }
  self->pieces = malloc(total + 1);
  if (self->pieces == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the vocabulary");
  for (uint32_t id = 0; id < self->vocabulary; id++) {
    int64_t type;
    tf_gguf_array_string(file, "tokenizer.ggml.tokens", id, &text, &size);
    if (!tf_gguf_array_i64(file, "tokenizer.ggml.token_type", id, &type) || type < 0 || type > 255)
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: token %u has no valid type", tf_gguf_path(file), id);
    self->types[id] = (uint8_t)type;
    self->offsets[id] = (uint32_t)at;
    bool is_literal = type == TYPE_CONTROL || type == TYPE_USER_DEFINED;
    size_t piece = size;
    if (is_literal || !decode_text(to_byte, text, size, self->pieces + at, &piece))
      memcpy(self->pieces + at, text, size);
    at += piece;
    if (is_literal) continue; /* text can never become one */
    int32_t *slot = table_find(table, text, size);
    if (*slot < 0) *slot = (int32_t)id;
  }
  self->offsets[self->vocabulary] = (uint32_t)at;
  for (int byte = 0; byte < 256; byte++) {
    uint16_t c = to_character[byte];
    char utf8[2] = {c < 0x80 ? (char)c : (char)(0xC0 | c >> 6), (char)(0x80 | (c & 0x3F))};
    self->byte_ids[byte] = *table_find(table, utf8, c < 0x80 ? 1 : 2);
  }
  return TF_OK;
}

static tf_code load_merges(tf_tokenizer *self, const text_table *table, tf_error *error) {
  const tf_gguf *file = table->file;
  uint64_t count = tf_gguf_array_count(file, "tokenizer.ggml.merges");
  if (count > TF_TOKENIZER_VOCABULARY_MAX)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: more than %d merges", tf_gguf_path(file),
                   TF_TOKENIZER_VOCABULARY_MAX);
  self->merges = tf_bpe_merges_new((size_t)count);
  if (self->merges == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the merges");
  for (uint64_t rank = 0; rank < count; rank++) {
    const char *text = NULL;
    size_t size = 0;
    char joined[MERGE_TEXT_BYTES_MAX];
    tf_gguf_array_string(file, "tokenizer.ggml.merges", rank, &text, &size);
    const char *space = size > 0 && size < sizeof joined ? memchr(text, ' ', size) : NULL;
    int32_t left = -1, right = -1, merged = -1;
    if (space != NULL) {
      size_t left_size = (size_t)(space - text), right_size = size - left_size - 1;
      memcpy(joined, text, left_size);
      memcpy(joined + left_size, space + 1, right_size);
      left = *table_find(table, text, left_size);
      right = *table_find(table, space + 1, right_size);
      merged = *table_find(table, joined, left_size + right_size);
    }
    if (left < 0 || right < 0 || merged < 0)
      return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: merge %llu does not name tokens of the vocabulary",
                     tf_gguf_path(file), (unsigned long long)rank);
    tf_bpe_merges_add(self->merges, left, right, (uint32_t)rank, merged);
  }
  return TF_OK;
}

static tf_code load_patterns(tf_tokenizer *self, const tf_gguf *file, tf_error *error) {
  char name[64];
  if (!tf_gguf_text(file, "tokenizer.ggml.pre", name, sizeof name))
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: no tokenizer.ggml.pre", tf_gguf_path(file));
  const pre_tokenizer *row = NULL;
  for (size_t i = 0; i < sizeof PRE_TOKENIZERS / sizeof *PRE_TOKENIZERS; i++)
    if (strcmp(name, PRE_TOKENIZERS[i].name) == 0) row = &PRE_TOKENIZERS[i];
  if (row == NULL)
    return tf_fail(error, TF_ERR_UNSUPPORTED, "%s: pre-tokenizer '%s' is not supported (smollm, gpt-2, qwen2 are)",
                   tf_gguf_path(file), name);
  for (int i = 0; i < PATTERNS_MAX && row->patterns[i] != NULL; i++) {
    int problem;
    PCRE2_SIZE where;
    self->patterns[i] = pcre2_compile((PCRE2_SPTR)row->patterns[i], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                      &problem, &where, NULL);
    if (self->patterns[i] == NULL)
      return tf_fail(error, TF_ERR_INTERNAL, "pattern %d of pre-tokenizer '%s' does not compile at %zu (PCRE2 %d)", i,
                     name, (size_t)where, problem);
  }
  self->match_context = pcre2_match_context_create(NULL);
  if (self->match_context == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the pre-tokenizer");
  pcre2_set_match_limit(self->match_context, MATCH_STEPS_MAX);
  pcre2_set_heap_limit(self->match_context, MATCH_HEAP_KIB_MAX);
  return TF_OK;
}

static tf_code load_vocabulary(tf_tokenizer *self, const tf_gguf *file, tf_error *error) {
  self->offsets = calloc((size_t)self->vocabulary + 1, sizeof *self->offsets);
  self->types = calloc(self->vocabulary, sizeof *self->types);
  text_table table = {.file = file};
  size_t capacity = 1024;
  /* Half full with the vocabulary, so that every search ends at an empty slot. */
  while (capacity / 2 < self->vocabulary) capacity *= 2;
  table.mask = capacity - 1;
  table.ids = malloc(capacity * sizeof *table.ids);
  tf_code code;
  if (self->offsets == NULL || self->types == NULL || table.ids == NULL) {
    code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for a vocabulary of %u tokens", self->vocabulary);
  } else {
    memset(table.ids, 0xFF, capacity * sizeof *table.ids);
    code = load_texts(self, &table, error);
    if (code == TF_OK) code = load_merges(self, &table, error);
  }
  free(table.ids);
  return code;
}

tf_code tf_tokenizer_load(const tf_gguf *file, tf_tokenizer **out, tf_error *error) {
  char model[32];
  if (!tf_gguf_text(file, "tokenizer.ggml.model", model, sizeof model) || strcmp(model, "gpt2") != 0)
    return tf_fail(error, TF_ERR_UNSUPPORTED, "%s: tokenizer.ggml.model must be gpt2 (byte-level BPE)",
                   tf_gguf_path(file));
  uint64_t vocabulary = tf_gguf_array_count(file, "tokenizer.ggml.tokens");
  if (vocabulary == 0 || vocabulary > TF_TOKENIZER_VOCABULARY_MAX ||
      tf_gguf_array_count(file, "tokenizer.ggml.token_type") != vocabulary)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%s: tokenizer.ggml.tokens and token_type do not fit together",
                   tf_gguf_path(file));
  tf_tokenizer *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the tokenizer");
  self->vocabulary = (uint32_t)vocabulary;
  tf_code code = load_patterns(self, file, error);
  if (code == TF_OK) code = load_vocabulary(self, file, error);
  if (code != TF_OK) {
    tf_tokenizer_free(&self);
    return code;
  }
  *out = self;
  return TF_OK;
}

void tf_tokenizer_free(tf_tokenizer **handle) {
  tf_tokenizer *self = *handle;
  if (self == NULL) return;
  for (int i = 0; i < PATTERNS_MAX; i++)
    if (self->patterns[i] != NULL) pcre2_code_free(self->patterns[i]);
  if (self->match_context != NULL) pcre2_match_context_free(self->match_context);
  tf_bpe_merges_free(&self->merges);
  free(self->pieces);
  free(self->offsets);
  free(self->types);
  free(self);
  *handle = NULL;
}

/* ---- Encoding ---- */

typedef struct encoding {
  const tf_tokenizer *tokenizer;
  pcre2_match_data *match;
  tf_bpe_scratch scratch;
  tf_token_list *out;
  tf_error *error;
} encoding;

static tf_code encode_piece(encoding *self, const char *text, size_t size) {
  tf_token_list *out = self->out;
  if (!list_reserve(out, size)) return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory for the prompt");
  int32_t *ids = out->ids + out->count;
  size_t count = 0;
  for (size_t i = 0; i < size; i++) {
    int32_t id = self->tokenizer->byte_ids[(uint8_t)text[i]];
    if (id >= 0) ids[count++] = id;
  }
  if (!tf_bpe_merge(self->tokenizer->merges, &self->scratch, ids, &count))
    return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory for the prompt");
  out->count += count;
  return TF_OK;
}

/* Cuts text by pattern `stage`: matches and the gaps between them go to the next stage as texts of their own. */
static tf_code split(encoding *self, int stage, const char *text, size_t size) {
  if (size == 0) return TF_OK;
  if (stage == PATTERNS_MAX || self->tokenizer->patterns[stage] == NULL) return encode_piece(self, text, size);
  size_t at = 0;
  while (at < size) {
    int found = pcre2_match(self->tokenizer->patterns[stage], (PCRE2_SPTR)text, size, at,
                            PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, self->match, self->tokenizer->match_context);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found == PCRE2_ERROR_NOMEMORY) return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory for the prompt");
    if (found < 0) return tf_fail(self->error, TF_ERR_FIELD_INVALID, "the text can not be split (PCRE2 %d)", found);
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(self->match);
    size_t begin = range[0], end = range[1];
    tf_code code = split(self, stage + 1, text + at, begin - at);
    /* The match data now belong to the later stage; begin and end were taken before. */
    if (code == TF_OK) code = split(self, stage + 1, text + begin, end - begin);
    if (code != TF_OK) return code;
    at = end;
  }
  return split(self, stage + 1, text + at, size - at);
}

tf_code tf_tokenizer_encode(const tf_tokenizer *self, const char *text, size_t size, tf_token_list *out,
                            tf_error *error) {
  if (size > TF_TOKENIZER_TEXT_BYTES_MAX)
    return tf_fail(error, TF_ERR_FIELD_INVALID, "the text has %zu bytes, more than %d", size,
                   TF_TOKENIZER_TEXT_BYTES_MAX);
  if (!tf_utf8_is_valid(text, size)) return tf_fail(error, TF_ERR_FIELD_INVALID, "the text is not valid UTF-8");
  encoding run = {.tokenizer = self, .out = out, .error = error};
  run.match = pcre2_match_data_create(1, NULL);
  if (run.match == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the prompt");
  tf_code code = split(&run, 0, text, size);
  pcre2_match_data_free(run.match);
  tf_bpe_scratch_free(&run.scratch);
  return code;
}

/* ---- Looking up ---- */

uint32_t tf_tokenizer_vocabulary(const tf_tokenizer *self) {
  return self->vocabulary;
}

const char *tf_tokenizer_piece(const tf_tokenizer *self, int32_t id, size_t *size) {
  *size = 0;
  if (id < 0 || (uint32_t)id >= self->vocabulary) return NULL;
  *size = self->offsets[id + 1] - self->offsets[id];
  return self->pieces + self->offsets[id];
}

bool tf_tokenizer_is_control(const tf_tokenizer *self, int32_t id) {
  return id >= 0 && (uint32_t)id < self->vocabulary && self->types[id] == TYPE_CONTROL;
}

int32_t tf_tokenizer_control(const tf_tokenizer *self, const char *name) {
  size_t wanted = strlen(name), size;
  for (uint32_t id = 0; id < self->vocabulary; id++) {
    if (self->types[id] != TYPE_CONTROL && self->types[id] != TYPE_USER_DEFINED) continue;
    const char *piece = tf_tokenizer_piece(self, (int32_t)id, &size);
    if (size == wanted && memcmp(piece, name, size) == 0) return (int32_t)id;
  }
  return -1;
}

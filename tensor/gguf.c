/* GGUF v2 and v3 parsed in place. In: a file (mapped read-only) or bytes. Out: metadata and tensor views into them.
 * Nothing is trusted: every count, length, offset and alignment is held against the bytes that are left, by
 * subtraction, and what is allocated is in proportion to the bytes that were read for it. */
#include "tensor/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum {
  KEYS_MAX = 65536,
  TENSORS_MAX = 65536,
  KEY_BYTES_MAX = 65535, /* the specification's limit */
  TENSOR_NAME_BYTES_MAX = 255,
  STRINGS_MAX = 1 << 20, /* in one array; the largest vocabularies hold about 256,000 */
  ALIGNMENT_DEFAULT = 32,
  ALIGNMENT_MIN = 8, /* the specification's: also what reading in place needs */
  ALIGNMENT_MAX = 1 << 20,
  /* The least bytes that an entry takes in the file: they bound what a stated count may allocate. */
  KEY_ENTRY_BYTES_MIN = 8 + 1 + 4 + 1,
  TENSOR_ENTRY_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8
};

/* X(NAME, number in the file, bytes; 0: not of fixed size) */
#define VALUE_TYPES(X)                                                                                                 \
  X(U8, 0, 1)                                                                                                          \
  X(I8, 1, 1)                                                                                                          \
  X(U16, 2, 2)                                                                                                         \
  X(I16, 3, 2)                                                                                                         \
  X(U32, 4, 4)                                                                                                         \
  X(I32, 5, 4)                                                                                                         \
  X(F32, 6, 4)                                                                                                         \
  X(BOOL, 7, 1)                                                                                                        \
  X(STRING, 8, 0)                                                                                                      \
  X(ARRAY, 9, 0)                                                                                                       \
  X(U64, 10, 8)                                                                                                        \
  X(I64, 11, 8)                                                                                                        \
  X(F64, 12, 8)
enum {
#define VALUE_ENUM(name, number, bytes) VALUE_##name = (number),
  VALUE_TYPES(VALUE_ENUM)
#undef VALUE_ENUM
      VALUE_TYPE_COUNT
};
static const uint8_t value_bytes[VALUE_TYPE_COUNT] = {
#define VALUE_ROW(name, number, bytes) [number] = (bytes),
    VALUE_TYPES(VALUE_ROW)
#undef VALUE_ROW
};

/* One value, or an array of values of one type. A lone value is a run of one. */
typedef struct value {
  bool is_array;
  uint32_t type;
  uint64_t count;
  const uint8_t *data;
  size_t *string_starts; /* of an array of strings: where in the file each string's length is */
} value;

typedef struct tensor_entry {
  tf_tensor view;
  bool supported;
  uint32_t type;   /* the file's number */
  uint64_t offset; /* in the data section */
} tensor_entry;

/* Names in file order, found through a hash table of open addressing. */
typedef struct name_table {
  char **names;
  size_t count, capacity;
  uint32_t *slots; /* index + 1; 0: free */
  size_t slot_mask;
} name_table;

struct tf_gguf {
  char *path;
  const uint8_t *data;
  size_t size;
  void *map; /* the same bytes where they are a mapped file, NULL where they are borrowed */
  name_table key_names, tensor_names;
  value *values;
  tensor_entry *tensors;
};

typedef struct cursor {
  const uint8_t *data;
  size_t size, at;
} cursor;

static tf_code malformed(const tf_gguf *self, tf_error *error, const char *what) {
  return tf_fail(error, TF_ERR_INVALID_FORMAT, "%.300s: not a sound GGUF file: %s", self->path, what);
}
static tf_code out_of_memory(const tf_gguf *self, tf_error *error) {
  return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "%.300s: out of memory", self->path);
}

static bool take(cursor *self, uint64_t bytes, const uint8_t **out) {
  if (bytes > self->size - self->at) return false;
  *out = self->data + self->at;
  self->at += (size_t)bytes;
  return true;
}
static bool take_u32(cursor *self, uint32_t *out) {
  const uint8_t *from;
  if (!take(self, sizeof *out, &from)) return false;
  memcpy(out, from, sizeof *out);
  return true;
}
static bool take_u64(cursor *self, uint64_t *out) {
  const uint8_t *from;
  if (!take(self, sizeof *out, &from)) return false;
  memcpy(out, from, sizeof *out);
  return true;
}
static bool take_string(cursor *self, const char **out, uint64_t *size) {
  const uint8_t *from;
  if (!take_u64(self, size) || !take(self, *size, &from)) return false;
  *out = (const char *)from;
  return true;
}

static bool names_init(name_table *self, size_t count) {
  size_t slots = 16;
  while (slots < 2 * count) slots *= 2;
  self->names = calloc(count ? count : 1, sizeof *self->names);
  self->slots = calloc(slots, sizeof *self->slots);
  self->capacity = count;
  self->slot_mask = slots - 1;
  return self->names && self->slots;
}

static void names_free(name_table *self) {
  for (size_t i = 0; i < self->count; i++) free(self->names[i]);
  free(self->names);
  free(self->slots);
}

/* The slot that holds the name, or the free one where it belongs: the table is never more than half full. */
static size_t names_slot(const name_table *self, const char *name, size_t size) {
  size_t slot = (size_t)XXH3_64bits(name, size) & self->slot_mask;
  while (self->slots[slot]) {
    const char *other = self->names[self->slots[slot] - 1];
    if (strncmp(other, name, size) == 0 && other[size] == '\0') break;
    slot = (slot + 1) & self->slot_mask;
  }
  return slot;
}

static bool names_find(const name_table *self, const char *name, size_t *index) {
  if (self->count == 0) return false;
  size_t slot = names_slot(self, name, strlen(name));
  if (!self->slots[slot]) return false;
  *index = self->slots[slot] - 1;
  return true;
}

/* Copies a name out of the file, NUL-terminated. Control characters are refused: names go into error texts and logs. */
static tf_code read_name(tf_gguf *self, cursor *at, name_table *names, uint64_t bytes_max, tf_error *error) {
  const char *name;
  uint64_t size;
  if (!take_string(at, &name, &size)) return malformed(self, error, "the file ends inside a name");
  if (size == 0 || size > bytes_max) return malformed(self, error, "a name is empty or too long");
  for (uint64_t i = 0; i < size; i++) {
    if ((unsigned char)name[i] < 0x20) return malformed(self, error, "a name holds a control character");
  }
  size_t slot = names_slot(names, name, (size_t)size);
  if (names->slots[slot]) {
    return tf_fail(error, TF_ERR_INVALID_FORMAT, "%.300s: not a sound GGUF file: the name %.*s is there twice",
                   self->path, (int)(size < 100 ? size : 100), name);
  }
  char *copy = strndup(name, (size_t)size);
  if (!copy) return out_of_memory(self, error);
  names->names[names->count++] = copy;
  names->slots[slot] = (uint32_t)names->count;
  return TF_OK;
}

static bool bools_sound(const value *one) {
  for (uint64_t i = 0; one->type == VALUE_BOOL && i < one->count; i++) {
    if (one->data[i] > 1) return false;
  }
  return true;
}

/* Walks an array's strings once, so that each can be found at once later. */
static tf_code read_strings(tf_gguf *self, cursor *at, value *out, tf_error *error) {
  if (out->count > STRINGS_MAX) return malformed(self, error, "an array of strings is too long");
  if (out->count > (at->size - at->at) / sizeof(uint64_t)) return malformed(self, error, "an array ends too early");
  out->string_starts = malloc((size_t)(out->count ? out->count : 1) * sizeof *out->string_starts);
  if (!out->string_starts) return out_of_memory(self, error);
  for (uint64_t i = 0; i < out->count; i++) {
    const char *text;
    uint64_t size;
    out->string_starts[i] = at->at;
    if (!take_string(at, &text, &size)) return malformed(self, error, "the file ends inside a string");
  }
  return TF_OK;
}

static tf_code read_value(tf_gguf *self, cursor *at, value *out, tf_error *error) {
  if (!take_u32(at, &out->type)) return malformed(self, error, "the file ends inside the metadata");
  out->count = 1;
  if (out->type == VALUE_ARRAY) {
    out->is_array = true;
    if (!take_u32(at, &out->type) || !take_u64(at, &out->count)) {
      return malformed(self, error, "the file ends inside the metadata");
    }
    if (out->type == VALUE_ARRAY) return malformed(self, error, "arrays of arrays are not supported");
  }
  if (out->type >= VALUE_TYPE_COUNT) return malformed(self, error, "a metadata value has an unknown type");
  if (out->type == VALUE_STRING && out->is_array) return read_strings(self, at, out, error);
  if (out->type == VALUE_STRING) {
    const char *text;
    uint64_t size;
    out->data = at->data + at->at;
    return take_string(at, &text, &size) ? TF_OK : malformed(self, error, "the file ends inside a string");
  }
  uint64_t each = value_bytes[out->type];
  if (out->count > (at->size - at->at) / each) return malformed(self, error, "an array ends too early");
  if (!take(at, out->count * each, &out->data) || !bools_sound(out)) {
    return malformed(self, error, "a truth value is neither 0 nor 1");
  }
  return TF_OK;
}

static tf_code read_keys(tf_gguf *self, cursor *at, uint64_t count, tf_error *error) {
  if (count > KEYS_MAX || count > (at->size - at->at) / KEY_ENTRY_BYTES_MIN) {
    return malformed(self, error, "it states more metadata than it holds");
  }
  self->values = calloc(count ? (size_t)count : 1, sizeof *self->values);
  if (!self->values || !names_init(&self->key_names, (size_t)count)) return out_of_memory(self, error);
  for (uint64_t i = 0; i < count; i++) {
    tf_code code = read_name(self, at, &self->key_names, KEY_BYTES_MAX, error);
    if (code == TF_OK) code = read_value(self, at, &self->values[i], error);
    if (code != TF_OK) return code;
  }
  return TF_OK;
}

static bool dtype_of(uint32_t type, tf_dtype *out) {
  switch (type) {
#define DTYPE_CASE(name, gguf, elements, bytes)                                                                        \
  case gguf:                                                                                                           \
    *out = TF_##name;                                                                                                  \
    return true;
    TF_DTYPES(DTYPE_CASE)
#undef DTYPE_CASE
  default:
    return false;
  }
}

/* Names of ggml's other types, for error texts. */
static const char *type_name(uint32_t type) {
  static const char *const names[] = {
      [6] = "Q5_0",  [7] = "Q5_1",  [9] = "Q8_1",  [10] = "Q2_K",   [11] = "Q3_K",   [12] = "Q4_K",
      [13] = "Q5_K", [14] = "Q6_K", [15] = "Q8_K", [20] = "IQ4_NL", [23] = "IQ4_XS", [24] = "I8",
      [25] = "I16",  [26] = "I32",  [27] = "I64",  [28] = "F64",
  };
  return type < sizeof names / sizeof *names && names[type] ? names[type] : "of an unknown number";
}

/* Name, dimensions (innermost first in the file), type, offset. */
static tf_code read_tensor(tf_gguf *self, cursor *at, tensor_entry *out, tf_error *error) {
  tf_code code = read_name(self, at, &self->tensor_names, TENSOR_NAME_BYTES_MAX, error);
  if (code != TF_OK) return code;
  uint32_t rank;
  if (!take_u32(at, &rank)) return malformed(self, error, "the file ends inside the list of tensors");
  if (rank < 1 || rank > TF_RANK_MAX) return malformed(self, error, "a tensor has no or too many dimensions");
  out->view.rank = (int)rank;
  uint64_t elements = 1;
  for (uint32_t i = 0; i < TF_RANK_MAX; i++) out->view.shape[i] = 1;
  for (uint32_t i = 0; i < rank; i++) {
    uint64_t side;
    if (!take_u64(at, &side)) return malformed(self, error, "the file ends inside the list of tensors");
    if (side == 0 || side > (uint64_t)INT64_MAX / elements) {
      return malformed(self, error, "a tensor's dimensions are 0 or too large");
    }
    elements *= side;
    out->view.shape[rank - 1 - i] = (int64_t)side;
  }
  if (!take_u32(at, &out->type) || !take_u64(at, &out->offset)) {
    return malformed(self, error, "the file ends inside the list of tensors");
  }
  out->supported = dtype_of(out->type, &out->view.dtype);
  if (!out->supported) return TF_OK;
  out->view.bytes = tf_dtype_bytes(out->view.dtype, (int64_t)elements);
  if (tf_dtype_bytes(out->view.dtype, out->view.shape[rank - 1]) == 0 || out->view.bytes == 0) {
    return malformed(self, error, "a tensor's row is no whole number of blocks");
  }
  return TF_OK;
}

/* The data section starts at the next multiple of the alignment after the list of tensors. */
static tf_code place_tensors(tf_gguf *self, const cursor *at, uint64_t alignment, tf_error *error) {
  size_t padding = (size_t)(-(uint64_t)at->at & (alignment - 1));
  if (padding > at->size - at->at) return malformed(self, error, "the file ends before its tensors' data");
  const uint8_t *data = at->data + at->at + padding;
  size_t size = at->size - at->at - padding;
  for (size_t i = 0; i < self->tensor_names.count; i++) {
    tensor_entry *one = &self->tensors[i];
    if ((one->offset & (alignment - 1)) != 0 || one->offset > size || one->view.bytes > size - one->offset) {
      return tf_fail(error, TF_ERR_INVALID_FORMAT,
                     "%.300s: not a sound GGUF file: the data of tensor %.100s are not aligned or lie past its end",
                     self->path, self->tensor_names.names[i]);
    }
    one->view.data = data + one->offset;
  }
  return TF_OK;
}

static tf_code read_tensors(tf_gguf *self, cursor *at, uint64_t count, tf_error *error) {
  if (count > TENSORS_MAX || count > (at->size - at->at) / TENSOR_ENTRY_BYTES_MIN) {
    return malformed(self, error, "it states more tensors than it holds");
  }
  self->tensors = calloc(count ? (size_t)count : 1, sizeof *self->tensors);
  if (!self->tensors || !names_init(&self->tensor_names, (size_t)count)) return out_of_memory(self, error);
  for (uint64_t i = 0; i < count; i++) {
    tf_code code = read_tensor(self, at, &self->tensors[i], error);
    if (code != TF_OK) return code;
  }
  uint64_t alignment = ALIGNMENT_DEFAULT;
  size_t index;
  if (names_find(&self->key_names, "general.alignment", &index) &&
      !tf_gguf_u64(self, "general.alignment", &alignment)) {
    return malformed(self, error, "general.alignment is no number");
  }
  if (alignment < ALIGNMENT_MIN || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0) {
    return malformed(self, error, "general.alignment is no power of two from 8 to 1,048,576");
  }
  return count == 0 ? TF_OK : place_tensors(self, at, alignment, error);
}

static tf_code parse(tf_gguf *self, tf_error *error) {
  cursor at = {.data = self->data, .size = self->size};
  const uint8_t *magic;
  uint32_t version;
  uint64_t tensor_count, key_count;
  if (!take(&at, 4, &magic) || memcmp(magic, "GGUF", 4) != 0) {
    return tf_fail(error, TF_ERR_INVALID_FORMAT, "%.300s: not a GGUF file", self->path);
  }
  if (!take_u32(&at, &version)) return malformed(self, error, "the file ends inside its header");
  if (version != 2 && version != 3) {
    return tf_fail(error, TF_ERR_UNSUPPORTED, "%.300s: GGUF version %" PRIu32 " is not supported (2 and 3 are%s)",
                   self->path, version, (version & 0xffff) == 0 ? "; this one is big-endian" : "");
  }
  if (!take_u64(&at, &tensor_count) || !take_u64(&at, &key_count)) {
    return malformed(self, error, "the file ends inside its header");
  }
  tf_code code = read_keys(self, &at, key_count, error);
  return code == TF_OK ? read_tensors(self, &at, tensor_count, error) : code;
}

/* Parses what self->data holds; on failure frees self. */
static tf_code parse_or_close(tf_gguf *self, tf_gguf **out, tf_error *error) {
  tf_code code = parse(self, error);
  if (code == TF_OK)
    *out = self;
  else
    tf_gguf_close(&self);
  return code;
}

tf_code tf_gguf_parse(const void *data, size_t size, const char *name, tf_gguf **out, tf_error *error) {
  *out = NULL;
  tf_gguf *self = calloc(1, sizeof *self);
  if (self) self->path = strdup(name);
  if (!self || !self->path) {
    free(self);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "%.300s: out of memory", name);
  }
  self->data = data;
  self->size = size;
  return parse_or_close(self, out, error);
}

/* Maps a regular file that is not empty. */
static tf_code map_file(const char *path, void **data, size_t *size, tf_error *error) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) return tf_fail(error, TF_ERR_IO, "%.300s: %s", path, strerror(errno));
  struct stat status;
  tf_code code = TF_OK;
  if (fstat(fd, &status) != 0) {
    code = tf_fail(error, TF_ERR_IO, "%.300s: %s", path, strerror(errno));
  } else if (!S_ISREG(status.st_mode) || status.st_size == 0) {
    code = tf_fail(error, TF_ERR_INVALID_FORMAT, "%.300s: not a GGUF file: empty or no regular file", path);
  } else {
    *size = (size_t)status.st_size;
    *data = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (*data == MAP_FAILED) code = tf_fail(error, TF_ERR_IO, "%.300s: mapping failed: %s", path, strerror(errno));
  }
  close(fd);
  return code;
}

tf_code tf_gguf_open(const char *path, tf_gguf **out, tf_error *error) {
  *out = NULL;
  void *data = NULL;
  size_t size = 0;
  tf_code code = map_file(path, &data, &size, error);
  if (code != TF_OK) return code;
  tf_gguf *self = calloc(1, sizeof *self);
  if (self) self->path = strdup(path);
  if (!self || !self->path) {
    free(self);
    munmap(data, size);
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "%.300s: out of memory", path);
  }
  self->data = data;
  self->size = size;
  self->map = data;
  return parse_or_close(self, out, error);
}

void tf_gguf_close(tf_gguf **self_pointer) {
  tf_gguf *self = *self_pointer;
  if (!self) return;
  for (size_t i = 0; i < self->key_names.count; i++) free(self->values[i].string_starts);
  names_free(&self->key_names);
  names_free(&self->tensor_names);
  free(self->values);
  free(self->tensors);
  if (self->map) munmap(self->map, self->size);
  free(self->path);
  free(self);
  *self_pointer = NULL;
}

const char *tf_gguf_path(const tf_gguf *self) {
  return self->path;
}

const tf_tensor *tf_gguf_tensor(const tf_gguf *self, const char *name) {
  size_t index;
  if (!names_find(&self->tensor_names, name, &index) || !self->tensors[index].supported) return NULL;
  return &self->tensors[index].view;
}

tf_code tf_gguf_require(const tf_gguf *self, const char *name, int rank, const int64_t *shape, const tf_tensor **out,
                        tf_error *error) {
  size_t index;
  if (!names_find(&self->tensor_names, name, &index)) {
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%.300s: tensor %.100s is missing", self->path, name);
  }
  const tensor_entry *one = &self->tensors[index];
  if (!one->supported) {
    return tf_fail(error, TF_ERR_UNSUPPORTED, "%.300s: tensor %.100s has type %" PRIu32 " (%s), which is not supported",
                   self->path, name, one->type, type_name(one->type));
  }
  tf_error inner;
  if (tf_tensor_expect(&one->view, name, rank, shape, &inner) != TF_OK) {
    return tf_fail(error, TF_ERR_MODEL_INVALID, "%.200s: %.300s", self->path, inner.text);
  }
  *out = &one->view;
  return TF_OK;
}

size_t tf_gguf_tensor_count(const tf_gguf *self) {
  return self->tensor_names.count;
}

const char *tf_gguf_tensor_name(const tf_gguf *self, size_t index) {
  return index < self->tensor_names.count ? self->tensor_names.names[index] : NULL;
}

static const value *lone(const tf_gguf *self, const char *key) {
  size_t index;
  if (!names_find(&self->key_names, key, &index) || self->values[index].is_array) return NULL;
  return &self->values[index];
}

static const value *array(const tf_gguf *self, const char *key) {
  size_t index;
  if (!names_find(&self->key_names, key, &index) || !self->values[index].is_array) return NULL;
  return &self->values[index];
}

/* An integer of any of the file's types, as its sign and magnitude. */
static bool integer_at(const value *one, uint64_t index, bool *negative, uint64_t *magnitude) {
  if (!one || index >= one->count) return false;
  uint64_t bits = 0;
  int64_t number = 0;
  size_t bytes = value_bytes[one->type];
  switch (one->type) {
  case VALUE_U8:
  case VALUE_U16:
  case VALUE_U32:
  case VALUE_U64:
    memcpy(&bits, one->data + index * bytes, bytes);
    *negative = false;
    *magnitude = bits;
    return true;
  case VALUE_I8:
    number = one->data[index] < 128 ? one->data[index] : one->data[index] - 256;
    break;
  case VALUE_I16: {
    int16_t narrow;
    memcpy(&narrow, one->data + index * bytes, bytes);
    number = narrow;
    break;
  }
  case VALUE_I32: {
    int32_t narrow;
    memcpy(&narrow, one->data + index * bytes, bytes);
    number = narrow;
    break;
  }
  case VALUE_I64:
    memcpy(&number, one->data + index * bytes, bytes);
    break;
  default:
    return false;
  }
  *negative = number < 0;
  *magnitude = number < 0 ? -(uint64_t)number : (uint64_t)number;
  return true;
}

static bool u64_at(const value *one, uint64_t index, uint64_t *out) {
  bool negative;
  uint64_t magnitude;
  if (!integer_at(one, index, &negative, &magnitude) || negative) return false;
  *out = magnitude;
  return true;
}

static bool f64_at(const value *one, uint64_t index, double *out) {
  bool negative;
  uint64_t magnitude;
  if (integer_at(one, index, &negative, &magnitude)) {
    /* 2^64 itself has no uint64_t: the bound keeps the cast back defined. */
    double real = (double)magnitude;
    if (real >= 0x1p64 || (uint64_t)real != magnitude) return false;
    *out = negative ? -real : real;
    return true;
  }
  if (!one || index >= one->count) return false;
  if (one->type == VALUE_F32) {
    float real;
    memcpy(&real, one->data + index * sizeof real, sizeof real);
    *out = (double)real;
    return true;
  }
  if (one->type != VALUE_F64) return false;
  memcpy(out, one->data + index * sizeof *out, sizeof *out);
  return true;
}

static void string_from(const uint8_t *at, const char **out, size_t *size) {
  uint64_t length;
  memcpy(&length, at, sizeof length);
  *out = (const char *)at + sizeof length;
  *size = (size_t)length;
}

bool tf_gguf_u64(const tf_gguf *self, const char *key, uint64_t *out) {
  return u64_at(lone(self, key), 0, out);
}
bool tf_gguf_f64(const tf_gguf *self, const char *key, double *out) {
  return f64_at(lone(self, key), 0, out);
}

bool tf_gguf_bool(const tf_gguf *self, const char *key, bool *out) {
  const value *one = lone(self, key);
  if (!one || one->type != VALUE_BOOL) return false;
  *out = one->data[0] != 0;
  return true;
}

bool tf_gguf_string(const tf_gguf *self, const char *key, const char **out, size_t *size) {
  const value *one = lone(self, key);
  if (!one || one->type != VALUE_STRING) return false;
  string_from(one->data, out, size);
  return true;
}

bool tf_gguf_text(const tf_gguf *self, const char *key, char *out, size_t out_bytes) {
  const char *text;
  size_t size;
  if (!tf_gguf_string(self, key, &text, &size) || size >= out_bytes || memchr(text, '\0', size)) return false;
  memcpy(out, text, size);
  out[size] = '\0';
  return true;
}

uint64_t tf_gguf_array_count(const tf_gguf *self, const char *key) {
  const value *one = array(self, key);
  return one ? one->count : 0;
}

bool tf_gguf_array_u64(const tf_gguf *self, const char *key, uint64_t index, uint64_t *out) {
  return u64_at(array(self, key), index, out);
}

bool tf_gguf_array_i64(const tf_gguf *self, const char *key, uint64_t index, int64_t *out) {
  bool negative;
  uint64_t magnitude;
  if (!integer_at(array(self, key), index, &negative, &magnitude)) return false;
  if (magnitude > (uint64_t)INT64_MAX + (negative ? 1 : 0)) return false;
  *out = negative ? (int64_t)-magnitude : (int64_t)magnitude;
  return true;
}

bool tf_gguf_array_f64(const tf_gguf *self, const char *key, uint64_t index, double *out) {
  return f64_at(array(self, key), index, out);
}

bool tf_gguf_array_string(const tf_gguf *self, const char *key, uint64_t index, const char **out, size_t *size) {
  const value *one = array(self, key);
  if (!one || one->type != VALUE_STRING || index >= one->count) return false;
  string_from(self->data + one->string_starts[index], out, size);
  return true;
}

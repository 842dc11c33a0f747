/* The GGUF reader: what it returns for sound files, what it refuses, and that no damage makes it read past the bytes.
 * In: files made here (gguf_builder.h). Out: a Criterion suite; values must be equal to what was written. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gguf_builder.h"
#include "tensor/gguf.h"

/* One of everything: all lone types, arrays, tensors of several dtypes and one of a type that is not supported. */
static void build_sample(tf_buffer *file, uint32_t version) {
  gguf_begin(file, version, 4, 18);
  gguf_key_string(file, "general.name", "sample");
  gguf_key_value(file, "u8", GGUF_U8, &(uint8_t){200}, 1);
  gguf_key_value(file, "i8", GGUF_I8, &(int8_t){-7}, 1);
  gguf_key_value(file, "u16", GGUF_U16, &(uint16_t){60000}, 2);
  gguf_key_value(file, "i16", GGUF_I16, &(int16_t){-300}, 2);
  gguf_key_u32(file, "u32", 4000000000u);
  gguf_key_value(file, "i32", GGUF_I32, &(int32_t){42}, 4);
  gguf_key_value(file, "u64", GGUF_U64, &(uint64_t){UINT64_MAX}, 8);
  gguf_key_value(file, "i64", GGUF_I64, &(int64_t){INT64_MIN}, 8);
  gguf_key_value(file, "f32", GGUF_F32, &(float){0.1f}, 4);
  gguf_key_value(file, "f64", GGUF_F64, &(double){0.1}, 8);
  gguf_key_value(file, "yes", GGUF_BOOL, &(uint8_t){1}, 1);
  gguf_key_string(file, "empty", "");
  gguf_key_array(file, "words", GGUF_STRING, 3);
  gguf_string(file, "");
  gguf_string(file, "one");
  gguf_string(file, "\xc4\xa0two");
  gguf_key_array(file, "numbers", GGUF_I32, 3);
  for (int i = 0; i < 3; i++) gguf_u32(file, (uint32_t)(5 - 4 * i));
  gguf_key_array(file, "reals", GGUF_F32, 2);
  tf_buffer_append(file, (float[]){0.5f, -2.0f}, 8);
  gguf_key_array(file, "none", GGUF_STRING, 0);
  gguf_key_u32(file, "general.alignment", 64);
  gguf_tensor(file, "matrix", 2, (int64_t[]){2, 3}, 0, 0);
  gguf_tensor(file, "blocks", 2, (int64_t[]){2, 32}, 8, 64);
  gguf_tensor(file, "deep", 4, (int64_t[]){1, 2, 1, 4}, 1, 192);
  gguf_tensor(file, "foreign", 1, (int64_t[]){256}, 14, 256);
  gguf_align(file, 64);
  for (int i = 0; i < 6; i++) tf_buffer_append(file, &(float){(float)i}, 4);
  gguf_align(file, 64);
  for (int i = 0; i < 256; i++) tf_buffer_append(file, &(uint8_t){(uint8_t)i}, 1);
}

static tf_gguf *parse_sample(tf_buffer *file, uint32_t version) {
  tf_gguf *gguf;
  tf_error error = {0};
  build_sample(file, version);
  cr_assert_eq(tf_gguf_parse(file->data, file->size, "sample", &gguf, &error), TF_OK, "%s", error.text);
  return gguf;
}

Test(gguf, numbers) {
  tf_buffer file;
  tf_gguf *gguf = parse_sample(&file, 3);
  uint64_t u = 7;
  double f = 7;
  bool b = false;
  cr_assert(tf_gguf_u64(gguf, "u8", &u) && u == 200);
  cr_assert(tf_gguf_u64(gguf, "u16", &u) && u == 60000);
  cr_assert(tf_gguf_u64(gguf, "u32", &u) && u == 4000000000u);
  cr_assert(tf_gguf_u64(gguf, "i32", &u) && u == 42);
  cr_assert(tf_gguf_u64(gguf, "u64", &u) && u == UINT64_MAX);
  u = 7;
  cr_assert(!tf_gguf_u64(gguf, "i8", &u) && !tf_gguf_u64(gguf, "f32", &u) && !tf_gguf_u64(gguf, "general.name", &u));
  cr_assert(!tf_gguf_u64(gguf, "absent", &u) && !tf_gguf_u64(gguf, "numbers", &u) && !tf_gguf_u64(gguf, "yes", &u));
  cr_assert_eq(u, 7, "untouched where it fails");
  cr_assert(tf_gguf_f64(gguf, "f32", &f) && f == (double)0.1f);
  cr_assert(tf_gguf_f64(gguf, "f64", &f) && f == 0.1);
  cr_assert(tf_gguf_f64(gguf, "i16", &f) && f == -300.0);
  cr_assert(tf_gguf_f64(gguf, "i64", &f) && f == -0x1p63);
  f = 7;
  cr_assert(!tf_gguf_f64(gguf, "u64", &f) && f == 7, "2^64 - 1 is no double");
  cr_assert(tf_gguf_bool(gguf, "yes", &b) && b);
  cr_assert(!tf_gguf_bool(gguf, "u8", &b));
  tf_gguf_close(&gguf);
  cr_assert_null(gguf);
  tf_buffer_free(&file);
}

Test(gguf, strings_and_arrays) {
  tf_buffer file;
  tf_gguf *gguf = parse_sample(&file, 2);
  const char *text;
  size_t size;
  char copy[7];
  int64_t i;
  uint64_t u;
  double f;
  cr_assert(tf_gguf_string(gguf, "general.name", &text, &size) && size == 6 && memcmp(text, "sample", 6) == 0);
  cr_assert(tf_gguf_text(gguf, "general.name", copy, sizeof copy) && strcmp(copy, "sample") == 0);
  cr_assert(!tf_gguf_text(gguf, "general.name", copy, 6), "no room for the NUL");
  cr_assert(tf_gguf_text(gguf, "empty", copy, 1) && copy[0] == '\0');
  cr_assert_eq(tf_gguf_array_count(gguf, "words"), 3);
  cr_assert_eq(tf_gguf_array_count(gguf, "none"), 0);
  cr_assert_eq(tf_gguf_array_count(gguf, "general.name"), 0);
  cr_assert(tf_gguf_array_string(gguf, "words", 0, &text, &size) && size == 0);
  cr_assert(tf_gguf_array_string(gguf, "words", 2, &text, &size) && size == 5 && memcmp(text, "\xc4\xa0two", 5) == 0);
  cr_assert(!tf_gguf_array_string(gguf, "words", 3, &text, &size));
  cr_assert(!tf_gguf_array_string(gguf, "numbers", 0, &text, &size));
  cr_assert(tf_gguf_array_i64(gguf, "numbers", 2, &i) && i == -3);
  cr_assert(tf_gguf_array_u64(gguf, "numbers", 0, &u) && u == 5);
  cr_assert(!tf_gguf_array_u64(gguf, "numbers", 2, &u));
  cr_assert(!tf_gguf_array_i64(gguf, "numbers", 3, &i));
  cr_assert(tf_gguf_array_f64(gguf, "reals", 1, &f) && f == -2.0);
  cr_assert(tf_gguf_array_f64(gguf, "numbers", 1, &f) && f == 1.0);
  cr_assert(!tf_gguf_array_f64(gguf, "words", 0, &f));
  tf_gguf_close(&gguf);
  tf_buffer_free(&file);
}

Test(gguf, tensors) {
  tf_buffer file;
  tf_gguf *gguf = parse_sample(&file, 3);
  tf_error error;
  float values[64];
  const tf_tensor *matrix = tf_gguf_tensor(gguf, "matrix"), *one;
  cr_assert_eq(tf_gguf_tensor_count(gguf), 4);
  cr_assert_str_eq(tf_gguf_tensor_name(gguf, 1), "blocks");
  cr_assert_null(tf_gguf_tensor_name(gguf, 4));
  cr_assert(matrix && matrix->rank == 2 && matrix->shape[0] == 2 && matrix->shape[1] == 3 && matrix->shape[2] == 1);
  tf_tensor_to_f32(matrix, 0, 6, values);
  for (int i = 0; i < 6; i++) cr_assert_eq(values[i], (float)i);
  cr_assert_eq(tf_gguf_require(gguf, "blocks", 2, (int64_t[]){2, -1}, &one, &error), TF_OK);
  cr_assert(one->dtype == TF_Q8_0 && one->bytes == 68);
  cr_assert_eq((const char *)one->data - (const char *)matrix->data, 64);
  cr_assert_eq(tf_gguf_require(gguf, "deep", 4, (int64_t[]){1, 2, 1, 4}, &one, &error), TF_OK);
  cr_assert_eq(tf_gguf_require(gguf, "deep", 4, (int64_t[]){1, 2, 4, 1}, &one, &error), TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, "sample") && strstr(error.text, "deep"), "%s", error.text);
  cr_assert_eq(tf_gguf_require(gguf, "absent", 1, (int64_t[]){-1}, &one, &error), TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, "absent"), "%s", error.text);
  cr_assert_null(tf_gguf_tensor(gguf, "foreign"));
  cr_assert_eq(tf_gguf_require(gguf, "foreign", 1, (int64_t[]){256}, &one, &error), TF_ERR_UNSUPPORTED);
  cr_assert(strstr(error.text, "Q6_K"), "%s", error.text);
  tf_gguf_close(&gguf);
  tf_buffer_free(&file);
}

Test(gguf, many_names_are_all_found) {
  enum { KEYS = 5000 };
  tf_buffer file;
  tf_gguf *gguf;
  char name[32];
  gguf_begin(&file, 3, 0, KEYS);
  for (uint32_t i = 0; i < KEYS; i++) {
    snprintf(name, sizeof name, "key.%u", i);
    gguf_key_u32(&file, name, i * 3);
  }
  cr_assert_eq(tf_gguf_parse(file.data, file.size, "many", &gguf, NULL), TF_OK);
  for (uint32_t i = 0; i < KEYS; i++) {
    uint64_t value;
    snprintf(name, sizeof name, "key.%u", i);
    cr_assert(tf_gguf_u64(gguf, name, &value) && value == i * 3);
    snprintf(name, sizeof name, "key.%u.", i);
    cr_assert(!tf_gguf_u64(gguf, name, &value));
  }
  tf_gguf_close(&gguf);
  tf_buffer_free(&file);
}

Test(gguf, from_a_file) {
  tf_buffer file;
  tf_gguf *gguf;
  tf_error error;
  char path[] = "/tmp/tokenflex-gguf-XXXXXX";
  int fd = mkstemp(path);
  cr_assert(fd >= 0);
  cr_assert_eq(tf_gguf_open(path, &gguf, &error), TF_ERR_INVALID_FORMAT, "empty");
  build_sample(&file, 3);
  cr_assert_eq(write(fd, file.data, file.size), (ssize_t)file.size);
  close(fd);
  cr_assert_eq(tf_gguf_open(path, &gguf, &error), TF_OK, "%s", error.text);
  cr_assert_str_eq(tf_gguf_path(gguf), path);
  cr_assert_eq((uintptr_t)tf_gguf_tensor(gguf, "matrix")->data % 64, 0);
  tf_gguf_close(&gguf);
  unlink(path);
  cr_assert_eq(tf_gguf_open(path, &gguf, &error), TF_ERR_IO);
  cr_assert_null(gguf);
  cr_assert(strstr(error.text, path), "%s", error.text);
  cr_assert_eq(tf_gguf_open("/tmp", &gguf, &error), TF_ERR_INVALID_FORMAT, "a folder");
  tf_buffer_free(&file);
}

/* Parses and expects a refusal whose text holds `why`; frees the file. */
static void refused(tf_buffer *file, tf_code code, const char *why) {
  tf_gguf *gguf;
  tf_error error = {0};
  cr_expect_eq(tf_gguf_parse(file->data, file->size, "bad", &gguf, &error), code, "%s: %s", why, error.text);
  cr_expect_null(gguf);
  cr_expect(strstr(error.text, why) && strstr(error.text, "bad"), "'%s' is not in '%s'", why, error.text);
  tf_gguf_close(&gguf);
  tf_buffer_free(file);
}

Test(gguf, headers_refused) {
  tf_buffer file;
  gguf_begin(&file, 1, 0, 0);
  refused(&file, TF_ERR_UNSUPPORTED, "version 1");
  gguf_begin(&file, 0x03000000, 0, 0);
  refused(&file, TF_ERR_UNSUPPORTED, "big-endian");
  gguf_begin(&file, 3, 0, 0);
  file.data[0] = 'X';
  refused(&file, TF_ERR_INVALID_FORMAT, "not a GGUF file");
  gguf_begin(&file, 3, 0, UINT64_MAX);
  refused(&file, TF_ERR_INVALID_FORMAT, "more metadata");
  gguf_begin(&file, 3, 60000, 0);
  refused(&file, TF_ERR_INVALID_FORMAT, "more tensors");
}

Test(gguf, metadata_refused) {
  tf_buffer file;
  gguf_begin(&file, 3, 0, 2);
  gguf_key_u32(&file, "twice", 1);
  gguf_key_u32(&file, "twice", 2);
  refused(&file, TF_ERR_INVALID_FORMAT, "twice");
  gguf_begin(&file, 3, 0, 1);
  gguf_key_array(&file, "nested", GGUF_ARRAY, 1);
  gguf_u64(&file, 0);
  refused(&file, TF_ERR_INVALID_FORMAT, "arrays of arrays");
  gguf_begin(&file, 3, 0, 1);
  gguf_key_value(&file, "type", 13, "12345678", 8);
  refused(&file, TF_ERR_INVALID_FORMAT, "unknown type");
  gguf_begin(&file, 3, 0, 1);
  gguf_key_value(&file, "truth", GGUF_BOOL, "\2", 1);
  refused(&file, TF_ERR_INVALID_FORMAT, "truth value");
  gguf_begin(&file, 3, 0, 1);
  gguf_key_array(&file, "long", GGUF_U64, UINT64_MAX / 8 + 2); /* bytes overflow to 8 */
  gguf_u64(&file, 0);
  refused(&file, TF_ERR_INVALID_FORMAT, "ends too early");
  gguf_begin(&file, 3, 0, 1);
  gguf_key_array(&file, "long", GGUF_STRING, 1 << 20); /* would ask for 8 MiB of index */
  gguf_u64(&file, 0);
  refused(&file, TF_ERR_INVALID_FORMAT, "ends too early");
  gguf_begin(&file, 3, 0, 1);
  gguf_key_string(&file, "new\nline", "");
  refused(&file, TF_ERR_INVALID_FORMAT, "control character");
  gguf_begin(&file, 3, 0, 1);
  gguf_key_string(&file, "", "nameless");
  refused(&file, TF_ERR_INVALID_FORMAT, "empty");
  gguf_begin(&file, 3, 0, 1);
  gguf_key(&file, "text", GGUF_STRING);
  gguf_u64(&file, UINT64_MAX - 7);
  refused(&file, TF_ERR_INVALID_FORMAT, "inside a string");
}

/* A file of one tensor and, where alignment is not 0, that key; data_bytes of data follow. */
static void one_tensor(tf_buffer *file, uint32_t alignment, uint32_t rank, const int64_t *shape, uint32_t type,
                       uint64_t offset, size_t data_bytes) {
  gguf_begin(file, 3, 1, alignment ? 1 : 0);
  if (alignment) gguf_key_u32(file, "general.alignment", alignment);
  gguf_tensor(file, "t", rank, shape, type, offset);
  gguf_align(file, 32);
  for (size_t i = 0; i < data_bytes; i++) tf_buffer_append(file, "", 1);
}

Test(gguf, tensors_refused) {
  tf_buffer file;
  tf_gguf *gguf;
  one_tensor(&file, 0, 1, (int64_t[]){8}, 0, 32, 64);
  cr_assert_eq(tf_gguf_parse(file.data, file.size, "good", &gguf, NULL), TF_OK, "the sound one");
  tf_gguf_close(&gguf);
  tf_buffer_free(&file);
  one_tensor(&file, 0, 1, (int64_t[]){8}, 0, 32, 63);
  refused(&file, TF_ERR_INVALID_FORMAT, "past its end");
  one_tensor(&file, 0, 1, (int64_t[]){8}, 0, UINT64_MAX - 31, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "past its end");
  one_tensor(&file, 0, 1, (int64_t[]){4}, 0, 16, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "not aligned");
  one_tensor(&file, 48, 1, (int64_t[]){8}, 0, 0, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "general.alignment");
  one_tensor(&file, 4, 1, (int64_t[]){8}, 0, 0, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "general.alignment");
  one_tensor(&file, 0, 2, (int64_t[]){INT64_MAX, 4}, 0, 0, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "too large");
  one_tensor(&file, 0, 2, (int64_t[]){1LL << 62, 1}, 0, 0, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "whole number of blocks");
  one_tensor(&file, 0, 2, (int64_t[]){0, 4}, 0, 0, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "0 or too large");
  one_tensor(&file, 0, 2, (int64_t[]){2, 16}, 8, 0, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "whole number of blocks");
  one_tensor(&file, 0, 5, (int64_t[]){1, 1, 1, 1, 1}, 0, 0, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "dimensions");
  one_tensor(&file, 0, 0, NULL, 0, 0, 64);
  refused(&file, TF_ERR_INVALID_FORMAT, "dimensions");
}

/* Reads all that a file offers, so that a bad view shows under the address sanitizer. */
static float read_everything(const tf_gguf *gguf) {
  static const char *const keys[] = {"u8",  "i8",           "u16",   "i16",  "u32",   "i32",     "u64",   "i64", "f32",
                                     "f64", "general.name", "words", "none", "reals", "numbers", "empty", "yes"};
  float sum = 0.0f;
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    uint64_t u, count = tf_gguf_array_count(gguf, keys[i]);
    double f;
    const char *text;
    size_t size;
    if (tf_gguf_u64(gguf, keys[i], &u)) sum += (float)u;
    if (tf_gguf_f64(gguf, keys[i], &f)) sum += (float)f;
    if (tf_gguf_string(gguf, keys[i], &text, &size) && size > 0) sum += (float)(text[0] + text[size - 1]);
    for (uint64_t j = count > 20 ? count - 20 : 0; j < count; j++) {
      if (tf_gguf_array_f64(gguf, keys[i], j, &f)) sum += (float)f;
      if (tf_gguf_array_string(gguf, keys[i], j, &text, &size) && size > 0) sum += (float)(text[0] + text[size - 1]);
    }
  }
  for (size_t i = 0; i < tf_gguf_tensor_count(gguf); i++) {
    const tf_tensor *one = tf_gguf_tensor(gguf, tf_gguf_tensor_name(gguf, i));
    if (!one) continue;
    int64_t elements = tf_tensor_elements(one);
    float *values = malloc((size_t)elements * sizeof *values);
    cr_assert_not_null(values);
    tf_tensor_to_f32(one, 0, elements, values);
    sum += values[0] + values[elements - 1];
    free(values);
  }
  return sum;
}

/* Every mutant lives in a block of exactly its size: one byte too far is seen by the sanitizer. */
Test(gguf, damage_never_crashes, .timeout = 120) {
  enum { MUTANTS = 20000 };
  tf_buffer file;
  uint32_t state = 2463534242u, opened = 0;
  volatile float sink = 0.0f;
  build_sample(&file, 3);
  for (int round = 0; round < MUTANTS; round++) {
    uint32_t random[10];
    for (size_t i = 0; i < sizeof random / sizeof *random; i++) {
      state ^= state << 13;
      state ^= state >> 17;
      random[i] = state ^= state << 5;
    }
    size_t size = random[0] % 4 == 0 ? random[1] % (file.size + 1) : file.size;
    uint8_t *bytes = malloc(size ? size : 1);
    cr_assert_not_null(bytes);
    memcpy(bytes, file.data, size);
    for (uint32_t i = 0; i < random[2] % 4 && size > 0; i++) {
      static const uint8_t telling[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
      uint32_t pick = random[4 + i] >> 20;
      bytes[random[4 + i] % size] = random[3] % 2 ? telling[pick % sizeof telling] : (uint8_t)pick;
    }
    tf_gguf *gguf;
    tf_error error = {0};
    if (tf_gguf_parse(bytes, size, "mutant", &gguf, &error) == TF_OK) {
      opened++;
      sink += read_everything(gguf);
    } else {
      cr_assert(error.text[0] != '\0');
    }
    tf_gguf_close(&gguf);
    free(bytes);
  }
  cr_assert(opened > MUTANTS / 20 && opened < MUTANTS, "%u of %d mutants opened", opened, MUTANTS);
  tf_buffer_free(&file);
}

Test(gguf, every_truncation_is_refused_or_sound, .timeout = 120) {
  tf_buffer file;
  build_sample(&file, 3);
  for (size_t size = 0; size < file.size; size++) {
    uint8_t *bytes = malloc(size ? size : 1);
    tf_gguf *gguf;
    cr_assert_not_null(bytes);
    memcpy(bytes, file.data, size);
    tf_code code = tf_gguf_parse(bytes, size, "short", &gguf, NULL);
    /* Only the unsupported tensor's bytes, whose number is not known, may be missing. */
    cr_assert(code != TF_OK || size >= file.size - 64, "%zu of %zu bytes", size, file.size);
    if (code == TF_OK) (void)read_everything(gguf);
    tf_gguf_close(&gguf);
    free(bytes);
  }
  tf_buffer_free(&file);
}

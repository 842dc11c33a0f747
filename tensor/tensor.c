/* Dtypes and their conversion to f32. In: a view of numbers in one of the table's dtypes. Out: f32, sizes, names,
 * checks. Block layouts (ggml): Q4_0 is an f16 scale d and 16 bytes, Q4_1 adds an f16 minimum m, Q8_0 is d and 32
 * signed bytes; a 4-bit block keeps elements 0..15 in the low halves of its bytes and 16..31 in the high halves. */
#include "tensor/tensor.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>

#include "tensor/vector.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files and messages are little-endian and read in place");

static const struct {
  const char *name;
  int64_t block_elements;
  size_t block_bytes;
} dtypes[TF_DTYPE_COUNT] = {
#define TF_DTYPE_ROW(name, gguf, elements, bytes) [TF_##name] = {#name, elements, bytes},
    TF_DTYPES(TF_DTYPE_ROW)
#undef TF_DTYPE_ROW
};

const char *tf_dtype_name(tf_dtype dtype) {
  return (unsigned)dtype < TF_DTYPE_COUNT ? dtypes[dtype].name : "unknown";
}

size_t tf_dtype_bytes(tf_dtype dtype, int64_t elements) {
  if ((unsigned)dtype >= TF_DTYPE_COUNT || elements <= 0 || elements % dtypes[dtype].block_elements != 0) return 0;
  uint64_t blocks = (uint64_t)(elements / dtypes[dtype].block_elements);
  if (blocks > SIZE_MAX / dtypes[dtype].block_bytes) return 0;
  return (size_t)blocks * dtypes[dtype].block_bytes;
}

int64_t tf_tensor_elements(const tf_tensor *self) {
  int64_t elements = 1;
  for (int i = 0; i < self->rank; i++) elements *= self->shape[i];
  return elements;
}

/* The exponent is moved by a multiplication, which also makes subnormal halves right; infinity and NaN are put back. */
TF_VECTOR tf_f32x8 half8(tf_u16x8 half) {
  tf_u32x8 bits = __builtin_convertvector(half, tf_u32x8);
  tf_f32x8 scaled = (tf_f32x8)((bits & 0x7fffu) << 13) * 0x1p112f;
  tf_u32x8 special = (tf_u32x8)((bits & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (tf_f32x8)((tf_u32x8)scaled | special | ((bits & 0x8000u) << 16));
}

float tf_f16_to_f32(uint16_t half) {
  uint32_t bits = (half & 0x7fffu) << 13;
  float value;
  memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f;
  memcpy(&bits, &value, sizeof bits);
  if ((half & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  bits |= (uint32_t)(half & 0x8000u) << 16;
  memcpy(&value, &bits, sizeof value);
  return value;
}

uint16_t tf_f32_to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u;  /* NaN */
  if (bits >= 0x477ff000u) return sign | 0x7c00u; /* 65520 and more round to infinity */
  if (bits < 0x38800000u) {                       /* below 2^-14: adding 0.5 rounds to multiples of 2^-24 */
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, sizeof bits);
    return sign | (uint16_t)(bits - 0x3f000000u);
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return sign | (uint16_t)((bits - 0x38000000u) >> 13);
}

float tf_bf16_to_f32(uint16_t value) {
  uint32_t bits = (uint32_t)value << 16;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

uint16_t tf_f32_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u); /* rounding could empty a NaN */
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static float half_at(const uint8_t *from) {
  uint16_t half;
  memcpy(&half, from, sizeof half);
  return tf_f16_to_f32(half);
}

TF_CLONES static void convert_f16(const uint8_t *from, int64_t count, float *out) {
  int64_t i = 0;
  for (; i + TF_LANES <= count; i += TF_LANES) {
    tf_u16x8 half;
    memcpy(&half, from + 2 * i, sizeof half);
    tf_store8(out + i, half8(half));
  }
  for (; i < count; i++) out[i] = half_at(from + 2 * i);
}

static void convert_bf16(const uint8_t *from, int64_t count, float *out) {
  for (int64_t i = 0; i < count; i++) {
    uint16_t value;
    memcpy(&value, from + 2 * i, sizeof value);
    out[i] = tf_bf16_to_f32(value);
  }
}

/* 32 elements from 16 bytes of two nibbles: q * scale + offset. */
TF_VECTOR void convert_nibbles(const uint8_t *nibbles, float scale, float offset, float *out) {
  for (int i = 0; i < 16; i += TF_LANES) {
    tf_u8x8 pair;
    memcpy(&pair, nibbles + i, sizeof pair);
    tf_i32x8 wide = __builtin_convertvector(pair, tf_i32x8);
    tf_store8(out + i, __builtin_convertvector(wide & 15, tf_f32x8) * scale + offset);
    tf_store8(out + 16 + i, __builtin_convertvector(wide >> 4, tf_f32x8) * scale + offset);
  }
}

TF_CLONES static void convert_q4_0(const uint8_t *from, int64_t blocks, float *out) {
  for (int64_t i = 0; i < blocks; i++, from += 18, out += 32) {
    float scale = half_at(from);
    convert_nibbles(from + 2, scale, -8.0f * scale, out);
  }
}

TF_CLONES static void convert_q4_1(const uint8_t *from, int64_t blocks, float *out) {
  for (int64_t i = 0; i < blocks; i++, from += 20, out += 32) {
    convert_nibbles(from + 4, half_at(from), half_at(from + 2), out);
  }
}

TF_CLONES static void convert_q8_0(const uint8_t *from, int64_t blocks, float *out) {
  for (int64_t i = 0; i < blocks; i++, from += 34, out += 32) {
    float scale = half_at(from);
    for (int j = 0; j < 32; j += TF_LANES) {
      tf_i8x8 q;
      memcpy(&q, from + 2 + j, sizeof q);
      tf_store8(out + j, __builtin_convertvector(q, tf_f32x8) * scale);
    }
  }
}

void tf_tensor_to_f32(const tf_tensor *self, int64_t first, int64_t count, float *out) {
  if (count == 0) return;
  int64_t block = dtypes[self->dtype].block_elements, blocks = count / block;
  assert(first >= 0 && count > 0 && first % block == 0 && count % block == 0);
  assert(count <= tf_tensor_elements(self) - first);
  const uint8_t *from = (const uint8_t *)self->data + (size_t)(first / block) * dtypes[self->dtype].block_bytes;
  switch (self->dtype) {
  case TF_F32:
    memcpy(out, from, (size_t)count * sizeof *out);
    return;
  case TF_F16:
    convert_f16(from, count, out);
    return;
  case TF_BF16:
    convert_bf16(from, count, out);
    return;
  case TF_Q4_0:
    convert_q4_0(from, blocks, out);
    return;
  case TF_Q4_1:
    convert_q4_1(from, blocks, out);
    return;
  case TF_Q8_0:
    convert_q8_0(from, blocks, out);
    return;
  case TF_DTYPE_COUNT:
    break;
  }
  assert(!"a dtype of the table");
}

/* "[576, 1152]", -1 as "any". */
static void shape_text(int rank, const int64_t *shape, char *out, size_t out_bytes) {
  size_t used = 0;
  for (int i = 0; i < rank && used < out_bytes; i++) {
    const char *open = i == 0 ? "[" : ", ";
    int n = shape[i] < 0 ? snprintf(out + used, out_bytes - used, "%sany", open)
                         : snprintf(out + used, out_bytes - used, "%s%" PRId64, open, shape[i]);
    if (n < 0) return;
    used += (size_t)n;
  }
  if (used < out_bytes) snprintf(out + used, out_bytes - used, "]");
}

tf_code tf_tensor_expect(const tf_tensor *self, const char *name, int rank, const int64_t *shape, tf_error *error) {
  bool same = self->rank == rank;
  for (int i = 0; same && i < rank; i++) same = shape[i] < 0 || self->shape[i] == shape[i];
  if (same) return TF_OK;
  char wanted[128], found[128];
  shape_text(rank, shape, wanted, sizeof wanted);
  shape_text(self->rank, self->shape, found, sizeof found);
  return tf_fail(error, TF_ERR_MODEL_INVALID, "tensor %s has shape %s, wanted %s", name, found, wanted);
}

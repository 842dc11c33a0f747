/* Dtypes: sizes, names, every half value both ways, every block format against its definition, shape checks.
 * In: bytes made here. Out: a Criterion suite. Conversions are exact (0 ulp): each is one rounding, or none. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "tensor/tensor.h"

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

/* The definition of binary16, in double. */
static double half_value(uint16_t half) {
  int exponent = half >> 10 & 31, mantissa = half & 1023;
  double sign = half & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * ldexp(mantissa, -24);
  return sign * ldexp(1024 + mantissa, exponent - 25);
}

static uint32_t random_next(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  return *state ^= *state << 5;
}

Test(tensor, names_and_sizes) {
  cr_assert_str_eq(tf_dtype_name(TF_Q4_1), "Q4_1");
  cr_assert_str_eq(tf_dtype_name((tf_dtype)99), "unknown");
  cr_assert_eq(tf_dtype_bytes(TF_F32, 7), 28);
  cr_assert_eq(tf_dtype_bytes(TF_BF16, 7), 14);
  cr_assert_eq(tf_dtype_bytes(TF_Q4_0, 64), 36);
  cr_assert_eq(tf_dtype_bytes(TF_Q4_1, 64), 40);
  cr_assert_eq(tf_dtype_bytes(TF_Q8_0, 64), 68);
  cr_assert_eq(tf_dtype_bytes(TF_Q8_0, 63), 0, "no whole number of blocks");
  cr_assert_eq(tf_dtype_bytes(TF_F32, -4), 0);
  cr_assert_eq(tf_dtype_bytes(TF_F32, INT64_MAX), 0, "overflow");
}

Test(tensor, every_half_both_ways) {
  for (uint32_t half = 0; half < 65536; half++) {
    double expected = half_value((uint16_t)half);
    float got = tf_f16_to_f32((uint16_t)half);
    if (isnan(expected)) {
      cr_assert(isnan(got), "half %04x", half);
      cr_assert(isnan(tf_f16_to_f32(tf_f32_to_f16(got))));
      continue;
    }
    cr_assert_eq(bits_of(got), bits_of((float)expected), "half %04x", half);
    cr_assert_eq(tf_f32_to_f16(got), half, "half %04x", half);
  }
}

Test(tensor, halves_round_to_nearest_even) {
  /* Between each two neighbouring halves: the midpoint goes to the even one, its neighbours to their side. */
  for (uint32_t half = 0; half < 0x7bff; half++) {
    float middle = (float)((half_value((uint16_t)half) + half_value((uint16_t)(half + 1))) / 2);
    uint32_t even = half & 1 ? half + 1 : half;
    cr_assert_eq(tf_f32_to_f16(middle), even, "above %04x", half);
    cr_assert_eq(tf_f32_to_f16(nextafterf(middle, 0.0f)), half, "above %04x", half);
    cr_assert_eq(tf_f32_to_f16(nextafterf(middle, INFINITY)), half + 1, "above %04x", half);
    cr_assert_eq(tf_f32_to_f16(-middle), even | 0x8000, "below -%04x", half);
  }
  cr_assert_eq(tf_f32_to_f16(65519.99f), 0x7bff);
  cr_assert_eq(tf_f32_to_f16(65520.0f), 0x7c00);
  cr_assert_eq(tf_f32_to_f16(-3e38f), 0xfc00);
  cr_assert_eq(tf_f32_to_f16(1e-30f), 0);
}

Test(tensor, bfloats) {
  cr_assert_eq(bits_of(tf_bf16_to_f32(0xc049)), 0xc0490000u);
  for (uint32_t high = 0; high < 65536; high++) {
    if ((high & 0x7f80) == 0x7f80 && high & 0x7f) {
      cr_assert(isnan(tf_bf16_to_f32(tf_f32_to_bf16(tf_bf16_to_f32((uint16_t)high)))));
      continue;
    }
    cr_assert_eq(tf_f32_to_bf16(tf_bf16_to_f32((uint16_t)high)), high);
  }
  uint32_t hidden_nan = 0x7f800001, tie_even = 0x3f808000, tie_odd = 0x3f818000, up = 0x3f808001;
  float x;
  memcpy(&x, &hidden_nan, sizeof x);
  cr_assert(isnan(tf_bf16_to_f32(tf_f32_to_bf16(x))), "a NaN whose payload is cut off stays one");
  memcpy(&x, &tie_even, sizeof x);
  cr_assert_eq(tf_f32_to_bf16(x), 0x3f80);
  memcpy(&x, &tie_odd, sizeof x);
  cr_assert_eq(tf_f32_to_bf16(x), 0x3f82);
  memcpy(&x, &up, sizeof x);
  cr_assert_eq(tf_f32_to_bf16(x), 0x3f81);
  cr_assert_eq(tf_f32_to_bf16(3.4e38f), 0x7f80);
}

/* All 65,536 halves through the vector path, at an odd address and with a tail. */
Test(tensor, half_arrays) {
  enum { COUNT = 65536 + 5 };
  static uint8_t bytes[2 * COUNT + 1];
  static float out[COUNT];
  for (uint32_t i = 0; i < COUNT; i++) {
    uint16_t half = (uint16_t)(i * 40503u);
    memcpy(bytes + 1 + 2 * i, &half, 2);
  }
  tf_tensor view = {.dtype = TF_F16, .rank = 1, .shape = {COUNT, 1, 1, 1}, .data = bytes + 1, .bytes = 2 * COUNT};
  tf_tensor_to_f32(&view, 0, COUNT, out);
  for (uint32_t i = 0; i < COUNT; i++) {
    cr_assert_eq(bits_of(out[i]), bits_of(tf_f16_to_f32((uint16_t)(i * 40503u))), "element %u", i);
  }
  view.dtype = TF_BF16;
  tf_tensor_to_f32(&view, 3, COUNT - 3, out);
  for (uint32_t i = 3; i < COUNT; i++) {
    cr_assert_eq(bits_of(out[i - 3]), bits_of(tf_bf16_to_f32((uint16_t)(i * 40503u))), "element %u", i);
  }
}

/* One element of a block by its format's definition. */
static float block_element(tf_dtype dtype, const uint8_t *block, int i) {
  uint16_t d, m;
  memcpy(&d, block, 2);
  memcpy(&m, block + 2, 2);
  float scale = tf_f16_to_f32(d);
  if (dtype == TF_Q8_0) return (float)(int8_t)block[2 + i] * scale;
  const uint8_t *nibbles = block + (dtype == TF_Q4_0 ? 2 : 4);
  int q = i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
  return dtype == TF_Q4_0 ? (float)(q - 8) * scale : (float)q * scale + tf_f16_to_f32(m);
}

static void check_blocks(tf_dtype dtype) {
  enum { BLOCKS = 300, ELEMENTS = 32 * BLOCKS };
  static uint8_t bytes[BLOCKS * 34 + 1];
  static float out[ELEMENTS];
  size_t each = tf_dtype_bytes(dtype, 32);
  uint32_t state = 12345;
  for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)random_next(&state);
  for (int block = 0; block < BLOCKS; block++) {
    /* Scales of 0.001 to 2, of both signs. */
    for (int i = 0; i < (dtype == TF_Q4_1 ? 2 : 1); i++) {
      uint16_t half = tf_f32_to_f16((float)((int)(random_next(&state) % 4001) - 2000) / 1000.0f);
      memcpy(bytes + 1 + each * (size_t)block + 2 * i, &half, 2);
    }
  }
  tf_tensor view = {
      .dtype = dtype, .rank = 2, .shape = {BLOCKS / 2, 64, 1, 1}, .data = bytes + 1, .bytes = each * BLOCKS};
  tf_tensor_to_f32(&view, 32, ELEMENTS - 32, out);
  for (int i = 32; i < ELEMENTS; i++) {
    float expected = block_element(dtype, bytes + 1 + each * (size_t)(i / 32), i % 32);
    cr_assert_eq(out[i - 32], expected, "%s element %d: %g, expected %g", tf_dtype_name(dtype), i, (double)out[i - 32],
                 (double)expected);
  }
}
Test(tensor, q4_0) {
  check_blocks(TF_Q4_0);
}
Test(tensor, q4_1) {
  check_blocks(TF_Q4_1);
}
Test(tensor, q8_0) {
  check_blocks(TF_Q8_0);
}

Test(tensor, a_written_out_block) {
  /* d = 0.5, m = -1; byte i holds i in its low half and 15 - i in its high one. */
  uint8_t block[20] = {0x00, 0x38, 0x00, 0xbc};
  for (int i = 0; i < 16; i++) block[4 + i] = (uint8_t)(i | (15 - i) << 4);
  float out[32];
  tf_tensor view = {.dtype = TF_Q4_1, .rank = 1, .shape = {32, 1, 1, 1}, .data = block, .bytes = 20};
  tf_tensor_to_f32(&view, 0, 32, out);
  for (int i = 0; i < 16; i++) {
    cr_assert_eq(out[i], 0.5f * (float)i - 1.0f);
    cr_assert_eq(out[16 + i], 0.5f * (float)(15 - i) - 1.0f);
  }
}

Test(tensor, expect_names_what_differs) {
  tf_tensor view = {.dtype = TF_F32, .rank = 2, .shape = {3, 5, 1, 1}};
  tf_error error;
  cr_assert_eq(tf_tensor_elements(&view), 15);
  cr_assert_eq(tf_tensor_expect(&view, "w", 2, (int64_t[]){3, 5}, &error), TF_OK);
  cr_assert_eq(tf_tensor_expect(&view, "w", 2, (int64_t[]){-1, 5}, &error), TF_OK);
  cr_assert_eq(tf_tensor_expect(&view, "blk.0.w", 2, (int64_t[]){-1, 4}, &error), TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, "blk.0.w") && strstr(error.text, "[3, 5]") && strstr(error.text, "[any, 4]"), "%s",
            error.text);
  cr_assert_eq(tf_tensor_expect(&view, "w", 3, (int64_t[]){3, 5, 1}, NULL), TF_ERR_MODEL_INVALID);
}

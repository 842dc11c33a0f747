/* Eight floats at a time, in GCC's portable vectors: the inner loops of conversions, norms, activations, attention.
 * In: pointers of any alignment. Out: sums, dots, exponentials whose rounding is the same on every processor.
 * Private to tensor/. A function marked TF_CLONES is built for AVX2 and for the baseline, picked at program start. */
#ifndef TF_TENSOR_VECTOR_H
#define TF_TENSOR_VECTOR_H

#include <stdint.h>
#include <string.h>

/* Clones are picked by an ifunc, which runs before a sanitizer's runtime is up: those builds keep the baseline alone.
 */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) &&               \
    !defined(__SANITIZE_THREAD__)
#define TF_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define TF_CLONES
#endif

/* Always inlined, so no calling convention of vectors is at stake (the build says -Wno-psabi). */
#define TF_VECTOR static inline __attribute__((always_inline))

enum { TF_LANES = 8 };
typedef float tf_f32x8 __attribute__((vector_size(32)));
typedef int32_t tf_i32x8 __attribute__((vector_size(32)));
typedef uint32_t tf_u32x8 __attribute__((vector_size(32)));
typedef uint16_t tf_u16x8 __attribute__((vector_size(16)));
typedef int8_t tf_i8x8 __attribute__((vector_size(8)));
typedef uint8_t tf_u8x8 __attribute__((vector_size(8)));

TF_VECTOR tf_f32x8 tf_load8(const float *from) {
  tf_f32x8 x;
  memcpy(&x, from, sizeof x);
  return x;
}
TF_VECTOR void tf_store8(float *to, tf_f32x8 x) {
  memcpy(to, &x, sizeof x);
}
TF_VECTOR tf_f32x8 tf_splat8(float x) {
  return (tf_f32x8){x, x, x, x, x, x, x, x};
}
/* The first count (1..7) floats; `rest` in the other lanes. */
TF_VECTOR tf_f32x8 tf_load_part8(const float *from, int64_t count, float rest) {
  float lanes[TF_LANES];
  for (int i = 0; i < TF_LANES; i++) lanes[i] = i < count ? from[i] : rest;
  return tf_load8(lanes);
}
TF_VECTOR void tf_store_part8(float *to, int64_t count, tf_f32x8 x) {
  float lanes[TF_LANES];
  tf_store8(lanes, x);
  for (int i = 0; i < count; i++) to[i] = lanes[i];
}
/* mask lanes are all ones or all zeros, as a comparison gives them. */
TF_VECTOR tf_f32x8 tf_select8(tf_i32x8 mask, tf_f32x8 yes, tf_f32x8 no) {
  return (tf_f32x8)(((tf_i32x8)yes & mask) | ((tf_i32x8)no & ~mask));
}
TF_VECTOR tf_f32x8 tf_max8(tf_f32x8 a, tf_f32x8 b) {
  return tf_select8(a > b, a, b);
}
TF_VECTOR float tf_sum8(tf_f32x8 x) {
  return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

TF_VECTOR float tf_dot(const float *a, const float *b, int64_t count) {
  tf_f32x8 even = {0}, odd = {0};
  int64_t i = 0;
  for (; i + 2 * TF_LANES <= count; i += 2 * TF_LANES) {
    even += tf_load8(a + i) * tf_load8(b + i);
    odd += tf_load8(a + i + TF_LANES) * tf_load8(b + i + TF_LANES);
  }
  float sum = tf_sum8(even + odd);
  for (; i < count; i++) sum += a[i] * b[i];
  return sum;
}

/* e^x. Relative error under 2e-7 from -87.33 to 88.72; 0 below, infinity above, NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r = 1 + r + r^2 P(r), P fitted for least relative error (3e-9). */
TF_VECTOR tf_f32x8 tf_exp8(tf_f32x8 x) {
  const tf_f32x8 low = tf_splat8(-87.33f), high = tf_splat8(88.8f), round = tf_splat8(0x1.8p23f);
  tf_f32x8 bounded = tf_select8(x < low, low, tf_select8(x > high, high, x));
  tf_f32x8 shifted = bounded * 1.44269504f + round; /* the integer lands in the low bits */
  tf_i32x8 n = (tf_i32x8)shifted - (tf_i32x8)round;
  tf_f32x8 whole = shifted - round;
  tf_f32x8 r = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts: the first is exact */
  tf_f32x8 p = ((0.00138144650f * r + 0.00836878084f) * r + 0.0416683927f) * r;
  p = ((p + 0.166665196f) * r + 0.499999940f) * (r * r) + r + 1.0f;
  /* 2^n in two factors: 2^128 alone is no float, though e^88.5 is one. */
  tf_i32x8 half = n >> 1;
  p = p * (tf_f32x8)((half + 127) << 23) * (tf_f32x8)((n - half + 127) << 23);
  return tf_select8(x < low, tf_splat8(0.0f), p);
}

TF_VECTOR tf_f32x8 tf_sigmoid8(tf_f32x8 x) {
  return 1.0f / (1.0f + tf_exp8(-x));
}

/* x Phi(x). With z = |x| / sqrt 2, erfc(z) = e^(-z^2) t Q(t), t = 1 / (1 + 0.35 z), Q fitted for least relative error
 * on z = 0..14 (1e-8): working from erfc keeps the relative error of the negative tail small too. */
TF_VECTOR tf_f32x8 tf_gelu8(tf_f32x8 x) {
  tf_f32x8 z = tf_select8(x < 0.0f, -x, x) * 0.707106781f;
  tf_f32x8 t = 1.0f / (1.0f + 0.35f * z);
  tf_f32x8 q = (0.0418458879f * t - 0.177908078f) * t + 0.226785898f;
  q = ((q * t - 0.0891557559f) * t + 0.139034852f) * t + 0.117595002f;
  q = ((q * t + 0.161216348f) * t + 0.185708091f) * t + 0.197408184f;
  q = (q * t + 0.197469577f) * t;
  tf_f32x8 tail = 0.5f * tf_exp8(-0.5f * x * x) * q;
  return x * tf_select8(x < 0.0f, tail, 1.0f - tail);
}

#endif

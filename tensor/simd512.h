/* Sixteen floats at a time with AVX-512: loads of a part, e^x, activations, largest magnitude.
 * In, out: vectors. Errors stand beside the functions; every result is the same on all processors that run it.
 * Private to tensor/. A file that includes this runs its functions only where tf_cpu_level() allows. */
#ifndef TF_TENSOR_SIMD512_H
#define TF_TENSOR_SIMD512_H

#include <immintrin.h>
#include <stdint.h>

#include "tensor/linear.h"

#define TF_AVX512        __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#define TF_AVX512_INLINE TF_AVX512 static inline __attribute__((always_inline))

/* The first count (0..16) lanes. */
TF_AVX512_INLINE __mmask16 tf_lanes16(int64_t count) {
  return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
}

/* e^x for x up to 87.3, relative error under 2e-7; what is below -87.3 counts as that, which a soft maximum can not
 * tell from what lies beyond. */
TF_AVX512_INLINE __m512 tf_exp_bounded16(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.3f));
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x); /* ln 2 in two parts: the first is exact */
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_fmadd_ps(r, _mm512_set1_ps(0.00138144650f), _mm512_set1_ps(0.00836878084f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0416683927f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.166665196f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.499999940f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

/* Of any x: bounded to 87.3 above as well. */
TF_AVX512_INLINE __m512 tf_exp16(__m512 x) {
  return tf_exp_bounded16(_mm512_min_ps(x, _mm512_set1_ps(87.3f)));
}

/* x / (1 + e^-z): x * sigmoid(z) */
TF_AVX512_INLINE __m512 tf_gated16(__m512 x, __m512 z) {
  __m512 below = _mm512_add_ps(_mm512_set1_ps(1.0f), tf_exp16(_mm512_sub_ps(_mm512_setzero_ps(), z)));
  return _mm512_div_ps(x, below);
}

/* x Phi(x) through erfc, as tf_gelu8. */
TF_AVX512_INLINE __m512 tf_gelu16(__m512 x) {
  static const float Q[] = {-0.177908078f, 0.226785898f, -0.0891557559f, 0.139034852f, 0.117595002f,
                            0.161216348f,  0.185708091f, 0.197408184f,   0.197469577f};
  const __m512 one = _mm512_set1_ps(1.0f);
  __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.707106781f));
  __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.35f), one));
  __m512 q = _mm512_set1_ps(0.0418458879f);
#pragma GCC unroll 9
  for (int i = 0; i < 9; i++) q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(Q[i]));
  q = _mm512_mul_ps(q, t);
  __m512 power = tf_exp16(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f)));
  __m512 tail = _mm512_mul_ps(_mm512_mul_ps(power, q), _mm512_set1_ps(0.5f));
  __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(x));
  return _mm512_mul_ps(x, _mm512_mask_blend_ps(negative, _mm512_sub_ps(one, tail), tail));
}

/* x Phi(x) within 6e-5: Phi - 1/2 is odd; a polynomial fitted for least error of the product on +-4.2, exact at the
 * ends, past which Phi is taken as 0 or 1. A third of tf_gelu16's time, and far finer than int8's or bf16's steps. */
TF_AVX512_INLINE __m512 tf_gelu_near16(__m512 x) {
  static const float P[] = {-6.20816643e-09f, 1.95074406e-07f, -3.59248656e-06f, 4.46565136e-05f,
                            -0.000409849163f, 0.00288944156f,  -0.0158815794f};
  __m512 y = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-4.2f)), _mm512_set1_ps(4.2f));
  __m512 square = _mm512_mul_ps(y, y), p = _mm512_set1_ps(8.59609467e-11f);
#pragma GCC unroll 7
  for (int i = 0; i < 7; i++) p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(P[i]));
  p = _mm512_fmadd_ps(p, _mm512_sub_ps(square, _mm512_set1_ps(17.64f)), _mm512_set1_ps(0.119047619f));
  return _mm512_mul_ps(x, _mm512_fmadd_ps(p, y, _mm512_set1_ps(0.5f)));
}

TF_AVX512_INLINE __m512 tf_activate16(tf_activation activation, bool exact, __m512 x) {
  switch (activation) {
  case TF_ACTIVATION_NONE:
    return x;
  case TF_ACTIVATION_GELU:
    return exact ? tf_gelu16(x) : tf_gelu_near16(x);
  /* (1 + tanh u) / 2 = sigmoid(2u) */
  case TF_ACTIVATION_GELU_TANH: {
    __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    return tf_gated16(x, _mm512_mul_ps(inner, _mm512_set1_ps(1.59576912f)));
  }
  case TF_ACTIVATION_QUICK_GELU:
    return tf_gated16(x, _mm512_mul_ps(x, _mm512_set1_ps(1.702f)));
  case TF_ACTIVATION_SILU:
    return tf_gated16(x, x);
  }
  return x;
}

#endif

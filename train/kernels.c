/* What lies between the matrix products of a training pass, forwards and backwards, one thread, plain C for the compiler to
 * vectorise. In and out: arrays of the caller, row-major, bf16 as uint16_t; shapes beside each. No errors: sizes are the
 * caller's. Built and called by fast.py. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float widen(bf16 x) {
  union {
    uint32_t bits;
    float value;
  } as = {(uint32_t)x << 16};
  return as.value;
}

static inline bf16 narrow(float x) { /* to nearest, ties to even; finite values */
  union {
    float value;
    uint32_t bits;
  } as = {x};
  return (bf16)((as.bits + 0x7fff + ((as.bits >> 16) & 1)) >> 16);
}

/* sum = x + added (NULL: x); out = RMSNorm(sum) * weight. x, sum [rows, width]; added, out bf16 [rows, width];
 * inverse [rows]: 1 / rms, for the way back. sum may be x. */
void tf_add_norm(const float *x, const bf16 *added, const float *weight, float epsilon, float *sum, bf16 *out,
                 float *inverse, ptrdiff_t rows, ptrdiff_t width) {
  for (ptrdiff_t r = 0; r < rows; r++) {
    const float *from = x + r * width;
    const bf16 *plus = added ? added + r * width : NULL;
    float *to = sum + r * width;
    float squares = 0;
    if (plus)
      for (ptrdiff_t i = 0; i < width; i++) to[i] = from[i] + widen(plus[i]);
    else if (to != from) memcpy(to, from, (size_t)width * sizeof *to);
    for (ptrdiff_t i = 0; i < width; i++) squares += to[i] * to[i];
    float scale = inverse[r] = 1 / sqrtf(squares / (float)width + epsilon);
    for (ptrdiff_t i = 0; i < width; i++) out[r * width + i] = narrow(to[i] * scale * weight[i]);
  }
}

/* gradient += what passes back through the norm of x, given that of its output; copy: the sum in bf16. */
void tf_norm_back(const bf16 *output, const float *x, const float *inverse, const float *weight, float *gradient,
                  bf16 *copy, ptrdiff_t rows, ptrdiff_t width) {
  for (ptrdiff_t r = 0; r < rows; r++) {
    const bf16 *g = output + r * width;
    const float *from = x + r * width;
    float *to = gradient + r * width, along = 0, scale = inverse[r];
    for (ptrdiff_t i = 0; i < width; i++) along += widen(g[i]) * weight[i] * from[i];
    along *= scale * scale * scale / (float)width;
    for (ptrdiff_t i = 0; i < width; i++) {
      to[i] += scale * widen(g[i]) * weight[i] - along * from[i];
      copy[r * width + i] = narrow(to[i]);
    }
  }
}

/* One head of one token, rotated by (cos, sin) [size/2], halves split, times `factor`. */
static inline void rotate(const bf16 *from, const float *cos, const float *sin, float factor, bf16 *to, ptrdiff_t half) {
  for (ptrdiff_t i = 0; i < half; i++) {
    float a = widen(from[i]), b = widen(from[i + half]);
    to[i] = narrow((a * cos[i] - b * sin[i]) * factor);
    to[i + half] = narrow((b * cos[i] + a * sin[i]) * factor);
  }
}

static inline void rotate_back(const bf16 *from, const float *cos, const float *sin, float factor, bf16 *to,
                               ptrdiff_t half) {
  for (ptrdiff_t i = 0; i < half; i++) {
    float a = widen(from[i]), b = widen(from[i + half]);
    to[i] = narrow((a * cos[i] + b * sin[i]) * factor);
    to[i + half] = narrow((b * cos[i] - a * sin[i]) * factor);
  }
}

/* qkv [batch, tokens, heads + 2 kv_heads, size] -> q (rotated, times factor) [batch, heads, tokens, size], k (rotated) and
 * v [batch, kv_heads, tokens, size]. cos, sin [batch, tokens, size/2]. */
void tf_split_heads(const bf16 *qkv, const float *cos, const float *sin, float factor, bf16 *q, bf16 *k, bf16 *v,
                    ptrdiff_t batch, ptrdiff_t tokens, ptrdiff_t heads, ptrdiff_t kv_heads, ptrdiff_t size) {
  for (ptrdiff_t b = 0; b < batch; b++)
    for (ptrdiff_t t = 0; t < tokens; t++) {
      const bf16 *from = qkv + (b * tokens + t) * (heads + 2 * kv_heads) * size;
      const float *c = cos + (b * tokens + t) * size / 2, *s = sin + (b * tokens + t) * size / 2;
      for (ptrdiff_t h = 0; h < heads; h++, from += size)
        rotate(from, c, s, factor, q + ((b * heads + h) * tokens + t) * size, size / 2);
      for (ptrdiff_t h = 0; h < kv_heads; h++, from += size)
        rotate(from, c, s, 1, k + ((b * kv_heads + h) * tokens + t) * size, size / 2);
      for (ptrdiff_t h = 0; h < kv_heads; h++, from += size)
        memcpy(v + ((b * kv_heads + h) * tokens + t) * size, from, (size_t)size * sizeof *v);
    }
}

/* The way back of tf_split_heads, for gradients. */
void tf_split_heads_back(const bf16 *q, const bf16 *k, const bf16 *v, const float *cos, const float *sin, float factor,
                         bf16 *qkv, ptrdiff_t batch, ptrdiff_t tokens, ptrdiff_t heads, ptrdiff_t kv_heads,
                         ptrdiff_t size) {
  for (ptrdiff_t b = 0; b < batch; b++)
    for (ptrdiff_t t = 0; t < tokens; t++) {
      bf16 *to = qkv + (b * tokens + t) * (heads + 2 * kv_heads) * size;
      const float *c = cos + (b * tokens + t) * size / 2, *s = sin + (b * tokens + t) * size / 2;
      for (ptrdiff_t h = 0; h < heads; h++, to += size)
        rotate_back(q + ((b * heads + h) * tokens + t) * size, c, s, factor, to, size / 2);
      for (ptrdiff_t h = 0; h < kv_heads; h++, to += size)
        rotate_back(k + ((b * kv_heads + h) * tokens + t) * size, c, s, 1, to, size / 2);
      for (ptrdiff_t h = 0; h < kv_heads; h++, to += size)
        memcpy(to, v + ((b * kv_heads + h) * tokens + t) * size, (size_t)size * sizeof *v);
    }
}

/* [batch, heads, tokens, size] -> [batch, tokens, heads, size]; `back`: the other way. */
void tf_merge_heads(const bf16 *from, bf16 *to, int back, ptrdiff_t batch, ptrdiff_t tokens, ptrdiff_t heads,
                    ptrdiff_t size) {
  for (ptrdiff_t b = 0; b < batch; b++)
    for (ptrdiff_t h = 0; h < heads; h++)
      for (ptrdiff_t t = 0; t < tokens; t++) {
        ptrdiff_t split = ((b * heads + h) * tokens + t) * size, merged = ((b * tokens + t) * heads + h) * size;
        memcpy(to + (back ? split : merged), from + (back ? merged : split), (size_t)size * sizeof *to);
      }
}

/* Softmax in place of scores [batch, heads, tokens, tokens]; mask [batch, tokens, tokens], 1: is seen. Row t sees columns
 * up to t at most. */
void tf_softmax(bf16 *scores, const uint8_t *mask, ptrdiff_t batch, ptrdiff_t heads, ptrdiff_t tokens) {
  float row[tokens];
  for (ptrdiff_t b = 0; b < batch; b++)
    for (ptrdiff_t h = 0; h < heads; h++)
      for (ptrdiff_t t = 0; t < tokens; t++) {
        bf16 *s = scores + ((b * heads + h) * tokens + t) * tokens;
        const uint8_t *seen = mask + (b * tokens + t) * tokens;
        float most = -1e30f, total = 0;
        for (ptrdiff_t i = 0; i <= t; i++) {
          row[i] = seen[i] ? widen(s[i]) : -1e30f;
          most = row[i] > most ? row[i] : most;
        }
#pragma omp simd reduction(+ : total)
        for (ptrdiff_t i = 0; i <= t; i++) {
          float e = expf(row[i] - most);
          row[i] = seen[i] ? e : 0;
          total += row[i];
        }
        total = 1 / total;
        for (ptrdiff_t i = 0; i <= t; i++) s[i] = narrow(row[i] * total);
        memset(s + t + 1, 0, (size_t)(tokens - t - 1) * sizeof *s);
      }
}

/* In place: gradient of the softmax's output -> of its input. Both [rows, tokens]; row r sees columns up to r % tokens. */
void tf_softmax_back(const bf16 *weights, bf16 *gradient, ptrdiff_t rows, ptrdiff_t tokens) {
  for (ptrdiff_t r = 0; r < rows; r++) {
    const bf16 *p = weights + r * tokens;
    bf16 *g = gradient + r * tokens;
    ptrdiff_t t = r % tokens;
    float along = 0;
    for (ptrdiff_t i = 0; i <= t; i++) along += widen(p[i]) * widen(g[i]);
    for (ptrdiff_t i = 0; i <= t; i++) g[i] = narrow(widen(p[i]) * (widen(g[i]) - along));
    memset(g + t + 1, 0, (size_t)(tokens - t - 1) * sizeof *g);
  }
}

/* One new token of each of `copies` captions an image: qkv [images, copies, heads + 2 kv_heads, size], rotated by
 * (cos, sin) [size/2]. k and v go to place `at` of the tails [images, copies, kv_heads, room, size]; q (times factor)
 * becomes [images, kv_heads, copies, heads / kv_heads, size]: all that look at an image's keys lie together. */
void tf_decode_split(const bf16 *qkv, const float *cos, const float *sin, float factor, bf16 *q, bf16 *k_tail,
                     bf16 *v_tail, ptrdiff_t images, ptrdiff_t copies, ptrdiff_t at, ptrdiff_t room, ptrdiff_t heads,
                     ptrdiff_t kv_heads, ptrdiff_t size) {
  ptrdiff_t group = heads / kv_heads;
  for (ptrdiff_t r = 0; r < images * copies; r++) {
    const bf16 *from = qkv + r * (heads + 2 * kv_heads) * size;
    for (ptrdiff_t h = 0; h < kv_heads; h++) {
      bf16 *to = q + ((r / copies * kv_heads + h) * copies + r % copies) * group * size;
      for (ptrdiff_t g = 0; g < group; g++)
        rotate(from + (h * group + g) * size, cos, sin, factor, to + g * size, size / 2);
      ptrdiff_t place = ((r * kv_heads + h) * room + at) * size;
      rotate(from + (heads + h) * size, cos, sin, 1, k_tail + place, size / 2);
      memcpy(v_tail + place, from + (heads + kv_heads + h) * size, (size_t)size * sizeof *v_tail);
    }
  }
}

/* Softmax over what each q of tf_decode_split sees: the prompt's scores [images, kv_heads, copies, group, tokens], replaced
 * by their weights, and the caption's own places up to `at`, whose weighted v is added up in `own` (as q). */
void tf_decode_softmax(bf16 *scores, const bf16 *q, const bf16 *k_tail, const bf16 *v_tail, float *own, ptrdiff_t images,
                       ptrdiff_t copies, ptrdiff_t at, ptrdiff_t room, ptrdiff_t heads, ptrdiff_t kv_heads,
                       ptrdiff_t size, ptrdiff_t tokens) {
  ptrdiff_t group = heads / kv_heads, seen = tokens + at + 1;
  float weight[seen], query[size];
  for (ptrdiff_t n = 0; n < images * heads * copies; n++) {
    ptrdiff_t b = n / (heads * copies), h = n / (copies * group) % kv_heads, c = n / group % copies;
    ptrdiff_t place = ((b * copies + c) * kv_heads + h) * room * size;
    const bf16 *k = k_tail + place, *v = v_tail + place;
    bf16 *s = scores + n * tokens;
    float most = -1e30f, total = 0, *sum = own + n * size;
    for (ptrdiff_t i = 0; i < size; i++) query[i] = widen(q[n * size + i]), sum[i] = 0;
    for (ptrdiff_t t = 0; t < tokens; t++) weight[t] = widen(s[t]);
    for (ptrdiff_t t = 0; t <= at; t++) {
      float dot = 0;
      for (ptrdiff_t i = 0; i < size; i++) dot += query[i] * widen(k[t * size + i]);
      weight[tokens + t] = dot;
    }
    for (ptrdiff_t t = 0; t < seen; t++) most = weight[t] > most ? weight[t] : most;
#pragma omp simd reduction(+ : total)
    for (ptrdiff_t t = 0; t < seen; t++) {
      weight[t] = expf(weight[t] - most);
      total += weight[t];
    }
    for (ptrdiff_t t = 0; t < tokens; t++) s[t] = narrow(weight[t] / total);
    for (ptrdiff_t t = 0; t <= at; t++)
      for (ptrdiff_t i = 0; i < size; i++) sum[i] += weight[tokens + t] / total * widen(v[t * size + i]);
  }
}

/* What was attended to in the prompt and in the caption, [images, kv_heads, copies, group, size] -> their sum
 * [images, copies, heads, size]. */
void tf_decode_merge(const bf16 *prompt, const float *own, bf16 *out, ptrdiff_t images, ptrdiff_t copies,
                     ptrdiff_t heads, ptrdiff_t kv_heads, ptrdiff_t size) {
  ptrdiff_t group = heads / kv_heads;
  for (ptrdiff_t n = 0; n < images * heads * copies; n++) {
    ptrdiff_t b = n / (heads * copies), h = n / (copies * group) % kv_heads, c = n / group % copies;
    bf16 *to = out + ((b * copies + c) * heads + h * group + n % group) * size;
    for (ptrdiff_t i = 0; i < size; i++) to[i] = narrow(widen(prompt[n * size + i]) + own[n * size + i]);
  }
}

/* [rows, gate | up] -> SiLU(gate) * up [rows, width]. */
void tf_swiglu(const bf16 *gate_up, bf16 *out, ptrdiff_t rows, ptrdiff_t width) {
  for (ptrdiff_t r = 0; r < rows; r++) {
    const bf16 *gate = gate_up + r * 2 * width, *up = gate + width;
#pragma omp simd
    for (ptrdiff_t i = 0; i < width; i++) {
      float g = widen(gate[i]);
      out[r * width + i] = narrow(g / (1 + expf(-g)) * widen(up[i]));
    }
  }
}

/* Gradient of tf_swiglu's output [rows, width] -> of gate | up. */
void tf_swiglu_back(const bf16 *gate_up, const bf16 *gradient, bf16 *out, ptrdiff_t rows, ptrdiff_t width) {
  for (ptrdiff_t r = 0; r < rows; r++) {
    const bf16 *gate = gate_up + r * 2 * width, *up = gate + width;
    bf16 *to = out + r * 2 * width;
#pragma omp simd
    for (ptrdiff_t i = 0; i < width; i++) {
      float g = widen(gate[i]), d = widen(gradient[r * width + i]), sigmoid = 1 / (1 + expf(-g));
      to[i] = narrow(d * widen(up[i]) * sigmoid * (1 + g * (1 - sigmoid)));
      to[i + width] = narrow(d * g * sigmoid);
    }
  }
}

/* Cross-entropy of logits [rows, width] against target[r], label smoothing included: loss[r]; the logits become their
 * gradient times weight[r]. */
void tf_cross_entropy(bf16 *logits, const int64_t *target, const float *weight, float smoothing, float *loss,
                      ptrdiff_t rows, ptrdiff_t width) {
  float row[width];
  for (ptrdiff_t r = 0; r < rows; r++) {
    bf16 *x = logits + r * width;
    float most = -1e30f, total = 0, sum = 0, due = widen(x[target[r]]);
    for (ptrdiff_t i = 0; i < width; i++) {
      float v = widen(x[i]);
      most = v > most ? v : most;
      sum += v;
    }
#pragma omp simd reduction(+ : total)
    for (ptrdiff_t i = 0; i < width; i++) {
      row[i] = expf(widen(x[i]) - most);
      total += row[i];
    }
    float level = most + logf(total), even = smoothing / (float)width;
    loss[r] = level - (1 - smoothing) * due - even * sum;
    float scale = weight[r] / total, less = weight[r] * even;
    for (ptrdiff_t i = 0; i < width; i++) x[i] = narrow(row[i] * scale - less);
    x[target[r]] = narrow(row[target[r]] * scale - less - weight[r] * (1 - smoothing));
  }
}

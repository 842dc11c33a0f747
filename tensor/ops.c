/* Norms, activations, soft maximum, RoPE. In, out: dense row-major f32. Rows are split over the pool.
 * Sums run in lanes and are folded in one fixed order: the result depends neither on threads nor on the
 * processor. */
#include "tensor/ops.h"

#include <assert.h>
#include <math.h>

#include "tensor/vector.h"

/* Pieces of about this many floats are worth a thread's wake-up. */
enum { GRAIN_FLOATS = 4096 };

static int64_t row_grain(int64_t width) {
  return width >= GRAIN_FLOATS ? 1 : GRAIN_FLOATS / (width > 0 ? width : 1);
}

typedef struct norm_job {
  const float *x, *weight, *bias;
  int64_t width;
  float epsilon;
  float *y;
} norm_job;

/* Four vectors at a time, as each addition waits for the one before. */
TF_VECTOR float sum_of(const float *x, int64_t count) {
  tf_f32x8 lanes[4] = {{0}};
  int64_t i = 0;
  for (; i + 4 * TF_LANES <= count; i += 4 * TF_LANES) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) lanes[k] += tf_load8(x + i + k * TF_LANES);
  }
  for (; i + TF_LANES <= count; i += TF_LANES) lanes[0] += tf_load8(x + i);
  float sum = tf_sum8((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
  for (; i < count; i++) sum += x[i];
  return sum;
}

TF_VECTOR float squares_about(const float *x, int64_t count, float mean) {
  tf_f32x8 lanes[4] = {{0}};
  int64_t i = 0;
  for (; i + 4 * TF_LANES <= count; i += 4 * TF_LANES) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      tf_f32x8 d = tf_load8(x + i + k * TF_LANES) - mean;
      lanes[k] += d * d;
    }
  }
  for (; i + TF_LANES <= count; i += TF_LANES) {
    tf_f32x8 d = tf_load8(x + i) - mean;
    lanes[0] += d * d;
  }
  float sum = tf_sum8((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
  for (; i < count; i++) sum += (x[i] - mean) * (x[i] - mean);
  return sum;
}

TF_CLONES static void layer_norm_rows(void *context, int64_t begin, int64_t end, int thread) {
  const norm_job *job = context;
  const float *weight = job->weight, *bias = job->bias;
  int64_t width = job->width;
  (void)thread;
  for (int64_t row = begin; row < end; row++) {
    const float *x = job->x + row * width;
    float *y = job->y + row * width;
    /* Two passes: the variance about the mean, not as a difference of large numbers. */
    float mean = sum_of(x, width) / (float)width;
    float factor = 1.0f / sqrtf(squares_about(x, width, mean) / (float)width + job->epsilon);
    int64_t i = 0;
    for (; i + TF_LANES <= width; i += TF_LANES) {
      tf_store8(y + i, (tf_load8(x + i) - mean) * factor * tf_load8(weight + i) + tf_load8(bias + i));
    }
    for (; i < width; i++) y[i] = (x[i] - mean) * factor * weight[i] + bias[i];
  }
}

void tf_layer_norm_row(const float *x, int64_t width, const float *weight, const float *bias, float epsilon, float *y) {
  norm_job job = {.x = x, .weight = weight, .bias = bias, .width = width, .epsilon = epsilon, .y = y};
  layer_norm_rows(&job, 0, 1, 0);
}

void tf_layer_norm(tf_pool *pool, const float *x, int64_t rows, int64_t width, const float *weight, const float *bias,
                   float epsilon, float *y) {
  norm_job job = {.x = x, .weight = weight, .bias = bias, .width = width, .epsilon = epsilon, .y = y};
  tf_parallel(pool, rows, row_grain(width), layer_norm_rows, &job);
}

TF_CLONES void tf_rms_norm_row(const float *x, int64_t width, const float *weight, float epsilon, float *y) {
  float factor = 1.0f / sqrtf(squares_about(x, width, 0.0f) / (float)width + epsilon);
  int64_t i = 0;
  for (; i + TF_LANES <= width; i += TF_LANES) tf_store8(y + i, tf_load8(x + i) * factor * tf_load8(weight + i));
  for (; i < width; i++) y[i] = x[i] * factor * weight[i];
}

float tf_activate(tf_activation activation, float x) {
  switch (activation) {
  case TF_ACTIVATION_NONE:
    return x;
  case TF_ACTIVATION_GELU:
    return 0.5f * x * erfcf(-x * 0.707106781f);
  case TF_ACTIVATION_GELU_TANH:
    return 0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
  case TF_ACTIVATION_QUICK_GELU:
    return x / (1.0f + expf(-1.702f * x));
  case TF_ACTIVATION_SILU:
    return x / (1.0f + expf(-x));
  }
  assert(!"an activation of the enum");
  return x;
}

TF_VECTOR tf_f32x8 activate8(tf_activation activation, tf_f32x8 x) {
  switch (activation) {
  case TF_ACTIVATION_NONE:
    return x;
  case TF_ACTIVATION_GELU:
    return tf_gelu8(x);
  /* (1 + tanh u) / 2 = sigmoid(2u) */
  case TF_ACTIVATION_GELU_TANH:
    return x * tf_sigmoid8(1.59576912f * (x + 0.044715f * x * x * x));
  case TF_ACTIVATION_QUICK_GELU:
    return x * tf_sigmoid8(1.702f * x);
  case TF_ACTIVATION_SILU:
    return x * tf_sigmoid8(x);
  }
  return x;
}

/* A constant activation makes one straight loop. */
TF_VECTOR void activate_all(tf_activation activation, float *x, int64_t count) {
  int64_t i = 0;
  for (; i + TF_LANES <= count; i += TF_LANES) tf_store8(x + i, activate8(activation, tf_load8(x + i)));
  if (i < count) tf_store_part8(x + i, count - i, activate8(activation, tf_load_part8(x + i, count - i, 0.0f)));
}

TF_CLONES void tf_activate_many(tf_activation activation, float *x, int64_t count) {
  switch (activation) {
  case TF_ACTIVATION_NONE:
    return;
  case TF_ACTIVATION_GELU:
    activate_all(TF_ACTIVATION_GELU, x, count);
    return;
  case TF_ACTIVATION_GELU_TANH:
    activate_all(TF_ACTIVATION_GELU_TANH, x, count);
    return;
  case TF_ACTIVATION_QUICK_GELU:
    activate_all(TF_ACTIVATION_QUICK_GELU, x, count);
    return;
  case TF_ACTIVATION_SILU:
    activate_all(TF_ACTIVATION_SILU, x, count);
    return;
  }
}

typedef struct silu_job {
  float *gate;
  const float *up;
} silu_job;

TF_CLONES static void silu_multiply(void *context, int64_t begin, int64_t end, int thread) {
  const silu_job *job = context;
  float *gate = job->gate;
  const float *up = job->up;
  (void)thread;
  int64_t i = begin;
  for (; i + TF_LANES <= end; i += TF_LANES) {
    tf_f32x8 x = tf_load8(gate + i);
    tf_store8(gate + i, x * tf_sigmoid8(x) * tf_load8(up + i));
  }
  if (i < end) {
    tf_f32x8 x = tf_load_part8(gate + i, end - i, 0.0f);
    tf_store_part8(gate + i, end - i, x * tf_sigmoid8(x) * tf_load_part8(up + i, end - i, 0.0f));
  }
}

void tf_silu_multiply(tf_pool *pool, float *gate, const float *up, int64_t count) {
  silu_job job = {.gate = gate, .up = up};
  tf_parallel(pool, count, GRAIN_FLOATS, silu_multiply, &job);
}

TF_CLONES float tf_softmax_unscaled(float *x, int64_t count) {
  tf_f32x8 most = tf_splat8(-INFINITY), lanes = {0};
  int64_t i = 0, whole = count - count % TF_LANES;
  for (; i < whole; i += TF_LANES) most = tf_max8(most, tf_load8(x + i));
  if (i < count) most = tf_max8(most, tf_load_part8(x + i, count - i, -INFINITY));
  float maximum = most[0];
  for (int lane = 1; lane < TF_LANES; lane++) maximum = most[lane] > maximum ? most[lane] : maximum;
  for (i = 0; i < whole; i += TF_LANES) {
    tf_f32x8 power = tf_exp8(tf_load8(x + i) - maximum);
    tf_store8(x + i, power);
    lanes += power;
  }
  if (i < count) {
    tf_f32x8 power = tf_exp8(tf_load_part8(x + i, count - i, -INFINITY) - maximum);
    tf_store_part8(x + i, count - i, power);
    lanes += power;
  }
  return tf_sum8(lanes);
}

TF_CLONES void tf_scale_many(float *x, int64_t count, float factor) {
  int64_t i = 0;
  for (; i + TF_LANES <= count; i += TF_LANES) tf_store8(x + i, tf_load8(x + i) * factor);
  for (; i < count; i++) x[i] *= factor;
}

void tf_softmax(float *x, int64_t count) {
  if (count > 0) tf_scale_many(x, count, 1.0f / tf_softmax_unscaled(x, count));
}

/* A pair (a, b) becomes (a cos - b sin, b cos + a sin): each number times its cosine plus its partner times its sine,
 * where the first one's sine is negative. So both factors are stored for every number, in the order of the row. */
void tf_rope_angles(const int32_t *positions, int64_t rows, int64_t head_dim, double base, tf_rope_layout layout,
                    float *cosine, float *sine) {
  assert(head_dim % 2 == 0 && head_dim <= TF_HEAD_DIM_MAX);
  bool split = layout == TF_ROPE_HALF_SPLIT;
  int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; i++) {
    /* Frequencies and angles are rounded to f32, as the models were trained with. */
    float frequency = (float)pow(base, -2.0 * (double)i / (double)head_dim);
    int64_t first = split ? i : 2 * i, second = split ? i + half : first + 1;
    for (int64_t row = 0; row < rows; row++) {
      float angle = (float)positions[row] * frequency, c = cosf(angle), s = sinf(angle);
      cosine[row * head_dim + first] = cosine[row * head_dim + second] = c;
      sine[row * head_dim + first] = -s;
      sine[row * head_dim + second] = s;
    }
  }
}

TF_VECTOR tf_f32x8 swap_pairs8(tf_f32x8 x) {
  return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
}

/* Interleaved: partners are neighbours. */
TF_VECTOR void turn_neighbours(float *x, int64_t dim, const float *cosine, const float *sine) {
  int64_t i = 0;
  for (; i + TF_LANES <= dim; i += TF_LANES) {
    tf_f32x8 lanes = tf_load8(x + i);
    tf_store8(x + i, lanes * tf_load8(cosine + i) + swap_pairs8(lanes) * tf_load8(sine + i));
  }
  for (; i < dim; i += 2) {
    float a = x[i], b = x[i + 1];
    x[i] = a * cosine[i] + b * sine[i];
    x[i + 1] = b * cosine[i + 1] + a * sine[i + 1];
  }
}

/* Half split: partners are half a head apart. */
TF_VECTOR void turn_halves(float *x, int64_t dim, const float *cosine, const float *sine) {
  int64_t half = dim / 2, i = 0;
  for (; i + TF_LANES <= half; i += TF_LANES) {
    tf_f32x8 a = tf_load8(x + i), b = tf_load8(x + half + i);
    tf_store8(x + i, a * tf_load8(cosine + i) + b * tf_load8(sine + i));
    tf_store8(x + half + i, b * tf_load8(cosine + half + i) + a * tf_load8(sine + half + i));
  }
  for (; i < half; i++) {
    float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] + b * sine[i];
    x[half + i] = b * cosine[half + i] + a * sine[half + i];
  }
}

TF_CLONES void tf_rope_row(float *x, int64_t heads, int64_t head_dim, tf_rope_layout layout, const float *cosine,
                           const float *sine) {
  for (int64_t head = 0; head < heads; head++, x += head_dim) {
    if (layout == TF_ROPE_HALF_SPLIT)
      turn_halves(x, head_dim, cosine, sine);
    else
      turn_neighbours(x, head_dim, cosine, sine);
  }
}

TF_CLONES int64_t tf_largest(const float *x, int64_t count) {
  tf_f32x8 lanes = tf_splat8(-INFINITY);
  int64_t i = 0;
  for (; i + TF_LANES <= count; i += TF_LANES) {
    tf_f32x8 some = tf_load8(x + i);
    lanes = tf_select8(some > lanes, some, lanes); /* NaN is not greater */
  }
  float largest = -INFINITY;
  for (int lane = 0; lane < TF_LANES; lane++) largest = lanes[lane] > largest ? lanes[lane] : largest;
  for (; i < count; i++) largest = x[i] > largest ? x[i] : largest;
  if (largest == -INFINITY) return -1;
  for (i = 0; x[i] != largest;) i++;
  return i;
}

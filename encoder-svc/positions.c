/* Bicubic interpolation of a grid of position embeddings. In: [in_side^2, width]. Out: [out_side^2, width].
 * Four by four neighbours, Keys' cubic with a = -0.75 (torch's), no antialiasing; neighbours outside count as the edge.
 * The arithmetic is f32 throughout, as torch's is, so that the two agree to rounding. */
#include "encoder-svc/positions.h"

#include <math.h>
#include <string.h>

enum { TAPS = 4 };
static const float CUBIC_A = -0.75f;

typedef struct taps {
  int64_t index[TAPS];
  float weight[TAPS];
} taps;

static float cubic_near(float x) {
  return ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1;
} /* 0 <= x <= 1 */
static float cubic_far(float x) { /* 1 <= x <= 2 */
  return ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A;
}

static taps taps_at(int64_t at, int64_t in_side, int64_t out_side) {
  float scale = (float)in_side / (float)out_side;
  float center = scale * ((float)at + 0.5f) - 0.5f;
  float whole = floorf(center), part = center - whole;
  taps result = {.weight = {cubic_far(part + 1), cubic_near(part), cubic_near(1 - part), cubic_far(2 - part)}};
  for (int i = 0; i < TAPS; i++) {
    int64_t index = (int64_t)whole - 1 + i;
    result.index[i] = index < 0 ? 0 : index >= in_side ? in_side - 1 : index;
  }
  return result;
}

void tf_positions_resize(const float *in, int64_t in_side, float *out, int64_t out_side, int64_t width) {
  if (in_side == out_side) {
    memcpy(out, in, (size_t)(in_side * in_side * width) * sizeof *out);
    return;
  }
  for (int64_t y = 0; y < out_side; y++) {
    taps rows = taps_at(y, in_side, out_side);
    for (int64_t x = 0; x < out_side; x++, out += width) {
      taps columns = taps_at(x, in_side, out_side);
      for (int64_t c = 0; c < width; c++) {
        float sum = 0;
        for (int j = 0; j < TAPS; j++) {
          const float *row = in + rows.index[j] * in_side * width + c;
          float across = 0;
          for (int i = 0; i < TAPS; i++) across += columns.weight[i] * row[columns.index[i] * width];
          sum += rows.weight[j] * across;
        }
        out[c] = sum;
      }
    }
  }
}

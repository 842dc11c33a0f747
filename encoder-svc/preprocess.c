/* Preprocessing: squash, scale to 0..1, normalise, planes instead of pixels.
 * In: 8-bit RGB of any size. Out: [3, size, size] f32.
 * A channel has 256 values, so the arithmetic is done once for each and looked up. */
#include "encoder-svc/preprocess.h"

#include <stdlib.h>

#include "image/resize.h"

tf_code tf_preprocess(const tf_image *image, int32_t size, const float mean[3], const float std[3], float *out,
                      tf_error *error) {
  if (size < 1 || size > TF_RESIZE_SIDE_MAX)
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "a ViT input of %d pixels a side", size);
  size_t pixels = (size_t)size * (size_t)size;
  uint8_t *square = malloc(pixels * 3);
  if (square == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for %d x %d pixels", size, size);
  tf_code code = tf_resize_bicubic(image->rgb, image->width, image->height, square, size, size, error);
  for (int channel = 0; code == TF_OK && channel < 3; channel++) {
    float values[256];
    for (int i = 0; i < 256; i++) values[i] = ((float)i / 255.0f - mean[channel]) / std[channel];
    float *plane = out + (size_t)channel * pixels;
    for (size_t i = 0; i < pixels; i++) plane[i] = values[square[3 * i + (size_t)channel]];
  }
  free(square);
  return code;
}

/* Upright pixels to the ViT's input. In: 8-bit RGB of any size. Out: [3, size, size] f32, normalised.
 * The picture is squashed to the square, not cropped: that is how the adapters are trained.
 * Whatever changes here changes TF_PREPROCESSING_VERSION (tensor/model_dir.h). */
#ifndef TF_ENCODER_PREPROCESS_H
#define TF_ENCODER_PREPROCESS_H

#include "image/image.h"

/* out: [3, size, size] = (value / 255 - mean) / std by channel, value from tf_resize_bicubic. mean, std: [3].
 * Thread-safe. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY. */
tf_code tf_preprocess(const tf_image *image, int32_t size, const float mean[3], const float std[3], float *out,
                      tf_error *error);

#endif

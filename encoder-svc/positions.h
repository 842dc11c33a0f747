/* Position embeddings for another grid than they were trained on. In: a square grid. Out: a square grid of another
 * side. Equal to torch.nn.functional.interpolate(mode="bicubic", size=..., align_corners=False, antialias=False). Done
 * once, at load. */
#ifndef TF_ENCODER_POSITIONS_H
#define TF_ENCODER_POSITIONS_H

#include <stdint.h>

/* in: [in_side * in_side, width], out: [out_side * out_side, width], both row-major; may not overlap. Equal sides: a
 * copy. */
void tf_positions_resize(const float *in, int64_t in_side, float *out, int64_t out_side, int64_t width);

#endif

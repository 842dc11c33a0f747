/* What an image costs this encoder, measured from its own work. Pure: no I/O, no clock; one caller at a time.
 * In: batches (images, vision tokens, time), decoded images, fetches. Out: for each token count the worker's time a job
 * costs when batches are full (as many images seen before as lately), and how long one takes now. A batch is fitted as
 * fixed part + images + vision tokens; decoding runs beside it on threads of its own, so the slower of the two is what
 * a full worker does. */
#ifndef TF_ENCODER_METER_H
#define TF_ENCODER_METER_H

#include <stddef.h>

#include "common/fit.h"

typedef struct tf_encoder_meter {
  int batch_max, decode_threads;
  tf_fit fit;
  double decode_ms, fetch_ms; /* smoothed, of one image */
  double batch;               /* smoothed images of a batch */
  double seen;                /* smoothed share of images whose features were there already */
  uint64_t decoded, fetched;
} tf_encoder_meter;

void tf_encoder_meter_init(tf_encoder_meter *self, int batch_max, int decode_threads);
void tf_encoder_meter_batch(tf_encoder_meter *self, int images, uint64_t vision_tokens, double ms);
/* An image that was neither decoded nor seen anew: only its projection took time. */
void tf_encoder_meter_cached(tf_encoder_meter *self, uint64_t vision_tokens, double ms);
void tf_encoder_meter_decoded(tf_encoder_meter *self, double ms);
void tf_encoder_meter_fetched(tf_encoder_meter *self, double ms);
/* service_ms[count], latency_ms[count] for these token counts, finite and above 0. False before the first batch. */
bool tf_encoder_meter_read(const tf_encoder_meter *self, const uint32_t *counts, size_t count, float *service_ms,
                           float *latency_ms);

#endif

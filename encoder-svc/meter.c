/* What an image costs this encoder. In: batches, decoded images, fetches. Out: service time at full batches, latency
 * now. Fetches run on many threads that wait: they add to the latency, not to what the worker's time is. */
#include "encoder-svc/meter.h"

#include <math.h>

enum { FIXED, IMAGES, VISION_TOKENS, TERMS };

static const double MEMORY_MS = 20000; /* of work: what is longer ago counts for little */
static const double KEEP_MIN = 0.9;    /* of all before, however long one takes */
static const double IMAGE = 0.05;      /* share of a new image in the smoothed times */
static const double BATCH = 0.2;       /* share of a new batch in the smoothed size */
static const double OUTLIER = 8;       /* a batch longer than so many usual ones of its kind is a stall, not a cost */
static const uint64_t OUTLIERS_FROM = 16;
static const double MS_MIN = 0.001;

void tf_encoder_meter_init(tf_encoder_meter *self, int batch_max, int decode_threads) {
  /* Lone images tell nothing of what a batch shares: they count as the images' own cost until batches show more. */
  static const double penalty[TERMS] = {1e-3, 1e-6, 1e-3};
  *self = (tf_encoder_meter){.batch_max = batch_max > 0 ? batch_max : 1,
                             .decode_threads = decode_threads > 0 ? decode_threads : 1};
  tf_fit_init(&self->fit, TERMS, penalty);
}

static double blend(double old, double value, double share, bool first) {
  return first ? value : old + (value - old) * share;
}

static void observe(tf_encoder_meter *self, const double amounts[TERMS], double ms) {
  if (self->fit.count >= OUTLIERS_FROM) {
    double costs[TERMS], usual = 0;
    tf_fit_solve(&self->fit, costs);
    for (int i = 0; i < TERMS; i++) usual += costs[i] * amounts[i];
    if (usual > 0 && ms > OUTLIER * usual) ms = OUTLIER * usual;
  }
  double keep = exp(-ms / MEMORY_MS);
  tf_fit_add(&self->fit, amounts, ms, keep > KEEP_MIN ? keep : KEEP_MIN);
}

void tf_encoder_meter_batch(tf_encoder_meter *self, int images, uint64_t vision_tokens, double ms) {
  self->batch = blend(self->batch, images, BATCH, self->fit.count == 0);
  for (int i = 0; i < images; i++) self->seen = blend(self->seen, 0, IMAGE, false);
  observe(self, (const double[TERMS]){1, images, (double)vision_tokens}, ms);
}

void tf_encoder_meter_cached(tf_encoder_meter *self, uint64_t vision_tokens, double ms) {
  self->seen = blend(self->seen, 1, IMAGE, false);
  observe(self, (const double[TERMS]){0, 0, (double)vision_tokens}, ms);
}

void tf_encoder_meter_decoded(tf_encoder_meter *self, double ms) {
  self->decode_ms = blend(self->decode_ms, ms, IMAGE, self->decoded++ == 0);
}

void tf_encoder_meter_fetched(tf_encoder_meter *self, double ms) {
  self->fetch_ms = blend(self->fetch_ms, ms, IMAGE, self->fetched++ == 0);
}

bool tf_encoder_meter_read(const tf_encoder_meter *self, const uint32_t *counts, size_t count, float *service_ms,
                           float *latency_ms) {
  if (self->fit.count == 0) return false;
  double cost[TERMS];
  tf_fit_solve(&self->fit, cost);
  double fresh = 1 - self->seen, decode = fresh * self->decode_ms / self->decode_threads;
  for (size_t i = 0; i < count; i++) {
    double projection = cost[VISION_TOKENS] * counts[i], image = cost[IMAGES] + projection;
    double service = fresh * (cost[FIXED] / self->batch_max + cost[IMAGES]) + projection;
    double batch = self->batch > 1 ? self->batch : 1;
    double latency = self->fetch_ms + self->decode_ms + cost[FIXED] + image * batch;
    if (service < decode) service = decode;
    service_ms[i] = (float)(service > MS_MIN ? service : MS_MIN);
    latency_ms[i] = (float)(latency > MS_MIN ? latency : MS_MIN);
  }
  return true;
}

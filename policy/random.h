/* Seeded random numbers for the simulator. In: a seed. Out: the same numbers every time, on every machine.
 * SplitMix64 (Steele, Lea, Flood 2014): one 64-bit state, good enough for queues, not for secrets.
 * Nothing here reads a clock or the system. */
#ifndef TF_POLICY_RANDOM_H
#define TF_POLICY_RANDOM_H

#include <math.h>
#include <stdint.h>

typedef struct tf_random {
  uint64_t state;
} tf_random;

static inline uint64_t tf_random_bits(tf_random *self) {
  uint64_t z = self->state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* Uniform in (0, 1]. */
static inline double tf_random_unit(tf_random *self) {
  return ((double)(tf_random_bits(self) >> 11) + 1) * 0x1p-53;
}

static inline double tf_random_exponential(tf_random *self) {
  return -log(tf_random_unit(self));
}

/* Log-normal with mean 1; sigma is that of the logarithm. */
static inline double tf_random_factor(tf_random *self, double sigma) {
  if (sigma <= 0) return 1;
  double radius = sqrt(2 * tf_random_exponential(self));
  double normal = radius * cos(6.283185307179586 * tf_random_unit(self));
  return exp(sigma * normal - sigma * sigma / 2);
}

#endif

/* Clocks. In: nothing. Out: monotonic milliseconds and microseconds (intervals), Unix milliseconds (time of day). */
#ifndef TF_COMMON_CLOCK_H
#define TF_COMMON_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t tf_clock_us(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}
static inline int64_t tf_now_us(void) {
  return tf_clock_us(CLOCK_MONOTONIC);
}
static inline int64_t tf_now_ms(void) {
  return tf_now_us() / 1000;
}
static inline int64_t tf_unix_us(void) {
  return tf_clock_us(CLOCK_REALTIME);
}
static inline int64_t tf_unix_ms(void) {
  return tf_unix_us() / 1000;
}

#endif

/* A run that has to be finished by a certain time: what it tells the routers, and what they plan.
 * In: a deadline, how many pictures are left. Out: the queue's hash `pace:RUN` (docs/REDIS.md), the planned mean number
 * of vision tokens, a forecast. The routers choose each job's count; nothing is dropped when the time is over. */
#ifndef TF_CLI_PACE_H
#define TF_CLI_PACE_H

#include <stdint.h>

#include "cli/link.h"
#include "common/buffer.h"

enum { TF_PACE_REFRESH_MS = 2000, TF_PACE_COUNTS_MAX = 16 };

typedef struct tf_pace {
  int64_t finish_unix_ms; /* by this machine's clock; 0: no deadline */
  int64_t refreshed_ms;   /* the caller's: when it last did so */
  double budget;          /* planned mean; 0: not known yet */
  uint32_t counts[TF_PACE_COUNTS_MAX], count_count;
  double per_second[TF_PACE_COUNTS_MAX]; /* what the queue's workers can do at each count; 0: not known yet */
} tf_pace;

/* within: "3h", "90m", "1h30m", "45s", "2d"; finish_by: "06:00" (the next one, local time) or "2025-01-31 06:00".
 * Either may be NULL. TF_ERR_INVALID_ARGUMENT. */
tf_code tf_pace_parse(const char *within, const char *finish_by, int64_t now_unix_ms, int64_t *finish_unix_ms,
                      tf_error *error);
/* Tells the queue how much is left and reads its plan; call it every TF_PACE_REFRESH_MS (the hash expires after a
 * minute). share: of several servers, the part of the work that this one does. Best effort: a lost connection shows
 * elsewhere. */
void tf_pace_refresh(tf_pace *self, tf_link *link, uint64_t remaining, double share);
/* The run has ended. */
void tf_pace_end(tf_link *link);
/* "at 256 tokens: 7h 10m, at 64: 2h 05m; planned mean 118 tokens; done by 06:00". Appends nothing while nothing is
 * known. remaining: pictures. most: the largest count wanted. */
void tf_pace_forecast(const tf_pace *self, uint64_t remaining, int64_t most, tf_buffer *out);
/* "06:00", with the date where it is not within a day. */
void tf_pace_time_text(int64_t unix_ms, int64_t now_unix_ms, char *out, size_t out_bytes);

#endif

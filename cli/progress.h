/* What a person sees while a run goes on: a bar of two lines on a terminal (three with a deadline), a plain line now
 * and then elsewhere. In: the run's numbers. Out: text on stderr, at most ten times a second (bar); lines come after 5
 * s, and the longer the run the fewer: when a tenth of its time has gone by since the last, five minutes at most.
 * Formatting is pure and tested; drawing alone knows the terminal. */
#ifndef TF_CLI_PROGRESS_H
#define TF_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/buffer.h"

/* The numbers at one moment. */
typedef struct tf_progress_view {
  uint64_t done, failed; /* captions and failures */
  uint64_t already;      /* done by earlier runs; they count in the total, not in the rate */
  uint64_t total;        /* images found so far, those done before among them */
  bool total_known;      /* false while folders are still being read */
  double per_second;     /* of the last half minute; 0: not known yet */
  double mean_tokens;    /* vision tokens of a caption; 0: none yet */
  bool depth_known;
  int64_t waiting, encoding, decoding; /* jobs of the whole queue by tier */
  const char *forecast;                /* of a run with a deadline; NULL: none */
  const char *note;                    /* replaces the numbers: "starting", "Redis is out of reach"; NULL: none */
} tf_progress_view;

typedef struct tf_progress_style {
  int columns; /* of the terminal; lines are at most columns - 1 wide */
  bool color, utf8;
} tf_progress_style;

/* The bar: two lines, a third for the forecast, without a newline at the end. */
void tf_progress_bar(const tf_progress_view *view, const tf_progress_style *style, tf_buffer *out);
/* One plain line without a newline. */
void tf_progress_line(const tf_progress_view *view, tf_buffer *out);
/* "8s", "3m 05s", "1h 02m", "2d 03h". */
void tf_duration_text(double seconds, char *out, size_t out_bytes);
/* 1234567 -> "1,234,567". */
void tf_count_text(uint64_t value, char *out, size_t out_bytes);

/* Images a second over the last half minute, from samples a second apart. Zeroed is empty. */
enum { TF_RATE_SAMPLES = 32 };
typedef struct tf_rate {
  int64_t at_ms[TF_RATE_SAMPLES];
  uint64_t count[TF_RATE_SAMPLES];
  uint32_t used, next;
} tf_rate;
void tf_rate_add(tf_rate *self, int64_t now_ms, uint64_t count);
double tf_rate_per_second(const tf_rate *self, int64_t now_ms, uint64_t count);

/* Drawing on stderr. One of these exists in a run. */
typedef struct tf_progress {
  bool terminal;
  int drawn; /* lines on the screen */
  tf_progress_style style;
  int64_t drawn_ms, line_ms, started_ms;
} tf_progress;

/* Looks at stderr, TERM, NO_COLOR and the locale. */
void tf_progress_init(tf_progress *self);
/* True where a redraw is due: ask before numbers are gathered. */
bool tf_progress_due(const tf_progress *self, int64_t now_ms);
void tf_progress_draw(tf_progress *self, const tf_progress_view *view, int64_t now_ms);
/* Takes the bar off the screen, so that something else can be printed; the next draw brings it back. */
void tf_progress_clear(tf_progress *self);

#endif

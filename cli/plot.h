/* Line charts as SVG: panels one above the other over one time axis. Pure: numbers in, text out.
 * In: titles, panels, lines. Out: an SVG document: axes with round ticks, units, a legend, lines thinned to what shows.
 * Colours are those of Okabe and Ito, which colour-blind readers can tell apart. */
#ifndef TF_CLI_PLOT_H
#define TF_CLI_PLOT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/buffer.h"

enum { TF_PLOT_PANELS_MAX = 6, TF_PLOT_LINES_MAX = 12, TF_PLOT_COLOURS = 7 };

typedef struct tf_plot_line {
  const char *label; /* in the legend; NULL: not there */
  size_t colour;     /* 0 to TF_PLOT_COLOURS - 1; equal labels should have equal colours */
  bool dashed, filled;
  const double *y; /* [count]; NaN: a gap; borrowed */
} tf_plot_line;

typedef struct tf_plot_panel {
  const char *title;   /* what and its unit, e.g. "waiting jobs", "p95 wait, s" */
  bool logarithmic;    /* values below the axis are drawn on it */
  double least, most;  /* of the axis; most 0: as the lines need it, from `least` or (logarithmic) a power of ten */
  const double *ticks; /* of the axis instead of round ones; NULL: round ones; borrowed */
  size_t tick_count;
  double mark; /* a horizontal line; NaN: none */
  const char *mark_label;
  size_t line_count;
  tf_plot_line lines[TF_PLOT_LINES_MAX];
} tf_plot_panel;

typedef struct tf_plot {
  const char *title, *subtitle;
  const char *x_label;
  const double *x; /* [count], ascending */
  size_t count;
  size_t panel_count;
  tf_plot_panel panels[TF_PLOT_PANELS_MAX];
} tf_plot;

/* Appends the document. */
void tf_plot_svg(const tf_plot *self, tf_buffer *out);

#endif

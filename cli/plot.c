/* Line charts as SVG: panels one above the other over one time axis.
 * In: titles, panels, lines. Out: an SVG document.
 * Text is escaped, numbers are printed without locale; points that would not show are left out. */
#include "cli/plot.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WIDTH = 860, LEFT = 66, RIGHT = 20, TOP = 76, PANEL = 132, GAP = 40, BOTTOM = 50, TICKS = 5 };
#define THIN_PX 0.4 /* a point nearer than this to the straight line past it does not show */

static const char *const colours[TF_PLOT_COLOURS] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                     "#7f7f7f", "#e69f00", "#56b4e9"};

typedef struct value_axis {
  double least, most, tick;
  bool logarithmic;
} value_axis;

static void put_text(tf_buffer *out, const char *text) {
  for (const char *at = text; *at; at++) {
    const char *safe = *at == '<' ? "&lt;" : *at == '>' ? "&gt;" : *at == '&' ? "&amp;" : *at == '"' ? "&quot;" : NULL;
    if (safe)
      tf_buffer_printf(out, "%s", safe);
    else
      tf_buffer_printf(out, "%c", *at);
  }
}

/* --- Axes --- */

/* 1, 2 or 5 times a power of ten, so that about TICKS of them fit. */
static double round_tick(double range) {
  double raw = range / TICKS, power = pow(10, floor(log10(raw)));
  double lead = raw / power;
  return power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
}

static void range_of(const tf_plot *plot, const tf_plot_panel *panel, double *least, double *most) {
  *least = INFINITY;
  *most = -INFINITY;
  for (size_t i = 0; i < panel->line_count; i++) {
    for (size_t k = 0; k < plot->count; k++) {
      double y = panel->lines[i].y[k];
      if (!isfinite(y) || (panel->logarithmic && y <= 0)) continue;
      *least = fmin(*least, y);
      *most = fmax(*most, y);
    }
  }
  if (isfinite(panel->mark)) {
    *least = fmin(*least, panel->mark);
    *most = fmax(*most, panel->mark);
  }
}

static value_axis axis_of(const tf_plot *plot, const tf_plot_panel *panel) {
  value_axis out = {.least = panel->least, .most = panel->most, .logarithmic = panel->logarithmic};
  if (panel->most <= 0) {
    double least, most;
    range_of(plot, panel, &least, &most);
    if (!(most > 0)) most = 1;
    if (panel->logarithmic) {
      out.most = pow(10, ceil(log10(most) - 1e-9));
      out.least = fmax(pow(10, floor(log10(fmax(least, 1e-300)))), out.most / 1e5);
      if (panel->least > 0) out.least = panel->least;
      if (out.least >= out.most) out.least = out.most / 10;
    } else {
      out.least = panel->least;
      out.most = ceil(most / round_tick(most) - 1e-9) * round_tick(most);
    }
  }
  out.tick = round_tick(out.most - out.least);
  return out;
}

static double x_at(const tf_plot *plot, double x) {
  double least = plot->x[0], most = plot->x[plot->count - 1];
  return LEFT + (WIDTH - LEFT - RIGHT) * (most > least ? (x - least) / (most - least) : 0);
}

static double y_at(const value_axis *axis, double top, double y) {
  double share = axis->logarithmic ? log(fmax(y, axis->least) / axis->least) / log(axis->most / axis->least)
                                   : (y - axis->least) / (axis->most - axis->least);
  return top + PANEL * (1 - fmin(fmax(share, 0), 1));
}

static void put_tick_y(tf_buffer *out, const value_axis *axis, double top, double y) {
  double at = y_at(axis, top, y);
  tf_buffer_printf(out, "<path class=\"g\" d=\"M%d %.1fH%d\"/><text class=\"t\" x=\"%d\" y=\"%.1f\">%.6g</text>\n",
                   LEFT, at, WIDTH - RIGHT, LEFT - 7, at + 4, y);
}

static void put_ticks(const tf_plot *plot, const tf_plot_panel *panel, const value_axis *axis, double top,
                      tf_buffer *out) {
  if (panel->ticks)
    for (size_t i = 0; i < panel->tick_count; i++) put_tick_y(out, axis, top, panel->ticks[i]);
  else if (axis->logarithmic)
    for (int i = 0; axis->least * pow(10, i) <= axis->most * 1.01; i++)
      put_tick_y(out, axis, top, axis->least * pow(10, i));
  else
    for (int i = 0; axis->least + i * axis->tick <= axis->most * (1 + 1e-9); i++)
      put_tick_y(out, axis, top, axis->least + i * axis->tick);
  double tick = round_tick((plot->x[plot->count - 1] - plot->x[0]) / 1.6);
  double first = ceil(plot->x[0] / tick) * tick;
  for (int i = 0; first + i * tick <= plot->x[plot->count - 1] + 1e-9; i++) {
    double at = x_at(plot, first + i * tick);
    tf_buffer_printf(out,
                     "<path class=\"g\" d=\"M%.1f %.1fv%d\"/><text class=\"x\" x=\"%.1f\" y=\"%.1f\">%.6g</text>\n", at,
                     top, PANEL, at, top + PANEL + 14, first + i * tick);
  }
}

/* --- Lines --- */

typedef struct point {
  double x, y;
} point;

/* One unbroken piece of a line. A point is left out while all since the last one drawn lie on the straight line. */
static void put_points(tf_buffer *out, const point *points, size_t count) {
  size_t drawn = 0;
  if (count == 1) { /* alone between gaps: a dot */
    tf_buffer_printf(out, "M%.1f %.1fa1.2 1.2 0 1 0 2.4 0a1.2 1.2 0 1 0 -2.4 0", points[0].x - 1.2, points[0].y);
    return;
  }
  tf_buffer_printf(out, "M%.1f %.1f", points[0].x, points[0].y);
  for (size_t i = 1; i < count; i++) {
    bool needed = i + 1 == count;
    for (size_t k = drawn + 1; !needed && k <= i; k++) {
      double along = (points[k].x - points[drawn].x) / (points[i + 1].x - points[drawn].x);
      double line_y = points[drawn].y + along * (points[i + 1].y - points[drawn].y);
      needed = fabs(line_y - points[k].y) > THIN_PX;
    }
    if (!needed) continue;
    tf_buffer_printf(out, "L%.1f %.1f", points[i].x, points[i].y);
    drawn = i;
  }
}

static void put_line(const tf_plot *plot, const value_axis *axis, double top, const tf_plot_line *line,
                     tf_buffer *out) {
  enum { PIECE = 1024 };
  point piece[PIECE];
  size_t used = 0;
  bool goes_on = false; /* piece[0] was drawn already */
  tf_buffer_printf(out, "<path fill=\"%s\" %s stroke=\"%s\"%s d=\"", line->filled ? colours[line->colour] : "none",
                   line->filled ? "fill-opacity=\".18\"" : "class=\"l\"", line->filled ? "none" : colours[line->colour],
                   line->dashed ? " stroke-dasharray=\"5 3\"" : "");
  double first_x = 0;
  for (size_t i = 0; i <= plot->count; i++) {
    bool there = i < plot->count && isfinite(line->y[i]);
    if (there) {
      if (used == 0) first_x = x_at(plot, plot->x[i]);
      piece[used++] = (point){x_at(plot, plot->x[i]), y_at(axis, top, line->y[i])};
    }
    if (used == 0 || (there && used < PIECE)) continue;
    if (used > 1 || !goes_on) put_points(out, piece, used);
    if (line->filled) tf_buffer_printf(out, "V%.1fH%.1fZ", top + PANEL, first_x);
    piece[0] = piece[used - 1];
    goes_on = there;
    used = there ? 1 : 0; /* a piece that was only too long goes on from its end */
  }
  tf_buffer_printf(out, "\"/>\n");
}

static void put_panel(const tf_plot *plot, const tf_plot_panel *panel, double top, tf_buffer *out) {
  value_axis axis = axis_of(plot, panel);
  tf_buffer_printf(out, "<text class=\"p\" x=\"%d\" y=\"%.1f\">", LEFT, top - 8);
  put_text(out, panel->title);
  tf_buffer_printf(out, "</text>\n");
  put_ticks(plot, panel, &axis, top, out);
  for (size_t i = 0; i < panel->line_count; i++) put_line(plot, &axis, top, &panel->lines[i], out);
  if (!isfinite(panel->mark)) return;
  double y = y_at(&axis, top, panel->mark);
  tf_buffer_printf(out, "<path stroke=\"#333\" stroke-dasharray=\"2 3\" d=\"M%d %.1fH%d\"/>", LEFT, y, WIDTH - RIGHT);
  tf_buffer_printf(out, "<text class=\"m\" x=\"%d\" y=\"%.1f\">", WIDTH - RIGHT - 4, y - 4);
  put_text(out, panel->mark_label ? panel->mark_label : "");
  tf_buffer_printf(out, "</text>\n");
}

/* Every label once, in the order of its first line. */
static void put_legend(const tf_plot *plot, tf_buffer *out) {
  const char *seen[TF_PLOT_PANELS_MAX * TF_PLOT_LINES_MAX];
  size_t count = 0;
  double x = LEFT;
  for (size_t p = 0; p < plot->panel_count; p++) {
    for (size_t i = 0; i < plot->panels[p].line_count; i++) {
      const tf_plot_line *line = &plot->panels[p].lines[i];
      bool known = !line->label;
      for (size_t k = 0; !known && k < count; k++) known = strcmp(seen[k], line->label) == 0;
      if (known) continue;
      seen[count++] = line->label;
      tf_buffer_printf(out, "<path stroke=\"%s\" stroke-width=\"%d\"%s%s d=\"M%.0f 50h22\"/><text x=\"%.0f\" y=\"54\">",
                       colours[line->colour], line->filled ? 9 : 2, line->filled ? " stroke-opacity=\".3\"" : "",
                       line->dashed ? " stroke-dasharray=\"5 3\"" : "", x, x + 28);
      put_text(out, line->label);
      tf_buffer_printf(out, "</text>\n");
      x += 46 + 6.6 * (double)strlen(line->label);
    }
  }
}

void tf_plot_svg(const tf_plot *self, tf_buffer *out) {
  if (self->count < 2) return;
  int height = TOP + (int)self->panel_count * (PANEL + GAP) - GAP + BOTTOM;
  tf_buffer_printf(out,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
                   "font-family=\"Helvetica,Arial,sans-serif\" font-size=\"12\">\n"
                   "<style>.g{stroke:#e3e3e3}.l{stroke-width:1.7;stroke-linejoin:round}.t{text-anchor:end;fill:#555}"
                   ".x{text-anchor:middle;fill:#555;font-size:11px}.p{font-weight:bold}.m{text-anchor:end;fill:#333;"
                   "font-size:11px}</style>\n<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
                   WIDTH, height, WIDTH, height, WIDTH, height);
  tf_buffer_printf(out, "<text x=\"%d\" y=\"20\" font-size=\"15\" font-weight=\"bold\">", LEFT);
  put_text(out, self->title);
  tf_buffer_printf(out, "</text>\n<text x=\"%d\" y=\"37\" fill=\"#555\">", LEFT);
  put_text(out, self->subtitle ? self->subtitle : "");
  tf_buffer_printf(out, "</text>\n");
  put_legend(self, out);
  for (size_t i = 0; i < self->panel_count; i++)
    put_panel(self, &self->panels[i], TOP + (double)i * (PANEL + GAP) + 8, out);
  tf_buffer_printf(out, "<text class=\"x\" x=\"%d\" y=\"%d\">", (LEFT + WIDTH - RIGHT) / 2, height - 10);
  put_text(out, self->x_label);
  tf_buffer_printf(out, "</text>\n</svg>\n");
}

/* Draws the progress of a run. In: its numbers. Out: escape sequences or plain lines on stderr.
 * Line 1 is a bar, the share done and the time left; line 2 the counts, the rate, the mean tokens and the depth by
 * tier. What does not fit the terminal is left out from the right, so that nothing wraps. */
#include "cli/progress.h"

#include "common/clock.h"

#include <langinfo.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
  REDRAW_MS = 100,
  LINE_MS_MIN = 5000,
  LINE_MS_MAX = 300000,
  LINE_SHARE = 10,
  BYTES_MAX = 8192,
  COLUMNS_MAX = 500,
  PARTS_MAX = 12
};

/* -- texts ------------------------------------------------------------------------------------------------------ */

void tf_duration_text(double seconds, char *out, size_t out_bytes) {
  if (!(seconds < 99.0 * 86400)) {
    snprintf(out, out_bytes, "over 99d");
    return;
  }
  long whole = seconds > 0 ? lround(seconds) : 0;
  if (whole < 60)
    snprintf(out, out_bytes, "%lds", whole);
  else if (whole < 3600)
    snprintf(out, out_bytes, "%ldm %02lds", whole / 60, whole % 60);
  else if (whole < 86400)
    snprintf(out, out_bytes, "%ldh %02ldm", whole / 3600, whole % 3600 / 60);
  else
    snprintf(out, out_bytes, "%ldd %02ldh", whole / 86400, whole % 86400 / 3600);
}

void tf_count_text(uint64_t value, char *out, size_t out_bytes) {
  char digits[24];
  int count = snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
  size_t at = 0;
  for (int i = 0; i < count && at + 2 < out_bytes; i++) {
    if (i > 0 && (count - i) % 3 == 0) out[at++] = ',';
    out[at++] = digits[i];
  }
  if (out_bytes > 0) out[at] = '\0';
}

static void rate_text(double per_second, char *out, size_t out_bytes) {
  if (per_second >= 99.5)
    snprintf(out, out_bytes, "%.0f/s", per_second);
  else if (per_second >= 0.995)
    snprintf(out, out_bytes, "%.1f/s", per_second);
  else if (per_second > 0)
    snprintf(out, out_bytes, "%.2f/s", per_second);
  else
    snprintf(out, out_bytes, "-/s");
}

static uint64_t finished_of(const tf_progress_view *view) {
  return view->done + view->failed + view->already;
}

/* Time left, as far as it can be told; empty where it can not. */
static void left_text(const tf_progress_view *view, char *out, size_t out_bytes) {
  uint64_t finished = finished_of(view);
  out[0] = '\0';
  if (!view->total_known || view->per_second <= 0 || finished >= view->total) return;
  char duration[32];
  tf_duration_text((double)(view->total - finished) / view->per_second, duration, sizeof duration);
  snprintf(out, out_bytes, "%s left", duration);
}

void tf_progress_line(const tf_progress_view *view, tf_buffer *out) {
  if (view->note) {
    tf_buffer_printf(out, "%s", view->note);
    return;
  }
  char text[64], rate[32];
  tf_count_text(view->done + view->already, text, sizeof text);
  tf_buffer_printf(out, "%s of ", text);
  tf_count_text(view->total, text, sizeof text);
  rate_text(view->per_second, rate, sizeof rate);
  tf_buffer_printf(out, "%s%s done, %llu failed, %s", text, view->total_known ? "" : "+",
                   (unsigned long long)view->failed, rate);
  left_text(view, text, sizeof text);
  if (text[0]) tf_buffer_printf(out, ", %s", text);
  if (view->mean_tokens > 0) tf_buffer_printf(out, ", mean %.0f tokens", view->mean_tokens);
  if (view->depth_known)
    tf_buffer_printf(out, ", waiting %lld, encoder %lld, llm %lld", (long long)view->waiting, (long long)view->encoding,
                     (long long)view->decoding);
  if (view->forecast) tf_buffer_printf(out, ", %s", view->forecast);
}

/* -- the bar ---------------------------------------------------------------------------------------------------- */

typedef struct part {
  char text[80];
  const char *color; /* SGR parameters; NULL: none */
} part;

static void put_colored(tf_buffer *out, const tf_progress_style *style, const char *color, const char *text) {
  if (style->color && color)
    tf_buffer_printf(out, "\033[%sm%s\033[0m", color, text);
  else
    tf_buffer_printf(out, "%s", text);
}

static void put_cells(tf_buffer *out, const tf_progress_style *style, int cells, bool full) {
  if (cells <= 0) return;
  if (style->color) tf_buffer_printf(out, full ? "\033[36m" : "\033[2m");
  for (int i = 0; i < cells; i++)
    tf_buffer_printf(out, "%s", style->utf8 ? full ? "\u2501" : "\u2500" : full ? "#" : "-");
  if (style->color) tf_buffer_printf(out, "\033[0m");
}

static void put_bar_line(const tf_progress_view *view, const tf_progress_style *style, tf_buffer *out) {
  uint64_t finished = finished_of(view);
  double share = view->total > 0 && view->total_known ? (double)finished / (double)view->total : 0;
  if (share > 1) share = 1;
  char left[64], tail[128];
  left_text(view, left, sizeof left);
  if (!view->total_known)
    snprintf(tail, sizeof tail, "  counting files");
  else
    snprintf(tail, sizeof tail, "  %3d%%%s%s", (int)(share * 100), left[0] ? "  " : "", left);
  int cells = style->columns - 2 - (int)strlen(tail);
  if (cells < 8) { /* too narrow for a bar */
    int room = style->columns > 1 ? style->columns - 1 : 0;
    tf_buffer_printf(out, "%.*s", room, tail + 1);
    return;
  }
  int full = (int)(share * cells);
  tf_buffer_printf(out, " ");
  put_cells(out, style, full, true);
  put_cells(out, style, cells - full, false);
  tf_buffer_printf(out, "%s", tail);
}

static int part_columns(const part *parts, int count) {
  int columns = 1;
  for (int i = 0; i < count; i++) columns += (int)strlen(parts[i].text) + (i > 0 ? 2 : 0);
  return columns;
}

static int make_parts(const tf_progress_view *view, bool shortened, part *parts) {
  int count = 0;
  char done[32], total[32];
  memset(parts, 0, PARTS_MAX * sizeof *parts);
  tf_count_text(view->done + view->already, done, sizeof done);
  tf_count_text(view->total, total, sizeof total);
  snprintf(parts[count++].text, sizeof parts->text, "%s of %s%s", done, total, view->total_known ? "" : "+");
  if (view->failed > 0) {
    tf_count_text(view->failed, done, sizeof done);
    parts[count].color = "31";
    snprintf(parts[count++].text, sizeof parts->text, "%s failed", done);
  }
  rate_text(view->per_second, parts[count++].text, sizeof parts->text);
  if (view->mean_tokens > 0) snprintf(parts[count++].text, sizeof parts->text, "%.0f tokens", view->mean_tokens);
  if (!view->depth_known) return count;
  const char *names[] = {shortened ? "wait" : "waiting", shortened ? "enc" : "encoder", "llm"};
  int64_t depths[] = {view->waiting, view->encoding, view->decoding};
  for (int i = 0; i < 3; i++) {
    parts[count].color = "2";
    snprintf(parts[count++].text, sizeof parts->text, "%s %lld", names[i], (long long)depths[i]);
  }
  return count;
}

static void put_number_line(const tf_progress_view *view, const tf_progress_style *style, tf_buffer *out) {
  part parts[PARTS_MAX];
  int room = style->columns - 1;
  int count = make_parts(view, false, parts);
  if (part_columns(parts, count) > room) count = make_parts(view, true, parts);
  while (count > 1 && part_columns(parts, count) > room) count--;
  if (part_columns(parts, count) > room) return;
  for (int i = 0; i < count; i++) {
    tf_buffer_printf(out, i > 0 ? "  " : " ");
    put_colored(out, style, parts[i].color, parts[i].text);
  }
}

void tf_progress_bar(const tf_progress_view *view, const tf_progress_style *style, tf_buffer *out) {
  put_bar_line(view, style, out);
  tf_buffer_printf(out, "\n");
  if (!view->note)
    put_number_line(view, style, out);
  else if (style->columns > 2)
    tf_buffer_printf(out, " %.*s", style->columns - 2, view->note);
  if (!view->note && view->forecast && style->columns > 2)
    tf_buffer_printf(out, "\n %.*s", style->columns - 2, view->forecast);
}

/* -- rate ------------------------------------------------------------------------------------------------------- */

void tf_rate_add(tf_rate *self, int64_t now_ms, uint64_t count) {
  uint32_t newest = (self->next + TF_RATE_SAMPLES - 1) % TF_RATE_SAMPLES;
  if (self->used > 0 && now_ms - self->at_ms[newest] < 1000) return;
  self->at_ms[self->next] = now_ms;
  self->count[self->next] = count;
  self->next = (self->next + 1) % TF_RATE_SAMPLES;
  if (self->used < TF_RATE_SAMPLES) self->used++;
}

double tf_rate_per_second(const tf_rate *self, int64_t now_ms, uint64_t count) {
  if (self->used == 0) return 0;
  uint32_t oldest = self->used < TF_RATE_SAMPLES ? 0 : self->next;
  int64_t elapsed_ms = now_ms - self->at_ms[oldest];
  if (elapsed_ms < 500 || count <= self->count[oldest]) return 0;
  return (double)(count - self->count[oldest]) * 1000.0 / (double)elapsed_ms;
}

/* -- drawing ---------------------------------------------------------------------------------------------------- */

void tf_progress_init(tf_progress *self) {
  memset(self, 0, sizeof *self);
  const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
  self->terminal = isatty(STDERR_FILENO) && term && term[0] && strcmp(term, "dumb") != 0;
  self->style.color = self->terminal && !(no_color && no_color[0]);
  self->style.utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
  self->drawn_ms = INT64_MIN / 2;
  self->line_ms = self->started_ms = tf_now_ms(); /* a run of a few seconds needs no lines */
}

bool tf_progress_due(const tf_progress *self, int64_t now_ms) {
  if (self->terminal) return now_ms - self->drawn_ms >= REDRAW_MS;
  int64_t wait_ms = (now_ms - self->started_ms) / LINE_SHARE;
  if (wait_ms < LINE_MS_MIN) wait_ms = LINE_MS_MIN;
  if (wait_ms > LINE_MS_MAX) wait_ms = LINE_MS_MAX;
  return now_ms - self->line_ms >= wait_ms;
}

/* Progress is a courtesy: what stderr does not take is dropped. */
static void put_on_screen(const tf_buffer *text) {
  if (!text->data || text->overflow) return;
  ssize_t written = write(STDERR_FILENO, text->data, text->size);
  (void)written;
}

static void put_return_to_start(tf_buffer *out, int drawn) {
  if (drawn > 1)
    tf_buffer_printf(out, "\r\033[%dA\033[J", drawn - 1);
  else
    tf_buffer_printf(out, "\r\033[J");
}

void tf_progress_draw(tf_progress *self, const tf_progress_view *view, int64_t now_ms) {
  if (!tf_progress_due(self, now_ms)) return;
  tf_buffer text;
  tf_buffer_init(&text, BYTES_MAX);
  if (self->terminal) {
    struct winsize size = {0};
    bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    self->style.columns = !known ? 80 : size.ws_col > COLUMNS_MAX ? COLUMNS_MAX : size.ws_col;
    put_return_to_start(&text, self->drawn);
    tf_progress_bar(view, &self->style, &text);
    self->drawn = 1;
    for (size_t i = 0; i < text.size; i++) self->drawn += text.data[i] == '\n';
    self->drawn_ms = now_ms;
  } else {
    tf_buffer_printf(&text, "tokenflex: ");
    tf_progress_line(view, &text);
    tf_buffer_printf(&text, "\n");
    self->line_ms = now_ms;
  }
  put_on_screen(&text);
  tf_buffer_free(&text);
}

void tf_progress_clear(tf_progress *self) {
  if (!self->drawn) return;
  tf_buffer text;
  tf_buffer_init(&text, BYTES_MAX);
  put_return_to_start(&text, self->drawn);
  put_on_screen(&text);
  tf_buffer_free(&text);
  self->drawn = 0;
}

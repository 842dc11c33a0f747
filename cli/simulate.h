/* `tokenflex simulate`, what its files share: the set-up from options and files, what is printed and drawn.
 * In: options, a file of service times, a recorded trace. Out: simulations, a table, JSON, SVG.
 * A recorded run that holds results too stands beside the simulated ones as "measured". */
#ifndef TF_CLI_SIMULATE_H
#define TF_CLI_SIMULATE_H

#include "common/buffer.h"
#include "common/options.h"
#include "policy/simulator.h"

enum { TF_SIMULATE_RULES_MAX = 7, TF_TRACE_JOBS_MAX = 50000000 };
enum { TF_SIMULATE_FROM_S = 60, TF_SIMULATE_BURST_JOBS = 100 }; /* defaults, as the tables of options have them */

typedef struct tf_simulate_options {
  const char *arrivals, *service, *trace, *plot, *title;
  double rate, peak, from_s, until_s, period_s, duration_s;
  int64_t burst_jobs, encoders, llms, encode_slots, decode_slots, encoders_max, llms_max, target_wait_ms, seed,
      waiting_max;
  double utilisation, spread, lost_s, start_delay_s, scale_down_s, believed_factor;
  bool even, autoscale, scale_to_zero, json;
  tf_string_list rules, counts, encode_service_ms, decode_service_ms, decode_alone_ms, events;
} tf_simulate_options;

/* A recorded run: arrivals, and where the lines have them results. Arrays are owned. */
typedef struct tf_recorded {
  size_t count, finished;
  double *arrived_s;           /* ascending, from 0 */
  double *finished_s, *wait_s; /* NaN: not known */
  uint32_t *vision_tokens;     /* 0: not known */
} tf_recorded;

/* One row of the table: a simulated rule or the recorded run. */
typedef struct tf_simulate_row {
  const char *name;
  tf_sim_result *result; /* owned */
} tf_simulate_row;

/* Lines of numbers (seconds) or JSON objects with `arrived_s`, and `finished_s`, `wait_ms`, `vision_tokens` where the
 * job ended well. Times count from the first arrival. INVALID_FORMAT, IO, OUT_OF_MEMORY; the text names the line. */
tf_code tf_recorded_load(const char *path, tf_recorded *out, tf_error *error);
void tf_recorded_free(tf_recorded *self);
/* The recorded run as a result, in steps of step_s. NULL: out of memory. */
tf_sim_result *tf_recorded_result(const tf_recorded *self, double step_s, const uint32_t *counts, size_t count_count);

/* How jobs arrive; a trace is loaded into *recorded, which must outlive *out. */
tf_code tf_simulate_arrivals(const tf_simulate_options *options, tf_recorded *recorded, tf_arrivals_config *out,
                             tf_error *error);
/* Everything but the rule. INVALID_ARGUMENT and what reading the files gives. */
tf_code tf_simulate_setup(const tf_simulate_options *options, tf_recorded *recorded, tf_simulation *out,
                          tf_error *error);

void tf_simulate_table(const tf_simulation *config, const tf_simulate_row *rows, size_t count, tf_buffer *out);
tf_code tf_simulate_json(const tf_simulation *config, const tf_simulate_row *rows, size_t count, tf_buffer *out);
/* False: out of memory. */
bool tf_simulate_plot(const tf_simulation *config, const char *title, const tf_simulate_row *rows, size_t count,
                      tf_buffer *out);

#endif

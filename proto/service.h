/* What the three services share: options, keys, log, reactor, metrics, health endpoint, SIGTERM, and their order.
 * In: argv, environment, --config file; a service's own check, start, drain and stop. Out: exit status 0 (drained),
 * 1 (could not run), 2 (wrong usage). */
#ifndef TF_PROTO_SERVICE_H
#define TF_PROTO_SERVICE_H

#include "common/health.h"
#include "common/options.h"
#include "common/reactor.h"
#include "proto/curve.h"
#include "proto/wire.h"

/* Part of every service's settings. */
typedef struct tf_service_options {
  const char *health, *log_level;
  tf_curve_options curve;
} tf_service_options;

/* Their rows in its option table; member: of the settings struct. Whoever connects has CONNECTS, whoever binds BINDS.
 */
#define TF_SERVICE_AT(type, member, field) (offsetof(type, member) + offsetof(tf_service_options, field))
#define TF_SERVICE_ROWS(type, member, health_address)                                                                  \
  {"curve-key",                                                                                                        \
   0,                                                                                                                  \
   TF_OPTION_STRING,                                                                                                   \
   TF_SERVICE_AT(type, member, curve.key),                                                                             \
   0,                                                                                                                  \
   0,                                                                                                                  \
   NULL,                                                                                                               \
   "FILE",                                                                                                             \
   "own CURVE keys (`tokenflex keygen`); all traffic between the tiers is then encrypted"},                            \
      {"health",                                                                                                       \
       0,                                                                                                              \
       TF_OPTION_STRING,                                                                                               \
       TF_SERVICE_AT(type, member, health),                                                                            \
       0,                                                                                                              \
       0,                                                                                                              \
       health_address,                                                                                                 \
       "ADDRESS",                                                                                                      \
       "of /healthz, /readyz and /metrics; off: none"},                                                                \
  {                                                                                                                    \
    "log-level", 0, TF_OPTION_CHOICE, TF_SERVICE_AT(type, member, log_level), 0, 0, "info", "debug|info|warn|error",   \
        "lines below this are not logged"                                                                              \
  }
#define TF_SERVICE_CONNECTS_ROW(type, member)                                                                          \
  {                                                                                                                    \
    "curve-server", 0, TF_OPTION_STRING, TF_SERVICE_AT(type, member, curve.server), 0, 0, NULL, "FILE",                \
        "public key of those that this process connects to; unset: its own"                                            \
  }
#define TF_SERVICE_BINDS_ROW(type, member)                                                                             \
  {                                                                                                                    \
    "curve-allow", 0, TF_OPTION_STRING, TF_SERVICE_AT(type, member, curve.allow), 0, 0, NULL, "FILE",                  \
        "public keys that may connect beside its own; read again when it changes"                                      \
  }

/* What a service is given to start with; all of it outlives its stop. */
typedef struct tf_service {
  tf_reactor *reactor;
  tf_metrics *metrics;
  tf_health *health;
  void *zmq_context;
  tf_curve *curve; /* NULL: no keys were given; its guard runs */
  char instance[TF_INSTANCE_BYTES_MAX + 1];
} tf_service;

typedef struct tf_service_program {
  const char *role; /* "encoder": the name in the log, and the start of the instance's */
  tf_program program;
  size_t options; /* offset of the tf_service_options in the settings */
  /* Wrong usage (exit status 2), before anything is started; NULL: nothing to check. */
  tf_code (*check)(void *self, tf_error *error);
  tf_code (*start)(void *self, const tf_service *service, tf_error *error);
  void (*drain)(void *self); /* SIGTERM or SIGINT, each time: finish, then stop the reactor */
  void (*stop)(void *self);  /* closes every socket; also after a start that failed */
} tf_service_program;

/* self: what the callbacks get; settings: the struct that the option table fills, which may be a part of it. */
int tf_service_run(const tf_service_program *program, int argc, char **argv, void *settings, void *self);

#endif

/* Runs a service from its first option to its last closed socket.
 * In: a tf_service_program. Out: an exit status.
 * Signals are blocked before any thread starts, so that they reach the reactor alone. */
#include "proto/service.h"

#include <stdio.h>

#include "common/log.h"
#include "proto/peers.h"

typedef struct run {
  const tf_service_program *program;
  void *self;
  tf_service service;
} run;

static void on_terminate(void *context, int signal_number) {
  (void)signal_number;
  run *this = context;
  this->program->drain(this->self);
}

static tf_code start(run *this, const tf_service_options *options, tf_error *error) {
  tf_service *service = &this->service;
  service->reactor = tf_reactor_new();
  service->metrics = tf_metrics_new();
  if (!service->reactor || !service->metrics) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  tf_code code = tf_reactor_on_terminate(service->reactor, on_terminate, this);
  if (code != TF_OK) return tf_fail(error, code, "can not handle signals");
  code = tf_health_start(options->health, service->metrics, &service->health, error);
  if (code != TF_OK) return code;
  tf_health_set_ready(service->health, false, "starting");
  service->zmq_context = zmq_ctx_new();
  if (!service->zmq_context) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory to start");
  code = tf_curve_guard(service->curve, service->zmq_context, service->metrics, error);
  if (code != TF_OK) return code;
  tf_instance_make(this->program->role, service->instance, sizeof service->instance);
  return this->program->start(this->self, service, error);
}

/* The reverse of start, whose first part alone may have been done. */
static void stop(run *this) {
  tf_service *service = &this->service;
  this->program->stop(this->self);
  if (service->zmq_context) zmq_ctx_shutdown(service->zmq_context); /* ends the thread that checks keys */
  tf_curve_free(&service->curve);
  if (service->zmq_context) zmq_ctx_term(service->zmq_context); /* waits for the sockets' linger, a second at most */
  tf_health_stop(&service->health);
  tf_metrics_free(&service->metrics);
  tf_reactor_free(&service->reactor);
}

int tf_service_run(const tf_service_program *program, int argc, char **argv, void *settings, void *self) {
  run this = {.program = program, .self = self};
  tf_error error = {.code = TF_OK};
  tf_options_outcome outcome = TF_OPTIONS_RUN;
  const tf_service_options *options = (const tf_service_options *)((const char *)settings + program->options);
  tf_code code = tf_options_parse(&program->program, argc, argv, settings, NULL, NULL, &outcome, &error);
  if (code == TF_OK && outcome != TF_OPTIONS_RUN) return 0;
  if (code == TF_OK && program->check) code = program->check(self, &error);
  if (code == TF_OK) code = tf_curve_new(&options->curve, &this.service.curve, &error);
  if (code != TF_OK) {
    fprintf(stderr, "%s: %s (--help shows the options)\n", program->program.name, error.text);
    return 2;
  }
  tf_log_setup(program->role, options->log_level);
  code = start(&this, options, &error);
  if (code == TF_OK) code = tf_reactor_run(this.service.reactor, &error);
  if (code != TF_OK) fprintf(stderr, "%s: %s\n", program->program.name, error.text);
  stop(&this);
  return code == TF_OK ? 0 : 1;
}

/* Tests of common/reactor.c: pipes, inproc sockets, timers and a signal to ourselves.
 * In: callbacks that add and remove sources, themselves and others. Out: who was called, how often, in which order.
 * A loop that never ends is a fault to look for: the runner bounds each program's time. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/reactor.h"

static tf_reactor *reactor;
static tf_error problem;
static int calls, other_calls;

static void start(void) {
  reactor = tf_reactor_new();
}
static void stop(void) {
  tf_reactor_free(&reactor);
  cr_assert_null(reactor);
}

static void run(void) {
  cr_assert_eq(tf_reactor_run(reactor, &problem), TF_OK, "%s", problem.text);
}

static void count_and_stop(void *context) {
  (void)context;
  calls++;
  tf_reactor_stop(reactor);
}

static void count_other(void *context) {
  (void)context;
  other_calls++;
}

static void stop_at_three(void *context) {
  (void)context;
  if (++calls == 3) tf_reactor_stop(reactor);
}

Test(reactor, timers_once_and_repeated, .init = start, .fini = stop) {
  int64_t start_ms = tf_now_ms();
  tf_reactor_add_timer(reactor, 5, false, count_other, NULL);
  cr_assert_geq(tf_reactor_add_timer(reactor, 20, true, stop_at_three, NULL), 0);
  run();
  cr_assert_eq(calls, 3);
  cr_assert_eq(other_calls, 1);
  cr_assert_geq(tf_now_ms() - start_ms, 59);
}

static int timers[TF_REACTOR_TIMERS_MAX];

static void remove_the_other(void *context) {
  tf_reactor_remove_timer(reactor, *(int *)context);
}

Test(reactor, removed_timers_do_not_fire, .init = start, .fini = stop) {
  /* Both are due in the same round; whichever comes first removes the second. */
  tf_reactor_add_timer(reactor, 10, false, remove_the_other, &timers[0]);
  timers[0] = tf_reactor_add_timer(reactor, 10, false, count_other, NULL);
  tf_reactor_add_timer(reactor, 40, false, count_and_stop, NULL);
  run();
  cr_assert_eq(other_calls, 0);
  tf_reactor_remove_timer(reactor, timers[0]); /* again: harmless */
  tf_reactor_remove_timer(reactor, -1);
  tf_reactor_remove_timer(reactor, 123456789);
}

Test(reactor, stale_timer_handle_spares_its_successor, .init = start, .fini = stop) {
  int old = tf_reactor_add_timer(reactor, 10, false, count_other, NULL);
  tf_reactor_remove_timer(reactor, old);
  int fresh = tf_reactor_add_timer(reactor, 10, false, count_and_stop, NULL);
  cr_assert_neq(old, fresh);
  tf_reactor_remove_timer(reactor, old);
  run();
  cr_assert_eq(calls, 1);
}

Test(reactor, timers_have_a_maximum, .init = start, .fini = stop) {
  for (int i = 0; i < TF_REACTOR_TIMERS_MAX; i++) {
    timers[i] = tf_reactor_add_timer(reactor, 1000, false, count_other, NULL);
    cr_assert_geq(timers[i], 0);
  }
  cr_assert_eq(tf_reactor_add_timer(reactor, 1000, false, count_other, NULL), -1);
  tf_reactor_remove_timer(reactor, timers[77]);
  cr_assert_geq(tf_reactor_add_timer(reactor, 1000, false, count_other, NULL), 0);
}

static int first_pipe[2], second_pipe[2];

static void read_one(void *context, int fd, int events) {
  char byte;
  cr_assert_eq(events, TF_READABLE);
  cr_assert_eq(read(fd, &byte, 1), 1);
  ++*(int *)context;
  if (byte == '.') tf_reactor_stop(reactor);
}

Test(reactor, descriptors_are_level_triggered, .init = start, .fini = stop) {
  cr_assert_eq(pipe(first_pipe), 0);
  cr_assert_eq(write(first_pipe[1], "abc.", 4), 4);
  cr_assert_eq(tf_reactor_set_fd(reactor, first_pipe[0], TF_READABLE, read_one, &calls), TF_OK);
  run();
  cr_assert_eq(calls, 4);
  /* events 0: stays, waits for nothing. */
  cr_assert_eq(write(first_pipe[1], "xy.", 3), 3);
  tf_reactor_set_fd(reactor, first_pipe[0], 0, read_one, &calls);
  tf_reactor_add_timer(reactor, 20, false, count_and_stop, NULL);
  run();
  cr_assert_eq(calls, 5);
  tf_reactor_set_fd(reactor, first_pipe[0], TF_READABLE, read_one, &calls);
  run();
  cr_assert_eq(calls, 8);
  cr_assert_eq(tf_reactor_set_fd(reactor, -1, TF_READABLE, read_one, &calls), TF_ERR_INVALID_ARGUMENT);
}

/* Removes the other pipe, takes its slot over with a pipe that has nothing to read. */
static void remove_other_fd(void *context, int fd, int events) {
  (void)events;
  int *other = context;
  calls++;
  tf_reactor_remove_fd(reactor, fd);
  tf_reactor_remove_fd(reactor, *other);
  static int idle[2];
  cr_assert_eq(pipe(idle), 0);
  tf_reactor_set_fd(reactor, idle[0], TF_READABLE, read_one, &other_calls);
  tf_reactor_add_timer(reactor, 10, false, count_and_stop, NULL);
}

Test(reactor, callbacks_remove_themselves_and_each_other, .init = start, .fini = stop) {
  cr_assert_eq(pipe(first_pipe), 0);
  cr_assert_eq(pipe(second_pipe), 0);
  cr_assert_eq(write(first_pipe[1], "a", 1), 1);
  cr_assert_eq(write(second_pipe[1], "a", 1), 1);
  tf_reactor_set_fd(reactor, first_pipe[0], TF_READABLE, remove_other_fd, &second_pipe[0]);
  tf_reactor_set_fd(reactor, second_pipe[0], TF_READABLE, remove_other_fd, &first_pipe[0]);
  run();
  cr_assert_eq(calls, 2); /* one pipe, then the timer */
  cr_assert_eq(other_calls, 0);
}

static void on_hang_up(void *context, int fd, int events) {
  char byte;
  cr_assert(events & TF_READABLE);
  if (read(fd, &byte, 1) == 0) count_and_stop(context);
}

Test(reactor, hang_up_reaches_the_reader, .init = start, .fini = stop) {
  cr_assert_eq(pipe(first_pipe), 0);
  close(first_pipe[1]);
  tf_reactor_set_fd(reactor, first_pipe[0], TF_READABLE, on_hang_up, NULL);
  run();
  cr_assert_eq(calls, 1);
}

static void on_writable(void *context, int fd, int events) {
  (void)fd;
  cr_assert_eq(events, TF_WRITABLE);
  count_and_stop(context);
}

Test(reactor, writable_descriptors, .init = start, .fini = stop) {
  cr_assert_eq(pipe(first_pipe), 0);
  tf_reactor_set_fd(reactor, first_pipe[1], TF_WRITABLE, on_writable, NULL);
  run();
  cr_assert_eq(calls, 1);
}

static void receive_one(void *context, void *socket) {
  char text[8];
  (void)context;
  if (zmq_recv(socket, text, sizeof text, ZMQ_DONTWAIT) > 0 && ++calls == 5) tf_reactor_stop(reactor);
}

Test(reactor, sockets, .init = start, .fini = stop) {
  void *zmq = zmq_ctx_new(), *in = zmq_socket(zmq, ZMQ_PULL), *out = zmq_socket(zmq, ZMQ_PUSH);
  zmq_bind(in, "inproc://reactor");
  zmq_connect(out, "inproc://reactor");
  cr_assert_eq(tf_reactor_add_socket(reactor, in, receive_one, NULL), TF_OK);
  for (int i = 0; i < 5; i++) zmq_send(out, "hello", 5, 0);
  run();
  cr_assert_eq(calls, 5);
  tf_reactor_remove_socket(reactor, in);
  tf_reactor_remove_socket(reactor, in);
  zmq_send(out, "hello", 5, 0);
  tf_reactor_add_timer(reactor, 10, false, count_and_stop, NULL);
  run();
  cr_assert_eq(calls, 6); /* the timer's */
  zmq_close(in);
  zmq_close(out);
  zmq_ctx_term(zmq);
}

static void *stop_later(void *context) {
  usleep(20000);
  tf_reactor_stop(context);
  return NULL;
}

Test(reactor, stops_from_another_thread_and_runs_again, .init = start, .fini = stop) {
  for (int i = 0; i < 2; i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, stop_later, reactor);
    run();
    pthread_join(thread, NULL);
  }
  tf_reactor_stop(reactor); /* before the run: it ends at once */
  run();
}

static void on_terminate(void *context, int signal_number) {
  *(int *)context = signal_number;
  tf_reactor_stop(reactor);
}

static void raise_term(void *context) {
  (void)context;
  kill(getpid(), SIGTERM);
}

Test(reactor, terminate_arrives_on_the_loop, .init = start, .fini = stop) {
  int arrived = 0;
  cr_assert_eq(tf_reactor_on_terminate(reactor, on_terminate, &arrived), TF_OK);
  tf_reactor_add_timer(reactor, 5, false, raise_term, NULL);
  run();
  cr_assert_eq(arrived, SIGTERM);
  kill(getpid(), SIGINT);
  run();
  cr_assert_eq(arrived, SIGINT);
}

Test(reactor, sources_have_a_maximum, .init = start, .fini = stop) {
  /* Numbers of descriptors that need not exist: they are not polled with events 0. */
  for (int i = 0; i < TF_REACTOR_SOURCES_MAX; i++) {
    cr_assert_eq(tf_reactor_set_fd(reactor, 10000 + i, 0, read_one, NULL), TF_OK);
  }
  cr_assert_eq(tf_reactor_set_fd(reactor, 9999, 0, read_one, NULL), TF_ERR_OUT_OF_MEMORY);
  cr_assert_eq(tf_reactor_set_fd(reactor, 10005, 0, read_one, NULL), TF_OK); /* known already */
  tf_reactor_remove_fd(reactor, 10005);
  cr_assert_eq(tf_reactor_set_fd(reactor, 9999, 0, read_one, NULL), TF_OK);
}

/* Tests of key files, of what a failed handshake means, and of CURVE on real sockets over loopback.
 * In: files made here. Out: keys, errors, messages that arrive or do not. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "proto/curve.h"
#include "proto/wire.h"
#include "proto/wire_watch.h"

enum { WAIT_MS = 5000, REFUSED_MS = 700 };

static char folder[64], key_path[96], public_path[96], other_key[96], other_public[96];
static tf_error problem;

static void make_folder(void) {
  snprintf(folder, sizeof folder, "/tmp/tf-curve-XXXXXX");
  cr_assert_not_null(mkdtemp(folder));
  snprintf(key_path, sizeof key_path, "%s/a.key", folder);
  snprintf(public_path, sizeof public_path, "%s/a.pub", folder);
  snprintf(other_key, sizeof other_key, "%s/b.key", folder);
  snprintf(other_public, sizeof other_public, "%s/b.pub", folder);
  cr_assert_eq(tf_curve_pair_create(key_path, public_path, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(tf_curve_pair_create(other_key, other_public, &problem), TF_OK, "%s", problem.text);
}

static void remove_folder(void) {
  char command[96];
  snprintf(command, sizeof command, "rm -rf %s", folder);
  cr_assert_eq(system(command), 0);
}

TestSuite(curve, .init = make_folder, .fini = remove_folder, .timeout = 60);

static const char *write_file(const char *text, mode_t mode) {
  static char path[96];
  snprintf(path, sizeof path, "%s/file", folder);
  FILE *file = fopen(path, "w");
  cr_assert_not_null(file);
  fputs(text, file);
  fclose(file);
  cr_assert_eq(chmod(path, mode), 0);
  return path;
}

Test(curve, a_pair_comes_back_as_it_was_made) {
  tf_curve_pair pair, other;
  char public_key[TF_CURVE_KEY_TEXT_BYTES], derived[TF_CURVE_KEY_TEXT_BYTES];
  struct stat status;
  cr_assert_eq(tf_curve_pair_read(key_path, &pair, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(tf_curve_public_read(public_path, public_key, &problem), TF_OK);
  cr_assert_str_eq(pair.public_key, public_key);
  cr_assert_eq(tf_curve_public_read(key_path, public_key, &problem), TF_OK);
  cr_assert_str_eq(pair.public_key, public_key);
  cr_assert_eq(zmq_curve_public(derived, pair.secret_key), 0);
  cr_assert_str_eq(derived, pair.public_key);
  cr_assert_eq(tf_curve_pair_read(other_key, &other, &problem), TF_OK);
  cr_assert_str_neq(pair.secret_key, other.secret_key);
  cr_assert_eq(stat(key_path, &status), 0);
  cr_assert_eq(status.st_mode & 0777, 0600);
}

Test(curve, keys_are_never_overwritten) {
  tf_curve_pair before, after;
  char fresh[96];
  snprintf(fresh, sizeof fresh, "%s/c.key", folder);
  cr_assert_eq(tf_curve_pair_read(key_path, &before, &problem), TF_OK);
  cr_assert_eq(tf_curve_pair_create(key_path, "/nonexistent/c.pub", &problem), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(tf_curve_pair_create(fresh, public_path, &problem), TF_ERR_INVALID_ARGUMENT);
  cr_assert_neq(access(fresh, F_OK), 0, "a secret without its public file stays");
  cr_assert_eq(tf_curve_pair_read(key_path, &after, &problem), TF_OK);
  cr_assert_str_eq(before.secret_key, after.secret_key);
}

Test(curve, malformed_files_are_refused_by_name_and_line) {
  tf_curve_pair pair, good;
  char text[512];
  cr_assert_eq(tf_curve_pair_read(key_path, &good, &problem), TF_OK);
  static const char *const wrong[] = {"public\n", "public short\n", "Public 0123456789012345678901234567890123456789\n",
                                      "public ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~\n",
                                      "secret  123456789012345678901234567890123456789 \n"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    snprintf(text, sizeof text, "# a comment\n\n%s", wrong[i]);
    const char *path = write_file(text, 0600);
    cr_assert_eq(tf_curve_pair_read(path, &pair, &problem), TF_ERR_INVALID_FORMAT, "%s", wrong[i]);
    cr_assert_not_null(strstr(problem.text, "line 3"), "%s", problem.text);
    cr_assert_not_null(strstr(problem.text, path));
  }
  snprintf(text, sizeof text, "public %s\npublic %s\nsecret %s\n", good.public_key, good.public_key, good.secret_key);
  cr_assert_eq(tf_curve_pair_read(write_file(text, 0600), &pair, &problem), TF_ERR_INVALID_FORMAT);
  snprintf(text, sizeof text, "public %s\n", good.public_key);
  cr_assert_eq(tf_curve_pair_read(write_file(text, 0644), &pair, &problem), TF_ERR_INVALID_FORMAT);
  cr_assert_eq(tf_curve_pair_read("/nonexistent/key", &pair, &problem), TF_ERR_IO);
  cr_assert_eq(tf_curve_pair_read(folder, &pair, &problem), TF_ERR_IO);
  cr_assert_eq(tf_curve_pair_read(write_file("", 0600), &pair, &problem), TF_ERR_INVALID_FORMAT);
}

Test(curve, a_secret_that_everyone_may_read_is_refused_and_never_shown) {
  tf_curve_pair pair, good;
  char text[512];
  cr_assert_eq(tf_curve_pair_read(key_path, &good, &problem), TF_OK);
  snprintf(text, sizeof text, "public %s\r\nsecret %s\r\n", good.public_key, good.secret_key);
  cr_assert_eq(tf_curve_pair_read(write_file(text, 0604), &pair, &problem), TF_ERR_INVALID_ARGUMENT);
  cr_assert_null(strstr(problem.text, good.secret_key));
  cr_assert_eq(pair.secret_key[0], '\0');
  cr_assert_eq(tf_curve_pair_read(write_file(text, 0640), &pair, &problem), TF_OK, "%s", problem.text);
}

Test(curve, an_allow_list_holds_every_public_key_of_a_file) {
  uint8_t(*keys)[TF_CURVE_KEY_BYTES], decoded[TF_CURVE_KEY_BYTES];
  size_t count;
  char a[TF_CURVE_KEY_TEXT_BYTES], b[TF_CURVE_KEY_TEXT_BYTES], text[512];
  cr_assert_eq(tf_curve_public_read(public_path, a, &problem), TF_OK);
  cr_assert_eq(tf_curve_public_read(other_public, b, &problem), TF_OK);
  snprintf(text, sizeof text, "# two\npublic %s\n# more\npublic %s", a, b);
  cr_assert_eq(tf_curve_allowed_read(write_file(text, 0644), &keys, &count, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(count, 2);
  zmq_z85_decode(decoded, b);
  cr_assert_arr_eq(keys[1], decoded, TF_CURVE_KEY_BYTES);
  free(keys);
  cr_assert_eq(tf_curve_allowed_read(write_file("# none\n", 0644), &keys, &count, &problem), TF_ERR_INVALID_FORMAT);
}

Test(curve, more_keys_than_fit_are_refused) {
  char a[TF_CURVE_KEY_TEXT_BYTES];
  uint8_t(*keys)[TF_CURVE_KEY_BYTES];
  size_t count;
  cr_assert_eq(tf_curve_public_read(public_path, a, &problem), TF_OK);
  char *text = malloc((TF_CURVE_KEYS_MAX + 1) * 48 + 1), *at = text;
  for (int i = 0; i <= TF_CURVE_KEYS_MAX; i++) at += sprintf(at, "public %s\n", a);
  cr_assert_eq(tf_curve_allowed_read(write_file(text, 0644), &keys, &count, &problem), TF_ERR_INVALID_FORMAT);
  free(text);
}

Test(curve, options_that_make_no_sense_alone) {
  tf_curve *curve = NULL;
  tf_curve_options none = {.key = NULL}, allow = {.allow = public_path}, server = {.server = public_path};
  cr_assert_eq(tf_curve_new(&none, &curve, &problem), TF_OK);
  cr_assert_null(curve);
  cr_assert_eq(tf_curve_new(&allow, &curve, &problem), TF_ERR_INVALID_ARGUMENT);
  cr_assert_not_null(strstr(problem.text, "--curve-allow"));
  cr_assert_eq(tf_curve_new(&server, &curve, &problem), TF_ERR_INVALID_ARGUMENT);
  cr_assert_not_null(strstr(problem.text, "--curve-server"));
  tf_curve_options with = {.key = key_path};
  cr_assert_eq(tf_curve_check_bind(&none, "bind", "tcp://127.0.0.1:1", false, &problem), TF_OK);
  cr_assert_eq(tf_curve_check_bind(&none, "bind", "ipc:///tmp/x", false, &problem), TF_OK);
  cr_assert_eq(tf_curve_check_bind(&none, "bind", "tcp://0.0.0.0:1", false, &problem), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(tf_curve_check_bind(&none, "bind", "tcp://*:1", false, &problem), TF_ERR_INVALID_ARGUMENT);
  cr_assert_eq(tf_curve_check_bind(&none, "bind", "tcp://0.0.0.0:1", true, &problem), TF_OK);
  cr_assert_eq(tf_curve_check_bind(&with, "bind", "tcp://0.0.0.0:1", false, &problem), TF_OK);
  cr_assert_eq(tf_curve_check_bind(&with, "bind", "tcp://0.0.0.0:99999", false, &problem), TF_ERR_INVALID_ARGUMENT);
}

/* One message from a client with client_options to a server with server_options: did it arrive? */
static bool talks(const tf_curve_options *server_options, const tf_curve_options *client_options) {
  tf_metrics *metrics = tf_metrics_new();
  void *here = zmq_ctx_new(), *there = zmq_ctx_new();
  tf_curve *server_keys = NULL, *client_keys = NULL;
  cr_assert_eq(tf_curve_new(server_options, &server_keys, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(tf_curve_new(client_options, &client_keys, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(tf_curve_guard(server_keys, here, metrics, &problem), TF_OK);
  void *server = tf_wire_socket(here, ZMQ_ROUTER), *client = tf_wire_socket(there, ZMQ_DEALER);
  cr_assert_eq(tf_curve_bind(server_keys, server, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(tf_curve_connect(client_keys, client, &problem), TF_OK, "%s", problem.text);
  cr_assert_eq(zmq_bind(server, "tcp://127.0.0.1:*"), 0);
  char endpoint[128];
  size_t size = sizeof endpoint;
  zmq_getsockopt(server, ZMQ_LAST_ENDPOINT, endpoint, &size);
  cr_assert_eq(zmq_connect(client, endpoint), 0);
  tf_message ping = {.type = TF_MESSAGE_PING, .u.ping.sequence = 7};
  cr_assert_eq(tf_wire_send(client, NULL, 0, &ping, NULL, &problem), TF_OK);
  bool same = server_options->key && client_options->key;
  zmq_pollitem_t item = {.socket = server, .events = ZMQ_POLLIN};
  bool came = zmq_poll(&item, 1, same ? WAIT_MS : REFUSED_MS) == 1;
  zmq_close(server);
  zmq_close(client);
  zmq_ctx_shutdown(here);
  tf_curve_free(&server_keys);
  tf_curve_free(&client_keys);
  zmq_ctx_term(here);
  zmq_ctx_term(there);
  tf_metrics_free(&metrics);
  return came;
}

Test(curve, who_may_talk_to_whom) {
  tf_curve_options none = {.key = NULL}, a = {.key = key_path};
  tf_curve_options a_allows_b = {.key = key_path, .allow = other_public};
  tf_curve_options b_to_a = {.key = other_key, .server = public_path};
  cr_assert(talks(&a, &a), "one pair for all");
  cr_assert(talks(&a_allows_b, &b_to_a), "an allowed pair");
  cr_assert(talks(&a_allows_b, &a), "one's own pair is always allowed");
  cr_assert_not(talks(&a, &none), "no keys to a socket that wants them");
  cr_assert_not(talks(&none, &a), "keys to a socket that has none");
}
Test(curve, a_stranger_stays_out) {
  tf_curve_options a = {.key = key_path}, b_to_a = {.key = other_key, .server = public_path};
  cr_assert_not(talks(&a, &b_to_a));
}
Test(curve, a_false_server_gets_nothing) {
  tf_curve_options false_one = {.key = other_key, .allow = public_path}, a = {.key = key_path};
  cr_assert_not(talks(&false_one, &a));
}

Test(handshake, every_failure_has_a_meaning) {
  const char *meaning;
  cr_assert_eq(tf_handshake_judge(ZMQ_EVENT_CONNECTED, 0, false, false, &meaning), TF_HANDSHAKE_FAILURES);
  static const struct {
    int event;
    uint32_t value;
    tf_handshake_failure failure;
  } cases[] = {
      {ZMQ_EVENT_HANDSHAKE_FAILED_AUTH, 400, TF_HANDSHAKE_KEY_REFUSED},
      {ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL, 0, TF_HANDSHAKE_CLOSED},
      {ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL, ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH, TF_HANDSHAKE_MECHANISM},
      {ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL, ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC, TF_HANDSHAKE_SERVER_KEY},
      {ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL, ZMQ_PROTOCOL_ERROR_ZMTP_UNSPECIFIED, TF_HANDSHAKE_PROTOCOL},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int side = 0; side < 4; side++) {
      cr_assert_eq(tf_handshake_judge(cases[i].event, cases[i].value, side & 1, side & 2, &meaning), cases[i].failure);
      cr_assert_gt(strlen(meaning), 10);
    }
}

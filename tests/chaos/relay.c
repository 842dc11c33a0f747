/* A wire that can be cut: forwards tcp connections on the loopback address, until told otherwise.
 * In: LISTEN-PORT TARGET-PORT; SIGUSR1: cuts every connection; SIGUSR2: cuts them and refuses new ones, or takes them
 * again. Out: the bytes, unchanged. SIGSTOP makes of it a wire on which everything vanishes. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINKS_MAX = 64, BUFFER_BYTES = 65536, POLL_MS = 20 };

typedef struct half { /* one direction: what was read from `from` and is not written to the other side yet */
  int from;
  size_t begin, end;
  char bytes[BUFFER_BYTES];
} half;

typedef struct link_pair {
  bool used;
  half ways[2];
} link_pair;

static link_pair links[LINKS_MAX];
static volatile sig_atomic_t cut_wanted, toggle_wanted;

static void on_signal(int number) {
  if (number == SIGUSR1) cut_wanted = 1;
  if (number == SIGUSR2) toggle_wanted = 1;
}

static struct sockaddr_in loopback(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

static int listen_on(int port) {
  struct sockaddr_in address = loopback(port);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 64) != 0) {
    perror("relay: listen");
    exit(1);
  }
  return fd;
}

static void close_link(link_pair *link) {
  /* At once and with a reset, as when a cable is pulled and the other side's state is gone. */
  struct linger hard = {.l_onoff = 1, .l_linger = 0};
  for (int i = 0; i < 2; i++) {
    setsockopt(link->ways[i].from, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(link->ways[i].from);
  }
  link->used = false;
}

static void cut_all(void) {
  for (int i = 0; i < LINKS_MAX; i++)
    if (links[i].used) close_link(&links[i]);
}

static void accept_one(int listener, int target_port) {
  int in = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
  if (in < 0) return;
  struct sockaddr_in address = loopback(target_port);
  int out = socket(AF_INET, SOCK_STREAM, 0);
  int at = 0;
  while (at < LINKS_MAX && links[at].used) at++;
  if (at == LINKS_MAX || connect(out, (struct sockaddr *)&address, sizeof address) != 0) {
    close(in);
    close(out);
    return;
  }
  fcntl(out, F_SETFL, O_NONBLOCK);
  link_pair *link = &links[at];
  link->used = true;
  link->ways[0].from = in;
  link->ways[1].from = out;
  for (int i = 0; i < 2; i++) link->ways[i].begin = link->ways[i].end = 0;
}

/* Moves what can be moved one way; false: the connection is over. */
static bool forward(half *way, int to) {
  if (way->begin == way->end) {
    ssize_t got = read(way->from, way->bytes, sizeof way->bytes);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return false;
    way->begin = 0;
    way->end = got > 0 ? (size_t)got : 0;
  }
  if (way->begin == way->end) return true;
  ssize_t sent = send(to, way->bytes + way->begin, way->end - way->begin, MSG_NOSIGNAL);
  if (sent < 0) return errno == EAGAIN || errno == EINTR;
  way->begin += (size_t)sent;
  return true;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  signal(SIGUSR1, on_signal);
  signal(SIGUSR2, on_signal);
  int port = atoi(argv[1]), target = atoi(argv[2]), listener = listen_on(port);
  pid_t parent = getppid();
  while (getppid() == parent) { /* a test that died takes its wires along */
    struct pollfd fds[1 + 2 * LINKS_MAX] = {{.fd = listener, .events = POLLIN}};
    int count = 1;
    for (int i = 0; i < LINKS_MAX; i++) {
      if (!links[i].used) continue;
      for (int w = 0; w < 2; w++) {
        const half *in = &links[i].ways[w], *out = &links[i].ways[1 - w];
        short events = (short)((in->begin == in->end ? POLLIN : 0) | (out->begin != out->end ? POLLOUT : 0));
        fds[count++] = (struct pollfd){.fd = in->from, .events = events};
      }
    }
    (void)poll(fds, (nfds_t)count, POLL_MS);
    if (cut_wanted) cut_all();
    if (toggle_wanted) {
      cut_all();
      if (listener >= 0) {
        close(listener);
        listener = -1;
      } else {
        listener = listen_on(port);
      }
    }
    cut_wanted = toggle_wanted = 0;
    for (int i = 0; i < LINKS_MAX; i++) {
      link_pair *link = &links[i];
      bool open =
          link->used && forward(&link->ways[0], link->ways[1].from) && forward(&link->ways[1], link->ways[0].from);
      if (link->used && !open) close_link(link);
    }
    if (listener >= 0) accept_one(listener, target);
  }
  return 0;
}

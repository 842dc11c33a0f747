/* Who may read the status page, and who may act through it. In: a token's file, headers. Out: verdicts.
 * Everything is compared as it was sent: nothing is decoded, no name is looked up. */
#include "router/page_access.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* How much of the file there is, at most size bytes; -1: it can not be read. */
static ssize_t read_all(int fd, char *out, size_t size) {
  size_t used = 0;
  while (used < size) {
    ssize_t got = read(fd, out + used, size - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) break;
    used += (size_t)got;
  }
  return (ssize_t)used;
}

tf_code tf_page_token_read(const char *path, tf_page_token *out, tf_error *error) {
  memset(out, 0, sizeof *out);
  if (!path) return TF_OK;
  char text[TF_PAGE_TOKEN_BYTES_MAX + 2];
  struct stat status;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  ssize_t got = fd >= 0 && fstat(fd, &status) == 0 ? read_all(fd, text, sizeof text) : -1;
  int reason = errno;
  if (fd >= 0) close(fd);
  if (got < 0) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--page-token-file %.300s: %s", path, strerror(reason));
  size_t size = 0;
  while (size < (size_t)got && text[size] > ' ' && text[size] < 0x7f) size++;
  bool ends = size == (size_t)got || text[size] == '\n' || text[size] == '\r';
  tf_code code = TF_OK;
  if (status.st_mode & S_IRWXO)
    code = tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--page-token-file %.300s: everyone may read it; chmod 600 (or 640)",
                   path);
  else if (!ends || size < TF_PAGE_TOKEN_BYTES_MIN || size > TF_PAGE_TOKEN_BYTES_MAX)
    code = tf_fail(error, TF_ERR_INVALID_ARGUMENT,
                   "--page-token-file %.300s: its first line is to be %d to %d printable characters without spaces",
                   path, TF_PAGE_TOKEN_BYTES_MIN, TF_PAGE_TOKEN_BYTES_MAX);
  if (code == TF_OK) {
    memcpy(out->text, text, size);
    out->size = size;
  }
  explicit_bzero(text, sizeof text);
  return code;
}

bool tf_page_token_fits(const tf_page_token *self, const char *authorization) {
  static const char scheme[] = "Bearer ";
  char given[TF_PAGE_TOKEN_BYTES_MAX + 1] = "";
  bool bearer = authorization && strncasecmp(authorization, scheme, sizeof scheme - 1) == 0;
  const char *from = bearer ? authorization + sizeof scheme - 1 : "";
  size_t size = strnlen(from, sizeof given);
  memcpy(given, from, size < sizeof given ? size : sizeof given - 1);
  volatile uint8_t differs = (uint8_t)(size != self->size || self->size == 0);
  for (size_t i = 0; i < TF_PAGE_TOKEN_BYTES_MAX; i++)
    differs = (uint8_t)(differs | ((uint8_t)given[i] ^ (uint8_t)self->text[i]));
  explicit_bzero(given, sizeof given);
  return differs == 0;
}

bool tf_page_host_is_local(const char *host) {
  static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
  for (size_t i = 0; host && i < sizeof names / sizeof *names; i++) {
    size_t size = strlen(names[i]);
    if (strncasecmp(host, names[i], size) != 0) continue;
    const char *port = host + size;
    if (*port == '\0') return true;
    size_t digits = strspn(port + 1, "0123456789");
    return *port == ':' && digits >= 1 && digits <= 5 && port[1 + digits] == '\0';
  }
  return false;
}

tf_page_verdict tf_page_may_read(const tf_page_token *token, bool loopback, const char *host,
                                 const char *authorization) {
  if (tf_page_token_fits(token, authorization)) return TF_PAGE_ALLOWED;
  if (!loopback) return TF_PAGE_PEER;
  return tf_page_host_is_local(host) ? TF_PAGE_ALLOWED : TF_PAGE_HOST;
}

tf_page_verdict tf_page_may_act(const tf_page_token *token, const char *authorization) {
  if (token->size == 0) return TF_PAGE_NO_TOKEN;
  return tf_page_token_fits(token, authorization) ? TF_PAGE_ALLOWED : TF_PAGE_TOKEN;
}

const char *tf_page_verdict_text(tf_page_verdict verdict) {
  switch (verdict) {
  case TF_PAGE_ALLOWED:
    break;
  case TF_PAGE_PEER:
    return "The status page is open on loopback only: forward a port (kubectl port-forward, ssh -L) and open "
           "http://127.0.0.1:PORT/, or bring the token as \"Authorization: Bearer TOKEN\".\n";
  case TF_PAGE_HOST:
    return "The status page answers to localhost, 127.0.0.1 and [::1] only: open it under one of these names.\n";
  case TF_PAGE_NO_TOKEN:
    return "Retry and drop are off: the router runs without --page-token-file.\n";
  case TF_PAGE_TOKEN:
    return "Retry and drop need the token: \"Authorization: Bearer TOKEN\".\n";
  }
  return "";
}

/* Reads files inside the allowed folders and bodies over http(s). In: a URI. Out: bytes in memory, or an error that
 * names the URI. A file is opened without following it anywhere first (O_PATH), then judged by where it really is, then
 * read: nothing is read that was not judged. http addresses are judged when the socket is made, after DNS. */
#include "encoder-svc/fetch.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct allowed_dir {
  char *typed, *resolved; /* as the operator wrote it (absolute), and after symbolic links */
} allowed_dir;

struct tf_fetcher {
  tf_fetch_config config;
  allowed_dir dirs[TF_STRING_LIST_ITEMS_MAX];
  size_t dir_count;
};

/* ---- addresses ---- */

typedef struct range4 {
  uint32_t network, bits;
} range4;

/* IANA special-purpose registry: everything that is not globally reachable. */
static const range4 not_public4[] = {
    {0x00000000, 8},  /* 0.0.0.0/8 this network */
    {0x0A000000, 8},  /* 10/8 private */
    {0x64400000, 10}, /* 100.64/10 shared address space (CGNAT) */
    {0x7F000000, 8},  /* 127/8 loopback */
    {0xA9FE0000, 16}, /* 169.254/16 link-local, cloud metadata */
    {0xAC100000, 12}, /* 172.16/12 private */
    {0xC0000000, 24}, /* 192.0.0/24 protocol assignments */
    {0xC0000200, 24}, /* 192.0.2/24 documentation */
    {0xC0586300, 24}, /* 192.88.99/24 6to4 relay, deprecated */
    {0xC0A80000, 16}, /* 192.168/16 private */
    {0xC6120000, 15}, /* 198.18/15 benchmarks */
    {0xC6336400, 24}, /* 198.51.100/24 documentation */
    {0xCB007100, 24}, /* 203.0.113/24 documentation */
    {0xE0000000, 4},  /* 224/4 multicast */
    {0xF0000000, 4},  /* 240/4 reserved, broadcast */
};

static bool is_public4(uint32_t address) {
  for (size_t i = 0; i < sizeof not_public4 / sizeof *not_public4; i++) {
    uint32_t mask = ~(uint32_t)0 << (32 - not_public4[i].bits);
    if ((address & mask) == not_public4[i].network) return false;
  }
  return true;
}

static bool is_public6(const uint8_t *a) {
  /* Only 2000::/3 is global unicast: this leaves out ::, ::1, mapped and translated IPv4, fc00::/7, fe80::/10,
   * ff00::/8. */
  if ((a[0] & 0xE0) != 0x20) return false;
  if (a[0] == 0x20 && a[1] == 0x02) return false;                                 /* 2002::/16 6to4 */
  if (a[0] == 0x20 && a[1] == 0x01 && a[2] < 0x02) return false;                  /* 2001::/23 Teredo, ORCHID, ... */
  if (a[0] == 0x20 && a[1] == 0x01 && a[2] == 0x0D && a[3] == 0xB8) return false; /* 2001:db8::/32 documentation */
  if (a[0] == 0x3F && a[1] == 0xFF && (a[2] & 0xF0) == 0) return false;           /* 3fff::/20 documentation */
  return true;
}

bool tf_address_is_public(const struct sockaddr *address) {
  if (address->sa_family == AF_INET) {
    struct sockaddr_in v4;
    memcpy(&v4, address, sizeof v4);
    return is_public4(ntohl(v4.sin_addr.s_addr));
  }
  if (address->sa_family == AF_INET6) {
    struct sockaddr_in6 v6;
    memcpy(&v6, address, sizeof v6);
    return is_public6(v6.sin6_addr.s6_addr);
  }
  return false;
}

/* ---- life ---- */

static tf_code add_dir(tf_fetcher *self, const char *dir, tf_error *error) {
  allowed_dir *out = &self->dirs[self->dir_count];
  struct stat info;
  out->resolved = realpath(dir, NULL);
  if (out->resolved == NULL || stat(out->resolved, &info) != 0 || !S_ISDIR(info.st_mode)) {
    int reason = out->resolved == NULL ? errno : ENOTDIR;
    free(out->resolved);
    out->resolved = NULL;
    return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--allow-dir %.300s: %s", dir, strerror(reason));
  }
  self->dir_count++; /* from here on tf_fetcher_free cleans up */
  /* A relative one can only match by its resolved form: URIs are absolute. */
  out->typed = strdup(dir[0] == '/' ? dir : out->resolved);
  return out->typed != NULL ? TF_OK : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for --allow-dir");
}

tf_code tf_fetcher_new(const tf_fetch_config *config, tf_fetcher **out, tf_error *error) {
  *out = NULL;
  tf_fetcher *self = calloc(1, sizeof *self);
  if (self == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for the fetcher");
  self->config = *config;
  tf_code code = TF_OK;
  if (config->allow_http && curl_global_init(CURL_GLOBAL_DEFAULT) != 0) {
    self->config.allow_http = false; /* so that freeing does not undo what did not happen */
    code = tf_fail(error, TF_ERR_INTERNAL, "libcurl can not start");
  }
  for (size_t i = 0; code == TF_OK && i < config->allow_dirs.count; i++) {
    code = add_dir(self, config->allow_dirs.items[i], error);
  }
  if (code != TF_OK) {
    tf_fetcher_free(&self);
    return code;
  }
  *out = self;
  return TF_OK;
}

void tf_fetcher_free(tf_fetcher **self) {
  if (*self == NULL) return;
  for (size_t i = 0; i < (*self)->dir_count; i++) {
    free((*self)->dirs[i].typed);
    free((*self)->dirs[i].resolved);
  }
  if ((*self)->config.allow_http) curl_global_cleanup();
  free(*self);
  *self = NULL;
}

/* ---- files ---- */

static tf_code fail_errno(tf_error *error, const char *path, int reason) {
  switch (reason) {
  case ENOENT:
  case ENOTDIR:
  case ELOOP:
  case ENAMETOOLONG:
    return tf_fail(error, TF_ERR_IMAGE_MISSING, "%.300s: %s", path, strerror(reason));
  case EACCES:
  case EPERM:
    return tf_fail(error, TF_ERR_FETCH_FAILED, "%.300s: %s", path, strerror(reason));
  default:
    return tf_fail(error, TF_ERR_IO, "%.300s: %s", path, strerror(reason));
  }
}

static bool path_allowed(const tf_fetcher *self, const char *path, bool resolved_only) {
  for (size_t i = 0; i < self->dir_count; i++) {
    if (tf_path_is_beneath(path, self->dirs[i].resolved)) return true;
    if (!resolved_only && tf_path_is_beneath(path, self->dirs[i].typed)) return true;
  }
  return false;
}

/* Where the descriptor really is, symbolic links followed, must be inside an allowed folder. */
static tf_code judge_descriptor(const tf_fetcher *self, int fd, const char *path, tf_error *error) {
  char link[64], real[PATH_MAX];
  struct stat info;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, real, sizeof real - 1);
  if (length < 0) return fail_errno(error, path, EIO);
  real[length] = '\0';
  if (!path_allowed(self, real, true)) {
    return tf_fail(error, TF_ERR_URI_FORBIDDEN, "%.300s: a symbolic link leads out of the allowed folders", path);
  }
  if (fstat(fd, &info) != 0) return fail_errno(error, path, errno);
  if (!S_ISREG(info.st_mode)) return tf_fail(error, TF_ERR_IMAGE_UNSUPPORTED, "%.300s: not a regular file", path);
  if (info.st_size == 0) return tf_fail(error, TF_ERR_IMAGE_EMPTY, "%.300s: the file is empty", path);
  if ((uint64_t)info.st_size > self->config.bytes_max) {
    return tf_fail(error, TF_ERR_IMAGE_TOO_LARGE, "%.300s: %lld bytes; at most %zu are accepted", path,
                   (long long)info.st_size, self->config.bytes_max);
  }
  return TF_OK;
}

/* Reads to the end, at most bytes_max: the file may grow or shrink meanwhile. */
static tf_code read_all(int fd, const char *path, size_t bytes_max, uint8_t **data, size_t *size, tf_error *error) {
  struct stat info;
  if (fstat(fd, &info) != 0) return fail_errno(error, path, errno);
  size_t expected = info.st_size > 0 && (uint64_t)info.st_size <= bytes_max ? (size_t)info.st_size : bytes_max;
  size_t used = 0;
  uint8_t *bytes = malloc(expected);
  if (bytes == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "%.300s: no memory for %zu bytes", path, expected);
  while (used < expected) {
    ssize_t got = read(fd, bytes + used, expected - used);
    if (got == 0) break;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      int reason = errno;
      free(bytes);
      return fail_errno(error, path, reason);
    }
    used += (size_t)got;
  }
  if (used == 0) {
    free(bytes);
    return tf_fail(error, TF_ERR_IMAGE_EMPTY, "%.300s: the file is empty", path);
  }
  *data = bytes;
  *size = used;
  return TF_OK;
}

static tf_code fetch_file(const tf_fetcher *self, const char *path, uint8_t **data, size_t *size, tf_error *error) {
  if (self->dir_count == 0) {
    return tf_fail(error, TF_ERR_URI_FORBIDDEN, "%.300s: file URIs are not allowed here (--allow-dir)", path);
  }
  if (!path_allowed(self, path, false)) {
    return tf_fail(error, TF_ERR_URI_FORBIDDEN, "%.300s: outside the allowed folders (--allow-dir)", path);
  }
  /* O_PATH opens nothing: no FIFO waits, no device wakes, whatever the name turns out to be. */
  int place = open(path, O_PATH | O_CLOEXEC);
  if (place < 0) return fail_errno(error, path, errno);
  tf_code code = judge_descriptor(self, place, path, error);
  int fd = -1;
  if (code == TF_OK) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", place); /* the very file that was judged */
    fd = open(link, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) code = fail_errno(error, path, errno);
  }
  if (code == TF_OK) code = read_all(fd, path, self->config.bytes_max, data, size, error);
  if (fd >= 0) close(fd);
  close(place);
  return code;
}

/* ---- http ---- */

typedef struct transfer {
  const tf_fetcher *fetcher;
  const atomic_bool *cancelled;
  uint8_t *bytes;
  size_t used, capacity;
  bool too_large, out_of_memory, address_refused;
} transfer;

static size_t on_body(char *data, size_t unit, size_t count, void *context) {
  transfer *self = context;
  size_t added = unit * count; /* libcurl hands over at most 16 KiB */
  size_t bytes_max = self->fetcher->config.bytes_max;
  if (added > bytes_max - self->used) {
    self->too_large = true;
    return 0;
  }
  if (added > self->capacity - self->used) {
    size_t wanted = self->capacity < 65536 ? 65536 : self->capacity;
    while (wanted - self->used < added) wanted = wanted > bytes_max / 2 ? bytes_max : wanted * 2;
    uint8_t *grown = realloc(self->bytes, wanted);
    if (grown == NULL) {
      self->out_of_memory = true;
      return 0;
    }
    self->bytes = grown;
    self->capacity = wanted;
  }
  memcpy(self->bytes + self->used, data, added);
  self->used += added;
  return added;
}

static int on_progress(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d) {
  (void)a, (void)b, (void)c, (void)d;
  const transfer *self = context;
  return self->cancelled != NULL && atomic_load(self->cancelled) ? 1 : 0;
}

/* After DNS and for every redirect: the address that is about to be used is the one that is judged. */
static curl_socket_t on_open_socket(void *context, curlsocktype purpose, struct curl_sockaddr *address) {
  transfer *self = context;
  if (purpose != CURLSOCKTYPE_IPCXN ||
      (!self->fetcher->config.allow_private_addresses && !tf_address_is_public(&address->addr))) {
    self->address_refused = true;
    return CURL_SOCKET_BAD;
  }
  return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static tf_code judge_transfer(const transfer *self, CURLcode result, long status, const char *uri, tf_error *error) {
  if (self->too_large || result == CURLE_FILESIZE_EXCEEDED) {
    return tf_fail(error, TF_ERR_IMAGE_TOO_LARGE, "%.300s: more than the accepted %zu bytes", uri,
                   self->fetcher->config.bytes_max);
  }
  if (self->out_of_memory || result == CURLE_OUT_OF_MEMORY) {
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "%.300s: no memory for the image", uri);
  }
  if (self->address_refused && result == CURLE_COULDNT_CONNECT) {
    return tf_fail(error, TF_ERR_URI_FORBIDDEN, "%.300s: the host has a private or reserved address", uri);
  }
  switch (result) {
  case CURLE_OK:
    break;
  case CURLE_ABORTED_BY_CALLBACK:
    return tf_fail(error, TF_ERR_CANCELLED, "%.300s: cancelled", uri);
  case CURLE_OPERATION_TIMEDOUT:
    return tf_fail(error, TF_ERR_TIMEOUT, "%.300s: no answer in time", uri);
  case CURLE_URL_MALFORMAT:
    return tf_fail(error, TF_ERR_URI_INVALID, "%.300s: malformed URI", uri);
  case CURLE_UNSUPPORTED_PROTOCOL:
    return tf_fail(error, TF_ERR_URI_FORBIDDEN, "%.300s: leads to a scheme other than http and https", uri);
  case CURLE_TOO_MANY_REDIRECTS:
    return tf_fail(error, TF_ERR_FETCH_FAILED, "%.300s: more than %d redirects", uri, TF_FETCH_REDIRECTS_MAX);
  case CURLE_PEER_FAILED_VERIFICATION:
  case CURLE_SSL_CACERT_BADFILE:
  case CURLE_SSL_ISSUER_ERROR:
  case CURLE_WEIRD_SERVER_REPLY:
    return tf_fail(error, TF_ERR_FETCH_FAILED, "%.300s: %s", uri, curl_easy_strerror(result));
  default:
    return tf_fail(error, TF_ERR_FETCH_UNAVAILABLE, "%.300s: %s", uri, curl_easy_strerror(result));
  }
  if (status == 408 || status == 425 || status == 429 || status >= 500) {
    return tf_fail(error, TF_ERR_FETCH_UNAVAILABLE, "%.300s: HTTP status %ld", uri, status);
  }
  if (status < 200 || status >= 300) return tf_fail(error, TF_ERR_FETCH_FAILED, "%.300s: HTTP status %ld", uri, status);
  if (self->used == 0) return tf_fail(error, TF_ERR_IMAGE_EMPTY, "%.300s: an empty body", uri);
  return TF_OK;
}

static void set_options(CURL *curl, transfer *self, const char *uri) {
  const tf_fetch_config *config = &self->fetcher->config;
  int64_t connect_ms =
      config->timeout_ms < TF_FETCH_CONNECT_TIMEOUT_MS ? config->timeout_ms : TF_FETCH_CONNECT_TIMEOUT_MS;
  curl_easy_setopt(curl, CURLOPT_URL, uri);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_PROXY, ""); /* none, not even from the environment */
  curl_easy_setopt(curl, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(curl, CURLOPT_MAXREDIRS, (long)TF_FETCH_REDIRECTS_MAX);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)connect_ms);
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)config->timeout_ms);
  curl_easy_setopt(curl, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)config->bytes_max);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "tokenflex/" TF_VERSION);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, self);
  curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
  curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, self);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, self);
}

static tf_code fetch_http(const tf_fetcher *self, const char *uri, const atomic_bool *cancelled, uint8_t **data,
                          size_t *size, tf_error *error) {
  if (!self->config.allow_http) {
    return tf_fail(error, TF_ERR_URI_FORBIDDEN, "%.300s: http is not allowed here (--allow-http)", uri);
  }
  CURL *curl = curl_easy_init();
  if (curl == NULL) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "%.300s: no memory for a transfer", uri);
  transfer state = {.fetcher = self, .cancelled = cancelled};
  long status = 0;
  set_options(curl, &state, uri);
  CURLcode result = curl_easy_perform(curl);
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  curl_easy_cleanup(curl);
  tf_code code = judge_transfer(&state, result, status, uri, error);
  if (code != TF_OK) {
    free(state.bytes);
    return code;
  }
  *data = state.bytes;
  *size = state.used;
  return TF_OK;
}

tf_code tf_fetch(const tf_fetcher *self, const char *uri, const atomic_bool *cancelled, uint8_t **data, size_t *size,
                 tf_error *error) {
  *data = NULL;
  *size = 0;
  tf_uri parsed;
  tf_error reason;
  tf_code code = tf_uri_parse(uri, &parsed, &reason);
  if (code != TF_OK) return tf_fail(error, code, "%.200s: %.280s", uri, reason.text);
  if (parsed.kind == TF_URI_FILE) return fetch_file(self, parsed.path, data, size, error);
  return fetch_http(self, uri, cancelled, data, size, error);
}

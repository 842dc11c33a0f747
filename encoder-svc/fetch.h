/* Gets an image's bytes from where its URI says. In: a URI, what is allowed, limits of size and time. Out: the bytes,
 * or why not. Files only inside the allowed folders, http(s) only where allowed and never to private addresses unless
 * allowed. Blocking: called from decode and fetch threads. One fetcher serves any number of threads. */
#ifndef TF_ENCODER_FETCH_H
#define TF_ENCODER_FETCH_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/socket.h>

#include "common/options.h"
#include "encoder-svc/uri.h"

typedef struct tf_fetcher tf_fetcher;

enum { TF_FETCH_REDIRECTS_MAX = 3, TF_FETCH_CONNECT_TIMEOUT_MS = 5000 };

typedef struct tf_fetch_config {
  tf_string_list allow_dirs; /* none: file URIs are refused */
  bool allow_http, allow_private_addresses;
  int64_t timeout_ms; /* of one http fetch, redirects included */
  size_t bytes_max;
} tf_fetch_config;

/* Resolves the allowed folders. Errors: INVALID_ARGUMENT names a folder that is not there. The caller frees. */
tf_code tf_fetcher_new(const tf_fetch_config *config, tf_fetcher **out, tf_error *error);
void tf_fetcher_free(tf_fetcher **self);

/* *data (malloc'ed, the caller frees) and *size: the whole file or body, 1 to bytes_max bytes.
 * cancelled (may be NULL) is looked at during http transfers: CANCELLED.
 * Files: URI_FORBIDDEN (outside the folders, also by a symbolic link; none allowed), IMAGE_MISSING (names the path),
 * IMAGE_UNSUPPORTED (not a regular file), IMAGE_EMPTY, IMAGE_TOO_LARGE, FETCH_FAILED (no permission), IO.
 * http: URI_FORBIDDEN (not allowed, private address), FETCH_FAILED (4xx, too many redirects, bad certificate),
 * FETCH_UNAVAILABLE (5xx, 429, no connection), TIMEOUT, IMAGE_TOO_LARGE, IMAGE_EMPTY. */
tf_code tf_fetch(const tf_fetcher *self, const char *uri, const atomic_bool *cancelled, uint8_t **data, size_t *size,
                 tf_error *error);

/* Pure: an address of the public internet. False for private, loopback, link-local, shared (CGNAT), multicast,
 * documentation, benchmark and reserved ranges, for their forms inside IPv6 (mapped, 6to4, NAT64, Teredo), and for
 * every family but IPv4 and IPv6. */
bool tf_address_is_public(const struct sockaddr *address);

#endif

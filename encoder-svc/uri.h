/* Where an image is said to be: file:, http: and https: URIs taken apart. In: the text of a job's `uri`. Out: kind and
 * path. Pure: no I/O, no allocation. What may be opened is decided in fetch.c. See RFC 3986 (syntax), RFC 8089 (file:).
 */
#ifndef TF_ENCODER_URI_H
#define TF_ENCODER_URI_H

#include "common/error.h"

enum { TF_FILE_PATH_BYTES_MAX = 4096 };

typedef enum tf_uri_kind { TF_URI_FILE, TF_URI_HTTP, TF_URI_HTTPS } tf_uri_kind;

typedef struct tf_uri {
  tf_uri_kind kind;
  char path[TF_FILE_PATH_BYTES_MAX]; /* FILE: absolute, percent-decoded, without "." and ".." and double slashes */
} tf_uri;

/* text: NUL-terminated. file:///path, file://localhost/path, file:/path, http://..., https://....
 * Errors: URI_INVALID (syntax, no absolute path, a path that is too long), URI_FORBIDDEN (another scheme or host,
 * a user name in an http URI). */
tf_code tf_uri_parse(const char *text, tf_uri *out, tf_error *error);

/* True where path is dir itself or lies below it; both absolute and without "." and "..". */
bool tf_path_is_beneath(const char *path, const char *dir);

#endif

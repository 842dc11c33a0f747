/* Takes file:, http: and https: URIs apart. In: text. Out: kind and, for files, a clean absolute path.
 * Strict on purpose: what is ambiguous is refused, so that the check and the opening can't read it differently.
 * No I/O. */
#include "encoder-svc/uri.h"

#include <string.h>
#include <strings.h>

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/* Percent-decodes into out. A raw '?' or '#' would start a query or fragment, which files don't have. */
static tf_code decode_path(const char *text, char *out, size_t out_bytes, tf_error *error) {
  size_t used = 0;
  for (const char *at = text; *at != '\0'; at++) {
    char c = *at;
    if (c == '?' || c == '#') {
      return tf_fail(error, TF_ERR_URI_INVALID, "a file URI has no query or fragment: write '%c' as %%%02X", c, c);
    }
    if (c == '%') {
      int high = hex_digit(at[1]), low = high < 0 ? -1 : hex_digit(at[2]);
      if (low < 0) return tf_fail(error, TF_ERR_URI_INVALID, "'%%' without two hexadecimal digits in a file URI");
      c = (char)(high * 16 + low);
      at += 2;
      if (c == '\0') return tf_fail(error, TF_ERR_URI_INVALID, "a NUL byte (%%00) in a file URI");
    }
    if (used >= out_bytes - 1) {
      return tf_fail(error, TF_ERR_URI_INVALID, "the path of a file URI is longer than %zu bytes", out_bytes - 1);
    }
    out[used++] = c;
  }
  out[used] = '\0';
  return TF_OK;
}

/* Removes ".", ".." and empty segments in place; ".." at the root stays at the root (RFC 3986, 5.2.4). */
static void remove_dot_segments(char *path) {
  char *out = path;
  const char *at = path;
  while (*at != '\0') {
    while (*at == '/') at++;
    size_t length = strcspn(at, "/");
    if (length == 0) break;
    if (length == 2 && at[0] == '.' && at[1] == '.') {
      while (out > path && *--out != '/') {
      }
    } else if (!(length == 1 && at[0] == '.')) {
      *out++ = '/';
      memmove(out, at, length);
      out += length;
    }
    at += length;
  }
  if (out == path) *out++ = '/';
  *out = '\0';
}

static tf_code parse_file(const char *rest, tf_uri *out, tf_error *error) {
  if (rest[0] == '/' && rest[1] == '/') {
    rest += 2;
    size_t host = strcspn(rest, "/?#");
    if (host != 0 && !(host == 9 && strncasecmp(rest, "localhost", 9) == 0)) {
      return tf_fail(error, TF_ERR_URI_FORBIDDEN, "a file URI may name no host but localhost");
    }
    rest += host;
  }
  if (rest[0] != '/') return tf_fail(error, TF_ERR_URI_INVALID, "a file URI needs an absolute path: file:///path");
  out->kind = TF_URI_FILE;
  tf_code code = decode_path(rest, out->path, sizeof out->path, error);
  if (code == TF_OK) remove_dot_segments(out->path);
  return code;
}

static tf_code parse_http(const char *rest, tf_error *error) {
  if (rest[0] != '/' || rest[1] != '/')
    return tf_fail(error, TF_ERR_URI_INVALID, "an http URI needs a host: http://host/");
  rest += 2;
  size_t authority = strcspn(rest, "/?#");
  if (authority == 0 || rest[0] == ':') return tf_fail(error, TF_ERR_URI_INVALID, "an http URI without a host");
  if (memchr(rest, '@', authority) != NULL) {
    return tf_fail(error, TF_ERR_URI_FORBIDDEN, "user names and passwords in a URI are not accepted");
  }
  return TF_OK;
}

tf_code tf_uri_parse(const char *text, tf_uri *out, tf_error *error) {
  out->path[0] = '\0';
  for (const unsigned char *at = (const unsigned char *)text; *at != '\0'; at++) {
    if (*at <= 0x20 || *at == 0x7F || *at == '\\') {
      return tf_fail(error, TF_ERR_URI_INVALID,
                     "a URI holds no spaces, control characters or backslashes (write %%%02X)", *at);
    }
  }
  if (strncasecmp(text, "file:", 5) == 0) return parse_file(text + 5, out, error);
  if (strncasecmp(text, "http:", 5) == 0) {
    out->kind = TF_URI_HTTP;
    return parse_http(text + 5, error);
  }
  if (strncasecmp(text, "https:", 6) == 0) {
    out->kind = TF_URI_HTTPS;
    return parse_http(text + 6, error);
  }
  size_t scheme = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.");
  if (scheme == 0 || text[scheme] != ':') {
    return tf_fail(error, TF_ERR_URI_INVALID, "not a URI: file:///path, http:// or https:// is expected");
  }
  return tf_fail(error, TF_ERR_URI_FORBIDDEN, "the scheme %.*s: is not supported; file, http and https are",
                 scheme > 40 ? 40 : (int)scheme, text);
}

bool tf_path_is_beneath(const char *path, const char *dir) {
  size_t length = strlen(dir);
  while (length > 0 && dir[length - 1] == '/') length--; /* "/" itself becomes "": everything is beneath it */
  return strncmp(path, dir, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* URIs of images: what is accepted, how paths are decoded and cleaned, what is refused.
 * In: texts. Out: pass or fail. */
#include <criterion/criterion.h>
#include <string.h>

#include "encoder-svc/uri.h"

typedef struct path_case {
  const char *uri, *path;
} path_case;

Test(uri, file_paths_are_decoded_and_cleaned) {
  static const path_case cases[] = {
      {"file:///a/b.jpg", "/a/b.jpg"},
      {"file://localhost/a/b.jpg", "/a/b.jpg"},
      {"file://LOCALHOST/a", "/a"},
      {"FILE:///a", "/a"},
      {"file:/a/b", "/a/b"},
      {"file:///a%20b/%C3%A9.jpg", "/a b/\xC3\xA9.jpg"},
      {"file:///a%2fb", "/a/b"},
      {"file:///a/./b//c/", "/a/b/c"},
      {"file:///a/b/../c", "/a/c"},
      {"file:///a/%2e%2e/%2E%2e/c", "/c"},
      {"file:///../../etc/passwd", "/etc/passwd"},
      {"file:///..", "/"},
      {"file:///a/...", "/a/..."},
      {"file:///100%25.png", "/100%.png"},
      {"file:////a", "/a"},
      {"file:///a%3Fb%23c", "/a?b#c"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tf_uri uri;
    tf_error error = {.text = ""};
    cr_assert_eq(tf_uri_parse(cases[i].uri, &uri, &error), TF_OK, "%s: %s", cases[i].uri, error.text);
    cr_assert_eq(uri.kind, TF_URI_FILE);
    cr_assert_str_eq(uri.path, cases[i].path, "%s gave %s", cases[i].uri, uri.path);
  }
}

typedef struct bad_case {
  const char *uri;
  tf_code code;
} bad_case;

Test(uri, what_is_refused) {
  static const bad_case cases[] = {
      {"", TF_ERR_URI_INVALID},
      {"photo.jpg", TF_ERR_URI_INVALID},
      {"/photo.jpg", TF_ERR_URI_INVALID},
      {"file:photo.jpg", TF_ERR_URI_INVALID},
      {"file://", TF_ERR_URI_INVALID},
      {"file://localhost", TF_ERR_URI_INVALID},
      {"file://server/share/a.jpg", TF_ERR_URI_FORBIDDEN},
      {"file:///a%", TF_ERR_URI_INVALID},
      {"file:///a%2", TF_ERR_URI_INVALID},
      {"file:///a%zz", TF_ERR_URI_INVALID},
      {"file:///a%00.jpg", TF_ERR_URI_INVALID},
      {"file:///a b.jpg", TF_ERR_URI_INVALID},
      {"file:///a\nb", TF_ERR_URI_INVALID},
      {"file:///a?b", TF_ERR_URI_INVALID},
      {"file:///a#b", TF_ERR_URI_INVALID},
      {"file:///a\\b", TF_ERR_URI_INVALID},
      {"ftp://host/a", TF_ERR_URI_FORBIDDEN},
      {"gopher://host/", TF_ERR_URI_FORBIDDEN},
      {"http:", TF_ERR_URI_INVALID},
      {"http:///a", TF_ERR_URI_INVALID},
      {"http://:80/a", TF_ERR_URI_INVALID},
      {"http://user:secret@host/a", TF_ERR_URI_FORBIDDEN},
      {"http://public.example@127.0.0.1/", TF_ERR_URI_FORBIDDEN},
      {"https://host\\@127.0.0.1/", TF_ERR_URI_INVALID},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tf_uri uri;
    tf_error error = {.text = ""};
    cr_assert_eq(tf_uri_parse(cases[i].uri, &uri, &error), cases[i].code, "%s gave %s", cases[i].uri,
                 tf_code_name(error.code));
    cr_assert_neq(error.text[0], '\0', "%s has no explanation", cases[i].uri);
  }
}

Test(uri, http_is_told_apart) {
  tf_uri uri;
  cr_assert_eq(tf_uri_parse("http://example.org/a.jpg?x=1@2", &uri, NULL), TF_OK);
  cr_assert_eq(uri.kind, TF_URI_HTTP);
  cr_assert_eq(tf_uri_parse("HTTPS://example.org", &uri, NULL), TF_OK);
  cr_assert_eq(uri.kind, TF_URI_HTTPS);
}

Test(uri, a_path_that_is_too_long_is_refused) {
  static char text[TF_FILE_PATH_BYTES_MAX + 16];
  memset(text, 'a', sizeof text - 1);
  memcpy(text, "file:///", 8);
  tf_uri uri;
  tf_error error;
  cr_assert_eq(tf_uri_parse(text, &uri, &error), TF_ERR_URI_INVALID);
  text[7 + TF_FILE_PATH_BYTES_MAX - 1] = '\0'; /* one byte shorter than the buffer: fits */
  cr_assert_eq(tf_uri_parse(text, &uri, &error), TF_OK);
  cr_assert_eq(strlen(uri.path), (size_t)TF_FILE_PATH_BYTES_MAX - 1);
}

Test(uri, beneath_goes_by_whole_segments) {
  cr_assert(tf_path_is_beneath("/data/a.jpg", "/data"));
  cr_assert(tf_path_is_beneath("/data/a.jpg", "/data/"));
  cr_assert(tf_path_is_beneath("/data", "/data"));
  cr_assert(tf_path_is_beneath("/etc/passwd", "/"));
  cr_assert_not(tf_path_is_beneath("/database/a.jpg", "/data"));
  cr_assert_not(tf_path_is_beneath("/dat", "/data"));
  cr_assert_not(tf_path_is_beneath("/", "/data"));
}

/* Who may read the status page, and who may act through it. Pure but for reading the token's file.
 * In: a file; where a request comes from, its Host and Authorization headers. Out: a verdict.
 * Reading is open to this machine alone, under a name of this machine (a page elsewhere whose name was made to point
 * here, DNS rebinding, comes under its own); whoever has the token may read from anywhere, and act. */
#ifndef TF_ROUTER_PAGE_ACCESS_H
#define TF_ROUTER_PAGE_ACCESS_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

enum { TF_PAGE_TOKEN_BYTES_MIN = 16, TF_PAGE_TOKEN_BYTES_MAX = 256 };

typedef struct tf_page_token {
  char text[TF_PAGE_TOKEN_BYTES_MAX + 1]; /* zeros behind the end */
  size_t size;                            /* 0: there is none, nobody may act */
} tf_page_token;

typedef enum tf_page_verdict {
  TF_PAGE_ALLOWED,
  TF_PAGE_PEER,     /* not of this machine, and no token */
  TF_PAGE_HOST,     /* of this machine, under a foreign name */
  TF_PAGE_NO_TOKEN, /* nobody may act: there is no token */
  TF_PAGE_TOKEN     /* not this token */
} tf_page_verdict;

/* The first line of a file that not everyone may read: TF_PAGE_TOKEN_BYTES_MIN to _MAX of the printable characters of
 * ASCII without spaces. path NULL: no token. Errors: for the user, with the file's name. */
tf_code tf_page_token_read(const char *path, tf_page_token *out, tf_error *error);
/* authorization: "Bearer TOKEN"; NULL: none. Takes the same time whatever is wrong with it. */
bool tf_page_token_fits(const tf_page_token *self, const char *authorization);
/* "localhost", "127.0.0.1", "[::1]", each with or without a port. */
bool tf_page_host_is_local(const char *host);
tf_page_verdict tf_page_may_read(const tf_page_token *token, bool loopback, const char *host,
                                 const char *authorization);
tf_page_verdict tf_page_may_act(const tf_page_token *token, const char *authorization);
/* What the one who was refused is told; a constant. "" for ALLOWED. */
const char *tf_page_verdict_text(tf_page_verdict verdict);

#endif

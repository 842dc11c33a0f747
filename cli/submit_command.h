/* The pure part of `tokenflex submit`: what an argument or a line of a list names.
 * In: text. Out: an id and an input, or an error. */
#ifndef TF_CLI_SUBMIT_COMMAND_H
#define TF_CLI_SUBMIT_COMMAND_H

#include <stdbool.h>

#include "common/error.h"

enum { TF_SUBMIT_LINE_BYTES_MAX = 16384, TF_SUBMIT_ID_BYTES_MAX = 256 };

/* True for what goes as a URI: file:, http: and https:, each with //. */
bool tf_submit_is_uri(const char *input);
/* 1 to 256 bytes of UTF-8 without control characters. */
bool tf_submit_id_is_valid(const char *id);
/* Takes a line of a list apart, in place: INPUT, or ID, a tab, INPUT. *id is NULL where there is none; *input is NULL
 * for an empty line. INVALID_ARGUMENT: the id is malformed, or the input empty. */
tf_code tf_submit_parse_line(char *line, const char **id, const char **input, tf_error *error);

#endif

/* Text for a terminal. In: bytes from anywhere. Out: UTF-8 without control characters, cut to columns.
 * A character counts as one column: what is wider (CJK) only makes a table less even. */
#ifndef TF_CLI_TEXT_H
#define TF_CLI_TEXT_H

#include "common/buffer.h"

/* Appends text; bytes that are no UTF-8 become ?. */
void tf_text_utf8(const char *text, tf_buffer *out);
/* The same, and control characters become ? too. */
void tf_text_clean_append(const char *text, tf_buffer *out);
/* Exactly columns wide: padded, or cut with a ~ at its end. */
void tf_text_cell(const char *text, size_t columns, tf_buffer *out);
/* Prints a line on standard output, on a terminal cut to its width. */
void tf_text_print_line(const tf_buffer *line);

#endif

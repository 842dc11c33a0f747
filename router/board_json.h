/* The status page's state as JSON. In: a copy of the board, what this router is, what the asker may do. Out: text.
 * Pure: no I/O, no clock. docs/OPERATIONS.md says what is of all routers and what of this one. */
#ifndef TF_ROUTER_BOARD_JSON_H
#define TF_ROUTER_BOARD_JSON_H

#include "router/board.h"

typedef struct tf_board_asker {
  const char *queue, *instance;
  uint64_t since; /* samples up to this number are known to the asker */
  bool may_ever;  /* the router has a token: acting is possible */
  bool may_act;   /* and this asker has brought it */
} tf_board_asker;

/* The caller frees; NULL: out of memory. */
char *tf_board_json(const tf_board_view *view, const tf_board_asker *asker);

#endif

/* The status page over HTTP, on the router's health port. In: requests. Out: the page, the board as JSON, 202 for what
 * was asked to be done, or why not.
 * GET / (HTML), GET /state.json?since=N, POST /letters/STREAM-ID/retry|drop (with the token). */
#ifndef TF_ROUTER_PAGE_H
#define TF_ROUTER_PAGE_H

#include "common/health.h"
#include "router/board_feed.h"
#include "router/page_access.h"

typedef struct tf_page tf_page;

typedef struct tf_page_parts { /* all borrowed */
  tf_health *health;
  tf_metrics *metrics;
  tf_board *board;
  tf_board_feed *feed;
  const tf_page_token *token;
  const char *queue, *instance;
} tf_page_parts;

/* Serves from now on. Errors: OUT_OF_MEMORY. */
tf_code tf_page_new(const tf_page_parts *parts, tf_page **out);
/* No request is under way once this returns. */
void tf_page_free(tf_page **self);

#endif

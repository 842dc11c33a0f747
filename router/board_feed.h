/* Keeps the status page's board up to date, and does what is asked for through the page.
 * In: Redis (the load that routers share; workers and dead letters while somebody watches), actions from the endpoint's
 * thread. Out: the board; letters put back on the queue or dropped by the script that `tokenflex dead` calls. */
#ifndef TF_ROUTER_BOARD_FEED_H
#define TF_ROUTER_BOARD_FEED_H

#include "common/reactor.h"
#include "router/board.h"
#include "router/scripts.h"
#include "router/stats.h"

typedef struct tf_board_feed tf_board_feed;

enum {
  TF_BOARD_FEED_MS = 1000,          /* between two looks at Redis while somebody watches; else TF_HISTORY_STEP_MS */
  TF_BOARD_LETTERS_MS = 3000,       /* between two readings of letters, which come only when there are others */
  TF_BOARD_LETTERS_KEPT_MS = 60000, /* or once they are as old as this */
  TF_BOARD_LETTERS_A_CALL = 8,      /* each may keep an image, and a script holds Redis up */
  TF_BOARD_ACTIONS_WAITING_MAX = TF_BOARD_ACTIONS
};

typedef struct tf_board_feed_parts { /* all borrowed */
  tf_reactor *reactor;
  tf_scripts *scripts;
  tf_board *board;
  const tf_redis_clock *clock;
} tf_board_feed_parts;

tf_code tf_board_feed_new(const tf_board_feed_parts *parts, tf_board_feed **out);
void tf_board_feed_free(tf_board_feed **self);
/* Any thread: has a letter put back on the queue, or dropped. *request: the number under which the board will tell how
 * it ended. False: too many wait. */
bool tf_board_feed_act(tf_board_feed *self, const char *sid, bool retry, uint64_t *request);

/* Pure: a reply to HGETALL of `tf:{Q}:load`. False: nothing is known yet. */
bool tf_board_load_of(const redisReply *reply, tf_board_load *out);

#endif

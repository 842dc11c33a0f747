/* What the status page shows, between the router's thread, which writes it, and the endpoint's thread, which reads it.
 * In: readings of Redis, this router's own results, verdicts on letters. Out: copies, each whole.
 * Everything has a maximum; texts are cut, and are valid UTF-8 whatever came. */
#ifndef TF_ROUTER_BOARD_H
#define TF_ROUTER_BOARD_H

#include "common/letters.h"
#include "policy/policy.h"
#include "router/history.h"

enum {
  TF_BOARD_CAPTIONS = 50,
  TF_BOARD_LETTERS = 50,
  TF_BOARD_WORKERS_MAX = 256,
  TF_BOARD_WORKER_BYTES_MAX = 4096,
  TF_BOARD_ACTIONS = 16,
  TF_BOARD_ID_BYTES = 260,
  TF_BOARD_TEXT_BYTES = 600,
  TF_BOARD_WATCHED_MS = 10000, /* after it was last asked for, nobody watches */
  TF_BOARD_WAITS_SPAN_MS = 60000
};

/* `tf:{Q}:load`, as the routers share it; lists in the order of counts, 0 where not known. */
typedef struct tf_board_load {
  int64_t updated_ms;
  double unfinished, waiting, encode, decode, arrivals_per_s, budget, target_wait_ms, dead, results;
  uint32_t count_count;
  double counts[TF_POLICY_COUNTS_MAX], mix[TF_POLICY_COUNTS_MAX], capacity_per_s[TF_POLICY_COUNTS_MAX];
  struct {
    double workers, wanted;
    double service_ms[TF_POLICY_COUNTS_MAX];
  } encoders, llms;
} tf_board_load;

typedef struct tf_board_caption { /* committed by this router */
  int64_t done_ms;                /* Redis time */
  char id[TF_BOARD_ID_BYTES], caption[TF_BOARD_TEXT_BYTES];
  uint32_t vision_tokens;
  tf_reason reason;
  double total_ms;
} tf_board_caption;

typedef struct tf_board_caption_text { /* what of a caption is text, as it came */
  const char *id, *caption;
  uint32_t vision_tokens;
  tf_reason reason;
} tf_board_caption_text;

typedef struct tf_board_letter {
  char sid[TF_LETTER_SID_BYTES], id[TF_BOARD_ID_BYTES], code[64], message[TF_BOARD_TEXT_BYTES], attempts[16];
  bool image_dropped;
} tf_board_letter;

typedef struct tf_board_action { /* asked for through this router's page */
  uint64_t request;              /* 0: none */
  char sid[TF_LETTER_SID_BYTES], id[TF_BOARD_ID_BYTES];
  bool retry;       /* else: drop */
  char verdict[24]; /* of retry.lua; "unreachable": Redis did not answer; "": under way */
} tf_board_action;

typedef struct tf_board_view {
  int64_t now_ms; /* Redis time, as of the copy */
  bool redis;     /* in reach */
  int64_t redis_ms;
  char not_ready[96]; /* "": ready */
  bool load_known, letters_known;
  tf_board_load load;
  size_t letter_count;
  tf_board_letter letters[TF_BOARD_LETTERS]; /* newest first */
  bool workers_known;
  char *workers; /* owned: instance NUL JSON NUL ..., worker_count times */
  size_t workers_bytes, worker_count, workers_all;
  tf_board_caption captions[TF_BOARD_CAPTIONS];
  uint64_t caption_count; /* ever; the newest is at (caption_count - 1) % TF_BOARD_CAPTIONS */
  tf_board_action actions[TF_BOARD_ACTIONS];
  uint64_t action_count; /* ever, likewise */
  tf_history history;
  size_t wait_jobs; /* of the newest sample's percentiles */
} tf_board_view;

typedef struct tf_board tf_board;

tf_board *tf_board_new(void); /* NULL: out of memory */
void tf_board_free(tf_board **self);

/* -- the router's thread -- */
/* now_ms of later copies goes on from here; redis: in reach; not_ready NULL: it is ready. */
void tf_board_state(tf_board *self, int64_t redis_now_ms, bool redis, const char *not_ready);
void tf_board_load_read(tf_board *self, const tf_board_load *load);
/* wait_ms: from the client's XADD to an encoder. */
void tf_board_caption_done(tf_board *self, const tf_board_caption_text *text, int64_t done_ms, double total_ms,
                           double wait_ms);
/* What is this router's own in it (captions, waits) is filled in here. */
void tf_board_sample(tf_board *self, const tf_sample *sample);
/* Takes *workers (allocated). all: how many there are, shown or not. NULL: not known any more. */
void tf_board_workers(tf_board *self, char **workers, size_t bytes, size_t count, size_t all);
/* Letters are gathered one by one, and shown once all are there. */
void tf_board_letters_begin(tf_board *self);
void tf_board_letters_add(tf_board *self, const tf_letter *letter);
void tf_board_letters_end(tf_board *self);
void tf_board_letters_forget(tf_board *self);
/* The verdict on a letter; one that is gone from Redis goes here, too. */
void tf_board_settled(tf_board *self, uint64_t request, const char *verdict);
/* Whether somebody has asked for a copy lately. */
bool tf_board_is_watched(const tf_board *self);

/* -- any thread -- */
/* Notes an action that is to be done; returns its number. */
uint64_t tf_board_action_asked(tf_board *self, const char *sid, bool retry);
/* A copy, freed by tf_board_view_free; NULL: out of memory. */
tf_board_view *tf_board_look(tf_board *self);
void tf_board_view_free(tf_board_view **self);

/* UTF-8 of text, malformed bytes replaced, cut to out_bytes between characters (then with an ellipsis). */
void tf_board_text(char *out, size_t out_bytes, const char *text);

#endif

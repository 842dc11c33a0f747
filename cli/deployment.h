/* A queue on one or several Redis servers, as the commands of an operator reach it.
 * In: --redis (a list) and --queue. Out: links, and the server that an id belongs to.
 * Ids are spread by rendezvous hashing over the servers' addresses: an id always goes to the same server, whatever the
 * order of the list, and a server that is added takes its share from the others and moves nothing else. */
#ifndef TF_CLI_DEPLOYMENT_H
#define TF_CLI_DEPLOYMENT_H

#include "cli/link.h"
#include "common/options.h"

enum { TF_DEPLOYMENT_PLACE_BYTES = 400 };

/* Part of a command's configuration, and its rows in the option table. */
typedef struct tf_deployment_options {
  tf_string_list redis;
  const char *queue;
} tf_deployment_options;

#define TF_DEPLOYMENT_AT(type, member, field) (offsetof(type, member) + offsetof(tf_deployment_options, field))
#define TF_DEPLOYMENT_ROWS(type, member)                                                                               \
  {"redis",                                                                                                            \
   'r',                                                                                                                \
   TF_OPTION_LIST,                                                                                                     \
   TF_DEPLOYMENT_AT(type, member, redis),                                                                              \
   0,                                                                                                                  \
   0,                                                                                                                  \
   "redis://127.0.0.1:6379",                                                                                           \
   "URLS",                                                                                                             \
   "Redis of the queue; several: ids are spread over them"},                                                           \
  {                                                                                                                    \
    "queue", 'q', TF_OPTION_STRING, TF_DEPLOYMENT_AT(type, member, queue), 0, 0, "default", "NAME", "Queue"            \
  }

typedef struct tf_deployment {
  size_t count;
  tf_link *links;                            /* count; NULL before tf_deployment_init */
  char (*places)[TF_DEPLOYMENT_PLACE_BYTES]; /* of each: fit to be shown */
  const char *queue;                         /* borrowed */
} tf_deployment;

/* Checks URLs and the queue's name; connects nothing. reply_name: of a reply stream, or NULL. Errors name the option.
 */
tf_code tf_deployment_init(tf_deployment *self, const tf_deployment_options *options, const char *reply_name,
                           tf_error *error);
/* Connects all that are not connected. TF_ERR_REDIS names the first that fails. */
tf_code tf_deployment_connect(tf_deployment *self, tf_error *error);
void tf_deployment_free(tf_deployment *self);
/* "tf:{Q}:suffix". */
void tf_deployment_key(const tf_deployment *self, const char *suffix, char out[TF_LINK_KEY_BYTES]);
/* The link of an id. */
tf_link *tf_deployment_link(const tf_deployment *self, const char *id);

/* Pure: which of count places an id belongs to. */
size_t tf_spread(const char *id, const char (*places)[TF_DEPLOYMENT_PLACE_BYTES], size_t count);

#endif

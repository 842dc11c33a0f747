/* Tests of common/mailbox.c.
 * In: pointers from one or several threads. Out: the same, each once and in order.
 * The descriptor is readable exactly while something is inside. */
#include <criterion/criterion.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/mailbox.h"

static bool is_readable(tf_mailbox *mailbox) {
  struct pollfd item = {.fd = tf_mailbox_fd(mailbox), .events = POLLIN};
  return poll(&item, 1, 0) == 1;
}

Test(mailbox, first_in_first_out_around_the_ring) {
  int items[7];
  tf_mailbox *mailbox = tf_mailbox_new(3);
  cr_assert_null(tf_mailbox_try_pop(mailbox));
  for (int i = 0; i < 7; i++) {
    cr_assert(tf_mailbox_push(mailbox, &items[i]));
    if (i == 0) cr_assert(tf_mailbox_push(mailbox, &items[6]));
    cr_assert_eq(tf_mailbox_try_pop(mailbox), i == 0 ? &items[0] : i == 1 ? &items[6] : &items[i - 1]);
  }
  cr_assert_eq(tf_mailbox_count(mailbox), 1);
  cr_assert_eq(tf_mailbox_try_pop(mailbox), &items[6]);
  tf_mailbox_free(&mailbox, NULL);
  cr_assert_null(mailbox);
}

Test(mailbox, full_and_closed_refuse) {
  int item;
  tf_mailbox *mailbox = tf_mailbox_new(2);
  cr_assert(tf_mailbox_push(mailbox, &item));
  cr_assert(tf_mailbox_push(mailbox, &item));
  cr_assert_not(tf_mailbox_push(mailbox, &item));
  cr_assert_not_null(tf_mailbox_try_pop(mailbox));
  cr_assert_not(tf_mailbox_is_closed(mailbox));
  tf_mailbox_close(mailbox);
  cr_assert(tf_mailbox_is_closed(mailbox));
  cr_assert_not(tf_mailbox_push(mailbox, &item));
  /* What was inside still comes out, then NULL at once. */
  cr_assert_eq(tf_mailbox_pop(mailbox, 10000), &item);
  int64_t start_ms = tf_now_ms();
  cr_assert_null(tf_mailbox_pop(mailbox, 10000));
  cr_assert_lt(tf_now_ms() - start_ms, 5000);
  tf_mailbox_free(&mailbox, NULL);
}

Test(mailbox, descriptor_follows_the_content) {
  int item;
  tf_mailbox *mailbox = tf_mailbox_new(4);
  cr_assert_not(is_readable(mailbox));
  tf_mailbox_push(mailbox, &item);
  tf_mailbox_push(mailbox, &item);
  cr_assert(is_readable(mailbox));
  tf_mailbox_try_pop(mailbox);
  cr_assert(is_readable(mailbox));
  tf_mailbox_pop(mailbox, 0);
  cr_assert_not(is_readable(mailbox));
  tf_mailbox_push(mailbox, &item);
  cr_assert(is_readable(mailbox));
  tf_mailbox_free(&mailbox, NULL);
}

Test(mailbox, pop_times_out) {
  tf_mailbox *mailbox = tf_mailbox_new(1);
  int64_t start_ms = tf_now_ms();
  cr_assert_null(tf_mailbox_pop(mailbox, 30));
  cr_assert_geq(tf_now_ms() - start_ms, 29);
  cr_assert_null(tf_mailbox_pop(mailbox, -5));
  tf_mailbox_free(&mailbox, NULL);
}

Test(mailbox, free_hands_over_what_is_left) {
  tf_mailbox *mailbox = tf_mailbox_new(4);
  for (int i = 0; i < 3; i++) tf_mailbox_push(mailbox, malloc(8)); /* the leak checker sees what is not freed */
  tf_mailbox_free(&mailbox, free);
  tf_mailbox_free(&mailbox, free);
  cr_assert_null(mailbox);
}

enum { WRITERS = 3, READERS = 2, ITEMS_EACH = 3000 };
static unsigned char seen[WRITERS * ITEMS_EACH];

static void *write_items(void *context) {
  static _Atomic int next;
  int first = next++ * ITEMS_EACH;
  for (int i = 0; i < ITEMS_EACH; i++) {
    while (!tf_mailbox_push(context, &seen[first + i])) sched_yield();
  }
  return NULL;
}

static void *read_items(void *context) {
  for (;;) {
    unsigned char *item = tf_mailbox_pop(context, 10000);
    if (!item) return NULL;
    __atomic_fetch_add(item, 1, __ATOMIC_RELAXED);
  }
}

Test(mailbox, many_threads_lose_and_double_nothing) {
  tf_mailbox *mailbox = tf_mailbox_new(64);
  pthread_t writers[WRITERS], readers[READERS];
  for (int i = 0; i < READERS; i++) pthread_create(&readers[i], NULL, read_items, mailbox);
  for (int i = 0; i < WRITERS; i++) pthread_create(&writers[i], NULL, write_items, mailbox);
  for (int i = 0; i < WRITERS; i++) pthread_join(writers[i], NULL);
  tf_mailbox_close(mailbox);
  for (int i = 0; i < READERS; i++) pthread_join(readers[i], NULL);
  for (size_t i = 0; i < sizeof seen; i++) cr_assert_eq(seen[i], 1);
  tf_mailbox_free(&mailbox, NULL);
}

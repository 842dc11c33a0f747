/* Huge pages by mappings that several allocations share, taken one behind the other. In: sizes. Out: memory.
 * Each allocation is preceded by a line that says which mapping it is from; a mapping counts what is in use. */
#include "tensor/huge.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { LINE_BYTES = 64, PAGE_BYTES = 2 << 20, MAPPING_BYTES = 16 << 20 };

typedef struct mapping {
  void *start; /* as it was mapped */
  size_t bytes;
  char *next;  /* free from here on */
  size_t left; /* bytes behind next */
  size_t used; /* allocations that have not been freed */
} mapping;

/* The mapping that is being filled; guarded by the mutex, as every mapping's counts are. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static mapping *current;

/* Room for `bytes` from a 2-MiB boundary on. */
static mapping *mapping_new(size_t bytes) {
  mapping *self = calloc(1, sizeof *self);
  if (!self) return NULL;
  self->left = (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
  self->bytes = self->left + PAGE_BYTES;
  self->start = mmap(NULL, self->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (self->start == MAP_FAILED) {
    free(self);
    return NULL;
  }
  self->next = (char *)(((uintptr_t)self->start + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES);
  madvise(self->next, self->left, MADV_HUGEPAGE); /* advice: where it is not taken, nothing is lost */
  return self;
}

static void mapping_free(mapping *self) {
  munmap(self->start, self->bytes);
  free(self);
}

static void *take(mapping *self, size_t bytes) {
  char *line = self->next;
  *(mapping **)(void *)line = self;
  self->next += LINE_BYTES + bytes;
  self->left -= LINE_BYTES + bytes;
  self->used++;
  return line + LINE_BYTES;
}

void *tf_huge_new(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return NULL;
  bytes = (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
  if (bytes == 0) bytes = LINE_BYTES;
  void *out = NULL;
  pthread_mutex_lock(&mutex);
  if (bytes + LINE_BYTES > MAPPING_BYTES / 2) { /* one of its own */
    mapping *own = mapping_new(bytes + LINE_BYTES);
    if (own) out = take(own, bytes);
  } else {
    if (!current || current->left < bytes + LINE_BYTES) {
      if (current && current->used == 0) mapping_free(current);
      current = mapping_new(MAPPING_BYTES);
    }
    if (current) out = take(current, bytes);
  }
  pthread_mutex_unlock(&mutex);
  return out;
}

void tf_huge_free(void *memory) {
  if (!memory) return;
  pthread_mutex_lock(&mutex);
  mapping *self = *(mapping **)(void *)((char *)memory - LINE_BYTES);
  if (--self->used == 0) { /* whoever fills `current` next makes a new one */
    if (self == current) current = NULL;
    mapping_free(self);
  }
  pthread_mutex_unlock(&mutex);
}

/* A picture as the decoder sees it, for tools/compare_with_pillow.py and for looking at.
 * In: a file; optionally the side wanted (as the encoder asks, for JPEG's scaled decoding). Out: a binary PPM on
 * standard output; what was forgiven on stderr. Exit status 0, 1 (failed: "code: reason" on stderr), 2 (wrong usage).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/image.h"

enum { FILE_BYTES_MAX = 256 << 20, PIXELS_MAX = 250000000 };

/* The whole file, malloc'ed to its very size, so that a sanitizer sees a read past the end; NULL where it cannot be. */
static uint8_t *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  uint8_t *data = NULL;
  long length = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
  if (length >= 0 && length <= FILE_BYTES_MAX && fseek(file, 0, SEEK_SET) == 0)
    data = malloc(length > 0 ? (size_t)length : 1);
  *size = data ? fread(data, 1, (size_t)length, file) : 0;
  fclose(file);
  return data;
}

int main(int argc, char **argv) {
  if (argc < 2 || argc > 3) {
    fprintf(stderr, "usage: picture_to_ppm FILE [SIDE_WANTED]\n");
    return 2;
  }
  size_t size = 0;
  uint8_t *data = read_file(argv[1], &size);
  if (!data) {
    fprintf(stderr, "io: %s: %s\n", argv[1], strerror(errno));
    return 1;
  }
  tf_image_limits limits = {.pixels_max = PIXELS_MAX, .side_wanted = argc > 2 ? (int32_t)strtol(argv[2], NULL, 10) : 0};
  tf_image image;
  tf_error error = {0};
  tf_code code = tf_image_decode(data, size, &limits, &image, &error);
  free(data);
  if (code != TF_OK) {
    fprintf(stderr, "%s: %s\n", tf_code_name(code), error.text);
    return 1;
  }
  if (image.warned) fprintf(stderr, "warning: %s\n", image.warning);
  printf("P6\n%d %d\n255\n", image.width, image.height);
  size_t bytes = (size_t)image.width * (size_t)image.height * 3;
  bool written = fwrite(image.rgb, 1, bytes, stdout) == bytes && fflush(stdout) == 0;
  tf_image_free(&image);
  return written ? 0 : 1;
}

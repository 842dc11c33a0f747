/* What the encoder sees of a picture, for tools/make_goldens.py: decoded, resized and normalised as the service does
 * it. In: model folder, picture, output file. Out: raw little-endian f32 [3, size, size] in that file; exit status 0, 1
 * (failed, with a reason on stderr) or 2 (wrong usage). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encoder-svc/encoder.h"

enum { FILE_BYTES_MAX = 64 << 20, PIXELS_MAX = 250000000 };

/* The whole file, malloc'ed; NULL where it cannot be read or is past FILE_BYTES_MAX. */
static uint8_t *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  uint8_t *data = malloc(FILE_BYTES_MAX);
  *size = data ? fread(data, 1, FILE_BYTES_MAX, file) : 0;
  if (!data || ferror(file) || !feof(file)) {
    free(data);
    data = NULL;
  }
  fclose(file);
  return data;
}

static bool write_file(const char *path, const float *values, size_t count) {
  FILE *file = fopen(path, "wb");
  if (!file) return false;
  bool written = fwrite(values, sizeof *values, count, file) == count;
  return fclose(file) == 0 && written;
}

/* bytes -> file of pixels, by the encoder's own functions. */
static tf_code dump(const tf_encoder *encoder, const uint8_t *data, size_t size, const char *path, tf_error *error) {
  int32_t side = tf_encoder_image_size(encoder);
  tf_image_limits limits = {.pixels_max = PIXELS_MAX, .side_wanted = side};
  tf_image image = {0};
  tf_code code = tf_image_decode(data, size, &limits, &image, error);
  if (code != TF_OK) return code;
  size_t count = (size_t)3 * (size_t)side * (size_t)side;
  float *pixels = malloc(count * sizeof *pixels);
  if (!pixels)
    code = tf_fail(error, TF_ERR_OUT_OF_MEMORY, "no memory for %zu values", count);
  else
    code = tf_encoder_preprocess(encoder, &image, pixels, error);
  if (code == TF_OK && !write_file(path, pixels, count))
    code = tf_fail(error, TF_ERR_IO, "%s: %s", path, strerror(errno));
  free(pixels);
  tf_image_free(&image);
  return code;
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: dump_pixels MODEL_FOLDER PICTURE OUTPUT\n");
    return 2;
  }
  tf_error error = {0};
  tf_model_dir *model = calloc(1, sizeof *model);
  tf_encoder *encoder = NULL;
  size_t size = 0;
  uint8_t *data = read_file(argv[2], &size);
  tf_code code;
  if (!model)
    code = tf_fail(&error, TF_ERR_OUT_OF_MEMORY, "no memory");
  else if (!data)
    code = tf_fail(&error, TF_ERR_IO, "%s: cannot be read, or is larger than %d bytes", argv[2], FILE_BYTES_MAX);
  else if ((code = tf_model_dir_open(argv[1], model, &error)) == TF_OK &&
           (code = tf_encoder_load(model, NULL, &encoder, &error)) == TF_OK)
    code = dump(encoder, data, size, argv[3], &error);
  if (code != TF_OK) fprintf(stderr, "dump_pixels: %s\n", error.text);
  tf_encoder_free(&encoder);
  free(data);
  free(model);
  return code == TF_OK ? 0 : 1;
}

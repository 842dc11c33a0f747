/* libFuzzer's entry to the picture decoders. In: any bytes. Out: 0; a crash, leak, hang or print is the finding.
 * Built by `make fuzz` with clang; run: build/fuzz/fuzz_image CORPUS_FOLDER -timeout=10 -rss_limit_mb=2048 */
#include "image/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  tf_image_limits limits = {.pixels_max = 1000000, .side_wanted = size % 2 ? 56 : 0};
  tf_image image;
  tf_error error = {0};
  if (tf_image_decode(data, size, &limits, &image, &error) == TF_OK) tf_image_free(&image);
  return 0;
}

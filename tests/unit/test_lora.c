/* An adapter's low-rank updates by name. In: the tiny adapter, of a LoRA for both models. Out: what is found, and that
 * whatever finds no weight is told. */
#include "tensor/lora.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#define ADAPTER "tests/golden/data/tiny/adapter.gguf"
enum { WIDTH = 48, VISION_TENSORS = 36 }; /* 3 blocks of 6 linears, two tensors each */

static tf_gguf *open_adapter(void) {
  tf_gguf *file = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_gguf_open(ADAPTER, &file, &error), TF_OK, "%s", error.text);
  return file;
}

Test(lora, found_by_the_weights_name) {
  tf_gguf *file = open_adapter();
  tf_lora_set set = tf_lora_set_of(file, true);
  tf_lora lora;
  tf_error error = {0};
  cr_assert_eq(tf_lora_find(&set, "vision.blk.2.attn_q.weight", WIDTH, WIDTH, &lora, &error), TF_OK, "%s", error.text);
  cr_assert_eq(lora.a->shape[0], 2);
  cr_assert_eq(lora.b->shape[0], WIDTH);
  cr_assert_eq(lora.scale, 4.0f); /* alpha 8, rank 2 */
  cr_assert_eq(tf_lora_find(&set, "vision.blk.3.attn_q.weight", WIDTH, WIDTH, &lora, &error), TF_OK);
  cr_assert_null(lora.a);
  cr_assert_eq(tf_lora_find(&set, "vision.blk.0.attn_q.weight", WIDTH, WIDTH + 1, &lora, &error), TF_ERR_MODEL_INVALID);
  cr_assert(strstr(error.text, ADAPTER ": tensor vision.blk.0.attn_q.weight.lora_a") != NULL, "%s", error.text);
  tf_gguf_close(&file);
}

Test(lora, what_fits_no_weight_is_told) {
  tf_gguf *file = open_adapter();
  char expected[128];
  for (int vision = 0; vision < 2; vision++) {
    tf_lora_set set = tf_lora_set_of(file, vision);
    tf_error error = {0};
    size_t of_model =
        vision ? VISION_TENSORS : tf_gguf_tensor_count(file) - VISION_TENSORS - 8; /* 8: the projector's */
    snprintf(expected, sizeof expected, ADAPTER ": %zu of %zu LoRA tensors fit no weight of some.gguf", of_model,
             of_model);
    cr_assert_eq(tf_lora_check_used(&set, "some.gguf", &error), TF_ERR_MODEL_INVALID);
    cr_assert_str_eq(error.text, expected);
  }
  tf_gguf_close(&file);
}

Test(lora, no_adapter_has_none) {
  tf_lora_set set = tf_lora_set_of(NULL, false);
  tf_lora lora;
  tf_error error = {0};
  cr_assert_eq(tf_lora_find(&set, "blk.0.attn_q.weight", 1, 1, &lora, &error), TF_OK);
  cr_assert_null(lora.a);
  cr_assert_eq(tf_lora_check_used(&set, "some.gguf", &error), TF_OK);
}

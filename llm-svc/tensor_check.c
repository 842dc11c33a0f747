/* Checks a TENSOR header against this worker and its payload, and reads the values. In: header, bytes. Out: f32, or why
 * not. No I/O. */
#include "llm-svc/tensor_check.h"

#include <math.h>
#include <string.h>

#include "tensor/tensor.h"

static bool count_known(const tf_model_dir *model, uint32_t vision_tokens) {
  for (uint32_t i = 0; i < model->token_count_count; i++) {
    if (model->token_counts[i] == vision_tokens) return true;
  }
  return false;
}

tf_code tf_tensor_header_check(const tf_tensor_header *header, size_t payload_bytes, const char *instance,
                               const tf_model_dir *model, uint32_t width, int64_t now_unix_ms, tf_error *error) {
  if (strcmp(header->llm_instance, instance) != 0) {
    return tf_fail(error, TF_ERR_WORKER_LOST, "the tensor is for the LLM worker %s, this is %s", header->llm_instance,
                   instance);
  }
  if (strcmp(header->pair_hash, model->pair_hash) != 0) {
    return tf_fail(error, TF_ERR_PAIR_MISMATCH, "the tensor is of the pair %s, this LLM worker is of %s",
                   header->pair_hash, model->pair_hash);
  }
  if (header->deadline_unix_ms != 0 && now_unix_ms > header->deadline_unix_ms) {
    return tf_fail(error, TF_ERR_DEADLINE, "the deadline passed %lld ms before the LLM got the image",
                   (long long)(now_unix_ms - header->deadline_unix_ms));
  }
  if (header->vision_tokens == 0 || header->vision_tokens > TF_VISION_TOKENS_MAX ||
      !count_known(model, header->vision_tokens)) {
    return tf_fail(error, TF_ERR_TENSOR_INVALID, "%u vision tokens: not a count of this model", header->vision_tokens);
  }
  if (header->grid > TF_VISION_TOKENS_MAX || (uint64_t)header->grid * header->grid != header->vision_tokens) {
    return tf_fail(error, TF_ERR_TENSOR_INVALID, "a grid of %u does not make %u vision tokens", header->grid,
                   header->vision_tokens);
  }
  if (header->width != width) {
    return tf_fail(error, TF_ERR_TENSOR_INVALID, "width %u; this LLM's is %u", header->width, width);
  }
  if (header->dtype != TF_TENSOR_F32 && header->dtype != TF_TENSOR_F16) {
    return tf_fail(error, TF_ERR_TENSOR_INVALID, "unknown dtype %d", (int)header->dtype);
  }
  /* Both factors are small by now: at most 4096 tokens, and width is our own model's. */
  uint64_t bytes = (uint64_t)header->vision_tokens * width * (header->dtype == TF_TENSOR_F32 ? 4 : 2);
  if (header->byte_length != bytes || payload_bytes != bytes) {
    return tf_fail(error, TF_ERR_TENSOR_INVALID, "%llu bytes announced, %zu came, %llu are right",
                   (unsigned long long)header->byte_length, payload_bytes, (unsigned long long)bytes);
  }
  return TF_OK;
}

tf_code tf_tensor_payload_read(const void *payload, tf_tensor_dtype dtype, size_t elements, float *out,
                               tf_error *error) {
  const uint8_t *bytes = payload;
  for (size_t i = 0; i < elements; i++) {
    if (dtype == TF_TENSOR_F32) {
      memcpy(&out[i], bytes + i * sizeof(float), sizeof(float));
    } else {
      uint16_t half;
      memcpy(&half, bytes + i * sizeof half, sizeof half);
      out[i] = tf_f16_to_f32(half);
    }
    if (!isfinite(out[i])) return tf_fail(error, TF_ERR_TENSOR_INVALID, "value %zu of the tensor is not finite", i);
  }
  return TF_OK;
}

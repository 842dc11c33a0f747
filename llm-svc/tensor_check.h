/* What an LLM worker accepts as a tensor. In: a TENSOR header, the payload's bytes, what this worker is. Out: yes, or
 * why not; the values as f32. Pure: no I/O, no allocation. Every field is checked before the payload is touched. */
#ifndef TF_LLM_TENSOR_CHECK_H
#define TF_LLM_TENSOR_CHECK_H

#include <stddef.h>

#include "proto/wire.h"
#include "tensor/model_dir.h"

/* Errors: WORKER_LOST (meant for an instance that is no more), PAIR_MISMATCH, DEADLINE (passed already),
 * TENSOR_INVALID (a count that the model was not trained for, width, grid, dtype or length that don't fit). */
tf_code tf_tensor_header_check(const tf_tensor_header *header, size_t payload_bytes, const char *instance,
                               const tf_model_dir *model, uint32_t width, int64_t now_unix_ms, tf_error *error);

/* payload: little-endian values of dtype, any alignment; out: [elements] f32.
 * Errors: TENSOR_INVALID names the first value that is not finite. */
tf_code tf_tensor_payload_read(const void *payload, tf_tensor_dtype dtype, size_t elements, float *out,
                               tf_error *error);

#endif

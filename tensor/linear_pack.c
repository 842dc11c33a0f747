/* tf_linear packed. In: weights of any dtype, a LoRA to merge. Out: panels in the kernel's form (kernel.h), or f32
 * matrices for OpenBLAS. Weights pass through f32 sixteen outputs at a time, so that packing takes hardly more memory
 * than what it makes. int8: symmetric, one scale for each output, largest magnitude at 127. */
#include <assert.h>
#include <cblas.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/huge.h"
#include "tensor/linear_parts.h"
#include "tensor/vector.h"

/* So that at least one block of rows fits the shared memory, and a normed row the scratch (blocks of any width run). */
enum { INPUTS_MAX = 65536 - 64, SWIGLU_OUTPUTS_MAX = TF_POOL_SHARED_BYTES / (int)sizeof(float) };

const tf_kernel *tf_kernel_find(tf_compute compute) {
#if defined(__x86_64__)
  enum { KERNELS = 12 };
  const tf_kernel *const all[KERNELS] = {&tf_kernel_int8_amx,        &tf_kernel_int8_vnni,   &tf_kernel_int8_avx_vnni,
                                         &tf_kernel_int8_avx2,       &tf_kernel_int8x2_amx,  &tf_kernel_int8x2_vnni,
                                         &tf_kernel_int8x2_avx_vnni, &tf_kernel_int8x2_avx2, &tf_kernel_bf16_amx,
                                         &tf_kernel_bf16_avx512,     &tf_kernel_f32_avx512,  &tf_kernel_f32_avx2};
  for (int i = 0; i < KERNELS; i++) {
    if (all[i]->compute != compute || all[i]->cpu > tf_cpu_level()) continue;
    bool avx_vnni = all[i] == &tf_kernel_int8_avx_vnni || all[i] == &tf_kernel_int8x2_avx_vnni;
    if (avx_vnni && !tf_cpu_has_avx_vnni()) continue;
    if (all[i] == &tf_kernel_bf16_avx512 && !tf_cpu_has_bf16()) continue;
    return all[i];
  }
#endif
  (void)compute;
  return NULL;
}

static void *memory_new(size_t count, size_t size) {
  if (count > (SIZE_MAX - 64) / size) return NULL;
  size_t bytes = (count * size + 63) & ~(size_t)63;
  void *out = aligned_alloc(64, bytes > 0 ? bytes : 64);
  if (out) memset(out, 0, bytes);
  return out;
}

static float *unpacked(const tf_tensor *tensor) {
  float *out = memory_new((size_t)tf_tensor_elements(tensor), sizeof *out);
  if (out) tf_tensor_to_f32(tensor, 0, tf_tensor_elements(tensor), out);
  return out;
}

/* ---- shapes ---- */

static int64_t inputs_of(const tf_linear_source *source) {
  return tf_tensor_elements(source->weight) / source->weight->shape[0];
}

static tf_code check_source(const tf_linear_source *source, int64_t in, tf_error *error) {
  const tf_tensor *weight = source->weight;
  int64_t out = weight->shape[0];
  if (weight->rank < 2 || inputs_of(source) != in || in > INT32_MAX || out > INT32_MAX)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "a weight is no matrix of %" PRId64 " columns, or past 2^31-1", in);
  tf_code code = source->bias ? tf_tensor_expect(source->bias, "(bias)", 1, &out, error) : TF_OK;
  const tf_lora *lora = source->lora;
  if (code != TF_OK || !lora) return code;
  code = tf_tensor_expect(lora->a, "(lora_a)", 2, (int64_t[]){-1, in}, error);
  if (code == TF_OK) code = tf_tensor_expect(lora->b, "(lora_b)", 2, (int64_t[]){out, lora->a->shape[0]}, error);
  return code;
}

static tf_code check_sources(const tf_linear_source *sources, int count, tf_linear_join join, tf_error *error) {
  assert(count >= 1 && count <= TF_LINEAR_PARTS_MAX && (join == TF_JOIN_PARTS || count == 2));
  tf_code code = TF_OK;
  for (int i = 0; i < count && code == TF_OK; i++) code = check_source(&sources[i], inputs_of(&sources[0]), error);
  if (code != TF_OK || join == TF_JOIN_PARTS) return code;
  if (sources[0].weight->shape[0] != sources[1].weight->shape[0] || sources[0].weight->shape[0] > SWIGLU_OUTPUTS_MAX)
    return tf_fail(error, TF_ERR_MODEL_INVALID, "gate and up are not of one size, or past %d outputs",
                   SWIGLU_OUTPUTS_MAX);
  return TF_OK;
}

/* ---- a source, some rows at a time ---- */

typedef struct reader {
  const tf_linear_source *source;
  int64_t in, out;
  float *lora_a, *lora_b; /* [rank, in], [out, rank]; NULL: none */
} reader;

static tf_code reader_open(reader *self, const tf_linear_source *source, tf_error *error) {
  *self = (reader){.source = source, .in = inputs_of(source), .out = source->weight->shape[0]};
  if (!source->lora) return TF_OK;
  self->lora_a = unpacked(source->lora->a);
  self->lora_b = unpacked(source->lora->b);
  return self->lora_a && self->lora_b ? TF_OK : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory merging a LoRA");
}

static void reader_close(reader *self) {
  free(self->lora_a);
  free(self->lora_b);
}

/* W + scale * B A, rows [first, first + count). */
static void read_rows(const reader *self, int64_t first, int64_t count, float *out) {
  tf_tensor_to_f32(self->source->weight, first * self->in, count * self->in, out);
  if (!self->lora_a) return;
  int rank = (int)self->source->lora->a->shape[0], in = (int)self->in;
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)count, in, rank, self->source->lora->scale,
              self->lora_b + first * rank, rank, self->lora_a, in, 1.0f, out, in);
}

/* ---- panels ---- */

static void place_f32(const float *row, int64_t in, int output, char *panel) {
  for (int64_t i = 0; i < in; i++) memcpy(panel + i * TF_STEP_BYTES + output * 4, row + i, 4);
}

static void place_bf16(const float *row, int64_t in, int output, char *panel) {
  for (int64_t i = 0; i < in; i++) {
    uint16_t value = tf_f32_to_bf16(row[i]);
    memcpy(panel + i / 2 * TF_STEP_BYTES + output * 4 + i % 2 * 2, &value, 2);
  }
}

TF_CLONES static float largest_of(const float *row, int64_t count) {
  tf_f32x8 most = {0};
  int64_t i = 0;
  for (; i + TF_LANES <= count; i += TF_LANES) {
    tf_f32x8 x = tf_load8(row + i);
    most = tf_max8(most, tf_max8(x, -x));
  }
  float largest = 0;
  for (int lane = 0; lane < TF_LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
  for (; i < count; i++) largest = fabsf(row[i]) > largest ? fabsf(row[i]) : largest;
  return largest;
}

/* out[i] = round(row[i] * factor), ties to even; returns their sum. */
TF_CLONES static int32_t quantise(const float *row, int64_t count, float factor, int8_t *out) {
  const tf_f32x8 round = tf_splat8(0x1.8p23f); /* the integer lands in the low bits */
  tf_i32x8 sums = {0};
  int64_t i = 0;
  int32_t sum = 0;
  for (; i + TF_LANES <= count; i += TF_LANES) {
    tf_i32x8 q = (tf_i32x8)(tf_load8(row + i) * factor + round) - (tf_i32x8)round;
    tf_i8x8 bytes = __builtin_convertvector(q, tf_i8x8);
    memcpy(out + i, &bytes, sizeof bytes);
    sums += q;
  }
  for (int lane = 0; lane < TF_LANES; lane++) sum += sums[lane];
  for (; i < count; i++) {
    out[i] = (int8_t)lrintf(row[i] * factor);
    sum += out[i];
  }
  return sum;
}

/* Returns the scale; *offset: what takes the rows' 128 off again. bytes: scratch, in rounded up to 4. */
static float place_int8(const float *row, int64_t in, int output, bool is_signed, int8_t *bytes, char *panel,
                        int32_t *offset) {
  float largest = largest_of(row, in);
  int32_t sum = quantise(row, in, largest > 0 ? 127.0f / largest : 0.0f, bytes);
  memset(bytes + in, 0, (size_t)(-in & 3));
  for (int64_t step = 0; step < (in + 3) / 4; step++)
    memcpy(panel + step * TF_STEP_BYTES + output * 4, bytes + step * 4, 4);
  *offset = is_signed ? 0 : -128 * sum;
  return largest / 127.0f;
}

/* Sixteen outputs of a source from `first` on into panel `index` of the linear. rows: [16 + 1, in], scratch. */
static void pack_panel(tf_linear *self, const reader *from, int64_t first, int64_t index, float *rows) {
  int8_t *bytes = (int8_t *)(rows + TF_PANEL * self->in); /* as many bytes as the last row has, four for each input */
  char *panel = self->weight + index * self->panel_bytes;
  int64_t count = from->out - first < TF_PANEL ? from->out - first : TF_PANEL;
  read_rows(from, first, count, rows);
  for (int i = 0; i < count; i++) {
    const float *row = rows + i * self->in;
    int64_t at = index * TF_PANEL + i;
    switch (self->kernel->compute) {
    case TF_COMPUTE_INT8:
    case TF_COMPUTE_INT8X2:
      self->column_scale[at] = place_int8(row, self->in, i, self->kernel->is_signed, bytes, panel, &self->offset[at]);
      break;
    case TF_COMPUTE_BF16:
      place_bf16(row, self->in, i, panel);
      break;
    default:
      place_f32(row, self->in, i, panel);
      break;
    }
    if (from->source->bias) tf_tensor_to_f32(from->source->bias, first + i, 1, &self->bias[at]);
  }
}

/* Places of the parts: SwiGLU's two sources share panels by turns, others lie one after the other. */
static void lay_out_panels(tf_linear *self, const tf_linear_source *sources, int count) {
  const tf_kernel *kernel = self->kernel;
  for (int i = 0; i < count; i++) {
    int64_t panels = (sources[i].weight->shape[0] + TF_PANEL - 1) / TF_PANEL;
    if (self->join == TF_JOIN_PARTS) {
      self->parts[i].first = self->panels;
      self->parts[i].panels = panels;
    }
    self->panels += panels;
  }
  if (self->join == TF_JOIN_SWIGLU) self->parts[0].panels = self->panels;
  int64_t inputs = (self->in + kernel->inputs_align - 1) / kernel->inputs_align * kernel->inputs_align;
  self->steps = inputs / kernel->step_inputs;
  self->panel_bytes = self->steps * TF_STEP_BYTES;
  self->weight_bytes = (size_t)self->panels * (size_t)self->panel_bytes;
}

static tf_code fill_panels(tf_linear *self, const tf_linear_source *sources, int count, tf_error *error) {
  assert(self->column_scale && self->offset);
  int64_t stride = self->join == TF_JOIN_SWIGLU ? 2 : 1;
  float *rows = memory_new((size_t)self->in * (TF_PANEL + 1), sizeof *rows);
  tf_code code = rows ? TF_OK : tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory packing a weight");
  for (int i = 0; i < count && code == TF_OK; i++) {
    reader from;
    code = reader_open(&from, &sources[i], error);
    int64_t index = self->join == TF_JOIN_SWIGLU ? i : self->parts[i].first;
    for (int64_t at = 0; code == TF_OK && at < from.out; at += TF_PANEL, index += stride)
      pack_panel(self, &from, at, index, rows);
    reader_close(&from);
  }
  free(rows);
  return code;
}

/* ---- OpenBLAS ---- */

static int64_t outputs_of(const tf_linear_source *sources, int count) {
  int64_t outputs = 0;
  for (int i = 0; i < count; i++) outputs += sources[i].weight->shape[0];
  return outputs;
}

static void point_blas(tf_linear *self, const tf_linear_source *sources, int count) {
  const float *weight = (const float *)(const void *)self->weight, *bias = self->bias;
  for (int i = 0; i < count; i++) {
    int64_t out = sources[i].weight->shape[0];
    tf_blas blas = {.in = self->in, .out = out, .weight = weight, .bias = bias};
    if (self->join == TF_JOIN_SWIGLU && i == 1)
      self->parts[0].second = blas;
    else
      self->parts[i].blas = blas;
    weight += out * self->in;
    bias += out;
  }
}

static tf_code fill_blas(tf_linear *self, const tf_linear_source *sources, int count, tf_error *error) {
  float *weight = (float *)(void *)self->weight, *bias = self->bias;
  tf_code code = TF_OK;
  for (int i = 0; i < count && code == TF_OK; i++) {
    reader from;
    code = reader_open(&from, &sources[i], error);
    if (code == TF_OK) read_rows(&from, 0, from.out, weight);
    if (sources[i].bias) tf_tensor_to_f32(sources[i].bias, 0, from.out, bias);
    weight += from.out * self->in;
    bias += from.out;
    reader_close(&from);
  }
  return code;
}

/* ---- memory ---- */

/* How the bytes lie, for whoever finds them in a file. */
static void describe(const tf_linear *self, const tf_linear_source *sources, int count, char *out, size_t out_bytes) {
  int size = snprintf(out, out_bytes, "%s %s %" PRId64 ":", tf_linear_kernel(self),
                      self->join == TF_JOIN_SWIGLU ? "swiglu" : "parts", self->in);
  for (int i = 0; i < count && size > 0 && (size_t)size < out_bytes; i++)
    size += snprintf(out + size, out_bytes - (size_t)size, " %" PRId64, sources[i].weight->shape[0]);
}

/* One piece for the weights and, each from a line of its own, bias, scales and offsets (of kernels alone). *filled: the
 * store had it packed. */
static tf_code take_memory(tf_linear *self, const tf_linear_source *sources, int count, tf_pack_store *store,
                           const char *name, bool *filled, tf_error *error) {
  enum { LINE = 64, FORM_BYTES = 128 };
  char form[FORM_BYTES];
  describe(self, sources, count, form, sizeof form);
  size_t outputs = self->kernel ? (size_t)self->panels * TF_PANEL : (size_t)outputs_of(sources, count);
  size_t weights = (self->weight_bytes + LINE - 1) / LINE * LINE, vector = (outputs * 4 + LINE - 1) / LINE * LINE;
  self->memory = tf_pack_store_take(store, name, form, weights + (self->kernel ? 3 : 1) * vector, filled);
  if (!self->memory)
    return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory for a weight of %" PRId64 " x %" PRId64,
                   outputs_of(sources, count), self->in);
  self->kept = *filled;
  self->weight = self->memory;
  self->bias = (float *)(void *)(self->memory + weights);
  if (!self->kernel) return TF_OK;
  self->column_scale = (float *)(void *)(self->memory + weights + vector);
  self->offset = (int32_t *)(void *)(self->memory + weights + 2 * vector);
  return TF_OK;
}

/* ---- the door ---- */

tf_code tf_linear_pack_kept(const tf_linear_source *sources, int count, tf_linear_join join, tf_compute compute,
                            tf_pack_store *store, const char *name, tf_linear **out, tf_error *error) {
  *out = NULL;
  tf_blas_single_threaded();
  tf_code code = check_sources(sources, count, join, error);
  if (code != TF_OK) return code;
  if (compute == TF_COMPUTE_AUTO) compute = tf_cpu_compute();
  const tf_kernel *kernel = tf_kernel_find(compute);
  if (!kernel && compute != TF_COMPUTE_F32)
    return tf_fail(error, TF_ERR_UNSUPPORTED, "no %s kernel at --cpu %s", tf_compute_name(compute),
                   tf_cpu_name(tf_cpu_level()));
  tf_linear *self = calloc(1, sizeof *self);
  if (!self) return tf_fail(error, TF_ERR_OUT_OF_MEMORY, "out of memory for a weight");
  *self = (tf_linear){.in = inputs_of(&sources[0]), .join = join, .kernel = kernel};
  if (self->in > INPUTS_MAX) self->kernel = tf_kernel_find(TF_COMPUTE_F32);
  self->part_count = join == TF_JOIN_SWIGLU ? 1 : count;
  for (int i = 0; i < self->part_count; i++) self->parts[i].out = sources[i].weight->shape[0];
  if (self->kernel)
    lay_out_panels(self, sources, count);
  else
    self->weight_bytes = (size_t)outputs_of(sources, count) * (size_t)self->in * sizeof(float);
  bool filled;
  code = take_memory(self, sources, count, store, name, &filled, error);
  if (code == TF_OK && !self->kernel) point_blas(self, sources, count);
  if (code == TF_OK && !filled)
    code = self->kernel ? fill_panels(self, sources, count, error) : fill_blas(self, sources, count, error);
  if (code == TF_OK)
    *out = self;
  else
    tf_linear_free(&self);
  return code;
}

tf_code tf_linear_pack_joined(const tf_linear_source *sources, int count, tf_linear_join join, tf_compute compute,
                              tf_linear **out, tf_error *error) {
  return tf_linear_pack_kept(sources, count, join, compute, NULL, "", out, error);
}

tf_code tf_linear_pack(const tf_tensor *weight, const tf_tensor *bias, const tf_lora *lora, tf_compute compute,
                       tf_linear **out, tf_error *error) {
  tf_linear_source source = {.weight = weight, .bias = bias, .lora = lora};
  return tf_linear_pack_joined(&source, 1, TF_JOIN_PARTS, compute, out, error);
}

void tf_linear_free(tf_linear **self_pointer) {
  tf_linear *self = *self_pointer;
  if (!self) return;
  if (!self->kept) tf_huge_free(self->memory);
  free(self);
  *self_pointer = NULL;
}

void tf_linear_row(const tf_linear *self, int64_t row, float *out) {
  assert(self->join == TF_JOIN_PARTS && row >= 0 && row < self->parts[0].out);
  if (!self->kernel) {
    memcpy(out, self->parts[0].blas.weight + row * self->in, (size_t)self->in * sizeof *out);
    return;
  }
  const char *panel = self->weight + row / TF_PANEL * self->panel_bytes + row % TF_PANEL * 4;
  for (int64_t i = 0; i < self->in; i++) {
    int64_t per_step = self->kernel->step_inputs;
    const char *at = panel + i / per_step * TF_STEP_BYTES + i % per_step * (4 / per_step);
    uint16_t half;
    switch (self->kernel->compute) {
    case TF_COMPUTE_INT8:
    case TF_COMPUTE_INT8X2:
      out[i] = (float)(int8_t)*at * self->column_scale[row];
      break;
    case TF_COMPUTE_BF16:
      memcpy(&half, at, 2);
      out[i] = tf_bf16_to_f32(half);
      break;
    default:
      memcpy(out + i, at, 4);
      break;
    }
  }
}

/* What the kernels behind tf_linear share: how weights and rows lie in memory, and the table of functions.
 * In: rows in the kernel's form, packed panels of weights. Out: sums of a block, then finished outputs.
 * Private to tensor/. A panel is 16 outputs. It is stored in steps of 64 bytes, each holding 4 bytes of every output:
 * one f32 input, two bf16 or four int8. Rows lie the same way, 4 bytes a step; so one loop serves all three, and an AMX
 * tile of weights is 16 steps as they are. Inputs are padded with zeros to whole tiles. */
#ifndef TF_TENSOR_KERNEL_H
#define TF_TENSOR_KERNEL_H

#include "tensor/cpu.h"
#include "tensor/linear.h"

enum {
  TF_PANEL = 16,           /* outputs */
  TF_STEP_BYTES = 64,      /* of a panel; a row's step has 4 */
  TF_BLOCK_LINES_MAX = 32, /* of one call of a product */
  TF_BLOCK_PANELS_MAX = 4, /* likewise */
  TF_BLOCK_FLOATS = TF_BLOCK_LINES_MAX * TF_BLOCK_PANELS_MAX * TF_PANEL
};

/* One call of a product: sums[l, c] = line l . output c, f32 or int32. */
typedef struct tf_block {
  const char *x; /* first line (a row, or a half of one); every line starts at a multiple of 4 bytes */
  int64_t line_bytes, lines;
  const char *weight; /* first panel, aligned to 64 bytes */
  int64_t panel_bytes, panels, steps;
  bool is_first; /* of the blocks that read these panels: they are still in memory */
  void *sums;    /* [lines, panels * 16], aligned to 64 bytes */
} tf_block;

/* What becomes of a block's sums: activation(sum * scales + bias) * scale + residual. Pointers are at the block. */
typedef struct tf_finish {
  const void *sums;
  int64_t sums_stride, rows, columns; /* columns: of y, less than the panels' where they are padded */
  /* int8 only, else NULL. sum + offset is the product of signed numbers; all but row_scale are [panels * 16]. */
  const float *row_scale, *column_scale;
  bool halves; /* a row has two lines of sums, of the high and the low byte: 256 times the first and the second */
  const int32_t *offset;
  const float *bias; /* [panels * 16], never NULL */
  tf_activation activation;
  bool exact;            /* activations as near as f32 goes; else within 1e-4 */
  bool swiglu;           /* panels are pairs: y = silu(first) * second, 16 columns for two panels */
  const float *scale;    /* or NULL */
  const float *residual; /* or NULL; rows as far apart as y's */
  float *y;
  int64_t y_stride;
} tf_finish;

typedef struct tf_kernel {
  const char *name;
  tf_compute compute;
  tf_cpu cpu;           /* level that it needs */
  int64_t step_inputs;  /* in a step: 1, 2 or 4 */
  int64_t inputs_align; /* inputs are padded to a multiple of this */
  int64_t halves;       /* lines of a row: 2 where activations of 16 bits come as two int8, else 1 */
  bool is_signed;       /* int8 rows are signed; else 128 is added, and the offset takes it off again */
  int64_t panels;       /* that a product takes at once */
  /* Around a thread's products, where they need the processor set up; NULL: they do not. */
  void (*begin)(void);
  void (*end)(void);
  /* The product of a block of at most TF_BLOCK_LINES_MAX lines. */
  void (*product)(const tf_block *block);
  void (*finish)(const tf_finish *finish);
  /* One row in the kernel's form: x[width] -> out[halves * line_bytes], and its scale (int8). NULL: f32 as it is. */
  void (*convert)(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale);
  /* The same of RMSNorm(x), in one go. NULL: the norm comes first. */
  void (*convert_normed)(const float *x, int64_t width, const float *weight, float epsilon, int64_t line_bytes,
                         void *out, float *scale);
} tf_kernel;

/* What a kernel's arithmetic says of its fields. */
#define TF_KERNEL_F32    .compute = TF_COMPUTE_F32, .step_inputs = 1, .inputs_align = 1, .halves = 1
#define TF_KERNEL_BF16   .compute = TF_COMPUTE_BF16, .step_inputs = 2, .inputs_align = 32, .halves = 1
#define TF_KERNEL_INT8   .compute = TF_COMPUTE_INT8, .step_inputs = 4, .inputs_align = 64, .halves = 1
#define TF_KERNEL_INT8X2 .compute = TF_COMPUTE_INT8X2, .step_inputs = 4, .inputs_align = 64, .halves = 2

static inline bool tf_kernel_is_int8(const tf_kernel *kernel) {
  return kernel->compute == TF_COMPUTE_INT8 || kernel->compute == TF_COMPUTE_INT8X2;
}

/* The best for this arithmetic at the level in use; NULL: none (then OpenBLAS in f32). */
const tf_kernel *tf_kernel_find(tf_compute compute);

/* Tables of the files below; best first. Empty where the compiler's target has no such instructions. */
extern const tf_kernel tf_kernel_f32_avx2, tf_kernel_f32_avx512;
extern const tf_kernel tf_kernel_bf16_avx512, tf_kernel_bf16_amx;
extern const tf_kernel tf_kernel_int8_avx2, tf_kernel_int8_avx_vnni, tf_kernel_int8_vnni, tf_kernel_int8_amx;
extern const tf_kernel tf_kernel_int8x2_avx2, tf_kernel_int8x2_avx_vnni, tf_kernel_int8x2_vnni, tf_kernel_int8x2_amx;
void tf_finish_avx2(const tf_finish *finish);
void tf_finish_avx512(const tf_finish *finish);
void tf_convert_int8_avx512(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale);
void tf_convert_int8x2_avx512(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale);
void tf_convert_normed_int8_avx512(const float *x, int64_t width, const float *weight, float epsilon,
                                   int64_t line_bytes, void *out, float *scale);
void tf_convert_normed_int8x2_avx512(const float *x, int64_t width, const float *weight, float epsilon,
                                     int64_t line_bytes, void *out, float *scale);
void tf_convert_bf16_avx512(const float *x, int64_t width, int64_t line_bytes, void *out, float *scale);
void tf_product_int8_vnni(const tf_block *block);
void tf_product_bf16_avx512(const tf_block *block);

#endif

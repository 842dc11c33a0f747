/* What this processor can do, and which of it is used: the one global switch. In: CPUID, the user's wish.
 * Out: a level of instructions and a kind of arithmetic that linears are packed for.
 * A level includes those before it; asking for more than the machine has is an error, never a crash. */
#ifndef TF_TENSOR_CPU_H
#define TF_TENSOR_CPU_H

#include <stdbool.h>

#include "common/error.h"

/* X(NAME, name, what it needs) */
#define TF_CPUS(X)                                                                                                     \
  X(AUTO, "auto", "the best that there is")                                                                            \
  X(PORTABLE, "portable", "nothing: OpenBLAS")                                                                         \
  X(AVX2, "avx2", "AVX2 and FMA")                                                                                      \
  X(AVX512, "avx512", "AVX-512 F, BW, DQ, VL")                                                                         \
  X(VNNI, "vnni", "AVX-512 VNNI")                                                                                      \
  X(AMX, "amx", "AMX tiles with int8 and bf16")
typedef enum tf_cpu {
#define TF_CPU_ENUM(name, text, needs) TF_CPU_##name,
  TF_CPUS(TF_CPU_ENUM)
#undef TF_CPU_ENUM
} tf_cpu;
/* The choices of --cpu, for option tables. */
#define TF_CPU_CHOICES "auto|portable|avx2|avx512|vnni|amx"

/* Arithmetic of matrix products. F32 is the reference. BF16: both sides rounded to bf16, sums in f32. INT8: weights
 * with a scale for each output, activations with one for each row, sums exact. INT8X2: the same weights, activations of
 * 16 bits as two int8 halves; twice the products, but the weights' way from memory is the same, and what is left of the
 * error is theirs. AUTO: INT8 and INT8X2 from AVX2 on, by matrix, as the captions' quality wants it (SPEED.md has the
 * measurements); F32 below. */
#define TF_COMPUTES(X)                                                                                                 \
  X(AUTO, "auto")                                                                                                      \
  X(F32, "f32")                                                                                                        \
  X(BF16, "bf16")                                                                                                      \
  X(INT8, "int8")                                                                                                      \
  X(INT8X2, "int8x2")
typedef enum tf_compute {
#define TF_COMPUTE_ENUM(name, text) TF_COMPUTE_##name,
  TF_COMPUTES(TF_COMPUTE_ENUM)
#undef TF_COMPUTE_ENUM
} tf_compute;
/* The choices of --compute, for option tables. */
#define TF_COMPUTE_CHOICES "auto|f32|bf16|int8|int8x2"

const char *tf_cpu_name(tf_cpu cpu);             /* "vnni" */
const char *tf_compute_name(tf_compute compute); /* "int8" */

/* Sets the switch for linears that are packed from now on. Names as in the choices; NULL counts as "auto".
 * Errors: UNSUPPORTED, the text says what the machine lacks (the switch stays as it was); INVALID_ARGUMENT. */
tf_code tf_cpu_use(const char *cpu, const char *compute, tf_error *error);
tf_cpu tf_cpu_level(void);       /* never AUTO */
tf_compute tf_cpu_compute(void); /* never AUTO */
/* For a matrix whose inputs have outliers: INT8X2 where the switch is at AUTO and gives INT8, else tf_cpu_compute(). */
tf_compute tf_cpu_compute_fine(void);
/* Extensions beside the levels; false where the level in use is below AVX512 (bf16) or AVX2 (AVX-VNNI). */
bool tf_cpu_has_bf16(void);
bool tf_cpu_has_avx_vnni(void);

#endif

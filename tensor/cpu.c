/* CPU features, looked up once. In: CPUID, XCR0, the kernel's permission for AMX. Out: the level and arithmetic in use.
 * The switch is set before models are loaded and only read afterwards; atomics keep tests that set it later sound. */
#include "tensor/cpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const char *const CPU_NAMES[] = {
#define CPU_NAME(name, text, needs) text,
    TF_CPUS(CPU_NAME)
#undef CPU_NAME
};
static const char *const CPU_NEEDS[] = {
#define CPU_NEED(name, text, needs) needs,
    TF_CPUS(CPU_NEED)
#undef CPU_NEED
};
static const char *const COMPUTE_NAMES[] = {
#define COMPUTE_NAME(name, text) text,
    TF_COMPUTES(COMPUTE_NAME)
#undef COMPUTE_NAME
};

enum { CPU_COUNT_ALL = sizeof CPU_NAMES / sizeof *CPU_NAMES, COMPUTE_COUNT = sizeof COMPUTE_NAMES / sizeof(char *) };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static tf_cpu best = TF_CPU_PORTABLE; /* written once */
static bool has_bf16, has_avx_vnni;
static atomic_int level_in_use, compute_in_use; /* AUTO until tf_cpu_use: then the best, and what it does best */

const char *tf_cpu_name(tf_cpu cpu) {
  return CPU_NAMES[cpu];
}
const char *tf_compute_name(tf_compute compute) {
  return COMPUTE_NAMES[compute];
}

#if defined(__x86_64__)
/* Tile registers are 8 KiB that Linux hands out on request, to the whole process (5.16 and later). */
static bool amx_permitted(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_CONFIG = 17, TILE_DATA = 18 };
  uint32_t eax, ebx, ecx, edx, low, high;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const uint32_t bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25, state = 1u << TILE_CONFIG | 1u << TILE_DATA;
  if ((edx & (bf16 | tile | int8)) != (bf16 | tile | int8)) return false;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & state) == state && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

static void detect(void) {
  uint32_t eax, ebx, ecx, edx;
  __builtin_cpu_init(); /* knows what the system saves, too */
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
  best = TF_CPU_AVX2;
  bool leaf = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0;
  has_avx_vnni = leaf && (eax & 1u << 4) != 0;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return;
  best = TF_CPU_AVX512;
  has_bf16 = leaf && (eax & 1u << 5) != 0;
  if (!__builtin_cpu_supports("avx512vnni")) return;
  best = TF_CPU_VNNI;
  if (amx_permitted()) best = TF_CPU_AMX;
}
#else
static void detect(void) {}
#endif

tf_cpu tf_cpu_level(void) {
  pthread_once(&once, detect);
  tf_cpu level = (tf_cpu)atomic_load(&level_in_use);
  return level == TF_CPU_AUTO ? best : level;
}

bool tf_cpu_has_bf16(void) {
  return tf_cpu_level() >= TF_CPU_AVX512 && has_bf16;
}

bool tf_cpu_has_avx_vnni(void) {
  return tf_cpu_level() >= TF_CPU_AVX2 && has_avx_vnni;
}

tf_compute tf_cpu_compute(void) {
  tf_compute compute = (tf_compute)atomic_load(&compute_in_use);
  if (compute != TF_COMPUTE_AUTO) return compute;
  return tf_cpu_level() >= TF_CPU_AVX2 ? TF_COMPUTE_INT8 : TF_COMPUTE_F32;
}

tf_compute tf_cpu_compute_fine(void) {
  tf_compute compute = tf_cpu_compute();
  bool free_choice = (tf_compute)atomic_load(&compute_in_use) == TF_COMPUTE_AUTO;
  return free_choice && compute == TF_COMPUTE_INT8 ? TF_COMPUTE_INT8X2 : compute;
}

static int find_name(const char *const *names, int count, const char *name) {
  for (int i = 0; name && i < count; i++)
    if (strcmp(names[i], name) == 0) return i;
  return name ? -1 : 0;
}

tf_code tf_cpu_use(const char *cpu, const char *compute, tf_error *error) {
  pthread_once(&once, detect);
  int level = find_name(CPU_NAMES, CPU_COUNT_ALL, cpu), kind = find_name(COMPUTE_NAMES, COMPUTE_COUNT, compute);
  if (level < 0) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--cpu %.40s: one of " TF_CPU_CHOICES, cpu);
  if (kind < 0) return tf_fail(error, TF_ERR_INVALID_ARGUMENT, "--compute %.40s: one of " TF_COMPUTE_CHOICES, compute);
  if (level > (int)best)
    return tf_fail(error, TF_ERR_UNSUPPORTED, "--cpu %s: this machine lacks it (%s); the best here is %s", cpu,
                   CPU_NEEDS[level], CPU_NAMES[best]);
  tf_cpu effective = level == TF_CPU_AUTO ? best : (tf_cpu)level;
  if (kind == TF_COMPUTE_BF16 && !(effective >= TF_CPU_AVX512 && has_bf16))
    return tf_fail(error, TF_ERR_UNSUPPORTED, "--compute bf16 needs AVX-512 BF16, which %s",
                   has_bf16 ? "this --cpu leaves out" : "this machine lacks");
  if (kind >= TF_COMPUTE_INT8 && effective < TF_CPU_AVX2)
    return tf_fail(error, TF_ERR_UNSUPPORTED, "--compute %s needs %s, which %s", compute, CPU_NEEDS[TF_CPU_AVX2],
                   best >= TF_CPU_AVX2 ? "this --cpu leaves out" : "this machine lacks");
  atomic_store(&level_in_use, level);
  atomic_store(&compute_in_use, kind);
  return TF_OK;
}

#include "kernel.h"

#include <string.h>

#include "variants.h"

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)

typedef uint8_t ByteColumns __attribute__((vector_size(GATE_COLUMNS)));
typedef uint16_t Columns __attribute__((vector_size(2 * GATE_COLUMNS)));
typedef float Floats4 __attribute__((vector_size(16)));
typedef float Floats8 __attribute__((vector_size(32)));

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LOW_BYTE 1 /* where the low byte of a pair lies */
#else
#define LOW_BYTE 0
#endif

/* Baseline: whatever the compiler may assume of the target, in vectors of 16 bytes. */
#define VARIANT baseline
#define VECTOR_BYTES 16
#define TARGET
#include "kernel_variant.h"
#undef VARIANT
#undef VECTOR_BYTES
#undef TARGET

#if defined(__x86_64__)

#define VARIANT avx2
#define VECTOR_BYTES 32
#define TARGET __attribute__((target("avx2")))
#include "kernel_variant.h"
#undef VARIANT
#undef VECTOR_BYTES
#undef TARGET

#define VARIANT avx512
#define VECTOR_BYTES 64
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#include "kernel_variant.h"
#undef VARIANT
#undef VECTOR_BYTES
#undef TARGET

#endif

ptrdiff_t gate_kernels(const GateKernel **kernels) {
    static const GateKernel all[] = {
#if defined(__x86_64__)
        {"avx512", pool_avx512, step_avx512},
        {"avx2", pool_avx2, step_avx2},
#endif
        {"baseline", pool_baseline, step_baseline},
    };
    const ptrdiff_t count = (ptrdiff_t)(sizeof all / sizeof *all);
    const ptrdiff_t first = first_variant();
    *kernels = all + first;
    return count - first;
}

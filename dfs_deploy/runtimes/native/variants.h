/* The variants of compiled code that a CPU can run. */
#ifndef DFS_DEPLOY_VARIANTS_H
#define DFS_DEPLOY_VARIANTS_H

#include <stddef.h>

/* Place of the first variant that this CPU can run, in a list that begins with AVX-512 and AVX2 on x86-64. */
static inline ptrdiff_t first_variant(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")))
        return __builtin_cpu_supports("avx2") ? 1 : 2;
#endif
    return 0;
}

#endif

/* kern/x86/matmul_q_avxvnni.c - int8 matmul for AVX-VNNI: VPDPBUSD in its 256-bit VEX form. */
#include "kern/x86/packed_256.h"

enum { P_Q8_OFFSET = 128 };

/* start + n words of x by n vectors of weights. */
IMP_INLINE vi p_dot(vi start, const vi *w, const uint8_t *x, int n, uint32_t max)
{
    (void)max;
    IMP_UNROLL
    for (int j = 0; j < n; j++) start = _mm256_dpbusd_avx_epi32(start, w[j], p_words(x, j));
    return start;
}

#include "kern/body/matmul_p_body.h"

P_VARIANTS("avxvnni", avxvnni, IMP_CPU_AVXVNNI)

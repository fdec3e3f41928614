/* kern/x86/matmul_a16_avx512vnni.c - 8-bit and 4-bit weights with 16-bit activations for AVX512VNNI. */
#include "kern/x86/a16_512.h"

IMP_INLINE vi a16_dot(vi acc, vi a, vi b)
{
    /* the intrinsic makes gcc 12 copy every accumulator before and after */
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
#include "kern/body/matmul_a16_body.h"

const imp_matmul imp_matmul_q8_0_a16_avx512vnni =
    MATMUL_A16("q8_0_a16", "avx512vnni", IMP_CPU_AVX512VNNI, IMP_Q8_0, pack_q8_0);
const imp_matmul imp_matmul_q4_0_a16_avx512vnni =
    MATMUL_A16("q4_0_a16", "avx512vnni", IMP_CPU_AVX512VNNI, IMP_Q4_0, pack_q4_0);

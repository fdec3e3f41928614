/* kern/x86/cpu_x86.c - instruction sets of an x86-64 CPU, as far as the system saves their registers.
 *
 * Source:  Intel SDM vol. 2 (CPUID leaves 1, 7.0, 7.1), vol. 1 chapter 13 (XCR0). */
#include "kern/variant.h"

#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static uint64_t xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

/* Linux hands out the 8 KB tile state only to processes that ask. */
static bool amx_permitted(void)
{
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

static bool bit(uint32_t word, unsigned i)
{
    return (word >> i & 1) != 0;
}

uint64_t imp_cpu_detect(void)
{
    uint32_t a, b, c, d, c1;
    if (!__get_cpuid(1, &a, &b, &c1, &d) || !bit(c1, 27)) return 0; /* OSXSAVE */
    uint64_t state = xcr0(), f = 0;
    bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tile = (state & 0x60000) == 0x60000;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    uint32_t a1 = 0, b1, c2, d1;
    if (a >= 1 && !__get_cpuid_count(7, 1, &a1, &b1, &c2, &d1)) a1 = 0;
    if (!ymm || !bit(b, 5) || !bit(c1, 12) || !bit(c1, 29)) return 0; /* AVX2, FMA, F16C */
    f |= IMP_CPU_AVX2;
    if (bit(a1, 4)) f |= IMP_CPU_AVXVNNI;
    if (!zmm || !bit(b, 16) || !bit(b, 17) || !bit(b, 30) || !bit(b, 31)) return f; /* F, DQ, BW, VL */
    f |= IMP_CPU_AVX512;
    if (bit(c, 11)) f |= IMP_CPU_AVX512VNNI;
    if (bit(a1, 5)) f |= IMP_CPU_AVX512BF16;
    if (tile && (bit(d, 25) || bit(d, 22)) && amx_permitted()) {
        if (bit(d, 25)) f |= IMP_CPU_AMX_INT8;
        if (bit(d, 22)) f |= IMP_CPU_AMX_BF16;
    }
    return f;
}

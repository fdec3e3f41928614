/* kern/arm/cpu_arm.c - instruction sets of a 64-bit Arm CPU, as the system reports them.
 *
 * Source:  Linux Documentation/arch/arm64/elf_hwcaps.rst; Apple's hw.optional.arm sysctl names. */
#include "kern/variant.h"

#if defined(__linux__)
#include <sys/auxv.h>

uint64_t imp_cpu_detect(void)
{
    unsigned long cap = getauxval(AT_HWCAP), cap2 = getauxval(AT_HWCAP2);
    uint64_t f = 0;
    if (cap & HWCAP_ASIMD) f |= IMP_CPU_NEON;
    if (cap & HWCAP_ASIMDHP) f |= IMP_CPU_FP16;
    if (cap & HWCAP_ASIMDDP) f |= IMP_CPU_DOTPROD;
    if (cap2 & HWCAP2_I8MM) f |= IMP_CPU_I8MM;
    if (cap2 & HWCAP2_BF16) f |= IMP_CPU_BF16;
    return f;
}

#elif defined(__APPLE__)
#include <sys/sysctl.h>

static uint64_t has(const char *name, uint64_t bits)
{
    int v = 0;
    size_t n = sizeof v;
    return sysctlbyname(name, &v, &n, NULL, 0) == 0 && v != 0 ? bits : 0;
}

uint64_t imp_cpu_detect(void)
{
    return IMP_CPU_NEON | has("hw.optional.arm.FEAT_FP16", IMP_CPU_FP16) |
           has("hw.optional.arm.FEAT_DotProd", IMP_CPU_DOTPROD) |
           has("hw.optional.arm.FEAT_I8MM", IMP_CPU_I8MM) | has("hw.optional.arm.FEAT_BF16", IMP_CPU_BF16);
}

#else
uint64_t imp_cpu_detect(void)
{
    return 0;
}
#endif

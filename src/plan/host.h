/* plan/host.h - what this machine has: cores, caches, memory, instruction sets, other compute units.
 *
 * Place:   layer 5; read by the commands devices, plan, serve and bench. Says what is there, measures nothing
 *          (ceilings.h does).
 * Memory:  imp_host is plain data without pointers. */
#ifndef IMP_HOST_H
#define IMP_HOST_H

#include "plan/apple.h"
#include "plan/nvidia.h"
#include "plan/pci.h"

enum { IMP_HOST_KINDS = 8, IMP_HOST_CACHES = 12, IMP_HOST_OTHERS = 16 };

typedef struct imp_host_cache {
    uint32_t level;
    char kind;      /* 'd' data, 'i' instructions, 'u' both */
    uint32_t n;     /* how many of this kind the machine has */
    uint32_t n_pu;  /* hardware threads that share one */
    uint64_t bytes; /* of one */
    uint32_t line_bytes;
} imp_host_cache;

typedef struct imp_host_kind { /* cores that are alike; several on hybrid CPUs */
    char name[32];             /* the system's word ("IntelAtom"), "" when it has none */
    uint32_t n_core;
    int efficiency; /* order by speed, higher is faster; -1: unknown */
} imp_host_kind;

typedef struct imp_host {
    char cpu[128], os[64], arch[32];
    uint32_t n_package, n_numa, n_core, n_pu; /* that this process may use */
    imp_host_kind kind[IMP_HOST_KINDS];
    uint32_t n_kind;
    imp_host_cache cache[IMP_HOST_CACHES]; /* as the system tells; none in some containers */
    uint32_t n_cache;
    uint64_t llc_bytes; /* all caches of the last level together, 0: unknown */
    uint64_t mem_total, mem_available;
    uint64_t isa; /* imp_cpu_features bits that kernels may use */
    imp_nvidia_gpu nvidia[IMP_NVIDIA_GPUS];
    uint32_t n_nvidia;
    char nvidia_driver[80];              /* version, "": there is none */
    imp_apple apple;                     /* all zero but on macOS */
    imp_pci_unit other[IMP_HOST_OTHERS]; /* what this program has no driver for, with the reason */
    uint32_t n_other;
} imp_host;

/* DEVICE: the topology could not be read. */
IMP_MUST_USE imp_status imp_host_read(imp_host *out, imp_error *err);

#endif

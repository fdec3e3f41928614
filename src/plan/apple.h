/* plan/apple.h - what macOS says of an Apple chip: its name, GPU cores, neural engine, memory, version of the system.
 *
 * Place:   layer 5; host.c lists it. On other systems imp_apple_read finds nothing.
 * Threads: any. */
#ifndef IMP_APPLE_H
#define IMP_APPLE_H

#include "base/base.h"

typedef struct imp_apple {
    char chip[64], os[32]; /* "Apple M3 Max", "15.1" */
    uint32_t n_gpu_core;   /* 0: not told */
    bool ane;              /* there is a neural engine */
    uint64_t mem_total;
} imp_apple;

bool imp_apple_read(imp_apple *out); /* false: not an Apple chip */

#endif

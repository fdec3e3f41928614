/* dev/cpu/pack_cache.h - packed weights on disk: where they are kept, and how much.
 *
 * Place:   layer 4; src/app configures it, pack.c uses it. */
#ifndef IMP_DEV_CPU_PACK_CACHE_H
#define IMP_DEV_CPU_PACK_CACHE_H

#include "base/base.h"

typedef struct imp_pack_cache_config {
    const char *dir;    /* NULL: nothing is kept */
    uint64_t max_bytes; /* of all files together: those not used for longest go first */
    uint64_t min_bytes; /* regions smaller than this are packed at every start */
} imp_pack_cache_config;

/* For models that are loaded afterwards, by all CPU devices of the process; dir is copied. Without it nothing is kept.
 * INVALID: the path is too long. */
IMP_MUST_USE imp_status imp_pack_cache_configure(const imp_pack_cache_config *c, imp_error *err);

typedef struct imp_pack_cache_info {
    char dir[1024]; /* "": nothing is kept */
    uint64_t max_bytes, bytes;
    uint32_t n_file;
    uint32_t n_mapped, n_packed; /* regions of this process: taken from the cache, packed anew */
} imp_pack_cache_info;
void imp_pack_cache_look(imp_pack_cache_info *out);

#endif

/* sched/kv_index.h - which blocks a folder of saved caches holds, how large they are and when each was used last. */
#ifndef IMP_KV_INDEX_H
#define IMP_KV_INDEX_H

#include "base/base.h"

typedef struct imp_kv_entry {
    uint64_t name[2]; /* of the file (kv_file.h) */
    uint64_t bytes;   /* 0: the entry is free */
    int64_t used_ns;
} imp_kv_entry;

typedef struct imp_kv_index { /* {0} is an empty one; one caller at a time */
    imp_kv_entry *e;          /* [mask + 1] linear probing; NULL: nothing yet; owned */
    uint64_t mask, n, bytes;  /* n: entries; bytes: of all files */
} imp_kv_index;

void imp_kv_index_deinit(imp_kv_index *x);
imp_kv_entry *imp_kv_index_find(const imp_kv_index *x, const uint64_t name[2]); /* NULL: it is not there */
/* Added, or what is known of it replaced. false: no memory. */
bool imp_kv_index_put(imp_kv_index *x, const uint64_t name[2], uint64_t bytes, int64_t used_ns);
void imp_kv_index_remove(imp_kv_index *x, const uint64_t name[2]);
const imp_kv_entry *imp_kv_index_oldest(const imp_kv_index *x); /* NULL: it is empty */

#endif

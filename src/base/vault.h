/* base/vault.h - a folder of files that nobody but this user has made, each of them whole or not there.
 *
 * Place:   layer 0; for what is private and must not be trusted blindly when it is read again. Part of the seam (sys.h).
 * Idea:    everything goes by the folder's descriptor and by plain names. Links are not followed; what belongs to another
 *          user, or could have been written by one, is refused. A file gets its name when its bytes are on the disk.
 * Threads: all functions from any thread; any number of processes may work on one folder. */
#ifndef IMP_VAULT_H
#define IMP_VAULT_H

#include "base/base.h"

typedef struct imp_vault imp_vault;

/* The folder is made (mode 0700; those that lead to it as usual) when it is not there. INVALID: it is a link, belongs to
 * somebody else or others may write to it. */
IMP_MUST_USE imp_status imp_vault_open(const char *path, imp_vault **out, imp_error *err);
void imp_vault_close(imp_vault *v); /* NULL is allowed */
const char *imp_vault_path(const imp_vault *v);

/* A whole file into memory; *out: imp_sys_free it. NOT_FOUND; INVALID: no plain file of this user alone; TOO_LARGE: it has
 * more than max_bytes. */
IMP_MUST_USE imp_status imp_vault_read(const imp_vault *v, const char *name, uint64_t max_bytes,
                                       uint8_t **out, uint64_t *n, imp_error *err);
/* The first n bytes, or all if there are fewer; *got: how many. */
IMP_MUST_USE imp_status imp_vault_peek(const imp_vault *v, const char *name, void *p, uint64_t n,
                                       uint64_t *got, imp_error *err);

typedef struct imp_vault_part {
    const void *p;
    size_t n;
} imp_vault_part;
/* A file of these parts, mode 0600: written under another name, synced, put in place, the folder synced. only_new: what is
 * there already stays, and the status is INVALID. */
IMP_MUST_USE imp_status imp_vault_write(const imp_vault *v, const char *name, const imp_vault_part *part,
                                        size_t n_part, bool only_new, imp_error *err);
/* Calls each(ctx, name, bytes, used_ns) for every plain file, as imp_sys_list_dir. What writers left behind when they were
 * killed is removed. */
void imp_vault_list(const imp_vault *v,
                    void (*each)(void *ctx, const char *name, uint64_t bytes, int64_t used_ns), void *ctx);
void imp_vault_touch(const imp_vault *v, const char *name); /* used_ns is now; a wish */
bool imp_vault_remove(const imp_vault *v, const char *name);

#endif

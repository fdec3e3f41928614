/* base/sys_out.c - folders, and files written piece by piece.
 *
 * Always:  a stream writes to path + ".tmp"; only closing it well puts the file in its place. A cache's temporary file is
 *          locked while it is written: one that can be locked has lost its writer. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

enum { OUT_BUFFER = 1 << 18 };

struct imp_sys_out {
    int fd;
    char *path, *tmp;
    uint64_t n;    /* bytes taken so far */
    size_t n_held; /* of them, still in held */
    bool cache;    /* imp_sys_out_open_cache */
    char held[OUT_BUFFER];
};

static imp_status failed(imp_error *err, const char *what, const char *path)
{
    return imp_fail(err, errno == ENOMEM ? IMP_NOMEM : IMP_IO, "cannot %s %s: %s", what, path,
                    strerror(errno));
}

imp_status imp_sys_make_dir(const char *path, imp_error *err)
{
    int r = imp_sys_should_fail() ? (errno = EIO, -1) : mkdir(path, 0755);
    if (r != 0 && !(errno == EEXIST && imp_sys_is_dir(path))) return failed(err, "make the folder", path);
    return IMP_OK;
}

imp_status imp_sys_make_dirs(const char *path, imp_error *err)
{
    char part[4096];
    size_t n = strlen(path);
    if (n >= sizeof part) return imp_fail(err, IMP_INVALID, "the path is too long: %.100s", path);
    memcpy(part, path, n + 1);
    for (size_t i = 1; i < n; i++) {
        if (part[i] != '/') continue;
        part[i] = '\0';
        if (!imp_sys_is_dir(part)) IMP_TRY(imp_sys_make_dir(part, err));
        part[i] = '/';
    }
    return imp_sys_make_dir(path, err);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    return remove(path);
}

void imp_sys_remove_tree(const char *path)
{
    (void)nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static imp_status out_open(const char *path, bool cache, imp_sys_out **out, imp_error *err)
{
    static _Atomic unsigned count;
    *out = NULL;
    imp_sys_out *o = imp_sys_calloc(1, sizeof *o);
    size_t n = strlen(path) + 40;
    char *tmp = imp_sys_malloc(n), *copy = imp_sys_strdup(path);
    if (o == NULL || tmp == NULL || copy == NULL) {
        imp_sys_free(o), imp_sys_free(tmp), imp_sys_free(copy);
        return imp_fail(err, IMP_NOMEM, "out of memory while writing %s", path);
    }
    if (cache)
        (void)snprintf(tmp, n, "%s.%ld-%u.tmp", path, (long)getpid(), atomic_fetch_add(&count, 1));
    else
        (void)snprintf(tmp, n, "%s.tmp", path);
    o->path = copy;
    o->tmp = tmp;
    o->cache = cache;
    o->fd =
        imp_sys_should_fail() ? (errno = EIO, -1) : open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (o->fd >= 0 && cache) (void)flock(o->fd, LOCK_EX | LOCK_NB); /* see imp_sys_remove_left */
    if (o->fd < 0) {
        imp_status s = failed(err, "create", path);
        imp_sys_free(o->path), imp_sys_free(o->tmp), imp_sys_free(o);
        return s;
    }
    *out = o;
    return IMP_OK;
}

imp_status imp_sys_out_open(const char *path, imp_sys_out **out, imp_error *err)
{
    return out_open(path, false, out, err);
}

imp_status imp_sys_out_open_cache(const char *path, imp_sys_out **out, imp_error *err)
{
    return out_open(path, true, out, err);
}

static imp_status flush(imp_sys_out *o, const char *p, size_t n, imp_error *err)
{
    while (n > 0) {
        ssize_t w = imp_sys_should_fail() ? (errno = ENOSPC, -1) : write(o->fd, p, n);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) return failed(err, "write", o->path);
        p += w;
        n -= (size_t)w;
    }
    return IMP_OK;
}

imp_status imp_sys_out_write(imp_sys_out *o, const void *p, size_t n, imp_error *err)
{
    o->n += n;
    if (o->n_held + n > OUT_BUFFER) {
        IMP_TRY(flush(o, o->held, o->n_held, err));
        o->n_held = 0;
        if (n >= OUT_BUFFER) return flush(o, p, n, err);
    }
    memcpy(o->held + o->n_held, p, n);
    o->n_held += n;
    return IMP_OK;
}

imp_status imp_sys_out_skip(imp_sys_out *o, uint64_t n, imp_error *err)
{
    IMP_TRY(flush(o, o->held, o->n_held, err));
    o->n_held = 0;
    o->n += n;
    off_t at = imp_sys_should_fail() ? (errno = ENOSPC, -1) : lseek(o->fd, (off_t)n, SEEK_CUR);
    return at >= 0 ? IMP_OK : failed(err, "write", o->path);
}

imp_status imp_sys_out_patch(imp_sys_out *o, uint64_t at, const void *p, size_t n, imp_error *err)
{
    IMP_TRY(flush(o, o->held, o->n_held, err));
    o->n_held = 0;
    ssize_t w = imp_sys_should_fail() ? (errno = ENOSPC, -1) : pwrite(o->fd, p, n, (off_t)at);
    return w == (ssize_t)n ? IMP_OK : failed(err, "write", o->path);
}

uint64_t imp_sys_out_n(const imp_sys_out *o)
{
    return o->n;
}

imp_status imp_sys_out_close(imp_sys_out *o, bool keep, imp_error *err)
{
    if (o == NULL) return IMP_OK;
    imp_status s = keep ? flush(o, o->held, o->n_held, err) : IMP_OK;
    if (s == IMP_OK && keep && !o->cache && fsync(o->fd) != 0) s = failed(err, "write", o->path);
    close(o->fd);
    if (s == IMP_OK && keep && rename(o->tmp, o->path) != 0) s = failed(err, "rename to", o->path);
    if (s != IMP_OK || !keep) (void)unlink(o->tmp);
    imp_sys_free(o->path), imp_sys_free(o->tmp), imp_sys_free(o);
    return s;
}

/* ---- files that grow -------------------------------------------------------------------------------- */

imp_status imp_sys_append_open(const char *path, int *out_fd, imp_error *err)
{
    *out_fd = imp_sys_should_fail() ? (errno = EIO, -1)
                                    : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    return *out_fd >= 0 ? IMP_OK : failed(err, "open for writing", path);
}

bool imp_sys_append(int fd, const void *p, size_t n)
{
    ssize_t w;
    do w = imp_sys_should_fail() ? (errno = ENOSPC, -1) : write(fd, p, n);
    while (w < 0 && errno == EINTR);
    return w == (ssize_t)n;
}

void imp_sys_append_close(int fd)
{
    if (fd > 2) close(fd);
}

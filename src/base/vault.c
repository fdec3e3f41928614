/* base/vault.c - a folder of files that nobody but this user has made. See vault.h.
 *
 * Always:  a temporary file is called ".tmp-PID-N-TIME", is made anew (O_EXCL) and stays locked while it is written: one
 *          that is old and can be locked has lost its writer. */
#include "base/vault.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_TMP = 96 };
static const int64_t LEFT_NS = 60000000000; /* a temporary file that old may have been left behind */
static const char TMP[] = ".tmp-";

struct imp_vault {
    int fd;
    char path[];
};

static imp_status failed(imp_error *err, const char *what, const imp_vault *v, const char *name)
{
    int e = errno;
    if (e == ELOOP)
        return imp_fail(err, IMP_INVALID, "%.200s/%.100s is a link, which is not followed", v->path, name);
    return imp_fail(err,
                    e == ENOENT   ? IMP_NOT_FOUND
                    : e == ENOMEM ? IMP_NOMEM
                                  : IMP_IO,
                    "cannot %s %.200s/%.100s: %s", what, v->path, name, strerror(e));
}

/* Belongs to this user, and nobody else may write to it. */
static bool is_ours(const struct stat *st)
{
    return st->st_uid == geteuid() && (st->st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

imp_status imp_vault_open(const char *path, imp_vault **out, imp_error *err)
{
    *out = NULL;
    size_t n = strlen(path);
    if (n == 0 || n > 2000) return imp_fail(err, IMP_INVALID, "the folder's path is empty or too long");
    imp_vault *v = imp_sys_calloc(1, sizeof *v + n + 1);
    if (v == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    memcpy(v->path, path, n + 1);
    v->fd = -1;
    while (n > 1 && v->path[n - 1] == '/')
        v->path[--n] = '\0'; /* a link with a slash behind it is followed */
    char *last = strrchr(v->path, '/');
    imp_status s = IMP_OK;
    if (last != NULL && last != v->path) {
        *last = '\0';
        if (!imp_sys_is_dir(v->path)) s = imp_sys_make_dirs(v->path, err);
        *last = '/';
    }
    struct stat st;
    if (s == IMP_OK && mkdir(v->path, 0700) != 0 && errno != EEXIST)
        s = imp_fail(err, IMP_IO, "cannot make the folder %.300s: %s", v->path, strerror(errno));
    if (s == IMP_OK) {
        v->fd = imp_sys_should_fail() ? (errno = EIO, -1)
                                      : open(v->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (v->fd < 0)
            s = imp_fail(err, errno == ELOOP || errno == ENOTDIR ? IMP_INVALID : IMP_IO,
                         errno == ELOOP || errno == ENOTDIR
                             ? "%.300s is a link or no folder; name the folder itself"
                             : "cannot open the folder %.300s",
                         v->path);
    }
    if (s == IMP_OK && (fstat(v->fd, &st) != 0 || !is_ours(&st)))
        s = imp_fail(
            err, IMP_INVALID,
            "%.300s belongs to another user or may be written by others; it is not used (chmod 700 it)",
            v->path);
    if (s != IMP_OK) {
        imp_vault_close(v);
        return s;
    }
    *out = v;
    return IMP_OK;
}

void imp_vault_close(imp_vault *v)
{
    if (v == NULL) return;
    if (v->fd >= 0) close(v->fd);
    imp_sys_free(v);
}

const char *imp_vault_path(const imp_vault *v)
{
    return v->path;
}

/* ---- reading ------------------------------------------------------------------------------------------- */

/* O_NONBLOCK: a pipe of that name must not hold anybody up. */
static imp_status open_read(const imp_vault *v, const char *name, int *fd, uint64_t *bytes, imp_error *err)
{
    struct stat st;
    *fd = imp_sys_should_fail() ? (errno = EIO, -1)
                                : openat(v->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0) return failed(err, "open", v, name);
    if (fstat(*fd, &st) == 0 && S_ISREG(st.st_mode) && is_ours(&st)) {
        *bytes = (uint64_t)st.st_size;
        return IMP_OK;
    }
    close(*fd);
    return imp_fail(err, IMP_INVALID,
                    "%.200s/%.100s is no plain file, belongs to another user or may be written by others",
                    v->path, name);
}

static imp_status read_some(const imp_vault *v, const char *name, int fd, uint8_t *p, uint64_t n,
                            imp_error *err)
{
    for (uint64_t done = 0; done < n;) {
        ssize_t r = imp_sys_should_fail() ? (errno = EIO, -1)
                                          : read(fd, p + done, (size_t)IMP_MIN(n - done, 1u << 30));
        if (r < 0 && errno == EINTR) continue;
        if (r == 0) errno = EIO; /* it became shorter while it was read */
        if (r <= 0) return failed(err, "read", v, name);
        done += (uint64_t)r;
    }
    return IMP_OK;
}

imp_status imp_vault_read(const imp_vault *v, const char *name, uint64_t max_bytes, uint8_t **out,
                          uint64_t *n, imp_error *err)
{
    int fd;
    *out = NULL;
    IMP_TRY(open_read(v, name, &fd, n, err));
    imp_status s = IMP_OK;
    if (*n > max_bytes)
        s = imp_fail(err, IMP_TOO_LARGE, "%.200s/%.100s has %llu bytes, %llu at most were expected", v->path,
                     name, (unsigned long long)*n, (unsigned long long)max_bytes);
    uint8_t *p = s == IMP_OK ? imp_sys_malloc((size_t)*n) : NULL;
    if (s == IMP_OK && p == NULL) s = imp_fail(err, IMP_NOMEM, "out of memory");
    if (s == IMP_OK) s = read_some(v, name, fd, p, *n, err);
    close(fd);
    if (s != IMP_OK) {
        imp_sys_free(p);
        return s;
    }
    *out = p;
    return IMP_OK;
}

imp_status imp_vault_peek(const imp_vault *v, const char *name, void *p, uint64_t n, uint64_t *got,
                          imp_error *err)
{
    int fd;
    uint64_t bytes;
    IMP_TRY(open_read(v, name, &fd, &bytes, err));
    *got = IMP_MIN(n, bytes);
    imp_status s = read_some(v, name, fd, p, *got, err);
    close(fd);
    return s;
}

/* ---- writing ------------------------------------------------------------------------------------------- */

static imp_status write_all(const imp_vault *v, const char *name, int fd, const imp_vault_part *part,
                            size_t n_part, imp_error *err)
{
    for (size_t i = 0; i < n_part; i++) {
        const char *p = part[i].p;
        for (size_t n = part[i].n; n > 0;) {
            ssize_t w = imp_sys_should_fail() ? (errno = ENOSPC, -1) : write(fd, p, n);
            if (w < 0 && errno == EINTR) continue;
            if (w <= 0) return failed(err, "write", v, name);
            p += w;
            n -= (size_t)w;
        }
    }
    if (imp_sys_should_fail() ? (errno = EIO, true) : fsync(fd) != 0) return failed(err, "sync", v, name);
    return IMP_OK;
}

/* tmp becomes name. */
static imp_status put(const imp_vault *v, const char *tmp, const char *name, bool only_new, imp_error *err)
{
    if (!only_new)
        return (errno = EIO, imp_sys_should_fail()) || renameat(v->fd, tmp, v->fd, name) != 0
                   ? failed(err, "rename to", v, name)
                   : IMP_OK;
    errno = EIO;
    if (!imp_sys_should_fail() && linkat(v->fd, tmp, v->fd, name, 0) == 0) {
        (void)unlinkat(v->fd, tmp, 0);
        return IMP_OK;
    }
    if (errno == EEXIST) return imp_fail(err, IMP_INVALID, "%.200s/%.100s is there already", v->path, name);
    return failed(err, "make", v, name);
}

imp_status imp_vault_write(const imp_vault *v, const char *name, const imp_vault_part *part, size_t n_part,
                           bool only_new, imp_error *err)
{
    static _Atomic unsigned count;
    char tmp[MAX_TMP];
    (void)snprintf(tmp, sizeof tmp, "%s%ld-%u-%llx", TMP, (long)getpid(), atomic_fetch_add(&count, 1),
                   (unsigned long long)imp_sys_clock_ns());
    int fd = imp_sys_should_fail()
                 ? (errno = EIO, -1)
                 : openat(v->fd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return failed(err, "create", v, name);
    (void)flock(fd, LOCK_EX | LOCK_NB);
    imp_status s = write_all(v, name, fd, part, n_part, err);
    if (s == IMP_OK) s = put(v, tmp, name, only_new, err);
    if (s != IMP_OK) (void)unlinkat(v->fd, tmp, 0);
    close(fd);
    /* Without this a crash of the system may lose the name, never mix up what it stands for. */
    if (s == IMP_OK && (imp_sys_should_fail() || fsync(v->fd) != 0))
        s = failed(err, "sync the folder of", v, name);
    return s;
}

/* ---- the folder ------------------------------------------------------------------------------------------ */

static void remove_left(const imp_vault *v, const char *name, int64_t used_ns)
{
    if (imp_sys_clock_ns() - used_ns < LEFT_NS) return;
    int fd = openat(v->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) (void)unlinkat(v->fd, name, 0);
    close(fd);
}

void imp_vault_list(const imp_vault *v,
                    void (*each)(void *ctx, const char *name, uint64_t bytes, int64_t used_ns), void *ctx)
{
    int fd = imp_sys_should_fail() ? -1 : openat(v->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (d == NULL) {
        if (fd >= 0) close(fd);
        return;
    }
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        struct stat st;
        if (fstatat(v->fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) continue;
#ifdef __APPLE__
        struct timespec t = st.st_mtimespec;
#else
        struct timespec t = st.st_mtim;
#endif
        int64_t used_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
        if (strncmp(e->d_name, TMP, sizeof TMP - 1) == 0)
            remove_left(v, e->d_name, used_ns);
        else
            each(ctx, e->d_name, (uint64_t)st.st_size, used_ns);
    }
    closedir(d);
}

void imp_vault_touch(const imp_vault *v, const char *name)
{
    (void)utimensat(v->fd, name, NULL, AT_SYMLINK_NOFOLLOW);
}

bool imp_vault_remove(const imp_vault *v, const char *name)
{
    return !imp_sys_should_fail() && unlinkat(v->fd, name, 0) == 0;
}

/* base/dir.c - what lies in a folder, and whether a file is still the one it was. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "base/base.h"

imp_status imp_sys_list(const char *path, void (*fn)(void *user, const char *name), void *user,
                        imp_error *err)
{
    DIR *d = imp_sys_should_fail() ? (errno = EIO, NULL) : opendir(path);
    if (d == NULL)
        return imp_fail(err, errno == ENOENT ? IMP_NOT_FOUND : IMP_IO, "cannot read the folder %s: %s", path,
                        strerror(errno));
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) fn(user, e->d_name);
    closedir(d);
    return IMP_OK;
}

typedef struct folder {
    const char *path;
    imp_sys_stamp *stamp;
} folder;

/* A file of a folder joins its stamp, whatever the order they come in. */
static void join(void *user, const char *name)
{
    const folder *f = user;
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/%s", f->path, name);
    if (n < 0 || (size_t)n >= sizeof path || imp_sys_is_dir(path)) return;
    imp_sys_stamp s = imp_sys_file_stamp(path);
    uint64_t part[3] = {s.inode, s.n, (uint64_t)s.mtime_ns};
    f->stamp->inode += imp_hash(part, sizeof part, imp_hash(name, strlen(name), 0));
    f->stamp->n += s.n;
    f->stamp->mtime_ns = IMP_MAX(f->stamp->mtime_ns, s.mtime_ns);
}

bool imp_sys_stamp_of(const char *path, imp_sys_stamp *out)
{
    *out = imp_sys_file_stamp(path);
    if (out->inode == 0 || !imp_sys_is_dir(path)) return out->inode != 0;
    *out = (imp_sys_stamp){.device = out->device};
    folder f = {path, out};
    return imp_sys_list(path, join, &f, NULL) == IMP_OK;
}

imp_status imp_sys_remove_file(const char *path, imp_error *err)
{
    if (imp_sys_should_fail() ? (errno = EIO, true) : unlink(path) != 0)
        return imp_fail(err, errno == ENOENT ? IMP_NOT_FOUND : IMP_IO, "cannot remove %s: %s", path,
                        strerror(errno));
    return IMP_OK;
}

void imp_sys_trim(void)
{
#ifdef __GLIBC__
    (void)malloc_trim(0);
#endif
}

/* base/sys_dir.c - what a cache on disk needs: its files, their age, the room that is left. See sys.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#include "base/base.h"

static int64_t ns_of(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t imp_sys_clock_ns(void)
{
    struct timespec t;
    return clock_gettime(CLOCK_REALTIME, &t) == 0 ? ns_of(t) : 0;
}

void imp_sys_list_dir(const char *path,
                      void (*each)(void *ctx, const char *name, uint64_t bytes, int64_t used_ns), void *ctx)
{
    DIR *d = imp_sys_should_fail() ? NULL : opendir(path);
    if (d == NULL) return;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        struct stat st;
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) continue;
#ifdef __APPLE__
        each(ctx, e->d_name, (uint64_t)st.st_size, ns_of(st.st_mtimespec));
#else
        each(ctx, e->d_name, (uint64_t)st.st_size, ns_of(st.st_mtim));
#endif
    }
    closedir(d);
}

void imp_sys_touch(const char *path)
{
    (void)utimensat(AT_FDCWD, path, NULL, 0);
}

bool imp_sys_remove(const char *path)
{
    return !imp_sys_should_fail() && unlink(path) == 0;
}

void imp_sys_remove_left(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) (void)unlink(path);
    close(fd);
}

bool imp_sys_file_patch(const char *path, uint64_t at, const void *p, size_t n)
{
    int fd = imp_sys_should_fail() ? -1 : open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return false;
    bool ok = pwrite(fd, p, n, (off_t)at) == (ssize_t)n;
    close(fd);
    return ok;
}

uint64_t imp_sys_disk_free(const char *path)
{
    struct statvfs v;
    if (imp_sys_should_fail() || statvfs(path, &v) != 0) return 0;
    return (uint64_t)v.f_bavail * v.f_frsize;
}

void imp_sys_thread_idle(void)
{
#ifdef __linux__
    enum { INTERLEAVE = 3 }; /* linux/mempolicy.h */
    unsigned long all = ~0ul;
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 15);
    (void)syscall(SYS_set_mempolicy, INTERLEAVE, &all, 8 * sizeof all + 1);
#endif
}

/* base/sys.c - the seam to the system. See sys.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

static _Atomic uint64_t n_call, n_alloc, fail_at; /* fail_at: absolute call number, 0 off */

bool imp_sys_should_fail(void)
{
    uint64_t n = atomic_fetch_add(&n_call, 1) + 1;
    return n == atomic_load(&fail_at);
}
void imp_sys_fail_at(uint64_t n)
{
    atomic_store(&fail_at, n == 0 ? 0 : atomic_load(&n_call) + n);
}
uint64_t imp_sys_n_call(void)
{
    return atomic_load(&n_call);
}
uint64_t imp_sys_n_alloc(void)
{
    return atomic_load(&n_alloc);
}

imp_status imp_sys_random(void *p, size_t n)
{
    return imp_sys_should_fail() || getentropy(p, n) != 0 ? IMP_IO : IMP_OK;
}

static bool refuse_alloc(void)
{
    atomic_fetch_add(&n_alloc, 1);
    return imp_sys_should_fail();
}

void *imp_sys_malloc(size_t n)
{
    return refuse_alloc() ? NULL : malloc(n == 0 ? 1 : n);
}
void *imp_sys_calloc(size_t n, size_t size)
{
    return refuse_alloc() ? NULL : calloc(n == 0 ? 1 : n, size == 0 ? 1 : size);
}
void *imp_sys_realloc(void *p, size_t n)
{
    return refuse_alloc() ? NULL : realloc(p, n == 0 ? 1 : n);
}
void imp_sys_free(void *p)
{
    free(p);
}
char *imp_sys_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = imp_sys_malloc(n);
    return p == NULL ? NULL : memcpy(p, s, n);
}
void imp_free(void *p)
{
    imp_sys_free(p);
}

enum { HUGE_PAGE = 2 << 20, HUGE_FROM = 2 * HUGE_PAGE };

void *imp_sys_pages(size_t n)
{
    if (refuse_alloc()) return NULL;
    void *p = mmap(NULL, n == 0 ? 1 : n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    if (n >= HUGE_FROM) (void)madvise(p, n, MADV_HUGEPAGE); /* a wish; small pages work too */
#endif
    return p;
}
void imp_sys_pages_free(void *p, size_t n)
{
    if (p != NULL) (void)munmap(p, n == 0 ? 1 : n);
}

static imp_status io_error(imp_error *err, const char *what, const char *path)
{
    int e = errno;
    imp_status s = e == ENOENT || e == ENOTDIR ? IMP_NOT_FOUND : e == ENOMEM ? IMP_NOMEM : IMP_IO;
    return imp_fail(err, s, "cannot %s %s: %s", what, path, strerror(e));
}

static imp_status read_all(int fd, const char *path, uint64_t n, imp_sys_file *out, imp_error *err)
{
    uint8_t *p = imp_sys_malloc((size_t)n);
    if (p == NULL)
        return imp_fail(err, IMP_NOMEM, "not enough memory to read %s (%llu bytes)", path,
                        (unsigned long long)n);
    for (uint64_t done = 0; done < n;) {
        ssize_t r = imp_sys_should_fail() ? (errno = EIO, -1)
                                          : read(fd, p + done, (size_t)IMP_MIN(n - done, 1u << 30));
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) {
            if (r == 0) errno = EIO; /* it became shorter while it was read */
            imp_status s = io_error(err, "read", path);
            imp_sys_free(p);
            return s;
        }
        done += (uint64_t)r;
    }
    *out = (imp_sys_file){.data = p, .n = n, .mapped = false};
    return IMP_OK;
}

/* ---- mapped files ------------------------------------------------------------------------------------- */

/* Which address ranges are mapped files: only there may pages be given back, elsewhere that would erase them. */
enum { MAX_MAPPED = 256 }; /* files beyond that are never forgotten, which costs memory and nothing else */
static struct mapped {
    uintptr_t from, to; /* to 0: free */
    int fd;             /* of the file, kept open to ask what has become of it */
} g_mapped[MAX_MAPPED];
static atomic_flag g_mapped_busy = ATOMIC_FLAG_INIT;

static void mapped_lock(void)
{
    while (atomic_flag_test_and_set_explicit(&g_mapped_busy, memory_order_acquire)) continue;
}
static void mapped_unlock(void)
{
    atomic_flag_clear_explicit(&g_mapped_busy, memory_order_release);
}

/* Takes fd when it returns true. */
static bool mapped_add(const void *p, size_t n, int fd)
{
    bool found = false;
    mapped_lock();
    for (size_t i = 0; i < MAX_MAPPED && !found; i++) {
        found = g_mapped[i].to == 0;
        if (found) g_mapped[i] = (struct mapped){(uintptr_t)p, (uintptr_t)p + n, fd};
    }
    mapped_unlock();
    return found;
}

static void mapped_remove(const void *p)
{
    mapped_lock();
    for (size_t i = 0; i < MAX_MAPPED; i++)
        if (g_mapped[i].to != 0 && g_mapped[i].from == (uintptr_t)p) {
            close(g_mapped[i].fd);
            g_mapped[i] = (struct mapped){0};
        }
    mapped_unlock();
}

bool imp_sys_file_id_of(const void *p, size_t n, imp_sys_file_id *out)
{
    struct stat st;
    bool ok = false;
    mapped_lock();
    for (size_t i = 0; i < MAX_MAPPED; i++)
        if (g_mapped[i].from <= (uintptr_t)p && (uintptr_t)p + n <= g_mapped[i].to) {
            ok = fstat(g_mapped[i].fd, &st) == 0;
            break;
        }
    mapped_unlock();
    if (!ok) return false;
#ifdef __APPLE__
    struct timespec m = st.st_mtimespec, c = st.st_ctimespec;
#else
    struct timespec m = st.st_mtim, c = st.st_ctim;
#endif
    *out = (imp_sys_file_id){.dev = (uint64_t)st.st_dev,
                             .ino = (uint64_t)st.st_ino,
                             .bytes = (uint64_t)st.st_size,
                             .written_ns = (int64_t)m.tv_sec * 1000000000 + m.tv_nsec,
                             .changed_ns = (int64_t)c.tv_sec * 1000000000 + c.tv_nsec};
    return true;
}

void imp_sys_file_forget(const void *p, size_t n)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)p + page - 1) & ~(page - 1),
              to = ((uintptr_t)p + n) & ~(page - 1);
    if (to <= from) return;
    mapped_lock(); /* held during the call, so that the file stays mapped */
    for (size_t i = 0; i < MAX_MAPPED; i++)
        if (g_mapped[i].from <= from && to <= g_mapped[i].to) {
            (void)madvise((void *)from, to - from, MADV_DONTNEED);
            break;
        }
    mapped_unlock();
}

/* The file at an address where large pages may be used; NULL: it cannot be mapped. */
static void *map_file(int fd, size_t n)
{
    uint8_t *whole, *at;
    if (n < HUGE_FROM) {
        at = mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0);
        return at == MAP_FAILED ? NULL : at;
    }
    whole = mmap(NULL, n + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)whole % HUGE_PAGE) % HUGE_PAGE;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), taken = (n + page - 1) / page * page;
    at = mmap(whole + before, n, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
    if (at == MAP_FAILED) {
        (void)munmap(whole, n + HUGE_PAGE);
        return NULL;
    }
    if (before > 0) (void)munmap(whole, before);
    if (before + taken < n + HUGE_PAGE) (void)munmap(at + taken, n + HUGE_PAGE - before - taken);
    return at;
}

void imp_sys_file_wish_huge(const imp_sys_file *f)
{
#ifdef MADV_HUGEPAGE
    if (f->mapped && f->n >= HUGE_FROM) (void)madvise((void *)(uintptr_t)f->data, f->n, MADV_HUGEPAGE);
#else
    (void)f;
#endif
}

imp_status imp_sys_file_open(const char *path, bool map, imp_sys_file *out, imp_error *err)
{
    struct stat st;
    *out = (imp_sys_file){0};
    int fd = imp_sys_should_fail() ? (errno = EIO, -1) : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return io_error(err, "open", path);
    imp_status s = IMP_OK;
    if (fstat(fd, &st) != 0) {
        s = io_error(err, "examine", path);
    } else if (S_ISDIR(st.st_mode)) {
        s = imp_fail(err, IMP_IO, "%s is a folder, a file is needed", path);
    } else if (!S_ISREG(st.st_mode)) {
        s = imp_fail(err, IMP_IO, "%s is not a regular file", path);
    } else if (st.st_size > 0) {
        uint64_t n = (uint64_t)st.st_size;
        void *p = map && !imp_sys_should_fail() ? map_file(fd, (size_t)n) : NULL;
        if (p != NULL) {
            *out = (imp_sys_file){.data = p, .n = n, .mapped = true};
            if (mapped_add(p, (size_t)n, fd)) return IMP_OK;
        } else {
            s = read_all(fd, path, n, out, err);
        }
    }
    close(fd);
    return s;
}

imp_sys_stamp imp_sys_file_stamp(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) return (imp_sys_stamp){0};
#ifdef __APPLE__
    struct timespec t = st.st_mtimespec;
#else
    struct timespec t = st.st_mtim;
#endif
    return (imp_sys_stamp){.mtime_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec,
                           .n = (uint64_t)st.st_size,
                           .device = (uint64_t)st.st_dev,
                           .inode = (uint64_t)st.st_ino,
                           .others = (st.st_mode & 077) != 0};
}

bool imp_sys_same_stamp(const imp_sys_stamp *a, const imp_sys_stamp *b)
{
    return a->mtime_ns == b->mtime_ns && a->n == b->n && a->device == b->device && a->inode == b->inode;
}

void imp_sys_file_close(imp_sys_file *f)
{
    if (f->data != NULL && f->mapped) {
        mapped_remove(f->data);
        (void)munmap((void *)(uintptr_t)f->data, (size_t)f->n);
    } else {
        imp_sys_free((void *)(uintptr_t)f->data);
    }
    *f = (imp_sys_file){0};
}

bool imp_sys_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}
bool imp_sys_is_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}
bool imp_sys_same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool write_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t w = imp_sys_should_fail() ? (errno = ENOSPC, -1) : write(fd, p, IMP_MIN(n, (size_t)1 << 30));
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) return false;
        p += w;
        n -= (size_t)w;
    }
    return true;
}

imp_status imp_sys_file_write(const char *path, const void *p, size_t n, imp_error *err)
{
    imp_buf tmp = {0};
    imp_buf_fmt(&tmp, "%s.tmp", path);
    if (tmp.failed) {
        imp_buf_deinit(&tmp);
        return imp_fail(err, IMP_NOMEM, "out of memory while writing %s", path);
    }
    imp_status s = IMP_OK;
    int fd = imp_sys_should_fail() ? (errno = EIO, -1)
                                   : open(tmp.data, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        s = io_error(err, "create", path);
    } else {
        bool ok = write_all(fd, p, n) && fsync(fd) == 0;
        if (!ok) s = io_error(err, "write", path);
        close(fd);
        if (ok && rename(tmp.data, path) != 0) s = io_error(err, "rename to", path);
        if (s != IMP_OK) (void)unlink(tmp.data);
    }
    imp_buf_deinit(&tmp);
    return s;
}

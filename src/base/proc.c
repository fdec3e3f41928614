/* base/proc.c - helper processes; see proc.h. */
#include "base/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { FIRST_FD = 10, SLICE_MS = 50 }; /* our descriptors lie above those that the child gets */

struct imp_proc {
    pid_t pid;
    int fd;
    void *shared;
    size_t n_shared;
};

static imp_status failed(imp_error *err, const char *what)
{
    int e = errno;
    return imp_fail(err,
                    e == ENOENT   ? IMP_NOT_FOUND
                    : e == ENOMEM ? IMP_NOMEM
                                  : IMP_IO,
                    "cannot %s: %s", what, strerror(e));
}

/* fd moved out of the way of the child's numbers, closed on exec; -1 when that fails, fd is closed in any case. */
static int raise_fd(int fd)
{
    int up = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FD);
    if (fd >= 0) close(fd);
    return up;
}

static int open_memory(size_t n)
{
    static _Atomic uint32_t count;
    char name[32]; /* the most that macOS takes is 31 characters */
    (void)snprintf(name, sizeof name, "/impetus-%d-%u", (int)getpid(), atomic_fetch_add(&count, 1));
    int fd = imp_sys_should_fail() ? (errno = ENOMEM, -1) : shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) return -1;
    (void)shm_unlink(name);
    int r = ftruncate(fd, (off_t)n);
#ifdef __linux__
    if (r == 0)
        r = (errno = posix_fallocate(fd, 0, (off_t)n)) != 0; /* else a full /dev/shm kills the writer */
#endif
    if (r == 0) return raise_fd(fd);
    close(fd);
    return -1;
}

static int open_pair(int fd[2])
{
    int type = SOCK_STREAM;
#ifdef SOCK_CLOEXEC
    type |= SOCK_CLOEXEC;
#endif
    int raw[2];
    if (imp_sys_should_fail() ? (errno = EMFILE, true) : socketpair(AF_UNIX, type, 0, raw) != 0) return -1;
    fd[0] = raise_fd(raw[0]);
    fd[1] = raise_fd(raw[1]);
#ifdef SO_NOSIGPIPE
    int on = 1;
    for (int i = 0; i < 2; i++) (void)setsockopt(fd[i], SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    return fd[0] < 0 || fd[1] < 0 ? -1 : 0;
}

/* Returns an errno value. */
static int spawn(const char *const *argv, int socket_fd, int memory_fd, pid_t *pid)
{
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t at;
    sigset_t none, normal;
    sigemptyset(&none);
    sigemptyset(&normal);
    sigaddset(&normal, SIGPIPE);
    sigaddset(&normal, SIGINT);
    sigaddset(&normal, SIGTERM);
    short flags = POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
    if (imp_sys_should_fail()) return EAGAIN;
    int r = posix_spawn_file_actions_init(&fa);
    if (r != 0) return r;
    r = posix_spawnattr_init(&at);
    if (r != 0) {
        (void)posix_spawn_file_actions_destroy(&fa);
        return r;
    }
#ifdef POSIX_SPAWN_CLOEXEC_DEFAULT
    flags |= POSIX_SPAWN_CLOEXEC_DEFAULT;
    r = posix_spawn_file_actions_addinherit_np(&fa, 2);
#endif
    if (r == 0) r = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    if (r == 0) r = posix_spawn_file_actions_adddup2(&fa, 2, 1);
    if (r == 0) r = posix_spawn_file_actions_adddup2(&fa, socket_fd, IMP_PROC_SOCKET_FD);
    if (r == 0) r = posix_spawn_file_actions_adddup2(&fa, memory_fd, IMP_PROC_MEMORY_FD);
    if (r == 0) r = posix_spawnattr_setflags(&at, flags);
    if (r == 0) r = posix_spawnattr_setsigmask(&at, &none);
    if (r == 0) r = posix_spawnattr_setsigdefault(&at, &normal);
    if (r == 0) r = posix_spawn(pid, argv[0], &fa, &at, (char *const *)(uintptr_t)argv, environ);
    (void)posix_spawnattr_destroy(&at);
    (void)posix_spawn_file_actions_destroy(&fa);
    return r;
}

imp_status imp_proc_start(const char *const *argv, size_t n_shared, imp_proc **out, imp_error *err)
{
    *out = NULL;
    imp_proc *p = imp_sys_calloc(1, sizeof *p);
    if (p == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while starting %s", argv[0]);
    int pair[2] = {-1, -1}, mem = open_memory(n_shared);
    imp_status s = IMP_OK;
    if (mem < 0) s = failed(err, "make shared memory");
    if (s == IMP_OK && open_pair(pair) != 0) s = failed(err, "make a socket pair");
    if (s == IMP_OK) {
        void *at = imp_sys_should_fail() ? (errno = ENOMEM, MAP_FAILED)
                                         : mmap(NULL, n_shared, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
        if (at == MAP_FAILED)
            s = failed(err, "map shared memory");
        else
            p->shared = at, p->n_shared = n_shared;
    }
    if (s == IMP_OK && (errno = spawn(argv, pair[1], mem, &p->pid)) != 0)
        s = failed(err, "start a helper process");
    if (mem >= 0) close(mem);
    if (pair[1] >= 0) close(pair[1]);
    if (s == IMP_OK) {
        p->fd = pair[0];
        *out = p;
        return IMP_OK;
    }
    if (pair[0] >= 0) close(pair[0]);
    if (p->shared != NULL) (void)munmap(p->shared, n_shared);
    imp_sys_free(p);
    return s;
}

void *imp_proc_shared(const imp_proc *p)
{
    return p->shared;
}
int imp_proc_socket(const imp_proc *p)
{
    return p->fd;
}
int imp_proc_pid(const imp_proc *p)
{
    return (int)p->pid;
}

void imp_proc_end(imp_proc *p, uint32_t grace_ms, char *how, size_t cap)
{
    if (how != NULL) how[0] = '\0';
    if (p == NULL) return;
    close(p->fd);
    int st = 0;
    uint64_t until = imp_now_ns() + (uint64_t)grace_ms * 1000000u;
    bool killed = false;
    pid_t r;
    while ((r = waitpid(p->pid, &st, killed ? 0 : WNOHANG)) == 0 || (r < 0 && errno == EINTR)) {
        if (r < 0) continue;
        if (imp_now_ns() >= until) {
            (void)kill(p->pid, SIGKILL);
            killed = true;
        } else {
            (void)poll(NULL, 0, 2);
        }
    }
    if (how != NULL && r == p->pid && !killed) {
        if (WIFSIGNALED(st))
            (void)snprintf(how, cap, "was killed by signal %d", WTERMSIG(st));
        else if (WEXITSTATUS(st) != 0)
            (void)snprintf(how, cap, "ended with code %d", WEXITSTATUS(st));
    }
    (void)munmap(p->shared, p->n_shared);
    imp_sys_free(p);
}

/* Wait until fd can be read or written. BUSY: the time is up. */
static imp_status wait_for(int fd, short what, uint64_t deadline, const bool *stop, imp_error *err)
{
    for (;;) {
        if (stop != NULL && __atomic_load_n(stop, __ATOMIC_ACQUIRE))
            return imp_fail(err, IMP_BUSY, "the wait was called off");
        uint64_t now = imp_now_ns();
        if (now >= deadline) return imp_fail(err, IMP_BUSY, "it did not answer in time");
        uint64_t ms = deadline == UINT64_MAX ? UINT64_MAX : (deadline - now) / 1000000u + 1;
        struct pollfd f = {.fd = fd, .events = what};
        int r = poll(&f, 1, stop != NULL || ms > 1000 ? (int)IMP_MIN(ms, (uint64_t)SLICE_MS) : (int)ms);
        if (r > 0) return IMP_OK;
        if (r < 0 && errno != EINTR) return failed(err, "wait for a helper process");
    }
}

imp_status imp_proc_send(int fd, const void *p, size_t n, uint64_t deadline, imp_error *err)
{
    int flags = 0;
#ifdef MSG_NOSIGNAL
    flags = MSG_NOSIGNAL;
#endif
    for (const char *at = p; n > 0;) {
        IMP_TRY(wait_for(fd, POLLOUT, deadline, NULL, err));
        ssize_t k = imp_sys_should_fail() ? (errno = EPIPE, -1) : send(fd, at, n, flags);
        if (k < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (k <= 0) return imp_fail(err, IMP_IO, "the other side has gone");
        at += k;
        n -= (size_t)k;
    }
    return IMP_OK;
}

imp_status imp_proc_recv(int fd, void *p, size_t n, uint64_t deadline, const bool *stop, imp_error *err)
{
    for (char *at = p; n > 0;) {
        IMP_TRY(wait_for(fd, POLLIN, deadline, stop, err));
        ssize_t k = imp_sys_should_fail() ? (errno = ECONNRESET, -1) : recv(fd, at, n, 0);
        if (k < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (k <= 0) return imp_fail(err, IMP_IO, "the other side has gone");
        at += k;
        n -= (size_t)k;
    }
    return IMP_OK;
}

imp_status imp_proc_map_shared(size_t n_min, void **out, size_t *n, imp_error *err)
{
    struct stat st;
    *out = NULL;
    if (fstat(IMP_PROC_MEMORY_FD, &st) != 0 || st.st_size < 0 || (uint64_t)st.st_size < n_min)
        return imp_fail(err, IMP_IO, "there is no shared memory of %zu bytes", n_min);
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, IMP_PROC_MEMORY_FD, 0);
    if (p == MAP_FAILED) return failed(err, "map shared memory");
    *out = p;
    *n = (size_t)st.st_size;
    return IMP_OK;
}

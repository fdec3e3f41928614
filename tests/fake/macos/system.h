/* tests/fake/macos/system.h - what the program uses of the C library and kernel of macOS, declared by us, so that it can be
 * compiled and linked for arm64-apple-macos where no Apple SDK is (make test, mk/apple.mk).
 *
 * Idea:    every standard header's name leads here. Names, types and prototypes are those of POSIX and of Apple's
 *          documentation; structs have the members that we use. It shows that our sources hold no call and no type that
 *          macOS lacks. What is built with it is looked at and thrown away, never run. */
#ifndef IMP_FAKE_MACOS_H
#define IMP_FAKE_MACOS_H

#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef long ssize_t;
typedef int64_t off_t;
typedef int pid_t;
typedef uint32_t uid_t, gid_t, useconds_t, socklen_t, in_addr_t;
typedef int32_t dev_t, suseconds_t;
typedef uint16_t mode_t, nlink_t, in_port_t;
typedef uint64_t ino_t;
typedef long time_t;
typedef unsigned char u_char;
typedef unsigned int u_int;
typedef unsigned short u_short;
typedef uint8_t sa_family_t;
typedef int32_t wint_t;

/* ---- errno.h */
extern int *__error(void);
#define errno         (*__error())
#define EPERM         1
#define ENOENT        2
#define EINTR         4
#define EIO           5
#define ENOMEM        12
#define EACCES        13
#define EEXIST        17
#define EXDEV         18
#define ENOTDIR       20
#define EISDIR        21
#define EINVAL        22
#define ENFILE        23
#define EMFILE        24
#define ENOSPC        28
#define EPIPE         32
#define ERANGE        34
#define EBADF         9
#define EAGAIN        35
#define EWOULDBLOCK   35
#define EADDRINUSE    48
#define EADDRNOTAVAIL 49
#define ECONNRESET    54
#define ECONNREFUSED  61
#define ENOTCONN      57
#define ETIMEDOUT     60
#define ELOOP         62

/* ---- string.h, strings.h */
void *memcpy(void *, const void *, size_t);
void *memmove(void *, const void *, size_t);
void *memset(void *, int, size_t);
int memcmp(const void *, const void *, size_t);
void *memchr(const void *, int, size_t);
void *memmem(const void *, size_t, const void *, size_t);
size_t strlen(const char *);
size_t strnlen(const char *, size_t);
char *strcpy(char *, const char *);
char *strcat(char *, const char *);
int strcmp(const char *, const char *);
int strncmp(const char *, const char *, size_t);
int strcasecmp(const char *, const char *);
int strncasecmp(const char *, const char *, size_t);
char *strchr(const char *, int);
char *strrchr(const char *, int);
char *strstr(const char *, const char *);
size_t strspn(const char *, const char *);
size_t strcspn(const char *, const char *);
char *strpbrk(const char *, const char *);
char *strerror(int);
char *strsignal(int);
char *strdup(const char *);
char *strtok_r(char *, const char *, char **);

/* ---- stdio.h */
typedef struct __sFILE FILE;
extern FILE *__stdinp, *__stdoutp, *__stderrp;
#define stdin    __stdinp
#define stdout   __stdoutp
#define stderr   __stderrp
#define EOF      (-1)
#define BUFSIZ   1024
#define SEEK_SET 0
#define SEEK_CUR 1
#define SEEK_END 2
#define _IOFBF   0
#define _IOLBF   1
FILE *fopen(const char *, const char *);
FILE *fdopen(int, const char *);
int fclose(FILE *);
size_t fread(void *, size_t, size_t, FILE *);
size_t fwrite(const void *, size_t, size_t, FILE *);
char *fgets(char *, int, FILE *);
int fputs(const char *, FILE *);
int fputc(int, FILE *);
int putc(int, FILE *);
int putchar(int);
int puts(const char *);
int fgetc(FILE *);
int getc(FILE *);
int getchar(void);
int ungetc(int, FILE *);
int fflush(FILE *);
int ferror(FILE *);
int feof(FILE *);
void clearerr(FILE *);
int fileno(FILE *);
int setvbuf(FILE *, char *, int, size_t);
int fseek(FILE *, long, int);
long ftell(FILE *);
void rewind(FILE *);
int remove(const char *);
int rename(const char *, const char *);
int printf(const char *, ...) __attribute__((format(printf, 1, 2)));
int fprintf(FILE *, const char *, ...) __attribute__((format(printf, 2, 3)));
int snprintf(char *, size_t, const char *, ...) __attribute__((format(printf, 3, 4)));
int vsnprintf(char *, size_t, const char *, va_list) __attribute__((format(printf, 3, 0)));
int vfprintf(FILE *, const char *, va_list) __attribute__((format(printf, 2, 0)));
int vprintf(const char *, va_list) __attribute__((format(printf, 1, 0)));
int sscanf(const char *, const char *, ...) __attribute__((format(scanf, 2, 3)));
int fscanf(FILE *, const char *, ...) __attribute__((format(scanf, 2, 3)));
ssize_t getline(char **, size_t *, FILE *);
void flockfile(FILE *);
void funlockfile(FILE *);

/* ---- stdlib.h */
#define EXIT_SUCCESS 0
#define EXIT_FAILURE 1
void *malloc(size_t);
void *calloc(size_t, size_t);
void *realloc(void *, size_t);
void free(void *);
int posix_memalign(void **, size_t, size_t);
void exit(int) __attribute__((noreturn));
void _exit(int) __attribute__((noreturn));
void abort(void) __attribute__((noreturn));
int atexit(void (*)(void));
char *getenv(const char *);
int setenv(const char *, const char *, int);
int unsetenv(const char *);
char *realpath(const char *, char *);
char *mkdtemp(char *);
int mkstemp(char *);
int abs(int);
long labs(long);
long long llabs(long long);
int atoi(const char *);
double atof(const char *);
double strtod(const char *, char **);
float strtof(const char *, char **);
long strtol(const char *, char **, int);
unsigned long strtoul(const char *, char **, int);
long long strtoll(const char *, char **, int);
unsigned long long strtoull(const char *, char **, int);
void qsort(void *, size_t, size_t, int (*)(const void *, const void *));
void *bsearch(const void *, const void *, size_t, size_t, int (*)(const void *, const void *));
int getloadavg(double *, int);

/* ---- ctype.h */
int isalpha(int);
int isdigit(int);
int isalnum(int);
int isspace(int);
int isupper(int);
int islower(int);
int isprint(int);
int ispunct(int);
int isxdigit(int);
int iscntrl(int);
int isgraph(int);
int tolower(int);
int toupper(int);

/* ---- inttypes.h */
#define PRId64 "lld"
#define PRIu64 "llu"
#define PRIx64 "llx"
#define PRId32 "d"
#define PRIu32 "u"
#define PRIx32 "x"

/* ---- math.h */
#define M_PI        3.14159265358979323846
#define M_SQRT1_2   0.70710678118654752440
#define M_SQRT2     1.41421356237309504880
#define M_LN2       0.69314718055994530942
#define INFINITY    __builtin_inff()
#define NAN         __builtin_nanf("")
#define HUGE_VAL    __builtin_huge_val()
#define isnan(x)    __builtin_isnan(x)
#define isinf(x)    __builtin_isinf(x)
#define isfinite(x) __builtin_isfinite(x)
#define signbit(x)  __builtin_signbit(x)
#define MATH1(name)                                                                                          \
    double name(double);                                                                                     \
    float name##f(float);
#define MATH2(name)                                                                                          \
    double name(double, double);                                                                             \
    float name##f(float, float);
/* clang-format off */
MATH1(sqrt)
MATH1(exp)
MATH1(exp2) MATH1(expm1) MATH1(log) MATH1(log2) MATH1(log10) MATH1(log1p) MATH1(sin) MATH1(cos) MATH1(tan)
    MATH1(tanh) MATH1(sinh) MATH1(cosh) MATH1(atan) MATH1(acos) MATH1(asin) MATH1(erf) MATH1(erfc) MATH1(fabs)
        MATH1(floor) MATH1(ceil) MATH1(round) MATH1(rint) MATH1(nearbyint) MATH1(trunc) MATH1(cbrt)
            MATH1(tgamma) MATH1(lgamma) MATH2(pow) MATH2(fmod) MATH2(fmax) MATH2(fmin) MATH2(atan2)
                MATH2(hypot) MATH2(copysign) MATH2(nextafter) MATH2(fdim) double ldexp(double, int);
/* clang-format on */
float ldexpf(float, int);
double scalbn(double, int);
float scalbnf(float, int);
double frexp(double, int *);
float frexpf(float, int *);
double modf(double, double *);
double fma(double, double, double);
float fmaf(float, float, float);
long lround(double);
long lroundf(float);
long long llround(double);
long lrint(double);
long lrintf(float);
long long llrint(double);
int ilogb(double);

/* ---- time.h, sys/time.h */
struct timespec {
    time_t tv_sec;
    long tv_nsec;
};
struct timeval {
    time_t tv_sec;
    suseconds_t tv_usec;
};
struct tm {
    int tm_sec, tm_min, tm_hour, tm_mday, tm_mon, tm_year, tm_wday, tm_yday, tm_isdst;
    long tm_gmtoff;
    char *tm_zone;
};
typedef int clockid_t;
#define CLOCK_REALTIME           0
#define CLOCK_MONOTONIC          6
#define CLOCK_THREAD_CPUTIME_ID  16
#define CLOCK_PROCESS_CPUTIME_ID 12
int clock_gettime(clockid_t, struct timespec *);
int nanosleep(const struct timespec *, struct timespec *);
int gettimeofday(struct timeval *, void *);
time_t time(time_t *);
time_t mktime(struct tm *);
time_t timegm(struct tm *);
struct tm *gmtime_r(const time_t *, struct tm *);
struct tm *localtime_r(const time_t *, struct tm *);
size_t strftime(char *, size_t, const char *, const struct tm *);
char *strptime(const char *, const char *, struct tm *);

/* ---- unistd.h, fcntl.h, sys/stat.h, ftw.h, dirent.h */
#define STDIN_FILENO         0
#define STDOUT_FILENO        1
#define STDERR_FILENO        2
#define F_OK                 0
#define X_OK                 1
#define W_OK                 2
#define R_OK                 4
#define _SC_PAGESIZE         29
#define _SC_NPROCESSORS_ONLN 58
#define _SC_PHYS_PAGES       200
#define O_RDONLY             0
#define O_WRONLY             1
#define O_RDWR               2
#define O_NONBLOCK           4
#define O_APPEND             8
#define O_NOFOLLOW           0x100
#define O_CREAT              0x200
#define O_TRUNC              0x400
#define O_EXCL               0x800
#define O_DIRECTORY          0x100000
#define O_CLOEXEC            0x1000000
#define F_GETFD              1
#define F_SETFD              2
#define F_GETFL              3
#define F_SETFL              4
#define F_DUPFD_CLOEXEC      67
#define FD_CLOEXEC           1
#define AT_FDCWD             (-2)
#define LOCK_EX              2
#define LOCK_NB              4
#define LOCK_UN              8
#define F_SETLK              8
#define F_SETLKW             9
#define F_WRLCK              3
#define F_UNLCK              2
struct flock {
    off_t l_start, l_len;
    pid_t l_pid;
    short l_type, l_whence;
};
int open(const char *, int, ...);
int openat(int, const char *, int, ...);
int fcntl(int, int, ...);
int flock(int, int);
int close(int);
ssize_t read(int, void *, size_t);
ssize_t write(int, const void *, size_t);
ssize_t pread(int, void *, size_t, off_t);
ssize_t pwrite(int, const void *, size_t, off_t);
off_t lseek(int, off_t, int);
int fsync(int);
int ftruncate(int, off_t);
int unlink(const char *);
int unlinkat(int, const char *, int);
int linkat(int, const char *, int, const char *, int);
int rmdir(const char *);
int link(const char *, const char *);
int symlink(const char *, const char *);
ssize_t readlink(const char *, char *, size_t);
int access(const char *, int);
int dup(int);
int dup2(int, int);
int pipe(int[2]);
int isatty(int);
pid_t getpid(void);
pid_t getppid(void);
uid_t getuid(void);
uid_t geteuid(void);
pid_t fork(void);
int chdir(const char *);
char *getcwd(char *, size_t);
long sysconf(int);
int usleep(useconds_t);
unsigned sleep(unsigned);
int gethostname(char *, size_t);
struct stat {
    dev_t st_dev;
    mode_t st_mode;
    nlink_t st_nlink;
    ino_t st_ino;
    uid_t st_uid;
    gid_t st_gid;
    struct timespec st_mtimespec, st_ctimespec;
    off_t st_size;
    int64_t st_blocks;
};
#define st_mtime    st_mtimespec.tv_sec
#define S_IWGRP     0000020
#define S_IWOTH     0000002
#define S_IFMT      0170000
#define S_ISDIR(m)  (((m)&S_IFMT) == 0040000)
#define S_ISREG(m)  (((m)&S_IFMT) == 0100000)
#define S_ISCHR(m)  (((m)&S_IFMT) == 0020000)
#define S_ISLNK(m)  (((m)&S_IFMT) == 0120000)
#define S_ISSOCK(m) (((m)&S_IFMT) == 0140000)
int stat(const char *, struct stat *);
int lstat(const char *, struct stat *);
int fstat(int, struct stat *);
int fstatat(int, const char *, struct stat *, int);
#define AT_SYMLINK_NOFOLLOW 0x0020
int utimensat(int, const char *, const struct timespec[2], int);
int mkdir(const char *, mode_t);
int mkdirat(int, const char *, mode_t);
int chmod(const char *, mode_t);
int fchmod(int, mode_t);
mode_t umask(mode_t);
int renameat(int, const char *, int, const char *);
struct statvfs {
    unsigned long f_bsize, f_frsize;
    uint32_t f_blocks, f_bfree, f_bavail;
};
int statvfs(const char *, struct statvfs *);
struct FTW {
    int base, level;
};
#define FTW_PHYS  1
#define FTW_DEPTH 4
int nftw(const char *, int (*)(const char *, const struct stat *, int, struct FTW *), int, int);
typedef struct _dirdesc DIR;
struct dirent {
    ino_t d_ino;
    uint8_t d_type;
    char d_name[1024];
};
#define DT_DIR 4
#define DT_REG 8
DIR *opendir(const char *);
DIR *fdopendir(int);
struct dirent *readdir(DIR *);
int closedir(DIR *);
int dirfd(DIR *);

/* ---- sys/mman.h, sys/resource.h, sys/utsname.h, sys/sysctl.h, sys/random.h */
#define PROT_NONE       0
#define PROT_READ       1
#define PROT_WRITE      2
#define PROT_EXEC       4
#define MAP_SHARED      1
#define MAP_PRIVATE     2
#define MAP_FIXED       0x10
#define MAP_ANONYMOUS   0x1000
#define MAP_FAILED      ((void *)-1)
#define MADV_NORMAL     0
#define MADV_RANDOM     1
#define MADV_SEQUENTIAL 2
#define MADV_WILLNEED   3
#define MADV_DONTNEED   4
#define MS_SYNC         0x10
void *mmap(void *, size_t, int, int, int, off_t);
int munmap(void *, size_t);
int mprotect(void *, size_t, int);
int madvise(void *, size_t, int);
int msync(void *, size_t, int);
int mlock(const void *, size_t);
int shm_open(const char *, int, ...);
int shm_unlink(const char *);
typedef uint64_t rlim_t;
struct rlimit {
    rlim_t rlim_cur, rlim_max;
};
struct rusage {
    struct timeval ru_utime, ru_stime;
    long ru_maxrss, ru_minflt, ru_majflt, ru_nvcsw, ru_nivcsw;
};
#define RUSAGE_SELF   0
#define RLIMIT_NOFILE 8
#define RLIM_INFINITY (((rlim_t)1 << 63) - 1)
int getrlimit(int, struct rlimit *);
int setrlimit(int, const struct rlimit *);
int getrusage(int, struct rusage *);
struct utsname {
    char sysname[256], nodename[256], release[256], version[256], machine[256];
};
int uname(struct utsname *);
int sysctlbyname(const char *, void *, size_t *, void *, size_t);
int getentropy(void *, size_t);
void arc4random_buf(void *, size_t);

/* ---- mach */
typedef uint32_t mach_port_t, natural_t, mach_msg_type_number_t;
typedef int kern_return_t, integer_t;
typedef integer_t *host_info64_t, *task_info_t;
typedef struct vm_statistics64 {
    natural_t free_count, active_count, inactive_count, wire_count, purgeable_count;
} vm_statistics64_data_t;
#define HOST_VM_INFO64       4
#define HOST_VM_INFO64_COUNT ((mach_msg_type_number_t)(sizeof(vm_statistics64_data_t) / sizeof(integer_t)))
#define KERN_SUCCESS         0
extern mach_port_t mach_task_self_;
#define mach_task_self() mach_task_self_
mach_port_t mach_host_self(void);
kern_return_t host_statistics64(mach_port_t, int, host_info64_t, mach_msg_type_number_t *);
typedef uint64_t mach_vm_size_t;
typedef struct time_value {
    integer_t seconds, microseconds;
} time_value_t;
typedef struct mach_task_basic_info {
    mach_vm_size_t virtual_size, resident_size, resident_size_max;
    time_value_t user_time, system_time;
    int policy;
    integer_t suspend_count;
} mach_task_basic_info_data_t;
#define MACH_TASK_BASIC_INFO 20
#define MACH_TASK_BASIC_INFO_COUNT                                                                           \
    ((mach_msg_type_number_t)(sizeof(mach_task_basic_info_data_t) / sizeof(natural_t)))
kern_return_t task_info(mach_port_t, natural_t, task_info_t, mach_msg_type_number_t *);
int _NSGetExecutablePath(char *, uint32_t *);

/* ---- signal.h, sys/wait.h, spawn.h, poll.h, dlfcn.h */
typedef uint32_t sigset_t;
typedef struct __siginfo siginfo_t;
struct sigaction {
    union {
        void (*sa_handler)(int);
        void (*sa_sigaction)(int, siginfo_t *, void *);
    };
    sigset_t sa_mask;
    int sa_flags;
};
typedef int sig_atomic_t;
#define SIG_DFL      ((void (*)(int))0)
#define SIG_IGN      ((void (*)(int))1)
#define SIGHUP       1
#define SIGINT       2
#define SIGQUIT      3
#define SIGABRT      6
#define SIGKILL      9
#define SIGBUS       10
#define SIGSEGV      11
#define SIGPIPE      13
#define SIGALRM      14
#define SIGTERM      15
#define SIGWINCH     28
#define SIGUSR1      30
#define SA_RESTART   2
#define SA_RESETHAND 4
#define SIG_BLOCK    1
#define SIG_UNBLOCK  2
#define SIG_SETMASK  3
int sigaction(int, const struct sigaction *, struct sigaction *);
int sigemptyset(sigset_t *);
int sigaddset(sigset_t *, int);
int sigprocmask(int, const sigset_t *, sigset_t *);
int sigsuspend(const sigset_t *);
int sigwait(const sigset_t *, int *);
int kill(pid_t, int);
int raise(int);
#define WNOHANG        1
#define WIFEXITED(s)   (((s)&0177) == 0)
#define WEXITSTATUS(s) (((s) >> 8) & 0377)
#define WIFSIGNALED(s) (((s)&0177) != 0 && ((s)&0177) != 0177)
#define WTERMSIG(s)    ((s)&0177)
pid_t waitpid(pid_t, int *, int);
typedef void *posix_spawn_file_actions_t, *posix_spawnattr_t;
#define POSIX_SPAWN_SETPGROUP       2
#define POSIX_SPAWN_SETSIGDEF       4
#define POSIX_SPAWN_SETSIGMASK      8
#define POSIX_SPAWN_CLOEXEC_DEFAULT 0x4000
int posix_spawn(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                char *const[], char *const[]);
int posix_spawn_file_actions_init(posix_spawn_file_actions_t *);
int posix_spawn_file_actions_destroy(posix_spawn_file_actions_t *);
int posix_spawn_file_actions_addopen(posix_spawn_file_actions_t *, int, const char *, int, mode_t);
int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *, int, int);
int posix_spawn_file_actions_addinherit_np(posix_spawn_file_actions_t *, int);
int posix_spawnattr_init(posix_spawnattr_t *);
int posix_spawnattr_destroy(posix_spawnattr_t *);
int posix_spawnattr_setflags(posix_spawnattr_t *, short);
int posix_spawnattr_setsigmask(posix_spawnattr_t *, const sigset_t *);
int posix_spawnattr_setsigdefault(posix_spawnattr_t *, const sigset_t *);
struct pollfd {
    int fd;
    short events, revents;
};
typedef unsigned int nfds_t;
#define POLLIN  1
#define POLLOUT 4
#define POLLERR 8
#define POLLHUP 16
int poll(struct pollfd *, nfds_t, int);
#define RTLD_LAZY    1
#define RTLD_NOW     2
#define RTLD_LOCAL   4
#define RTLD_GLOBAL  8
#define RTLD_DEFAULT ((void *)-2)
void *dlopen(const char *, int);
void *dlsym(void *, const char *);
int dlclose(void *);
char *dlerror(void);

/* ---- pthread.h, sched.h */
typedef struct pthread_s *pthread_t;
typedef struct {
    long sig;
    char opaque[56];
} pthread_mutex_t, pthread_attr_t;
typedef struct {
    long sig;
    char opaque[40];
} pthread_cond_t;
typedef struct {
    long sig;
    char opaque[8];
} pthread_condattr_t, pthread_mutexattr_t, pthread_once_t;
#define PTHREAD_MUTEX_INITIALIZER                                                                            \
    {                                                                                                        \
        0x32AAABA7,                                                                                          \
        {                                                                                                    \
            0                                                                                                \
        }                                                                                                    \
    }
#define PTHREAD_COND_INITIALIZER                                                                             \
    {                                                                                                        \
        0x3CB0B1BB,                                                                                          \
        {                                                                                                    \
            0                                                                                                \
        }                                                                                                    \
    }
#define PTHREAD_ONCE_INIT                                                                                    \
    {                                                                                                        \
        0x30B1BCBA,                                                                                          \
        {                                                                                                    \
            0                                                                                                \
        }                                                                                                    \
    }
int pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int pthread_join(pthread_t, void **);
int pthread_detach(pthread_t);
pthread_t pthread_self(void);
int pthread_once(pthread_once_t *, void (*)(void));
int pthread_mutex_init(pthread_mutex_t *, const pthread_mutexattr_t *);
int pthread_mutex_destroy(pthread_mutex_t *);
int pthread_mutex_lock(pthread_mutex_t *);
int pthread_mutex_unlock(pthread_mutex_t *);
int pthread_cond_init(pthread_cond_t *, const pthread_condattr_t *);
int pthread_cond_destroy(pthread_cond_t *);
int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
int pthread_cond_timedwait_relative_np(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
int pthread_cond_signal(pthread_cond_t *);
int pthread_cond_broadcast(pthread_cond_t *);
int pthread_condattr_init(pthread_condattr_t *);
int pthread_condattr_destroy(pthread_condattr_t *);
int pthread_sigmask(int, const sigset_t *, sigset_t *);
int pthread_attr_init(pthread_attr_t *);
int pthread_attr_destroy(pthread_attr_t *);
int pthread_attr_setstacksize(pthread_attr_t *, size_t);
int sched_yield(void);

/* ---- termios.h, sys/ioctl.h, locale.h */
struct winsize {
    unsigned short ws_row, ws_col, ws_xpixel, ws_ypixel;
};
#define TIOCGWINSZ 0x40087468
int ioctl(int, unsigned long, ...);
#define LC_ALL     0
#define LC_CTYPE   2
#define LC_NUMERIC 4
char *setlocale(int, const char *);
#define assert(x) ((void)0)

#endif

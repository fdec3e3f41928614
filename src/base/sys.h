/* base/sys.h - the seam to the system: every call that can fail for reasons outside the program.
 *
 * Place:   layer 0; the only code that calls malloc, open, mmap, pthread_create and the like.
 * Idea:    each function counts itself; imp_sys_fail_at(n) makes the nth call from now fail the way the
 *          system would (NULL, IMP_IO, ...). tests/fault walks n until a run has no failure.
 * Threads: all of it is thread-safe; the counter is atomic. */
#ifndef IMP_SYS_H
#define IMP_SYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "impetus.h"

void *imp_sys_malloc(size_t n); /* n == 0 gives a unique pointer */
void *imp_sys_calloc(size_t n, size_t size);
void *imp_sys_realloc(void *p, size_t n);
void imp_sys_free(void *p);
char *imp_sys_strdup(const char *s);
/* Page-aligned zeroed memory, huge pages asked for when large; n is given back with it. */
void *imp_sys_pages(size_t n);
void imp_sys_pages_free(void *p, size_t n);

/* A whole file, read-only: mapped where that works, else read. */
typedef struct imp_sys_file {
    const uint8_t *data; /* owned; NULL when the file is empty */
    uint64_t n;
    bool mapped;
} imp_sys_file;
/* NOT_FOUND, IO (also when path is a folder), NOMEM; err says which and why. */
IMP_MUST_USE imp_status imp_sys_file_open(const char *path, bool map, imp_sys_file *out, imp_error *err);
void imp_sys_file_close(imp_sys_file *f);
/* The n bytes at p will not be read soon: where they lie in a mapped file their pages leave this process's resident
 * memory, and come back from the file when they are read after all. Anything else is left alone. Any thread. */
void imp_sys_file_forget(const void *p, size_t n);
/* A wish: the system keeps a large mapped file in large pages, here and in its file cache. */
void imp_sys_file_wish_huge(const imp_sys_file *f);
/* What tells a file's contents from earlier ones without reading them: who overwrites a file changes changed_ns, which no
 * program can set. */
typedef struct imp_sys_file_id {
    uint64_t dev, ino, bytes;
    int64_t written_ns, changed_ns; /* mtime, ctime: since 1970 */
} imp_sys_file_id;
/* Of the mapped file that holds the n bytes at p, as it is now; false: they are in none. */
bool imp_sys_file_id_of(const void *p, size_t n, imp_sys_file_id *out);
bool imp_sys_is_dir(const char *path);
bool imp_sys_is_file(const char *path);
bool imp_sys_same_file(const char *a,
                       const char *b); /* both are there and are one file, whatever the names */
/* What tells one version of a file from the next. */
typedef struct imp_sys_stamp {
    int64_t mtime_ns;
    uint64_t n, device, inode; /* n: bytes; inode 0: the file is not there */
    bool others;               /* it may be read by others than its owner */
} imp_sys_stamp;
imp_sys_stamp imp_sys_file_stamp(const char *path);
bool imp_sys_same_stamp(const imp_sys_stamp *a, const imp_sys_stamp *b);
/* Write n bytes to path + ".tmp", sync, rename over path. */
IMP_MUST_USE imp_status imp_sys_file_write(const char *path, const void *p, size_t n, imp_error *err);
/* The folder is there afterwards; its parent must be. */
IMP_MUST_USE imp_status imp_sys_make_dir(const char *path, imp_error *err);
/* The same with all that lead to it. */
IMP_MUST_USE imp_status imp_sys_make_dirs(const char *path, imp_error *err);
/* The file or folder and all that is in it; links are not followed. What cannot be removed stays. */
void imp_sys_remove_tree(const char *path);

/* Every name in a folder, without "." and "..", in no order. NOT_FOUND, IO. */
IMP_MUST_USE imp_status imp_sys_list(const char *path, void (*fn)(void *user, const char *name), void *user,
                                     imp_error *err);
/* imp_sys_file_stamp; of a folder: of all files in it together. false: it is not there. */
bool imp_sys_stamp_of(const char *path, imp_sys_stamp *out);
IMP_MUST_USE imp_status imp_sys_remove_file(const char *path, imp_error *err);
/* Memory that was freed goes back to the system, where the allocator keeps some. */
void imp_sys_trim(void);

/* A file written piece by piece: to path + ".tmp", put in place when closed with keep. */
typedef struct imp_sys_out imp_sys_out;
IMP_MUST_USE imp_status imp_sys_out_open(const char *path, imp_sys_out **out, imp_error *err);
IMP_MUST_USE imp_status imp_sys_out_write(imp_sys_out *o, const void *p, size_t n, imp_error *err);
/* The same for files of a cache: other processes may write the same one meanwhile, the last one stays; what a crash leaves
 * incomplete in its place must be noticed by who reads it. The temporary file is called path + ".PID-N.tmp". */
IMP_MUST_USE imp_status imp_sys_out_open_cache(const char *path, imp_sys_out **out, imp_error *err);
/* n bytes of zeros, which take no room on disk where the system can leave a hole. */
IMP_MUST_USE imp_status imp_sys_out_skip(imp_sys_out *o, uint64_t n, imp_error *err);
/* Overwrite bytes that were written before. */
IMP_MUST_USE imp_status imp_sys_out_patch(imp_sys_out *o, uint64_t at, const void *p, size_t n,
                                          imp_error *err);
uint64_t imp_sys_out_n(const imp_sys_out *o); /* bytes written so far */
/* Frees o in any case; keep false: nothing remains. NULL is allowed. */
IMP_MUST_USE imp_status imp_sys_out_close(imp_sys_out *o, bool keep, imp_error *err);

/* A file that only grows, a line at a time: every write is one call, at the end, whoever else writes there. Made with
 * mode 0640. */
IMP_MUST_USE imp_status imp_sys_append_open(const char *path, int *out_fd, imp_error *err);
IMP_MUST_USE bool imp_sys_append(int fd, const void *p, size_t n); /* false: not all of it was taken */
void imp_sys_append_close(int fd);

/* Calls each(ctx, name, bytes, used_ns) for every plain file in the folder, used_ns: when it was written or touched last. */
void imp_sys_list_dir(const char *path,
                      void (*each)(void *ctx, const char *name, uint64_t bytes, int64_t used_ns), void *ctx);
void imp_sys_touch(const char *path); /* used_ns is now; a wish */
bool imp_sys_remove(const char *path);
/* Removes a temporary file of imp_sys_out_open_cache whose writer is gone. */
void imp_sys_remove_left(const char *path);
/* Overwrite n bytes of a file in place; false: it cannot be written. */
bool imp_sys_file_patch(const char *path, uint64_t at, const void *p, size_t n);
uint64_t imp_sys_disk_free(const char *path); /* bytes this user may still write there; 0: not known */
int64_t imp_sys_clock_ns(void);               /* since 1970, as the times of files */
/* The calling thread gives way to all others, and what it writes to files is spread over the memory of all NUMA nodes, so
 * that all threads read it equally well; wishes. (Not seen at work on a machine of several nodes.) */
void imp_sys_thread_idle(void);

/* Memory of the machine in bytes: all, and what can be used now without swapping. */
void imp_sys_memory(uint64_t *total, uint64_t *available);
uint64_t imp_sys_resident(void); /* bytes of memory this process holds now; 0: not known */
uint32_t imp_sys_n_core(void);   /* physical cores this process may use (affinity, cpusets, quotas), >= 1 */

IMP_MUST_USE imp_status imp_sys_random(void *p, size_t n); /* n <= 256 bytes nobody can guess */

/* The file of the running program, without links; false: not known. */
bool imp_sys_program_path(char *out, size_t cap);
/* For tests, on Linux: read /proc and /sys below this folder; NULL: the real ones. */
void imp_sys_set_root(const char *root);

/* The folder of the running program, without links; false: not known. */
bool imp_sys_program_dir(char *out, size_t cap);
uint32_t imp_sys_max_files(void);   /* files and sockets this process may have open at once */
void imp_sys_raise_max_files(void); /* to what the system lets it have, 65536 at most */
/* Physical cores are numbered from 0, the first that this process may use. Where the calling thread is now; UINT32_MAX: not
 * known. */
uint32_t imp_sys_this_core(void);
uint64_t imp_sys_thread_id(void); /* the calling thread, for imp_sys_pin_thread */
/* Bind a thread (0: the calling one) to a core; a wish, nothing fails. */
void imp_sys_pin_thread(uint64_t thread, uint32_t core);

/* Fault injection: the nth counted call from now on fails (1 = the next); 0 switches it off. */
void imp_sys_fail_at(uint64_t n);
uint64_t imp_sys_n_call(void);  /* counted calls so far */
uint64_t imp_sys_n_alloc(void); /* heap calls so far: the decode loop must not raise it */
bool imp_sys_should_fail(void); /* counts one call; for seams outside this file */

#endif

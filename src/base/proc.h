/* base/proc.h - a helper process of this program: started, spoken to over a socket pair, sharing memory, ended.
 *
 * Place:   layer 0; for code that may take its process with it (a vendor's framework), kept away from the server.
 * Idea:    no listening socket, no name in the file system: the child inherits one end of a socket pair and a piece of
 *          memory whose name is gone already. Whoever closes its end tells the other side to leave.
 * Threads: a process is used by one thread at a time. */
#ifndef IMP_PROC_H
#define IMP_PROC_H

#include "base/base.h"

/* Where the child finds its end of the socket and the shared memory. */
enum { IMP_PROC_SOCKET_FD = 3, IMP_PROC_MEMORY_FD = 4 };

typedef struct imp_proc imp_proc;

/* argv: the program's path first, NULL at the end. Its stdin is empty, its stdout is our stderr; signals of a terminal do
 * not reach it. n_shared >= 1 bytes, zeroed. NOT_FOUND: no such program. */
IMP_MUST_USE imp_status imp_proc_start(const char *const *argv, size_t n_shared, imp_proc **out,
                                       imp_error *err);
void *imp_proc_shared(const imp_proc *p);
int imp_proc_socket(const imp_proc *p);
int imp_proc_pid(const imp_proc *p);
/* Close the socket and wait grace_ms for the process to leave by itself, then kill it. how: how it ended, "was killed by
 * signal 9", "ended with code 3"; "" when it left in good order. NULL is allowed for p and how. */
void imp_proc_end(imp_proc *p, uint32_t grace_ms, char *how, size_t cap);

/* All n bytes, or IO (the other side has gone) or BUSY (the time is up, or *stop became true). deadline: imp_now_ns's
 * clock, UINT64_MAX: none. */
IMP_MUST_USE imp_status imp_proc_send(int fd, const void *p, size_t n, uint64_t deadline, imp_error *err);
IMP_MUST_USE imp_status imp_proc_recv(int fd, void *p, size_t n, uint64_t deadline, const bool *stop,
                                      imp_error *err);

/* The child's view of the shared memory, n_min bytes at least. */
IMP_MUST_USE imp_status imp_proc_map_shared(size_t n_min, void **out, size_t *n, imp_error *err);

#endif

/* http/access.c - the access log: a line for each request when it has ended.
 *
 * Idea:    the line is made where the request ends and written by the worker, so that a slow disk holds up no stream; one
 *          write a line, so that several programs may append to one file.
 * Always:  no prompt, no answer, no key. A line that cannot be written is lost; the first one lost is said in the log.
 * Threads: write on libmicrohttpd's thread, reopen from any. */
#include "http/internal.h"

#include <arpa/inet.h>
#include <stdio.h>

struct http_access {
    char *path;    /* NULL: stderr */
    imp_mutex *mu; /* guards all below */
    int fd;
    bool failing;
};

typedef struct line {
    http_access *a;
    imp_http *h; /* a reference: the log is the server's */
    imp_buf text;
} line;

imp_status http_access_open(const char *path, http_access **out, imp_error *err)
{
    *out = NULL;
    http_access *a = imp_sys_calloc(1, sizeof *a);
    imp_status st = a ? imp_mutex_new(&a->mu) : IMP_NOMEM;
    bool file = strcmp(path, "-") != 0;
    if (st == IMP_OK && file && !(a->path = imp_sys_strdup(path))) st = IMP_NOMEM;
    if (st != IMP_OK) {
        (void)imp_fail(err, st, "out of memory");
    } else {
        a->fd = 2;
        if (file) st = imp_sys_append_open(path, &a->fd, err);
    }
    if (st == IMP_OK)
        *out = a;
    else
        http_access_close(a);
    return st;
}

void http_access_close(http_access *a)
{
    if (!a) return;
    imp_sys_append_close(a->fd);
    imp_sys_free(a->path);
    if (a->mu) imp_mutex_free(a->mu);
    imp_sys_free(a);
}

void http_access_reopen(http_access *a)
{
    int fd;
    imp_error err;
    if (!a->path) return;
    if (imp_sys_append_open(a->path, &fd, &err) != IMP_OK) {
        imp_log(IMP_LOG_ERROR, "the access log goes on where it was: %s", err.text);
        return;
    }
    imp_mutex_lock(a->mu);
    int old = a->fd;
    a->fd = fd;
    imp_mutex_unlock(a->mu);
    imp_sys_append_close(old);
}

static void put(http_access *a, const imp_buf *text)
{
    imp_mutex_lock(a->mu);
    bool ok = !text->failed && imp_sys_append(a->fd, text->data, text->n);
    if (!ok && !a->failing)
        imp_log(IMP_LOG_ERROR, "the access log cannot be written: lines are lost until that works again");
    a->failing = !ok;
    imp_mutex_unlock(a->mu);
}

static void put_line(void *arg)
{
    line *l = arg;
    put(l->a, &l->text);
    imp_buf_deinit(&l->text);
    http_unref(l->h);
    imp_sys_free(l);
}

void http_access_remote(int fd, char *out, size_t cap)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    out[0] = '\0';
    if (fd < 0 || getpeername(fd, (struct sockaddr *)&a, &n) < 0) return;
    const void *p = a.ss_family == AF_INET6 ? (const void *)&((struct sockaddr_in6 *)&a)->sin6_addr
                                            : (const void *)&((struct sockaddr_in *)&a)->sin_addr;
    if (!inet_ntop(a.ss_family, p, out, (socklen_t)cap)) out[0] = '\0';
}

void http_access_write(http_stream *s)
{
    imp_http *h = s->h;
    line *l = imp_sys_calloc(1, sizeof *l), here = {0}, *use = l ? l : &here;
    imp_api_access a = {.id = s->id,
                        .client = s->client,
                        .remote = s->remote,
                        .method = s->method,
                        .path = s->path,
                        .n_in = s->n_body,
                        .total_ms = (double)(imp_now_ns() - s->t0_ns) * 1e-6,
                        .note = &s->note};
    imp_mutex_lock(s->mu);
    a.status = s->queued ? s->status : 0;
    a.n_out = s->n_sent;
    imp_api_access_line(&a, &use->text);
    imp_mutex_unlock(s->mu);
    use->a = h->access;
    use->h = h;
    atomic_fetch_add(&h->refs, 1);
    if (l && http_run_later(h, put_line, l)) return;
    put(h->access, &use->text);
    imp_buf_deinit(&use->text);
    http_unref(h);
    imp_sys_free(l);
}

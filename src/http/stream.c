/* http/stream.c - one request: its answer's queue between the API and libmicrohttpd.
 *
 * Place:   the API writes through the sink, libmicrohttpd reads through the content reader; handler.c drives.
 * Idea:    the writer appends and resumes a suspended connection; the reader takes what is there, or suspends. Both
 *          under the stream's mutex, so that a wake-up is never lost.
 * Always:  the engine is never called under a stream's mutex. A client that went away, or does not read, only sets a
 *          flag in the sink's functions; the watcher (server.c) or the completion callback cancels.
 * Threads: sink: any; reader and reply: libmicrohttpd's thread. Lock order: call, stream, libmicrohttpd. */
#include "http/internal.h"

#include <stdio.h>

/* ---- life -------------------------------------------------------------------------------------------- */

http_stream *http_stream_new(imp_http *h, struct MHD_Connection *conn, const char *method, const char *path)
{
    http_stream *s = imp_sys_calloc(1, sizeof *s);
    if (!s) return NULL;
    s->method = imp_sys_strdup(method);
    s->path = imp_sys_strdup(path);
    if (!s->method || !s->path || imp_mutex_new(&s->mu) != IMP_OK) {
        imp_sys_free(s->method);
        imp_sys_free(s->path);
        imp_sys_free(s);
        return NULL;
    }
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
    s->h = h;
    s->conn = conn;
    s->fd = info ? info->connect_fd : -1;
    info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    s->link = info ? info->socket_context : NULL;
    s->t0_ns = imp_now_ns();
    if (h->access) http_access_remote(s->fd, s->remote, sizeof s->remote);
    s->is_head = strcmp(method, "HEAD") == 0;
    uint64_t k = atomic_fetch_add(&h->next_id, 1);
    (void)snprintf(s->id, sizeof s->id, "r%016llx", (unsigned long long)imp_hash(&k, sizeof k, h->id_seed));
    atomic_init(&s->refs, 1);
    atomic_fetch_add(&h->refs, 1);
    imp_mutex_lock(h->mu);
    s->next = h->active;
    if (s->next) s->next->prev = s;
    h->active = s;
    h->n_active++;
    imp_cond_broadcast(h->cond);
    imp_mutex_unlock(h->mu);
    return s;
}

void http_stream_unref(http_stream *s)
{
    if (atomic_fetch_sub(&s->refs, 1) != 1) return;
    imp_http *h = s->h;
    atomic_fetch_sub(&h->body_bytes, s->body.n);
    imp_buf_deinit(&s->body);
    imp_buf_deinit(&s->out);
    imp_mutex_free(s->mu);
    imp_sys_free(s->method);
    imp_sys_free(s->path);
    imp_sys_free(s);
    http_unref(h);
}

/* Under s->mu. */
static void wake(http_stream *s)
{
    if (!s->suspended || !s->conn) return;
    s->suspended = false;
    MHD_resume_connection(s->conn);
}

void http_stream_set_call(http_stream *s, imp_api_call *call)
{
    if (!call) return;
    imp_mutex_lock(s->mu);
    imp_api_reason reason = s->gone ? IMP_API_GONE : s->cancel_reason;
    bool finished = s->conn == NULL;
    if (!finished) s->call = call;
    imp_mutex_unlock(s->mu);
    if (reason) imp_api_cancel(call, reason);
    if (finished) imp_api_release(call);
}

void http_stream_cancel(http_stream *s, imp_api_reason reason)
{
    imp_mutex_lock(s->mu);
    imp_api_call *call = s->ended ? NULL : s->call;
    if (!s->cancel_reason) s->cancel_reason = reason;
    imp_mutex_unlock(s->mu);
    if (call) imp_api_cancel(call, reason);
}

void http_stream_abort(http_stream *s)
{
    imp_mutex_lock(s->mu);
    s->abort = true;
    wake(s);
    imp_mutex_unlock(s->mu);
}

void http_stream_finished(http_stream *s)
{
    imp_http *h = s->h;
    imp_mutex_lock(h->mu);
    if (s->prev)
        s->prev->next = s->next;
    else
        h->active = s->next;
    if (s->next) s->next->prev = s->prev;
    if (h->at_stream == s) h->at_stream = s->next;
    h->n_active--;
    imp_cond_broadcast(h->cond);
    imp_mutex_unlock(h->mu);

    imp_mutex_lock(s->mu);
    imp_api_call *call = s->call;
    bool running = s->dispatched && !s->ended, counted = s->cancel_reason != 0;
    int status = s->status;
    s->call = NULL;
    s->conn = NULL;
    s->fd = -1;
    if (running) s->gone = true;
    imp_mutex_unlock(s->mu);
    if (running) {
        if (!counted) atomic_fetch_add(&h->n_gone, 1);
        if (call) imp_api_cancel(call, IMP_API_GONE);
    }
    imp_api_release(call);
    if (h->access) http_access_write(s);
    imp_api_observe(h->api, s->path, status, (double)(imp_now_ns() - s->t0_ns) * 1e-9);
    http_stream_unref(s);
}

/* ---- the sink: the API's side -------------------------------------------------------------------------- */

static void sink_begin(void *user, int status, const char *type, const imp_api_header *headers, size_t n,
                       bool stream)
{
    http_stream *s = user;
    imp_mutex_lock(s->mu);
    s->status = status;
    snprintf(s->type, sizeof s->type, "%s", type);
    for (size_t i = 0; i < n && s->n_header < IMP_HTTP_MAX_REPLY_HEADER; i++, s->n_header++) {
        snprintf(s->hname[s->n_header], sizeof s->hname[0], "%s", headers[i].name);
        snprintf(s->hvalue[s->n_header], sizeof s->hvalue[0], "%s", headers[i].value);
    }
    s->begun = true;
    s->streaming = stream;
    if (stream) wake(s);
    imp_mutex_unlock(s->mu);
}

static void sink_write(void *user, const char *p, size_t n)
{
    http_stream *s = user;
    imp_mutex_lock(s->mu);
    if (!s->conn || s->slow || n == 0) {
        imp_mutex_unlock(s->mu);
        return;
    }
    if (s->out_at > s->out.n / 2) {
        memmove(s->out.data, s->out.data + s->out_at, s->out.n - s->out_at);
        s->out.n -= s->out_at;
        s->out_at = 0;
    }
    imp_buf_add(&s->out, p, n);
    if (s->streaming && (s->out.n - s->out_at > s->h->max_unsent || s->out.failed)) {
        s->slow = true;
        atomic_fetch_add(&s->h->n_slow, 1);
    }
    if (s->streaming) wake(s);
    imp_mutex_unlock(s->mu);
}

static void sink_end(void *user)
{
    http_stream *s = user;
    imp_mutex_lock(s->mu);
    s->ended = true;
    wake(s);
    imp_mutex_unlock(s->mu);
    http_stream_unref(s);
}

static bool sink_later(void *user, void (*fn)(void *arg), void *arg)
{
    http_stream *s = user;
    return http_run_later(s->h, fn, arg);
}

static void sink_note(void *user, const imp_api_note *note)
{
    http_stream *s = user;
    imp_mutex_lock(s->mu);
    s->note = *note;
    imp_mutex_unlock(s->mu);
}

imp_api_sink http_stream_sink(http_stream *s)
{
    atomic_fetch_add(&s->refs, 1);
    return (imp_api_sink){sink_begin, sink_write, sink_end, sink_later, s->h->access ? sink_note : NULL, s};
}

/* ---- the reader: libmicrohttpd's side -------------------------------------------------------------------- */

static ssize_t read_out(void *cls, uint64_t pos, char *buf, size_t max)
{
    http_stream *s = cls;
    (void)pos;
    ssize_t got;
    imp_mutex_lock(s->mu);
    size_t have = s->out.n - s->out_at;
    if (s->slow || s->abort) {
        got = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (have > 0) {
        size_t n = IMP_MIN(have, max);
        memcpy(buf, s->out.data + s->out_at, n);
        s->out_at += n;
        if (s->out_at == s->out.n) s->out_at = s->out.n = 0;
        atomic_fetch_add(&s->h->n_out, n);
        s->n_sent += n;
        got = (ssize_t)n;
    } else if (s->ended) {
        got = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        s->suspended = true;
        MHD_suspend_connection(s->conn);
        got = 0;
    }
    imp_mutex_unlock(s->mu);
    return got;
}

static void reader_gone(void *cls)
{
    http_stream_unref(cls);
}

static void add_headers(const http_stream *s, struct MHD_Response *r)
{
    bool cached = false;
    if (s->type[0]) MHD_add_response_header(r, "Content-Type", s->type);
    for (size_t i = 0; i < s->n_header; i++) {
        MHD_add_response_header(r, s->hname[i], s->hvalue[i]);
        cached |= strcmp(s->hname[i], "Cache-Control") == 0;
    }
    if (!cached) MHD_add_response_header(r, "Cache-Control", "no-store");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(r, "X-Request-Id", s->id);
    if (s->h->n_origin) MHD_add_response_header(r, "Vary", "Origin");
    if (s->cors_origin) MHD_add_response_header(r, "Access-Control-Allow-Origin", s->cors_origin);
    if (atomic_load(&s->h->draining)) MHD_add_response_header(r, "Connection", "close");
}

static struct MHD_Response *make_response(http_stream *s)
{
    struct MHD_Response *r;
    if (s->streaming) {
        atomic_fetch_add(&s->refs, 1);
        r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 1024, read_out, s, reader_gone);
        if (!r) http_stream_unref(s);
        return r;
    }
    size_t n = s->out.n;
    if (s->out.failed) return NULL;
    atomic_fetch_add(&s->h->n_out, n);
    s->n_sent = n;
    if (n == 0) return MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    char *p = imp_buf_take(&s->out);
    r = MHD_create_response_from_buffer_with_free_callback(n, p, imp_sys_free);
    if (!r) imp_sys_free(p);
    return r;
}

enum MHD_Result http_stream_reply(http_stream *s)
{
    imp_mutex_lock(s->mu);
    bool ready = s->ended || (s->begun && s->streaming);
    if (s->abort) {
        imp_mutex_unlock(s->mu);
        return MHD_NO;
    }
    if (!ready) {
        s->suspended = true;
        MHD_suspend_connection(s->conn);
        imp_mutex_unlock(s->mu);
        return MHD_YES;
    }
    struct MHD_Response *r = make_response(s);
    imp_mutex_unlock(s->mu);
    if (!r) return MHD_NO;
    add_headers(s, r);
    s->queued = true;
    enum MHD_Result ok = MHD_queue_response(s->conn, (unsigned)s->status, r);
    MHD_destroy_response(r);
    return ok;
}

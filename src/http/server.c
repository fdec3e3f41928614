/* http/server.c - the server object: start, watch for clients that left, drain, stop.
 *
 * Place:   implements http.h.
 * Idea:    three threads whatever the number of streams: libmicrohttpd's polls, the watcher looks every few
 *          milliseconds whether waiting clients are still there (libmicrohttpd does not look at a suspended
 *          connection), the worker parses large bodies and writes large answers.
 * Always:  when imp_http_stop returns no thread of ours is left. A late event of the engine finds its stream and
 *          the server object alive: both are counted. */
#include "http/internal.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

void http_unref(imp_http *h)
{
    if (atomic_fetch_sub(&h->refs, 1) != 1) return;
    imp_api_unref(h->api);
    http_access_close(h->access);
    http_tls_free(h->tls);
    http_guard_deinit(h);
    if (h->cond) imp_cond_free(h->cond);
    if (h->mu) imp_mutex_free(h->mu);
    imp_sys_free(h);
}

/* ---- worker -------------------------------------------------------------------------------------------- */

bool http_run_later(imp_http *h, void (*fn)(void *arg), void *arg)
{
    http_job *j = imp_sys_malloc(sizeof *j);
    if (!j) return false;
    *j = (http_job){NULL, fn, arg};
    imp_mutex_lock(h->mu);
    bool ok = !h->stop;
    if (ok) {
        *h->last_job = j;
        h->last_job = &j->next;
        imp_cond_broadcast(h->cond);
    }
    imp_mutex_unlock(h->mu);
    if (!ok) imp_sys_free(j);
    return ok;
}

static void work(void *arg)
{
    imp_http *h = arg;
    imp_mutex_lock(h->mu);
    for (;;) {
        http_job *j = h->first_job;
        if (!j && h->stop) break;
        if (!j) {
            imp_cond_wait(h->cond, h->mu);
            continue;
        }
        h->first_job = j->next;
        if (!h->first_job) h->last_job = &h->first_job;
        imp_mutex_unlock(h->mu);
        j->fn(j->arg);
        imp_sys_free(j);
        imp_mutex_lock(h->mu);
    }
    imp_mutex_unlock(h->mu);
}

/* ---- connections ------------------------------------------------------------------------------------------ */

http_conn *http_conn_add(imp_http *h, int fd)
{
    http_conn *c = imp_sys_calloc(1, sizeof *c);
    if (!c) return NULL;
    c->fd = fd;
    c->begin_ns = imp_now_ns();
    c->deadline_ns = c->begin_ns + IMP_MIN(h->idle_s, (unsigned)IMP_HTTP_FIRST_S) * 1000000000ull;
    imp_mutex_lock(h->mu);
    c->next = h->conn;
    if (c->next) c->next->prev = c;
    h->conn = c;
    if (!c->next) imp_cond_broadcast(h->cond);
    imp_mutex_unlock(h->mu);
    return c;
}

void http_conn_remove(imp_http *h, http_conn *c)
{
    if (!c) return;
    imp_mutex_lock(h->mu);
    if (c->prev)
        c->prev->next = c->next;
    else
        h->conn = c->next;
    if (c->next) c->next->prev = c->prev;
    if (h->at_conn == c) h->at_conn = c->next;
    imp_mutex_unlock(h->mu);
    imp_sys_free(c);
}

void http_conn_stage(imp_http *h, http_conn *c, http_stage stage)
{
    static const uint64_t second = 1000000000;
    if (!c) return;
    uint64_t now = imp_now_ns();
    imp_mutex_lock(h->mu);
    c->busy = stage == HTTP_ANSWERING;
    c->known = true;
    switch (stage) {
    case HTTP_RECEIVING: c->deadline_ns = now + IMP_HTTP_RECEIVE_S * second; break;
    case HTTP_ANSWERING: c->deadline_ns = 0; break;
    case HTTP_IDLE: c->deadline_ns = now + (h->idle_s + IMP_HTTP_FIRST_S) * second; break;
    }
    imp_mutex_unlock(h->mu);
}

/* ---- watcher --------------------------------------------------------------------------------------------- */

/* Has the other side closed? A byte that is there may be its next request; with TLS it is often its goodbye. */
static bool at_end(const imp_http *h, int fd)
{
#ifdef POLLRDHUP
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    if (h->tls) return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
#else
    (void)h;
#endif
    char c;
    ssize_t n = recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

static bool client_left(http_stream *s)
{
    imp_mutex_lock(s->mu);
    bool left = s->fd >= 0 && s->call && !s->ended && !s->cancel_reason && at_end(s->h, s->fd);
    imp_mutex_unlock(s->mu);
    return left;
}

/* Sends for too long without coming to an end, so that nobody else gets its place. */
static bool is_late(const http_conn *c, uint64_t now, bool pressed)
{
    bool fresh = pressed && !c->known && now > c->begin_ns + IMP_HTTP_PRESSED_S * 1000000000ull;
    return fresh || (c->deadline_ns && now > c->deadline_ns);
}

/* The next slice. A shutdown is an event that libmicrohttpd does see: it then closes the connection. true: that was the
 * last one. */
static bool look_at_connections(imp_http *h, uint64_t now)
{
    bool pressed = atomic_load(&h->n_open) > h->max_conn / 4 * 3;
    http_conn *c = h->at_conn ? h->at_conn : h->conn;
    for (int i = 0; c && i < IMP_HTTP_SLICE; i++, c = c->next)
        if (!c->busy && c->fd >= 0 && (is_late(c, now, pressed) || at_end(h, c->fd)))
            (void)shutdown(c->fd, SHUT_RDWR);
    h->at_conn = c;
    return !c;
}

static bool is_slow(http_stream *s)
{
    imp_mutex_lock(s->mu);
    bool slow = s->slow && !s->cancel_reason;
    imp_mutex_unlock(s->mu);
    return slow;
}

/* Files that may be replaced while the server runs. */
static bool has_files(const imp_http *h)
{
    return h->tls || http_keys_watched(h->keys);
}

static void look_at_streams(imp_http *h)
{
    http_stream *s = h->at_stream ? h->at_stream : h->active;
    for (int i = 0; s && i < IMP_HTTP_SLICE; i++, s = s->next) {
        if (is_slow(s)) {
            http_stream_cancel(s, IMP_API_SLOW);
        } else if (client_left(s)) {
            atomic_fetch_add(&h->n_gone, 1);
            http_stream_cancel(s, IMP_API_GONE);
        }
    }
    h->at_stream = s;
}

static void look_at_files(imp_http *h)
{
    imp_mutex_unlock(h->mu);
    http_keys_refresh(h->keys, false);
    if (h->tls) http_tls_refresh(h->tls, false);
    imp_mutex_lock(h->mu);
}

static void watch(void *arg)
{
    imp_http *h = arg;
    uint64_t idle_ns = 0, look_ns = imp_now_ns(); /* when all connections, and files, were last looked at */
    imp_mutex_lock(h->mu);
    while (!h->stop) {
        uint64_t now = imp_now_ns();
        if (has_files(h) && now - look_ns >= IMP_HTTP_LOOK_MS * 1000000ull) {
            look_ns = now;
            look_at_files(h);
        }
        if ((h->at_conn || now - idle_ns >= IMP_HTTP_IDLE_MS * 1000000ull) && look_at_connections(h, now))
            idle_ns = now;
        look_at_streams(h);
        if (h->active || h->at_conn)
            (void)imp_cond_wait_ms(h->cond, h->mu, IMP_HTTP_WATCH_MS);
        else if (h->conn)
            (void)imp_cond_wait_ms(h->cond, h->mu, IMP_HTTP_IDLE_MS);
        else if (has_files(h))
            (void)imp_cond_wait_ms(h->cond, h->mu, IMP_HTTP_LOOK_MS);
        else
            imp_cond_wait(h->cond, h->mu);
    }
    imp_mutex_unlock(h->mu);
}

/* ---- start ----------------------------------------------------------------------------------------------- */

static void get_stats(void *user, imp_api_http_stats *out)
{
    imp_http *h = user;
    out->n_connection = atomic_load(&h->n_connection);
    out->n_connection_open = atomic_load(&h->n_open);
    out->n_bytes_in = atomic_load(&h->n_in);
    out->n_bytes_out = atomic_load(&h->n_out);
    out->n_refused_host = atomic_load(&h->n_bad_host);
    out->n_refused_origin = atomic_load(&h->n_bad_origin);
    out->n_refused_key = atomic_load(&h->n_bad_key);
    out->n_gone = atomic_load(&h->n_gone);
    out->n_slow = atomic_load(&h->n_slow);
}

/* As asked, but some descriptors stay for everything else: connections that only wait must not stop the program. */
static unsigned connection_limit(const imp_http_config *c)
{
    enum { OTHERS = 64 };
    uint32_t files = imp_sys_max_files(), want = c->max_connections ? c->max_connections : 16384;
    return files > 2 * OTHERS ? IMP_MIN(want, files - OTHERS) : IMP_MIN(want, files / 2);
}

static struct MHD_Daemon *start_daemon(imp_http *h, const imp_http_config *c)
{
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_ALLOW_SUSPEND_RESUME;
    flags |= MHD_is_feature_supported(MHD_FEATURE_EPOLL) == MHD_YES ? MHD_USE_EPOLL : MHD_USE_AUTO;
    if (imp_sys_should_fail()) return NULL;
    struct MHD_OptionItem tls[HTTP_TLS_OPTIONS] = {{MHD_OPTION_END, 0, NULL}};
    if (h->tls) {
        flags |= MHD_USE_TLS;
        http_tls_options(h->tls, tls);
    }
    return MHD_start_daemon(
        flags, 0, NULL, NULL, http_on_request, h, MHD_OPTION_LISTEN_SOCKET, h->listen_fd,
        MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, NULL, MHD_OPTION_NOTIFY_CONNECTION,
        http_on_connection, h, MHD_OPTION_CONNECTION_LIMIT, h->max_conn, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)IMP_HTTP_POOL, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)(c->idle_s ? c->idle_s : 60),
        MHD_OPTION_UNESCAPE_CALLBACK, http_unescape, NULL, MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
}

static void stop_threads(imp_http *h)
{
    imp_mutex_lock(h->mu);
    h->stop = true;
    imp_cond_broadcast(h->cond);
    imp_mutex_unlock(h->mu);
    if (h->watcher) imp_thread_join(h->watcher);
    if (h->worker) imp_thread_join(h->worker);
    h->watcher = h->worker = NULL;
}

static imp_status start_parts(imp_http *h, imp_engine *engine, const imp_http_config *c, imp_error *err)
{
    const char *host = c->host ? c->host : "127.0.0.1";
    IMP_TRY(http_listen(host, c->port, &h->listen_fd, &h->port, &h->loopback, &h->wildcard, err));
    IMP_TRY(http_guard_init(h, c, err));
    if (c->tls_cert || c->tls_key) {
        IMP_TRY(http_tls_new(c->tls_cert, c->tls_key, &h->tls, err));
        http_tls_warn(h->tls);
    }
    if (c->access_log) IMP_TRY(http_access_open(c->access_log, &h->access, err));
    imp_api_config ac = {engine, c->hardware, c->user, c->lora_dir};
    IMP_TRY(imp_api_new(&ac, &h->api, err));
    imp_api_set_http_stats(h->api, get_stats, h);
    if (imp_thread_start(watch, h, &h->watcher) != IMP_OK ||
        imp_thread_start(work, h, &h->worker) != IMP_OK || !(h->daemon = start_daemon(h, c)))
        return imp_fail(err, IMP_IO,
                        "the server's threads cannot be started: the system is out of resources");
    return IMP_OK;
}

imp_status imp_http_start(imp_engine *engine, const imp_http_config *config, imp_http **out, imp_error *err)
{
    *out = NULL;
    imp_http *h = imp_sys_calloc(1, sizeof *h);
    if (!h) return imp_fail(err, IMP_NOMEM, "out of memory");
    atomic_init(&h->refs, 1);
    h->listen_fd = -1;
    uint64_t now = imp_now_ns();
    h->id_seed = imp_hash(&now, sizeof now, (uint64_t)getpid());
    h->last_job = &h->first_job;
    h->max_body = config->max_body_bytes ? config->max_body_bytes : 32u << 20;
    h->max_total = config->max_total_bytes ? config->max_total_bytes : 8 * h->max_body;
    h->max_unsent = config->max_unsent_bytes ? config->max_unsent_bytes : 16u << 20;
    h->idle_s = config->idle_s ? config->idle_s : 60;
    h->max_conn = connection_limit(config);
    imp_status st = imp_mutex_new(&h->mu);
    if (st == IMP_OK) st = imp_cond_new(&h->cond);
    if (st != IMP_OK)
        (void)imp_fail(err, st, "out of memory");
    else
        st = start_parts(h, engine, config, err);
    if (st == IMP_OK) {
        *out = h;
        return IMP_OK;
    }
    if (h->mu && h->cond) stop_threads(h);
    if (h->listen_fd >= 0) close(h->listen_fd);
    http_unref(h);
    return st;
}

imp_status imp_http_check(const imp_http_config *config, imp_error *err)
{
    http_keys *k;
    IMP_TRY(http_keys_new(config->api_key, config->key_file, &k, err));
    http_keys_free(k);
    http_tls *t = NULL;
    if (config->tls_cert || config->tls_key)
        IMP_TRY(http_tls_new(config->tls_cert, config->tls_key, &t, err));
    http_tls_free(t);
    return IMP_OK;
}

void imp_http_reload(imp_http *h)
{
    http_keys_refresh(h->keys, true);
    if (h->tls) http_tls_refresh(h->tls, true);
    if (h->access) http_access_reopen(h->access);
}

uint16_t imp_http_port(const imp_http *h)
{
    return h->port;
}

/* ---- stop ------------------------------------------------------------------------------------------------ */

/* Wait until no request is in flight; false after ms. */
static bool wait_idle(imp_http *h, uint32_t ms)
{
    uint64_t until = imp_now_ns() + (uint64_t)ms * 1000000u;
    imp_mutex_lock(h->mu);
    while (h->n_active > 0) {
        uint64_t now = imp_now_ns();
        if (now >= until) break;
        (void)imp_cond_wait_ms(h->cond, h->mu, (uint32_t)IMP_MIN((until - now) / 1000000u + 1, 100u));
    }
    bool idle = h->n_active == 0;
    imp_mutex_unlock(h->mu);
    return idle;
}

static void each_active(imp_http *h, void (*fn)(http_stream *s))
{
    imp_mutex_lock(h->mu);
    for (http_stream *s = h->active; s; s = s->next) fn(s);
    imp_mutex_unlock(h->mu);
}

static void cancel_for_shutdown(http_stream *s)
{
    http_stream_cancel(s, IMP_API_SHUTDOWN);
}

void imp_http_stop(imp_http *h, uint32_t drain_ms)
{
    if (!h) return;
    atomic_store(&h->draining, true);
    imp_api_set_draining(h->api);
    bool idle = wait_idle(h, drain_ms); /* whoever comes meanwhile is told to go elsewhere (503) */
    (void)MHD_quiesce_daemon(h->daemon);
    if (!idle) {
        each_active(h, cancel_for_shutdown);
        /* the final events, and the time to send them; a client that does not read gets no more than this */
        if (!wait_idle(h, 3000)) each_active(h, http_stream_abort);
    }
    stop_threads(h); /* before the daemon: the worker may still resume connections */
    each_active(h, http_stream_abort);
    MHD_stop_daemon(h->daemon);
    close(h->listen_fd);
    imp_api_set_http_stats(h->api, NULL, NULL);
    http_unref(h);
}

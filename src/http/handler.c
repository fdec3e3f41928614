/* http/handler.c - what libmicrohttpd calls: a header came, a piece of body, the whole request, the end.
 *
 * Idea:    a request is judged by its header (guard.c). A refused one is still read to its end, up to a limit, since
 *          a client that is still sending would lose the refusal; a large one that announces its size is cut at once.
 * Threads: libmicrohttpd's one thread; large bodies are answered on the worker's. */
#include "http/internal.h"

#include <stdio.h>

static void refuse(http_stream *s)
{
    const http_verdict *v = &s->verdict;
    imp_api_sink sink = http_stream_sink(s);
    imp_api_refuse(s->path, &sink, v->status, NULL, v->code, &v->header, v->header.name != NULL, v->text);
}

static void plain_answer(http_stream *s, int status, const char *type, const imp_api_header *headers,
                         size_t n, const char *body, size_t n_body)
{
    imp_api_sink sink = http_stream_sink(s);
    sink.begin(sink.user, status, type, headers, n, false);
    sink.write(sink.user, body, n_body);
    sink.end(sink.user);
}

static void answer_options(http_stream *s)
{
    const char *allow = strcmp(s->path, "/") == 0 ? "GET, HEAD, OPTIONS" : imp_api_allow(s->path);
    imp_api_header h[4] = {{"Allow", allow}};
    size_t n = 1;
    if (s->cors_origin) {
        h[n++] = (imp_api_header){"Access-Control-Allow-Methods", allow};
        h[n++] = (imp_api_header){"Access-Control-Allow-Headers", "authorization, content-type, x-api-key"};
        h[n++] = (imp_api_header){"Access-Control-Max-Age", "600"};
    }
    plain_answer(s, 204, "", h, n, "", 0);
}

static void answer_page(http_stream *s)
{
    if (strcmp(s->method, "GET") != 0 && !s->is_head) {
        http_refuse(&s->verdict, 405, "method_not_allowed", "the page takes GET only");
        s->verdict.header = (imp_api_header){"Allow", "GET, HEAD, OPTIONS"};
        refuse(s);
        return;
    }
    static const imp_api_header h[] = {
        {"Cache-Control", "no-cache"},
        {"X-Frame-Options", "DENY"},
        {"Content-Security-Policy",
         "default-src 'none';connect-src 'self';style-src 'unsafe-inline';script-src 'unsafe-inline'"},
    };
    size_t n;
    const char *page = http_page(&n);
    plain_answer(s, 200, "text/html; charset=utf-8", h, IMP_COUNT(h), page, n);
}

/* Hand the whole request to the API. Takes one reference of s. */
static void answer_api(void *arg)
{
    http_stream *s = arg;
    imp_api_sink sink = http_stream_sink(s);
    imp_api_request rq = {
        .method = s->method, .path = s->path, .body = s->body.data, .n_body = s->body.n, .who = s->who};
    http_stream_set_call(s, imp_api_start(s->h->api, &rq, &sink));
    atomic_fetch_sub(&s->h->body_bytes, s->body.n);
    imp_buf_deinit(&s->body);
    http_stream_unref(s);
}

static void dispatch(http_stream *s)
{
    s->dispatched = true;
    http_conn_stage(s->h, s->link, HTTP_ANSWERING);
    if (s->body.failed && !s->verdict.status)
        http_refuse(&s->verdict, 503, "out_of_memory", "the server is out of memory: try again later");
    if (s->verdict.status) {
        refuse(s);
    } else if (strcmp(s->method, "OPTIONS") == 0) {
        answer_options(s);
    } else if (strcmp(s->path, "/") == 0) {
        answer_page(s);
    } else {
        atomic_fetch_add(&s->refs, 1);
        if (s->body.n <= IMP_HTTP_INLINE_BODY || !http_run_later(s->h, answer_api, s)) answer_api(s);
    }
}

/* A piece of body. False: cut the connection. */
static bool take_body(http_stream *s, const char *data, size_t n)
{
    imp_http *h = s->h;
    s->n_body += n;
    atomic_fetch_add(&h->n_in, n);
    if (!s->verdict.status && s->n_body > h->max_body) {
        http_refuse(&s->verdict, 413, "request_too_large",
                    "the body has more than %llu bytes, which this server takes",
                    (unsigned long long)h->max_body);
    } else if (!s->verdict.status && atomic_load(&h->body_bytes) + n > h->max_total) {
        http_refuse(&s->verdict, 503, "busy",
                    "too many large requests are arriving at once: try again in a moment");
        s->verdict.header = (imp_api_header){"Retry-After", "1"};
    }
    if (s->verdict.status) {
        atomic_fetch_sub(&h->body_bytes, s->body.n);
        imp_buf_deinit(&s->body);
        s->n_discard += n;
        return s->n_discard <= IMP_HTTP_MAX_DISCARD;
    }
    size_t before = s->body.n;
    imp_buf_add(&s->body, data, n);
    atomic_fetch_add(&h->body_bytes, s->body.n - before);
    return true;
}

static enum MHD_Result start(imp_http *h, struct MHD_Connection *conn, const char *url, const char *method,
                             void **state)
{
    http_stream *s = http_stream_new(h, conn, method, url);
    if (!s) return MHD_NO;
    *state = s;
    (void)MHD_set_connection_option(conn, MHD_CONNECTION_OPTION_TIMEOUT, h->idle_s);
    http_conn_stage(h, s->link, HTTP_RECEIVING);
    http_guard_check(s, conn);
    if (!s->verdict.status) return MHD_YES;
    /* A client that waits for "100 Continue", announced far too much, or sends a body whose end nobody can tell, is
     * answered without it. */
    const char *expect = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Expect");
    const char *length = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Content-Length");
    bool huge = length && strlen(length) > 8; /* 100 MB and more */
    if (!expect && !huge && s->verdict.status != 431 && s->verdict.status != 501) return MHD_YES;
    dispatch(s);
    return http_stream_reply(s);
}

enum MHD_Result http_on_request(void *cls, struct MHD_Connection *conn, const char *url, const char *method,
                                const char *version, const char *data, size_t *n_data, void **state)
{
    (void)version;
    http_stream *s = *state;
    if (!s) return start(cls, conn, url, method, state);
    if (*n_data > 0) {
        bool ok = take_body(s, data, *n_data);
        *n_data = 0;
        return ok ? MHD_YES : MHD_NO;
    }
    if (!s->dispatched) dispatch(s);
    return http_stream_reply(s);
}

static unsigned hex(char c)
{
    if (c >= '0' && c <= '9') return (unsigned)(c - '0');
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 : 16; /* 16: none */
}

size_t http_unescape(void *cls, struct MHD_Connection *conn, char *s)
{
    (void)cls, (void)conn;
    char *out = s;
    for (const char *p = s; *p; p++) {
        unsigned hi = *p == '%' ? hex(p[1]) : 16, lo = hi < 16 ? hex(p[2]) : 16;
        *out = *p;
        if (lo < 16 && hi + lo != 0) {
            *out = (char)(unsigned char)(hi << 4 | lo);
            p += 2;
        }
        out++;
    }
    *out = '\0';
    return (size_t)(out - s);
}

void http_on_completed(void *cls, struct MHD_Connection *conn, void **state,
                       enum MHD_RequestTerminationCode code)
{
    (void)cls;
    (void)conn;
    (void)code;
    http_stream *s = *state;
    *state = NULL;
    if (!s) return;
    http_conn_stage(s->h, s->link, HTTP_IDLE);
    http_stream_finished(s);
}

void http_on_connection(void *cls, struct MHD_Connection *conn, void **state,
                        enum MHD_ConnectionNotificationCode code)
{
    imp_http *h = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        (void)MHD_set_connection_option(conn, MHD_CONNECTION_OPTION_TIMEOUT,
                                        IMP_MIN(h->idle_s, IMP_HTTP_FIRST_S));
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
        if (h->tls) http_tls_connected(h->tls, conn);
        atomic_fetch_add(&h->n_connection, 1);
        atomic_fetch_add(&h->n_open, 1);
        *state = http_conn_add(h, info ? info->connect_fd : -1);
    } else {
        atomic_fetch_sub(&h->n_open, 1);
        http_conn_remove(h, *state);
        *state = NULL;
    }
}

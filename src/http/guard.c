/* http/guard.c - who may ask: Host, Origin, API key, sizes.
 *
 * Place:   called by handler.c with a request's header, before any byte of its body.
 * Idea:    a web page can make a browser send requests to this machine under a name of the page's own (DNS rebinding)
 *          or from its own origin. Both show in the header, and both are compared exactly, never by prefix.
 * Always:  a Host that is not ours is 403 on every path; a foreign Origin is 403 unless it was allowed by name. */
#include "http/internal.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <stdio.h>
#include <strings.h>

void http_refuse(http_verdict *v, int status, const char *code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    v->status = status;
    v->code = code;
    vsnprintf(v->text, sizeof v->text, fmt, ap);
    va_end(ap);
}

/* ---- configuration ----------------------------------------------------------------------------------- */

static imp_status add_name(imp_http *h, const char *name)
{
    bool v6 = strchr(name, ':') && name[0] != '[';
    imp_buf b = {0};
    if (v6) imp_buf_str(&b, "[");
    imp_buf_str(&b, name);
    if (v6) imp_buf_str(&b, "]");
    char *s = imp_buf_take(&b);
    if (!s) return IMP_NOMEM;
    for (char *p = s; *p; p++) *p = (char)tolower((unsigned char)*p);
    h->host[h->n_host++] = s;
    return IMP_OK;
}

static imp_status copy_hosts(imp_http *h, const imp_http_config *c)
{
    h->host = imp_sys_calloc(c->n_host + 4, sizeof *h->host);
    if (!h->host) return IMP_NOMEM;
    if (h->loopback) {
        IMP_TRY(add_name(h, "localhost"));
        IMP_TRY(add_name(h, "127.0.0.1"));
        IMP_TRY(add_name(h, "::1"));
    }
    if (!h->wildcard) IMP_TRY(add_name(h, c->host ? c->host : "127.0.0.1"));
    for (size_t i = 0; i < c->n_host; i++) IMP_TRY(add_name(h, c->hosts[i]));
    return IMP_OK;
}

static bool origin_ok(const char *o)
{
    size_t scheme = strncmp(o, "https://", 8) == 0 ? 8 : strncmp(o, "http://", 7) == 0 ? 7 : 0;
    return scheme && o[scheme] && !strpbrk(o + scheme, "/*? \t\r\n") && strlen(o) < 90;
}

imp_status http_guard_init(imp_http *h, const imp_http_config *c, imp_error *err)
{
    IMP_TRY(http_keys_new(c->api_key, c->key_file, &h->keys, err));
    http_keys_warn(h->keys);
    if (!h->loopback && !http_keys_any(h->keys))
        return imp_fail_field(
            err, IMP_INVALID, "api_key",
            "listening on %.100s lets other machines in, which needs an API key: give one with "
            "--api-key-file, or listen on 127.0.0.1",
            c->host ? c->host : "127.0.0.1");
    if (copy_hosts(h, c) != IMP_OK) return imp_fail(err, IMP_NOMEM, "out of memory");
    h->origin = imp_sys_calloc(c->n_origin + 1, sizeof *h->origin);
    if (!h->origin) return imp_fail(err, IMP_NOMEM, "out of memory");
    for (size_t i = 0; i < c->n_origin; i++) {
        if (!origin_ok(c->origins[i]))
            return imp_fail_field(
                err, IMP_INVALID, "origins",
                "'%.80s' is no web origin: write scheme and host, as in https://example.com", c->origins[i]);
        h->origin[i] = imp_sys_strdup(c->origins[i]);
        if (!h->origin[i]) return imp_fail(err, IMP_NOMEM, "out of memory");
        h->n_origin++;
    }
    return IMP_OK;
}

void http_guard_deinit(imp_http *h)
{
    for (size_t i = 0; i < h->n_host; i++) imp_sys_free(h->host[i]);
    for (size_t i = 0; i < h->n_origin; i++) imp_sys_free(h->origin[i]);
    imp_sys_free(h->host);
    imp_sys_free(h->origin);
    http_keys_free(h->keys);
}

/* ---- Host -------------------------------------------------------------------------------------------- */

/* "name" or "name:port", name bracketed when it is IPv6; the port must be ours (not written: the usual one). */
static bool split_host(const char *value, uint16_t port, uint32_t usual, size_t *n_name)
{
    const char *end = value[0] == '[' ? strchr(value, ']') : NULL;
    if (value[0] == '[' && !end) return false;
    size_t n = end ? (size_t)(end + 1 - value) : strcspn(value, ":");
    uint32_t p = usual;
    if (value[n] != '\0') {
        const char *d = value + n + 1;
        size_t k = strlen(d);
        if (value[n] != ':' || k == 0 || k > 5) return false;
        p = 0;
        for (; *d; d++) {
            if (*d < '0' || *d > '9') return false;
            p = p * 10 + (uint32_t)(*d - '0');
        }
    }
    *n_name = n;
    return n > 0 && p == port;
}

static bool name_is(const char *value, size_t n, const char *name)
{
    return strlen(name) == n && strncasecmp(value, name, n) == 0;
}

/* With a wildcard bind, the address that this connection came in on is a good name, too. */
static bool is_local_address(const char *value, size_t n, int fd)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    char text[INET6_ADDRSTRLEN], full[INET6_ADDRSTRLEN + 2];
    if (fd < 0 || getsockname(fd, (struct sockaddr *)&a, &len) < 0) return false;
    if (a.ss_family == AF_INET) {
        if (!inet_ntop(AF_INET, &((struct sockaddr_in *)&a)->sin_addr, full, sizeof full)) return false;
    } else {
        const struct in6_addr *in6 = &((struct sockaddr_in6 *)&a)->sin6_addr;
        bool v4 = IN6_IS_ADDR_V4MAPPED(in6);
        if (!inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? (const void *)&in6->s6_addr[12] : in6, text,
                       sizeof text))
            return false;
        snprintf(full, sizeof full, v4 ? "%s" : "[%s]", text);
    }
    bool loop =
        strncmp(full, "127.", 4) == 0 || strcmp(full, "[::1]") == 0; /* our own text, not the client's */
    return name_is(value, n, full) || (loop && name_is(value, n, "localhost"));
}

static bool host_ok(const imp_http *h, const char *value, int fd)
{
    size_t n;
    if (!value || !split_host(value, h->port, h->tls ? 443 : 80, &n)) return false;
    for (size_t i = 0; i < h->n_host; i++)
        if (name_is(value, n, h->host[i])) return true;
    return h->wildcard && is_local_address(value, n, fd);
}

/* ---- key --------------------------------------------------------------------------------------------- */

static bool key_ok(http_stream *s, struct MHD_Connection *conn)
{
    const char *a = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Authorization");
    if (a && strncasecmp(a, "Bearer ", 7) == 0) {
        a += 7;
        while (*a == ' ') a++;
        return http_keys_find(s->h->keys, a, &s->who, s->client);
    }
    const char *x = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "x-api-key");
    return http_keys_find(s->h->keys, x, &s->who, s->client);
}

/* ---- all of it ----------------------------------------------------------------------------------------- */

typedef struct header_count {
    size_t n_host, n_origin, n_length, n_encoding;
} header_count;

static enum MHD_Result count_header(void *cls, enum MHD_ValueKind kind, const char *key, const char *value)
{
    header_count *c = cls;
    (void)kind;
    (void)value;
    c->n_host += strcasecmp(key, "Host") == 0;
    c->n_origin += strcasecmp(key, "Origin") == 0;
    c->n_length += strcasecmp(key, "Content-Length") == 0;
    c->n_encoding += strcasecmp(key, "Transfer-Encoding") == 0;
    return MHD_YES;
}

static bool check_origin(http_stream *s, const char *origin, const char *host)
{
    imp_http *h = s->h;
    if (!origin) return true;
    const char *scheme = h->tls ? "https://" : "http://";
    size_t n = strlen(scheme);
    if (strncasecmp(origin, scheme, n) == 0 && strcasecmp(origin + n, host) == 0) return true;
    for (size_t i = 0; i < h->n_origin; i++) {
        if (strcasecmp(origin, h->origin[i]) != 0) continue;
        s->cors_origin = h->origin[i];
        return true;
    }
    return false;
}

static void check_sizes(http_stream *s, struct MHD_Connection *conn, const header_count *n)
{
    http_verdict *v = &s->verdict;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(conn, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    if (info && info->header_size > IMP_HTTP_MAX_HEADER) {
        http_refuse(v, 431, "header_too_large", "the header has %zu bytes; this server takes %d",
                    info->header_size, IMP_HTTP_MAX_HEADER);
        return;
    }
    if (n->n_length > 1 || (n->n_length && n->n_encoding)) {
        http_refuse(v, 400, "bad_header", "the length of the body is given twice");
        return;
    }
    const char *te = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Transfer-Encoding");
    if (n->n_encoding > 1 || (te && strcasecmp(te, "chunked") != 0)) {
        http_refuse(v, 501, "unsupported_encoding",
                    "the only transfer encoding that this server takes is chunked");
        return;
    }
    const char *ce = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Content-Encoding");
    if (ce && strcasecmp(ce, "identity") != 0) {
        http_refuse(v, 415, "unsupported_encoding", "a compressed body is not supported: send it plain");
        return;
    }
    const char *cl = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Content-Length");
    uint64_t len = 0;
    for (; cl && *cl >= '0' && *cl <= '9' && len < UINT64_MAX / 10 - 10; cl++)
        len = len * 10 + (uint64_t)(*cl - '0');
    if (len > s->h->max_body)
        http_refuse(v, 413, "request_too_large", "the body has %llu bytes; this server takes %llu",
                    (unsigned long long)len, (unsigned long long)s->h->max_body);
}

/* The page and the two probes say nothing that needs a key; a preflight cannot carry one. */
static bool is_open(const http_stream *s)
{
    return strcmp(s->path, "/") == 0 || strcmp(s->path, "/health") == 0 || strcmp(s->path, "/ready") == 0 ||
           strcmp(s->method, "OPTIONS") == 0;
}

void http_guard_check(http_stream *s, struct MHD_Connection *conn)
{
    imp_http *h = s->h;
    http_verdict *v = &s->verdict;
    header_count n = {0};
    MHD_get_connection_values(conn, MHD_HEADER_KIND, count_header, &n);
    const char *host = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Host");
    const char *origin = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Origin");
    if (n.n_host != 1 || !host_ok(h, host, s->fd)) {
        atomic_fetch_add(&h->n_bad_host, 1);
        http_refuse(v, 403, "wrong_host", "this server does not answer to the name in the Host header");
    } else if (n.n_origin > 1 || !check_origin(s, origin, host)) {
        atomic_fetch_add(&h->n_bad_origin, 1);
        http_refuse(v, 403, "wrong_origin",
                    "pages of this origin may not call this server: allow the origin first");
    } else if (http_keys_any(h->keys) && !is_open(s) && !key_ok(s, conn)) {
        atomic_fetch_add(&h->n_bad_key, 1);
        http_refuse(v, 401, "invalid_api_key",
                    "the API key is missing or wrong: send it as Authorization: Bearer KEY");
        v->header = (imp_api_header){"WWW-Authenticate", "Bearer"};
    } else {
        check_sizes(s, conn, &n);
        if (v->status) return;
        const char *allow = strcmp(s->path, "/") == 0 ? "GET, HEAD, OPTIONS" : imp_api_allow(s->path);
        if (!allow) http_refuse(v, 404, "not_found", "there is no such endpoint");
    }
}

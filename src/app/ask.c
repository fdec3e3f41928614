/* app/ask.c - one JSON request to a running server.
 *
 * Place:   ps and stop. Plain HTTP on the address that serve was given.
 * Idea:    HTTP/1.1 with "Connection: close": the answer is everything until the server closes. */
#include <errno.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "app/app.h"

enum { ANSWER_MAX = 64 << 20, TIMEOUT_S = 600 };

/* Where a server that listens on --host can be reached. */
static const char *reachable(const app *a)
{
    const char *host = opt_str(&a->opt, OPT_HOST);
    return !strcmp(host, "0.0.0.0") ? "127.0.0.1" : !strcmp(host, "::") ? "::1" : host;
}

static imp_status dial(app *a, int *fd, imp_error *err)
{
    const char *host = reachable(a);
    char port[12];
    struct addrinfo want = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    snprintf(port, sizeof port, "%u", opt_u32(&a->opt, OPT_PORT));
    *fd = -1;
    int why = getaddrinfo(host, port, &want, &list), last = ECONNREFUSED;
    if (why != 0)
        return imp_fail(err, IMP_NOT_FOUND, "the address '%.100s' is not known: %s", host, gai_strerror(why));
    for (struct addrinfo *x = list; x && *fd < 0; x = x->ai_next) {
        *fd = socket(x->ai_family, x->ai_socktype, x->ai_protocol);
        if (*fd < 0 || connect(*fd, x->ai_addr, x->ai_addrlen) == 0) continue;
        last = errno;
        close(*fd);
        *fd = -1;
    }
    freeaddrinfo(list);
    if (*fd < 0)
        return imp_fail(
            err, IMP_NOT_FOUND,
            "no server answers at %.100s:%s (%s); start one with 'impetus serve', or say where it is "
            "with --host and --port",
            host, port, strerror(last));
    struct timeval t = {.tv_sec = TIMEOUT_S};
    (void)setsockopt(*fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    (void)setsockopt(*fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
    return IMP_OK;
}

/* The Authorization line of the first key in --api-key-file; nothing without the option. */
static imp_status add_key(app *a, imp_buf *b, imp_error *err)
{
    const char *path = opt_str(&a->opt, OPT_KEY_FILE);
    imp_sys_file f;
    if (!path) return IMP_OK;
    IMP_TRY(imp_sys_file_open(path, false, &f, err));
    const char *p = f.data ? (const char *)f.data : "", *end = p + f.n;
    for (;;) { /* the first line that is no comment; its first word */
        while (p < end && strchr(" \t\r\n", *p)) p++;
        if (p == end || *p != '#') break;
        while (p < end && *p != '\n') p++;
    }
    size_t n = 0;
    while (p + n < end && !strchr(" \t\r\n", p[n])) n++;
    if (n > 0) {
        imp_buf_str(b, "Authorization: Bearer ");
        imp_buf_add(b, p, n);
        imp_buf_str(b, "\r\n");
    }
    imp_sys_file_close(&f);
    return IMP_OK;
}

static imp_status exchange(int fd, const imp_buf *out, imp_buf *in, imp_error *err)
{
    for (size_t at = 0; at < out->n;) {
        ssize_t k = send(fd, out->data + at, out->n - at, 0);
        if (k <= 0) return imp_fail(err, IMP_IO, "the server does not listen any more: %s", strerror(errno));
        at += (size_t)k;
    }
    char part[16384];
    for (ssize_t k; (k = recv(fd, part, sizeof part, 0)) != 0;) {
        if (k < 0) return imp_fail(err, IMP_IO, "the server stopped answering: %s", strerror(errno));
        imp_buf_add(in, part, (size_t)k);
        if (in->n > ANSWER_MAX) return imp_fail(err, IMP_TOO_LARGE, "the server's answer is too long");
    }
    return in->failed ? imp_fail(err, IMP_NOMEM, "out of memory") : IMP_OK;
}

/* Status and document of the bytes that came. */
static imp_status understand(const imp_buf *in, json_t **out, imp_error *err)
{
    const char *body = in->data ? strstr(in->data, "\r\n\r\n") : NULL;
    int status = 0;
    if (!body || sscanf(in->data, "HTTP/1.%*d %d", &status) != 1)
        return imp_fail(err, IMP_FORMAT, "what answers there is no server of this kind");
    *out = json_loads(body + 4, 0, NULL);
    if (status == 200 && *out) return IMP_OK;
    const json_t *e = *out ? json_object_get(*out, "error") : NULL;
    const char *text = json_string_value(json_is_object(e) ? json_object_get(e, "message") : e);
    imp_status s = imp_fail(err, status == 404 ? IMP_NOT_FOUND : IMP_INVALID, "the server answers %d: %.300s",
                            status, text ? text : "no more than that");
    json_decref(*out);
    *out = NULL;
    return s;
}

imp_status app_ask(app *a, const char *path, json_t *body, json_t **out, imp_error *err)
{
    imp_buf b = {0}, in = {0};
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    int fd = -1;
    *out = NULL;
    const char *host = reachable(a);
    bool v6 = strchr(host, ':') != NULL;
    imp_buf_fmt(&b, "%s %s HTTP/1.1\r\nHost: %s%s%s:%u\r\nConnection: close\r\n", body ? "POST" : "GET", path,
                v6 ? "[" : "", host, v6 ? "]" : "", opt_u32(&a->opt, OPT_PORT));
    imp_status s = body && !text ? imp_fail(err, IMP_NOMEM, "out of memory") : add_key(a, &b, err);
    if (body)
        imp_buf_fmt(&b, "Content-Type: application/json\r\nContent-Length: %zu\r\n", text ? strlen(text) : 0);
    imp_buf_str(&b, "\r\n");
    if (text) imp_buf_str(&b, text);
    if (s == IMP_OK && b.failed) s = imp_fail(err, IMP_NOMEM, "out of memory");
    if (s == IMP_OK) s = dial(a, &fd, err);
    if (s == IMP_OK) s = exchange(fd, &b, &in, err);
    if (s == IMP_OK) s = understand(&in, out, err);
    if (fd >= 0) close(fd);
    free(text);
    imp_buf_deinit(&b);
    imp_buf_deinit(&in);
    return s;
}

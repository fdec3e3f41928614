/* tests/api/client.h - a small HTTP client over plain sockets: sees every byte, breaks rules when asked. */
#ifndef IMP_TEST_CLIENT_H
#define IMP_TEST_CLIENT_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <stdbool.h>

#include "test.h"

typedef struct answer {
    int status;      /* 0: the connection was closed before a whole header came */
    char head[8192]; /* header lines */
    char *body;      /* NUL-terminated; free() it */
    size_t n_body;
    bool whole; /* the body came to its end */
} answer;

typedef struct client {
    int fd;
    char *buf; /* received, not consumed */
    size_t n, cap;
} client;

/* Where the bytes of `what` are in p[0..n-1]; NULL: nowhere. */
static inline char *find(char *p, size_t n, const char *what)
{
    size_t m = strlen(what);
    for (size_t i = 0; i + m <= n; i++)
        if (p[i] == what[0] && memcmp(p + i, what, m) == 0) return p + i;
    return NULL;
}

static inline double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline client client_open(uint16_t port)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    client c = {.fd = socket(AF_INET, SOCK_STREAM, 0)};
    int on = 1;
    struct timeval tv = {60, 0};
    setsockopt(c.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    setsockopt(c.fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv);
    setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c.fd, (struct sockaddr *)&a, sizeof a) < 0) {
        close(c.fd);
        c.fd = -1;
    }
    return c;
}

static inline void client_close(client *c)
{
    if (c->fd >= 0) close(c->fd);
    free(c->buf);
    *c = (client){.fd = -1};
}

static inline bool client_send(client *c, const void *p, size_t n)
{
    const char *s = p;
    while (n > 0) {
        ssize_t k = send(c->fd, s, n, MSG_NOSIGNAL);
        if (k <= 0) return false;
        s += k;
        n -= (size_t)k;
    }
    return true;
}

/* Receive more; false at the end or after the timeout. */
static inline bool client_more(client *c)
{
    if (c->cap - c->n < 65536) {
        c->cap = c->cap * 2 + 131072;
        c->buf = realloc(c->buf, c->cap);
    }
    ssize_t k = recv(c->fd, c->buf + c->n, c->cap - c->n - 1, 0);
    if (k <= 0) return false;
    c->n += (size_t)k;
    c->buf[c->n] = 0;
    return true;
}

static inline void client_eat(client *c, size_t n)
{
    memmove(c->buf, c->buf + n, c->n - n);
    c->n -= n;
    c->buf[c->n] = 0;
}

static inline const char *answer_header(const answer *a, const char *name)
{
    static _Thread_local char value[512];
    size_t n = strlen(name);
    for (const char *p = a->head; p && *p; p = strstr(p, "\r\n") ? strstr(p, "\r\n") + 2 : NULL) {
        if (strncasecmp(p, name, n) != 0 || p[n] != ':') continue;
        const char *v = p + n + 1;
        while (*v == ' ') v++;
        size_t k = strcspn(v, "\r\n");
        if (k >= sizeof value) k = sizeof value - 1;
        memcpy(value, v, k);
        value[k] = 0;
        return value;
    }
    return NULL;
}

/* One line of a chunked body's framing: the position of its end, or 0. */
static inline size_t client_line(client *c)
{
    for (;;) {
        char *e = find(c->buf, c->n, "\r\n");
        if (e) return (size_t)(e - c->buf) + 2;
        if (!client_more(c)) return 0;
    }
}

static inline bool client_head(client *c, answer *a)
{
    *a = (answer){0};
    for (;;) {
        char *e = find(c->buf, c->n, "\r\n\r\n");
        if (e) {
            size_t n = (size_t)(e - c->buf) + 4;
            if (n >= sizeof a->head) return false;
            memcpy(a->head, c->buf, n);
            client_eat(c, n);
            if (sscanf(a->head, "HTTP/1.%*d %d", &a->status) != 1) return false;
            if (a->status != 100) return true;
            *a = (answer){0};
            continue;
        }
        if (!client_more(c)) return false;
    }
}

static inline bool client_chunk(client *c, answer *a) /* appends one chunk; false at the end */
{
    size_t n_line = client_line(c);
    if (!n_line) return false;
    size_t n = strtoul(c->buf, NULL, 16);
    client_eat(c, n_line);
    while (c->n < n + 2)
        if (!client_more(c)) return false;
    a->body = realloc(a->body, a->n_body + n + 1);
    memcpy(a->body + a->n_body, c->buf, n);
    a->n_body += n;
    a->body[a->n_body] = 0;
    client_eat(c, n + 2);
    a->whole = n == 0;
    return n > 0;
}

static inline void client_body(client *c, answer *a, bool head_only)
{
    const char *len = answer_header(a, "Content-Length"), *te;
    if (!a->body) a->body = calloc(1, 1);
    if (head_only || a->status == 204) {
        a->whole = true;
    } else if (len) {
        size_t n = strtoul(len, NULL, 10);
        while (c->n < n && client_more(c)) {
        }
        a->whole = c->n >= n;
        if (!a->whole) n = c->n;
        a->body = realloc(a->body, n + 1);
        if (n) memcpy(a->body, c->buf, n);
        a->body[n] = 0;
        a->n_body = n;
        if (n) client_eat(c, n);
    } else if ((te = answer_header(a, "Transfer-Encoding")) && strcasecmp(te, "chunked") == 0) {
        while (client_chunk(c, a)) {
        }
    }
}

static inline answer client_read(client *c, bool head_only)
{
    answer a;
    if (!client_head(c, &a)) {
        a.status = 0;
        a.body = calloc(1, 1);
        return a;
    }
    client_body(c, &a, head_only);
    return a;
}

static inline bool client_post(client *c, uint16_t port, const char *path, const char *body, size_t n)
{
    char head[512];
    int k = snprintf(head, sizeof head,
                     "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nContent-Type: "
                     "application/json\r\nContent-Length: %zu\r\n\r\n",
                     path, port, n);
    return client_send(c, head, (size_t)k) && client_send(c, body, n);
}

/* A request on a connection of its own. extra: more header lines, each with \r\n, or NULL. */
static inline answer ask(uint16_t port, const char *method, const char *path, const char *host,
                         const char *extra, const char *body)
{
    client c = client_open(port);
    char head[2048], own[64];
    snprintf(own, sizeof own, "127.0.0.1:%u", port);
    int k = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: %s\r\n%s", method, path, host ? host : own,
                     extra ? extra : "");
    if (body) k += snprintf(head + k, sizeof head - (size_t)k, "Content-Length: %zu\r\n", strlen(body));
    k += snprintf(head + k, sizeof head - (size_t)k, "\r\n");
    client_send(&c, head, (size_t)k);
    if (body) client_send(&c, body, strlen(body));
    answer a = client_read(&c, strcmp(method, "HEAD") == 0);
    client_close(&c);
    return a;
}

static inline answer post(uint16_t port, const char *path, const char *body)
{
    return ask(port, "POST", path, NULL, NULL, body);
}

static inline answer get(uint16_t port, const char *path)
{
    return ask(port, "GET", path, NULL, NULL, NULL);
}

#endif

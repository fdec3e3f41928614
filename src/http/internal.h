/* http/internal.h - the server object and one request's state; included by src/http only. */
#ifndef IMP_HTTP_INTERNAL_H
#define IMP_HTTP_INTERNAL_H

#include <microhttpd.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "api/api.h"
#include "base/base.h"
#include "base/thread.h"
#include "http/http.h"
#include "http/keys.h"
#include "http/tls.h"

enum {
    IMP_HTTP_MAX_HEADER = 12 << 10,
    IMP_HTTP_POOL = 15 << 10, /* of a connection in libmicrohttpd, which touches all of it */
    IMP_HTTP_INLINE_BODY =
        16 << 10,             /* a larger body is parsed by the worker, so that streams go on meanwhile */
    IMP_HTTP_FIRST_S = 9,     /* a connection must have sent its first whole header by then */
    IMP_HTTP_RECEIVE_S = 300, /* a request must have come whole this long after its header */
    IMP_HTTP_PRESSED_S = 1,   /* as FIRST_S when three quarters of all connections are taken */
    IMP_HTTP_SLICE = 256,     /* connections and streams that are looked at in one go */
    IMP_HTTP_IDLE_MS = 250,   /* the same for connections without a request */
    IMP_HTTP_LOOK_MS = 1000,  /* how often the files that may be replaced are looked at */
    IMP_HTTP_WATCH_MS = 10,   /* how soon a silent client's end is seen */
    IMP_HTTP_MAX_DISCARD =
        64 << 20, /* read and thrown away so that a refusal arrives; then the connection is cut */
    IMP_HTTP_MAX_REPLY_HEADER = 6
};

typedef struct http_stream http_stream;
typedef struct http_access http_access;

/* Something the worker thread does: answer a request whose body is large, or write a large answer. */
typedef struct http_job {
    struct http_job *next;
    void (*fn)(void *arg);
    void *arg;
} http_job;

struct imp_http {
    atomic_uint refs; /* the owner's, and one a stream */
    imp_api *api;     /* owned reference */
    struct MHD_Daemon *daemon;
    int listen_fd;
    uint16_t port;
    /* configuration, copied */
    http_keys *keys;
    http_tls *tls;       /* NULL: plain HTTP */
    http_access *access; /* NULL: no access log */
    char **origin;       /* [n_origin] */
    size_t n_origin;
    char **host; /* [n_host], names accepted in Host, lower case, without port */
    size_t n_host;
    bool loopback, wildcard;
    uint64_t max_body, max_total, max_unsent;
    unsigned idle_s;
    char *(*hardware)(void *user);
    void *user;
    /* requests in flight */
    imp_mutex *mu;                   /* guards the list, the queue and stop */
    imp_cond *cond;                  /* any of them changed */
    http_stream *active, *at_stream; /* at_stream: where the watcher goes on; NULL: from the first */
    size_t n_active;
    struct http_conn *conn, *at_conn; /* the same */
    unsigned max_conn;
    http_job *first_job, **last_job;
    bool stop; /* watcher and worker end */
    imp_thread *watcher, *worker;
    atomic_bool draining;
    /* counters */
    _Atomic uint64_t next_id;
    uint64_t id_seed;
    _Atomic uint64_t body_bytes; /* held now */
    _Atomic uint64_t n_connection, n_open, n_in, n_out, n_bad_host, n_bad_origin, n_bad_key, n_gone, n_slow;
};

/* One connection, for the watcher: libmicrohttpd misses the end of a client whose last bytes came with it (it takes
 * epoll's edge for the bytes alone), and would keep the connection until it times out; and its timeouts begin anew with
 * every byte. */
typedef struct http_conn {
    struct http_conn *next, *prev; /* in h->conn; under h->mu, as all below */
    int fd;
    bool busy;         /* a request is being answered */
    bool known;        /* a whole header came once */
    uint64_t begin_ns; /* when it connected */
    uint64_t
        deadline_ns; /* cut when what it sends is not complete by then, however busily it sends; 0: no limit */
} http_conn;

/* Why a request is refused before the API sees it. status 0: it is not. */
typedef struct http_verdict {
    int status;
    const char *code;
    imp_api_header header; /* name NULL: none */
    char text[160];
} http_verdict;

/* One request. MHD's side and the answering side each hold a reference. */
struct http_stream {
    imp_http *h;
    atomic_uint refs;
    http_stream *next, *prev; /* in h->active; under h->mu */
    http_conn *link;          /* NULL: out of memory when the connection came */
    char *method, *path;
    const char *cors_origin; /* of h->origin; NULL: none */
    imp_buf body;
    uint64_t n_body, n_discard;
    http_verdict verdict;
    bool dispatched, queued;
    uint64_t t0_ns;
    bool is_head;
    char id[24]; /* X-Request-Id */
    imp_api_who who;
    char client[IMP_KEY_NAME]; /* whose key it has; "": none */
    char remote[48];           /* address; with an access log only */

    imp_mutex *mu;               /* guards all below */
    struct MHD_Connection *conn; /* NULL: finished */
    int fd;                      /* -1: finished */
    imp_api_call *call;
    bool gone, suspended, begun, ended, streaming, slow, abort;
    imp_api_reason cancel_reason; /* 0, or cancelled before the call was known */
    int status;
    char type[64];
    char hname[IMP_HTTP_MAX_REPLY_HEADER][40], hvalue[IMP_HTTP_MAX_REPLY_HEADER][96];
    size_t n_header;
    uint64_t n_sent;   /* bytes of the answer's body that were handed to libmicrohttpd */
    imp_api_note note; /* what the API says of it; with an access log only */
    imp_buf out;       /* answer bytes that MHD has not taken yet, from out_at on */
    size_t out_at;
};

/* listen.c: a listening socket. err says what to do when the port is taken. */
imp_status http_listen(const char *host, uint16_t port, int *out_fd, uint16_t *out_port, bool *out_loopback,
                       bool *out_wildcard, imp_error *err);

/* guard.c */
imp_status http_guard_init(imp_http *h, const imp_http_config *c, imp_error *err);
void http_guard_deinit(imp_http *h);
/* Host, Origin, key, sizes; fills verdict and cors_origin. */
void http_guard_check(http_stream *s, struct MHD_Connection *conn);
void http_refuse(http_verdict *v, int status, const char *code, const char *fmt, ...) IMP_PRINTF(4, 5);

/* stream.c */
http_stream *http_stream_new(imp_http *h, struct MHD_Connection *conn, const char *method, const char *path);
void http_stream_unref(http_stream *s);
imp_api_sink http_stream_sink(http_stream *s);                  /* takes a reference that end() gives back */
void http_stream_cancel(http_stream *s, imp_api_reason reason); /* s->h->mu or a reference is held */
void http_stream_set_call(http_stream *s, imp_api_call *call);
void http_stream_finished(http_stream *s); /* MHD is done with the request */
/* Queue the answer if it can start, else suspend. */
enum MHD_Result http_stream_reply(http_stream *s);
void http_stream_abort(http_stream *s);

/* access.c: a line for each request. */
imp_status http_access_open(const char *path, http_access **out, imp_error *err);
void http_access_close(http_access *a);                 /* NULL is allowed */
void http_access_reopen(http_access *a);                /* after the file was moved away */
void http_access_remote(int fd, char *out, size_t cap); /* the other side's address; "": not known */
void http_access_write(http_stream *s);                 /* it has ended; its answer is sent or lost */

/* handler.c: the callbacks of libmicrohttpd. */
enum MHD_Result http_on_request(void *cls, struct MHD_Connection *conn, const char *url, const char *method,
                                const char *version, const char *data, size_t *n_data, void **state);
void http_on_completed(void *cls, struct MHD_Connection *conn, void **state,
                       enum MHD_RequestTerminationCode code);
void http_on_connection(void *cls, struct MHD_Connection *conn, void **state,
                        enum MHD_ConnectionNotificationCode code);

/* Percent codes in place, but for %00, which would end the path early: it stays as it is. */
size_t http_unescape(void *cls, struct MHD_Connection *conn, char *s);

/* server.c */
bool http_run_later(imp_http *h, void (*fn)(void *arg), void *arg);
void http_unref(imp_http *h);
http_conn *http_conn_add(imp_http *h, int fd); /* NULL: out of memory; the others take that */
void http_conn_remove(imp_http *h, http_conn *c);
/* What it does next: send a body, wait for its answer, or (perhaps) another request. */
typedef enum http_stage { HTTP_RECEIVING, HTTP_ANSWERING, HTTP_IDLE } http_stage;
void http_conn_stage(imp_http *h, http_conn *c, http_stage stage);

/* page.c: the status page, embedded at build. */
const char *http_page(size_t *n);

#endif

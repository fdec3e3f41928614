/* http/http.h - the HTTP server: start it on an engine, stop it.
 *
 * Place:   layer 9, over src/api; used by src/app. libmicrohttpd does the bytes of HTTP.
 * Idea:    one polling thread serves every connection. A request that waits for the engine is suspended; the
 *          engine's events append to its queue and resume it. No thread a stream.
 * Always:  nothing but loopback without API keys; Host and Origin are compared exactly; a client that goes
 *          away is cancelled in the engine at once.
 * Threads: start and stop from one thread; the rest runs on threads of its own. */
#ifndef IMP_HTTP_H
#define IMP_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "impetus.h"

typedef struct imp_http imp_http;

typedef struct imp_http_config {
    const char *host;               /* address or name to listen on; NULL: 127.0.0.1 */
    uint16_t port;                  /* 0: the system picks one, see imp_http_port */
    const char *api_key;            /* NULL or "": none; without any key only loopback is allowed */
    const char *key_file;           /* keys, one a line (keys.c); read again when it changes. NULL: none */
    const char *tls_cert, *tls_key; /* PEM files, read again when they change; both or NULL: plain HTTP */
    const char *access_log; /* a line of JSON for each request is appended here; "-": stderr; NULL: none */
    const char *const *origins; /* further web origins that may call, "https://example.com"; "*" is refused */
    size_t n_origin;
    const char *const *hosts; /* further host names clients may use, without port */
    size_t n_host;
    uint64_t max_body_bytes;   /* of one request; 0: 32 MiB */
    uint64_t max_total_bytes;  /* of all bodies that are held at once; 0: 8 * max_body_bytes */
    uint64_t max_unsent_bytes; /* of one answer whose client does not read; 0: 16 MiB, then it is cancelled */
    uint32_t max_connections;  /* 0: 16384, or as many as the process may have files, if fewer */
    uint32_t idle_s;           /* a connection without traffic is closed after this; 0: 60 */
    /* Answer of /api/hardware: JSON text from imp_sys_malloc, or NULL on failure; NULL: 404 there.
     * Called from the server's threads, one call at a time is not promised. */
    char *(*hardware)(void *user);
    void *user;
    const char *lora_dir; /* a folder from which clients may load adapters; NULL: they may not */
} imp_http_config;

/* Everything in config is copied. INVALID: a host, key or origin that is not allowed; IO: the port is taken or the
 * address is not this machine's; err says what to do. engine must outlive the server. */
IMP_MUST_USE imp_status imp_http_start(imp_engine *engine, const imp_http_config *config, imp_http **out,
                                       imp_error *err);
/* Are the files that config names there and well-formed? For before anything is loaded. Errors as of imp_http_start. */
IMP_MUST_USE imp_status imp_http_check(const imp_http_config *config, imp_error *err);
/* Read the key file again now and open the access log anew. What is broken stays as it was; the log says why. Any
 * thread. */
void imp_http_reload(imp_http *h);
uint16_t imp_http_port(const imp_http *h); /* the port it really listens on */
/* Refuse what is new with 503, let running requests finish for up to drain_ms, cancel the rest (each still gets its final
 * event and is sent), then free the server. NULL is allowed. */
void imp_http_stop(imp_http *h, uint32_t drain_ms);

#endif

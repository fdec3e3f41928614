/* api/api.h - JSON requests in, engine calls, JSON answers out; no socket.
 *
 * Place:   layer 8, over impetus.h; called by src/http (and by tests, without a network).
 * Idea:    imp_api_start takes one whole request and a sink. Short answers are written before it returns;
 *          generation and embeddings answer later, from the engine's callback.
 * Always:  a sink sees begin once, then writes, then end once; nothing after end. No error text holds a path,
 *          an address or an internal name.
 * Threads: all functions from any thread; sink functions are called from the caller of imp_api_start or from the
 *          engine's thread, never two at once for one sink; they must not block and must not call the engine. */
#ifndef IMP_API_H
#define IMP_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "impetus.h"

typedef struct imp_api imp_api;
typedef struct imp_api_call imp_api_call;

typedef struct imp_api_header {
    const char *name, *value;
} imp_api_header;

/* What a log may say of a request that reached a model. No text of the user's. */
typedef struct imp_api_note {
    char model[64],
        device[96]; /* device: what measurably ran it, "cuda0 > cpu0" for prefill and decode; "": none did */
    uint64_t id;    /* of its receipt; 0: none */
    uint64_t n_prompt, n_cached, n_generated; /* tokens */
    double ttft_ms;                           /* < 0: no text */
    const char *finish; /* "stop", "length", "cancelled", "error"; NULL: it did not come to a model */
} imp_api_note;

/* Where an answer goes. stream: the body comes in pieces, send each at once; else wait for end. */
typedef struct imp_api_sink {
    void (*begin)(void *user, int status, const char *content_type, const imp_api_header *headers,
                  size_t n_header, bool stream);
    void (*write)(void *user, const char *p, size_t n);
    void (*end)(void *user);
    /* Run fn(arg) soon on a thread that may take its time; false: it cannot. May be NULL. */
    bool (*later)(void *user, void (*fn)(void *arg), void *arg);
    /* Before end, when a model was asked. May be NULL. */
    void (*note)(void *user, const imp_api_note *note);
    void *user;
} imp_api_sink;

/* Who asks. All zero: nobody in particular. */
typedef struct imp_api_who {
    uint64_t client, cache_scope; /* as in imp_request */
    bool limited;                 /* by a key: its priority is this, and a request's own may only add to it */
    int32_t priority;
} imp_api_who;

typedef struct imp_api_request {
    const char *method, *path; /* path without query */
    const char *body;          /* may be NULL when n_body is 0; need not end in NUL */
    size_t n_body;
    imp_api_who who;
    uint64_t waited_ns; /* for its model to be loaded, before this */
} imp_api_request;

typedef struct imp_api_config {
    imp_engine *engine;            /* borrowed, must outlive every call */
    char *(*hardware)(void *user); /* as in imp_http_config; may be NULL */
    void *user;
    const char *lora_dir; /* adapters below it may be loaded by clients; copied; NULL: none may */
} imp_api_config;

IMP_MUST_USE imp_status imp_api_new(const imp_api_config *config, imp_api **out, imp_error *err);
void imp_api_unref(imp_api *a); /* gone when the last running call has ended too */

/* Answer one request. NULL: the answer is complete, end has been called. Else the call still runs: end comes later,
 * and the caller gives the handle back with imp_api_release. */
imp_api_call *imp_api_start(imp_api *a, const imp_api_request *rq, const imp_api_sink *sink);
/* Why a call is cancelled decides its last words. The final event still comes through the sink. */
typedef enum imp_api_reason { IMP_API_GONE = 1, IMP_API_SHUTDOWN, IMP_API_SLOW } imp_api_reason;
void imp_api_cancel(imp_api_call *c, imp_api_reason reason);
void imp_api_release(imp_api_call *c);

/* From now on every request is refused with 503 and /ready says no. */
void imp_api_set_draining(imp_api *a);

/* Which methods a path knows, as an Allow header ("GET, HEAD, OPTIONS"); NULL: no such path. */
const char *imp_api_allow(const char *path);
/* An error answer in the shape that the path's API has. param and code may be NULL. */
void imp_api_refuse(const char *path, const imp_api_sink *sink, int status, const char *param,
                    const char *code, const imp_api_header *headers, size_t n_header, const char *text);

/* Counters that only the HTTP side can see. */
typedef struct imp_api_http_stats {
    uint64_t n_connection, n_connection_open, n_bytes_in, n_bytes_out, n_refused_host, n_refused_origin,
        n_refused_key, n_gone, n_slow;
} imp_api_http_stats;
void imp_api_set_http_stats(imp_api *a, void (*get)(void *user, imp_api_http_stats *out), void *user);
void imp_api_observe(imp_api *a, const char *path, int status, double seconds);

/* A line of the access log, with its newline. Times in ms. */
typedef struct imp_api_access {
    const char *id, *client, *remote, *method, *path; /* client: "": nobody's */
    int status;                                       /* 0: no answer was sent */
    uint64_t n_in, n_out;                             /* bytes of the bodies */
    double total_ms;
    const imp_api_note *note;
} imp_api_access;
struct imp_buf;
void imp_api_access_line(const imp_api_access *a, struct imp_buf *b);

/* Check a body for a path as imp_api_start would, without an engine (for tests and fuzzing). */
imp_status imp_api_check(const char *path, const char *body, size_t n_body, imp_error *err);

#endif

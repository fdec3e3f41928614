/* sched/kv_store.h - blocks of KV caches in a folder: saved for the next start, found again by their chain.
 *
 * Place:   engine opens one a process; each scheduler has a book in it, for its model on its device (restore.c).
 * Idea:    one thread reads, checks and writes, readers first; schedulers only look things up and hand memory over.
 *          A block is a file (kv_file.h) under a name that its chain gives, so nothing has to be kept consistent: a file is
 *          there, whole and right, or it is not there.
 * Threads: all functions from any thread, but a book's and its loads' from its scheduler's alone. */
#ifndef IMP_KV_STORE_H
#define IMP_KV_STORE_H

#include "sched/kv_file.h"

typedef struct imp_kv_store imp_kv_store;

/* The folder is made when it is not there. INVALID: it is not this user's alone. */
IMP_MUST_USE imp_status imp_kv_store_open(const char *dir, uint64_t max_bytes, imp_kv_store **out,
                                          imp_error *err);
/* What was given to be saved is written first. All books are closed. NULL is allowed. */
void imp_kv_store_close(imp_kv_store *s);
/* What chains are hashed with, so that a restart finds them: the folder's secret. */
const uint8_t *imp_kv_store_key(const imp_kv_store *s);

typedef struct imp_kv_store_stats {
    uint64_t n_saved, n_loaded, n_refused, n_evicted; /* blocks */
    uint64_t bytes, n_file;                           /* in the folder */
} imp_kv_store_stats;
void imp_kv_store_get_stats(imp_kv_store *s, imp_kv_store_stats *out);

/* ---- a model on a device --------------------------------------------------------------------------------- */

typedef struct imp_kv_book imp_kv_book;
typedef struct imp_kv_book_config {
    imp_kv_store *store;
    const imp_graph *graph; /* borrowed until the book is closed, as the next */
    const char *device;
    const char *model_name; /* copied */
    imp_dtype kv_dtype;
    void (*wake)(
        void *user); /* a load has news, or there is room to save again; the store's thread, without locks */
    void *user;
} imp_kv_book_config;
/* The model is found out in the background; until then nothing is found or saved. NOMEM. */
IMP_MUST_USE imp_status imp_kv_book_open(const imp_kv_book_config *c, imp_kv_book **out);
/* Its loads are closed. What was given to be saved will be. NULL is allowed. */
void imp_kv_book_close(imp_kv_book *b);
bool imp_kv_book_is_ready(imp_kv_book *b);
bool imp_kv_book_has_room(imp_kv_book *b); /* it is ready, and a buffer is to be had at once */
bool imp_kv_book_has(imp_kv_book *b, const uint64_t hash[2]);

/* Memory for a block to be saved, within what may wait to be written; wait_ms: how long to wait for that. NULL: no room. */
void *imp_kv_book_buffer(imp_kv_book *b, uint32_t wait_ms);
/* Takes the buffer. link NULL: it is not needed. */
void imp_kv_book_save(imp_kv_book *b, const imp_kv_link *link, void *buffer);

/* ---- blocks on their way back ------------------------------------------------------------------------------ */

typedef struct imp_kv_load imp_kv_load;
/* n blocks of a chain, in order. NULL: no memory. */
imp_kv_load *imp_kv_load_new(imp_kv_book *b, const imp_kv_link *link, uint32_t n);
/* The next block's bytes (imp_sys_free them); NULL: not read yet, or *over: no more come. */
void *imp_kv_load_take(imp_kv_load *l, bool *over);
bool imp_kv_load_has_news(imp_kv_load *l); /* take would give something or say that it is over */
void imp_kv_load_close(imp_kv_load *l);
/* Seconds to bring a block back, as measured. */
double imp_kv_book_block_s(imp_kv_book *b);

#endif

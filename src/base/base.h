/* base/base.h - what every layer uses: status helpers, checked sizes, arenas, buffers, log, clock.
 *
 * Place:   layer 0. Includes nothing of ours but impetus.h.
 * Idea:    code above this layer calls no malloc, file or thread function of the system directly:
 *          everything that can fail goes through sys.h, so that a test can make the Nth call fail. */
#ifndef IMP_BASE_H
#define IMP_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "impetus.h"
#include "base/sys.h"

#define IMP_TRY(expr)                                                                                        \
    do {                                                                                                     \
        imp_status imp_try_status_ = (expr);                                                                 \
        if (imp_try_status_ != IMP_OK) return imp_try_status_;                                               \
    } while (0)

#define IMP_COUNT(a)  (sizeof(a) / sizeof((a)[0]))
#define IMP_MIN(a, b) ((a) < (b) ? (a) : (b))
#define IMP_MAX(a, b) ((a) > (b) ? (a) : (b))

/* Fill *err (when not NULL) and return status: `return imp_fail(err, IMP_FORMAT, "...", ...);` */
imp_status imp_fail(imp_error *err, imp_status status, const char *fmt, ...) IMP_PRINTF(3, 4);
/* The same with a byte position, or with the name of the field at fault. */
imp_status imp_fail_at(imp_error *err, imp_status status, uint64_t pos, const char *fmt, ...)
    IMP_PRINTF(4, 5);
imp_status imp_fail_field(imp_error *err, imp_status status, const char *field, const char *fmt, ...)
    IMP_PRINTF(4, 5);

/* ---- checked u64 arithmetic: true and *out on success, false on overflow ------------------- */
static inline bool imp_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    *out = a + b;
    return *out >= a;
}
static inline bool imp_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    *out = a * b;
    return a == 0 || *out / a == b;
}
/* Round up to a multiple of align (a power of two). */
static inline bool imp_align_u64(uint64_t a, uint64_t align, uint64_t *out)
{
    uint64_t sum;
    if (!imp_add_u64(a, align - 1, &sum)) return false;
    *out = sum & ~(align - 1);
    return true;
}

/* ---- arena: many allocations, one end ------------------------------------------------------ */
typedef struct imp_arena imp_arena;
/* chunk_bytes: the first chunk; later ones double. NULL when out of memory. */
imp_arena *imp_arena_new(size_t chunk_bytes);
void imp_arena_free(imp_arena *a);  /* NULL is allowed */
void imp_arena_reset(imp_arena *a); /* keeps the memory, forgets the contents */
/* n zeroed bytes, 16-byte aligned; NULL when out of memory. */
void *imp_arena_alloc(imp_arena *a, size_t n);
/* n * size with overflow check. */
void *imp_arena_array(imp_arena *a, size_t n, size_t size);
/* Copies n bytes and adds a NUL. */
char *imp_arena_strndup(imp_arena *a, const char *s, size_t n);
size_t imp_arena_bytes(const imp_arena *a); /* held from the system */

/* ---- growing byte buffer -------------------------------------------------------------------- */
typedef struct imp_buf {
    char *data; /* owned; NUL-terminated whenever not NULL (the NUL is not counted) */
    size_t n, cap;
    bool failed; /* an append ran out of memory: contents are incomplete; check once at the end */
} imp_buf;
void imp_buf_deinit(imp_buf *b); /* {0} is an empty buffer */
void imp_buf_add(imp_buf *b, const void *p, size_t n);
void imp_buf_str(imp_buf *b, const char *s);
void imp_buf_fmt(imp_buf *b, const char *fmt, ...) IMP_PRINTF(2, 3);
bool imp_buf_reserve(imp_buf *b, size_t extra);
/* Hand the bytes over (imp_sys_free them); the buffer is empty again. NULL when failed. */
char *imp_buf_take(imp_buf *b);

/* ---- hash map from bytes to u32 (vocabularies, tensor directories, merges) ------------------- */
typedef struct imp_map imp_map;
imp_map *imp_map_new(size_t expected);
void imp_map_free(imp_map *m);
/* Keys are borrowed: they must outlive the map. NOMEM; INVALID when the key is there already. */
IMP_MUST_USE imp_status imp_map_put(imp_map *m, const void *key, size_t n_key, uint32_t value);
bool imp_map_get(const imp_map *m, const void *key, size_t n_key, uint32_t *out);
size_t imp_map_bytes(const imp_map *m); /* NULL: 0 */

/* ---- UTF-8 ------------------------------------------------------------------------------------ */
/* Decode one character at s[0..n-1], n >= 1: its length in bytes, *cp the code point. Malformed bytes (also
 * surrogates, overlong forms, > U+10FFFF) give length 1 and *cp = -1. */
size_t imp_utf8_decode(const char *s, size_t n, int32_t *cp);
size_t imp_utf8_encode(int32_t cp, char out[4]); /* bytes written */
bool imp_utf8_valid(const char *s, size_t n);
/* How many bytes at the end of s are the start of a character that needs more bytes (0..3). */
size_t imp_utf8_incomplete_tail(const char *s, size_t n);

/* ---- log and clock ---------------------------------------------------------------------------- */
typedef enum imp_log_level { IMP_LOG_ERROR, IMP_LOG_WARN, IMP_LOG_INFO, IMP_LOG_DEBUG } imp_log_level;
void imp_log_set_level(imp_log_level level); /* default WARN */
void imp_log(imp_log_level level, const char *fmt, ...) IMP_PRINTF(2, 3);
uint64_t imp_now_ns(void); /* monotonic */
/* Seconds of "300ms", "5m", "1h30m", "-1m", as Go writes durations, or of a plain number. false: it is none. */
bool imp_duration_parse(const char *s, double *out);

/* A hash of bytes for tables and cache keys (not for secrets): FNV-1a with a final mix. */
uint64_t imp_hash(const void *p, size_t n, uint64_t seed);
/* A checksum of large data at about the speed of memory, the same everywhere; against chance, not against forgery. */
uint64_t imp_sum64(const void *p, size_t n, uint64_t seed);
/* SipHash-2-4-128: for tables whose keys strangers choose; with a random key nobody can make two inputs collide. */
void imp_siphash(const uint8_t key[16], const void *p, size_t n, uint64_t out[2]);

#endif

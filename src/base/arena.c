/* base/arena.c - many allocations with one end.
 *
 * Idea:    a list of chunks, each at least as large as all before it together; an allocation is a bump of the
 *          newest chunk. reset keeps only the largest chunk, so a steady user soon has one chunk and calls no heap.
 * Threads: one user at a time. */
#include <stdalign.h>

#include "base/base.h"

enum { ALIGN = 16 };

typedef struct chunk {
    struct chunk *prev;
    size_t cap, used; /* of data, in bytes */
    alignas(ALIGN) char data[];
} chunk;

struct imp_arena {
    chunk *top;
    size_t next; /* size of the next chunk */
    size_t held;
};

static chunk *chunk_new(size_t cap)
{
    chunk *c = cap > SIZE_MAX - sizeof(chunk) ? NULL : imp_sys_malloc(sizeof(chunk) + cap);
    if (c == NULL) return NULL;
    c->prev = NULL;
    c->cap = cap;
    c->used = 0;
    return c;
}

imp_arena *imp_arena_new(size_t chunk_bytes)
{
    imp_arena *a = imp_sys_calloc(1, sizeof *a);
    if (a != NULL) a->next = chunk_bytes < 256 ? 256 : chunk_bytes;
    return a;
}

void imp_arena_free(imp_arena *a)
{
    if (a == NULL) return;
    for (chunk *c = a->top; c != NULL;) {
        chunk *prev = c->prev;
        imp_sys_free(c);
        c = prev;
    }
    imp_sys_free(a);
}

void imp_arena_reset(imp_arena *a)
{
    if (a->top == NULL) return;
    for (chunk *c = a->top->prev; c != NULL;) { /* the newest is the largest */
        chunk *prev = c->prev;
        a->held -= c->cap;
        imp_sys_free(c);
        c = prev;
    }
    a->top->prev = NULL;
    a->top->used = 0;
}

void *imp_arena_alloc(imp_arena *a, size_t n)
{
    if (n > SIZE_MAX - ALIGN) return NULL;
    n = (n + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (n == 0) n = ALIGN;
    if (a->top == NULL || a->top->cap - a->top->used < n) {
        size_t cap = n > a->next ? n : a->next;
        chunk *c = chunk_new(cap);
        if (c == NULL) return NULL;
        c->prev = a->top;
        a->top = c;
        a->held += cap;
        if (a->next < SIZE_MAX / 4) a->next = IMP_MAX(a->next * 2, cap);
    }
    void *p = a->top->data + a->top->used;
    a->top->used += n;
    return memset(p, 0, n);
}

void *imp_arena_array(imp_arena *a, size_t n, size_t size)
{
    if (size != 0 && n > SIZE_MAX / size) return NULL;
    return imp_arena_alloc(a, n * size);
}

char *imp_arena_strndup(imp_arena *a, const char *s, size_t n)
{
    char *p = n == SIZE_MAX ? NULL : imp_arena_alloc(a, n + 1);
    if (p != NULL && n > 0) memcpy(p, s, n);
    return p;
}

size_t imp_arena_bytes(const imp_arena *a)
{
    return a->held;
}

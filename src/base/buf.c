/* base/buf.c - growing byte buffer; a failed append is remembered, so callers check once. */
#include <stdio.h>

#include "base/base.h"

void imp_buf_deinit(imp_buf *b)
{
    imp_sys_free(b->data);
    *b = (imp_buf){0};
}

bool imp_buf_reserve(imp_buf *b, size_t extra)
{
    if (b->failed) return false;
    if (extra < b->cap - b->n) return true; /* room for the NUL too */
    if (extra > SIZE_MAX / 4 || b->n > SIZE_MAX / 4) {
        b->failed = true;
        return false;
    }
    size_t cap = b->cap == 0 ? 64 : b->cap;
    while (cap <= b->n + extra) cap *= 2;
    char *p = imp_sys_realloc(b->data, cap);
    if (p == NULL) {
        b->failed = true;
        return false;
    }
    b->data = p;
    b->cap = cap;
    b->data[b->n] = '\0';
    return true;
}

void imp_buf_add(imp_buf *b, const void *p, size_t n)
{
    if (!imp_buf_reserve(b, n)) return;
    if (n > 0) memcpy(b->data + b->n, p, n);
    b->n += n;
    b->data[b->n] = '\0';
}

void imp_buf_str(imp_buf *b, const char *s)
{
    imp_buf_add(b, s, strlen(s));
}

void imp_buf_fmt(imp_buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) b->failed = true;
    if (n >= 0 && imp_buf_reserve(b, (size_t)n)) {
        (void)vsnprintf(b->data + b->n, (size_t)n + 1, fmt, again);
        b->n += (size_t)n;
    }
    va_end(again);
}

char *imp_buf_take(imp_buf *b)
{
    if (b->failed || (b->data == NULL && !imp_buf_reserve(b, 0))) {
        imp_buf_deinit(b);
        return NULL;
    }
    char *p = b->data;
    *b = (imp_buf){0};
    return p;
}

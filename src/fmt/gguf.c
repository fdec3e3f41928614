/* fmt/gguf.c - GGUF v2 and v3: bytes to key-values and a tensor directory.
 *
 * Place:   called by model loading and `impetus check`; knows bytes and dtypes, no architecture.
 * Idea:    one pass over the header checks everything; afterwards values are read in place, so a getter cannot meet a
 *          malformed byte. Memory is taken only for records that were really read: a count in the file is never
 *          believed further than the bytes that remain could hold.
 * Layout:  (little-endian, unaligned)
 *            "GGUF" | version u32 | n_tensor u64 | n_kv u64
 *            n_kv times:     key string | type u32 | value
 *            n_tensor times: name string | n_dim u32 | dim u64[n_dim], fastest first | type u32 | offset u64
 *            padding to general.alignment (default 32) | tensor data, offsets from here, each aligned
 *          string = length u64 | bytes; array = element type u32 | count u64 | elements
 * Always:  every kv and tensor lies inside [0, n); tensors are aligned and disjoint; keys and names are unique.
 * Threads: an open file is read-only.
 * Source:  the GGUF description in ggml/docs/gguf.md. */
#include <stdlib.h>

#include "fmt/gguf.h"
#include "fmt/quote.h"

enum {
    MAX_KV = 1 << 16,     /* real files have tens */
    MAX_TENSOR = 1 << 16, /* real files have hundreds to a few thousand */
    MAX_KEY = 65535,      /* the format's own limit */
    MAX_NAME = 255,       /* tensor names; the format says 64 */
    MAX_ALIGN = 1 << 20,  /* real files say 32 or 64; mapping needs no more than a page */
    MIN_KV_BYTES = 8 + 1 + 4 + 1,
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
    DEFAULT_ALIGN = 32
};

typedef struct kv {
    imp_str key;
    imp_gguf_type type, elem; /* elem: of arrays */
    uint64_t n;               /* bytes of a string, elements of an array */
    const uint8_t *p;         /* value: number, string bytes or first element; borrowed from the file */
    uint64_t *str_at; /* [n] file positions of an array's strings (of their length); owned, else NULL */
} kv;

typedef struct entry {
    imp_str name;
    imp_tensor t;
    uint64_t offset, bytes; /* in the data section */
} entry;

struct imp_gguf {
    imp_sys_file file; /* .data is NULL when parsed from the caller's bytes */
    const uint8_t *p;
    uint64_t n;
    kv *kv;        /* [n_kv], owned */
    entry *tensor; /* [n_tensor], owned */
    uint64_t n_kv, n_tensor;
    uint64_t kv_end;              /* position behind the last key-value */
    imp_map *kv_map, *tensor_map; /* keys point into the file */
};

/* ---- reading ---------------------------------------------------------------------------------- */
typedef struct cursor {
    const uint8_t *p;
    uint64_t n, pos;
    imp_error *err;
} cursor;

static imp_status take(cursor *c, uint64_t n, const char *what, const uint8_t **out)
{
    *out = NULL;
    if (n > c->n - c->pos)
        return imp_fail_at(
            c->err, IMP_FORMAT, c->pos,
            "the file ends inside %s (byte %llu, %llu more needed, %llu there): it is truncated or damaged",
            what, (unsigned long long)c->pos, (unsigned long long)n, (unsigned long long)(c->n - c->pos));
    *out = c->p + c->pos;
    c->pos += n;
    return IMP_OK;
}

static imp_status read_u32(cursor *c, const char *what, uint32_t *out)
{
    const uint8_t *p;
    *out = 0;
    IMP_TRY(take(c, 4, what, &p));
    memcpy(out, p, 4);
    return IMP_OK;
}

static imp_status read_u64(cursor *c, const char *what, uint64_t *out)
{
    const uint8_t *p;
    *out = 0;
    IMP_TRY(take(c, 8, what, &p));
    memcpy(out, p, 8);
    return IMP_OK;
}

static imp_status read_str(cursor *c, const char *what, imp_str *out)
{
    uint64_t n;
    const uint8_t *p;
    *out = (imp_str){NULL, 0};
    IMP_TRY(read_u64(c, what, &n));
    IMP_TRY(take(c, n, what, &p));
    *out = (imp_str){(const char *)p, (size_t)n};
    return IMP_OK;
}

/* Make room for one more record of an array that doubles. */
static imp_status grow(void **array, uint64_t n, uint64_t *cap, size_t size, imp_error *err)
{
    if (n < *cap) return IMP_OK;
    uint64_t want = *cap == 0 ? 32 : *cap * 2;
    void *p = imp_sys_realloc(*array, (size_t)want * size);
    if (p == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the file's directory");
    *array = p;
    *cap = want;
    return IMP_OK;
}

/* ---- header ----------------------------------------------------------------------------------- */
static imp_status read_header(cursor *c, uint64_t *n_tensor, uint64_t *n_kv)
{
    const uint8_t *magic;
    uint32_t version;
    IMP_TRY(take(c, 4, "the header", &magic));
    if (memcmp(magic, "GGUF", 4) != 0)
        return imp_fail_at(c->err, IMP_FORMAT, 0, "not a GGUF file: it does not begin with 'GGUF'");
    IMP_TRY(read_u32(c, "the header", &version));
    if (version != 2 && version != 3) {
        uint32_t swapped = __builtin_bswap32(version);
        if (swapped >= 1 && swapped <= 3)
            return imp_fail_at(c->err, IMP_UNSUPPORTED, 4,
                               "this is a big-endian GGUF file; convert it to little-endian");
        return imp_fail_at(c->err, IMP_UNSUPPORTED, 4,
                           "GGUF version %u is not supported; versions 2 and 3 are", version);
    }
    IMP_TRY(read_u64(c, "the header", n_tensor));
    IMP_TRY(read_u64(c, "the header", n_kv));
    uint64_t rest = c->n - c->pos;
    if (*n_tensor > rest / MIN_TENSOR_BYTES)
        return imp_fail_at(c->err, IMP_FORMAT, 8,
                           "the header announces %llu tensors, more than %llu bytes can hold",
                           (unsigned long long)*n_tensor, (unsigned long long)rest);
    if (*n_kv > rest / MIN_KV_BYTES)
        return imp_fail_at(c->err, IMP_FORMAT, 16,
                           "the header announces %llu keys, more than %llu bytes can hold",
                           (unsigned long long)*n_kv, (unsigned long long)rest);
    if (*n_tensor > MAX_TENSOR)
        return imp_fail_at(c->err, IMP_TOO_LARGE, 8, "%llu tensors are more than the limit of %d",
                           (unsigned long long)*n_tensor, MAX_TENSOR);
    if (*n_kv > MAX_KV)
        return imp_fail_at(c->err, IMP_TOO_LARGE, 16, "%llu keys are more than the limit of %d",
                           (unsigned long long)*n_kv, MAX_KV);
    return IMP_OK;
}

/* ---- key-values ------------------------------------------------------------------------------- */

/* Bytes of one element; 0: strings and arrays. */
static uint64_t type_bytes(imp_gguf_type t)
{
    static const uint8_t bytes[] = {
        [IMP_GGUF_U8] = 1,  [IMP_GGUF_I8] = 1,  [IMP_GGUF_U16] = 2, [IMP_GGUF_I16] = 2,
        [IMP_GGUF_U32] = 4, [IMP_GGUF_I32] = 4, [IMP_GGUF_F32] = 4, [IMP_GGUF_BOOL] = 1,
        [IMP_GGUF_U64] = 8, [IMP_GGUF_I64] = 8, [IMP_GGUF_F64] = 8,
    };
    return bytes[t];
}

static imp_status read_type(cursor *c, imp_str key, imp_gguf_type *out)
{
    uint32_t t;
    uint64_t at = c->pos;
    IMP_TRY(read_u32(c, "a value's type", &t));
    if (t > IMP_GGUF_F64)
        return imp_fail_at(c->err, IMP_FORMAT, at, "key %s has the unknown value type %u",
                           imp_quote(key.p, key.n).s, t);
    *out = (imp_gguf_type)t;
    return IMP_OK;
}

static imp_status check_bools(cursor *c, imp_str key, const uint8_t *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (p[i] > 1)
            return imp_fail_at(c->err, IMP_FORMAT, (uint64_t)(p + i - c->p),
                               "key %s has the boolean value %u; only 0 and 1 are allowed",
                               imp_quote(key.p, key.n).s, p[i]);
    return IMP_OK;
}

static imp_status read_array(cursor *c, kv *v)
{
    uint64_t at = c->pos, bytes;
    IMP_TRY(read_type(c, v->key, &v->elem));
    if (v->elem == IMP_GGUF_ARRAY)
        return imp_fail_at(c->err, IMP_UNSUPPORTED, at,
                           "key %s is an array of arrays, which is not supported",
                           imp_quote(v->key.p, v->key.n).s);
    at = c->pos;
    IMP_TRY(read_u64(c, "an array's length", &v->n));
    uint64_t least = v->elem == IMP_GGUF_STRING ? 8 : type_bytes(v->elem);
    if (!imp_mul_u64(v->n, least, &bytes) || bytes > c->n - c->pos)
        return imp_fail_at(c->err, IMP_FORMAT, at, "key %s announces %llu elements, more than the file holds",
                           imp_quote(v->key.p, v->key.n).s, (unsigned long long)v->n);
    if (v->elem != IMP_GGUF_STRING) {
        IMP_TRY(take(c, bytes, "an array", &v->p));
        return v->elem == IMP_GGUF_BOOL ? check_bools(c, v->key, v->p, v->n) : IMP_OK;
    }
    v->p = c->p + c->pos;
    v->str_at = imp_sys_malloc((size_t)bytes); /* as many bytes as the lengths alone take in the file */
    if (v->str_at == NULL)
        return imp_fail(c->err, IMP_NOMEM, "not enough memory for the %llu strings of key %s",
                        (unsigned long long)v->n, imp_quote(v->key.p, v->key.n).s);
    for (uint64_t i = 0; i < v->n; i++) {
        imp_str s;
        v->str_at[i] = c->pos;
        IMP_TRY(read_str(c, "an array of strings", &s));
    }
    return IMP_OK;
}

static imp_status read_kv(cursor *c, kv *v)
{
    uint64_t at = c->pos;
    IMP_TRY(read_str(c, "a key", &v->key));
    if (v->key.n == 0 || v->key.n > MAX_KEY)
        return imp_fail_at(c->err, IMP_FORMAT, at, "a key has %llu bytes; 1 to %d are allowed",
                           (unsigned long long)v->key.n, MAX_KEY);
    IMP_TRY(read_type(c, v->key, &v->type));
    if (v->type == IMP_GGUF_ARRAY) return read_array(c, v);
    if (v->type == IMP_GGUF_STRING) {
        imp_str s;
        IMP_TRY(read_str(c, "a string value", &s));
        v->p = (const uint8_t *)s.p;
        v->n = s.n;
        return IMP_OK;
    }
    IMP_TRY(take(c, type_bytes(v->type), "a value", &v->p));
    return v->type == IMP_GGUF_BOOL ? check_bools(c, v->key, v->p, 1) : IMP_OK;
}

static imp_status read_kvs(imp_gguf *g, cursor *c, uint64_t n)
{
    uint64_t cap = 0;
    for (uint64_t i = 0; i < n; i++) {
        void *array = g->kv;
        IMP_TRY(grow(&array, i, &cap, sizeof *g->kv, c->err));
        g->kv = array;
        g->kv[i] = (kv){0};
        g->n_kv = i + 1; /* counted before it is read: what it owns is freed on failure */
        IMP_TRY(read_kv(c, &g->kv[i]));
    }
    g->kv_map = imp_map_new((size_t)n);
    if (g->kv_map == NULL) return imp_fail(c->err, IMP_NOMEM, "not enough memory for the file's directory");
    for (uint64_t i = 0; i < n; i++) {
        imp_str k = g->kv[i].key;
        imp_status s = imp_map_put(g->kv_map, k.p, k.n, (uint32_t)i);
        if (s == IMP_INVALID)
            return imp_fail_at(c->err, IMP_FORMAT, (uint64_t)(k.p - (const char *)c->p),
                               "key %s stands in the file twice", imp_quote(k.p, k.n).s);
        if (s != IMP_OK) return imp_fail(c->err, s, "not enough memory for the file's directory");
    }
    return IMP_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------- */
static imp_status read_alignment(const imp_gguf *g, imp_error *err, uint64_t *out)
{
    uint64_t a = DEFAULT_ALIGN;
    if (imp_gguf_has(g, "general.alignment") && !imp_gguf_u64(g, "general.alignment", &a))
        return imp_fail_field(err, IMP_FORMAT, "general.alignment",
                              "general.alignment is not a whole number");
    if (a < 8 || a > MAX_ALIGN || (a & (a - 1)) != 0)
        return imp_fail_field(err, IMP_FORMAT, "general.alignment",
                              "general.alignment is %llu; it must be a power of two from 8 to %d",
                              (unsigned long long)a, MAX_ALIGN);
    *out = a;
    return IMP_OK;
}

/* dtype and bytes from the type id and the dimensions. */
static imp_status type_tensor(cursor *c, entry *e, uint64_t at, uint32_t id)
{
    imp_quoted name = imp_quote(e->name.p, e->name.n);
    e->t.dtype = imp_dtype_from_gguf(id);
    if (e->t.dtype == IMP_DTYPE_NONE) {
        const char *known = imp_dtype_gguf_name(id);
        if (known != NULL)
            return imp_fail_at(
                c->err, IMP_UNSUPPORTED, at,
                "tensor %s has type %s, which is not supported; use a file in another quantisation "
                "(q4_k, q6_k, q8_0, ...)",
                name.s, known);
        return imp_fail_at(c->err, IMP_FORMAT, at, "tensor %s has the unknown type %u", name.s, id);
    }
    const imp_dtype_info *d = imp_dtype_get(e->t.dtype);
    uint64_t n = 1;
    for (uint32_t i = 0; i < e->t.n_dim; i++)
        if (!imp_mul_u64(n, e->t.dim[i], &n))
            return imp_fail_at(c->err, IMP_FORMAT, at, "tensor %s has more elements than can be counted",
                               name.s);
    if (imp_tensor_n_col(&e->t) % d->block_elem != 0)
        return imp_fail_at(c->err, IMP_FORMAT, at,
                           "tensor %s has rows of %llu elements, no multiple of %s's block of %u", name.s,
                           (unsigned long long)imp_tensor_n_col(&e->t), d->name, d->block_elem);
    if (imp_dtype_bytes(e->t.dtype, n, &e->bytes) != IMP_OK)
        return imp_fail_at(c->err, IMP_FORMAT, at, "tensor %s has more bytes than can be counted", name.s);
    return IMP_OK;
}

static imp_status read_tensor(cursor *c, uint64_t align, entry *e)
{
    uint32_t type;
    uint64_t at = c->pos;
    IMP_TRY(read_str(c, "a tensor's name", &e->name));
    if (e->name.n == 0 || e->name.n > MAX_NAME)
        return imp_fail_at(c->err, IMP_FORMAT, at, "a tensor's name has %llu bytes; 1 to %d are allowed",
                           (unsigned long long)e->name.n, MAX_NAME);
    at = c->pos;
    IMP_TRY(read_u32(c, "a tensor's dimensions", &e->t.n_dim));
    if (e->t.n_dim < 1 || e->t.n_dim > IMP_MAX_DIM)
        return imp_fail_at(c->err, IMP_FORMAT, at, "tensor %s has %u dimensions; 1 to %d are allowed",
                           imp_quote(e->name.p, e->name.n).s, e->t.n_dim, IMP_MAX_DIM);
    for (uint32_t i = 0; i < IMP_MAX_DIM; i++) e->t.dim[i] = 1;
    for (uint32_t i = e->t.n_dim; i-- > 0;) { /* fastest first in the file, last here */
        at = c->pos;
        IMP_TRY(read_u64(c, "a tensor's dimensions", &e->t.dim[i]));
        if (e->t.dim[i] == 0)
            return imp_fail_at(c->err, IMP_FORMAT, at, "tensor %s has a dimension of 0",
                               imp_quote(e->name.p, e->name.n).s);
    }
    at = c->pos;
    IMP_TRY(read_u32(c, "a tensor's type", &type));
    IMP_TRY(type_tensor(c, e, at, type));
    at = c->pos;
    IMP_TRY(read_u64(c, "a tensor's offset", &e->offset));
    if (e->offset % align != 0)
        return imp_fail_at(
            c->err, IMP_FORMAT, at, "tensor %s begins at offset %llu, no multiple of the alignment %llu",
            imp_quote(e->name.p, e->name.n).s, (unsigned long long)e->offset, (unsigned long long)align);
    return IMP_OK;
}

/* Give every tensor its bytes; all must lie inside the file. */
static imp_status place_tensors(imp_gguf *g, uint64_t header_end, uint64_t align, imp_error *err)
{
    uint64_t start;
    if (!imp_align_u64(header_end, align, &start) || start > g->n) start = g->n;
    for (uint64_t i = 0; i < g->n_tensor; i++) {
        entry *e = &g->tensor[i];
        if (e->offset > g->n - start || e->bytes > g->n - start - e->offset)
            return imp_fail_at(
                err, IMP_FORMAT, start,
                "tensor %s (%llu bytes at offset %llu) does not lie inside the file, whose data section "
                "has %llu bytes: the file is truncated or damaged",
                imp_quote(e->name.p, e->name.n).s, (unsigned long long)e->bytes,
                (unsigned long long)e->offset, (unsigned long long)(g->n - start));
        e->t.data = g->p + start + e->offset;
    }
    return IMP_OK;
}

static int by_offset(const void *a, const void *b)
{
    const entry *x = *(const entry *const *)a, *y = *(const entry *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static imp_status check_disjoint(const imp_gguf *g, imp_error *err)
{
    uint64_t n = g->n_tensor;
    const entry **order = imp_sys_malloc((size_t)n * sizeof(const entry *));
    if (order == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the file's directory");
    for (uint64_t i = 0; i < n; i++) order[i] = &g->tensor[i];
    qsort(order, (size_t)n, sizeof(const entry *), by_offset);
    imp_status s = IMP_OK;
    for (uint64_t i = 1; i < n && s == IMP_OK; i++) {
        const entry *a = order[i - 1], *b = order[i];
        if (b->offset - a->offset < a->bytes)
            s = imp_fail(err, IMP_FORMAT, "tensors %s and %s overlap in the file",
                         imp_quote(a->name.p, a->name.n).s, imp_quote(b->name.p, b->name.n).s);
    }
    imp_sys_free(order);
    return s;
}

static imp_status read_tensors(imp_gguf *g, cursor *c, uint64_t n)
{
    uint64_t cap = 0, align = DEFAULT_ALIGN;
    IMP_TRY(read_alignment(g, c->err, &align));
    for (uint64_t i = 0; i < n; i++) {
        void *array = g->tensor;
        IMP_TRY(grow(&array, i, &cap, sizeof *g->tensor, c->err));
        g->tensor = array;
        g->tensor[i] = (entry){0};
        IMP_TRY(read_tensor(c, align, &g->tensor[i]));
        g->n_tensor = i + 1;
    }
    g->tensor_map = imp_map_new((size_t)n);
    if (g->tensor_map == NULL)
        return imp_fail(c->err, IMP_NOMEM, "not enough memory for the file's directory");
    for (uint64_t i = 0; i < n; i++) {
        imp_str k = g->tensor[i].name;
        imp_status s = imp_map_put(g->tensor_map, k.p, k.n, (uint32_t)i);
        if (s == IMP_INVALID)
            return imp_fail_at(c->err, IMP_FORMAT, (uint64_t)(k.p - (const char *)c->p),
                               "tensor %s stands in the file twice", imp_quote(k.p, k.n).s);
        if (s != IMP_OK) return imp_fail(c->err, s, "not enough memory for the file's directory");
    }
    IMP_TRY(place_tensors(g, c->pos, align, c->err));
    return check_disjoint(g, c->err);
}

/* ---- open and close --------------------------------------------------------------------------- */
imp_status imp_gguf_parse(const uint8_t *p, uint64_t n, imp_gguf **out, imp_error *err)
{
    cursor c = {.p = p, .n = n, .err = err};
    uint64_t n_tensor, n_kv;
    *out = NULL;
    IMP_TRY(read_header(&c, &n_tensor, &n_kv));
    imp_gguf *g = imp_sys_calloc(1, sizeof *g);
    if (g == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the file's directory");
    g->p = p;
    g->n = n;
    imp_status s = read_kvs(g, &c, n_kv);
    g->kv_end = c.pos;
    if (s == IMP_OK) s = read_tensors(g, &c, n_tensor);
    if (s != IMP_OK) {
        imp_gguf_close(g);
        return s;
    }
    *out = g;
    return IMP_OK;
}

imp_status imp_gguf_open(const char *path, imp_gguf **out, imp_error *err)
{
    imp_sys_file f;
    *out = NULL;
    IMP_TRY(imp_sys_file_open(path, true, &f, err));
    imp_status s = imp_gguf_parse(f.data, f.n, out, err);
    if (s != IMP_OK) {
        imp_sys_file_close(&f);
        return imp_fail_in(err, s, path);
    }
    (*out)->file = f;
    return IMP_OK;
}

void imp_gguf_close(imp_gguf *g)
{
    if (g == NULL) return;
    for (uint64_t i = 0; i < g->n_kv; i++) imp_sys_free(g->kv[i].str_at);
    imp_map_free(g->kv_map);
    imp_map_free(g->tensor_map);
    imp_sys_free(g->kv);
    imp_sys_free(g->tensor);
    imp_sys_file_close(&g->file);
    imp_sys_free(g);
}

/* ---- key-values, read in place ---------------------------------------------------------------- */
static const kv *find(const imp_gguf *g, const char *key)
{
    uint32_t i;
    return imp_map_get(g->kv_map, key, strlen(key), &i) ? &g->kv[i] : NULL;
}

/* The integer at p: *negative and its two's complement in 64 bits. false: no integer type. */
static bool load_int(const uint8_t *p, imp_gguf_type t, bool *negative, uint64_t *out)
{
    uint64_t u = 0;
    int64_t s;
    uint64_t bytes = type_bytes(t);
    switch (t) {
    case IMP_GGUF_U8:
    case IMP_GGUF_U16:
    case IMP_GGUF_U32:
    case IMP_GGUF_U64:
        memcpy(&u, p, bytes);
        *negative = false;
        *out = u;
        return true;
    case IMP_GGUF_I8:
    case IMP_GGUF_I16:
    case IMP_GGUF_I32:
    case IMP_GGUF_I64:
        memcpy(&u, p, bytes);
        s = (int64_t)(u << (64 - 8 * bytes)) >> (64 - 8 * bytes);
        *negative = s < 0;
        *out = (uint64_t)s;
        return true;
    default: return false;
    }
}

static bool load_f64(const uint8_t *p, imp_gguf_type t, double *out)
{
    float f;
    bool negative;
    uint64_t u;
    if (t == IMP_GGUF_F64) {
        memcpy(out, p, 8);
    } else if (t == IMP_GGUF_F32) {
        memcpy(&f, p, 4);
        *out = (double)f;
    } else if (load_int(p, t, &negative, &u)) {
        *out = negative ? (double)(int64_t)u : (double)u;
    } else {
        return false;
    }
    return true;
}

uint64_t imp_gguf_n_kv(const imp_gguf *g)
{
    return g->n_kv;
}

imp_str imp_gguf_key(const imp_gguf *g, uint64_t i, imp_gguf_type *type)
{
    *type = g->kv[i].type;
    return g->kv[i].key;
}

imp_str imp_gguf_kv_bytes(const imp_gguf *g, uint64_t i)
{
    const char *from = g->kv[i].key.p - sizeof(uint64_t);
    const char *end =
        i + 1 < g->n_kv ? g->kv[i + 1].key.p - sizeof(uint64_t) : (const char *)g->p + g->kv_end;
    return (imp_str){from, (size_t)(end - from)};
}

bool imp_gguf_has(const imp_gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

bool imp_gguf_u64(const imp_gguf *g, const char *key, uint64_t *out)
{
    const kv *v = find(g, key);
    bool negative;
    uint64_t u;
    if (v == NULL || !load_int(v->p, v->type, &negative, &u) || negative) return false;
    *out = u;
    return true;
}

bool imp_gguf_i64(const imp_gguf *g, const char *key, int64_t *out)
{
    const kv *v = find(g, key);
    bool negative;
    uint64_t u;
    if (v == NULL || !load_int(v->p, v->type, &negative, &u) || (!negative && u > INT64_MAX)) return false;
    *out = (int64_t)u;
    return true;
}

bool imp_gguf_f64(const imp_gguf *g, const char *key, double *out)
{
    const kv *v = find(g, key);
    return v != NULL && load_f64(v->p, v->type, out);
}

bool imp_gguf_bool(const imp_gguf *g, const char *key, bool *out)
{
    const kv *v = find(g, key);
    if (v == NULL || v->type != IMP_GGUF_BOOL) return false;
    *out = v->p[0] != 0;
    return true;
}

bool imp_gguf_str(const imp_gguf *g, const char *key, imp_str *out)
{
    const kv *v = find(g, key);
    if (v == NULL || v->type != IMP_GGUF_STRING) return false;
    *out = (imp_str){(const char *)v->p, (size_t)v->n};
    return true;
}

bool imp_gguf_array(const imp_gguf *g, const char *key, imp_gguf_type *elem, uint64_t *n)
{
    const kv *v = find(g, key);
    if (v == NULL || v->type != IMP_GGUF_ARRAY) return false;
    *elem = v->elem;
    *n = v->n;
    return true;
}

static imp_str string_at(const imp_gguf *g, const kv *v, uint64_t i)
{
    uint64_t n;
    memcpy(&n, g->p + v->str_at[i], 8);
    return (imp_str){(const char *)g->p + v->str_at[i] + 8, (size_t)n};
}

imp_str imp_gguf_array_str(const imp_gguf *g, const char *key, uint64_t i)
{
    const kv *v = find(g, key);
    if (v == NULL || v->str_at == NULL || i >= v->n) return (imp_str){NULL, 0};
    return string_at(g, v, i);
}

bool imp_gguf_array_strs(const imp_gguf *g, const char *key, imp_str *out, uint64_t n)
{
    const kv *v = find(g, key);
    if (v == NULL || v->str_at == NULL || n != v->n) return false;
    for (uint64_t i = 0; i < n; i++) out[i] = string_at(g, v, i);
    return true;
}

bool imp_gguf_array_i64(const imp_gguf *g, const char *key, int64_t *out, uint64_t n)
{
    const kv *v = find(g, key);
    if (v == NULL || v->type != IMP_GGUF_ARRAY || n != v->n) return false;
    uint64_t bytes = type_bytes(v->elem), u;
    bool negative;
    for (uint64_t i = 0; i < n; i++) {
        if (v->elem == IMP_GGUF_BOOL) {
            out[i] = v->p[i];
            continue;
        }
        if (!load_int(v->p + i * bytes, v->elem, &negative, &u) || (!negative && u > INT64_MAX)) return false;
        out[i] = (int64_t)u;
    }
    return true;
}

bool imp_gguf_array_f32(const imp_gguf *g, const char *key, float *out, uint64_t n)
{
    const kv *v = find(g, key);
    if (v == NULL || v->type != IMP_GGUF_ARRAY || n != v->n) return false;
    uint64_t bytes = type_bytes(v->elem);
    double d;
    for (uint64_t i = 0; i < n; i++) {
        if (!load_f64(v->p + i * bytes, v->elem, &d)) return false;
        out[i] = (float)d;
    }
    return true;
}

/* ---- tensor directory ------------------------------------------------------------------------- */
uint64_t imp_gguf_n_tensor(const imp_gguf *g)
{
    return g->n_tensor;
}

const imp_tensor *imp_gguf_tensor_at(const imp_gguf *g, uint64_t i, imp_str *name)
{
    if (name != NULL) *name = g->tensor[i].name;
    return &g->tensor[i].t;
}

const imp_tensor *imp_gguf_tensor(const imp_gguf *g, const char *name)
{
    uint32_t i;
    return imp_map_get(g->tensor_map, name, strlen(name), &i) ? &g->tensor[i].t : NULL;
}

uint64_t imp_gguf_bytes(const imp_gguf *g)
{
    uint64_t n = sizeof *g + imp_map_bytes(g->kv_map) + imp_map_bytes(g->tensor_map);
    n += g->n_kv * sizeof *g->kv + g->n_tensor * sizeof *g->tensor;
    for (uint64_t i = 0; i < g->n_kv; i++)
        if (g->kv[i].str_at != NULL) n += g->kv[i].n * sizeof *g->kv[i].str_at;
    return n;
}

uint64_t imp_gguf_file_bytes(const imp_gguf *g)
{
    return g->n;
}

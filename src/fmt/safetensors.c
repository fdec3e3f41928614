/* fmt/safetensors.c - one safetensors file: header JSON to a tensor directory.
 *
 * Place:   called by hf.c (a model folder's shards) and by tests.
 * Idea:    the header's ranges must tile the data section exactly, each as large as its shape and dtype say; then
 *          no later access can leave the file. Tensors are read in place; one whose position is not aligned to its
 *          element (the format allows that) is copied once.
 * Layout:  header length u64, little-endian | header: JSON object, may end in spaces | data
 *            header: { name: {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, ...,
 *                      "__metadata__": {string: string} }     offsets count from the end of the header
 * Always:  tensors stand in file order, disjoint, without holes; data is aligned to the element size.
 * Threads: an open file is read-only.
 * Source:  the format section of the safetensors README. */
#include <stdlib.h>

#include "fmt/json_load.h"
#include "fmt/quote.h"
#include "fmt/safetensors.h"

enum {
    MAX_HEADER = 100000000, /* the reference implementation's limit */
    MAX_TENSOR = 1 << 16,
    MAX_NAME = 511
};

typedef struct entry {
    const char *name; /* in the header tree */
    imp_tensor t;
    uint64_t begin, end; /* in the data section */
    void *copy;          /* owned aligned copy of the data, NULL: in place */
} entry;

struct imp_safetensors {
    imp_sys_file file; /* .data is NULL when parsed from the caller's bytes */
    uint64_t n;        /* bytes of the whole file */
    json_t *header;    /* owned: names and metadata point into it */
    entry *tensor;     /* [n_tensor], owned */
    uint64_t n_tensor;
    imp_map *map;
};

/* ---- one tensor's description ----------------------------------------------------------------- */
static imp_status read_dtype(entry *e, const json_t *v, imp_error *err)
{
    const char *s = json_string_value(v);
    if (s == NULL)
        return imp_fail_field(err, IMP_FORMAT, "dtype", "tensor %s has no dtype", imp_quote_z(e->name).s);
    e->t.dtype = imp_dtype_from_st(s, strlen(s));
    if (e->t.dtype == IMP_DTYPE_NONE)
        return imp_fail_field(err, IMP_UNSUPPORTED, "dtype", "tensor %s has dtype %s, which is not supported",
                              imp_quote_z(e->name).s, imp_quote_z(s).s);
    return IMP_OK;
}

static bool read_size(const json_t *v, uint64_t *out)
{
    *out = 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0) return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

/* Shape into the view, its byte size into *bytes. */
static imp_status read_shape(entry *e, const json_t *v, uint64_t *bytes, imp_error *err)
{
    imp_quoted name = imp_quote_z(e->name);
    *bytes = 0;
    if (!json_is_array(v)) return imp_fail_field(err, IMP_FORMAT, "shape", "tensor %s has no shape", name.s);
    if (json_array_size(v) > IMP_MAX_DIM)
        return imp_fail_field(err, IMP_UNSUPPORTED, "shape",
                              "tensor %s has %zu dimensions; at most %d are supported", name.s,
                              json_array_size(v), IMP_MAX_DIM);
    e->t.n_dim = (uint32_t)json_array_size(v);
    for (uint32_t i = 0; i < IMP_MAX_DIM; i++) e->t.dim[i] = 1;
    uint64_t n = 1;
    for (uint32_t i = 0; i < e->t.n_dim; i++) {
        if (!read_size(json_array_get(v, i), &e->t.dim[i]))
            return imp_fail_field(err, IMP_FORMAT, "shape",
                                  "tensor %s has a dimension that is no whole number", name.s);
        /* Checked dimension by dimension: a 0 further on does not excuse a product that overflows before it. */
        if (!imp_mul_u64(n, e->t.dim[i], &n))
            return imp_fail_field(err, IMP_FORMAT, "shape", "tensor %s has more elements than can be counted",
                                  name.s);
    }
    if (imp_dtype_bytes(e->t.dtype, n, bytes) != IMP_OK)
        return imp_fail_field(err, IMP_FORMAT, "shape", "tensor %s has more bytes than can be counted",
                              name.s);
    return IMP_OK;
}

static imp_status read_entry(entry *e, const json_t *v, uint64_t n_data, imp_error *err)
{
    imp_quoted name = imp_quote_z(e->name);
    uint64_t bytes;
    if (e->name[0] == 0 || strlen(e->name) > MAX_NAME)
        return imp_fail(err, IMP_FORMAT, "a tensor's name has %zu bytes; 1 to %d are allowed",
                        strlen(e->name), MAX_NAME);
    if (!json_is_object(v) || json_object_size(v) != 3)
        return imp_fail(err, IMP_FORMAT,
                        "tensor %s is not described by exactly dtype, shape and data_offsets", name.s);
    IMP_TRY(read_dtype(e, json_object_get(v, "dtype"), err));
    IMP_TRY(read_shape(e, json_object_get(v, "shape"), &bytes, err));
    const json_t *range = json_object_get(v, "data_offsets");
    if (json_array_size(range) != 2 || !read_size(json_array_get(range, 0), &e->begin) ||
        !read_size(json_array_get(range, 1), &e->end))
        return imp_fail_field(err, IMP_FORMAT, "data_offsets",
                              "tensor %s has no data_offsets of two whole numbers", name.s);
    if (e->begin > e->end || e->end > n_data)
        return imp_fail_field(
            err, IMP_FORMAT, "data_offsets",
            "tensor %s lies at %llu to %llu, outside the file's %llu bytes of data: the file is "
            "truncated or damaged",
            name.s, (unsigned long long)e->begin, (unsigned long long)e->end, (unsigned long long)n_data);
    if (e->end - e->begin != bytes)
        return imp_fail_field(err, IMP_FORMAT, "data_offsets",
                              "tensor %s has %llu bytes, but its shape and dtype need %llu", name.s,
                              (unsigned long long)(e->end - e->begin), (unsigned long long)bytes);
    return IMP_OK;
}

/* ---- the directory ---------------------------------------------------------------------------- */
static imp_status check_metadata(json_t *meta, imp_error *err)
{
    const char *key;
    json_t *v;
    if (meta == NULL || json_is_null(meta)) return IMP_OK; /* mlx writes null for "none" */
    if (!json_is_object(meta))
        return imp_fail_field(err, IMP_FORMAT, "__metadata__", "__metadata__ is not an object of strings");
    json_object_foreach(meta, key, v)
    {
        if (!json_is_string(v))
            return imp_fail_field(err, IMP_FORMAT, "__metadata__",
                                  "__metadata__ has %s, which is not a string", imp_quote_z(key).s);
    }
    return IMP_OK;
}

static int by_place(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1; /* an empty tensor before the one that begins there */
    return strcmp(x->name, y->name);
}

/* Sorted by place, the ranges must follow each other from 0 to the end of the file. */
static imp_status check_tiling(const imp_safetensors *s, uint64_t n_data, imp_error *err)
{
    uint64_t at = 0;
    for (uint64_t i = 0; i < s->n_tensor; i++) {
        const entry *e = &s->tensor[i];
        if (e->begin != at)
            return imp_fail_field(err, IMP_FORMAT, "data_offsets", "tensor %s begins at %llu, %s %llu",
                                  imp_quote_z(e->name).s, (unsigned long long)e->begin,
                                  e->begin < at ? "overlapping the tensor that ends at"
                                                : "leaving a hole after the tensor that ends at",
                                  (unsigned long long)at);
        at = e->end;
    }
    if (at != n_data)
        return imp_fail_field(err, IMP_FORMAT, "data_offsets",
                              "the file has %llu bytes of data, its tensors take %llu of them",
                              (unsigned long long)n_data, (unsigned long long)at);
    return IMP_OK;
}

static imp_status place(entry *e, const uint8_t *data, imp_error *err)
{
    uint32_t size = imp_dtype_get(e->t.dtype)->block_bytes;
    uint64_t bytes = e->end - e->begin;
    e->t.data = data + e->begin;
    if (bytes == 0 || (uintptr_t)e->t.data % size == 0) return IMP_OK;
    e->copy = imp_sys_malloc((size_t)bytes);
    if (e->copy == NULL)
        return imp_fail(err, IMP_NOMEM, "not enough memory for an aligned copy of tensor %s (%llu bytes)",
                        imp_quote_z(e->name).s, (unsigned long long)bytes);
    memcpy(e->copy, e->t.data, (size_t)bytes);
    e->t.data = e->copy;
    return IMP_OK;
}

static imp_status read_directory(imp_safetensors *s, const uint8_t *data, uint64_t n_data, imp_error *err)
{
    json_t *meta = json_object_get(s->header, "__metadata__");
    uint64_t n = json_object_size(s->header) - (meta != NULL), i = 0;
    IMP_TRY(check_metadata(meta, err));
    if (n > MAX_TENSOR)
        return imp_fail(err, IMP_TOO_LARGE, "%llu tensors are more than the limit of %d",
                        (unsigned long long)n, MAX_TENSOR);
    s->tensor = imp_sys_calloc((size_t)n, sizeof *s->tensor); /* n descriptions were parsed already */
    s->map = imp_map_new((size_t)n);
    if (s->tensor == NULL || s->map == NULL)
        return imp_fail(err, IMP_NOMEM, "not enough memory for the file's directory");
    const char *key;
    json_t *v;
    json_object_foreach(s->header, key, v)
    {
        if (v == meta) continue;
        s->tensor[i].name = key;
        IMP_TRY(read_entry(&s->tensor[i++], v, n_data, err));
    }
    s->n_tensor = n;
    if (n > 0) qsort(s->tensor, (size_t)n, sizeof *s->tensor, by_place);
    IMP_TRY(check_tiling(s, n_data, err));
    for (i = 0; i < n; i++) {
        entry *e = &s->tensor[i];
        IMP_TRY(place(e, data, err));
        imp_status st = imp_map_put(s->map, e->name, strlen(e->name), (uint32_t)i);
        if (st == IMP_NOMEM) return imp_fail(err, st, "not enough memory for the file's directory");
        if (st != IMP_OK)
            return imp_fail(err, IMP_FORMAT, "tensor %s stands in the file twice", imp_quote_z(e->name).s);
    }
    return IMP_OK;
}

/* ---- open and close --------------------------------------------------------------------------- */
static imp_status read_header(const uint8_t *p, uint64_t n, uint64_t *n_header, imp_error *err)
{
    *n_header = 0;
    if (n < 8)
        return imp_fail_at(err, IMP_FORMAT, 0, "not a safetensors file: it has only %llu bytes",
                           (unsigned long long)n);
    memcpy(n_header, p, 8);
    if (*n_header > MAX_HEADER)
        return imp_fail_at(
            err, IMP_TOO_LARGE, 0,
            "the header announces %llu bytes, the limit is %d: not a safetensors file, or a damaged one",
            (unsigned long long)*n_header, MAX_HEADER);
    if (*n_header > n - 8)
        return imp_fail_at(
            err, IMP_FORMAT, 0,
            "the header announces %llu bytes, but only %llu follow: the file is truncated or damaged",
            (unsigned long long)*n_header, (unsigned long long)(n - 8));
    if (*n_header < 2 || p[8] != '{')
        return imp_fail_at(err, IMP_FORMAT, 8, "not a safetensors file: its header does not begin with '{'");
    return IMP_OK;
}

imp_status imp_safetensors_parse(const uint8_t *p, uint64_t n, imp_safetensors **out, imp_error *err)
{
    uint64_t n_header;
    *out = NULL;
    IMP_TRY(read_header(p, n, &n_header, err));
    imp_safetensors *s = imp_sys_calloc(1, sizeof *s);
    if (s == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the file's directory");
    s->n = n;
    imp_status st =
        imp_json_load((const char *)p + 8, (size_t)n_header, "the safetensors header", &s->header, err);
    if (st == IMP_OK) st = read_directory(s, p + 8 + n_header, n - 8 - n_header, err);
    if (st != IMP_OK) {
        imp_safetensors_close(s);
        return st;
    }
    *out = s;
    return IMP_OK;
}

imp_status imp_safetensors_open(const char *path, imp_safetensors **out, imp_error *err)
{
    imp_sys_file f;
    *out = NULL;
    IMP_TRY(imp_sys_file_open(path, true, &f, err));
    imp_status st = imp_safetensors_parse(f.data, f.n, out, err);
    if (st != IMP_OK) {
        imp_sys_file_close(&f);
        return imp_fail_in(err, st, path);
    }
    (*out)->file = f;
    return IMP_OK;
}

void imp_safetensors_close(imp_safetensors *s)
{
    if (s == NULL) return;
    for (uint64_t i = 0; i < s->n_tensor; i++) imp_sys_free(s->tensor[i].copy);
    imp_map_free(s->map);
    imp_sys_free(s->tensor);
    json_decref(s->header);
    imp_sys_file_close(&s->file);
    imp_sys_free(s);
}

/* ---- the directory, read ---------------------------------------------------------------------- */
uint64_t imp_safetensors_n(const imp_safetensors *s)
{
    return s->n_tensor;
}

const imp_tensor *imp_safetensors_at(const imp_safetensors *s, uint64_t i, const char **name)
{
    if (name != NULL) *name = s->tensor[i].name;
    return &s->tensor[i].t;
}

const imp_tensor *imp_safetensors_get(const imp_safetensors *s, const char *name)
{
    uint32_t i;
    return imp_map_get(s->map, name, strlen(name), &i) ? &s->tensor[i].t : NULL;
}

const char *imp_safetensors_metadata(const imp_safetensors *s, const char *key)
{
    return json_string_value(json_object_get(json_object_get(s->header, "__metadata__"), key));
}

uint64_t imp_safetensors_file_bytes(const imp_safetensors *s)
{
    return s->n;
}

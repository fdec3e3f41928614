/* fmt/gguf_write.c - GGUF files written piece by piece.
 *
 * Place:   called by engine/quantize.c.
 * Idea:    what comes before the data (keys, directory) is small and kept in two buffers until it is complete; offsets are
 *          known from the announced sizes, so the data can follow as a stream of any length.
 * Layout:  stated in gguf.c.
 * Always:  the file appears under its name only when it is complete.
 * Threads: one caller. */
#include "fmt/gguf.h"

enum { ALIGN = 32 };

struct imp_gguf_writer {
    imp_buf kv, dir;
    uint64_t n_kv, n_tensor, data_bytes; /* data_bytes: announced, with padding */
    imp_buf sizes;                       /* u64 a tensor: its bytes */
    uint64_t tensor, done;               /* the tensor that is written and its bytes so far */
    imp_sys_out *out;
};

static void add_u32(imp_buf *b, uint32_t v)
{
    imp_buf_add(b, &v, sizeof v);
}

static void add_u64(imp_buf *b, uint64_t v)
{
    imp_buf_add(b, &v, sizeof v);
}

static void add_str(imp_buf *b, const char *s)
{
    add_u64(b, strlen(s));
    imp_buf_add(b, s, strlen(s));
}

imp_gguf_writer *imp_gguf_writer_new(void)
{
    return imp_sys_calloc(1, sizeof(imp_gguf_writer));
}

void imp_gguf_write_kv(imp_gguf_writer *w, imp_str kv_bytes)
{
    imp_buf_add(&w->kv, kv_bytes.p, kv_bytes.n);
    w->n_kv++;
}

void imp_gguf_write_u32(imp_gguf_writer *w, const char *key, uint32_t value)
{
    add_str(&w->kv, key);
    add_u32(&w->kv, IMP_GGUF_U32);
    add_u32(&w->kv, value);
    w->n_kv++;
}

static uint64_t padding(uint64_t n)
{
    return (ALIGN - n % ALIGN) % ALIGN;
}

void imp_gguf_write_tensor(imp_gguf_writer *w, const char *name, imp_dtype type, uint32_t n_dim,
                           const uint64_t *dim, uint64_t bytes)
{
    add_str(&w->dir, name);
    add_u32(&w->dir, n_dim);
    for (uint32_t i = n_dim; i > 0; i--) add_u64(&w->dir, dim[i - 1]);
    add_u32(&w->dir, (uint32_t)imp_dtype_get(type)->gguf_id);
    add_u64(&w->dir, w->data_bytes);
    add_u64(&w->sizes, bytes);
    w->data_bytes += bytes + padding(bytes);
    w->n_tensor++;
}

static imp_status pad(imp_gguf_writer *w, uint64_t n, imp_error *err)
{
    static const char zero[ALIGN];
    return imp_sys_out_write(w->out, zero, padding(n), err);
}

imp_status imp_gguf_write_begin(imp_gguf_writer *w, const char *path, imp_error *err)
{
    imp_buf head = {0};
    if (w->kv.failed || w->dir.failed || w->sizes.failed)
        return imp_fail(err, IMP_NOMEM, "not enough memory for the directory of %s", path);
    imp_buf_add(&head, "GGUF", 4);
    add_u32(&head, 3);
    add_u64(&head, w->n_tensor);
    add_u64(&head, w->n_kv);
    imp_status s = head.failed ? imp_fail(err, IMP_NOMEM, "not enough memory to write %s", path)
                               : imp_sys_out_open(path, &w->out, err);
    if (s == IMP_OK) s = imp_sys_out_write(w->out, head.data, head.n, err);
    imp_buf_deinit(&head);
    if (s == IMP_OK && w->kv.n > 0) s = imp_sys_out_write(w->out, w->kv.data, w->kv.n, err);
    if (s == IMP_OK && w->dir.n > 0) s = imp_sys_out_write(w->out, w->dir.data, w->dir.n, err);
    return s == IMP_OK ? pad(w, imp_sys_out_n(w->out), err) : s;
}

/* Bytes the tensor that is written has in all. */
static uint64_t size_at(const imp_gguf_writer *w, uint64_t i)
{
    uint64_t n;
    memcpy(&n, w->sizes.data + i * sizeof n, sizeof n);
    return n;
}

imp_status imp_gguf_write_data(imp_gguf_writer *w, const void *p, uint64_t n, imp_error *err)
{
    const uint8_t *from = p;
    while (n > 0) {
        if (w->tensor == w->n_tensor)
            return imp_fail(err, IMP_INTERNAL, "more bytes than the tensors were announced with");
        uint64_t all = size_at(w, w->tensor), now = IMP_MIN(n, all - w->done);
        IMP_TRY(imp_sys_out_write(w->out, from, now, err));
        from += now;
        n -= now;
        w->done += now;
        if (w->done < all) continue;
        IMP_TRY(pad(w, all, err));
        w->tensor++;
        w->done = 0;
    }
    return IMP_OK;
}

imp_status imp_gguf_writer_close(imp_gguf_writer *w, bool keep, uint64_t *file_bytes, imp_error *err)
{
    if (w == NULL) return IMP_OK;
    imp_status s = IMP_OK;
    if (file_bytes != NULL) *file_bytes = w->out != NULL ? imp_sys_out_n(w->out) : 0;
    if (keep && w->tensor != w->n_tensor)
        s = imp_fail(err, IMP_INTERNAL, "%llu tensors were announced, %llu written",
                     (unsigned long long)w->n_tensor, (unsigned long long)w->tensor);
    imp_status closed = imp_sys_out_close(w->out, keep && s == IMP_OK, err);
    imp_buf_deinit(&w->kv);
    imp_buf_deinit(&w->dir);
    imp_buf_deinit(&w->sizes);
    imp_sys_free(w);
    return s != IMP_OK ? s : closed;
}

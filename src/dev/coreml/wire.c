/* dev/coreml/wire.c - messages between the device and its worker; see wire.h. */
#include "dev/coreml/wire.h"

#define SHARED_MOST (4ull << 30)

/* Bytes of keys and values of the layers before `layer`, for the longest length. */
static bool kv_bytes(const ml_shape *sh, uint32_t layer, uint64_t *out)
{
    uint64_t width = 0;
    for (uint32_t i = 0; i < layer; i++) width += 2ull * sh->kv_width[i];
    return imp_mul_u64(width, 2ull * sh->s[sh->n_len - 1], out);
}

bool ml_slots_of(const ml_shape *sh, ml_slots *out)
{
    enum { ALIGN = 128 };
    uint64_t hidden, row, vec;
    *out = (ml_slots){0};
    if (sh->n_len == 0 || sh->n_len > ML_WIRE_LENS || sh->n_kv > ML_WIRE_KV) return false;
    uint32_t s_max = sh->s[sh->n_len - 1];
    if (sh->width == 0 || (sh->dim == 0) == (sh->n_kv == 0) || s_max == 0 || s_max > 32768 ||
        sh->n_slot == 0 || sh->n_slot > ML_WIRE_SLOTS)
        return false;
    bool ok = imp_mul_u64((uint64_t)sh->width * s_max, 2, &hidden) &&
              imp_align_u64(hidden, ALIGN, &out->mask) && imp_align_u64((uint64_t)s_max * 2, ALIGN, &row) &&
              imp_add_u64(out->mask, row, &out->pool) && imp_add_u64(out->pool, row, &out->out) &&
              kv_bytes(sh, sh->n_kv, &vec) && imp_add_u64(vec, (uint64_t)sh->dim * 4, &vec) &&
              imp_align_u64(vec, ALIGN, &vec) && imp_add_u64(out->out, vec, &out->stride) &&
              imp_mul_u64(out->stride, sh->n_slot, &out->total);
    return ok && out->total <= SHARED_MOST;
}

uint64_t ml_slot_kv(const ml_shape *sh, const ml_slots *sl, uint32_t layer, int part)
{
    uint64_t before = 0;
    (void)kv_bytes(sh, layer, &before); /* less than what ml_slots_of found possible */
    return sl->out + before + (part == 0 ? 0 : 2ull * sh->kv_width[layer] * sh->s[sh->n_len - 1]);
}

uint32_t ml_wire_size(ml_kind kind)
{
    switch (kind) {
    case ML_HELLO: return sizeof(ml_hello);
    case ML_WELCOME: return sizeof(ml_welcome);
    case ML_LOAD: return sizeof(ml_load);
    case ML_LOADED: return sizeof(ml_loaded);
    case ML_RUN: return sizeof(ml_run);
    case ML_RAN: return sizeof(ml_ran);
    case ML_FAILED: return sizeof(ml_failed);
    default: return 0;
    }
}

imp_status ml_wire_head(const ml_head *h, imp_error *err)
{
    if (h->magic != ML_WIRE_MAGIC) return imp_fail(err, IMP_FORMAT, "the message does not begin as one");
    if (h->version != ML_WIRE_VERSION)
        return imp_fail(err, IMP_FORMAT, "the message is of version %u, not %u", h->version, ML_WIRE_VERSION);
    uint32_t want = ml_wire_size((ml_kind)h->kind);
    if (want == 0) return imp_fail(err, IMP_FORMAT, "there are no messages of kind %u", h->kind);
    if (h->n_bytes != want)
        return imp_fail(err, IMP_FORMAT, "a message of kind %u has %u bytes, not %u", h->kind, want,
                        h->n_bytes);
    return IMP_OK;
}

static bool ends(const char *s, size_t cap)
{
    return memchr(s, '\0', cap) != NULL;
}

static imp_status check_shape(const ml_shape *sh, imp_error *err)
{
    ml_slots sl;
    if (sh->n_len == 0 || sh->n_len > ML_WIRE_LENS)
        return imp_fail(err, IMP_FORMAT, "a model of %u lengths cannot be", sh->n_len);
    for (uint32_t i = 0; i < sh->n_len; i++)
        if (sh->s[i] == 0 || (i > 0 && sh->s[i] <= sh->s[i - 1]))
            return imp_fail(err, IMP_FORMAT, "the lengths do not ascend");
    for (uint32_t i = 0; i < IMP_MIN(sh->n_kv, (uint32_t)ML_WIRE_KV); i++)
        if (sh->kv_width[i] == 0 || sh->kv_width[i] > 1u << 20)
            return imp_fail(err, IMP_FORMAT, "keys of width %u cannot be", sh->kv_width[i]);
    if (!ml_slots_of(sh, &sl)) return imp_fail(err, IMP_FORMAT, "the sizes of texts are out of range");
    return IMP_OK;
}

static imp_status check_load(const ml_load *l, imp_error *err)
{
    const ml_shape *sh = &l->shape;
    IMP_TRY(check_shape(sh, err));
    bool some = l->n_chunk > 0 && l->n_chunk <= ML_WIRE_CHUNKS && l->n_chunk * sh->n_len <= ML_WIRE_FUNCS;
    if (!some || l->n_package > ML_WIRE_PACKAGES ||
        (l->n_package != l->n_chunk && l->n_package != l->n_chunk * sh->n_len))
        return imp_fail(err, IMP_FORMAT, "%u chunks in %u packages cannot be", l->n_chunk, l->n_package);
    for (uint32_t i = 0; i < l->n_package; i++)
        if (!ends(l->package[i], ML_WIRE_PATH) || !ends(l->compiled[i], ML_WIRE_PATH) ||
            l->compiled[i][0] != '/')
            return imp_fail(err, IMP_FORMAT, "package %u has no path", i);
    for (uint32_t i = 0; i < sh->n_len; i++)
        if (!ends(l->name[i], sizeof l->name[i]) || l->name[i][0] == '\0')
            return imp_fail(err, IMP_FORMAT, "function %u has no name", i);
    for (uint32_t i = 0; i < l->n_chunk; i++)
        if (l->takes[i] > (ML_TAKES_MASK | ML_TAKES_POOL) || l->first_kv[i] > l->first_kv[i + 1])
            return imp_fail(err, IMP_FORMAT, "chunk %u breaks the rules", i);
    if (l->first_kv[0] != 0 || l->first_kv[l->n_chunk] != sh->n_kv || l->units > ML_CPU_ANE)
        return imp_fail(err, IMP_FORMAT, "layers or a switch are out of range");
    return IMP_OK;
}

static imp_status check_loaded(const ml_loaded *l, imp_error *err)
{
    for (uint32_t i = 0; i < ML_WIRE_FUNCS; i++) {
        const ml_where *w = &l->where[i];
        bool ok = w->known <= 2;
        for (int k = 0; k < 3; k++)
            ok = ok && w->cost[k] >= 0 && w->cost[k] <= 1.001 && w->n_op[k] <= 1u << 24;
        if (!ok) return imp_fail(err, IMP_FORMAT, "the plan of function %u has impossible numbers", i);
    }
    return IMP_OK;
}

imp_status ml_wire_body(ml_kind kind, const ml_body *b, imp_error *err)
{
    switch (kind) {
    case ML_HELLO:
        if (!ends(b->hello.runtime, sizeof b->hello.runtime)) break;
        return IMP_OK;
    case ML_WELCOME:
        if (!ends(b->welcome.os, sizeof b->welcome.os) || b->welcome.functions > 1 || b->welcome.plans > 1)
            break;
        return IMP_OK;
    case ML_LOAD: return check_load(&b->load, err);
    case ML_LOADED: return check_loaded(&b->loaded, err);
    case ML_RUN:
        if (b->run.len >= ML_WIRE_LENS || b->run.n == 0 || b->run.n > ML_WIRE_SLOTS) break;
        return IMP_OK;
    case ML_RAN: return IMP_OK;
    case ML_FAILED:
        if (!ends(b->failed.text, sizeof b->failed.text) || b->failed.status == IMP_OK ||
            b->failed.status > IMP_INTERNAL)
            break;
        return IMP_OK;
    default: break;
    }
    return imp_fail(err, IMP_FORMAT, "a message of kind %u breaks the rules", (unsigned)kind);
}

imp_status ml_wire_run_fits(const ml_run *r, const ml_load *l, imp_error *err)
{
    if (r->len < l->shape.n_len && r->n <= l->shape.n_slot) return IMP_OK;
    return imp_fail(err, IMP_FORMAT, "length %u with %u texts was not loaded", r->len, r->n);
}

imp_status ml_wire_recv(const ml_port *p, ml_kind *kind, ml_body *b, imp_error *err)
{
    ml_head h;
    IMP_TRY(p->recv(p->ctx, &h, sizeof h, err));
    IMP_TRY(ml_wire_head(&h, err));
    *kind = (ml_kind)h.kind;
    IMP_TRY(p->recv(p->ctx, b, h.n_bytes, err));
    return ml_wire_body(*kind, b, err);
}

imp_status ml_wire_send(const ml_port *p, ml_kind kind, const void *body, imp_error *err)
{
    ml_head h = {.magic = ML_WIRE_MAGIC,
                 .version = ML_WIRE_VERSION,
                 .kind = (uint16_t)kind,
                 .n_bytes = ml_wire_size(kind)};
    IMP_TRY(p->send(p->ctx, &h, sizeof h, err));
    return p->send(p->ctx, body, h.n_bytes, err);
}

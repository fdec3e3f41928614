/* dev/coreml/wire.c - messages between the device and its worker; see wire.h. */
#include "dev/coreml/wire.h"

#define SHARED_MOST (4ull << 30)

bool ml_slots_of(uint32_t width, uint32_t dim, uint32_t s_max, uint32_t n_slot, ml_slots *out)
{
    enum { ALIGN = 128 };
    uint64_t hidden, row, vec;
    *out = (ml_slots){0};
    if (width == 0 || dim == 0 || s_max == 0 || s_max > 32768 || n_slot == 0 || n_slot > ML_WIRE_SLOTS)
        return false;
    bool ok = imp_mul_u64((uint64_t)width * s_max, 2, &hidden) && imp_align_u64(hidden, ALIGN, &out->mask) &&
              imp_align_u64((uint64_t)s_max * 2, ALIGN, &row) && imp_add_u64(out->mask, row, &out->pool) &&
              imp_add_u64(out->pool, row, &out->out) && imp_align_u64((uint64_t)dim * 4, ALIGN, &vec) &&
              imp_add_u64(out->out, vec, &out->stride) && imp_mul_u64(out->stride, n_slot, &out->total);
    return ok && out->total <= SHARED_MOST;
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

static imp_status check_load(const ml_load *l, imp_error *err)
{
    ml_slots sl;
    if (l->n_func == 0 || l->n_func > ML_WIRE_FUNCS || (l->n_package != 1 && l->n_package != l->n_func))
        return imp_fail(err, IMP_FORMAT, "%u functions in %u packages cannot be", l->n_func, l->n_package);
    for (uint32_t i = 0; i < l->n_package; i++)
        if (!ends(l->package[i], ML_WIRE_PATH) || !ends(l->compiled[i], ML_WIRE_PATH) ||
            l->compiled[i][0] != '/')
            return imp_fail(err, IMP_FORMAT, "package %u has no path", i);
    for (uint32_t i = 0; i < l->n_func; i++) {
        if (!ends(l->name[i], sizeof l->name[i]) || l->name[i][0] == '\0')
            return imp_fail(err, IMP_FORMAT, "function %u has no name", i);
        if (l->s[i] == 0 || (i > 0 && l->s[i] <= l->s[i - 1]))
            return imp_fail(err, IMP_FORMAT, "the lengths of functions do not ascend");
    }
    if (l->units > ML_CPU_ANE || l->has_mask > 1)
        return imp_fail(err, IMP_FORMAT, "a switch is out of range");
    if (!ml_slots_of(l->width, l->dim, l->s[l->n_func - 1], l->n_slot, &sl))
        return imp_fail(err, IMP_FORMAT, "the sizes of texts are out of range");
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
        if (b->run.func >= ML_WIRE_FUNCS || b->run.n == 0 || b->run.n > ML_WIRE_SLOTS) break;
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
    if (r->func < l->n_func && r->n <= l->n_slot) return IMP_OK;
    return imp_fail(err, IMP_FORMAT, "function %u with %u texts was not loaded", r->func, r->n);
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

/* dev/coreml/prefill.c - keys and values that a decoder's prefill gives, kept in blocks until another device takes them.
 *
 * Place:   device.c calls it after a step; the scheduler exports the blocks (dev.h).
 * Idea:    the package gives [width][s] in f16 for every layer. They become tiles of the cache's type, as on the CPU, so that
 *          what another device imports does not depend on who computed it. Rows of ML_ROWS tokens are turned at a time.
 * Always:  a number that is not finite ends the step: half precision overflowed, and another device computes the prompt. */
#include <math.h>

#include "dev/coreml/compile.h"
#include "dev/coreml/device.h"
#include "kern/kv.h"

static const imp_attn_attr *layer_of(const imp_graph *g, uint32_t i)
{
    return &imp_graph_kv_layer(g, i)->u.attn;
}

imp_status ml_prefill_needs(const imp_graph *g, bool **need, imp_error *err)
{
    ml_part whole = {.n_kv = imp_graph_n_kv_layer(g)};
    *need = imp_sys_calloc(imp_graph_n(g) + 1, sizeof **need);
    if (*need == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while looking at a graph");
    ml_needed(g, &whole, false, *need);
    return IMP_OK;
}

void ml_prefill_shape(const imp_graph *g, ml_shape *sh)
{
    sh->n_kv = imp_graph_n_kv_layer(g);
    for (uint32_t i = 0; i < IMP_MIN(sh->n_kv, (uint32_t)ML_WIRE_KV); i++)
        sh->kv_width[i] = layer_of(g, i)->n_kv_head * layer_of(g, i)->head_dim;
}

static const uint16_t *slot_kv(const ml_exec *x, const imp_proc *p, uint32_t i, uint32_t layer, int part)
{
    return (const uint16_t *)(const void *)((const uint8_t *)imp_proc_shared(p) + i * x->slots.stride +
                                            ml_slot_kv(&x->load.shape, &x->slots, layer, part));
}

/* One head's tokens from..to-1 into their tiles; src: [head_dim][s], tile: of the block that holds them all. */
static bool keep_rows(const ml_exec *x, const imp_attn_attr *a, int part, const uint16_t *src, uint32_t s,
                      uint32_t from, uint32_t to, uint8_t *tile)
{
    const imp_vec *vec = imp_vec_get();
    bool finite = true;
    for (uint32_t d = 0; d < a->head_dim; d++)
        for (uint32_t t = from; t < to; t++) {
            float f = imp_f16_to_f32(src[(uint64_t)d * s + t]);
            finite = finite && isfinite(f);
            x->out[(t - from) * a->head_dim + d] = f;
        }
    for (uint32_t t = from; t < to && finite; t++)
        imp_kv_put(vec, x->lim.kv_dtype, (imp_kv_part)part, tile, a->head_dim, t % IMP_KV_BLOCK,
                   x->out + (t - from) * a->head_dim);
    return finite;
}

imp_status ml_prefill_keep(ml_exec *x, imp_proc *p, uint32_t len, uint32_t i, const imp_batch_seq *q,
                           imp_error *err)
{
    uint32_t s = x->load.shape.s[len];
    uint64_t at = 0; /* of a tile in its block */
    for (uint32_t k = 0; k < x->load.shape.n_kv; k++) {
        const imp_attn_attr *a = layer_of(x->graph, k);
        for (int part = 0; part < 2; part++) {
            const uint16_t *src = slot_kv(x, p, i, k, part);
            uint64_t bytes = imp_kv_tile_bytes(x->lim.kv_dtype, (imp_kv_part)part, a->head_dim);
            for (uint32_t h = 0; h < a->n_kv_head; h++, at += bytes, src += (uint64_t)a->head_dim * s)
                for (uint32_t t = 0; t < q->n_tok; t += ML_ROWS) {
                    uint8_t *tile = x->kv + q->block[t / IMP_KV_BLOCK] * x->kv_block_bytes + at;
                    if (!keep_rows(x, a, part, src, s, t, IMP_MIN(t + ML_ROWS, q->n_tok), tile))
                        return imp_fail(err, IMP_DEVICE,
                                        "Core ML gives keys or values that are no numbers: half precision "
                                        "is too narrow for this prompt");
                }
        }
    }
    return IMP_OK;
}

void ml_prefill_read(const ml_exec *x, const imp_proc *p, uint32_t len, uint32_t i, uint32_t n, float *out)
{
    uint32_t s = x->load.shape.s[len];
    for (uint32_t k = 0; k < x->load.shape.n_kv; k++)
        for (int part = 0; part < 2; part++) {
            const uint16_t *src = slot_kv(x, p, i, k, part);
            for (uint32_t c = 0; c < x->load.shape.kv_width[k]; c++, src += s)
                for (uint32_t t = 0; t < n; t++) *out++ = imp_f16_to_f32(src[t]);
        }
}

void ml_prefill_copy(imp_exec *base, uint32_t dst, uint32_t src)
{
    const ml_exec *x = (const ml_exec *)base;
    if (x->kv == NULL || dst == src) return;
    memcpy(x->kv + dst * x->kv_block_bytes, x->kv + src * x->kv_block_bytes, x->kv_block_bytes);
}

imp_status ml_prefill_export(imp_exec *base, uint32_t block, void *host, imp_error *err)
{
    const ml_exec *x = (const ml_exec *)base;
    if (x->kv == NULL || block >= x->lim.n_kv_block)
        return imp_fail(err, IMP_INVALID, "there is no KV block %u", block);
    const uint8_t *tile = x->kv + block * x->kv_block_bytes;
    uint8_t *to = host;
    for (uint32_t k = 0; k < x->load.shape.n_kv; k++) {
        const imp_attn_attr *a = layer_of(x->graph, k);
        for (int part = 0; part < 2; part++) {
            uint64_t bytes = imp_kv_tile_bytes(x->lim.kv_dtype, (imp_kv_part)part, a->head_dim);
            for (uint32_t h = 0; h < a->n_kv_head; h++, tile += bytes, to += bytes)
                imp_kv_to_rows(x->lim.kv_dtype, (imp_kv_part)part, a->head_dim, tile, to);
        }
    }
    return IMP_OK;
}

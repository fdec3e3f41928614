/* dev/cpu/run_attn.c - keys and values into the cache, and attention over it or over the step's own rows.
 *
 * Layout:  KV cache [block][layer][k|v][n_kv_head] tiles of 64 positions (kern/kv.c): what one head reads of a block lies
 *          together.
 * Idea:    the unit of work is (sequence, tile of query rows, KV head), all query heads of which read keys and values once;
 *          with fewer units than shares it is one query head. Units go round the shares, so that the long rows of a causal
 *          prompt are spread. When few sequences generate over long pasts, the unit is one chunk of a head's keys, and who
 *          finishes a head's last chunk joins them: the kernel cuts and joins in the same order when it does all alone.
 * Threads: all threads at once, on disjoint units. */
#include "dev/cpu/cpu.h"

#include <stdatomic.h>

/* in 0: keys or values of the step; op->u.kv.at says where in a block they go. */
IMP_CPU_RUN(kv_store)
{
    (void)ith;
    const cpu_exec *x = s->x;
    uint32_t head_dim = op->u.kv.head_dim;
    uint64_t tile_bytes = imp_kv_tile_bytes(x->lim.kv_dtype, op->u.kv.part, head_dim);
    if (part.c0 == part.c1) return;
    for (uint32_t k = 0; k < s->b->n_seq; k++) {
        const imp_batch_seq *q = &s->b->seq[k];
        uint32_t from = IMP_MAX(part.r0, q->first_tok), to = IMP_MIN(part.r1, q->first_tok + q->n_tok);
        for (uint32_t r = from; r < to; r++) {
            uint32_t pos = q->n_past + r - q->first_tok;
            uint8_t *block = x->kv + q->block[pos / IMP_KV_BLOCK] * x->kv_block_bytes + op->u.kv.at;
            for (uint32_t c = part.c0; c < part.c1; c += head_dim) {
                imp_kv_put(s->vec, x->lim.kv_dtype, op->u.kv.part, block + c / head_dim * tile_bytes,
                           head_dim, pos % IMP_KV_BLOCK, imp_cpu_row(op->in[0], r) + c);
            }
        }
    }
}

/* Rows r0..r1-1 of sequence q (counted in its rows of this step), query heads h0..h0+n_group-1 of one KV head. */
static imp_attn_args args_of(const cpu_step *s, const cpu_op *op, const imp_batch_seq *q, uint32_t r0,
                             uint32_t r1, uint32_t h0, uint32_t n_group, uint32_t ith)
{
    const cpu_exec *x = s->x;
    const imp_attn_attr *at = &op->node->u.attn;
    bool cached = at->kv_layer >= 0, causal = at->mask == IMP_MASK_CAUSAL;
    uint32_t kv_head = h0 / (at->n_head / at->n_kv_head), past = cached ? q->n_past : 0;
    imp_attn_args a = {
        .q = imp_cpu_row(op->in[0], q->first_tok + r0) + (uint64_t)h0 * at->head_dim,
        .out = imp_cpu_row(op->out, q->first_tok + r0) + (uint64_t)h0 * at->head_dim,
        .q_stride = op->in[0].stride / sizeof(float),
        .out_stride = op->out.stride / sizeof(float),
        .n_row = r1 - r0,
        .n_group = n_group,
        .head_dim = at->head_dim,
        .n_key = past + (causal ? r1 : q->n_tok),
        .pos0 = past + r0,
        .causal = causal,
        .window = at->window,
        .scale = at->scale,
        .softcap = at->softcap,
        .sink = op->u.attn.sink != 0 ? x->vector[op->u.attn.sink] + h0 : NULL,
        .scratch = imp_cpu_thread_scratch(x, ith),
    };
    if (cached) {
        imp_dtype t = x->lim.kv_dtype;
        a.k = x->kv + op->u.attn.at[0] + kv_head * imp_kv_tile_bytes(t, IMP_KV_KEY, at->head_dim);
        a.v = x->kv + op->u.attn.at[1] + kv_head * imp_kv_tile_bytes(t, IMP_KV_VALUE, at->head_dim);
        a.block_stride = x->kv_block_bytes;
        a.block = q->block;
        a.kv_dtype = t;
    } else {
        a.k = imp_cpu_row(op->in[1], q->first_tok) + (uint64_t)kv_head * at->head_dim;
        a.v = imp_cpu_row(op->in[2], q->first_tok) + (uint64_t)kv_head * at->head_dim;
        a.row_stride = op->in[1].stride;
    }
    return a;
}

/* The heads' result as int8, where the product that follows wants it so. */
static void round_out(const cpu_step *s, const cpu_op *op, const imp_attn_args *a, uint32_t first_row,
                      uint32_t h0)
{
    uint64_t c = (uint64_t)h0 * a->head_dim;
    for (uint32_t r = 0; r < a->n_row && op->q8.buf != 0; r++) {
        imp_q8_block *y = (imp_q8_block *)(void *)(op->q8.p + (first_row + r) * op->q8.stride);
        s->vec->quant_q8(y + c / 32, a->out + r * a->out_stride, (uint64_t)a->n_group * a->head_dim);
    }
}

/* ---- one row over long pasts: chunks of its keys are units ---------------------------------------- */

/* Few sequences that generate, so that whole heads would leave threads without work. */
static bool splits(const cpu_step *s, const cpu_op *op)
{
    const imp_attn_attr *at = &op->node->u.attn;
    uint32_t n_slot = s->b->n_seq * at->n_kv_head, n_thread = ((const cpu_device *)s->x->base.dev)->n_thread;
    if (s->b->n_tok != s->b->n_seq || at->kv_layer < 0 || s->n_share == 1) return false;
    if (n_slot > CPU_SPLIT_SLOTS * n_thread || n_slot % n_thread == 0) return false;
    for (uint32_t k = 0; k < s->b->n_seq; k++)
        if (s->b->seq[k].n_past >= IMP_ATTN_CHUNK) return true;
    return false;
}

static void attend_split(const cpu_step *s, const cpu_op *op, cpu_part part, uint32_t ith)
{
    const cpu_exec *x = s->x;
    const imp_attn *attn = ((const cpu_device *)x->base.dev)->attn;
    const imp_attn_attr *at = &op->node->u.attn;
    uint32_t n_group = at->n_head / at->n_kv_head, slot = 0, unit = 0;
    uint64_t part_floats = imp_attn_part_floats(1, n_group, at->head_dim);
    for (uint32_t k = 0; k < s->b->n_seq; k++) {
        const imp_batch_seq *q = &s->b->seq[k];
        uint32_t to = q->n_past / IMP_ATTN_CHUNK + 1, from = 0;
        if (at->window != 0 && q->n_past + 1 > at->window)
            from = (q->n_past + 1 - at->window) / IMP_ATTN_CHUNK;
        for (uint32_t h = 0; h < at->n_head; h += n_group, slot++) {
            float *parts = (float *)(void *)(x->scratch + x->part_at + slot * x->slot_bytes);
            _Atomic uint32_t *done = (_Atomic uint32_t *)(void *)(x->scratch + x->done_at) + slot;
            for (uint32_t c = from; c < to; c++, unit++) {
                if (unit % s->n_share != part.share) continue;
                imp_attn_args a = args_of(s, op, q, 0, 1, h, n_group, ith);
                attn->run_chunk(&a, c, parts + c * part_floats);
                if (atomic_fetch_add(done, 1) + 1 < to - from) continue;
                atomic_store(done, 0); /* the last of the slot's chunks joins them */
                attn->join(&a, parts);
                round_out(s, op, &a, q->first_tok, h);
            }
        }
    }
}

/* in 0: queries; without a cache in 1 and in 2: keys and values. */
IMP_CPU_RUN(attn)
{
    const imp_attn_attr *at = &op->node->u.attn;
    uint32_t tile = op->u.attn.tile, n_group = at->n_head / at->n_kv_head, n_tile = 0;
    if (splits(s, op)) {
        attend_split(s, op, part, ith);
        return;
    }
    for (uint32_t k = 0; k < s->b->n_seq; k++) n_tile += (s->b->seq[k].n_tok + tile - 1) / tile;
    if ((uint64_t)n_tile * at->n_kv_head < s->n_share) n_group = 1;
    uint64_t unit = 0;
    for (uint32_t k = 0; k < s->b->n_seq; k++) {
        const imp_batch_seq *q = &s->b->seq[k];
        for (uint32_t r = 0; r < q->n_tok; r += tile) {
            for (uint32_t h = 0; h < at->n_head; h += n_group, unit++) {
                if (unit % s->n_share != part.share) continue;
                imp_attn_args a = args_of(s, op, q, r, IMP_MIN(r + tile, q->n_tok), h, n_group, ith);
                ((const cpu_device *)s->x->base.dev)->attn->run(&a);
                round_out(s, op, &a, q->first_tok + r, h);
            }
        }
    }
}

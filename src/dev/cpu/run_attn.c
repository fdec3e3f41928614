/* dev/cpu/run_attn.c - keys and values into the cache, and attention over it or over the step's own rows.
 *
 * Layout:  KV cache [block][layer][k|v][n_kv_head][IMP_KV_BLOCK][head_dim], f16 or f32: what one head reads of a block
 *          lies together.
 * Idea:    the unit of work is (sequence, tile of query rows, KV head); with fewer units than shares it is one query
 *          head. Units go round the shares, so that the long rows of a causal prompt are spread.
 * Threads: all threads at once, on disjoint units. */
#include "dev/cpu/cpu.h"

/* in 0: keys or values of the step; op->u.kv.at says where in a block they go. */
IMP_CPU_RUN(kv_store)
{
    (void)ith;
    const cpu_exec *x = s->x;
    uint32_t head_dim = op->u.kv.head_dim;
    uint64_t row_bytes = head_dim * x->kv_elem_bytes;
    if (part.c0 == part.c1) return;
    for (uint32_t k = 0; k < s->b->n_seq; k++) {
        const imp_batch_seq *q = &s->b->seq[k];
        uint32_t from = IMP_MAX(part.r0, q->first_tok), to = IMP_MIN(part.r1, q->first_tok + q->n_tok);
        for (uint32_t r = from; r < to; r++) {
            uint32_t pos = q->n_past + r - q->first_tok;
            uint8_t *block = x->kv + q->block[pos / IMP_KV_BLOCK] * x->kv_block_bytes + op->u.kv.at;
            for (uint32_t c = part.c0; c < part.c1; c += head_dim) {
                uint8_t *y =
                    block + ((uint64_t)(c / head_dim) * IMP_KV_BLOCK + pos % IMP_KV_BLOCK) * row_bytes;
                const float *row = imp_cpu_row(op->in[0], r) + c;
                if (x->lim.kv_dtype == IMP_F16) {
                    s->vec->f32_to_f16((uint16_t *)(void *)y, row, head_dim);
                } else {
                    memcpy(y, row, row_bytes);
                }
            }
        }
    }
}

/* Rows r0..r1-1 of sequence q (counted in its rows of this step), query heads h0..h0+n_group-1 of KV head kv_head. */
static void attend(const cpu_step *s, const cpu_op *op, const imp_batch_seq *q, uint32_t r0, uint32_t r1,
                   uint32_t h0, uint32_t n_group, uint32_t ith)
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
        .block_tok = IMP_KV_BLOCK,
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
        uint64_t head_bytes = IMP_KV_BLOCK * at->head_dim * x->kv_elem_bytes;
        const uint8_t *k = x->kv + op->u.attn.at + kv_head * head_bytes;
        a.k = k;
        a.v = k + at->n_kv_head * head_bytes;
        a.row_stride = at->head_dim * x->kv_elem_bytes;
        a.block_stride = x->kv_block_bytes;
        a.block = q->block;
        a.kv_dtype = x->lim.kv_dtype;
    } else {
        a.k = imp_cpu_row(op->in[1], q->first_tok) + (uint64_t)kv_head * at->head_dim;
        a.v = imp_cpu_row(op->in[2], q->first_tok) + (uint64_t)kv_head * at->head_dim;
        a.row_stride = op->in[1].stride;
        a.block_stride = IMP_KV_BLOCK * a.row_stride;
        a.kv_dtype = IMP_F32;
    }
    ((const cpu_device *)x->base.dev)->attn->run(&a);
    if (op->q8.buf == 0) return;
    for (uint32_t r = q->first_tok + r0; r < q->first_tok + r1; r++) {
        imp_q8_block *y = (imp_q8_block *)(void *)(op->q8.p + r * op->q8.stride);
        uint64_t c = (uint64_t)h0 * at->head_dim;
        s->vec->quant_q8(y + c / 32, imp_cpu_row(op->out, r) + c, (uint64_t)n_group * at->head_dim);
    }
}

/* in 0: queries; without a cache in 1 and in 2: keys and values. */
IMP_CPU_RUN(attn)
{
    const imp_attn_attr *at = &op->node->u.attn;
    uint32_t tile = op->u.attn.tile, n_group = at->n_head / at->n_kv_head, n_tile = 0;
    for (uint32_t k = 0; k < s->b->n_seq; k++) n_tile += (s->b->seq[k].n_tok + tile - 1) / tile;
    if ((uint64_t)n_tile * at->n_kv_head < s->n_share) n_group = 1;
    uint64_t unit = 0;
    for (uint32_t k = 0; k < s->b->n_seq; k++) {
        const imp_batch_seq *q = &s->b->seq[k];
        for (uint32_t r = 0; r < q->n_tok; r += tile) {
            for (uint32_t h = 0; h < at->n_head; h += n_group, unit++) {
                if (unit % s->n_share == part.share)
                    attend(s, op, q, r, IMP_MIN(r + tile, q->n_tok), h, n_group, ith);
            }
        }
    }
}

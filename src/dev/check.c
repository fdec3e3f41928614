/* dev/check.c - limits and batches, checked once so that the code behind them cannot fail. */
#include "dev/check.h"
#include "kern/kv.h"

imp_status imp_dev_check_limits(const imp_graph *g, const imp_limits *lim, imp_error *err)
{
    if (imp_graph_output(g) == 0) return imp_fail(err, IMP_INVALID, "the graph is not finished");
    if (lim->max_tok == 0 || lim->max_seq == 0 || lim->max_ctx == 0) {
        return imp_fail(err, IMP_INVALID, "max_tok, max_seq and max_ctx must be at least 1");
    }
    if (imp_graph_node(g, imp_graph_output(g))->rows == IMP_ROWS_OUT && lim->max_out == 0) {
        return imp_fail(err, IMP_INVALID, "max_out must be at least 1 for a graph with output rows");
    }
    if (lim->lora_rank > IMP_MAX_LORA_RANK)
        return imp_fail(err, IMP_INVALID, "lora_rank is %u, the limit is %d", lim->lora_rank,
                        IMP_MAX_LORA_RANK);
    if (imp_graph_n_kv_layer(g) == 0) return IMP_OK;
    if (lim->n_kv_block == 0)
        return imp_fail(err, IMP_INVALID, "the graph has a KV cache: n_kv_block must be at least 1");
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(g); i++) {
        const imp_node *n = imp_graph_kv_layer(g, i);
        if (!imp_kv_fits(lim->kv_dtype, n->u.attn.head_dim)) {
            return imp_fail(
                err, IMP_INVALID,
                "%s: heads of %u cannot be cached so; the KV cache holds f32 or f16, and heads of a "
                "multiple of 32 also as q8_0 or q4",
                n->name, n->u.attn.head_dim);
        }
    }
    return IMP_OK;
}

uint64_t imp_dev_kv_block_bytes(const imp_graph *g, imp_dtype kv_dtype)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(g); i++) {
        const imp_attn_attr *a = &imp_graph_kv_layer(g, i)->u.attn;
        bytes += a->n_kv_head * (imp_kv_tile_bytes(kv_dtype, IMP_KV_KEY, a->head_dim) +
                                 imp_kv_tile_bytes(kv_dtype, IMP_KV_VALUE, a->head_dim));
    }
    return bytes;
}

uint32_t imp_dev_max_rows(const imp_limits *lim, imp_rows rows)
{
    return rows == IMP_ROWS_TOK ? lim->max_tok : rows == IMP_ROWS_OUT ? lim->max_out : lim->max_seq;
}

int64_t imp_dev_embed_row(const imp_node *n, const imp_batch *b, uint32_t t)
{
    switch (n->u.embed.by) {
    case IMP_BY_TOKEN: return b->token[t];
    case IMP_BY_POSITION: return (int64_t)b->pos[t] + n->u.embed.offset;
    case IMP_BY_TYPE: return b->type != NULL ? b->type[t] : 0;
    }
    return -1;
}

static imp_status check_uses(const imp_graph *g, const imp_limits *lim, const imp_batch_seq *s, uint32_t i,
                             imp_error *err)
{
    for (uint32_t k = 0; k < s->n_use; k++)
        if (!imp_adapter_is_for(s->use[k].adapter, g))
            return imp_fail(err, IMP_INVALID, "sequence %u has an adapter of another model", i);
    if (imp_adapter_ranks(s->use, s->n_use) > lim->lora_rank)
        return imp_fail(err, IMP_INVALID, "the adapters of sequence %u have %llu columns, the limit is %u", i,
                        (unsigned long long)imp_adapter_ranks(s->use, s->n_use), lim->lora_rank);
    return IMP_OK;
}

uint32_t imp_dev_seq_of_row(const imp_batch *b, imp_rows rows, uint32_t r)
{
    uint32_t t = rows == IMP_ROWS_OUT ? b->out_row[r] : r, lo = 0, hi = b->n_seq;
    if (rows == IMP_ROWS_SEQ) return r;
    while (hi - lo > 1) { /* the last sequence that begins at or before t */
        uint32_t mid = lo + (hi - lo) / 2;
        if (b->seq[mid].first_tok <= t)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

static imp_status check_seq(const imp_graph *g, const imp_limits *lim, const imp_batch_seq *s,
                            uint32_t first_tok, uint32_t i, imp_error *err)
{
    if (s->first_tok != first_tok || s->n_tok == 0) {
        return imp_fail(err, IMP_INVALID, "sequence %u of the batch does not follow the one before it", i);
    }
    if ((uint64_t)s->n_past + s->n_tok > lim->max_ctx) {
        return imp_fail(err, IMP_INVALID, "sequence %u of the batch would reach %llu tokens, the limit is %u",
                        i, (unsigned long long)s->n_past + s->n_tok, lim->max_ctx);
    }
    IMP_TRY(check_uses(g, lim, s, i, err));
    if (imp_graph_n_kv_layer(g) == 0) {
        return s->n_past == 0
                   ? IMP_OK
                   : imp_fail(err, IMP_INVALID, "sequence %u has a past but the graph has no cache", i);
    }
    if (s->block == NULL) return imp_fail(err, IMP_INVALID, "sequence %u of the batch has no block table", i);
    uint32_t n_block = (s->n_past + s->n_tok + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK;
    for (uint32_t k = 0; k < n_block; k++) {
        if (s->block[k] >= lim->n_kv_block) {
            return imp_fail(err, IMP_INVALID, "sequence %u uses KV block %u, there are %u", i, s->block[k],
                            lim->n_kv_block);
        }
    }
    return IMP_OK;
}

/* Attention without a cache sees this step's rows only, so that a sequence must come whole. */
static bool has_uncached_attn(const imp_graph *g)
{
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op == IMP_OP_ATTN && n->u.attn.kv_layer < 0) return true;
    }
    return false;
}

static imp_status check_embed(const imp_graph *g, const imp_node *n, const imp_batch *b, imp_error *err)
{
    const imp_node *table = imp_graph_node(g, n->in[0]);
    uint64_t n_row = table->u.weight.part[0].dim[0];
    for (uint32_t t = 0; t < b->n_tok; t++) {
        int64_t row = imp_dev_embed_row(n, b, t);
        if (row < 0 || (uint64_t)row >= n_row) {
            return imp_fail(err, IMP_INVALID,
                            "token %u of the batch reads row %lld of %s, which has %llu rows", t,
                            (long long)row, table->name, (unsigned long long)n_row);
        }
    }
    return IMP_OK;
}

static imp_status check_out_rows(const imp_limits *lim, const imp_batch *b, imp_error *err)
{
    if (b->n_out > lim->max_out) {
        return imp_fail(err, IMP_INVALID, "the batch has %u output rows, the limit is %u", b->n_out,
                        lim->max_out);
    }
    for (uint32_t i = 0; i < b->n_out; i++) {
        if (b->out_row[i] >= b->n_tok)
            return imp_fail(err, IMP_INVALID, "output row %u is outside the batch", i);
    }
    return IMP_OK;
}

/* Every row that an op of the graph picks by number is there. */
static imp_status check_rows(const imp_graph *g, const imp_limits *lim, const imp_batch *b, imp_error *err)
{
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op == IMP_OP_INPUT && b->input == NULL)
            return imp_fail(err, IMP_INVALID, "the batch brings no rows for the graph's input");
        if (n->op == IMP_OP_EMBED) IMP_TRY(check_embed(g, n, b, err));
        if (n->op == IMP_OP_GATHER) IMP_TRY(check_out_rows(lim, b, err));
    }
    return IMP_OK;
}

imp_status imp_dev_check_batch(const imp_graph *g, const imp_limits *lim, const imp_batch *b, imp_error *err)
{
    if (b->n_tok == 0 || b->n_tok > lim->max_tok) {
        return imp_fail(err, IMP_INVALID, "the batch has %u tokens, it may have 1 to %u", b->n_tok,
                        lim->max_tok);
    }
    if (b->n_seq == 0 || b->n_seq > lim->max_seq) {
        return imp_fail(err, IMP_INVALID, "the batch has %u sequences, it may have 1 to %u", b->n_seq,
                        lim->max_seq);
    }
    uint32_t n_tok = 0;
    bool whole = imp_graph_n_kv_layer(g) > 0 && has_uncached_attn(g);
    for (uint32_t i = 0; i < b->n_seq; i++) {
        IMP_TRY(check_seq(g, lim, &b->seq[i], n_tok, i, err));
        if (whole && b->seq[i].n_past != 0) {
            return imp_fail(err, IMP_INVALID,
                            "sequence %u has a past, but some attention of the graph has no cache", i);
        }
        if (b->seq[i].n_tok > b->n_tok - n_tok) break;
        n_tok += b->seq[i].n_tok;
    }
    if (n_tok != b->n_tok)
        return imp_fail(err, IMP_INVALID, "the sequences do not cover the batch's %u tokens", b->n_tok);
    return check_rows(g, lim, b, err);
}

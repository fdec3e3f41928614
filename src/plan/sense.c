/* plan/sense.c - re-encoding groups of matrices in memory and comparing distributions.
 *
 * Idea:    the graph's weights are pointed at re-encoded copies (imp_graph_rebind), the graph is compiled anew, the windows
 *          run, and the weights are pointed back. What the device computes is what is compared: its rounding of
 *          activations counts too.
 * Always:  between calls the graph has its own weights.
 * Threads: the caller's, the pool's and the device's. */
#include "plan/sense.h"

#include <math.h>

#include "tensor/convert.h"

struct imp_sense {
    imp_device *d;
    imp_net *net;
    imp_pool *pool;
    const imp_importance *importance;
    imp_arena *arena;
    imp_sense_tensor *t; /* [n_t] */
    imp_tensor **own;    /* [n_t] the source's parts */
    uint32_t n_t, window, first, n_window, n_vocab;
    const int32_t *ids;
    float *logp; /* [n_window][window - 1 - first][n_vocab], owned */
};

static uint32_t n_part_of(const imp_sense *s, uint32_t i)
{
    return imp_graph_node(s->net->generate, s->t[i].v)->u.weight.n_part;
}

/* ---- the matrices ---------------------------------------------------------------------------------------- */

static imp_status list_matrices(imp_sense *s, imp_error *err)
{
    const imp_graph *g = s->net->generate;
    s->t = imp_arena_array(s->arena, imp_graph_n(g), sizeof *s->t);
    s->own = imp_arena_array(s->arena, imp_graph_n(g), sizeof *s->own);
    if (s->t == NULL || s->own == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to measure");
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op != IMP_OP_WEIGHT || n->u.weight.part->n_dim != 2) continue;
        int group = imp_group_of(n->name, s->net->cfg.n_layer);
        if (group < 0) continue;
        const imp_tensor *part = n->u.weight.part;
        uint32_t n_part = n->u.weight.n_part;
        imp_tensor *own = imp_arena_array(s->arena, n_part, sizeof *own);
        if (own == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to measure");
        memcpy(own, part, n_part * sizeof *own);
        s->own[s->n_t] = own;
        s->t[s->n_t++] = (imp_sense_tensor){.v = v,
                                            .group = group,
                                            .n_elem = imp_tensor_n_elem(part) * n_part,
                                            .n_col = imp_tensor_n_col(part),
                                            .bytes = imp_tensor_bytes(part) * n_part,
                                            .dtype = part->dtype};
    }
    if (s->n_t > 0) return IMP_OK;
    return imp_fail(err, IMP_UNSUPPORTED,
                    "no matrix of the model has a GGUF name; types of parts are planned for GGUF files");
}

imp_status imp_sense_open(imp_device *d, imp_net *net, imp_pool *pool, const imp_importance *importance,
                          imp_sense **out, imp_error *err)
{
    *out = NULL;
    if (net->generate == NULL)
        return imp_fail(err, IMP_UNSUPPORTED,
                        "the model makes embeddings; divergence of next-token distributions needs one that "
                        "generates text");
    imp_sense *s = imp_sys_calloc(1, sizeof *s);
    if (s == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to measure");
    *s = (imp_sense){
        .d = d, .net = net, .pool = pool, .importance = importance, .arena = imp_arena_new(1 << 14)};
    s->window = IMP_MIN((uint32_t)IMP_SENSE_WINDOW, net->cfg.n_ctx_train);
    s->first = s->window / 2;
    s->n_vocab = net->cfg.n_vocab;
    imp_status st =
        s->arena == NULL ? imp_fail(err, IMP_NOMEM, "not enough memory to measure") : list_matrices(s, err);
    if (st != IMP_OK) {
        imp_sense_close(s);
        return st;
    }
    *out = s;
    return IMP_OK;
}

void imp_sense_close(imp_sense *s)
{
    if (s == NULL) return;
    imp_sys_free(s->logp);
    imp_arena_free(s->arena);
    imp_sys_free(s);
}

uint32_t imp_sense_window(const imp_sense *s)
{
    return s->window;
}

uint32_t imp_sense_n_layer(const imp_sense *s)
{
    return s->net->cfg.n_layer;
}

const imp_sense_tensor *imp_sense_tensors(const imp_sense *s, uint32_t *n)
{
    *n = s->n_t;
    return s->t;
}

imp_dtype imp_sense_type(const imp_sense_tensor *t, imp_dtype want)
{
    return want == IMP_DTYPE_NONE ? t->dtype : imp_type_for_row(want, t->n_col);
}

/* ---- running the windows ----------------------------------------------------------------------------------- */

typedef struct room {
    int32_t *pos;
    uint32_t *out_row, *block, n_block;
} room;

static bool room_make(room *r, uint32_t n_tok, uint32_t n_block)
{
    *r = (room){.pos = imp_sys_malloc(n_tok * sizeof *r->pos),
                .out_row = imp_sys_malloc(n_tok * sizeof *r->out_row),
                .block = imp_sys_malloc(n_block * sizeof *r->block),
                .n_block = n_block};
    if (r->pos == NULL || r->out_row == NULL || r->block == NULL) return false;
    for (uint32_t i = 0; i < n_tok; i++) r->pos[i] = (int32_t)i;
    for (uint32_t i = 0; i < n_block; i++) r->block[i] = i;
    return true;
}

static void room_free(room *r)
{
    imp_sys_free(r->pos);
    imp_sys_free(r->out_row);
    imp_sys_free(r->block);
}

static double log_sum_exp(const float *v, uint32_t n)
{
    float max = v[0];
    double sum = 0;
    for (uint32_t i = 1; i < n; i++) max = v[i] > max ? v[i] : max;
    for (uint32_t i = 0; i < n; i++) sum += (double)expf(v[i] - max);
    return (double)max + log(sum);
}

static double divergence(const float *logp, const float *v, uint32_t n)
{
    double lse = log_sum_exp(v, n), kl = 0;
    for (uint32_t i = 0; i < n; i++) {
        float p = expf(logp[i]);
        kl += (double)p * ((double)logp[i] - ((double)v[i] - lse));
    }
    return fmax(kl, 0);
}

/* Run all windows; keep: fill logp, else add the divergences to *sum. */
static imp_status run_windows(imp_sense *s, bool keep, double *sum, imp_error *err)
{
    uint32_t n_out = s->window - 1 - s->first, n_block = (s->window + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK;
    imp_limits lim = {.max_tok = s->window,
                      .max_seq = 1,
                      .max_out = n_out,
                      .max_ctx = s->window,
                      .n_kv_block = n_block,
                      .kv_dtype = IMP_F16};
    imp_exec *x = NULL;
    room r;
    imp_status st = room_make(&r, s->window, n_block)
                        ? s->d->ops->compile(s->d, s->net->generate, &lim, &x, err)
                        : imp_fail(err, IMP_NOMEM, "not enough memory to measure");
    for (uint32_t i = 0; st == IMP_OK && i < n_out; i++) r.out_row[i] = s->first + i;
    for (uint32_t w = 0; st == IMP_OK && w < s->n_window; w++) {
        imp_batch_seq q = {.n_tok = s->window, .block = r.block};
        imp_batch b = {.n_tok = s->window,
                       .n_seq = 1,
                       .n_out = n_out,
                       .token = s->ids + (size_t)w * s->window,
                       .pos = r.pos,
                       .seq = &q,
                       .out_row = r.out_row};
        const float *v;
        st = s->d->ops->run(x, &b, &v, err);
        for (uint32_t i = 0; st == IMP_OK && i < n_out; i++, v += s->n_vocab) {
            float *logp = s->logp + ((size_t)w * n_out + i) * s->n_vocab;
            if (!keep) {
                *sum += divergence(logp, v, s->n_vocab);
                continue;
            }
            double lse = log_sum_exp(v, s->n_vocab);
            for (uint32_t k = 0; k < s->n_vocab; k++) logp[k] = (float)((double)v[k] - lse);
        }
    }
    if (x != NULL) s->d->ops->exec_free(x);
    room_free(&r);
    return st;
}

imp_status imp_sense_text(imp_sense *s, const int32_t *ids, uint32_t n_window, imp_error *err)
{
    uint64_t n = (uint64_t)n_window * (s->window - 1 - s->first), bytes;
    imp_sys_free(s->logp);
    s->logp = NULL;
    if (imp_mul_u64(n, (uint64_t)s->n_vocab * sizeof(float), &bytes)) s->logp = imp_sys_malloc(bytes);
    if (s->logp == NULL)
        return imp_fail(err, IMP_NOMEM, "not enough memory for the distributions of %llu positions",
                        (unsigned long long)n);
    s->ids = ids;
    s->n_window = n_window;
    return run_windows(s, true, NULL, err);
}

/* ---- other types --------------------------------------------------------------------------------------------- */

static const float *importance_of(const imp_sense *s, uint32_t i)
{
    if (s->importance == NULL) return NULL;
    return imp_importance_of(s->importance, imp_graph_node(s->net->generate, s->t[i].v)->name, s->t[i].n_col);
}

/* Matrix i as type `to`; *data (owned by the caller) holds all its parts. */
static imp_status encode(imp_sense *s, uint32_t i, imp_dtype to, uint8_t **data, imp_convert_error *e,
                         imp_error *err)
{
    const imp_tensor *own = s->own[i];
    uint64_t n_row = imp_tensor_n_row(own), part_bytes;
    IMP_TRY(imp_dtype_bytes(to, imp_tensor_n_elem(own), &part_bytes));
    *data = imp_sys_malloc(part_bytes * n_part_of(s, i));
    imp_status st = *data == NULL ? IMP_NOMEM : IMP_OK;
    for (uint32_t k = 0; st == IMP_OK && k < n_part_of(s, i); k++)
        st = imp_tensor_convert(&own[k], 0, n_row, to, importance_of(s, i), s->pool, *data + k * part_bytes,
                                e);
    return st == IMP_OK ? st : imp_fail(err, st, "not enough memory to re-encode a matrix");
}

/* Point matrix i at data of type `to`; NONE: at its own. */
static imp_status point(imp_sense *s, uint32_t i, imp_dtype to, const uint8_t *data, imp_error *err)
{
    uint32_t n_part = n_part_of(s, i);
    if (to == IMP_DTYPE_NONE) return imp_graph_rebind(s->net->generate, s->t[i].v, s->own[i], err);
    imp_tensor *part = imp_sys_malloc(n_part * sizeof *part);
    if (part == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to re-encode a matrix");
    for (uint32_t k = 0; k < n_part; k++) {
        part[k] = s->own[i][k];
        part[k].dtype = to;
        part[k].data = data != NULL ? data + k * imp_tensor_bytes(&part[k]) : NULL;
    }
    imp_status st = imp_graph_rebind(s->net->generate, s->t[i].v, part, err);
    imp_sys_free(part);
    return st;
}

imp_status imp_sense_retype(imp_sense *s, const imp_dtype type[IMP_N_GROUP], imp_error *err)
{
    for (uint32_t i = 0; i < s->n_t; i++) {
        imp_dtype to = type != NULL ? imp_sense_type(&s->t[i], type[s->t[i].group]) : s->t[i].dtype;
        IMP_TRY(point(s, i, to == s->t[i].dtype ? IMP_DTYPE_NONE : to, NULL, err));
    }
    return IMP_OK;
}

imp_status imp_sense_kl(imp_sense *s, const imp_dtype type[IMP_N_GROUP], double *kl, imp_error *err)
{
    uint8_t **data = imp_sys_calloc(s->n_t, sizeof *data);
    imp_status st = data != NULL ? IMP_OK : imp_fail(err, IMP_NOMEM, "not enough memory to measure");
    double sum = 0;
    for (uint32_t i = 0; st == IMP_OK && i < s->n_t; i++) {
        imp_dtype to = imp_sense_type(&s->t[i], type[s->t[i].group]);
        imp_convert_error e = {0};
        if (to == s->t[i].dtype) continue;
        st = encode(s, i, to, &data[i], &e, err);
        if (st == IMP_OK) st = point(s, i, to, data[i], err);
    }
    if (st == IMP_OK) st = run_windows(s, false, &sum, err);
    for (uint32_t i = 0; data != NULL && i < s->n_t; i++) {
        if (data[i] == NULL) continue;
        imp_status back = point(s, i, IMP_DTYPE_NONE, NULL, err);
        if (st == IMP_OK) st = back;
        imp_sys_free(data[i]);
    }
    imp_sys_free(data);
    *kl = sum / ((double)s->n_window * (s->window - 1 - s->first));
    if (st == IMP_OK && !isfinite(*kl))
        st = imp_fail(err, IMP_FORMAT, "the model computes values that are no numbers on this text");
    return st;
}

imp_status imp_sense_error(imp_sense *s, int group, imp_dtype want, double *out, imp_error *err)
{
    double n = 0;
    *out = 0;
    for (uint32_t i = 0; i < s->n_t; i++) {
        imp_dtype to = imp_sense_type(&s->t[i], want);
        imp_convert_error e = {0};
        uint8_t *data = NULL;
        if (s->t[i].group != group) continue;
        n += (double)s->t[i].n_elem;
        if (to == s->t[i].dtype) continue;
        imp_status st = encode(s, i, to, &data, &e, err);
        imp_sys_free(data);
        IMP_TRY(st);
        if (e.weighted_sum > 0) *out += (double)s->t[i].n_elem * e.weighted_err / e.weighted_sum;
    }
    if (n > 0) *out /= n;
    return IMP_OK;
}

/* ---- the model's own words ------------------------------------------------------------------------------------- */

static double next_uniform(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (double)(*seed >> 11) * 0x1p-53;
}

static int32_t draw(const float *v, uint32_t n, uint64_t *seed)
{
    double left = next_uniform(seed), lse = log_sum_exp(v, n);
    for (uint32_t i = 0; i < n; i++) {
        left -= exp((double)v[i] - lse);
        if (left <= 0) return (int32_t)i;
    }
    return (int32_t)n - 1;
}

typedef struct speech {
    imp_exec *x;
    uint32_t n_seq, window, n_vocab;
    int32_t *token, *pos;
    imp_batch_seq *seq;
    uint32_t *block, *out_row;
} speech;

static imp_status speak(speech *t, int32_t start, uint64_t seed, int32_t *ids, imp_error *err)
{
    uint32_t per_seq = (t->window + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK;
    for (uint32_t i = 0; i < t->n_seq * per_seq; i++) t->block[i] = i;
    for (uint32_t q = 0; q < t->n_seq; q++) t->token[q] = start, t->out_row[q] = q;
    for (uint32_t at = 0; at < t->window; at++) {
        const float *v;
        for (uint32_t q = 0; q < t->n_seq; q++) {
            ids[(size_t)q * t->window + at] = t->token[q];
            t->pos[q] = (int32_t)at;
            t->seq[q] =
                (imp_batch_seq){.first_tok = q, .n_tok = 1, .n_past = at, .block = t->block + q * per_seq};
        }
        imp_batch b = {.n_tok = t->n_seq,
                       .n_seq = t->n_seq,
                       .n_out = t->n_seq,
                       .token = t->token,
                       .pos = t->pos,
                       .seq = t->seq,
                       .out_row = t->out_row};
        IMP_TRY(t->x->dev->ops->run(t->x, &b, &v, err));
        for (uint32_t q = 0; q < t->n_seq; q++)
            t->token[q] = draw(v + (size_t)q * t->n_vocab, t->n_vocab, &seed);
    }
    return IMP_OK;
}

imp_status imp_sense_own_text(imp_device *d, const imp_net *net, uint64_t seed, uint32_t n_window,
                              uint32_t window, int32_t *ids, imp_error *err)
{
    uint32_t n_block = n_window * ((window + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK);
    int32_t bos = net->tok != NULL ? imp_tokenizer_bos(net->tok) : -1;
    imp_limits lim = {.max_tok = n_window,
                      .max_seq = n_window,
                      .max_out = n_window,
                      .max_ctx = window,
                      .n_kv_block = n_block,
                      .kv_dtype = IMP_F16};
    speech t = {.n_seq = n_window, .window = window, .n_vocab = net->cfg.n_vocab};
    t.token = imp_sys_malloc(n_window * sizeof *t.token);
    t.pos = imp_sys_malloc(n_window * sizeof *t.pos);
    t.seq = imp_sys_malloc(n_window * sizeof *t.seq);
    t.block = imp_sys_malloc(n_block * sizeof *t.block);
    t.out_row = imp_sys_malloc(n_window * sizeof *t.out_row);
    bool ok = t.token && t.pos && t.seq && t.block && t.out_row;
    imp_status s = ok ? d->ops->compile(d, net->generate, &lim, &t.x, err)
                      : imp_fail(err, IMP_NOMEM, "not enough memory to measure");
    if (s == IMP_OK) s = speak(&t, bos >= 0 ? bos : 0, seed | 1, ids, err);
    if (t.x != NULL) d->ops->exec_free(t.x);
    imp_sys_free(t.token), imp_sys_free(t.pos), imp_sys_free(t.seq), imp_sys_free(t.block),
        imp_sys_free(t.out_row);
    return s;
}

/* dev/cuda/run.c - a step: what the batch says goes to the device, then one launch or a few for each op.
 *
 * Idea:    steps of at most CUDA_FEW rows multiply with gemv.cu, larger ones with 16-bit products (quantised weights up to
 *          64 rows: mid.cu, which reads them as they are; else cuBLASLt or gemm.cu) whose operand x is made once and kept while readers follow. Steps of one token a sequence are
 *          captured as CUDA graphs, by number of sequences and of key splits, the second time they are seen.
 * Layout:  meta: token, pos, type, tseq, kvpos, slot, slot of the step's own cache [n_tok], out_row [n_out], first, n_tok,
 *          past, len [n_seq], tables [n_seq][table_stride] for the cache and the step's own. */
#include "dev/check.h"
#include "dev/cuda/cuda.h"

typedef struct step {
    cuda_device *d;
    cuda_exec *x;
    const imp_batch *b;
    uint32_t n_row[3];
    uint32_t n_split, table_stride, longest; /* longest: most new tokens of a sequence */
    uint64_t n_meta;
    cu_mem token, pos, type, tseq, kvpos, slot[2], out_row, first, n_tok, past, len, table[2];
    cu_result r;
    imp_val h_val; /* the value that h[h_cur] holds */
    uint32_t h_kind, h_cur, h_ld;
    bool capturing, given_up; /* a member of a divided graph: the others are not coming */
    imp_status outside;       /* what an OUTSIDE node came to */
    imp_error *err;
    bool padded; /* the next product's x has zeros up to a multiple of 4 */
} step;

static cu_mem at(const step *s, cuda_loc l)
{
    return s->x->scratch + s->x->buf[l.buf].at + l.off * 4;
}
static cu_mem vec(const step *s, uint64_t v)
{
    return v == CUDA_NONE ? 0 : s->x->weights + v;
}
static void launch(step *s, cu_func f, uint64_t gx, uint64_t gy, uint64_t gz, uint32_t threads, uint32_t smem,
                   const void *args)
{
    if (s->r == CU_OK) s->r = imp_cuda_launch(s->d, f, gx, gy, gz, threads, smem, args);
}
static uint64_t blocks_for(uint64_t n)
{
    return IMP_MAX(1, IMP_MIN((n + 255) / 256, 8192));
}

/* ---- the batch ------------------------------------------------------------------------------------------ */

static int32_t *section(step *s, cu_mem *device, uint64_t n)
{
    int32_t *p = s->x->meta + s->n_meta;
    *device = s->x->scratch + s->x->meta_at + s->n_meta * 4;
    s->n_meta += imp_cuda_up(n, 4);
    return p;
}

static void fill_meta(step *s)
{
    const imp_batch *b = s->b;
    uint32_t nt = b->n_tok, own = 0;
    if (s->x->input != NULL) memcpy(s->x->input, b->input, nt * (s->x->input_bytes / s->x->lim.max_tok));
    memcpy(section(s, &s->token, nt), b->token, nt * sizeof(int32_t));
    memcpy(section(s, &s->pos, nt), b->pos, nt * sizeof(int32_t));
    int32_t *type = section(s, &s->type, nt);
    if (b->type != NULL)
        memcpy(type, b->type, nt * sizeof(int32_t));
    else
        memset(type, 0, nt * sizeof(int32_t));
    int32_t *tseq = section(s, &s->tseq, nt), *kvpos = section(s, &s->kvpos, nt),
            *slot = section(s, &s->slot[0], nt), *slot2 = section(s, &s->slot[1], nt),
            *out = section(s, &s->out_row, s->n_row[IMP_ROWS_OUT]);
    for (uint32_t i = 0; i < s->n_row[IMP_ROWS_OUT]; i++) out[i] = (int32_t)b->out_row[i];
    int32_t *first = section(s, &s->first, b->n_seq), *n_tok = section(s, &s->n_tok, b->n_seq),
            *past = section(s, &s->past, b->n_seq), *len = section(s, &s->len, b->n_seq),
            *table = section(s, &s->table[0], (uint64_t)b->n_seq * s->table_stride),
            *table2 = section(s, &s->table[1], s->x->has_uncached ? (uint64_t)b->n_seq * s->table_stride : 0);
    for (uint32_t i = 0; i < b->n_seq; i++) {
        const imp_batch_seq *q = &b->seq[i];
        uint32_t n_block = (q->n_past + q->n_tok + CU_KV_BLOCK - 1) / CU_KV_BLOCK;
        first[i] = (int32_t)q->first_tok;
        n_tok[i] = (int32_t)q->n_tok;
        past[i] = (int32_t)q->n_past;
        len[i] = (int32_t)(q->n_past + q->n_tok);
        for (uint32_t k = 0; k < n_block; k++) {
            if (s->x->has_cached) table[(uint64_t)i * s->table_stride + k] = (int32_t)q->block[k];
            if (s->x->has_uncached) table2[(uint64_t)i * s->table_stride + k] = (int32_t)(own + k);
        }
        for (uint32_t t = 0; t < q->n_tok; t++) {
            uint32_t p = q->n_past + t, row = q->first_tok + t;
            tseq[row] = (int32_t)i;
            kvpos[row] = (int32_t)p;
            slot[row] =
                s->x->has_cached ? (int32_t)(q->block[p / CU_KV_BLOCK] * CU_KV_BLOCK + p % CU_KV_BLOCK) : 0;
            slot2[row] = (int32_t)(own * CU_KV_BLOCK + p);
        }
        own += n_block;
    }
}

/* ---- linear ----------------------------------------------------------------------------------------------- */

static void gemv(step *s, const cuda_mat *m, cu_gemv *a, uint32_t n_pair)
{
    a->k = s->padded ? (uint32_t)imp_cuda_up(m->k, 4) : m->k;
    s->padded = false;
    a->kpad = m->kpad;
    a->q = s->x->weights + m->q_at;
    a->q_part = m->q_part;
    a->up = m->n / 2;
    if (m->type == CU_F32) {
        launch(s, s->d->fn.gemv_f32, (a->n + 7) / 8, n_pair != 0 ? n_pair : (a->m + 7) / 8, 1, 256, 0, a);
        return;
    }
    /* One block an SM, always: two kernels share the SMs, and a block that found no room beside the kernel in front would
     * go where another of its own is already. All of x at once where it fits beside the next kernel's block, or else where
     * it fits at all; where shared memory is small, fewer rows a launch. */
    const uint32_t all = (uint32_t)imp_cuda_up(m->kpad, 1024), n_sm = s->d->n_sm, m_all = a->m;
    const uint32_t slots = n_sm * CU_GEMV_GROUPS, half = s->d->smem / 2 - 1024;
    uint32_t rows = a->m;
    while (rows > 1 && cu_gemv_smem(m->type, rows, 1024) > s->d->smem) rows = (rows + 1) / 2;
    bool once = (a->n + 15) / 16 <= slots && n_pair == 0 &&
                rows <= 4; /* x is used for one strip: pieces cost nothing */
    bool fits = cu_gemv_smem(m->type, rows, once ? 1024 : all) <= half;
    a->chunk = all;
    while (a->chunk > 1024 && cu_gemv_smem(m->type, rows, a->chunk) > (fits ? half : s->d->smem))
        a->chunk -= 1024;
    for (uint32_t r0 = 0; r0 < m_all; r0 += rows) {
        a->m = IMP_MIN(rows, m_all - r0);
        launch(s, s->d->fn.gemv[m->type][rows > 4], n_sm, IMP_MAX(n_pair, 1), 1, CU_GEMV_THREADS,
               cu_gemv_smem(m->type, rows, a->chunk), a);
        a->x += (uint64_t)rows * a->ldx * 4;
        a->y += (uint64_t)rows * a->ldy * 4;
        if (a->res != 0) a->res += (uint64_t)rows * a->ldr * 4;
    }
}

/* Rows of x whose length or place forbids loads of 16 bytes: a copy with zeros behind, the norm done on the way. */
static void align_x(step *s, const cuda_op *op, const cuda_mat *w, cu_gemv *a)
{
    cu_rows c = {.a = a->x,
                 .lda = a->ldx,
                 .y = s->x->scratch + s->x->x32_at,
                 .ldy = (uint32_t)imp_cuda_up(w->k, 4),
                 .m = a->m,
                 .width = w->k,
                 .group = w->k,
                 .w = a->norm,
                 .eps = op->eps,
                 .w_offset = op->w_offset,
                 .op = CU_ROW_COPY};
    if (s->r == CU_OK) s->r = s->d->cu->set8(c.y, 0, (uint64_t)c.m * c.ldy * 4, s->d->stream);
    s->d->after_copy = true;
    if (op->normed)
        launch(s, s->d->fn.rms_norm, a->m, 1, 1, 256, 0, &c);
    else
        launch(s, s->d->fn.rows, blocks_for((uint64_t)a->m * w->k), 1, 1, 256, 0, &c);
    a->x = c.y;
    a->ldx = c.ldy;
    a->normed = 0;
    s->padded = true;
}

static void linear_few(step *s, const cuda_op *op, uint32_t m)
{
    const cuda_mat *w = &s->x->mat[op->mat];
    cu_gemv a = {.x = at(s, op->a),
                 .ldx = op->a.ld,
                 .norm = vec(s, op->vec[0]),
                 .bias = vec(s, op->vec[1]),
                 .y = at(s, op->out),
                 .ldy = op->out.ld,
                 .n = op->width,
                 .m = m,
                 .glu = op->glu,
                 .act = (uint32_t)op->act,
                 .normed = op->normed,
                 .eps = op->eps,
                 .w_offset = op->w_offset};
    if (op->has_res) a.res = at(s, op->b), a.ldr = op->b.ld;
    if (w->type != CU_F32 && (a.x % 16 != 0 || a.ldx % 4 != 0 || w->k % 4 != 0)) align_x(s, op, w, &a);
    gemv(s, w, &a, 0);
}

static cu_mem h_buf(const step *s, uint32_t i)
{
    return s->x->scratch + s->x->h_at[i];
}
/* The other 16-bit buffer, now for value v. */
static cu_mem h_next(step *s, imp_val v, uint32_t kind, uint32_t ld)
{
    s->h_cur ^= 1;
    s->h_val = v;
    s->h_kind = kind;
    s->h_ld = ld;
    return h_buf(s, s->h_cur);
}
static uint32_t kind_of(const cuda_mat *m)
{
    return m->type == CU_F16 ? 2 : 1;
}

static cu_mem operand(step *s, const cuda_op *op, const cuda_mat *w, uint32_t m)
{
    uint32_t kind = kind_of(w);
    if (s->h_val == op->x_val && s->h_kind == kind && s->h_ld == w->kpad) return h_buf(s, s->h_cur);
    cu_rows a = {.a = at(s, op->a),
                 .lda = op->a.ld,
                 .h = h_next(s, op->x_val, kind, w->kpad),
                 .ldh = w->kpad,
                 .hkind = kind,
                 .m = m,
                 .width = w->k,
                 .group = w->k,
                 .w = vec(s, op->vec[0]),
                 .eps = op->eps,
                 .w_offset = op->w_offset};
    if (op->normed)
        launch(s, s->d->fn.rms_norm, m, 1, 1, 256, 0, &a);
    else
        launch(s, s->d->fn.to16, blocks_for((uint64_t)m * w->kpad / 4), 1, 1, 256, 0, &a);
    return h_buf(s, s->h_cur);
}

/* y (f32, or 16 bit when y16) = x w^T (+ res) */
static void product(step *s, const cuda_mat *w, cu_mem x, cu_mem wp, uint32_t n, cu_mem res, uint32_t ldr,
                    cu_mem y, uint32_t ldy, bool y16, uint32_t m)
{
    bool f16 = w->type == CU_F16;
    if (s->r != CU_OK) return;
    if (s->d->lt != NULL && imp_cuda_lt_matmul(s->d->lt, s->d->stream, s->x->scratch + s->x->lt_at, f16, y16,
                                               x, w->kpad, wp, w->kpad, res, ldr, y, ldy, m, n, w->kpad))
        return;
    cu_gemm a = {.x = x,
                 .w = wp,
                 .res = res,
                 .ldx = w->kpad,
                 .ldw = w->kpad,
                 .ldr = ldr,
                 .ldy = ldy,
                 .m = m,
                 .n = n,
                 .k = w->kpad,
                 .f16 = f16};
    if (y16)
        a.h = y;
    else
        a.y = y;
    launch(s, f16 ? s->d->fn.gemm_f16 : s->d->fn.gemm_bf16, (m + 127) / 128, (n + 127) / 128, 1, 256, 65536,
           &a);
}

/* Quantised weights, read once. */
static void product_mid(step *s, const cuda_mat *w, cu_mem x, cu_mem res, uint32_t ldr, cu_mem y,
                        uint32_t ldy, bool y16, uint32_t m)
{
    cu_mid a = {.q = s->x->weights + w->q_at,
                .x = x,
                .res = res,
                .y = y16 ? 0 : y,
                .h = y16 ? y : 0,
                .part = s->x->scratch + s->x->mid_part_at,
                .count = s->x->scratch + s->x->mid_count_at,
                .ldr = ldr,
                .ldy = ldy,
                .m = m,
                .n = w->n,
                .kpad = w->kpad,
                .kc = 4 * cu_tile_k(w->type),
                .stages = 3};
    uint32_t size = m <= 16 ? 0 : m <= 32 ? 1 : 2, rows = 16u << size;
    while (cu_mid_smem(w->type, rows, a.kc, a.stages) > s->d->smem) {
        a.kc = a.stages == 2 ? a.kc / 2 : a.kc;
        a.stages = a.stages == 2 ? 3 : 2;
    }
    uint64_t units = (uint64_t)((w->n + CU_MID_ROWS - 1) / CU_MID_ROWS) * ((w->kpad + a.kc - 1) / a.kc);
    launch(s, s->d->fn.mid[w->type][size], IMP_MIN(units, s->d->n_sm), 1, 1, cu_mid_threads(rows),
           cu_mid_smem(w->type, rows, a.kc, a.stages), &a);
}

static void product_all(step *s, const cuda_mat *w, cu_mem x, cu_mem res, uint32_t ldr, cu_mem y,
                        uint32_t ldy, bool y16, uint32_t m)
{
    if (w->type == CU_BF16 || w->type == CU_F16) {
        product(s, w, x, s->x->weights + w->q_at, w->n, res, ldr, y, ldy, y16, m);
        return;
    }
    if (m <= CU_MID_X) {
        product_mid(s, w, x, res, ldr, y, ldy, y16, m);
        return;
    }
    cu_mem w16 = s->x->scratch + s->x->w16_at;
    uint32_t step_rows = (uint32_t)IMP_MIN(s->x->w16_bytes / (2ull * w->kpad), (uint64_t)w->n);
    if (step_rows < w->n) step_rows = step_rows / 8 * 8;
    for (uint32_t r0 = 0; r0 < w->n; r0 += step_rows) {
        uint32_t n = IMP_MIN(step_rows, w->n - r0);
        cu_unpack u = {
            .q = s->x->weights + w->q_at, .out = w16, .r0 = r0, .n = n, .kpad = w->kpad, .type = w->type};
        launch(s, s->d->fn.unpack, (w->kpad / cu_tile_k(w->type) * 4 + 127) / 128, IMP_MIN(n, 65535u), 1, 128,
               0, &u);
        product(s, w, x, w16, n, res != 0 ? res + r0 * 4ull : 0, ldr, y + r0 * (y16 ? 2ull : 4ull), ldy, y16,
                m);
    }
}

static void linear_many(step *s, const cuda_op *op, uint32_t m)
{
    const cuda_mat *w = &s->x->mat[op->mat];
    cu_mem x = operand(s, op, w, m), bias = vec(s, op->vec[1]);
    if (!op->glu) {
        product_all(s, w, x, op->has_res ? at(s, op->b) : 0, op->b.ld, at(s, op->out), op->out.ld, false, m);
        cu_rows a = {.a = at(s, op->out),
                     .b = bias,
                     .y = at(s, op->out),
                     .lda = op->out.ld,
                     .ldy = op->out.ld,
                     .m = m,
                     .width = op->width,
                     .op = CU_ROW_BIAS};
        if (bias != 0) launch(s, s->d->fn.rows, blocks_for((uint64_t)m * op->width), 1, 1, 256, 0, &a);
        return;
    }
    cu_mem t16 = s->x->scratch + s->x->t16_at;
    product_all(s, w, x, 0, 0, t16, w->n, true, m);
    uint32_t kind = 1, ld = (uint32_t)imp_cuda_up(op->width, 8);
    if (op->only_next) {
        const cuda_mat *next = &s->x->mat[op[1].mat];
        kind = kind_of(next);
        ld = next->kpad;
    }
    cu_rows a = {.a = t16,
                 .lda = w->n,
                 .ldb = w->n / 2,
                 .w = bias,
                 .hkind = kind,
                 .ldh = ld,
                 .m = m,
                 .width = op->width,
                 .act = (uint32_t)op->act};
    a.h = h_next(s, op->out_val, kind, ld);
    if (!op->only_next) a.y = at(s, op->out), a.ldy = op->out.ld;
    launch(s, s->d->fn.glu16, (ld / 8 + 255) / 256, IMP_MIN(m, 65535u), 1, 256, 0, &a);
}

static void linear(step *s, const cuda_op *op)
{
    uint32_t m = s->n_row[op->rows];
    if (m <= CUDA_FEW || s->x->mat[op->mat].type == CU_F32)
        linear_few(s, op, m);
    else
        linear_many(s, op, m);
}

/* ---- attention ----------------------------------------------------------------------------------------------- */

static cu_mem cache(const step *s, const cuda_op *op, uint64_t where)
{
    return (op->tmp != 0 ? s->x->scratch + s->x->buf[op->tmp].at : s->x->kv) + where;
}

static uint32_t kv_kind(const step *s, const cuda_op *op)
{
    return imp_cuda_kv_kind(s->x, op->tmp != 0);
}

static cu_kv kv_args(const step *s, const cuda_op *op)
{
    bool with_kv = op->node->op == IMP_OP_ATTN;
    const imp_attn_attr *t = &op->node->u.attn;
    cu_kv a = {.pos = s->pos, .slot = s->slot[op->tmp != 0], .m = s->b->n_tok, .kind = kv_kind(s, op)};
    a.head_dim = with_kv ? t->head_dim : op->rope_q->head_dim;
    if (op->rope_q != NULL) {
        a.n_head = with_kv ? t->n_head : (uint32_t)(op->node->width / a.head_dim);
        a.q = at(s, op->a);
        a.ldq = op->a.ld;
        a.q_out = at(s, op->out);
        a.ldqo = op->out.ld;
        a.q_freq = vec(s, op->vec[0]);
        a.q_rot = op->rope_q->n_rot;
        a.q_inter = op->rope_q->interleaved;
        a.q_mscale = op->rope_q->mscale;
    }
    if (with_kv) {
        a.n_kv_head = t->n_kv_head;
        a.k = at(s, op->b);
        a.ldk = op->b.ld;
        a.v = at(s, op->c);
        a.ldv = op->c.ld;
        a.kc = cache(s, op, op->kc);
        a.vc = cache(s, op, op->vc);
    }
    if (op->rope_k != NULL) {
        a.k_freq = vec(s, op->vec[1]);
        a.k_rot = op->rope_k->n_rot;
        a.k_inter = op->rope_k->interleaved;
        a.k_mscale = op->rope_k->mscale;
    }
    return a;
}

static bool tensor_heads(const step *s, const cuda_op *op)
{
    return kv_kind(s, op) != CU_KV_F32 &&
           (op->node->u.attn.head_dim == 64 || op->node->u.attn.head_dim == 128);
}
/* Whether attention does the rotation and the write to the cache, too. */
static bool in_one(const step *s, const cuda_op *op)
{
    return op->node->op == IMP_OP_ATTN && op->tmp == 0 && s->longest == 1 && tensor_heads(s, op) &&
           op->node->u.attn.mask != IMP_MASK_FULL;
}

static void rope_kv(step *s, const cuda_op *op)
{
    cu_kv a = kv_args(s, op);
    uint32_t n = a.n_head + 2 * a.n_kv_head;
    cu_func f = a.kind == CU_KV_Q8 && a.n_kv_head > 0 ? s->d->fn.rope_kv_q8 : s->d->fn.rope_kv;
    if (!in_one(s, op)) launch(s, f, a.m, a.m >= 256 ? 1 : (n + 7) / 8, 1, 256, 0, &a);
}

static void attn_any(step *s, const cu_attn *from, uint32_t kind, uint32_t per)
{
    const cuda_kernels *fn = &s->d->fn;
    const cu_func f_of[CU_N_KV][3] = {[CU_KV_F32] = {fn->attn_f32_1, fn->attn_f32_4, fn->attn_f32_8},
                                      [CU_KV_F16] = {fn->attn_f16_1, fn->attn_f16_4, fn->attn_f16_8},
                                      [CU_KV_Q8] = {fn->attn_q8_1, fn->attn_q8_4, fn->attn_q8_8}};
    cu_attn a = *from;
    uint32_t size = per == 1 ? 0 : per <= 4 ? 1 : 2, g = size == 0 ? 1 : 4 * size, chunk = (per + g - 1) / g;
    cu_func f = f_of[kind][size];
    uint32_t smem = (g * a.head_dim * 5 + 3 + g * CU_SPLIT_FAR) * 4;
    for (; a.t0 < a.m; a.t0 += s->x->attn_rows)
        launch(s, f, s->n_split, (uint64_t)a.n_kv_head * chunk, IMP_MIN(s->x->attn_rows, a.m - a.t0), 128,
               smem, &a);
}

static void flash(step *s, const cu_attn *a, uint32_t kind)
{
    const cuda_kernels *fn = &s->d->fn;
    uint32_t hd = a->head_dim, smem = (128 + 4 * 64) * hd * 2, threads = 128;
    cu_func f = hd == 64 ? fn->flash_64 : fn->flash_128;
    if (kind == CU_KV_Q8) {
        f = hd == 64 ? fn->flash_q8_64 : fn->flash_q8_128;
        smem = (128 + 2 * 64) * hd * 2 + 2 * cu_kv_tile_bytes(kind, hd);
    } else if (s->d->groups) {
        f = hd == 64 ? fn->flash_wg_64 : fn->flash_wg_128;
        threads = CU_FLASH_WG_THREADS;
        smem = cu_flash_wg_smem(hd);
    }
    launch(s, f, (s->longest + 127) / 128, a->n_head, a->n_seq, threads, smem, a);
}

/* One token a sequence: what the op in front (ROPE_KV) left undone is done here. */
static void attn_step(step *s, const cu_attn *from, const cuda_op *op, uint32_t per)
{
    const cuda_op *front = op - 1;
    cu_step_attn a = {.at = *from, .kv = kv_args(s, front)};
    const cuda_kernels *fn = &s->d->fn;
    bool wide = a.at.head_dim == 128, q8 = a.kv.kind == CU_KV_Q8;
    cu_func f = wide ? (q8 ? fn->attn_step_q8_128 : fn->attn_step_128)
                : q8 ? fn->attn_step_q8_64
                     : fn->attn_step_64;
    if (front->rope_q != NULL) a.at.q = a.kv.q, a.at.ldq = a.kv.ldq;
    for (; a.at.t0 < a.at.m; a.at.t0 += s->x->attn_rows) {
        a.n_block =
            s->n_split * a.at.n_kv_head * ((per + 7) / 8) * IMP_MIN(s->x->attn_rows, a.at.m - a.at.t0);
        launch(s, f, IMP_MAX(a.n_block, s->d->n_sm), 1, 1, 256, wide ? CU_STEP_SMEM_128 : CU_STEP_SMEM_64,
               &a);
    }
}

static void attn(step *s, const cuda_op *op)
{
    const imp_attn_attr *t = &op->node->u.attn;
    cu_attn a = {.q = at(s, op->a),
                 .kc = cache(s, op, op->kc),
                 .vc = cache(s, op, op->vc),
                 .sink = vec(s, op->vec[0]),
                 .part = s->x->scratch + s->x->part_at,
                 .count = s->x->scratch + s->x->count_at,
                 .tseq = s->tseq,
                 .kvpos = s->kvpos,
                 .seq_len = s->len,
                 .table = s->table[op->tmp != 0],
                 .seq_first = s->first,
                 .seq_past = s->past,
                 .ldq = op->a.ld,
                 .m = s->b->n_tok,
                 .n_seq = s->b->n_seq,
                 .table_stride = s->table_stride,
                 .n_head = t->n_head,
                 .n_kv_head = t->n_kv_head,
                 .head_dim = t->head_dim,
                 .window = t->window,
                 .full = t->mask == IMP_MASK_FULL,
                 .n_split = s->n_split,
                 .vec = t->head_dim % 4 == 0,
                 .scale = t->scale,
                 .softcap = t->softcap};
    if (op->only_next && a.m > CUDA_FEW) {
        const cuda_mat *next = &s->x->mat[op[1].mat];
        a.hkind = kind_of(next);
        a.ldh = next->kpad;
        a.h = h_next(s, op->out_val, a.hkind, a.ldh);
        if (next->kpad != next->k && s->r == CU_OK) {
            s->r = s->d->cu->set8(a.h, 0, (uint64_t)a.m * a.ldh * 2, s->d->stream);
            s->d->after_copy = true;
        }
    } else {
        a.y = at(s, op->out);
        a.ldy = op->out.ld;
    }
    if (in_one(s, op))
        attn_step(s, &a, op, t->n_head / t->n_kv_head);
    else if (tensor_heads(s, op) && s->longest >= 16 && a.ldq % 4 == 0 && a.q % 16 == 0)
        flash(s, &a, kv_kind(s, op));
    else
        attn_any(s, &a, kv_kind(s, op), t->n_head / t->n_kv_head);
}

/* ---- experts -------------------------------------------------------------------------------------------------- */

static void moe(step *s, const cuda_op *op)
{
    const imp_moe_attr *t = &op->node->u.moe;
    const cuda_mat *up = &s->x->mat[op->mat], *down = &s->x->mat[op->mat2];
    cu_mem buf[4];
    for (int i = 0; i < 4; i++) buf[i] = at(s, (cuda_loc){.buf = op->moe_buf[i]});
    const imp_node *gate = imp_graph_node(s->x->graph, op->node->in[2]);
    uint32_t n_row = s->n_row[op->rows], n_ff = (uint32_t)imp_tensor_n_row(gate->u.weight.part);
    for (uint32_t r0 = 0; r0 < n_row; r0 += CUDA_MOE_ROWS) {
        uint32_t m = IMP_MIN((uint32_t)CUDA_MOE_ROWS, n_row - r0), n_pair = m * t->n_used;
        cu_route r = {.logits = at(s, op->b) + (uint64_t)r0 * op->b.ld * 4,
                      .ldl = op->b.ld,
                      .expert = buf[0],
                      .weight = buf[1],
                      .pair = buf[3],
                      .y = at(s, op->out) + (uint64_t)r0 * op->out.ld * 4,
                      .ldy = op->out.ld,
                      .m = m,
                      .n_expert = t->n_expert,
                      .n_used = t->n_used,
                      .norm_topk = t->norm_topk,
                      .width = op->width};
        launch(s, s->d->fn.moe_route, m, 1, 1, 32, 0, &r);
        cu_gemv g = {.x = at(s, op->a) + (uint64_t)r0 * op->a.ld * 4,
                     .ldx = op->a.ld,
                     .y = buf[2],
                     .ldy = n_ff,
                     .expert = buf[0],
                     .x_div = t->n_used,
                     .n = n_ff,
                     .m = 1,
                     .glu = 1,
                     .act = (uint32_t)t->act};
        gemv(s, up, &g, n_pair);
        cu_gemv d = {.x = buf[2],
                     .ldx = n_ff,
                     .y = buf[3],
                     .ldy = op->width,
                     .expert = buf[0],
                     .x_div = 1,
                     .n = op->width,
                     .m = 1};
        gemv(s, down, &d, n_pair);
        launch(s, s->d->fn.moe_sum, (op->width + 255) / 256, m, 1, 256, 0, &r);
    }
}

/* ---- the rest --------------------------------------------------------------------------------------------------- */

static void row_op(step *s, const cuda_op *op)
{
    uint32_t m = s->n_row[op->rows];
    cu_rows a = {.a = at(s, op->a),
                 .lda = op->a.ld,
                 .y = at(s, op->out),
                 .ldy = op->out.ld,
                 .w = vec(s, op->vec[0]),
                 .w2 = vec(s, op->vec[1]),
                 .m = m,
                 .width = op->width,
                 .op = op->row_op,
                 .act = (uint32_t)op->act,
                 .c = op->c0,
                 .eps = op->eps,
                 .w_offset = op->w_offset,
                 .group = op->width};
    const cuda_kernels *fn = &s->d->fn;
    switch (op->kind) {
    case CUDA_RMS: {
        a.group = (uint32_t)op->node->u.norm.group;
        uint32_t threads = a.group >= 1024 ? 256 : a.group >= 256 ? 128 : 32;
        launch(s, fn->rms_norm, m, op->width / a.group, 1, threads, 0, &a);
        break;
    }
    case CUDA_LAYER_NORM: launch(s, fn->layer_norm, m, 1, 1, op->width >= 512 ? 256 : 128, 0, &a); break;
    case CUDA_L2: launch(s, fn->l2_norm, m, 1, 1, 128, 0, &a); break;
    case CUDA_GATHER:
        a.op = CU_ROW_COPY;
        a.row = s->out_row;
        launch(s, fn->rows, blocks_for((uint64_t)m * op->width), 1, 1, 256, 0, &a);
        break;
    default:
        if (op->b.buf != 0) a.b = at(s, op->b), a.ldb = op->b.ld;
        launch(s, fn->rows, blocks_for((uint64_t)m * op->width), 1, 1, 256, 0, &a);
    }
}

/* From where fill_meta put the batch's rows, so that a captured step finds the next ones there. */
static void input(step *s, const cuda_op *op)
{
    if (s->r == CU_OK)
        s->r = s->d->cu->to_device(at(s, op->out), s->x->input, (uint64_t)s->b->n_tok * op->width * 4,
                                   s->d->stream);
    s->d->after_copy = true;
}

static void embed(step *s, const cuda_op *op)
{
    const cuda_mat *w = &s->x->mat[op->mat];
    imp_embed_by by = op->node->u.embed.by;
    cu_embed a = {.q = s->x->weights + w->q_at,
                  .row = by == IMP_BY_TOKEN      ? s->token
                         : by == IMP_BY_POSITION ? s->pos
                                                 : s->type,
                  .y = at(s, op->out),
                  .ldy = op->out.ld,
                  .n = w->n,
                  .k = w->k,
                  .kpad = w->kpad,
                  .m = s->b->n_tok,
                  .type = w->type,
                  .offset = by == IMP_BY_POSITION ? op->node->u.embed.offset : 0};
    launch(s, s->d->fn.embed, (w->k + 255) / 256, a.m, 1, 256, 0, &a);
}

static void pool(step *s, const cuda_op *op)
{
    cu_pool a = {.x = at(s, op->a),
                 .y = at(s, op->out),
                 .first = s->first,
                 .n_tok = s->n_tok,
                 .ldx = op->a.ld,
                 .ldy = op->out.ld,
                 .width = op->width,
                 .kind = (uint32_t)op->node->u.pool.kind,
                 .n_seq = s->b->n_seq};
    launch(s, s->d->fn.pool, (op->width + 127) / 128, a.n_seq, 1, 128, 0, &a);
}

/* Small sums at once; large ones in pieces. */
static void reduce(step *s, const cuda_op *op)
{
    cuda_exec *x = s->x;
    uint32_t m = s->n_row[op->rows], total = m * op->width;
    cu_reduce a = {.x = at(s, op->a),
                   .y = at(s, op->out),
                   .count = x->scratch + x->calls_at,
                   .stop = (uint64_t)(uintptr_t)x->stop,
                   .width = op->width,
                   .ldx = op->a.ld,
                   .ldy = op->out.ld,
                   .n = x->n_member,
                   .rank = x->rank};
    if (op->has_res) a.res = at(s, op->b), a.ldr = op->b.ld;
    a.wide = op->width % 8 == 0 && (a.ldx | a.ldy | a.ldr) % 4 == 0 && (a.x | a.y | a.res) % 16 == 0;
    memcpy(a.board, x->board, sizeof x->board);
    if (total <= CU_REDUCE_SMALL) {
        a.total = total;
        launch(s, s->d->fn.reduce_small, IMP_MAX((total + 1023) / 1024, s->d->n_sm), 1, 1, 256, 0, &a);
    }
    for (a.count += CU_REDUCE_SMALL / 1024 * 4; total > CU_REDUCE_SMALL && a.first < total;
         a.first += CU_REDUCE_PIECE) {
        a.total = IMP_MIN((uint32_t)CU_REDUCE_PIECE, total - a.first);
        launch(s, s->d->fn.reduce_large, CU_REDUCE_BLOCKS, 1, 1, 512, 0, &a);
    }
    if (!s->capturing && s->r == CU_OK) s->given_up = !imp_cuda_member_sent(x);
}

/* ---- the best columns --------------------------------------------------------------------------------------------- */

static cu_top top_args(const cuda_exec *x, cu_mem rows)
{
    uint32_t width = (uint32_t)imp_graph_node(x->graph, imp_graph_output(x->graph))->width;
    return (cu_top){.x = rows,
                    .ldx = width,
                    .n = width,
                    .n_chunk = (width + CU_TOP_CHUNK - 1) / CU_TOP_CHUNK,
                    .part = x->scratch + x->top_part_at,
                    .stat = x->scratch + x->top_stat_at,
                    .count = x->scratch + x->top_count_at,
                    .out = x->scratch + x->top_out_at};
}

static void top(step *s, uint32_t n_row)
{
    cuda_exec *x = s->x;
    cu_top a = top_args(x, at(s, x->out));
    for (; a.row0 < n_row; a.row0 += CU_TOP_ROWS)
        launch(s, s->d->fn.top, a.n_chunk, IMP_MIN(n_row - a.row0, (uint32_t)CU_TOP_ROWS), 1, 1024, 0, &a);
    if (s->r == CU_OK && n_row > 0)
        s->r = s->d->cu->to_host(x->top, a.out, n_row * sizeof *x->top, s->d->stream);
}

cu_result imp_cuda_top_masked(cuda_device *d, cuda_exec *x, uint32_t row, const uint32_t *mask)
{
    const cu_driver *cu = d->cu;
    cu_top a = top_args(x, x->scratch + x->buf[x->out.buf].at + x->out.off * 4);
    a.row0 = row;
    a.mask = x->scratch + x->top_mask_at;
    a.masked = x->lim.max_out + 1;
    cu_result r = cu->to_device(a.mask, mask, x->top_mask_bytes, d->stream);
    d->after_copy = true;
    if (r == CU_OK) r = imp_cuda_launch(d, d->fn.top, a.n_chunk, 1, 1, 1024, 0, &a);
    if (r == CU_OK)
        r = cu->to_host(x->top + x->lim.max_out, a.out + x->lim.max_out * sizeof *x->top, sizeof *x->top,
                        d->stream);
    cu_result done = cu->stream_sync(d->stream);
    return r == CU_OK ? done : r;
}

cu_result imp_cuda_row(cuda_device *d, cuda_exec *x, uint32_t row)
{
    uint64_t width = imp_graph_node(x->graph, imp_graph_output(x->graph))->width;
    cu_mem from = x->scratch + x->buf[x->out.buf].at + (x->out.off + row * width) * 4;
    cu_result r = d->cu->to_host(x->result + row * width, from, width * 4, d->stream);
    cu_result done = d->cu->stream_sync(d->stream);
    return r == CU_OK ? done : r;
}

/* Rows between the device and dense rows on the host. */
static void rows_of(step *s, cuda_loc l, uint32_t m, uint64_t width, float *host, bool out)
{
    const cu_driver *cu = s->d->cu;
    uint32_t n = l.ld == width ? 1 : m; /* at once, or row by row */
    uint64_t bytes = (l.ld == width ? m * width : width) * 4;
    for (uint32_t r = 0; r < n && s->r == CU_OK; r++, host += width) {
        cu_mem p = at(s, l) + (uint64_t)r * l.ld * 4;
        s->r = out ? cu->to_host(host, p, bytes, s->d->stream) : cu->to_device(p, host, bytes, s->d->stream);
    }
    s->d->after_copy = true;
}

static void outside(step *s, const cuda_op *op)
{
    cuda_exec *x = s->x;
    uint32_t m = s->n_row[op->rows];
    uint64_t wa = imp_graph_node(x->graph, op->node->in[0])->width,
             wb = imp_graph_node(x->graph, op->node->in[1])->width;
    float *a = x->outside_rows, *b = a + m * wa, *y = b + m * wb;
    rows_of(s, op->a, m, wa, a, true);
    rows_of(s, op->b, m, wb, b, true);
    if (s->r == CU_OK) s->r = s->d->cu->stream_sync(s->d->stream);
    if (s->r != CU_OK) return;
    s->outside = x->outside.fn == NULL ? imp_fail(s->err, IMP_INTERNAL, "nobody computes %s", op->node->name)
                                       : x->outside.fn(x->outside.ctx, op->node->u.outside.index, m, a, wa, b,
                                                       wb, y, op->width, s->err);
    if (s->outside == IMP_OK) rows_of(s, op->out, m, op->width, y, false);
}

/* Everything from the batch's way in to the result's way out, onto the stream. */
static void enqueue(step *s)
{
    const cu_driver *cu = s->d->cu;
    cuda_exec *x = s->x;
    if (s->r == CU_OK) s->r = cu->to_device(x->scratch + x->meta_at, x->meta, s->n_meta * 4, s->d->stream);
    s->h_val = 0;
    s->d->after_copy = true;
    for (uint32_t i = 0; i < x->n_op && s->r == CU_OK && !s->given_up && s->outside == IMP_OK; i++) {
        const cuda_op *op = &x->op[i];
        if (s->n_row[op->rows] == 0) continue;
        switch (op->kind) {
        case CUDA_INPUT: input(s, op); break;
        case CUDA_EMBED: embed(s, op); break;
        case CUDA_LINEAR: linear(s, op); break;
        case CUDA_ROPE_KV: rope_kv(s, op); break;
        case CUDA_ATTN: attn(s, op); break;
        case CUDA_MOE: moe(s, op); break;
        case CUDA_POOL: pool(s, op); break;
        case CUDA_REDUCE: reduce(s, op); break;
        case CUDA_OUTSIDE: outside(s, op); break;
        default: row_op(s, op);
        }
    }
    const imp_node *out = imp_graph_node(x->graph, imp_graph_output(x->graph));
    uint64_t bytes = s->n_row[out->rows] * out->width * 4;
    if (s->b->top)
        top(s, s->n_row[out->rows]);
    else if (s->r == CU_OK && bytes > 0)
        s->r = cu->to_host(x->result, at(s, x->out), bytes, s->d->stream);
}

/* ---- captured steps ------------------------------------------------------------------------------------------------ */

/* The place of this shape; a new one takes the place that was not used for longest. */
static cuda_captured *captured(step *s)
{
    cuda_exec *x = s->x;
    cuda_captured *oldest = &x->captured[0];
    for (int i = 0; i < CUDA_N_GRAPH; i++) {
        cuda_captured *c = &x->captured[i];
        if (c->n_tok == s->b->n_tok && c->n_out == s->n_row[IMP_ROWS_OUT] && c->n_split == s->n_split &&
            c->top == s->b->top) {
            c->used = ++x->clock;
            return c;
        }
        if (c->used < oldest->used) oldest = c;
    }
    if (oldest->exec != NULL) (void)s->d->cu->gexec_free(oldest->exec);
    *oldest = (cuda_captured){.n_tok = s->b->n_tok,
                              .n_out = s->n_row[IMP_ROWS_OUT],
                              .n_split = s->n_split,
                              .top = s->b->top,
                              .used = ++x->clock};
    return NULL; /* seen for the first time: not worth it yet */
}

static void capture(step *s, cuda_captured *c)
{
    const cu_driver *cu = s->d->cu;
    cu_graph g = NULL;
    if (cu->capture_begin(s->d->stream, 1) != CU_OK) return;
    s->capturing = true;
    enqueue(s);
    s->capturing = false;
    cu_result r = cu->capture_end(s->d->stream, &g);
    if (s->r == CU_OK && r == CU_OK && cu->graph_make(&c->exec, g, 0) != CU_OK) c->exec = NULL;
    if (g != NULL) (void)cu->graph_free(g);
    s->r = CU_OK; /* what cannot be captured is launched one by one */
}

static void choose_shape(step *s, bool *decode)
{
    const imp_batch *b = s->b;
    uint32_t len = 0;
    *decode = !s->x->has_uncached && s->x->has_cached && s->x->outside_bytes == 0 && b->n_tok <= 256;
    for (uint32_t i = 0; i < b->n_seq; i++) {
        len = IMP_MAX(len, b->seq[i].n_past + b->seq[i].n_tok);
        s->longest = IMP_MAX(s->longest, b->seq[i].n_tok);
    }
    *decode = *decode && s->longest == 1;
    s->n_split = IMP_MAX(1, imp_cuda_n_split(len));
    s->table_stride = (len + CU_KV_BLOCK - 1) / CU_KV_BLOCK;
    if (!*decode) return;
    uint32_t n = 1;
    while (n < s->n_split) n *= 2;
    s->n_split = IMP_MIN(n, IMP_MAX(1, s->x->max_split));
    s->table_stride = imp_cuda_split_begin(s->n_split) / CU_KV_BLOCK;
}

imp_status imp_cuda_step(cuda_device *d, cuda_exec *x, const imp_batch *b, imp_error *err)
{
    const cu_driver *cu = d->cu;
    bool out = imp_graph_node(x->graph, imp_graph_output(x->graph))->rows == IMP_ROWS_OUT;
    step s = {.d = d, .x = x, .b = b, .err = err, .n_row = {b->n_tok, out ? b->n_out : 0, b->n_seq}};
    bool decode;
    choose_shape(&s, &decode);
    fill_meta(&s);
    cuda_captured *c = decode ? captured(&s) : NULL;
    if (c != NULL && c->exec == NULL) capture(&s, c);
    if (x->n_member > 0) {
        if (c != NULL && c->exec == NULL) /* the others wait for kernels, not for a host in between */
            return imp_fail(err, IMP_DEVICE, "%s could not capture a step", d->base.name);
        IMP_TRY(imp_cuda_member_begin(d, x, err));
    }
    s.r = cu->event_record(x->begin, d->stream);
    if (c != NULL && c->exec != NULL) {
        if (s.r == CU_OK) s.r = cu->graph_launch(c->exec, d->stream);
    } else {
        enqueue(&s);
    }
    if (s.r == CU_OK) s.r = cu->event_record(x->end, d->stream);
    cu_result done = cu->stream_sync(d->stream);
    if (s.r == CU_OK) s.r = done;
    if (s.r != CU_OK) return imp_cuda_fail(d, s.r, "a step", err);
    if (s.outside != IMP_OK) return s.outside;
    if (x->n_member > 0) IMP_TRY(imp_cuda_member_end(d, x, err));
    float ms = 0;
    x->last_ns = cu->event_ms(&ms, x->begin, x->end) == CU_OK ? (uint64_t)((double)ms * 1e6) : 0;
    return IMP_OK;
}

/* app/cmd_bench.c - `impetus bench`: prefill, decode and embedding speed of a model, beside the machine's ceilings.
 *
 * Place:   drives the device directly with the compiled graph, as the scheduler does, without sampling or text.
 * Idea:    every number is the median of --repeat runs after a warm-up. Ceilings are measured in the same run: before and
 *          after, the better one counts; and, for shares, in turns with what is measured. Batch sizes take turns too.
 *          Tokens are random: speed does not depend on them.
 * Layout:  the JSON of contract: pp, tg, ceilings, share; for --embed "embed" in place of pp and tg. */
#include <math.h>
#include <stdlib.h>

#include "app/app.h"
#include "dev/dev.h"
#include "kern/kv.h"
#include "model/net.h"
#include "plan/ceilings.h"
#include "plan/host.h"
#include "plan/traffic.h"

enum { CEILING_MS = 200, DEFAULT_STEP = 512 };

typedef struct result {
    uint64_t tokens, depth, batch;
    double mid, lo, hi; /* per second */
    double share;       /* of the ceiling measured in turns with it; NAN: of none */
    double over_one;    /* time of a step over that of one sequence's in the same round; NAN: not measured */
} result;

typedef enum sample_kind { SAMPLE_RATE, SAMPLE_SHARE, SAMPLE_OVER_ONE, N_SAMPLE } sample_kind;

typedef struct bench {
    app *a;
    imp_net *net;
    imp_device *dev;
    imp_exec *exec;
    imp_limits lim;
    imp_host host;
    imp_ceilings ceil;
    imp_traffic traffic;
    uint64_t step_tok, seed;
    /* one step's batch, sized by lim */
    int32_t *token, *pos;
    imp_batch_seq *seq;
    uint32_t *out_row, *block;
    imp_gauge *gauge;         /* NULL: what is measured is no processor */
    double *sample[N_SAMPLE]; /* [batch sizes][repeat] */
    result *pp, *tg, *em;
    size_t n_pp, n_tg, n_em;
} bench;

static int32_t random_token(bench *b)
{
    b->seed = b->seed * 6364136223846793005ull + 1442695040888963407ull;
    return (int32_t)((b->seed >> 33) % b->net->cfg.n_vocab);
}

static uint64_t blocks_of(uint64_t n_tok)
{
    return (n_tok + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, uint64_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* Median, least and greatest of the k-th row of samples. */
static result summary(bench *b, uint64_t k, uint64_t n)
{
    double *rate = b->sample[SAMPLE_RATE] + k * n, *share = b->sample[SAMPLE_SHARE] + k * n;
    result r = {.mid = median(rate, n), .share = median(share, n), .over_one = NAN};
    r.lo = rate[0];
    r.hi = rate[n - 1];
    return r;
}

static uint64_t list_max(const app *a, app_opt_id id)
{
    uint64_t max = 0;
    for (size_t i = 0; i < a->opt.v[id].n; i++) max = IMP_MAX(max, a->opt.v[id].uints[i]);
    return max;
}

/* ---- steps ------------------------------------------------------------------------------------------ */

/* n_seq sequences, each n_tok new tokens behind n_past; sequence s owns `per_seq` KV blocks from s * per_seq on. */
static imp_status step(bench *b, uint64_t n_seq, uint64_t n_tok, uint64_t n_past, uint64_t per_seq)
{
    const float *out;
    imp_batch batch = {.n_tok = (uint32_t)(n_seq * n_tok),
                       .n_seq = (uint32_t)n_seq,
                       .n_out = (uint32_t)n_seq,
                       .token = b->token,
                       .pos = b->pos,
                       .seq = b->seq,
                       .out_row = b->out_row};
    for (uint64_t s = 0; s < n_seq; s++) {
        b->seq[s] = (imp_batch_seq){.first_tok = (uint32_t)(s * n_tok),
                                    .n_tok = (uint32_t)n_tok,
                                    .n_past = (uint32_t)n_past,
                                    .block = b->lim.n_kv_block ? b->block + s * per_seq : NULL};
        b->out_row[s] = (uint32_t)((s + 1) * n_tok - 1);
        for (uint64_t i = 0; i < n_tok; i++) {
            b->token[s * n_tok + i] = random_token(b);
            b->pos[s * n_tok + i] = (int32_t)(n_past + i);
        }
    }
    return b->dev->ops->run(b->exec, &batch, &out, &b->a->err);
}

/* Prefill one sequence of n_tok tokens in steps; its blocks begin at `first_block`. */
static imp_status prefill(bench *b, uint64_t n_tok, uint64_t first_block)
{
    uint32_t *all = b->block;
    b->block = all + first_block;
    imp_status s = IMP_OK;
    for (uint64_t done = 0; done < n_tok && s == IMP_OK; done += b->step_tok)
        s = step(b, 1, IMP_MIN(b->step_tok, n_tok - done), done, 0);
    b->block = all;
    return s;
}

static imp_status bench_pp(bench *b, uint64_t n_tok, uint64_t repeat, result *out)
{
    IMP_TRY(prefill(b, IMP_MIN(n_tok, b->step_tok), 0));
    for (uint64_t r = 0; r < repeat; r++) {
        uint64_t t0 = imp_now_ns();
        IMP_TRY(prefill(b, n_tok, 0));
        double tok_s = (double)n_tok / ((double)(imp_now_ns() - t0) * 1e-9);
        b->sample[SAMPLE_RATE][r] = tok_s;
        b->sample[SAMPLE_SHARE][r] =
            b->gauge != NULL ? tok_s * b->traffic.tok_flop / imp_gauge_int8(b->gauge) : NAN;
        app_bar_add(1);
    }
    *out = summary(b, 0, repeat);
    out->tokens = n_tok;
    return IMP_OK;
}

/* n_tok tokens of each of n_seq sequences behind `depth`. A pass over memory follows every few steps; bytes: what a step
 * has to read. */
static imp_status generate(bench *b, uint64_t n_tok, uint64_t depth, uint64_t n_seq, uint64_t per_seq,
                           double bytes, double *tok_s, double *share)
{
    enum { PIECE_NS = 40000000 };
    double ns = 0, could = 0;
    uint64_t piece = 0, n_pass = 0;
    for (uint64_t i = 0; i < n_tok; i++) {
        uint64_t t0 = imp_now_ns();
        IMP_TRY(step(b, n_seq, 1, depth + i, per_seq));
        uint64_t took = imp_now_ns() - t0;
        ns += (double)took;
        piece += took;
        if (b->gauge == NULL || (piece < PIECE_NS && i + 1 < n_tok)) continue;
        could += 1 / imp_gauge_read(b->gauge); /* seconds a byte */
        n_pass++;
        piece = 0;
    }
    *tok_s = (double)(n_tok * n_seq) / (ns * 1e-9);
    *share = n_pass > 0 ? bytes * could / (double)n_pass / (ns * 1e-9 / (double)n_tok) : NAN;
    return IMP_OK;
}

/* All batch sizes in turns, so that their ratios are those of one state of the machine. */
static imp_status bench_tg(bench *b, uint64_t n_tok, uint64_t depth, const app_value *batches,
                           uint64_t repeat, result *out)
{
    uint64_t per_seq = blocks_of(depth + n_tok), most = list_max(b->a, OPT_BATCHES);
    double kv_tok = (double)imp_dev_kv_block_bytes(b->net->generate, b->lim.kv_dtype) / IMP_KV_BLOCK,
           past = (double)depth + (double)n_tok / 2;
    double *rate = b->sample[SAMPLE_RATE], *share = b->sample[SAMPLE_SHARE],
           *over = b->sample[SAMPLE_OVER_ONE];
    for (uint64_t s = 0; s < most; s++) IMP_TRY(prefill(b, depth, s * per_seq));
    for (uint64_t r = 0; r < repeat; r++) {
        double one = NAN;
        for (size_t k = 0; k < batches->n; k++) {
            uint64_t n_seq = batches->uints[k], at = k * repeat + r;
            double bytes = (double)b->traffic.weight_bytes + (double)n_seq * past * kv_tok;
            IMP_TRY(step(b, n_seq, 1, depth, per_seq));
            IMP_TRY(generate(b, n_tok, depth, n_seq, per_seq, bytes, &rate[at], &share[at]));
            if (n_seq == 1) one = rate[at];
            over[at] = one * (double)n_seq / rate[at];
            app_bar_add(1);
        }
    }
    for (size_t k = 0; k < batches->n; k++) {
        out[k] = summary(b, k, repeat);
        out[k].tokens = n_tok;
        out[k].depth = depth;
        out[k].batch = batches->uints[k];
        if (out[k].batch != 1) out[k].over_one = median(over + k * repeat, repeat);
    }
    return IMP_OK;
}

/* n_text texts of n_tok tokens, as many a step as fit. */
static imp_status embed_once(bench *b, uint64_t n_tok, uint64_t n_text)
{
    uint64_t a_step = IMP_MAX(1, IMP_MIN(b->lim.max_tok / n_tok, b->lim.max_seq));
    for (uint64_t done = 0; done < n_text; done += a_step)
        IMP_TRY(step(b, IMP_MIN(a_step, n_text - done), n_tok, 0, 0));
    return IMP_OK;
}

static imp_status bench_embed(bench *b, uint64_t n_tok, uint64_t n_text, uint64_t repeat, result *out)
{
    enum { MIN_SAMPLE_NS = 20000000 }; /* a short text is repeated until the clock is no part of the answer */
    uint64_t times = 0, t0 = imp_now_ns();
    while (times == 0 || imp_now_ns() - t0 < MIN_SAMPLE_NS) {
        IMP_TRY(embed_once(b, n_tok, n_text));
        times++;
    }
    for (uint64_t r = 0; r < repeat; r++) {
        t0 = imp_now_ns();
        for (uint64_t i = 0; i < times; i++) IMP_TRY(embed_once(b, n_tok, n_text));
        double text_s = (double)(n_text * times) / ((double)(imp_now_ns() - t0) * 1e-9);
        b->sample[SAMPLE_RATE][r] = text_s;
        b->sample[SAMPLE_SHARE][r] =
            b->gauge != NULL ? text_s * (double)n_tok * b->traffic.tok_flop / imp_gauge_int8(b->gauge) : NAN;
        app_bar_add(1);
    }
    *out = summary(b, 0, repeat);
    out->tokens = n_tok;
    out->batch = n_text;
    return IMP_OK;
}

/* ---- set up ------------------------------------------------------------------------------------------- */

static imp_status choose_limits(bench *b, bool embed)
{
    const app *a = b->a;
    uint64_t batch = list_max(a, OPT_BATCHES), gen = list_max(a, OPT_DEPTHS) + list_max(a, OPT_TG);
    uint64_t ctx = embed ? list_max(a, OPT_TOKENS) : IMP_MAX(list_max(a, OPT_PP), gen);
    uint64_t blocks = embed ? 0 : IMP_MAX(blocks_of(list_max(a, OPT_PP)), batch * blocks_of(gen));
    if (ctx > b->net->cfg.n_ctx_train)
        return imp_fail(&b->a->err, IMP_TOO_LARGE, "%llu tokens are asked for, the model's context is %u",
                        (unsigned long long)ctx, b->net->cfg.n_ctx_train);
    if (blocks > UINT32_MAX)
        return imp_fail(&b->a->err, IMP_TOO_LARGE, "that many sequences of that length cannot be held");
    b->step_tok = opt_set(&a->opt, OPT_STEP_TOK) ? opt_u32(&a->opt, OPT_STEP_TOK) : DEFAULT_STEP;
    if (embed) b->step_tok = IMP_MAX(b->step_tok, ctx);
    imp_dtype kv = IMP_F16;
    if (opt_str(&a->opt, OPT_KV_TYPE) != NULL)
        (void)imp_kv_type_from_name(opt_str(&a->opt, OPT_KV_TYPE), &kv);
    b->lim = (imp_limits){.max_tok = (uint32_t)IMP_MAX(b->step_tok, batch),
                          .max_seq = (uint32_t)batch,
                          .max_out = (uint32_t)batch,
                          .max_ctx = (uint32_t)ctx,
                          .n_kv_block = (uint32_t)blocks,
                          .kv_dtype = kv};
    return IMP_OK;
}

static imp_status alloc_batch(bench *b)
{
    const imp_limits *l = &b->lim;
    imp_arena *arena = b->a->arena;
    b->token = imp_arena_array(arena, l->max_tok, sizeof *b->token);
    b->pos = imp_arena_array(arena, l->max_tok, sizeof *b->pos);
    b->seq = imp_arena_array(arena, l->max_seq, sizeof *b->seq);
    b->out_row = imp_arena_array(arena, l->max_seq, sizeof *b->out_row);
    b->block = imp_arena_array(arena, (size_t)l->n_kv_block + 1, sizeof *b->block);
    bool ok = b->token && b->pos && b->seq && b->out_row && b->block;
    uint64_t n_sample = b->a->opt.v[OPT_REPEAT].u * b->a->opt.v[OPT_BATCHES].n;
    for (int i = 0; i < N_SAMPLE; i++) {
        b->sample[i] = imp_arena_array(arena, n_sample, sizeof *b->sample[i]);
        ok = ok && b->sample[i];
    }
    if (!ok) return imp_fail(&b->a->err, IMP_NOMEM, "no memory for the batch");
    for (uint32_t i = 0; i < l->n_kv_block; i++) b->block[i] = i;
    return IMP_OK;
}

static imp_status open_all(bench *b, bool embed)
{
    app *a = b->a;
    const char *path, *kind = opt_str(&a->opt, OPT_DEVICE);
    imp_dev_memory mem;
    IMP_TRY(app_model_path(a, a->arg[0], &path, &a->err));
    IMP_TRY(imp_net_open(path, 0, &b->net, &a->err));
    imp_graph *g = embed ? b->net->embed : b->net->generate;
    if (!g && embed) return imp_fail(&a->err, IMP_UNSUPPORTED, "this model cannot embed; leave out --embed");
    if (!g)
        return imp_fail(&a->err, IMP_UNSUPPORTED, "this model generates no text; measure it with --embed");
    IMP_TRY(choose_limits(b, embed));
    IMP_TRY(imp_dev_open(kind ? kind : "cpu", opt_u32(&a->opt, OPT_THREADS), &b->dev, &a->err));
    IMP_TRY(b->dev->ops->plan(b->dev, g, &b->lim, &mem, &a->err));
    IMP_TRY(imp_host_read(&b->host, &a->err));
    if (strcmp(b->dev->ops->kind, "cpu") == 0)
        IMP_TRY(imp_gauge_new(app_n_thread(a), b->host.llc_bytes, &b->gauge, &a->err));
    uint64_t need = mem.weights + mem.mapped + mem.kv + mem.scratch + mem.other;
    if (need > b->host.mem_available)
        return imp_fail(&a->err, IMP_NO_FIT,
                        "this needs %llu MB, %llu MB are available; measure shorter texts or smaller batches",
                        (unsigned long long)(need >> 20), (unsigned long long)(b->host.mem_available >> 20));
    IMP_TRY(b->dev->ops->compile(b->dev, g, &b->lim, &b->exec, &a->err));
    char text[200];
    if (b->dev->ops->state && b->dev->ops->state(b->exec, true, text, sizeof text) != IMP_OK)
        return imp_fail(&a->err, IMP_DEVICE, "%s: %s", b->dev->name, text);
    imp_traffic_count(g, &b->traffic);
    return alloc_batch(b);
}

/* ---- run ---------------------------------------------------------------------------------------------- */

/* The ceilings are the processor's: they say nothing about what runs elsewhere. */
static imp_status measure_ceilings(bench *b)
{
    imp_ceilings c;
    if (strcmp(b->dev->ops->kind, "cpu") != 0) {
        b->ceil.read_bytes_s = b->ceil.int8_op_s = b->ceil.f32_flop_s = NAN;
        return IMP_OK;
    }
    IMP_TRY(app_measure(b->a, &b->host, CEILING_MS, &c));
    c.read_bytes_s = fmax(c.read_bytes_s, b->ceil.read_bytes_s);
    c.int8_op_s = fmax(c.int8_op_s, b->ceil.int8_op_s);
    c.f32_flop_s = fmax(c.f32_flop_s, b->ceil.f32_flop_s);
    b->ceil = c;
    return IMP_OK;
}

static imp_status run_text(bench *b)
{
    const app_value *pp = &b->a->opt.v[OPT_PP], *tg = &b->a->opt.v[OPT_TG], *ba = &b->a->opt.v[OPT_BATCHES],
                    *de = &b->a->opt.v[OPT_DEPTHS];
    uint64_t repeat = b->a->opt.v[OPT_REPEAT].u;
    b->pp = imp_arena_array(b->a->arena, pp->n, sizeof *b->pp);
    b->tg = imp_arena_array(b->a->arena, tg->n * ba->n * de->n, sizeof *b->tg);
    if (!b->pp || !b->tg) return imp_fail(&b->a->err, IMP_NOMEM, "out of memory");
    app_bar_begin("bench", repeat * (pp->n + tg->n * ba->n * de->n), "runs");
    for (size_t i = 0; i < pp->n; i++) IMP_TRY(bench_pp(b, pp->uints[i], repeat, &b->pp[b->n_pp++]));
    for (size_t i = 0; i < tg->n; i++)
        for (size_t j = 0; j < de->n; j++, b->n_tg += ba->n)
            IMP_TRY(bench_tg(b, tg->uints[i], de->uints[j], ba, repeat, &b->tg[b->n_tg]));
    return IMP_OK;
}

static imp_status run_embed(bench *b)
{
    const app_value *tok = &b->a->opt.v[OPT_TOKENS], *ba = &b->a->opt.v[OPT_BATCHES];
    uint64_t repeat = b->a->opt.v[OPT_REPEAT].u;
    b->em = imp_arena_array(b->a->arena, tok->n * ba->n, sizeof *b->em);
    if (!b->em) return imp_fail(&b->a->err, IMP_NOMEM, "out of memory");
    app_bar_begin("bench", repeat * tok->n * ba->n, "runs");
    for (size_t i = 0; i < tok->n; i++)
        for (size_t k = 0; k < ba->n; k++)
            IMP_TRY(bench_embed(b, tok->uints[i], ba->uints[k], repeat, &b->em[b->n_em++]));
    return IMP_OK;
}

/* Shares of the ceilings; NAN where nothing was measured that they speak of. */
static double share_decode(const bench *b)
{
    for (size_t i = 0; i < b->n_tg; i++)
        if (b->tg[i].batch == 1) return b->tg[i].mid * (double)b->traffic.weight_bytes / b->ceil.read_bytes_s;
    return NAN;
}

static double share_beside(const bench *b)
{
    for (size_t i = 0; i < b->n_tg; i++)
        if (b->tg[i].batch == 1) return b->tg[i].share;
    return NAN;
}

static double share_prefill(const bench *b)
{
    double best = 0;
    for (size_t i = 0; i < b->n_pp; i++) best = fmax(best, b->pp[i].mid);
    for (size_t i = 0; i < b->n_em; i++) best = fmax(best, b->em[i].mid * (double)b->em[i].tokens);
    return best > 0 ? best * b->traffic.tok_flop / b->ceil.int8_op_s : NAN;
}

/* ---- output ------------------------------------------------------------------------------------------- */

static json_t *rates(const result *r, const char *unit)
{
    json_t *o = json_object();
    json_object_set_new(o, unit, app_json_round(r->mid, 6));
    json_object_set_new(o, "min", app_json_round(r->lo, 6));
    json_object_set_new(o, "max", app_json_round(r->hi, 6));
    return o;
}

static void set_known(json_t *o, const char *name, double v)
{
    if (!isnan(v)) json_object_set_new(o, name, app_json_round(v, 4));
}

static json_t *with_counts(const result *r, bool depth, bool batch, const char *unit)
{
    json_t *o = json_object(), *v = rates(r, unit);
    json_object_set_new(o, "tokens", json_integer((json_int_t)r->tokens));
    if (depth) json_object_set_new(o, "depth", json_integer((json_int_t)r->depth));
    if (batch) json_object_set_new(o, "batch", json_integer((json_int_t)r->batch));
    json_object_update(o, v);
    json_decref(v);
    set_known(o, depth ? "share_of_read" : "share_of_int8", r->share);
    set_known(o, "over_one", r->over_one);
    return o;
}

static json_t *bench_json(const bench *b, bool embed)
{
    const imp_net_config *c = &b->net->cfg;
    json_t *doc = json_pack("{s:s, s:s, s:s, s:I, s:s, s:i}", "model", b->a->arg[0], "arch", c->arch, "type",
                            c->type, "bytes", (json_int_t)c->file_bytes, "device", b->dev->name, "threads",
                            (int)app_n_thread(b->a));
    json_t *pp = json_array(), *tg = json_array(), *em = json_array();
    for (size_t i = 0; i < b->n_pp; i++)
        json_array_append_new(pp, with_counts(&b->pp[i], false, false, "tok_s"));
    for (size_t i = 0; i < b->n_tg; i++)
        json_array_append_new(tg, with_counts(&b->tg[i], true, true, "tok_s"));
    for (size_t i = 0; i < b->n_em; i++)
        json_array_append_new(em, with_counts(&b->em[i], false, true, "text_s"));
    if (embed)
        json_object_set_new(doc, "embed", em), json_decref(pp), json_decref(tg);
    else
        json_object_set_new(doc, "pp", pp), json_object_set_new(doc, "tg", tg), json_decref(em);
    json_object_set_new(doc, "ceilings",
                        json_pack("{s:o, s:o, s:o}", "read_gb_s",
                                  app_json_round(b->ceil.read_bytes_s * 1e-9, 5), "int8_gop_s",
                                  app_json_round(b->ceil.int8_op_s * 1e-9, 5), "f32_gflop_s",
                                  app_json_round(b->ceil.f32_flop_s * 1e-9, 5)));
    json_object_set_new(doc, "share",
                        json_pack("{s:o, s:o, s:o}", "decode_of_read", app_json_round(share_decode(b), 4),
                                  "decode_of_read_beside", app_json_round(share_beside(b), 4),
                                  "prefill_of_int8", app_json_round(share_prefill(b), 4)));
    return doc;
}

static void print_row(const char *what, const result *r, bool tg, bool embed, const char *unit)
{
    char shape[64];
    if (embed)
        snprintf(shape, sizeof shape, "%llu x %llu tokens", (unsigned long long)r->batch,
                 (unsigned long long)r->tokens);
    else if (tg)
        snprintf(shape, sizeof shape, "%llu tokens, depth %llu, batch %llu", (unsigned long long)r->tokens,
                 (unsigned long long)r->depth, (unsigned long long)r->batch);
    else
        snprintf(shape, sizeof shape, "%llu tokens", (unsigned long long)r->tokens);
    printf("  %-8s %-36s %10.2f %s  (%.2f .. %.2f)", what, shape, r->mid, unit, r->lo, r->hi);
    if (!isnan(r->share)) printf("  %.1f %% of %s", 100 * r->share, tg ? "read" : "int8");
    if (!isnan(r->over_one)) printf(", %.2f times one's step", r->over_one);
    printf("\n");
}

static void bench_human(const bench *b)
{
    const imp_net_config *c = &b->net->cfg;
    char bytes[32];
    printf("%s  %s %s, %s, on %s with %u threads\n", b->a->arg[0], c->arch, c->type,
           app_size_text(c->file_bytes, bytes), b->dev->name, app_n_thread(b->a));
    for (size_t i = 0; i < b->n_pp; i++) print_row("prefill", &b->pp[i], false, false, "tok/s");
    for (size_t i = 0; i < b->n_tg; i++) print_row("decode", &b->tg[i], true, false, "tok/s");
    for (size_t i = 0; i < b->n_em; i++) print_row("embed", &b->em[i], false, true, "texts/s");
    if (isnan(b->ceil.read_bytes_s)) {
        printf("  no ceilings of %s are measured here (a GPU's: bench/gpu.sh)\n", b->dev->name);
        return;
    }
    printf("  ceilings measured now: read %.1f GB/s, int8 %.0f GOP/s, f32 %.0f GFLOP/s\n",
           b->ceil.read_bytes_s * 1e-9, b->ceil.int8_op_s * 1e-9, b->ceil.f32_flop_s * 1e-9);
    printf("  shares are of the ceiling measured in turns with what they stand beside; read: weights and "
           "cache\n");
}

app_result cmd_bench(app *a)
{
    bool embed = opt_on(&a->opt, OPT_EMBED);
    bench b = {.a = a, .seed = 1};
    imp_status s = IMP_OK;
    if (embed && !a->opt.v[OPT_BATCHES].explicit_) {
        a->opt.v[OPT_BATCHES] = (app_value){0};
        s = app_opt_assign(&a->opt, OPT_BATCHES, "--batch", "1,32", &a->err);
    }
    if (s == IMP_OK) s = open_all(&b, embed);
    if (s == IMP_OK) s = measure_ceilings(&b);
    if (s == IMP_OK) s = embed ? run_embed(&b) : run_text(&b);
    app_bar_end();
    if (s == IMP_OK) s = measure_ceilings(&b);
    app_result r = APP_FAILED;
    if (s == IMP_OK && opt_on(&a->opt, OPT_JSON))
        r = app_print_json(a, bench_json(&b, embed));
    else if (s == IMP_OK)
        bench_human(&b), r = APP_OK;
    imp_gauge_free(b.gauge);
    if (b.exec) b.dev->ops->exec_free(b.exec);
    if (b.dev) b.dev->ops->close(b.dev);
    if (b.net) imp_net_close(b.net);
    return r;
}

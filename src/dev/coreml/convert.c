/* dev/coreml/convert.c - a graph to packages: chunks, lengths, versions, and the host's part.
 *
 * Idea:    a decoder is cut where one value alone goes on (the residual stream), as late as the limit of weights allows.
 *          Every chunk is a package; every length a function of it over the same weights. */
#include "dev/coreml/convert.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dev/coreml/compile.h"

#define CHUNK_BYTES 950000000ull

bool imp_ml_on_host(const imp_graph *g, imp_val v)
{
    const imp_node *n = imp_graph_node(g, v);
    if (n->op == IMP_OP_EMBED) return true;
    if (n->op != IMP_OP_ADD && n->op != IMP_OP_SCALE && n->op != IMP_OP_MUL) return false;
    for (uint32_t i = 0; i < n->n_in; i++)
        if (!imp_ml_on_host(g, n->in[i])) return false;
    return true;
}

/* Whether anything that is no host's node, or another host's node, reads the value: the last host value is the input. */
static imp_val host_value(const imp_graph *g)
{
    imp_val last = 0;
    for (imp_val v = 1; v <= imp_graph_n(g); v++)
        if (imp_ml_on_host(g, v)) last = v;
    return last;
}

/* ---- the host's part -------------------------------------------------------------------------------------------- */

enum { DEPTH = 8 }; /* operands that may wait for each other */

typedef struct lookup {
    const imp_graph *g;
    int32_t token, pos, type;
    float *scratch; /* [depth][width] */
    uint64_t width;
    imp_error *err;
} lookup;

/* Row of host node v into out; deeper operands use the scratch rows from `depth` on. */
static imp_status host_row(lookup *l, imp_val v, float *out, uint32_t depth)
{
    const imp_node *n = imp_graph_node(l->g, v);
    if (n->op == IMP_OP_EMBED) {
        const imp_tensor *t = &imp_graph_node(l->g, n->in[0])->u.weight.part[0];
        int64_t row = n->u.embed.by == IMP_BY_TOKEN      ? l->token
                      : n->u.embed.by == IMP_BY_POSITION ? (int64_t)l->pos + n->u.embed.offset
                                                         : l->type;
        if (row < 0 || (uint64_t)row >= t->dim[0])
            return imp_fail(l->err, IMP_INVALID, "row %lld is outside the table %s", (long long)row,
                            imp_graph_node(l->g, n->in[0])->name);
        imp_tensor_row_f32(t, (uint64_t)row, out);
        return IMP_OK;
    }
    IMP_TRY(host_row(l, n->in[0], out, depth));
    if (n->op == IMP_OP_SCALE) {
        for (uint64_t i = 0; i < l->width; i++) out[i] *= n->u.scale.c;
        return IMP_OK;
    }
    float *other = l->scratch + depth * l->width;
    IMP_TRY(host_row(l, n->in[1], other, depth + 1));
    for (uint64_t i = 0; i < l->width; i++)
        out[i] = n->op == IMP_OP_ADD ? out[i] + other[i] : out[i] * other[i];
    return IMP_OK;
}

imp_status imp_ml_host_token(const imp_graph *g, int32_t token, uint32_t pos, float *hidden, imp_error *err)
{
    imp_val v = host_value(g);
    if (v == 0) return imp_fail(err, IMP_INVALID, "the graph looks no token up");
    lookup l = {
        .g = g, .width = imp_graph_node(g, v)->width, .token = token, .pos = (int32_t)pos, .err = err};
    if ((l.scratch = imp_sys_malloc((size_t)(l.width * DEPTH) * sizeof(float))) == NULL)
        return imp_fail(err, IMP_NOMEM, "out of memory for the tokens' embeddings");
    imp_status s = host_row(&l, v, hidden, 0);
    imp_sys_free(l.scratch);
    return s;
}

imp_status imp_ml_host_hidden(const imp_graph *g, const int32_t *token, const int32_t *type, uint32_t n,
                              uint32_t s, float *hidden, imp_error *err)
{
    imp_val v = host_value(g);
    if (v == 0 || n > s) return imp_fail(err, IMP_INVALID, "%u tokens do not fit into %u", n, s);
    lookup l = {.g = g, .width = imp_graph_node(g, v)->width, .err = err};
    l.scratch = imp_sys_malloc((size_t)(l.width * (DEPTH + 1)) * sizeof(float));
    if (l.scratch == NULL) return imp_fail(err, IMP_NOMEM, "out of memory for the tokens' embeddings");
    float *row = l.scratch + DEPTH * l.width;
    memset(hidden, 0, (size_t)(l.width * s) * sizeof *hidden);
    imp_status st = IMP_OK;
    for (uint32_t t = 0; t < n && st == IMP_OK; t++) {
        l.token = token[t], l.pos = (int32_t)t, l.type = type != NULL ? type[t] : 0;
        st = host_row(&l, v, row, 0);
        for (uint64_t c = 0; c < l.width && st == IMP_OK; c++) hidden[c * s + t] = row[c];
    }
    imp_sys_free(l.scratch);
    return st;
}

void imp_ml_host_mask(uint32_t n, uint32_t s, float *mask)
{
    for (uint32_t t = 0; t < s; t++) mask[t] = t < n ? 0 : -10000;
}

void imp_ml_host_pool(imp_pool_kind kind, uint32_t n, uint32_t s, float *pool)
{
    for (uint32_t t = 0; t < s; t++)
        pool[t] = kind == IMP_POOL_MEAN  ? (t < n ? 1 / (float)n : 0)
                  : kind == IMP_POOL_CLS ? (t == 0)
                                         : (t + 1 == n);
}

void imp_ml_host_causal(uint32_t pos, uint32_t window, uint32_t n, float *mask)
{
    for (uint32_t j = 0; j < n; j++) mask[j] = j <= pos && (window == 0 || pos - j < window) ? 0 : -10000;
}

static bool same_rope(const imp_rope_attr *a, const imp_rope_attr *b)
{
    return a->n_rot == b->n_rot && a->interleaved == b->interleaved && a->mscale == b->mscale &&
           memcmp(a->inv_freq, b->inv_freq, a->n_rot / 2 * sizeof *a->inv_freq) == 0;
}

const imp_rope_attr *imp_ml_rope_at(const imp_graph *g, uint32_t i)
{
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op != IMP_OP_ROPE) continue;
        bool first = true;
        for (imp_val u = 1; u < v && first; u++)
            first = imp_graph_node(g, u)->op != IMP_OP_ROPE ||
                    !same_rope(&imp_graph_node(g, u)->u.rope, &n->u.rope);
        if (first && i-- == 0) return &n->u.rope;
    }
    return NULL;
}

uint32_t imp_ml_rope_index(const imp_graph *g, const imp_rope_attr *a)
{
    uint32_t i = 0;
    for (const imp_rope_attr *b; (b = imp_ml_rope_at(g, i)) != NULL && !same_rope(a, b);) i++;
    return i;
}

void imp_ml_host_rope(const imp_rope_attr *a, uint32_t pos, float *cosine, float *sine)
{
    for (uint32_t i = 0; i < a->n_rot / 2; i++) {
        double angle = (double)((float)pos * a->inv_freq[i]);
        cosine[i] = (float)(cos(angle) * (double)a->mscale);
        sine[i] = (float)(sin(angle) * (double)a->mscale);
    }
}

/* ---- versions --------------------------------------------------------------------------------------------------------- */

static imp_status choose_spec(const imp_graph *g, const imp_ml_options *o, int32_t *spec, imp_error *err)
{
    int32_t least = IMP_MAX(imp_ml_packing_spec(&o->pack), o->n_bucket > 1 || o->decode > 0 ? 9 : 7);
    for (imp_val v = 1; o->form != NULL && v <= imp_graph_n(g); v++)
        if (imp_graph_node(g, v)->op == IMP_OP_LINEAR)
            least = IMP_MAX(least, imp_ml_packing_spec(&o->form[v]));
    *spec = o->spec != 0 ? o->spec : least;
    if (*spec < least || *spec > IMP_MIL_SPEC_MAX)
        return imp_fail(err, IMP_INVALID, "specification version %d cannot hold this package; %d to %d can%s",
                        *spec, least, IMP_MIL_SPEC_MAX,
                        o->n_bucket > 1 ? " (one length alone needs less)" : "");
    return IMP_OK;
}

static imp_status check_options(const imp_ml_options *o, imp_error *err)
{
    if (o->n_bucket == 0 || o->n_bucket > IMP_ML_MAX_BUCKET)
        return imp_fail(err, IMP_INVALID, "1 to %d lengths can be compiled", IMP_ML_MAX_BUCKET);
    for (uint32_t i = 0; i < o->n_bucket; i++)
        if (o->bucket[i] == 0 || o->bucket[i] > 32768 || (i > 0 && o->bucket[i] <= o->bucket[i - 1]))
            return imp_fail(err, IMP_INVALID, "lengths must ascend and lie in 1..32768");
    if (o->pack.int8_inputs && o->tuned == NULL)
        return imp_fail(err, IMP_INVALID, "int8 activations need scales from a calibration text");
    if (o->decode > 32768) return imp_fail(err, IMP_INVALID, "a decode function holds at most 32768 tokens");
    return IMP_OK;
}

/* ---- chunks ------------------------------------------------------------------------------------------------------------- */

/* Bytes that a matrix takes packed, roughly. */
static uint64_t packed_bytes(const imp_ml_packing *p, const imp_tensor *t)
{
    uint64_t n = imp_tensor_n_elem(t);
    return p->kind == IMP_ML_HALF   ? 2 * n
           : p->kind == IMP_ML_INT8 ? n
           : p->kind == IMP_ML_INT4 ? n / 2
                                    : n * p->bits / 8;
}

/* What is cut: the nodes that are needed, the last reader of each, and bytes of weights read by node. */
typedef struct cutting {
    const imp_graph *g;
    bool *need;
    imp_val *last;
    uint64_t *bytes;
} cutting;

static void survey(cutting *c, const imp_ml_options *o)
{
    uint32_t n = imp_graph_n(c->g);
    for (imp_val v = 1; v <= n; v++) {
        const imp_node *x = imp_graph_node(c->g, v);
        if (!c->need[v] || imp_ml_on_host(c->g, v)) continue;
        for (uint32_t i = 0; i < x->n_in; i++) {
            if (x->in[i] == 0) continue;
            const imp_node *w = imp_graph_node(c->g, x->in[i]);
            if (w->op == IMP_OP_WEIGHT)
                c->bytes[v] += packed_bytes(o->form != NULL ? &o->form[v] : &o->pack, &w->u.weight.part[0]);
            else
                c->last[x->in[i]] = v;
        }
    }
}

/* Whether v is the only value that nodes behind it read. */
static bool goes_on_alone(const cutting *c, imp_val v)
{
    if (!c->need[v] || c->last[v] <= v || imp_ml_on_host(c->g, v)) return false;
    for (imp_val u = 1; u < v; u++)
        if (c->need[u] && c->last[u] > v) return false;
    return true;
}

static uint32_t kv_before(const imp_graph *g, imp_val v)
{
    uint32_t n = 0;
    for (imp_val u = 1; u <= v; u++)
        n += imp_graph_node(g, u)->op == IMP_OP_ATTN && imp_graph_node(g, u)->u.attn.kv_layer >= 0;
    return n;
}

static imp_status cut_parts(const imp_graph *g, cutting *c, const imp_ml_options *o, ml_part *part,
                            uint32_t *n_part, imp_error *err)
{
    uint64_t limit = o->max_chunk > 0 ? o->max_chunk : CHUNK_BYTES, held = 0, since = 0;
    imp_val at = 0, best = 0; /* the last cut; the latest place to cut again */
    uint32_t n_kv = imp_graph_n_kv_layer(g), kv = 0;
    *n_part = 0;
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        if (held + c->bytes[v] > limit && best != 0) {
            if (*n_part + 1 == IMP_ML_MAX_CHUNK)
                return imp_fail(err, IMP_TOO_LARGE, "the model needs too many chunks");
            uint32_t upto = kv_before(g, best);
            part[(*n_part)++] = (ml_part){.from = at, .to = best, .first_kv = kv, .n_kv = upto - kv};
            at = best, kv = upto;
            held = since, since = 0, best = 0;
        }
        held += c->bytes[v], since += c->bytes[v];
        if (held > limit && best == 0 && c->bytes[v] > limit)
            return imp_fail(err, IMP_TOO_LARGE, "%s alone is larger than a chunk may be",
                            imp_graph_node(g, v)->name);
        if (goes_on_alone(c, v) && held > 0) best = v, since = 0;
    }
    part[(*n_part)++] = (ml_part){
        .from = at, .first_kv = kv, .n_kv = n_kv - kv, .pools = n_kv == 0, .head = n_kv > 0 && o->decode > 0};
    for (uint32_t i = 0; i + 1 < *n_part; i++)
        part[i].goes_on = part[i].first_kv + part[i].n_kv < n_kv || n_kv == 0;
    return IMP_OK;
}

static imp_status plan_parts(const imp_graph *g, const imp_ml_options *o, ml_part *part, uint32_t *n_part,
                             imp_error *err)
{
    uint32_t n = imp_graph_n(g) + 1, n_kv = imp_graph_n_kv_layer(g);
    bool decode = n_kv > 0 && o->decode > 0;
    ml_part whole = {.n_kv = n_kv, .pools = n_kv == 0, .head = decode};
    if (decode && ml_head_linear(g) == 0)
        return imp_fail(err, IMP_UNSUPPORTED, "the graph does not end in logits");
    if (o->decode > 0 && n_kv == 0)
        return imp_fail(err, IMP_UNSUPPORTED, "a model that keeps no keys and values has no decode function");
    if (n_kv == 0 && imp_graph_node(g, imp_graph_output(g))->op != IMP_OP_POOL)
        return imp_fail(err, IMP_UNSUPPORTED, "the graph neither pools nor keeps keys and values");
    cutting c = {.g = g};
    c.need = imp_sys_calloc(n, sizeof *c.need);
    c.last = imp_sys_calloc(n, sizeof *c.last);
    c.bytes = imp_sys_calloc(n, sizeof *c.bytes);
    imp_status s = IMP_OK;
    if (c.need == NULL || c.last == NULL || c.bytes == NULL) {
        s = imp_fail(err, IMP_NOMEM, "out of memory while planning chunks");
    } else {
        ml_needed(g, &whole, decode, c.need);
        if (decode) c.need[ml_head_linear(g)] = true;
        for (imp_val v = 1; v < n && s == IMP_OK; v++) {
            const char *why = c.need[v] && !imp_ml_on_host(g, v) ? ml_refuses(g, v, decode) : NULL;
            if (why != NULL) s = imp_fail(err, IMP_UNSUPPORTED, "%s: %s", imp_graph_node(g, v)->name, why);
        }
        survey(&c, o);
        if (s == IMP_OK) s = cut_parts(g, &c, o, part, n_part, err);
    }
    imp_sys_free(c.need);
    imp_sys_free(c.last);
    imp_sys_free(c.bytes);
    return s;
}

/* ---- packages ------------------------------------------------------------------------------------------------------------ */

static void chunk_path(const char *path, uint32_t i, uint32_t n, char out[512])
{
    size_t stem = strlen(path);
    static const char suffix[] = ".mlpackage";
    if (stem > sizeof suffix - 1 && strcmp(path + stem - (sizeof suffix - 1), suffix) == 0)
        stem -= sizeof suffix - 1;
    if (n == 1)
        snprintf(out, 512, "%.*s%s", (int)stem, path, suffix);
    else
        snprintf(out, 512, "%.*s_%uof%u%s", (int)stem, path, i + 1, n, suffix);
}

static imp_status describe(ml_shared *sh, imp_mlpackage *p, uint32_t i, uint32_t n)
{
    static const char *const keys[] = {"impetus.source", "impetus.weights", "impetus.chunk",
                                       "impetus.residency"};
    char text[4][256];
    const char *(*meta)[2] = imp_arena_array(sh->arena, 4, sizeof *meta);
    if (meta == NULL) return IMP_NOMEM;
    snprintf(text[0], 256, "%.200s", sh->opt->source != NULL ? sh->opt->source : "");
    imp_ml_packing_text(&sh->opt->pack, text[1]);
    snprintf(text[2], 256, "%u of %u", i + 1, n);
    snprintf(text[3], 256, "laid out for the ANE; not measured");
    for (int k = 0; k < 4; k++) {
        meta[k][0] = keys[k];
        meta[k][1] = imp_arena_strndup(sh->arena, text[k], strlen(text[k]));
        if (meta[k][1] == NULL) return IMP_NOMEM;
    }
    p->meta = meta;
    p->n_meta = 4;
    p->author = "impetus " IMPETUS_VERSION;
    p->brief = "Made by impetus convert";
    return IMP_OK;
}

/* Whether prefill has anything to do in a part. */
static bool prefills(const ml_part *part)
{
    return part->pools || part->n_kv > 0 || part->goes_on;
}

static uint32_t n_function(const imp_ml_options *o, const ml_part *part)
{
    return (prefills(part) ? o->n_bucket : 0) + (o->decode > 0);
}

static imp_status write_package(ml_shared *sh, const ml_part *part, imp_mlpackage *p, imp_error *err)
{
    const imp_ml_options *o = sh->opt;
    bool one = p->n_func == 1 && o->decode == 0; /* a lone decode function keeps its name */
    uint32_t n = 0;
    for (uint32_t k = 0; prefills(part) && k < o->n_bucket; k++) {
        char name[32];
        snprintf(name, sizeof name, part->pools ? "embed_%u" : "prefill_%u", o->bucket[k]);
        IMP_TRY(ml_compile(sh, part, false, o->bucket[k], one ? "main" : name, &p->func[n++], err));
    }
    if (o->decode > 0) {
        char name[32];
        snprintf(name, sizeof name, "decode_%u", o->decode);
        IMP_TRY(ml_compile(sh, part, true, o->decode, name, &p->func[n++], err));
    }
    if (!one) p->default_func = p->func[0].name;
    return IMP_OK;
}

static size_t head_parts(const imp_graph *g)
{
    imp_val v = ml_head_linear(g);
    return v != 0 ? (size_t)ml_head_parts(imp_graph_node(g, v)->width) : 1;
}

static imp_status make_package(ml_shared *sh, const ml_part *part, uint32_t i, uint32_t n, const char *path,
                               imp_error *err)
{
    imp_mlpackage p = {.spec = sh->spec, .n_func = n_function(sh->opt, part)};
    sh->arena = imp_arena_new(1 << 20);
    sh->w = NULL;
    sh->blob = NULL;
    sh->n_blob = sh->cap_blob = 0;
    imp_status s =
        sh->arena != NULL ? imp_mlwriter_open(path, &sh->w, err) : imp_fail(err, IMP_NOMEM, "out of memory");
    if (s == IMP_OK) {
        sh->packed = imp_arena_array(sh->arena, imp_graph_n(sh->g) + 1, sizeof *sh->packed);
        p.func = imp_arena_array(sh->arena, p.n_func, sizeof *p.func);
        sh->head = imp_arena_array(sh->arena, head_parts(sh->g), sizeof *sh->head);
        s = sh->packed != NULL && sh->head != NULL && p.func != NULL ? describe(sh, &p, i, n) : IMP_NOMEM;
        if (s != IMP_OK) s = imp_fail(err, IMP_NOMEM, "out of memory while converting");
    }
    if (s == IMP_OK) s = write_package(sh, part, &p, err);
    if (s == IMP_OK)
        s = imp_mlwriter_finish(sh->w, &p, err);
    else
        imp_mlwriter_abandon(sh->w);
    imp_arena_free(sh->arena);
    if (s != IMP_OK) return s;
    imp_mlpackage *back; /* what was written holds to every rule */
    s = imp_mlpackage_open(path, &back, err);
    if (s == IMP_OK) imp_mlpackage_close(back);
    return s;
}

imp_status imp_ml_convert(const imp_graph *g, const char *path, const imp_ml_options *opt, imp_ml_report *r,
                          imp_error *err)
{
    ml_part part[IMP_ML_MAX_CHUNK];
    uint32_t n_matrix = 0;
    ml_shared sh = {.g = g, .opt = opt, .report = r};
    *r = (imp_ml_report){.arena = imp_arena_new(1 << 14)};
    if (r->arena == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while converting");
    IMP_TRY(check_options(opt, err));
    if (strlen(path) > 480) return imp_fail(err, IMP_INVALID, "the package's path is too long");
    IMP_TRY(choose_spec(g, opt, &sh.spec, err));
    IMP_TRY(plan_parts(g, opt, part, &r->n_chunk, err));
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op != IMP_OP_LINEAR) continue;
        n_matrix += (uint32_t)ml_head_parts(n->width) + 1;
        sh.total += imp_tensor_bytes(&imp_graph_node(g, n->in[1])->u.weight.part[0]);
    }
    r->spec = sh.spec;
    r->weight = imp_arena_array(r->arena, n_matrix + 1, sizeof *r->weight);
    if (r->weight == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while converting");
    for (uint32_t i = 0; i < r->n_chunk; i++) {
        chunk_path(path, i, r->n_chunk, r->path[i]);
        IMP_TRY(make_package(&sh, &part[i], i, r->n_chunk, r->path[i], err));
    }
    return IMP_OK;
}

void imp_ml_report_deinit(imp_ml_report *r)
{
    imp_arena_free(r->arena);
    *r = (imp_ml_report){0};
}

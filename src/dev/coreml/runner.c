/* dev/coreml/runner.c - a converted model run by the evaluator. */
#include "dev/coreml/runner.h"

#include <stdio.h>

typedef struct chunk {
    imp_mlpackage *p;
    imp_ml_eval **eval; /* [n_func], made when first used */
    uint32_t ran;       /* the function of the last run */
} chunk;

struct imp_ml_runner {
    const imp_graph *g;
    imp_ml_mode mode;
    imp_pool *pool;
    uint32_t n_chunk;
    chunk *chunk;
    uint32_t s;    /* length of the last run, 0: none */
    float *logits; /* [n_vocab], owned; made by the first decode */
};

/* One that keeps keys and values itself. */
static bool is_decode(const imp_mil_func *f)
{
    for (uint32_t i = 0; i < f->n_in; i++)
        if (strcmp(f->in[i].name, "slot") == 0 || f->in[i].type.state) return true;
    return strncmp(f->name, "decode_", 7) == 0;
}

/* The length a function was made for: the last dimension of "hidden"; 0: it is no prefill. */
static uint32_t length_of(const imp_mil_func *f)
{
    if (is_decode(f)) return 0;
    for (uint32_t i = 0; i < f->n_in; i++)
        if (strcmp(f->in[i].name, "hidden") == 0 && f->in[i].type.rank == 4)
            return (uint32_t)f->in[i].type.dim[3];
    return 0;
}

imp_status imp_ml_runner_new(const imp_graph *g, const char *const *path, uint32_t n_path, imp_ml_mode mode,
                             imp_pool *pool, imp_ml_runner **out, imp_error *err)
{
    *out = NULL;
    imp_ml_runner *r = imp_sys_calloc(1, sizeof *r);
    if (r == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while opening packages");
    *r = (imp_ml_runner){.g = g, .mode = mode, .pool = pool};
    r->chunk = imp_sys_calloc(n_path, sizeof *r->chunk);
    imp_status s =
        r->chunk != NULL ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory while opening packages");
    for (uint32_t i = 0; i < n_path && s == IMP_OK; i++) {
        chunk *c = &r->chunk[i];
        s = imp_mlpackage_open(path[i], &c->p, err);
        if (s != IMP_OK) break;
        r->n_chunk++;
        c->eval = imp_sys_calloc(c->p->n_func, sizeof *c->eval);
        if (c->eval == NULL) s = imp_fail(err, IMP_NOMEM, "out of memory while opening packages");
    }
    if (s != IMP_OK) {
        imp_ml_runner_free(r);
        return s;
    }
    *out = r;
    return IMP_OK;
}

void imp_ml_runner_free(imp_ml_runner *r)
{
    if (r == NULL) return;
    for (uint32_t i = 0; i < r->n_chunk; i++) {
        for (uint32_t k = 0; r->chunk[i].eval != NULL && k < r->chunk[i].p->n_func; k++)
            imp_ml_eval_free(r->chunk[i].eval[k]);
        imp_sys_free(r->chunk[i].eval);
        imp_mlpackage_close(r->chunk[i].p);
    }
    imp_sys_free(r->chunk);
    imp_sys_free(r->logits);
    imp_sys_free(r);
}

static imp_status choose(imp_ml_runner *r, chunk *c, uint32_t n, imp_error *err)
{
    uint32_t best = 0, longest = 0;
    for (uint32_t i = 0; i < c->p->n_func; i++) {
        uint32_t s = length_of(&c->p->func[i]);
        longest = IMP_MAX(longest, s);
        if (s >= n && (best == 0 || s < best)) best = s, c->ran = i;
    }
    if (best == 0)
        return imp_fail(err, IMP_TOO_LARGE, "%u tokens are more than the longest length, %u", n, longest);
    r->s = best;
    if (c->eval[c->ran] != NULL) return IMP_OK;
    return imp_ml_eval_new(&c->p->func[c->ran], r->mode, r->pool, &c->eval[c->ran], err);
}

static bool has_prefill(const chunk *c)
{
    for (uint32_t i = 0; i < c->p->n_func; i++)
        if (length_of(&c->p->func[i]) > 0) return true;
    return false;
}

static imp_pool_kind pool_kind(const imp_graph *g)
{
    const imp_node *n = imp_graph_node(g, imp_graph_output(g));
    return n->op == IMP_OP_POOL ? n->u.pool.kind : IMP_POOL_MEAN;
}

/* Run one chunk; hidden is its first input. */
static imp_status run_chunk(chunk *c, const float *hidden, const float *mask, const float *pool,
                            imp_error *err)
{
    const imp_mil_func *f = &c->p->func[c->ran];
    const float *in[4] = {0};
    if (f->n_in > IMP_COUNT(in))
        return imp_fail(err, IMP_UNSUPPORTED, "function %s has too many inputs", f->name);
    for (uint32_t i = 0; i < f->n_in; i++) {
        const char *n = f->in[i].name;
        in[i] = strcmp(n, "hidden") == 0 ? hidden
                : strcmp(n, "mask") == 0 ? mask
                : strcmp(n, "pool") == 0 ? pool
                                         : NULL;
        if (in[i] == NULL)
            return imp_fail(err, IMP_UNSUPPORTED, "input %s is not one the converter makes", n);
    }
    return imp_ml_eval_run(c->eval[c->ran], in, err);
}

static const float *result(const chunk *c, const char *name, uint64_t *n)
{
    const imp_mil_func *f = &c->p->func[c->ran];
    for (uint32_t i = 0; i < f->n_out; i++)
        if (strcmp(f->out[i].name, name) == 0) {
            *n = imp_mil_n_elem(&f->var[f->out[i].var].type);
            return imp_ml_eval_out(c->eval[c->ran], i);
        }
    return NULL;
}

imp_status imp_ml_runner_run(imp_ml_runner *r, const int32_t *token, const int32_t *type, uint32_t n,
                             imp_error *err)
{
    uint32_t n_run = 0; /* the last chunk may hold the head alone */
    while (n_run < r->n_chunk && has_prefill(&r->chunk[n_run])) n_run++;
    if (n_run == 0) return imp_fail(err, IMP_UNSUPPORTED, "the package has no function for whole texts");
    for (uint32_t i = 0; i < n_run; i++) IMP_TRY(choose(r, &r->chunk[i], n, err));
    const imp_mil_func *f = &r->chunk[0].p->func[r->chunk[0].ran];
    uint64_t width = 0, n_hidden;
    for (uint32_t i = 0; i < f->n_in; i++)
        if (strcmp(f->in[i].name, "hidden") == 0) width = f->in[i].type.dim[1];
    float *buf = imp_sys_malloc((size_t)((width + 2) * r->s) * sizeof *buf);
    if (buf == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while running packages");
    float *mask = buf + width * r->s, *pool = mask + r->s;
    imp_ml_host_mask(n, r->s, mask);
    imp_ml_host_pool(pool_kind(r->g), n, r->s, pool);
    imp_status s = imp_ml_host_hidden(r->g, token, type, n, r->s, buf, err);
    const float *hidden = buf;
    for (uint32_t i = 0; i < n_run && s == IMP_OK; i++) {
        s = run_chunk(&r->chunk[i], hidden, mask, pool, err);
        if (s == IMP_OK && i + 1 < n_run && (hidden = result(&r->chunk[i], "hidden_out", &n_hidden)) == NULL)
            s = imp_fail(err, IMP_FORMAT, "chunk %u gives nothing to the next one", i + 1);
    }
    imp_sys_free(buf);
    return s;
}

/* ---- decode ----------------------------------------------------------------------------------------------------- */

/* The chunk's decode function becomes the one that ran. */
static imp_status choose_decode(imp_ml_runner *r, chunk *c, imp_error *err)
{
    for (uint32_t i = 0; i < c->p->n_func; i++) {
        if (!is_decode(&c->p->func[i])) continue;
        c->ran = i;
        return c->eval[i] != NULL ? IMP_OK
                                  : imp_ml_eval_new(&c->p->func[i], r->mode, r->pool, &c->eval[i], err);
    }
    return imp_fail(err, IMP_UNSUPPORTED, "the package was converted without a decode function");
}

imp_status imp_ml_runner_fill(imp_ml_runner *r, uint32_t n, imp_error *err)
{
    for (uint32_t i = 0; i < r->n_chunk; i++) {
        chunk *c = &r->chunk[i];
        uint32_t prefill = c->ran;
        IMP_TRY(choose_decode(r, c, err));
        const imp_mil_func *f = &c->p->func[c->ran];
        for (uint32_t k = 0; k < f->n_in; k++) {
            const imp_mil_type *t = &f->in[k].type;
            char name[40], kind;
            unsigned layer;
            if (!t->state || sscanf(f->in[k].name, "%c_cache_%u", &kind, &layer) != 2) continue;
            snprintf(name, sizeof name, "%c_%u", kind, layer);
            chunk from = {.p = c->p, .eval = c->eval, .ran = prefill};
            uint64_t n_elem, width = t->dim[1] * t->dim[2], n_key = t->dim[3];
            const float *x = result(&from, name, &n_elem);
            float *state = imp_ml_eval_state(c->eval[c->ran], k);
            if (x == NULL || state == NULL || n > n_key || n > r->s)
                return imp_fail(err, IMP_INVALID, "%s cannot take %u tokens", f->in[k].name, n);
            for (uint64_t w = 0; w < width; w++) {
                memcpy(state + w * n_key, x + w * r->s, n * sizeof *state);
                memset(state + w * n_key + n, 0, (n_key - n) * sizeof *state);
            }
        }
    }
    return IMP_OK;
}

/* What the host gives a decode function, by name, into `to`; false: no such input. */
static bool decode_input(const imp_ml_runner *r, const imp_mil_out *in, uint32_t pos, const float *hidden,
                         float *to)
{
    uint64_t n = imp_mil_n_elem(&in->type);
    const char *name = in->name;
    uint32_t i = 0;
    if (strcmp(name, "hidden") == 0) {
        memcpy(to, hidden, (size_t)n * sizeof *to);
    } else if (strcmp(name, "slot") == 0) {
        for (uint64_t j = 0; j < n; j++) to[j] = j == pos;
    } else if (strcmp(name, "mask") == 0) {
        imp_ml_host_causal(pos, 0, (uint32_t)n, to);
    } else if (sscanf(name, "mask_%u", &i) == 1) {
        imp_ml_host_causal(pos, i, (uint32_t)n, to);
    } else if (sscanf(name, "cos_%u", &i) == 1 || sscanf(name, "sin_%u", &i) == 1) {
        const imp_rope_attr *a = imp_ml_rope_at(r->g, i);
        float other[512];
        if (a == NULL || a->n_rot / 2 != n || n > IMP_COUNT(other)) return false;
        imp_ml_host_rope(a, pos, name[0] == 'c' ? to : other, name[0] == 'c' ? other : to);
    } else {
        return false;
    }
    return true;
}

static imp_status decode_chunk(imp_ml_runner *r, chunk *c, uint32_t pos, const float *hidden, imp_error *err)
{
    enum { MAX_IN = 1024 };
    const imp_mil_func *f = &c->p->func[c->ran];
    const float *in[MAX_IN] = {0};
    uint64_t n = 0, at = 0;
    if (f->n_in > MAX_IN) return imp_fail(err, IMP_UNSUPPORTED, "function %s has too many inputs", f->name);
    for (uint32_t i = 0; i < f->n_in; i++) n += f->in[i].type.state ? 0 : imp_mil_n_elem(&f->in[i].type);
    float *buf = imp_sys_malloc((size_t)n * sizeof *buf + 1);
    if (buf == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while running packages");
    imp_status s = IMP_OK;
    for (uint32_t i = 0; i < f->n_in && s == IMP_OK; i++) {
        if (f->in[i].type.state) continue;
        in[i] = buf + at;
        if (!decode_input(r, &f->in[i], pos, hidden, buf + at))
            s = imp_fail(err, IMP_UNSUPPORTED, "input %s is not one the converter makes", f->in[i].name);
        at += imp_mil_n_elem(&f->in[i].type);
    }
    if (s == IMP_OK) s = imp_ml_eval_run(c->eval[c->ran], in, err);
    imp_sys_free(buf);
    return s;
}

/* The parts of the head side by side. */
static imp_status join_logits(imp_ml_runner *r, imp_error *err)
{
    const chunk *c = &r->chunk[r->n_chunk - 1];
    const imp_mil_func *f = &c->p->func[c->ran];
    uint64_t all = imp_graph_node(r->g, imp_graph_output(r->g))->width, at = 0, n;
    if (r->logits == NULL) r->logits = imp_sys_malloc((size_t)all * sizeof *r->logits);
    if (r->logits == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while running packages");
    for (uint32_t i = 0; i < f->n_out; i++) {
        char name[32];
        snprintf(name, sizeof name, "logits_%u", i);
        const float *x = result(c, name, &n);
        if (x == NULL || n > all - at) break;
        memcpy(r->logits + at, x, (size_t)n * sizeof *x);
        at += n;
    }
    return at == all ? IMP_OK : imp_fail(err, IMP_FORMAT, "the packages give no complete logits");
}

imp_status imp_ml_runner_decode(imp_ml_runner *r, int32_t token, uint32_t pos, const float **logits,
                                imp_error *err)
{
    const float *hidden = NULL;
    uint64_t n = 0;
    *logits = NULL;
    for (uint32_t i = 0; i < r->n_chunk; i++) IMP_TRY(choose_decode(r, &r->chunk[i], err));
    const imp_mil_func *f = &r->chunk[0].p->func[r->chunk[0].ran];
    for (uint32_t i = 0; i < f->n_in; i++) {
        if (strcmp(f->in[i].name, "hidden") == 0) n = imp_mil_n_elem(&f->in[i].type);
        if (f->in[i].type.state && pos >= f->in[i].type.dim[3])
            return imp_fail(err, IMP_TOO_LARGE, "position %u is behind the states' %llu", pos,
                            (unsigned long long)f->in[i].type.dim[3]);
    }
    float *first = imp_sys_malloc((size_t)n * sizeof *first + 1);
    if (first == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while running packages");
    imp_status s = imp_ml_host_token(r->g, token, pos, first, err);
    hidden = first;
    for (uint32_t i = 0; i < r->n_chunk && s == IMP_OK; i++) {
        s = decode_chunk(r, &r->chunk[i], pos, hidden, err);
        if (s == IMP_OK && i + 1 < r->n_chunk && (hidden = result(&r->chunk[i], "hidden_out", &n)) == NULL)
            s = imp_fail(err, IMP_FORMAT, "chunk %u gives nothing to the next one", i + 1);
    }
    imp_sys_free(first);
    if (s == IMP_OK) s = join_logits(r, err);
    if (s == IMP_OK) *logits = r->logits;
    return s;
}

/* ---- results ------------------------------------------------------------------------------------------------------ */

const float *imp_ml_runner_out(const imp_ml_runner *r, const char *name, uint64_t *n, uint32_t *s)
{
    *s = r->s;
    for (uint32_t i = 0; i < r->n_chunk; i++) {
        const float *x = result(&r->chunk[i], name, n);
        if (x != NULL) return x;
    }
    return NULL;
}

static bool is_op(const imp_mil_func *f, uint32_t op, const char *type)
{
    return op < f->n_op && strcmp(f->op[op].type, type) == 0;
}

/* A constant or an input of the function. */
static bool is_given(const imp_mil_func *f, const imp_mil_bind *x)
{
    return x->name == NULL || f->var[x->var].op == UINT32_MAX || f->var[x->var].value != NULL;
}

/* Large on purpose, and held: masks and scores with a mask on them (-1e4 each), and what norms have between their reciprocal
 * (1e4 at most, where padding is all zero) and their root. */
static bool is_held(const imp_mil_func *f, uint32_t op)
{
    const imp_mil_op *o = &f->op[op];
    uint32_t next = op + 1, from = op, given = 0;
    while (is_op(f, next, "const")) next++;
    if (is_op(f, op, "add") && is_op(f, next, "softmax")) return true;
    for (uint32_t i = 0; i < o->n_arg; i++) given += o->arg[i].n == 1 && is_given(f, o->arg[i].bind);
    if (is_op(f, op, "add") && given == o->n_arg) return true;
    while (from > 0 && !is_op(f, from, "real_div") && !is_op(f, from - 1, "rsqrt")) from--;
    return is_op(f, from, "real_div");
}

void imp_ml_runner_overflow(const imp_ml_runner *r, imp_ml_overflow *out)
{
    *out = (imp_ml_overflow){0};
    for (uint32_t i = 0; i < r->n_chunk; i++)
        for (uint32_t k = 0; k < r->chunk[i].p->n_func; k++) {
            const imp_mil_func *f = &r->chunk[i].p->func[k];
            for (uint32_t v = 0; r->chunk[i].eval[k] != NULL && v < f->n_var; v++) {
                const imp_ml_peak *p = imp_ml_eval_peak(r->chunk[i].eval[k], v);
                out->n_saturated += p->n_saturated;
                out->n_nan += p->n_nan;
                if (p->max_abs <= out->max_abs || f->var[v].op == UINT32_MAX || is_held(f, f->var[v].op))
                    continue;
                out->max_abs = p->max_abs;
                snprintf(out->op, sizeof out->op, "%.90s", f->op[f->var[v].op].name);
            }
        }
}

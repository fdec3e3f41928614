/* dev/coreml/eval.c - the evaluator's frame: which values live when, rounding, and the order of ops.
 *
 * Idea:    every value is an f32 array, made when its op runs and freed behind its last reader; constants are decoded
 *          when they are first read, so that one weight at a time is unpacked.
 * Always:  the package went through the reader: shapes fit, names resolve, parameters are there. */
#include "dev/coreml/eval_int.h"

#include <math.h>

#include "kern/kern.h"

enum { HALF_MAX = 65504, KEEP_BYTES = 1 << 29, IMP_ML_MAX_THREAD = 256 };

static bool is_constexpr(const imp_mil_op *op)
{
    return strncmp(op->type, "constexpr_", 10) == 0;
}

void imp_ml_decode(const imp_mil_value *v, float *out)
{
    uint64_t n = imp_mil_n_elem(&v->type);
    if (v->type.dtype == IMP_MIL_F32) {
        memcpy(out, v->data, n * sizeof *out);
    } else if (v->type.dtype == IMP_MIL_F16) {
        const uint8_t *p = v->data;
        for (uint64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, p + 2 * i, 2);
            out[i] = imp_f16_to_f32(h);
        }
    } else {
        for (uint64_t i = 0; i < n; i++) out[i] = (float)imp_mil_element(v->type.dtype, v->data, i);
    }
}

/* ---- values ------------------------------------------------------------------------------------------------ */

static float *make(imp_ml_eval *e, uint32_t var)
{
    if (e->value[var] == NULL)
        e->value[var] = imp_sys_malloc((size_t)imp_mil_n_elem(&e->f->var[var].type) * sizeof(float));
    return e->value[var];
}

static void drop(imp_ml_eval *e, uint32_t var)
{
    imp_sys_free(e->value[var]);
    e->value[var] = NULL;
}

/* Constants decode on first use. */
static bool ready(imp_ml_eval *e, uint32_t var)
{
    const imp_mil_var *v = &e->f->var[var];
    if (e->value[var] != NULL || v->value == NULL || v->type.dtype == IMP_MIL_STRING) return true;
    float *p = make(e, var);
    if (p != NULL) imp_ml_decode(v->value, p);
    return p != NULL;
}

const float *ml_in(const ml_ctx *c, const char *param)
{
    const imp_mil_arg *a = imp_mil_arg_get(c->op, param);
    return a != NULL && a->bind[0].value == NULL ? c->e->value[a->bind[0].var] : NULL;
}

const imp_mil_type *ml_type(const ml_ctx *c, const char *param)
{
    const imp_mil_arg *a = imp_mil_arg_get(c->op, param);
    if (a != NULL && a->bind[0].value == NULL) return &c->e->f->var[a->bind[0].var].type;
    const imp_mil_value *v = imp_mil_const(c->e->f, c->op, param);
    return v != NULL ? &v->type : NULL;
}

double ml_number(const ml_ctx *c, const char *param, double def)
{
    return imp_mil_number(c->e->f, c->op, param, def);
}

float *ml_spare(ml_ctx *c, int which, uint64_t n)
{
    imp_ml_eval *e = c->e;
    if (e->n_spare[which] < n) {
        imp_sys_free(e->spare[which]);
        e->spare[which] = imp_sys_malloc((size_t)n * sizeof(float));
        e->n_spare[which] = e->spare[which] != NULL ? n : 0;
    }
    if (e->spare[which] == NULL) c->failed = true;
    return e->spare[which];
}

/* What settling one share of a value has seen. */
typedef struct settling {
    float *x;
    uint64_t n;
    bool round;
    imp_ml_peak *part; /* [n_thread] */
} settling;

/* Keep the largest magnitude; in half precision round and saturate. */
static void settle_part(void *ctx, uint32_t ith, uint32_t n_thread)
{
    enum { STEP = 1024 };
    const settling *s = ctx;
    const imp_vec *v = imp_vec_get();
    imp_ml_peak k = {0};
    uint16_t half[STEP];
    for (uint64_t i = s->n * ith / n_thread, to = s->n * (ith + 1) / n_thread; i < to; i += STEP) {
        uint64_t n = IMP_MIN(to - i, (uint64_t)STEP);
        float *x = s->x + i, max = 0;
        bool odd = false;
        for (uint64_t j = 0; j < n; j++) {
            float a = fabsf(x[j]);
            max = a > max ? a : max;
            odd |= !(a <= HALF_MAX);
        }
        k.max_abs = max > k.max_abs ? max : k.max_abs;
        for (uint64_t j = 0; odd && j < n; j++) {
            k.n_nan += isnan(x[j]);
            k.n_saturated += fabsf(x[j]) > HALF_MAX;
            if (s->round && fabsf(x[j]) > HALF_MAX) x[j] = copysignf(HALF_MAX, x[j]);
        }
        if (!s->round) continue;
        v->f32_to_f16(half, x, n);
        v->f16_to_f32(x, half, n);
    }
    s->part[ith] = k;
}

static void settle(imp_ml_eval *e, uint32_t var)
{
    const imp_mil_var *v = &e->f->var[var];
    imp_ml_peak *k = &e->peak[var], part[IMP_ML_MAX_THREAD] = {0};
    if (v->type.dtype != IMP_MIL_F16 && v->type.dtype != IMP_MIL_F32) return;
    settling s = {e->value[var], imp_mil_n_elem(&v->type),
                  e->mode == IMP_ML_F16 && v->type.dtype == IMP_MIL_F16, part};
    if (e->pool == NULL || s.n < 1 << 14 || imp_pool_n_thread(e->pool) > IMP_ML_MAX_THREAD)
        settle_part(&s, 0, 1);
    else
        imp_pool_run(e->pool, settle_part, &s);
    for (size_t i = 0; i < IMP_COUNT(part); i++) {
        k->max_abs = part[i].max_abs > k->max_abs ? part[i].max_abs : k->max_abs;
        k->n_saturated += part[i].n_saturated;
        k->n_nan += part[i].n_nan;
    }
}

/* ---- running ------------------------------------------------------------------------------------------------ */

static void drop_read(imp_ml_eval *e, const imp_mil_op *op, uint32_t i)
{
    for (uint32_t k = 0; k < op->n_arg; k++)
        for (uint32_t j = 0; j < op->arg[k].n; j++) {
            const imp_mil_bind *b = &op->arg[k].bind[j];
            if (b->value == NULL && e->last[b->var] == i && !e->f->var[b->var].type.state && !e->keep[b->var])
                drop(e, b->var);
        }
}

static bool run_op(imp_ml_eval *e, uint32_t i)
{
    const imp_mil_op *op = &e->f->op[i];
    ml_ctx c = {.e = e, .op = op};
    if (e->fn[i] == NULL) return true; /* a const */
    if (is_constexpr(op) && e->value[op->out[0].var] != NULL) return true;
    for (uint32_t k = 0; k < op->n_arg && !is_constexpr(op); k++)
        for (uint32_t j = 0; j < op->arg[k].n; j++)
            if (op->arg[k].bind[j].value == NULL && !ready(e, op->arg[k].bind[j].var)) return false;
    for (uint32_t k = 0; k < op->n_out; k++)
        if (make(e, op->out[k].var) == NULL) return false;
    if (op->n_out > 0) {
        c.out = e->value[op->out[0].var];
        c.to = &op->out[0].type;
    }
    e->fn[i](&c);
    for (uint32_t k = 0; k < op->n_out && !c.failed; k++) {
        settle(e, op->out[k].var);
        if (e->last[op->out[k].var] == i) drop(e, op->out[k].var); /* nobody reads it */
    }
    drop_read(e, op, i);
    return !c.failed;
}

imp_status imp_ml_eval_run(imp_ml_eval *e, const float *const *in, imp_error *err)
{
    const imp_mil_func *f = e->f;
    bool ok = true;
    for (uint32_t v = 0; v < f->n_var; v++)
        if (!f->var[v].type.state && !e->keep[v]) drop(e, v);
    for (uint32_t i = 0; i < f->n_in && ok; i++) {
        uint64_t n = imp_mil_n_elem(&f->in[i].type);
        bool fresh = e->value[f->in[i].var] == NULL;
        float *x = make(e, f->in[i].var);
        ok = x != NULL;
        if (ok && f->in[i].type.state && fresh) memset(x, 0, (size_t)n * sizeof *x);
        if (!ok || f->in[i].type.state) continue;
        memcpy(x, in[i], (size_t)n * sizeof *x);
        settle(e, f->in[i].var);
    }
    for (uint32_t i = 0; i < f->n_op && ok; i++) ok = run_op(e, i);
    for (uint32_t i = 0; i < f->n_out && ok; i++) ok = ready(e, f->out[i].var);
    return ok ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory while evaluating function %s", f->name);
}

const float *imp_ml_eval_out(const imp_ml_eval *e, uint32_t i)
{
    return e->value[e->f->out[i].var];
}

float *imp_ml_eval_state(imp_ml_eval *e, uint32_t i)
{
    uint32_t var = e->f->in[i].var;
    bool fresh = e->value[var] == NULL;
    float *x = make(e, var);
    if (x != NULL && fresh) memset(x, 0, (size_t)imp_mil_n_elem(&e->f->in[i].type) * sizeof *x);
    return x;
}

const imp_ml_peak *imp_ml_eval_peak(const imp_ml_eval *e, uint32_t var)
{
    return &e->peak[var];
}

/* ---- making ---------------------------------------------------------------------------------------------------- */

ml_op_fn ml_op_find(const char *type)
{
    for (size_t i = 0; i < ml_n_shape_op; i++)
        if (strcmp(ml_shape_ops[i].type, type) == 0) return ml_shape_ops[i].fn;
    for (size_t i = 0; i < ml_n_math_op; i++)
        if (strcmp(ml_math_ops[i].type, type) == 0) return ml_math_ops[i].fn;
    return NULL;
}

static void find_last(imp_ml_eval *e)
{
    const imp_mil_func *f = e->f;
    for (uint32_t v = 0; v < f->n_var; v++) e->last[v] = f->var[v].op;
    for (uint32_t i = 0; i < f->n_op; i++)
        for (uint32_t k = 0; k < f->op[i].n_arg; k++)
            for (uint32_t j = 0; j < f->op[i].arg[k].n; j++)
                if (f->op[i].arg[k].bind[j].value == NULL) e->last[f->op[i].arg[k].bind[j].var] = i;
    for (uint32_t i = 0; i < f->n_out; i++) e->last[f->out[i].var] = UINT32_MAX;
}

static bool can_run(const imp_mil_func *f, const imp_mil_op *op)
{
    if (strcmp(op->type, "const") == 0) return true;
    if (ml_op_find(op->type) == NULL) return false;
    if (is_constexpr(op)) return true;
    for (uint32_t k = 0; k < op->n_arg; k++)
        for (uint32_t j = 0; j < op->arg[k].n; j++)
            if (op->arg[k].bind[j].value != NULL) return false; /* an inline operand */
    return ml_axes_are_neighbours(f, op);
}

/* Weights stay unpacked between runs when all of them together are not too many. */
static void find_kept(imp_ml_eval *e)
{
    const imp_mil_func *f = e->f;
    uint64_t bytes = 0;
    for (uint32_t v = 0; v < f->n_var; v++) {
        e->keep[v] =
            f->var[v].op != UINT32_MAX && (f->var[v].value != NULL || is_constexpr(&f->op[f->var[v].op]));
        if (e->keep[v]) bytes += imp_mil_n_elem(&f->var[v].type) * sizeof(float);
    }
    if (bytes > KEEP_BYTES) memset(e->keep, 0, f->n_var * sizeof *e->keep);
}

imp_status imp_ml_eval_new(const imp_mil_func *f, imp_ml_mode mode, imp_pool *pool, imp_ml_eval **out,
                           imp_error *err)
{
    *out = NULL;
    for (uint32_t i = 0; i < f->n_op; i++)
        if (!can_run(f, &f->op[i]))
            return imp_fail(err, IMP_UNSUPPORTED, "op %s (%s) cannot be evaluated here", f->op[i].name,
                            f->op[i].type);
    imp_ml_eval *e = imp_sys_calloc(1, sizeof *e);
    if (e == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while preparing an evaluation");
    *e = (imp_ml_eval){.f = f, .mode = mode, .pool = pool};
    size_t n = f->n_var > 0 ? f->n_var : 1;
    e->value = imp_sys_calloc(n, sizeof *e->value);
    e->last = imp_sys_calloc(n, sizeof *e->last);
    e->keep = imp_sys_calloc(n, sizeof *e->keep);
    e->peak = imp_sys_calloc(n, sizeof *e->peak);
    e->fn = imp_sys_calloc(f->n_op > 0 ? f->n_op : 1, sizeof *e->fn);
    if (e->value == NULL || e->last == NULL || e->keep == NULL || e->peak == NULL || e->fn == NULL) {
        imp_ml_eval_free(e);
        return imp_fail(err, IMP_NOMEM, "out of memory while preparing an evaluation");
    }
    for (uint32_t i = 0; i < f->n_op; i++) e->fn[i] = ml_op_find(f->op[i].type);
    find_last(e);
    find_kept(e);
    *out = e;
    return IMP_OK;
}

void imp_ml_eval_free(imp_ml_eval *e)
{
    if (e == NULL) return;
    for (uint32_t v = 0; e->value != NULL && v < e->f->n_var; v++) drop(e, v);
    imp_sys_free(e->value);
    imp_sys_free(e->last);
    imp_sys_free(e->keep);
    imp_sys_free(e->peak);
    imp_sys_free(e->fn);
    ml_gemm_buf_deinit(&e->gemm);
    imp_sys_free(e->spare[0]);
    imp_sys_free(e->spare[1]);
    imp_sys_free(e);
}

/* dev/coreml/lint.c - predicted residency, padding and limits of ML Programs.
 *
 * Source:  Apple's published rules for transformers on the ANE (layout, padding of the last axis to 64 bytes), reports of
 *          sizes that failed (2 GB of weights, dimensions above 16384), coremltools' issue tracker (fused attention). */
#include "dev/coreml/lint.h"

enum { MAX_DIM = 16384, SMALL_BYTES = 16 << 10 };
#define CHUNK_BYTES   950000000ull
#define PROGRAM_BYTES 2000000000ull

uint64_t imp_ml_padded_bytes(const imp_mil_type *t)
{
    uint64_t last = t->rank > 0 ? t->dim[t->rank - 1] : 1, rows = imp_mil_n_elem(t) / last;
    uint64_t row = (last * imp_mil_dtype_bits(t->dtype) + 7) / 8;
    return rows * ((row + 63) / 64 * 64);
}

static imp_status add(imp_ml_lint *l, imp_ml_finding f, imp_error *err)
{
    if (l->n_finding == l->cap) {
        uint32_t cap = l->cap > 0 ? 2 * l->cap : 32;
        imp_ml_finding *p = imp_arena_array(l->arena, cap, sizeof *p);
        if (p == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while checking a package");
        if (l->n_finding > 0) memcpy(p, l->finding, l->n_finding * sizeof *p);
        l->finding = p;
        l->cap = cap;
    }
    const char **text[] = {&f.func, &f.op, &f.type};
    for (size_t i = 0; i < IMP_COUNT(text); i++) {
        *text[i] = imp_arena_strndup(l->arena, *text[i], strlen(*text[i]));
        if (*text[i] == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while checking a package");
    }
    l->finding[l->n_finding++] = f;
    return IMP_OK;
}

static const struct {
    const char *type, *why;
} off_ops[] = {
    {"gather", "lookups run on the CPU: let the host look tokens up"},
    {"scaled_dot_product_attention", "two or more large fused attentions fail the ANE's compiler and fall "
                                     "back silently: use matmul, softmax, matmul"},
    {"slice_update", "updates in place run on the CPU or GPU"},
    {"read_state", "states are kept by the CPU or GPU for most shapes"},
    {"write_state", "states are kept by the CPU or GPU for most shapes"},
    {"pow", "pow has no form on the ANE: multiply, or use sqrt and rsqrt"},
};

static const imp_mil_type *in_type(const imp_mil_func *f, const imp_mil_op *op, const char *param)
{
    const imp_mil_arg *a = imp_mil_arg_get(op, param);
    if (a == NULL) return NULL;
    return a->bind[0].value != NULL ? &a->bind[0].value->type : &f->var[a->bind[0].var].type;
}

static bool has_stride(const imp_mil_func *f, const imp_mil_op *op)
{
    const imp_mil_value *s = imp_mil_const(f, op, "stride");
    for (uint64_t i = 0; s != NULL && i < imp_mil_n_elem(&s->type); i++)
        if (imp_mil_element(s->type.dtype, s->data, i) != 1) return true;
    return false;
}

/* Why the op is predicted to leave the ANE; NULL: it stays. */
static const char *off_ane(const imp_mil_func *f, const imp_mil_op *op)
{
    for (size_t i = 0; i < IMP_COUNT(off_ops); i++)
        if (strcmp(op->type, off_ops[i].type) == 0) return off_ops[i].why;
    for (uint32_t k = 0; k < op->n_out; k++) {
        const imp_mil_type *t = &op->out[k].type;
        if (t->dtype == IMP_MIL_F32) return "the ANE computes in fp16, this is fp32";
        if (t->dtype != IMP_MIL_F16 && t->dtype != IMP_MIL_BOOL && t->dtype != IMP_MIL_I8 &&
            t->dtype != IMP_MIL_U8)
            return "the ANE has no whole numbers of 16 bits and more";
        if (t->rank > 5) return "more than 5 dimensions";
        for (uint32_t i = 0; i < t->rank; i++)
            if (t->dim[i] > MAX_DIM) return "a dimension above 16384";
    }
    const imp_mil_type *x = in_type(f, op, "x");
    if (x != NULL && x->dtype == IMP_MIL_F32) return "the ANE computes in fp16, its input is fp32";
    if (strcmp(op->type, "slice_by_index") == 0 && has_stride(f, op))
        return "slices with a stride run on the CPU";
    return NULL;
}

/* What makes an op on the ANE slow; NULL: nothing. */
static const char *costly(const imp_mil_func *f, const imp_mil_op *op)
{
    const imp_mil_type *x = in_type(f, op, "x");
    if (strcmp(op->type, "linear") == 0)
        return "linear over the last axis: a 1x1 conv over (1, channels, 1, tokens) suits the ANE";
    if (strcmp(op->type, "transpose") == 0 && x != NULL && imp_mil_bytes(x) >= SMALL_BYTES)
        return "a transpose of activations moves all of them through memory";
    if (strcmp(op->type, "layer_norm") == 0)
        return "layer_norm over the last axis: norms over the channel axis suit the ANE";
    return NULL;
}

static bool is_stored(const imp_mil_op *op)
{
    return strcmp(op->type, "const") == 0 || strncmp(op->type, "constexpr_", 10) == 0;
}

static imp_status lint_padding(imp_ml_lint *l, const imp_mil_func *f, const imp_mil_op *op,
                               const imp_mil_type *t, imp_error *err)
{
    uint64_t bytes = imp_mil_bytes(t), padded = imp_ml_padded_bytes(t);
    double factor = bytes > 0 ? (double)padded / (double)bytes : 1;
    if (padded < SMALL_BYTES || t->dtype == IMP_MIL_STRING) return IMP_OK;
    l->worst_factor = factor > l->worst_factor ? factor : l->worst_factor;
    if (factor < 2) return IMP_OK;
    return add(l,
               (imp_ml_finding){.func = f->name,
                                .op = op->name,
                                .type = op->type,
                                .factor = factor,
                                .padded_bytes = padded,
                                .why = "the last dimension is padded to 64 bytes: put a long one last"},
               err);
}

static imp_status lint_weights(imp_ml_lint *l, const imp_mil_func *f, const imp_mil_op *op, imp_error *err)
{
    const imp_mil_type *s = in_type(f, op, "scale");
    if (strcmp(op->type, "constexpr_blockwise_shift_scale") != 0 || s == NULL || s->rank < 2 ||
        s->dim[1] == 1)
        return IMP_OK;
    return add(
        l,
        (imp_ml_finding){.func = f->name,
                         .op = op->name,
                         .type = op->type,
                         .why = "scales per block suit the GPU; palettes or scales per channel suit the ANE"},
        err);
}

static imp_status lint_func(imp_ml_lint *l, const imp_mil_func *f, imp_error *err)
{
    int last = -1;
    for (uint32_t i = 0; i < f->n_op; i++) {
        const imp_mil_op *op = &f->op[i];
        if (is_stored(op)) {
            IMP_TRY(lint_weights(l, f, op, err));
            continue;
        }
        const char *off = off_ane(f, op), *slow = off == NULL ? costly(f, op) : NULL;
        l->n_op++;
        l->n_ane += off == NULL;
        l->n_switch += last >= 0 && last != (off == NULL);
        last = off == NULL;
        if (off != NULL || slow != NULL)
            IMP_TRY(add(l,
                        (imp_ml_finding){.func = f->name,
                                         .op = op->name,
                                         .type = op->type,
                                         .off_ane = off != NULL,
                                         .why = off != NULL ? off : slow},
                        err));
        for (uint32_t k = 0; k < op->n_out; k++) IMP_TRY(lint_padding(l, f, op, &op->out[k].type, err));
    }
    return IMP_OK;
}

static uint64_t weight_bytes(const imp_mil_func *f)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < f->n_op; i++) {
        for (uint32_t k = 0; k < f->op[i].n_attr; k++)
            if (f->op[i].attr[k].value.blob) n += imp_mil_bytes(&f->op[i].attr[k].value.type);
        for (uint32_t k = 0; k < f->op[i].n_arg; k++)
            if (f->op[i].arg[k].bind[0].value != NULL && f->op[i].arg[k].bind[0].value->blob)
                n += imp_mil_bytes(&f->op[i].arg[k].bind[0].value->type);
    }
    return n;
}

imp_status imp_ml_lint_run(const imp_mlpackage *p, imp_ml_lint *l, imp_error *err)
{
    *l = (imp_ml_lint){.arena = imp_arena_new(1 << 14), .worst_factor = 1};
    if (l->arena == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while checking a package");
    for (uint32_t i = 0; i < p->n_func; i++) {
        const imp_mil_func *f = &p->func[i];
        uint64_t bytes = weight_bytes(f);
        l->weight_bytes = IMP_MAX(l->weight_bytes, bytes);
        if (bytes > CHUNK_BYTES)
            IMP_TRY(
                add(l,
                    (imp_ml_finding){
                        .func = f->name,
                        .op = "",
                        .type = "",
                        .off_ane = bytes > PROGRAM_BYTES,
                        .why = bytes > PROGRAM_BYTES
                                   ? "more than 2 GB of weights in one program: the ANE's compiler has "
                                     "failed on that"
                                   : "more than 950 MB of weights in one program: smaller chunks are safer"},
                    err));
        IMP_TRY(lint_func(l, f, err));
    }
    return IMP_OK;
}

void imp_ml_lint_deinit(imp_ml_lint *l)
{
    imp_arena_free(l->arena);
    *l = (imp_ml_lint){0};
}

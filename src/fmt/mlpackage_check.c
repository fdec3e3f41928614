/* fmt/mlpackage_check.c - holds a program to the format's rules: names, order, opsets, constants, declared types.
 *
 * Place:   called by the reader with everything parsed; after it nothing about a program can surprise anyone.
 * Always:  every binding has its variable, every variable its type, every result the type it declares. */
#include "fmt/mlpackage_int.h"

#include "fmt/quote.h"

typedef struct checker {
    imp_mlpackage *p;
    imp_mil_func *f;
    imp_map *names; /* variable numbers of the function */
    int32_t opset;
    imp_error *err;
} checker;

static imp_status add_var(checker *c, imp_mil_out *o, uint32_t op, const imp_mil_value *value)
{
    imp_mil_func *f = c->f;
    if (!mlp_identifier(o->name))
        return imp_fail(c->err, IMP_FORMAT, "%s is no valid name", imp_quote_z(o->name).s);
    o->var = f->n_var;
    f->var[f->n_var] = (imp_mil_var){o->name, o->type, value, op};
    imp_status s = imp_map_put(c->names, o->name, strlen(o->name), f->n_var++);
    if (s == IMP_INVALID)
        return imp_fail(c->err, IMP_FORMAT, "the name %s is used twice", imp_quote_z(o->name).s);
    return s == IMP_OK ? s : imp_fail(c->err, s, "out of memory while checking a package");
}

static imp_status resolve(checker *c, imp_mil_bind *b)
{
    if (b->value != NULL) return IMP_OK;
    if (!imp_map_get(c->names, b->name, strlen(b->name), &b->var))
        return imp_fail(c->err, IMP_FORMAT, "%s is used before anything makes it", imp_quote_z(b->name).s);
    return IMP_OK;
}

static imp_status check_const(checker *c, imp_mil_op *op, uint32_t i)
{
    if (op->n_arg != 0 || op->n_out != 1 || op->n_attr != 1 || strcmp(op->attr[0].name, "val") != 0)
        return imp_fail(c->err, IMP_FORMAT, "a const has a val, one result and nothing else");
    const imp_mil_value *v = &op->attr[0].value;
    if (!imp_mil_type_equal(&op->out[0].type, &v->type)) {
        char a[96], b[96];
        return imp_fail(c->err, IMP_FORMAT, "the result is declared as %s, the value is %s",
                        imp_mil_type_text(&op->out[0].type, a), imp_mil_type_text(&v->type, b));
    }
    bool wide = v->type.dtype == IMP_MIL_I16 || v->type.dtype == IMP_MIL_U16 ||
                v->type.dtype == IMP_MIL_I32 || v->type.dtype == IMP_MIL_U32;
    bool narrow = imp_mil_dtype_bits(v->type.dtype) < 8;
    if (v->blob && (wide || narrow) && c->p->spec < 9)
        return imp_fail(c->err, IMP_FORMAT, "%s in weight.bin needs specification version 9",
                        imp_mil_dtype_name(v->type.dtype));
    return add_var(c, &op->out[0], i, v);
}

static imp_status check_op(checker *c, imp_mil_op *op, uint32_t i)
{
    imp_mil_type t[IMP_MIL_MAX_OUT];
    uint32_t n = 0;
    if (op->name == NULL) return imp_fail(c->err, IMP_FORMAT, "it has no name");
    if (strcmp(op->type, "const") == 0) return check_const(c, op, i);
    for (uint32_t k = 0; k < op->n_arg; k++)
        for (uint32_t j = 0; j < op->arg[k].n; j++) IMP_TRY(resolve(c, &op->arg[k].bind[j]));
    IMP_TRY(imp_mil_infer(c->f, op, c->opset, t, &n, c->err));
    if (n != op->n_out)
        return imp_fail(c->err, IMP_FORMAT, "it declares %u results and has %u", op->n_out, n);
    for (uint32_t k = 0; k < n; k++) {
        char a[96], b[96];
        if (!imp_mil_type_equal(&t[k], &op->out[k].type))
            return imp_fail(c->err, IMP_FORMAT, "result %s is declared as %s and is %s",
                            imp_quote_z(op->out[k].name).s, imp_mil_type_text(&op->out[k].type, a),
                            imp_mil_type_text(&t[k], b));
        IMP_TRY(add_var(c, &op->out[k], i, NULL));
    }
    return IMP_OK;
}

/* Put where the fault lies before the error's text. */
static imp_status in_op(checker *c, const imp_mil_op *op, imp_status s)
{
    char why[sizeof c->err->text];
    if (s != IMP_FORMAT && s != IMP_UNSUPPORTED) return s;
    memcpy(why, c->err->text, sizeof why);
    return imp_fail(c->err, s, "function %s, op %s (%s): %.300s", imp_quote_z(c->f->name).s,
                    imp_quote_z(op->name != NULL ? op->name : "").s, imp_quote_z(op->type).s, why);
}

static imp_status check_body(checker *c)
{
    imp_mil_func *f = c->f;
    for (uint32_t i = 0; i < f->n_in; i++) {
        imp_mil_type *t = &f->in[i].type;
        if (mlp_array_type(t->dtype) == 0 || (t->state && t->dtype != IMP_MIL_F16))
            return imp_fail(c->err, IMP_FORMAT, "input %s cannot have type %s", imp_quote_z(f->in[i].name).s,
                            imp_mil_dtype_name(t->dtype));
        if ((t->dtype == IMP_MIL_F16 && c->p->spec < 7) || (t->dtype == IMP_MIL_I8 && c->p->spec < 10) ||
            (t->state && c->p->spec < 9))
            return imp_fail(c->err, IMP_FORMAT, "input %s needs a later specification version than %d",
                            imp_quote_z(f->in[i].name).s, c->p->spec);
        IMP_TRY(add_var(c, &f->in[i], UINT32_MAX, NULL));
    }
    for (uint32_t i = 0; i < f->n_op; i++) IMP_TRY(in_op(c, &f->op[i], check_op(c, &f->op[i], i)));
    for (uint32_t i = 0; i < f->n_out; i++) {
        IMP_TRY(resolve(c, &f->out[i]));
        const imp_mil_var *v = &f->var[f->out[i].var];
        if (v->type.state || mlp_array_type(v->type.dtype) == 0)
            return imp_fail(c->err, IMP_FORMAT, "output %s cannot have type %s", imp_quote_z(v->name).s,
                            imp_mil_dtype_name(v->type.dtype));
    }
    if (f->n_out == 0)
        return imp_fail(c->err, IMP_FORMAT, "function %s has no output", imp_quote_z(f->name).s);
    return IMP_OK;
}

static imp_status check_func(imp_mlpackage *p, imp_mil_func *f, imp_error *err)
{
    checker c = {.p = p, .f = f, .opset = mlp_opset_spec(f->opset), .err = err};
    if (!mlp_identifier(f->name))
        return imp_fail(err, IMP_FORMAT, "%s is no valid function name", imp_quote_z(f->name).s);
    if (c.opset == 0)
        return imp_fail(err, IMP_UNSUPPORTED, "the opset %s is not known", imp_quote_z(f->opset).s);
    if (c.opset > p->spec)
        return imp_fail(err, IMP_FORMAT, "the opset %s needs specification version %d, this is %d", f->opset,
                        c.opset, p->spec);
    uint64_t n = f->n_in;
    for (uint32_t i = 0; i < f->n_op; i++) n += f->op[i].n_out;
    f->var = imp_arena_array(p->arena, n > 0 ? (size_t)n : 1, sizeof *f->var);
    c.names = imp_map_new((size_t)n);
    imp_status s = f->var != NULL && c.names != NULL
                       ? check_body(&c)
                       : imp_fail(err, IMP_NOMEM, "out of memory while checking a package");
    imp_map_free(c.names);
    return s;
}

imp_status mlp_check(imp_mlpackage *p, imp_error *err)
{
    for (uint32_t i = 0; i < p->n_func; i++) {
        for (uint32_t k = 0; k < i; k++)
            if (strcmp(p->func[k].name, p->func[i].name) == 0)
                return imp_fail(err, IMP_FORMAT, "two functions are named %s",
                                imp_quote_z(p->func[i].name).s);
        IMP_TRY(check_func(p, &p->func[i], err));
    }
    return IMP_OK;
}

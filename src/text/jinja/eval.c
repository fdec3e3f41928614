/* text/jinja/eval.c - walks the tree of a template: expressions, arguments, calls of macros, statements.
 *
 * Idea:    variables live in frames, one a scope, each a short list of names compared by address; a name that no frame
 *          holds is one of the variables given, then a global function. A loop uses one frame again for every turn.
 * Always:  every node costs a step, every level of nesting is counted. */
#include "text/jinja/jinja_int.h"

static bool undef_name(jj *j, const jj_str *name, jj_val *out)
{
    jj_undef *u = jj_alloc(j, sizeof *u);
    if (u == NULL) return false;
    u->name = name;
    *out = (jj_val){.kind = JJ_UNDEF, .u = u};
    return true;
}

/* ---- frames --------------------------------------------------------------------------------------------- */

jj_frame *jj_frame_push(jj *j, jj_frame *parent, const jj_names *unset)
{
    jj_frame *f = jj_alloc(j, sizeof *f);
    if (f == NULL) return NULL;
    f->parent = parent;
    for (; unset != NULL; unset = unset->next)
        if (!jj_bind_name(j, f, unset->name, (jj_val){.kind = JJ_MISSING})) return NULL;
    return f;
}

bool jj_bind_name(jj *j, jj_frame *f, const jj_str *name, jj_val v)
{
    for (jj_binding *b = f->first; b != NULL; b = b->next) {
        if (b->name != name) continue;
        b->v = v;
        return true;
    }
    jj_binding *b = j->spare;
    if (b != NULL)
        j->spare = b->next;
    else if ((b = jj_alloc(j, sizeof *b)) == NULL)
        return false;
    *b = (jj_binding){name, v, f->first};
    f->first = b;
    return true;
}

/* Empty the frame for a loop's next turn. */
static void frame_clear(jj *j, jj_frame *f)
{
    while (f->first != NULL) {
        jj_binding *b = f->first;
        f->first = b->next;
        b->next = j->spare;
        j->spare = b;
    }
}

static bool find_name(jj *j, const jj_str *name, jj_val *out)
{
    for (const jj_frame *f = j->env; f != NULL; f = f->parent)
        for (const jj_binding *b = f->first; b != NULL; b = b->next) {
            if (b->name != name) continue;
            *out = b->v;
            return b->v.kind != JJ_MISSING || undef_name(j, name, out);
        }
    const jj_val *v = jj_dict_find_str(j->vars, name);
    if (v != NULL) {
        *out = *v;
        return true;
    }
    const jj_func *f = jj_func_find(name);
    if (f == NULL) return undef_name(j, name, out);
    *out = (jj_val){.kind = JJ_FUNC, .func = f};
    return true;
}

/* ---- arguments and calls ----------------------------------------------------------------------------------- */

static bool add_keyword(jj *j, jj_args *a, size_t cap, const jj_str *name, jj_val v)
{
    for (size_t i = 0; i < a->n_kw; i++)
        if (jj_str_eq(a->name[i], name))
            return jj_type_error(j, "the argument '%.*s' is given twice", (int)IMP_MIN(name->n, 60u),
                                 name->p);
    if (a->n_kw == cap) return jj_type_error(j, "too many arguments by name");
    a->name[a->n_kw] = name;
    a->kw[a->n_kw++] = v;
    return true;
}

/* How many values an argument stands for, once its value is known. */
static bool arg_count(jj *j, const jj_arg *arg, jj_val v, size_t *n)
{
    *n = 1;
    if (arg->how == JJ_ARG_PLAIN) return true;
    if (arg->how == JJ_ARG_STARSTAR) {
        if (v.kind != JJ_DICT) return jj_type_error(j, "** wants a dict, not a %s", jj_type_name(v));
        *n = v.d->n;
        return true;
    }
    if (v.kind == JJ_ITER)
        *n = v.iter->n - v.iter->pos;
    else if (!jj_iterable(v))
        return jj_type_error(j, "* wants a list, not a %s", jj_type_name(v));
    else {
        int64_t k;
        JJ_TRY(jj_len(j, v, &k));
        *n = (size_t)k;
    }
    return true;
}

static bool put_arg(jj *j, const jj_arg *arg, jj_val v, jj_args *out, size_t cap)
{
    if (arg->how == JJ_ARG_STAR) {
        const jj_val *item;
        size_t n;
        JJ_TRY(jj_items(j, v, &item, &n));
        for (size_t i = 0; i < n; i++) out->v[out->n++] = item[i];
        return true;
    }
    if (arg->how == JJ_ARG_STARSTAR) {
        for (size_t i = 0; i < v.d->n; i++) {
            if (v.d->key[i].kind != JJ_STR) return jj_type_error(j, "** wants a dict whose keys are strings");
            JJ_TRY(add_keyword(j, out, cap, v.d->key[i].s, v.d->value[i]));
        }
        return true;
    }
    if (arg->name != NULL) return add_keyword(j, out, cap, arg->name, v);
    out->v[out->n++] = v;
    return true;
}

bool jj_eval_args(jj *j, const jj_node *n, jj_args *out)
{
    *out = (jj_args){0};
    if (n->args == NULL) return true;
    jj_val *given = jj_array(j, n->n, sizeof *given);
    size_t k = 0, total = 1; /* one to spare: a call block adds its caller */
    if (given == NULL) return false;
    for (const jj_arg *a = n->args; a != NULL; a = a->next, k++) {
        size_t more;
        JJ_TRY(jj_eval(j, a->value, &given[k]) && arg_count(j, a, given[k], &more));
        total += more;
    }
    out->v = jj_array(j, total, sizeof *out->v);
    out->kw = jj_array(j, total, sizeof *out->kw);
    out->name = jj_array(j, total, sizeof *out->name);
    if (out->v == NULL || out->kw == NULL || out->name == NULL) return false;
    k = 0;
    for (const jj_arg *a = n->args; a != NULL; a = a->next) JJ_TRY(put_arg(j, a, given[k++], out, total));
    return true;
}

/* The value a macro call gives for parameter i; JJ_MISSING: none. used: keywords that found their parameter. */
static jj_val param_value(const jj_args *a, size_t i, const jj_param *p, bool *used)
{
    if (i < a->n) return a->v[i];
    for (size_t k = 0; k < a->n_kw; k++)
        if (!used[k] && jj_str_eq(a->name[k], p->name)) {
            used[k] = true;
            return a->kw[k];
        }
    return (jj_val){.kind = JJ_MISSING};
}

static bool extra_args(jj *j, const jj_macro *m, const jj_args *a, bool *used, jj_frame *f)
{
    const jj_node *def = m->def;
    bool explicit_caller = false;
    for (const jj_param *p = def->params; p != NULL; p = p->next)
        explicit_caller = explicit_caller || jj_str_is(p->name, "caller");
    if (def->caller != NULL && !explicit_caller) {
        static const jj_undef u = {.hint = "the macro was called without a caller"};
        jj_val caller = {.kind = JJ_UNDEF, .u = &u};
        for (size_t k = 0; k < a->n_kw; k++)
            if (!used[k] && jj_str_is(a->name[k], "caller")) caller = a->kw[k], used[k] = true;
        JJ_TRY(jj_bind_name(j, f, def->caller, caller));
    }
    if (def->kwargs != NULL) {
        jj_dict *d;
        JJ_TRY(jj_dict_new(j, &d));
        for (size_t k = 0; k < a->n_kw; k++)
            if (!used[k]) JJ_TRY(jj_dict_put(j, d, (jj_val){.kind = JJ_STR, .s = a->name[k]}, a->kw[k]));
        JJ_TRY(jj_bind_name(j, f, def->kwargs, (jj_val){.kind = JJ_DICT, .d = d}));
    } else {
        for (size_t k = 0; k < a->n_kw; k++)
            if (!used[k])
                return jj_type_error(j, "the macro takes no argument '%.*s'",
                                     (int)IMP_MIN(a->name[k]->n, 60u), a->name[k]->p);
    }
    if (def->varargs == NULL)
        return a->n <= def->n ||
               jj_type_error(j, "the macro takes at most %u arguments, not %zu", def->n, a->n);
    jj_list *rest;
    JJ_TRY(jj_list_new(j, a->n > def->n ? a->n - def->n : 0, &rest));
    for (size_t i = def->n; i < a->n; i++) rest->v[rest->n++] = a->v[i];
    return jj_bind_name(j, f, def->varargs, jj_list_val(rest, true));
}

static bool bind_params(jj *j, const jj_macro *m, const jj_args *a, jj_frame *f)
{
    bool *used = jj_array(j, a->n_kw + 1, sizeof *used);
    size_t i = 0;
    if (used == NULL) return false;
    for (const jj_param *p = m->def->params; p != NULL; p = p->next)
        JJ_TRY(jj_bind_name(j, f, p->name, param_value(a, i++, p, used)));
    JJ_TRY(extra_args(j, m, a, used, f));
    for (const jj_param *p = m->def->params; p != NULL; p = p->next) {
        jj_val v;
        for (jj_binding *b = f->first; b != NULL; b = b->next)
            if (b->name == p->name && b->v.kind == JJ_MISSING && p->fallback != NULL)
                JJ_TRY(jj_eval(j, p->fallback, &v) && jj_bind_name(j, f, p->name, v));
    }
    return true;
}

bool jj_call_macro(jj *j, jj_macro *m, const jj_args *a, jj_val *out)
{
    jj_frame *env = j->env, *f = jj_frame_push(j, m->env, m->def->unset);
    if (f == NULL) return false;
    size_t mark = jj_mark(j);
    j->env = f;
    JJ_TRY(bind_params(j, m, a, f) && jj_exec(j, m->def->body) && jj_take(j, mark, out));
    j->env = env;
    return true;
}

static bool eval_call(jj *j, const jj_node *e, jj_val *out)
{
    jj_val f;
    jj_args a;
    JJ_TRY(jj_eval(j, e->a, &f) && jj_eval_args(j, e, &a));
    j->line = e->line;
    return jj_call(j, f, &a, out);
}

/* ---- expressions --------------------------------------------------------------------------------------------- */

static bool eval_display(jj *j, const jj_node *e, jj_val *out)
{
    if (e->kind == JJ_N_DICT) {
        jj_dict *d;
        JJ_TRY(jj_dict_new(j, &d));
        for (const jj_node *c = e->a; c != NULL; c = c->next->next) {
            jj_val key, v;
            JJ_TRY(jj_eval(j, c, &key) && jj_eval(j, c->next, &v) && jj_dict_put(j, d, key, v));
        }
        *out = (jj_val){.kind = JJ_DICT, .d = d};
        return true;
    }
    jj_list *l;
    JJ_TRY(jj_list_new(j, e->n, &l));
    for (const jj_node *c = e->a; c != NULL; c = c->next) JJ_TRY(jj_eval(j, c, &l->v[l->n++]));
    *out = jj_list_val(l, e->kind == JJ_N_TUPLE);
    return true;
}

static bool eval_concat(jj *j, const jj_node *e, jj_val *out)
{
    size_t n = 0;
    for (const jj_node *c = e->a; c != NULL; c = c->next) n++;
    jj_val *part = jj_array(j, n, sizeof *part);
    if (part == NULL) return false;
    n = 0;
    for (const jj_node *c = e->a; c != NULL; c = c->next) JJ_TRY(jj_eval(j, c, &part[n++]));
    size_t mark = jj_mark(j);
    for (size_t i = 0; i < n; i++) JJ_TRY(jj_put_str(j, part[i]));
    return jj_take(j, mark, out);
}

static bool eval_compare(jj *j, const jj_node *e, jj_val *out)
{
    jj_val left, right;
    bool yes = true;
    JJ_TRY(jj_eval(j, e->a, &left));
    for (const jj_node *c = e->b; c != NULL && yes; c = c->next) {
        JJ_TRY(jj_eval(j, c->a, &right));
        j->line = e->line;
        JJ_TRY(jj_compare(j, (jj_op)c->op, left, right, &yes));
        left = right;
    }
    *out = jj_bool(yes);
    return true;
}

static bool eval_slice(jj *j, const jj_node *e, jj_val *out)
{
    jj_val obj, part[3] = {0};
    const jj_node *const n[3] = {e->b, e->c, e->d};
    JJ_TRY(jj_eval(j, e->a, &obj));
    for (int i = 0; i < 3; i++)
        if (n[i] != NULL) JJ_TRY(jj_eval(j, n[i], &part[i]));
    j->line = e->line;
    return jj_slice(j, obj, part[0], part[1], part[2], out);
}

static bool eval_filter(jj *j, const jj_node *e, jj_val *out)
{
    jj_val in;
    jj_args a;
    JJ_TRY(jj_eval(j, e->a, &in) && jj_eval_args(j, e, &a));
    j->line = e->line;
    return e->filter->run(j, in, &a, out);
}

static bool eval_test(jj *j, const jj_node *e, jj_val *out)
{
    jj_val in;
    jj_args a;
    bool yes;
    JJ_TRY(jj_eval(j, e->a, &in) && jj_eval_args(j, e, &a));
    j->line = e->line;
    JJ_TRY(e->test->run(j, in, &a, &yes));
    *out = jj_bool(yes);
    return true;
}

static bool eval_binary(jj *j, const jj_node *e, jj_val *out)
{
    jj_val a, b;
    JJ_TRY(jj_eval(j, e->a, &a) && jj_eval(j, e->b, &b));
    j->line = e->line;
    return e->kind == JJ_N_ARITH ? jj_arith(j, (jj_op)e->op, a, b, out) : jj_getitem(j, a, b, out);
}

static bool eval_unary(jj *j, const jj_node *e, jj_val *out)
{
    jj_val a;
    JJ_TRY(jj_eval(j, e->a, &a));
    j->line = e->line;
    if (e->kind == JJ_N_NOT) {
        *out = jj_bool(!jj_truth(a));
        return true;
    }
    JJ_TRY(jj_negate(j, a, out));
    return e->kind == JJ_N_NEG || jj_negate(j, *out, out);
}

static bool eval_choice(jj *j, const jj_node *e, jj_val *out)
{
    JJ_TRY(jj_eval(j, e->a, out));
    if (e->kind == JJ_N_COND) {
        static const jj_undef u = {.hint = "an inline if without else, whose condition is false, is used"};
        const jj_node *pick = jj_truth(*out) ? e->b : e->c;
        if (pick != NULL) return jj_eval(j, pick, out);
        *out = (jj_val){.kind = JJ_UNDEF, .u = &u};
        return true;
    }
    return jj_truth(*out) == (e->kind == JJ_N_OR) || jj_eval(j, e->b, out);
}

static bool eval_node(jj *j, const jj_node *e, jj_val *out)
{
    switch (e->kind) {
    case JJ_N_GETATTR:
        JJ_TRY(jj_eval(j, e->a, out));
        j->line = e->line;
        return jj_getattr(j, *out, e->name, out);
    case JJ_N_GETITEM:
    case JJ_N_ARITH: return eval_binary(j, e, out);
    case JJ_N_SLICE: return eval_slice(j, e, out);
    case JJ_N_CALL: return eval_call(j, e, out);
    case JJ_N_FILTER: return eval_filter(j, e, out);
    case JJ_N_TEST: return eval_test(j, e, out);
    case JJ_N_NOT:
    case JJ_N_NEG:
    case JJ_N_POS: return eval_unary(j, e, out);
    case JJ_N_AND:
    case JJ_N_OR:
    case JJ_N_COND: return eval_choice(j, e, out);
    case JJ_N_CONCAT: return eval_concat(j, e, out);
    case JJ_N_COMPARE: return eval_compare(j, e, out);
    default: return eval_display(j, e, out);
    }
}

bool jj_eval(jj *j, const jj_node *e, jj_val *out)
{
    JJ_TRY(jj_burn(j, 1));
    if (e->kind == JJ_N_CONST) {
        *out = e->value;
        return true;
    }
    j->line = e->line;
    if (e->kind == JJ_N_NAME) return find_name(j, e->name, out);
    JJ_TRY(jj_enter(j));
    bool good = eval_node(j, e, out);
    jj_leave(j);
    return good;
}

/* ---- statements ------------------------------------------------------------------------------------------------ */

static bool set_attr(jj *j, const jj_node *t, jj_val v)
{
    jj_val ns;
    JJ_TRY(find_name(j, t->name, &ns));
    if (ns.kind != JJ_NS)
        return jj_type_error(j, "an attribute can be set on a namespace only, not on a %s", jj_type_name(ns));
    if (t->attr->p[0] == '_') return jj_type_error(j, "attributes of a namespace may not begin with '_'");
    return jj_dict_put(j, ns.d, (jj_val){.kind = JJ_STR, .s = t->attr}, v);
}

bool jj_assign(jj *j, const jj_node *t, jj_val v)
{
    if (t->kind == JJ_N_NAME) return jj_bind_name(j, j->env, t->name, v);
    if (t->kind == JJ_N_NSREF) return set_attr(j, t, v);
    const jj_val *item;
    size_t n;
    JJ_TRY(jj_items(j, v, &item, &n));
    if (n != t->n) return jj_type_error(j, "%zu values do not fit %u names", n, t->n);
    for (const jj_node *c = t->a; c != NULL; c = c->next) JJ_TRY(jj_assign(j, c, *item++));
    return true;
}

static bool exec_if(jj *j, const jj_node *n)
{
    for (;;) {
        jj_val cond;
        JJ_TRY(jj_eval(j, n->a, &cond));
        if (jj_truth(cond)) return jj_exec(j, n->body);
        const jj_node *other = n->other;
        if (other == NULL) return true;
        if (other->kind != JJ_N_IF || other->next != NULL) return jj_exec(j, other);
        n = other;
    }
}

/* The items that the loop's condition lets through. */
static bool loop_filter(jj *j, const jj_node *n, const jj_val **v, size_t *count)
{
    jj_list *l;
    jj_frame *env = j->env, *f = jj_frame_push(j, env, NULL);
    JJ_TRY(f != NULL && jj_list_new(j, *count, &l));
    j->env = f;
    for (size_t i = 0; i < *count; i++) {
        jj_val yes;
        JJ_TRY(jj_assign(j, n->target, (*v)[i]) && jj_eval(j, n->b, &yes));
        if (jj_truth(yes)) l->v[l->n++] = (*v)[i];
        frame_clear(j, f);
    }
    j->env = env;
    *v = l->v;
    *count = l->n;
    return true;
}

/* The turns of the loop. *ran: one went to its end. */
static bool loop_turns(jj *j, const jj_node *n, jj_loop *loop, bool *ran)
{
    jj_frame *env = j->env, *f = NULL;
    for (size_t i = 0; i < loop->n; i++) {
        JJ_TRY(jj_burn(j, 1));
        if (f == NULL || f->kept) {
            f = jj_frame_push(j, env, n->unset);
            if (f == NULL) return false;
        } else {
            frame_clear(j, f);
            for (const jj_names *u = n->unset; u != NULL; u = u->next)
                JJ_TRY(jj_bind_name(j, f, u->name, (jj_val){.kind = JJ_MISSING}));
        }
        j->env = f;
        loop->index0 = i;
        if (n->name != NULL) JJ_TRY(jj_bind_name(j, f, n->name, (jj_val){.kind = JJ_LOOP, .loop = loop}));
        JJ_TRY(jj_assign(j, n->target, loop->v[i]) && jj_exec(j, n->body));
        j->env = env;
        int jump = j->jump;
        j->jump = JJ_GO;
        if (jump == JJ_BREAK) break;
        if (jump == JJ_GO) *ran = true; /* jinja2 runs the else part when every turn was left early */
    }
    return true;
}

static bool exec_for(jj *j, const jj_node *n)
{
    jj_val over;
    bool ran = false;
    jj_loop *loop = jj_alloc(j, sizeof *loop);
    if (loop == NULL) return false;
    JJ_TRY(jj_eval(j, n->a, &over) && jj_items(j, over, &loop->v, &loop->n));
    if (n->b != NULL) JJ_TRY(loop_filter(j, n, &loop->v, &loop->n));
    JJ_TRY(loop_turns(j, n, loop, &ran));
    if (ran || n->other == NULL) return true;
    jj_frame *env = j->env;
    j->env = jj_frame_push(j, env, NULL);
    JJ_TRY(j->env != NULL && jj_exec(j, n->other));
    j->env = env;
    return true;
}

/* A body in a scope of its own, its text taken away again into *out when that is not NULL. */
static bool exec_scope(jj *j, const jj_node *n, jj_val *out)
{
    jj_frame *env = j->env;
    size_t mark = jj_mark(j);
    j->env = jj_frame_push(j, env, n->unset);
    JJ_TRY(j->env != NULL && jj_exec(j, n->body));
    j->env = env;
    if (out == NULL) return true;
    if (j->jump != JJ_GO) j->out->n = mark; /* the loop is left: what was captured is lost */
    return j->jump != JJ_GO || jj_take(j, mark, out);
}

/* A chain of filters over text that no expression gave. */
static bool apply_chain(jj *j, const jj_node *f, jj_val *text)
{
    jj_args a;
    if (f == NULL) return true;
    JJ_TRY(apply_chain(j, f->a, text) && jj_eval_args(j, f, &a));
    return f->filter->run(j, *text, &a, text);
}

static bool exec_capture(jj *j, const jj_node *n)
{
    jj_val text;
    JJ_TRY(exec_scope(j, n, &text));
    if (j->jump != JJ_GO) return true;
    JJ_TRY(apply_chain(j, n->a, &text));
    return n->kind == JJ_N_SET_BLOCK ? jj_assign(j, n->target, text) : jj_put_str(j, text);
}

static bool macro_value(jj *j, const jj_node *n, jj_val *out)
{
    jj_macro *m = jj_alloc(j, sizeof *m);
    if (m == NULL) return false;
    *m = (jj_macro){n, j->env};
    for (jj_frame *f = j->env; f != NULL && !f->kept; f = f->parent) f->kept = true;
    *out = (jj_val){.kind = JJ_MACRO, .macro = m};
    return true;
}

static bool exec_call_block(jj *j, const jj_node *n)
{
    static const jj_str word = {"caller", 6, 6, false};
    const jj_node *call = n->a;
    jj_val caller, f, text;
    jj_args a;
    JJ_TRY(macro_value(j, n, &caller) && jj_eval(j, call->a, &f) && jj_eval_args(j, call, &a));
    if (a.v == NULL) {
        a.kw = jj_alloc(j, sizeof *a.kw);
        a.name = jj_alloc(j, sizeof *a.name);
        if (a.kw == NULL || a.name == NULL) return false;
    }
    a.name[a.n_kw] = &word;
    a.kw[a.n_kw++] = caller;
    JJ_TRY(jj_call(j, f, &a, &text));
    return jj_put_str(j, text);
}

static bool exec_with(jj *j, const jj_node *n)
{
    jj_frame *env = j->env, *f = jj_frame_push(j, env, n->unset);
    if (f == NULL) return false;
    for (const jj_node *t = n->target, *e = n->a; t != NULL; t = t->next, e = e->next) {
        jj_val v;
        j->env = env;
        JJ_TRY(jj_eval(j, e, &v));
        j->env = f;
        JJ_TRY(jj_assign(j, t, v));
    }
    j->env = f;
    JJ_TRY(jj_exec(j, n->body));
    j->env = env;
    return true;
}

static bool exec_print(jj *j, const jj_node *n)
{
    for (const jj_node *e = n->a; e != NULL; e = e->next) {
        jj_val v;
        JJ_TRY(jj_eval(j, e, &v) && jj_put_str(j, v));
    }
    return true;
}

static bool exec_one(jj *j, const jj_node *n)
{
    jj_val v;
    switch (n->kind) {
    case JJ_N_DATA: return jj_put(j, n->value.s->p, n->value.s->n);
    case JJ_N_PRINT: return exec_print(j, n);
    case JJ_N_IF: return exec_if(j, n);
    case JJ_N_FOR: return exec_for(j, n);
    case JJ_N_SET: return jj_eval(j, n->a, &v) && jj_assign(j, n->target, v);
    case JJ_N_SET_BLOCK:
    case JJ_N_FILTER_BLOCK: return exec_capture(j, n);
    case JJ_N_MACRO: return macro_value(j, n, &v) && jj_bind_name(j, j->env, n->name, v);
    case JJ_N_CALL_BLOCK: return exec_call_block(j, n);
    case JJ_N_WITH: return exec_with(j, n);
    case JJ_N_SCOPE: return exec_scope(j, n, NULL);
    case JJ_N_BREAK: j->jump = JJ_BREAK; return true;
    default: j->jump = JJ_CONTINUE; return true;
    }
}

bool jj_exec(jj *j, const jj_node *body)
{
    JJ_TRY(jj_enter(j));
    for (const jj_node *n = body; n != NULL && j->jump == JJ_GO; n = n->next) {
        j->line = n->line;
        JJ_TRY(jj_burn(j, 1) && exec_one(j, n));
    }
    jj_leave(j);
    return true;
}

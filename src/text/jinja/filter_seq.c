/* text/jinja/filter_seq.c - filters on sequences and dicts.
 *
 * Idea:    what jinja2 gives as a generator is a JJ_ITER here: computed at once, walked once. */
#include "text/jinja/jinja_int.h"

static bool given(jj_val v)
{
    return v.kind != JJ_MISSING && v.kind != JJ_NONE;
}

static bool run_length(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    int64_t n;
    JJ_TRY(jj_bind(j, "length", "", a, NULL, 0) && jj_len(j, in, &n));
    *out = jj_int(n);
    return true;
}

static bool no_item(jj_val *out)
{
    static const jj_undef u = {.hint = "an item of an empty sequence is used"};
    *out = (jj_val){.kind = JJ_UNDEF, .u = &u};
    return true;
}

static bool run_first(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    const jj_val *v;
    size_t n;
    JJ_TRY(jj_bind(j, "first", "", a, NULL, 0));
    if (in.kind == JJ_STR && in.s->n > 0) return jj_substr(j, in.s, 0, 1, out);
    jj_iter *it = in.kind == JJ_ITER ? in.iter : NULL;
    JJ_TRY(jj_items(j, in, &v, &n));
    if (it != NULL && n > 1) it->pos -= n - 1;
    if (n == 0) return no_item(out);
    *out = v[0];
    return true;
}

static bool run_last(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    const jj_val *v;
    size_t n;
    JJ_TRY(jj_bind(j, "last", "", a, NULL, 0));
    if (in.kind == JJ_ITER) return jj_type_error(j, "a %s has no last item", jj_type_name(in));
    if (in.kind == JJ_STR && in.s->n > 0) return jj_substr(j, in.s, in.s->n_cp - 1, in.s->n_cp, out);
    JJ_TRY(jj_items(j, in, &v, &n));
    if (n == 0) return no_item(out);
    *out = v[n - 1];
    return true;
}

static bool list_of(jj *j, jj_val in, jj_list **out)
{
    const jj_val *v;
    size_t n;
    JJ_TRY(jj_items(j, in, &v, &n) && jj_burn(j, n / 8) && jj_list_new(j, n, out));
    if (n > 0) memcpy((*out)->v, v, n * sizeof *v);
    (*out)->n = n;
    return true;
}

static bool run_list(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_list *l;
    JJ_TRY(jj_bind(j, "list", "", a, NULL, 0) && list_of(j, in, &l));
    *out = jj_list_val(l, false);
    return true;
}

/* ---- attributes by path: "a.b.0", 3, none -------------------------------------------------------------------- */

static bool all_digits(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] < '0' || p[i] > '9') return false;
    return n > 0;
}

static bool path_get(jj *j, jj_val item, const char *p, size_t n, jj_val fallback, jj_val *out)
{
    for (size_t i = 0; i <= n;) {
        const char *dot = memchr(p + i, '.', n - i);
        size_t end = dot != NULL ? (size_t)(dot - p) : n;
        jj_str part = {.p = p + i, .n = end - i, .n_cp = jj_count_cp(p + i, end - i)};
        jj_val key;
        int64_t number;
        bool overflow;
        if (all_digits(part.p, part.n) && jj_parse_int(&part, 10, &number, &overflow))
            key = jj_int(number);
        else
            JJ_TRY(jj_str_borrow(j, part.p, part.n, &key));
        JJ_TRY(jj_getitem(j, item, key, &item));
        if (item.kind == JJ_UNDEF && given(fallback)) item = fallback;
        i = end + 1;
    }
    *out = item;
    return true;
}

/* The attribute of item that `attr` (MISSING, NONE, a number or a path) names. */
static bool attr_get(jj *j, jj_val item, jj_val attr, jj_val fallback, jj_val *out)
{
    *out = item;
    if (!given(attr)) return true;
    if (attr.kind == JJ_STR) return path_get(j, item, attr.s->p, attr.s->n, fallback, out);
    JJ_TRY(jj_getitem(j, item, attr, out));
    if (out->kind == JJ_UNDEF && given(fallback)) *out = fallback;
    return true;
}

static bool fold_case(jj *j, bool sensitive, jj_val *v)
{
    return sensitive || v->kind != JJ_STR || jj_change_case(j, v->s, JJ_LOWER, v);
}

/* A list of keys to sort by: one attribute, or several with commas between them as a list. */
static bool sort_key(jj *j, jj_val item, jj_val attr, bool sensitive, jj_val *out)
{
    if (attr.kind != JJ_STR || memchr(attr.s->p, ',', attr.s->n) == NULL)
        return attr_get(j, item, attr, (jj_val){0}, out) && fold_case(j, sensitive, out);
    jj_list *l;
    JJ_TRY(jj_list_new(j, 4, &l));
    for (size_t i = 0; i <= attr.s->n;) {
        const char *comma = memchr(attr.s->p + i, ',', attr.s->n - i);
        size_t end = comma != NULL ? (size_t)(comma - attr.s->p) : attr.s->n;
        jj_val v;
        JJ_TRY(path_get(j, item, attr.s->p + i, end - i, (jj_val){0}, &v) && fold_case(j, sensitive, &v) &&
               jj_list_add(j, l, v));
        i = end + 1;
    }
    *out = jj_list_val(l, false);
    return true;
}

static bool sorted(jj *j, jj_val in, jj_val attr, bool sensitive, bool reverse, jj_list **out)
{
    JJ_TRY(list_of(j, in, out));
    jj_val *key = jj_array(j, (*out)->n + 1, sizeof *key);
    if (key == NULL) return false;
    for (size_t i = 0; i < (*out)->n; i++) JJ_TRY(sort_key(j, (*out)->v[i], attr, sensitive, &key[i]));
    return jj_sort(j, (*out)->v, key, (*out)->n, reverse);
}

static bool run_sort(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[3];
    jj_list *l;
    JJ_TRY(jj_bind(j, "sort", "|reverse,case_sensitive,attribute", a, arg, 3));
    JJ_TRY(sorted(j, in, arg[2], jj_truth(arg[1]), jj_truth(arg[0]), &l));
    *out = jj_list_val(l, false);
    return true;
}

static bool run_dictsort(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[3];
    JJ_TRY(jj_bind(j, "dictsort", "|case_sensitive,by,reverse", a, arg, 3));
    if (in.kind != JJ_DICT) return jj_type_error(j, "'dictsort' wants a dict, not a %s", jj_type_name(in));
    bool by_value = arg[1].kind == JJ_STR && jj_str_is(arg[1].s, "value");
    if (!by_value && arg[1].kind != JJ_MISSING && !(arg[1].kind == JJ_STR && jj_str_is(arg[1].s, "key")))
        return jj_type_error(j, "'dictsort' sorts by \"key\" or \"value\"");
    jj_list *l;
    JJ_TRY(jj_list_new(j, in.d->n, &l));
    jj_val *key = jj_array(j, in.d->n + 1, sizeof *key);
    if (key == NULL) return false;
    for (size_t i = 0; i < in.d->n; i++) {
        key[i] = by_value ? in.d->value[i] : in.d->key[i];
        JJ_TRY(jj_pair(j, in.d->key[i], in.d->value[i], &l->v[l->n++]) &&
               fold_case(j, jj_truth(arg[0]), &key[i]));
    }
    *out = jj_list_val(l, false);
    return jj_sort(j, l->v, key, l->n, jj_truth(arg[2]));
}

static bool run_unique(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[2];
    const jj_val *v;
    size_t n;
    jj_list *l;
    jj_dict *seen;
    JJ_TRY(jj_bind(j, "unique", "|case_sensitive,attribute", a, arg, 2) && jj_items(j, in, &v, &n));
    JJ_TRY(jj_list_new(j, 4, &l) && jj_dict_new(j, &seen));
    for (size_t i = 0; i < n; i++) {
        jj_val key;
        JJ_TRY(attr_get(j, v[i], arg[1], (jj_val){0}, &key) && fold_case(j, jj_truth(arg[0]), &key));
        size_t before = seen->n;
        JJ_TRY(jj_dict_put(j, seen, key, jj_none()));
        if (seen->n > before) JJ_TRY(jj_list_add(j, l, v[i]));
    }
    return jj_iter_new(j, l->v, l->n, out);
}

static bool extreme(jj *j, const char *who, jj_op op, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[2], best, key;
    const jj_val *v;
    size_t n;
    JJ_TRY(jj_bind(j, who, "|case_sensitive,attribute", a, arg, 2) && jj_items(j, in, &v, &n));
    if (n == 0) return no_item(out);
    for (size_t i = 0; i < n; i++) {
        bool better = true;
        JJ_TRY(attr_get(j, v[i], arg[1], (jj_val){0}, &key) && fold_case(j, jj_truth(arg[0]), &key));
        if (i > 0) JJ_TRY(jj_compare(j, op, key, best, &better));
        if (!better) continue;
        best = key;
        *out = v[i];
    }
    return true;
}
static bool run_min(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return extreme(j, "min", JJ_LT, in, a, out);
}
static bool run_max(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return extreme(j, "max", JJ_GT, in, a, out);
}

static bool run_sum(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[2], v;
    const jj_val *item;
    size_t n;
    JJ_TRY(jj_bind(j, "sum", "|attribute,start", a, arg, 2) && jj_items(j, in, &item, &n));
    *out = arg[1].kind == JJ_MISSING ? jj_int(0) : arg[1];
    if (out->kind == JJ_STR) return jj_type_error(j, "'sum' cannot add strings");
    for (size_t i = 0; i < n; i++)
        JJ_TRY(attr_get(j, item[i], arg[0], (jj_val){0}, &v) && jj_arith(j, JJ_ADD, *out, v, out));
    return true;
}

static bool run_reverse(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_list *l;
    JJ_TRY(jj_bind(j, "reverse", "", a, NULL, 0));
    if (in.kind == JJ_STR) return jj_slice(j, in, jj_none(), jj_none(), jj_int(-1), out);
    bool again = in.kind == JJ_ITER; /* a generator becomes a list, everything else an iterator */
    JJ_TRY(list_of(j, in, &l));
    for (size_t i = 0, k = l->n; i + 1 < k; i++) {
        jj_val t = l->v[i];
        l->v[i] = l->v[--k];
        l->v[k] = t;
    }
    if (!again) return jj_iter_new(j, l->v, l->n, out);
    *out = jj_list_val(l, false);
    return true;
}

static bool run_items(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    const jj_val *v = NULL;
    size_t n = 0;
    JJ_TRY(jj_bind(j, "items", "", a, NULL, 0));
    if (in.kind != JJ_UNDEF) {
        if (in.kind != JJ_DICT) return jj_type_error(j, "'items' wants a dict, not a %s", jj_type_name(in));
        jj_view view = {in.d, JJ_ITEMS};
        JJ_TRY(jj_items(j, (jj_val){.kind = JJ_VIEW, .view = &view}, &v, &n));
    }
    return jj_iter_new(j, v, n, out);
}

static bool run_batch(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[2];
    const jj_val *v;
    size_t n;
    jj_list *all, *row = NULL;
    JJ_TRY(jj_bind(j, "batch", "linecount|fill_with", a, arg, 2) && jj_items(j, in, &v, &n) &&
           jj_list_new(j, 4, &all));
    if (!jj_is_int(arg[0])) return jj_type_error(j, "'batch' wants a whole number");
    int64_t width = jj_as_int(arg[0]);
    for (size_t i = 0; i < n; i++) {
        if (row == NULL || (int64_t)row->n == width) {
            JJ_TRY(jj_list_new(j, 4, &row) && jj_list_add(j, all, jj_list_val(row, false)));
        }
        JJ_TRY(jj_list_add(j, row, v[i]));
    }
    while (row != NULL && given(arg[1]) && (int64_t)row->n < width)
        JJ_TRY(jj_burn(j, 1) && jj_list_add(j, row, arg[1]));
    return jj_iter_new(j, all->v, all->n, out);
}

static bool run_slice(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[2];
    const jj_val *v;
    size_t n;
    jj_list *all, *row;
    JJ_TRY(jj_bind(j, "slice", "slices|fill_with", a, arg, 2) && jj_items(j, in, &v, &n) &&
           jj_list_new(j, 4, &all));
    if (!jj_is_int(arg[0]) || jj_as_int(arg[0]) == 0)
        return jj_type_error(j, "'slice' wants a whole number, not 0");
    int64_t slices = jj_as_int(arg[0]), each = (int64_t)n / slices, extra = (int64_t)n % slices, at = 0;
    for (int64_t i = 0; i < slices; i++) {
        JJ_TRY(jj_burn(j, 1) && jj_list_new(j, 4, &row));
        int64_t take = each + (i < extra);
        for (int64_t k = 0; k < take; k++) JJ_TRY(jj_list_add(j, row, v[at++]));
        if (given(arg[1]) && i >= extra) JJ_TRY(jj_list_add(j, row, arg[1]));
        JJ_TRY(jj_list_add(j, all, jj_list_val(row, false)));
    }
    return jj_iter_new(j, all->v, all->n, out);
}

static bool run_groupby(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[3], pair;
    jj_list *l, *groups, *row = NULL;
    JJ_TRY(jj_bind(j, "groupby", "attribute|default,case_sensitive", a, arg, 3) && list_of(j, in, &l));
    bool sensitive = jj_truth(arg[2]);
    jj_val *key = jj_array(j, l->n + 1, sizeof *key), last = {0};
    if (key == NULL || !jj_list_new(j, 4, &groups)) return false;
    for (size_t i = 0; i < l->n; i++)
        JJ_TRY(attr_get(j, l->v[i], arg[0], arg[1], &key[i]) && fold_case(j, sensitive, &key[i]));
    JJ_TRY(jj_sort(j, l->v, key, l->n, false));
    for (size_t i = 0; i < l->n; i++) {
        bool same = false;
        if (row != NULL) JJ_TRY(jj_equal(j, last, key[i], &same));
        if (!same) {
            jj_val name;
            JJ_TRY(jj_list_new(j, 4, &row) && attr_get(j, l->v[i], arg[0], arg[1], &name));
            JJ_TRY(jj_pair(j, name, jj_list_val(row, false), &pair) && jj_list_add(j, groups, pair));
        }
        last = key[i];
        JJ_TRY(jj_list_add(j, row, l->v[i]));
    }
    *out = jj_list_val(groups, false);
    return true;
}

/* ---- map, select and their kin ----------------------------------------------------------------------------------- */

/* The arguments behind the first `skip`. */
static jj_args rest_of(const jj_args *a, size_t skip)
{
    jj_args r = *a;
    r.v += skip;
    r.n -= skip;
    return r;
}

static bool map_attribute(jj *j, const jj_val *v, size_t n, const jj_args *a, jj_val *made)
{
    jj_val arg[2];
    JJ_TRY(jj_bind(j, "map", "attribute|default", a, arg, 2));
    for (size_t i = 0; i < n; i++) JJ_TRY(jj_burn(j, 1) && attr_get(j, v[i], arg[0], arg[1], &made[i]));
    return true;
}

static bool run_map(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    const jj_val *v = NULL;
    size_t n = 0;
    if (jj_truth(in)) JJ_TRY(jj_items(j, in, &v, &n));
    jj_val *made = jj_array(j, n + 1, sizeof *made);
    if (made == NULL) return false;
    bool by_attribute = false;
    for (size_t k = 0; k < a->n_kw; k++) by_attribute = by_attribute || jj_str_is(a->name[k], "attribute");
    if (!jj_truth(in)) return jj_iter_new(j, made, 0, out);
    if (a->n == 0 && by_attribute) {
        JJ_TRY(map_attribute(j, v, n, a, made));
        return jj_iter_new(j, made, n, out);
    }
    if (a->n == 0 || a->v[0].kind != JJ_STR) return jj_type_error(j, "'map' wants the name of a filter");
    const jj_filter_def *f = jj_filter_find(a->v[0].s->p, a->v[0].s->n);
    if (f == NULL)
        return jj_fail(j, IMP_UNSUPPORTED, "the filter '%.*s' is not supported",
                       (int)IMP_MIN(a->v[0].s->n, 60u), a->v[0].s->p);
    jj_args rest = rest_of(a, 1);
    JJ_TRY(jj_enter(j));
    for (size_t i = 0; i < n; i++) JJ_TRY(jj_burn(j, 1) && f->run(j, v[i], &rest, &made[i]));
    jj_leave(j);
    return jj_iter_new(j, made, n, out);
}

static bool choose(jj *j, jj_val in, const jj_args *a, bool by_attr, bool keep, jj_val *out)
{
    const jj_val *v;
    size_t n, skip = by_attr;
    jj_list *l;
    jj_args rest = {0};
    const jj_test_def *t = NULL;
    JJ_TRY(jj_list_new(j, 4, &l));
    if (!jj_truth(in)) return jj_iter_new(j, l->v, 0, out);
    JJ_TRY(jj_items(j, in, &v, &n));
    if (a->n < skip) return jj_type_error(j, "the name of an attribute is missing");
    if (a->n > skip) {
        jj_val name = a->v[skip];
        t = name.kind == JJ_STR ? jj_test_find(name.s->p, name.s->n) : NULL;
        if (t == NULL)
            return jj_fail(j, IMP_UNSUPPORTED, "a test that select or reject names is not supported");
        rest = rest_of(a, skip + 1);
    }
    for (size_t i = 0; i < n; i++) {
        jj_val x = v[i];
        JJ_TRY(jj_burn(j, 1));
        if (by_attr) JJ_TRY(attr_get(j, x, a->v[0], (jj_val){0}, &x));
        bool yes = jj_truth(x);
        if (t != NULL) JJ_TRY(t->run(j, x, &rest, &yes));
        if (yes == keep) JJ_TRY(jj_list_add(j, l, v[i]));
    }
    return jj_iter_new(j, l->v, l->n, out);
}
static bool run_select(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return choose(j, in, a, false, true, out);
}
static bool run_reject(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return choose(j, in, a, false, false, out);
}
static bool run_selectattr(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return choose(j, in, a, true, true, out);
}
static bool run_rejectattr(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return choose(j, in, a, true, false, out);
}

static bool run_join(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[2], v;
    const jj_val *item;
    const jj_str *sep = NULL;
    size_t n;
    JJ_TRY(jj_bind(j, "join", "|d,attribute", a, arg, 2) && jj_items(j, in, &item, &n));
    if (arg[0].kind != JJ_MISSING) JJ_TRY(jj_to_str(j, arg[0], &sep));
    size_t mark = jj_mark(j);
    for (size_t i = 0; i < n; i++) {
        JJ_TRY(jj_burn(j, 1));
        if (i > 0 && sep != NULL) JJ_TRY(jj_put(j, sep->p, sep->n));
        JJ_TRY(attr_get(j, item[i], arg[1], (jj_val){0}, &v) && jj_put_str(j, v));
    }
    return jj_take(j, mark, out);
}

static bool run_attr(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val name;
    JJ_TRY(jj_bind(j, "attr", "name", a, &name, 1));
    if (name.kind != JJ_STR) return jj_type_error(j, "'attr' wants a name");
    if (in.kind == JJ_DICT && jj_method_find(in, name.s) == NULL) return jj_undef_attr(j, in, name.s, out);
    return jj_getattr(j, in, name.s, out);
}

static bool run_default(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[2];
    JJ_TRY(jj_bind(j, "default", "|default_value,boolean", a, arg, 2));
    *out = in;
    if (in.kind != JJ_UNDEF && !(jj_truth(arg[1]) && !jj_truth(in))) return true;
    *out = arg[0];
    return arg[0].kind != JJ_MISSING || jj_str_z(j, "", out);
}

const jj_filter_def jj_seq_filters[] = {{"length", run_length},
                                        {"count", run_length},
                                        {"first", run_first},
                                        {"last", run_last},
                                        {"list", run_list},
                                        {"sort", run_sort},
                                        {"dictsort", run_dictsort},
                                        {"unique", run_unique},
                                        {"min", run_min},
                                        {"max", run_max},
                                        {"sum", run_sum},
                                        {"reverse", run_reverse},
                                        {"items", run_items},
                                        {"batch", run_batch},
                                        {"slice", run_slice},
                                        {"groupby", run_groupby},
                                        {"map", run_map},
                                        {"select", run_select},
                                        {"reject", run_reject},
                                        {"selectattr", run_selectattr},
                                        {"rejectattr", run_rejectattr},
                                        {"join", run_join},
                                        {"attr", run_attr},
                                        {"default", run_default},
                                        {"d", run_default},
                                        {NULL, NULL}};

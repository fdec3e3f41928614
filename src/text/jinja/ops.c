/* text/jinja/ops.c - operators, comparison, sorting, attributes and items, with Python's rules.
 *
 * Always:  whole numbers are 64 bits: what leaves them is an error, never a wrong number. */
#include <math.h>

#include "text/jinja/jinja_int.h"

/* ---- arithmetic ----------------------------------------------------------------------------------------- */

static bool overflow(jj *j)
{
    return jj_fail(j, IMP_UNSUPPORTED, "a whole number does not fit 64 bits");
}

static bool bad_operands(jj *j, jj_op op, jj_val a, jj_val b)
{
    static const char *const sign[] = {
        "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
    if (a.kind == JJ_UNDEF) return jj_fail_undef(j, a);
    if (b.kind == JJ_UNDEF) return jj_fail_undef(j, b);
    return jj_type_error(j, "%s does not go between %s and %s", sign[op], jj_type_name(a), jj_type_name(b));
}

static bool int_power(jj *j, int64_t a, int64_t b, jj_val *out)
{
    if (b < 0) {
        if (a == 0) return jj_type_error(j, "0 cannot be raised to a negative power");
        *out = jj_float(pow((double)a, (double)b));
        return true;
    }
    int64_t r = 1;
    while (b > 0) {
        if ((b & 1) != 0 && __builtin_mul_overflow(r, a, &r)) return overflow(j);
        b >>= 1;
        if (b > 0 && __builtin_mul_overflow(a, a, &a)) return overflow(j);
    }
    *out = jj_int(r);
    return true;
}

static bool int_arith(jj *j, jj_op op, int64_t a, int64_t b, jj_val *out)
{
    int64_t r = 0;
    if ((op == JJ_DIV || op == JJ_FLOORDIV || op == JJ_MOD) && b == 0)
        return jj_type_error(j, "division by zero");
    switch (op) {
    case JJ_ADD:
        if (__builtin_add_overflow(a, b, &r)) return overflow(j);
        break;
    case JJ_SUB:
        if (__builtin_sub_overflow(a, b, &r)) return overflow(j);
        break;
    case JJ_MUL:
        if (__builtin_mul_overflow(a, b, &r)) return overflow(j);
        break;
    case JJ_DIV: *out = jj_float((double)a / (double)b); return true;
    case JJ_FLOORDIV:
        if (a == INT64_MIN && b == -1) return overflow(j);
        r = a / b - (a % b != 0 && (a < 0) != (b < 0));
        break;
    case JJ_MOD: r = b == -1 ? 0 : a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : 0); break;
    default: return int_power(j, a, b, out);
    }
    *out = jj_int(r);
    return true;
}

static bool float_arith(jj *j, jj_op op, double a, double b, jj_val *out)
{
    double r;
    if ((op == JJ_DIV || op == JJ_FLOORDIV || op == JJ_MOD) && b == 0)
        return jj_type_error(j, "division by zero");
    switch (op) {
    case JJ_ADD: r = a + b; break;
    case JJ_SUB: r = a - b; break;
    case JJ_MUL: r = a * b; break;
    case JJ_DIV: r = a / b; break;
    case JJ_FLOORDIV:
    case JJ_MOD: {
        double mod = fmod(a, b), div = (a - mod) / b;
        if (mod != 0 && (b < 0) != (mod < 0)) mod += b, div -= 1;
        if (mod == 0) mod = copysign(0, b);
        double whole = div == 0 ? copysign(0, a / b) : floor(div);
        if (div - whole > 0.5) whole += 1;
        r = op == JJ_MOD ? mod : whole;
        break;
    }
    default:
        if (a == 0 && b < 0) return jj_type_error(j, "0 cannot be raised to a negative power");
        if (a < 0 && isfinite(a) && isfinite(b) && b != floor(b))
            return jj_fail(j, IMP_UNSUPPORTED, "a power of a negative number is complex");
        r = pow(a, b);
        if (isinf(r) && isfinite(a) && isfinite(b)) return jj_type_error(j, "the result of ** is too large");
    }
    *out = jj_float(r);
    return true;
}

static bool concat_strings(jj *j, jj_val a, jj_val b, jj_val *out)
{
    bool markup = a.s->markup || b.s->markup;
    if (markup) JJ_TRY(jj_escape(j, a, &a) && jj_escape(j, b, &b));
    char *p = jj_alloc(j, a.s->n + b.s->n + 1);
    jj_str *s = jj_alloc(j, sizeof *s);
    if (p == NULL || s == NULL) return false;
    memcpy(p, a.s->p, a.s->n);
    memcpy(p + a.s->n, b.s->p, b.s->n);
    *s = (jj_str){.p = p, .n = a.s->n + b.s->n, .n_cp = a.s->n_cp + b.s->n_cp, .markup = markup};
    *out = (jj_val){.kind = JJ_STR, .s = s};
    return true;
}

static bool concat_lists(jj *j, jj_val a, jj_val b, jj_val *out)
{
    jj_list *l;
    JJ_TRY(jj_list_new(j, a.l->n + b.l->n, &l));
    if (a.l->n > 0) memcpy(l->v, a.l->v, a.l->n * sizeof *l->v);
    if (b.l->n > 0) memcpy(l->v + a.l->n, b.l->v, b.l->n * sizeof *l->v);
    l->n = l->cap;
    *out = jj_list_val(l, a.kind == JJ_TUPLE);
    return true;
}

static bool repeat(jj *j, jj_val a, int64_t times, jj_val *out)
{
    size_t k = times < 0 ? 0 : (size_t)times, unit = a.kind == JJ_STR ? a.s->n : a.l->n;
    if (unit == 0) k = 0;
    if (k > 0 && unit > j->mem_cap / k)
        return jj_fail(j, IMP_TOO_LARGE, "a repetition makes more than %zu bytes", j->mem_cap);
    if (a.kind == JJ_STR) {
        char *p = jj_alloc(j, unit * k + 1);
        jj_str *s = jj_alloc(j, sizeof *s);
        if (p == NULL || s == NULL) return false;
        for (size_t i = 0; i < k; i++) memcpy(p + i * unit, a.s->p, unit);
        *s = (jj_str){.p = p, .n = unit * k, .n_cp = a.s->n_cp * k, .markup = a.s->markup};
        *out = (jj_val){.kind = JJ_STR, .s = s};
        return true;
    }
    jj_list *l;
    JJ_TRY(jj_list_new(j, unit * k, &l));
    for (size_t i = 0; i < k; i++) memcpy(l->v + i * unit, a.l->v, unit * sizeof *l->v);
    l->n = unit * k;
    *out = jj_list_val(l, a.kind == JJ_TUPLE);
    return true;
}

static bool is_sequence(jj_val v)
{
    return v.kind == JJ_STR || v.kind == JJ_LIST || v.kind == JJ_TUPLE;
}

bool jj_arith(jj *j, jj_op op, jj_val a, jj_val b, jj_val *out)
{
    if (jj_is_int(a) && jj_is_int(b)) return int_arith(j, op, jj_as_int(a), jj_as_int(b), out);
    if (jj_is_num(a) && jj_is_num(b)) return float_arith(j, op, jj_as_float(a), jj_as_float(b), out);
    if (op == JJ_ADD && a.kind == b.kind) {
        if (a.kind == JJ_STR) return concat_strings(j, a, b, out);
        if (a.kind == JJ_LIST || a.kind == JJ_TUPLE) return concat_lists(j, a, b, out);
    }
    if (op == JJ_MUL && is_sequence(a) && jj_is_int(b)) return repeat(j, a, jj_as_int(b), out);
    if (op == JJ_MUL && is_sequence(b) && jj_is_int(a)) return repeat(j, b, jj_as_int(a), out);
    if (op == JJ_MOD && a.kind == JJ_STR) return jj_format_percent(j, a.s, b, out);
    return bad_operands(j, op, a, b);
}

bool jj_negate(jj *j, jj_val a, jj_val *out)
{
    if (a.kind == JJ_FLOAT) {
        *out = jj_float(-a.f);
        return true;
    }
    if (jj_is_int(a)) return int_arith(j, JJ_SUB, 0, jj_as_int(a), out);
    if (a.kind == JJ_UNDEF) return jj_fail_undef(j, a);
    return jj_type_error(j, "a %s has no sign", jj_type_name(a));
}

/* ---- comparison ------------------------------------------------------------------------------------------ */

bool jj_same(jj_val a, jj_val b)
{
    if (a.kind != b.kind) return false;
    switch (a.kind) {
    case JJ_NONE: return true;
    case JJ_BOOL: return a.b == b.b;
    case JJ_INT: return a.i == b.i;
    case JJ_FLOAT: return memcmp(&a.f, &b.f, sizeof a.f) == 0;
    case JJ_STR: return jj_str_eq(a.s, b.s);
    case JJ_UNDEF: return a.u == b.u;
    default: return (const void *)a.l == (const void *)b.l;
    }
}

static bool equal_items(jj *j, const jj_val *a, const jj_val *b, size_t n, bool *out)
{
    *out = true;
    for (size_t i = 0; i < n && *out; i++) JJ_TRY(jj_equal(j, a[i], b[i], out));
    return true;
}

static bool equal_dicts(jj *j, const jj_dict *a, const jj_dict *b, bool *out)
{
    *out = a->n == b->n;
    for (size_t i = 0; i < a->n && *out; i++) {
        const jj_val *v = jj_dict_find(b, a->key[i]);
        *out = v != NULL;
        if (v != NULL) JJ_TRY(jj_equal(j, a->value[i], *v, out));
    }
    return true;
}

bool jj_equal(jj *j, jj_val a, jj_val b, bool *out)
{
    JJ_TRY(jj_burn(j, 1));
    if (jj_is_num(a) && jj_is_num(b)) {
        *out = jj_is_int(a) && jj_is_int(b) ? jj_as_int(a) == jj_as_int(b) : jj_as_float(a) == jj_as_float(b);
        return true;
    }
    *out = false;
    if (a.kind != b.kind) return true;
    if (a.kind == JJ_STR) {
        *out = jj_str_eq(a.s, b.s);
        return jj_burn(j, a.s->n == b.s->n ? a.s->n / 32 : 0);
    }
    if (a.kind == JJ_RANGE) {
        const jj_range *x = a.range, *y = b.range;
        *out = x->n == y->n && (x->n == 0 || (x->start == y->start && (x->n == 1 || x->step == y->step)));
        return true;
    }
    if (a.kind != JJ_LIST && a.kind != JJ_TUPLE && a.kind != JJ_DICT && a.kind != JJ_UNDEF) {
        *out = jj_same(a, b);
        return true;
    }
    if (a.kind == JJ_UNDEF || a.l == b.l) {
        *out = true;
        return true;
    }
    if (a.kind != JJ_DICT && a.l->n != b.l->n) return true;
    JJ_TRY(jj_enter(j));
    bool good =
        a.kind == JJ_DICT ? equal_dicts(j, a.d, b.d, out) : equal_items(j, a.l->v, b.l->v, a.l->n, out);
    jj_leave(j);
    return good;
}

static int compare_strings(const jj_str *a, const jj_str *b)
{
    int c = memcmp(a->p, b->p, IMP_MIN(a->n, b->n)); /* UTF-8 sorts as its code points do */
    return c != 0 ? c : (a->n > b->n) - (a->n < b->n);
}

static bool order_lists(jj *j, jj_op op, const jj_list *a, const jj_list *b, bool *out)
{
    for (size_t i = 0; i < a->n && i < b->n; i++) {
        bool same;
        JJ_TRY(jj_equal(j, a->v[i], b->v[i], &same));
        if (!same) return jj_compare(j, op, a->v[i], b->v[i], out);
    }
    return jj_compare(j, op, jj_int((int64_t)a->n), jj_int((int64_t)b->n), out);
}

static bool contains(jj *j, jj_val needle, jj_val hay, bool *out)
{
    *out = false;
    if (hay.kind == JJ_STR) {
        size_t at;
        if (needle.kind != JJ_STR) return bad_operands(j, JJ_IN, needle, hay);
        *out = jj_find(j, hay.s, needle.s, 0, hay.s->n, false, &at);
        return jj_burn(j, hay.s->n / 32);
    }
    if (hay.kind == JJ_DICT || (hay.kind == JJ_VIEW && hay.view->kind == JJ_KEYS)) {
        if (!jj_hashable(needle))
            return jj_type_error(j, "a %s cannot be a key of a dict", jj_type_name(needle));
        *out = jj_dict_find(hay.kind == JJ_DICT ? hay.d : hay.view->d, needle) != NULL;
        return true;
    }
    if (!jj_iterable(hay)) return bad_operands(j, JJ_IN, needle, hay);
    const jj_val *v;
    size_t n, i = 0;
    jj_iter *it = hay.kind == JJ_ITER ? hay.iter : NULL;
    JJ_TRY(jj_items(j, hay, &v, &n));
    for (; i < n && !*out; i++) JJ_TRY(jj_equal(j, v[i], needle, out));
    if (it != NULL) it->pos -= n - i; /* the search stops at what it finds */
    return true;
}

bool jj_compare(jj *j, jj_op op, jj_val a, jj_val b, bool *out)
{
    if (op == JJ_EQ || op == JJ_NE) {
        JJ_TRY(jj_equal(j, a, b, out));
        *out = *out == (op == JJ_EQ);
        return true;
    }
    if (op == JJ_IN || op == JJ_NOT_IN) {
        JJ_TRY(contains(j, a, b, out));
        *out = *out == (op == JJ_IN);
        return true;
    }
    JJ_TRY(jj_burn(j, 1));
    if (jj_is_num(a) && jj_is_num(b)) {
        bool whole = jj_is_int(a) && jj_is_int(b);
        double x = jj_as_float(a), y = jj_as_float(b);
        bool lt = whole ? jj_as_int(a) < jj_as_int(b) : x < y,
             gt = whole ? jj_as_int(a) > jj_as_int(b) : x > y;
        bool eq = whole ? !lt && !gt : x == y;
        *out = op == JJ_LT ? lt : op == JJ_LE ? lt || eq : op == JJ_GT ? gt : gt || eq;
        return true;
    }
    if (a.kind == JJ_STR && b.kind == JJ_STR) {
        int c = compare_strings(a.s, b.s);
        *out = op == JJ_LT ? c < 0 : op == JJ_LE ? c <= 0 : op == JJ_GT ? c > 0 : c >= 0;
        return true;
    }
    if (a.kind != b.kind || (a.kind != JJ_LIST && a.kind != JJ_TUPLE)) return bad_operands(j, op, a, b);
    JJ_TRY(jj_enter(j));
    bool good = order_lists(j, op, a.l, b.l, out);
    jj_leave(j);
    return good;
}

/* ---- sorting: merges of halves, from the bottom ------------------------------------------------------------- */

bool jj_sort(jj *j, jj_val *v, jj_val *keys, size_t n, bool reverse)
{
    jj_val *v2 = jj_array(j, n + 1, sizeof *v2), *k2 = jj_array(j, n + 1, sizeof *k2);
    if (v2 == NULL || k2 == NULL) return false;
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t lo = 0; lo < n; lo += 2 * width) {
            size_t mid = IMP_MIN(lo + width, n), hi = IMP_MIN(lo + 2 * width, n), a = lo, b = mid;
            for (size_t i = lo; i < hi; i++) {
                bool second = a == mid;
                if (a < mid && b < hi) /* equal keys keep their order, reversed or not */
                    JJ_TRY(jj_compare(j, JJ_LT, reverse ? keys[a] : keys[b], reverse ? keys[b] : keys[a],
                                      &second));
                size_t from = second ? b++ : a++;
                v2[i] = v[from];
                k2[i] = keys[from];
            }
        }
        memcpy(v, v2, n * sizeof *v);
        memcpy(keys, k2, n * sizeof *keys);
    }
    return true;
}

/* ---- attributes, items, slices -------------------------------------------------------------------------------- */

bool jj_undef_attr(jj *j, jj_val obj, const jj_str *name, jj_val *out)
{
    jj_undef *u = jj_alloc(j, sizeof *u);
    if (u == NULL) return false;
    u->name = name;
    u->owner = jj_type_name(obj);
    *out = (jj_val){.kind = JJ_UNDEF, .u = u};
    return true;
}

static bool undef_hint(const char *hint, jj_val *out)
{
    static const jj_undef before = {.hint = "there is no previous item"},
                          after = {.hint = "there is no next item"};
    *out = (jj_val){.kind = JJ_UNDEF, .u = hint[0] == 'p' ? &before : &after};
    return true;
}

static bool unsafe_undef(jj_val *out)
{
    static const jj_undef u = {.hint = "the template reaches for what the sandbox hides"};
    *out = (jj_val){.kind = JJ_UNDEF, .u = &u};
    return true;
}

/* *found false: a loop has no such attribute. */
static bool loop_attr(const jj_loop *l, const jj_str *name, bool *found, jj_val *out)
{
    int64_t i = (int64_t)l->index0, n = (int64_t)l->n;
    *found = true;
    if (jj_str_is(name, "index0"))
        *out = jj_int(i);
    else if (jj_str_is(name, "index"))
        *out = jj_int(i + 1);
    else if (jj_str_is(name, "first"))
        *out = jj_bool(i == 0);
    else if (jj_str_is(name, "last"))
        *out = jj_bool(i + 1 == n);
    else if (jj_str_is(name, "length"))
        *out = jj_int(n);
    else if (jj_str_is(name, "revindex0"))
        *out = jj_int(n - i - 1);
    else if (jj_str_is(name, "revindex"))
        *out = jj_int(n - i);
    else if (jj_str_is(name, "depth0"))
        *out = jj_int(0);
    else if (jj_str_is(name, "depth"))
        *out = jj_int(1);
    else if (jj_str_is(name, "previtem"))
        return i == 0 ? undef_hint("p", out) : (*out = l->v[i - 1], true);
    else if (jj_str_is(name, "nextitem"))
        return i + 1 == n ? undef_hint("n", out) : (*out = l->v[i + 1], true);
    else
        *found = false;
    return true;
}

/* Python's getattr: methods and the attributes of loops, namespaces and macros. */
static bool python_attr(jj *j, jj_val obj, const jj_str *name, bool *found, jj_val *out)
{
    *found = true;
    if (name->n > 4 && memcmp(name->p, "__", 2) == 0 && memcmp(name->p + name->n - 2, "__", 2) == 0)
        return unsafe_undef(out);
    if (obj.kind == JJ_LOOP) {
        JJ_TRY(loop_attr(obj.loop, name, found, out));
        if (*found) return true;
    }
    if (obj.kind == JJ_NS) {
        const jj_val *v = jj_dict_find_str(obj.d, name);
        *found = v != NULL;
        if (v != NULL) *out = *v;
        return true;
    }
    if (obj.kind == JJ_MACRO && jj_str_is(name, "name") && obj.macro->def->name != NULL) {
        *out = (jj_val){.kind = JJ_STR, .s = obj.macro->def->name};
        return true;
    }
    const jj_method_def *def = jj_method_find(obj, name);
    *found = def != NULL;
    if (def == NULL) return true;
    if (def->unsafe) return unsafe_undef(out);
    jj_method *m = jj_alloc(j, sizeof *m);
    if (m == NULL) return false;
    *m = (jj_method){obj, def};
    *out = (jj_val){.kind = JJ_METHOD, .method = m};
    return true;
}

bool jj_getattr(jj *j, jj_val obj, const jj_str *name, jj_val *out)
{
    bool found;
    if (obj.kind == JJ_UNDEF) return jj_fail_undef(j, obj);
    JJ_TRY(python_attr(j, obj, name, &found, out));
    if (found) return true;
    const jj_val *v = obj.kind == JJ_DICT ? jj_dict_find_str(obj.d, name) : NULL;
    if (v != NULL) {
        *out = *v;
        return true;
    }
    return jj_undef_attr(j, obj, name, out);
}

/* obj[key] by place; *found false: out of range. */
static bool item_at(jj *j, jj_val obj, int64_t i, bool *found, jj_val *out)
{
    int64_t n;
    JJ_TRY(jj_len(j, obj, &n));
    if (i < 0) i += n;
    *found = i >= 0 && i < n;
    if (!*found) return true;
    if (obj.kind == JJ_RANGE)
        *out = jj_int(obj.range->start + i * obj.range->step);
    else if (obj.kind == JJ_STR)
        return jj_substr(j, obj.s, (size_t)i, (size_t)i + 1, out);
    else
        *out = obj.l->v[i];
    return true;
}

bool jj_getitem(jj *j, jj_val obj, jj_val key, jj_val *out)
{
    bool found = false;
    if (obj.kind == JJ_UNDEF) return jj_fail_undef(j, obj);
    if (obj.kind == JJ_DICT) {
        const jj_val *v = jj_hashable(key) ? jj_dict_find(obj.d, key) : NULL;
        if (v != NULL) {
            *out = *v;
            return true;
        }
    } else if ((is_sequence(obj) || obj.kind == JJ_RANGE) && jj_is_int(key)) {
        JJ_TRY(item_at(j, obj, jj_as_int(key), &found, out));
        if (found) return true;
    }
    if (key.kind == JJ_STR) {
        JJ_TRY(python_attr(j, obj, key.s, &found, out));
        return found || jj_undef_attr(j, obj, key.s, out);
    }
    static const jj_undef u = {.hint = "an item that is not there is used"};
    *out = (jj_val){.kind = JJ_UNDEF, .u = &u};
    return true;
}

static bool slice_bound(jj *j, jj_val v, int64_t n, int64_t low, int64_t high, int64_t fallback, int64_t *out)
{
    if (v.kind == JJ_MISSING || v.kind == JJ_NONE) {
        *out = fallback;
        return true;
    }
    if (v.kind == JJ_UNDEF) return jj_type_error(j, "the bound of a slice is undefined");
    if (!jj_is_int(v)) return jj_type_error(j, "the bound of a slice is a %s", jj_type_name(v));
    int64_t i = jj_as_int(v);
    if (i < 0) i = i < -n ? low : i + n;
    *out = i < low ? low : i > high ? high : i;
    return true;
}

static bool slice_string(jj *j, const jj_str *s, int64_t start, int64_t step, int64_t n, jj_val *out)
{
    if (step == 1) return jj_substr(j, s, (size_t)start, (size_t)(start + n), out);
    const char **at = jj_array(j, s->n_cp + 1, sizeof *at); /* where each character begins */
    if (at == NULL || !jj_burn(j, (uint64_t)n)) return false;
    size_t k = 0;
    for (size_t i = 0; i < s->n; i++)
        if (((unsigned char)s->p[i] & 0xc0) != 0x80) at[k++] = s->p + i;
    at[k] = s->p + s->n;
    size_t mark = jj_mark(j);
    for (int64_t i = 0; i < n; i++) {
        const char *const *p = &at[start + i * step];
        JJ_TRY(jj_put(j, p[0], (size_t)(p[1] - p[0])));
    }
    return jj_take(j, mark, out);
}

bool jj_slice(jj *j, jj_val obj, jj_val from, jj_val to, jj_val by, jj_val *out)
{
    int64_t n, start, stop, step = 1, count = 0;
    if (obj.kind == JJ_UNDEF) return jj_fail_undef(j, obj);
    if (!is_sequence(obj) && obj.kind != JJ_RANGE)
        return jj_type_error(j, "a %s cannot be sliced", jj_type_name(obj));
    JJ_TRY(jj_len(j, obj, &n));
    if (by.kind != JJ_MISSING && by.kind != JJ_NONE) {
        if (!jj_is_int(by)) return jj_type_error(j, "the step of a slice is a %s", jj_type_name(by));
        step = jj_as_int(by);
        if (step == 0) return jj_type_error(j, "the step of a slice is zero");
        if (step < -INT32_MAX) step = -INT32_MAX;
        if (step > INT32_MAX) step = INT32_MAX;
    }
    bool down = step < 0;
    JJ_TRY(slice_bound(j, from, n, down ? -1 : 0, down ? n - 1 : n, down ? n - 1 : 0, &start));
    JJ_TRY(slice_bound(j, to, n, down ? -1 : 0, down ? n - 1 : n, down ? -1 : n, &stop));
    if (!down && start < stop) count = (stop - start - 1) / step + 1;
    if (down && start > stop) count = (start - stop - 1) / -step + 1;
    if (obj.kind == JJ_STR) return slice_string(j, obj.s, count > 0 ? start : 0, step, count, out);
    if (obj.kind == JJ_RANGE) {
        jj_range *r = jj_alloc(j, sizeof *r);
        if (r == NULL) return false;
        *r = (jj_range){obj.range->start + start * obj.range->step, obj.range->start + stop * obj.range->step,
                        obj.range->step * step, count};
        *out = (jj_val){.kind = JJ_RANGE, .range = r};
        return true;
    }
    jj_list *l;
    JJ_TRY(jj_list_new(j, (size_t)count, &l));
    for (int64_t i = 0; i < count; i++) l->v[i] = obj.l->v[start + i * step];
    l->n = (size_t)count;
    *out = jj_list_val(l, obj.kind == JJ_TUPLE);
    return jj_burn(j, (uint64_t)count / 8);
}

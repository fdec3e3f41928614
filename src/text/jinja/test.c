/* text/jinja/test.c - the tests behind `is`, as jinja2 has them. */
#include <math.h>

#include "text/jinja/jinja_int.h"

static bool none_given(jj *j, const jj_args *a)
{
    return (a->n == 0 && a->n_kw == 0) || jj_type_error(j, "this test takes no argument");
}

/* Tests of one value without arguments. */
#define PLAIN(name, condition)                                                                               \
    static bool test_##name(jj *j, jj_val v, const jj_args *a, bool *out)                                    \
    {                                                                                                        \
        JJ_TRY(none_given(j, a));                                                                            \
        *out = (condition);                                                                                  \
        return true;                                                                                         \
    }
PLAIN(defined, v.kind != JJ_UNDEF)
PLAIN(undefined, v.kind == JJ_UNDEF)
PLAIN(none, v.kind == JJ_NONE)
PLAIN(boolean, v.kind == JJ_BOOL)
PLAIN(true, v.kind == JJ_BOOL && v.b)
PLAIN(false, v.kind == JJ_BOOL && !v.b)
PLAIN(integer, v.kind == JJ_INT)
PLAIN(float, v.kind == JJ_FLOAT)
PLAIN(number, jj_is_num(v))
PLAIN(string, v.kind == JJ_STR)
PLAIN(mapping, v.kind == JJ_DICT)
PLAIN(iterable, jj_iterable(v))
PLAIN(callable, v.kind == JJ_MACRO || v.kind == JJ_FUNC || v.kind == JJ_METHOD || v.kind == JJ_LOOP ||
                    v.kind == JJ_UNDEF)
PLAIN(escaped, v.kind == JJ_STR && v.s->markup)
/* an undefined value has a length, and anything asked of it but that raises no error here */
PLAIN(sequence, jj_has_len(v) && v.kind != JJ_VIEW && v.kind != JJ_LOOP)

static bool one_given(jj *j, const jj_args *a, jj_val *other)
{
    if (a->n != 1 || a->n_kw != 0) return jj_type_error(j, "this test takes one argument");
    *other = a->v[0];
    return true;
}

static bool compare(jj *j, jj_op op, jj_val v, const jj_args *a, bool *out)
{
    jj_val other;
    return one_given(j, a, &other) && jj_compare(j, op, v, other, out);
}
#define COMPARE(name, op)                                                                                    \
    static bool test_##name(jj *j, jj_val v, const jj_args *a, bool *out)                                    \
    {                                                                                                        \
        return compare(j, op, v, a, out);                                                                    \
    }
COMPARE(eq, JJ_EQ)
COMPARE(ne, JJ_NE)
COMPARE(lt, JJ_LT)
COMPARE(le, JJ_LE)
COMPARE(gt, JJ_GT)
COMPARE(ge, JJ_GE)
COMPARE(in, JJ_IN)

static bool test_sameas(jj *j, jj_val v, const jj_args *a, bool *out)
{
    jj_val other;
    JJ_TRY(one_given(j, a, &other));
    *out = jj_same(v, other);
    return true;
}

static bool rest_is(jj *j, jj_val v, jj_val by, int64_t want, bool *out)
{
    jj_val rest;
    return jj_arith(j, JJ_MOD, v, by, &rest) && jj_equal(j, rest, jj_int(want), out);
}
static bool test_odd(jj *j, jj_val v, const jj_args *a, bool *out)
{
    return none_given(j, a) && rest_is(j, v, jj_int(2), 1, out);
}
static bool test_even(jj *j, jj_val v, const jj_args *a, bool *out)
{
    return none_given(j, a) && rest_is(j, v, jj_int(2), 0, out);
}
static bool test_divisibleby(jj *j, jj_val v, const jj_args *a, bool *out)
{
    jj_val num;
    return jj_bind(j, "divisibleby", "num", a, &num, 1) && rest_is(j, v, num, 0, out);
}

static bool all_case(jj *j, jj_val v, const jj_args *a, int want, int unwanted, bool *out)
{
    const jj_str *s;
    bool some = false;
    JJ_TRY(none_given(j, a) && jj_to_str(j, v, &s) && jj_burn(j, s->n / 4));
    *out = true;
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        i += imp_utf8_decode(s->p + i, s->n - i, &cp);
        some = some || jj_is_class(cp, want);
        if (jj_is_class(cp, unwanted) || jj_is_class(cp, JJ_IS_TITLE)) *out = false;
    }
    *out = *out && some;
    return true;
}
static bool test_lower(jj *j, jj_val v, const jj_args *a, bool *out)
{
    return all_case(j, v, a, JJ_IS_LOWER, JJ_IS_UPPER, out);
}
static bool test_upper(jj *j, jj_val v, const jj_args *a, bool *out)
{
    return all_case(j, v, a, JJ_IS_UPPER, JJ_IS_LOWER, out);
}
static bool test_filter(jj *j, jj_val v, const jj_args *a, bool *out)
{
    JJ_TRY(none_given(j, a));
    *out = v.kind == JJ_STR && jj_filter_find(v.s->p, v.s->n) != NULL;
    return true;
}
static bool test_test(jj *j, jj_val v, const jj_args *a, bool *out)
{
    JJ_TRY(none_given(j, a));
    *out = v.kind == JJ_STR && jj_test_find(v.s->p, v.s->n) != NULL;
    return true;
}

static const jj_test_def tests[] = {
    {"odd", test_odd},
    {"even", test_even},
    {"divisibleby", test_divisibleby},
    {"defined", test_defined},
    {"undefined", test_undefined},
    {"filter", test_filter},
    {"test", test_test},
    {"none", test_none},
    {"boolean", test_boolean},
    {"false", test_false},
    {"true", test_true},
    {"integer", test_integer},
    {"float", test_float},
    {"lower", test_lower},
    {"upper", test_upper},
    {"string", test_string},
    {"mapping", test_mapping},
    {"number", test_number},
    {"sequence", test_sequence},
    {"iterable", test_iterable},
    {"callable", test_callable},
    {"sameas", test_sameas},
    {"escaped", test_escaped},
    {"in", test_in},
    {"==", test_eq},
    {"eq", test_eq},
    {"equalto", test_eq},
    {"!=", test_ne},
    {"ne", test_ne},
    {">", test_gt},
    {"gt", test_gt},
    {"greaterthan", test_gt},
    {"ge", test_ge},
    {">=", test_ge},
    {"<", test_lt},
    {"lt", test_lt},
    {"lessthan", test_lt},
    {"<=", test_le},
    {"le", test_le},
};

const jj_test_def *jj_test_find(const char *name, size_t n)
{
    for (size_t i = 0; i < IMP_COUNT(tests); i++)
        if (strlen(tests[i].name) == n && memcmp(tests[i].name, name, n) == 0) return &tests[i];
    return NULL;
}

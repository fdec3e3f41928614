/* text/toolcall_grammar.c - the grammar of answers that may or must call tools.
 *
 * Idea:    the model's own spelling of a call around the JSON schema of its tool. Where calling is left to the model, the
 *          text before a call is free: a chain of rules, one for each byte of the marker that came so far (as Knuth, Morris
 *          and Pratt search for it), goes over into the call when the marker is whole. So nothing is constrained until
 *          a call begins, and from there nothing else can be written.
 * Always:  a call that is complete has a declared name and arguments that its schema takes.
 * Source:  Knuth, Morris, Pratt 1977. */
#include "text/grammar/schema_int.h"
#include "text/toolcall_int.h"

enum { MAX_MARK = 64 }; /* characters of a marker */

typedef struct tools {
    schema s;
    const imp_toolfmt *f;
} tools;

/* ---- text up to a marker ------------------------------------------------------------------------------------ */

/* The characters of a marker; their number, 0: too long or not UTF-8. */
static size_t characters(gr *g, const char *mark, int32_t out[MAX_MARK])
{
    size_t n = 0, len = strlen(mark);
    for (size_t i = 0; i < len; n++) {
        if (n == MAX_MARK) break;
        i += imp_utf8_decode(mark + i, len - i, &out[n]);
        if (out[n] < 0) n = MAX_MARK;
    }
    if (n < MAX_MARK && n > 0) return n;
    (void)gr_fail(g, IMP_UNSUPPORTED, "the model's marker of a call is too long");
    return 0;
}

static gr_expr one_char(gr *g, int32_t cp)
{
    return gr_class(g, &(gr_range){cp, cp}, 1, false);
}

/* How much of the mark stands at the end, when it was i characters and c came. */
static size_t fall_back(const int32_t *mark, size_t i, int32_t c)
{
    for (size_t k = i + 1; k > 0; k--) { /* mark[0..k-2] c is a suffix of mark[0..i-1] c */
        bool same = mark[k - 1] == c;
        for (size_t j = 0; same && j + 1 < k; j++) same = mark[j] == mark[i - (k - 1) + j];
        if (same) return k;
    }
    return 0;
}

/* Text without the mark, then the mark and `then`. may_end: the text may also end before that. */
static gr_expr until(gr *g, const char *mark, gr_expr then, bool may_end)
{
    int32_t m[MAX_MARK];
    size_t n = characters(g, mark, m);
    uint32_t rule[MAX_MARK];
    for (size_t i = 0; i < n; i++) rule[i] = gr_rule_new(g, "text", 4);
    for (size_t i = 0; i < n && g->status == IMP_OK; i++) {
        gr_list l = {0};
        gr_range used[MAX_MARK];
        size_t n_used = 0;
        for (size_t k = 0; k < n; k++) {
            bool seen = false;
            for (size_t j = 0; j < k; j++) seen = seen || m[j] == m[k];
            if (seen) continue;
            used[n_used++] = (gr_range){m[k], m[k]};
            size_t to = fall_back(m, i, m[k]);
            gr_push(g, &l, gr_seq2(g, one_char(g, m[k]), to == n ? then : gr_call(g, rule[to])));
        }
        gr_push(g, &l, gr_seq2(g, gr_class(g, used, n_used, true), gr_call(g, rule[0])));
        if (may_end) gr_push(g, &l, 0);
        gr_rule_set(g, rule[i], gr_take_alt(g, &l));
    }
    return n > 0 ? gr_call(g, rule[0]) : 0;
}

static gr_expr any_text(gr *g)
{
    return gr_repeat(g, gr_class(g, NULL, 0, true), 0, GR_UNLIMITED);
}

/* What does not begin with the rest of the word (whose first `at` characters came), to the end of the answer. */
static gr_expr unlike(gr *g, const int32_t *word, size_t n, size_t at)
{
    if (at == n) return gr_never(g);
    gr_range c = {word[at], word[at]};
    gr_expr other = gr_seq2(g, gr_class(g, &c, 1, true), any_text(g));
    gr_expr go_on = gr_seq2(g, one_char(g, word[at]), unlike(g, word, n, at + 1));
    return gr_opt(g, gr_alt2(g, other, go_on));
}

static gr_expr space(gr *g)
{
    static const gr_range r[] = {{'\t', '\n'}, {'\r', '\r'}, {' ', ' '}};
    return gr_class(g, r, IMP_COUNT(r), false);
}

/* Any text but white space and then one of the words. Their first characters differ. */
static gr_expr unlike_all(gr *g, const char *const *word, size_t n)
{
    gr_list l = {0};
    gr_range first[8] = {{'\t', '\n'}, {'\r', '\r'}, {' ', ' '}};
    size_t n_first = 3;
    uint32_t start = gr_rule_new(g, "start", 5);
    for (size_t i = 0; i < n; i++) {
        int32_t m[MAX_MARK];
        size_t len = word[i] != NULL ? characters(g, word[i], m) : 0;
        if (len == 0) continue;
        first[n_first++] = (gr_range){m[0], m[0]};
        gr_push(g, &l, gr_seq2(g, one_char(g, m[0]), unlike(g, m, len, 1)));
    }
    gr_push(g, &l, gr_seq2(g, gr_class(g, first, n_first, true), any_text(g)));
    gr_push(g, &l, gr_seq2(g, space(g), gr_call(g, start)));
    gr_push(g, &l, 0);
    gr_rule_set(g, start, gr_take_alt(g, &l));
    return gr_call(g, start);
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static gr_expr piece(gr *g, const char *s)
{
    static const gr_range digit[] = {{'0', '9'}, {'A', 'Z'}, {'a', 'z'}};
    const char *slot = strchr(s, IMP_SLOT);
    if (slot == NULL) return gr_str(g, s);
    gr_expr id = gr_repeat(g, gr_class(g, digit, 3, false), IMP_CALL_ID_LEN, IMP_CALL_ID_LEN);
    return gr_seq2(g, gr_text(g, s, (size_t)(slot - s)), gr_seq2(g, id, piece(g, slot + 1)));
}

/* A value that is text as it is: one of those listed, or anything that does not hold value_close. */
static gr_expr raw_text(tools *t, const json_t *x, gr_expr then)
{
    gr *g = &t->s.g;
    static const char *const known[] = {"type",  "enum",    "const",   "description",
                                        "title", "default", "examples"};
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)x, key, v)
    {
        bool good = false;
        for (size_t i = 0; i < IMP_COUNT(known); i++) good = good || strcmp(known[i], key) == 0;
        if (!good)
            return schema_refuse(&t->s, IMP_UNSUPPORTED, key,
                                 "not supported for text parameters of this model's calls: leave it out");
    }
    const json_t *list = json_object_get(x, "enum"), *one = json_object_get(x, "const");
    if (list == NULL && one == NULL) return until(g, t->f->value_close, then, false);
    gr_list l = {0};
    for (size_t i = 0; i < json_array_size(list) || i == 0; i++) {
        const json_t *s = one != NULL ? one : json_array_get(list, i);
        if (!json_is_string(s) || strstr(json_string_value(s), t->f->value_close) != NULL)
            return schema_refuse(&t->s, IMP_UNSUPPORTED, "enum",
                                 "a value cannot be written in this model's calls");
        gr_push(g, &l, gr_str(g, json_string_value(s)));
    }
    return gr_seq2(g, gr_take_alt(g, &l), gr_seq2(g, gr_str(g, t->f->value_close), then));
}

/* Arguments one by one, in the schema's order, then `end`. The schema must be a plain list of properties. */
static gr_expr keyed(tools *t, const json_t *x, gr_expr end)
{
    gr *g = &t->s.g;
    const json_t *list = json_object_get(x, "properties"), *required = json_object_get(x, "required"), *v;
    static const char *const known[] = {"type",        "properties", "required", "additionalProperties",
                                        "description", "title",      "$schema",  "$defs",
                                        "definitions"};
    const char *key;
    json_object_foreach((json_t *)x, key, v)
    {
        bool good = false;
        for (size_t i = 0; i < IMP_COUNT(known); i++) good = good || strcmp(known[i], key) == 0;
        if (!good || (strcmp(key, "additionalProperties") == 0 && !json_is_false(v)))
            return schema_refuse(&t->s, IMP_UNSUPPORTED, key,
                                 "not supported for the parameters of this model's calls");
    }
    size_t n = json_object_size(list), k = n, i;
    const char **name = imp_arena_array(g->memory, n + 1, sizeof *name);
    if (name == NULL) return gr_fail(g, IMP_NOMEM, "out of memory");
    k = 0;
    json_object_foreach((json_t *)list, key, v) name[k++] = key;
    gr_expr all = end;
    while (k-- > 0 && g->status == IMP_OK) { /* from the last one: each goes over into what follows */
        v = json_object_get(list, name[k]);
        bool must = false;
        const json_t *r;
        json_array_foreach((json_t *)required, i, r) must =
            must || strcmp(json_string_value(r) ? json_string_value(r) : "", name[k]) == 0;
        uint32_t rest = gr_rule_new(g, "rest", 4);
        gr_rule_set(g, rest, all);
        gr_expr next = gr_call(g, rest), value;
        if (imp_tool_is_text(v))
            value = raw_text(t, v, next);
        else
            value = gr_seq2(g, schema_value(&t->s, v), gr_seq2(g, gr_str(g, t->f->value_close), next));
        gr_expr head =
            gr_seq2(g, gr_str(g, t->f->key_open), gr_seq2(g, gr_str(g, name[k]), gr_str(g, t->f->key_close)));
        gr_expr given = gr_seq2(g, head, value);
        all = must ? given : gr_alt2(g, given, next);
    }
    return all;
}

/* NAME and arguments of one tool, then `end`. */
static gr_expr one_call(tools *t, const json_t *fun, gr_expr end)
{
    gr *g = &t->s.g;
    const json_t *x = json_object_get(fun, "parameters");
    json_t *object = json_is_object(x) ? json_copy((json_t *)x) : json_object();
    if (object == NULL || json_array_append_new(t->s.keep, object) != 0)
        return gr_fail(g, IMP_NOMEM, "out of memory");
    const json_t *type = json_object_get(object, "type");
    if (type == NULL && json_object_set_new(object, "type", json_string("object")) != 0)
        return gr_fail(g, IMP_NOMEM, "out of memory");
    if (type != NULL && strcmp(json_string_value(type) ? json_string_value(type) : "", "object") != 0)
        return schema_refuse(&t->s, IMP_INVALID, "type", "the parameters of a tool are an object");
    static const char *const says[] = {
        "$ref",          "anyOf",         "oneOf",   "allOf", "additionalProperties", "patternProperties",
        "propertyNames", "minProperties", "required"};
    bool none = json_object_size(json_object_get(object, "properties")) == 0;
    for (size_t i = 0; i < IMP_COUNT(says); i++) none = none && json_object_get(object, says[i]) == NULL;
    if (none && json_object_set_new(object, "additionalProperties", json_false()) != 0)
        return gr_fail(g, IMP_NOMEM, "out of memory"); /* no parameters were declared: there are none */
    t->s.root = object;
    gr_expr head =
        gr_seq2(g, gr_str(g, json_string_value(json_object_get(fun, "name"))), piece(g, t->f->mid));
    if (t->f->key_open != NULL) return gr_seq2(g, head, keyed(t, object, end));
    return gr_seq2(g, head, gr_seq2(g, schema_value(&t->s, object), end));
}

/* Behind OPEN: one call of the tools that may be called, more when allowed, CLOSE. only: a name; NULL: any. */
static gr_expr calls(tools *t, const json_t *list, const char *only, bool many)
{
    gr *g = &t->s.g;
    gr_list l = {0};
    uint32_t again = gr_rule_new(g, "call", 4), end = gr_rule_new(g, "end", 3);
    gr_expr close = piece(g, t->f->close);
    if (many && t->f->many) close = gr_alt2(g, close, gr_seq2(g, piece(g, t->f->between), gr_call(g, again)));
    gr_rule_set(g, end, close);
    for (size_t i = 0; i < json_array_size(list) && g->status == IMP_OK; i++) {
        const json_t *fun = imp_tool_function(list, i);
        const char *name = json_string_value(json_object_get(fun, "name"));
        if (fun == NULL)
            return gr_fail(g, IMP_INVALID,
                           "a tool must be {\"type\":\"function\",\"function\":{\"name\":...}}");
        if (only == NULL || strcmp(only, name) == 0) gr_push(g, &l, one_call(t, fun, gr_call(g, end)));
    }
    if (gr_count(&l) == 0 && g->status == IMP_OK)
        return gr_fail(g, IMP_INVALID, "no tool that may be called is declared");
    gr_rule_set(g, again, gr_take_alt(g, &l));
    return gr_call(g, again);
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */

/* OPEN without what the trigger took of it. */
static const char *behind_trigger(const imp_toolfmt *f)
{
    return f->open + strlen(f->trigger);
}

/* Text, then perhaps calls. */
static gr_expr may_call(tools *t, gr_expr all)
{
    gr *g = &t->s.g;
    const imp_toolfmt *f = t->f;
    if (f->trigger != NULL) return until(g, f->trigger, gr_seq2(g, piece(g, behind_trigger(f)), all), true);
    const char *const word[] = {f->open, f->tag};
    gr_expr tag = f->tag != NULL ? gr_opt(g, gr_str(g, f->tag)) : 0;
    gr_expr call = gr_seq2(g, gr_repeat(g, space(g), 0, GR_UNLIMITED),
                           gr_seq2(g, tag, gr_seq2(g, piece(g, f->open), all)));
    return gr_alt2(g, call, unlike_all(g, word, IMP_COUNT(word)));
}

static gr_expr must_call(tools *t, gr_expr all)
{
    gr *g = &t->s.g;
    return gr_seq2(g, gr_repeat(g, space(g), 0, 2), gr_seq2(g, piece(g, t->f->open), all));
}

static gr_expr answer(tools *t, const json_t *spec)
{
    gr *g = &t->s.g;
    const imp_toolfmt *f = t->f;
    const json_t *choice = json_object_get(spec, "choice");
    const char *word = json_string_value(choice), *only = json_string_value(json_object_get(choice, "name"));
    bool must = only != NULL || (word != NULL && strcmp(word, "required") == 0);
    bool none = word != NULL && strcmp(word, "none") == 0, one = json_is_true(json_object_get(spec, "one"));
    uint32_t body = gr_rule_new(g, "answer", 6);
    gr_expr all = none ? gr_never(g) : calls(t, json_object_get(spec, "tools"), only, !one);
    gr_rule_set(g, body, must ? must_call(t, all) : may_call(t, all));
    gr_expr x = gr_call(g, body);
    if (f->think_open == NULL) return x;
    gr_expr thought = until(g, f->think_close, x, !must);
    if (json_is_true(json_object_get(spec, "in_thought"))) return thought;
    return gr_alt2(g, gr_seq2(g, gr_repeat(g, space(g), 0, 2), gr_seq2(g, gr_str(g, f->think_open), thought)),
                   x);
}

imp_status imp_grammar_from_tools(const imp_toolfmt *f, const json_t *spec, imp_grammar **out, imp_error *err)
{
    tools t = {.f = f};
    *out = NULL;
    if (imp_toolfmt_name(f) == NULL)
        return imp_fail_field(err, IMP_UNSUPPORTED, "tools", "this model cannot be given tools: %.200s",
                              f->why);
    IMP_TRY(gr_init(&t.s.g, err));
    t.s.keep = json_array();
    t.s.rule_of = imp_map_new(64);
    if (t.s.keep == NULL || t.s.rule_of == NULL) (void)gr_fail(&t.s.g, IMP_NOMEM, "out of memory");
    imp_status st = gr_compile(&t.s.g, answer(&t, spec), out);
    imp_map_free(t.s.rule_of);
    json_decref(t.s.keep);
    gr_deinit(&t.s.g);
    return st;
}

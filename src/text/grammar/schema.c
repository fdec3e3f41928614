/* text/grammar/schema.c - JSON schemas (draft 2020-12) to grammars: keywords, references, choices.
 *
 * Place:   response_format, tools, Ollama's `format`.
 * Idea:    a schema is flattened (allOf, $ref with neighbours), each anyOf choice is merged with what stands beside it, and
 *          each type it allows is written down. What a $ref names becomes a rule, so schemas may be recursive.
 * Always:  what is generated validates; a keyword whose meaning is not kept is refused by name. Where `type` is missing,
 *          only the types that the other keywords speak of are written; objects that list properties get no others unless
 *          additionalProperties asks for them.
 * Source:  JSON Schema draft 2020-12, core and validation. */
#include <stdio.h>
#include <stdlib.h>

#include "text/grammar/schema_int.h"

enum { MAX_WORK = 20000 };

gr_expr schema_refuse(schema *s, imp_status st, const char *keyword, const char *why)
{
    return gr_fail(&s->g, st, "JSON schema keyword \"%.40s\": %s", keyword, why);
}

/* Keywords that say nothing about which values are valid. */
static const char *const annotation[] = {"title",           "description", "default",     "examples",
                                         "$comment",        "$schema",     "deprecated",  "readOnly",
                                         "writeOnly",       "$defs",       "definitions", "contentMediaType",
                                         "contentEncoding", "$id",         "$anchor"};
/* Those that are kept to. */
static const char *const known[] = {"type",
                                    "enum",
                                    "const",
                                    "properties",
                                    "required",
                                    "additionalProperties",
                                    "patternProperties",
                                    "propertyNames",
                                    "minProperties",
                                    "maxProperties",
                                    "items",
                                    "prefixItems",
                                    "minItems",
                                    "maxItems",
                                    "additionalItems",
                                    "uniqueItems",
                                    "minLength",
                                    "maxLength",
                                    "pattern",
                                    "format",
                                    "minimum",
                                    "maximum",
                                    "exclusiveMinimum",
                                    "exclusiveMaximum",
                                    "multipleOf",
                                    "anyOf",
                                    "oneOf",
                                    "allOf",
                                    "$ref"};

static bool listed(const char *const *list, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i], key) == 0) return true;
    return false;
}

static bool check_keywords(schema *s, const json_t *x)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)x, key, value)
    {
        if (listed(annotation, IMP_COUNT(annotation), key) || listed(known, IMP_COUNT(known), key)) continue;
        return (bool)schema_refuse(s, IMP_UNSUPPORTED, key, "not supported: leave it out");
    }
    return s->g.status == IMP_OK;
}

uint32_t schema_count(schema *s, const json_t *x, const char *key, uint32_t dflt)
{
    const json_t *v = json_object_get(x, key);
    if (v == NULL) return dflt;
    double d = json_number_value(v);
    if (!json_is_number(v) || d < 0 || d != (double)(uint64_t)d)
        return schema_refuse(s, IMP_INVALID, key, "must be a whole number, 0 or more");
    return (uint32_t)IMP_MIN(d, (double)GR_MAX_EXPR);
}

/* ---- references -------------------------------------------------------------------------------------- */

/* One step of a JSON pointer: its key, unescaped. */
static bool pointer_step(const char **p, char *key, size_t cap)
{
    size_t n = 0;
    for (; **p != '\0' && **p != '/'; (*p)++) {
        char c = **p;
        if (c == '~' && ((*p)[1] == '0' || (*p)[1] == '1'))
            c = *++*p == '0' ? '~' : '/';
        else if (c == '%' && (*p)[1] != '\0' && (*p)[2] != '\0') {
            unsigned v;
            char hex[3] = {(*p)[1], (*p)[2], 0};
            if (sscanf(hex, "%2x", &v) != 1) return false;
            c = (char)v;
            *p += 2;
        }
        if (n + 1 >= cap) return false;
        key[n++] = c;
    }
    key[n] = '\0';
    return true;
}

const json_t *schema_resolve(schema *s, const json_t *x)
{
    const char *ref = json_string_value(json_object_get(x, "$ref"));
    if (ref == NULL || ref[0] != '#' || (ref[1] != '\0' && ref[1] != '/')) {
        (void)schema_refuse(s, IMP_UNSUPPORTED, "$ref",
                            "only references into this schema (\"#/...\") are supported");
        return NULL;
    }
    const json_t *at = s->root;
    for (const char *p = ref + 1; at != NULL && *p == '/';) {
        char key[256];
        p++;
        if (!pointer_step(&p, key, sizeof key))
            at = NULL;
        else if (json_is_array(at))
            at = json_array_get(at, (size_t)strtoul(key, NULL, 10));
        else
            at = json_object_get(at, key);
    }
    if (at == NULL) (void)gr_fail(&s->g, IMP_INVALID, "JSON schema: nothing is at $ref \"%.100s\"", ref);
    return at;
}

/* The rule of a schema that is named by a $ref; written on first use. */
static gr_expr referred(schema *s, const json_t *target, const char *name)
{
    uint32_t rule;
    if (imp_map_get(s->rule_of, &target, sizeof target, &rule)) return gr_call(&s->g, rule);
    const json_t **key = imp_arena_alloc(s->g.memory, sizeof *key);
    rule = gr_rule_new(&s->g, name, strlen(name));
    if (s->g.status != IMP_OK) return 0;
    if (key == NULL) return gr_fail(&s->g, IMP_NOMEM, "out of memory");
    *key = target;
    if (imp_map_put(s->rule_of, key, sizeof *key, rule) != IMP_OK)
        return gr_fail(&s->g, IMP_NOMEM, "out of memory");
    gr_rule_set(&s->g, rule, schema_value(s, target));
    return gr_call(&s->g, rule);
}

static size_t n_assertions(const json_t *x)
{
    size_t n = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)x, key, value) n += !listed(annotation, IMP_COUNT(annotation), key);
    return n;
}

/* ---- values ---------------------------------------------------------------------------------------------- */

static gr_expr any_value(schema *s)
{
    gr *g = &s->g;
    if (s->any == 0) {
        s->any = gr_rule_new(g, "value", 5) + 1;
        json_t *none = json_object();
        if (none == NULL || json_array_append_new(s->keep, none) != 0)
            return gr_fail(g, IMP_NOMEM, "out of memory");
        gr_expr x[] = {
            gr_str(g, "null"),    gr_str(g, "true"),     gr_str(g, "false"),    schema_number(s, none, false),
            schema_any_string(s), schema_array(s, none), schema_object(s, none)};
        gr_rule_set(g, s->any - 1, gr_alt(g, x, IMP_COUNT(x)));
    }
    return gr_call(g, s->any - 1);
}

/* enum or const: those values whose type is allowed. */
static gr_expr listed_values(schema *s, const json_t *x)
{
    static const char *const beside[] = {"type", "enum", "const"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)x, key, value)
    {
        if (!listed(annotation, IMP_COUNT(annotation), key) && !listed(beside, IMP_COUNT(beside), key))
            return schema_refuse(s, IMP_UNSUPPORTED, key, "not supported beside enum or const");
    }
    const json_t *constant = json_object_get(x, "const"), *list = json_object_get(x, "enum"), *v;
    if (list != NULL && !json_is_array(list))
        return schema_refuse(s, IMP_INVALID, "enum", "must be an array");
    uint32_t types = schema_types(s, x);
    gr_list l = {0};
    size_t i;
    json_array_foreach((json_t *)list, i, v)
    {
        if ((schema_type_of(v) & types) && (constant == NULL || json_equal(constant, v)))
            gr_push(&s->g, &l, schema_literal(s, v));
    }
    if (list == NULL && (schema_type_of(constant) & types)) gr_push(&s->g, &l, schema_literal(s, constant));
    return gr_take_alt(&s->g, &l);
}

static gr_expr typed(schema *s, const json_t *x)
{
    uint32_t types = schema_written_types(s, x);
    if (s->g.status != IMP_OK) return 0;
    if (types == T_ALL && n_assertions(x) == 0) return any_value(s);
    gr *g = &s->g;
    gr_list l = {0};
    if (types & T_OBJECT) gr_push(g, &l, schema_object(s, x));
    if (types & T_ARRAY) gr_push(g, &l, schema_array(s, x));
    if (types & T_STRING) gr_push(g, &l, schema_string(s, x));
    if (types & (T_INT | T_FRACTION)) gr_push(g, &l, schema_number(s, x, !(types & T_FRACTION)));
    if (types & T_BOOL) gr_push(g, &l, gr_alt2(g, gr_str(g, "true"), gr_str(g, "false")));
    if (types & T_NULL) gr_push(g, &l, gr_str(g, "null"));
    return gr_take_alt(g, &l);
}

/* anyOf and oneOf: each choice together with what stands beside the keyword. */
static gr_expr choices(schema *s, const json_t *x, const char *keyword)
{
    const json_t *list = json_object_get(x, keyword);
    if (!json_is_array(list) || json_array_size(list) == 0)
        return schema_refuse(s, IMP_INVALID, keyword, "must be an array with at least one schema");
    json_t *beside = json_copy((json_t *)x);
    if (beside == NULL || json_array_append_new(s->keep, beside) != 0)
        return gr_fail(&s->g, IMP_NOMEM, "out of memory");
    (void)json_object_del(beside, keyword);
    bool alone = n_assertions(beside) == 0;
    size_t n = json_array_size(list);
    for (size_t i = 0; keyword[0] == 'o' && i < n; i++)
        for (size_t k = i + 1; k < n && s->g.status == IMP_OK; k++)
            if (!schema_disjoint(s, json_array_get(list, i), json_array_get(list, k)))
                return schema_refuse(
                    s, IMP_UNSUPPORTED, "oneOf",
                    "two of its schemas may both be valid for one value: use anyOf, or give each a "
                    "required property with a constant of its own");
    gr_list l = {0};
    for (size_t i = 0; i < n && s->g.status == IMP_OK; i++) {
        const json_t *one = json_array_get(list, i);
        gr_push(&s->g, &l, schema_value(s, alone ? one : schema_both(s, beside, one)));
    }
    return gr_take_alt(&s->g, &l);
}

static gr_expr object_schema(schema *s, const json_t *x)
{
    if (!check_keywords(s, x)) return 0;
    const json_t *ref = json_object_get(x, "$ref");
    if (ref != NULL && n_assertions(x) == 1) {
        const json_t *target = schema_resolve(s, x);
        return target != NULL ? referred(s, target, json_string_value(ref)) : 0;
    }
    x = schema_flat(s, x);
    if (x == NULL || s->g.status != IMP_OK) return 0;
    if (!json_is_object(x)) return schema_value(s, x);
    if (!check_keywords(s, x)) return 0;
    if (json_object_get(x, "anyOf") != NULL) return choices(s, x, "anyOf");
    if (json_object_get(x, "oneOf") != NULL) return choices(s, x, "oneOf");
    if (json_object_get(x, "enum") != NULL || json_object_get(x, "const") != NULL) return listed_values(s, x);
    return typed(s, x);
}

gr_expr schema_value(schema *s, const json_t *x)
{
    if (s->g.status != IMP_OK) return 0;
    if (json_is_true(x)) return any_value(s);
    if (json_is_false(x)) return gr_never(&s->g);
    if (!json_is_object(x))
        return gr_fail(&s->g, IMP_INVALID, "JSON schema: a schema must be an object, true or false");
    if (++s->work > MAX_WORK) return gr_fail(&s->g, IMP_TOO_LARGE, "the JSON schema is too large");
    if (++s->depth > GR_MAX_DEPTH)
        return gr_fail(&s->g, IMP_TOO_LARGE, "the JSON schema is nested too deeply");
    gr_expr e = object_schema(s, x);
    s->depth--;
    return e;
}

/* ---- entry ----------------------------------------------------------------------------------------------------- */

static imp_status build(const json_t *root, imp_grammar **out, imp_error *err,
                        gr_expr (*value)(schema *, const json_t *))
{
    schema s = {.root = root};
    *out = NULL;
    IMP_TRY(gr_init(&s.g, err));
    s.keep = json_array();
    s.rule_of = imp_map_new(64);
    if (s.keep == NULL || s.rule_of == NULL) (void)gr_fail(&s.g, IMP_NOMEM, "out of memory");
    imp_status st = gr_compile(&s.g, value(&s, root), out);
    imp_map_free(s.rule_of);
    json_decref(s.keep);
    gr_deinit(&s.g);
    return st;
}

imp_status imp_grammar_from_schema(const json_t *root, imp_grammar **out, imp_error *err)
{
    return build(root, out, err, schema_value);
}

imp_status imp_grammar_json_object(imp_grammar **out, imp_error *err)
{
    json_t *none = json_object();
    if (none == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    imp_status s = build(none, out, err, schema_object);
    json_decref(none);
    return s;
}

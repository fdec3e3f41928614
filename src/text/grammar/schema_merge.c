/* text/grammar/schema_merge.c - two schemas that must both hold become one; which schemas exclude each other.
 *
 * Idea:    keyword by keyword: bounds take the tighter one, sets their intersection, sub-schemas an allOf of both. What
 *          cannot be merged that way is refused by name. */
#include "text/grammar/schema_int.h"

static const char *const type_name[] = {"null", "boolean", "integer", "number", "string", "array", "object"};
static const uint32_t type_bits[] = {T_NULL, T_BOOL, T_INT, T_INT | T_FRACTION, T_STRING, T_ARRAY, T_OBJECT};

static uint32_t named_type(schema *s, const json_t *v)
{
    const char *name = json_string_value(v);
    for (size_t i = 0; name != NULL && i < IMP_COUNT(type_name); i++)
        if (strcmp(name, type_name[i]) == 0) return type_bits[i];
    return schema_refuse(s, IMP_INVALID, "type",
                         "must be null, boolean, integer, number, string, array or object");
}

uint32_t schema_types(schema *s, const json_t *x)
{
    const json_t *t = json_object_get(x, "type"), *v;
    if (t == NULL) return T_ALL;
    if (!json_is_array(t)) return named_type(s, t);
    uint32_t bits = 0;
    size_t i;
    json_array_foreach((json_t *)t, i, v) bits |= named_type(s, v);
    return bits;
}

uint32_t schema_type_of(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: return T_OBJECT;
    case JSON_ARRAY: return T_ARRAY;
    case JSON_STRING: return T_STRING;
    case JSON_INTEGER: return T_INT;
    case JSON_REAL: return json_real_value(v) == (double)(int64_t)json_real_value(v) ? T_INT : T_FRACTION;
    case JSON_TRUE:
    case JSON_FALSE: return T_BOOL;
    case JSON_NULL: return T_NULL;
    }
    return 0;
}

uint32_t schema_written_types(schema *s, const json_t *x)
{
    static const struct {
        const char *key;
        uint32_t types;
    } speaks_of[] = {{"properties", T_OBJECT},
                     {"required", T_OBJECT},
                     {"additionalProperties", T_OBJECT},
                     {"patternProperties", T_OBJECT},
                     {"propertyNames", T_OBJECT},
                     {"minProperties", T_OBJECT},
                     {"maxProperties", T_OBJECT},
                     {"items", T_ARRAY},
                     {"prefixItems", T_ARRAY},
                     {"minItems", T_ARRAY},
                     {"maxItems", T_ARRAY},
                     {"uniqueItems", T_ARRAY},
                     {"minLength", T_STRING},
                     {"maxLength", T_STRING},
                     {"pattern", T_STRING},
                     {"format", T_STRING},
                     {"minimum", T_INT | T_FRACTION},
                     {"maximum", T_INT | T_FRACTION},
                     {"exclusiveMinimum", T_INT | T_FRACTION},
                     {"exclusiveMaximum", T_INT | T_FRACTION},
                     {"multipleOf", T_INT}};
    if (json_object_get(x, "type") != NULL) return schema_types(s, x);
    uint32_t bits = 0;
    for (size_t i = 0; i < IMP_COUNT(speaks_of); i++)
        if (json_object_get(x, speaks_of[i].key) != NULL) bits |= speaks_of[i].types;
    return bits != 0 ? bits : T_ALL;
}

/* ---- both ------------------------------------------------------------------------------------------------------- */

static json_t *kept(schema *s, json_t *x)
{
    if (x == NULL || json_array_append_new(s->keep, x) != 0) {
        (void)gr_fail(&s->g, IMP_NOMEM, "out of memory");
        return NULL;
    }
    return x;
}

static json_t *all_of(const json_t *a, const json_t *b)
{
    return json_pack("{s:[O,O]}", "allOf", a, b);
}

static json_t *common(const json_t *a, const json_t *b)
{
    json_t *out = json_array(), *v;
    size_t i, k;
    json_array_foreach((json_t *)a, i, v)
    {
        for (k = 0; k < json_array_size(b); k++)
            if (json_equal(v, json_array_get(b, k))) break;
        if (k < json_array_size(b)) (void)json_array_append(out, v);
    }
    return out;
}

static json_t *types_of(uint32_t bits)
{
    json_t *out = json_array();
    for (size_t i = 0; i < IMP_COUNT(type_name); i++) {
        bool is = (bits & type_bits[i]) == type_bits[i];
        if (is && !(type_bits[i] == T_INT && (bits & T_FRACTION)))
            (void)json_array_append_new(out, json_string(type_name[i]));
    }
    return out;
}

static bool is_in(const char *const *list, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i], key) == 0) return true;
    return false;
}

/* What `a` says of a property that only the other schema lists; NULL: nothing. */
static const json_t *says_of_others(const json_t *a)
{
    return json_object_get(a, "additionalProperties");
}

static json_t *merge_properties(const json_t *a, const json_t *b)
{
    const json_t *pa = json_object_get(a, "properties"), *pb = json_object_get(b, "properties");
    json_t *out = json_object(), *v;
    const char *key;
    json_object_foreach((json_t *)pa, key, v)
    {
        const json_t *other = json_object_get(pb, key);
        if (other == NULL) other = says_of_others(b);
        (void)(other == NULL ? json_object_set(out, key, v)
                             : json_object_set_new(out, key, all_of(v, other)));
    }
    json_object_foreach((json_t *)pb, key, v)
    {
        if (json_object_get(pa, key) != NULL) continue;
        const json_t *other = says_of_others(a);
        (void)(other == NULL ? json_object_set(out, key, v)
                             : json_object_set_new(out, key, all_of(v, other)));
    }
    return out;
}

/* Every choice of one with every choice of the other. */
static json_t *product(const json_t *a, const json_t *b)
{
    json_t *out = json_array();
    for (size_t i = 0; i < json_array_size(a); i++)
        for (size_t k = 0; k < json_array_size(b); k++)
            (void)json_array_append_new(out, all_of(json_array_get(a, i), json_array_get(b, k)));
    return out;
}

/* One keyword that both have; NULL: cannot be merged. */
static json_t *merge_key(schema *s, const char *key, const json_t *a, const json_t *b)
{
    static const char *const larger[] = {"minimum", "exclusiveMinimum", "minLength", "minItems",
                                         "minProperties"};
    static const char *const smaller[] = {"maximum", "exclusiveMaximum", "maxLength", "maxItems",
                                          "maxProperties"};
    static const char *const sub[] = {"additionalProperties", "items", "propertyNames"};
    const json_t *x = json_object_get(a, key), *y = json_object_get(b, key);
    bool low = is_in(larger, IMP_COUNT(larger), key), high = is_in(smaller, IMP_COUNT(smaller), key);
    if (json_equal(x, y)) return json_incref((json_t *)x);
    if (low || high)
        return json_incref((json_t *)((json_number_value(x) > json_number_value(y)) == low ? x : y));
    if (is_in(sub, IMP_COUNT(sub), key) && !json_is_array(x) && !json_is_array(y)) {
        if (json_is_false(x) || json_is_false(y)) return json_false();
        return all_of(x, y);
    }
    if (strcmp(key, "type") == 0) return types_of(schema_types(s, a) & schema_types(s, b));
    if (strcmp(key, "enum") == 0) return common(x, y);
    if (strcmp(key, "const") == 0) return NULL;
    if (strcmp(key, "anyOf") == 0 && json_array_size(x) * json_array_size(y) <= 64) return product(x, y);
    if (strcmp(key, "required") == 0) {
        json_t *out = json_copy((json_t *)x);
        (void)json_array_extend(out, (json_t *)y);
        return out;
    }
    if (strcmp(key, "uniqueItems") == 0) return json_true();
    return NULL;
}

static bool is_annotation(const char *key)
{
    static const char *const list[] = {
        "title",       "description", "default",  "examples",         "$comment",
        "$schema",     "deprecated",  "readOnly", "writeOnly",        "$defs",
        "definitions", "$id",         "$anchor",  "contentMediaType", "contentEncoding"};
    return is_in(list, IMP_COUNT(list), key);
}

json_t *schema_both(schema *s, const json_t *a, const json_t *b)
{
    if (++s->work > 20000) {
        (void)gr_fail(&s->g, IMP_TOO_LARGE, "the JSON schema is too large");
        return NULL;
    }
    a = schema_flat(s, a);
    b = schema_flat(s, b);
    if (a == NULL || b == NULL || s->g.status != IMP_OK) return NULL;
    if (json_is_false(a) || json_is_false(b)) return json_false();
    if (json_is_true(a) || !json_is_object(a)) return kept(s, json_incref((json_t *)b));
    if (json_is_true(b) || !json_is_object(b)) return kept(s, json_incref((json_t *)a));
    bool constants = json_object_get(a, "const") != NULL && json_object_get(b, "const") != NULL;
    if (constants && !json_equal(json_object_get(a, "const"), json_object_get(b, "const")))
        return json_false();
    json_t *out = kept(s, json_object());
    const char *key;
    json_t *v;
    if (out == NULL) return NULL;
    (void)json_object_update(out, (json_t *)a);
    json_object_foreach((json_t *)b, key, v)
    {
        if (strcmp(key, "properties") == 0 || (json_object_get(a, key) != NULL && is_annotation(key)))
            continue;
        json_t *one = json_object_get(a, key) == NULL ? json_incref(v) : merge_key(s, key, a, b);
        if (one == NULL) {
            (void)schema_refuse(s, IMP_UNSUPPORTED, key,
                                "cannot be combined with another one of the same kind");
            return NULL;
        }
        (void)json_object_set_new(out, key, one);
    }
    bool lists = json_object_get(a, "properties") != NULL || json_object_get(b, "properties") != NULL;
    if (lists) (void)json_object_set_new(out, "properties", merge_properties(a, b));
    return out;
}

const json_t *schema_flat(schema *s, const json_t *x)
{
    for (int hops = 0; json_is_object(x) && s->g.status == IMP_OK; hops++) {
        const json_t *list = json_object_get(x, "allOf"), *ref = json_object_get(x, "$ref");
        if (list == NULL && ref == NULL) return x;
        if (hops > 32 || ++s->depth > 4 * GR_MAX_DEPTH) {
            (void)gr_fail(&s->g, IMP_INVALID, "JSON schema: $ref or allOf goes round in a circle");
            return NULL;
        }
        json_t *rest = kept(s, json_copy((json_t *)x));
        if (rest == NULL) return NULL;
        (void)json_object_del(rest, "allOf");
        (void)json_object_del(rest, "$ref");
        x = rest;
        if (ref != NULL) {
            json_t *only = kept(s, json_pack("{s:O}", "$ref", ref));
            const json_t *target = only != NULL ? schema_resolve(s, only) : NULL;
            x = target != NULL ? schema_both(s, x, target) : NULL;
        }
        if (list != NULL && !json_is_array(list))
            (void)schema_refuse(s, IMP_INVALID, "allOf", "must be an array");
        for (size_t i = 0; x != NULL && i < json_array_size(list); i++)
            x = schema_both(s, x, json_array_get(list, i));
        s->depth--;
    }
    return x;
}

/* ---- which schemas exclude each other ------------------------------------------------------------------------------ */

/* The values a schema is limited to; NULL: not by enum or const. A new reference. */
static json_t *values_of(const json_t *x)
{
    const json_t *c = json_object_get(x, "const"), *e = json_object_get(x, "enum");
    if (c != NULL) return json_pack("[O]", c);
    return e != NULL ? json_incref((json_t *)e) : NULL;
}

static bool values_disjoint(const json_t *a, const json_t *b)
{
    json_t *x = values_of(a), *y = values_of(b);
    bool apart = false;
    if (x != NULL && y != NULL) {
        json_t *c = common(x, y);
        apart = json_array_size(c) == 0;
        json_decref(c);
    }
    json_decref(x);
    json_decref(y);
    return apart;
}

static bool lists_required(const json_t *x, const char *name)
{
    const json_t *list = json_object_get(x, "required"), *v;
    size_t i;
    json_array_foreach((json_t *)list, i,
                       v) if (json_is_string(v) && strcmp(json_string_value(v), name) == 0) return true;
    return false;
}

/* Objects of a are never valid for b: a property that a requires is forbidden by b, or has another constant there. */
static bool objects_apart(schema *s, const json_t *a, const json_t *b)
{
    const json_t *list = json_object_get(a, "required"), *v;
    size_t i;
    json_array_foreach((json_t *)list, i, v)
    {
        const char *name = json_string_value(v);
        if (name == NULL) continue;
        const json_t *x = json_object_get(json_object_get(a, "properties"), name);
        const json_t *y = json_object_get(json_object_get(b, "properties"), name);
        if (y == NULL && json_is_false(json_object_get(b, "additionalProperties")) &&
            json_object_get(b, "patternProperties") == NULL)
            return true;
        if (y != NULL && x != NULL && lists_required(b, name) &&
            values_disjoint(schema_flat(s, x), schema_flat(s, y)))
            return true;
    }
    return false;
}

static uint32_t value_types(const json_t *x, uint32_t types)
{
    json_t *values = values_of(x), *v;
    if (values == NULL) return types;
    uint32_t bits = 0;
    size_t i;
    json_array_foreach(values, i, v) bits |= schema_type_of(v);
    json_decref(values);
    return bits & types;
}

bool schema_disjoint(schema *s, const json_t *a, const json_t *b)
{
    a = schema_flat(s, a);
    b = schema_flat(s, b);
    if (s->g.status != IMP_OK || json_is_false(a) || json_is_false(b)) return true;
    if (!json_is_object(a) || !json_is_object(b)) return false;
    uint32_t wa = value_types(a, schema_written_types(s, a)), wb = value_types(b, schema_written_types(s, b));
    uint32_t fa = value_types(a, schema_types(s, a)), fb = value_types(b, schema_types(s, b));
    uint32_t shared = (wa & fb) | (wb & fa);
    if (shared == 0 || values_disjoint(a, b)) return true;
    return shared == T_OBJECT && (objects_apart(s, a, b) || objects_apart(s, b, a));
}

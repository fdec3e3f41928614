/* text/grammar/schema_object.c - objects and arrays.
 *
 * Idea:    members are written in the schema's order, optional ones may be left out, others follow at the end; each "what may
 *          follow from here on" is one rule, so a list of n members costs n rules and not n*n texts.
 *          Between parts stands nothing, one space, or a line end with indentation. */
#include "text/grammar/schema_int.h"

enum { MAX_PROPERTY = 1000 };

gr_expr schema_space(schema *s)
{
    gr *g = &s->g;
    gr_expr line = gr_seq2(g, gr_str(g, "\n"), gr_repeat(g, gr_str(g, " "), 0, 16));
    return gr_opt(g, gr_alt2(g, gr_str(g, " "), line));
}

static gr_expr surrounded(schema *s, const char *open, gr_expr body, const char *close)
{
    gr *g = &s->g;
    gr_expr x[] = {gr_str(g, open), schema_space(s), body, schema_space(s), gr_str(g, close)};
    return gr_seq(g, x, IMP_COUNT(x));
}

static gr_expr comma(schema *s, gr_expr then)
{
    gr *g = &s->g;
    gr_expr x[] = {gr_str(g, ","), schema_space(s), then};
    return gr_seq(g, x, 3);
}

/* ---- objects ---------------------------------------------------------------------------------------------- */

typedef struct object {
    schema *s;
    const char **name; /* [n] in the schema's order */
    gr_expr *member;   /* [n] "name": value */
    bool *required;    /* [n] */
    uint32_t n;
    gr_expr other; /* a member that is none of these; GR_NEVER's expression when there may be none */
    bool has_other;
    uint32_t min, max; /* members */
    bool counts;       /* min or max was given */
    uint32_t n_count;  /* numbers of members told apart: 2 (none, some) without bounds */
    uint32_t *rule;    /* [(n + 1) * n_count] + 1; 0: not made yet */
} object;

static gr_expr member_of(schema *s, gr_expr key, gr_expr value)
{
    gr *g = &s->g;
    gr_expr x[] = {key, gr_str(g, ":"), gr_opt(g, gr_str(g, " ")), value};
    return gr_seq(g, x, IMP_COUNT(x));
}

/* What may follow when members 0..i-1 were decided and `count` were written. */
static gr_expr members(object *o, uint32_t i, uint32_t count);

static gr_expr members_rule(object *o, uint32_t i, uint32_t count)
{
    gr *g = &o->s->g;
    if (!o->counts) count = IMP_MIN(count, 1u);
    if (count > o->max) return gr_never(g);
    count = IMP_MIN(count, o->n_count - 1);
    uint32_t *rule = &o->rule[(size_t)i * o->n_count + count];
    if (*rule == 0 && g->status == IMP_OK) {
        *rule = gr_rule_new(g, "members", 7) + 1;
        gr_rule_set(g, *rule - 1, members(o, i, count));
    }
    return g->status == IMP_OK ? gr_call(g, *rule - 1) : 0;
}

static gr_expr written(object *o, gr_expr member, uint32_t count)
{
    return count == 0 ? member : comma(o->s, member);
}

/* Members beside the declared ones, `count` being written. */
static gr_expr others(object *o, uint32_t count)
{
    gr *g = &o->s->g;
    uint32_t min = o->min > count ? o->min - count : 0;
    uint32_t max = o->max == GR_UNLIMITED ? GR_UNLIMITED : o->max - count;
    if (!o->has_other) return min == 0 ? 0 : gr_never(g);
    if (count > 0) return gr_repeat(g, comma(o->s, o->other), min, max);
    if (max == 0) return min == 0 ? 0 : gr_never(g);
    uint32_t more = max == GR_UNLIMITED ? GR_UNLIMITED : max - 1;
    gr_expr some = gr_seq2(g, o->other, gr_repeat(g, comma(o->s, o->other), min > 0 ? min - 1 : 0, more));
    return min == 0 ? gr_opt(g, some) : some;
}

static gr_expr members(object *o, uint32_t i, uint32_t count)
{
    gr *g = &o->s->g;
    if (i == o->n) return others(o, count);
    if (++o->s->depth > 2 * MAX_PROPERTY + GR_MAX_DEPTH)
        return gr_fail(g, IMP_TOO_LARGE, "the JSON schema has too many properties");
    gr_expr with = gr_seq2(g, written(o, o->member[i], count), members_rule(o, i + 1, count + 1));
    gr_expr e = o->required[i] ? with : gr_alt2(g, with, members_rule(o, i + 1, count));
    o->s->depth--;
    return e;
}

static bool is_required(const json_t *list, const char *name)
{
    size_t i;
    json_t *v;
    json_array_foreach((json_t *)list, i,
                       v) if (json_is_string(v) && strcmp(json_string_value(v), name) == 0) return true;
    return false;
}

/* Keys of other members, when they are limited: propertyNames or one pattern. */
static bool other_members(object *o, const json_t *x)
{
    schema *s = o->s;
    gr *g = &s->g;
    const json_t *extra = json_object_get(x, "additionalProperties"),
                 *names = json_object_get(x, "propertyNames");
    const json_t *patterns = json_object_get(x, "patternProperties");
    bool free_keys = o->n == 0 || extra != NULL; /* listed properties alone mean: these and no others */
    if (json_object_size(patterns) > 0) {
        if (o->n > 0 || names != NULL || json_object_size(patterns) > 1)
            return (bool)schema_refuse(
                s, IMP_UNSUPPORTED, "patternProperties",
                "supported is one pattern, without properties and propertyNames beside it");
        json_t *part = json_object();
        const char *re = json_object_iter_key(json_object_iter((json_t *)patterns));
        if (part == NULL || json_array_append_new(s->keep, part) != 0 ||
            json_object_set_new(part, "pattern", json_string(re)) != 0)
            return (bool)gr_fail(g, IMP_NOMEM, "out of memory");
        o->other = member_of(s, schema_string(s, part), schema_value(s, json_object_get(patterns, re)));
        o->has_other = true;
        return g->status == IMP_OK;
    }
    if (!free_keys || json_is_false(extra)) return true;
    gr_expr key;
    if (names != NULL && !json_is_true(names)) {
        if (o->n > 0 || !json_is_object(names))
            return (bool)schema_refuse(s, IMP_UNSUPPORTED, "propertyNames",
                                       "not supported beside properties");
        json_t *text = json_pack("{s:s}", "type", "string");
        if (text == NULL || json_array_append_new(s->keep, text) != 0)
            return (bool)gr_fail(g, IMP_NOMEM, "out of memory");
        key = schema_value(s, schema_both(s, text, names));
    } else {
        key = schema_other_key(s, o->name, o->n);
    }
    o->other = member_of(s, key, schema_value(s, extra != NULL ? extra : json_true()));
    o->has_other = true;
    return g->status == IMP_OK;
}

static bool add_property(object *o, const json_t *list, const char *name, const json_t *value)
{
    schema *s = o->s;
    json_t *text = json_string(name);
    if (text == NULL || json_array_append_new(s->keep, text) != 0)
        return (bool)gr_fail(&s->g, IMP_NOMEM, "out of memory");
    o->name[o->n] = name;
    o->required[o->n] = is_required(list, name);
    o->member[o->n++] = member_of(s, schema_literal(s, text), schema_value(s, value));
    return s->g.status == IMP_OK;
}

static bool read_members(object *o, const json_t *x)
{
    schema *s = o->s;
    const json_t *properties = json_object_get(x, "properties"), *required = json_object_get(x, "required"),
                 *v;
    const json_t *extra = json_object_get(x, "additionalProperties");
    if (properties != NULL && !json_is_object(properties))
        return (bool)schema_refuse(s, IMP_INVALID, "properties", "must be an object");
    if (required != NULL && !json_is_array(required))
        return (bool)schema_refuse(s, IMP_INVALID, "required", "must be an array of names");
    size_t cap = json_object_size(properties) + json_array_size(required), i;
    if (cap > MAX_PROPERTY)
        return (bool)gr_fail(&s->g, IMP_TOO_LARGE, "the JSON schema has too many properties");
    o->name = imp_arena_array(s->g.memory, cap + 1, sizeof *o->name);
    o->member = imp_arena_array(s->g.memory, cap + 1, sizeof *o->member);
    o->required = imp_arena_array(s->g.memory, cap + 1, sizeof *o->required);
    if (o->name == NULL || o->member == NULL || o->required == NULL)
        return (bool)gr_fail(&s->g, IMP_NOMEM, "out of memory");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)properties, key,
                        value) if (!add_property(o, required, key, value)) return false;
    json_array_foreach((json_t *)required, i, v)
    {
        if (!json_is_string(v))
            return (bool)schema_refuse(s, IMP_INVALID, "required", "must be an array of names");
        const char *name = json_string_value(v);
        bool have = false;
        for (uint32_t k = 0; k < o->n; k++) have = have || strcmp(o->name[k], name) == 0;
        if (!have && !add_property(o, required, name, extra != NULL ? extra : json_true())) return false;
    }
    return true;
}

gr_expr schema_object(schema *s, const json_t *x)
{
    gr *g = &s->g;
    object o = {.s = s};
    if (!read_members(&o, x) || !other_members(&o, x)) return 0;
    o.min = schema_count(s, x, "minProperties", 0);
    o.max = schema_count(s, x, "maxProperties", GR_UNLIMITED);
    o.counts = o.min > 0 || o.max != GR_UNLIMITED;
    if (o.has_other && o.min > 1 + o.n)
        return schema_refuse(s, IMP_UNSUPPORTED, "minProperties",
                             "not supported above the number of listed properties");
    if ((o.min > MAX_PROPERTY && o.min != GR_UNLIMITED) || o.max < o.min) return gr_never(g);
    o.n_count = o.counts ? o.n + 1 : 2;
    if ((uint64_t)(o.n + 1) * o.n_count > 100000)
        return gr_fail(g, IMP_TOO_LARGE, "the JSON schema is too large");
    o.rule = imp_arena_array(g->memory, (size_t)(o.n + 1) * o.n_count, sizeof *o.rule);
    if (o.rule == NULL) return gr_fail(g, IMP_NOMEM, "out of memory");
    return surrounded(s, "{", members_rule(&o, 0, 0), "}");
}

/* ---- arrays ---------------------------------------------------------------------------------------------------- */

/* What may follow element i - 1 (at the start: the first element). */
static gr_expr elements(schema *s, const json_t *prefix, gr_expr item, uint32_t i, uint32_t min, uint32_t max)
{
    gr *g = &s->g;
    uint32_t n = (uint32_t)json_array_size(prefix);
    if (i >= max) return i >= min ? 0 : gr_never(g);
    if (i >= n && i > 0)
        return gr_repeat(g, comma(s, item), min > i ? min - i : 0, max == GR_UNLIMITED ? max : max - i);
    gr_expr one = i < n ? schema_value(s, json_array_get(prefix, i)) : item;
    gr_expr e = gr_seq2(g, i == 0 ? one : comma(s, one), elements(s, prefix, item, i + 1, min, max));
    return i >= min ? gr_opt(g, e) : e;
}

gr_expr schema_array(schema *s, const json_t *x)
{
    gr *g = &s->g;
    const json_t *prefix = json_object_get(x, "prefixItems"), *items = json_object_get(x, "items");
    uint32_t min = schema_count(s, x, "minItems", 0), max = schema_count(s, x, "maxItems", GR_UNLIMITED);
    if (json_is_array(items)) { /* as drafts before 2020-12 wrote it */
        prefix = items;
        items = json_object_get(x, "additionalItems");
    } else if (json_object_get(x, "additionalItems") != NULL) {
        return schema_refuse(s, IMP_UNSUPPORTED, "additionalItems", "only beside an array of items");
    }
    if (prefix != NULL && !json_is_array(prefix))
        return schema_refuse(s, IMP_INVALID, "prefixItems", "must be an array");
    if (json_array_size(prefix) > GR_MAX_DEPTH)
        return schema_refuse(s, IMP_TOO_LARGE, "prefixItems", "too many");
    if (json_is_true(json_object_get(x, "uniqueItems")) && max > 1)
        return schema_refuse(s, IMP_UNSUPPORTED, "uniqueItems", "not supported");
    if (max < min) return gr_never(g);
    if (prefix != NULL && items == NULL) max = IMP_MIN(max, (uint32_t)json_array_size(prefix));
    gr_expr item = max > json_array_size(prefix) ? schema_value(s, items != NULL ? items : json_true()) : 0;
    if (g->status != IMP_OK) return 0;
    return surrounded(s, "[", elements(s, prefix, item, 0, min, max), "]");
}

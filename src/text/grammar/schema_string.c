/* text/grammar/schema_string.c - JSON strings: lengths, patterns, formats, keys.
 *
 * Idea:    a character is written as itself or, where JSON asks for it, with an escape; every way to write one counts as one
 *          character. A string's body holds no rule calls, so that a masker sees all of it at once.
 * Source:  RFC 8259 section 7; RFC 3339, 4122, 1123, 5321 for the formats (a subset of each). */
#include <stdio.h>
#include <stdlib.h>

#include "text/grammar/schema_int.h"

static const struct {
    int32_t cp;
    const char *text;
} short_escape[] = {{'"', "\\\""}, {'\\', "\\\\"}, {'\b', "\\b"}, {'\f', "\\f"},
                    {'\n', "\\n"}, {'\r', "\\r"},  {'\t', "\\t"}};

/* A set of characters inside a JSON string, each in its shortest form (NUL is never written). */
static gr_expr spell_json(gr *g, const gr_range *r, size_t n)
{
    gr_list l = {0};
    imp_buf plain = {0};
    for (size_t i = 0; i < n; i++) {
        for (int32_t cp = IMP_MAX(r[i].lo, 1); cp <= IMP_MIN(r[i].hi, 0x1f); cp++) {
            char text[8];
            size_t k = 0;
            while (k < IMP_COUNT(short_escape) && short_escape[k].cp != cp) k++;
            if (k == IMP_COUNT(short_escape)) (void)snprintf(text, sizeof text, "\\u%04x", (unsigned)cp);
            gr_push(g, &l, gr_str(g, k < IMP_COUNT(short_escape) ? short_escape[k].text : text));
        }
        for (size_t k = 0; k < 2; k++)
            if (r[i].lo <= short_escape[k].cp && short_escape[k].cp <= r[i].hi)
                gr_push(g, &l, gr_str(g, short_escape[k].text));
        static const gr_range safe[] = {{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, 0x10ffff}};
        for (size_t k = 0; k < IMP_COUNT(safe); k++) {
            gr_range x = {IMP_MAX(r[i].lo, safe[k].lo), IMP_MIN(r[i].hi, safe[k].hi)};
            if (x.lo <= x.hi) imp_buf_add(&plain, &x, sizeof x);
        }
    }
    if (plain.failed) (void)gr_fail(g, IMP_NOMEM, "out of memory");
    gr_push(g, &l,
            gr_class(g, (const gr_range *)(const void *)plain.data,
                     plain.failed ? 0 : plain.n / sizeof(gr_range), false));
    imp_buf_deinit(&plain);
    return gr_take_alt(g, &l);
}

static gr_expr quoted(gr *g, gr_expr body)
{
    gr_expr x[] = {gr_str(g, "\""), body, gr_str(g, "\"")};
    return gr_seq(g, x, 3);
}

/* Any one character, in any form that JSON has for it. */
static gr_expr any_character(gr *g)
{
    static const char escapes[] =
        "\\\\([\"\\\\/bfnrt]|u(000[1-9a-fA-F]|00[1-9a-fA-F][0-9a-fA-F]|0[1-9a-fA-F][0-9a-fA-F]{2}|"
        "[1-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}|"
        "[dD][89abAB][0-9a-fA-F]{2}\\\\u[dD][c-fC-F][0-9a-fA-F]{2}))";
    static const gr_range unsafe[] = {{0, 0x1f}, {'"', '"'}, {'\\', '\\'}};
    return gr_alt2(g, gr_class(g, unsafe, 3, true), gr_regex(g, escapes, sizeof escapes - 1, true, NULL));
}

gr_expr schema_any_string(schema *s)
{
    gr *g = &s->g;
    return quoted(g, gr_repeat(g, any_character(g), 0, GR_UNLIMITED));
}

static const struct {
    const char *name, *re;
} format[] = {
#define DAY                                                                                                  \
    "[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|" \
    "1[0-9]|2[0-8]))"
#define TIME  "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
#define LABEL "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"
#define HOST  LABEL "(\\." LABEL "){0,4}"
#define BYTE  "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define H16   "[0-9a-f]{1,4}"
    {"date", DAY},
    {"time", TIME},
    {"date-time", DAY "T" TIME},
    {"duration", "P([0-9]{1,4}D(T[0-9]{1,3}H)?|T[0-9]{1,4}(H([0-9]{1,3}M)?|M|S)|[0-9]{1,3}W|[0-9]{1,3}Y)"},
    {"email", "[A-Za-z0-9_+-]{1,24}(\\.[A-Za-z0-9_+-]{1,24}){0,2}@" LABEL "(\\." LABEL "){0,2}\\.[a-z]{2,8}"},
    {"hostname", HOST},
    {"ipv4", BYTE "\\." BYTE "\\." BYTE "\\." BYTE},
    {"ipv6", "(" H16 ":){7}" H16 "|::(" H16 ":){0,5}" H16 "|(" H16 ":){1,6}:"},
    {"uri", "https?://" HOST "(:[1-9][0-9]{0,3})?(/[A-Za-z0-9._~-]{0,32}){0,8}(\\?[A-Za-z0-9._~=&-]{1,64})?"},
    {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
#undef DAY
#undef TIME
#undef LABEL
#undef HOST
#undef BYTE
#undef H16
};

gr_expr schema_string(schema *s, const json_t *x)
{
    gr *g = &s->g;
    const json_t *pattern = json_object_get(x, "pattern"), *fmt = json_object_get(x, "format");
    bool bounded = json_object_get(x, "minLength") != NULL || json_object_get(x, "maxLength") != NULL;
    if (pattern != NULL && (bounded || fmt != NULL))
        return schema_refuse(
            s, IMP_UNSUPPORTED, "pattern",
            "not supported together with minLength, maxLength or format: write the length into it");
    if (fmt != NULL && bounded)
        return schema_refuse(s, IMP_UNSUPPORTED, "format",
                             "not supported together with minLength or maxLength");
    if (pattern != NULL) {
        if (!json_is_string(pattern)) return schema_refuse(s, IMP_INVALID, "pattern", "must be a string");
        return quoted(
            g, gr_regex(g, json_string_value(pattern), json_string_length(pattern), false, spell_json));
    }
    if (fmt != NULL) {
        if (!json_is_string(fmt)) return schema_refuse(s, IMP_INVALID, "format", "must be a string");
        for (size_t i = 0; i < IMP_COUNT(format); i++)
            if (strcmp(json_string_value(fmt), format[i].name) == 0)
                return quoted(g, gr_regex(g, format[i].re, strlen(format[i].re), true, NULL));
        return schema_refuse(
            s, IMP_UNSUPPORTED, "format",
            "supported are date, time, date-time, duration, email, hostname, ipv4, ipv6, uri, uuid");
    }
    uint32_t min = schema_count(s, x, "minLength", 0), max = schema_count(s, x, "maxLength", GR_UNLIMITED);
    if (max < min) return gr_never(g);
    return quoted(g, gr_repeat(g, any_character(g), min, max));
}

gr_expr schema_literal(schema *s, const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (text == NULL) return gr_fail(&s->g, IMP_NOMEM, "out of memory");
    gr_expr x = gr_str(&s->g, text);
    json_free_t release;
    json_malloc_t unused;
    json_get_alloc_funcs(&unused, &release);
    release(text);
    return x;
}

/* ---- keys that are none of the declared ones ------------------------------------------------------------ */

static const gr_range unsafe_key[] = {{0, 0x1f}, {'"', '"'}, {'\\', '\\'}};

/* name[0..n-1] agree in their first `at` bytes, which were written. */
static gr_expr other_from(schema *s, const char *const *name, size_t n, size_t at)
{
    gr *g = &s->g;
    gr_list l = {0};
    imp_buf taken = {0}; /* first characters that lead towards a name */
    imp_buf_add(&taken, unsafe_key, sizeof unsafe_key);
    bool is_name = false;
    if (at > 256 || ++s->depth > 300)
        return gr_fail(g, IMP_TOO_LARGE, "JSON schema: a property's name is too long");
    for (size_t i = 0; i < n && g->status == IMP_OK;) {
        int32_t cp;
        const char *p = name[i] + at;
        if (*p == '\0') {
            is_name = true;
            i++;
            continue;
        }
        size_t len = imp_utf8_decode(p, strlen(p), &cp), k = i;
        while (k < n && strncmp(name[k] + at, p, len) == 0) k++;
        bool safe = cp >= 0x20 && cp != '"' && cp != '\\'; /* others are never written raw, so never met */
        if (safe) {
            imp_buf_add(&taken, &(gr_range){cp, cp}, sizeof(gr_range));
            gr_push(g, &l, gr_seq2(g, gr_text(g, p, len), other_from(s, name + i, k - i, at + len)));
        }
        i = k;
    }
    if (taken.failed) (void)gr_fail(g, IMP_NOMEM, "out of memory");
    gr_expr any = gr_repeat(g, gr_class(g, unsafe_key, 3, true), 0, GR_UNLIMITED);
    gr_expr other = gr_class(g, (const gr_range *)(const void *)taken.data,
                             taken.failed ? 0 : taken.n / sizeof(gr_range), true);
    gr_push(g, &l, gr_seq2(g, other, any));
    if (!is_name) gr_push(g, &l, 0);
    imp_buf_deinit(&taken);
    s->depth--;
    return gr_take_alt(g, &l);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

gr_expr schema_other_key(schema *s, const char *const *name, size_t n)
{
    const char **sorted = imp_arena_array(s->g.memory, n + 1, sizeof *sorted);
    if (sorted == NULL) return gr_fail(&s->g, IMP_NOMEM, "out of memory");
    if (n > 0) memcpy(sorted, name, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_text);
    return quoted(&s->g, other_from(s, sorted, n, 0));
}

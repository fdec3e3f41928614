/* api/constraint.c - the fields that say what an answer must be, in the words of each API.
 *
 * Place:   generate.c, between parsing and submitting.
 * Idea:    OpenAI's response_format, llama.cpp's grammar and json_schema, vLLM's guided_* and structured_outputs are one
 *          thing to the engine; a request has one of them at most.
 * Always:  a constraint that is not understood is refused with the field's name; none is dropped. */
#include <stdio.h>

#include "api/internal.h"

typedef struct want {
    const char *field;
    imp_constraint_kind kind;
    const json_t *value; /* JSON, or a string for grammars; NULL: none */
} want;

static imp_status only_keys(const json_t *object, const char *field, const char *const *key, size_t n,
                            imp_error *err)
{
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)object, name, v)
    {
        bool known = json_is_null(v);
        for (size_t i = 0; i < n; i++) known = known || strcmp(key[i], name) == 0;
        if (!known)
            return imp_fail_field(err, IMP_INVALID, field,
                                  "'%s.%.40s' is not a field that this server understands", field, name);
    }
    return IMP_OK;
}

static imp_status response_format(const json_t *v, want *w, imp_error *err)
{
    static const char *const outer[] = {"type", "json_schema", "schema"};
    static const char *const inner[] = {"name", "description", "schema", "strict"};
    const char *f = "response_format", *type = json_string_value(json_object_get(v, "type"));
    if (type == NULL) return imp_fail_field(err, IMP_INVALID, f, "'%s' must be an object with a 'type'", f);
    IMP_TRY(only_keys(v, f, outer, IMP_COUNT(outer), err));
    const json_t *schema =
        json_object_get(v, "schema"); /* beside "json_object", as llama.cpp and Together take it */
    if (strcmp(type, "text") == 0) return IMP_OK;
    if (strcmp(type, "json_object") == 0) {
        *w = (want){f, schema != NULL ? IMP_CONSTRAINT_SCHEMA : IMP_CONSTRAINT_JSON,
                    schema != NULL ? schema : v};
        return IMP_OK;
    }
    if (strcmp(type, "json_schema") != 0)
        return imp_fail_field(err, IMP_INVALID, f, "'%s.type' must be text, json_object or json_schema", f);
    const json_t *js = json_object_get(v, "json_schema");
    if (!json_is_object(js) || json_object_get(js, "schema") == NULL)
        return imp_fail_field(err, IMP_INVALID, f, "'%s.json_schema' must be an object with a 'schema'", f);
    IMP_TRY(only_keys(js, f, inner, IMP_COUNT(inner), err));
    *w = (want){f, IMP_CONSTRAINT_SCHEMA, json_object_get(js, "schema")};
    return IMP_OK;
}

/* As response_format, but the schema stands beside the type. */
static imp_status text_format(const json_t *v, want *w, imp_error *err)
{
    static const char *const known[] = {"type", "name", "description", "schema", "strict"};
    const char *f = "text.format", *type = json_string_value(json_object_get(v, "type"));
    if (type == NULL) return imp_fail_field(err, IMP_INVALID, f, "'%s' must be an object with a 'type'", f);
    IMP_TRY(only_keys(v, f, known, IMP_COUNT(known), err));
    if (strcmp(type, "text") == 0) return IMP_OK;
    bool schema = strcmp(type, "json_schema") == 0;
    const json_t *x = schema ? json_object_get(v, "schema") : v;
    if (!schema && strcmp(type, "json_object") != 0)
        return imp_fail_field(err, IMP_INVALID, f, "'%s.type' must be text, json_object or json_schema", f);
    if (x == NULL) return imp_fail_field(err, IMP_INVALID, f, "'%s' needs a 'schema'", f);
    *w = (want){f, schema ? IMP_CONSTRAINT_SCHEMA : IMP_CONSTRAINT_JSON, x};
    return IMP_OK;
}

/* vLLM's newer form: {"json": ...} or {"regex": ...} or ... */
static imp_status structured_outputs(const json_t *v, want *w, imp_error *err)
{
    static const struct {
        const char *key;
        imp_constraint_kind kind;
    } form[] = {{"json", IMP_CONSTRAINT_SCHEMA},
                {"regex", IMP_CONSTRAINT_REGEX},
                {"choice", IMP_CONSTRAINT_CHOICE},
                {"grammar", IMP_CONSTRAINT_GBNF}};
    const char *f = "structured_outputs";
    for (size_t i = 0; i < IMP_COUNT(form); i++) {
        const json_t *x = json_object_get(v, form[i].key);
        if (x != NULL && json_object_size(v) == 1) {
            *w = (want){f, form[i].kind, x};
            return IMP_OK;
        }
    }
    return imp_fail_field(err, IMP_INVALID, f,
                          "'%s' must be an object with one of json, regex, choice, grammar", f);
}

static imp_status find_want(const imp_api_params *p, want *w, imp_error *err)
{
    const want plain[] = {{"grammar", IMP_CONSTRAINT_GBNF, p->grammar},
                          {"json_schema", IMP_CONSTRAINT_SCHEMA, p->json_schema},
                          {"guided_json", IMP_CONSTRAINT_SCHEMA, p->guided_json},
                          {"guided_regex", IMP_CONSTRAINT_REGEX, p->guided_regex},
                          {"guided_choice", IMP_CONSTRAINT_CHOICE, p->guided_choice},
                          {"guided_grammar", IMP_CONSTRAINT_GBNF, p->guided_grammar}};
    size_t n = 0;
    *w = (want){0};
    for (size_t i = 0; i < IMP_COUNT(plain); i++)
        if (plain[i].value != NULL) *w = plain[i], n++;
    if (p->format != NULL) { /* Ollama's; what it may be was checked */
        *w = (want){"format", json_is_string(p->format) ? IMP_CONSTRAINT_JSON : IMP_CONSTRAINT_SCHEMA,
                    p->format};
        n++;
    }
    if (p->response_format != NULL) {
        want r = {0};
        IMP_TRY(response_format(p->response_format, &r, err));
        if (r.value != NULL) *w = r, n++;
    }
    const json_t *format = json_object_get(p->text, "format"); /* the Responses API's */
    if (format != NULL && !json_is_null(format)) {
        want r = {0};
        IMP_TRY(text_format(format, &r, err));
        if (r.value != NULL) *w = r, n++;
    }
    if (p->structured_outputs != NULL) {
        IMP_TRY(structured_outputs(p->structured_outputs, w, err));
        n++;
    }
    if (n > 1)
        return imp_fail_field(err, IMP_INVALID, w->field,
                              "the request constrains its answer in more than one way: send one of them");
    return IMP_OK;
}

imp_status imp_api_constraint(const imp_api_params *p, imp_model *m, imp_constraint **out, imp_error *err)
{
    want w;
    *out = NULL;
    IMP_TRY(find_want(p, &w, err));
    if (w.value == NULL) return IMP_OK;
    bool text = w.kind == IMP_CONSTRAINT_GBNF || w.kind == IMP_CONSTRAINT_REGEX;
    if (text && !json_is_string(w.value))
        return imp_fail_field(err, IMP_INVALID, w.field, "'%s' must be a string", w.field);
    imp_status s;
    if (text || w.kind == IMP_CONSTRAINT_JSON) {
        const char *t = text ? json_string_value(w.value) : "";
        s = imp_constraint_new(m, w.kind, t, text ? json_string_length(w.value) : 0, out, err);
    } else if (json_is_string(w.value) &&
               strcmp(w.field, "guided_json") == 0) { /* vLLM takes the schema's text, too */
        s = imp_constraint_new(m, w.kind, json_string_value(w.value), json_string_length(w.value), out, err);
    } else {
        char *dump = json_dumps(w.value, JSON_COMPACT | JSON_ENCODE_ANY);
        if (dump == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
        s = imp_constraint_new(m, w.kind, dump, strlen(dump), out, err);
        imp_api_json_free(dump);
    }
    if (s != IMP_OK && err->field[0] == '\0') snprintf(err->field, sizeof err->field, "%s", w.field);
    return s;
}

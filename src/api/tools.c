/* api/tools.c - tools and thinking in requests: declarations, the choice, calls and results in messages.
 *
 * Place:   fields.c and messages.c for the request; generate.c asks for the constraint that the tools make of an answer.
 * Idea:    the three APIs say the same in other words; everything becomes OpenAI's list of functions, which is what chat
 *          templates take.
 * Always:  a tool that would not be kept to (another type than function, a schema keyword that no grammar has) is refused.
 * Source:  OpenAI API reference (chat, responses), Anthropic API reference (tool use), Ollama's docs/api.md. */
#include "api/internal.h"

#include <stdio.h>

enum { MAX_TOOLS = 128, MAX_NAME = 64 };

static imp_status bad(imp_error *err, const char *field, const char *text)
{
    return imp_fail_field(err, IMP_INVALID, field, "'%s' %s", field, text);
}

/* ---- declarations ------------------------------------------------------------------------------------------- */

static bool good_name(const char *s)
{
    size_t n = s != NULL ? strlen(s) : 0, k = 0;
    while (k < n && strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.", s[k]) != NULL)
        k++;
    return n > 0 && n <= MAX_NAME && k == n;
}

static imp_status only_keys(const json_t *o, const char *name, const char *known, imp_error *err)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)o, key, v)
    {
        char word[80];
        (void)snprintf(word, sizeof word, "|%.70s|", key);
        if (!json_is_null(v) && strstr(known, word) == NULL)
            return imp_fail_field(err, IMP_INVALID, name,
                                  "'%s.%.40s' is not a field that this server understands", name, key);
    }
    return IMP_OK;
}

/* One declaration; *fun: the object that holds name, description and parameters; *params: the schema's key there. */
static imp_status declared(const imp_api_params *p, const json_t *v, const char *name, const json_t **fun,
                           const char **params, imp_error *err)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    if (!json_is_object(v)) return bad(err, name, "must be an object");
    *params = "parameters";
    *fun = v;
    if (p->ep & EP_ANTHROPIC) {
        *params = "input_schema";
        if (type != NULL && strcmp(type, "custom") != 0)
            return bad(err, name, "is run by Anthropic's servers: this server takes tools of your own only");
        return only_keys(v, name, "|type|name|description|input_schema|cache_control|strict|", err);
    }
    if (type == NULL || strcmp(type, "function") != 0) return bad(err, name, "must be of type \"function\"");
    if (p->ep == EP_RESPONSES) return only_keys(v, name, "|type|name|description|parameters|strict|", err);
    *fun = json_object_get(v, "function");
    IMP_TRY(only_keys(v, name, "|type|function|", err));
    if (!json_is_object(*fun)) return bad(err, name, "needs an object 'function'");
    return only_keys(*fun, name, "|name|description|parameters|strict|", err);
}

static imp_status add_tool(imp_api_params *p, const json_t *v, size_t i, imp_error *err)
{
    char name[32];
    const json_t *fun = NULL;
    const char *key = NULL;
    (void)snprintf(name, sizeof name, "tools[%zu]", i);
    IMP_TRY(declared(p, v, name, &fun, &key, err));
    const char *id = json_string_value(json_object_get(fun, "name"));
    json_t *what = json_object_get(fun, "description"), *schema = json_object_get(fun, key);
    if (!good_name(id)) return bad(err, name, "needs a 'name' of 1 to 64 letters, digits, '_', '-', '.'");
    if (what != NULL && !json_is_string(what) && !json_is_null(what))
        return bad(err, name, "has a 'description' that is no string");
    if (schema != NULL && !json_is_object(schema) && !json_is_null(schema))
        return bad(err, name, "has parameters that are no JSON schema");
    for (size_t k = 0; k < i; k++) {
        const json_t *other = json_object_get(json_array_get(p->tool_list, k), "function");
        if (strcmp(json_string_value(json_object_get(other, "name")), id) == 0)
            return bad(err, name, "has a name that another tool has");
    }
    json_t *params = json_is_object(schema) ? json_copy(schema) : json_object();
    /* many templates take for granted that both are there */
    if (json_object_get(params, "type") == NULL)
        (void)json_object_set_new(params, "type", json_string("object"));
    if (json_object_get(params, "properties") == NULL)
        (void)json_object_set_new(params, "properties", json_object());
    json_t *out =
        json_pack("{s:s, s:{s:s, s:s, s:o}}", "type", "function", "function", "name", id, "description",
                  json_is_string(what) ? json_string_value(what) : "", "parameters", params);
    if (json_array_append_new(p->tool_list, out) != 0) return imp_fail(err, IMP_NOMEM, "out of memory");
    return IMP_OK;
}

/* ---- the choice ------------------------------------------------------------------------------------------------ */

static imp_status choose(imp_api_params *p, const char *word, const char *name, imp_error *err)
{
    static const struct {
        const char *word;
        imp_tool_want want;
    } known[] = {
        {"none", TOOLS_NONE}, {"auto", TOOLS_AUTO}, {"required", TOOLS_REQUIRED}, {"any", TOOLS_REQUIRED}};
    p->tool_want = TOOLS_NAMED;
    for (size_t i = 0; name == NULL && i < IMP_COUNT(known); i++)
        if (strcmp(known[i].word, word) == 0) {
            p->tool_want = known[i].want;
            return IMP_OK;
        }
    p->tool_name = name;
    size_t i;
    json_t *v;
    json_array_foreach(p->tool_list, i, v)
    {
        const json_t *fun = json_object_get(v, "function");
        if (name != NULL && strcmp(json_string_value(json_object_get(fun, "name")), name) == 0) return IMP_OK;
    }
    return bad(err, "tool_choice", name != NULL ? "names a tool that is not declared" : "is not known");
}

static imp_status read_choice(imp_api_params *p, imp_error *err)
{
    json_t *c = p->tool_choice;
    const char *type = json_string_value(json_object_get(c, "type"));
    if (c == NULL) return IMP_OK;
    if (p->ep & EP_ANTHROPIC) {
        IMP_TRY(only_keys(c, "tool_choice", "|type|name|disable_parallel_tool_use|", err));
        json_t *one = json_object_get(c, "disable_parallel_tool_use");
        if (type == NULL || (one != NULL && !json_is_boolean(one)))
            return bad(err, "tool_choice", "must be an object with a 'type'");
        if (json_is_true(one)) p->parallel = false;
        if (strcmp(type, "tool") != 0)
            return choose(p, strcmp(type, "required") == 0 ? "?" : type, NULL, err);
        const char *name = json_string_value(json_object_get(c, "name"));
        return name != NULL ? choose(p, "", name, err) : bad(err, "tool_choice", "needs the tool's 'name'");
    }
    if (json_is_string(c)) {
        const char *word = json_string_value(c);
        return choose(p, strcmp(word, "any") == 0 ? "?" : word, NULL, err);
    }
    const json_t *fun = p->ep == EP_RESPONSES ? c : json_object_get(c, "function");
    const char *name = json_string_value(json_object_get(fun, "name"));
    if (type == NULL || strcmp(type, "function") != 0 || name == NULL)
        return bad(err, "tool_choice", "must be \"none\", \"auto\", \"required\" or name a function");
    return choose(p, "", name, err);
}

imp_status imp_api_tools(imp_api_params *p, imp_error *err)
{
    size_t n = json_array_size(p->tools), i;
    json_t *v;
    if (p->tools != NULL && !json_is_array(p->tools)) return bad(err, "tools", "must be a list");
    if (n > MAX_TOOLS)
        return imp_fail_field(err, IMP_INVALID, "tools", "'tools' may hold %d tools at most, not %zu",
                              MAX_TOOLS, n);
    if (n == 0) { /* the choice none or auto asks for nothing then */
        const char *word = json_string_value(p->tool_choice),
                   *type = json_string_value(json_object_get(p->tool_choice, "type"));
        if (word == NULL) word = type;
        if (p->tool_choice == NULL ||
            (word != NULL && (strcmp(word, "none") == 0 || strcmp(word, "auto") == 0)))
            return IMP_OK;
        return bad(err, "tool_choice", "needs 'tools'");
    }
    p->tool_list = json_array();
    if (p->tool_list == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    json_array_foreach(p->tools, i, v)
    {
        imp_status s = add_tool(p, v, i, err);
        if (s == IMP_OK) continue;
        (void)snprintf(err->field, sizeof err->field, "tools");
        return s;
    }
    p->tool_want = TOOLS_AUTO;
    IMP_TRY(read_choice(p, err));
    char *text = json_dumps(p->tool_list, JSON_COMPACT);
    p->tools_text = text != NULL ? imp_arena_strndup(p->arena, text, strlen(text)) : NULL;
    imp_api_json_free(text);
    return p->tools_text != NULL ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

/* ---- thinking ----------------------------------------------------------------------------------------------------- */

static bool level(const char *s)
{
    return strcmp(s, "low") == 0 || strcmp(s, "medium") == 0 || strcmp(s, "high") == 0;
}

imp_status imp_api_think(imp_api_params *p, imp_error *err)
{
    p->think_mode = p->ep & EP_ANTHROPIC ? 0 : -1; /* Anthropic's models think when they are asked to */
    if (p->think != NULL) {
        const char *s = json_string_value(p->think);
        if (!json_is_boolean(p->think) && (s == NULL || !level(s)))
            return bad(err, "think", "must be a boolean, \"low\", \"medium\" or \"high\"");
        p->think_mode = !json_is_false(p->think);
        if (s != NULL) p->effort = s;
    } else if (p->effort != NULL) {
        static const char *const most[] = {"minimal", "low", "xhigh", "high"};
        const char *given = p->effort;
        p->think_mode = strcmp(given, "none") != 0;
        if (p->think_mode == 0) p->effort = NULL;
        for (size_t i = 0; i < IMP_COUNT(most); i += 2)
            if (strcmp(given, most[i]) == 0) p->effort = most[i + 1];
        if (p->effort != NULL && !level(p->effort))
            return bad(err, "reasoning_effort", "must be none, minimal, low, medium, high or xhigh");
    }
    if (p->thinking != NULL) {
        const char *type = json_string_value(json_object_get(p->thinking, "type"));
        bool on = type != NULL && (strcmp(type, "enabled") == 0 || strcmp(type, "adaptive") == 0);
        if (!on && (type == NULL || strcmp(type, "disabled") != 0))
            return bad(err, "thinking", "must be of type \"enabled\", \"adaptive\" or \"disabled\"");
        IMP_TRY(only_keys(p->thinking, "thinking", "|type|budget_tokens|display|", err));
        p->think_mode = on;
    }
    if (p->template_kwargs != NULL) { /* as vLLM and llama.cpp take them */
        if (!json_is_object(p->template_kwargs)) return bad(err, "chat_template_kwargs", "must be an object");
        IMP_TRY(only_keys(p->template_kwargs, "chat_template_kwargs", "|enable_thinking|thinking|", err));
        const char *key;
        json_t *v;
        json_object_foreach(p->template_kwargs, key, v)
        {
            if (!json_is_boolean(v)) return bad(err, "chat_template_kwargs", "must hold booleans");
            p->think_mode = json_is_true(v);
        }
    }
    return IMP_OK;
}

/* ---- calls and results in messages ----------------------------------------------------------------------------------- */

/* The text of arguments: JSON text as it is (nothing means no arguments), or an object written out. */
static imp_status arguments(imp_api_params *p, const json_t *v, const char *name, const char **out,
                            imp_error *err)
{
    const char *s = json_string_value(v);
    if (s != NULL) {
        *out = s[0] != '\0' ? s : "{}";
        json_t *x = json_loads(*out, JSON_REJECT_DUPLICATES, NULL);
        bool object = json_is_object(x);
        json_decref(x);
        return object ? IMP_OK : bad(err, name, "has arguments that are no JSON object");
    }
    if (v != NULL && !json_is_object(v)) return bad(err, name, "has arguments that are no JSON object");
    char *text = v != NULL ? json_dumps(v, 0) : NULL;
    *out = v != NULL ? (text != NULL ? imp_arena_strndup(p->arena, text, strlen(text)) : NULL) : "{}";
    imp_api_json_free(text);
    return *out != NULL ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

imp_status imp_api_call_of(imp_api_params *p, const json_t *id, const json_t *fun_name, const json_t *args,
                           const char *name, imp_tool_call *out, imp_error *err)
{
    out->id = json_string_value(id);
    out->name = json_string_value(fun_name);
    if (!good_name(out->name)) return bad(err, name, "needs the name of a function");
    return arguments(p, args, name, &out->arguments, err);
}

imp_status imp_api_message_calls(imp_api_params *p, const json_t *list, size_t at, imp_message *m,
                                 imp_error *err)
{
    char name[64];
    size_t n = json_array_size(list), i;
    (void)snprintf(name, sizeof name, "messages[%zu].tool_calls", at);
    if (!json_is_array(list) || n > MAX_TOOLS) return bad(err, name, "must be a list of at most 128 calls");
    imp_tool_call *call = imp_arena_array(p->arena, n + 1, sizeof *call);
    if (call == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    json_t *v;
    json_array_foreach((json_t *)list, i, v)
    {
        const json_t *fun = json_object_get(v, "function");
        IMP_TRY(imp_api_call_of(p, json_object_get(v, "id"), json_object_get(fun, "name"),
                                json_object_get(fun, "arguments"), name, &call[i], err));
    }
    m->calls = call;
    m->n_calls = n;
    return IMP_OK;
}

/* ---- what the engine is asked ------------------------------------------------------------------------------------------ */

imp_status imp_api_chat(const imp_api_params *p, const imp_model *m, imp_chat *out, imp_error *err)
{
    const imp_toolfmt *f = imp_model_toolfmt(m);
    *out = (imp_chat){.msg = p->msg,
                      .n_msg = p->n_msg,
                      .tools = p->tools_text,
                      .think = p->think_mode,
                      .effort = p->effort};
    bool asked = p->think_mode == 1;
    if (asked && (f == NULL || !imp_toolfmt_thinks(f)))
        return imp_fail_field(err, IMP_INVALID,
                              p->think      ? "think"
                              : p->thinking ? "thinking"
                                            : "reasoning_effort",
                              "this model does not think before it answers");
    return IMP_OK;
}

imp_status imp_api_tool_constraint(const imp_api_params *p, imp_model *m, bool in_thought,
                                   imp_constraint **out, imp_error *err)
{
    static const char *const word[] = {"", "none", "auto", "required"};
    *out = NULL;
    if (p->tool_want == TOOLS_OFF) return IMP_OK;
    json_t *choice = p->tool_want == TOOLS_NAMED ? json_pack("{s:s}", "name", p->tool_name)
                                                 : json_string(word[p->tool_want]);
    json_t *spec = json_pack("{s:O, s:o, s:b, s:b}", "tools", p->tool_list, "choice", choice, "one",
                             !p->parallel, "in_thought", in_thought);
    char *text = spec != NULL ? json_dumps(spec, JSON_COMPACT) : NULL;
    json_decref(spec);
    if (text == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    imp_status s = imp_constraint_new(m, IMP_CONSTRAINT_TOOLS, text, strlen(text), out, err);
    imp_api_json_free(text);
    if (s != IMP_OK && err->field[0] == '\0') (void)snprintf(err->field, sizeof err->field, "tools");
    return s;
}

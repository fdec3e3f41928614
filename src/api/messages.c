/* api/messages.c - the fields that are lists or objects: messages, stop, logit_bias, prompt, input, options.
 *
 * Place:   called by fields.c once the table has accepted the field.
 * Idea:    shapes and counts only; what needs a model (token ids against the vocabulary) comes later.
 * Always:  an error names the element: "messages[3].content". */
#include "api/internal.h"

#include <stdio.h>

static imp_status bad(imp_error *err, const char *field, const char *text)
{
    return imp_fail_field(err, IMP_INVALID, field, "'%s' %s", field, text);
}

/* content: a string, or parts of text, which are joined. */
imp_status imp_api_content(imp_api_params *p, const json_t *v, const char *name, const char **out,
                           imp_error *err)
{
    if (json_is_string(v)) {
        *out = json_string_value(v);
        return IMP_OK;
    }
    if (!json_is_array(v)) return bad(err, name, "must be a string or a list of text parts");
    size_t i, total = 0;
    json_t *part;
    json_array_foreach(v, i, part)
    {
        char pname[64];
        snprintf(pname, sizeof pname, "%.40s[%zu]", name, i);
        const json_t *type = json_object_get(part, "type");
        if (!json_is_string(type)) return bad(err, pname, "must be an object with a 'type'");
        if (strcmp(json_string_value(type), "text") != 0)
            return imp_fail_field(err, IMP_INVALID, pname,
                                  "'%s' is of type '%.40s': this server takes text only", pname,
                                  json_string_value(type));
        if (!json_is_string(json_object_get(part, "text"))) return bad(err, pname, "needs a string 'text'");
        const char *key;
        json_t *x;
        json_object_foreach(part, key, x)
        {
            /* Anthropic's mark of a prefix worth keeping: what begins alike is kept anyway */
            bool mark = strcmp(key, "cache_control") == 0 && (p->ep & EP_ANTHROPIC);
            if (strcmp(key, "type") != 0 && strcmp(key, "text") != 0 && !mark && !json_is_null(x))
                return imp_fail_field(err, IMP_INVALID, pname,
                                      "'%s.%.40s' is not a field that this server understands", pname, key);
        }
        total += json_string_length(json_object_get(part, "text"));
    }
    char *s = imp_arena_alloc(p->arena, total + 1), *w = s;
    if (!s) return imp_fail(err, IMP_NOMEM, "out of memory");
    json_array_foreach(v, i, part)
    {
        const json_t *t = json_object_get(part, "text");
        memcpy(w, json_string_value(t), json_string_length(t));
        w += json_string_length(t);
    }
    *out = s;
    return IMP_OK;
}

static imp_status message_role(const imp_api_params *p, const json_t *v, size_t at, const char **out,
                               imp_error *err)
{
    static const char *const known[][2] = {{"system", "system"},
                                           {"developer", "system"},
                                           {"user", "user"},
                                           {"assistant", "assistant"},
                                           {"tool", "tool"}};
    char name[64];
    snprintf(name, sizeof name, "messages[%zu].role", at);
    if (!json_is_string(v)) return bad(err, name, "must be a string");
    size_t n = IMP_COUNT(known) - (p->ep & EP_ANTHROPIC ? 1 : 0); /* results are blocks there */
    for (size_t i = 0; i < n; i++) {
        if (strcmp(json_string_value(v), known[i][0]) == 0) {
            *out = known[i][1];
            return IMP_OK;
        }
    }
    return imp_fail_field(err, IMP_INVALID, name,
                          "'%s' must be system, developer, user, assistant or tool; '%.40s' is not supported",
                          name, json_string_value(v));
}

/* Fields of a message beside role and content, and who may have them. */
static imp_status message_field(imp_api_params *p, const char *key, const json_t *v, size_t at,
                                imp_message *m, bool *known, imp_error *err)
{
    bool assistant = strcmp(m->role, "assistant") == 0, tool = strcmp(m->role, "tool") == 0;
    bool thought = strcmp(key, "reasoning_content") == 0 || strcmp(key, "reasoning") == 0 ||
                   strcmp(key, "thinking") == 0;
    *known = true;
    if (assistant && strcmp(key, "tool_calls") == 0) return imp_api_message_calls(p, v, at, m, err);
    if (assistant && thought && json_is_string(v)) {
        m->thought = json_string_value(v);
        return IMP_OK;
    }
    if (tool && strcmp(key, "tool_call_id") == 0 && json_is_string(v)) {
        m->call_id = json_string_value(v);
        return IMP_OK;
    }
    if (tool && (strcmp(key, "name") == 0 || strcmp(key, "tool_name") == 0) && json_is_string(v)) {
        m->name = json_string_value(v);
        return IMP_OK;
    }
    *known = false;
    return IMP_OK;
}

static imp_status one_message(imp_api_params *p, const json_t *m, size_t i, imp_message *out, imp_error *err)
{
    char name[64];
    snprintf(name, sizeof name, "messages[%zu]", i);
    if (!json_is_object(m)) return bad(err, name, "must be an object");
    IMP_TRY(message_role(p, json_object_get(m, "role"), i, &out->role, err));
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)m, key, v)
    {
        if (strcmp(key, "role") == 0 || strcmp(key, "content") == 0) continue;
        /* a client that sends an answer back as history sends its empty fields, too */
        bool known = json_is_null(v) || (json_is_array(v) && json_array_size(v) == 0);
        if (!known) IMP_TRY(message_field(p, key, v, i, out, &known, err));
        if (!known)
            return imp_fail_field(err, IMP_INVALID, name,
                                  "'%s.%.40s' is not a field that this server understands", name, key);
    }
    snprintf(name, sizeof name, "messages[%zu].content", i);
    const json_t *content = json_object_get(m, "content");
    if (out->n_calls > 0 && (content == NULL || json_is_null(content))) {
        out->content = "";
        return IMP_OK;
    }
    return imp_api_content(p, content, name, &out->content, err);
}

imp_status imp_api_messages(imp_api_params *p, imp_error *err)
{
    if (!p->messages) return bad(err, "messages", "is missing");
    if (!json_is_array(p->messages)) return bad(err, "messages", "must be a list");
    size_t n = json_array_size(p->messages);
    if (n == 0 || n > IMP_API_MAX_MESSAGES)
        return imp_fail_field(err, IMP_INVALID, "messages", "'messages' must hold 1 to %d messages, not %zu",
                              IMP_API_MAX_MESSAGES, n);
    if (p->ep & EP_ANTHROPIC) return imp_api_anthropic_messages(p, err);
    p->msg = imp_arena_array(p->arena, n, sizeof *p->msg);
    if (!p->msg) return imp_fail(err, IMP_NOMEM, "out of memory");
    p->n_msg = n;
    for (size_t i = 0; i < n; i++)
        IMP_TRY(one_message(p, json_array_get(p->messages, i), i, &p->msg[i], err));
    return IMP_OK;
}

imp_status imp_api_stop(imp_api_params *p, imp_error *err)
{
    if (!p->stop) return IMP_OK;
    bool one = json_is_string(p->stop);
    if (!one && !json_is_array(p->stop)) return bad(err, "stop", "must be a string or a list of strings");
    size_t n = one ? 1 : json_array_size(p->stop);
    if (n > IMP_API_MAX_STOP)
        return imp_fail_field(err, IMP_INVALID, "stop", "'stop' may hold %d strings at most, not %zu",
                              IMP_API_MAX_STOP, n);
    p->stop_str = imp_arena_array(p->arena, n + 1, sizeof *p->stop_str);
    if (!p->stop_str) return imp_fail(err, IMP_NOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) {
        const json_t *v = one ? p->stop : json_array_get(p->stop, i);
        if (!json_is_string(v)) return bad(err, "stop", "must hold strings only");
        size_t len = json_string_length(v);
        if (len == 0 || len > IMP_API_MAX_STOP_BYTES)
            return imp_fail_field(err, IMP_INVALID, "stop",
                                  "a string in 'stop' must have 1 to %d bytes, not %zu",
                                  IMP_API_MAX_STOP_BYTES, len);
        p->stop_str[i] = json_string_value(v);
    }
    p->n_stop = n;
    return IMP_OK;
}

imp_status imp_api_bias(imp_api_params *p, imp_error *err)
{
    if (!p->logit_bias) return IMP_OK;
    if (!json_is_object(p->logit_bias)) return bad(err, "logit_bias", "must be an object");
    size_t n = json_object_size(p->logit_bias);
    if (n > IMP_API_MAX_BIAS)
        return imp_fail_field(err, IMP_INVALID, "logit_bias",
                              "'logit_bias' may hold %d tokens at most, not %zu", IMP_API_MAX_BIAS, n);
    p->bias = imp_arena_array(p->arena, n + 1, sizeof *p->bias);
    if (!p->bias) return imp_fail(err, IMP_NOMEM, "out of memory");
    const char *key;
    json_t *v;
    json_object_foreach(p->logit_bias, key, v)
    {
        uint64_t id = 0;
        size_t len = strlen(key);
        bool ok = len > 0 && len <= 10 && (len == 1 || key[0] != '0');
        for (size_t i = 0; i < len && ok; i++) {
            ok = key[i] >= '0' && key[i] <= '9';
            id = id * 10 + (uint64_t)(key[i] - '0');
        }
        if (!ok || id > INT32_MAX) return bad(err, "logit_bias", "must have token ids as keys");
        if (!json_is_number(v)) return bad(err, "logit_bias", "must have numbers as values");
        double x = json_number_value(v);
        if (!(x >= -100 && x <= 100)) return bad(err, "logit_bias", "must have values between -100 and 100");
        p->bias[p->n_bias++] = (imp_logit_bias){(int32_t)id, (float)x};
    }
    return IMP_OK;
}

static imp_status check_tokens(const json_t *list, const char *field, imp_error *err)
{
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        if (!json_is_integer(v)) return bad(err, field, "mixes token ids with something else");
        if (json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
            return imp_fail_field(err, IMP_INVALID, field,
                                  "'%s' holds the token id %lld, which no vocabulary has", field,
                                  (long long)json_integer_value(v));
    }
    return IMP_OK;
}

imp_status imp_api_check_input(const json_t *v, const char *field, bool tokens, imp_error *err)
{
    const char *want = tokens ? "must be a string, strings, token ids or lists of token ids"
                              : "must be a string or a list of strings";
    if (json_is_string(v)) return IMP_OK;
    if (!json_is_array(v)) return bad(err, field, want);
    size_t n = json_array_size(v), i;
    if (n == 0) return bad(err, field, "must not be empty");
    json_t *x, *first = json_array_get(v, 0);
    if (tokens && json_is_integer(first)) return check_tokens(v, field, err);
    if (n > IMP_API_MAX_INPUTS)
        return imp_fail_field(err, IMP_TOO_LARGE, field,
                              "'%s' may hold %d texts at most, not %zu: send them in parts", field,
                              IMP_API_MAX_INPUTS, n);
    json_array_foreach(v, i, x)
    {
        if (json_typeof(x) != json_typeof(first)) return bad(err, field, want);
        if (json_is_string(x)) continue;
        if (!tokens || !json_is_array(x)) return bad(err, field, want);
        if (json_array_size(x) == 0) return bad(err, field, "must not hold an empty list");
        IMP_TRY(check_tokens(x, field, err));
    }
    return IMP_OK;
}

size_t imp_api_n_input(const json_t *v)
{
    if (!json_is_array(v) || json_is_integer(json_array_get(v, 0))) return 1;
    return json_array_size(v);
}

/* Options of Ollama that cannot change a vector: they choose resources or steer sampling. */
static const char *const g_harmless_option[] = {
    "num_thread",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "numa",
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "num_keep",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "num_predict",
    "stop",
};

imp_status imp_api_ollama_options(imp_api_params *p, imp_error *err)
{
    if (!p->options) return IMP_OK;
    if (!json_is_object(p->options)) return bad(err, "options", "must be an object");
    const char *key;
    json_t *v;
    json_object_foreach(p->options, key, v)
    {
        if (json_is_null(v)) continue;
        if (strcmp(key, "num_ctx") == 0) { /* where truncation cuts */
            if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > INT32_MAX)
                return imp_fail_field(err, IMP_INVALID, "options.num_ctx",
                                      "'options.num_ctx' must be an integer between 1 and 2147483647");
            p->num_ctx = json_integer_value(v);
            continue;
        }
        bool known = false;
        for (size_t i = 0; i < IMP_COUNT(g_harmless_option) && !known; i++)
            known = strcmp(key, g_harmless_option[i]) == 0;
        if (!known)
            return imp_fail_field(err, IMP_INVALID, "options",
                                  "'options.%.64s' is not a field that this server "
                                  "understands",
                                  key);
        if (json_is_object(v) || (json_is_array(v) && strcmp(key, "stop") != 0))
            return imp_fail_field(err, IMP_INVALID, "options",
                                  "'options.%.64s' must be a number, boolean or string", key);
    }
    return IMP_OK;
}

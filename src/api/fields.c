/* api/fields.c - the one table of request fields: type, range and meaning, per endpoint.
 *
 * Place:   called by the handlers through imp_api_parse.
 * Idea:    a field is a line: name, endpoints, type, smallest and largest value (for strings and lists: length),
 *          where it goes. What the table does not list is refused by name, so that nothing is ever ignored.
 * Always:  null means "not given". Fields of kind F_ONLY take exactly the listed values: they are known to the API,
 *          and these values ask for nothing beyond what the server does anyway. */
#include "api/internal.h"

#include <math.h>

typedef enum field_kind {
    F_STR,  /* const char *; min..max bytes */
    F_BOOL, /* bool */
    F_INT,  /* int64_t */
    F_NUM,  /* double; integers too */
    F_JSON, /* json_t *, looked at later */
    F_HINT, /* any value of the JSON type that `only` names; kept nowhere */
    F_ONLY  /* one of the values in `only`, separated by '|', as compact JSON; kept nowhere */
} field_kind;

typedef struct field {
    const char *name;
    unsigned ep;
    field_kind kind;
    double min, max;
    size_t offset;
    const char *only;
} field;

#define AT(member) offsetof(imp_api_params, member)
#define INT_LAST   2147483647.0
#define I64_FIRST  (-9223372036854775808.0)
#define I64_LAST   9223372036854775807.0

/* user, safety_identifier and prompt_cache_key are labels of the caller for its own bookkeeping; metadata and store
 * concern OpenAI's dashboard; service_tier, stream_options and the rest take only the values that
 * change nothing. */
static const field g_field[] = {
    {"model", EP_GENERATE | EP_VECTOR | EP_SHOW, F_STR, 1, 256, AT(model), NULL},
    {"messages", EP_CHAT | EP_OLLAMA_CHAT | EP_ANTHROPIC, F_JSON, 0, 0, AT(messages), NULL},
    {"prompt", EP_COMPLETION | EP_OLLAMA_EMBEDDINGS | EP_OLLAMA_GENERATE, F_JSON, 0, 0, AT(prompt), NULL},
    {"input", EP_VECTOR | EP_RESPONSES, F_JSON, 0, 0, AT(input), NULL},
    {"stream", EP_OPENAI | EP_OLLAMA_TEXT | EP_MESSAGES | EP_RESPONSES, F_BOOL, 0, 0, AT(stream), NULL},
    {"stream_options", EP_OPENAI | EP_RESPONSES, F_JSON, 0, 0, AT(stream_options), NULL},
    {"n", EP_OPENAI, F_INT, 1, 128, AT(n), NULL},
    {"best_of", EP_COMPLETION, F_INT, 1, 128, AT(best_of), NULL},
    {"max_tokens", EP_OPENAI, F_INT, -1, INT_LAST, AT(max_tok), NULL},
    {"max_tokens", EP_MESSAGES, F_INT, 1, INT_LAST, AT(max_tok), NULL},
    {"max_completion_tokens", EP_CHAT, F_INT, 1, INT_LAST, AT(max_completion_tok), NULL},
    {"temperature", EP_OPENAI | EP_MESSAGES | EP_RESPONSES, F_NUM, 0, 2, AT(temperature), NULL},
    {"top_p", EP_OPENAI | EP_MESSAGES | EP_RESPONSES, F_NUM, 0, 1, AT(top_p), NULL},
    {"top_k", EP_OPENAI | EP_MESSAGES, F_INT, -1, INT_LAST, AT(top_k), NULL},
    {"min_p", EP_OPENAI, F_NUM, 0, 1, AT(min_p), NULL},
    {"repeat_penalty", EP_OPENAI, F_NUM, 0.01, 10, AT(repeat_penalty), NULL},
    {"repeat_last_n", EP_OPENAI, F_INT, -1, INT_LAST, AT(repeat_last_n), NULL},
    {"presence_penalty", EP_OPENAI, F_NUM, -2, 2, AT(presence_penalty), NULL},
    {"frequency_penalty", EP_OPENAI, F_NUM, -2, 2, AT(frequency_penalty), NULL},
    {"typical_p", EP_OPENAI, F_NUM, 0, 1, AT(typical_p), NULL},
    {"dynatemp_range", EP_OPENAI, F_NUM, 0, 100, AT(dynatemp_range), NULL},
    {"dynatemp_exponent", EP_OPENAI, F_NUM, 0, 100, AT(dynatemp_exponent), NULL},
    {"xtc_probability", EP_OPENAI, F_NUM, 0, 1, AT(xtc_probability), NULL},
    {"xtc_threshold", EP_OPENAI, F_NUM, 0, 1, AT(xtc_threshold), NULL},
    {"dry_multiplier", EP_OPENAI, F_NUM, 0, 100, AT(dry_multiplier), NULL},
    {"dry_base", EP_OPENAI, F_NUM, 1, 10, AT(dry_base), NULL},
    {"dry_allowed_length", EP_OPENAI, F_INT, 0, INT_LAST, AT(dry_allowed_length), NULL},
    {"dry_penalty_last_n", EP_OPENAI, F_INT, -1, INT_LAST, AT(dry_last_n), NULL},
    {"dry_sequence_breakers", EP_OPENAI, F_JSON, 0, 0, AT(dry_breakers), NULL},
    {"mirostat", EP_OPENAI, F_INT, 0, 2, AT(mirostat), NULL},
    {"mirostat_tau", EP_OPENAI, F_NUM, 0, 100, AT(mirostat_tau), NULL},
    {"mirostat_eta", EP_OPENAI, F_NUM, 0, 1, AT(mirostat_eta), NULL},
    {"seed", EP_OPENAI, F_INT, I64_FIRST, I64_LAST, AT(seed), NULL},
    {"stop", EP_OPENAI, F_JSON, 0, 0, AT(stop), NULL},
    {"logit_bias", EP_OPENAI, F_JSON, 0, 0, AT(logit_bias), NULL},
    {"priority", EP_OPENAI | EP_VECTOR | EP_RESPONSES, F_INT, -1000, 1000, AT(priority),
     NULL}, /* as vLLM: less first */
    {"ignore_eos", EP_OPENAI, F_BOOL, 0, 0, AT(ignore_eos), NULL},
    {"response_format", EP_OPENAI, F_JSON, 0, 0, AT(response_format), NULL},
    {"structured_outputs", EP_OPENAI, F_JSON, 0, 0, AT(structured_outputs), NULL},
    {"grammar", EP_OPENAI, F_JSON, 0, 0, AT(grammar), NULL},
    {"json_schema", EP_OPENAI, F_JSON, 0, 0, AT(json_schema), NULL},
    {"guided_json", EP_OPENAI, F_JSON, 0, 0, AT(guided_json), NULL},
    {"guided_regex", EP_OPENAI, F_JSON, 0, 0, AT(guided_regex), NULL},
    {"guided_choice", EP_OPENAI, F_JSON, 0, 0, AT(guided_choice), NULL},
    {"guided_grammar", EP_OPENAI, F_JSON, 0, 0, AT(guided_grammar), NULL},
    {"logprobs", EP_CHAT, F_BOOL, 0, 0, AT(want_logprobs), NULL},
    {"top_logprobs", EP_CHAT, F_INT, 0, 20, AT(top_logprobs), NULL},
    {"logprobs", EP_COMPLETION, F_INT, 0, 20, AT(logprobs), NULL},
    {"echo", EP_COMPLETION, F_BOOL, 0, 0, AT(echo), NULL},
    {"encoding_format", EP_EMBED, F_STR, 1, 16, AT(encoding), NULL},
    {"dimensions", EP_VECTOR, F_INT, 1, 1048576, AT(dimensions), NULL},
    {"truncate", EP_OLLAMA_VECTOR, F_BOOL, 0, 0, AT(truncate), NULL},
    {"options", EP_OLLAMA, F_JSON, 0, 0, AT(options), NULL},
    {"keep_alive", EP_OLLAMA, F_JSON, 0, 0, AT(keep_alive), NULL},

    {"lora", EP_OPENAI | EP_EMBED, F_JSON, 0, 0, AT(lora), NULL},
    {"impetus", EP_OPENAI | EP_OLLAMA_TEXT | EP_MESSAGES | EP_EMBED | EP_RESPONSES, F_JSON, 0, 0, AT(impetus),
     NULL},

    {"stop_sequences", EP_MESSAGES, F_JSON, 0, 0, AT(stop), NULL},
    {"system", EP_ANTHROPIC, F_JSON, 0, 0, AT(system_blocks), NULL},
    {"system", EP_OLLAMA_GENERATE, F_STR, 0, 1 << 20, AT(system), NULL},
    {"raw", EP_OLLAMA_GENERATE, F_BOOL, 0, 0, AT(raw), NULL},
    {"format", EP_OLLAMA_TEXT, F_JSON, 0, 0, AT(format), NULL},

    {"name", EP_SHOW, F_STR, 1, 256, AT(model), NULL}, /* as older clients say */
    {"verbose", EP_SHOW, F_HINT, 0, 0, 0, "boolean"},

    {"tools", EP_TOOLS, F_JSON, 0, 0, AT(tools), NULL},
    {"tool_choice", EP_CHAT | EP_ANTHROPIC | EP_RESPONSES, F_JSON, 0, 0, AT(tool_choice), NULL},
    {"parallel_tool_calls", EP_CHAT | EP_RESPONSES, F_BOOL, 0, 0, AT(parallel), NULL},
    {"think", EP_OLLAMA_TEXT, F_JSON, 0, 0, AT(think), NULL},
    {"thinking", EP_ANTHROPIC, F_JSON, 0, 0, AT(thinking), NULL},
    {"reasoning_effort", EP_CHAT, F_STR, 1, 16, AT(effort), NULL},
    {"chat_template_kwargs", EP_CHAT, F_JSON, 0, 0, AT(template_kwargs), NULL},
    {"images", EP_OLLAMA_GENERATE, F_ONLY, 0, 0, 0, "[]"},
    {"context", EP_OLLAMA_GENERATE, F_ONLY, 0, 0, 0, "[]"},
    {"suffix", EP_OLLAMA_GENERATE, F_ONLY, 0, 0, 0, "\"\""},
    {"template", EP_OLLAMA_GENERATE, F_ONLY, 0, 0, 0, "\"\""},
    {"service_tier", EP_MESSAGES, F_ONLY, 0, 0, 0, "\"auto\"|\"standard_only\""},
    {"user", EP_RESPONSES | EP_OPENAI | EP_EMBED, F_HINT, 0, 0, 0, "string"},
    {"safety_identifier", EP_RESPONSES | EP_OPENAI, F_HINT, 0, 0, 0, "string"},
    {"prompt_cache_key", EP_RESPONSES | EP_OPENAI, F_HINT, 0, 0, 0, "string"},
    {"metadata", EP_CHAT | EP_MESSAGES | EP_RESPONSES, F_HINT, 0, 0, 0, "object"},
    {"max_output_tokens", EP_RESPONSES, F_INT, 1, INT_LAST, AT(max_tok), NULL},
    {"instructions", EP_RESPONSES, F_STR, 0, 1 << 20, AT(system), NULL},
    {"previous_response_id", EP_RESPONSES, F_STR, 1, 64, AT(previous), NULL},
    {"text", EP_RESPONSES, F_JSON, 0, 0, AT(text), NULL},
    {"reasoning", EP_RESPONSES, F_JSON, 0, 0, AT(reasoning), NULL},
    {"store", EP_RESPONSES, F_BOOL, 0, 0, AT(store), NULL},
    {"include", EP_RESPONSES, F_ONLY, 0, 0, 0,
     "[]|[\"reasoning.encrypted_content\"]"}, /* nothing is encrypted */
    {"background", EP_RESPONSES, F_ONLY, 0, 0, 0, "false"},
    {"truncation", EP_RESPONSES, F_ONLY, 0, 0, 0, "\"disabled\""},
    {"store", EP_CHAT, F_ONLY, 0, 0, 0, "false"},
    {"service_tier", EP_CHAT | EP_RESPONSES, F_ONLY, 0, 0, 0, "\"auto\"|\"default\""},
    {"modalities", EP_CHAT, F_ONLY, 0, 0, 0, "[\"text\"]"},
    {"functions", EP_CHAT, F_ONLY, 0, 0, 0, "[]"},
    {"function_call", EP_CHAT, F_ONLY, 0, 0, 0, "\"none\"|\"auto\""},
    {"suffix", EP_COMPLETION, F_ONLY, 0, 0, 0, "\"\""},
};

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "object";
    case JSON_ARRAY: return "array";
    case JSON_STRING: return "string";
    case JSON_INTEGER: return "integer";
    case JSON_REAL: return "number";
    case JSON_TRUE:
    case JSON_FALSE: return "boolean";
    default: return "null";
    }
}

static imp_status wrong_type(const field *f, const json_t *v, const char *want, imp_error *err)
{
    return imp_fail_field(err, IMP_INVALID, f->name, "'%s' must be %s, not %s", f->name, want, type_name(v));
}

static imp_status out_of_range(const field *f, const char *got, imp_error *err)
{
    return imp_fail_field(err, IMP_INVALID, f->name, "'%s' must be between %.10g and %.10g, not %s", f->name,
                          f->min, f->max, got);
}

static imp_status set_int(const field *f, const json_t *v, int64_t *out, imp_error *err)
{
    if (!json_is_integer(v)) return wrong_type(f, v, "an integer", err);
    int64_t x = json_integer_value(v);
    bool full = f->max >= I64_LAST; /* every value of the type is allowed */
    if (!full && (x < (int64_t)f->min || x > (int64_t)f->max)) {
        char got[32];
        snprintf(got, sizeof got, "%lld", (long long)x);
        return out_of_range(f, got, err);
    }
    /* The smallest value marks "not given"; as a seed its neighbour serves as well. */
    *out = x == IMP_UNSET ? x + 1 : x;
    return IMP_OK;
}

static imp_status set_num(const field *f, const json_t *v, double *out, imp_error *err)
{
    if (!json_is_number(v)) return wrong_type(f, v, "a number", err);
    double x = json_number_value(v);
    if (!(x >= f->min && x <= f->max)) {
        char got[40];
        snprintf(got, sizeof got, "%.9g", x);
        return out_of_range(f, got, err);
    }
    *out = x;
    return IMP_OK;
}

static imp_status set_str(const field *f, const json_t *v, const char **out, imp_error *err)
{
    if (!json_is_string(v)) return wrong_type(f, v, "a string", err);
    double n = (double)json_string_length(v);
    if (n < f->min || n > f->max)
        return imp_fail_field(err, IMP_INVALID, f->name, "'%s' must have %.0f to %.0f bytes, not %.0f",
                              f->name, f->min, f->max, n);
    *out = json_string_value(v);
    return IMP_OK;
}

static imp_status check_only(const field *f, const json_t *v, imp_error *err)
{
    char text[64]; /* longer than every value in the table: what does not fit matches none */
    size_t n = json_dumpb(v, text, sizeof text, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
    if (n > 0 && n <= sizeof text) {
        for (const char *p = f->only; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL) {
            size_t m = strcspn(p, "|");
            if (m == n && memcmp(p, text, n) == 0) return IMP_OK;
        }
    }
    char said[64];
    snprintf(said, sizeof said, "%s", f->only);
    for (char *p = said; *p; p++)
        if (*p == '|') *p = '/';
    return imp_fail_field(err, IMP_INVALID, f->name,
                          "'%s' is not supported by this server: leave it out, or send %s", f->name, said);
}

static imp_status set_field(const field *f, json_t *v, imp_api_params *p, imp_error *err)
{
    char *at = (char *)p + f->offset;
    switch (f->kind) {
    case F_STR: return set_str(f, v, (const char **)at, err);
    case F_BOOL:
        if (!json_is_boolean(v)) return wrong_type(f, v, "a boolean", err);
        *(bool *)at = json_is_true(v);
        return IMP_OK;
    case F_INT: return set_int(f, v, (int64_t *)at, err);
    case F_NUM: return set_num(f, v, (double *)at, err);
    case F_JSON: *(json_t **)at = v; return IMP_OK;
    case F_HINT:
        if (strcmp(type_name(v), f->only) != 0) return wrong_type(f, v, f->only, err);
        return IMP_OK;
    case F_ONLY: return check_only(f, v, err);
    }
    return IMP_OK;
}

imp_status imp_api_fields(imp_api_params *p, imp_error *err)
{
    const char *key;
    json_t *v;
    json_object_foreach(p->root, key, v)
    {
        const field *f = NULL;
        for (size_t i = 0; i < IMP_COUNT(g_field) && !f; i++)
            if ((g_field[i].ep & p->ep) && strcmp(g_field[i].name, key) == 0) f = &g_field[i];
        if (!f)
            return imp_fail_field(err, IMP_INVALID, key,
                                  "'%.64s' is not a field that this server understands", key);
        if (json_is_null(v)) continue;
        IMP_TRY(set_field(f, v, p, err));
    }
    return IMP_OK;
}

static imp_status check_stream_options(const imp_api_params *p, bool *include_usage, imp_error *err)
{
    if (!p->stream_options) return IMP_OK;
    const char *f = "stream_options";
    if (!json_is_object(p->stream_options))
        return imp_fail_field(err, IMP_INVALID, f, "'stream_options' must be an object");
    const char *key;
    json_t *v;
    json_object_foreach(p->stream_options, key, v)
    {
        bool usage = strcmp(key, "include_usage") == 0;
        /* padding against guessing text from packet sizes is OpenAI's; not to pad is all that is done here */
        bool pad = strcmp(key, "include_obfuscation") == 0;
        if (!usage && !pad)
            return imp_fail_field(err, IMP_INVALID, f,
                                  "'stream_options.%.64s' is not a field that this server "
                                  "understands",
                                  key);
        if (json_is_null(v)) continue;
        if (!json_is_boolean(v))
            return imp_fail_field(err, IMP_INVALID, f, "'stream_options.%s' must be a boolean", key);
        if (pad && json_is_true(v))
            return imp_fail_field(err, IMP_INVALID, f,
                                  "'stream_options.include_obfuscation' is not supported");
        if (usage) *include_usage = json_is_true(v);
    }
    return IMP_OK;
}

/* Rules that tie fields together. */
static imp_status check_generate(imp_api_params *p, imp_error *err)
{
    IMP_TRY(check_stream_options(p, &p->include_usage, err));
    IMP_TRY(imp_api_impetus(p, err));
    if (p->ep & EP_OLLAMA_TEXT) IMP_TRY(imp_api_ollama_params(p, err)); /* brings stop, too */
    IMP_TRY(imp_api_stop(p, err));
    IMP_TRY(imp_api_bias(p, err));
    IMP_TRY(imp_api_dry_breakers(p, err));
    if (p->ep == EP_RESPONSES) IMP_TRY(imp_api_responses_params(p, err));
    IMP_TRY(imp_api_tools(p, err));
    IMP_TRY(imp_api_think(p, err));
    if (p->best_of != IMP_UNSET && p->best_of != p->n)
        return imp_fail_field(err, IMP_INVALID, "best_of",
                              "'best_of' other than 'n' is not supported: ask for n and choose yourself");
    if (p->top_logprobs != IMP_UNSET && !p->want_logprobs)
        return imp_fail_field(err, IMP_INVALID, "top_logprobs", "'top_logprobs' needs \"logprobs\": true");
    if (p->max_tok != IMP_UNSET && p->max_completion_tok != IMP_UNSET && p->max_tok != p->max_completion_tok)
        return imp_fail_field(err, IMP_INVALID, "max_tokens",
                              "'max_tokens' and 'max_completion_tokens' differ: send one of them");
    if (p->max_tok == IMP_UNSET) p->max_tok = p->max_completion_tok;
    if (p->max_tok == 0)
        return imp_fail_field(err, IMP_INVALID, "max_tokens",
                              "'max_tokens' must be 1 or more, or -1 for no limit");
    if (p->ep == EP_MESSAGES && p->max_tok == IMP_UNSET)
        return imp_fail_field(err, IMP_INVALID, "max_tokens", "'max_tokens' is missing");
    if (p->ep == EP_OLLAMA_GENERATE || p->ep == EP_RESPONSES || p->load) return IMP_OK;
    if (p->ep == EP_COMPLETION) {
        p->want_logprobs = p->logprobs != IMP_UNSET;
        p->top_logprobs = p->logprobs;
        if (p->echo && p->want_logprobs)
            return imp_fail_field(err, IMP_INVALID, "logprobs", "'logprobs' with 'echo' is not supported");
        if (!p->prompt) return imp_fail_field(err, IMP_INVALID, "prompt", "'prompt' is missing");
        IMP_TRY(imp_api_check_input(p->prompt, "prompt", true, err));
        if (imp_api_n_input(p->prompt) * (uint64_t)p->n > IMP_API_MAX_CHOICES)
            return imp_fail_field(err, IMP_INVALID, "n",
                                  "more than %d answers in one request: %zu prompts times n %lld",
                                  IMP_API_MAX_CHOICES, imp_api_n_input(p->prompt), (long long)p->n);
        return IMP_OK;
    }
    return imp_api_messages(p, err);
}

static imp_status check_vector(imp_api_params *p, imp_error *err)
{
    IMP_TRY(imp_api_impetus(p, err));
    if (p->encoding && strcmp(p->encoding, "float") != 0 && strcmp(p->encoding, "base64") != 0)
        return imp_fail_field(err, IMP_INVALID, "encoding_format",
                              "'encoding_format' must be \"float\" or \"base64\"");
    IMP_TRY(imp_api_keep_alive(p->keep_alive, &p->keep_s, err));
    IMP_TRY(imp_api_ollama_options(p, err));
    if (p->prompt) {
        if (p->input) return imp_fail_field(err, IMP_INVALID, "prompt", "send 'prompt' or 'input', not both");
        if (!json_is_string(p->prompt))
            return imp_fail_field(err, IMP_INVALID, "prompt", "'prompt' must be a string");
        return IMP_OK;
    }
    if (!p->input) {
        /* Without an input Ollama only loads the model and answers an empty vector. */
        if (p->ep & EP_OLLAMA_VECTOR) return IMP_OK;
        return imp_fail_field(err, IMP_INVALID, "input", "'input' is missing");
    }
    if ((p->ep & EP_OLLAMA_VECTOR) && json_is_array(p->input) && json_array_size(p->input) == 0)
        return IMP_OK;
    return imp_api_check_input(p->input, "input", p->ep == EP_EMBED, err);
}

imp_status imp_api_parse(imp_endpoint ep, const char *body, size_t n, imp_api_params *out, imp_error *err)
{
    *out = (imp_api_params){.ep = ep,
                            .n = 1,
                            .best_of = IMP_UNSET,
                            .priority = IMP_UNSET,
                            .max_tok = IMP_UNSET,
                            .max_completion_tok = IMP_UNSET,
                            .top_logprobs = IMP_UNSET,
                            .logprobs = IMP_UNSET,
                            .dimensions = IMP_UNSET,
                            .seed = IMP_UNSET,
                            .top_k = IMP_UNSET,
                            .repeat_last_n = IMP_UNSET,
                            .dry_allowed_length = IMP_UNSET,
                            .dry_last_n = IMP_UNSET,
                            .mirostat = IMP_UNSET,
                            .typical_p = NAN,
                            .dynatemp_range = NAN,
                            .dynatemp_exponent = NAN,
                            .xtc_probability = NAN,
                            .xtc_threshold = NAN,
                            .dry_multiplier = NAN,
                            .dry_base = NAN,
                            .mirostat_tau = NAN,
                            .mirostat_eta = NAN,
                            .temperature = NAN,
                            .top_p = NAN,
                            .min_p = NAN,
                            .keep_s = NAN,
                            .repeat_penalty = NAN,
                            .presence_penalty = NAN,
                            .frequency_penalty = NAN,
                            .truncate = true,
                            .parallel = true,
                            .store = true,
                            .think_mode = -1,
                            .stream = (ep & EP_OLLAMA_TEXT) != 0};
    out->arena = imp_arena_new(1024);
    if (!out->arena) return imp_fail(err, IMP_NOMEM, "out of memory");
    IMP_TRY(imp_api_json(body, n, &out->root, err));
    IMP_TRY(imp_api_fields(out, err));
    if (ep == EP_SHOW)
        return out->model ? IMP_OK : imp_fail_field(err, IMP_INVALID, "model", "'model' is missing");
    return ep & EP_GENERATE ? check_generate(out, err) : check_vector(out, err);
}

void imp_api_params_drop_json(imp_api_params *p)
{
    json_decref(p->tool_list);
    json_decref(p->items);
    p->tool_list = p->items = NULL;
    imp_api_json_release(&p->root);
}

void imp_api_params_deinit(imp_api_params *p)
{
    imp_api_params_drop_json(p);
    imp_arena_free(p->arena);
    p->arena = NULL;
}

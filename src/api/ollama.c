/* api/ollama.c - /api/chat and /api/generate: their options and their answers.
 *
 * Place:   fields.c for the request, generate.c through imp_gen_ollama_* for the answer.
 * Layout:  a stream is one JSON object a line; the last has "done": true and the counts. Durations are nanoseconds.
 * Source:  Ollama's docs/api.md. */
#include "api/generate.h"

#include <math.h>
#include <time.h>

/* ---- the request ------------------------------------------------------------------------------------ */

typedef struct option {
    const char *name;
    bool whole; /* an integer */
    double min, max;
    size_t offset; /* int64_t when whole, else double */
} option;

#define AT(member) offsetof(imp_api_params, member)
static const option g_option[] = {{"num_predict", true, -2, 2147483647, AT(max_tok)},
                                  {"top_k", true, -1, 2147483647, AT(top_k)},
                                  {"seed", true, -9007199254740992, 9007199254740992, AT(seed)},
                                  {"repeat_last_n", true, -1, 2147483647, AT(repeat_last_n)},
                                  {"typical_p", false, 0, 1, AT(typical_p)},
                                  {"dynatemp_range", false, 0, 100, AT(dynatemp_range)},
                                  {"dynatemp_exponent", false, 0, 100, AT(dynatemp_exponent)},
                                  {"xtc_probability", false, 0, 1, AT(xtc_probability)},
                                  {"xtc_threshold", false, 0, 1, AT(xtc_threshold)},
                                  {"dry_multiplier", false, 0, 100, AT(dry_multiplier)},
                                  {"dry_base", false, 1, 10, AT(dry_base)},
                                  {"dry_allowed_length", true, 0, 2147483647, AT(dry_allowed_length)},
                                  {"dry_penalty_last_n", true, -1, 2147483647, AT(dry_last_n)},
                                  {"mirostat", true, 0, 2, AT(mirostat)},
                                  {"mirostat_tau", false, 0, 100, AT(mirostat_tau)},
                                  {"mirostat_eta", false, 0, 1, AT(mirostat_eta)},
                                  {"temperature", false, 0, 2, AT(temperature)},
                                  {"top_p", false, 0, 1, AT(top_p)},
                                  {"min_p", false, 0, 1, AT(min_p)},
                                  {"repeat_penalty", false, 0.01, 10, AT(repeat_penalty)},
                                  {"presence_penalty", false, -2, 2, AT(presence_penalty)},
                                  {"frequency_penalty", false, -2, 2, AT(frequency_penalty)}};
/* How a model is loaded, which was decided when it was: nothing of an answer depends on them. */
static const char *const g_loading[] = {"num_thread", "num_batch", "num_gpu", "main_gpu",
                                        "use_mmap",   "numa",      "num_ctx", "num_keep"};

static imp_status bad_option(const char *key, const char *what, imp_error *err)
{
    return imp_fail_field(err, IMP_INVALID, "options", "'options.%.64s' %s", key, what);
}

static imp_status set_option(imp_api_params *p, const char *key, json_t *v, imp_error *err)
{
    for (size_t i = 0; i < IMP_COUNT(g_loading); i++)
        if (strcmp(key, g_loading[i]) == 0)
            return json_is_number(v) || json_is_boolean(v)
                       ? IMP_OK
                       : bad_option(key, "must be a number or boolean", err);
    if (strcmp(key, "stop") == 0) {
        p->stop = v;
        return IMP_OK;
    }
    if (strcmp(key, "dry_sequence_breakers") == 0) {
        p->dry_breakers = v;
        return IMP_OK;
    }
    for (size_t i = 0; i < IMP_COUNT(g_option); i++) {
        const option *o = &g_option[i];
        if (strcmp(key, o->name) != 0) continue;
        double x = json_number_value(v);
        if (!json_is_number(v) || (o->whole && !json_is_integer(v)) || !(x >= o->min && x <= o->max))
            return imp_fail_field(err, IMP_INVALID, "options",
                                  "'options.%s' must be %s between %.10g and %.10g", key,
                                  o->whole ? "an integer" : "a number", o->min, o->max);
        if (o->whole)
            *(int64_t *)(void *)((char *)p + o->offset) = json_integer_value(v);
        else
            *(double *)(void *)((char *)p + o->offset) = x;
        return IMP_OK;
    }
    return bad_option(key, "is not a field that this server understands", err);
}

imp_status imp_api_ollama_params(imp_api_params *p, imp_error *err)
{
    const char *key;
    json_t *v;
    if (p->options && !json_is_object(p->options))
        return imp_fail_field(err, IMP_INVALID, "options", "'options' must be an object");
    json_object_foreach(p->options, key, v) if (!json_is_null(v)) IMP_TRY(set_option(p, key, v, err));
    if (p->max_tok != IMP_UNSET && p->max_tok <= 0) p->max_tok = IMP_UNSET; /* -1, -2: to the end */
    IMP_TRY(imp_api_keep_alive(p->keep_alive, &p->keep_s, err));
    bool json = json_is_string(p->format) && strcmp(json_string_value(p->format), "json") == 0;
    bool none = json_is_string(p->format) && json_string_length(p->format) == 0;
    if (none) p->format = NULL;
    if (p->format && !json && !json_is_object(p->format))
        return imp_fail_field(err, IMP_INVALID, "format", "'format' must be \"json\" or a JSON schema");
    p->load = p->ep == EP_OLLAMA_CHAT
                  ? p->messages == NULL || (json_is_array(p->messages) && json_array_size(p->messages) == 0)
                  : p->prompt == NULL || (json_is_string(p->prompt) && json_string_length(p->prompt) == 0);
    if (p->load || p->ep != EP_OLLAMA_GENERATE) return IMP_OK;
    if (!json_is_string(p->prompt))
        return imp_fail_field(err, IMP_INVALID, "prompt", "'prompt' must be a string");
    return IMP_OK;
}

/* A prompt is the user's message of a chat, unless it is raw or the model knows no chats. */
imp_status imp_api_ollama_prompt(imp_api_params *p, const imp_model *m, imp_error *err)
{
    if (p->raw || imp_model_get_info(m)->template_id == NULL) {
        if (p->system != NULL)
            return imp_fail_field(err, IMP_INVALID, "system",
                                  "'system' needs a model with a chat template, and no 'raw'");
        return IMP_OK;
    }
    p->msg = imp_arena_array(p->arena, 2, sizeof *p->msg);
    if (p->msg == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    if (p->system != NULL) p->msg[p->n_msg++] = (imp_message){.role = "system", .content = p->system};
    p->msg[p->n_msg++] = (imp_message){.role = "user", .content = json_string_value(p->prompt)};
    return IMP_OK;
}

/* ---- the answer --------------------------------------------------------------------------------------- */

static void begin(const gen_call *g, imp_buf *b)
{
    char when[32];
    imp_api_time(when, g->created);
    imp_buf_str(b, "{\"model\":");
    imp_json_cstr(b, g->model_id);
    imp_buf_fmt(b, ",\"created_at\":\"%s\",", when);
}

/* "message" or "response": text, thoughts, calls; any may be empty. */
static void content(const gen_call *g, const imp_buf *text, const imp_buf *thought, const gen_tool *tool,
                    size_t n_tool, imp_buf *b)
{
    bool chat = g->p.ep == EP_OLLAMA_CHAT;
    imp_buf_str(b, chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"response\":");
    imp_json_str(b, text && text->data ? text->data : "", text ? text->n : 0);
    if (thought && thought->n > 0) {
        imp_buf_str(b, ",\"thinking\":");
        imp_json_str(b, thought->data, thought->n);
    }
    for (size_t k = 0; k < n_tool; k++) {
        imp_buf_fmt(b,
                    "%s{\"id\":\"%s\",\"function\":{\"index\":%zu,\"name\":", k ? "," : ",\"tool_calls\":[",
                    tool[k].id, k);
        imp_json_str(b, tool[k].name.data ? tool[k].name.data : "", tool[k].name.n);
        imp_buf_str(b, ",\"arguments\":");
        imp_buf_add(b, tool[k].args.data, tool[k].args.n);
        imp_buf_str(b, "}}");
        b->failed |= tool[k].name.failed || tool[k].args.failed;
    }
    if (n_tool > 0) imp_buf_str(b, "]");
    if (chat) imp_buf_str(b, "}");
}

void imp_api_load(const imp_api_params *p, imp_model *m, const imp_api_sink *s, uint64_t waited_ns)
{
    bool go = p->keep_s == 0;
    if (go && m != NULL && !imp_model_keep(m, 0)) {
        imp_error err;
        (void)imp_fail_field(&err, IMP_INVALID, "keep_alive",
                             "the model '%.200s' is pinned: this server keeps it loaded", p->model);
        imp_api_fail(s, IMP_OLLAMA, &err);
        return;
    }
    if (!go && !isnan(p->keep_s)) (void)imp_model_keep(m, p->keep_s); /* a pinned one stays longer */
    gen_call g = {.p = *p,
                  .model_id = m != NULL ? imp_model_get_info(m)->id : p->model,
                  .created = (int64_t)time(NULL)};
    imp_buf b = {0};
    begin(&g, &b);
    content(&g, NULL, NULL, NULL, 0, &b);
    imp_buf_fmt(&b, ",\"done\":true,\"done_reason\":\"%s\",\"load_duration\":%llu}", go ? "unload" : "load",
                (unsigned long long)waited_ns);
    imp_api_answer(s, 200, &b);
}

static void counts(const gen_call *g, const gen_choice *c, imp_buf *b)
{
    const imp_usage *u = &c->usage;
    uint64_t total = imp_now_ns() - g->base.t0_ns;
    imp_buf_fmt(
        b,
        ",\"done\":true,\"done_reason\":\"%s\",\"total_duration\":%llu,\"load_duration\":%llu,"
        "\"prompt_eval_count\":%u,\"prompt_eval_duration\":%llu,\"eval_count\":%u,\"eval_duration\":%llu",
        c->finish == IMP_FINISH_LENGTH ? "length" : "stop", (unsigned long long)total,
        (unsigned long long)g->base.waited_ns, u->n_prompt, (unsigned long long)(u->prefill_ms * 1e6),
        u->n_generated, (unsigned long long)(u->decode_ms * 1e6));
    if (g->p.want_receipt) imp_api_write_receipts(&g->base, b);
    imp_buf_str(b, "}");
}

static void ollama_open(gen_call *g, size_t i)
{
    (void)g;
    (void)i;
}

static void line(gen_call *g, const imp_buf *text, const imp_buf *thought, const gen_tool *tool)
{
    begin(g, &g->out);
    content(g, text, thought, tool, tool != NULL, &g->out);
    imp_buf_str(&g->out, ",\"done\":false}\n");
}

static void ollama_piece(gen_call *g, size_t i, const char *text, size_t n)
{
    (void)i;
    imp_buf b = {.data = (char *)text, .n = n};
    line(g, &b, NULL, NULL);
}

static void ollama_thought(gen_call *g, size_t i, const char *text, size_t n)
{
    (void)i;
    imp_buf b = {.data = (char *)text, .n = n};
    line(g, NULL, &b, NULL);
}

/* A call is told when it is complete: its arguments are an object. */
static void ollama_call(gen_call *g, size_t i, size_t k)
{
    (void)g;
    (void)i;
    (void)k;
}

static void ollama_args(gen_call *g, size_t i, size_t k, const char *text, size_t n)
{
    (void)text;
    (void)n;
    ollama_call(g, i, k);
}

static void ollama_call_end(gen_call *g, size_t i, size_t k)
{
    line(g, NULL, NULL, &g->choice[i].tool[k]);
}

static void ollama_end(gen_call *g, imp_buf *b)
{
    if (g->base.err.status != IMP_OK) {
        imp_api_fail_json(b, IMP_OLLAMA, &g->base.err);
    } else {
        begin(g, b);
        content(g, NULL, NULL, NULL, 0, b);
        counts(g, &g->choice[0], b);
    }
    imp_buf_str(b, "\n");
}

static void ollama_answer(gen_call *g, imp_buf *b)
{
    const gen_choice *c = &g->choice[0];
    begin(g, b);
    content(g, &c->text, &c->thought, c->tool, c->n_tool, b);
    counts(g, c, b);
}

#define FORMAT                                                                                               \
    {                                                                                                        \
        .id_prefix = "ollama-", .stream_type = "application/x-ndjson", .open = ollama_open,                  \
        .piece = ollama_piece, .thought = ollama_thought, .call = ollama_call, .args = ollama_args,          \
        .call_end = ollama_call_end, .close = ollama_open, .end = ollama_end,                                \
        .cut = "{\"error\":\"the server is out of memory\"}\n", .answer = ollama_answer                      \
    }
const gen_format imp_gen_ollama_chat = FORMAT, imp_gen_ollama_generate = FORMAT;

/* api/generate.c - the endpoints that generate text: parse, submit, stream or collect, answer.
 *
 * Place:   over call.c; how an API writes its answers is in openai*.c, ollama.c and anthropic.c (gen_format).
 * Idea:    every prompt times n is one engine request, a slot of the call. Streaming turns an event into one
 *          piece of output at once; without streaming text is collected and answered whole.
 * Always:  a stream has its format's last words, also when it failed.
 * Threads: events on the scheduler's thread, under the call's mutex. */
#include "api/generate.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

/* ---- events -------------------------------------------------------------------------------------- */

static void flush(gen_call *g)
{
    if (!g->base.started || g->out.n == 0 || g->out.failed) return;
    g->base.sink.write(g->base.sink.user, g->out.data, g->out.n);
    g->out.n = 0;
}

static void on_event(imp_api_call *base, imp_call_slot *s, const imp_event *ev)
{
    gen_call *g = (gen_call *)base;
    gen_choice *c = &g->choice[s->index];
    if (ev->kind == IMP_EVENT_DONE) {
        c->finish = ev->finish;
        c->usage = ev->usage;
        if (ev->stop != NULL) c->stop = imp_arena_strndup(g->p.arena, ev->stop, strlen(ev->stop));
        bool good = ev->finish == IMP_FINISH_STOP || ev->finish == IMP_FINISH_LENGTH;
        if (good && c->reader != NULL) imp_gen_end(g, c);
        if (g->p.stream && good) g->format->close(g, s->index);
        flush(g);
        return;
    }
    if (ev->kind != IMP_EVENT_TEXT) return;
    if (g->p.want_logprobs) g->format->tokens(g, c, ev);
    if (c->reader != NULL) {
        imp_gen_push(g, c, ev->n_text ? ev->text : "", ev->n_text);
        flush(g);
    } else if (!g->p.stream) {
        imp_buf_add(&c->text, ev->text, ev->n_text);
    } else if (ev->n_text > 0 || c->n_tok > 0) {
        g->format->piece(g, s->index, ev->n_text ? ev->text : "", ev->n_text);
        flush(g);
    }
}

/* All requests are accepted: the status can be sent, then what came meanwhile. */
static void on_start(imp_api_call *base)
{
    gen_call *g = (gen_call *)base;
    if (!g->p.stream) return;
    static const imp_api_header h[] = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
    base->sink.begin(base->sink.user, 200, g->format->stream_type, h, IMP_COUNT(h), true);
    flush(g);
}

static void finish_stream(gen_call *g)
{
    imp_api_sink *s = &g->base.sink;
    imp_buf b = {0};
    if (g->out.failed && g->base.err.status == IMP_OK) imp_fail(&g->base.err, IMP_NOMEM, "out of memory");
    g->format->end(g, &b);
    if (b.failed)
        s->write(s->user, g->format->cut, strlen(g->format->cut));
    else
        s->write(s->user, b.data, b.n);
    imp_buf_deinit(&b);
    s->end(s->user);
}

static void finish_whole(gen_call *g)
{
    imp_buf b = {0};
    g->format->answer(g, &b);
    for (size_t i = 0; i < g->base.n_slot; i++) {
        const gen_choice *c = &g->choice[i];
        b.failed |= c->text.failed || c->thought.failed;
        for (size_t k = 0; k < IMP_COUNT(c->lp); k++) b.failed |= c->lp[k].failed;
    }
    imp_api_answer(&g->base.sink, 200, &b);
}

static void on_finish(imp_api_call *base)
{
    gen_call *g = (gen_call *)base;
    if (base->first_ns) {
        uint64_t n = 0;
        for (size_t i = 0; i < base->n_slot; i++) n += g->choice[i].usage.n_generated;
        if (n > 1)
            imp_hist_add(&base->api->output_token,
                         (double)(imp_now_ns() - base->first_ns) * 1e-9 / (double)(n - 1));
    }
    if (base->started && g->p.stream)
        finish_stream(g);
    else if (base->err.status != IMP_OK)
        imp_api_fail(&base->sink, base->dialect, &base->err);
    else
        finish_whole(g);
    imp_model_release(g->model);
    imp_call_unref(base);
}

static void on_free(imp_api_call *base)
{
    gen_call *g = (gen_call *)base;
    for (size_t i = 0; g->choice && i < base->n_slot; i++) {
        imp_buf_deinit(&g->choice[i].text);
        imp_gen_free_choice(&g->choice[i]);
        for (size_t k = 0; k < IMP_COUNT(g->choice[i].lp); k++) imp_buf_deinit(&g->choice[i].lp[k]);
    }
    imp_buf_deinit(&g->head);
    imp_buf_deinit(&g->out);
    imp_api_params_deinit(&g->p);
}

void imp_gen_token_text(const gen_call *g, int32_t id, imp_buf *out)
{
    char *text;
    size_t n;
    if (imp_detokenize(g->model, &id, 1, true, &text, &n, NULL) != IMP_OK) return;
    /* Decoding a token alone drops the space that a SentencePiece word starts with. */
    size_t n_piece = 0;
    const char *piece = imp_token_piece(g->model, id, &n_piece);
    if (piece && n_piece >= 3 && memcmp(piece, "\xe2\x96\x81", 3) == 0 && (n == 0 || text[0] != ' '))
        imp_buf_add(out, " ", 1);
    imp_buf_add(out, text, n);
    imp_free(text);
}

/* ---- from parameters to engine requests ------------------------------------------------------------ */

static imp_status prompt_tokens(gen_call *g, const json_t *list, gen_prompt *out, imp_error *err)
{
    uint32_t n_vocab = imp_model_get_info(g->model)->n_vocab;
    out->n = json_array_size(list);
    out->ids = imp_arena_array(g->p.arena, out->n, sizeof *out->ids);
    if (!out->ids) return imp_fail(err, IMP_NOMEM, "out of memory");
    for (size_t i = 0; i < out->n; i++) {
        json_int_t id = json_integer_value(json_array_get(list, i));
        if (id < 0 || id >= (json_int_t)n_vocab)
            return imp_fail_field(err, IMP_INVALID, "prompt",
                                  "'prompt' holds the token id %lld; this model has %u", (long long)id,
                                  n_vocab);
        out->ids[i] = (int32_t)id;
    }
    return IMP_OK;
}

static imp_status prompt_text(gen_call *g, const char *text, size_t n, unsigned flags, gen_prompt *out,
                              const char *field, imp_error *err)
{
    IMP_TRY(imp_tokenize(g->model, text, n, flags, &out->ids, &out->n, err));
    out->engine = true;
    if (out->n == 0) return imp_fail_field(err, IMP_INVALID, field, "'%s' holds no text", field);
    return IMP_OK;
}

static imp_status echo_text(gen_call *g, const json_t *v, gen_prompt *p, imp_error *err)
{
    if (json_is_string(v)) {
        p->text = json_string_value(v);
        p->n_text = json_string_length(v);
    } else {
        char *text;
        IMP_TRY(imp_detokenize(g->model, p->ids, p->n, false, &text, &p->n_text, err));
        p->text = imp_arena_strndup(g->p.arena, text, p->n_text);
        imp_free(text);
    }
    /* own copy: the JSON tree goes when the requests are submitted */
    p->text = p->text ? imp_arena_strndup(g->p.arena, p->text, p->n_text) : NULL;
    return p->text ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

static imp_status make_prompts(gen_call *g, imp_error *err)
{
    imp_api_params *p = &g->p;
    if (p->n_msg > 0) {
        char *text;
        imp_chat chat;
        IMP_TRY(imp_api_chat(p, g->model, &chat, err));
        IMP_TRY(imp_chat_prompt(g->model, &chat, &text, err));
        const imp_toolfmt *f = imp_model_toolfmt(g->model);
        g->in_thought = f != NULL && imp_toolfmt_in_thought(f, text);
        imp_status st =
            prompt_text(g, text, strlen(text), IMP_TOK_PARSE_SPECIAL, &g->prompt[0], "messages", err);
        imp_free(text);
        return st;
    }
    unsigned flags = IMP_TOK_ADD_SPECIAL | IMP_TOK_PARSE_SPECIAL;
    bool many =
        g->n_prompt > 1 || (json_is_array(p->prompt) && !json_is_integer(json_array_get(p->prompt, 0)));
    for (size_t i = 0; i < g->n_prompt; i++) {
        const json_t *v = many ? json_array_get(p->prompt, i) : p->prompt;
        if (json_is_string(v))
            IMP_TRY(prompt_text(g, json_string_value(v), json_string_length(v), flags, &g->prompt[i],
                                "prompt", err));
        else
            IMP_TRY(prompt_tokens(g, v, &g->prompt[i], err));
        if (p->echo) IMP_TRY(echo_text(g, v, &g->prompt[i], err));
    }
    return IMP_OK;
}

/* What only submitting needs. */
static void drop_inputs(gen_call *g)
{
    imp_constraint_free(g->constraint);
    g->constraint = NULL;
    imp_api_adapters_release(&g->lora);
    for (size_t i = 0; g->prompt && i < g->n_prompt; i++) {
        if (g->prompt[i].engine) imp_free(g->prompt[i].ids);
        g->prompt[i].ids = NULL;
        g->prompt[i].engine = false;
    }
}

static imp_status make_request(const gen_call *g, imp_request *rq, imp_error *err)
{
    const imp_api_params *p = &g->p;
    *rq = (imp_request){.kind = IMP_REQUEST_GENERATE, .n_input = 1};
    imp_sampling *s = &rq->sampling;
    imp_api_sampling(p, s);
    uint32_t n_vocab = imp_model_get_info(g->model)->n_vocab;
    for (size_t i = 0; i < p->n_bias; i++)
        if ((uint32_t)p->bias[i].id >= n_vocab)
            return imp_fail_field(err, IMP_INVALID, "logit_bias",
                                  "'logit_bias' names the token %d; this model has %u", p->bias[i].id,
                                  n_vocab);
    s->bias = p->bias;
    s->n_bias = p->n_bias;
    /* OpenAI's completions stop after 16 tokens unless told otherwise; chats go on to the end */
    if (p->max_tok == -1)
        rq->max_tok = 0; /* as llama.cpp's users ask for no limit */
    else if (p->max_tok != IMP_UNSET)
        rq->max_tok = (uint32_t)p->max_tok;
    else
        rq->max_tok = p->ep == EP_COMPLETION ? 16 : 0;
    rq->stop = p->stop_str;
    rq->n_stop = p->n_stop;
    rq->ignore_eos = p->ignore_eos;
    rq->require = p->require;
    if (p->priority != IMP_UNSET) rq->priority = (int32_t)p->priority;
    rq->constraint = g->constraint;
    rq->lora = g->lora.use;
    rq->n_lora = g->lora.n;
    rq->fresh_text = p->n_msg > 0;
    rq->want_logprobs = p->want_logprobs;
    rq->n_logprobs = p->want_logprobs && p->top_logprobs != IMP_UNSET ? (uint32_t)p->top_logprobs : 0;
    return IMP_OK;
}

/* -1 asks for a random seed; n answers from one seed get seeds in a row, which step over the one that means random. */
static uint64_t seed_of(int64_t seed, size_t k)
{
    if (seed == IMP_UNSET || seed == -1) return UINT64_MAX;
    uint64_t first = (uint64_t)seed, s = first + k;
    return s < first || s == UINT64_MAX ? s + 1 : s;
}

static imp_status submit_all(gen_call *g, imp_error *err)
{
    imp_request rq;
    IMP_TRY(make_request(g, &rq, err));
    size_t n = (size_t)g->p.n;
    for (size_t i = 0; i < g->base.n_slot; i++) {
        const gen_prompt *pr = &g->prompt[i / n];
        rq.ids = pr->ids;
        rq.n_ids = &pr->n;
        rq.sampling.seed = seed_of(g->p.seed, i % n);
        IMP_TRY(imp_call_submit(&g->base, i, g->model, &rq, err));
    }
    return IMP_OK;
}

/* What a choice starts with: the role of a chat, the echoed prompt of a completion. */
static void open_choices(gen_call *g)
{
    for (size_t i = 0; i < g->base.n_slot; i++) {
        const gen_prompt *pr = &g->prompt[i / (size_t)g->p.n];
        if (g->p.stream) g->format->open(g, i);
        if (!g->p.echo) continue;
        if (g->p.stream)
            g->format->piece(g, i, pr->text, pr->n_text);
        else
            imp_buf_add(&g->choice[i].text, pr->text, pr->n_text);
    }
}

static imp_status prepare(gen_call *g, imp_error *err)
{
    IMP_TRY(imp_api_adapters(g->p.model, g->p.lora, g->model, &g->lora, err));
    const char *id = g->lora.name != NULL ? g->lora.name : imp_model_get_info(g->model)->id;
    g->n_prompt = g->p.prompt == NULL ? 1 : imp_api_n_input(g->p.prompt);
    if (g->p.ep == EP_OLLAMA_GENERATE) IMP_TRY(imp_api_ollama_prompt(&g->p, g->model, err));
    g->model_id = imp_arena_strndup(g->p.arena, id, strlen(id));
    g->prompt = imp_arena_array(g->p.arena, g->n_prompt, sizeof *g->prompt);
    if (!g->model_id || !g->prompt) return imp_fail(err, IMP_NOMEM, "out of memory");
    IMP_TRY(make_prompts(g, err));
    IMP_TRY(imp_api_constraint(&g->p, g->model, &g->constraint, err));
    if (g->constraint == NULL)
        return imp_api_tool_constraint(&g->p, g->model, g->in_thought, &g->constraint, err);
    if (g->p.tool_want == TOOLS_OFF || g->p.tool_want == TOOLS_NONE) return IMP_OK;
    return imp_fail_field(
        err, IMP_INVALID, "tools",
        "an answer that must keep to a format cannot call tools: send \"tool_choice\": \"none\", or "
        "leave one of them out");
}

static const gen_format *format_of(imp_endpoint ep)
{
    switch (ep) {
    case EP_CHAT: return &imp_gen_chat;
    case EP_OLLAMA_CHAT: return &imp_gen_ollama_chat;
    case EP_OLLAMA_GENERATE: return &imp_gen_ollama_generate;
    case EP_MESSAGES: return &imp_gen_messages;
    case EP_RESPONSES: return &imp_gen_responses;
    default: return &imp_gen_completion;
    }
}

imp_api_call *imp_api_generate(imp_api *a, const imp_api_request *rq, imp_endpoint ep, const imp_api_sink *s)
{
    imp_error err = {0};
    gen_call *g = imp_sys_calloc(1, sizeof *g);
    if (!g) {
        imp_fail(&err, IMP_NOMEM, "out of memory");
        imp_api_fail(s, imp_api_dialect(rq->path), &err);
        return NULL;
    }
    imp_dialect dialect = imp_api_dialect(rq->path);
    g->format = format_of(ep);
    imp_status st = imp_api_parse(ep, rq->body, rq->n_body, &g->p, &err);
    if (st == IMP_OK && ep == EP_RESPONSES) st = imp_api_responses_input(a, rq->who.client, &g->p, &err);
    if (st == IMP_OK) {
        g->model = imp_api_model(a, g->p.model, false, dialect, &err);
        st = g->model ? IMP_OK : err.status;
    }
    if (st == IMP_OK && g->p.load) {
        imp_api_load(&g->p, g->model, s, rq->waited_ns);
        imp_model_release(g->model);
        imp_api_params_deinit(&g->p);
        imp_sys_free(g);
        return NULL;
    }
    if (st == IMP_OK) st = prepare(g, &err);
    size_t n_slot = g->n_prompt * (size_t)g->p.n;
    if (st == IMP_OK) {
        g->choice = imp_arena_array(g->p.arena, n_slot, sizeof *g->choice);
        st = g->choice ? imp_call_init(&g->base, a, s, dialect, n_slot) : IMP_NOMEM;
        if (st != IMP_OK) imp_fail(&err, st, "out of memory");
    }
    if (st != IMP_OK) {
        drop_inputs(g);
        imp_model_release(g->model);
        imp_api_params_deinit(&g->p);
        imp_sys_free(g);
        imp_api_fail(s, dialect, &err);
        return NULL;
    }
    g->base.who = rq->who;
    imp_call_waited(&g->base, rq->waited_ns);
    if (!isnan(g->p.keep_s)) (void)imp_model_keep(g->model, g->p.keep_s); /* a pinned one stays longer */
    imp_api_make_id(a, g->format->id_prefix, g->id);
    g->created = (int64_t)time(NULL);
    g->base.on_event = on_event;
    g->base.on_start = on_start;
    g->base.on_finish = on_finish;
    g->base.on_free = on_free;
    st = imp_gen_read(g, g->in_thought, &err);
    open_choices(g);
    if (st == IMP_OK && (g->head.failed || g->out.failed)) st = imp_fail(&err, IMP_NOMEM, "out of memory");
    if (st == IMP_OK) st = submit_all(g, &err);
    drop_inputs(g);
    imp_api_params_drop_json(&g->p); /* the engine has its copies */
    imp_call_go(&g->base, st == IMP_OK ? NULL : &err);
    return &g->base;
}

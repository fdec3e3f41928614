/* api/openai.c - the frame of OpenAI's answers: chunks, usage, the end of a stream.
 *
 * Place:   generate.c through imp_gen_chat and imp_gen_completion, whose own words are in openai_chat.c and
 *          openai_completion.c.
 * Always:  a stream ends with `data: [DONE]`; an error after the first byte is a `data: {"error":...}` before it.
 * Source:  OpenAI API reference, chat and completions. */
#include "api/generate.h"

static void write_usage(const gen_call *g, imp_buf *b)
{
    uint64_t prompt = 0, out = 0, cached = 0;
    for (size_t i = 0; i < g->base.n_slot; i++) {
        const imp_usage *u = &g->choice[i].usage;
        out += u->n_generated;
        if (i % (size_t)g->p.n != 0) continue; /* n answers to one prompt: it counts once */
        prompt += u->n_prompt;
        cached += u->n_cached;
    }
    imp_buf_fmt(b,
                "\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
                "\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
                (unsigned long long)prompt, (unsigned long long)out, (unsigned long long)(prompt + out),
                (unsigned long long)cached);
}

static void write_head(gen_call *g, const char *object, imp_buf *b)
{
    imp_buf_fmt(b, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", g->id, object,
                (long long)g->created);
    imp_json_cstr(b, g->model_id);
    imp_buf_str(b, ",\"system_fingerprint\":\"impetus-" IMPETUS_VERSION "\",");
}

static const char *finish_name(const gen_choice *c)
{
    if (imp_gen_calls(c)) return "\"tool_calls\"";
    return c->finish == IMP_FINISH_LENGTH ? "\"length\"" : "\"stop\"";
}

/* A chunk up to its "choices". */
static void data(gen_call *g, imp_buf *b)
{
    if (g->head.n == 0) write_head(g, g->format->words->chunk_object, &g->head);
    imp_buf_str(b, "data: ");
    imp_buf_add(b, g->head.data, g->head.n);
}

/* One chunk with one choice. text NULL: raw is the delta. finish NULL: not the last. */
static void write_chunk(gen_call *g, size_t i, const char *raw, const char *text, size_t n,
                        const char *finish)
{
    gen_choice *c = &g->choice[i];
    imp_buf *b = &g->out;
    data(g, b);
    imp_buf_fmt(b, "\"choices\":[{\"index\":%zu,", i);
    if (text)
        g->format->words->delta(b, text, n);
    else
        imp_buf_str(b, raw);
    imp_buf_str(b, ",");
    g->format->words->logprobs(c, b);
    for (size_t k = 0; k < IMP_COUNT(c->lp); k++) c->lp[k].n = 0;
    c->n_tok = 0;
    imp_buf_fmt(b, ",\"finish_reason\":%s}]%s}\n\n", finish ? finish : "null",
                g->p.include_usage ? ",\"usage\":null" : "");
}

void imp_openai_open(gen_call *g, size_t i)
{
    if (g->format->words->role_delta) write_chunk(g, i, g->format->words->role_delta, NULL, 0, NULL);
}

void imp_openai_piece(gen_call *g, size_t i, const char *text, size_t n)
{
    write_chunk(g, i, NULL, text, n, NULL);
}

/* A chunk whose delta is "key": text. */
static void write_delta(gen_call *g, size_t i, imp_buf *delta)
{
    imp_buf_str(delta, "}");
    g->out.failed |= delta->failed;
    if (!delta->failed) write_chunk(g, i, delta->data, NULL, 0, NULL);
    imp_buf_deinit(delta);
}

void imp_openai_thought(gen_call *g, size_t i, const char *text, size_t n)
{
    imp_buf b = {0};
    imp_buf_str(&b, "\"delta\":{\"reasoning_content\":");
    imp_json_str(&b, text, n);
    write_delta(g, i, &b);
}

void imp_openai_call(gen_call *g, size_t i, size_t k)
{
    const gen_tool *t = &g->choice[i].tool[k];
    imp_buf b = {0};
    imp_buf_fmt(&b,
                "\"delta\":{\"tool_calls\":[{\"index\":%zu,\"id\":\"%s\",\"type\":\"function\",\"function\":{"
                "\"name\":",
                k, t->id);
    imp_json_str(&b, t->name.data ? t->name.data : "", t->name.n);
    imp_buf_str(&b, ",\"arguments\":\"\"}}]");
    write_delta(g, i, &b);
}

void imp_openai_args(gen_call *g, size_t i, size_t k, const char *text, size_t n)
{
    imp_buf b = {0};
    imp_buf_fmt(&b, "\"delta\":{\"tool_calls\":[{\"index\":%zu,\"function\":{\"arguments\":", k);
    imp_json_str(&b, text, n);
    imp_buf_str(&b, "}}]");
    write_delta(g, i, &b);
}

void imp_openai_call_end(gen_call *g, size_t i, size_t k)
{
    (void)g;
    (void)i;
    (void)k;
}

void imp_openai_close(gen_call *g, size_t i)
{
    write_chunk(g, i, g->format->words->last_delta, NULL, 0, finish_name(&g->choice[i]));
}

void imp_openai_end(gen_call *g, imp_buf *b)
{
    bool failed = g->base.err.status != IMP_OK;
    if (failed) {
        imp_buf_str(b, "data: ");
        imp_api_fail_json(b, IMP_OPENAI, &g->base.err);
        imp_buf_str(b, "\n\n");
    }
    if (!failed && g->p.include_usage) {
        data(g, b);
        imp_buf_str(b, "\"choices\":[],");
        write_usage(g, b);
        imp_buf_str(b, "}\n\n");
    }
    if (!failed && g->p.want_receipt) {
        data(g, b);
        imp_buf_str(b, "\"choices\":[]");
        imp_api_write_receipts(&g->base, b);
        imp_buf_str(b, "}\n\n");
    }
    imp_buf_str(b, "data: [DONE]\n\n");
}

void imp_openai_answer(gen_call *g, imp_buf *b)
{
    write_head(g, g->format->words->object, b);
    imp_buf_str(b, "\"choices\":[");
    for (size_t i = 0; i < g->base.n_slot; i++) {
        gen_choice *c = &g->choice[i];
        imp_buf_fmt(b, "%s{\"index\":%zu,", i ? "," : "", i);
        g->format->words->whole(b, c);
        imp_buf_str(b, ",");
        g->format->words->logprobs(c, b);
        imp_buf_fmt(b, ",\"finish_reason\":%s}", finish_name(c));
    }
    imp_buf_str(b, "],");
    write_usage(g, b);
    if (g->p.want_receipt) imp_api_write_receipts(&g->base, b);
    imp_buf_str(b, "}");
}

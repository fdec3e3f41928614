/* api/openai_chat.c - the words of a chat completion.
 *
 * Place:   used by generate.c through imp_gen_chat.
 * Source:  OpenAI API reference, "The chat completion object" and "... chunk object". */
#include "api/generate.h"

static void token_object(gen_call *g, imp_buf *out, const imp_token_prob *t)
{
    imp_buf text = {0};
    imp_gen_token_text(g, t->id, &text);
    imp_buf_str(out, "{\"token\":");
    imp_json_str(out, text.data ? text.data : "", text.n);
    imp_buf_str(out, ",\"logprob\":");
    imp_json_f32(out, t->logprob);
    imp_buf_str(out, ",\"bytes\":[");
    for (size_t i = 0; i < text.n; i++) imp_buf_fmt(out, "%s%u", i ? "," : "", (unsigned char)text.data[i]);
    imp_buf_str(out, "]");
    imp_buf_deinit(&text);
}

static void chat_tokens(gen_call *g, gen_choice *c, const imp_event *ev)
{
    imp_buf *b = &c->lp[0];
    for (size_t i = 0; i < ev->n_tokens; i++) {
        if (c->n_tok++ > 0) imp_buf_str(b, ",");
        token_object(g, b, &ev->tokens[i]);
        imp_buf_str(b, ",\"top_logprobs\":[");
        for (size_t j = 0; j < ev->n_top; j++) {
            if (j) imp_buf_str(b, ",");
            token_object(g, b, &ev->top[i * ev->n_top + j]);
            imp_buf_str(b, "}");
        }
        imp_buf_str(b, "]}");
    }
}

static void chat_logprobs(const gen_choice *c, imp_buf *out)
{
    if (c->n_tok == 0) {
        imp_buf_str(out, "\"logprobs\":null");
        return;
    }
    imp_buf_str(out, "\"logprobs\":{\"content\":[");
    imp_buf_add(out, c->lp[0].data, c->lp[0].n);
    imp_buf_str(out, "],\"refusal\":null}");
}

static void chat_delta(imp_buf *out, const char *text, size_t n)
{
    imp_buf_str(out, "\"delta\":{\"content\":");
    imp_json_str(out, text, n);
    imp_buf_str(out, "}");
}

static void chat_whole(imp_buf *out, const gen_choice *c)
{
    imp_buf_str(out, "\"message\":{\"role\":\"assistant\",\"content\":");
    if (c->n_tool > 0 && c->text.n == 0)
        imp_buf_str(out, "null");
    else
        imp_json_str(out, c->text.data ? c->text.data : "", c->text.n);
    imp_buf_str(out, ",\"refusal\":null");
    if (c->thought.n > 0) {
        imp_buf_str(out, ",\"reasoning_content\":");
        imp_json_str(out, c->thought.data, c->thought.n);
    }
    for (size_t k = 0; k < c->n_tool; k++) {
        const gen_tool *t = &c->tool[k];
        imp_buf_fmt(out, "%s{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":",
                    k ? "," : ",\"tool_calls\":[", t->id);
        imp_json_str(out, t->name.data ? t->name.data : "", t->name.n);
        imp_buf_str(out, ",\"arguments\":");
        imp_json_str(out, t->args.data ? t->args.data : "", t->args.n);
        imp_buf_str(out, "}}");
        out->failed |= t->name.failed || t->args.failed;
    }
    imp_buf_str(out, c->n_tool > 0 ? "]}" : "}");
}

static const gen_words words = {.object = "chat.completion",
                                .chunk_object = "chat.completion.chunk",
                                .logprobs = chat_logprobs,
                                .delta = chat_delta,
                                .role_delta = "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}",
                                .last_delta = "\"delta\":{}",
                                .whole = chat_whole};

const gen_format imp_gen_chat = {.id_prefix = "chatcmpl-",
                                 .stream_type = "text/event-stream",
                                 .tokens = chat_tokens,
                                 .open = imp_openai_open,
                                 .piece = imp_openai_piece,
                                 .thought = imp_openai_thought,
                                 .call = imp_openai_call,
                                 .args = imp_openai_args,
                                 .call_end = imp_openai_call_end,
                                 .close = imp_openai_close,
                                 .end = imp_openai_end,
                                 .cut = IMP_OPENAI_CUT,
                                 .answer = imp_openai_answer,
                                 .words = &words};

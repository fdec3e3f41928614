/* api/openai_completion.c - the words of a text completion.
 *
 * Place:   used by generate.c through imp_gen_completion.
 * Layout:  logprobs are four lists side by side: tokens, token_logprobs, top_logprobs, text_offset (in characters).
 * Source:  OpenAI API reference, "The completion object". */
#include "api/generate.h"

enum { LP_TOKENS, LP_PROBS, LP_TOP, LP_OFFSETS };

static uint32_t n_char(const char *s, size_t n)
{
    uint32_t k = 0;
    for (size_t i = 0; i < n; k++) {
        int32_t cp;
        i += imp_utf8_decode(s + i, n - i, &cp);
    }
    return k;
}

static void completion_tokens(gen_call *g, gen_choice *c, const imp_event *ev)
{
    for (size_t i = 0; i < ev->n_tokens; i++) {
        if (c->n_tok++ > 0)
            for (size_t k = 0; k < IMP_COUNT(c->lp); k++) imp_buf_str(&c->lp[k], ",");
        imp_buf text = {0};
        imp_gen_token_text(g, ev->tokens[i].id, &text);
        const char *s = text.data ? text.data : "";
        imp_json_str(&c->lp[LP_TOKENS], s, text.n);
        imp_json_f32(&c->lp[LP_PROBS], ev->tokens[i].logprob);
        imp_buf_fmt(&c->lp[LP_OFFSETS], "%u", c->text_pos);
        c->text_pos += n_char(s, text.n);
        imp_buf *top = &c->lp[LP_TOP];
        imp_buf_str(top, "{");
        for (size_t j = 0; j < ev->n_top; j++) {
            const imp_token_prob *t = &ev->top[i * ev->n_top + j];
            text.n = 0;
            imp_gen_token_text(g, t->id, &text);
            if (j) imp_buf_str(top, ",");
            imp_json_str(top, text.data ? text.data : "", text.n);
            imp_buf_str(top, ":");
            imp_json_f32(top, t->logprob);
        }
        imp_buf_str(top, "}");
        imp_buf_deinit(&text);
    }
}

static void completion_logprobs(const gen_choice *c, imp_buf *out)
{
    static const char *const name[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    if (c->n_tok == 0) {
        imp_buf_str(out, "\"logprobs\":null");
        return;
    }
    imp_buf_str(out, "\"logprobs\":{");
    for (size_t k = 0; k < IMP_COUNT(name); k++) {
        imp_buf_fmt(out, "%s\"%s\":[", k ? "," : "", name[k]);
        imp_buf_add(out, c->lp[k].data, c->lp[k].n);
        imp_buf_str(out, "]");
    }
    imp_buf_str(out, "}");
}

static void completion_delta(imp_buf *out, const char *text, size_t n)
{
    imp_buf_str(out, "\"text\":");
    imp_json_str(out, text, n);
}

static void completion_whole(imp_buf *out, const gen_choice *c)
{
    completion_delta(out, c->text.data ? c->text.data : "", c->text.n);
}

static const gen_words words = {.object = "text_completion",
                                .chunk_object = "text_completion",
                                .logprobs = completion_logprobs,
                                .delta = completion_delta,
                                .role_delta = NULL,
                                .last_delta = "\"text\":\"\"",
                                .whole = completion_whole};

const gen_format imp_gen_completion = {.id_prefix = "cmpl-",
                                       .stream_type = "text/event-stream",
                                       .tokens = completion_tokens,
                                       .open = imp_openai_open,
                                       .piece = imp_openai_piece,
                                       .close = imp_openai_close,
                                       .end = imp_openai_end,
                                       .cut = IMP_OPENAI_CUT,
                                       .answer = imp_openai_answer,
                                       .words = &words};

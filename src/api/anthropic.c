/* api/anthropic.c - /v1/messages and /v1/messages/count_tokens.
 *
 * Place:   fields.c and messages.c for the request, generate.c through imp_gen_messages for the answer.
 * Layout:  a stream: message_start, content_block_start, content_block_delta..., content_block_stop, message_delta (why it
 *          ended, the counts), message_stop; an error is one event of that name.
 * Source:  Anthropic API reference, "Messages", "Streaming messages". */
#include "api/generate.h"

/* ---- the request ------------------------------------------------------------------------------------ */

/* `system`: a string or blocks of text, as messages have them; it becomes the first message. */
imp_status imp_api_anthropic_system(imp_api_params *p, imp_error *err)
{
    if (!p->system_blocks) return IMP_OK;
    imp_message *m = imp_arena_array(p->arena, p->n_msg + 1, sizeof *m);
    if (m == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    memcpy(m + 1, p->msg, p->n_msg * sizeof *m);
    m[0].role = "system";
    IMP_TRY(imp_api_content(p, p->system_blocks, "system", &m[0].content, err));
    p->msg = m;
    p->n_msg++;
    return IMP_OK;
}

/* ---- the answer --------------------------------------------------------------------------------------- */

static const char *stop_reason(const gen_choice *c)
{
    if (c->finish == IMP_FINISH_LENGTH) return "max_tokens";
    return c->stop != NULL ? "stop_sequence" : "end_turn";
}

static void reason(const gen_choice *c, imp_buf *b)
{
    imp_buf_fmt(b, "\"stop_reason\":\"%s\",\"stop_sequence\":", stop_reason(c));
    imp_json_cstr(b, c->stop);
}

static void message_open(gen_call *g, size_t i)
{
    imp_buf *b = &g->out;
    imp_buf_fmt(b,
                "event: message_start\ndata: "
                "{\"type\":\"message_start\",\"message\":{\"id\":\"%s\",\"type\":\"message\","
                "\"role\":\"assistant\",\"content\":[],\"model\":",
                g->id);
    imp_json_cstr(b, g->model_id);
    imp_buf_fmt(
        b,
        ",\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":%zu,\"output_tokens\":0}}}"
        "\n\n"
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":"
        "{\"type\":\"text\",\"text\":\"\"}}\n\n",
        g->prompt[i].n);
}

static void message_piece(gen_call *g, size_t i, const char *text, size_t n)
{
    (void)i;
    imp_buf_str(&g->out,
                "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":"
                "{\"type\":\"text_delta\",\"text\":");
    imp_json_str(&g->out, text, n);
    imp_buf_str(&g->out, "}}\n\n");
}

static void usage(const imp_usage *u, imp_buf *b)
{
    imp_buf_fmt(
        b,
        "\"usage\":{\"input_tokens\":%u,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":%u,"
        "\"output_tokens\":%u}",
        u->n_prompt - u->n_cached, u->n_cached, u->n_generated);
}

static void message_close(gen_call *g, size_t i)
{
    const gen_choice *c = &g->choice[i];
    imp_buf *b = &g->out;
    imp_buf_str(b, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n"
                   "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{");
    reason(c, b);
    imp_buf_str(b, "},");
    usage(&c->usage, b);
    imp_buf_str(b, "}\n\n");
}

static void message_end(gen_call *g, imp_buf *b)
{
    if (g->base.err.status != IMP_OK) {
        imp_buf_str(b, "event: error\ndata: ");
        imp_api_fail_json(b, IMP_ANTHROPIC, &g->base.err);
        imp_buf_str(b, "\n\n");
        return;
    }
    imp_buf_str(b, "event: message_stop\ndata: {\"type\":\"message_stop\"");
    if (g->p.want_receipt) imp_api_write_receipts(&g->base, b);
    imp_buf_str(b, "}\n\n");
}

static void message_answer(gen_call *g, imp_buf *b)
{
    const gen_choice *c = &g->choice[0];
    imp_buf_fmt(b, "{\"id\":\"%s\",\"type\":\"message\",\"role\":\"assistant\",\"model\":", g->id);
    imp_json_cstr(b, g->model_id);
    imp_buf_str(b, ",\"content\":[{\"type\":\"text\",\"text\":");
    imp_json_str(b, c->text.data ? c->text.data : "", c->text.n);
    imp_buf_str(b, "}],");
    reason(c, b);
    imp_buf_str(b, ",");
    usage(&c->usage, b);
    if (g->p.want_receipt) imp_api_write_receipts(&g->base, b);
    imp_buf_str(b, "}");
}

const gen_format imp_gen_messages = {
    .id_prefix = "msg_",
    .stream_type = "text/event-stream",
    .open = message_open,
    .piece = message_piece,
    .close = message_close,
    .end = message_end,
    .cut = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"the "
           "server is out of memory\"}}\n\n",
    .answer = message_answer};

/* ---- counting --------------------------------------------------------------------------------------------- */

static imp_status count(imp_api *a, const imp_api_request *rq, imp_api_params *p, size_t *n, imp_error *err)
{
    IMP_TRY(imp_api_parse(EP_COUNT, rq->body, rq->n_body, p, err));
    imp_model *m = imp_api_model(a, p->model, false, IMP_ANTHROPIC, err);
    if (m == NULL) return err->status;
    char *text = NULL;
    int32_t *ids = NULL;
    imp_status st = imp_chat_render(m, p->msg, p->n_msg, &text, err);
    if (st == IMP_OK) st = imp_tokenize(m, text, strlen(text), IMP_TOK_PARSE_SPECIAL, &ids, n, err);
    imp_free(text);
    imp_free(ids);
    imp_model_release(m);
    return st;
}

void imp_api_count_tokens(imp_api *a, const imp_api_request *rq, const imp_api_sink *s)
{
    imp_api_params p;
    imp_error err = {0};
    size_t n = 0;
    imp_status st = count(a, rq, &p, &n, &err);
    imp_api_params_deinit(&p);
    if (st != IMP_OK) {
        imp_api_fail(s, IMP_ANTHROPIC, &err);
        return;
    }
    imp_buf b = {0};
    imp_buf_fmt(&b, "{\"input_tokens\":%zu}", n);
    imp_api_answer(s, 200, &b);
}

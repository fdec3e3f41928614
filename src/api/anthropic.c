/* api/anthropic.c - /v1/messages and /v1/messages/count_tokens.
 *
 * Place:   fields.c and messages.c for the request, generate.c through imp_gen_messages for the answer.
 * Layout:  a stream: message_start, content_block_start, content_block_delta..., content_block_stop, message_delta (why it
 *          ended, the counts), message_stop; an error is one event of that name.
 * Source:  Anthropic API reference, "Messages", "Streaming messages". */
#include "api/generate.h"

#include <stdio.h>

/* ---- the request ------------------------------------------------------------------------------------ */

/* A result: an assistant's call answered. */
static imp_status tool_result(imp_api_params *p, const json_t *b, const char *name, imp_message *m,
                              imp_error *err)
{
    const json_t *content = json_object_get(b, "content");
    m->role = "tool";
    m->content = "";
    m->call_id = json_string_value(json_object_get(b, "tool_use_id"));
    if (m->call_id == NULL) return imp_fail_field(err, IMP_INVALID, name, "'%s' needs a 'tool_use_id'", name);
    return content != NULL && !json_is_null(content) ? imp_api_content(p, content, name, &m->content, err)
                                                     : IMP_OK;
}

/* The blocks of one message in the order they stand: text and thoughts and calls of the assistant are one message;
 * results and text of the user are one message each. */
static imp_status blocks(imp_api_params *p, const json_t *list, size_t at, const char *role, imp_error *err)
{
    bool assistant = strcmp(role, "assistant") == 0;
    size_t n = json_array_size(list), i;
    imp_tool_call *call = imp_arena_array(p->arena, n + 1, sizeof *call);
    imp_message *m = NULL; /* the one that text goes to */
    const json_t *b;
    if (call == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    json_array_foreach((json_t *)list, i, b)
    {
        char name[64];
        (void)snprintf(name, sizeof name, "messages[%zu].content[%zu]", at, i);
        const char *type = json_string_value(json_object_get(b, "type"));
        if (type == NULL)
            return imp_fail_field(err, IMP_INVALID, name, "'%s' must be an object with a 'type'", name);
        if (!assistant && strcmp(type, "tool_result") == 0) {
            IMP_TRY(tool_result(p, b, name, &p->msg[p->n_msg++], err));
            m = NULL;
            continue;
        }
        if (m == NULL) {
            m = &p->msg[p->n_msg++];
            *m = (imp_message){.role = role, .content = "", .calls = call};
        }
        if (assistant && strcmp(type, "tool_use") == 0) {
            IMP_TRY(imp_api_call_of(p, json_object_get(b, "id"), json_object_get(b, "name"),
                                    json_object_get(b, "input"), name, &call[m->n_calls++], err));
        } else if (assistant && strcmp(type, "thinking") == 0) {
            m->thought = json_string_value(json_object_get(b, "thinking"));
        } else if (!assistant || strcmp(type, "redacted_thinking") != 0) {
            json_t *one = json_pack("[O]", b);
            const char *text = NULL;
            imp_status s = one != NULL ? imp_api_content(p, one, name, &text, err)
                                       : imp_fail(err, IMP_NOMEM, "out of memory");
            json_decref(one);
            IMP_TRY(s);
            size_t k = strlen(m->content);
            char *both = imp_arena_alloc(p->arena, k + strlen(text) + 1);
            if (both == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
            memcpy(both, m->content, k);
            memcpy(both + k, text, strlen(text));
            m->content = both;
        }
    }
    return IMP_OK;
}

imp_status imp_api_anthropic_messages(imp_api_params *p, imp_error *err)
{
    size_t cap = 1, i;
    json_t *v;
    json_array_foreach(p->messages, i, v) cap += 1 + json_array_size(json_object_get(v, "content"));
    p->msg = imp_arena_array(p->arena, cap, sizeof *p->msg);
    if (p->msg == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    if (p->system_blocks != NULL) {
        p->msg[0].role = "system";
        IMP_TRY(imp_api_content(p, p->system_blocks, "system", &p->msg[p->n_msg++].content, err));
    }
    json_array_foreach(p->messages, i, v)
    {
        char name[64];
        const char *role = json_string_value(json_object_get(v, "role")), *key;
        const json_t *content = json_object_get(v, "content"), *x;
        (void)snprintf(name, sizeof name, "messages[%zu]", i);
        if (role == NULL ||
            (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0 && strcmp(role, "system") != 0))
            return imp_fail_field(err, IMP_INVALID, name, "'%s.role' must be user or assistant", name);
        json_object_foreach(v, key, x)
        {
            if (strcmp(key, "role") != 0 && strcmp(key, "content") != 0 && !json_is_null(x))
                return imp_fail_field(err, IMP_INVALID, name,
                                      "'%s.%.40s' is not a field that this server understands", name, key);
        }
        (void)snprintf(name, sizeof name, "messages[%zu].content", i);
        if (json_is_array(content) && json_array_size(content) > 0) {
            IMP_TRY(blocks(p, content, i, role, err));
            continue;
        }
        p->msg[p->n_msg].role = role;
        IMP_TRY(imp_api_content(p, content, name, &p->msg[p->n_msg++].content, err));
    }
    return IMP_OK;
}

/* ---- the answer --------------------------------------------------------------------------------------- */

static const char *stop_reason(const gen_choice *c)
{
    if (imp_gen_calls(c)) return "tool_use";
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
        "\n\n",
        g->prompt[i].n);
}

enum { NO_BLOCK, TEXT, THINKING, TOOL_USE };

static void end_block(gen_call *g, gen_choice *c)
{
    if (c->block == NO_BLOCK) return;
    if (c->block == THINKING) /* clients keep it; there is nothing here that would need one */
        imp_buf_fmt(
            &g->out,
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":%d,\"delta\":{"
            "\"type\":\"signature_delta\",\"signature\":\"\"}}\n\n",
            c->n_block - 1);
    imp_buf_fmt(&g->out,
                "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":%d}\n\n",
                c->n_block - 1);
    c->block = NO_BLOCK;
}

/* A block of this kind is open; calls have one each. */
static void begin_block(gen_call *g, gen_choice *c, int kind)
{
    static const char *const empty[] = {[TEXT] = "{\"type\":\"text\",\"text\":\"\"}",
                                        [THINKING] =
                                            "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}"};
    if (c->block == kind && kind != TOOL_USE) return;
    end_block(g, c);
    c->block = kind;
    imp_buf_fmt(
        &g->out,
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":%d,\"content_block\":",
        c->n_block++);
    if (kind == TOOL_USE) {
        const gen_tool *t = &c->tool[c->n_tool - 1];
        imp_buf_fmt(&g->out, "{\"type\":\"tool_use\",\"id\":\"%s\",\"name\":", t->id);
        imp_json_str(&g->out, t->name.data ? t->name.data : "", t->name.n);
        imp_buf_str(&g->out, ",\"input\":{}}}\n\n");
    } else {
        imp_buf_fmt(&g->out, "%s}\n\n", empty[kind]);
    }
}

static void delta(gen_call *g, const gen_choice *c, const char *type, const char *key, const char *text,
                  size_t n)
{
    imp_buf_fmt(&g->out,
                "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":%d,\"delta\":"
                "{\"type\":\"%s\",\"%s\":",
                c->n_block - 1, type, key);
    imp_json_str(&g->out, text, n);
    imp_buf_str(&g->out, "}}\n\n");
}

static void message_piece(gen_call *g, size_t i, const char *text, size_t n)
{
    begin_block(g, &g->choice[i], TEXT);
    delta(g, &g->choice[i], "text_delta", "text", text, n);
}

static void message_thought(gen_call *g, size_t i, const char *text, size_t n)
{
    begin_block(g, &g->choice[i], THINKING);
    delta(g, &g->choice[i], "thinking_delta", "thinking", text, n);
}

static void message_call(gen_call *g, size_t i, size_t k)
{
    (void)k;
    begin_block(g, &g->choice[i], TOOL_USE);
}

static void message_args(gen_call *g, size_t i, size_t k, const char *text, size_t n)
{
    (void)k;
    delta(g, &g->choice[i], "input_json_delta", "partial_json", text, n);
}

static void message_call_end(gen_call *g, size_t i, size_t k)
{
    (void)k;
    end_block(g, &g->choice[i]);
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
    gen_choice *c = &g->choice[i];
    imp_buf *b = &g->out;
    if (c->n_block == 0) begin_block(g, c, TEXT);
    end_block(g, c);
    imp_buf_str(b, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{");
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
    imp_buf_str(b, ",\"content\":[");
    if (c->thought.n > 0) {
        imp_buf_str(b, "{\"type\":\"thinking\",\"thinking\":");
        imp_json_str(b, c->thought.data, c->thought.n);
        imp_buf_str(b, ",\"signature\":\"\"}");
    }
    if (c->text.n > 0 || c->n_tool == 0) {
        imp_buf_fmt(b, "%s{\"type\":\"text\",\"text\":", c->thought.n > 0 ? "," : "");
        imp_json_str(b, c->text.data ? c->text.data : "", c->text.n);
        imp_buf_str(b, "}");
    }
    for (size_t k = 0; k < c->n_tool; k++) {
        const gen_tool *t = &c->tool[k];
        bool first = k == 0 && c->thought.n == 0 && c->text.n == 0;
        imp_buf_fmt(b, "%s{\"type\":\"tool_use\",\"id\":\"%s\",\"name\":", first ? "" : ",", t->id);
        imp_json_str(b, t->name.data ? t->name.data : "", t->name.n);
        imp_buf_str(b, ",\"input\":");
        imp_buf_add(b, t->args.data, t->args.n);
        imp_buf_str(b, "}");
        b->failed |= t->name.failed || t->args.failed;
    }
    imp_buf_str(b, "],");
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
    .thought = message_thought,
    .call = message_call,
    .args = message_args,
    .call_end = message_call_end,
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
    imp_chat chat;
    imp_status st = imp_api_chat(p, m, &chat, err);
    if (st == IMP_OK) st = imp_chat_prompt(m, &chat, &text, err);
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

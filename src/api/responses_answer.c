/* api/responses_answer.c - the answers of the Responses API: the object, and the events of a stream.
 *
 * Place:   generate.c through imp_gen_responses.
 * Layout:  response.created, response.in_progress; for each item response.output_item.added, its parts' or arguments' events,
 *          response.output_item.done; at last response.completed, .incomplete or .failed. Events are numbered.
 * Source:  OpenAI API reference, "Streaming events". */
#include "api/responses.h"

enum { NO_ITEM, MESSAGE, REASONING, CALL };

/* ---- items ------------------------------------------------------------------------------------------------------- */

static void str(imp_buf *b, const imp_buf *s)
{
    imp_json_str(b, s->data ? s->data : "", s->n);
    b->failed |= s->failed;
}

/* Ids of items come from the response's: resp_X, msg_X, rs_X. */
static const char *tail(const gen_call *g)
{
    return g->id + sizeof "resp_" - 1;
}

static void write_part(const gen_choice *c, int kind, bool done, imp_buf *b)
{
    static const imp_buf none;
    if (kind == MESSAGE) {
        imp_buf_str(b, "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":");
        str(b, done ? &c->text : &none);
    } else {
        imp_buf_str(b, "{\"type\":\"reasoning_text\",\"text\":");
        str(b, done ? &c->thought : &none);
    }
    imp_buf_str(b, "}");
}

/* One item; k counts calls. done: with what it holds. */
static void write_item(const gen_call *g, const gen_choice *c, int kind, size_t k, bool done, imp_buf *b)
{
    static const imp_buf none;
    bool cut = c->finish == IMP_FINISH_LENGTH && (kind != CALL || k >= c->n_whole);
    const char *status = !done ? "in_progress" : cut ? "incomplete" : "completed";
    if (kind == CALL) {
        const gen_tool *t = &c->tool[k];
        imp_buf_fmt(
            b, "{\"type\":\"function_call\",\"id\":\"fc_%s\",\"call_id\":\"%s\",\"status\":\"%s\",\"name\":",
            t->id + sizeof "call_" - 1, t->id, status);
        str(b, &t->name);
        imp_buf_str(b, ",\"arguments\":");
        str(b, done ? &t->args : &none);
    } else if (kind == MESSAGE) {
        imp_buf_fmt(
            b,
            "{\"type\":\"message\",\"id\":\"msg_%s\",\"status\":\"%s\",\"role\":\"assistant\",\"content\":[",
            tail(g), status);
        if (done) write_part(c, kind, true, b);
        imp_buf_str(b, "]");
    } else {
        imp_buf_fmt(b,
                    "{\"type\":\"reasoning\",\"id\":\"rs_%s\",\"status\":\"%s\",\"summary\":[],\"content\":[",
                    tail(g), status);
        if (done) write_part(c, kind, true, b);
        imp_buf_str(b, "]");
    }
    imp_buf_str(b, "}");
}

/* All items of the answer, with commas. */
static void write_items(const gen_call *g, imp_buf *b)
{
    const gen_choice *c = &g->choice[0];
    size_t n = 0;
    if (c->thought.n > 0) {
        write_item(g, c, REASONING, 0, true, b);
        n++;
    }
    if (c->text.n > 0 || (c->n_tool == 0 && n == 0)) {
        imp_buf_str(b, n++ ? "," : "");
        write_item(g, c, MESSAGE, 0, true, b);
    }
    for (size_t k = 0; k < c->n_whole; k++) {
        imp_buf_str(b, n++ ? "," : "");
        write_item(g, c, CALL, k, true, b);
    }
}

/* ---- the object ------------------------------------------------------------------------------------------------------ */

static void write_usage(const imp_usage *u, imp_buf *b)
{
    imp_buf_fmt(b,
                "{\"input_tokens\":%u,\"input_tokens_details\":{\"cached_tokens\":%u},\"output_tokens\":%u,"
                "\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":%u}",
                u->n_prompt, u->n_cached, u->n_generated, u->n_prompt + u->n_generated);
}

static void write_response(const gen_call *g, bool done, imp_buf *b)
{
    const gen_choice *c = &g->choice[0];
    bool failed = g->base.err.status != IMP_OK, cut = done && !failed && c->finish == IMP_FINISH_LENGTH;
    imp_buf_fmt(b,
                "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\",\"background\":"
                "false,\"error\":",
                g->id, (long long)g->created,
                !done    ? "in_progress"
                : failed ? "failed"
                : cut    ? "incomplete"
                         : "completed");
    if (failed) {
        imp_buf e = {0};
        imp_api_fail_json(&e, IMP_OLLAMA, &g->base.err); /* {"error":"sentence"} */
        imp_buf_str(b, "{\"code\":\"server_error\",\"message\":");
        imp_buf_add(b, e.data + 9, e.failed ? 0 : e.n - 9);
        b->failed |= e.failed;
        imp_buf_deinit(&e);
    } else {
        imp_buf_str(b, "null");
    }
    imp_buf_fmt(b,
                ",\"incomplete_details\":%s,\"model\":", cut ? "{\"reason\":\"max_output_tokens\"}" : "null");
    imp_json_cstr(b, g->model_id);
    imp_buf_str(b, ",\"output\":[");
    if (done && !failed) write_items(g, b);
    imp_buf_str(b, "]");
    imp_buf_str(b, g->p.echo_text);
    imp_buf_str(b, ",\"usage\":");
    if (done && !failed)
        write_usage(&c->usage, b);
    else
        imp_buf_str(b, "null");
    if (done && g->p.want_receipt) imp_api_write_receipts(&g->base, b);
    imp_buf_str(b, "}");
}

static void keep(gen_call *g, const imp_buf *answer)
{
    imp_buf items = {0};
    if (!g->p.store) return;
    size_t n = strlen(g->p.items_text);
    imp_buf_add(&items, g->p.items_text, n - 1); /* without its ] */
    if (n > 2) imp_buf_str(&items, ",");
    write_items(g, &items);
    imp_buf_str(&items, "]");
    imp_responses_keep(g->base.api->responses, g->id, g->base.who.client, &items, answer);
    imp_buf_deinit(&items);
}

static void response_answer(gen_call *g, imp_buf *b)
{
    write_response(g, true, b);
    keep(g, b);
}

/* ---- the stream --------------------------------------------------------------------------------------------------------- */

static void event(gen_call *g, imp_buf *b, const char *name)
{
    imp_buf_fmt(b, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%u", name, name, g->n_event++);
}

/* The same, about the item under way. part: also about its one part. */
static void item_event(gen_call *g, const gen_choice *c, const char *name, bool part)
{
    imp_buf *b = &g->out;
    event(g, b, name);
    if (c->block == CALL)
        imp_buf_fmt(b, ",\"item_id\":\"fc_%s\"", c->tool[c->n_tool - 1].id + sizeof "call_" - 1);
    else
        imp_buf_fmt(b, ",\"item_id\":\"%s_%s\"", c->block == MESSAGE ? "msg" : "rs", tail(g));
    imp_buf_fmt(b, ",\"output_index\":%d%s", c->n_block - 1, part ? ",\"content_index\":0" : "");
}

static void response_open(gen_call *g, size_t i)
{
    static const char *const name[] = {"response.created", "response.in_progress"};
    (void)i;
    for (size_t k = 0; k < IMP_COUNT(name); k++) {
        event(g, &g->out, name[k]);
        imp_buf_str(&g->out, ",\"response\":");
        write_response(g, false, &g->out);
        imp_buf_str(&g->out, "}\n\n");
    }
}

static void end_item(gen_call *g, gen_choice *c)
{
    imp_buf *b = &g->out;
    if (c->block == NO_ITEM) return;
    const char *key = c->block == CALL ? "arguments" : "text";
    item_event(g, c,
               c->block == CALL      ? "response.function_call_arguments.done"
               : c->block == MESSAGE ? "response.output_text.done"
                                     : "response.reasoning_text.done",
               c->block != CALL);
    if (c->block == CALL) {
        imp_buf_str(b, ",\"name\":");
        str(b, &c->tool[c->n_tool - 1].name);
    }
    imp_buf_fmt(b, ",\"%s\":", key);
    str(b, c->block == CALL ? &c->tool[c->n_tool - 1].args : c->block == MESSAGE ? &c->text : &c->thought);
    imp_buf_str(b, c->block == MESSAGE ? ",\"logprobs\":[]}\n\n" : "}\n\n");
    if (c->block != CALL) {
        item_event(g, c, "response.content_part.done", true);
        imp_buf_str(b, ",\"part\":");
        write_part(c, c->block, true, b);
        imp_buf_str(b, "}\n\n");
    }
    event(g, b, "response.output_item.done");
    imp_buf_fmt(b, ",\"output_index\":%d,\"item\":", c->n_block - 1);
    write_item(g, c, c->block, c->n_tool - 1, true, b);
    imp_buf_str(b, "}\n\n");
    c->block = NO_ITEM;
}

static void begin_item(gen_call *g, gen_choice *c, int kind)
{
    imp_buf *b = &g->out;
    if (c->block == kind && kind != CALL) return;
    end_item(g, c);
    c->block = kind;
    event(g, b, "response.output_item.added");
    imp_buf_fmt(b, ",\"output_index\":%d,\"item\":", c->n_block++);
    write_item(g, c, kind, c->n_tool - 1, false, b);
    imp_buf_str(b, "}\n\n");
    if (kind == CALL) return;
    item_event(g, c, "response.content_part.added", true);
    imp_buf_str(b, ",\"part\":");
    write_part(c, kind, false, b);
    imp_buf_str(b, "}\n\n");
}

static void delta(gen_call *g, const gen_choice *c, const char *name, const char *text, size_t n)
{
    item_event(g, c, name, c->block != CALL);
    imp_buf_str(&g->out, ",\"delta\":");
    imp_json_str(&g->out, text, n);
    imp_buf_str(&g->out, c->block == MESSAGE ? ",\"logprobs\":[]}\n\n" : "}\n\n");
}

static void response_piece(gen_call *g, size_t i, const char *text, size_t n)
{
    gen_choice *c = &g->choice[i];
    begin_item(g, c, MESSAGE);
    imp_buf_add(&c->text, text, n);
    delta(g, c, "response.output_text.delta", text, n);
}

static void response_thought(gen_call *g, size_t i, const char *text, size_t n)
{
    gen_choice *c = &g->choice[i];
    begin_item(g, c, REASONING);
    imp_buf_add(&c->thought, text, n);
    delta(g, c, "response.reasoning_text.delta", text, n);
}

static void response_call(gen_call *g, size_t i, size_t k)
{
    (void)k;
    begin_item(g, &g->choice[i], CALL);
}

static void response_args(gen_call *g, size_t i, size_t k, const char *text, size_t n)
{
    (void)k;
    delta(g, &g->choice[i], "response.function_call_arguments.delta", text, n);
}

static void response_call_end(gen_call *g, size_t i, size_t k)
{
    (void)k;
    end_item(g, &g->choice[i]);
}

static void response_close(gen_call *g, size_t i)
{
    gen_choice *c = &g->choice[i];
    if (c->n_block == 0) begin_item(g, c, MESSAGE);
    end_item(g, c);
}

static void response_end(gen_call *g, imp_buf *b)
{
    bool failed = g->base.err.status != IMP_OK;
    imp_buf answer = {0};
    write_response(g, true, &answer);
    event(g, b,
          failed                                     ? "response.failed"
          : g->choice[0].finish == IMP_FINISH_LENGTH ? "response.incomplete"
                                                     : "response.completed");
    imp_buf_str(b, ",\"response\":");
    imp_buf_add(b, answer.data, answer.n);
    imp_buf_str(b, "}\n\n");
    b->failed |= answer.failed;
    if (!failed) keep(g, &answer);
    imp_buf_deinit(&answer);
}

const gen_format imp_gen_responses = {
    .id_prefix = "resp_",
    .stream_type = "text/event-stream",
    .open = response_open,
    .piece = response_piece,
    .thought = response_thought,
    .call = response_call,
    .args = response_args,
    .call_end = response_call_end,
    .close = response_close,
    .end = response_end,
    .cut = "event: error\ndata: {\"type\":\"error\",\"code\":\"out_of_memory\",\"message\":\"the server is "
           "out of memory\","
           "\"param\":null,\"sequence_number\":0}\n\n",
    .answer = response_answer};

/* api/tools_answer.c - answers with thoughts and calls: each choice's text goes through a reader (text/toolcall.h).
 *
 * Place:   generate.c hands text over; what comes out goes to the API's format at once, or is kept for the whole answer.
 * Always:  a call that is not complete when the answer ends is no call of a whole answer, and an answer that ends by itself
 *          never has one: the request fails instead. */
#include "api/generate.h"

static void part(void *user, imp_part_kind kind, const char *p, size_t n)
{
    gen_reading *r = user;
    gen_call *g = r->g;
    gen_choice *c = &g->choice[r->index];
    bool stream = g->p.stream;
    gen_tool *t = c->n_tool > 0 ? &c->tool[c->n_tool - 1] : NULL;
    switch (kind) {
    case IMP_PART_TEXT:
        if (stream)
            g->format->piece(g, r->index, p, n);
        else
            imp_buf_add(&c->text, p, n);
        break;
    case IMP_PART_THOUGHT:
        if (stream)
            g->format->thought(g, r->index, p, n);
        else
            imp_buf_add(&c->thought, p, n);
        break;
    case IMP_PART_CALL: {
        gen_tool *grown = imp_sys_realloc(c->tool, (c->n_tool + 1) * sizeof *grown);
        if (grown == NULL) {
            c->text.failed = g->out.failed = true;
            break;
        }
        c->tool = grown;
        t = &c->tool[c->n_tool++];
        *t = (gen_tool){0};
        imp_api_make_id(g->base.api, g->base.dialect == IMP_ANTHROPIC ? "toolu_" : "call_", t->id);
        imp_buf_add(&t->name, p, n);
        if (stream) g->format->call(g, r->index, c->n_tool - 1);
        break;
    }
    case IMP_PART_ARGS:
        if (t == NULL) break;
        imp_buf_add(&t->args, p, n);
        if (stream) g->format->args(g, r->index, c->n_tool - 1, p, n);
        break;
    case IMP_PART_CALL_END:
        if (t == NULL) break;
        c->n_whole = c->n_tool;
        if (stream) g->format->call_end(g, r->index, c->n_tool - 1);
        break;
    }
}

imp_status imp_gen_read(gen_call *g, bool in_thought, imp_error *err)
{
    const imp_toolfmt *f = imp_model_toolfmt(g->model);
    bool calls = g->p.tool_list != NULL && g->p.tool_want != TOOLS_NONE;
    if (g->p.n_msg == 0 || f == NULL || g->format->thought == NULL || (!calls && !imp_toolfmt_thinks(f)))
        return IMP_OK;
    for (size_t i = 0; i < g->base.n_slot; i++) {
        gen_choice *c = &g->choice[i];
        c->reading = (gen_reading){g, i};
        imp_status s =
            imp_reader_new(f, calls ? g->p.tool_list : NULL, in_thought, part, &c->reading, &c->reader);
        if (s != IMP_OK) return imp_fail(err, s, "out of memory");
    }
    return IMP_OK;
}

static void broken(gen_call *g)
{
    if (g->base.err.status == IMP_OK)
        (void)imp_fail(&g->base.err, IMP_INTERNAL, "the model wrote a call of a tool that cannot be read");
}

void imp_gen_push(gen_call *g, gen_choice *c, const char *p, size_t n)
{
    if (!c->broken && !imp_reader_push(c->reader, p, n)) {
        c->broken = true;
        broken(g);
    }
}

void imp_gen_end(gen_call *g, gen_choice *c)
{
    bool good = !c->broken && imp_reader_end(c->reader);
    if (!good && c->finish == IMP_FINISH_STOP && c->stop == NULL) broken(g);
    while (!g->p.stream && c->n_tool > c->n_whole) { /* what was cut off is no call */
        c->n_tool--;
        imp_buf_deinit(&c->tool[c->n_tool].name);
        imp_buf_deinit(&c->tool[c->n_tool].args);
    }
}

bool imp_gen_calls(const gen_choice *c)
{
    return c->n_whole > 0 && c->n_whole == c->n_tool && c->finish == IMP_FINISH_STOP;
}

void imp_gen_free_choice(gen_choice *c)
{
    imp_reader_free(c->reader);
    imp_buf_deinit(&c->thought);
    for (size_t i = 0; i < c->n_tool; i++) {
        imp_buf_deinit(&c->tool[i].name);
        imp_buf_deinit(&c->tool[i].args);
    }
    imp_sys_free(c->tool);
}

/* engine/text.c - tokens and chats of a loaded model, through impetus.h. */
#include <stdio.h>

#include "engine/engine_int.h"

static imp_status need_tokenizer(const imp_model *m, imp_error *err)
{
    if (m->net->tok != NULL) return IMP_OK;
    return imp_fail(err, IMP_UNSUPPORTED, "this model has no tokenizer; send token ids instead of text");
}

imp_status imp_tokenize(const imp_model *m, const char *text, size_t n_text, unsigned flags,
                        int32_t **out_ids, size_t *out_n, imp_error *err)
{
    *out_ids = NULL;
    *out_n = 0;
    IMP_TRY(need_tokenizer(m, err));
    imp_ids ids = {0};
    imp_status s = imp_tokenizer_encode(m->net->tok, text, n_text, flags, &ids, err);
    if (s != IMP_OK) {
        imp_ids_deinit(&ids);
        return s;
    }
    if (ids.id == NULL) ids.id = imp_sys_malloc(1);
    if (ids.id == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the tokens");
    *out_ids = ids.id;
    *out_n = ids.n;
    return IMP_OK;
}

imp_status imp_detokenize(const imp_model *m, const int32_t *ids, size_t n, bool special, char **out_text,
                          size_t *out_n, imp_error *err)
{
    *out_text = NULL;
    *out_n = 0;
    IMP_TRY(need_tokenizer(m, err));
    imp_buf b = {0};
    imp_status s = imp_tokenizer_decode(m->net->tok, ids, n, special, &b, err);
    if (s != IMP_OK) {
        imp_buf_deinit(&b);
        return s;
    }
    *out_n = b.n;
    *out_text = imp_buf_take(&b);
    return *out_text == NULL ? imp_fail(err, IMP_NOMEM, "not enough memory for the text") : IMP_OK;
}

const char *imp_token_piece(const imp_model *m, int32_t id, size_t *n_out)
{
    *n_out = 0;
    return m->net->tok == NULL ? NULL : imp_tokenizer_piece(m->net->tok, id, n_out);
}

/* ---- chats: the model's own template, or a family that its control tokens show ------------------------------ */

/* A special token as its template sees it; NULL: the vocabulary has none. */
static const char *special(const imp_tokenizer *t, int32_t id)
{
    size_t n;
    return id >= 0 ? imp_tokenizer_piece(t, id, &n) : NULL;
}

/* How calls and thoughts are written, and the control tokens that are part of that shown in answers. */
static imp_status probe(imp_model *m, imp_error *err)
{
    imp_tokenizer *t = m->net->tok;
    const char *src = m->net->chat_template;
    imp_status s = imp_toolfmt_probe(m->template, src, special(t, imp_tokenizer_bos(t)),
                                     special(t, imp_tokenizer_eos(t)), &m->toolfmt);
    if (s != IMP_OK) return imp_fail(err, s, "not enough memory for the chat template");
    const char *name = imp_toolfmt_name(m->toolfmt), *why = imp_toolfmt_why(m->toolfmt);
    if (name != NULL)
        imp_log(IMP_LOG_INFO, "%s: tools: %s", m->id, name);
    else
        imp_log(IMP_LOG_WARN, "%s: no tools: %s", m->id, why);
    for (size_t i = 0; i < imp_tokenizer_n(t); i++) {
        size_t n = 0;
        const char *piece = imp_tokenizer_piece(t, (int32_t)i, &n);
        bool ends = false;
        for (uint32_t k = 0; k < m->net->cfg.n_eos; k++) ends = ends || m->net->cfg.eos[k] == (int32_t)i;
        if (imp_tokenizer_kind(t, (int32_t)i) == IMP_TOKEN_CONTROL && !ends &&
            imp_toolfmt_has_text(m->toolfmt, piece, n))
            imp_tokenizer_show(t, (int32_t)i);
    }
    return IMP_OK;
}

imp_status imp_model_init_chat(imp_model *m, imp_error *err)
{
    const imp_net *net = m->net;
    const char *name = NULL;
    m->chat = IMP_CHAT_NONE;
    if (net->tok == NULL || net->generate == NULL) return IMP_OK;
    if (net->chat_template == NULL) {
        m->chat = imp_chat_detect(net->tok, NULL);
        name = imp_chat_name(m->chat);
    } else {
        imp_status s =
            imp_jinja_compile(net->chat_template, strlen(net->chat_template), &m->template, &m->no_template);
        if (s == IMP_NOMEM) return imp_fail(err, s, "not enough memory for the chat template");
        if (s != IMP_OK) imp_log(IMP_LOG_WARN, "%s: no chat: %s", m->id, m->no_template.text);
        if (s == IMP_OK) IMP_TRY(probe(m, err));
        name = s == IMP_OK ? imp_chat_name(imp_chat_detect(net->tok, net->chat_template)) : "";
        if (name == NULL) name = "jinja";
    }
    if (name != NULL) (void)snprintf(m->template_id, sizeof m->template_id, "%s", name);
    return IMP_OK;
}

const imp_toolfmt *imp_model_toolfmt(const imp_model *m)
{
    return m->toolfmt;
}

static imp_status render_template(const imp_model *m, const imp_chat *c, imp_buf *out, imp_error *err)
{
    const imp_tokenizer *t = m->net->tok;
    const char *bos = special(t, imp_tokenizer_bos(t)), *eos = special(t, imp_tokenizer_eos(t));
    json_t *vars = NULL;
    IMP_TRY(imp_toolfmt_vars(m->toolfmt, c, &vars, err));
    if ((bos != NULL && json_object_set_new(vars, "bos_token", json_string(bos)) != 0) ||
        (eos != NULL && json_object_set_new(vars, "eos_token", json_string(eos)) != 0)) {
        json_decref(vars);
        return imp_fail(err, IMP_NOMEM, "not enough memory for the prompt");
    }
    imp_error why = {0};
    imp_status s = imp_jinja_render(m->template, vars, NULL, out, &why);
    json_decref(vars);
    return s == IMP_OK ? s : imp_fail_field(err, s, "messages", "%s", why.text);
}

/* A model without a template knows no calls. */
static imp_status render_family(const imp_model *m, const imp_chat *c, imp_buf *out, imp_error *err)
{
    bool calls = c->tools != NULL;
    for (size_t i = 0; i < c->n_msg; i++)
        calls = calls || c->msg[i].n_calls > 0 || strcmp(c->msg[i].role, "tool") == 0;
    if (calls)
        return imp_fail_field(err, IMP_UNSUPPORTED, "tools",
                              "this model cannot be given tools: it has no chat template of its own");
    return imp_chat_format(m->chat, c->msg, c->n_msg, out, err);
}

/* A prompt starts with BOS once where the model wants it: many templates write it, some leave it to the tokenizer. */
static void add_bos(const imp_tokenizer *t, const imp_buf *text, imp_buf *out)
{
    size_t n = 0;
    const char *bos = imp_tokenizer_adds_bos(t) ? imp_tokenizer_piece(t, imp_tokenizer_bos(t), &n) : NULL;
    if (bos != NULL && (text->n < n || memcmp(text->data, bos, n) != 0)) imp_buf_add(out, bos, n);
    imp_buf_add(out, text->data, text->n);
}

imp_status imp_chat_prompt(const imp_model *m, const imp_chat *chat, char **out_text, imp_error *err)
{
    *out_text = NULL;
    imp_buf text = {0}, whole = {0};
    imp_status s;
    if (m->no_template.status != IMP_OK)
        s = imp_fail_field(err, IMP_UNSUPPORTED, "messages",
                           "this model's chat template is not understood (%.300s); use /v1/completions",
                           m->no_template.text);
    else if (m->template != NULL)
        s = render_template(m, chat, &text, err);
    else
        s = render_family(m, chat, &text, err);
    if (s == IMP_OK) {
        add_bos(m->net->tok, &text, &whole);
        *out_text = imp_buf_take(&whole);
        if (*out_text == NULL) s = imp_fail(err, IMP_NOMEM, "not enough memory for the prompt");
    }
    imp_buf_deinit(&text);
    imp_buf_deinit(&whole);
    return s;
}

imp_status imp_chat_render(const imp_model *m, const imp_message *msgs, size_t n_msgs, char **out_text,
                           imp_error *err)
{
    imp_chat c = {.msg = msgs, .n_msg = n_msgs, .think = -1};
    return imp_chat_prompt(m, &c, out_text, err);
}

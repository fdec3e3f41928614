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
        name = s == IMP_OK ? imp_chat_name(imp_chat_detect(net->tok, net->chat_template)) : "";
        if (name == NULL) name = "jinja";
    }
    if (name != NULL) (void)snprintf(m->template_id, sizeof m->template_id, "%s", name);
    return IMP_OK;
}

/* A special token under its name in the template's variables; absent where the vocabulary has none. */
static int set_token(json_t *vars, const char *key, const imp_tokenizer *t, int32_t id)
{
    size_t n;
    const char *piece = id >= 0 ? imp_tokenizer_piece(t, id, &n) : NULL;
    return piece == NULL ? 0 : json_object_set_new(vars, key, json_stringn(piece, n));
}

/* The variables that transformers gives a template. NULL: out of memory, or a text is not UTF-8. */
static json_t *template_vars(const imp_model *m, const imp_message *msgs, size_t n_msgs)
{
    const imp_tokenizer *t = m->net->tok;
    json_t *list = json_array();
    bool good = list != NULL;
    for (size_t i = 0; i < n_msgs && good; i++)
        good = json_array_append_new(
                   list, json_pack("{s:s, s:s}", "role", msgs[i].role, "content", msgs[i].content)) == 0;
    if (!good) {
        json_decref(list);
        return NULL;
    }
    json_t *vars =
        json_pack("{s:o, s:n, s:n, s:b}", "messages", list, "tools", "documents", "add_generation_prompt", 1);
    if (vars != NULL && (set_token(vars, "bos_token", t, imp_tokenizer_bos(t)) != 0 ||
                         set_token(vars, "eos_token", t, imp_tokenizer_eos(t)) != 0)) {
        json_decref(vars);
        return NULL;
    }
    return vars;
}

static imp_status render_template(const imp_model *m, const imp_message *msgs, size_t n_msgs, imp_buf *out,
                                  imp_error *err)
{
    if (n_msgs == 0) return imp_fail_field(err, IMP_INVALID, "messages", "messages is empty");
    for (size_t i = 0; i < n_msgs; i++)
        if (!imp_utf8_valid(msgs[i].content, strlen(msgs[i].content)) ||
            !imp_utf8_valid(msgs[i].role, strlen(msgs[i].role)))
            return imp_fail_field(err, IMP_INVALID, "messages", "message %zu is not valid UTF-8", i);
    json_t *vars = template_vars(m, msgs, n_msgs);
    if (vars == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the prompt");
    imp_error why = {0};
    imp_status s = imp_jinja_render(m->template, vars, NULL, out, &why);
    json_decref(vars);
    return s == IMP_OK ? s : imp_fail_field(err, s, "messages", "%s", why.text);
}

/* A prompt starts with BOS once where the model wants it: many templates write it, some leave it to the tokenizer. */
static void add_bos(const imp_tokenizer *t, const imp_buf *text, imp_buf *out)
{
    size_t n = 0;
    const char *bos = imp_tokenizer_adds_bos(t) ? imp_tokenizer_piece(t, imp_tokenizer_bos(t), &n) : NULL;
    if (bos != NULL && (text->n < n || memcmp(text->data, bos, n) != 0)) imp_buf_add(out, bos, n);
    imp_buf_add(out, text->data, text->n);
}

imp_status imp_chat_render(const imp_model *m, const imp_message *msgs, size_t n_msgs, char **out_text,
                           imp_error *err)
{
    *out_text = NULL;
    imp_buf text = {0}, whole = {0};
    imp_status s;
    if (m->no_template.status != IMP_OK)
        s = imp_fail_field(err, IMP_UNSUPPORTED, "messages",
                           "this model's chat template is not understood (%.300s); use /v1/completions",
                           m->no_template.text);
    else if (m->template != NULL)
        s = render_template(m, msgs, n_msgs, &text, err);
    else
        s = imp_chat_format(m->chat, msgs, n_msgs, &text, err);
    if (s == IMP_OK) {
        add_bos(m->net->tok, &text, &whole);
        *out_text = imp_buf_take(&whole);
        if (*out_text == NULL) s = imp_fail(err, IMP_NOMEM, "not enough memory for the prompt");
    }
    imp_buf_deinit(&text);
    imp_buf_deinit(&whole);
    return s;
}
